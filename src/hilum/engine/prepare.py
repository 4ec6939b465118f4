"""Takes a file's bytes, an open file, or bytes as they come; gives a Prepared: all that the writer appends
and indexes for it.

Splits the original into head and blobs, hashes the blobs, proves the split against the original's
checksum, and makes the frame table. Looks nothing up and writes nothing, but for blobs too large for
memory: those it streams to a place that the caller gives.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO, NamedTuple, Protocol

from blake3 import blake3
from isal.isal_zlib import crc32

from hilum import _fastparse as fast
from hilum._fastpack import crc_of_two
from hilum.engine import frametable, header, record
from hilum.engine.header import Parsed
from hilum.engine.packs import Place
from hilum.engine.record import BLOCK_SIZE, FRAME_ENTRY, Head, Hole
from hilum.errors import BadDicom, Corrupt

IN_MEMORY_MAX = 32 << 20  # bytes of a file read as a whole, and of a blob kept among others
_CHUNK = 1 << 20
_OFFSET_TABLE_MAX = 64 << 20  # bytes of an offset table that we read: some millions of frames
_ENDLESS = 1 << 62  # the length of a file that nobody has told
_LOOK_MIN = 1 << 20  # bytes of an arrival before its head is looked at: pixels of large objects begin sooner
_DIVERTED_MIN = 64 << 10


class Blob(NamedTuple):
    """A bulk value on its way into the store."""

    digest: bytes
    crc: int
    data: memoryview | bytes  # empty when it has been streamed to `place`
    length: int
    place: Place | None = None


class BlobSink(Protocol):
    """Where a blob too large for memory goes while it is read; packs.FilePackWriter is one."""

    def write(self, chunk: bytes) -> None: ...
    def digest(self) -> bytes: ...
    def crc(self) -> int: ...
    def finish(self) -> Place: ...
    def close(self) -> None: ...
    def discard(self) -> None: ...


class Prepared:
    """One object, ready for the writer."""

    __slots__ = (
        "base",
        "blobs",
        "flags",
        "head_length",
        "identity",
        "journal",
        "original_crc",
        "original_length",
        "own",
        "payload",
        "pixels",
        "series",
        "sinks",
        "staged",
        "study",
        "table_length",
        "transfer_syntax",
        "uid",
        "upper",
    )

    def __init__(
        self,
        parsed: Parsed,
        *,
        original_length: int,
        original_crc: int,
        head: bytes,
        holes: Sequence[Hole],
        inflated_holes: Sequence[Hole] = (),
        blobs: list[Blob],
        table: bytes,
        source: bytes,
    ) -> None:
        self.study = parsed.study
        self.series = parsed.series
        self.uid = parsed.uid
        self.upper = parsed.upper
        self.own = parsed.own
        self.flags = parsed.flags
        self.transfer_syntax = parsed.transfer_syntax
        self.original_length = original_length
        self.original_crc = original_crc
        self.identity = record.identity_of(parsed.transfer_syntax, parsed.data_set_at, holes, head)
        head_part = record.pack_head(
            Head(
                flags=parsed.flags,
                original_length=original_length,
                original_crc=original_crc,
                data_set_at=parsed.data_set_at,
                arrived_us=time.time_ns() // 1000,
                transfer_syntax=parsed.transfer_syntax,
                source=source[-1024:],
                holes=holes,
                head=head,
                inflated_holes=inflated_holes,
                inflated=parsed.inflated.head if parsed.inflated is not None else b"",
            )
        )
        self.head_length = len(head_part)
        self.table_length = len(table)
        self.payload = head_part + table if table else head_part
        self.blobs = blobs
        self.pixels = pixel_fields(parsed, inflated_holes or holes)
        self.journal: tuple[bytes, bytes] | None = None
        self.sinks: list[BlobSink] = []
        # (SOP Instance UID, sequence number) of the stored object whose blobs it names without having them.
        self.base: tuple[bytes, int] | None = None
        self.staged = False  # its blobs are appended, or need not be

    def let_go(self) -> None:
        """Forget the blobs' bytes: they are appended, and the memory under them will be used again."""
        self.staged = True
        self.blobs = [Blob(blob.digest, blob.crc, b"", blob.length, blob.place) for blob in self.blobs]

    def discard(self) -> None:
        """Leave nothing of this object behind: it was refused, or is stored already."""
        for sink in self.sinks:
            sink.discard()
        self.sinks = []


