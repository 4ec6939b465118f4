"""Our own requests to others: DCMTK's storescp and dcmqrscp, Orthanc as a DICOM node and as a DICOMweb
server.

What we send is compared byte for byte with what the other side kept: storescp keeps bytes as they come
(+B), Orthanc keeps what STOW-RS brought. What DCMTK sends it has written anew, so that is compared with
what DCMTK's own getscu gets.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import hilum
from hilum.dicom import uids
from hilum.transfer.outgoing import FileSource

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from makers import make_object, noise

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore::UserWarning:pydicom")]

SECONDS = 120
BYTES_MAX = 4 << 20
# Newer than DCMTK 3.6.7: JPEG XL, HTJ2K, fragmentable video, deflated frames.
NOT_DCMTKS = ("1.2.840.10008.1.2.4.11", "1.2.840.10008.1.2.4.2", "1.2.840.10008.1.2.8")
# That storescp +xa does not take: retired JPEG processes, JPEG lossless with any predictor, JPEG 2000 Part 2.
UNKNOWN_TO_STORESCP = tuple(f"1.2.840.10008.1.2.4.{arc}" for arc in (53, 55, 57, 92, 93))
PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(port: int) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            assert time.monotonic() < deadline, f"nothing listens at {port}"
            time.sleep(0.05)


class Process:
    """A program that serves on a port."""

    def __init__(self, command: list[str], port: int, log: Path) -> None:
        self.command, self.port, self._log = command, port, log
        self.start()

    def start(self) -> None:
        with open(self._log, "ab") as out:
            self._process = subprocess.Popen(self.command, stdout=out, stderr=out, cwd=self._log.parent)
        wait_for(self.port)

    def kill(self, number: int = signal.SIGKILL) -> None:
        self._process.send_signal(number)
        self._process.wait(SECONDS)

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *error: object) -> None:
        if self._process.poll() is None:
            self.kill()


def storescp(executable: str, folder: Path, *options: str, title: str = "DEST") -> Process:
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    command = [executable, "-aet", title, "+B", "-od", str(folder), *options, str(port)]
    return Process(command, port, folder.parent / "storescp.log")


def run(tmp_path: Path, *words: str | Path, status: int | None = 0) -> list[dict[str, Any]]:
    """A command of ours in a process of its own, with --json; its lines. A status of None is any."""
    environment = {name: text for name, text in os.environ.items() if not name.startswith("HILUM_")}
    environment |= {"XDG_STATE_HOME": str(tmp_path / "state"), "HILUM_PASSWORD": "geheim"}
    found = subprocess.run(
        [sys.executable, "-m", "hilum", *map(str, words), "--json"],
        capture_output=True, timeout=SECONDS, check=False, env=environment, cwd=tmp_path,
    )  # fmt: skip
    assert status in (None, found.returncode), (found.stdout + found.stderr).decode("utf-8", "replace")[
        -3000:
    ]
    return [json.loads(line) for line in found.stdout.splitlines()]


def data_set_of(data: bytes) -> bytes:
    assert data[128:132] == b"DICM"
    return data[144 + struct.unpack_from("<I", data, 140)[0] :]


def data_sets(folder: Path) -> dict[str, bytes]:
    """Data sets of the files in a folder, by SOP Instance UID."""
    source = FileSource([str(folder)], [])
    return {one.uid: b"".join(source.data_set(one)) for one in source}


class Chosen:
    """Real files: the two smallest of each transfer syntax and SOP class, each UID once."""

    def __init__(self, files: dict[str, Path]) -> None:
        small = [str(path) for path in files.values() if path.stat().st_size <= BYTES_MAX]
        source = FileSource(sorted(small), [])
        groups: dict[tuple[str, str], list[Any]] = {}
        for one in source:
            if one.sop_class.startswith("1.2.840.10008.5.1.4.1.1.") and one.is_part10:
                groups.setdefault((one.transfer_syntax, one.sop_class), []).append(one)
        picked = {}
        for found in groups.values():
            for one in sorted(found, key=lambda one: (one.size, one.path))[:2]:
                picked.setdefault(one.uid, one)
        self.all = picked
        self.syntaxes = {one.transfer_syntax for one in picked.values()}
        self._source = source

    def data_set(self, uid: str) -> bytes:
        """As it must arrive: a deflated one of an even length."""
        one = self.all[uid]
        data = b"".join(self._source.data_set(one))
        return data + b"\0" * (len(data) % 2) if uids.is_deflated(one.transfer_syntax) else data

    def paths(self) -> list[str]:
        return [os.fsdecode(one.path) for one in self.all.values()]

    def is_sendable(self, uid: str) -> bool:
        """Whether it has an even length, as a fragment must; DCMTK breaks an association off that has an
        odd one."""
        return len(self.data_set(uid)) % 2 == 0


@pytest.fixture(scope="module")
def chosen(shared_files: dict[str, Path]) -> Chosen:
    found = Chosen(shared_files)
    assert len(found.syntaxes) >= 20
    return found


# --- Ours, and DCMTK's storescp --------------------------------------------------------


def test_all_transfer_syntaxes_reach_our_own_node_and_come_back_byte_for_byte(chosen, tmp_path):
    port = free_port()
    hilum.open(tmp_path / "there", create=True).close()
    command = [sys.executable, "-m", "hilum", "serve", "--no-http", "--dicom", f"127.0.0.1:{port}"]
    command += ["--store", str(tmp_path / "there")]
    with Process(command, port, tmp_path / "serve.log"):
        target = f"HILUM@127.0.0.1:{port}"
        sent = run(tmp_path, "store", target, *chosen.paths(), "--jobs", "2")[-1]
        assert (sent["sent"], sent["failed"]) == (len(chosen.all), 0)
        rows = run(tmp_path, "find", "studies", "--from", target)
        studies = ",".join(row["0020000D"]["Value"][0] for row in rows)
        fetched = run(tmp_path, "get", target, f"StudyInstanceUID={studies}", "--dir", tmp_path / "out")[-1]
        assert fetched["fetched"] == len(chosen.all)

    expected = {uid: chosen.data_set(uid) for uid in chosen.all}
    with hilum.open(tmp_path / "there", read_only=True) as store:
        there = {uid: data_set_of(store.read(uid)) for uid in expected}
    assert there == expected
    assert data_sets(tmp_path / "out") == expected


def test_all_transfer_syntaxes_reach_storescp_byte_for_byte(chosen, program, tmp_path):
    with storescp(program("storescp"), tmp_path / "there", "+xa") as peer:
        target = f"DEST@127.0.0.1:{peer.port}"
        assert run(tmp_path, "echo", target)[-1]["ok"]
        wanted = {
            uid for uid, one in chosen.all.items()
            if not one.transfer_syntax.startswith(NOT_DCMTKS) and chosen.is_sendable(uid)
        }  # fmt: skip
        paths = [os.fsdecode(chosen.all[uid].path) for uid in sorted(wanted)]
        lines = run(tmp_path, "store", target, *paths, status=None)

    failed = {line["failed"] for line in lines if "failed" in line and "path" in line}
    # What DCMTK does not take by its SOP class is told by instance; all else is there, as it was, or
    # uncompressed where it does not know the transfer syntax.
    reasons = [line["reason"] for line in lines if "path" in line]
    told = ("does not take", "takes no transfer syntax that Fragmentable")
    assert [words for words in reasons if not any(one in words for one in told)] == []
    source = FileSource([str(tmp_path / "there")], [])
    kept = {one.uid: one for one in source}
    assert set(kept) == wanted - failed
    same = {uid for uid, one in kept.items() if one.transfer_syntax == chosen.all[uid].transfer_syntax}
    others = {(chosen.all[uid].transfer_syntax, kept[uid].transfer_syntax) for uid in set(kept) - same}
    assert others <= {(syntax, uids.EXPLICIT_VR_LITTLE_ENDIAN) for syntax in UNKNOWN_TO_STORESCP}
    assert {uid: b"".join(source.data_set(kept[uid])) for uid in same} == {
        uid: chosen.data_set(uid) for uid in same
    }
    assert len({chosen.all[uid].transfer_syntax for uid in same}) >= 12


def test_what_storescp_does_not_take_as_it_is_goes_in_another_syntax_and_means_the_same(
    chosen, program, tmp_path
):
    import numpy as np

    lossless = (uids.JPEG_2000_LOSSLESS, uids.JPEG_LS_LOSSLESS, uids.RLE_LOSSLESS, uids.JPEG_LOSSLESS_SV1)
    wanted = {uid: one for uid, one in chosen.all.items() if one.transfer_syntax in lossless}
    with storescp(program("storescp"), tmp_path / "there", "+x=") as peer:
        paths = [os.fsdecode(one.path) for one in wanted.values()]
        lines = run(tmp_path, "store", f"DEST@127.0.0.1:{peer.port}", *paths, status=1)

    sent = {uid for uid in wanted if uid not in {line.get("failed") for line in lines}}
    assert len(sent) >= 4
    source = FileSource([str(tmp_path / "there")], [])
    found = {one.uid: one for one in source}
    with (
        hilum.open(tmp_path / "compare", create=True) as store,
        hilum.open(tmp_path / "other", create=True) as other,
    ):
        for uid in sent:
            assert found[uid].transfer_syntax == uids.EXPLICIT_VR_LITTLE_ENDIAN
            store.ingest(os.fsdecode(wanted[uid].path))
            other.ingest(os.fsdecode(found[uid].path))
            if store.locate(uid).instance.pixel_tag:
                assert np.array_equal(store.frame(uid, 0), other.frame(uid, 0))


def many(folder: Path, count: int) -> dict[str, bytes]:
    folder.mkdir()
    found = {}
    for n in range(count):
        uid = f"2.25.7.{n}"
        found[uid] = make_object(uid, "2.25.7", f"2.25.7{n % 3}", instance_number=n, pixels=noise(200_000, n))
        (folder / f"{n}.dcm").write_bytes(found[uid])
    return found


def test_a_storescp_that_is_killed_in_the_middle_gets_the_rest_from_the_next_run(program, tmp_path):
    found = many(tmp_path / "in", 300)
    with storescp(program("storescp"), tmp_path / "there") as peer:
        words = [
            sys.executable,
            "-m",
            "hilum",
            "store",
            f"DEST@127.0.0.1:{peer.port}",
            "in",
            "--json",
            "--timeout",
            "5",
        ]
        environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path / "state")}
        sending = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path, env=environment
        )
        deadline = time.monotonic() + 30
        while len(list((tmp_path / "there").iterdir())) < 20:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        peer.kill()
        out, _ = sending.communicate(timeout=SECONDS)
        first = json.loads(out.splitlines()[-1])
        assert sending.returncode == 1
        assert 15 <= first["sent"] < 300
        assert first["unsent"] > 0
        assert "connection refused" in first["reason"]
        peer.start()
        second = run(tmp_path, "store", f"DEST@127.0.0.1:{peer.port}", "in", "--timeout", "5")[-1]

    assert second["skipped"] == first["sent"]
    assert second["sent"] == 300 - first["sent"]
    assert data_sets(tmp_path / "there") == {uid: data_set_of(data) for uid, data in found.items()}


def test_a_sender_that_is_killed_goes_on_where_it_was(program, tmp_path):
    many(tmp_path / "in", 300)
    with storescp(program("storescp"), tmp_path / "there") as peer:
        words = [sys.executable, "-m", "hilum", "store", f"DEST@127.0.0.1:{peer.port}", "in", "--json"]
        environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path / "state")}
        sending = subprocess.Popen(words, stdout=subprocess.DEVNULL, cwd=tmp_path, env=environment)
        deadline = time.monotonic() + 30
        while len(list((tmp_path / "there").iterdir())) < 20:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        sending.kill()
        sending.wait(SECONDS)
        second = run(tmp_path, "store", f"DEST@127.0.0.1:{peer.port}", "in")[-1]

    assert second["skipped"] >= 15
    assert second["skipped"] + second["sent"] == 300
    assert len(data_sets(tmp_path / "there")) == 300


@pytest.mark.parametrize("option", ["--refuse", "--abort-after", "--abort-during"])
def test_a_storescp_that_refuses_or_aborts_is_told_in_words(program, tmp_path, option):
    many(tmp_path / "in", 2)
    with storescp(program("storescp"), tmp_path / "there", option) as peer:
        found = run(tmp_path, "store", f"DEST@127.0.0.1:{peer.port}", "in", status=1)

    words = " ".join(line.get("reason", "") for line in found)
    assert ("rejected" if option == "--refuse" else "the association broke") in words


def test_a_storescp_that_sleeps_is_a_time_out(program, tmp_path):
    many(tmp_path / "in", 1)
    with storescp(program("storescp"), tmp_path / "there", "--sleep-during", "5") as peer:
        found = run(tmp_path, "store", f"DEST@127.0.0.1:{peer.port}", "in", "--timeout", "1", status=1)
    assert "no answer" in found[0]["reason"]


# --- dcmqrscp --------------------------------------------------------------------------


@pytest.fixture
def archive(program, tmp_path) -> Iterator[tuple[Process, Process]]:
    """DCMTK's dcmqrscp with some objects in it, and a storescp that it knows as DEST."""
    with storescp(program("storescp"), tmp_path / "moved") as destination:
        port = free_port()
        (tmp_path / "db").mkdir()
        (tmp_path / "qr.cfg").write_text(
            f"NetworkTCPPort = {port}\nMaxPDUSize = 16384\nMaxAssociations = 16\n"
            f"HostTable BEGIN\ndest = (DEST, 127.0.0.1, {destination.port})\nHostTable END\n"
            "VendorTable BEGIN\nVendorTable END\n"
            f"AETable BEGIN\nQR {tmp_path / 'db'} RW (200, 1024mb) ANY\nAETable END\n"
        )
        with Process(
            [program("dcmqrscp"), "-c", str(tmp_path / "qr.cfg")], port, tmp_path / "qr.log"
        ) as peer:
            folder = tmp_path / "source"
            folder.mkdir()
            for n in range(12):
                data = make_object(
                    f"2.25.5.{n}", f"2.25.5{n % 2}", f"2.25.55{n % 4}", patient_id=f"P{n % 2}",
                    pixels=noise(2000, n), modality="CT" if n % 4 < 2 else "MR", instance_number=n,
                )  # fmt: skip
                (folder / f"{n}.dcm").write_bytes(data)
            run(tmp_path, "store", f"QR@127.0.0.1:{port}", folder)
            yield peer, destination


