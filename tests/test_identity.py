"""What makes two objects the same, and what the store answers when they are not: one donor for each study
and series, sums for counts, and nothing that depends on who came first.
"""

from __future__ import annotations

import itertools
import json
import os
import random
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from makers import EXPLICIT_LE, IMPLICIT_LE, element, make_object, noise, value_bytes

import hilum
from hilum.engine.rebuild import rebuild
from hilum.engine.verify import verify
from hilum.engine.writer import Policy, Result

LEVELS = ("patients", "studies", "series", "instances")


@pytest.fixture
def store(tmp_path):
    with hilum.open(tmp_path / "store", create=True) as opened:
        yield opened


def pack_bytes(store: hilum.Store, suffix: str) -> int:
    folder = Path(store.path, "packs")
    return sum(path.stat().st_size for path in folder.iterdir() if path.suffix == suffix)


def pack_total(store: hilum.Store) -> int:
    return sum(path.stat().st_size for path in Path(store.path, "packs").iterdir())


def answers(store: hilum.Store) -> dict[str, Any]:
    """Everything that find and stats say, with nothing of it left out."""
    found: dict[str, Any] = {level: [store.row_json(row) for row in store.find(level)] for level in LEVELS}
    found["stats"] = {name: value for name, value in store.stats().items() if not name.endswith("_bytes")}
    found["stats"]["original_bytes"] = store.stats()["original_bytes"]
    return found


def problems(store: hilum.Store) -> list[Any]:
    found: list[Any] = []
    verify(store, on_problem=found.append, mark=False)
    return found


# --- Duplicates and conflicts -----------------------------------------------------


def with_other_wrapping(file: bytes) -> list[bytes]:
    """The same data set: other preamble, other file meta, no preamble and file meta at all."""
    meta_length = int.from_bytes(file[140:144], "little")
    data_set_at = 144 + meta_length
    title = element(0x00020016, "AE", "SENDER")
    longer = value_bytes("UL", meta_length + len(title))
    return [
        b"II*\0".ljust(128, b"\xff") + file[128:],
        file[:140] + longer + file[144:data_set_at] + title + file[data_set_at:],
        file[data_set_at:],
    ]


@pytest.mark.parametrize("pixels", [None, noise(20_000)], ids=["small", "pixels in a blob"])
def test_the_same_data_set_in_another_wrapping_is_a_duplicate_and_writes_nothing(store, pixels):
    file = make_object("2.25.1", "2.25.2", "2.25.3", pixels=pixels)
    assert store.ingest(file).result == Result.STORED
    before = pack_total(store)

    for again in [file, *with_other_wrapping(file)]:
        assert store.ingest(again).result == Result.DUPLICATE

    assert pack_total(store) == before
    assert store.read("2.25.1") == file
    assert store.stats()["conflicts"] == 0


def test_the_same_elements_in_another_transfer_syntax_are_a_conflict(store):
    store.ingest(make_object("2.25.1", "2.25.2", "2.25.3", transfer_syntax=EXPLICIT_LE))

    with pytest.raises(hilum.errors.Conflict):
        store.ingest(make_object("2.25.1", "2.25.2", "2.25.3", transfer_syntax=IMPLICIT_LE))


@pytest.mark.parametrize(
    "other",
    [
        make_object("2.25.1", "2.25.2", "2.25.3", pixels=noise(5000), name="Other^Name"),
        make_object("2.25.1", "2.25.2", "2.25.3", pixels=noise(5000, 1)),
        make_object("2.25.1", "2.25.2", "2.25.33", pixels=noise(5000)),
        make_object("2.25.1", "2.25.22", "2.25.3", pixels=noise(5000)),
    ],
    ids=["other name", "other pixels", "other series", "other study"],
)
def test_other_bytes_under_a_stored_uid_are_a_conflict_that_keep_first_refuses_and_replace_accepts(
    store, other
):
    first = make_object("2.25.1", "2.25.2", "2.25.3", pixels=noise(5000))
    store.ingest(first)
    bulk = pack_bytes(store, ".bulk")

    with pytest.raises(hilum.errors.Conflict, match=r"2\.25\.1"):
        store.ingest(other)
    assert store.read("2.25.1") == first
    assert pack_bytes(store, ".bulk") == bulk, "a refused object left its pixels behind"
    assert store.stats()["conflicts"] == 1
    assert store.stats()["instances"] == 1

    assert store.ingest(other, policy=Policy.REPLACE).result == Result.REPLACED
    assert store.read("2.25.1") == other
    assert store.stats()["instances"] == store.stats()["series"] == store.stats()["studies"] == 1
    assert store.stats()["revisions"] == 1
    assert problems(store) == []


