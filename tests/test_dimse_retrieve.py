"""C-GET and C-MOVE: what arrives, what the counters say, and what is done when something can't be sent."""

from __future__ import annotations

import contextlib
import threading

import pytest
from dimsenode import (
    PATIENT_GET,
    PATIENT_MOVE,
    STUDY_GET,
    STUDY_MOVE,
    associated,
    data_set_of,
    free_port,
    query,
    serving,
)
from makers import (
    CT_IMAGE,
    EXPLICIT_LE,
    IMPLICIT_LE,
    JPEG_BASELINE,
    MR_IMAGE,
    SECONDARY_CAPTURE,
    make_object,
    noise,
)
from pynetdicom import AE, evt
from pynetdicom.pdu_primitives import SOPClassExtendedNegotiation
from pynetdicom.presentation import build_context, build_role

from hilum.dimse.options import Peer
from hilum.engine.packs import PackReader

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
RLE = "1.2.840.10008.1.2.5"


def an_object(study, series, number, **changed):
    wanted = {"pixels": noise(4096, number), "rows": 64, "columns": 64, **changed}
    return make_object(f"1.2.{study}.{series}.{number}", f"1.2.{study}", f"1.2.{study}.{series}", **wanted)


CTS = [an_object(1, 1, number, instance_number=number) for number in range(1, 6)]
MRS = [an_object(1, 2, number, sop_class=MR_IMAGE, modality="MR") for number in range(1, 3)]
OTHER = [an_object(2, 1, 1, patient_id="P2")]


class Receiver:
    """pynetdicom as the one who is sent to. Keeps data sets as they came."""

    def __init__(self, contexts, *, answer=None, title="DEST"):
        self.got = {}
        self.requests = []
        self.associations = 0
        self._answer = answer or (lambda uid: 0)
        entity = AE(title)
        for context in contexts:
            entity.add_supported_context(*context)
        self.port = free_port()
        self._server = entity.start_server(
            ("127.0.0.1", self.port),
            block=False,
            evt_handlers=[(evt.EVT_C_STORE, self._store), (evt.EVT_ACCEPTED, self._accepted)],
        )

    def _accepted(self, event):
        self.associations += 1

    def _store(self, event):
        request = event.request
        uid = str(request.AffectedSOPInstanceUID)
        status = self._answer(uid)
        if not status or status & 0xF000 == 0xB000:
            self.got[uid] = (str(event.context.transfer_syntax), request.DataSet.getvalue())
        self.requests.append(request)
        return status

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._server.shutdown()

    @property
    def peer(self):
        return Peer(title="DEST", host="127.0.0.1", port=self.port)


ALL = [(CT_IMAGE, [EXPLICIT_LE]), (MR_IMAGE, [EXPLICIT_LE])]


def move(node, keys, *, model=STUDY_MOVE, to="DEST", extended=None, cancel_at=None):
    """[(status, (remaining, completed, failed, warning))], and the identifier of the last answer."""
    items = []
    if extended is not None:
        item = SOPClassExtendedNegotiation()
        item.sop_class_uid, item.service_class_application_information = model, extended
        items.append(item)
    with associated(node, [model], title="MOVER", ext_neg=items) as association:
        answers = []
        for status, found in association.send_c_move(query(**keys), to, model, msg_id=77):
            answers.append((status, found))
            if cancel_at is not None and len(answers) == cancel_at:
                association.send_c_cancel(77, query_model=model)
    return [_counted(status) for status, _ in answers], answers[-1][1]


def _counted(status):
    names = ("Remaining", "Completed", "Failed", "Warning")
    return status.Status, tuple(
        status.get(f"NumberOf{name}Suboperations") for name in names
    )  # fmt: skip


SERIES = {"QueryRetrieveLevel": "SERIES", "StudyInstanceUID": "1.2.1", "SeriesInstanceUID": "1.2.1.1"}
STUDY = {"QueryRetrieveLevel": "STUDY", "StudyInstanceUID": "1.2.1"}


def test_a_series_is_moved_byte_for_byte_and_counted(tmp_path):
    with Receiver(ALL) as receiver, serving(tmp_path, stored=CTS + MRS, peers=(receiver.peer,)) as node:
        answers, last = move(node, SERIES)

    assert answers == [
        (0xFF00, (5, 0, 0, 0)),
        (0xFF00, (4, 1, 0, 0)),
        (0xFF00, (3, 2, 0, 0)),
        (0xFF00, (2, 3, 0, 0)),
        (0xFF00, (1, 4, 0, 0)),
        (0x0000, (None, 5, 0, 0)),
    ]
    assert last is None
    assert {uid: data for uid, (_, data) in receiver.got.items()} == {
        f"1.2.1.1.{number}": data_set_of(CTS[number - 1]) for number in range(1, 6)
    }
    assert receiver.associations == 1


