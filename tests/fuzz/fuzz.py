"""Mutate real DICOM files, and feed them to the parser and all that stands directly on it.

python tests/fuzz/fuzz.py --seconds N [--seed S] [--keep FILE]

Runs in any build; only one with sanitizers finds a read outside of a buffer (see sanitized.py). Each input
goes through a whole scan, a scan in windows, scans of its head with true and with false holes, find_entry,
values_of, header.parse, the frame table and the writer of DICOM JSON, and what they say must agree. An input
is written to FILE first, so that it is still there when the process is not.

Every buffer is an allocation of exactly its length: `bytes` has a NUL behind its end, which hides an
over-read of one byte, and array.array grows by more than it needs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import random
import struct
import sys
import time
import warnings
import zlib
from array import array
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from hilum import _dicomjson
from hilum import _fastparse as fast
from hilum.engine import frametable, header, prepare, record
from hilum.errors import BadDicom, Corrupt, NotDicom

SEED_SIZE_MAX = 64 << 10  # bytes of a file that is mutated
INPUT_SIZE_MAX = 256 << 10
SECONDS_PER_INPUT_MAX = 5  # in a sanitizer build, on a busy machine
SHARED_DATA = Path(__file__).resolve().parent.parent.parent.parent / "shared" / "data"

LENGTHS = (
    0,
    1,
    2,
    7,
    8,
    63,
    64,
    1023,
    1024,
    8192,
    8193,
    65535,
    65536,
    2**31 - 1,
    2**31,
    2**32 - 2,
    2**32 - 1,
)
ITEM, ITEM_END, SEQUENCE_END = b"\xfe\xff\x00\xe0", b"\xfe\xff\x0d\xe0", b"\xfe\xff\xdd\xe0"
UNDEFINED = b"\xff\xff\xff\xff"
MARKS = (
    *(
        b"SQ\0\0",
        b"UN\0\0",
        b"OB\0\0",
        b"OW\0\0",
        b"UT\0\0",
        ITEM,
        ITEM_END,
        SEQUENCE_END,
        UNDEFINED,
        b"UI",
        b"PN",
    ),
    *(
        b"\x40\x00\x75\x02",
        b"\xe0\x7f\x10\x00",
        b"\xe0\x7f\x01\x00",
        b"\x02\x00\x10\x00",
        b"1.2.840.10008.1.2",
    ),
)
OPENINGS = (
    b"\x08\x00\x40\x11SQ\0\0" + UNDEFINED + ITEM + UNDEFINED,
    b"\x40\x00\x75\x02SQ\0\0" + UNDEFINED + ITEM + UNDEFINED,
    b"\x09\x00\x40\x11UN\0\0" + UNDEFINED + ITEM + UNDEFINED,
    b"\x08\x00\x40\x11" + UNDEFINED + ITEM + UNDEFINED,
    b"\x00\x08\x11\x40SQ\0\0" + UNDEFINED + b"\xff\xfe\xe0\x00" + UNDEFINED,
)
SYNTAXES = (
    *(b"1.2.840.10008.1.2", b"1.2.840.10008.1.2.1", b"1.2.840.10008.1.2.2", b"1.2.840.10008.1.2.1.99"),
    *(b"1.2.840.10008.1.2.4.50", b"1.2.840.10008.1.2.5"),
)


def exactly(data: bytes | bytearray | memoryview) -> array[int]:
    """A buffer with these bytes, allocated to the byte."""
    buffer = array("B", b"\0") * len(data)
    memoryview(buffer)[:] = data
    return buffer


# --- Seeds -------------------------------------------------------------------------


def element(tag: int, vr: str, value: bytes, length: int | None = None) -> bytes:
    length = len(value) if length is None else length
    head = struct.pack("<HH", tag >> 16, tag & 0xFFFF) + vr.encode()
    long = vr in ("OB", "OW", "OV", "SQ", "UN", "UT")
    return head + (struct.pack("<HI", 0, length) if long else struct.pack("<H", length)) + value


def item(value: bytes) -> bytes:
    return ITEM + struct.pack("<I", len(value)) + value


def meta(syntax: bytes) -> bytes:
    return bytes(128) + b"DICM" + element(0x00020010, "UI", syntax + b"\0" * (len(syntax) % 2))


UIDS = (
    element(0x00080018, "UI", b"2.25.3")
    + element(0x0020000D, "UI", b"2.25.1")
    + element(0x0020000E, "UI", b"2.25.2")
)
TABLE = struct.pack("<3Q", 0, 12, 24)
REQUEST = item(element(0x00400009, "SH", b"step")) + ITEM + UNDEFINED + ITEM_END + bytes(4)
MADE = [
    meta(SYNTAXES[4])
    + UIDS
    + element(0x00280008, "IS", b"3 ")
    + element(0x00400275, "SQ", REQUEST)
    + element(0x7FE00001, "OV", TABLE)
    + element(0x7FE00002, "OV", struct.pack("<3Q", 4, 4, 4))
    + element(0x7FE00010, "OB", item(struct.pack("<3I", 0, 12, 24)) + item(b"abcd") * 3, 2**32 - 1)
    + SEQUENCE_END
    + bytes(4),
    meta(SYNTAXES[1])
    + UIDS
    + element(0x00880200, "SQ", item(element(0x7FE00010, "OB", item(b"") + item(bytes(1100)), 2**32 - 1)))
    + element(0x54000100, "SQ", item(element(0x54001010, "OW", bytes(66_000))))
    + element(0x7FE00010, "OW", bytes(1500)),
    UIDS + element(0x7FE00010, "OW", bytes(30)) + b"1234567",
]


def seeds() -> list[bytes]:
    """Made files, the samples that lie beside the project if they do, and pydicom's own."""
    found = list(MADE)
    pydicom = find_spec("pydicom")
    folders = [SHARED_DATA]
    if pydicom is not None and pydicom.origin is not None:
        folders.append(Path(pydicom.origin).parent / "data" / "test_files")
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.stat().st_size <= SEED_SIZE_MAX:
                found.append(path.read_bytes())
    return found