def test_the_policy_is_keep_first_unless_another_is_named(store):
    objects = [make_object("2.25.1", "2.25.2", "2.25.3", name=name) for name in ("A", "B")]

    results = store.ingest_many([store.prepare(file) for file in objects])

    assert results == [Result.STORED, Result.CONFLICT]


def test_a_conflict_that_is_sent_again_and_again_is_written_down_once(store):
    store.ingest(make_object("2.25.1", "2.25.2", "2.25.3", name="A"))
    for _ in range(3):
        with pytest.raises(hilum.errors.Conflict):
            store.ingest(make_object("2.25.1", "2.25.2", "2.25.3", name="B"))
    size = pack_total(store)
    with pytest.raises(hilum.errors.Conflict):
        store.ingest(make_object("2.25.1", "2.25.2", "2.25.3", name="B"))

    assert pack_total(store) == size
    assert store.stats()["conflicts"] == 1


@pytest.mark.parametrize("policy", Policy)
def test_one_batch_with_every_case_in_it_decides_as_one_object_after_another_does(tmp_path, policy):
    pool = [
        make_object(uid, study, series, name=name, pixels=noise(2000, name))
        for uid in ("2.25.10", "2.25.11")
        for study, series in (("2.25.2", "2.25.3"), ("2.25.2", "2.25.4"), ("2.25.5", "2.25.3"))
        for name in ("A", "B")
    ] * 2
    random.Random(7).shuffle(pool)
    with hilum.open(tmp_path / "one", create=True) as one:
        single = [result for file in pool for result in one.ingest_many([one.prepare(file)], policy=policy)]
        expected = answers(one)
    with hilum.open(tmp_path / "all", create=True) as together:
        batch = together.ingest_many([together.prepare(file) for file in pool], policy=policy)

        assert batch == single
        assert answers(together) == expected
        assert problems(together) == []


def test_a_series_that_is_emptied_in_the_change_that_fills_another_has_no_say(tmp_path):
    old = make_object("2.25.1", "2.25.2", "2.25.30", study_description="old", patient_id="P1")
    new = make_object("2.25.1", "2.25.2", "2.25.31", study_description="new", patient_id="P2")
    with hilum.open(tmp_path / "replaced", create=True) as store:
        store.ingest_many([store.prepare(old), store.prepare(new)], policy=Policy.REPLACE)
        assert store.find("studies")[0].text(0x00081030) == "new"
        assert problems(store) == []
    with hilum.open(tmp_path / "deleted", create=True) as store:
        store.ingest(old)
        store.delete("patients", {"PatientID": "P1"})
        store.ingest(new)
        before = answers(store)
    rebuild(os.fspath(tmp_path / "deleted"))  # all of it in one change
    with hilum.open(tmp_path / "deleted") as store:
        assert answers(store) == before
        assert store.find("studies")[0].text(0x00081030) == "new"


def test_a_hundred_names_over_the_same_pixels_are_one_blob_and_a_hundred_heads(store):
    pixels = noise(300_000)
    store.ingest(make_object("2.25.1000", "2.25.2", "2.25.3", pixels=pixels, name="First"))
    bulk, heads = pack_bytes(store, ".bulk"), pack_bytes(store, ".head")
    files = {
        f"2.25.{n}": make_object(f"2.25.{n}", "2.25.2", "2.25.3", pixels=pixels, name=f"Name{n:03}^X")
        for n in range(1001, 1100)
    }
    store.ingest_many([store.prepare(file) for file in files.values()])

    assert pack_bytes(store, ".bulk") == bulk
    assert len(pixels) <= bulk < len(pixels) + 1000
    assert store.stats()["blobs"] == 1
    assert store.stats()["instances"] == 100
    assert pack_bytes(store, ".head") - heads < 99 * 4000
    assert {uid: store.read(uid) for uid in files} == files


# --- Order of arrival --------------------------------------------------------------