def test_find_asks_dcmqrscp_level_by_level(archive, tmp_path):
    target = f"QR@127.0.0.1:{archive[0].port}"
    studies = run(tmp_path, "find", "studies", "--from", target)
    assert {row["0020000D"]["Value"][0] for row in studies} == {"2.25.50", "2.25.51"}
    series = run(tmp_path, "find", "series", "PatientID=P0", "Modality=MR", "--from", target)
    assert {row["0020000E"]["Value"][0] for row in series} == {"2.25.552"}
    instances = run(tmp_path, "find", "instances", "PatientID=P1", "--from", target)
    assert {row["00080018"]["Value"][0] for row in instances} == {f"2.25.5.{n}" for n in range(1, 12, 2)}
    assert len(run(tmp_path, "find", "patients", "--from", target)) == 2
    assert len(run(tmp_path, "find", "instances", "--limit", "3", "--from", target)) == 3


def test_get_takes_from_dcmqrscp_what_getscu_gets(archive, program, tmp_path):
    port = archive[0].port
    one = run(
        tmp_path, "get", f"QR@127.0.0.1:{port}", "PatientID=P*", "--dir", tmp_path / "out", "--jobs", "2"
    )[-1]
    assert (one["fetched"], one["failed"]) == (12, 0)
    run(tmp_path, "get", f"QR@127.0.0.1:{port}", "PatientID=P1", "Modality=CT", "--store", tmp_path / "mine")
    (tmp_path / "theirs").mkdir()
    for study in ("2.25.50", "2.25.51"):
        subprocess.run(
            [program("getscu"), "-S", "+B", "-aec", "QR", "-od", str(tmp_path / "theirs"),
             "-k", "0008,0052=STUDY",
             "-k", f"0020,000D={study}", "127.0.0.1", str(port)],
            check=True, timeout=SECONDS,
        )  # fmt: skip

    theirs = data_sets(tmp_path / "theirs")
    assert len(theirs) == 12
    assert data_sets(tmp_path / "out") == theirs
    with hilum.open(tmp_path / "mine", read_only=True) as store:
        mine = {row.uid: data_set_of(store.read(row.uid)) for row in store.find("instances")}
    assert mine == {uid: theirs[uid] for uid in ("2.25.5.1", "2.25.5.5", "2.25.5.9")}


