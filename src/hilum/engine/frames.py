"""Takes a stored instance and a frame's index; gives the frame's bytes, checked. Decodes nothing.

A native frame lies where arithmetic says, an encapsulated one where the table behind its head says: one
pread either way, however large the object. Every byte that leaves has been held against a checksum.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

from isal.isal_zlib import crc32

from hilum._fastparse import find_entry
from hilum.dicom.layout import PIXEL_DATA, PixelLayout
from hilum.dicom.native import native_frame_span, shift_bits
from hilum.engine import frametable, header, record
from hilum.engine.index import BlobPlace
from hilum.engine.packs import BULK_PACK, FILE_PACK, HEAD_PACK, NotCached, PackGone, PackReader
from hilum.engine.record import BLOCK_SIZE, FRAME_ENTRY, Head, Instance
from hilum.errors import BadDicom, Corrupt, NotFound

BLOB_KINDS = (BULK_PACK, FILE_PACK)
_PIECE = 1 << 20

# Takes kinds of pack, container, offset and length; gives the bytes there.
Read = Callable[[Sequence[int], int, int, int], bytes]

_NUMBER = record.NUMBER_OF
_PHOTOMETRIC = _NUMBER[0x00280004]


def layout_of(instance: Instance) -> PixelLayout:
    """The pixel layout that an instance's attributes describe.

    Raises:
        NotFound: the instance has no pixels.
    """
    if not instance.pixel_tag:
        raise NotFound("this instance has no pixel data")

    def number(tag: int, default: int) -> int:
        found = find_entry(instance.entries, _NUMBER[tag])
        if found is None:
            return default
        flags, raw = found
        if not flags and len(raw) == 2 and tag != 0x00280008:
            return raw[0] | raw[1] << 8  # one US, as nearly all are
        try:
            values = record.values_of(instance.entries, _NUMBER[tag])
        except (BadDicom, record.LeftInHead):
            return default
        value = values[0] if values else None
        return int(value) if isinstance(value, int | float) else default

    return PixelLayout(
        tag=instance.pixel_tag,
        frame_count=max(1, number(0x00280008, 1)),
        rows=number(0x00280010, 0),
        columns=number(0x00280011, 0),
        samples_per_pixel=number(0x00280002, 1),
        bits_allocated=number(0x00280100, 8 if instance.pixel_tag == PIXEL_DATA else 32),
        bits_stored=number(0x00280101, number(0x00280100, 8)),
        pixel_representation=number(0x00280103, 0),
        planar_configuration=number(0x00280006, 0),
        photometric=_photometric_of(instance),
    )


def _photometric_of(instance: Instance) -> str:
    found = find_entry(instance.entries, _PHOTOMETRIC)
    if found is not None and not found[0] and found[1].isascii() and b"\\" not in found[1]:
        return found[1].decode("ascii").strip("\0 ")
    return record.text_of(instance.entries, _PHOTOMETRIC)


class Spot(NamedTuple):
    """Where a frame lies in a pack, and what those bytes must be: to read it takes no look-up."""

    container: int
    offset: int  # from the start of the pack
    length: int  # of what is read, which may be more than the frame
    crcs: tuple[int, ...]  # CRC-32 of it, of each BLOCK_SIZE bytes where there are several
    begin: int  # of the frame in it
    end: int

    def read_now(self, packs: PackReader) -> bytes | None:
        """The frame's bytes, None if that would be to wait for the disk.

        Raises:
            Corrupt: the bytes on disk are not what came in.
        """
        try:
            data = packs.read_now(BLOB_KINDS, self.container, self.offset, self.length)
        except NotCached:
            return None
        if len(self.crcs) == 1:
            fits = crc32(data) == self.crcs[0]
        else:
            view = memoryview(data)
            fits = all(
                crc32(view[block * BLOCK_SIZE : (block + 1) * BLOCK_SIZE]) == crc
                for block, crc in enumerate(self.crcs)
            )
        if not fits:
            raise Corrupt("a frame is not what came in; run: hilum verify")
        return data[self.begin : self.end]


class FrameReader:
    """Reads the frames of one stored instance."""

    def __init__(
        self,
        instance: Instance,
        packs: PackReader,
        find_blob: Callable[[bytes], BlobPlace],
        read_head: Callable[[], Head],
        where_now: Callable[[Instance], Instance],
        place: BlobPlace | None = None,
    ) -> None:
        """`find_blob` and `where_now` look up anew when they are asked: a compaction moves what is read.

        `place` is that of the pixels, if it is known.
        """
        self._instance = instance
        self._packs = packs
        self._find_blob = find_blob
        self._read_head = read_head
        self._where_now = where_now
        self._place = place
        if not instance.pixel_tag:
            raise NotFound("this instance has no pixel data")

    @cached_property
    def layout(self) -> PixelLayout:
        return layout_of(self._instance)

    @property
    def frame_count(self) -> int:
        if self._instance.flags & record.ENCAPSULATED:
            return self._instance.table_length // FRAME_ENTRY.size or self.layout.frame_count
        return self.layout.frame_count

    def read(self, index: int) -> bytes:
        """Return a frame as it is stored: native bytes, or a codestream without item headers.

        A native frame of Bits Allocated 1 is shifted to begin at bit 0.

        Raises:
            NotFound: there is no frame of this index.
            BadDicom: the pixels are cut, or nothing tells where this frame lies.
            Corrupt: the bytes on disk are not what came in.
        """
        return self._read_frame(index, self._packs.read)

    def read_now(self, index: int) -> bytes | None:
        """The same without ever waiting for the disk; None where that can't be: then read() may wait."""
        instance = self._instance
        if instance.flags & record.DEFLATED or not instance.pixel_digest:
            return None
        try:
            return self._read_frame(index, self._packs.read_now)
        except NotCached:
            return None

    def spot(self, index: int) -> Spot | None:
        """Where a frame lies, if it is one run of bytes in a pack as it leaves. The caller has read it once.

        The spot holds as long as the instance's record and the place of its pixels are what they are now.
        """
        instance = self._instance
        if instance.flags & record.DEFLATED or not instance.pixel_digest:
            return None
        place = self._place or self._find_blob(instance.pixel_digest)
        if instance.flags & record.ENCAPSULATED:
            offset, length, crc, form = self._entry(index, self._packs.read)
            if form == frametable.WITH_ITEMS:
                return None
            return Spot(place.container, place.offset + offset, length, (crc,), 0, length)
        if self.layout.frame_bits % 8 or (instance.pixel_words and self.layout.bits_allocated <= 8):
            return None
        span = native_frame_span(self.layout, index)
        end = span.offset + span.length
        if not instance.table_length:
            crcs: tuple[int, ...] = (instance.pixel_crc,)
            return Spot(place.container, place.offset, instance.pixel_length, crcs, span.offset, end)
        first, last = span.offset // BLOCK_SIZE, (end - 1) // BLOCK_SIZE
        begin = first * BLOCK_SIZE
        length = min((last + 1) * BLOCK_SIZE, instance.pixel_length) - begin
        crcs = struct.unpack(f"<{last - first + 1}I", self._block_crcs(first, last, self._packs.read))
        return Spot(place.container, place.offset + begin, length, crcs, span.offset - begin, end - begin)

    def stream(self, index: int) -> tuple[int, Callable[[int, int], Iterator[bytes]]]:
        """The length of a frame, and a function that gives the bytes of it from one offset to another.

        For frames that are too large to be held, videos above all. It reads all of the frame whatever part is
        wanted, since there is one checksum; and what does not fit is told by Corrupt after the last piece.

        Raises: as read().
        """
        instance = self._instance
        if (
            not instance.flags & record.ENCAPSULATED
            or not 0 <= index < instance.table_length // FRAME_ENTRY.size
        ):
            data = self.read(index)
            return len(data), lambda begin, end: iter((data[begin:end],))
        offset, length, crc, form = self._entry(index, self._packs.read)
        if form == frametable.WITH_ITEMS or not instance.pixel_digest:
            data = self.read(index)
            return len(data), lambda begin, end: iter((data[begin:end],))

        def pieces(begin: int, end: int) -> Iterator[bytes]:
            found = 0
            for at in range(0, length, _PIECE):
                piece = self._read_value(offset + at, min(_PIECE, length - at), self._packs.read)
                found = crc32(piece, found)
                if at < end and begin < at + len(piece):
                    yield piece[max(begin - at, 0) : end - at]
            if found != crc:
                raise Corrupt(f"frame {index + 1} is not what came in; run: hilum verify")

        return length, pieces

    def _read_frame(self, index: int, read: Read) -> bytes:
        if index < 0 or index >= self.frame_count:
            raise NotFound(f"no frame {index + 1} among {self.frame_count}")
        if self._instance.flags & record.ENCAPSULATED:
            return self._read_encapsulated(index, read)
        span = native_frame_span(self.layout, index)
        if span.length == 0:
            raise BadDicom(
                "Rows, Columns or Bits Allocated are missing, so there are no frames", tag=0x00280010
            )
        if span.offset + span.length > self._instance.pixel_length:
            raise BadDicom(
                f"frame {index + 1} is cut: the pixels end after {self._instance.pixel_length} bytes",
                offset=self._instance.pixel_offset,
                tag=self._instance.pixel_tag,
            )
        data = self._read_in_order(span.offset, span.length, read)
        if self.layout.frame_bits % 8:
            return shift_bits(data, span.bit, self.layout.frame_bits)
        return data

    def _read_in_order(self, offset: int, length: int, read: Read) -> bytes:
        """Native bytes in the order of the pixels.

        In big endian OW two pixels of 8 bits share a word, the second one in front: PS3.5 8.1.1 (Pixel Data
        Encoding of Related Data Elements) fills words from the least significant byte.
        """
        if not self._instance.pixel_words or self.layout.bits_allocated > 8:
            return self._read_native(offset, length, read)
        begin = offset & ~1
        end = min((offset + length + 1) & ~1, self._instance.pixel_length & ~1)
        words = bytearray(self._read_native(begin, end - begin, read))
        words[0::2], words[1::2] = words[1::2], words[0::2]
        return bytes(words[offset - begin : offset - begin + length])

    def _read_encapsulated(self, index: int, read: Read) -> bytes:
        instance = self._instance
        if not instance.table_length:
            raise BadDicom(
                "nothing tells where the frames begin: fewer fragments than frames, and no offset table",
                offset=instance.pixel_offset,
                tag=instance.pixel_tag,
            )
        offset, length, crc, form = self._entry(index, read)
        data = self._read_value(offset, length, read)
        with_items = data[:4] in (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")
        if crc32(data) != crc or with_items != (form == frametable.WITH_ITEMS):
            raise Corrupt(f"frame {index + 1} is not what came in; run: hilum verify")
        if form == frametable.WITH_ITEMS:
            return frametable.strip_items(data, big_endian=bool(instance.flags & record.BIG_ENDIAN))
        return data

    def _entry(self, index: int, read: Read) -> tuple[int, int, int, int]:
        """Offset, length, checksum and form of an encapsulated frame.

        The entry has no checksum of its own, so it must make sense: no frame begins where the offset table's
        item does, none ends behind the value, and item headers are there or not as it says.
        """
        instance = self._instance
        entry: tuple[int, int, int, int] = FRAME_ENTRY.unpack(
            self._read_table(index * FRAME_ENTRY.size, FRAME_ENTRY.size, read)
        )
        if not 0 < entry[0] <= instance.pixel_length - entry[1]:
            raise Corrupt(f"the table entry of frame {index + 1} is damaged; run: hilum verify")
        return entry

    def _read_native(self, offset: int, length: int, read: Read) -> bytes:
        """Read whole blocks around the frame, since a checksum covers a block."""
        instance = self._instance
        if instance.flags & record.DEFLATED:
            return self._read_inflated(offset, length)
        if not instance.pixel_digest:
            return self._read_value(offset, length, read)  # the head's own checksum covers it
        if not instance.table_length:
            data = self._read_value(0, instance.pixel_length, read)
            if crc32(data) != instance.pixel_crc:
                raise Corrupt("the pixels are not what came in; run: hilum verify")
            return data[offset : offset + length]
        first, last = offset // BLOCK_SIZE, (offset + length - 1) // BLOCK_SIZE
        begin = first * BLOCK_SIZE
        end = min((last + 1) * BLOCK_SIZE, instance.pixel_length)
        data = self._read_value(begin, end - begin, read)
        crcs = self._block_crcs(first, last, read)
        view = memoryview(data)
        for block in range(last - first + 1):
            piece = view[block * BLOCK_SIZE : (block + 1) * BLOCK_SIZE]
            if crc32(piece).to_bytes(4, "little") != crcs[block * 4 : block * 4 + 4]:
                raise Corrupt(f"block {first + block} of the pixels is not what came in; run: hilum verify")
        return data[offset - begin : offset - begin + length]

    def _block_crcs(self, first: int, last: int, read: Read) -> bytes:
        return self._read_table(first * 4, (last - first + 1) * 4, read)

    def _read_table(self, offset: int, length: int, read: Read) -> bytes:
        """Bytes of the table behind the head."""
        instance = self._instance
        at = instance.head_length + offset
        try:
            return read((HEAD_PACK,), instance.container, instance.offset + at, length)
        except PackGone:
            instance = self._instance = self._where_now(instance)
            return read((HEAD_PACK,), instance.container, instance.offset + at, length)

    def _read_value(self, offset: int, length: int, read: Read) -> bytes:
        """Bytes of the Pixel Data value, wherever it lies."""
        instance = self._instance
        if not instance.pixel_digest:
            head = self._read_head()
            at = instance.pixel_offset + offset
            for hole in head.holes:
                if hole.offset < instance.pixel_offset:
                    at -= hole.length
            return head.head[at : at + length]
        return self._read_blob(instance.pixel_digest, offset, length, read)

    def _read_blob(self, digest: bytes, offset: int, length: int, read: Read) -> bytes:
        place = self._place or self._find_blob(digest)  # an instance reads one blob: its pixels
        try:
            return read(BLOB_KINDS, place.container, place.offset + offset, length)
        except PackGone:
            self._place = None
            place = self._find_blob(digest)
            return read(BLOB_KINDS, place.container, place.offset + offset, length)

    def _read_inflated(self, offset: int, length: int) -> bytes:
        """Inflate up to the frame, in bounded memory but for the frame and the deflated bytes."""
        head = self._read_head()
        hole = head.holes[0]
        deflated = self._read_blob(hole.digest, 0, hole.length, self._packs.read)
        if crc32(deflated) != hole.crc:
            raise Corrupt("the deflated data set is not what came in; run: hilum verify")
        begin = self._instance.pixel_offset + offset
        parts, at = [], 0
        for piece in header.inflate(io.BytesIO(deflated), 0):
            if at + len(piece) > begin:
                parts.append(piece[max(0, begin - at) : begin + length - at])
            at += len(piece)
            if at >= begin + length:
                break
        return b"".join(parts)
