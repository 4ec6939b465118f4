"""The store's folder: its names, its locks and its CURRENT index. Knows no record and no transaction.

STORE           who this store is: format version and UUID, as JSON
CURRENT         the name of the index folder in use
index-NNNNNN/   an index generation (LMDB)
packs/          NNNNNNNN.head, .bulk, .file
spool/          large values on their way in; whoever finds one unlocked may remove it
lock            every opener holds it shared; rebuild holds it alone
commit.lock     held by the one writer that decides, appends heads and commits
compact.lock    held by the one compaction at work; shared by those who want none meanwhile
ballast         bytes to give up so that delete works on a full disk
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import time
import uuid
from types import TracebackType

from hilum.engine.index import INDEX_VERSION, Index
from hilum.engine.packs import PackName, lock_file, sync_directory
from hilum.errors import ReadOnly, StoreBroken, StoreLocked, StoreMissing

FORMAT_VERSION = 1
BALLAST_BYTES = 1 << 20
LOCK_WAIT_SECONDS = 10.0
_PARTS = {
    "lock", "commit.lock", "compact.lock", "STORE", "STORE.new", "packs", "spool", "ballast", "derived",
    "commitment",
}  # fmt: skip


class Folder:
    """A store's folder, open and locked. Close it to let others take it for themselves."""

    def __init__(
        self, path: str, *, create: bool = False, read_only: bool = False, alone: bool = False
    ) -> None:
        self.path = os.path.abspath(path)
        self.read_only = read_only
        if create and not read_only:
            self._make_folder()
        self._lock = self._take_lock(alone=alone, create=create)
        try:
            if create and not read_only and not os.path.exists(self._file("CURRENT")):
                self._create()
            self.uuid = self._read_identity()
        except BaseException:
            self.close()
            raise

    @property
    def packs(self) -> str:
        return self._file("packs")

    @property
    def spool(self) -> str:
        return self._file("spool")

    def index_path(self) -> str:
        """Folder of the index generation in use.

        Raises:
            StoreMissing: CURRENT is gone, or names nothing.
        """
        try:
            with open(self._file("CURRENT"), encoding="ascii") as file:
                name = file.read(64).strip()
        except (FileNotFoundError, UnicodeDecodeError):
            name = ""
        path = self._file(name)
        if not name.startswith("index-") or "/" in name or not os.path.isdir(path):
            raise StoreMissing(f"{self.path} has no index; its packs are untouched. Run: hilum rebuild")
        return path

    def next_index(self) -> str:
        """Name of the generation that follows all that exist."""
        numbers = [
            int(name[6:])
            for name in os.listdir(self.path)
            if name.startswith("index-") and name[6:].isdigit()
        ]
        return f"index-{max(numbers, default=0) + 1:06}"

    def switch_to(self, name: str) -> None:
        """Make a finished index the one in use, durably."""
        sync_directory(self._file(name))
        self._write_file("CURRENT", name + "\n")

    def old_indexes(self) -> list[str]:
        """Paths of generations that are not in use."""
        current = os.path.basename(self.index_path())
        return [
            self._file(name)
            for name in os.listdir(self.path)
            if name.startswith("index-") and name != current
        ]

    def commit_lock(self) -> CommitLock:
        return CommitLock(self._file("commit.lock"))

    def lock_compaction(self, *, shared: bool = False) -> int | None:
        """Keep compactions away as long as the descriptor that is returned is open; None if one is at work,
        or, unless `shared`, if somebody else keeps them away.
        """
        flags = os.O_RDONLY if self.read_only else os.O_RDWR | os.O_CREAT
        try:
            fd = os.open(self._file("compact.lock"), flags | os.O_CLOEXEC, 0o644)
        except OSError as failure:
            if self.read_only:
                return os.open(self._file("lock"), os.O_RDONLY | os.O_CLOEXEC)  # there never was a compaction
            raise StoreBroken(f"compact.lock can't be opened: {failure.strerror}") from failure
        if lock_file(fd, shared=shared):
            return fd
        os.close(fd)
        return None

    def clear_spool(self) -> None:
        """Remove spool files whose writer is gone."""
        with contextlib.suppress(OSError), os.scandir(self.spool) as entries:
            for entry in entries:
                if not PackName.match(entry.name):
                    continue
                with contextlib.suppress(OSError):
                    fd = os.open(entry.path, os.O_RDWR | os.O_CLOEXEC)
                    try:
                        if lock_file(fd):
                            os.unlink(entry.path)
                    finally:
                        os.close(fd)

    def make_room(self) -> None:
        """Give the ballast up if the disk is full, so that what frees space can be written down."""
        status = os.statvfs(self.path)
        if status.f_bavail * status.f_frsize < BALLAST_BYTES:
            with contextlib.suppress(OSError):
                os.unlink(self._file("ballast"))

    def keep_ballast(self) -> None:
        """Have some bytes put by, where the disk has room for them."""
        path = self._file("ballast")
        status = os.statvfs(self.path)
        if os.path.exists(path) or status.f_bavail * status.f_frsize < 16 * BALLAST_BYTES:
            return
        with contextlib.suppress(OSError):
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                os.write(fd, os.urandom(BALLAST_BYTES))  # random: a file system that compresses must keep it
            finally:
                os.close(fd)

    def close(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _file(self, name: str) -> str:
        return os.path.join(self.path, name)

    def _make_folder(self) -> None:
        try:
            os.makedirs(self.path, exist_ok=True)
        except FileExistsError as failure:
            raise StoreMissing(f"{self.path} is not a folder") from failure
        except OSError as failure:
            raise ReadOnly(f"{self.path} can't be made: {failure.strerror}") from failure

    def _take_lock(self, *, alone: bool, create: bool) -> int:
        path = self._file("lock")
        flags = os.O_RDONLY if self.read_only else os.O_RDWR
        if not self.read_only and (create or os.path.exists(self._file("STORE"))):
            flags |= os.O_CREAT  # a folder that is no store stays as it is
        try:
            fd = os.open(path, flags | os.O_CLOEXEC, 0o644)
        except FileNotFoundError:
            raise StoreMissing(f"there is no store at {self.path}") from None
        except NotADirectoryError:
            raise StoreMissing(f"{self.path} is not a folder") from None
        except OSError as failure:
            if failure.errno in (errno.EROFS, errno.EACCES, errno.EPERM) and not self.read_only:
                raise ReadOnly(f"{self.path} can't be written: {failure.strerror}") from failure
            raise StoreMissing(f"{self.path} can't be opened: {failure.strerror}") from failure
        deadline = time.monotonic() + LOCK_WAIT_SECONDS
        while not lock_file(fd, shared=not alone):
            if alone or time.monotonic() > deadline:
                os.close(fd)
                raise StoreLocked(
                    f"{self.path} is in use by another process"
                    if alone
                    else f"{self.path} is being rebuilt by another process"
                )
            time.sleep(0.05)
        return fd

    def _create(self) -> None:
        """Make the parts in such an order that CURRENT, the last, exists only when all else is durable."""
        gate = CommitLock(self._file("commit.lock"))
        with gate:
            if os.path.exists(self._file("CURRENT")):
                return
            if os.path.isdir(self.packs) and os.listdir(self.packs):
                raise StoreMissing(f"{self.path} has packs but no index. Run: hilum rebuild")
            try:
                strange = [
                    name
                    for name in os.listdir(self.path)
                    if name not in _PARTS and not name.startswith(("index-", "CURRENT"))
                ]
                if strange:
                    raise StoreMissing(
                        f"{self.path} is not empty ({strange[0]!r} is there), so no store is made in it"
                    )
                os.makedirs(self.packs, exist_ok=True)
                os.makedirs(self.spool, exist_ok=True)
                store = uuid.uuid4()
                self._write_file("STORE", json.dumps({"format": FORMAT_VERSION, "uuid": str(store)}) + "\n")
                name = self.next_index()
                make_index(self._file(name), store.bytes).close()
                self._sync_way()
                self.switch_to(name)
            except OSError as failure:
                raise StoreBroken(f"a store can't be made in {self.path}: {failure.strerror}") from failure
        self.keep_ballast()

    def _sync_way(self) -> None:
        """Make the folders above the store durable: they may have been made for it, all of them."""
        path = self.path
        while path != (path := os.path.dirname(path)):
            try:
                sync_directory(path)
            except OSError as failure:
                if failure.errno == errno.EIO:
                    raise
                return  # not ours to open, so not made by us, nor what is above it

    def _read_identity(self) -> bytes:
        try:
            with open(self._file("STORE"), encoding="utf-8") as file:
                identity = json.loads(file.read(4096))
            version, store = identity["format"], uuid.UUID(identity["uuid"]).bytes
        except FileNotFoundError:
            raise StoreMissing(f"there is no store at {self.path}") from None
        except (OSError, ValueError, KeyError, TypeError) as failure:
            raise StoreMissing(f"{self._file('STORE')} can't be read: {failure}") from failure
        if version != FORMAT_VERSION:
            raise StoreMissing(f"{self.path} has format {version}; this Hilum reads {FORMAT_VERSION}")
        return store

    def _write_file(self, name: str, text: str) -> None:
        """Replace a small file so that it is the old or the new one after a crash, and durable."""
        new = self._file(name + ".new")
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            os.write(fd, text.encode("ascii"))
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(new, self._file(name))
        sync_directory(self.path)


def make_index(path: str, store: bytes, *, building: bool = False) -> Index:
    """A new, empty index generation of this store; `building` one is durable only after its sync()."""
    os.makedirs(path, exist_ok=True)
    index = Index(path, create=True, building=building)
    with index.write() as change:
        change.set_number(b"version", INDEX_VERSION)
        change.put(b"meta", b"store", store)
        change.put(b"meta", b"epoch", uuid.uuid4().bytes)
    sync_directory(path)
    return index


class CommitLock:
    """One writer at a time, over all processes. Taken before the index's own write lock, never inside it."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = -1

    def __enter__(self) -> CommitLock:
        try:
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as failure:
            if failure.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
                raise ReadOnly(f"{self._path} can't be written: {failure.strerror}") from failure
            raise StoreBroken(f"{self._path} can't be opened: {failure.strerror}") from failure
        lock_file(self._fd, wait=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)

    def last_sequence(self) -> int:
        """The last sequence number that any writer has put in a pack, committed or not.

        A writer killed between its append and its commit has used numbers that the index does not know.
        After power loss this may be stale; then recovery reads the packs first.
        """
        return int.from_bytes(os.pread(self._fd, 8, 0), "little")

    def note_sequence(self, last: int) -> None:
        os.pwrite(self._fd, last.to_bytes(8, "little"), 0)
