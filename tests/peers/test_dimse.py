"""DIMSE with others: DCMTK's programs and Orthanc, as those who ask and as those who are asked.

Data sets are compared byte for byte. DCMTK writes a data set anew when it sends one, so what it sends is
compared with what it sends to its own storescp, which keeps bytes as they come (+B); what we send is compared
with what is stored.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import ssl
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydicom
import pynetdicom
import pytest

import hilum
from hilum.dicom import uids
from hilum.dimse.options import DimseSettings, Peer
from hilum.dimse.server import Server

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from makers import make_object, noise

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore::UserWarning:pydicom")]

_START_SECONDS = 30.0
_STUDY_MOVE = "1.2.840.10008.5.1.4.1.2.2.2"
_SECONDS = 120
# Newer than it: HTJ2K, JPEG XL, fragmentable video, deflated frames.
_NOT_DCMTKS = ("1.2.840.10008.1.2.4.2", "1.2.840.10008.1.2.4.11", "1.2.840.10008.1.2.8")


class Node:
    """A node of ours over a folder."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.store = hilum.open(folder, create=True)
        wanted = {"listen": "127.0.0.1:0", "processes": 0, "stop_seconds": 2.0, **settings}
        self.server = Server(DimseSettings(**wanted), self.store)
        self.server.start()
        self.port = str(self.server.address[1])

    def close(self) -> None:
        self.server.stop()
        self.store.close()


@contextlib.contextmanager
def serving(folder: Path, **settings: Any) -> Iterator[Node]:
    node = Node(folder, **settings)
    try:
        yield node
    finally:
        node.close()


def run(*words: str | Path, good: bool = True, **further: Any) -> str:
    """Run a program; give what it says."""
    found = subprocess.run(
        [str(word) for word in words], capture_output=True, timeout=_SECONDS, check=False, **further
    )
    said = (found.stdout + found.stderr).decode("utf-8", "replace")
    assert (found.returncode == 0) == good, said[-3000:]
    return said


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def data_set_of(data: bytes) -> bytes:
    """A Part 10 file without preamble and file meta."""
    assert data[128:132] == b"DICM"
    return data[144 + struct.unpack_from("<I", data, 140)[0] :]