# --- Mutations ---------------------------------------------------------------------


class Mutator:
    def __init__(self, chance: random.Random, files: list[bytes]) -> None:
        self._chance = chance
        self._files = files
        self._ways = (
            *(self._flip, self._flip, self._length, self._length, self._length, self._cut, self._splice),
            *(self._nest, self._repeat, self._drop, self._syntax, self._mark),
        )

    def next(self) -> bytes:
        chance = self._chance
        data = bytearray(chance.choice(self._files))
        for _ in range(chance.choice((0, 1, 1, 2, 3, 5, 8))):
            chance.choice(self._ways)(data)
        del data[INPUT_SIZE_MAX:]
        return self._deflated(data) if chance.random() < 0.05 else bytes(data)

    def _at(self, data: bytearray) -> int:
        # Most of a file is pixels; most of what the parser decides on lies in front of them.
        end = len(data) if self._chance.random() < 0.3 else min(len(data), 4096)
        return self._chance.randint(0, end)

    def _mark_at(self, data: bytearray) -> int:
        """Behind a tag or VR that means something, if there is one behind a place at random."""
        mark = self._chance.choice(MARKS)
        at = data.find(mark, self._at(data))
        return self._at(data) if at < 0 else at + len(mark)

    def _flip(self, data: bytearray) -> None:
        for _ in range(self._chance.randint(1, 4)):
            at = self._at(data)
            if at < len(data):
                data[at] = self._chance.choice((data[at] ^ 1 << self._chance.randrange(8), 0, 0xFF, 0xFE))

    def _length(self, data: bytearray) -> None:
        at = self._mark_at(data)
        length = self._chance.choice(
            (*LENGTHS, len(data) - at, len(data) - at - 4, self._chance.randrange(2000))
        )
        order = "<" if self._chance.random() < 0.9 else ">"
        if self._chance.random() < 0.3:
            data[at : at + 2] = struct.pack(f"{order}H", length & 0xFFFF)
        else:
            data[at : at + 4] = struct.pack(f"{order}I", length & 0xFFFFFFFF)

    def _cut(self, data: bytearray) -> None:
        del data[self._at(data) :]

    def _splice(self, data: bytearray) -> None:
        other = self._chance.choice(self._files)
        begin = self._chance.randint(0, len(other))
        piece = other[begin : begin + self._chance.choice((4, 20, 200, 5000))]
        at = self._mark_at(data) if self._chance.random() < 0.5 else self._at(data)
        data[at : at + (len(piece) if self._chance.random() < 0.5 else 0)] = piece

    def _nest(self, data: bytearray) -> None:
        at = self._mark_at(data) if self._chance.random() < 0.5 else min(len(data), 158)
        data[at:at] = self._chance.choice(OPENINGS) * self._chance.choice((1, 2, 5, 255, 256, 257, 600))

    def _repeat(self, data: bytearray) -> None:
        at = self._at(data)
        piece = data[at : at + self._chance.choice((8, 12, 16, 20, 100))]
        data[at:at] = piece * self._chance.choice((1, 2, 10, 1000))

    def _drop(self, data: bytearray) -> None:
        at = self._at(data)
        del data[at : at + self._chance.choice((1, 2, 4, 8, 100))]

    def _syntax(self, data: bytearray) -> None:
        at = data.find(b"1.2.840.10008.1.2", 132)
        if at >= 0:
            syntax = self._chance.choice(SYNTAXES)
            data[at : at + len(syntax)] = syntax

    def _mark(self, data: bytearray) -> None:
        at = self._mark_at(data)
        mark = self._chance.choice(MARKS)
        data[at : at + len(mark)] = mark

    def _deflated(self, data: bytearray) -> bytes:
        engine = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
        stream = engine.compress(bytes(data[158:])) + engine.flush()
        return meta(SYNTAXES[3]) + stream


