"""Takes stored heads; gives metadata as DICOM JSON bytes, and says where the bulk values are that it names.
Never reads a pixel for a document, and knows no request.

PS3.18 10.4.1.1.3, Metadata Resources, and 10.4.1.1.4, Bulkdata Resources. The document of a series is kept,
compressed, in the folder `derived` of the store. What lies there can be made again from the heads: it may be
deleted at any time, nothing waits until it is durable, and a store that can't be written does without.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from struct import Struct
from typing import Literal, NamedTuple, cast
from urllib.parse import quote

from blake3 import blake3
from isal import isal_zlib
from isal.isal_zlib import crc32

from hilum import _dicomjson
from hilum.dicom.charset import decode_text
from hilum.engine import frametable, header, record
from hilum.engine.catalog import series_key_name
from hilum.engine.frames import FrameReader
from hilum.engine.index import U32, Snapshot
from hilum.engine.original import OriginalFile
from hilum.engine.packs import HEAD_PACK, RECORD_SIZE, PackGone, PackReader
from hilum.engine.record import Head, Hole, Instance
from hilum.errors import BadQuery, Corrupt, NotFound, Unsupported

DOCUMENT_VERSION = 1  # of what the writer gives: another one, and kept documents are made anew
DERIVED_BYTES_MAX = 1 << 30

_UID = record.NUMBER_OF[0x00080018]
_INSTANCE_NUMBER = record.NUMBER_OF[0x00200013]

_BATCH_BYTES = 16 << 20  # of heads that are in memory together
_READ_BYTES = 4 << 20  # of one read of heads that lie together
_GAP_MAX = 64 << 10  # bytes between two heads that are read and thrown away
_PIECE = 256 << 10
_GZIP = 31  # window bits of zlib for a gzip member
_LEVEL = 1


# --- One instance -----------------------------------------------------------------


def instance_json(head: Head, study: bytes, series: bytes, uid: bytes, *, base: str) -> bytes:
    """The data set of a head as a DICOM JSON Model object.

    Raises:
        BadDicom: the head can't be walked.
    """
    return _write(head, _series_prefix(base, study, series) + _escaped(_instance_path(uid)))


def element_json(head: Head, wanted: _dicomjson.Paths) -> bytes:
    """Some elements of a head as a DICOM JSON Model object; for what they are, see _dicomjson.write()."""
    return _write(head, b"", wanted)


def _write(head: Head, prefix: bytes, wanted: _dicomjson.Paths | None = None) -> bytes:
    return _dicomjson.write(*_data_set_of(head), uri_prefix=prefix, wanted=wanted)


def _data_set_of(head: Head) -> tuple[bytes, Sequence[Hole], int, bool, bool]:
    """What _dicomjson takes of a head."""
    if head.flags & record.DEFLATED:
        return head.inflated, head.inflated_holes, 0, False, False
    implicit, big = bool(head.flags & record.IMPLICIT_VR), bool(head.flags & record.BIG_ENDIAN)
    return head.head, head.holes, head.data_set_at, implicit, big


def _series_prefix(base: str, study: bytes, series: bytes) -> bytes:
    return _escaped(f"{base}/studies/{_quoted(study)}/series/{_quoted(series)}/instances/")


def _instance_path(uid: bytes) -> str:
    return f"{_quoted(uid)}/bulkdata/"


def _quoted(uid: bytes) -> str:
    return quote(uid, safe="")


def _escaped(text: str) -> bytes:
    """The inside of a JSON string."""
    return json.dumps(text)[1:-1].encode("ascii")


# --- A series -----------------------------------------------------------------------


class SeriesDocument:
    """The metadata of a series at one moment: a JSON array of its instances' objects, by Instance Number.

    What was not kept is made when it is asked for first. `etag` costs nothing.
    """

    def __init__(self, name: str, kept: Packed | None, make: Callable[[], Packed]) -> None:
        self.etag = f'"{name}"'
        self._kept = kept
        self._make = make

    def gzip(self) -> bytes:
        """The document as one gzip member, to be sent with Content-Encoding: gzip.

        Raises:
            Corrupt: a head on disk is not what came in.
            BadDicom: a head can't be walked.
        """
        return self._packed().gzip

    def json_length(self) -> int:
        """Bytes of json()."""
        return self._packed().length

    def json(self) -> bytes:
        """The same, not compressed. Pieces are four times as fast: new memory costs more than inflating."""
        packed = self._packed()
        plain: bytes = isal_zlib.decompress(packed.gzip, _GZIP, packed.length)
        return plain

    def _packed(self) -> Packed:
        if self._kept is None:
            self._kept = self._make()
        return self._kept

    def json_pieces(self) -> Iterator[bytes]:
        """json() in pieces of bounded size. What can fail has failed before the first of them."""
        return _inflated(self.gzip())


class Packed(NamedTuple):
    """A document, compressed."""

    length: int  # bytes that it has when it is not
    gzip: bytes


def _inflated(packed: bytes) -> Iterator[bytes]:
    engine = isal_zlib.decompressobj(_GZIP)
    while not engine.eof:
        piece = engine.decompress(packed, _PIECE)
        packed = engine.unconsumed_tail
        if piece:
            yield piece


def _compressed(pieces: Iterable[bytes]) -> Packed:
    engine = isal_zlib.compressobj(_LEVEL, isal_zlib.DEFLATED, _GZIP)
    parts, length = [], 0
    for piece in pieces:
        parts.append(engine.compress(piece))
        length += len(piece)
    return Packed(length, b"".join([*parts, engine.flush()]))


def series_document(
    snapshot: Snapshot,
    packs: PackReader,
    derived: Derived | None,
    study: str,
    series: str,
    *,
    base: str,
    where_now: Callable[[Instance], Instance],
) -> SeriesDocument:
    """The document of a series as the snapshot has it; `where_now` finds a head that was moved since.

    Raises:
        NotFound: there is no such series in that study.
    """
    study_uid, series_uid = _stored_uid(study), _stored_uid(series)
    number = snapshot.get(b"study_uids", study_uid) if study_uid else None
    if number is None:
        raise NotFound(f"no study {study[:80]!r} is stored")
    name = series_key_name(series_uid, U32.unpack(number)[0])
    series_number = snapshot.get(b"series_uids", name) if series_uid else None
    key = number + series_number if series_number is not None else b""
    value = snapshot.get(b"series", key) if key else None
    if value is None:
        raise NotFound(f"no series {series[:80]!r} is stored in study {study[:80]!r}")
    state = record.unpack_series(value)
    # Numbers of instances are never used again, so how many there were and how many there are tell every
    # coming and going apart; the epoch is that of this index, whose keys a rebuild deals anew. An object
    # that heals keeps its data set, and with it the document.
    epoch = snapshot.get(b"meta", b"epoch") or b""
    facts = f"{DOCUMENT_VERSION} {state.next_instance} {state.instance_count} {base}"
    digest = blake3(epoch + key + facts.encode("utf-8", "surrogatepass")).hexdigest()[:40]
    kept = derived.read(digest) if derived is not None else None
    if kept is not None:
        return SeriesDocument(digest, kept, _never)
    instances = [record.unpack_instance(data) for _, data in snapshot.scan_prefix(b"instances", key)]
    prefix = _series_prefix(base, study_uid, series_uid)

    def make() -> Packed:
        made = _compressed(_series_pieces(packs, instances, prefix, where_now))
        if derived is not None:
            derived.write(digest, made)
        return made

    return SeriesDocument(digest, None, make)


def _never() -> Packed:
    raise AssertionError("a document that was kept is not made")


def _series_pieces(
    packs: PackReader, instances: list[Instance], prefix: bytes, where_now: Callable[[Instance], Instance]
) -> Iterator[bytes]:
    """The array, in pieces of some megabytes: the heads of each are read together, then written by number."""
    instances.sort(key=_order_of)
    opening = b"["
    at = 0
    while at < len(instances):
        batch: list[Instance] = []
        size = 0
        while at < len(instances) and (not batch or size + instances[at].head_length <= _BATCH_BYTES):
            batch.append(instances[at])
            size += instances[at].head_length
            at += 1
        objects, length = [], 0
        try:
            heads = read_heads(packs, batch)
        except PackGone:
            heads = read_heads(packs, [where_now(instance) for instance in batch])
        for instance, head in zip(batch, heads, strict=True):
            uid = record.raw_of(instance.entries, _UID)
            objects.append(_write(head, prefix + _escaped(_instance_path(uid))))
            length += len(objects[-1])
            if length > _PIECE:  # small pieces: the same memory is used for each
                yield opening + b",".join(objects)
                opening = b","
                objects, length = [], 0
        if objects:
            yield opening + b",".join(objects)
            opening = b","
    yield b"]" if instances else b"[]"


def _order_of(instance: Instance) -> tuple[float, bytes]:
    """By Instance Number, those without one behind; so the order of arrival shows nowhere."""
    uid = record.raw_of(instance.entries, _UID)
    try:
        return int(record.raw_of(instance.entries, _INSTANCE_NUMBER)), uid
    except ValueError:
        return math.inf, uid


def read_heads(packs: PackReader, instances: Sequence[Instance]) -> list[Head]:
    """The heads of some instances, in their order. Heads that lie near each other are read at once."""
    places = sorted((one.container, one.offset, index) for index, one in enumerate(instances))
    heads: list[Head | None] = [None] * len(instances)
    at = 0
    while at < len(places):
        container, offset, first = places[at]
        begin = offset - RECORD_SIZE
        end = offset + instances[first].head_length
        stop = at + 1
        while stop < len(places) and places[stop][0] == container:
            _, offset, index = places[stop]
            following = offset + instances[index].head_length
            if offset - RECORD_SIZE - end > _GAP_MAX or following - begin > _READ_BYTES:
                break
            end = max(end, following)
            stop += 1
        data = packs.read((HEAD_PACK,), container, begin, end - begin)
        for _, offset, index in places[at:stop]:
            payload = offset - begin
            if data[payload - 32 : payload] != instances[index].identity:
                raise Corrupt(f"there is no such head at byte {offset} of pack {container}")
            heads[index] = record.unpack_head(data[payload : payload + instances[index].head_length])
        at = stop
    return [head for head in heads if head is not None]


def _stored_uid(uid: str) -> bytes:
    """A UID as the index may have it; b"" for what none is."""
    return uid.encode("ascii") if uid.isascii() and len(uid) <= header.UID_MAX else b""


# --- Bulk values ------------------------------------------------------------------------


class BulkPlace(NamedTuple):
    """Where the value of an element lies."""

    tag: int
    vr: str
    offset: int  # bytes from the start of the original; of the inflated data set in a deflated one
    length: int
    is_hole: bool  # it is a blob; else it lies in the head
    is_encapsulated: bool  # it is items: an offset table and fragments
    is_big_endian: bool
    character_sets: bytes  # the value of (0008,0005) that holds for it


_PATH = re.compile(r"[0-9A-Fa-f]{8}(?:\.[1-9][0-9]{0,8}\.[0-9A-Fa-f]{8})*")


def bulk_value(head: Head, path: str) -> BulkPlace:
    """Find the value that a path names: tags and item numbers joined by stops, "52009229.1.00420011".

    Raises:
        BadQuery: it is no path.
        NotFound: no element is there, or it is a sequence.
        BadDicom: the head can't be walked.
    """
    if not _PATH.fullmatch(path):
        raise BadQuery(f"{path[:80]!r} is no path to a bulk value: 7FE00010, 52009229.1.00420011")
    steps = path.split(".")
    numbers = [*map(int, steps[1::2]), 0]
    tags = [int(step, 16) for step in steps[::2]]
    found = _dicomjson.find(*_data_set_of(head), list(zip(tags, numbers, strict=True)))
    if found is None:
        raise NotFound(f"there is no value at {path[:200]}")
    offset, length, vr, is_hole, is_encapsulated, is_big_endian, character_sets = found
    return BulkPlace(tags[-1], vr, offset, length, is_hole, is_encapsulated, is_big_endian, character_sets)


_TEXT_VRS = frozenset(("LO", "LT", "PN", "SH", "ST", "UC", "UT"))
_TEXT_MAX = 64 << 20  # bytes of text that is turned into UTF-8; more leaves as it is
_WHOLE_MAX = 64 << 20  # bytes of an encapsulated value that is read at once, against its checksum
_WIDTH_OF = {
    **dict.fromkeys(("AT", "OW", "SS", "US"), 2),
    **dict.fromkeys(("FL", "OF", "OL", "SL", "UL"), 4),
    **dict.fromkeys(("FD", "OD", "OV", "SV", "UV"), 8),
}
_FRAGMENT_COUNT_MAX = 1 << 16


class BulkValue:
    """A bulk value as it leaves: numbers little endian, text UTF-8 as its document says, and no item headers.

    An encapsulated one has `part_count` parts, its frames; any other has one. `length` and read() are of the
    only part. A value that is read from its begin to its end, in any steps, is held against its checksum; a
    frame is too.
    """

    def __init__(
        self,
        head: Head,
        place: BulkPlace,
        read_blob: Callable[[bytes, int, int], bytes],
        frames: FrameReader | None = None,
    ) -> None:
        """`frames` reads the frames of an encapsulated Pixel Data at top level, where its table says."""
        self.tag, self.vr, self.is_encapsulated = place.tag, place.vr, place.is_encapsulated
        syntax = head.transfer_syntax if place.is_encapsulated else header.EXPLICIT_SYNTAX
        self.transfer_syntax = syntax.decode("latin-1")
        self._frames = frames
        self._raw = _RawValue(head, place, read_blob)
        self._width = _WIDTH_OF.get(place.vr, 1) if place.is_big_endian and not place.is_encapsulated else 1
        self._whole: bytes | None = None
        self._parts: list[list[tuple[int, int]]] = []
        self.part_count = 1
        self.length = place.length
        if place.is_encapsulated:
            self._look_at_parts(place)
        elif place.vr in _TEXT_VRS and place.length <= _TEXT_MAX:
            data = self._raw.read(0, place.length)
            if not data.isascii() or b"\x1b" in data:
                self._whole = decode_text(data, place.vr, place.character_sets).encode("utf-8", "replace")
                self.length = len(self._whole)

    def part(self, index: int) -> bytes:
        """Part `index`, from 0.

        Raises:
            NotFound: there is no such part.
            BadDicom, Corrupt: as FrameReader.read().
        """
        if not 0 <= index < self.part_count:
            raise NotFound(f"no part {index + 1} among {self.part_count}")
        if self._frames is not None:
            return self._frames.read(index)
        if self.is_encapsulated:
            return b"".join(self._raw.read(offset, length) for offset, length in self._parts[index])
        return self.read(0, self.length)

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the only part; fewer at its end.

        Raises:
            Unsupported: there are several parts.
            Corrupt: the bytes on disk are not what came in.
        """
        if self.part_count != 1:
            raise Unsupported(f"the value has {self.part_count} parts, which are read one by one")
        length = max(0, min(length, self.length - offset))
        if self._whole is not None:
            return self._whole[offset : offset + length]
        if self.is_encapsulated:
            return self._read_fragments(offset, length)
        if self._width == 1:
            return self._raw.read(offset, length)
        begin = offset - offset % self._width
        end = min(self.length, -(-(offset + length) // self._width) * self._width)
        data = _turned(self._raw.read(begin, end - begin), self._width)
        return data[offset - begin : offset - begin + length]

    def _look_at_parts(self, place: BulkPlace) -> None:
        if self._frames is not None and self._frames.frame_count != 1:
            self.part_count, self.length = self._frames.frame_count, 0
            return
        if self._frames is not None and place.length <= _WHOLE_MAX:
            self._whole = self._frames.read(0)
            self.length = len(self._whole)
            return
        fragments = self._fragments(place)
        # Without a table each fragment is a part, and so is all of an only frame or of an icon.
        self._parts = [fragments]
        self.length = sum(length for _, length in fragments)

    def _fragments(self, place: BulkPlace) -> list[tuple[int, int]]:
        """(offset, length) of the fragments in the value, without the offset table, which comes first."""
        order: Literal["big", "little"] = "big" if place.is_big_endian else "little"
        fragments: list[tuple[int, int]] = []
        at = 0
        while at + frametable.ITEM_HEADER <= place.length and len(fragments) <= _FRAGMENT_COUNT_MAX:
            item = self._raw.read(at, frametable.ITEM_HEADER)
            length = min(int.from_bytes(item[4:], order), place.length - at - frametable.ITEM_HEADER)
            fragments.append((at + frametable.ITEM_HEADER, length))
            at += frametable.ITEM_HEADER + length
        return fragments[1:]

    def _read_fragments(self, offset: int, length: int) -> bytes:
        pieces = []
        for at, size in self._parts[0]:
            if offset < size and length:
                taken = min(size - offset, length)
                pieces.append(self._raw.read(at + offset, taken))
                length -= taken
            offset = max(0, offset - size)
        return b"".join(pieces)


def _turned(data: bytes, width: int) -> bytes:
    """Words of `width` bytes in the other byte order; what is left at the end stays."""
    whole = len(data) - len(data) % width
    turned = bytearray(data)
    for place in range(width):
        turned[place:whole:width] = data[width - 1 - place : whole : width]
    return bytes(turned)


class _RawValue:
    """The bytes of a value as they came in, read by ranges."""

    def __init__(self, head: Head, place: BulkPlace, read_blob: Callable[[bytes, int, int], bytes]) -> None:
        self._head = head
        self._place = place
        self._file = OriginalFile(head, read_blob)
        self._inflated: Iterator[bytes] = iter(())
        self._piece = b""
        self._piece_at = -1  # inflated offset of that piece; -1: nothing is inflated yet
        self._crc_wanted: int | None = None  # an inflated hole has none
        if place.is_hole and not head.flags & record.DEFLATED:
            self._crc_wanted = next((hole.crc for hole in head.holes if hole.offset == place.offset), None)
        self._crc, self._crc_at = 0, 0

    def read(self, offset: int, length: int) -> bytes:
        data = self._read(self._place.offset + offset, length)
        if self._crc_wanted is not None and offset == self._crc_at:
            self._crc = crc32(data, self._crc)
            self._crc_at += len(data)
            if self._crc_at == self._place.length and self._crc != self._crc_wanted:
                raise Corrupt("a bulk value is not what came in; run: hilum verify")
        return data

    def _read(self, at: int, length: int) -> bytes:
        if not self._head.flags & record.DEFLATED:
            self._file.seek(at)
            return self._file.read(length)
        if not self._place.is_hole:
            at -= sum(hole.length for hole in self._head.inflated_holes if hole.offset < self._place.offset)
            return self._head.inflated[at : at + length]
        return self._read_inflated(at, length)

    def _read_inflated(self, at: int, length: int) -> bytes:
        """Go on inflating from where the last read ended; begin again for what lies before that."""
        if self._piece_at < 0:
            self._check_deflated()
        if self._piece_at < 0 or at < self._piece_at:
            file = cast("io.BufferedIOBase", self._file)
            self._inflated = header.inflate(file, self._head.data_set_at)
            self._piece, self._piece_at = b"", 0
        parts = []
        while length:
            if at >= self._piece_at + len(self._piece):
                self._piece_at += len(self._piece)
                self._piece = next(self._inflated, b"")
                if not self._piece:
                    raise Corrupt("the deflated data set is not what came in; run: hilum verify")
                continue
            taken = self._piece[at - self._piece_at :][:length]
            parts.append(taken)
            at += len(taken)
            length -= len(taken)
        return b"".join(parts)

    def _check_deflated(self) -> None:
        """Hold all deflated bytes against their checksum: what they inflate to has none."""
        (hole,) = self._head.holes
        self._file.seek(hole.offset)
        crc, left = 0, hole.length
        while left:
            piece = self._file.read(min(left, _PIECE))
            crc = crc32(piece, crc)
            left -= len(piece)
        if crc != hole.crc:
            raise Corrupt("the deflated data set is not what came in; run: hilum verify")


# --- What is kept ---------------------------------------------------------------------


_FILE = Struct("<8sIQ")  # magic, CRC-32 of the gzip member behind it, bytes of the document in that
_FILE_MAGIC = b"HILUMDO1"
_FREE_MIN = 256 << 20  # bytes free on the disk: with less of them there is better use for the room
_TOUCH_SECONDS = 600  # a document's time of use is that exact
_LEFT_OVER_SECONDS = 3600  # a file that is still being written after that never will be whole


class Derived:
    """The documents kept in a folder: any number of processes may read and write it at once.

    A document comes under its name whole, by a rename, so that nobody sees half of one; one that a crash cut
    all the same fails its checksum and is made again. The oldest used ones go when all together are more
    than `bytes_max`.
    """

    def __init__(self, path: str, *, read_only: bool, bytes_max: int = DERIVED_BYTES_MAX) -> None:
        self._path = path
        self._read_only = read_only
        self._bytes_max = bytes_max
        self._unswept = bytes_max  # bytes written since the folder was looked through: the first write looks

    def read(self, name: str) -> Packed | None:
        """The document of this name, if there is one and it is whole."""
        path = os.path.join(self._path, name)
        try:
            with open(path, "rb") as file:
                data = file.read()
                old = time.time() - os.fstat(file.fileno()).st_mtime > _TOUCH_SECONDS
        except OSError:
            return None
        if len(data) < _FILE.size:
            return None
        magic, crc, length = _FILE.unpack_from(data)
        document = data[_FILE.size :]
        if magic != _FILE_MAGIC or crc != crc32(document, length & 0xFFFFFFFF):
            return None
        if old and not self._read_only:
            with contextlib.suppress(OSError):
                os.utime(path)
        return Packed(length, document)

    def write(self, name: str, document: Packed) -> None:
        """Keep a document, if that can be; a disk that is full or can't be written is no reason to fail."""
        if self._read_only or len(document.gzip) > self._bytes_max // 4:
            return
        new = os.path.join(self._path, f"{name}.{os.getpid()}-{threading.get_ident()}.new")
        try:
            os.makedirs(self._path, exist_ok=True)
            disk = os.statvfs(self._path)
            if disk.f_bavail * disk.f_frsize < _FREE_MIN:
                return
            with open(new, "xb") as file:
                crc = crc32(document.gzip, document.length & 0xFFFFFFFF)
                file.write(_FILE.pack(_FILE_MAGIC, crc, document.length))
                file.write(document.gzip)
            os.rename(new, os.path.join(self._path, name))
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(new)
            return
        self._unswept += len(document.gzip)
        if self._unswept > self._bytes_max // 16:
            self._unswept = 0
            self._sweep()

    def clear(self) -> None:
        """Remove all of them: something was deleted, and a copy of its header must not outlive it here."""
        with contextlib.suppress(OSError), os.scandir(self._path) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)

    def _sweep(self) -> None:
        """Remove the oldest used documents until there is room for some new ones, and what crashes left."""
        found = []
        now = time.time()
        with contextlib.suppress(OSError), os.scandir(self._path) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    status = entry.stat()
                    if not entry.name.endswith(".new"):
                        found.append((status.st_mtime, status.st_size, entry.path))
                    elif now - status.st_mtime > _LEFT_OVER_SECONDS:
                        os.unlink(entry.path)
        total = sum(size for _, size, _ in found)
        if total <= self._bytes_max:
            return
        for _, size, path in sorted(found):
            with contextlib.suppress(OSError):
                os.unlink(path)
            total -= size
            if total <= self._bytes_max - self._bytes_max // 8:
                return
