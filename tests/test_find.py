"""hilum find: each level, every kind of key, order and pages, and the answers of a slow look at each file."""

from __future__ import annotations

import io
import itertools
import json
import os
import re
import unicodedata
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pydicom
import pytest
from command import run
from makers import element, item, make_object, sequence
from pydicom.multival import MultiValue

import hilum
from hilum.engine import query, record
from hilum.engine.importer import Options, import_paths
from hilum.engine.query import Asked
from hilum.errors import BadQuery, Unsupported

LEVELS = ("patients", "studies", "series", "instances")


def made_objects() -> list[bytes]:
    """Four studies of three patients; what is asked for below stands here."""
    request = sequence(0x00400275, [element(0x00400009, "SH", "STEP1") + element(0x00401001, "SH", "PROC1")])
    shape: dict[str, Any] = {"pixels": bytes(48), "rows": 6, "columns": 8}
    return [
        make_object(
            "2.25.11", "2.25.1", "2.25.101", name="Smith^John", patient_id="P1", study_date="20240101",
            study_time="080000", series_number=2, instance_number=1, accession="ACC1", modality="CT",
            study_description="Chest CT", **shape,
        ),
        make_object(
            "2.25.12", "2.25.1", "2.25.101", name="Smith^John", patient_id="P1", study_date="20240101",
            study_time="080000", series_number=2, instance_number=10, accession="ACC1", modality="CT",
            study_description="Chest CT", **shape,
        ),
        make_object(
            "2.25.13", "2.25.1", "2.25.102", name="Smith^John", patient_id="P1", study_date="20240101",
            study_time="080000", series_number=10, instance_number=2, accession="ACC1", modality="SR",
            study_description="Chest CT", extra=[(0x00400275, request)],
        ),
        make_object(
            "2.25.21", "2.25.2", "2.25.201", name="SMITHERS^Anna", patient_id="P2", study_date="20240315",
            study_time="235959.5", accession="ACC2", modality="MR", study_description="Knee",
            extra=[(0x00180087, element(0x00180087, "DS", "1.5\\3"))], **shape,
        ),
        make_object(
            "2.25.31", "2.25.3", "2.25.301", name="M\xfcller^J\xf6rg", patient_id="P3", study_date="20231231",
            study_time="120000", accession="ACC3", modality="US", study_description="",
            character_set="ISO_IR 100", **shape,
        ),
        make_object(
            "2.25.41", "2.25.4", "2.25.401", name="Smith^John", patient_id="P1", study_date="20240401",
            study_time="0700", accession="", modality="MR", study_description="Head*Neck?", **shape,
        ),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("find") / "store"
    with hilum.open(folder, create=True) as store:
        store.ingest_many([store.prepare(file) for file in made_objects()])
    return folder


@pytest.fixture(scope="module")
def store(path: Path) -> Iterator[hilum.Store]:
    with hilum.open(path, read_only=True) as opened:
        yield opened


UNIQUE_KEY = {"patients": "00100020", "studies": "0020000D", "series": "0020000E", "instances": "00080018"}


def found(path: Path, level: str, *words: str) -> list[str]:
    ran = run("find", level, *words, "--store", path, "--json")
    assert ran.code == 0, ran.err
    assert ran.err == ""
    return [row[UNIQUE_KEY[level]]["Value"][0].removeprefix("2.25.") for row in ran.lines]


# --- Keys ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("level", "words", "expected"),
    [
        ("patients", [], "P1 P2 P3"),
        ("studies", [], "4 2 1 3"),
        ("series", [], "401 201 101 102 301"),
        ("instances", [], "41 21 11 12 13 31"),
        # By keyword and by tag, in every spelling.
        ("studies", ["PatientID=P1"], "4 1"),
        ("studies", ["00100020=P1"], "4 1"),
        ("studies", ["(0010,0020)=P1"], "4 1"),
        ("studies", ["0010,0020=P1"], "4 1"),
        # Single values, lists.
        ("studies", ["PatientID=p1"], ""),
        ("studies", ["PatientID=P1\\P3"], "4 1 3"),
        ("studies", ["AccessionNumber=ACC2"], "2"),
        ("studies", ["StudyInstanceUID=2.25.3"], "3"),
        ("studies", ["StudyInstanceUID=2.25.3\\2.25.1\\2.25.999"], "1 3"),
        ("studies", ["StudyInstanceUID=2.25.3,2.25.1"], "1 3"),
        ("series", ["SeriesInstanceUID=2.25.101,2.25.401"], "401 101"),
        ("instances", ["SOPInstanceUID=2.25.12"], "12"),
        ("instances", ["SOPInstanceUID=2.25.12,2.25.41,2.25.12"], "41 12"),
        ("instances", ["SOPInstanceUID=2.25.12", "StudyInstanceUID=2.25.2"], ""),
        ("instances", ["SOPInstanceUID=2.25.1"], ""),
        ("series", ["SeriesNumber=2"], "101"),
        ("series", ["SeriesNumber=02"], "101"),
        ("instances", ["InstanceNumber=1"], "41 21 11 31"),
        ("instances", ["Rows=6", "Columns=8", "Modality=CT"], "11 12"),
        # Names: any case, accents or none, by component.
        ("studies", ["PatientName=smith^john"], "4 1"),
        ("studies", ["PatientName=SMITH"], ""),
        ("studies", ["PatientName=smith*"], "4 2 1"),
        ("studies", ["PatientName=*smi*"], "4 2 1"),
        ("studies", ["PatientName=*ann*"], "2"),
        ("studies", ["PatientName=muller*"], "3"),
        ("studies", ["PatientName=M\u00fcller^J\u00f6rg"], "3"),
        ("studies", ["PatientName=sm?th^j*"], "4 1"),
        ("studies", ["PatientName=?????^*"], "4 1"),
        ("studies", ["PatientName=*"], "4 2 1 3"),
        ("studies", ["PatientName="], "4 2 1 3"),
        ("patients", ["PatientName=smith*"], "P1 P2"),
        # Wildcards on other text: case counts.
        ("studies", ["StudyDescription=Chest*"], "1"),
        ("studies", ["StudyDescription=chest*"], ""),
        ("studies", ["StudyDescription=*CT"], "1"),
        ("studies", ["StudyDescription=*ee"], "2"),
        ("studies", ["StudyDescription=K?ee"], "2"),
        ("studies", ["AccessionNumber=ACC?"], "2 1 3"),
        ("studies", ["AccessionNumber=*C*3"], "3"),
        ("studies", ["PatientID=?1"], "4 1"),
        # Dates and times.
        ("studies", ["StudyDate=20240101"], "1"),
        ("studies", ["StudyDate=20240101-20240315"], "2 1"),
        ("studies", ["StudyDate=20240102-"], "4 2"),
        ("studies", ["StudyDate=-20231231"], "3"),
        ("studies", ["StudyDate=20250101-"], ""),
        ("studies", ["StudyTime=0800"], "1"),
        ("studies", ["StudyTime=07"], "4"),
        ("studies", ["StudyTime=0700-1200"], "4 1 3"),
        ("studies", ["StudyTime=2359-"], "2"),
        ("studies", ["StudyDate=20240101-20240401", "StudyTime=-0759"], "4 2 1"),
        ("studies", ["StudyDate=20240101-20240401", "StudyTime=0801-0659"], "2"),
        # Modalities, and keys below the level.
        ("studies", ["ModalitiesInStudy=MR"], "4 2"),
        ("studies", ["ModalitiesInStudy=CT"], "1"),
        ("studies", ["ModalitiesInStudy=SR\\US"], "1 3"),
        ("studies", ["Modality=SR"], "1"),
        ("studies", ["InstanceNumber=10"], "1"),
        ("patients", ["Modality=MR"], "P1 P2"),
        ("patients", ["StudyDate=20240401"], "P1"),
        ("series", ["PatientID=P1", "Modality=CT\\MR"], "401 101"),
        ("series", ["InstanceNumber=2"], "102"),
        ("series", ["RequestAttributesSequence.ScheduledProcedureStepID=STEP1"], "102"),
        ("series", ["00400275.00401001=PROC?"], "102"),
        # More than one key: all must match.
        ("studies", ["PatientName=smith*", "ModalitiesInStudy=MR", "StudyDate=-20240320"], "2"),
        ("studies", ["PatientID=P1", "PatientID=P2"], ""),
    ],
)  # fmt: skip
def test_a_key_finds_what_matches_it_and_nothing_else(path, level, words, expected):
    assert found(path, level, *words) == expected.split()


