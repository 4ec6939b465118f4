"""C-FIND: which answers a query gets, in which words, and how it ends."""

from __future__ import annotations

from io import BytesIO

import pytest
from dimsenode import PATIENT_FIND, PATIENT_STUDY_FIND, STUDY_FIND, associated, query, serving
from makers import EXPLICIT_LE, IMPLICIT_LE, element, make_object, sequence
from pydicom.dataset import Dataset
from pynetdicom.dimse_primitives import C_FIND
from pynetdicom.dsutils import encode
from pynetdicom.pdu_primitives import SOPClassExtendedNegotiation
from pynetdicom.presentation import build_context

from hilum.dimse import find

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")

BIG_ENDIAN, DEFLATED = "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"
REQUESTS = sequence(0x00400275, [element(0x00400009, "SH", "STEP1") + element(0x00401001, "SH", "PROC1")])


def an_object(study, series, number, **changed):
    return make_object(f"1.2.{study}.{series}.{number}", f"1.2.{study}", f"1.2.{study}.{series}", **changed)


OBJECTS = [
    an_object(1, 1, 1, name="Doe^Jane", patient_id="P1", study_date="20240102", study_time="101112"),
    an_object(1, 1, 2, name="Doe^Jane", patient_id="P1", study_date="20240102", study_time="101112"),
    an_object(1, 2, 1, name="Doe^Jane", patient_id="P1", modality="MR", study_date="20240102"),
    an_object(
        2, 1, 1, name="Roe^Rick", patient_id="P2", study_date="20240103", extra=[(0x00400275, REQUESTS)]
    ),
    an_object(
        3, 1, 1, name="Müller^Jörg".encode(), patient_id="P3", character_set="ISO_IR 192", accession=""
    ),
]  # fmt: skip


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("find"), stored=OBJECTS) as found:
        yield found


def ask(node, model=STUDY_FIND, *, syntax=EXPLICIT_LE, extended=None, **keys):
    """(statuses, answers) of a query."""
    items = []
    if extended is not None:
        item = SOPClassExtendedNegotiation()
        item.sop_class_uid, item.service_class_application_information = model, extended
        items.append(item)
    with associated(node, [build_context(model, [syntax])], ext_neg=items) as association:
        found = list(association.send_c_find(query(**keys), model))
    return [status.Status for status, _ in found], [answer for _, answer in found if answer is not None]


def test_an_answer_has_what_was_asked_for_and_says_where_it_comes_from(node):
    statuses, answers = ask(
        node, QueryRetrieveLevel="STUDY", PatientName="Doe*", StudyInstanceUID="", ModalitiesInStudy="",
        NumberOfStudyRelatedInstances="", StudyDate="",
    )  # fmt: skip

    assert statuses == [0xFF00, 0]
    (answer,) = answers
    assert answer.PatientName == "Doe^Jane"
    assert answer.StudyInstanceUID == "1.2.1"
    assert sorted(answer.ModalitiesInStudy) == ["CT", "MR"]
    assert answer.NumberOfStudyRelatedInstances == 3
    assert answer.StudyDate == "20240102"
    assert answer.QueryRetrieveLevel == "STUDY"
    assert answer.RetrieveAETitle == "HILUM"
    assert answer.InstanceAvailability == "ONLINE"
    assert answer.SpecificCharacterSet == "ISO_IR 192"
    assert "AccessionNumber" not in answer


def test_a_return_key_that_the_object_lacks_is_empty_and_filters_nothing(node):
    statuses, answers = ask(
        node, QueryRetrieveLevel="STUDY", StudyInstanceUID="1.2.3", AccessionNumber="", InstitutionName=""
    )

    assert statuses == [0xFF00, 0]
    assert answers[0].AccessionNumber == ""
    assert "InstitutionName" in answers[0]
    assert not answers[0].InstitutionName


@pytest.mark.parametrize("syntax", [EXPLICIT_LE, IMPLICIT_LE, BIG_ENDIAN, DEFLATED])
def test_queries_and_answers_are_in_the_transfer_syntax_that_was_agreed(node, syntax):
    statuses, answers = ask(
        node, syntax=syntax, QueryRetrieveLevel="STUDY", PatientName="M*", StudyInstanceUID="",
        NumberOfStudyRelatedInstances="",
    )  # fmt: skip

    assert statuses == [0xFF00, 0]
    assert answers[0].PatientName == "Müller^Jörg"


@pytest.mark.parametrize(
    ("wanted", "given"), [("ISO_IR 100", "ISO_IR 100"), ("", "ISO_IR 192"), ("ISO_IR 144", "ISO_IR 192")]
)
def test_an_answer_is_in_the_character_set_of_the_query_if_that_can_hold_it_else_in_utf_8(
    node, wanted, given
):
    keys = {"SpecificCharacterSet": wanted} if wanted else {}
    _, answers = ask(node, QueryRetrieveLevel="STUDY", PatientID="P3", PatientName="", **keys)

    assert answers[0].SpecificCharacterSet == given
    assert answers[0].PatientName == "Müller^Jörg"