# --- What every input goes through ------------------------------------------------------


def state(status: int, scan: fast.Header) -> tuple[object, ...]:
    return (
        *(status, scan.at, scan.tag, scan.flags, scan.data_set_at, scan.transfer_syntax, scan.holes),
        *(scan.hole_count, scan.pixels, scan.fragments, scan.extended_offset_table, scan.upper, scan.own),
        scan.uids,
    )


def run(data: bytes, chance: random.Random) -> int:
    """Put one input through everything; return the scan's status.

    Raises:
        AssertionError: two ways to read it disagree.
    """
    status, scan = fast.scan(exactly(data))
    whole = state(status, scan)
    check_scan(data, status, scan)
    check_windows(data, whole, chance)
    check_heads(data, status, scan, chance)
    check_entries(scan, chance)
    if status != 0 or scan.uids[0]:
        check_parse(data, scan, chance)
    return status


def check_scan(data: bytes, status: int, scan: fast.Header) -> None:
    assert status in range(12), status
    assert status != fast.STATUS_NEED
    assert scan.at <= len(data)
    end = 0
    for offset, length, _ in scan.holes:
        assert end <= offset <= offset + length <= len(data)
        end = offset + length
    assert len(scan.upper) < 40_000
    assert len(scan.own) < 40_000
    if status == fast.STATUS_DONE and scan.pixels is not None:
        _, offset, length, encapsulated = scan.pixels
        assert offset + length <= len(data)
        end = 0
        for at, size in scan.fragments if encapsulated else ():
            assert end <= at <= at + 8 + size <= length
            end = at + 8 + size


def check_windows(data: bytes, whole: tuple[object, ...], chance: random.Random) -> None:
    scan = fast.Header(len(data))
    status, (at, length) = fast.STATUS_NEED, (0, 0)
    while status == fast.STATUS_NEED:
        begin = max(0, at - chance.choice((0, 0, 1, 9)))
        window = data[begin : at + length + chance.choice((0, 0, 0, 1, 7, 300, 8192))]
        status = scan.feed(exactly(window), begin)
        assert status != fast.STATUS_NEED or scan.need != (at, length) or not length, "asked for twice"
        at, length = scan.need
    assert state(status, scan) == whole, "windows differ"


def check_heads(data: bytes, status: int, scan: fast.Header, chance: random.Random) -> None:
    true = [(offset, length) for offset, length, _ in scan.holes]
    again = fast.Header(len(data))
    again.know_holes(true)
    found = again.feed(exactly(without(data, true)), 0)
    if status in (fast.STATUS_DONE, fast.STATUS_DEFLATED):
        assert found == status, "the head of a file that was scanned can't be"
        for what in ("at", "flags", "holes", "pixels", "upper", "own", "data_set_at"):
            assert getattr(again, what) == getattr(scan, what), f"{what} of the head differ"
    false = [
        (
            max(0, offset + chance.choice((0, 0, 0, 1, -1, 8))),
            chance.choice((length, *LENGTHS, 2**63, 2**64 - 1)),
        )
        for offset, length in (*true, *((chance.randrange(len(data) + 9), 10) for _ in range(3)))
    ]
    again = fast.Header(chance.choice((len(data), 0, 2**64 - 1, 2**33)))
    again.know_holes(false)
    status = again.feed(exactly(without(data, true)), chance.choice((0, 0, 0, 1, 2**63)))
    if status == fast.STATUS_DEFLATED:
        again.begin_inflated(chance.choice((len(data), 2**64 - 1)))
        again.know_holes(false)
        status = again.feed(exactly(data), 0)
    assert status in range(12)
    again.feed(exactly(data), 0)  # not allowed, and yet no reason to read elsewhere
    state(status, again)


def without(data: bytes, holes: list[tuple[int, int]]) -> bytes:
    parts, at = [], 0
    for offset, length in holes:
        parts.append(data[at:offset])
        at = offset + length
    return b"".join([*parts, data[at:]])