def test_what_is_sent_names_the_mover_and_its_message(tmp_path):
    with Receiver(ALL) as receiver, serving(tmp_path, stored=CTS[:1], peers=(receiver.peer,)) as node:
        move(node, SERIES)

    (request,) = receiver.requests
    assert request.MoveOriginatorApplicationEntityTitle == "MOVER"
    assert request.MoveOriginatorMessageID == 77


@pytest.mark.parametrize(
    ("model", "keys", "count"),
    [
        (PATIENT_MOVE, {"QueryRetrieveLevel": "PATIENT", "PatientID": "P1"}, 7),
        (STUDY_MOVE, STUDY, 7),
        (STUDY_MOVE, {"QueryRetrieveLevel": "STUDY", "StudyInstanceUID": ["1.2.1", "1.2.2"]}, 8),
        (STUDY_MOVE, {**SERIES, "SeriesInstanceUID": ["1.2.1.1", "1.2.1.2"]}, 7),
        (
            STUDY_MOVE,
            {**SERIES, "QueryRetrieveLevel": "IMAGE", "SOPInstanceUID": ["1.2.1.1.1", "1.2.1.1.3", "9.9"]},
            2,
        ),
        (STUDY_MOVE, {"QueryRetrieveLevel": "STUDY", "StudyInstanceUID": "9.9"}, 0),
    ],
)
def test_each_level_and_lists_of_uids_are_moved(tmp_path, model, keys, count):
    stored = CTS + MRS + OTHER
    with Receiver(ALL) as receiver, serving(tmp_path, stored=stored, peers=(receiver.peer,)) as node:
        answers, _ = move(node, keys, model=model)

    assert answers[-1] == (0, (None, count, 0, 0))
    assert len(receiver.got) == count


@pytest.mark.parametrize(
    ("keys", "status"),
    [
        ({"QueryRetrieveLevel": "SERIES", "SeriesInstanceUID": "1.2.1.1"}, 0xA900),
        ({"QueryRetrieveLevel": "SERIES", "StudyInstanceUID": "1.2.1"}, 0xA900),
        ({"QueryRetrieveLevel": "STUDY", "StudyInstanceUID": "1.2*"}, 0xA900),
        ({"QueryRetrieveLevel": "PATIENT", "PatientID": "P1"}, 0xA900),
        ({"StudyInstanceUID": "1.2.1"}, 0xA900),
    ],
)
def test_a_retrieve_that_does_not_name_what_it_wants_is_a900(tmp_path, keys, status):
    peer = Peer(title="DEST", host="127.0.0.1", port=free_port())
    with serving(tmp_path, stored=CTS, peers=(peer,)) as node:
        answers, _ = move(node, keys)

    assert [found for found, _ in answers] == [status]


def test_relational_retrieval_needs_no_keys_above(tmp_path):
    keys = {"QueryRetrieveLevel": "SERIES", "SeriesInstanceUID": "1.2.1.1"}
    with Receiver(ALL) as receiver, serving(tmp_path, stored=CTS, peers=(receiver.peer,)) as node:
        answers, _ = move(node, keys, extended=b"\1")

    assert answers[-1] == (0, (None, 5, 0, 0))


def test_an_unknown_destination_is_a801(tmp_path):
    with serving(tmp_path, stored=CTS) as node:
        answers, _ = move(node, SERIES, to="NOBODY")

    assert [status for status, _ in answers] == [0xA801]


def test_a_destination_that_does_not_answer_fails_all_of_them(tmp_path):
    peer = Peer(title="DEST", host="127.0.0.1", port=free_port())
    with serving(tmp_path, stored=CTS, peers=(peer,)) as node:
        answers, last = move(node, SERIES)

    assert answers[-1] == (0xA702, (None, 0, 5, 0))
    assert sorted(last.FailedSOPInstanceUIDList) == [f"1.2.1.1.{number}" for number in range(1, 6)]