def corpus() -> list[bytes]:
    """Studies whose instances disagree about everything that a study or series has one of."""
    rows = [
        # uid, study, series, patient, issuer, name, date, series number, instance number, modality
        ("2.25.105", "2.25.1", "2.25.11", "P1", None, "Zeta^A", "20240101", 2, 1, "CT"),
        ("2.25.101", "2.25.1", "2.25.11", "P1", None, "Alpha^B", "20240105", 1, 1, "CT"),
        ("2.25.103", "2.25.1", "2.25.12", "P1", "H1", "Mid^C", "20240103", 1, 2, "SR"),
        ("2.25.100", "2.25.1", "2.25.13", "P2", None, "Low^D", "20240102", 1, 1, "MR"),
        ("2.25.205", "2.25.2", "2.25.21", "P1", "H1", "Other^E", "20240101", 1, 1, "CT"),
        ("2.25.204", "2.25.2", "2.25.21", "P1", "H2", "Issuer^F", "20240101", 1, 1, "US"),
        ("2.25.305", "2.25.3", "2.25.31", "", None, "No^Id", "", 1, 1, "CT"),
        ("2.25.405", "2.25.4", "2.25.41", "", None, "No^Id", "", 1, 1, "CT"),
        ("2.25.404", "2.25.4", "2.25.11", "", "H1", "Shared^Series", "", 1, 1, "CT"),
        ("2.25.605", "2.25.6", "2.25.61", "", None, "No^Id", "", 1, 1, "CT"),
        ("2.25.505", "2.25.5", "2.25.51", "P2", None, "Same^Day", "20240101", 1, 3, "CT"),
        ("2.25.506", "2.25.5", "2.25.52", "P2", None, "Same^Day", "20240101", 1, 2, "PT"),
    ]
    return [
        make_object(
            uid,
            study,
            series,
            patient_id=patient,
            issuer=issuer,
            name=name,
            study_date=date,
            series_number=series_number,
            instance_number=number,
            modality=modality,
            study_description=f"of {uid}",
            series_description=f"of {uid}",
            pixels=noise(1500, uid),
            extra=[
                (0x00081155, element(0x00081155, "UI", uid)),
                (0x00104000, element(0x00104000, "LT", uid)),
            ],
        )
        for uid, study, series, patient, issuer, name, date, series_number, number, modality in rows
    ]


QUESTIONS: list[tuple[str, dict[str, str], tuple[str, ...]]] = [
    *[(level, {}, ()) for level in LEVELS],
    *[(level, {}, ("PatientSex",)) for level in LEVELS],
    *[(level, {}, ("-StudyDate", "Modality")) for level in LEVELS[1:]],
    *[(level, {"PatientID": "P1\\P2"}, ("PatientSex",)) for level in LEVELS],
    *[(level, {"PatientName": "*o*"}, ("PatientSex",)) for level in LEVELS],
    *[(level, {"Modality": "CT"}, ()) for level in LEVELS],
    *[(level, {"StudyDate": "20240101-"}, ()) for level in LEVELS],
]
# Not indexed, indexed, and inside the head of one instance only: each says which instance spoke for the row.
INCLUDED = ((0x00081155,), (0x00081030,), (0x00104000,))


def test_order_of_arrival_never_changes_an_answer(tmp_path):
    files = corpus()
    rng = random.Random(3)
    orders = [files, files[::-1], *(rng.sample(files, len(files)) for _ in range(10))]
    expected = None
    for number, order in enumerate(orders):
        with hilum.open(tmp_path / str(number), create=True) as store:
            at = 0
            while at < len(order):
                size = rng.choice((1, 2, 5, len(order)))
                store.ingest_many([store.prepare(file) for file in order[at : at + size]])
                at += size
            found = [
                [
                    store.row_json(
                        row, [path for path in INCLUDED if level != "patients" or path[0] >> 16 == 16]
                    )
                    for row in store.find(level, keys, order=by)
                ]
                for level, keys, by in QUESTIONS
            ]
            if expected is None:
                expected = found
            for question, here, there in zip(QUESTIONS, found, expected, strict=True):
                assert here == there, (number, question)