def test_a_name_is_matched_in_the_character_set_of_the_query(node):
    keys = query(SpecificCharacterSet="ISO_IR 100", QueryRetrieveLevel="STUDY", PatientName="MÜLLER*")
    with associated(node, [STUDY_FIND]) as association:
        found = list(association.send_c_find(keys, STUDY_FIND))

    assert [status.Status for status, _ in found] == [0xFF00, 0]


@pytest.mark.parametrize(
    ("model", "keys", "count"),
    [
        (PATIENT_FIND, {"QueryRetrieveLevel": "PATIENT", "PatientID": ""}, 3),
        (PATIENT_FIND, {"QueryRetrieveLevel": "STUDY", "PatientID": "P1", "StudyInstanceUID": ""}, 1),
        (
            STUDY_FIND,
            {"QueryRetrieveLevel": "SERIES", "StudyInstanceUID": "1.2.1", "SeriesInstanceUID": ""},
            2,
        ),
        (
            STUDY_FIND,
            {
                "QueryRetrieveLevel": "IMAGE",
                "StudyInstanceUID": "1.2.1",
                "SeriesInstanceUID": "1.2.1.1",
                "SOPInstanceUID": "",
            },
            2,
        ),
        (PATIENT_STUDY_FIND, {"QueryRetrieveLevel": "PATIENT", "PatientID": "P2"}, 1),
        (STUDY_FIND, {"QueryRetrieveLevel": "STUDY", "StudyInstanceUID": ["1.2.1", "1.2.3", "9.9"]}, 2),
        (STUDY_FIND, {"QueryRetrieveLevel": "STUDY", "StudyDate": "20240103-"}, 1),
        (STUDY_FIND, {"QueryRetrieveLevel": "STUDY", "ModalitiesInStudy": ["MR", "US"]}, 1),
        (STUDY_FIND, {"QueryRetrieveLevel": "STUDY", "PatientID": "nobody"}, 0),
    ],
)
def test_each_level_of_each_model_answers(node, model, keys, count):
    statuses, answers = ask(node, model, **keys)

    assert statuses == [0xFF00] * count + [0]
    level = keys["QueryRetrieveLevel"]
    assert all(answer.QueryRetrieveLevel == level for answer in answers)
    assert all(("InstanceAvailability" in answer) == (level != "PATIENT") for answer in answers)


@pytest.mark.parametrize(
    ("model", "keys"),
    [
        (STUDY_FIND, {"QueryRetrieveLevel": "PATIENT", "PatientID": ""}),
        (PATIENT_STUDY_FIND, {"QueryRetrieveLevel": "SERIES", "SeriesInstanceUID": ""}),
        (STUDY_FIND, {"StudyInstanceUID": ""}),
        (STUDY_FIND, {"QueryRetrieveLevel": "SERIES", "SeriesInstanceUID": ""}),
        (PATIENT_FIND, {"QueryRetrieveLevel": "STUDY", "StudyInstanceUID": ""}),
        (STUDY_FIND, {"QueryRetrieveLevel": "STUDY", "StudyDate": "20240103-2024010"}),
    ],
)
def test_an_identifier_that_the_model_has_no_room_for_is_a900(node, model, keys):
    assert ask(node, model, **keys) == ([0xA900], [])


def test_relational_queries_need_no_keys_above_once_that_is_negotiated(node):
    keys = {"QueryRetrieveLevel": "IMAGE", "PatientName": "Doe*", "SOPInstanceUID": ""}
    assert ask(node, **keys)[0] == [0xA900]

    statuses, answers = ask(node, extended=b"\1", **keys)
    assert statuses == [0xFF00] * 3 + [0]
    assert {answer.SOPInstanceUID for answer in answers} == {"1.2.1.1.1", "1.2.1.1.2", "1.2.1.2.1"}
    assert {answer.StudyInstanceUID for answer in answers} == {"1.2.1"}


def test_names_match_by_their_words_only_where_that_is_negotiated(node):
    keys = {"QueryRetrieveLevel": "STUDY", "PatientName": "jane doe"}
    assert ask(node, **keys)[0] == [0]
    assert ask(node, extended=b"\0\0\1", **keys)[0] == [0xFF00, 0]


def test_ranges_of_date_and_time_are_one_range_only_where_that_is_negotiated(node):
    # From 12:00 of the 1st to 09:00 of the 3rd: study 1 is at 10:11 of the 2nd, outside of 12:00-09:00.
    keys = {"QueryRetrieveLevel": "STUDY", "StudyDate": "20240101-20240103", "StudyTime": "100000-120000"}
    assert ask(node, **keys)[0] == [0xFF00] * 3 + [0]
    keys["StudyDate"], keys["StudyTime"] = "20240101-20240103", "230000-235900"
    assert ask(node, **keys)[0] == [0]
    assert ask(node, extended=b"\0\1", **keys)[0] == [0xFF00] * 3 + [0]


