"""Append-only pack files: takes payloads, gives places. Never looks inside a payload, never deletes.

A pack is a header of 64 bytes and records back to back, each of 64 bytes and its payload, at multiples of
8 bytes; docs/format.md draws them. There are three kinds: head packs (heads and changes of state), bulk
packs (blobs) and file packs (one blob, too large to lie among others, spooled beside the store first).

What is promised: after PackWriter.sync() every record appended before it survives power loss. A record
that was appended but not synced may be whole, absent or torn after a crash; `records` stops at the first
that is not whole.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from struct import Struct
from typing import NamedTuple

from blake3 import blake3
from isal.isal_zlib import crc32

from hilum import _fastread
from hilum._fastpack import RecordQueue, record_header
from hilum.errors import Corrupt, ReadOnly, StoreBroken

HEAD_PACK, BULK_PACK, FILE_PACK = 1, 2, 3
SUFFIX_OF = {HEAD_PACK: "head", BULK_PACK: "bulk", FILE_PACK: "file"}
KIND_OF = {suffix: kind for kind, suffix in SUFFIX_OF.items()}

# Kinds of record.
STORED, DELETED, CONFLICT, BLOB, BAD_BLOB, PURGED, FOOTER = 1, 2, 3, 4, 5, 6, 15

PACK_HEADER = Struct("<8sBB6x16sQQQI4x")
PACK_MAGIC = b"HILUMPK1"
PACK_VERSION = 1
RECORD_MAGIC = 0x4D4C4948  # "HILM"
RECORD_TAIL = Struct("<BBBBIQQ32s")  # what the record's CRC covers
RECORD_HEAD = Struct("<II")
RECORD_SIZE = 64
TRAILER = Struct("<8sQQII")
TRAILER_MAGIC = b"HILUMEND"
FOOTER_ENTRY = Struct("<32sQQ")
DIGEST_BLAKE3 = 1
CODEC_RAW = 0
ALIGN = 8

assert PACK_HEADER.size == RECORD_HEAD.size + RECORD_TAIL.size == RECORD_SIZE
assert TRAILER.size == 32

FLUSH_BYTES = 8 << 20
WRITEBACK_BYTES = 16 << 20
_SYNC_FILE_RANGE_WRITE = 2

Buffer = bytes | bytearray | memoryview

PackName = re.compile(r"^(\d{8})\.(head|bulk|file)$")


class Place(NamedTuple):
    """Where a payload lies."""

    container: int  # number of the pack
    offset: int  # of the payload's first byte, from the start of the file
    length: int


class Record(NamedTuple):
    kind: int
    offset: int  # of the payload
    length: int
    sequence: int  # 0 for blobs
    digest: bytes
    crc: int  # CRC-32 of the payload


class PackInfo(NamedTuple):
    """What a pack's own header says."""

    kind: int
    store: bytes  # UUID
    number: int
    salt: int


def padding(length: int) -> int:
    return -length % ALIGN


def pack_name(number: int, kind: int) -> str:
    return f"{number:08}.{SUFFIX_OF[kind]}"


def read_info(fd: int, name: str) -> PackInfo:
    """Read a pack's header.

    Raises:
        Corrupt: it is not one, or its checksum does not fit.
    """
    data = os.pread(fd, PACK_HEADER.size, 0)
    if len(data) == PACK_HEADER.size:
        magic, kind, version, store, number, salt, _, crc = PACK_HEADER.unpack(data)
        if magic == PACK_MAGIC and version == PACK_VERSION and crc32(data[:56]) == crc:
            return PackInfo(kind, store, number, salt)
    raise Corrupt(f"{name}: no pack header")


def parse_record(data: bytes, offset: int, salt: int) -> Record | None:
    """Read a record's header at `offset` bytes of its pack; None if it is none."""
    if len(data) < RECORD_SIZE:
        return None
    magic, crc = RECORD_HEAD.unpack_from(data)
    tail = data[8:RECORD_SIZE]
    if magic != RECORD_MAGIC ^ (salt & 0xFFFFFFFF) or crc != crc32(tail, salt >> 32):
        return None
    kind, codec, algorithm, _, payload_crc, length, sequence, digest = RECORD_TAIL.unpack(tail)
    if codec != CODEC_RAW or algorithm != DIGEST_BLAKE3:
        return None
    return Record(kind, offset + RECORD_SIZE, length, sequence, digest, payload_crc)


