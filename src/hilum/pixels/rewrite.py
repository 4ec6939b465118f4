"""Takes the elements of a data set in any encoding; gives them in Explicit VR Little Endian, a few of them
changed. Never holds a long value, and never touches the bytes of an element that need not change.

    for piece in explicit_little(elements, layout, edits, pixels): ...

Explicit little endian elements are copied as they are, sequences whole. Big endian ones have their numbers
turned; implicit ones get their VR from the dictionary, and their sequences and items undefined lengths.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from struct import pack
from typing import NamedTuple

from hilum.dicom.layout import PixelLayout
from hilum.errors import BadDicom
from hilum.pixels import dataset
from hilum.pixels.dataset import (
    EXPLICIT,
    IMPLICIT,
    ITEM,
    ITEM_END,
    LONG_VRS,
    SEQUENCE_END,
    UNDEFINED,
    Elements,
    Encoding,
    Header,
)

ICON_IMAGE_SEQUENCE = 0x00880200

_SHORT_MAX = 0xFFFF
_ENCAPSULATED = b"\xe0\x7f\x10\x00OB\x00\x00\xff\xff\xff\xff"

# PS3.6 6: "US or SS", by Pixel Representation; the dictionary has the first of the two.
_US_OR_SS = frozenset(
    (
        *(0x00189810, 0x00221452, 0x00280071, *range(0x00280104, 0x00280112), 0x00280120, 0x00280121),
        *(*range(0x00281100, 0x00281104), *range(0x00281111, 0x00281114), 0x00283002),
        *(0x00409211, 0x00409216, 0x00603004, 0x00603006),
    )
)
# "US or OW" and "OB or OW": OW in implicit VR, PS3.5 A.1, DICOM Implicit VR Little Endian Transfer Syntax.
_OW = frozenset((0x00281200, 0x00283006))


class Edit(NamedTuple):
    """What becomes of one element at the top of the data set."""

    vr: bytes
    value: bytes | None  # None takes it out; else it is changed, or put in


def element(tag: int, vr: bytes, value: bytes) -> bytes:
    """Return one element of explicit VR little endian, its value padded to an even length."""
    if len(value) % 2:
        value += b"\0" if vr in LONG_VRS or vr == b"UI" else b" "
    return header(tag, vr, len(value)) + value


def header(tag: int, vr: bytes, length: int) -> bytes:
    """Return the header of an element of explicit VR little endian."""
    if vr in LONG_VRS:
        return pack("<HH2sHI", tag >> 16, tag & 0xFFFF, vr, 0, length)
    return pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr, length)


def item(tag: int, length: int) -> bytes:
    """Return the header of an item, or a delimiter."""
    return pack("<HHI", tag >> 16, tag & 0xFFFF, length)


def explicit_little(
    elements: Elements,
    layout: PixelLayout | None,
    edits: dict[int, Edit],
    pixels: Callable[[Header], Iterator[bytes]] | None,
) -> Iterator[bytes]:
    """Give the data set in pieces of bounded size.

    `pixels` gives the element that stands for the one at `layout.tag`, from its header, which has been read;
    it must leave the stream behind the value. `edits` are for elements at the top.

    Raises:
        BadDicom: the data set is cut, or damaged where that can't be copied.
    """
    signed = layout is not None and bool(layout.pixel_representation)
    encoding = elements.encoding
    changed = {tag >> 16 for tag in edits} | ({layout.tag >> 16} if layout is not None else set())
    left = sorted(edits)
    while (found := elements.next(encoding)) is not None:
        while left and left[0] < found.tag:
            yield from _put_in(left.pop(0), edits)
        if left and left[0] == found.tag:
            left.pop(0)
            elements.skip(found, encoding)
            yield from _put_in(found.tag, edits)
        elif found.tag & 0xFFFF == 0 and (found.tag >> 16 in changed or encoding != EXPLICIT):
            elements.skip(found, encoding)  # a group length that may not be right any more, and is retired
        elif layout is not None and pixels is not None and found.tag == layout.tag:
            yield from pixels(found)
        elif encoding == EXPLICIT:
            yield from _as_it_is(elements, found)
        else:
            yield from _translated(elements, found, signed)
    for tag in left:
        yield from _put_in(tag, edits)


def _put_in(tag: int, edits: dict[int, Edit]) -> Iterator[bytes]:
    vr, value = edits[tag]
    if value is not None:
        yield element(tag, vr, value)


def _as_it_is(elements: Elements, found: Header) -> Iterator[bytes]:
    """Copy an explicit little endian element with all that is nested in it."""
    if found.tag == ICON_IMAGE_SEQUENCE:
        whole = b"".join(_copy(elements, found))
        # PS3.5 A.4: an icon may be encapsulated where the picture is; it can't stay so when that is not.
        if _ENCAPSULATED not in whole:
            yield whole
        return
    yield from _copy(elements, found)


def _copy(elements: Elements, found: Header) -> Iterator[bytes]:
    stream = elements.stream
    yield header(found.tag, found.vr, found.length)
    if found.length != UNDEFINED:
        yield from stream.pieces(found.length)
        return
    inners = [IMPLICIT if found.vr == b"UN" else EXPLICIT]
    while inners:
        encoding = inners[-1]
        nested = elements.next(encoding)
        if nested is None:
            raise BadDicom("a sequence has no end", offset=stream.at, tag=found.tag)
        is_item = nested.tag >> 16 == 0xFFFE
        yield item(nested.tag, nested.length) if is_item or not encoding.explicit else header(*nested)
        if nested.tag in (ITEM_END, SEQUENCE_END):
            inners.pop()
        elif nested.length != UNDEFINED:
            yield from stream.pieces(nested.length)
        else:
            inners.append(IMPLICIT if nested.vr == b"UN" else encoding)


class _Level(NamedTuple):
    """A sequence or an item that is open."""

    is_item: bool
    end: int | None  # where it ends in the source; None where a delimiter says
    encoding: Encoding


def _translated(elements: Elements, found: Header, signed: bool) -> Iterator[bytes]:
    """Translate an element of implicit VR, or of big endian, with all that is nested in it."""
    stream, levels = elements.stream, list[_Level]()
    encoding, nested = elements.encoding, found
    while True:
        vr = _vr_of(nested, encoding, signed)
        if nested.tag == ITEM:
            levels.append(_Level(True, _end(stream.at, nested.length), encoding))
            yield item(ITEM, UNDEFINED)
        elif nested.tag in (ITEM_END, SEQUENCE_END):
            if not levels or levels[-1].is_item != (nested.tag == ITEM_END):
                raise BadDicom("a delimiter stands where it can't", offset=stream.at, tag=found.tag)
            yield item(ITEM_END if levels.pop().is_item else SEQUENCE_END, 0)
        elif vr == b"SQ":
            inner = IMPLICIT if nested.vr == b"UN" else encoding
            levels.append(_Level(False, _end(stream.at, nested.length), inner))
            yield header(nested.tag, b"SQ", UNDEFINED)
        elif nested.length == UNDEFINED:
            raise BadDicom("undefined length outside of sequences", offset=stream.at, tag=nested.tag)
        else:
            yield from _value(elements, nested, vr, encoding)
        while levels and levels[-1].end is not None and stream.at >= levels[-1].end:
            yield item(ITEM_END if levels.pop().is_item else SEQUENCE_END, 0)
        if not levels:
            return
        encoding = levels[-1].encoding
        following = elements.next(encoding)
        if following is None:
            raise BadDicom("a sequence has no end", offset=stream.at, tag=found.tag)
        nested = following


def _end(at: int, length: int) -> int | None:
    return None if length == UNDEFINED else at + length


def _vr_of(found: Header, encoding: Encoding, signed: bool) -> bytes:
    """Return the VR that an element has in explicit VR, where implicit VR leaves it open."""
    if found.length == UNDEFINED and found.vr in (b"UN", b"SQ"):
        return b"SQ"  # PS3.5 6.2.2, Unknown (UN) Value Representation
    if encoding.explicit:
        return found.vr
    if found.tag in _US_OR_SS:
        return b"SS" if signed else b"US"
    if found.tag in _OW or (found.vr == b"OB" and found.tag >> 24 in (0x50, 0x54, 0x60, 0x7F)):
        return b"OW"
    return found.vr


def _value(elements: Elements, found: Header, vr: bytes, encoding: Encoding) -> Iterator[bytes]:
    if found.length > _SHORT_MAX and vr not in LONG_VRS:
        # PS3.5 6.2.2: too long for the 16 bits that this VR has for its length. UN is little endian.
        vr = b"UN"
    yield header(found.tag, vr, found.length)
    word = dataset.word_of(found.vr) if encoding.big else 1
    for piece in elements.stream.pieces(found.length):
        yield dataset.swap(piece, word) if word > 1 else piece
