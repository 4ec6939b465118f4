"""The index: an ordered map with transactions. The only module that knows LMDB; knows no DICOM rule.

Takes and gives the records of record.py as bytes. Readers work on a Snapshot, writers on a Change, which
is a snapshot that can be written and is durable when its `with` ends. Keys stay under 480 bytes and values
under 64 KiB, so that another ordered store could take LMDB's place.
"""

from __future__ import annotations

import errno
import os
import struct
import threading
from collections.abc import Iterable, Iterator
from struct import Struct
from types import TracebackType
from typing import Any, NamedTuple, Self, cast

import lmdb

from hilum.errors import Corrupt, ReadOnly, StoreBroken, StoreLocked, StoreMissing

MAP_SIZE = 1 << 40
READERS_MAX = 1024
KEY_MAX = 480

INDEX_VERSION = 1

U32 = Struct(">I")
U64 = Struct(">Q")
INSTANCE_KEY = Struct(">III")  # study, series, number in the series
SERIES_KEY = Struct(">II")
PLACE = Struct("<BIQQ")  # flags, container, offset, length
PACK = Struct("<BBQ")  # kind, flags, end of what is committed

PLACE_BAD = 1  # verify found that the bytes there are not the blob

# Flags of a pack.
PACK_SEALED = 1
PACK_CONDEMNED = 2  # a compaction is at work on it: nothing new may rely on what lies in it
PACK_DROPPED = 4  # nothing relies on it: its file goes

# One LMDB database each. docs/format.md says what is in them.
TABLES = (
    b"meta",
    b"packs",
    b"patients",
    b"patient_ids",
    b"patient_studies",
    b"studies",
    b"study_uids",
    b"series",
    b"series_uids",
    b"instances",
    b"sop_uids",
    b"revisions",
    b"places",
    b"keys",
    b"columns",
    b"changes",
    b"conflicts",
    b"bad",
    b"journal",
)


class PackState(NamedTuple):
    kind: int
    sealed: bool
    end: int  # bytes that a commit has covered
    condemned: bool = False
    dropped: bool = False


class BlobPlace(NamedTuple):
    container: int
    offset: int
    length: int
    bad: bool


class _Shared:
    """One Environment for each path of this process: LMDB forbids a second."""

    lock = threading.Lock()
    opened: dict[str, tuple[lmdb.Environment, dict[bytes, Any], int, bool]] = {}  # noqa: RUF012