def pread_exactly(fd: int, length: int, offset: int) -> bytes:
    """Read `length` bytes, fewer only at the end of the file."""
    data = os.pread(fd, length, offset)
    if len(data) == length or not data:
        return data
    parts = [data]
    done = len(data)
    while done < length:  # one pread gives at most 2 GiB
        more = os.pread(fd, length - done, offset + done)
        if not more:
            break
        parts.append(more)
        done += len(more)
    return b"".join(parts)


def records(
    fd: int,
    info: PackInfo,
    start: int,
    size: int,
    *,
    whole: bool,
    on_bad: Callable[[int, int], None] | None = None,
) -> Iterator[Record]:
    """Give the records of a pack from `start` on, up to the first that is not one.

    With `whole` each payload is read too, and the walk ends at the first whose checksum (heads and
    changes of state) or digest (blobs) does not fit: that is the torn tail of a crash.

    With `on_bad` the walk is over bytes that should be whole: what is damaged is told to it (container,
    offset) and passed over, so that one rotten byte does not hide all that lies behind it.
    """
    at = start
    window = b""
    window_at = 0
    while at + RECORD_SIZE <= size:
        if not (window_at <= at and at + RECORD_SIZE <= window_at + len(window)):
            window, window_at = os.pread(fd, 65_536, at), at
        record = parse_record(window[at - window_at : at - window_at + RECORD_SIZE], at, info.salt)
        if record is None or not _fits(info, record, size):
            following = find_record(fd, info, at + ALIGN, size) if on_bad is not None else None
            if on_bad is None or following is None:
                return
            on_bad(info.number, at)
            at = following
            continue
        if not whole or payload_fits(fd, record):
            yield record
        elif on_bad is None:
            return
        else:
            on_bad(info.number, record.offset)
        at = record.offset + record.length + padding(record.length)


def _fits(info: PackInfo, record: Record, size: int) -> bool:
    """Whether the record ends inside the pack, its padding too: the next one must begin behind it."""
    pad = padding(record.length) if info.kind != FILE_PACK else 0
    return record.length + pad <= size - record.offset


def find_record(fd: int, info: PackInfo, start: int, size: int) -> int | None:
    """Where the first record at or behind `start` begins, when what lies before it is damaged."""
    magic = (RECORD_MAGIC ^ (info.salt & 0xFFFFFFFF)).to_bytes(4, "little")
    at = start
    while at + RECORD_SIZE <= size:
        window = os.pread(fd, 1 << 20, at)
        found = window.find(magic)
        while 0 <= found <= len(window) - RECORD_SIZE:
            offset = at + found
            record = parse_record(window[found : found + RECORD_SIZE], offset, info.salt)
            if offset % ALIGN == 0 and record is not None and _fits(info, record, size):
                return offset
            found = window.find(magic, found + 1)
        at += max(ALIGN, len(window) - RECORD_SIZE)
    return None


def payload_fits(fd: int, record: Record) -> bool:
    """Whether the payload is what its record says, read in bounded memory."""
    crc, hasher = 0, blake3()
    done = 0
    while done < record.length:
        chunk = os.pread(fd, min(1 << 20, record.length - done), record.offset + done)
        if not chunk:
            return False
        crc = crc32(chunk, crc)
        if record.kind == BLOB:
            hasher.update(chunk)
        done += len(chunk)
    return crc == record.crc and (record.kind != BLOB or hasher.digest() == record.digest)


def read_footer(fd: int, info: PackInfo, size: int) -> Iterator[tuple[bytes, int, int]] | None:
    """The (digest, offset, length) of each blob in a sealed pack, or None if it is not sealed."""
    found = sealed_end(fd, info, size)
    if found is None:
        return None
    record = found
    payload = pread_exactly(fd, record.length, record.offset)
    if len(payload) != record.length or crc32(payload) != record.crc:
        return None
    return FOOTER_ENTRY.iter_unpack(payload)


def sealed_end(fd: int, info: PackInfo, size: int) -> Record | None:
    """The footer's record of a sealed pack, or None."""
    if size < PACK_HEADER.size + RECORD_SIZE + TRAILER.size:
        return None
    data = os.pread(fd, TRAILER.size, size - TRAILER.size)
    if len(data) != TRAILER.size:
        return None
    magic, footer_at, _, salt, crc = TRAILER.unpack(data)
    if magic != TRAILER_MAGIC or salt != info.salt & 0xFFFFFFFF or crc != crc32(data[:28]):
        return None
    record = parse_record(os.pread(fd, RECORD_SIZE, footer_at), footer_at, info.salt)
    return record if record is not None and record.kind == FOOTER else None


def sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def lock_file(fd: int, *, shared: bool = False, wait: bool = False) -> bool:
    """Take a flock, which dies with the descriptor and no other's closing drops. False if it is taken."""
    how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(fd, how if wait else how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class PackWriter:
    """The only writer of one pack, whose lock it holds. Not thread-safe: the store's writer owns it."""

    def __init__(self, fd: int, info: PackInfo, end: int, *, fresh: bool) -> None:
        self.number = info.number
        self.kind = info.kind
        self.end = end  # where the next record begins; behind what is buffered
        self._fd = fd
        self._info = info
        self._queue = RecordQueue(info.salt)
        self._flushed = end
        self._written_back = end
        self._failure: OSError | None = None
        self._entries = bytearray() if fresh else None  # of the footer; None: unknown, read at seal()

    @classmethod
    def create(cls, directory: str, number: int, kind: int, store: bytes) -> PackWriter:
        """Make a new pack and its durable directory entry. `number` must never have been used."""
        info = PackInfo(kind, store, number, int.from_bytes(os.urandom(8), "little"))
        fd = os.open(
            os.path.join(directory, pack_name(number, kind)),
            os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC,
            0o644,
        )
        try:
            if not lock_file(fd):
                raise StoreBroken(f"pack {number} was locked at birth")
            header = pack_header(info)
            write_exactly(fd, header, 0)
            os.fsync(fd)
            sync_directory(directory)
        except OSError as failure:
            os.close(fd)
            raise StoreBroken(f"pack {number} can't be made: {failure.strerror}") from failure
        return cls(fd, info, PACK_HEADER.size, fresh=True)

    def append(self, kind: int, payload: Buffer, *, digest: bytes, crc: int, sequence: int = 0) -> Place:
        """Queue one record after the last one; not written before flush(), not durable before sync().

        `payload` must stay as it is until flush(): it is not copied.

        Raises:
            StoreBroken: a write failed, this or an earlier one. The end of the pack is then unknown,
                so the writer refuses all further work.
        """
        offset = self.end + RECORD_SIZE
        self.end += self._queue.add(kind, payload, sequence, digest, crc)
        if self._entries is not None and kind == BLOB:
            self._entries += FOOTER_ENTRY.pack(digest, offset, len(payload))
        if self._queue.is_full or self._queue.length >= FLUSH_BYTES:
            self.flush()
        return Place(self.number, offset, len(payload))

    def flush(self) -> None:
        """Hand what is queued to the kernel, and let it begin to write it to disk."""
        if self._queue.count:
            self._guard(self._write_queue)

    def sync(self) -> None:
        """Make every record appended so far survive power loss.

        Raises:
            StoreBroken: the kernel may have dropped the dirty pages, so a second fsync that succeeds
                would prove nothing; the store must be reopened.
        """
        self.flush()
        self._guard(lambda: os.fdatasync(self._fd))

    def seal(self) -> None:
        """Write the footer and make the pack durable; nothing may be appended after."""
        self.flush()
        entries = self._entries
        if entries is None:
            entries = bytearray()
            for record in records(self._fd, self._info, PACK_HEADER.size, self.end, whole=False):
                if record.kind == BLOB:
                    entries += FOOTER_ENTRY.pack(record.digest, record.offset, record.length)
        footer_at = self.end
        payload = bytes(entries)
        self.append(FOOTER, payload, digest=bytes(32), crc=crc32(payload))
        fixed = TRAILER.pack(
            TRAILER_MAGIC, footer_at, len(payload) // FOOTER_ENTRY.size, self._info.salt & 0xFFFFFFFF, 0
        )[:28]
        self.flush()
        trailer = fixed + crc32(fixed).to_bytes(4, "little")
        self._guard(lambda: write_exactly(self._fd, trailer, self.end))
        self.end += TRAILER.size
        self.sync()

    def close(self) -> None:
        """Give the pack's lock up; what was not synced may be lost."""
        os.close(self._fd)

    def _write_queue(self) -> None:
        self._queue.write(self._fd, self._flushed)
        self._flushed = self.end
        if self.end - self._written_back >= WRITEBACK_BYTES:
            # Starts the disk early, so that the sync at the end is short. It makes nothing durable.
            _start_writeback(self._fd, self._written_back, self.end - self._written_back)
            self._written_back = self.end

    def _guard(self, write: Callable[[], object]) -> None:
        if self._failure is not None:
            raise StoreBroken(
                f"pack {self.number} is closed to writes after an earlier failure; reopen the store"
            ) from self._failure
        try:
            write()
        except OSError as failure:
            self._failure = failure
            raise StoreBroken(
                f"write to pack {self.number} failed: {failure.strerror}; reopen the store to recover"
            ) from failure


def write_exactly(fd: int, data: bytes, offset: int) -> None:
    """Write all of some few bytes.

    Raises:
        OSError: the kernel took a part of them, or none.
    """
    if os.pwrite(fd, data, offset) != len(data):
        raise OSError(errno.ENOSPC, "only a part was written")


def pack_header(info: PackInfo) -> bytes:
    fixed = PACK_HEADER.pack(
        PACK_MAGIC, info.kind, PACK_VERSION, info.store, info.number, info.salt, time.time_ns() // 1000, 0
    )
    return fixed[:56] + crc32(fixed[:56]).to_bytes(4, "little") + fixed[60:]


def _start_writeback(fd: int, offset: int, length: int) -> None:
    with contextlib.suppress(OSError):  # advice only
        os.posix_fadvise(fd, offset, length, os.POSIX_FADV_DONTNEED)


class FilePackWriter:
    """A blob too large for a bulk pack, streamed to a pack of its own that gets its name only when whole."""

    def __init__(self, store: str, number: int, uuid: bytes) -> None:
        self.number = number
        self._final = os.path.join(store, "packs", pack_name(number, FILE_PACK))
        self._spool = os.path.join(store, "spool", pack_name(number, FILE_PACK))
        self._info = PackInfo(FILE_PACK, uuid, number, int.from_bytes(os.urandom(8), "little"))
        self._hasher = blake3()
        self._crc = 0
        self._fd = -1
        self._written_back = 0
        self.length = 0
        try:
            self._fd = os.open(self._spool, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            lock_file(self._fd)  # tells other processes that this spool file is in use
            os.pwrite(self._fd, pack_header(self._info), 0)
        except OSError as failure:
            self.discard()  # an open descriptor would hold its lock, and nobody could clear it away
            raise StoreBroken(f"spool file {number} can't be made: {failure.strerror}") from failure

    def write(self, chunk: bytes) -> None:
        try:
            view = memoryview(chunk)
            while view:
                done = os.pwrite(self._fd, view, PACK_HEADER.size + RECORD_SIZE + self.length)
                self._hasher.update(view[:done])
                self._crc = crc32(view[:done], self._crc)
                self.length += done
                view = view[done:]
            if self.length - self._written_back >= WRITEBACK_BYTES:  # or finish() would sync all of it
                _start_writeback(self._fd, self._written_back, self.length - self._written_back)
                self._written_back = self.length
        except OSError as failure:
            self.discard()
            raise StoreBroken(f"write to spool file {self.number} failed: {failure.strerror}") from failure

    def digest(self) -> bytes:
        value: bytes = self._hasher.digest()
        return value

    def crc(self) -> int:
        return self._crc

    def finish(self) -> Place:
        """Make the pack durable under its own name: rename, then sync of the directory.

        Its lock is held until close(): before a commit names it, only that tells it from one of no use.
        """
        header = record_header(self._info.salt, BLOB, self.length, 0, self.digest(), self._crc)
        try:
            os.pwrite(self._fd, header, PACK_HEADER.size)
            os.fsync(self._fd)
            os.rename(self._spool, self._final)
            sync_directory(os.path.dirname(self._final))
        except OSError as failure:
            self.close()
            raise StoreBroken(f"spool file {self.number} can't be kept: {failure.strerror}") from failure
        return Place(self.number, PACK_HEADER.size + RECORD_SIZE, self.length)

    def discard(self) -> None:
        """The blob is stored already, or its sender failed: leave nothing behind."""
        if self._fd < 0:
            return
        with contextlib.suppress(OSError):
            os.unlink(self._spool)
        self.close()

    def close(self) -> None:
        """Give the lock up."""
        if self._fd < 0:
            return
        # Once only: another thread may have been given the same number since.
        fd, self._fd = self._fd, -1
        os.close(fd)


class PackFile(NamedTuple):
    """A pack as it lies in the folder."""

    number: int
    kind: int
    path: str


def list_packs(directory: str) -> list[PackFile]:
    found = []
    with contextlib.suppress(FileNotFoundError), os.scandir(directory) as entries:
        for entry in entries:
            if match := PackName.match(entry.name):
                found.append(PackFile(int(match[1]), KIND_OF[match[2]], entry.path))
    return sorted(found)


def open_for_writing(file: PackFile) -> int | None:
    """Open a pack and take its lock; None if another process holds it.

    Raises:
        ReadOnly: the file can't be opened for writing.
    """
    try:
        fd = os.open(file.path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as failure:
        if failure.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise ReadOnly(f"{file.path} can't be written: {failure.strerror}") from failure
        raise StoreBroken(f"{file.path} can't be opened: {failure.strerror}") from failure
    if lock_file(fd):
        return fd
    os.close(fd)
    return None


NOW_MAX = 1 << 20  # bytes of one read_now(): a longer copy would make others wait


class NotCached(Exception):
    """The bytes are not all in the page cache: to read them is to wait for the disk."""


class PackGone(Corrupt):
    """There is no such file. A compaction may have moved what was in it: look its place up again."""


class PackReader:
    """Reads places. Keeps up to OPEN_MAX packs open; safe from several threads.

    A pack that was unlinked takes its space until the last descriptor of it is closed, so now and then those
    are looked for. A thread may be about to read from one that it was given a moment ago: it is closed when
    all reads that had begun before have ended.
    """

    OPEN_MAX = 256
    SWEEP_SECONDS = 10.0

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._open: OrderedDict[int, int] = OrderedDict()
        self._lock = threading.Lock()
        self._reading = [0, 0]  # reads under way, of this age and of the one before
        self._age = 0  # 0 and 1 in turn
        self._leaving: list[int] = []  # closed when no read of the age before is left
        self._sweep_at = time.monotonic() + self.SWEEP_SECONDS

    def read(self, kinds: Sequence[int], container: int, offset: int, length: int) -> bytes:
        """Return `length` bytes of a pack.

        Raises:
            Corrupt: the pack is gone or cut.
        """
        # A descriptor may be closed by another thread's eviction between look-up and read; so the
        # read happens on a duplicate that this call owns only when the pool is under pressure.
        with self._lock:
            if time.monotonic() >= self._sweep_at:
                self._sweep()
            fd = self._descriptor(kinds, container)
            if len(self._open) < self.OPEN_MAX // 2:
                own = -1
            else:
                own = fd = os.dup(fd)
            age = self._age
            self._reading[age] += 1
        try:
            data = pread_exactly(fd, length, offset)
        except OSError as failure:
            raise Corrupt(f"pack {container} can't be read at byte {offset}: {failure.strerror}") from failure
        except (OverflowError, MemoryError, ValueError) as failure:  # a place out of a damaged index
            raise Corrupt(f"no pack has {length} bytes at byte {offset}") from failure
        finally:
            if own >= 0:
                os.close(own)
            with self._lock:
                self._reading[age] -= 1
                if self._leaving:
                    self._let_leave()
        if len(data) != length:
            raise Corrupt(f"pack {container} ends inside the {length} bytes at byte {offset}")
        return data

    def read_now(self, kinds: Sequence[int], container: int, offset: int, length: int) -> bytes:
        """The same without ever waiting for the disk, for callers that serve others meanwhile.

        Raises:
            NotCached: not all of it is in memory, it is more than NOW_MAX, or the file system can't tell: use
                read().
            Corrupt: the pack is gone.
        """
        if length > NOW_MAX:
            raise NotCached
        with self._lock:  # held to the end: it is a copy out of memory, and keeps the descriptor open
            if time.monotonic() >= self._sweep_at:
                self._sweep()
            data = _fastread.read_now(self._descriptor(kinds, container), length, offset)
        if data is None:  # on disk, or there is none: read() will tell
            raise NotCached
        return data

    def _sweep(self) -> None:
        """Let go of packs whose file has gone."""
        self._sweep_at = time.monotonic() + self.SWEEP_SECONDS
        if self._leaving:  # of an earlier sweep: there are two ages, not three
            return
        for container, fd in list(self._open.items()):
            if not os.fstat(fd).st_nlink:
                self._leaving.append(self._open.pop(container))
        if self._leaving:
            self._age = 1 - self._age
            self._let_leave()

    def _let_leave(self) -> None:
        if not self._reading[1 - self._age]:
            while self._leaving:
                os.close(self._leaving.pop())

    def _descriptor(self, kinds: Sequence[int], container: int) -> int:
        fd = self._open.get(container)
        if fd is not None:
            self._open.move_to_end(container)
            return fd
        for kind in kinds:
            path = os.path.join(self._directory, pack_name(container, kind))
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            except OSError as failure:
                raise Corrupt(f"pack {container} can't be opened: {failure.strerror}") from failure
            self._open[container] = fd
            if len(self._open) > self.OPEN_MAX:
                os.close(self._open.popitem(last=False)[1])
            return fd
        raise PackGone(f"pack {container} is gone")

    def close(self) -> None:
        with self._lock:
            while self._open:
                os.close(self._open.popitem()[1])
            while self._leaving:
                os.close(self._leaving.pop())
