"""Storage Commitment: what is said to be safe, to whom, and what becomes of a report that nobody takes."""

from __future__ import annotations

import contextlib
import threading
import time

import pytest
from dimsenode import PUSH_MODEL, associated, free_port, query, serving
from makers import CT_IMAGE, EXPLICIT_LE, MR_IMAGE, make_object, noise
from pynetdicom import AE, evt

from hilum.dimse import commitment
from hilum.dimse.commitment import Jobs
from hilum.dimse.options import Peer
from hilum.engine.packs import PackReader

INSTANCE = "1.2.840.10008.1.20.1.1"
OBJECTS = [make_object(f"1.2.3.{n}", "1.2.1", "1.2.2", pixels=noise(4096, n)) for n in range(1, 4)]


class Requester:
    """pynetdicom as the one who asked: takes reports."""

    def __init__(self, port=0, status=0x0000):
        self.port = port or free_port()
        self.reports = []
        self.roles = []
        self.arrived = threading.Event()
        self._status = status

    def __enter__(self):
        entity = AE("MODALITY")
        entity.add_supported_context(PUSH_MODEL, EXPLICIT_LE, scu_role=True, scp_role=True)
        handlers = [(evt.EVT_N_EVENT_REPORT, self._take), (evt.EVT_ACCEPTED, self._accepted)]
        self._server = entity.start_server(("127.0.0.1", self.port), block=False, evt_handlers=handlers)
        return self

    def __exit__(self, *_):
        self._server.shutdown()

    def _accepted(self, event):
        roles = event.assoc.requestor.role_selection
        self.roles.append({str(uid): (item.scu_role, item.scp_role) for uid, item in roles.items()})

    def _take(self, event):
        self.reports.append((event.event_type, event.event_information))
        self.arrived.set()
        return self._status, None

    @property
    def peer(self):
        return Peer(title="MODALITY", host="127.0.0.1", port=self.port)


def ask(node, wanted, *, transaction="1.9.1", action=1, title="MODALITY"):
    items = [
        query(ReferencedSOPClassUID=sop_class, ReferencedSOPInstanceUID=uid) for sop_class, uid in wanted
    ]
    keys = query(TransactionUID=transaction, ReferencedSOPSequence=items)
    with associated(node, [PUSH_MODEL], title=title) as association:
        status, _ = association.send_n_action(keys, action, PUSH_MODEL, INSTANCE)
    return status.Status


def test_what_is_stored_is_read_back_and_reported_on_an_association_of_its_own(tmp_path):
    with Requester() as requester, serving(tmp_path, stored=OBJECTS, peers=(requester.peer,)) as node:
        assert ask(node, [(CT_IMAGE, "1.2.3.1"), (CT_IMAGE, "1.2.3.2")]) == 0
        assert requester.arrived.wait(10)
        _wait_for(lambda: not Jobs(node.store.path).paths())

    ((kind, report),) = requester.reports
    assert kind == 1
    assert report.TransactionUID == "1.9.1"
    assert [item.ReferencedSOPInstanceUID for item in report.ReferencedSOPSequence] == ["1.2.3.1", "1.2.3.2"]
    assert "FailedSOPSequence" not in report
    assert report.RetrieveAETitle == "HILUM"
    assert requester.roles == [{PUSH_MODEL: (False, True)}]


def test_what_is_not_there_damaged_or_of_another_class_is_named_with_its_reason(tmp_path, monkeypatch):
    read = PackReader.read
    with Requester() as requester, serving(tmp_path, stored=OBJECTS, peers=(requester.peer,)) as node:
        rotten = node.store.find_blob(node.store.locate("1.2.3.3").instance.pixel_digest)

        def damaged(self, kinds, container, begin, length):
            data = read(self, kinds, container, begin, length)
            if (container, begin) == (rotten.container, rotten.offset):
                return bytes(len(data))
            return data

        monkeypatch.setattr(PackReader, "read", damaged)
        wanted = [(CT_IMAGE, "1.2.3.1"), (CT_IMAGE, "9.9"), (MR_IMAGE, "1.2.3.2"), (CT_IMAGE, "1.2.3.3")]
        assert ask(node, wanted) == 0
        assert requester.arrived.wait(10)

    ((kind, report),) = requester.reports
    assert kind == 2
    assert [item.ReferencedSOPInstanceUID for item in report.ReferencedSOPSequence] == ["1.2.3.1"]
    assert {item.ReferencedSOPInstanceUID: item.FailureReason for item in report.FailedSOPSequence} == {
        "9.9": 0x0112,
        "1.2.3.2": 0x0119,
        "1.2.3.3": 0x0110,
    }