class Index:
    """One index generation, open. Close it once for each open."""

    def __init__(
        self, path: str, *, read_only: bool = False, create: bool = False, building: bool = False
    ) -> None:
        self._key = os.path.realpath(path)
        self.read_only = read_only
        with _Shared.lock:
            if self._key in _Shared.opened:
                self._env, self._tables, count, only_reads = _Shared.opened[self._key]
                if only_reads and not read_only:
                    raise StoreLocked(f"this process has {path} open for reading; close it before you write")
                _Shared.opened[self._key] = (self._env, self._tables, count + 1, only_reads)
            else:
                self._env, self._tables = self._open(path, create, building)
                _Shared.opened[self._key] = (self._env, self._tables, 1, read_only)

    def _open(self, path: str, create: bool, building: bool) -> tuple[lmdb.Environment, dict[bytes, Any]]:
        if not create and not os.path.exists(os.path.join(path, "data.mdb")):
            raise StoreMissing(f"{path} holds no index; run: hilum rebuild")
        frozen = self.read_only and not os.access(
            path, os.W_OK
        )  # a read-only mount: no lock file, no writers
        try:
            env = lmdb.open(
                path,
                map_size=MAP_SIZE,
                max_dbs=len(TABLES),
                max_readers=READERS_MAX,
                readonly=self.read_only,
                create=create,
                lock=not frozen,
                readahead=False,
                meminit=False,
                sync=not building,  # nobody is told anything before the whole is synced
                max_spare_txns=16,
            )
        except lmdb.Error as failure:
            if isinstance(failure, lmdb.ReadonlyError) or getattr(failure, "code", 0) in (
                errno.EROFS,
                errno.EACCES,
            ):
                raise ReadOnly(f"{path} can't be written") from failure
            raise Corrupt(f"{path} can't be opened ({_words(failure)}); run: hilum rebuild") from failure
        try:
            if create:
                with env.begin(write=True) as txn:  # one commit, not one for each table
                    for name in TABLES:
                        env.open_db(name, txn=txn)
            tables = {name: env.open_db(name, create=False) for name in TABLES}
        except (lmdb.Error, UnicodeDecodeError) as failure:
            env.close()
            raise Corrupt(f"{path} is damaged ({_words(failure)}); run: hilum rebuild") from failure
        if not self.read_only:
            env.reader_check()  # slots of killed readers would hold old pages for ever
        return env, tables

    def sync(self) -> None:
        """Make an index that was opened for building durable."""
        try:
            self._env.sync(True)
        except lmdb.Error as failure:
            raise StoreBroken(f"the index can't be synced: {_words(failure)}") from failure

    def close(self) -> None:
        with _Shared.lock:
            env, tables, count, only_reads = _Shared.opened[self._key]
            if count == 1:
                del _Shared.opened[self._key]
                env.close()
            else:
                _Shared.opened[self._key] = (env, tables, count - 1, only_reads)

    def read(self) -> Snapshot:
        try:
            return Snapshot(self._env.begin(), self._tables)
        except lmdb.Error as failure:
            raise Corrupt(f"the index can't be read: {_words(failure)}") from failure

    def write(self) -> Change:
        """Begin a write transaction: it must end on this thread, and soon."""
        if self.read_only:
            raise ReadOnly("the index was opened for reading")
        try:
            return Change(self._env.begin(write=True), self._tables)
        except lmdb.Error as failure:
            if isinstance(failure, lmdb.ReadonlyError):
                raise ReadOnly("the index was opened for reading") from failure
            raise StoreBroken(f"the index can't be written: {_words(failure)}") from failure

    def file_bytes(self) -> int:
        """Bytes that the index takes on disk."""
        return os.stat(os.path.join(self._key, "data.mdb")).st_blocks * 512

    def table_bytes(self) -> dict[str, int]:
        """Bytes of pages that each table takes."""
        with self._env.begin() as txn:
            found = {}
            for name, table in self._tables.items():
                stat = txn.stat(table)
                pages = stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
                found[name.decode()] = pages * stat["psize"]
            return found


