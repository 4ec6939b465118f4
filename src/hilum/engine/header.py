"""Takes a file's bytes or descriptor; gives a Parsed: the scan, judged. Reads no pixel data, writes nothing.

Turns the parser's status into an error with file offset and tag, inflates deflated data sets in bounded
memory, and hands the few legal forms that the parser leaves alone to pydicom.
"""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from hilum import _fastparse as fast
from hilum.engine import record
from hilum.errors import BadDicom, Corrupt, NotDicom

if TYPE_CHECKING:
    from pydicom import Dataset

HEAD_MAX = fast.HEAD_BYTES_MAX  # bytes of a head: a data set with more outside its bulk values is refused
INFLATED_MAX = 4 << 30  # bytes of an inflated data set
FALLBACK_MAX = 4 << 20  # bytes of a file that pydicom is asked to read: at worst some seconds of its time
UID_MAX = 128  # the Standard's limit is 64; writers that pass it are many, and harmless

IMPLICIT_SYNTAX = b"1.2.840.10008.1.2"
EXPLICIT_SYNTAX = b"1.2.840.10008.1.2.1"
BIG_ENDIAN_SYNTAX = b"1.2.840.10008.1.2.2"

# Every way in which a scan can end badly, in the user's words. STATUS_UNDEFINED_LENGTH is not here:
# it is the one that pydicom is asked about.
REASON_OF = {
    3: "an element runs past the end of the file",
    4: "sequences are nested too deep",
    5: "a delimiter or element stands where it can't",
    6: "a value runs past the end of the item that holds it",
    9: "memory is out",
    10: "too many fragments",
    11: f"more than {HEAD_MAX} bytes outside of bulk values",
}

# What pydicom is asked about, and why; the commands count it. Anything else that is malformed is final.
FALLBACK_REASONS = {
    fast.STATUS_UNDEFINED_LENGTH: "undefined length outside of sequences and fragments",
}

# Not only digits and stops: "REM SAMPLES 1" is a Series Instance UID of a file in use.
_UID_CHARACTERS = b"0123456789.ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_ "
_INFLATE_CHUNK = 256 << 10
_FLAG_PAIRS = (
    (fast.FLAG_PART10, record.PART10),
    (fast.FLAG_PIXELS_TRUNCATED, record.TRUNCATED),
    (fast.FLAG_BIG_ENDIAN, record.BIG_ENDIAN),
    (fast.FLAG_IMPLICIT_VR, record.IMPLICIT_VR),
    (fast.FLAG_VALUE_LEFT, record.VALUE_LEFT),
)
_KNOWN_FLAGS = sum(theirs for theirs, _ in _FLAG_PAIRS)
_FLAGS_OF = [sum(ours for theirs, ours in _FLAG_PAIRS if bits & theirs) for bits in range(_KNOWN_FLAGS + 1)]
_PIXEL_TAGS = (0x7FE00010, 0x7FE00008, 0x7FE00009)
_FALLBACK_TAGS = [*record.NUMBER_OF, record.REQUEST_ATTRIBUTES, *_PIXEL_TAGS]
_WORD_WIDTH = {"US": 2, "SS": 2, "AT": 2, "UL": 4, "SL": 4, "FL": 4, "FD": 8, "SV": 8, "UV": 8}


class Inflated(NamedTuple):
    """The data set inside a deflated file: its head, and where its bulk values were."""

    head: bytes
    holes: list[tuple[int, int, int]]  # offset, length, tag; in inflated bytes
    length: int


class Parsed(NamedTuple):
    """What is known of a file before its bulk values are read."""

    study: bytes
    series: bytes
    uid: bytes  # SOP Instance UID
    transfer_syntax: bytes  # as the file says, or what it turned out to be where it says nothing
    flags: int  # those of record.Head
    data_set_at: int
    holes: list[tuple[int, int, int]]  # offset, length, tag of each bulk value, ascending
    pixels: tuple[int, int, int, bool] | None  # tag, offset, length, encapsulated
    upper: bytes  # entries of patient, study and series
    own: bytes  # entries of the instance
    scan: fast.Header
    inflated: Inflated | None = None


def parse(data: memoryview | bytes) -> Parsed:
    """Scan a whole file in memory.

    Raises:
        NotDicom: it does not begin like DICOM.
        BadDicom: it can't be read, or lacks a UID, and so can't be stored.
    """
    status, scan = fast.scan(data)
    if status != fast.STATUS_DONE:
        if status == fast.STATUS_DEFLATED:
            return _parse_deflated(scan, io.BytesIO(data))
        if status == fast.STATUS_UNDEFINED_LENGTH:
            return _parse_by_pydicom(scan, io.BytesIO(data), len(data))
        raise _refusal(status, scan)
    return _judge(scan, scan.holes)


