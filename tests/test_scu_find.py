"""hilum find --from: another archive's rows, printed as our own."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from command import run
from dimsenode import PATIENT_FIND, STUDY_FIND, serving
from makers import element, make_object, sequence
from pydicom.dataset import Dataset
from pynetdicom import evt
from scps import scp

from hilum.dimse import asking
from hilum.engine.record import SERIES, STUDY
from hilum.errors import BadQuery
from hilum.transfer import hierarchy

FILES = [
    make_object("2.25.1.1", "2.25.1", "2.25.11", pixels=b"12", study_date="20240301"),
    make_object("2.25.1.2", "2.25.1", "2.25.12", modality="MR", series_number=2, study_date="20240301"),
    make_object(
        "2.25.2.1",
        "2.25.2",
        "2.25.21",
        name="M\xfcller^J\xfcrgen",
        character_set="ISO_IR 100",
        study_date="20240202",
    ),
    make_object("2.25.3.1", "2.25.3", "2.25.31", patient_id="P2", name="Roe^Rita", study_date="20240101"),
]


@pytest.fixture(autouse=True)
def _alone(tmp_path, monkeypatch):
    """No settings but those of the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HILUM_CONFIG", raising=False)


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("find"), stored=FILES) as found:
        yield found


def both(node: Any, *words: str) -> tuple[Any, Any]:
    """The same question to the store and to its node."""
    local = run("find", *words, "--store", node.store.path)
    remote = run("find", *words, "--from", f"HILUM@127.0.0.1:{node.port}")
    assert (local.code, remote.code) == (0, 0), remote.err
    return local, remote


def values(line: str) -> dict[str, Any]:
    """The attributes of a row that have a value."""
    return {name: found["Value"] for name, found in json.loads(line).items() if found.get("Value")}


@pytest.mark.parametrize("level", ["patients", "studies", "series", "instances"])
def test_the_table_of_each_level_is_that_of_the_local_find(node, level):
    local, remote = both(node, level)
    assert remote.out == local.out
    assert remote.out.count("\n") == {"patients": 3, "studies": 4, "series": 5, "instances": 5}[level]


@pytest.mark.parametrize(
    "words",
    [
        ["studies", "PatientID=P2"],
        ["studies", "PatientName=*ller*"],
        ["studies", "StudyDate=20240201-"],
        ["studies", "StudyInstanceUID=2.25.1,2.25.3"],
        ["studies", "Modality=MR"],
        ["series", "PatientID=P1", "Modality=CT"],
        ["series", "StudyInstanceUID=2.25.1"],
        ["instances", "SeriesInstanceUID=2.25.12", "StudyInstanceUID=2.25.1"],
        ["instances", "PatientID=P1", "Modality=MR"],
        ["patients", "PatientName=roe*"],
        ["studies", "--include", "StudyID", "--include", "AccessionNumber"],
        ["studies", "PatientName=NOBODY"],
        ["studies", "PatientName=rita roe", "--fuzzy"],
    ],
)  # fmt: skip
def test_the_rows_of_a_question_are_those_of_the_local_find(node, words):
    local, remote = both(node, *words)
    assert remote.out == local.out


def test_json_has_a_row_a_line_with_the_same_values_and_utf_8_text(node):
    local, remote = both(node, "studies", "--json")
    for ours, theirs in zip(local.out.splitlines(), remote.out.splitlines(), strict=True):
        theirs_found = values(theirs)
        assert theirs_found.items() <= values(ours).items()
        assert theirs_found.keys() >= {"00100010", "00100020", "0020000D", "00080020", "00201206"}
    assert "Müller^Jürgen" in remote.out
    assert "00080052" not in remote.out  # Query/Retrieve Level is the protocol's


def test_limit_and_offset_are_ours(node):
    whole = run("find", "studies", "--from", f"HILUM@127.0.0.1:{node.port}").out.splitlines()
    part = run("find", "studies", "--limit", 1, "--offset", 1, "--from", f"HILUM@127.0.0.1:{node.port}")
    assert part.out.splitlines()[1].split() == whole[2].split()


def rows_of(count: int, seen: dict[str, Any]) -> Any:
    def handle(event: Any) -> Any:
        for n in range(count):
            if event.is_cancelled:
                seen["cancelled"] = n
                yield 0xFE00, None
                return
            row = Dataset()
            row.QueryRetrieveLevel = "STUDY"
            row.StudyInstanceUID = f"2.25.{n}"
            row.PatientName = "Doe^Jane"
            yield 0xFF00, row
            time.sleep(0.002)
        seen["whole"] = True

    return handle


