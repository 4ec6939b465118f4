"""Takes the fragments of encapsulated Pixel Data; gives where each frame lies. Reads no frame.

PS3.5 A.4 (Transfer Syntaxes For Encapsulation of Encoded Pixel Data): the Basic Offset Table may be empty
or, in files that exist, wrong; a frame may be one fragment or many. Where no table tells, the rules are
those of pydicom's generate_frames, so that both give the same bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

ITEM_HEADER = 8
PLAIN, WITH_ITEMS = 0, 1
TAIL_LENGTH = 10  # bytes at a fragment's end in which the marker may stand, before padding
END_OF_IMAGE = b"\xff\xd9"  # JPEG EOI and JPEG 2000 EOC alike


class FrameSpan(NamedTuple):
    """One encapsulated frame in the value of Pixel Data."""

    offset: int  # PLAIN: of its first byte; WITH_ITEMS: of its first item's header
    length: int
    form: int  # WITH_ITEMS: item headers stand between its fragments and are no part of it


def frame_spans(
    fragments: Sequence[tuple[int, int]],
    frame_count: int,
    *,
    basic: bytes,
    extended: tuple[bytes, bytes] | None,
    tail_of: Callable[[int], bytes],
    big_endian: bool = False,
) -> list[FrameSpan]:
    """Part the fragments into frames; [] where nothing tells how.

    `fragments` are (offset of the item header, length of the item value) without the offset table's own
    item; `frame_count` is Number of Frames; `basic` and `extended` are the tables' values; `tail_of(i)`
    gives the last TAIL_LENGTH bytes of fragment i, and is called only where no table tells.

    A table counts if each of its entries is the beginning of a fragment, and if it has an entry for each
    frame or the fragments are not one for each frame themselves. A table with more entries than there are
    fragments is wrong, and is not even unpacked.
    """
    if not fragments:
        return []
    first = fragments[0][0]
    one_each = len(fragments) == frame_count
    if extended is not None and (len(extended[0]) // 8 == frame_count or not one_each):
        spans = _by_extended(fragments, first, extended)
        if spans:
            return spans
    count = len(basic) // 4
    if 0 < count <= len(fragments) and (count == frame_count or not one_each):
        offsets = struct.unpack(f"{'>' if big_endian else '<'}{count}I", basic[: count * 4])
        starts = {offset - first: index for index, (offset, _) in enumerate(fragments)}
        firsts = [starts.get(offset, -1) for offset in offsets]
        if firsts[0] == 0 and all(a < b for a, b in pairwise(firsts)):
            return [_join(fragments[a:b]) for a, b in pairwise([*firsts, len(fragments)])]
    if one_each:
        return [_join([fragment]) for fragment in fragments]
    if len(fragments) == 1 or frame_count == 1:
        return [_join(fragments)]
    if len(fragments) < frame_count:
        return []
    return _by_markers(fragments, tail_of)


def _by_extended(
    fragments: Sequence[tuple[int, int]], first: int, tables: tuple[bytes, bytes]
) -> list[FrameSpan]:
    """One fragment a frame, PS3.3 C.7.6.3.1.8, Extended Offset Table; [] where the table is wrong."""
    count = len(tables[0]) // 8
    if count > len(fragments) or len(tables[1]) // 8 != count:
        return []
    offsets = struct.unpack(f"<{count}Q", tables[0][: count * 8])
    lengths = struct.unpack(f"<{count}Q", tables[1][: count * 8])
    if len(set(offsets)) != count:
        return []  # two frames in one fragment: their bytes would overlap
    length_at = dict(fragments)
    spans = []
    for offset, length in zip(offsets, lengths, strict=True):
        there = length_at.get(first + offset)
        if there is None or length > there:
            return []
        spans.append(FrameSpan(first + offset + ITEM_HEADER, length, PLAIN))
    return spans


def _by_markers(fragments: Sequence[tuple[int, int]], tail_of: Callable[[int], bytes]) -> list[FrameSpan]:
    spans, begin = [], 0
    for index in range(len(fragments)):
        if END_OF_IMAGE in tail_of(index):
            spans.append(_join(fragments[begin : index + 1]))
            begin = index + 1
    if begin < len(fragments):
        spans.append(_join(fragments[begin:]))
    return spans


def _join(fragments: Sequence[tuple[int, int]]) -> FrameSpan:
    offset, length = fragments[0]
    if len(fragments) == 1:
        return FrameSpan(offset + ITEM_HEADER, length, PLAIN)
    last_offset, last_length = fragments[-1]
    return FrameSpan(offset, last_offset + ITEM_HEADER + last_length - offset, WITH_ITEMS)


def strip_items(data: bytes, *, big_endian: bool = False) -> bytes:
    """The fragments of a WITH_ITEMS frame, joined without their item headers."""
    parts, at = [], 0
    order = "big" if big_endian else "little"
    while at + ITEM_HEADER <= len(data):
        length = int.from_bytes(data[at + 4 : at + 8], order)  # type: ignore[arg-type]
        parts.append(data[at + ITEM_HEADER : at + ITEM_HEADER + length])
        at += ITEM_HEADER + length
    return b"".join(parts)