def parse_fd(fd: int, total: int) -> Parsed:
    """Scan a file of `total` bytes by its descriptor, reading its head only.

    Raises:
        NotDicom, BadDicom: as for parse().
        OSError: the file can't be read.
    """
    status, scan = fast.scan_fd(fd, total)
    if status != fast.STATUS_DONE:
        if status == fast.STATUS_DEFLATED:
            with open(os.dup(fd), "rb") as file:
                return _parse_deflated(scan, file)
        if status == fast.STATUS_UNDEFINED_LENGTH:
            with open(os.dup(fd), "rb") as file:
                return _parse_by_pydicom(scan, file, total)
        raise _refusal(status, scan)
    return _judge(scan, scan.holes)


def parse_head(head: record.Head) -> Parsed:
    """Scan a stored head again: what the index held of it, out of the packs alone.

    Raises:
        Corrupt: it does not give what it gave when it came.
    """
    try:
        if head.flags & record.BY_PYDICOM:
            return parse(head.head)
        return _parse_head(head)
    except (BadDicom, NotDicom, OverflowError) as failure:
        raise Corrupt(f"a stored head can't be scanned: {failure}") from None


def _parse_head(head: record.Head) -> Parsed:
    if len(head.head) + sum([hole.length for hole in head.holes]) != head.original_length:
        raise BadDicom("head and holes together are not as long as the original")
    scan = fast.Header(head.original_length)
    scan.know_holes([(hole.offset, hole.length) for hole in head.holes])
    status = scan.feed(head.head, 0)
    inflated = None
    if status == fast.STATUS_DEFLATED and head.flags & record.DEFLATED:
        length = len(head.inflated) + sum(hole.length for hole in head.inflated_holes)
        inflated = Inflated(head.inflated, [(h.offset, h.length, h.tag) for h in head.inflated_holes], length)
        scan.begin_inflated(length)
        scan.know_holes([(hole.offset, hole.length) for hole in head.inflated_holes])
        status = scan.feed(head.inflated, 0)
    if status != fast.STATUS_DONE:
        raise BadDicom(REASON_OF.get(status, f"status {status}"), offset=scan.at, tag=scan.tag)
    holes = [(hole.offset, hole.length, hole.tag) for hole in head.holes]
    parsed = _judge(scan, holes, inflated)
    if (parsed.flags, parsed.data_set_at) == (head.flags, head.data_set_at):
        return parsed
    return parsed._replace(flags=head.flags, data_set_at=head.data_set_at)


def _refusal(status: int, scan: fast.Header) -> BadDicom | NotDicom:
    if status == fast.STATUS_NOT_DICOM:
        return NotDicom("this is no DICOM file: neither the prefix DICM nor the beginning of a data set")
    return BadDicom(REASON_OF[status], offset=scan.at, tag=scan.tag)


def _judge(
    scan: fast.Header,
    holes: list[tuple[int, int, int]],
    inflated: Inflated | None = None,
) -> Parsed:
    study, series, uid, _ = scan.uids
    # One look at all three; which of them is at fault is asked only when one is.
    if not (uid and study and series) or (uid + study + series).translate(None, _UID_CHARACTERS):
        raise _not_storable(scan)
    if len(uid) > UID_MAX or len(study) > UID_MAX or len(series) > UID_MAX:
        raise _not_storable(scan)
    pixels = scan.pixels
    flags = _FLAGS_OF[scan.flags & _KNOWN_FLAGS]
    if pixels is not None and pixels[3]:
        flags |= record.ENCAPSULATED
    if inflated is not None:
        flags |= record.DEFLATED
    return Parsed(
        study,
        series,
        uid,
        scan.transfer_syntax or _syntax_found(scan.flags),
        flags,
        scan.data_set_at,
        holes,
        pixels,
        scan.upper,
        scan.own,
        scan,
        inflated,
    )


def _flags_of(scan: fast.Header) -> int:
    """The flags of a head that the scan alone tells."""
    return _FLAGS_OF[scan.flags & _KNOWN_FLAGS]


def _is_uid(value: bytes) -> bool:
    return 0 < len(value) <= UID_MAX and not value.translate(None, _UID_CHARACTERS)


def _not_storable(scan: fast.Header) -> BadDicom:
    study, series, uid, _ = scan.uids
    for value, tag, name in (
        (uid, 0x00080018, "SOP Instance UID"),
        (study, 0x0020000D, "Study Instance UID"),
        (series, 0x0020000E, "Series Instance UID"),
    ):
        if not value:
            return BadDicom(f"not storable: there is no {name}", offset=scan.at, tag=tag)
        if not _is_uid(value):
            shown = value[:80].decode("latin-1")
            return BadDicom(f"not storable: {name} {shown!r} is no UID", offset=scan.at, tag=tag)
    raise AssertionError("all three are UIDs")


