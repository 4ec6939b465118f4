"""Takes objects that come from another archive, in pieces; puts them into the store, or into a folder as
`export` does. What it says is stored is durable.
"""

from __future__ import annotations

import os
import re
import threading
import uuid
from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple, Protocol

from hilum import api
from hilum.engine import header, record
from hilum.engine.prepare import Arrival
from hilum.engine.writer import Policy, Result
from hilum.errors import BadDicom, Corrupt, HilumError, NotDicom

BATCH_COUNT = 64  # objects in one commit
BATCH_BYTES = 8 << 20
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_NAME_MAX = 100
_AGAIN_MAX = 3
_CHUNK = 1 << 20


class Kept(Enum):
    """What became of an object."""

    STORED = "stored"
    PRESENT = "present"  # the same is there already
    CONFLICT = "conflict"  # other content is there, and is kept


class Answer(NamedTuple):
    """What became of an object, or why it could not be kept."""

    uid: str
    kept: Kept | None  # None: it was not kept
    words: str = ""


class Coming(Protocol):
    """An object that is coming in, as a Part 10 file."""

    def write(self, data: bytes | memoryview, /) -> None: ...
    def discard(self) -> None: ...


class Place(Protocol):
    """Where objects are put. Safe from several threads, but for what one begin() gave."""

    def has(self, uid: str, parents: tuple[str, str, str]) -> bool:
        """Whether it is there; `parents` are its patient, study and series."""
        ...

    def begin(self, source: str) -> Coming: ...

    def keep(self, comings: Sequence[Coming]) -> list[Answer]:
        """Objects that have come whole: keep them, durably, and let go of them.

        Raises:
            StoreFault, OSError: the disk is full or broken; nothing more can be kept.
        """
        ...


# --- The store ---------------------------------------------------------------------


class IntoStore:
    """Objects become instances of a store."""

    def __init__(self, store: api.Store, policy: Policy = Policy.KEEP_FIRST) -> None:
        self._store = store
        self._policy = policy

    def has(self, uid: str, parents: tuple[str, str, str]) -> bool:
        try:
            self._store.locate(uid)
        except HilumError:
            return False
        return True

    def begin(self, source: str) -> Arrival:
        return self._store.arrival(source=source)

    def keep(self, comings: Sequence[Coming]) -> list[Answer]:
        answers: dict[int, Answer] = {}
        left = [(index, coming) for index, coming in enumerate(comings) if isinstance(coming, Arrival)]
        try:
            for attempt in range(_AGAIN_MAX):
                ready = []
                for index, arrival in left:
                    if attempt and not arrival.can_finish_again:
                        continue
                    try:
                        ready.append((index, arrival, arrival.finish()))
                    except (NotDicom, BadDicom, Corrupt) as failure:
                        answers[index] = Answer("", None, _words_of(failure))
                outcomes = self._store.writer.submit([prepared for _, _, prepared in ready], self._policy)
                left = []
                for (index, arrival, prepared), outcome in zip(ready, outcomes, strict=True):
                    if outcome.result == Result.AGAIN:
                        left.append((index, arrival))
                        continue
                    uid = prepared.uid.strip(b" \0").decode("latin-1")
                    answers[index] = Answer(uid, *_KEPT.get(outcome.result, (Kept.STORED, "")))
                if not left:
                    break
        finally:
            for coming in comings:
                coming.discard()
        again = Answer("", None, "what it shares with another object has gone: get it again")
        return [answers.get(index, again) for index in range(len(comings))]


_KEPT = {
    Result.DUPLICATE: (Kept.PRESENT, ""),
    Result.CONFLICT: (Kept.CONFLICT, "other content is stored under this UID, and is kept"),
}


def _words_of(failure: HilumError) -> str:
    return failure.reason if isinstance(failure, BadDicom) else str(failure)


# --- A folder ------------------------------------------------------------------------