def pixel_fields(parsed: Parsed, holes: Sequence[Hole]) -> tuple[int, int, int, int, bytes, bool]:
    """(tag, offset, length, CRC, digest, words) for the instance's index record."""
    if parsed.pixels is None:
        return 0, 0, 0, 0, b"", False
    tag, offset, length, _ = parsed.pixels
    words = bool(parsed.scan.flags & fast.FLAG_PIXEL_WORDS)
    for hole in holes:
        if hole.offset == offset:
            return tag, offset, length, hole.crc, hole.digest, words
    return tag, offset, length, 0, b"", words


def prepare(data: memoryview, *, source: bytes = b"") -> Prepared:
    """Prepare an object whose whole file is in memory; the blobs are views of `data`, not copies.

    Raises:
        NotDicom, BadDicom: see header.parse.
    """
    parsed = header.parse(data)
    original_crc = crc32(data)
    if not parsed.holes:
        head = bytes(data)
        return Prepared(
            parsed,
            original_length=len(data),
            original_crc=original_crc,
            head=head,
            holes=(),
            blobs=[],
            table=_table_in_memory(parsed, data),
            source=source,
        )
    pieces, holes, blobs = [], [], []
    at = split_crc = 0
    pixel_blocks: list[int] | None = None
    for offset, length, tag in parsed.holes:
        view = data[offset : offset + length]
        # One pass gives the checksums of the blocks, and out of them that of the value.
        blocks = _block_crcs(view)
        crc = blocks[0]
        for index in range(1, len(blocks)):
            crc = crc_of_two(crc, blocks[index], min(BLOCK_SIZE, length - index * BLOCK_SIZE))
        if parsed.pixels is not None and offset == parsed.pixels[1]:
            pixel_blocks = blocks
        digest = blake3(view).digest()
        pieces.append(data[at:offset])
        split_crc = crc_of_two(crc32(pieces[-1], split_crc), crc, length)
        holes.append(Hole(offset, length, tag, crc, digest))
        blobs.append(Blob(digest, crc, view, length))
        at = offset + length
    pieces.append(data[at:])
    head = b"".join(pieces)
    if crc32(pieces[-1], split_crc) != original_crc or len(head) + sum(h.length for h in holes) != len(data):
        raise Corrupt("the split of this file does not give the file back")  # ours, whatever the file holds
    return Prepared(
        parsed,
        original_length=len(data),
        original_crc=original_crc,
        head=head,
        holes=holes,
        inflated_holes=_inflated_holes(parsed),
        blobs=blobs,
        table=_table_in_memory(parsed, data, pixel_blocks),
        source=source,
    )


def _block_crcs(value: memoryview) -> list[int]:
    """The CRC-32 of each BLOCK_SIZE bytes, and of what is left."""
    if len(value) <= BLOCK_SIZE:
        return [crc32(value)]
    return [crc32(value[at : at + BLOCK_SIZE]) for at in range(0, len(value), BLOCK_SIZE)]


def _inflated_holes(parsed: Parsed) -> list[Hole]:
    """Holes of an inflated data set name no blob: the deflated bytes are the blob."""
    if parsed.inflated is None:
        return []
    return [Hole(offset, length, tag, 0, bytes(32)) for offset, length, tag in parsed.inflated.holes]