class Snapshot:
    """The index at one moment. Use it in a `with`, shortly: old pages can't be used again before it ends."""

    def __init__(self, txn: lmdb.Transaction, tables: dict[bytes, Any]) -> None:
        self._txn = txn
        self._tables = tables
        self._condemned: frozenset[int] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._txn.abort()
        # Beside LMDB's own: what unpacking says to bytes that are no record of ours.
        if isinstance(error, lmdb.Error | struct.error | IndexError | UnicodeDecodeError):
            raise Corrupt(f"the index is damaged ({_words(error)}); run: hilum rebuild") from error

    # Plain access, by table.

    def get(self, table: bytes, key: bytes) -> bytes | None:
        return cast("bytes | None", self._txn.get(key, db=self._tables[table]))

    def scan(
        self, table: bytes, start: bytes = b"", stop: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Give (key, value) of start <= key < stop in order of the keys, or backwards."""
        with self._txn.cursor(self._tables[table]) as cursor:
            if reverse:
                there = cursor.set_range(stop) if stop is not None else False
                there = cursor.prev() if there else cursor.last()
                while there:
                    key, value = cast("tuple[bytes, bytes]", cursor.item())
                    if key < start:
                        return
                    yield key, value
                    there = cursor.prev()
                return
            there = cursor.set_range(start) if start else cursor.first()
            if not there:
                return
            rows = cast("Iterator[tuple[bytes, bytes]]", cursor.iternext(keys=True, values=True))
            for key, value in rows:
                if stop is not None and key >= stop:
                    return
                yield key, value

    def scan_prefix(
        self, table: bytes, prefix: bytes, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        return self.scan(table, prefix, after_prefix(prefix), reverse=reverse)

    def count(self, table: bytes) -> int:
        count: int = self._txn.stat(self._tables[table])["entries"]
        return count

    # Meta.

    def number(self, name: bytes) -> int:
        """A counter or version; 0 where it was never set."""
        value = self.get(b"meta", name)
        return U64.unpack(value)[0] if value is not None else 0

    def packs(self) -> dict[int, PackState]:
        found = {}
        for key, value in self.scan(b"packs"):
            kind, flags, end = PACK.unpack(value)
            found[U32.unpack(key)[0]] = PackState(
                kind,
                bool(flags & PACK_SEALED),
                end,
                bool(flags & PACK_CONDEMNED),
                bool(flags & PACK_DROPPED),
            )
        return found

    def condemned(self) -> frozenset[int]:
        """The packs that a compaction is at work on."""
        if self._condemned is None:
            value = self.get(b"meta", b"condemned") or b""
            self._condemned = frozenset(number for (number,) in U32.iter_unpack(value))
        return self._condemned

    def place(self, digest: bytes) -> BlobPlace | None:
        value = self.get(b"places", digest)
        return unpack_place(value) if value is not None else None

    def lasting_place(self, digest: bytes) -> BlobPlace | None:
        """The same for whoever is about to write a head that relies on it: None in a condemned pack."""
        place = self.place(digest)
        return None if place is None or place.container in self.condemned() else place


class Change(Snapshot):
    """A write transaction: durable when the `with` ends, nothing at all when it ends by an exception."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._txn.abort()
            if isinstance(error, lmdb.MapFullError | lmdb.DiskError):
                raise StoreBroken(f"the index can't grow: {_words(error)}") from error
            if isinstance(error, lmdb.Error):
                raise StoreBroken(f"write to the index failed: {_words(error)}") from error
            return
        try:
            self._txn.commit()
        except lmdb.Error as failure:
            raise StoreBroken(f"commit to the index failed: {_words(failure)}") from failure

    def put(self, table: bytes, key: bytes, value: bytes) -> None:
        self._txn.put(key, value, db=self._tables[table])

    def put_many(self, table: bytes, items: Iterable[tuple[bytes, bytes]]) -> None:
        """Put many, in the order of their keys: sorted batches touch each page once."""
        with self._txn.cursor(self._tables[table]) as cursor:
            cursor.putmulti(sorted(items))

    def delete(self, table: bytes, key: bytes) -> bool:
        deleted: bool = self._txn.delete(key, db=self._tables[table])
        return deleted

    def set_number(self, name: bytes, value: int) -> None:
        self.put(b"meta", name, U64.pack(value))

    def take_numbers(self, name: bytes, count: int = 1) -> int:
        """Advance a counter; return the first of `count` numbers that nobody else has. They begin at 1."""
        last = self.number(name)
        self.set_number(name, last + count)
        return last + 1

    def put_pack(self, number: int, state: PackState) -> None:
        flags = PACK_SEALED * state.sealed | PACK_CONDEMNED * state.condemned | PACK_DROPPED * state.dropped
        self.put(b"packs", U32.pack(number), PACK.pack(state.kind, flags, state.end))

    def drop_pack(self, number: int) -> None:
        """Forget a pack whose file is gone, durably."""
        self.delete(b"packs", U32.pack(number))

    def condemn(self, numbers: Iterable[int]) -> None:
        """Let exactly these packs be the condemned ones; their states are the caller's to put."""
        self._condemned = frozenset(numbers)
        if self._condemned:
            self.put(b"meta", b"condemned", b"".join(map(U32.pack, sorted(self._condemned))))
        else:
            self.delete(b"meta", b"condemned")


def pack_place(container: int, offset: int, length: int, *, bad: bool = False) -> bytes:
    return PLACE.pack(PLACE_BAD if bad else 0, container, offset, length)


def unpack_place(value: bytes) -> BlobPlace:
    flags, container, offset, length = PLACE.unpack(value)
    return BlobPlace(container, offset, length, bool(flags & PLACE_BAD))


def after_prefix(prefix: bytes) -> bytes | None:
    """The first key behind all that begin with `prefix`; None where there is none."""
    cut = prefix.rstrip(b"\xff")
    return cut[:-1] + bytes((cut[-1] + 1,)) if cut else None


def _words(failure: BaseException) -> str:
    return str(failure) or type(failure).__name__