def safe_name(text: str) -> str:
    """A file name out of a value that anyone may have written: no path leads out of the folder."""
    name = _UNSAFE.sub("_", text).strip(".") or "_"
    if len(name) > _NAME_MAX or name != text:
        from blake3 import blake3

        # Two values that look alike after this must not share a folder.
        name = f"{name[:_NAME_MAX]}-{blake3(text.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"
    return name


def file_path(folder: str, parents: tuple[str, str, str], uid: str) -> str:
    """Where a file stands: FOLDER/patient/study/series/instance.dcm."""
    patient = parents[0] or "no-patient-id"
    return os.path.join(folder, *map(safe_name, (patient, *parents[1:])), safe_name(uid) + ".dcm")


class FolderComing:
    """An object on its way into a folder, under another name until it is whole."""

    def __init__(self, folder: str) -> None:
        self.path = os.path.join(folder, f".{uuid.uuid4().hex}.part")
        self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)

    def write(self, data: bytes | memoryview, /) -> None:
        left = memoryview(data)
        while left:
            left = left[os.write(self.fd, left) :]

    def discard(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        if os.path.exists(self.path):
            os.unlink(self.path)


class IntoFolder:
    """Objects become files in a folder."""

    def __init__(self, folder: str, policy: Policy = Policy.KEEP_FIRST) -> None:
        os.makedirs(folder, exist_ok=True)
        self._folder = folder
        self._policy = policy
        self._lock = threading.Lock()

    def has(self, uid: str, parents: tuple[str, str, str]) -> bool:
        return os.path.isfile(file_path(self._folder, parents, uid))

    def begin(self, source: str) -> FolderComing:
        return FolderComing(self._folder)

    def keep(self, comings: Sequence[Coming]) -> list[Answer]:
        answers = []
        changed: set[str] = set()
        try:
            for coming in comings:
                assert isinstance(coming, FolderComing)
                try:
                    answers.append(self._keep(coming, changed))
                except (NotDicom, BadDicom) as failure:
                    answers.append(Answer("", None, _words_of(failure)))
            for folder in changed:
                _sync_folder(folder)
        finally:
            for coming in comings:
                coming.discard()
        return answers

    def _keep(self, coming: FolderComing, changed: set[str]) -> Answer:
        parsed = header.parse_fd(coming.fd, os.fstat(coming.fd).st_size)
        patient = _text(parsed.upper, 0x00100020) or _text(parsed.upper, 0x00100010)
        study, series, uid = (
            name.strip(b" \0").decode("latin-1") for name in (parsed.study, parsed.series, parsed.uid)
        )
        path = file_path(self._folder, (patient, study, series), uid)
        with self._lock:
            if os.path.exists(path):
                if _same_data_set(coming.fd, parsed.data_set_at, path):
                    return Answer(uid, Kept.PRESENT)
                if self._policy == Policy.KEEP_FIRST:
                    return Answer(uid, Kept.CONFLICT, f"{path} has other content, and is kept")
            os.fsync(coming.fd)
            folder = os.path.dirname(path)
            if not os.path.isdir(folder):
                os.makedirs(folder)
                changed.update(_between(self._folder, folder))
            os.replace(coming.path, path)
        changed.add(folder)
        return Answer(uid, Kept.STORED)


def _text(entries: bytes, tag: int) -> str:
    try:
        values = record.values_of(entries, record.NUMBER_OF[tag])
    except (BadDicom, record.LeftInHead):
        return ""
    return "\\".join("" if value is None else str(value) for value in values)


def _between(top: str, folder: str) -> list[str]:
    found = [top]
    for part in os.path.relpath(folder, top).split(os.sep):
        found.append(os.path.join(found[-1], part))
    return found


def _sync_folder(folder: str) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _same_data_set(fd: int, at: int, path: str) -> bool:
    """Whether a file has the same data set, whatever its File Meta Information."""
    with open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            other = header.parse_fd(file.fileno(), size).data_set_at
        except (NotDicom, BadDicom):
            return False
        if size - other != os.fstat(fd).st_size - at:
            return False
        file.seek(other)
        while mine := os.pread(fd, _CHUNK, at):
            if file.read(len(mine)) != mine:
                return False
            at += len(mine)
    return True
