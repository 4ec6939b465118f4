"""Takes something to run; gives how long it took and what memory it had. Knows nothing of DICOM.

Seconds and bytes throughout. Nothing is left out of a series of times but what a benchmark names a warm-up.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from statistics import median
from typing import Any, NamedTuple

import hilum

_SAMPLE_SECONDS = 0.02  # between two looks at a command's memory
_MAPS_SECONDS = 0.5  # and at its list of mappings, which takes the kernel longer
_PACKAGES = (
    "blake3", "isal", "lmdb", "numpy", "pydicom", "dicomsdl", "python-gdcm", "starlette", "uvicorn", "uvloop",
    "httptools", "imagecodecs", "pillow",
)  # fmt: skip


class Times(NamedTuple):
    """Several measurements of one thing, in the order in which they were made."""

    values: tuple[float, ...]

    @property
    def min(self) -> float:
        return min(self.values)

    @property
    def median(self) -> float:
        return median(self.values)

    @property
    def max(self) -> float:
        return max(self.values)

    @property
    def p50(self) -> float:
        return self.percentile(50)

    @property
    def p99(self) -> float:
        return self.percentile(99)

    def percentile(self, percent: float) -> float:
        """The smallest value that `percent` of all don't exceed."""
        ordered = sorted(self.values)
        return ordered[max(0, -(-len(ordered) * percent // 100).__int__() - 1)]

    def per(self, count: float) -> Times:
        """The same for one of `count` things that each measurement did."""
        return Times(tuple(value / count for value in self.values))


def ratio(yardstick: Times, ours: Times) -> Times:
    """How many times as fast as the yardstick we were, pair by pair: what ran side by side is compared."""
    return Times(tuple(theirs / own for theirs, own in zip(yardstick.values, ours.values, strict=True)))


def times(work: Callable[[], object], rounds: int, *, warmups: int = 1) -> Times:
    """Run `work` so often, after some runs that don't count."""
    for _ in range(warmups):
        work()
    values = []
    for _ in range(rounds):
        begin = time.perf_counter()
        work()
        values.append(time.perf_counter() - begin)
    return Times(tuple(values))


def alternate(works: Sequence[Callable[[], object]], rounds: int, *, warmups: int = 1) -> list[Times]:
    """Run A B C A B C ...: whatever else the machine does hits all of them alike."""
    for _ in range(warmups):
        for work in works:
            work()
    rows: list[list[float]] = [[] for _ in works]
    for _ in range(rounds):
        for row, work in zip(rows, works, strict=True):
            begin = time.perf_counter()
            work()
            row.append(time.perf_counter() - begin)
    return [Times(tuple(row)) for row in rows]


def each(work: Callable[[Any], object], arguments: Iterable[Any]) -> tuple[Times, list[Any]]:
    """Time every call by itself; also give the answers, for the caller to check."""
    values, answers = [], []
    for argument in arguments:
        begin = time.perf_counter()
        answer = work(argument)
        values.append(time.perf_counter() - begin)
        answers.append(answer)
    return Times(tuple(values)), answers


# --- Commands -------------------------------------------------------------------------------


class Memory(NamedTuple):
    """Memory that is a process's own: pages of files that can be dropped don't count."""

    anonymous: int  # RssAnon
    shared: int  # RssShmem
    mapped: int = 0  # of `shared`: pages of an LMDB file that lies on a RAM file system

    @property
    def total(self) -> int:
        """What counts. Pages of a mapped file are RssFile where the file is on a disk; on a RAM file system,
        where the file itself is memory, they are RssShmem: `mapped`, which is the store and not the process.
        """
        return self.anonymous + self.shared - self.mapped


class Run(NamedTuple):
    """One command that has ended."""

    seconds: float
    peak: Memory  # at the moment of the greatest sum over all its processes
    output: str
    status: int


def run_command(arguments: Sequence[str], *, sampled: bool = True, check: bool = True) -> Run:
    """Run a command to its end, and watch the memory of it and all processes that it starts.

    Raises:
        RuntimeError: it failed, and `check` is set.
    """
    with tempfile.TemporaryFile() as output:
        begin = time.perf_counter()
        process = subprocess.Popen(arguments, stdout=output, stdin=subprocess.DEVNULL)
        with contextlib.ExitStack() as stack:
            sampler = stack.enter_context(Sampler(process.pid)) if sampled else None
            status = process.wait()
            seconds = time.perf_counter() - begin
        output.seek(0)
        text = output.read().decode("utf-8", "replace")
    if check and status:
        raise RuntimeError(f"{' '.join(arguments)} ended with status {status}: {text[-2_000:]}")
    return Run(seconds, sampler.peak if sampler else Memory(0, 0), text, status)


class Sampler(threading.Thread):
    """Watches the memory of a process and all that it starts, as long as it is entered."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.peak = Memory(0, 0)
        self._pid = pid
        self._ended = threading.Event()

    def run(self) -> None:
        mapped, looked = 0, 0.0
        while not self._ended.wait(_SAMPLE_SECONDS):
            processes = _family(self._pid)
            found = Memory(*map(sum, zip(*map(_resident, processes), strict=True)))
            if found.shared and time.monotonic() > looked + _MAPS_SECONDS:
                mapped, looked = sum(map(_mapped, processes)), time.monotonic()
            found = found._replace(mapped=min(mapped, found.shared))
            if found.total > self.peak.total:
                self.peak = found

    def __enter__(self) -> Sampler:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join()


def resident(pid: int) -> Memory:
    """Memory of a process and all below it at this moment."""
    processes = _family(pid)
    anonymous, shared = map(sum, zip(*map(_resident, processes), strict=True))
    return Memory(anonymous, shared, min(shared, sum(map(_mapped, processes))))


def processor(pid: int) -> float:
    """Seconds of processor time that a process and all below it have had. Other load hardly changes them."""
    total = 0
    for process in _family(pid):
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{process}/task"):
                with open(f"/proc/{process}/task/{task}/schedstat", "rb") as file:
                    total += int(file.read().split()[0])
    return total / 1e9


def _family(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for current in found:
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{current}/task"):
                with open(f"/proc/{current}/task/{task}/children", "rb") as file:
                    found += map(int, file.read().split())
    return found


def _resident(pid: int) -> tuple[int, int]:
    """RssAnon and RssShmem; zeros when it has ended."""
    anonymous = shared = 0
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status", "rb") as file:
        for line in file:
            if line.startswith(b"RssAnon:"):
                anonymous = int(line.split()[1]) << 10
            elif line.startswith(b"RssShmem:"):
                shared = int(line.split()[1]) << 10
    return anonymous, shared


def _mapped(pid: int) -> int:
    """Resident bytes of its mapped LMDB files."""
    total, ours = 0, False
    with contextlib.suppress(OSError), open(f"/proc/{pid}/smaps", "rb") as file:
        for line in file:
            if line[:1] in b"0123456789abcdef":  # a mapping begins; its fields have capital letters
                ours = line.endswith(b".mdb\n")
            elif ours and line.startswith(b"Rss:"):
                total += int(line.split()[1]) << 10
    return total


# --- The machine -------------------------------------------------------------------------------


def drop_page_cache() -> bool:
    """Forget what files the machine has in memory; False where we may not."""
    os.sync()
    try:
        with open("/proc/sys/vm/drop_caches", "w", encoding="ascii") as file:
            file.write("1\n")
    except OSError:
        return False
    return True


def warm(root: str) -> int:
    """Read every file under `root` once; return their bytes."""
    total = 0
    for folder, _, names in os.walk(root):
        for name in names:
            with open(os.path.join(folder, name), "rb", buffering=0) as file:
                while chunk := file.read(1 << 20):
                    total += len(chunk)
    return total


def file_system(path: str) -> str:
    """The kind of file system that holds `path`: "ext4", "tmpfs"."""
    best, kind = "", "unknown"
    real = os.path.realpath(path)
    with open("/proc/mounts", encoding="utf-8") as file:
        for line in file:
            point, name = line.split()[1:3]
            if (real + "/").startswith(point.rstrip("/") + "/") and len(point) >= len(best):
                best, kind = point, name
    return kind


def machine() -> dict[str, str]:
    """What a reader must know to compare: processor, memory, kernel, versions."""
    model = "unknown"
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    versions = [f"hilum {hilum.__version__}"]
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{name} {importlib.metadata.version(name)}")
    return {
        "processor": f"{model}, {os.cpu_count()} cores",
        "memory": f"{ram / 1e9:.0f} GB",
        "kernel": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "packages": ", ".join(versions),
    }