@pytest.mark.parametrize(
    "words",
    [
        ["images"],
        [],
        ["studies", "NoSuchKeyword=1"],
        ["studies", "PatientNam=1"],
        ["studies", "PixelData=1"],
        ["studies", "RequestAttributesSequence=1"],
        ["studies", '0028,"ACME",01=1'],
        ["studies", "PatientID"],
        ["studies", "=x"],
        ["studies", "StudyDate=yesterday"],
        ["studies", "StudyDate=20240301-20240201"],
        ["studies", "StudyInstanceUID=1.2.*"],
        ["series", "SeriesNumber=two"],
        ["studies", "--include", "Nonsense"],
        ["studies", "--include", ""],
        ["studies", "--timezone", "Berlin"],
        ["studies", "--order", "Nonsense"],
        ["studies", "--order", "PixelData"],
        ["studies", "--order", "-"],
        ["studies", "--limit", "-1"],
        ["studies", "--limit", "x"],
        ["studies", "--offset", "-1"],
        ["studies", "StudyDate=20240101-20240101", "StudyTime=12-11"],
    ],
)
def test_what_makes_no_sense_ends_with_2_and_says_so_on_one_line(path, words):
    for more in ([], ["--json"]):
        ran = run("find", *words, "--store", path, *more)

        assert ran.code == 2
        assert ran.out == ""
        assert ran.err.strip()
        assert "Traceback" not in ran.err


def test_an_unknown_keyword_names_those_that_look_like_it(path):
    assert "PatientName" in run("find", "studies", "PatientNam=x", "--store", path).err


def test_nothing_found_is_no_failure_and_prints_no_row(path):
    ran = run("find", "studies", "PatientID=nobody", "--store", path, "--json")
    assert (ran.code, ran.out) == (0, "")
    ran = run("find", "studies", "PatientID=nobody", "--store", path)
    assert (ran.code, ran.out, ran.err) == (0, "", "0 studies\n")


# --- Pages and order ------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
def test_pages_put_together_are_the_whole(path, level):
    whole = found(path, level)
    for size in (1, 2, 3):
        pages = [
            found(path, level, "--limit", str(size), "--offset", str(at))
            for at in range(0, len(whole) + 1, size)
        ]
        assert list(itertools.chain(*pages)) == whole
        assert max(map(len, pages)) == size
    assert found(path, level, "--limit", "0") == []
    assert found(path, level, "--offset", "1") == whole[1:]
    assert found(path, level, "--offset", str(10**30)) == []
    assert found(path, level, "--limit", str(10**30)) == whole


@pytest.mark.parametrize(
    ("level", "order", "expected"),
    [
        ("studies", ["StudyDate"], "3 1 2 4"),
        ("studies", ["-StudyDate"], "4 2 1 3"),
        ("studies", ["PatientName"], "3 4 1 2"),
        ("studies", ["PatientName", "StudyDate"], "3 1 4 2"),
        ("studies", ["-PatientName", "StudyDate"], "2 1 4 3"),
        ("studies", ["00100020", "-StudyDate"], "4 1 2 3"),
        ("studies", ["AccessionNumber"], "4 1 2 3"),
        ("series", ["SeriesNumber", "StudyDate"], "301 201 401 101 102"),
        ("series", ["-SeriesNumber", "StudyDate"], "102 101 301 201 401"),
        ("instances", ["-InstanceNumber", "StudyDate"], "12 13 31 11 21 41"),
        ("patients", ["-PatientID"], "P3 P2 P1"),
        ("studies", ["NumberOfStudyRelatedInstances", "StudyDate"], "3 2 4 1"),
        ("patients", ["-NumberOfPatientRelatedInstances", "PatientID"], "P1 P2 P3"),
    ],
)
def test_order_sorts_numbers_as_numbers_and_names_in_their_normal_form(path, level, order, expected):
    words = [word for name in order for word in ("--order", name)]
    assert found(path, level, *words) == expected.split()
    assert found(path, level, *words, "--limit", "1") == expected.split()[:1]