def prepare_file(
    fd: int,
    size: int,
    *,
    make_sink: Callable[[], BlobSink],
    append: Callable[[Blob], None],
    source: bytes = b"",
    diverted: Diverted | None = None,
) -> Prepared:
    """Prepare an object out of a file of any size, in bounded memory.

    Blobs larger than IN_MEMORY_MAX go to sinks; smaller ones that are too many to be kept go to `append`.
    The file may lack one value, of which nothing is then read: it is `diverted` to its sink already.

    Raises:
        NotDicom, BadDicom: see header.parse.
        OSError: the file can't be read, or became shorter.
        StoreBroken: a sink can't be written.
    """
    parsed = header.parse_fd(fd, size)
    reader = _FileReader(fd)
    pieces: list[bytes] = []
    holes: list[Hole] = []
    blobs: list[Blob] = []
    sinks: list[BlobSink] = []
    table = b""
    original_crc, at = 0, 0
    kept = 0  # bytes of blobs in memory
    try:
        for offset, length, tag in parsed.holes:
            pieces.append(reader.read(at, offset - at))
            original_crc = crc32(pieces[-1], original_crc)
            is_pixels = parsed.pixels is not None and offset == parsed.pixels[1] and parsed.inflated is None
            is_diverted = diverted is not None and (offset, length) == (diverted.offset, diverted.done)
            checksums = None
            if is_pixels and not is_diverted:
                checksums = _FrameChecksums(_spans_in_file(parsed, reader))
            if diverted is not None and is_diverted:
                sinks.append(diverted.sink)
                checksums = diverted.checksums if is_pixels else None
                blob = Blob(diverted.sink.digest(), diverted.sink.crc(), b"", length, Place(0, 0, length))
                original_crc = crc_of_two(original_crc, blob.crc, length)
            elif length <= IN_MEMORY_MAX:
                value = reader.read(offset, length)
                original_crc = crc32(value, original_crc)
                if checksums is not None:
                    checksums.update(value)
                blob = Blob(blake3(value).digest(), crc32(value), value, length)
                kept += length
                if kept > IN_MEMORY_MAX:
                    append(blob)
                    blob = blob._replace(data=b"")
            else:
                sink = make_sink()
                sinks.append(sink)
                for chunk in reader.chunks(offset, length):
                    sink.write(chunk)
                    original_crc = crc32(chunk, original_crc)
                    if checksums is not None:
                        checksums.update(chunk)
                blob = Blob(sink.digest(), sink.crc(), b"", length, Place(0, 0, length))
            if checksums is not None:
                table = checksums.table()
            holes.append(Hole(offset, length, tag, blob.crc, blob.digest))
            blobs.append(blob)
            at = offset + length
        if diverted is not None and diverted.sink not in sinks:
            raise Corrupt("a value that was taken out of this file is none")  # ours, whatever the file holds
        pieces.append(reader.read(at, size - at))
        original_crc = crc32(pieces[-1], original_crc)
        prepared = Prepared(
            parsed,
            original_length=size,
            original_crc=original_crc,
            head=b"".join(pieces),
            holes=holes,
            inflated_holes=_inflated_holes(parsed),
            blobs=blobs,
            table=table,
            source=source,
        )
    except BaseException:
        for sink in sinks:
            sink.discard()
        raise
    prepared.sinks = sinks
    return prepared


class Diverted:
    """Native Pixel Data that go to their sink as they come, and never lie in the file they came in."""

    def __init__(self, sink: BlobSink, offset: int, length: int) -> None:
        self.sink = sink
        self.offset = offset  # in the file
        self.length = length  # as the element says
        self.done = 0  # bytes that have come
        self.checksums = _FrameChecksums(None)

    def take(self, chunk: bytes) -> bytes:
        """Take what is ours off the front of a chunk; give the rest."""
        taken = chunk[: self.length - self.done]
        self.sink.write(taken)
        self.checksums.update(taken)
        self.done += len(taken)
        return chunk[len(taken) :]


class Names(NamedTuple):
    """What a file that can't be stored says that it is, as far as it could be read; else empty."""

    study: bytes
    uid: bytes
    sop_class: bytes
    is_whole: bool  # it could be read to its end: what is missing is missing


