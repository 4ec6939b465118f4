"""Orthanc's DICOMweb plugin as a client of ours: its servers API queries us, retrieves from us and stores to
us. What it has in the end is what we have, byte for byte where it was not asked to be otherwise.

The plugin is Debian's orthanc-dicomweb.
"""

from __future__ import annotations

import hashlib
import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from makers import make_object, noise
from peers.serving import server

import hilum

pytestmark = pytest.mark.peers

PLUGINS = [Path("/usr/share/orthanc/plugins"), Path("/usr/lib/orthanc/plugins")]
PLUGIN = "libOrthancDicomWeb.so"
START_SECONDS = 60.0
STUDY, OTHER = "2.25.20", "2.25.21"


class Peer:
    """Orthanc with the plugin, and our server as its "hilum"."""

    def __init__(self, executable: str, plugin: Path, folder: Path, url: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{probe.getsockname()[1]}"
        settings = {
            "Name": "peer",
            "StorageDirectory": str(folder / "orthanc"),
            "IndexDirectory": str(folder / "orthanc"),
            "HttpPort": int(self.url.rpartition(":")[2]),
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "DicomServerEnabled": False,
            "Plugins": [str(plugin)],
            "DicomWeb": {
                "Enable": True,
                "Servers": {"hilum": {"Url": f"{url}/dicom-web/", "HasDelete": True}},
            },
        }
        (folder / "orthanc.json").write_text(json.dumps(settings), encoding="utf-8")
        with open(folder / "orthanc.log", "wb") as log:
            self._process = subprocess.Popen(
                [executable, str(folder / "orthanc.json")], cwd=folder, stdout=log, stderr=subprocess.STDOUT
            )
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                assert "hilum" in self.ask("/dicom-web/servers")
                return
            except (urllib.error.URLError, ConnectionError):
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self.close()
                    pytest.fail(
                        (folder / "orthanc.log").read_text(encoding="utf-8", errors="replace")[-2000:]
                    )
                time.sleep(0.1)

    def ask(self, path: str, body: Any = None, method: str | None = None) -> Any:
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, method=method)
        with urllib.request.urlopen(request, timeout=120) as answer:
            found = answer.read()
        try:
            return json.loads(found)
        except ValueError:
            return found

    def of_ours(self, service: str, **body: Any) -> Any:
        """What one of the services of "hilum" answers."""
        return self.ask(f"/dicom-web/servers/hilum/{service}", body)

    def clear(self) -> None:
        for patient in self.ask("/patients"):
            self.ask(f"/patients/{patient}", method="DELETE")

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Both(NamedTuple):
    orthanc: Peer
    url: str
    files: dict[str, bytes]  # by SOP Instance UID


def objects() -> dict[str, bytes]:
    pixels = noise(128 * 128)
    found = {
        f"{STUDY}.{series}.{number}": make_object(
            f"{STUDY}.{series}.{number}", STUDY, f"{STUDY}.{series}", pixels=pixels, rows=128, columns=128,
            series_number=series, instance_number=number, name="Müller^Ødegård", character_set="ISO_IR 100",
        )
        for series in (1, 2)
        for number in range(1, 6)
    }  # fmt: skip
    found[f"{OTHER}.1.1"] = make_object(
        f"{OTHER}.1.1", OTHER, f"{OTHER}.1", pixels=pixels, rows=128, columns=128, modality="MR",
        patient_id="P2", study_date="20230101",
    )  # fmt: skip
    return found


@pytest.fixture(scope="module")
def both(program, tmp_path_factory) -> Iterator[Both]:
    executable = program("Orthanc")
    plugin = next((folder / PLUGIN for folder in PLUGINS if (folder / PLUGIN).exists()), None)
    if plugin is None:
        program(PLUGIN)  # skips, or fails where CI is set
    folder = tmp_path_factory.mktemp("plugin")
    files = objects()
    with hilum.open(folder / "store", create=True) as store:
        for file in files.values():
            store.ingest(file)
    with server(folder / "store", "--allow-delete") as url:
        orthanc = Peer(executable, plugin, folder, url)
        try:
            yield Both(orthanc, url, files)
        finally:
            orthanc.close()


@pytest.fixture
def orthanc(both) -> Peer:
    """The peer, with nothing in it."""
    both.orthanc.clear()
    return both.orthanc


def values(rows: list[Any], tag: str) -> list[str]:
    return sorted(row[tag]["Value"] for row in rows)


def test_it_asks_us_and_reads_what_we_answer(orthanc):
    for accept in ("application/json", "application/dicom+json"):
        found = orthanc.of_ours("get", Uri="/studies", HttpHeaders={"Accept": accept})
        assert sorted(row["0020000D"]["Value"][0] for row in found) == [STUDY, OTHER]
    found = orthanc.of_ours("get", Uri="/studies", Arguments={"PatientName": "müller*", "limit": "5"})
    assert found[0]["00100010"]["Value"][0]["Alphabetic"] == "Müller^Ødegård"
    text = orthanc.of_ours("get", Uri="/studies", HttpHeaders={"Accept": "application/dicom+xml"})
    assert b"NativeDicomModel" in text