def test_move_lets_dcmqrscp_send_to_storescp(archive, tmp_path):
    target = f"QR@127.0.0.1:{archive[0].port}"
    words = ["move", target, "--to", "DEST"]
    assert run(tmp_path, *words, "PatientID=P0", "Modality=CT")[-1]["sent"] == 3
    assert set(data_sets(tmp_path / "moved")) == {"2.25.5.0", "2.25.5.4", "2.25.5.8"}
    assert run(tmp_path, *words, "StudyInstanceUID=2.25.50,2.25.51")[-1]["sent"] == 12
    assert len(data_sets(tmp_path / "moved")) == 12
    reason = run(tmp_path, "move", target, "--to", "NOBODY", "PatientID=P0", status=1)[-1]["reason"]
    assert "0xA801" in reason


# --- Orthanc -----------------------------------------------------------------------------


@pytest.fixture
def orthanc(program, tmp_path) -> Iterator[tuple[str, str, Process]]:
    """Orthanc as a DICOM node and a DICOMweb server: a target, a URL, the process."""
    executable = program("Orthanc")
    if not PLUGIN.exists():
        words = "Orthanc's DICOMweb plugin is not here; `make peers` as root installs it"
        pytest.fail(words) if os.environ.get("CI") else pytest.skip(words)
    http, dicom = free_port(), free_port()
    settings = {
        "Name": "peer", "StorageDirectory": str(tmp_path / "orthanc"),
        "IndexDirectory": str(tmp_path / "orthanc"),
        "HttpPort": http, "DicomPort": dicom, "DicomAet": "ORTHANC", "RemoteAccessAllowed": True,
        "AuthenticationEnabled": True, "RegisteredUsers": {"alice": "geheim"}, "OverwriteInstances": False,
        "DicomAlwaysAllowEcho": True, "DicomAlwaysAllowStore": True, "DicomAlwaysAllowFind": True,
        "DicomAlwaysAllowGet": True, "DicomAlwaysAllowMove": True, "UnknownSopClassAccepted": True,
        "Plugins": [str(PLUGIN)], "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }  # fmt: skip
    (tmp_path / "orthanc.json").write_text(json.dumps(settings), encoding="utf-8")
    with Process([executable, str(tmp_path / "orthanc.json")], http, tmp_path / "orthanc.log") as process:
        wait_for(dicom)
        yield f"ORTHANC@127.0.0.1:{dicom}", f"http://127.0.0.1:{http}/dicom-web", process


def ask(url: str, path: str) -> Any:
    manager = urllib.request.HTTPPasswordMgrWithDefaultRealm()
    root = url.removesuffix("/dicom-web")
    manager.add_password(None, root, "alice", "geheim")
    opener = urllib.request.build_opener(urllib.request.HTTPBasicAuthHandler(manager))
    with opener.open(f"{root}{path}", timeout=SECONDS) as answer:
        return json.loads(answer.read())


def test_push_to_orthanc_and_pull_from_it_byte_for_byte(orthanc, chosen, tmp_path):
    _, url, _ = orthanc
    source = FileSource(chosen.paths(), [])
    files = {one.uid: b"".join(source.file(one)) for one in source}
    lines = run(tmp_path, "push", url, *chosen.paths(), "--user", "alice", "--jobs", "2", status=None)
    refused = {line["failed"] for line in lines if "failed" in line and "path" in line}
    stored = {found["MainDicomTags"]["SOPInstanceUID"] for found in ask(url, "/instances?expand")}
    assert stored == set(files) - refused
    assert lines[-1]["sent"] == len(stored) >= len(files) * 0.8
    again = run(tmp_path, "push", url, *chosen.paths(), "--user", "alice", status=None)[-1]
    assert again["skipped"] == lines[-1]["sent"]

    studies = ",".join(row["MainDicomTags"]["StudyInstanceUID"] for row in ask(url, "/studies?expand"))
    words = ["pull", url, f"StudyInstanceUID={studies}", "--user", "alice", "--store", tmp_path / "mine"]
    lines = run(tmp_path, *words, status=None)
    # A series that lies in studies of two patients is none to Orthanc's WADO-RS.
    missing = {line["failed"] for line in lines[:-1] if "inexistent series" in line["reason"]}
    assert len(missing) <= 4
    assert lines[-1]["fetched"] == len(stored - missing)
    with hilum.open(tmp_path / "mine", read_only=True) as store:
        mine = {row.uid: store.read(row.uid) for row in store.find("instances")}
    assert mine == {uid: files[uid] for uid in stored - missing}
    assert len({chosen.all[uid].transfer_syntax for uid in mine}) >= 15


def test_store_and_get_with_orthanc_keep_the_pixels(orthanc, tmp_path):
    target, url, _ = orthanc
    found = many(tmp_path / "in", 20)
    assert run(tmp_path, "echo", target)[-1]["ok"]
    assert run(tmp_path, "store", target, "in", "--jobs", "2")[-1]["sent"] == 20
    assert len(ask(url, "/instances")) == 20
    assert len(run(tmp_path, "find", "instances", "StudyInstanceUID=2.25.7", "--from", target)) == 20
    assert run(tmp_path, "get", target, "PatientID=P1", "--store", tmp_path / "mine")[-1]["fetched"] == 20
    with (
        hilum.open(tmp_path / "mine", read_only=True) as store,
        hilum.open(tmp_path / "own", create=True) as own,
    ):
        for uid, data in found.items():
            own.ingest(data)
            assert store.frame_bytes(uid, 0) == own.frame_bytes(uid, 0)


def test_orthanc_killed_in_the_middle_of_a_push_gets_the_rest_later(orthanc, tmp_path):
    _, url, process = orthanc
    many(tmp_path / "in", 300)
    words = [sys.executable, "-m", "hilum", "push", url, "in", "--user", "alice", "--json"]
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path / "state"), "HILUM_PASSWORD": "geheim"}
    sending = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path, env=environment
    )
    deadline = time.monotonic() + 60
    while len(ask(url, "/instances")) < 80:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    out, _ = sending.communicate(timeout=SECONDS)
    first = json.loads(out.splitlines()[-1])
    assert sending.returncode == 1
    assert 0 < first["sent"] < 300
    process.start()
    second = run(tmp_path, "push", url, "in", "--user", "alice")[-1]

    assert second["skipped"] == first["sent"]
    assert second["skipped"] + second["sent"] == 300
    assert len(ask(url, "/instances")) == 300


def test_peers_asks_orthanc_in_both_ways(orthanc, tmp_path):
    target, url, _ = orthanc
    _, _, address = target.partition("@")
    (tmp_path / "hilum.toml").write_text(
        f'[peers.orthanc]\ntitle = "ORTHANC"\nhost = "127.0.0.1"\nport = {address.partition(":")[2]}\n'
        f'url = "{url}"\nuser = "alice"\npassword = "geheim"\n'
    )
    found = run(tmp_path, "peers")
    assert [(line["kind"], line["ok"]) for line in found] == [("DIMSE", True), ("DICOMweb", True)]