class Storescp:
    """DCMTK's storescp, which keeps bytes as they come."""

    def __init__(self, executable: str, folder: Path, *options: str, title: str = "DEST") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.port = free_port()
        self._process = subprocess.Popen(
            [executable, "-aet", title, "+B", "-fe", ".dcm", "-od", str(folder), *options, str(self.port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        _wait_for_port(self.port)

    def __enter__(self) -> Storescp:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    @property
    def peer(self) -> Peer:
        return Peer(title="DEST", host="127.0.0.1", port=self.port)

    def got(self) -> dict[str, tuple[str, bytes]]:
        """Transfer syntaxes and data sets by their SOP Instance UID."""
        found = {}
        for path in self.folder.iterdir():
            read = pydicom.dcmread(path, specific_tags=[0x00080018], force=True)
            found[str(read.SOPInstanceUID)] = (
                str(read.file_meta.TransferSyntaxUID),
                data_set_of(path.read_bytes()),
            )
        return found


def _wait_for_port(port: int, seconds: float = _START_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def _wait_for(condition, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(scope="module")
def by_syntax(shared_files, pydicom_files) -> dict[str, list[Path]]:
    """Up to three files of each transfer syntax, small ones first, that are whole and have all their UIDs."""
    found: dict[str, list[Path]] = {}
    seen = set()
    paths = [*shared_files.values(), *pydicom_files.values()]
    for path in sorted(paths, key=lambda path: path.stat().st_size):
        if path.stat().st_size > 4 << 20 or "fuzz-corpus" in path.parts:
            continue
        with contextlib.suppress(Exception):
            read = pydicom.dcmread(path, stop_before_pixels=True)
            syntax, uid = str(read.file_meta.TransferSyntaxUID), str(read.SOPInstanceUID)
            same = str(read.SOPClassUID) == str(read.file_meta.MediaStorageSOPClassUID)
            if uid in seen or not read.StudyInstanceUID or not read.SeriesInstanceUID or not same:
                continue
            if len(found.setdefault(syntax, [])) < 3:
                found[syntax].append(path)
                seen.add(uid)
    assert len(found) > 15
    return found


def _is_dcmtks(syntax: str) -> bool:
    return not syntax.startswith(_NOT_DCMTKS) and not syntax.endswith(".1", len("1.2.840.10008.1.2.4."))


def _made(number: int, size: int = 20_000) -> bytes:
    return make_object(
        f"1.2.3.4.{number}", "1.2.3.1", "1.2.3.2", pixels=noise(size, number), instance_number=number
    )


def _folder_of(folder: Path, count: int, size: int = 20_000) -> Path:
    folder.mkdir()
    for number in range(count):
        (folder / f"{number}.dcm").write_bytes(_made(number, size))
    return folder


# --- DCMTK asks ---------------------------------------------------------------------


def test_echoscu_is_answered_and_termscu_ends_nothing(tmp_path, program):
    with serving(tmp_path / "store") as node:
        run(program("echoscu"), "-aec", "HILUM", "127.0.0.1", node.port)
        said = subprocess.run(
            [program("termscu"), "127.0.0.1", node.port], capture_output=True, timeout=_SECONDS, check=False
        )
        assert said.returncode in (0, 1)
        run(program("echoscu"), "--repeat", "5", "127.0.0.1", node.port)


# How storescu is told to propose a transfer syntax.
_PROPOSING = {
    uids.IMPLICIT_VR_LITTLE_ENDIAN: "-xi",
    uids.EXPLICIT_VR_LITTLE_ENDIAN: "-xe",
    uids.EXPLICIT_VR_BIG_ENDIAN: "-xb",
    uids.DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN: "-xd",
    uids.JPEG_BASELINE: "-xy",
    uids.JPEG_EXTENDED: "-xx",
    uids.JPEG_LOSSLESS_SV1: "-xs",
    uids.JPEG_2000_LOSSLESS: "-xv",
    uids.JPEG_2000: "-xw",
    uids.JPEG_LS_LOSSLESS: "-xt",
    uids.JPEG_LS_NEAR_LOSSLESS: "-xu",
    uids.RLE_LOSSLESS: "-xr",
    uids.MPEG4_HIGH_PROFILE: "-xn",
    uids.HEVC_MAIN_PROFILE: "-x4",
}


def test_all_transfer_syntaxes_come_in_as_dcmtk_sends_them(tmp_path, program, by_syntax):
    checked = set()
    with (
        Storescp(program("storescp"), tmp_path / "theirs", "+xa") as theirs,
        serving(tmp_path / "store") as node,
    ):
        for syntax, option in _PROPOSING.items():
            for path in by_syntax.get(syntax, ()):
                sent = subprocess.run(
                    [program("storescu"), option, "127.0.0.1", str(theirs.port), str(path)],
                    capture_output=True, timeout=_SECONDS, check=False,
                )  # fmt: skip
                if sent.returncode:
                    continue  # DCMTK can't read or send this one
                run(program("storescu"), option, "-aec", "HILUM", "127.0.0.1", node.port, path)
                checked.add(syntax)
        got = theirs.got()
        assert len(got) > 20
        for uid, (syntax, data) in got.items():
            assert data_set_of(node.store.read(uid)) == data, uid
            assert node.store.locate(uid).instance.transfer_syntax.decode() == syntax
    assert len(checked) >= 11, sorted(checked)


def test_all_transfer_syntaxes_go_out_as_they_are_stored(tmp_path, program, by_syntax):
    with (
        Storescp(program("storescp"), tmp_path / "theirs", "+xa") as theirs,
        serving(tmp_path / "store", peers=(theirs.peer,)) as node,
    ):
        sent: dict[str, str] = {}
        for syntax, paths in by_syntax.items():
            for path in paths if _is_dcmtks(syntax) else ():
                sop_class = str(pydicom.dcmread(path, specific_tags=[0x00080016]).SOPClassUID)
                with contextlib.suppress(hilum.errors.RequestFault):
                    if uids.name_of(sop_class):  # one that it knows
                        sent[node.store.ingest(path).uid] = syntax
        for uid in sent:
            (row,) = node.store.find("instances", {"SOPInstanceUID": uid})
            keys = {
                "QueryRetrieveLevel": "IMAGE",
                "StudyInstanceUID": row.text(0x0020000D),
                "SeriesInstanceUID": row.text(0x0020000E),
                "SOPInstanceUID": uid,
            }
            run(
                program("movescu"), "-S", "-aec", "HILUM", "-aem", "DEST", "127.0.0.1", node.port,
                *(word for name, value in keys.items() for word in ("-k", f"{name}={value}")),
            )  # fmt: skip
        _wait_for(lambda: len(list(theirs.folder.iterdir())) == len(sent))
        got = theirs.got()
        assert len(got) == len(sent) > 30
        as_stored = set()
        for uid, (syntax, data) in got.items():
            if syntax != sent[uid]:  # it does not take the retired ones: decoded then
                assert syntax == uids.EXPLICIT_VR_LITTLE_ENDIAN
                continue
            as_stored.add(syntax)
            head = node.store.head(uid)
            stored = node.store.read(uid)[head.data_set_at :]
            if uids.is_deflated(syntax):
                stored += b"\0" * (len(stored) % 2)
            assert data == stored, uid
        assert len(as_stored) > 13, sorted(as_stored)


def test_what_dcmtk_does_not_know_arrives_decoded(tmp_path, program, by_syntax):
    """HTJ2K is newer than it: it gets Explicit VR Little Endian."""
    syntax = uids.HTJ2K_LOSSLESS
    if syntax not in by_syntax:
        pytest.skip("there is no sample")
    with (
        Storescp(program("storescp"), tmp_path / "theirs", "+xa") as theirs,
        serving(tmp_path / "store", peers=(theirs.peer,)) as node,
    ):
        uid = node.store.ingest(by_syntax[syntax][0]).uid
        study = node.store.find("instances", {"SOPInstanceUID": uid})[0].text(0x0020000D)
        run(
            program("movescu"), "-S", "-aec", "HILUM", "-aem", "DEST", "127.0.0.1", node.port,
            "-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={study}",
        )  # fmt: skip
        _wait_for(lambda: len(list(theirs.folder.iterdir())) == 1)
        (path,) = theirs.folder.iterdir()
        read = pydicom.dcmread(path)
        assert read.file_meta.TransferSyntaxUID == uids.EXPLICIT_VR_LITTLE_ENDIAN
        assert (read.pixel_array == node.store.frame(uid, 0)).all()


def test_getscu_gets_the_bytes_that_are_stored(tmp_path, program):
    (tmp_path / "got").mkdir()
    with serving(tmp_path / "store") as node:
        for number in range(30):
            node.store.ingest(_made(number))
        said = run(
            program("getscu"), "-v", "-S", "+B", "-aec", "HILUM", "-od", tmp_path / "got",
            "127.0.0.1", node.port, "-k", "QueryRetrieveLevel=SERIES",
            "-k", "StudyInstanceUID=1.2.3.1", "-k", "SeriesInstanceUID=1.2.3.2",
        )  # fmt: skip
        assert "Completed Suboperations : 30" in said
        assert "Failed Suboperations    : 0" in said
        paths = list((tmp_path / "got").iterdir())
        assert len(paths) == 30
        for path in paths:
            data = path.read_bytes()
            uid = pydicom.dcmread(path, specific_tags=[0x00080018]).SOPInstanceUID
            assert data_set_of(data) == data_set_of(node.store.read(uid))


def test_findscu_finds_what_the_store_finds(tmp_path, program, stored):
    with serving(stored.folder) as node:
        for model, keys in (
            ("-S", ["QueryRetrieveLevel=STUDY", "StudyInstanceUID=", "PatientName="]),
            ("-S", ["QueryRetrieveLevel=STUDY", "StudyInstanceUID=", "PatientName=*a*"]),
            ("-P", ["QueryRetrieveLevel=PATIENT", "PatientID=", "PatientName="]),
            ("-S", ["QueryRetrieveLevel=STUDY", "StudyInstanceUID=", "ModalitiesInStudy=MR"]),
        ):
            folder = tmp_path / "answers"
            folder.mkdir()
            words = [word for key in keys for word in ("-k", key)]
            run(
                program("findscu"),
                model,
                "-X",
                "-od",
                folder,
                "-aec",
                "HILUM",
                "127.0.0.1",
                node.port,
                *words,
            )
            level = "patients" if model == "-P" else "studies"
            wanted = dict(key.split("=") for key in keys[1:])
            rows = node.store.find(level, wanted)
            answers = [pydicom.dcmread(path) for path in sorted(folder.iterdir())]
            tag = "PatientID" if model == "-P" else "StudyInstanceUID"
            assert sorted(str(answer.get(tag, "")) for answer in answers) == sorted(row.uid for row in rows)
            assert rows
            for path in folder.iterdir():
                path.unlink()
            folder.rmdir()


def test_findscu_cancels(tmp_path, program):
    with serving(tmp_path / "store") as node:
        for number in range(400):
            node.store.ingest(make_object(f"1.2.3.4.{number}", f"1.2.3.{number}", "1.2.3.2"))
        said = run(
            program("findscu"), "-v", "-S", "--cancel", "2", "-aec", "HILUM", "127.0.0.1", node.port,
            "-k", "QueryRetrieveLevel=STUDY", "-k", "StudyInstanceUID=",
        )  # fmt: skip
    assert "Cancel" in said or said.count("(Pending)") == 400


def test_a_sender_that_is_killed_leaves_whole_objects_only(tmp_path, program):
    files = _folder_of(tmp_path / "files", 60, 400_000)
    with serving(tmp_path / "store") as node:
        for seconds in (0.05, 0.1, 0.2, 0.3):
            sender = subprocess.Popen(
                [program("storescu"), "-aec", "HILUM", "127.0.0.1", node.port, "+sd", str(files)],
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            time.sleep(seconds)
            sender.send_signal(signal.SIGKILL)
            sender.wait()
        _wait_for(lambda: node.server._active == 0)
        for row in node.store.find("instances"):
            assert node.store.read(row.uid)
        run(program("storescu"), "-aec", "HILUM", "127.0.0.1", node.port, "+sd", files)
        assert node.store.stats()["instances"] == 60
    assert list((tmp_path / "store" / "spool").iterdir()) == []


def test_a_sender_that_stalls_is_ended_and_holds_nobody_up(tmp_path, program):
    with serving(tmp_path / "store", idle_seconds=1.0) as node:
        sender = subprocess.Popen(
            [program("storescu"), "-aec", "HILUM", "127.0.0.1", node.port, "+sd",
             str(_folder_of(tmp_path / "files", 200, 200_000))],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            _wait_for(lambda: node.store.stats()["instances"] > 0)
            sender.send_signal(signal.SIGSTOP)
            run(program("echoscu"), "127.0.0.1", node.port)
            _wait_for(lambda: node.server._active == 0)
        finally:
            sender.kill()
            sender.wait()


def test_a_thousand_associations_are_opened_and_dropped(tmp_path, program):
    """Half of them after a request that is cut."""
    with serving(tmp_path / "store", associations=50) as node:
        before = len(os.listdir("/proc/self/fd"))
        for number in range(1000):
            with socket.create_connection(("127.0.0.1", int(node.port))) as found:
                if number % 2:
                    found.sendall(struct.pack(">BBI", 1, 0, 200) + b"\0" * 50)
        _wait_for(lambda: node.server._active == 0)
        assert len(os.listdir("/proc/self/fd")) <= before + 5
        run(program("echoscu"), "127.0.0.1", node.port)


def test_eight_storescu_at_once_store_everything_in_two_processes(tmp_path, program):
    hilum.open(tmp_path / "store", create=True).close()
    settings = DimseSettings(listen="127.0.0.1:0", processes=2)
    with Server(settings, str(tmp_path / "store")) as server:
        port = str(server.address[1])
        senders = []
        for number in range(8):
            folder = tmp_path / str(number)
            folder.mkdir()
            for index in range(25):
                (folder / str(index)).write_bytes(
                    make_object(
                        f"1.2.{number}.{index}", f"1.2.{number}", "1.2.9", pixels=noise(30_000, index)
                    )
                )
            words = [program("storescu"), "-aec", "HILUM", "127.0.0.1", port, "+sd", str(folder)]
            senders.append(subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        assert [sender.wait(_SECONDS) for sender in senders] == [0] * 8
    with hilum.open(tmp_path / "store") as store:
        assert store.stats()["instances"] == 200
        for row in store.find("instances"):
            assert store.read(row.uid)


# --- TLS ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory) -> Path:
    folder: Path = tmp_path_factory.mktemp("tls")
    for name in ("ours", "theirs", "stranger"):
        run(
            "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}",
            "-keyout", f"{name}.key", "-out", f"{name}.pem", cwd=folder,
        )  # fmt: skip
    return folder


def test_echoscu_by_tls_with_and_without_the_right_certificate(tmp_path, program, certificates):
    settings = {
        "tls_certificate": str(certificates / "ours.pem"),
        "tls_key": str(certificates / "ours.key"),
        "tls_authorities": str(certificates / "theirs.pem"),
        "tls_mutual": True,
    }

    def echo(node: Node, name: str, believed: str, *, good: bool) -> None:
        run(
            program("echoscu"), "+tls", certificates / f"{name}.key", certificates / f"{name}.pem",
            "+cf", certificates / f"{believed}.pem", "127.0.0.1", node.port, good=good,
        )  # fmt: skip

    with serving(tmp_path / "store", **settings) as node:
        echo(node, "theirs", "ours", good=True)
        echo(node, "stranger", "ours", good=False)
        echo(node, "theirs", "stranger", good=False)
        run(program("echoscu"), "127.0.0.1", node.port, good=False)
        echo(node, "theirs", "ours", good=True)


def test_a_move_to_a_peer_goes_by_tls_to_one_whose_certificate_is_believed_alone(
    tmp_path, program, certificates
):
    with (
        Storescp(
            program("storescp"), tmp_path / "theirs",
            "+tls", str(certificates / "theirs.key"), str(certificates / "theirs.pem"),
            "+cf", str(certificates / "ours.pem"),
        ) as theirs,
    ):  # fmt: skip
        for believed, count in (("stranger", 0), ("theirs", 3)):
            settings = {
                "tls_certificate": str(certificates / "ours.pem"),
                "tls_key": str(certificates / "ours.key"),
                "tls_authorities": str(certificates / f"{believed}.pem"),
                "peers": (Peer(title="DEST", host="127.0.0.1", port=theirs.port, tls=True),),
            }
            with serving(tmp_path / "store", **settings) as node:
                for number in range(3):
                    node.store.ingest(_made(number))
                trusted = ssl.create_default_context(cafile=str(certificates / "ours.pem"))
                trusted.check_hostname = False
                mover = pynetdicom.AE("MOVER")
                association = mover.associate(
                    "127.0.0.1",
                    int(node.port),
                    [pynetdicom.build_context(_STUDY_MOVE)],
                    tls_args=(trusted, None),
                )
                keys = pydicom.Dataset()
                keys.QueryRetrieveLevel, keys.StudyInstanceUID = "STUDY", "1.2.3.1"
                said = [status.Status for status, _ in association.send_c_move(keys, "DEST", _STUDY_MOVE)]
                association.release()
            assert said[-1] == (0 if count else 0xA702)
            assert len(list(theirs.folder.iterdir())) == count


# --- dcmqrscp ------------------------------------------------------------------------------


@contextlib.contextmanager
def dcmqrscp(executable: str, folder: Path, port: int, hilum_port: int) -> Iterator[None]:
    storage = folder / "QRSCP"
    storage.mkdir(parents=True)
    (folder / "qr.cfg").write_text(
        f"NetworkTCPPort = {port}\nMaxPDUSize = 16384\nMaxAssociations = 16\n"
        f"HostTable BEGIN\nhilum = (HILUM, localhost, {hilum_port})\nHostTable END\n"
        f"AETable BEGIN\nQRSCP {storage} RW (500, 1024mb) ANY\nAETable END\n"
    )
    process = subprocess.Popen(
        [executable, "-c", str(folder / "qr.cfg")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        _wait_for_port(port)
        yield
    finally:
        process.kill()
        process.wait()


def test_objects_go_to_dcmqrscp_and_come_back(tmp_path, program):
    port, ours = free_port(), free_port()
    peer = Peer(title="QRSCP", host="127.0.0.1", port=port)
    study = ("-k", "QueryRetrieveLevel=STUDY", "-k", "StudyInstanceUID=1.2.3.1")
    with dcmqrscp(program("dcmqrscp"), tmp_path / "qr", port, ours):
        with serving(tmp_path / "first", listen=f"127.0.0.1:{ours}", peers=(peer,)) as node:
            for number in range(12):
                node.store.ingest(_made(number))
            run(program("movescu"), "-S", "-aec", "HILUM", "-aem", "QRSCP", "127.0.0.1", node.port, *study)
        with serving(tmp_path / "second", listen=f"127.0.0.1:{ours}") as node:
            run(program("movescu"), "-S", "-aec", "QRSCP", "-aem", "HILUM", "127.0.0.1", port, *study)
            assert node.store.stats()["instances"] == 12
            for number in range(12):
                assert data_set_of(node.store.read(f"1.2.3.4.{number}")) == data_set_of(_made(number))


# --- Orthanc -------------------------------------------------------------------------------


class Orthanc:
    """A server of our own on 127.0.0.1, with HILUM among its modalities."""

    def __init__(self, executable: str, folder: Path, hilum_port: int) -> None:
        folder.mkdir()
        self.port, self.dicom = free_port(), free_port()
        settings = {
            "Name": "peer",
            "StorageDirectory": str(folder / "storage"),
            "IndexDirectory": str(folder / "storage"),
            "HttpPort": self.port,
            "DicomPort": self.dicom,
            "DicomAet": "ORTHANC",
            "DicomServerEnabled": True,
            "DicomCheckCalledAet": False,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "Plugins": [],
            "DicomModalities": {
                "hilum": {
                    "AET": "HILUM",
                    "Host": "127.0.0.1",
                    "Port": hilum_port,
                    "AllowStorageCommitment": True,
                }
            },
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
                assert time.monotonic() < deadline
                time.sleep(0.1)

    def ask(self, path: str, body: Any = None, *, raw: bytes | None = None) -> Any:
        data = raw if raw is not None else json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data=data)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())

    def __enter__(self) -> Orthanc:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def peer(self) -> Peer:
        return Peer(title="ORTHANC", host="127.0.0.1", port=self.dicom)


@pytest.fixture
def with_orthanc(tmp_path, program) -> Iterator[tuple[Orthanc, Node]]:
    port = free_port()
    with (
        Orthanc(program("Orthanc"), tmp_path / "orthanc", port) as orthanc,
        serving(tmp_path / "store", listen=f"127.0.0.1:{port}", peers=(orthanc.peer,)) as node,
    ):
        yield orthanc, node


def test_orthanc_echoes_stores_finds_and_moves(with_orthanc):
    orthanc, node = with_orthanc
    orthanc.ask("/modalities/hilum/echo", {})

    for number in range(5):
        orthanc.ask("/instances", raw=_made(number))
    sent = orthanc.ask("/modalities/hilum/store", orthanc.ask("/instances"))
    assert sent["FailedInstancesCount"] == 0
    assert node.store.stats()["instances"] == 5

    node.store.ingest(make_object("1.2.9.1", "1.2.9", "1.2.9.2", name="Only^Here", patient_id="H1"))
    query = orthanc.ask("/modalities/hilum/query", {"Level": "Study", "Query": {"PatientName": "Only*"}})
    answers = orthanc.ask(f"/queries/{query['ID']}/answers?expand&simplify")
    assert [answer["StudyInstanceUID"] for answer in answers] == ["1.2.9"]
    orthanc.ask(f"/queries/{query['ID']}/retrieve", {"TargetAet": "ORTHANC", "Synchronous": True})
    assert len(orthanc.ask("/instances")) == 6


def test_orthanc_asks_for_storage_commitment_and_believes_the_report(with_orthanc):
    orthanc, node = with_orthanc
    for number in range(3):
        node.store.ingest(_made(number))
        orthanc.ask("/instances", raw=_made(number))
    orthanc.ask("/instances", raw=_made(99))

    def ask(instances: list[str]) -> dict[str, Any]:
        found = orthanc.ask("/modalities/hilum/storage-commitment", {"DicomInstances": [
            ["1.2.840.10008.5.1.4.1.1.2", uid] for uid in instances]})  # fmt: skip
        _wait_for(lambda: orthanc.ask(f"/storage-commitment/{found['ID']}")["Status"] != "Pending")
        answer: dict[str, Any] = orthanc.ask(f"/storage-commitment/{found['ID']}")
        return answer

    assert ask(["1.2.3.4.0", "1.2.3.4.1", "1.2.3.4.2"])["Status"] == "Success"
    failed = ask(["1.2.3.4.0", "1.2.3.4.99"])
    assert failed["Status"] == "Failure"
    assert [item["SOPInstanceUID"] for item in failed["Failures"]] == ["1.2.3.4.99"]