def test_values_that_are_no_numbers_sort_in_one_way_only(tmp_path):
    texts = ["nan", "2", "x", "NaN", "10", "-inf", "", "1e400", "9" * 400]
    orders = []
    for number, order in enumerate((texts, texts[::-1], texts[4:] + texts[:4])):
        with hilum.open(tmp_path / str(number), create=True) as store:
            for text in order:
                uid = f"2.25.{texts.index(text) + 1}"
                extra = [
                    (0x00200013, element(0x00200013, "IS", text)),
                    (0x00101020, element(0x00101020, "DS", text)),
                ]
                store.ingest(make_object(uid, f"2.25.9{uid[5:]}", "2.25.8", extra=extra, study_date=""))
                store.ingest(make_object(f"{uid}.1", "2.25.7", "2.25.6", extra=extra))
            orders.append(
                [
                    [row.uid for row in store.find("instances", {"StudyInstanceUID": "2.25.7"})],
                    [row.uid for row in store.find("instances", order=["InstanceNumber"])],
                    [row.uid for row in store.find("studies", order=["-PatientSize"])],
                ]
            )
    assert orders[0] == orders[1] == orders[2]


# --- Included attributes -------------------------------------------------------------------------


def test_include_gives_attributes_of_the_index_and_of_the_head_as_json_and_as_a_column(path):
    words = ["find", "studies", "PatientID=P2", "--include", "MagneticFieldStrength,SeriesDescription"]
    ran = run(*words, "--include", "00080070", "--store", path, "--json")
    (row,) = ran.lines
    assert row["00180087"] == {"vr": "DS", "Value": [1.5, 3.0]}
    assert row["0008103E"] == {"vr": "LO", "Value": ["axial"]}
    assert row["00080070"] == {"vr": "LO"}

    ran = run(*words, "--store", path)
    heading, line = ran.out.splitlines()
    assert heading.split()[-2:] == ["MAGNETICFIELDSTRENGTH", "SERIESDESCRIPTION"]
    assert line.split()[-2:] == ["1.5\\3", "axial"]


def test_a_key_that_is_included_too_is_still_a_key(path):
    assert found(path, "studies", "PatientID=P2", "--include", "PatientID") == ["2"]


def test_an_included_attribute_that_an_object_lacks_filters_no_row_out(path):
    assert len(found(path, "instances", "--include", "MagneticFieldStrength")) == 6


@pytest.mark.parametrize("level", LEVELS)
def test_any_indexed_attribute_can_be_included_at_any_level(path, level):
    for number, tag in enumerate(record.TAG_OF):
        name = f"{tag:08X}" if number < len(record.NUMBER_OF) else f"RequestAttributesSequence.{tag:08X}"
        assert run("find", level, "--include", name, "--store", path, "--json").code == 0
        assert run("find", level, "--include", name, "--store", path).code == 0


def test_a_requested_procedure_stands_in_its_sequence_and_nowhere_else(path):
    ran = run(
        "find", "series", "SeriesInstanceUID=2.25.102", "--store", path, "--json",
        "--include", "RequestAttributesSequence.ScheduledProcedureStepID",
    )  # fmt: skip
    (row,) = ran.lines
    assert row["00400275"]["Value"] == [
        {"00400009": {"vr": "SH", "Value": ["STEP1"]}, "00401001": {"vr": "SH", "Value": ["PROC1"]}}
    ]
    assert "00400009" not in row


def test_a_private_attribute_has_the_vr_of_its_file(tmp_path):
    private = [
        (0x00090010, element(0x00090010, "LO", "ACME")),
        (0x00091001, element(0x00091001, "SH", "hidden")),
        (0x00091002, element(0x00091002, "OB", b"\0\1")),
        (0x00091003, element(0x00091003, "FD", b"\0\0\0\0\0\0\xf8\x3f")),
    ]
    with hilum.open(tmp_path / "s", create=True) as store:
        store.ingest(make_object("2.25.1", "2.25.2", "2.25.3", extra=private))
    words = ["find", "instances", "--include", "00091001,00091002,00091003,00091004"]
    (row,) = run(*words, "--store", tmp_path / "s", "--json").lines
    assert row["00091001"] == {"vr": "SH", "Value": ["hidden"]}
    assert row["00091002"] == {"vr": "OB", "InlineBinary": "AAE="}
    assert row["00091003"] == {"vr": "FD", "Value": [1.5]}
    assert row["00091004"] == {"vr": "UN"}
    assert "hidden" in run(*words, "--store", tmp_path / "s").out


def row_of(store: hilum.Store, level: str, key: str, *include: str, **options: Any) -> dict[str, Any]:
    name, _, text = key.partition("=")
    found = store.search(Asked(level, [(name, text)], include, **options))
    (row,) = found
    return store.row_json(row, found.include)


REQUESTED = {"00400009": {"vr": "SH", "Value": ["STEP1"]}, "00401001": {"vr": "SH", "Value": ["PROC1"]}}