def test_its_queries_find_what_matches(orthanc):
    studies = orthanc.of_ours("qido", Uri="/studies", Arguments={"PatientID": "P2"})
    assert values(studies, "0020000D") == [OTHER]
    studies = orthanc.of_ours(
        "qido", Uri="/studies", Arguments={"StudyDate": "20240101-", "ModalitiesInStudy": "CT"}
    )
    assert values(studies, "0020000D") == [STUDY]
    series = orthanc.of_ours("qido", Uri=f"/studies/{STUDY}/series", Arguments={})
    assert values(series, "0020000E") == [f"{STUDY}.1", f"{STUDY}.2"]
    instances = orthanc.of_ours("qido", Uri=f"/studies/{STUDY}/series/{STUDY}.1/instances", Arguments={})
    assert len(instances) == 5
    assert orthanc.of_ours("qido", Uri="/studies", Arguments={"PatientID": "nobody"}) == []


@pytest.mark.parametrize(
    ("wanted", "count"),
    [
        ({"Study": STUDY}, 10),
        ({"Study": STUDY, "Series": f"{STUDY}.2"}, 5),
        ({"Study": STUDY, "Series": f"{STUDY}.2", "Instance": f"{STUDY}.2.3"}, 1),
    ],
)
def test_it_retrieves_what_we_have(both, orthanc, wanted, count):
    said = orthanc.of_ours("retrieve", Resources=[wanted], Synchronous=True)
    assert int(said["ReceivedInstancesCount"]) == count
    found = orthanc.ask("/instances")
    assert len(found) == count
    for one in found:
        data = orthanc.ask(f"/instances/{one}/file")
        uid = orthanc.ask(f"/instances/{one}/simplified-tags")["SOPInstanceUID"]
        assert hashlib.sha256(data).digest() == hashlib.sha256(both.files[uid]).digest()


def test_it_is_told_when_there_is_nothing_to_retrieve(orthanc):
    for wanted in ({"Study": "2.25.404"}, {"Study": STUDY, "Series": "2.25.404"}):
        with pytest.raises(urllib.error.HTTPError):
            orthanc.of_ours("retrieve", Resources=[wanted])
    assert orthanc.ask("/instances") == []


def test_it_gets_metadata_frames_and_pictures(both, orthanc):
    place = f"/studies/{STUDY}/series/{STUDY}.1/instances/{STUDY}.1.1"
    (document,) = orthanc.of_ours("get", Uri=f"{place}/metadata")
    assert document["00100010"]["Value"] == [{"Alphabetic": "Müller^Ødegård"}]
    frame = orthanc.of_ours(
        "get", Uri=f"{place}/frames/1", HttpHeaders={"Accept": "application/octet-stream"}
    )
    assert frame == noise(128 * 128)
    assert orthanc.of_ours("get", Uri=f"{place}/rendered")[:2] == b"\xff\xd8"
    png = orthanc.of_ours("get", Uri=f"{place}/rendered", HttpHeaders={"Accept": "image/png"})
    assert png.startswith(b"\x89PNG")
    with pytest.raises(urllib.error.HTTPError):
        orthanc.of_ours("get", Uri=f"{place}/frames/2")


@pytest.mark.parametrize("level", ["patients", "studies", "series", "instances"])
def test_it_stores_to_us(both, orthanc, level):
    study = f"2.25.77{len(level)}"
    files = {
        f"{study}.1.{number}": make_object(
            f"{study}.1.{number}", study, f"{study}.1", pixels=noise(5000, number), patient_id=study
        )
        for number in range(1, 8)
    }
    for file in files.values():
        orthanc.ask("/instances", file)
    said = orthanc.of_ours("stow", Resources=orthanc.ask(f"/{level}"), Synchronous=True)
    assert said is not None
    with urllib.request.urlopen(f"{both.url}/dicom-web/studies/{study}/instances") as answer:
        found = {row["00080018"]["Value"][0] for row in json.loads(answer.read())}
    assert found == set(files)
    # Again: what is there already is no failure.
    orthanc.of_ours("stow", Resources=orthanc.ask(f"/{level}"), Synchronous=True)
    for uid, file in files.items():
        request = urllib.request.Request(
            f"{both.url}/dicom-web/studies/{study}/series/{study}.1/instances/{uid}",
            headers={"Accept": "application/dicom; transfer-syntax=*"},
        )
        with urllib.request.urlopen(request) as answer:
            assert answer.read() == file


def test_it_deletes_what_it_stored(both, orthanc):
    orthanc.ask("/instances", make_object("2.25.551", "2.25.55", "2.25.552", pixels=noise(100)))
    orthanc.of_ours("stow", Resources=orthanc.ask("/studies"), Synchronous=True)
    orthanc.of_ours("delete", Level="Study", StudyInstanceUID="2.25.55")
    found = orthanc.of_ours("qido", Uri="/studies", Arguments={"StudyInstanceUID": "2.25.55"})
    assert found == []