def test_a_limit_tells_the_peer_to_stop():
    seen: dict[str, Any] = {}
    with scp([(evt.EVT_C_FIND, rows_of(2000, seen))], [STUDY_FIND]) as port:
        ran = run("find", "studies", "--limit", 3, "--json", "--from", f"PEER@127.0.0.1:{port}")

    assert ran.code == 0
    assert [line["0020000D"]["Value"] for line in ran.lines] == [["2.25.0"], ["2.25.1"], ["2.25.2"]]
    assert 3 <= seen["cancelled"] < 1000
    assert "whole" not in seen


def test_a_peer_that_is_not_relational_is_asked_level_by_level():
    asked: list[Dataset] = []

    def handle(event: Any) -> Any:
        asked.append(event.identifier)
        level = event.identifier.QueryRetrieveLevel
        for n in range(2):
            row = Dataset()
            row.QueryRetrieveLevel = level
            if level == "STUDY":
                row.StudyInstanceUID, row.PatientName, row.StudyDate = f"2.25.{n}", f"Doe^{n}", "20240101"
            else:
                row.SeriesInstanceUID, row.Modality = f"{event.identifier.StudyInstanceUID}.{n}", "CT"
            yield 0xFF00, row

    with scp([(evt.EVT_C_FIND, handle)], [STUDY_FIND]) as port:
        ran = run(
            "find", "series", "PatientID=P1", "Modality=CT", "--json", "--from", f"PEER@127.0.0.1:{port}"
        )

    assert [found.QueryRetrieveLevel for found in asked] == ["STUDY", "SERIES", "SERIES"]
    assert asked[0].PatientID == "P1"
    assert "Modality" not in asked[0]
    assert [found.StudyInstanceUID for found in asked[1:]] == ["2.25.0", "2.25.1"]
    assert all(found.Modality == "CT" and "PatientID" not in found for found in asked[1:])
    assert [line["0020000E"]["Value"][0] for line in ran.lines] == [
        "2.25.0.0",
        "2.25.0.1",
        "2.25.1.0",
        "2.25.1.1",
    ]
    assert [line["00100010"]["Value"][0]["Alphabetic"] for line in ran.lines] == [
        "Doe^0",
        "Doe^0",
        "Doe^1",
        "Doe^1",
    ]


def test_a_peer_with_patient_root_alone_is_asked_by_patients_first():
    asked: list[tuple[str, str]] = []

    def handle(event: Any) -> Any:
        found = event.identifier
        asked.append((found.QueryRetrieveLevel, str(found.get("PatientID", "-"))))
        row = Dataset()
        row.QueryRetrieveLevel = found.QueryRetrieveLevel
        row.PatientID = "P7"
        row.StudyInstanceUID = "2.25.7"
        yield 0xFF00, row

    with scp([(evt.EVT_C_FIND, handle)], [PATIENT_FIND]) as port:
        ran = run("find", "studies", "--json", "--from", f"PEER@127.0.0.1:{port}")

    assert ran.code == 0
    assert asked == [("PATIENT", ""), ("STUDY", "P7")]


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ([(0xA700, None)], "0xA700, out of resources"),
        ([(0xA900, None)], "0xA900, the data set does not match"),
        ([(0xC001, None)], "0xC001, it can't understand"),
    ],
)
def test_a_failure_of_the_peer_is_told_with_its_status(answers, words):
    with scp([(evt.EVT_C_FIND, lambda event: iter(answers))], [STUDY_FIND]) as port:
        ran = run("find", "studies", "--from", f"PEER@127.0.0.1:{port}")

    assert ran.code == 1
    assert words in ran.err
    assert ran.err.count("\n") == 1


def test_a_peer_that_answers_no_queries_is_told_so():
    with scp() as port:
        ran = run("find", "studies", "--from", f"PEER@127.0.0.1:{port}")
    assert ran.code == 1
    assert "the peer answers no queries" in ran.err


def test_a_warning_of_the_peer_is_told_once():
    def handle(event: Any) -> Any:
        for n in range(2):
            row = Dataset()
            row.StudyInstanceUID = f"2.25.{n}"
            yield 0xFF01, row

    with scp([(evt.EVT_C_FIND, handle)], [STUDY_FIND]) as port:
        ran = run("find", "studies", "--from", f"PEER@127.0.0.1:{port}")
        fuzzy = run("find", "studies", "--fuzzy", "--timezone", "+0100", "--from", f"PEER@127.0.0.1:{port}")

    assert ran.err.count("did not match some of the keys") == 1
    assert "does not promise fuzzy matching" in fuzzy.err
    assert "does not promise to take account of the timezone" in fuzzy.err