def _syntax_found(flags: int) -> bytes:
    if flags & fast.FLAG_BIG_ENDIAN:
        return BIG_ENDIAN_SYNTAX
    return IMPLICIT_SYNTAX if flags & fast.FLAG_IMPLICIT_VR else EXPLICIT_SYNTAX


# --- Deflated: PS3.5 A.5, DICOM Deflated Little Endian Transfer Syntax --------


def _parse_deflated(scan: fast.Header, file: io.BufferedIOBase) -> Parsed:
    """Inflate twice in small pieces: once for the length, once for the scan. Neither keeps the pixels."""
    start, total = scan.at, file.seek(0, io.SEEK_END)
    length = sum(map(len, inflate(file, start)))
    scan.begin_inflated(length)
    windows = _InflatedWindows(inflate(file, start), scan)
    status, need = fast.STATUS_NEED, (0, 0)
    while status == fast.STATUS_NEED:
        windows.advance(*need)
        status = scan.feed(windows.window, windows.base)
        need = scan.need
    if status == fast.STATUS_UNDEFINED_LENGTH:
        raise BadDicom(FALLBACK_REASONS[status], offset=scan.at, tag=scan.tag)
    if status != fast.STATUS_DONE:
        raise _refusal(status, scan)
    windows.advance(length, 0)
    head = windows.head
    if scan.flags & fast.FLAG_OPAQUE_SEQUENCE:
        # Holes in a sequence that was stepped over afterwards are none, and their bytes have gone by.
        head = _InflatedHead()
        for piece in inflate(file, start):
            head.add(piece, scan.holes)
    inflated = Inflated(bytes(head.data), scan.holes, length)
    parsed = _judge(scan, [(start, total - start, 0)], inflated)
    return parsed._replace(data_set_at=start)


class _InflatedWindows:
    """A window that only goes forward over inflated pieces; what it leaves behind goes to the head."""

    def __init__(self, pieces: Iterator[bytes], scan: fast.Header) -> None:
        self.window = b""
        self.base = 0  # inflated offset of the window's first byte
        self.head = _InflatedHead()
        self._pieces = pieces
        self._scan = scan
        self._holes: list[tuple[int, int, int]] = []

    def advance(self, at: int, length: int) -> None:
        """Move the window's begin to `at`, and have `length` bytes in it if there are so many."""
        if len(self._holes) != self._scan.hole_count:
            self._holes = self._scan.holes
        while self.base + len(self.window) <= at:
            self._leave(len(self.window))
            self.window = next(self._pieces, b"")
            if not self.window:
                return
        self._leave(at - self.base)
        while len(self.window) < length and (piece := next(self._pieces, b"")):
            self.window += piece

    def _leave(self, count: int) -> None:
        self.head.add(self.window[:count], self._holes)
        self.window = self.window[count:]
        self.base += count


class _InflatedHead:
    """What is left of inflated pieces without the holes; a hole must be known before its piece is added."""

    def __init__(self) -> None:
        self.data = bytearray()
        self._at = 0  # inflated offset behind the last piece
        self._next = 0  # place of the first hole that does not end before it

    def add(self, piece: bytes, holes: list[tuple[int, int, int]]) -> None:
        base, end = self._at, self._at + len(piece)
        while self._next < len(holes):
            offset, length, _ = holes[self._next]
            if offset >= end:
                break
            self.data += piece[self._at - base : max(self._at, offset) - base]
            self._at = min(end, offset + length)
            if offset + length > end:
                break
            self._next += 1
        self.data += piece[self._at - base :]
        self._at = end
        if len(self.data) > HEAD_MAX:
            raise BadDicom(REASON_OF[11], offset=self._at)


def inflate(file: io.BufferedIOBase, start: int) -> Iterator[bytes]:
    """Give the inflated bytes of a raw deflate stream from `start` on, in pieces of bounded size.

    Raises:
        BadDicom: the stream is broken, cut, or inflates to more than INFLATED_MAX.
    """
    file.seek(start)
    engine = zlib.decompressobj(-zlib.MAX_WBITS)
    done = 0
    rest = b""
    while not engine.eof:
        chunk = rest or file.read(_INFLATE_CHUNK)
        try:
            piece = engine.decompress(chunk, _INFLATE_CHUNK)
        except zlib.error as failure:
            raise BadDicom(f"the data set can't be inflated: {failure}", offset=start) from None
        if not chunk and not piece and not engine.eof:  # without a chunk the engine may still hold bytes
            raise BadDicom("the deflated data set is cut", offset=file.tell())
        rest = engine.unconsumed_tail
        done += len(piece)
        if done > INFLATED_MAX:
            raise BadDicom(f"the data set inflates to more than {INFLATED_MAX} bytes", offset=start)
        if piece:
            yield piece