def test_a_study_a_series_and_a_patient_speak_with_the_voice_of_the_smallest_uid(store):
    store.ingest_many([store.prepare(file) for file in corpus()])

    (study,) = store.find("studies", {"StudyInstanceUID": "2.25.1"})
    assert study.text(0x00081030) == "of 2.25.100"
    assert study.text(0x00100020) == "P2"
    (series,) = store.find("series", {"StudyInstanceUID": "2.25.1", "SeriesInstanceUID": "2.25.11"})
    assert series.text(0x0008103E) == "of 2.25.101"
    (patient,) = store.find("patients", {"PatientID": "P2"})
    assert patient.text(0x00100010) == "Low^D"
    assert store.row_text(study, (0x00081155,)) == "2.25.100"  # which no index has


def test_a_value_too_long_for_the_index_is_the_donors_too(store):
    for uid in ("2.25.9", "2.25.10", "2.25.8"):  # as bytes 2.25.10 is the smallest
        comment = element(0x00104000, "LT", uid + "x" * 9000)
        store.ingest(make_object(uid, "2.25.2", "2.25.3", extra=[(0x00104000, comment)]))

    (study,) = store.find("studies")
    assert study.text(0x00104000)[:8] == "2.25.10x"


def test_when_the_donor_goes_the_next_smallest_uid_speaks(store):
    store.ingest_many([store.prepare(file) for file in corpus()])
    assert store.delete("instances", {"SOPInstanceUID": "2.25.100"}) == 1

    (study,) = store.find("studies", {"StudyInstanceUID": "2.25.1"})
    assert study.text(0x00081030) == "of 2.25.101"
    assert study.text(0x00100020) == "P1"  # and so it has another patient
    assert study.text(0x00080061) == "CT\\SR"
    assert not store.find("studies", {"PatientName": "Low*"})
    assert [row.uid for row in store.find("studies", {"PatientName": "alpha^b"})] == ["2.25.1"]
    (patient,) = store.find("patients", {"PatientID": "P2"})
    assert patient.text(0x00100010) == "Same^Day"
    assert problems(store) == []


def test_patients_are_told_apart_by_issuer_and_id_and_without_an_id_by_study(store):
    store.ingest_many([store.prepare(file) for file in corpus()])

    rows = [(row.text(0x00100020), row.text(0x00100021)) for row in store.find("patients")]
    assert sorted(rows) == [("", ""), ("", ""), ("", "H1"), ("P1", "H2"), ("P2", "")]
    assert [identifier for identifier, _ in rows] == ["", "", "", "P1", "P2"]

    store.delete("instances", {"SOPInstanceUID": "2.25.204"})
    store.delete("instances", {"SOPInstanceUID": "2.25.100"})
    rows = [(row.text(0x00100020), row.text(0x00100021)) for row in store.find("patients")]
    assert sorted(rows[:3]) == [("", ""), ("", ""), ("", "H1")]  # by their studies
    assert rows[3:] == [("P1", ""), ("P1", "H1"), ("P2", "")]


def test_spaces_round_a_patient_id_do_not_make_another_patient(store):
    for n, identifier in enumerate(("P1", " P1", "P1 ", "P1   ")):
        store.ingest(make_object(f"2.25.{n + 1}", f"2.25.1{n}", f"2.25.2{n}", patient_id=identifier))

    assert store.stats()["patients"] == 1
    assert len(store.find("studies", {"PatientID": "P1"})) == 4


@pytest.mark.parametrize("length", [63, 64, 200, 1000])
def test_long_issuers_that_begin_alike_are_two_patients(store, length):
    issuer = "Z" * length
    for n in range(2):
        store.ingest(make_object(f"2.25.{n + 1}", f"2.25.1{n}", f"2.25.2{n}", issuer=f"{issuer}{n}"))

    assert store.stats()["patients"] == 2


def test_counts_follow_a_replace_that_moves_an_object_between_studies(store):
    store.ingest_many([store.prepare(file) for file in corpus()])
    moved = make_object("2.25.101", "2.25.5", "2.25.51", patient_id="P9", pixels=noise(7000))
    store.ingest(moved, policy=Policy.REPLACE)

    counts = {row.uid: (row.text(0x00201206), row.text(0x00201208)) for row in store.find("studies")}
    assert counts == {
        "2.25.1": ("3", "3"),
        "2.25.2": ("1", "2"),
        "2.25.3": ("1", "1"),
        "2.25.4": ("2", "2"),
        "2.25.5": ("2", "3"),
        "2.25.6": ("1", "1"),
    }
    (study,) = store.find("studies", {"StudyInstanceUID": "2.25.5"})
    assert study.text(0x00100020) == "P9"  # 2.25.101 is the smallest there now
    assert problems(store) == []