def test_what_is_agreed_by_extended_negotiation_is_said(node):
    item = SOPClassExtendedNegotiation()
    item.sop_class_uid, item.service_class_application_information = STUDY_FIND, b"\1\1\1\1\1"
    with associated(node, [STUDY_FIND], ext_neg=[item]) as association:
        agreed = association.acceptor.sop_class_extended

    assert agreed == {STUDY_FIND: b"\1\1\1\1\0"}


def test_keys_in_a_sequence_match_and_the_answer_has_those_that_were_asked_for(node):
    item = Dataset()
    item.ScheduledProcedureStepID = "STEP1"
    statuses, answers = ask(
        node,
        QueryRetrieveLevel="SERIES",
        StudyInstanceUID="1.2.2",
        SeriesInstanceUID="",
        RequestAttributesSequence=[item],
    )
    assert statuses == [0xFF00, 0]
    (answered,) = answers[0].RequestAttributesSequence
    assert answered.ScheduledProcedureStepID == "STEP1"
    assert "RequestedProcedureID" not in answered

    item.ScheduledProcedureStepID = "STEP2"
    keys = {"QueryRetrieveLevel": "SERIES", "StudyInstanceUID": "1.2.2", "SeriesInstanceUID": ""}
    assert ask(node, RequestAttributesSequence=[item], **keys)[0] == [0]


def test_a_key_that_is_not_matched_is_told_by_each_answer(node):
    statuses, answers = ask(
        node, QueryRetrieveLevel="STUDY", StudyInstanceUID="1.2.1", RetrieveAETitle="OTHER"
    )

    assert statuses == [0xFF01, 0]
    assert answers[0].RetrieveAETitle == "HILUM"


def test_a_cancel_stops_the_answers(tmp_path, monkeypatch):
    monkeypatch.setattr(find, "_FLUSH_SECONDS", 0.0)  # each answer on its own
    objects = [an_object(9, 1, number) for number in range(300)]
    with serving(tmp_path, stored=objects) as node, associated(node, [STUDY_FIND]) as association:
        keys = query(
            QueryRetrieveLevel="IMAGE",
            StudyInstanceUID="1.2.9",
            SeriesInstanceUID="1.2.9.1",
            SOPInstanceUID="",
        )
        slow = node.store.row_json

        def slowly(*args):
            import time

            time.sleep(0.005)
            return slow(*args)

        monkeypatch.setattr(node.store, "row_json", slowly)
        statuses = []
        for status, _ in association.send_c_find(keys, STUDY_FIND, msg_id=7):
            statuses.append(status.Status)
            if len(statuses) == 5:
                association.send_c_cancel(7, query_model=STUDY_FIND)
        assert association.send_c_echo is not None

    assert statuses[-1] == 0xFE00
    assert 5 <= len(statuses) < 300


def test_an_identifier_that_can_not_be_read_is_c000(node):
    with associated(node, [STUDY_FIND]) as association:
        request = C_FIND()
        request.MessageID, request.Priority = 1, 2
        request.AffectedSOPClassUID = STUDY_FIND
        request.Identifier = BytesIO(b"\x08\x00\x52\x00CS\xff\xffSTUDY")
        association._reactor_checkpoint.clear()
        association.dimse.send_msg(request, association.accepted_contexts[0].context_id)
        _, answer = association.dimse.get_msg(block=True)
        association._reactor_checkpoint.set()

    assert answer.Status == 0xC000


def test_times_of_the_query_are_in_its_zone_only_where_that_is_negotiated(tmp_path):
    zoned = an_object(4, 1, 1, study_date="20240110", study_time="233000")
    with serving(tmp_path, stored=[zoned]) as node:
        keys = {"QueryRetrieveLevel": "STUDY", "StudyDate": "20240110", "TimezoneOffsetFromUTC": "+0900"}
        assert ask(node, **keys)[0] == [0xFF00, 0]
        assert ask(node, extended=b"\0\0\0\1", **keys)[0][-1] == 0


def test_a_query_written_by_pynetdicom_is_read_as_it_is(node):
    """The keys of a data set, in the engine's words."""
    from hilum.dimse import identifier, models

    item = query(CodeValue="T-1", CodingSchemeDesignator="")
    keys = query(PatientName="Doe^J*=^漢", StudyDate="2024-", ProcedureCodeSequence=[item], SeriesNumber="3")
    keys.SpecificCharacterSet = "ISO_IR 192"
    read = identifier.read(encode(keys, False, True), EXPLICIT_LE)

    assert list(models.keys_of(read)) == [
        ("00080020", "2024-"),
        ("00081032.00080100", "T-1"),
        ("00081032.00080102", ""),
        ("00100010", "Doe^J*=^漢"),
        ("00200011", "3"),
    ]
