"""How fast is DIMSE, beside Orthanc, DCMTK's storescp and dcmqrscp, and pynetdicom as it comes?

    python benchmarks/bench_dimse.py                      every row, some minutes; prints a table python
    benchmarks/bench_dimse.py store find           these rows python benchmarks/bench_dimse.py --folder
    /dev/shm    where stores lie; the default is a disk (build/bench) python benchmarks/bench_dimse.py steps
    what each change of the transport brings pytest benchmarks/bench_dimse.py --benchmark-enable   two small
    rounds

Senders are DCMTK's storescu, getscu, movescu with their defaults, which is Nagle's algorithm on; "nodelay"
sets TCP_NODELAY=1 for sender and receiver. Ours answers after a durable commit; storescp and plain pynetdicom
sync nothing, Orthanc leaves it to SQLite. Servers run one at a time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import corpus
import pytest

import hilum
from hilum.dimse import command as commands
from hilum.dimse import identifier, peers
from hilum.dimse.options import DimseSettings, Peer
from hilum.dimse.server import Server

HERE = Path(__file__).resolve()
SMALL, LARGE = 32_768, 524_288  # bytes of pixels: objects of 33 and 525 KB
STUDY_FIND = "1.2.840.10008.5.1.4.1.2.2.1"
_START_SECONDS = 60.0
_SLOW = 40  # objects for those who take 90 ms for one


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_for_port(port: int) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def program(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/bin")


# --- Servers: each takes a folder, gives a port ------------------------------------------------------


@contextlib.contextmanager
def ours(folder: Path, *, processes: int = 2, peer_ports: Sequence[tuple[str, int]] = ()) -> Iterator[int]:
    hilum.open(folder / "store", create=True).close()
    known = tuple(Peer(title=title, host="127.0.0.1", port=port) for title, port in peer_ports)
    settings = DimseSettings(listen="127.0.0.1:0", processes=processes, peers=known)
    with Server(settings, str(folder / "store")) as server:
        yield server.address[1]


@contextlib.contextmanager
def running(words: Sequence[str], port: int, nodelay: bool = False) -> Iterator[int]:
    process = subprocess.Popen(
        words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=_environment(nodelay)
    )
    try:
        _wait_for_port(port)
        yield port
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def storescp(
    folder: Path, *, nodelay: bool = False, fork: bool = False
) -> contextlib.AbstractContextManager[int]:
    port = free_port()
    (folder / "got").mkdir(parents=True, exist_ok=True)
    words = [
        "storescp",
        "-aet",
        "DEST",
        "+B",
        "+xa",
        "-od",
        str(folder / "got"),
        *(["--fork"] if fork else []),
    ]
    return running([*words, str(port)], port, nodelay)


def orthanc(
    folder: Path, *, peer_ports: Sequence[tuple[str, int]] = (), http: int = 0
) -> contextlib.AbstractContextManager[int]:
    port = free_port()
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "Name": "bench",
        "StorageDirectory": str(folder / "storage"), "IndexDirectory": str(folder / "storage"),
        "HttpServerEnabled": bool(http), "HttpPort": http or 1, "AuthenticationEnabled": False,
        "DicomServerEnabled": True, "DicomPort": port, "DicomAet": "HILUM", "DicomCheckCalledAet": False,
        "DicomAlwaysAllowFind": True, "DicomAlwaysAllowGet": True, "DicomAlwaysAllowMove": True,
        "Plugins": [],
        "DicomModalities": {title: [title, "127.0.0.1", number] for title, number in peer_ports},
    }  # fmt: skip
    (folder / "orthanc.json").write_text(json.dumps(settings), encoding="utf-8")
    return running([program("Orthanc") or "Orthanc", str(folder / "orthanc.json")], port)


def dcmqrscp(
    folder: Path, *, peer_ports: Sequence[tuple[str, int]] = ()
) -> contextlib.AbstractContextManager[int]:
    port = free_port()
    storage = folder / "QR"
    storage.mkdir(parents=True)
    hosts = "".join(f"{title.lower()} = ({title}, localhost, {number})\n" for title, number in peer_ports)
    (folder / "qr.cfg").write_text(
        f"NetworkTCPPort = {port}\nMaxPDUSize = 131072\nMaxAssociations = 16\n"
        f"HostTable BEGIN\n{hosts}HostTable END\n"
        f"AETable BEGIN\nHILUM {storage} RW (500, 1024mb) ANY\nAETable END\n"
    )
    return running(["dcmqrscp", "-c", str(folder / "qr.cfg")], port)


def pynetdicoms(folder: Path, step: str = "plain") -> contextlib.AbstractContextManager[int]:
    port = free_port()
    folder.mkdir(parents=True, exist_ok=True)
    return running([sys.executable, str(HERE), "--serve", step, str(port)], port)


def serve_plain(step: str, port: int) -> None:
    """pynetdicom's own SCP, which keeps nothing; with some of what is done to it, step by step."""
    import select

    from pynetdicom import AE, AllStoragePresentationContexts, _config, evt, transport

    def quick(self: Any, count: int) -> bytearray:
        found = bytearray()
        while len(found) < count:
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
            left = count - len(found)
            part = self.socket.recv(min(4096, left) if step == "quickack" else left)
            if not part:
                break
            found += part
        return found

    def ready(self: Any) -> bool:
        if self.socket is None or not self._is_connected:
            return False
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        try:
            return bool(select.select([self.socket], [], [], 0)[0])
        except (OSError, ValueError):
            self.event_queue.put("Evt17")
            return False

    entity = AE("HILUM")
    if step != "plain":
        transport.AssociationSocket.recv = quick
        transport.AssociationSocket.ready = property(ready)
    if step not in ("plain", "quickack"):
        entity.maximum_pdu_size = 128 << 10
    if step == "no-log":
        _config.LOG_HANDLER_LEVEL = "none"
    entity.supported_contexts = AllStoragePresentationContexts
    entity.start_server(("127.0.0.1", port), evt_handlers=[(evt.EVT_C_STORE, lambda event: 0)])


