"""Search: every path, parameter and answer of QIDO-RS. The rules of matching have tests of their own."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from email import message_from_bytes
from typing import Any
from urllib.parse import quote, urlencode
from xml.etree import ElementTree

import matching_cases
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from makers import element, item, make_object, sequence
from starlette.testclient import TestClient
from webclient import ROOT, client_of, serving

import hilum
from hilum.engine.writer import Policy
from hilum.errors import BadQuery
from hilum.settings import Settings
from hilum.web.errors import TooMany
from hilum.web.qido import _sayable, parse
from hilum.web.rows import RowCache

STUDY, SERIES, INSTANCE = "0020000D", "0020000E", "00080018"
NATIVE = "{http://dicom.nema.org/PS3.19/models/NativeDICOM}"


def made_objects() -> list[bytes]:
    """Three studies: two series and three instances in the first, one of each in the others."""
    request = sequence(0x00400275, [element(0x00400009, "SH", "STEP1") + element(0x00401001, "SH", "PROC1")])
    private = [
        (0x00090010, element(0x00090010, "LO", "HILUM TEST")),
        (0x00091001, element(0x00091001, "LO", "secret")),
    ]
    shape: dict[str, Any] = {"pixels": bytes(48), "rows": 6, "columns": 8}
    first: dict[str, Any] = {
        "name": "Smith^John", "patient_id": "P1", "accession": "A1", "study_date": "20240101",
        "study_time": "080000", "study_description": "Chest CT",
    }  # fmt: skip
    return [
        make_object(
            "1.2.1.1.1", "1.2.1", "1.2.1.1", instance_number=1, series_number=1,
            extra=[(0x00081090, element(0x00081090, "LO", "Scanner"))], **first, **shape,
        ),
        make_object(
            "1.2.1.1.2", "1.2.1", "1.2.1.1", instance_number=2, series_number=1, extra=private,
            **first, **shape,
        ),
        make_object(
            "1.2.1.2.1", "1.2.1", "1.2.1.2", series_number=2, modality="SR",
            extra=[(0x00400275, request)], **first
        ),
        make_object(
            "1.2.2.1.1", "1.2.2", "1.2.2.1", name="M\xfcller^J\xf6rg", patient_id="P2",
            accession="A2", modality="MR", study_date="20240315", study_time="120000",
            character_set="ISO_IR 100", frames=2, rows=4,
            columns=4, pixels=bytes(32), extra=[(0x00080201, element(0x00080201, "SH", "+0100"))],
        ),
        make_object(
            "1.2.3.1.1", "1.2.3", "1.2.3.1", name="Doe^Jane", patient_id="P3", accession="", modality="US",
            study_date="", study_time="", study_id="", birth_date="", sex="",
        ),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def client(tmp_path_factory) -> Iterator[TestClient]:
    with serving(tmp_path_factory.mktemp("qido"), made_objects()) as (client, _):
        yield client


def rows(client: TestClient, path: str) -> list[dict[str, Any]]:
    answer = client.get(ROOT + path)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()
    return found


def values(found: list[dict[str, Any]], key: str) -> list[Any]:
    return [row.get(key, {}).get("Value", [None])[0] for row in found]


def uids(client: TestClient, path: str, key: str) -> set[str]:
    return set(values(rows(client, path), key))


# Paths.


@pytest.mark.parametrize(
    ("path", "key", "expected"),
    [
        ("/studies", STUDY, {"1.2.1", "1.2.2", "1.2.3"}),
        ("/series", SERIES, {"1.2.1.1", "1.2.1.2", "1.2.2.1", "1.2.3.1"}),
        ("/instances", INSTANCE, {"1.2.1.1.1", "1.2.1.1.2", "1.2.1.2.1", "1.2.2.1.1", "1.2.3.1.1"}),
        ("/studies/1.2.1/series", SERIES, {"1.2.1.1", "1.2.1.2"}),
        ("/studies/1.2.1/instances", INSTANCE, {"1.2.1.1.1", "1.2.1.1.2", "1.2.1.2.1"}),
        ("/studies/1.2.1/series/1.2.1.1/instances", INSTANCE, {"1.2.1.1.1", "1.2.1.1.2"}),
        ("/patients", "00100020", {"P1", "P2", "P3"}),
        ("/studies/", STUDY, {"1.2.1", "1.2.2", "1.2.3"}),
    ],
)
def test_every_path_is_searched(client, path, key, expected):
    assert uids(client, path, key) == expected
    for alias in ("/qidors", "/wadors"):
        assert client.get(alias + path).json()
    count = client.get(f"{ROOT}{path.rstrip('/')}/count")
    assert count.json() == {"count": len(expected)}
    assert count.headers["content-type"] == "application/json"


def test_keys_count_with_count_and_limit_does_not(client):
    assert client.get(f"{ROOT}/series/count?PatientID=P1&limit=1").json() == {"count": 2}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/studies/1.2.1/series?StudyInstanceUID=1.2.2", set()),
        ("/studies/1.2.1/series?Modality=SR", {"1.2.1.2"}),
        ("/studies/1.2.9/series", set()),
        ("/studies/1.2.2/series/1.2.1.1/instances", set()),
    ],
)
def test_a_path_and_keys_narrow_a_search_down_together(client, path, expected):
    assert uids(client, path, SERIES) == expected


@pytest.mark.parametrize("uid", ["1.2.1%5C1.2.2", "1.2.1,1.2.2", "*", "1.2.%3F", "1" * 129, "%00", "1+2"])
def test_a_path_names_one_uid(client, uid):
    answer = client.get(f"{ROOT}/studies/{uid}/series")

    assert answer.status_code == 400
    assert "UID" in answer.json()["error"]


# STANDARD: nothing found, truncation.


def test_nothing_found_is_200_with_an_empty_list(client):
    answer = client.get(f"{ROOT}/studies?PatientID=NOBODY")

    assert answer.status_code == 200
    assert answer.content == b"[]"
    assert answer.headers["content-type"] == "application/dicom+json"


def test_nothing_found_is_204_where_the_settings_want_it(tmp_path):
    with serving(tmp_path, search={"empty_status": 204}) as (client, _):
        answer = client.get(f"{ROOT}/studies")

    assert answer.status_code == 204
    assert answer.content == b""


@pytest.mark.parametrize(
    "query", ["limit=1", "limit=2", "limit=0", "limit=1&offset=1", "PatientID=P*&limit=2"]
)
def test_a_truncated_answer_is_200_with_a_warning(client, query):
    answer = client.get(f"{ROOT}/studies?{query}")

    assert answer.status_code == 200
    assert len(answer.json()) == int(re.search(r"limit=(\d)", query)[1])
    assert re.fullmatch(r"299 http://localhost/dicom-web: .*additional results.*", answer.headers["warning"])


@pytest.mark.parametrize(
    "query", ["", "limit=3", "limit=100", "offset=2", "offset=99", "limit=1&PatientID=P1"]
)
def test_a_whole_answer_has_no_warning(client, query):
    assert "warning" not in client.get(f"{ROOT}/studies?{query}").headers


def test_the_servers_own_limits_truncate_too(tmp_path):
    with serving(tmp_path, made_objects(), search={"limit_max": 2, "limit_default": 1}) as (client, _):
        assert len(client.get(f"{ROOT}/studies").json()) == 1
        answer = client.get(f"{ROOT}/studies?limit=1000")

    assert len(answer.json()) == 2
    assert "additional results" in answer.headers["warning"]


def test_pages_together_are_the_whole_in_its_order(client):
    whole = values(rows(client, "/instances"), INSTANCE)
    pages = [values(rows(client, f"/instances?limit=2&offset={at}"), INSTANCE) for at in range(0, 6, 2)]

    assert [uid for page in pages for uid in page] == whole


# Keys.


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("StudyInstanceUID=1.2.1,1.2.3", {"1.2.1", "1.2.3"}),
        ("StudyInstanceUID=1.2.1%5C1.2.3", {"1.2.1", "1.2.3"}),
        ("StudyInstanceUID=1.2.1&StudyInstanceUID=1.2.3", {"1.2.1", "1.2.3"}),
        ("0020000D=1.2.1,%201.2.3", {"1.2.1", "1.2.3"}),
        ("SOPInstanceUID=1.2.2.1.1,1.2.3.1.1", {"1.2.2", "1.2.3"}),
        ("ModalitiesInStudy=MR,US", {"1.2.2", "1.2.3"}),
        ("ModalitiesInStudy=MR%5CUS", {"1.2.2", "1.2.3"}),
        ("ModalitiesInStudy=MR&ModalitiesInStudy=US", {"1.2.2", "1.2.3"}),
        ("ModalitiesInStudy=CT,SR&multiplevaluematching=true", {"1.2.1"}),
        ("ModalitiesInStudy=CT,MR&multiplevaluematching=true", set()),
        ("ModalitiesInStudy=CT,MR&multiplevaluematching=false", {"1.2.1", "1.2.2"}),
        ("PatientName=*smith*", {"1.2.1"}),
        ("PatientName=m%C3%BCller*", {"1.2.2"}),
        ("00100010=MULLER*", {"1.2.2"}),
        ("PatientName=John+Smith&fuzzymatching=true", {"1.2.1"}),
        ("PatientName=John+Smith&fuzzymatching=false", set()),
        ("PatientName=John+Smith&FuzzyMatching=TRUE", {"1.2.1"}),
        ("StudyDate=20240101-20240201", {"1.2.1"}),
        ("StudyDate=20240101-20240315&StudyTime=090000-", {"1.2.2"}),
        ("RequestAttributesSequence.ScheduledProcedureStepID=STEP1", {"1.2.1"}),
        ("00400275.00401001=PROC1", {"1.2.1"}),
        ("ManufacturerModelName=Scanner", {"1.2.1"}),
        ("AccessionNumber=%22%22&emptyvaluematching=true", {"1.2.3"}),
        ("AccessionNumber=", {"1.2.1", "1.2.2", "1.2.3"}),
        ("PatientID=*", {"1.2.1", "1.2.2", "1.2.3"}),
        ("00091001=secret&00090010=HILUM+TEST", {"1.2.1"}),
        (quote('0009,"HILUM TEST",01') + "=secret", {"1.2.1"}),
        (quote('0009,"HILUM TEST",01') + "=public", set()),
        ("BitsAllocated=8&PatientID=P1", {"1.2.1"}),
        ("SpecificCharacterSet=ISO_IR+192&PatientID=P1", {"1.2.1"}),
        ("TimezoneOffsetFromUTC=%2B0100&StudyDate=20240315", {"1.2.2"}),
        ("TimezoneOffsetFromUTC=+0100&StudyDate=20240315", {"1.2.2"}),
    ],
)
def test_what_matches_is_found(client, query, expected):
    assert uids(client, f"/studies?{query}", STUDY) == expected


@pytest.mark.parametrize(
    "query",
    [
        "PatinetID=1", "12345=1", "limit=x", "limit=-1", "limit=1.5", "limit=",
        "offset=-1", "offset=%C2%B2", "fuzzymatching=maybe", "emptyvaluematching=1", "StudyDate=yesterday",
        "PatientName=%FF", "StudyTime=9999", "order=Nonsense", "order=PixelSpacing", "%FF=1",
        "limit=99999999999999999999", "&".join(f"PatientID={n}" for n in range(1001)),
        "StudyInstanceUID=" + ",".join(["1"] * 10_001),
    ],
    ids=lambda text: text[:30],
)  # fmt: skip
def test_a_query_that_makes_no_sense_is_400_in_words(client, query):
    for path in ("/studies", "/studies/count"):
        answer = client.get(f"{ROOT}{path}?{query}")

        assert answer.status_code == 400
        assert answer.json()["status"] == 400
        assert len(answer.json()["error"]) > 10


def test_a_parameter_that_is_no_attribute_is_ignored_and_told(client):
    answer = client.get(f"{ROOT}/studies?_=1730000000&includedefaults=false&PatientID=P1")

    assert values(answer.json(), STUDY) == ["1.2.1"]
    assert "'_' is not known" in answer.headers["warning"]
    assert "'includedefaults' is not known" in answer.headers["warning"]


def test_a_key_of_the_answer_is_no_condition_and_told(client):
    answer = client.get(f"{ROOT}/studies?InstanceAvailability=OFFLINE&PatientID=P1")

    assert values(answer.json(), STUDY) == ["1.2.1"]
    assert answer.headers["warning"].startswith("299 ")


# Answers.


def test_a_study_has_every_required_attribute_though_it_be_empty(client):
    required = {
        "00080005", "00080020", "00080030", "00080050", "00080056", "00080061", "00080090", "00081190",
        "00100010", "00100020", "00100030", "00100040", "0020000D", "00200010", "00201206", "00201208",
    }  # fmt: skip
    for row in rows(client, "/studies"):
        assert required <= set(row)
        assert row["00080005"] == {"vr": "CS", "Value": ["ISO_IR 192"]}
        assert row["00080056"] == {"vr": "CS", "Value": ["ONLINE"]}
    (bare,) = rows(client, "/studies?PatientID=P3")
    assert bare["00080050"] == {"vr": "SH"}
    (full,) = rows(client, "/studies?PatientID=P1")
    assert full["00080061"]["Value"] == ["CT", "SR"]
    assert (full["00201206"]["Value"], full["00201208"]["Value"]) == ([2], [3])


def test_a_study_without_a_modality_has_no_empty_list_of_them(tmp_path):
    # OHIF reads the length of its Value, and shows no study at all where there is none.
    files = [make_object("1.2.3", "1.2", "1.2.1", modality="")]
    with serving(tmp_path, files) as (client, _):
        for path in ("/studies", "/series", "/studies?includefield=ModalitiesInStudy"):
            (row,) = rows(client, path)
            assert "00080061" not in row


def test_a_series_has_every_required_attribute(client):
    required = {
        "00080005", "00080056", "00080060", "00081190", "0020000D", "0020000E", "00200011", "00201209",
    }  # fmt: skip
    found = rows(client, "/studies/1.2.1/series")
    assert all(required <= set(row) for row in found)
    (report,) = (row for row in found if row[SERIES]["Value"] == ["1.2.1.2"])
    (request,) = report["00400275"]["Value"]
    assert request["00400009"]["Value"] == ["STEP1"]
    assert request["00401001"]["Value"] == ["PROC1"]


def test_an_instance_has_every_required_attribute(client):
    (row,) = rows(client, "/studies/1.2.2/series/1.2.2.1/instances")

    assert {"00080005", "00080016", "00080018", "00080056", "00081190", "00200013"} <= set(row)
    assert [row[key]["Value"] for key in ("00280008", "00280010", "00280011", "00280100")] == [
        [2],
        [4],
        [4],
        [8],
    ]
    assert row["00080201"]["Value"] == ["+0100"]


def test_rows_of_all_series_and_all_instances_bring_what_is_above_them(client):
    for row in rows(client, "/series"):
        assert {"00080020", "00080061", "00100010", "00100020", "00201206", "00201208"} <= set(row)
    (row,) = rows(client, "/instances?SOPInstanceUID=1.2.1.2.1")
    assert row["00100020"]["Value"] == ["P1"]
    assert row["00201206"]["Value"] == [2]
    assert row["00080060"]["Value"] == ["SR"]
    assert row["00201209"]["Value"] == [1]
    (row,) = rows(client, "/studies/1.2.1/instances?SOPInstanceUID=1.2.1.2.1")
    assert row["00080060"]["Value"] == ["SR"]


@pytest.mark.parametrize("path", ["/studies", "/series", "/instances", "/studies/1.2.1/instances"])
def test_a_retrieve_url_names_what_the_row_is_of(client, path):
    for row in rows(client, path):
        url = row["00081190"]["Value"][0]
        expected = f"http://localhost{ROOT}/studies/{row[STUDY]['Value'][0]}"
        if path != "/studies":
            expected += f"/series/{row[SERIES]['Value'][0]}"
        if path.endswith("instances"):
            expected += f"/instances/{row[INSTANCE]['Value'][0]}"
        assert row["00081190"]["vr"] == "UR"
        assert url == expected


def test_attributes_come_in_the_order_of_their_tags(client):
    for path in ("/studies", "/series?includefield=all", "/instances?includefield=PatientID", "/patients"):
        for row in rows(client, path):
            assert list(row) == sorted(row)


@pytest.mark.parametrize(
    ("include", "key", "expected"),
    [
        ("includefield=StudyDescription", "00081030", "Chest CT"),
        ("includefield=00081030", "00081030", "Chest CT"),
        ("includefield=PatientSex,StudyDescription", "00081030", "Chest CT"),
        ("includefield=PatientSex&includefield=StudyDescription", "00081030", "Chest CT"),
        ("includefield=all", "00081030", "Chest CT"),
        ("includefield=StudyDate&StudyDate=20240101", "00080020", "20240101"),
        ("includefield=SOPClassUID", "00080016", "1.2.840.10008.5.1.4.1.1.2"),
    ],
)
def test_what_is_to_be_included_is(client, include, key, expected):
    (row,) = rows(client, f"/studies?PatientID=P1&{include}")

    assert row[key]["Value"] == [expected]


def test_a_key_that_is_included_stays_a_key(client):
    assert uids(client, "/studies?PatientID=P1&includefield=PatientID", STUDY) == {"1.2.1"}


def test_a_key_comes_back_with_the_answer(client):
    (row,) = rows(client, "/studies?PatientID=P1&StudyDescription=Chest*")

    assert row["00081030"]["Value"] == ["Chest CT"]


def test_sequences_and_private_elements_can_be_included(client):
    (row,) = rows(client, "/instances?SOPInstanceUID=1.2.1.2.1&includefield=00400275.00400009")
    assert row["00400275"]["Value"][0]["00400009"]["Value"] == ["STEP1"]

    name = quote('0009,"HILUM TEST",01')
    (row,) = rows(client, f"/instances?SOPInstanceUID=1.2.1.1.2&includefield={name},Rows")
    assert row["00090010"]["Value"] == ["HILUM TEST"]
    assert row["00091001"]["Value"] == ["secret"]


def test_an_attribute_that_is_included_and_lacking_leaves_no_row_out(client):
    found = rows(client, "/studies?includefield=InstitutionName,00091001")

    assert len(found) == 3


def test_an_unknown_name_in_includefield_is_told(client):
    answer = client.get(f"{ROOT}/studies?includefield=PatientSex,Nonsense")

    assert answer.status_code == 200
    assert len(answer.json()) == 3
    assert "Nonsense" in answer.headers["warning"]


def test_text_in_any_character_set_comes_as_utf_8(client):
    answer = client.get(f"{ROOT}/studies?PatientID=P2")

    assert "Müller^Jörg".encode() in answer.content


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("order=PatientName", ["P3", "P2", "P1"]),
        ("order=-PatientName", ["P1", "P2", "P3"]),
        ("order=StudyDate", ["P3", "P1", "P2"]),
        ("order=-NumberOfStudyRelatedInstances,-PatientID", ["P1", "P3", "P2"]),
        ("order=-NumberOfStudyRelatedInstances&order=PatientID", ["P1", "P2", "P3"]),
        ("", ["P2", "P1", "P3"]),
    ],
)
def test_rows_come_in_the_order_that_is_asked_for_else_newest_first(client, order, expected):
    assert values(rows(client, f"/studies?{order}"), "00100020") == expected


def test_one_row_for_a_study_whose_instances_disagree(tmp_path):
    files = [
        make_object("1.2.1.1.1", "1.2.1", "1.2.1.1", study_date="20240101", name="Doe^Jane"),
        make_object("1.2.1.1.2", "1.2.1", "1.2.1.1", study_date="20250101", name="DOE^JANE"),
    ]
    with serving(tmp_path, files) as (client, _):
        assert len(client.get(f"{ROOT}/studies").json()) == 1


def test_an_answer_is_never_older_than_what_is_stored(tmp_path):
    path = f"{ROOT}/studies?includefield=ImageComments"

    def comment(text: str) -> list[tuple[int, bytes]]:
        return [(0x00204000, element(0x00204000, "LT", text))]

    with serving(tmp_path, [make_object("1.2.1", "1.2", "1.2.0", extra=comment("old"))]) as (client, store):
        for _ in range(2):
            (row,) = client.get(path).json()
            assert (row["00204000"]["Value"], row["00201208"]["Value"]) == (["old"], [1])
        store.ingest(make_object("1.2.1", "1.2", "1.2.0", extra=comment("new")), policy=Policy.REPLACE)
        (row,) = client.get(path).json()
        assert row["00204000"]["Value"] == ["new"]
        store.ingest(make_object("1.2.2", "1.2", "1.2.0"))
        (row,) = client.get(path).json()
        assert row["00201208"]["Value"] == [2]
        store.delete("instances", [("SOPInstanceUID", "1.2.1")])
        (row,) = client.get(path).json()
        assert row["00201208"]["Value"] == [1]
        assert "Value" not in row["00204000"]


def test_rows_that_are_kept_are_of_their_own_question_and_address(client):
    plain = rows(client, "/studies?PatientID=P1")
    more = rows(client, "/studies?PatientID=P1&includefield=StudyDescription,Modality")
    elsewhere = client.get(f"{ROOT}/studies?PatientID=P1", headers={"host": "127.0.0.1:99"}).json()
    below = rows(client, "/studies/1.2.1/series")
    beside = rows(client, "/series?StudyInstanceUID=1.2.1")

    assert set(plain[0]) < set(more[0])
    assert elsewhere[0]["00081190"]["Value"] == ["http://127.0.0.1:99/dicom-web/studies/1.2.1"]
    assert set(below[0]) < set(beside[0])
    assert rows(client, "/studies?PatientID=P1") == plain


def test_rows_are_kept_while_nothing_changes_and_not_without_end():
    cache = RowCache(bytes_max=10)
    first = cache.at(1)
    cache.keep(first, {"a": b"1234"})
    assert cache.at(1).rows == {"a": b"1234"}

    assert cache.at(2).rows == {}
    cache.keep(first, {"b": b"late"})
    assert cache.at(2).rows == {}, "of a state that has passed"
    assert cache.at(1).rows == {}

    now = cache.at(2)
    cache.keep(now, {"c": b"12345678"})
    cache.keep(now, {"d": b"12345678"})
    assert cache.at(2).rows == {}, "over the limit all of them go"


# Media types.


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, "application/dicom+json"),
        ("*/*", "application/dicom+json"),
        ("application/*", "application/dicom+json"),
        ("application/dicom+json", "application/dicom+json"),
        ("application/json", "application/json"),
        ("application/json, application/dicom+json", "application/dicom+json"),
        ("application/dicom+json;q=0.5, application/json", "application/json"),
        ("text/html,application/xhtml+xml,*/*;q=0.8", "application/dicom+json"),
        ("application/dicom+json; charset=utf-8", "application/dicom+json"),
        ('multipart/related; type="application/dicom+xml"', "multipart/related"),
        ("multipart/related; type=application/dicom+xml", "multipart/related"),
        ("application/dicom+xml", "multipart/related"),
    ],
)
def test_the_answer_is_of_a_type_that_the_client_takes(client, accept, expected):
    answer = client.get(f"{ROOT}/studies", headers={"accept": accept} if accept else {"accept": ""})

    assert answer.status_code == 200
    assert answer.headers["content-type"].split(";")[0] == expected


@pytest.mark.parametrize(
    "accept", ["image/jpeg", "application/dicom", "*/*;q=0", "multipart/related; type=image/jpeg"]
)
def test_a_client_that_takes_none_of_them_is_told_406(client, accept):
    answer = client.get(f"{ROOT}/studies", headers={"accept": accept})

    assert answer.status_code == 406
    assert "application/dicom+json" in answer.json()["error"]


def test_the_accept_parameter_goes_before_the_header(client):
    answer = client.get(f"{ROOT}/studies?accept=application/json", headers={"accept": "text/html"})

    assert answer.headers["content-type"] == "application/json"
    assert client.get(f"{ROOT}/studies?accept=text/html").status_code == 406
    plus = client.get(f"{ROOT}/studies?accept=application/dicom+json")
    assert plus.headers["content-type"] == "application/dicom+json"


def test_xml_says_what_json_says_a_part_for_each_result(client):
    wanted = {"accept": 'multipart/related; type="application/dicom+xml"'}
    answer = client.get(f"{ROOT}/studies", headers=wanted)
    head = f"content-type: {answer.headers['content-type']}\r\n\r\n".encode()
    parts = message_from_bytes(head + answer.content).get_payload()

    assert [part.get_content_type() for part in parts] == ["application/dicom+xml"] * 3
    for part, row in zip(parts, rows(client, "/studies"), strict=True):
        model = ElementTree.fromstring(part.get_payload(decode=True))
        assert model.tag == f"{NATIVE}NativeDicomModel"
        assert [attribute.get("tag") for attribute in model] == list(row)
        assert part["Content-Location"] == row["00081190"]["Value"][0]


def test_a_search_without_results_is_an_empty_list_in_xml_too(client):
    wanted = {"accept": "application/dicom+xml"}
    answer = client.get(f"{ROOT}/studies?PatientID=NOBODY", headers=wanted)

    assert answer.status_code == 200
    assert answer.content.strip().startswith(b"--")


# What viewers send.


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (
            "limit=25&offset=0&fuzzymatching=true&includefield=all&StudyDate=19520427-20241007",
            {"1.2.1", "1.2.2"},
        ),
        (
            "limit=101&offset=0&fuzzymatching=false&includefield=00081030,00080060",
            {"1.2.1", "1.2.2", "1.2.3"},
        ),
        (
            "limit=101&offset=0&fuzzymatching=false&includefield=00081030,00080060&StudyInstanceUID=1.2.1",
            {"1.2.1"},
        ),
        ("limit=101&offset=0&fuzzymatching=false&includefield=00081030,00080060&00100020=P2", {"1.2.2"}),
        ("limit=101&offset=0&fuzzymatching=false&PatientName=*smith*", {"1.2.1"}),
    ],
)
def test_the_list_of_ohif_is_answered(client, query, expected):
    found = rows(client, f"/studies?{query}")

    assert set(values(found, STUDY)) == expected
    assert all("00081030" in row for row in found if "includefield" in query)


def test_the_series_of_ohif_are_answered(client):
    found = rows(client, "/studies/1.2.1/series?includefield=00080021,00080031,0008103E,00200011")

    assert values(found, "0008103E") == ["axial", "axial"]
    assert values(found, "00200011") == [1, 2]


# Time.


def test_a_search_of_heads_that_takes_too_long_ends_with_a_warning(tmp_path):
    files = [make_object(f"1.2.1.1.{n}", f"1.2.{n}", f"1.2.{n}.1", patient_id=f"P{n}") for n in range(40)]
    with serving(tmp_path, files, limits={"query_seconds": 1e-9}) as (client, store):
        answer = client.get(f"{ROOT}/instances?ImageComments=none*")
        with client_of(store) as patient:
            whole = patient.get(f"{ROOT}/instances?ImageComments=none*")

    assert answer.status_code == whole.status_code == 200
    assert answer.headers["warning"].startswith("299 ")
    assert "warning" not in whole.headers


def test_rows_that_take_too_long_to_write_end_with_a_warning_and_the_rest_can_be_asked_for(tmp_path):
    with serving(tmp_path, made_objects(), limits={"query_seconds": 1e-9}) as (client, _):
        answer = client.get(f"{ROOT}/studies?includefield=all")
        assert len(answer.json()) == 1
        assert "additional results" in answer.headers["warning"]
        rest = client.get(f"{ROOT}/studies?includefield=all&offset=1").json()

    assert rest
    assert rest[0][STUDY] != answer.json()[0][STUDY]


# Others.


def test_a_head_request_says_all_but_the_body(client):
    answer = client.head(f"{ROOT}/studies")

    assert answer.status_code == 200
    assert answer.content == b""
    assert int(answer.headers["content-length"]) == len(client.get(f"{ROOT}/studies").content)


def test_json_is_packed_where_that_is_wanted(client):
    packed = client.get(f"{ROOT}/studies", headers={"accept-encoding": "gzip"})
    plain = client.get(f"{ROOT}/studies", headers={"accept-encoding": "identity"})

    assert packed.headers["content-encoding"] == "gzip"
    assert int(packed.headers["content-length"]) < len(plain.content)
    assert packed.json() == plain.json()
    assert "content-encoding" not in plain.headers


def test_an_empty_item_of_a_sequence_does_no_harm(tmp_path):
    empty = [(0x00400275, element(0x00400275, "SQ", item(b"")))]
    with serving(tmp_path, [make_object("1.2.3", "1.2", "1.2.1", extra=empty)]) as (client, _):
        assert json.loads(client.get(f"{ROOT}/series").content)


# The table of matching cases, asked as a viewer asks.

PARAMETERS = {
    "fuzzy": "fuzzymatching",
    "empty_value": "emptyvaluematching",
    "timezone": "TimezoneOffsetFromUTC",
}
LEVEL_KEYS = {"patients": "00100020", "studies": STUDY, "series": SERIES, "instances": INSTANCE}


@pytest.fixture(scope="module")
def cases_client(tmp_path_factory) -> Iterator[TestClient]:
    folder = tmp_path_factory.mktemp("cases")
    with hilum.open(folder / "store", create=True) as store:
        store.ingest_many([store.prepare(file) for file in matching_cases.files()])
        with client_of(store, log={"requests": False}) as client:
            yield client


def asked_of(level: str, keys: Iterable[tuple[str, str]], options: dict[str, Any]) -> str:
    pairs = [
        *keys,
        *((PARAMETERS[name], str(value).replace("True", "true")) for name, value in options.items()),
    ]
    return f"{ROOT}/{level}?{urlencode(pairs)}"


@pytest.mark.parametrize(
    "case",
    [case for case in matching_cases.CASES if set(case.options) <= set(PARAMETERS)],
    ids=lambda case: case.name,
)
def test_a_case_of_the_table_is_found_or_not_as_its_clause_has_it(cases_client, case):
    answer = cases_client.get(asked_of(case.level, case.keys, case.options))

    assert answer.status_code == 200, answer.text
    found = [value for row in answer.json() for value in row[LEVEL_KEYS[case.level]].get("Value", [])]
    assert (case.unique_key in found) == case.expected, case.clause


@pytest.mark.parametrize(
    ("clause", "level", "text", "options"),
    [(*case[:4],) for case in matching_cases.REFUSED if set(case[3]) <= set(PARAMETERS)],
)
def test_a_question_of_the_table_that_makes_no_sense_is_400(cases_client, clause, level, text, options):
    answer = cases_client.get(asked_of(level, matching_cases.keys_of(text), options))

    assert answer.status_code == (404 if level not in LEVEL_KEYS else 400), clause


# What nobody would ask.


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    path=st.sampled_from(sorted(["/studies", "/series", "/instances", "/patients", "/studies/1.2.1/series"]))
    | st.text(max_size=20).map(lambda text: f"/studies/{quote(text, safe='')}/series"),
    pairs=st.lists(
        st.tuples(
            st.sampled_from(
                ["PatientID", "PatientName", "StudyDate", "StudyTime", "StudyInstanceUID", "00080060",
                 "limit", "offset", "order", "includefield", "fuzzymatching", "emptyvaluematching", "accept",
                 "00091001",
                 "RequestAttributesSequence.00400009", "AcquisitionDateTime", "Rows", "PixelData",
                 "TimezoneOffsetFromUTC", "NumberOfFrames"]
            )
            | st.text(max_size=12),
            st.sampled_from(["*", "", '""', "-", "?", "\\", ",", "20240101-", "1", "true", "all", "+0100"])
            | st.text(max_size=12),
        ),
        max_size=4,
    ),
)  # fmt: skip
def test_any_question_is_answered_or_refused(client, path, pairs):
    query = urlencode(
        [(name.encode("utf-8", "replace"), text.encode("utf-8", "replace")) for name, text in pairs]
    )
    answer = client.get(f"{ROOT}{path}?{query}")

    assert answer.status_code in (200, 400, 404, 406), answer.text


@given(st.binary(max_size=60))
def test_any_bytes_behind_the_question_mark_are_understood_or_refused(query):
    try:
        question = parse(query, "studies", {}, Settings())
    except (BadQuery, TooMany):
        return
    assert question.asked.limit is not None


def test_sequences_nested_without_end_are_cut_and_told(tmp_path):
    inner = element(0x00400009, "SH", "STEP1")
    for _ in range(120):
        inner = sequence(0x0040A730, [inner])
    with serving(tmp_path, [make_object("1.2.3", "1.2", "1.2.1", extra=[(0x0040A730, inner)])]) as (
        client,
        _,
    ):
        for accept in ("application/dicom+json", "application/dicom+xml"):
            for _ in range(2):
                answer = client.get(f"{ROOT}/instances?includefield=all", headers={"accept": accept})
                assert answer.status_code == 200
                assert "nested too deep" in answer.headers["warning"]


def test_a_uid_that_is_too_long_can_be_asked_for_if_it_is_stored(tmp_path):
    uid = "1." + "1" * 69
    with serving(tmp_path, [make_object("1.2.3", uid, "1.2.1")]) as (client, _):
        assert len(client.get(f"{ROOT}/studies/{uid}/series").json()) == 1


def test_numbers_and_text_that_json_can_not_hold_are_said_in_another_way():
    told: list[str] = []
    document = {"a": [1 << 70, -(1 << 70), 1 << 63, "x\udcffy", 1.5, None]}

    assert _sayable(document, told) == {"a": [str(1 << 70), str(-(1 << 70)), 1 << 63, "x?y", 1.5, None]}
    assert told == []