def test_a_sequence_is_included_whole_or_by_the_attributes_asked_for(tmp_path):
    requests = [
        element(0x00321060, "LO", "Head") + element(0x00401001, "SH", "P1"),
        element(0x00321060, "LO", "Foot") + element(0x00400009, "SH", "S2") + element(0x00401001, "SH", "P2"),
    ]
    codes = [element(0x00080100, "SH", "C1") + element(0x00080104, "LO", "one")]
    extra = [(0x00400275, sequence(0x00400275, requests)), (0x00081032, sequence(0x00081032, codes))]
    with hilum.open(tmp_path / "s", create=True) as store:
        store.ingest(make_object("2.25.1", "2.25.2", "2.25.3", extra=extra))
        series = row_of(store, "series", "SeriesInstanceUID=2.25.3")
        assert series["00400275"]["Value"] == [
            {"00401001": {"vr": "SH", "Value": ["P1"]}},
            {"00400009": {"vr": "SH", "Value": ["S2"]}, "00401001": {"vr": "SH", "Value": ["P2"]}},
        ]
        name = "RequestAttributesSequence.RequestedProcedureDescription"
        series = row_of(store, "series", "SeriesInstanceUID=2.25.3", name)
        assert [item["00321060"]["Value"] for item in series["00400275"]["Value"]] == [["Head"], ["Foot"]]
        assert [item["00401001"]["Value"] for item in series["00400275"]["Value"]] == [["P1"], ["P2"]]
        series = row_of(store, "series", "SeriesInstanceUID=2.25.3", "RequestAttributesSequence")
        assert [item["00321060"]["Value"] for item in series["00400275"]["Value"]] == [["Head"], ["Foot"]]
        study = row_of(store, "studies", "StudyInstanceUID=2.25.2", "ProcedureCodeSequence.CodeValue", name)
        assert study["00081032"] == {"vr": "SQ", "Value": [{"00080100": {"vr": "SH", "Value": ["C1"]}}]}
        assert len(study["00400275"]["Value"]) == 2
        study = row_of(store, "studies", "StudyInstanceUID=2.25.2", "ProcedureCodeSequence")
        assert list(study["00081032"]["Value"][0]) == ["00080100", "00080104"]
        study = row_of(store, "studies", "StudyInstanceUID=2.25.2", "OtherPatientIDsSequence.PatientID")
        assert study["00101002"] == {"vr": "SQ"}


def test_a_key_is_an_attribute_of_the_answer(store):
    series = row_of(store, "series", "00400275.00401001=PROC1")
    assert series["00400275"]["Value"] == [REQUESTED]
    instance = row_of(store, "instances", "MagneticFieldStrength=3")
    assert instance["00180087"] == {"vr": "DS", "Value": [1.5, 3]}
    study = row_of(store, "studies", "SOPInstanceUID=2.25.13")
    assert study["00080018"]["Value"] == ["2.25.11"]  # of the instance that speaks for the study


def test_a_private_element_is_included_by_its_creator_in_any_block(tmp_path):
    private = [
        (0x00090010, element(0x00090010, "LO", "OTHER")),
        (0x00090011, element(0x00090011, "LO", "ACME, 1.0")),
        (0x00091001, element(0x00091001, "SH", "theirs")),
        (0x00091101, element(0x00091101, "SH", "ours")),
    ]
    with hilum.open(tmp_path / "s", create=True) as store:
        store.ingest(make_object("2.25.1", "2.25.2", "2.25.3", extra=private))
        row = row_of(store, "instances", "SOPInstanceUID=2.25.1", '0009,"ACME, 1.0",01')
        assert row["00091101"]["Value"] == ["ours"]
        assert row["00090011"]["Value"] == ["ACME, 1.0"]
        assert "00091001" not in row
        # PS3.18 8.3.4.3, Attributes Included in the Response: the creator is stated beside the element.
        (found,) = (search := store.search(Asked("instances", [("00090020", "ACME, 1.0")], ["00092001"])))
        assert store.row_json(found, search.include)["00091101"]["Value"] == ["ours"]
    ran = run("find", "instances", "--include", '0009,"ACME, 1.0",01', "--store", tmp_path / "s")
    assert ran.out.splitlines()[1].split()[-1] == "ours"


def test_all_is_every_element_of_the_level_and_of_an_instance_all_it_has(tmp_path):
    extra = [
        (0x00101002, sequence(0x00101002, [element(0x00100020, "LO", "O1")])),  # of a patient
        (0x00380010, element(0x00380010, "LO", "ADM")),  # of a study
        (0x00081111, sequence(0x00081111, [element(0x00081155, "UI", "2.25.9")])),  # of a series
        (0x00180050, element(0x00180050, "DS", "2.5")),  # of an instance
    ]
    names = {"patients": 1, "studies": 2, "series": 3, "instances": 4}
    with hilum.open(tmp_path / "s", create=True) as store:
        store.ingest(make_object("2.25.1", "2.25.2", "2.25.3", extra=extra, pixels=bytes(5000)))
        for level, count in names.items():
            found = store.search(Asked(level, include=["all"]))
            (document,) = [store.row_json(row, found.include, base="http://h/d") for row in found]
            there = [f"{tag:08X}" in document for tag, _ in extra]
            assert there == [at < count for at in range(4)], level
            assert document["00080005"]["Value"] == ["ISO_IR 192"]
            assert ("7FE00010" in document) == (level == "instances")
        uri = "http://h/d/studies/2.25.2/series/2.25.3/instances/2.25.1/bulkdata/7FE00010"
        assert document["7FE00010"] == {"vr": "OB", "BulkDataURI": uri}
        assert list(document) == sorted(document)


def test_text_of_any_character_set_leaves_as_unicode(tmp_path):
    extra = [
        (0x00321060, element(0x00321060, "LO", "\xf1\xf2".encode("latin-1"))),
        (0x00101002, sequence(0x00101002, [element(0x00100020, "LO", b"\xd3")])),
    ]
    with hilum.open(tmp_path / "s", create=True) as store:
        store.ingest(
            make_object("2.25.1", "2.25.2", "2.25.3", name="\xd3", character_set="ISO_IR 126", extra=extra)
        )
        study = row_of(store, "studies", "StudyInstanceUID=2.25.2", "00321060", "00101002.00100020")
    assert study["00100010"]["Value"] == [{"Alphabetic": "\u03a3"}]
    assert study["00321060"]["Value"] == ["\u03c1\u03c2"]
    assert study["00101002"]["Value"][0]["00100020"]["Value"] == ["\u03a3"]


# --- What is not indexed --------------------------------------------------------------------------------