# --- What is asked of them ------------------------------------------------------------------------


def _environment(nodelay: bool) -> dict[str, str]:
    return {**os.environ, **({"TCP_NODELAY": "1"} if nodelay else {})}


def _run(words: Sequence[str], nodelay: bool = False) -> None:
    subprocess.run(
        words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=_environment(nodelay)
    )


def send(port: int, folders: Sequence[Path], *, nodelay: bool = False) -> float:
    """Seconds until one storescu for each folder has sent its files."""
    begun = time.perf_counter()
    words = ["storescu", "-aec", "HILUM", "127.0.0.1", str(port), "+sd"]
    senders = [
        subprocess.Popen(
            [*words, str(folder)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=_environment(nodelay),
        )
        for folder in folders
    ]
    if any([sender.wait() for sender in senders]):
        raise RuntimeError("storescu failed")
    return time.perf_counter() - begun


class Asked(NamedTuple):
    """How a query went."""

    answers: int
    first: float  # seconds until the first answer
    all: float


def ask(port: int, keys: dict[str, tuple[str, str]], *, rounds: int = 5) -> Asked:
    """The best of some rounds of a C-FIND."""
    settings = DimseSettings(title="BENCH")
    context = peers.context(STUDY_FIND, ["1.2.840.10008.1.2.1"])
    peer = Peer(title="HILUM", host="127.0.0.1", port=port)
    association = peers.connect(settings, peers.entity(settings), peer, [context])
    agreed = next(iter(association.contexts.values()))
    document = {
        name: {"vr": vr, "Value": [value]} if value else {"vr": vr} for name, (vr, value) in keys.items()
    }
    data = identifier.write(document, agreed.transfer_syntax, "")
    found = []
    for _ in range(rounds):
        command: commands.Command = {
            commands.AFFECTED_SOP_CLASS: STUDY_FIND,
            commands.COMMAND_FIELD: commands.Field.FIND,
            commands.MESSAGE_ID: association.new_message_id(),
            commands.PRIORITY: 0,
            commands.DATA_SET_TYPE: commands.HAS_DATA_SET,
        }
        begun, count, first = time.perf_counter(), 0, 0.0
        association.send(agreed.id, command, [data])
        while True:
            answer = association.next_message(60)
            assert answer is not None
            if answer.number(commands.STATUS) not in (0xFF00, 0xFF01):
                break
            count += 1
            first = first or time.perf_counter() - begun
        found.append(Asked(count, first, time.perf_counter() - begun))
    association.release()
    association.close()
    return min(found, key=lambda asked: asked.all)


# --- Rows -------------------------------------------------------------------------------------------


class Row(NamedTuple):
    what: str
    figures: dict[str, str]


def make_files(folder: Path, first: int, count: int, pixels: int) -> Path:
    """Files of a series of their own, as a modality would send them."""
    folder.mkdir(parents=True)
    for index, data in enumerate(_objects(first, count, pixels)):
        (folder / f"{index}.dcm").write_bytes(data)
    return folder


def _objects(first: int, count: int, pixels: int) -> Iterator[bytes]:
    side = int((pixels / 2) ** 0.5)
    sop_class = "1.2.840.10008.5.1.4.1.1.2"
    for index in range(count):
        uid = f"1.2.999.{first}.1.{index}"
        elements: list[tuple[int, str, bytes | str | int]] = [
            (0x00080016, "UI", sop_class), (0x00080018, "UI", uid), (0x00080020, "DA", "20240102"),
            (0x00080060, "CS", "CT"), (0x00100010, "PN", "Bench^Mark"), (0x00100020, "LO", f"B{first}"),
            (0x0020000D, "UI", f"1.2.999.{first}"), (0x0020000E, "UI", f"1.2.999.{first}.1"),
            (0x00200013, "IS", str(index)), (0x00280002, "US", 1), (0x00280004, "CS", "MONOCHROME2"),
            (0x00280010, "US", side), (0x00280011, "US", side),
            (0x00280100, "US", 16), (0x00280101, "US", 16),
            (0x00280102, "US", 15), (0x00280103, "US", 0),
            (0x7FE00010, "OW", corpus.frame_noise(first * 1000 + index, 2 * side * side)),
        ]  # fmt: skip
        meta = corpus.file_meta(uid, sop_class, "1.2.840.10008.1.2.1")
        yield meta + b"".join(corpus.element(*found) for found in elements)


def row_store(folder: Path) -> Iterator[Row]:
    """One association, 33 KB and 525 KB; eight at once."""
    small = make_files(folder / "small", 1, 400, SMALL)
    few = make_files(folder / "few", 2, _SLOW, SMALL)
    large = make_files(folder / "large", 3, 100, LARGE)
    few_large = make_files(folder / "few-large", 4, _SLOW, LARGE)
    eight = [make_files(folder / f"eight{number}", 10 + number, 150, SMALL) for number in range(8)]
    servers: dict[str, Callable[[Path, bool], Any]] = {
        "Hilum": lambda place, nodelay: ours(place),
        "Orthanc": lambda place, nodelay: orthanc(place),
        "storescp": lambda place, nodelay: storescp(place, nodelay=nodelay, fork=True),
        "pynetdicom": lambda place, nodelay: pynetdicoms(place),
    }
    cases: list[tuple[str, dict[str, list[Path]], bool]] = [
        ("C-STORE 33 KB, one association, /s", {"Hilum": [small], "": [few]}, False),
        ("C-STORE 33 KB, nodelay, /s", {"": [small]}, True),
        ("C-STORE 525 KB, one association, /s", {"Hilum": [large], "": [few_large]}, False),
        ("C-STORE 525 KB, nodelay, /s", {"": [large]}, True),
        ("C-STORE 33 KB, eight associations, nodelay, /s", {"": eight}, True),
        ("C-STORE 33 KB, eight associations, /s", {"Hilum": eight}, False),
    ]
    for index, (what, by_name, nodelay) in enumerate(cases):
        figures = {}
        for name, serve in servers.items():
            folders = by_name.get(name) or by_name.get("")
            if folders is None or (name != "pynetdicom" and name != "Hilum" and program(name) is None):
                continue
            place = folder / f"{name}{index}"
            with serve(place, nodelay) as port:
                seconds = send(port, folders, nodelay=nodelay)
            count = sum(len(list(found.iterdir())) for found in folders)
            figures[name] = f"{count / seconds:,.0f}"
            shutil.rmtree(place, ignore_errors=True)
        yield Row(what, figures)


def row_steps(folder: Path) -> Iterator[Row]:
    """What each change brings: pynetdicom's SCP that keeps nothing, and ours, on 33 KB objects."""
    few = make_files(folder / "few", 2, 100, SMALL)
    figures = {}
    for step in ("plain", "quickack", "pdu", "no-log"):
        with pynetdicoms(folder / step, step) as port:
            figures[f"pynetdicom {step}"] = f"{100 / send(port, [few]):,.0f}"
    with ours(folder / "ours") as port:
        figures["ours, durable"] = f"{100 / send(port, [few]):,.0f}"
        figures["ours, nothing to write"] = f"{100 / send(port, [few]):,.0f}"
    yield Row("C-STORE 33 KB, one association, /s", figures)


RETURN_KEYS = {
    "00080052": ("CS", "STUDY"), "0020000D": ("UI", ""), "00100010": ("PN", ""), "00100020": ("LO", ""),
    "00080020": ("DA", ""), "00080050": ("SH", ""), "00081030": ("LO", ""),
}  # fmt: skip


def row_find(folder: Path, studies: int = 100_000, theirs: int = 5_000) -> Iterator[Row]:
    """About 1,000 studies of 100,000, and those of one patient. Orthanc has fewer: they would take it
    hours."""
    with hilum.open(folder / "hilum" / "store", create=True) as store:
        for at in range(0, studies, 1000):
            store.ingest_many([store.prepare(data) for data in corpus.studies(at, min(1000, studies - at))])
        row = store.find("studies", limit=1)[0]
        patient = row.text(0x00100020)
    dates = {"00080020": ("DA", "20200101-20200206")}
    with ours(folder / "hilum") as port:
        many = ask(port, {**RETURN_KEYS, **dates})
        one = ask(port, {**RETURN_KEYS, "00100020": ("LO", patient)})
    figures = [{"Hilum": _said(many)}, {"Hilum": _said(one)}]
    if program("Orthanc"):
        http = free_port()
        with orthanc(folder / "orthanc", http=http) as port:
            for data in corpus.studies(0, theirs):
                request = urllib.request.Request(f"http://127.0.0.1:{http}/instances", data=data)
                urllib.request.urlopen(request, timeout=60).close()
            name = f"Orthanc, of {theirs:,}"
            figures[0][name] = _said(ask(port, {**RETURN_KEYS, **dates}, rounds=2))
            figures[1][name] = _said(ask(port, {**RETURN_KEYS, "00100020": ("LO", "PID00000001")}, rounds=3))
    yield Row(f"C-FIND by a range of dates, of {studies:,} studies", figures[0])
    yield Row(f"C-FIND by Patient ID, of {studies:,} studies", figures[1])


def _said(asked: Asked) -> str:
    return f"{asked.answers:,} in {asked.all * 1e3:.1f} ms, first {asked.first * 1e3:.1f} ms"


def row_retrieve(folder: Path, count: int = 200) -> Iterator[Row]:
    """A series of 200 slices of 525 KB to getscu, and to storescp."""
    files = make_files(folder / "files", 5, count, LARGE)
    keys = [
        word
        for key in (
            "QueryRetrieveLevel=SERIES",
            "StudyInstanceUID=1.2.999.5",
            "SeriesInstanceUID=1.2.999.5.1",
        )
        for word in ("-k", key)
    ]
    dest = free_port()
    known = [("DEST", dest)]
    servers = {
        "Hilum": lambda place: ours(place, peer_ports=known),
        "Orthanc": lambda place: orthanc(place, peer_ports=known),
        "dcmqrscp": lambda place: dcmqrscp(place, peer_ports=known),
    }
    got: dict[str, str] = {}
    moved: dict[str, str] = {}
    for name, serve in servers.items():
        if name != "Hilum" and program(name) is None:
            continue
        with serve(folder / name) as port:
            send(port, [files], nodelay=True)
            base = ["-S", "-aec", "HILUM", "127.0.0.1", str(port), *keys]
            for attempt in range(2):
                place = folder / f"{name}-got{attempt}"
                place.mkdir()
                begun = time.perf_counter()
                _run(["getscu", "+B", "-od", str(place), *base])
                got[name] = f"{count / (time.perf_counter() - begun):,.0f}"
                assert len(list(place.iterdir())) == count
            place = folder / f"{name}-moved"
            place.mkdir()
            with running(["storescp", "-aet", "DEST", "+B", "-od", str(place), str(dest)], dest):
                begun = time.perf_counter()
                _run(["movescu", "-aem", "DEST", *base])
                moved[name] = f"{count / (time.perf_counter() - begun):,.0f}"
            assert len(list(place.iterdir())) == count
    yield Row("C-GET of 200 slices of 525 KB, /s", got)
    yield Row("C-MOVE of 200 slices of 525 KB, /s", moved)


ROWS: dict[str, Callable[[Path], Iterator[Row]]] = {
    "steps": row_steps,
    "store": row_store,
    "find": row_find,
    "retrieve": row_retrieve,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("rows", nargs="*", choices=[*ROWS, []], help="which; all")
    parser.add_argument("--folder", default=str(HERE.parent.parent / "build" / "bench"))
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    if wanted.serve:
        serve_plain(wanted.serve[0], int(wanted.serve[1]))
        return
    os.makedirs(wanted.folder, exist_ok=True)
    for name in wanted.rows or ROWS:
        with tempfile.TemporaryDirectory(dir=wanted.folder) as folder:
            for row in ROWS[name](Path(folder)):
                print(
                    f"{row.what}: " + "; ".join(f"{who} {figure}" for who, figure in row.figures.items()),
                    flush=True,
                )


# --- Small rounds ------------------------------------------------------------------------------------


@pytest.fixture
def node(tmp_path):
    with ours(tmp_path, processes=1) as port:
        yield port


@pytest.mark.skipif(program("storescu") is None, reason="storescu is not here")
def test_storescu_sends_twenty_objects(benchmark, node, tmp_path):
    files = make_files(tmp_path / "files", 1, 20, SMALL)
    benchmark.pedantic(send, args=(node, [files]), rounds=3)
    with hilum.open(tmp_path / "store", read_only=True) as store:
        assert store.stats()["instances"] == 20


def test_a_find_of_a_hundred_studies(benchmark, tmp_path):
    with hilum.open(tmp_path / "store", create=True) as store:
        store.ingest_many([store.prepare(data) for data in corpus.studies(0, 100)])
    with ours(tmp_path, processes=1) as port:
        asked = benchmark.pedantic(ask, args=(port, RETURN_KEYS), rounds=3)
    assert asked.answers == 100


if __name__ == "__main__":
    main()