# --- Against plain dictionaries --------------------------------------------------------


class Spec(NamedTuple):
    """An object of the state machine."""

    uid: str
    study: str
    series: str
    patient: str
    issuer: str | None
    name: str
    date: str
    modality: str
    number: int
    pixels: int | None

    def file(self) -> bytes:
        return make_object(
            self.uid,
            self.study,
            self.series,
            patient_id=self.patient,
            issuer=self.issuer,
            name=self.name,
            study_date=self.date,
            modality=self.modality,
            instance_number=self.number,
            study_description=f"{self.uid} {self.name}",
            pixels=None if self.pixels is None else noise(1100, self.pixels),
        )


SPECS = st.builds(
    Spec,
    uid=st.sampled_from([f"2.25.{n}" for n in (1, 2, 3, 10, 11)]),
    study=st.sampled_from(["2.25.100", "2.25.200", "2.25.300"]),
    series=st.sampled_from(["2.25.1000", "2.25.2000"]),
    patient=st.sampled_from(["", "P1", "P2"]),
    issuer=st.sampled_from([None, "H1"]),
    name=st.sampled_from(["Smith^John", "Smith^Anna", "Ng", ""]),
    date=st.sampled_from(["20240101", "20231231", ""]),
    modality=st.sampled_from(["CT", "MR"]),
    number=st.integers(1, 3),
    pixels=st.sampled_from([None, 1, 2]),
)


def expected_rows(specs: dict[str, Spec]) -> dict[str, set[tuple[Any, ...]]]:
    """What find must say of these objects, worked out the slow way."""
    series: dict[tuple[str, str], list[Spec]] = defaultdict(list)
    studies: dict[str, list[Spec]] = defaultdict(list)
    patients: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for spec in specs.values():
        series[spec.study, spec.series].append(spec)
        studies[spec.study].append(spec)
    donor = {study: min(found) for study, found in studies.items()}
    for study, spoke in donor.items():
        patients[(spoke.patient, spoke.issuer or "") if spoke.patient else ("", "", study)].append(study)
    found: dict[str, set[tuple[Any, ...]]] = {level: set() for level in LEVELS}
    for members in patients.values():
        spoke = min(donor[study] for study in members)
        instances = sum(len(studies[study]) for study in members)
        found["patients"].add((spoke.patient, spoke.issuer or "", spoke.name, len(members), instances))
    for study, members in studies.items():
        spoke = donor[study]
        below = {one.series for one in members}
        modalities = {min(series[study, name]).modality for name in below}
        found["studies"].add(
            (
                study,
                spoke.patient,
                spoke.name,
                spoke.date,
                f"{spoke.uid} {spoke.name}".strip(),
                "\\".join(sorted(modalities)),
                len(below),
                len(members),
            )
        )
    for (study, name), members in series.items():
        found["series"].add((study, name, min(members).modality, len(members)))
    for spec in specs.values():
        found["instances"].add((spec.study, spec.series, spec.uid, spec.number))
    return found


COLUMNS = {
    "patients": (0x00100020, 0x00100021, 0x00100010, 0x00201200, 0x00201204),
    "studies": (
        0x0020000D,
        0x00100020,
        0x00100010,
        0x00080020,
        0x00081030,
        0x00080061,
        0x00201206,
        0x00201208,
    ),
    "series": (0x0020000D, 0x0020000E, 0x00080060, 0x00201209),
    "instances": (0x0020000D, 0x0020000E, 0x00080018, 0x00200013),
}