def test_what_is_read_from_heads_is_read_in_the_time_allowed_and_the_answer_says_so(store):
    found = store.search(Asked("instances", [("MagneticFieldStrength", "3")], seconds_max=0.0))
    assert list(found) == []
    assert found.more
    assert "time" in found.warnings[0]
    with pytest.raises(Unsupported, match="not counted"):
        store.count(Asked("instances", [("MagneticFieldStrength", "3")], seconds_max=0.0))
    # What the index answers takes none of it.
    found = store.search(Asked("instances", [("PatientName", "smith*")], seconds_max=0.0))
    assert (len(list(found)), found.more, found.warnings) == (5, False, [])


def test_only_heads_of_rows_that_the_index_lets_through_are_read(store, monkeypatch):
    read: list[bytes] = []
    before = hilum.Store.read_head
    monkeypatch.setattr(
        hilum.Store, "read_head", lambda self, one: read.append(one.identity) or before(self, one)
    )
    rows = store.find("instances", {"MagneticFieldStrength": "3", "PatientID": "P2"})
    assert [row.uid for row in rows] == ["2.25.21"]
    assert len(read) == 1
    assert len(store.find("studies", {"AdmissionID": "none"})) == 0
    assert len(read) == 1 + 4  # one for each study: the instance that speaks for it


def test_a_damaged_head_fails_no_search_and_the_answer_says_so(tmp_path):
    with hilum.open(tmp_path / "s", create=True) as store:
        for number in (1, 2):
            extra = [(0x00180050, element(0x00180050, "DS", "2.5"))]
            store.ingest(make_object(f"2.25.1{number}", f"2.25.2{number}", f"2.25.3{number}", extra=extra))
        at = store.locate("2.25.11").instance
        (pack,) = (tmp_path / "s" / "packs").glob("*.head")
        data = bytearray(pack.read_bytes())
        data[at.offset + at.head_length - 4] ^= 1
        pack.write_bytes(data)
    with hilum.open(tmp_path / "s", read_only=True) as store:
        found = store.search(Asked("instances", [("SliceThickness", "2.5")]))
        assert [row.uid for row in found] == ["2.25.12"]
        assert found.warnings == ["1 data sets are damaged and could not be looked into"]
        assert len([store.row_json(row, "all") for row in store.find("instances")]) == 2


def test_an_export_and_a_deletion_take_keys_that_are_not_indexed(tmp_path):
    with hilum.open(tmp_path / "s", create=True) as store:
        for number in (1, 2, 3):
            extra = [(0x00180050, element(0x00180050, "DS", str(number)))]
            store.ingest(make_object(f"2.25.1{number}", "2.25.2", "2.25.3", extra=extra))
        assert [uids for _, uids in store.select({"SliceThickness": "2"})] == [["2.25.12"]]
        assert store.delete("instances", {"SliceThickness": "2"}) == 1
        assert [row.uid for row in store.find("instances")] == ["2.25.11", "2.25.13"]
        with pytest.raises(BadQuery, match="narrows"):
            store.delete("studies", {"SliceThickness": "*", "SpecificCharacterSet": "ISO_IR 192"})


# --- Rules of the whole answer ----------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
def test_an_answer_that_is_cut_says_that_there_is_more(store, level):
    whole = [row.uid for row in store.find(level)]
    for limit in range(len(whole) + 2):
        for offset in (0, 1, len(whole) + 1):
            found = store.search(Asked(level, limit=limit, offset=offset))
            assert [row.uid for row in found] == whole[offset : offset + limit]
            assert found.more == (offset + limit < len(whole)), (limit, offset)
    assert store.count(Asked(level, limit=1, offset=1)) == len(whole)


def test_a_patient_is_found_by_what_its_row_shows_and_by_nothing_else(tmp_path):
    with hilum.open(tmp_path / "s", create=True) as store:
        store.ingest(make_object("2.25.12", "2.25.2", "2.25.22", name="New^Name", study_date="20240102"))
        store.ingest(make_object("2.25.11", "2.25.1", "2.25.21", name="Old^Name", study_date="20200102"))
        (row,) = store.find("patients")
        assert row.text(0x00100010) == "Old^Name"  # of the smallest SOP Instance UID
        for keys, count in (
            ({"PatientName": "Old*"}, 1),
            ({"PatientName": "New*"}, 0),
            ({"PatientName": "*name"}, 1),
            ({"PatientName": "Old*", "StudyDate": "20240102"}, 1),
            ({"StudyDate": "20240102"}, 1),
            ({"StudyDate": "20230102"}, 0),
            ({"PatientName": "Old*", "StudyDate": "2024*".replace("*", "0102-")}, 1),
        ):
            assert len(store.find("patients", keys)) == count, keys
        # A study is found by what its own row shows.
        assert [row.uid for row in store.find("studies", {"PatientName": "New*"})] == ["2.25.2"]


def test_keys_of_the_answer_alone_are_not_matched_and_the_answer_says_so(path):
    ran = run("find", "studies", "RetrieveAETitle=ELSEWHERE", "--store", path, "--json")
    assert len(ran.lines) == 4
    assert "RetrieveAETitle is not matched" in ran.err


QUESTIONS = [
    {}, {"PatientName": "*smi*"}, {"PatientName": "s*"}, {"StudyDate": "20240101-"},
    {"StudyDate": "-20240315"}, {"StudyDate": "20240101-20240331", "PatientName": "*"},
    {"ModalitiesInStudy": "MR\\CT"}, {"PatientID": "P1"}, {"StudyDate": "-20231231"},
    {"StudyDate": "20240101-20240401", "StudyTime": "0700-0759"}, {"StudyDescription": "*e*"},
]  # fmt: skip