def test_some_failures_are_a_warning_and_named(tmp_path):
    with (
        Receiver(ALL, answer=lambda uid: 0xA700 if uid.endswith(".2") else 0) as receiver,
        serving(tmp_path, stored=CTS, peers=(receiver.peer,)) as node,
    ):
        answers, last = move(node, SERIES)

    assert answers[-1] == (0xB000, (None, 4, 1, 0))
    assert last.FailedSOPInstanceUIDList == "1.2.1.1.2"


def test_warnings_of_the_receiver_are_counted_as_such(tmp_path):
    with (
        Receiver(ALL, answer=lambda uid: 0xB000 if uid.endswith(".2") else 0) as receiver,
        serving(tmp_path, stored=CTS, peers=(receiver.peer,)) as node,
    ):
        answers, last = move(node, SERIES)

    assert answers[-1] == (0xB000, (None, 4, 0, 1))
    assert not last


def test_a_class_that_the_receiver_does_not_take_is_failed_and_the_others_go_on(tmp_path):
    with (
        Receiver(ALL[:1]) as receiver,
        serving(tmp_path, stored=CTS + MRS, peers=(receiver.peer,)) as node,
    ):
        answers, last = move(node, STUDY)

    assert answers[-1] == (0xB000, (None, 5, 2, 0))
    assert sorted(last.FailedSOPInstanceUIDList) == ["1.2.1.2.1", "1.2.1.2.2"]
    assert len(receiver.got) == 5


def test_an_association_that_the_receiver_breaks_is_made_again_for_the_rest(tmp_path):
    broken = []

    def answer(uid):
        if uid.endswith(".3") and not broken:
            broken.append(uid)
            for thread in threading.enumerate():
                if thread.name.startswith("AcceptorThread"):
                    thread.abort(block=False)
        return 0

    with (
        Receiver(ALL, answer=answer) as receiver,
        serving(tmp_path, stored=CTS, peers=(receiver.peer,)) as node,
    ):
        answers, last = move(node, SERIES)

    assert answers[-1] == (0xB000, (None, 4, 1, 0))
    assert last.FailedSOPInstanceUIDList == "1.2.1.1.3"
    assert receiver.associations == 2


def test_a_cancel_ends_a_move_and_says_what_is_left(tmp_path):
    gate = threading.Event()

    def answer(uid):
        gate.wait(0.2)
        return 0

    objects = [an_object(1, 1, number, instance_number=number) for number in range(1, 41)]
    with (
        Receiver(ALL, answer=answer) as receiver,
        serving(tmp_path, stored=objects, peers=(receiver.peer,)) as node,
    ):
        answers, _ = move(node, SERIES, cancel_at=3)
        gate.set()

    status, (remaining, completed, failed, _) = answers[-1]
    assert status == 0xFE00
    assert remaining > 0
    assert remaining + completed + failed == 40


def test_a_damaged_object_is_failed_and_the_others_arrive(tmp_path, monkeypatch):
    read = PackReader.read
    with Receiver(ALL) as receiver, serving(tmp_path, stored=CTS, peers=(receiver.peer,)) as node:
        instance = node.store.locate("1.2.1.1.2").instance

        def rotten(self, kinds, container, begin, length):
            data = read(self, kinds, container, begin, length)
            if container == instance.container and begin <= instance.offset < begin + length:
                return bytes(len(data))
            return data

        monkeypatch.setattr(PackReader, "read", rotten)
        answers, last = move(node, SERIES)

    assert answers[-1][0] == 0xB000
    assert last.FailedSOPInstanceUIDList == "1.2.1.1.2"
    assert len(receiver.got) == 4


def test_what_the_receiver_does_not_take_is_transcoded_where_nothing_is_lost(tmp_path):
    implicit = an_object(1, 1, 9, transfer_syntax=IMPLICIT_LE)
    with Receiver(ALL) as receiver, serving(tmp_path, stored=[implicit], peers=(receiver.peer,)) as node:
        answers, _ = move(node, SERIES)

    assert answers[-1] == (0, (None, 1, 0, 0))
    syntax, data = receiver.got["1.2.1.1.9"]
    assert syntax == EXPLICIT_LE
    assert data.endswith(noise(4096, 9))


def test_what_can_not_be_decoded_is_failed_not_sent_as_something_else(tmp_path):
    broken = an_object(1, 1, 9, pixels=None, fragments=[noise(400)], transfer_syntax=JPEG_BASELINE)
    with Receiver(ALL) as receiver, serving(tmp_path, stored=[broken], peers=(receiver.peer,)) as node:
        answers, last = move(node, SERIES)

    assert answers[-1] == (0xA702, (None, 0, 1, 0))
    assert receiver.got == {}
    assert last.FailedSOPInstanceUIDList == "1.2.1.1.9"