def test_a_report_that_nobody_takes_is_tried_again_later_each_time(tmp_path, monkeypatch):
    monkeypatch.setattr(commitment, "_LOOK_SECONDS", 0.02)
    peer = Peer(title="MODALITY", host="127.0.0.1", port=free_port())
    with serving(tmp_path, stored=OBJECTS, peers=(peer,), report_retry_seconds=0.1) as node:
        assert ask(node, [(CT_IMAGE, "1.2.3.1")]) == 0
        jobs = Jobs(node.store.path)
        _wait_for(lambda: (jobs.read(jobs.paths()[0]) or {"tries": 0})["tries"] >= 2)
        with Requester(peer.port) as requester:
            assert requester.arrived.wait(10)
            _wait_for(lambda: not jobs.paths())

    assert len(requester.reports) == 1


def test_a_report_is_sent_by_the_server_after_this_one(tmp_path):
    peer = Peer(title="MODALITY", host="127.0.0.1", port=free_port())
    with serving(tmp_path, stored=OBJECTS, peers=(peer,), report_retry_seconds=0.1) as node:
        assert ask(node, [(CT_IMAGE, "1.2.3.1")]) == 0
        jobs = Jobs(node.store.path)
        _wait_for(lambda: (jobs.read(jobs.paths()[0]) or {"tries": 0})["tries"] >= 1)
    assert len(jobs.paths()) == 1

    with Requester(peer.port) as requester, serving(tmp_path, peers=(peer,)):
        assert requester.arrived.wait(10)
        _wait_for(lambda: not jobs.paths())


def test_a_report_that_is_refused_is_tried_again_and_given_up_when_it_is_too_old(tmp_path, monkeypatch):
    monkeypatch.setattr(commitment, "_LOOK_SECONDS", 0.02)
    with (
        Requester(status=0x0110) as requester,
        serving(
            tmp_path,
            stored=OBJECTS,
            peers=(requester.peer,),
            report_retry_seconds=0.05,
            report_hours=0.3 / 3600,
        ) as node,
    ):
        assert ask(node, [(CT_IMAGE, "1.2.3.1")]) == 0
        _wait_for(lambda: len(requester.reports) >= 2 and not Jobs(node.store.path).paths())


def test_the_same_transaction_twice_is_refused_while_the_first_waits(tmp_path):
    peer = Peer(title="MODALITY", host="127.0.0.1", port=free_port())
    with serving(tmp_path, stored=OBJECTS, peers=(peer,)) as node:
        assert ask(node, [(CT_IMAGE, "1.2.3.1")]) == 0
        assert ask(node, [(CT_IMAGE, "1.2.3.1")]) == 0x0131
        assert ask(node, [(CT_IMAGE, "1.2.3.1")], transaction="1.9.2") == 0


@pytest.mark.parametrize(
    ("further", "status"),
    [({"action": 2}, 0x0123), ({"transaction": ""}, 0x0110), ({"wanted": []}, 0x0110)],
)
def test_a_request_that_makes_no_sense_is_refused_and_not_written_down(tmp_path, further, status):
    peer = Peer(title="MODALITY", host="127.0.0.1", port=free_port())
    with serving(tmp_path, stored=OBJECTS, peers=(peer,)) as node:
        assert ask(node, **{"wanted": [(CT_IMAGE, "1.2.3.1")], **further}) == status
        assert Jobs(node.store.path).paths() == []


def test_who_is_no_peer_gets_the_report_on_the_association_that_asked(tmp_path):
    reports = []
    arrived = threading.Event()

    def take(event):
        reports.append((event.event_type, event.event_information))
        arrived.set()
        return 0x0000, None

    item = query(ReferencedSOPClassUID=CT_IMAGE, ReferencedSOPInstanceUID="1.2.3.1")
    keys = query(TransactionUID="1.9.1", ReferencedSOPSequence=[item])
    with (
        serving(tmp_path, stored=OBJECTS) as node,
        associated(node, [PUSH_MODEL], evt_handlers=[(evt.EVT_N_EVENT_REPORT, take)]) as association,
    ):
        status, _ = association.send_n_action(keys, 1, PUSH_MODEL, INSTANCE)
        assert status.Status == 0
        assert arrived.wait(10)
        time.sleep(0.1)  # for the answer, which pynetdicom sends from a thread of its own

    assert [kind for kind, _ in reports] == [1]


def test_a_job_is_written_so_that_a_crash_leaves_all_of_it_or_nothing(tmp_path, monkeypatch):
    jobs = Jobs(str(tmp_path))
    job = {"title": "M", "transaction": "1.2", "wanted": [], "asked_at": 0.0, "tries": 0, "due": 0.0}

    def broken(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, contextlib.suppress(OSError):
        patched.setattr("os.rename", broken)
        jobs.add(job)
    assert jobs.paths() == []

    assert jobs.add(job)
    (path,) = jobs.paths()
    assert jobs.read(path) == job
    with open(path, "wb") as file:
        file.write(b'{"title": ')
    assert jobs.read(path) is None


def _wait_for(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(IndexError):
            if condition():
                return
        assert time.monotonic() < deadline
        time.sleep(0.01)
