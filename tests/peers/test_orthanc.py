"""The same files in Orthanc and in Hilum: the same patients, studies, series and instances, and of each
the same main attributes.

Orthanc gets the files that Hilum has stored, the smallest SOP Instance UID first: it takes the attributes of
a study and a series from the first that comes, Hilum from the smallest UID.

What differs by design:
- Orthanc's patient is a Patient ID, so that all without one are one patient. Hilum's is issuer and ID, and
  each study without an ID has its own.
- Orthanc's study is a patient with a Study Instance UID: a study whose instances name two patients is two
  studies there, and one here.
- Orthanc takes an identifier of VR UN for empty, Hilum for what it is. Such a file is left out.
- Orthanc refuses what DCMTK can't parse. Such a file is no comparison.
"""

from __future__ import annotations

import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pydicom
import pytest

import hilum
from hilum.dicom import dictionary

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore::UserWarning:pydicom")]

_START_SECONDS = 30.0
_SAMPLE_MAX = 40 << 20  # bytes of a file: Orthanc has it in memory several times

MAIN = {
    "Study": ["StudyInstanceUID", "StudyDate", "StudyTime", "AccessionNumber", "StudyID", "StudyDescription"],
    "Series": ["SeriesInstanceUID", "Modality", "SeriesNumber", "SeriesDate", "StationName"],
    "Instance": ["SOPInstanceUID", "InstanceNumber", "NumberOfFrames", "AcquisitionNumber"],
}
LEVELS = {"Study": "studies", "Series": "series", "Instance": "instances"}


class Orthanc:
    """A server of our own on 127.0.0.1, with nothing in it."""

    def __init__(self, executable: str, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        settings = {
            "Name": "peer",
            "StorageDirectory": str(folder / "storage"),
            "IndexDirectory": str(folder / "storage"),
            "HttpPort": self.port,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "DicomServerEnabled": False,
            "OverwriteInstances": False,
            "Plugins": [],
        }
        (folder / "orthanc.json").write_text(json.dumps(settings), encoding="utf-8")
        with open(folder / "log", "wb") as log:
            self._process = subprocess.Popen(
                [executable, str(folder / "orthanc.json")], cwd=folder, stdout=log, stderr=subprocess.STDOUT
            )
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                self.ask("/system")
                return
            except (urllib.error.URLError, ConnectionError):
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self.close()
                    pytest.fail((folder / "log").read_text(encoding="utf-8", errors="replace")[-2000:])
                time.sleep(0.1)

    def ask(self, path: str, body: bytes | None = None) -> Any:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data=body)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Both(NamedTuple):
    """The same instances in both."""

    orthanc: Orthanc
    store: hilum.Store
    refused: list[Path]  # by Orthanc
    identifiers: dict[str, tuple[str, str, str, str]]  # UID → Orthanc's (patient, study, series, instance)


@pytest.fixture(scope="module")
def both(stored, program, tmp_path_factory) -> Iterator[Both]:
    folder = tmp_path_factory.mktemp("orthanc")
    orthanc = Orthanc(program("Orthanc"), folder)
    try:
        with hilum.open(folder / "store", create=True) as store:
            refused, identifiers, batch = [], {}, []
            for sample in stored.samples:
                if _has_unknown_identifiers(sample.path):
                    continue
                data = sample.path.read_bytes()
                if len(data) > _SAMPLE_MAX or "fuzz-corpus" in sample.path.parts:
                    continue  # there is a file among those that ends Orthanc
                try:
                    answer = orthanc.ask("/instances", data)
                except urllib.error.HTTPError:
                    refused.append(sample.path)
                    continue
                identifiers[sample.uid] = tuple(
                    answer[key] for key in ("ParentPatient", "ParentStudy", "ParentSeries", "ID")
                )
                batch.append(store.prepare(data))
            store.ingest_many(batch)
            yield Both(orthanc, store, refused, identifiers)
    finally:
        orthanc.close()


def _has_unknown_identifiers(path: Path) -> bool:
    tags = [dictionary.tag_of(name) for name in ("PatientID", "StudyInstanceUID", "SeriesInstanceUID")]
    dataset = pydicom.dcmread(path, force=True, specific_tags=tags)
    return any(tag in dataset and dataset.get_item(tag).VR == "UN" for tag in tags)