class Arrival:
    """A file that comes in by pieces, of a length that nobody has told. Not thread-safe.

    It is held in memory while it is small. Native Pixel Data over IN_MEMORY_MAX go to a sink as soon as the
    head tells of them, so that they are written once; whatever else is too large lies in a file without a
    name, and is prepared from there. End it by finish() and then discard().
    """

    def __init__(
        self,
        *,
        make_sink: Callable[[], BlobSink],
        append: Callable[[Blob], None],
        make_file: Callable[[], BinaryIO],
        source: bytes = b"",
    ) -> None:
        self.length = 0  # bytes that have come
        self._make_sink, self._append, self._make_file = make_sink, append, make_file
        self._source = source
        self._data = bytearray()
        self._file: BinaryIO | None = None
        self._diverted: Diverted | None = None
        self._look_at = _LOOK_MIN
        self._crc = 0

    @property
    def held(self) -> int:
        """Bytes in memory."""
        return len(self._data)

    @property
    def is_spooled(self) -> bool:
        """Whether it lies on the disk, to be read from there."""
        return self._file is not None

    def is_quick(self, size: int) -> bool:
        """Whether so many more bytes can be written without touching a disk or waiting for anybody."""
        return self._file is None and len(self._data) + size < self._look_at

    def write(self, chunk: bytes | bytearray | memoryview) -> None:
        """Take the bytes that follow those before.

        Raises:
            OSError: the file without a name can't be made or written.
            StoreBroken: the sink can't.
        """
        self.length += len(chunk)
        if self._file is not None:
            self._write_out(bytes(chunk), self.length - len(chunk))
            return
        self._data += chunk
        if len(self._data) >= self._look_at:
            self._look()

    def spool(self) -> None:
        """Hold nothing in memory from now on."""
        if self._file is None:
            self._move_out(self._find_pixels())

    def finish(self) -> Prepared:
        """All has come. May be called again when the writer wants the object again, unless it was diverted.

        Raises:
            NotDicom, BadDicom: see header.parse.
            OSError, StoreBroken: as write().
        """
        if self._file is None:
            return prepare(memoryview(self._data), source=self._source)
        os.ftruncate(self._file.fileno(), self.length)  # whatever was diverted is a gap in it
        prepared = prepare_file(
            self._file.fileno(),
            self.length,
            make_sink=self._make_sink,
            append=self._append,
            source=self._source,
            diverted=self._diverted,
        )
        if prepared.original_crc != self._crc:
            prepared.discard()
            raise Corrupt("what came in is not what was prepared")
        return prepared

    @property
    def can_finish_again(self) -> bool:
        return self._diverted is None

    def names(self) -> Names:
        """What this is, when finish() has failed.

        Raises:
            OSError: the file without a name can't be read.
        """
        if self._file is None:
            status, scan = fast.scan(self._data)
        else:
            status, scan = fast.scan_fd(self._file.fileno(), self.length)
        study, _, uid, sop_class = scan.uids
        return Names(study, uid, sop_class, status == fast.STATUS_DONE)

    def discard(self) -> None:
        """Let memory and files go. What finish() gave needs the memory until it is stored."""
        self._data = bytearray()
        if self._file is not None:
            self._file.close()
        if self._diverted is not None:
            self._diverted.sink.discard()  # nothing, if the writer has finished it

    def _look(self) -> None:
        found = self._find_pixels()
        if found is not None or len(self._data) > IN_MEMORY_MAX:
            self._move_out(found)
        self._look_at = min(2 * self._look_at, IN_MEMORY_MAX + 1)

    def _find_pixels(self) -> tuple[int, int] | None:
        """(offset, length) of large native Pixel Data whose first bytes are here."""
        status, scan = _scan_begin(self._data)
        if status != fast.STATUS_NEED or scan.pixels is None:
            return None
        _, offset, length, encapsulated = scan.pixels
        begun = len(self._data) - offset >= _DIVERTED_MIN  # so much is a hole though the rest may never come
        if encapsulated or length <= IN_MEMORY_MAX or not begun or scan.holes[-1][:2] != (offset, length):
            return None
        return offset, length

    def _move_out(self, pixels: tuple[int, int] | None) -> None:
        data, self._data = self._data, bytearray()
        self._file = self._make_file()
        if pixels is not None:
            self._diverted = Diverted(self._make_sink(), *pixels)
        self._write_out(bytes(data), 0)

    def _write_out(self, chunk: bytes, at: int) -> None:
        """Write bytes of the file from `at` on; only the first call has some in front of what is diverted."""
        self._crc = crc32(chunk, self._crc)
        end = at + len(chunk)
        if self._diverted is not None:
            if at < self._diverted.offset:
                self._write_file(chunk[: self._diverted.offset - at], at)
                chunk = chunk[self._diverted.offset - at :]
            chunk = self._diverted.take(chunk)
        self._write_file(chunk, end - len(chunk))

    def _write_file(self, chunk: bytes, at: int) -> None:
        assert self._file is not None
        view = memoryview(chunk)
        while view:
            done = os.pwrite(self._file.fileno(), view, at)
            view, at = view[done:], at + done


def _scan_begin(data: bytearray) -> tuple[int, fast.Header]:
    """Scan what is there of a file whose end is not known."""
    scan = fast.Header(_ENDLESS)
    return scan.feed(data, 0), scan