@pytest.mark.parametrize("keys", QUESTIONS)
def test_every_plan_gives_the_same_rows_in_the_same_order(path, monkeypatch, tmp_path, keys):
    # Two dates in one study: its place is by the first, and either finds it.
    odd = make_object(
        "2.25.51", "2.25.5", "2.25.501", study_date="20240110\\20230101", name="Smit", patient_id="P5"
    )
    with hilum.open(tmp_path / "s", create=True) as store:
        store.ingest_many([store.prepare(file) for file in [*made_objects(), odd]])
        answers = []
        for walk_at in (0, 1_000_000):
            monkeypatch.setattr(query, "_WALK_AT", walk_at)
            answers.append([[row.uid for row in store.find(level, keys)] for level in LEVELS])
            assert [store.count(Asked(level, list(keys.items()))) for level in LEVELS] == [
                len(found) for found in answers[-1]
            ]
        assert answers[0] == answers[1]


# --- What people see ----------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
def test_the_table_has_a_heading_and_a_line_for_each_row(path, level):
    ran = run("find", level, "--store", path)

    lines = ran.out.splitlines()
    assert len(lines) == 1 + len(found(path, level))
    assert lines[0] == lines[0].upper()
    assert ran.err == ""


def test_control_characters_of_a_data_set_never_reach_the_terminal(tmp_path):
    with hilum.open(tmp_path / "s", create=True) as store:
        store.ingest(
            make_object("2.25.1", "2.25.2", "2.25.3", name="Evil\x1b[2J\x07\x9b^X", patient_id="P\nQ")
        )
    for level in LEVELS:
        ran = run("find", level, "--store", tmp_path / "s", "--include", "PatientName")
        assert ran.code == 0
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", ran.out)
        assert len(ran.out.splitlines()) == 2


@pytest.mark.parametrize(
    ("tag", "vr", "value"),
    [
        (0x00200013, "IS", "9" * 30),
        (0x00200013, "IS", "-" + "9" * 40),
        (0x00200013, "IS", "1e30"),
        (0x00101020, "DS", "nan"),
        (0x00101020, "DS", "inf"),
        (0x00101020, "DS", "1e999"),
        (0x00200013, "IS", "9" * 5000),
        (0x00100010, "PN", "==="),
        (0x00100010, "PN", "a=b=c=d=e"),
        (0x00100010, "PN", b"\xff\xfe\x1b$B"),
        (0x00280010, "US", b"\1"),
        (0x00280010, "OB", b"\1\2"),
        (0x00280010, "LO", "ten"),
        (0x00080020, "DA", "\\\\\\"),
        (0x00080020, "DA", "20240101\\20250101"),
        (0x00080005, "CS", "utf-16"),
        (0x00080005, "CS", "NO_SUCH_SET\\ISO 2022 IR 87"),
        (0x00081030, "LO", "x" * 10_000),
        (0x00081030, "LO", "a\\b\\" * 500),
        (0x00081030, "LO", "ab\x01cd"),
        (0x00081030, "LO", "line\nbreak\ttab\x00nul"),
        (0x00100010, "PN", "zz\x01zz\nff^\x01"),
        (0x00100020, "LO", "i" * 9_000),
        (0x00100020, "LO", "i" * 400),
        (0x00100010, "PN", "n" * 9_000),
        (0x00400275, "SQ", item(element(0x00400009, "SH", "x" * 9_000))),
    ],
)
def test_a_strange_value_breaks_no_answer_and_is_found_by_every_other_key(tmp_path, tag, vr, value):
    path = tmp_path / "s"
    file = make_object("2.25.1", "2.25.2", "2.25.3", extra=[(tag, element(tag, vr, value))])
    with hilum.open(path, create=True) as store:
        store.ingest(file)
        store.ingest(make_object("2.25.7", "2.25.8", "2.25.9", name="Else^Some", patient_id="P7"))
    name = f"{tag:08X}"
    for level in LEVELS:
        named = [] if vr == "SQ" else [["--include", name], ["--order", name], ["--order", f"-{name}"]]
        for words in ([], *named, ["PatientName=*el*", "StudyDescription=*o*", "PatientSex=F"]):
            ran = run("find", level, *words, "--store", path, "--json")
            assert ran.code == 0, ran.err
            json.loads(f"[{','.join(ran.out.splitlines())}]", parse_constant=pytest.fail)
            assert run("find", level, *words, "--store", path).code == 0
    with hilum.open(path) as store:
        assert len(store.find("studies")) == 2
        assert [row.uid for row in store.find("instances", {"SOPInstanceUID": "2.25.1"})] == ["2.25.1"]
        assert [row.uid for row in store.find("studies", {"StudyInstanceUID": "2.25.2"})] == ["2.25.2"]
        assert store.read("2.25.1") == file


@pytest.mark.parametrize(
    ("tag", "vr", "keyword"),
    [
        (0x00100020, "LO", "PatientID"),
        (0x00100010, "PN", "PatientName"),
        (0x00080050, "SH", "AccessionNumber"),
        (0x00081030, "LO", "StudyDescription"),
        (0x00104000, "LT", "PatientComments"),
    ],
)
@pytest.mark.parametrize("size", [100, 250, 500, 9000])
def test_a_long_value_is_found_by_its_whole_and_by_a_part(tmp_path, tag, vr, keyword, size):
    # What is longer than the index holds is read from the head; a plan by an index must not lose it.
    text = "begin" + "x" * size + "middle" + "y" * 40 + "end"
    with hilum.open(tmp_path / "s", create=True) as store:
        store.ingest(make_object("2.25.1", "2.25.2", "2.25.3", extra=[(tag, element(tag, vr, text))]))
        store.ingest(make_object("2.25.4", "2.25.5", "2.25.6", extra=[(tag, element(tag, vr, text[:-1]))]))
        for pattern in (text, "*middle*end", "begin*end", "*" + text[3:], text[:60] + "*end", "b?gin*end"):
            assert [row.uid for row in store.find("studies", {keyword: pattern})] == ["2.25.2"], pattern[:20]


@pytest.mark.parametrize("date", ["20240101\\20250101", "\\20250101"])
def test_each_of_several_values_is_found(tmp_path, date):
    with hilum.open(tmp_path / "s", create=True) as store:
        store.ingest(
            make_object(
                "2.25.1",
                "2.25.2",
                "2.25.3",
                study_date=date,
                accession="A1\\A2",
                patient_id="P1\\P2",
                name="N1\\N2",
            )
        )
        for keys in (
            {"StudyDate": "20250101"},
            {"StudyDate": "20241231-"},
            {"AccessionNumber": "A2"},
            {"PatientID": "P2"},
            {"PatientName": "N2"},
            {"PatientName": "*2"},
            {"AccessionNumber": "*A2*"},
        ):
            assert len(store.find("studies", keys)) == 1, keys
        assert len(store.find("studies")) == 1