class StoreAgainstDictionaries(RuleBasedStateMachine):
    """Any order of arrivals, replacements, deletions, reopenings and rebuilds."""

    folder: Path
    run_numbers = itertools.count()

    @initialize()
    def open(self):
        self.path = self.folder / str(next(self.run_numbers))
        self.store = hilum.open(self.path, create=True)
        self.model: dict[str, Spec] = {}

    @rule(specs=st.lists(SPECS, min_size=1, max_size=4), replace=st.booleans())
    def ingest(self, specs, replace):
        policy = Policy.REPLACE if replace else Policy.KEEP_FIRST
        results = self.store.ingest_many([self.store.prepare(spec.file()) for spec in specs], policy=policy)
        for spec, result in zip(specs, results, strict=True):
            there = self.model.get(spec.uid)
            if there is None:
                assert result == Result.STORED
            elif there == spec:
                assert result == Result.DUPLICATE
                continue
            elif not replace:
                assert result == Result.CONFLICT
                continue
            else:
                assert result == Result.REPLACED
            self.model[spec.uid] = spec

    @precondition(lambda self: self.model)
    @rule(level=st.sampled_from(LEVELS[1:]), data=st.data())
    def delete(self, level, data):
        spec = self.model[data.draw(st.sampled_from(sorted(self.model)))]
        keys = {"StudyInstanceUID": spec.study}
        if level != "studies":
            keys["SeriesInstanceUID"] = spec.series
        if level == "instances":
            keys["SOPInstanceUID"] = spec.uid
        depth = len(keys)
        gone = [
            uid
            for uid, other in self.model.items()
            if (other.study, other.series, other.uid)[:depth] == (spec.study, spec.series, spec.uid)[:depth]
        ]
        assert self.store.delete(level, keys) == len(gone)
        for uid in gone:
            del self.model[uid]

    @rule(patient=st.sampled_from(["P1", "P2"]))
    def delete_patient(self, patient):
        studies: dict[str, list[Spec]] = defaultdict(list)
        for spec in self.model.values():
            studies[spec.study].append(spec)
        gone = [spec.uid for specs in studies.values() if min(specs).patient == patient for spec in specs]
        assert self.store.delete("patients", {"PatientID": patient}) == len(gone)
        for uid in gone:
            del self.model[uid]

    @rule()
    def reopen(self):
        before = answers(self.store)
        self.store.close()
        self.store = hilum.open(self.path)
        assert answers(self.store) == before

    @rule()
    def rebuild(self):
        before = answers(self.store)
        self.store.close()
        assert rebuild(os.fspath(self.path)).problems == []
        self.store = hilum.open(self.path)
        assert answers(self.store) == before

    @invariant()
    def find_says_what_the_dictionaries_say(self):
        if not hasattr(self, "store"):
            return
        expected = expected_rows(self.model)
        for level in LEVELS:
            rows = [
                tuple(
                    int(text) if tag in _NUMBERS else text
                    for tag in COLUMNS[level]
                    for text in [row.text(tag)]
                )
                for row in self.store.find(level)
            ]
            assert sorted(rows) == sorted(set(rows)) or level == "patients"
            assert set(rows) == expected[level]
        for uid, spec in self.model.items():
            assert self.store.read(uid) == spec.file()
        assert self.store.stats()["original_bytes"] == sum(len(s.file()) for s in self.model.values())

    def teardown(self):
        if hasattr(self, "store"):
            assert problems(self.store) == []
            self.store.close()


_NUMBERS = {0x00201200, 0x00201204, 0x00201206, 0x00201208, 0x00201209, 0x00200013}


def test_find_bytes_and_counts_stay_those_of_plain_dictionaries_whatever_happens(tmp_path):
    StoreAgainstDictionaries.folder = tmp_path
    machine = StoreAgainstDictionaries.TestCase()
    machine.settings = settings(
        max_examples=int(os.environ.get("HILUM_EXAMPLES", "60")),
        stateful_step_count=20,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        derandomize="HILUM_EXAMPLES" not in os.environ,
    )
    machine.runTest()


def test_what_was_replaced_deleted_or_refused_stays_so_after_a_rebuild(tmp_path):
    path = tmp_path / "store"
    with hilum.open(path, create=True) as store:
        store.ingest_many([store.prepare(file) for file in corpus()])
        new = make_object("2.25.105", "2.25.1", "2.25.11", name="New", pixels=noise(4000))
        store.ingest(new, policy=Policy.REPLACE)
        store.delete("studies", {"StudyInstanceUID": "2.25.2"})
        with pytest.raises(hilum.errors.Conflict):
            store.ingest(make_object("2.25.505", "2.25.5", "2.25.51", name="Refused"))
        store.ingest(corpus()[4])  # deleted, and sent once more
        before = answers(store)
    rebuild(os.fspath(path))
    with hilum.open(path) as store:
        assert answers(store) == before
        assert store.read("2.25.105") == new
        assert [row.uid for row in store.find("instances", {"StudyInstanceUID": "2.25.2"})] == ["2.25.205"]
        assert problems(store) == []
        assert json.loads(json.dumps(before)) == before