class _FileReader:
    """Exact reads of a file that may be cut while we read it."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def read(self, offset: int, length: int) -> bytes:
        return b"".join(self.chunks(offset, length))

    def chunks(self, offset: int, length: int) -> Iterator[bytes]:
        end = offset + length
        while offset < end:
            chunk = os.pread(self._fd, min(_CHUNK, end - offset), offset)
            if not chunk:
                raise OSError(0, f"the file became shorter than {end} bytes while it was read")
            yield chunk
            offset += len(chunk)


# --- Frame tables ---------------------------------------------------------------


def _frame_count(parsed: Parsed) -> int:
    try:
        values = record.values_of(parsed.own, record.NUMBER_OF[0x00280008])
    except (BadDicom, record.LeftInHead):
        return 1
    count = values[0] if values else 1
    return max(1, int(count)) if isinstance(count, int | float) else 1


def _spans(
    parsed: Parsed, value: Callable[[int, int], bytes], read: Callable[[int, int], bytes]
) -> list[frametable.FrameSpan] | None:
    """Where each frame lies; None for native pixels. `value` reads from Pixel Data, `read` from the file."""
    if parsed.pixels is None or not parsed.pixels[3]:
        return None
    fragments = parsed.scan.fragments
    if not fragments:
        return []
    (offset, length), fragments = fragments[0], fragments[1:]
    basic = value(offset + frametable.ITEM_HEADER, min(length, _OFFSET_TABLE_MAX))
    (table_at, table_length), (lengths_at, lengths_length) = parsed.scan.extended_offset_table
    extended = None
    if 0 < table_length <= _OFFSET_TABLE_MAX and lengths_length == table_length:
        extended = read(table_at, table_length), read(lengths_at, lengths_length)

    def tail_of(index: int) -> bytes:
        at, size = fragments[index]
        tail = min(size, frametable.TAIL_LENGTH)
        return value(at + frametable.ITEM_HEADER + size - tail, tail)

    return frametable.frame_spans(
        fragments,
        _frame_count(parsed),
        basic=basic,
        extended=extended,
        tail_of=tail_of,
        big_endian=bool(parsed.flags & record.BIG_ENDIAN),
    )


def _spans_in_file(parsed: Parsed, reader: _FileReader) -> list[frametable.FrameSpan] | None:
    start = parsed.pixels[1] if parsed.pixels is not None else 0
    return _spans(parsed, lambda at, length: reader.read(start + at, length), reader.read)


def _table_in_memory(parsed: Parsed, data: memoryview, blocks: list[int] | None = None) -> bytes:
    """The table behind the head: an entry for each encapsulated frame, or a CRC for each native block.

    `blocks` has those of the blocks, where the caller knows them.
    """
    if parsed.pixels is None or parsed.inflated is not None:
        return b""
    _, start, length, encapsulated = parsed.pixels
    value = data[start : start + length]
    if not encapsulated:
        if length <= BLOCK_SIZE:
            return b""  # the checksum of the whole value is the only block's
        return b"".join(crc.to_bytes(4, "little") for crc in blocks or _block_crcs(value))
    spans = _spans(
        parsed,
        lambda at, size: bytes(value[at : at + size]),
        lambda at, size: bytes(data[at : at + size]),
    )
    return b"".join(
        FRAME_ENTRY.pack(at, size, crc32(value[at : at + size]), form) for at, size, form in spans or ()
    )


class _FrameChecksums:
    """The same table over a value that comes in chunks."""

    def __init__(self, spans: list[frametable.FrameSpan] | None) -> None:
        self._frames = spans  # in the order of the frames
        self._spans = sorted(set(spans)) if spans is not None else None  # in that of the bytes
        self._crcs: list[int] = []
        self._crc = 0
        self._at = 0  # offset in the value

    def update(self, chunk: bytes) -> None:
        view = memoryview(chunk)
        while view:
            begin, end = self._current()
            if begin < 0:
                return
            if self._at < begin:
                skipped = min(begin - self._at, len(view))
                self._at += skipped
                view = view[skipped:]
                continue
            taken = min(end - self._at, len(view))
            self._crc = crc32(view[:taken], self._crc)
            self._at += taken
            view = view[taken:]
            if self._at == end:
                self._crcs.append(self._crc)
                self._crc = 0

    def _current(self) -> tuple[int, int]:
        index = len(self._crcs)
        if self._spans is None:
            return index * BLOCK_SIZE, (index + 1) * BLOCK_SIZE
        while index < len(self._spans):
            span = self._spans[index]
            if span.length:
                return span.offset, span.offset + span.length
            self._crcs.append(0)
            index += 1
        return -1, -1

    def table(self) -> bytes:
        if self._spans is None or self._frames is None:
            if self._at % BLOCK_SIZE:
                self._crcs.append(self._crc)
            if len(self._crcs) == 1:
                return b""
            return b"".join(crc.to_bytes(4, "little") for crc in self._crcs)
        self._current()
        if len(self._crcs) != len(self._spans):
            raise BadDicom("frames overlap in their offset table")
        crc_of = dict(zip(self._spans, self._crcs, strict=True))
        return b"".join(
            FRAME_ENTRY.pack(span.offset, span.length, crc_of[span], span.form) for span in self._frames
        )