# --- Against pydicom ----------------------------------------------------------------------------------


class Sample(NamedTuple):
    """The shared files in a store, and in pydicom's hands."""

    path: Path
    store: hilum.Store
    data_sets: dict[str, pydicom.Dataset]  # by SOP Instance UID; those that pydicom can read
    studies: dict[str, list[str]]  # SOP Instance UIDs by Study Instance UID
    series: dict[tuple[str, str], list[str]]


@pytest.fixture(scope="module")
def sample(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sample]:
    path = tmp_path_factory.mktemp("shared") / "store"
    with hilum.open(path, create=True) as store:
        import_paths(store, [os.fspath(shared_data)], Options())
        data_sets = {}
        studies: dict[str, list[str]] = defaultdict(list)
        series: dict[tuple[str, str], list[str]] = defaultdict(list)
        for row in store.find("instances"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = pydicom.dcmread(io.BytesIO(store.read(row.uid)), force=True)
                if texts(found, 0x00080018) == [row.uid]:
                    data_sets[row.uid] = found
            study, in_series = row.text(0x0020000D), row.text(0x0020000E)
            studies[study].append(row.uid)
            series[study, in_series].append(row.uid)
        yield Sample(path, store, data_sets, studies, series)


def texts(data_set: pydicom.Dataset, tag: int) -> list[str]:
    """All values of an element as pydicom has them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            value = data_set[tag].value if tag in data_set else None
        except Exception:
            return []
    values = value if isinstance(value, MultiValue | list) else [value]
    return [str(one) for one in values if one is not None and str(one) != ""]


def as_json(data_set: pydicom.Dataset, tag: int) -> dict[str, Any] | None:
    """An element as pydicom's DICOM JSON, with the two things settled that the Standard says otherwise."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            made: dict[str, Any] = data_set[tag].to_json_dict(None, 1024)
        except KeyError:
            return {}
        except (ValueError, TypeError, OverflowError):
            return None  # pydicom can't say it
    values = [None if value == "" else value for value in made.get("Value", [])]  # PS3.18 F.2.5
    return {"Value": values} if values else {}


def test_the_json_of_a_row_is_what_pydicom_makes_of_its_donor(sample):
    compared = 0
    for level in LEVELS:
        for row in sample.store.find(level):
            document = sample.store.row_json(row)
            assert list(document) == sorted(document)
            assert document["00080005"] == {"vr": "CS", "Value": ["ISO_IR 192"]}
            for name, number in ((f"{tag:08X}", number) for tag, number in record.NUMBER_OF.items()):
                if name not in document or name == "00080005":
                    continue
                if record.LEVEL_OF[number] == record.INSTANCE:
                    speaker = row.uid
                elif record.LEVEL_OF[number] == record.SERIES:
                    speaker = min(sample.series[row.text(0x0020000D), row.text(0x0020000E)])
                elif level == "patients":
                    speaker = row.donor.decode()
                else:
                    speaker = min(sample.studies[row.text(0x0020000D)])
                if speaker not in sample.data_sets:
                    continue
                expected = as_json(sample.data_sets[speaker], int(name, 16))
                if expected is None:
                    continue
                assert document[name]["vr"] == record.VR_OF[number]
                assert {k: v for k, v in document[name].items() if k != "vr"} == expected, (row.uid, name)
                compared += 1
    assert compared > 10_000


def plain_number(text: str) -> int | None:
    return int(text) if re.fullmatch(r"\s*[+-]?\d+\s*", text) else None


def plain_date(text: str) -> str:
    """A date without the full stops of ACR-NEMA 2.0; "" for what is none."""
    found = re.fullmatch(r"(\d{4})(\.?)(0[1-9]|1[0-2])\2(0[1-9]|[12]\d|3[01])\s*", text)
    return f"{found[1]}{found[3]}{found[4]}" if found else ""


def plain(text: str) -> str:
    """A name without case and accents; a slow and rough form of our own."""
    letters = unicodedata.normalize("NFKD", text).casefold()
    letters = "".join(letter for letter in letters if unicodedata.category(letter) != "Mn")
    return "=".join(re.sub(r"\^+$", "", group.strip()) for group in letters.split("="))


STUDY_KEYS = {
    "PatientID": 0x00100020,
    "PatientName": 0x00100010,
    "PatientSex": 0x00100040,
    "PatientBirthDate": 0x00100030,
    "AccessionNumber": 0x00080050,
    "StudyID": 0x00200010,
    "StudyDate": 0x00080020,
    "StudyDescription": 0x00081030,
    "ReferringPhysicianName": 0x00080090,
    "InstitutionName": 0x00080080,
}
SERIES_KEYS = {
    "Modality": 0x00080060,
    "SeriesNumber": 0x00200011,
    "SeriesDescription": 0x0008103E,
    "Manufacturer": 0x00080070,
    "ManufacturerModelName": 0x00081090,
    "BodyPartExamined": 0x00180015,
    "StationName": 0x00081010,
    "ProtocolName": 0x00181030,
}
INSTANCE_KEYS = {
    "SOPClassUID": 0x00080016,
    "InstanceNumber": 0x00200013,
    "Rows": 0x00280010,
    "NumberOfFrames": 0x00280008,
    "PhotometricInterpretation": 0x00280004,
}
NAMES = {"PatientName", "ReferringPhysicianName"}


def queries(keyword: str, values: list[str]) -> list[tuple[str, Callable[[str], bool]]]:
    """(key's value, what it must match) for some values of an attribute."""
    form = plain if keyword in NAMES else str.strip
    number = keyword in ("SeriesNumber", "InstanceNumber", "Rows", "NumberOfFrames")
    asked: list[tuple[str, Callable[[str], bool]]] = []
    for value in sorted(set(values)):
        text = value.strip()
        if not text or re.search(r"[*?\\=\x00-\x1f]", text):
            continue
        if number:
            if text.isdigit():
                asked.append((text, lambda other, text=text: plain_number(other) == int(text)))
            continue
        if keyword.endswith("Date"):
            if plain_date(text):
                asked.append((text, lambda other, text=text: plain_date(other) == plain_date(text)))
            continue
        if not plain(text).strip("^= "):
            continue
        wanted = form(text)

        def same(other: str, wanted: str = wanted) -> bool:
            return form(other) == wanted or (keyword in NAMES and wanted in form(other).split("="))

        asked.append((text, same))
        if text.isascii() and len(text) > 4 and keyword not in ("SOPClassUID", "PatientSex"):
            middle = re.sub(r"[\^= ].*", "", form(text)[1:4])
            if len(middle) > 1:
                asked.append((f"*{middle}*", lambda other, middle=middle: middle in form(other)))
    return asked


def test_find_is_what_a_slow_filter_over_pydicom_data_sets_finds(sample):
    donor_of_study = {uid: min(found) for uid, found in sample.studies.items()}
    donor_of_series = {uid: min(found) for uid, found in sample.series.items()}
    known = sample.data_sets
    asked = 0
    for level, keywords, speakers in (
        ("studies", STUDY_KEYS, donor_of_study),
        ("series", SERIES_KEYS, donor_of_series),
        ("instances", INSTANCE_KEYS, {uid: uid for uid in known}),
    ):
        for keyword, tag in keywords.items():
            values = {key: texts(known[donor], tag) for key, donor in speakers.items() if donor in known}
            flat = [value for found in values.values() for value in found]
            for text, matches in queries(keyword, flat)[:60]:
                expected = {key for key, found in values.items() if any(matches(one) for one in found)}
                rows = sample.store.find(level, {keyword: text})
                here = {
                    (row.text(0x0020000D), row.text(0x0020000E)) if level == "series" else row.uid
                    for row in rows
                }
                assert here & set(values) == expected, (level, keyword, text)
                assert len(rows) == len(here)
                asked += 1
    assert asked > 300


def test_ranges_of_dates_find_what_lies_in_them(sample):
    dates = {
        uid: [date for text in texts(sample.data_sets[min(found)], 0x00080020) if (date := plain_date(text))]
        for uid, found in sample.studies.items()
        if min(found) in sample.data_sets
    }
    known = sorted({value for found in dates.values() for value in found})
    assert len(known) > 20
    for low, high in itertools.product(known[::9], known[::7]):
        if low > high:
            continue
        for text, first, last in (
            (f"{low}-{high}", low, high),
            (f"{low}-", low, "9"),
            (f"-{high}", "0", high),
        ):
            expected = {uid for uid, found in dates.items() if any(first <= date <= last for date in found)}
            here = {row.uid for row in sample.store.find("studies", {"StudyDate": text})}
            assert here & set(dates) == expected, text


def test_keys_of_every_level_together_are_an_intersection(sample):
    rows = sample.store.find("instances")
    picked = rows[:: max(1, len(rows) // 150)]
    for row in picked:
        keys = {"StudyInstanceUID": row.text(0x0020000D), "Modality": row.text(0x00080060)}
        number = row.text(0x00200013)
        if not keys["Modality"] or not number.isdigit():
            continue
        keys["InstanceNumber"] = number
        expected = {
            other.uid
            for other in rows
            if other.text(0x0020000D) == keys["StudyInstanceUID"]
            and other.text(0x00080060) == keys["Modality"]
            and other.text(0x00200013) == number
        }
        assert {found.uid for found in sample.store.find("instances", keys)} == expected
        assert [found.uid for found in sample.store.find("studies", keys)] == [keys["StudyInstanceUID"]]
        series = {found.uid for found in sample.store.find("series", keys)}
        assert row.text(0x0020000E) in series


@pytest.mark.parametrize("level", LEVELS)
def test_every_row_of_real_files_prints_as_json_and_as_a_table(sample, level):
    ran = run("find", level, "--store", sample.path, "--json")
    assert ran.code == 0
    assert len(ran.lines) == len(sample.store.find(level))
    ran = run("find", level, "--store", sample.path, "--include", "PatientComments,ImageType,WindowCenter")
    assert ran.code == 0
    assert len(ran.out.splitlines()) == 1 + len(sample.store.find(level))


HEAD_KEYS = (
    "SliceThickness",
    "KVP",
    "WindowCenter",
    "ConversionType",
    "SequenceName",
    "FlipAngle",
)


def test_elements_that_are_not_indexed_are_found_as_a_slow_filter_over_pydicom_finds_them(sample):
    asked = 0
    for keyword in HEAD_KEYS:
        tag = pydicom.datadict.tag_for_keyword(keyword)
        values = {uid: texts(known, tag) for uid, known in sample.data_sets.items()}
        number = pydicom.datadict.dictionary_VR(tag) == "DS"
        stored = {value.strip() for found in values.values() for value in found}
        for text in sorted(stored - {""})[:8]:
            if re.search(r"[*?\\]", text):
                continue
            wanted = float(text) if number else text
            expected = {
                uid
                for uid, found in values.items()
                if wanted in [float(value) if number else value.strip() for value in found]
            }
            here = {row.uid for row in sample.store.find("instances", {keyword: text})}
            assert here & set(values) == expected, (keyword, text)
            studies = {row.uid for row in sample.store.find("studies", {keyword: text})}
            assert studies >= {uid for uid, found in sample.studies.items() if expected & set(found)}
            asked += 1
    assert asked > 20


@pytest.mark.parametrize("level", LEVELS)
def test_all_of_each_row_of_real_files_is_a_document(sample, level):
    found = sample.store.search(Asked(level, include=["all"]))
    for row in found:
        document = sample.store.row_json(row, found.include)
        json.loads(json.dumps(document, allow_nan=False))
        assert {*sample.store.row_json(row)} <= {*document}