# --- The fallback --------------------------------------------------------------


def _parse_by_pydicom(scan: fast.Header, file: io.BufferedIOBase, total: int) -> Parsed:
    """Read what the parser leaves to pydicom; the whole file becomes the head, so its size is capped."""
    reason = FALLBACK_REASONS[fast.STATUS_UNDEFINED_LENGTH]
    refusal = BadDicom(reason, offset=scan.at, tag=scan.tag)
    if total > FALLBACK_MAX:
        raise refusal
    import warnings

    import pydicom

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            file.seek(0)
            dataset = pydicom.dcmread(file, force=True, specific_tags=_FALLBACK_TAGS)
            upper, own = _entries_by_pydicom(dataset)
    except Exception:  # pydicom raises many kinds for broken bytes; none may end an import
        raise refusal from None
    value = {number: record.raw_of(upper + own, number) for number in range(record.NUMBER_COUNT)}
    uids = [value[record.NUMBER_OF[tag]] for tag in (0x0020000D, 0x0020000E, 0x00080018)]
    if not all(map(_is_uid, uids)):
        raise refusal
    pixels, truncated = _pixels_by_pydicom(dataset)
    flags = _flags_of(scan) & (record.PART10 | record.BIG_ENDIAN | record.IMPLICIT_VR) | record.BY_PYDICOM
    if truncated:
        flags |= record.TRUNCATED
    if any(kind & fast.ENTRY_IN_HEAD for _, kind, _ in record.split_entries(upper + own)):
        flags |= record.VALUE_LEFT
    return Parsed(
        uids[0],
        uids[1],
        uids[2],
        scan.transfer_syntax or _syntax_found(scan.flags),
        flags,
        scan.data_set_at,
        [],
        pixels,
        upper,
        own,
        scan,
    )


def _entries_by_pydicom(dataset: Dataset) -> tuple[bytes, bytes]:
    upper, own = bytearray(), bytearray()
    for tag, number in record.NUMBER_OF.items():
        if tag not in dataset:
            continue
        level = record.LEVEL_OF[number]
        if level in (0, record.INSTANCE):
            own += _entry_by_pydicom(dataset, tag, number, fast.VALUES_BYTES_MAX - len(own))
        if level != record.INSTANCE:
            upper += _entry_by_pydicom(dataset, tag, number, fast.VALUES_BYTES_MAX - len(upper))
    requests = dataset[record.REQUEST_ATTRIBUTES].value if record.REQUEST_ATTRIBUTES in dataset else None
    for item in requests or ():
        for tag, number in record.NESTED_NUMBER_OF.items():
            if tag in item and len(upper) <= fast.VALUES_BYTES_MAX:
                upper += _entry_by_pydicom(item, tag, number, fast.VALUES_BYTES_MAX - len(upper))
    return bytes(upper), bytes(own)


def _entry_by_pydicom(dataset: Dataset, tag: int, number: int, room: int) -> bytes:
    """The entry that the parser would have made: bytes as they are in the file, but numbers little endian."""
    raw: Any = dataset.get_item(tag)
    vr = record.VR_OF[number] if raw.VR in (None, "UN") else raw.VR
    data, kind = raw.value, 0
    if not isinstance(data, bytes):  # pydicom has decoded it: the character set, or an empty value
        parts = [data] if isinstance(data, str) else list(data or ())
        data = "\\".join(map(str, parts)).encode("latin-1", "replace")
    elif (width := _WORD_WIDTH.get(vr, 1)) > 1 and not raw.is_little_endian:
        data = b"".join(data[at : at + width][::-1] for at in range(0, len(data), width))
    if len(data) > min(fast.VALUE_BYTES_MAX, room):
        kind, data = fast.ENTRY_IN_HEAD, b""
    if vr != record.VR_OF[number]:
        kind, data = kind | fast.ENTRY_HAS_VR, vr.encode("ascii") + data
    return record.entry_bytes(number, kind, data)


def _pixels_by_pydicom(dataset: Dataset) -> tuple[tuple[int, int, int, bool] | None, bool]:
    """Where native pixels lie, and whether they are cut. Encapsulated ones are left alone: nothing has seen
    their fragments."""
    for tag in _PIXEL_TAGS:
        raw: Any = dataset.get_item(tag) if tag in dataset else None
        if raw is not None and isinstance(raw.value, bytes) and raw.length != 0xFFFFFFFF:
            return (tag, raw.value_tell, len(raw.value), False), len(raw.value) < raw.length
    return None, False