def _main(both: Both, level: str) -> dict[str, dict[str, str]]:
    """Main attributes by Orthanc's identifier."""
    query = {"Level": level, "Query": {}, "Expand": True}
    found = both.orthanc.ask("/tools/find", orjson.dumps(query))
    return {row["ID"]: row["MainDicomTags"] for row in found}


def test_orthanc_takes_nearly_all_that_hilum_stores(both):
    assert len(both.refused) <= 0.05 * (len(both.refused) + len(both.identifiers))


def test_both_count_the_same(both):
    ours = both.store.stats()
    theirs = both.orthanc.ask("/statistics")

    assert theirs["CountInstances"] == ours["instances"] == len(both.identifiers)
    pairs = _pairs(both)
    assert theirs["CountSeries"] == len({(patient, study, series) for patient, study, series in pairs})
    assert theirs["CountStudies"] == len({(patient, study) for patient, study, _ in pairs})
    assert theirs["CountPatients"] == len({patient for patient, _, _ in pairs})
    assert ours["series"] == len({(study, series) for _, study, series in pairs})
    assert ours["studies"] == len({study for _, study, _ in pairs})


def _pairs(both: Both) -> set[tuple[str, str, str]]:
    """(Patient ID, Study, Series) of each instance, out of its own file and not out of a donor's."""
    found = set()
    for uid in both.identifiers:
        dataset = both.store.dataset(uid)
        found.add(
            (str(dataset.get("PatientID") or "").strip(), dataset.StudyInstanceUID, dataset.SeriesInstanceUID)
        )
    return found


def test_instances_that_orthanc_puts_in_one_series_are_in_one_here(both):
    series_of, study_of = {}, {}
    for row in both.store.find("instances"):
        _, study, series, _ = both.identifiers[row.uid]
        series_of.setdefault(series, set()).add(row.text(dictionary.tag_of("SeriesInstanceUID")))
        study_of.setdefault(study, set()).add(row.text(dictionary.tag_of("StudyInstanceUID")))

    assert all(len(found) == 1 for found in series_of.values())
    assert all(len(found) == 1 for found in study_of.values())


@pytest.mark.parametrize("level", MAIN)
def test_main_attributes_are_the_same(both, level):
    place = {"Study": 1, "Series": 2, "Instance": 3}[level]
    theirs = _main(both, level)
    differing = {}
    with_two = _under_two_patients(both)
    for row in both.store.find(LEVELS[level]):
        if row.text(dictionary.tag_of("StudyInstanceUID")) in with_two:
            continue
        keys = {MAIN[level][0]: row.uid}
        donor = min((uid.decode() for uid in both.store.find_uids(LEVELS[level], keys)), key=str.encode)
        peer = theirs[both.identifiers[donor][place]]
        for keyword in MAIN[level]:
            ours = row.text(dictionary.tag_of(keyword)).strip()
            if keyword.endswith("UID"):
                ours = ours.replace(" ", "")  # DCMTK leaves the spaces of "REM SAMPLES 1" out
            said = peer.get(keyword, "").strip("\0 \r\n")
            if ours != said and ours.isascii() and _number(ours) != _number(said):
                differing[donor, keyword] = ours, said

    assert differing == {}


def _under_two_patients(both: Both) -> set[str]:
    patients: dict[str, set[str]] = {}
    for patient, study, _ in _pairs(both):
        patients.setdefault(study, set()).add(patient)
    return {study for study, found in patients.items() if len(found) > 1}


def _number(text: str) -> object:
    try:
        return float(text)
    except ValueError:
        return text


def test_a_file_comes_out_of_both_as_it_went_in(both, stored):
    for sample in stored.samples[::25]:
        if sample.uid in both.identifiers:
            path = f"/instances/{both.identifiers[sample.uid][3]}/file"
            with urllib.request.urlopen(f"http://127.0.0.1:{both.orthanc.port}{path}", timeout=60) as answer:
                assert answer.read() == both.store.read(sample.uid)
