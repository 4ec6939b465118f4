"""Takes what a benchmark gives to Hilum; does the same with what a user would take without it, or with as
little as the machine can do. Measures nothing.

pydicom comes with Hilum. GDCM and dicomsdl are optional (pip install python-gdcm dicomsdl), Orthanc too
(Debian's packages `orthanc` and `orthanc-dicomweb`); what is not installed is named in the results as not
measured.
"""

from __future__ import annotations

import contextlib
import http.client
import importlib
import io
import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import Any, Self

import corpus
import pydicom

from hilum.engine import record

UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
_UID_TAGS = ((0x0020, 0x000D), (0x0020, 0x000E), (0x0008, 0x0018))
_LOAD_UNTIL = 0x7FDFFFFF
WINDOW = 8_192  # bytes of a header that are read at once


def optional(name: str) -> ModuleType | None:
    """A module that need not be installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


# --- Headers: each gives the three UIDs, so that nobody does less than half the work ------------------


def pydicom_all(data: bytes) -> tuple[str, ...]:
    """Every element before the pixels; values are decoded when asked for, which is only three times."""
    dataset = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True)
    return tuple(str(dataset[name].value) for name in UIDS)


def pydicom_wanted(data: bytes) -> tuple[str, ...]:
    """The elements that Hilum indexes, each of them decoded."""
    dataset = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True, specific_tags=_WANTED)
    for tag in _WANTED:
        dataset.get(tag)
    return tuple(str(dataset[name].value) for name in UIDS)


_WANTED = [*record.NUMBER_OF, record.REQUEST_ATTRIBUTES]


def pydicom_path(path: str) -> tuple[str, ...]:
    dataset = pydicom.dcmread(path, stop_before_pixels=True)
    return tuple(str(dataset[name].value) for name in UIDS)


def dicomsdl_bytes(dicomsdl: ModuleType, data: bytes) -> tuple[str, ...]:
    dataset = dicomsdl.open_memory(data, copy_data=False, load_until=_LOAD_UNTIL)
    return tuple(getattr(dataset, name) for name in UIDS)


def dicomsdl_path(dicomsdl: ModuleType, path: str) -> tuple[str, ...]:
    dataset = dicomsdl.open_file(path, load_until=_LOAD_UNTIL)
    return tuple(getattr(dataset, name) for name in UIDS)


def gdcm_path(gdcm: ModuleType, path: str) -> tuple[str, ...]:
    """Its Python face reads no bytes in memory: give it a file that lies there."""
    reader = gdcm.Reader()
    reader.SetFileName(path)
    if not reader.ReadUpToTag(gdcm.Tag(0x7FE0, 0x0010)):
        raise ValueError(path)
    dataset = reader.GetFile().GetDataSet()
    return tuple(str(dataset.GetDataElement(gdcm.Tag(*tag)).GetValue()) for tag in _UID_TAGS)


def open_and_read(path: str) -> int:
    """The least that a header from a file can cost."""
    fd = os.open(path, os.O_RDONLY)
    data = os.pread(fd, WINDOW, 0)
    os.close(fd)
    return len(data)


# --- What a header holds, as pydicom reads it ---------------------------------------------------


def indexed_values(data: bytes) -> dict[int, list[Any]]:
    """Entry number → values, of everything in a file that Hilum would index."""
    dataset = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True)
    found = {}
    for tag, number in record.NUMBER_OF.items():
        if tag in dataset and dataset[tag].VM:
            found[number] = _plain(dataset[tag])
    for item in dataset.get(record.REQUEST_ATTRIBUTES, None) or ():
        for tag, number in record.NESTED_NUMBER_OF.items():
            if tag in item and item[tag].VM:
                found.setdefault(number, []).extend(_plain(item[tag]))
    return found


def _plain(element: pydicom.DataElement) -> list[Any]:
    values = element.value if element.VM > 1 else [element.value]
    if element.VR in ("DS", "IS", "US"):
        return [float(value) for value in values]
    return [str(value) for value in values]


def stored_values(entries: bytes) -> dict[int, list[Any]]:
    """The same out of the entries that Hilum puts into its index."""
    found = {}
    for number, vr in enumerate(record.VR_OF):
        values = record.values_of(entries, number)
        if values:
            found[number] = (
                [float(v) for v in values] if vr in ("DS", "IS", "US") else [str(v) for v in values]
            )
    return found


def pydicom_metadata(files: Iterable[bytes]) -> int:
    """DICOM JSON of headers; the bytes of it."""
    datasets = (pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True) for data in files)
    return sum(len(json.dumps(dataset.to_json_dict())) for dataset in datasets)


# --- Pixels -----------------------------------------------------------------------------------


def windowed(frame: bytes, center: float, width: float) -> Any:
    """A frame of corpus.ct_picture() under a window: PS3.3 C.11.2.1.2.1 (Default LINEAR Function)."""
    import numpy as np

    side = corpus.PICTURE_SIDE
    values = np.frombuffer(frame, "<u2").reshape(side, side).astype(np.float32) - 1024
    scaled = ((values - (center - 0.5)) / (width - 1) + 0.5) * 255
    return np.clip(scaled, 0, 255).astype(np.uint8)


def windowed_jpeg(frame: bytes, center: float, width: float) -> bytes:
    """The same as a JPEG."""
    from PIL import Image

    found = io.BytesIO()
    Image.fromarray(windowed(frame, center, width)).save(found, "JPEG", quality=90)
    return found.getvalue()


# --- Trees of files ---------------------------------------------------------------------------


def copy_command(source: str, destination: str, *, durable: bool) -> list[str]:
    if not durable:
        return ["cp", "-r", source, destination]
    return ["sh", "-c", 'cp -r "$1" "$2" && sync -f "$2"', "sh", source, destination]


def tar_command(source: str, destination: str) -> list[str]:
    """One file out of many; made durable by an fsync of that file."""
    return ["sh", "-c", 'tar -cf "$2" -C "$1" . && sync "$2"', "sh", source, destination]


def is_copy(source: str, destination: str) -> bool:
    """Whether `destination` has every file of `source`, each as long as there."""
    for folder, _, names in os.walk(source):
        other = destination + folder[len(source) :]
        for name in names:
            if os.path.getsize(os.path.join(folder, name)) != os.path.getsize(os.path.join(other, name)):
                return False
    return True


# --- Orthanc ---------------------------------------------------------------------------------------


def orthanc_program() -> str | None:
    return shutil.which("Orthanc", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")


def orthanc_version() -> str:
    program = orthanc_program()
    if program is None:
        return "not installed"
    answer = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    return "Orthanc " + answer.stdout.split("\n", 1)[0].split()[-1]


def dicomweb_plugin() -> str | None:
    """Orthanc's plugin for DICOMweb: Debian's package `orthanc-dicomweb`."""
    path = "/usr/share/orthanc/plugins/libOrthancDicomWeb.so"
    return path if orthanc_program() is not None and os.path.exists(path) else None


class Orthanc:
    """An Orthanc of our own, on SQLite as it comes, with its storage in `folder`. Use it in a `with`."""

    CLIENTS = 4  # connections that send at once

    def __init__(self, folder: str, plugin: str | None = None) -> None:
        self._folder = folder
        self._plugins = [plugin] if plugin else []
        self._process: subprocess.Popen[bytes] | None = None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]

    def __enter__(self) -> Self:
        program = orthanc_program()
        if program is None:
            raise RuntimeError("Orthanc is not installed")
        os.makedirs(self._folder)
        config = os.path.join(self._folder, "orthanc.json")
        with open(config, "w", encoding="utf-8") as file:
            json.dump(
                {
                    "StorageDirectory": os.path.join(self._folder, "storage"),
                    "IndexDirectory": os.path.join(self._folder, "storage"),
                    "HttpPort": self.port,
                    "DicomServerEnabled": False,
                    "RemoteAccessAllowed": False,
                    "AuthenticationEnabled": False,
                    "KeepAlive": True,
                    "TcpNoDelay": True,
                    "Plugins": self._plugins,
                },
                file,
            )
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen([program, config], **quiet)
        for _ in range(200):
            with contextlib.suppress(OSError):
                self.get("/system")
                return self
            time.sleep(0.1)
        self.__exit__()
        raise RuntimeError("Orthanc did not start")

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def get(self, path: str) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("GET", path)
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()

    def instance_count(self) -> int:
        count: int = self.get("/statistics")["CountInstances"]
        return count

    def store(self, paths: Sequence[str]) -> None:
        """Send files over several connections that stay open; return when the last is stored."""
        failures: list[BaseException] = []
        rest = iter(paths)
        lock = threading.Lock()

        def send() -> None:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
            try:
                for path in _locked(rest, lock):
                    with open(path, "rb") as file:
                        body = file.read()
                    connection.request("POST", "/instances", body, {"Content-Type": "application/dicom"})
                    answer = connection.getresponse()
                    text = answer.read()
                    if answer.status != 200:
                        raise RuntimeError(f"Orthanc refused {path}: {answer.status} {text[:200]!r}")
            except BaseException as failure:
                failures.append(failure)
            finally:
                connection.close()

        threads = [threading.Thread(target=send) for _ in range(self.CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]


def _locked(rest: Iterable[str], lock: threading.Lock) -> Iterable[str]:
    iterator = iter(rest)
    while True:
        with lock:
            path = next(iterator, None)
        if path is None:
            return
        yield path