def test_a_row_with_several_hundred_answers_at_once_is_no_flood():
    def handle(event: Any) -> Any:
        for n in range(500):
            row = Dataset()
            row.StudyInstanceUID = f"2.25.{n}"
            yield 0xFF00, row

    with scp([(evt.EVT_C_FIND, handle)], [STUDY_FIND]) as port:
        assert len(run("find", "studies", "--json", "--from", f"PEER@127.0.0.1:{port}").lines) == 500


@pytest.mark.parametrize("words", [["--order", "StudyDate"], ["--include", "all"]])
def test_what_another_archive_is_not_asked_for_is_wrong_use(words):
    assert run("find", "studies", *words, "--from", "X@127.0.0.1:1").code == 2


# --- Identifiers -----------------------------------------------------------------------


def identifier(level: int, *pairs: tuple[str, str], include: tuple[str, ...] = ()) -> dict[str, Any]:
    paths = [hierarchy.parse_pairs([(name, "")])[0][0] for name in include]
    return asking.identifier_of(level, hierarchy.parse_pairs(pairs), paths)


def test_an_identifier_has_its_level_its_unique_key_and_empty_return_keys():
    assert identifier(STUDY, ("PatientName", "Doe*"), include=("StudyDate",)) == {
        "00080052": {"vr": "CS", "Value": ["STUDY"]},
        "0020000D": {"vr": "UI"},
        "00080020": {"vr": "DA"},
        "00100010": {"vr": "PN", "Value": [{"Alphabetic": "Doe*"}]},
    }


def test_lists_sequences_private_elements_and_numbers_are_written_as_the_standard_has_them():
    found = identifier(
        SERIES,
        ("SeriesInstanceUID", "1.2,1.3"),
        ("RequestAttributesSequence.ScheduledProcedureStepID", "S1"),
        ("RequestAttributesSequence.RequestedProcedureID", ""),
        ('0029,"ACME",10', "x"),
        ('0029,"OTHER",11', "y"),
        ("Rows", "512"),
    )
    assert found["0020000E"]["Value"] == ["1.2\\1.3"]
    assert found["00400275"] == {
        "vr": "SQ",
        "Value": [{"00400009": {"vr": "SH", "Value": ["S1"]}, "00401001": {"vr": "SH"}}],
    }
    assert found["00290010"]["Value"] == ["ACME"]
    assert found["00291010"]["Value"] == ["x"]
    assert found["00290011"]["Value"] == ["OTHER"]
    assert found["00291111"]["Value"] == ["y"]
    assert found["00280010"]["Value"] == [512]


@pytest.mark.parametrize("pair", [("Rows", "many"), ("RequestAttributesSequence", "1")])
def test_a_value_that_its_vr_can_not_hold_is_refused(pair):
    with pytest.raises(BadQuery):
        identifier(SERIES, pair)


def test_private_and_nested_keys_reach_our_own_node(tmp_path):
    request = sequence(0x00400275, [element(0x00401001, "SH", "R7")])
    private = element(0x00290010, "LO", "ACME") + element(0x00291010, "LO", "hidden")
    files = [
        make_object("2.25.1", "2.25.9", "2.25.91", extra=[(0x00400275, request), (0x00290010, private)]),
        FILES[0],
    ]
    with serving(tmp_path, stored=files) as node:
        for pair in ("RequestAttributesSequence.RequestedProcedureID=R7", '0029,"ACME",10=hidden'):
            local, remote = both(node, "instances", pair)
            assert remote.out == local.out
            assert remote.out.count("\n") == 2


@pytest.mark.parametrize(
    ("pairs", "found"),
    [
        ([("StudyInstanceUID", "1,2")], {STUDY: ["1", "2"]}),
        ([("StudyInstanceUID", "1"), ("SeriesInstanceUID", "2\\3")], {STUDY: ["1"], SERIES: ["2", "3"]}),
        ([("StudyInstanceUID", "1,2"), ("SeriesInstanceUID", "3")], None),
        ([("SeriesInstanceUID", "3")], None),
        ([("StudyInstanceUID", "1*")], None),
        ([("StudyInstanceUID", "1"), ("PatientID", "2")], None),
        ([("PatientID", "2")], None),
        ([], None),
    ],
)
def test_unique_keys_alone_need_no_question(pairs, found):
    assert hierarchy.unique_values(hierarchy.parse_pairs(pairs)) == found