def check_entries(scan: fast.Header, chance: random.Random) -> None:
    for entries in (scan.upper, scan.own):
        cut = entries[: chance.randint(0, len(entries))] if chance.random() < 0.5 else entries
        for number in range(len(fast.wanted())):
            fast.find_entry(exactly(cut), number)
            with contextlib.suppress(record.LeftInHead, BadDicom):
                record.values_of(entries, number)
            record.text_of(entries, number)
        record.levels_of(entries)


WANTED = _dicomjson.Paths([(0x0008103E,), (0x00081140, 0x00081155), ((0x00290010, "SIEMENS CSA HEADER"),)])


def check_document(data: bytes, head: record.Head, chance: random.Random) -> None:
    """A head that was stored gives a document; one that lies about itself gives one too, or BadDicom."""
    source = (exactly(head.inflated), head.inflated_holes, 0) if head.inflated else None
    begin, holes, at = source or (exactly(head.head), head.holes, head.data_set_at)
    implicit = bool(head.flags & record.IMPLICIT_VR) and not head.inflated
    big = bool(head.flags & record.BIG_ENDIAN) and not head.inflated
    text = _dicomjson.write(begin, holes, at, implicit, big)
    with contextlib.suppress(RecursionError):  # of the reader, which recurses
        json.loads(text)
    for path in ([(0x7FE00010, 0)], [(0x00081140, 1), (0x00081155, 0)], [(0x00091001, 0)]):
        _dicomjson.find(begin, holes, at, implicit, big, path)
    lies = [
        (max(0, h.offset + chance.choice((0, 1, -1, 8))), chance.choice((h.length, *LENGTHS))) for h in holes
    ]
    for wanted in (None, WANTED):
        with contextlib.suppress(BadDicom):
            _dicomjson.write(
                exactly(chance.choice((head.head, data))),
                chance.choice((lies, holes, ())),
                chance.choice((at, 0, 132, len(data), 2**63)),
                chance.random() < 0.5,
                chance.random() < 0.3,
                wanted=wanted,
                inline_max=chance.choice((0, 1024, 2**40)),
            )


def check_parse(data: bytes, scan: fast.Header, chance: random.Random) -> None:
    buffer = memoryview(exactly(data))
    try:
        parsed = header.parse(buffer)
        prepared = prepare.prepare(buffer)
    except (BadDicom, NotDicom):
        return
    head = record.unpack_head(prepared.payload)
    again = header.parse_head(head)
    assert again[:9] == parsed[:9], "a stored head gives something else"
    check_document(data, head, chance)
    if parsed.pixels is None or not parsed.pixels[3] or parsed.inflated is not None:
        return
    _, start, length, _ = parsed.pixels
    value = data[start : start + length]
    for offset, size, _, form in record.FRAME_ENTRY.iter_unpack(prepared.payload[prepared.head_length :]):
        assert offset + size <= length, "a frame outside of the pixels"
        frame = value[offset : offset + size]
        if form == frametable.WITH_ITEMS:
            assert len(frametable.strip_items(frame)) <= size


def inputs(chance: random.Random, files: list[bytes]) -> Iterator[bytes]:
    yield b""
    yield from files[: len(MADE)]
    mutator = Mutator(chance, files)
    while True:
        yield mutator.next()


def main() -> int:
    arguments = argparse.ArgumentParser(description="Feed mutated DICOM files to the parser.")
    arguments.add_argument("--seconds", type=float, default=60)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--keep", type=Path, help="file for the input that is being tried")
    arguments.add_argument("--input", type=Path, help="try this file alone, as often as the seconds allow")
    given = arguments.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    chance = random.Random(given.seed)
    files = seeds() if given.input is None else [given.input.read_bytes()]
    statuses: Counter[int] = Counter()
    end = time.monotonic() + given.seconds
    tries = inputs(chance, files) if given.input is None else iter(files * 100)
    keep = given.keep.open("wb", buffering=0) if given.keep is not None else None
    for data in tries:
        begun = time.monotonic()
        if begun > end:
            break
        if keep is not None:
            keep.seek(0)
            keep.truncate()
            keep.write(data)
        try:
            statuses[run(data, chance)] += 1
        except (Exception, Corrupt) as failure:
            print(f"input {sum(statuses.values())} of seed {given.seed}: {failure!r}", file=sys.stderr)
            raise
        taken = time.monotonic() - begun
        if taken > SECONDS_PER_INPUT_MAX:
            print(f"input {sum(statuses.values())} of seed {given.seed} took {taken:.1f} s", file=sys.stderr)
            return 1
    print(
        f"{sum(statuses.values())} inputs made of {len(files)} files; ended by status:",
        dict(sorted(statuses.items())),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
