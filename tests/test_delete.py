"""hilum delete: what goes, what stays, and that a deletion is a commit like any other."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from command import run
from makers import make_object, noise

import hilum
from hilum.engine.rebuild import rebuild
from hilum.engine.verify import verify
from hilum.engine.writer import Policy
from hilum.errors import BadQuery, NotFound, ReadOnly

LEVELS = ("patients", "studies", "series", "instances")


def problems(store: hilum.Store) -> list[Any]:
    found: list[Any] = []
    verify(store, on_problem=found.append, mark=False)
    return found


def counts(store: hilum.Store) -> dict[str, int]:
    return {level: store.stats()[level] for level in LEVELS}


@pytest.fixture
def path(tmp_path) -> Path:
    rows = [
        ("2.25.11", "2.25.1", "2.25.101", "P1", "CT"),
        ("2.25.12", "2.25.1", "2.25.101", "P1", "CT"),
        ("2.25.13", "2.25.1", "2.25.102", "P1", "SR"),
        ("2.25.21", "2.25.2", "2.25.201", "P1", "MR"),
        ("2.25.31", "2.25.3", "2.25.301", "P2", "MR"),
    ]
    with hilum.open(tmp_path / "store", create=True) as store:
        for uid, study, series, patient, modality in rows:
            store.ingest(
                make_object(
                    uid, study, series, patient_id=patient, modality=modality, pixels=noise(1500, uid)
                )
            )
    return tmp_path / "store"


@pytest.mark.parametrize(
    ("words", "left"),
    [
        (["instances", "SOPInstanceUID=2.25.11"], "12 13 21 31"),
        (["instances", "SOPInstanceUID=2.25.11,2.25.31"], "12 13 21"),
        (["series", "SeriesInstanceUID=2.25.101"], "13 21 31"),
        (["series", "Modality=MR"], "11 12 13"),
        (["series", "SOPInstanceUID=2.25.11"], "13 21 31"),
        (["studies", "StudyInstanceUID=2.25.1"], "21 31"),
        (["studies", "ModalitiesInStudy=SR"], "21 31"),
        (["patients", "PatientID=P1"], "31"),
        (["patients", "PatientID=P?"], ""),
        (["patients", "Modality=SR"], "31"),
        (["studies", "StudyInstanceUID=2.25.999"], "11 12 13 21 31"),
    ],
)
def test_everything_under_the_rows_that_match_goes_and_nothing_else(path, words, left):
    code, out, err = run("delete", *words, "--store", path, "--json")

    assert (code, err) == (0, "")
    assert json.loads(out) == {"deleted": 5 - len(left.split())}
    with hilum.open(path) as store:
        assert sorted(row.uid.removeprefix("2.25.") for row in store.find("instances")) == left.split()
        for uid in ("11", "12", "13", "21", "31"):
            if uid not in left.split():
                with pytest.raises(NotFound):
                    store.read(f"2.25.{uid}")
        assert problems(store) == []
        before = counts(store), [store.row_json(row) for row in store.find("studies")]
    assert rebuild(os.fspath(path)).problems == []
    with hilum.open(path) as store:
        assert (counts(store), [store.row_json(row) for row in store.find("studies")]) == before


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["studies"],
        ["everything", "PatientID=1"],
        ["studies", "PatientID"],
        ["studies", "PatientID="],
        ["studies", "PatientID=*"],
        ["studies", "PatientName=^^"],
        ["studies", "NoSuchKeyword=1"],
        ["studies", "StudyDate=soon"],
    ],
)
def test_without_a_key_that_narrows_it_down_nothing_goes_and_the_status_is_2(path, words):
    code, out, err = run("delete", *words, "--store", path)

    assert code == 2
    assert out == ""
    assert err
    with hilum.open(path) as store:
        assert store.stats()["instances"] == 5


def test_the_last_instance_takes_series_study_and_patient_with_it(path):
    run("delete", "instances", "SOPInstanceUID=2.25.31", "--store", path)

    with hilum.open(path) as store:
        assert counts(store) == {"patients": 1, "studies": 2, "series": 3, "instances": 4}
        assert store.find("patients", {"PatientID": "P2"}) == []
        assert store.find("studies", {"StudyInstanceUID": "2.25.3"}) == []


def test_an_empty_store_that_was_full_answers_as_one_that_never_was(path, tmp_path):
    with hilum.open(path) as store:
        assert store.delete("patients", {"PatientID": "P1\\P2"}) == 5
        assert counts(store) == dict.fromkeys(LEVELS, 0)
        assert [store.find(level) for level in LEVELS] == [[], [], [], []]
        assert [store.find(level, {"PatientName": "*"}) for level in LEVELS] == [[], [], [], []]
        with store.index.read() as snapshot:
            assert snapshot.count(b"keys") == snapshot.count(b"columns") == 0
        assert problems(store) == []


def test_what_was_deleted_can_come_again_in_another_study_and_its_old_revisions_are_gone(path):
    with hilum.open(path) as store:
        store.ingest(make_object("2.25.11", "2.25.1", "2.25.101", name="New"), policy=Policy.REPLACE)
        assert store.stats()["revisions"] == 1
        store.delete("instances", {"SOPInstanceUID": "2.25.11"})
        assert store.stats()["revisions"] == 0
        again = make_object("2.25.11", "2.25.7", "2.25.8")
        store.ingest(again)
        assert store.read("2.25.11") == again
    rebuild(os.fspath(path))
    with hilum.open(path) as store:
        assert store.read("2.25.11") == again
        assert store.find("instances", {"SOPInstanceUID": "2.25.11"})[0].text(0x0020000D) == "2.25.7"
        assert store.stats()["revisions"] == 0


def test_pixels_that_another_instance_has_too_stay(tmp_path):
    pixels = noise(50_000)
    keep = make_object("2.25.2", "2.25.20", "2.25.30", pixels=pixels)
    with hilum.open(tmp_path / "store", create=True) as store:
        store.ingest(make_object("2.25.1", "2.25.10", "2.25.30", pixels=pixels))
        store.ingest(keep)
        store.delete("studies", {"StudyInstanceUID": "2.25.10"})
        assert store.read("2.25.2") == keep
        assert problems(store) == []


def test_ten_thousand_instances_go_at_once_and_come_again(tmp_path):
    with hilum.open(tmp_path / "store", create=True) as store:
        for begin in range(0, 12_000, 1_000):
            batch = [
                store.prepare(
                    make_object(
                        f"2.25.{n}", f"2.25.9{n // 10_000}", f"2.25.8{n // 500}", patient_id=f"P{n // 10_000}"
                    )
                )
                for n in range(begin, begin + 1_000)
            ]
            store.ingest_many(batch)
        assert store.delete("studies", {"StudyInstanceUID": "2.25.90"}) == 10_000
        assert counts(store) == {"patients": 1, "studies": 1, "series": 4, "instances": 2_000}
        assert store.delete("studies", {"StudyInstanceUID": "2.25.90"}) == 0
        assert store.ingest(make_object("2.25.5", "2.25.90", "2.25.80")).result == 1
    found = rebuild(os.fspath(tmp_path / "store"))
    assert (found.instances, found.problems) == (2_001, [])


def test_a_store_opened_for_reading_deletes_nothing(path):
    with hilum.open(path, read_only=True) as store:
        with pytest.raises(ReadOnly):
            store.delete("studies", {"StudyInstanceUID": "2.25.1"})
        assert store.stats()["instances"] == 5


def test_the_api_refuses_what_the_command_refuses(path):
    with hilum.open(path) as store:
        for level, keys in (
            ("studies", {}),
            ("studies", {"PatientID": "*"}),
            ("images", {"PatientID": "P1"}),
        ):
            with pytest.raises(BadQuery):
                store.delete(level, keys)
        assert store.stats()["instances"] == 5