def test_several_associations_send_each_object_once(tmp_path):
    objects = [an_object(1, 1, number, instance_number=number) for number in range(1, 31)]
    with Receiver(ALL) as receiver:
        peer = Peer(title="DEST", host="127.0.0.1", port=receiver.port, associations=3)
        with serving(tmp_path, stored=objects, peers=(peer,)) as node:
            answers, _ = move(node, SERIES)

    assert answers[-1] == (0, (None, 30, 0, 0))
    assert len(receiver.requests) == 30
    assert receiver.associations > 1
    counted = [sum(count for count in counts if count is not None) for _, counts in answers]
    assert set(counted) == {30}


@contextlib.contextmanager
def getting(node, contexts, model=STUDY_GET, answer=lambda uid: 0):
    got = {}

    def store(event):
        uid = str(event.request.AffectedSOPInstanceUID)
        got[uid] = event.request.DataSet.getvalue()
        return answer(uid)

    roles = [build_role(str(context.abstract_syntax), scp_role=True) for context in contexts]
    wanted = [build_context(model, [EXPLICIT_LE]), *contexts]
    with associated(node, wanted, ext_neg=roles, evt_handlers=[(evt.EVT_C_STORE, store)]) as association:
        yield association, got


def test_a_series_is_got_on_the_same_association_and_counted(tmp_path):
    with (
        serving(tmp_path, stored=CTS) as node,
        getting(node, [build_context(CT_IMAGE, [EXPLICIT_LE])]) as (association, got),
    ):
        answers = list(association.send_c_get(query(**SERIES), STUDY_GET))

    assert [_counted(status) for status, _ in answers] == [
        (0xFF00, (4, 1, 0, 0)),
        (0xFF00, (3, 2, 0, 0)),
        (0xFF00, (2, 3, 0, 0)),
        (0xFF00, (1, 4, 0, 0)),
        (0x0000, (None, 5, 0, 0)),
    ]
    assert got == {f"1.2.1.1.{number}": data_set_of(CTS[number - 1]) for number in range(1, 6)}


def test_a_patient_is_got(tmp_path):
    keys = {"QueryRetrieveLevel": "PATIENT", "PatientID": "P2"}
    with (
        serving(tmp_path, stored=CTS + OTHER) as node,
        getting(node, [build_context(CT_IMAGE, [EXPLICIT_LE])], PATIENT_GET) as (association, got),
    ):
        answers = list(association.send_c_get(query(**keys), PATIENT_GET))

    assert answers[-1][0].Status == 0
    assert list(got) == ["1.2.2.1.1"]


def test_without_the_scp_role_nothing_can_be_got(tmp_path):
    with (
        serving(tmp_path, stored=CTS) as node,
        associated(node, [STUDY_GET, CT_IMAGE]) as association,
    ):
        answers = list(association.send_c_get(query(**SERIES), STUDY_GET))

    assert _counted(answers[-1][0]) == (0xA702, (None, 0, 5, 0))


def test_a_get_is_cancelled(tmp_path):
    objects = [an_object(1, 1, number, instance_number=number) for number in range(1, 41)]
    with (
        serving(tmp_path, stored=objects) as node,
        getting(node, [build_context(CT_IMAGE, [EXPLICIT_LE])]) as (association, got),
    ):
        answers = []
        for status, _ in association.send_c_get(query(**SERIES), STUDY_GET, msg_id=5):
            answers.append(_counted(status))
            if len(answers) == 2:
                association.send_c_cancel(5, query_model=STUDY_GET)

    status, (remaining, completed, _, _) = answers[-1]
    assert status == 0xFE00
    assert remaining + completed == 40
    assert len(got) == completed < 40


def test_a_get_is_transcoded_to_what_was_agreed(tmp_path):
    stored = an_object(3, 1, 1, sop_class=SECONDARY_CAPTURE, transfer_syntax="1.2.840.10008.1.2.2")
    with serving(tmp_path) as node:
        del stored
        node.store.ingest(an_object(1, 1, 1, transfer_syntax=IMPLICIT_LE))
        with getting(node, [build_context(CT_IMAGE, [RLE])]) as (association, got):
            answers = list(association.send_c_get(query(**SERIES), STUDY_GET))

    assert answers[-1][0].Status == 0
    assert list(got) == ["1.2.1.1.1"]
