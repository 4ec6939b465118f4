"""Takes a file's bytes or descriptor; gives a Parsed: the scan, judged. Reads no pixel data, writes nothing.

Turns the parser's status into an error with file offset and tag, inflates deflated data sets in bounded
memory, and hands the few legal forms that the parser leaves alone to pydicom.
"""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from hilum import _fastparse as fast
from hilum.engine import record
from hilum.errors import BadDicom, Corrupt, NotDicom

if TYPE_CHECKING:
    from pydicom import Dataset

HEAD_MAX = 64 << 20  # bytes of a head: a data set with more outside its bulk values is refused
INFLATED_MAX = 4 << 30  # bytes of an inflated data set
FALLBACK_MAX = 16 << 20  # bytes of a file that pydicom is asked to read
UID_MAX = 128  # the Standard's limit is 64; writers that pass it are many, and harmless

DEFLATED_SYNTAX = b"1.2.840.10008.1.2.1.99"
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
}

# What pydicom is asked about, and why; the commands count it. Anything else that is malformed is final.
FALLBACK_REASONS = {
    fast.STATUS_UNDEFINED_LENGTH: "undefined length outside of sequences and fragments",
}

_UID_CHARACTERS = b"0123456789.ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_"
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
    return _judge(scan, scan.holes, scan.pixels, len(data))


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
    return _judge(scan, scan.holes, scan.pixels, total)


def parse_head(head: record.Head) -> Parsed:
    """Scan a stored head again: what the index held of it, out of the packs alone.

    Raises:
        Corrupt: it does not give what it gave when it came.
    """
    if head.flags & record.BY_PYDICOM:
        return parse(head.head)
    scan = fast.Header(head.original_length)
    scan.know_holes([(hole.offset, hole.length) for hole in head.holes])
    status = scan.feed(head.head, 0)
    inflated = None
    if status == fast.STATUS_DEFLATED and head.flags & record.DEFLATED:
        length = len(head.inflated) + sum(hole.length for hole in head.inflated_holes)
        scan.begin_inflated(length)
        scan.know_holes([(hole.offset, hole.length) for hole in head.inflated_holes])
        status = scan.feed(head.inflated, 0)
        inflated = Inflated(head.inflated, scan.holes, length)
    if status != fast.STATUS_DONE:
        raise Corrupt(f"a stored head can't be scanned: {REASON_OF.get(status, status)} at byte {scan.at}")
    holes = [(hole.offset, hole.length, hole.tag) for hole in head.holes]
    parsed = _judge(scan, holes, scan.pixels, head.original_length, inflated)
    return parsed._replace(flags=head.flags, data_set_at=head.data_set_at)


def _refusal(status: int, scan: fast.Header) -> BadDicom | NotDicom:
    if status == fast.STATUS_NOT_DICOM:
        return NotDicom("this is no DICOM file: neither the prefix DICM nor the beginning of a data set")
    return BadDicom(REASON_OF[status], offset=scan.at, tag=scan.tag)


def _judge(
    scan: fast.Header,
    holes: list[tuple[int, int, int]],
    pixels: tuple[int, int, int, bool] | None,
    total: int,
    inflated: Inflated | None = None,
    more_flags: int = 0,
) -> Parsed:
    study, series, uid, _ = scan.uids
    if not (_is_uid(uid) and _is_uid(study) and _is_uid(series)):
        raise _not_storable(scan)
    head_length = total - sum([length for _, length, _ in holes])
    if head_length > HEAD_MAX and inflated is None:
        raise BadDicom(
            f"{head_length} bytes outside of bulk values: at most {HEAD_MAX}", offset=scan.at, tag=scan.tag
        )
    found = scan.flags
    flags = more_flags | _FLAGS_OF[found & _KNOWN_FLAGS]
    if pixels is not None and pixels[3]:
        flags |= record.ENCAPSULATED
    return Parsed(
        study,
        series,
        uid,
        scan.transfer_syntax or _syntax_found(found),
        flags,
        scan.data_set_at,
        holes,
        pixels,
        scan.upper,
        scan.own,
        scan,
        inflated,
    )


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
    inflated = Inflated(bytes(windows.head), scan.holes, length)
    parsed = _judge(scan, [(start, total - start, 0)], scan.pixels, total, inflated, record.DEFLATED)
    return parsed._replace(data_set_at=start)


class _InflatedWindows:
    """A window that only goes forward over inflated pieces; what it leaves behind, outside of holes, is the head."""

    def __init__(self, pieces: Iterator[bytes], scan: fast.Header) -> None:
        self.window = b""
        self.base = 0  # inflated offset of the window's first byte
        self.head = bytearray()
        self._pieces = pieces
        self._scan = scan

    def advance(self, at: int, length: int) -> None:
        """Move the window's begin to `at`, and have `length` bytes in it if there are so many."""
        holes = self._scan.holes
        while self.base + len(self.window) <= at:
            self._leave(len(self.window), holes)
            self.window = next(self._pieces, b"")
            if not self.window:
                return
        self._leave(at - self.base, holes)
        while len(self.window) < length and (piece := next(self._pieces, b"")):
            self.window += piece

    def _leave(self, count: int, holes: list[tuple[int, int, int]]) -> None:
        at, end = self.base, self.base + count
        for offset, length, _ in holes:
            if offset + length > at and offset < end:
                self.head += self.window[at - self.base : max(at, offset) - self.base]
                at = min(end, offset + length)
        self.head += self.window[at - self.base : count]
        if len(self.head) > HEAD_MAX:
            raise BadDicom(
                f"more than {HEAD_MAX} bytes outside of bulk values", offset=at, tag=self._scan.tag
            )
        self.window = self.window[count:]
        self.base = end


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
        if not chunk:
            raise BadDicom("the deflated data set is cut", offset=file.tell())
        try:
            piece = engine.decompress(chunk, _INFLATE_CHUNK)
        except zlib.error as failure:
            raise BadDicom(f"the data set can't be inflated: {failure}", offset=start) from None
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
            dataset = pydicom.dcmread(file, force=True)
            upper, own = _entries_by_pydicom(dataset)
    except Exception:  # pydicom raises many kinds for broken bytes; none may end an import
        raise refusal from None
    value = {number: record.raw_of(upper + own, number) for number in range(record.NUMBER_COUNT)}
    uids = [value[record.NUMBER_OF[tag]] for tag in (0x0020000D, 0x0020000E, 0x00080018)]
    if not all(map(_is_uid, uids)):
        raise refusal
    syntax = str(dataset.file_meta.get("TransferSyntaxUID", "")).encode("latin-1")
    return Parsed(
        uids[0],
        uids[1],
        uids[2],
        syntax or _syntax_found(scan.flags),
        record.BY_PYDICOM | (record.PART10 if scan.flags & fast.FLAG_PART10 else 0),
        scan.data_set_at,
        [],
        None,
        upper,
        own,
        scan,
    )


def _entries_by_pydicom(dataset: Dataset) -> tuple[bytes, bytes]:
    upper, own = [], []
    for tag, number in record.NUMBER_OF.items():
        if tag not in dataset:
            continue
        raw = dataset.get_item(tag)
        data = raw.value if isinstance(raw.value, bytes) else b""
        made = record.entry(number, data[:8192], raw.VR if raw.VR not in (None, "UN") else None)
        level = record.LEVEL_OF[number]
        if level in (0, record.INSTANCE):
            own.append(made)
        if level != record.INSTANCE:
            upper.append(made)
    return b"".join(upper), b"".join(own)
