"""Takes a binary file with a DICOM object; gives its elements one after the other, in bounded memory. Never
decodes text, and never builds a data set.

    elements = Elements(file)
    elements.meta, elements.transfer_syntax
    read(elements, {0x00280010: None, 0x00283010: {0x00283006: None}})

For what pixels need around them: the attributes of a picture, and the data set of a transcoded object.
Explicit and implicit VR, little and big endian, and deflated data sets, which are inflated on the way.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from struct import Struct, unpack_from
from typing import Any, NamedTuple, Protocol

from hilum.dicom import dictionary, uids
from hilum.engine import header
from hilum.errors import BadDicom

UNDEFINED = 0xFFFFFFFF
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
LONG_VRS = frozenset(
    (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
)
VALUE_MAX = 64 << 20  # bytes of a value that is looked at, a palette or an ICC profile at most

_PIECE = 256 << 10
_DEPTH_MAX = 64


class File(Protocol):
    """What an OriginalFile and any binary file have."""

    def read(self, size: int = -1, /) -> bytes | None: ...
    def seek(self, offset: int, whence: int = 0, /) -> int: ...


class Encoding(NamedTuple):
    """How the elements of a data set, or of an item in it, are written."""

    explicit: bool
    big: bool


class Header(NamedTuple):
    """One element without its value."""

    tag: int
    vr: bytes  # b"" of items and delimiters, and of an element of unknown VR in implicit VR
    length: int  # UNDEFINED for undefined


IMPLICIT = Encoding(False, False)
EXPLICIT = Encoding(True, False)
EXPLICIT_BIG = Encoding(True, True)


class Stream:
    """Bytes from a file or from pieces, one after the other."""

    def __init__(self, file: File | None, pieces: Iterator[bytes] | None = None, at: int = 0) -> None:
        self._file = file
        self._pieces = pieces
        self._window = b""
        self._begin = 0  # in the window
        self.at = at  # of the next byte

    def take(self, count: int) -> bytes:
        """Return the next `count` bytes, fewer at the end."""
        begin = self._begin
        if len(self._window) - begin < count:
            self._fill(count)
            begin = 0
        data = self._window[begin : begin + count]
        self._begin = begin + len(data)
        self.at += len(data)
        return data

    def peek(self, count: int) -> bytes:
        """Return the same without going on."""
        data = self.take(count)
        self._begin -= len(data)
        self.at -= len(data)
        return data

    def _fill(self, count: int) -> None:
        parts = [self._window[self._begin :]]
        have = len(parts[0])
        while have < count:
            if self._pieces is not None:
                piece = next(self._pieces, b"")
            else:
                piece = (self._file.read(max(_PIECE, count - have)) if self._file is not None else b"") or b""
            if not piece:
                break
            parts.append(piece)
            have += len(piece)
        self._window, self._begin = b"".join(parts), 0

    def pieces(self, count: int) -> Iterator[bytes]:
        """Give the next `count` bytes in pieces of bounded size.

        Raises:
            BadDicom: there are fewer.
        """
        while count:
            piece = self.take(min(count, _PIECE))
            if not piece:
                raise BadDicom("an element runs past the end of the file", offset=self.at)
            count -= len(piece)
            yield piece

    def skip(self, count: int) -> None:
        """Go on `count` bytes further."""
        inside = min(count, len(self._window) - self._begin)
        self._begin += inside
        self.at += inside
        count -= inside
        if count and self._file is not None:
            self._file.seek(count, io.SEEK_CUR)
            self.at += count
        elif count:
            for _ in self.pieces(count):
                pass


_SHORT = {False: Struct("<HH2sH"), True: Struct(">HH2sH")}
_LONG = {False: Struct("<I"), True: Struct(">I")}
_PLAIN = {False: Struct("<HHI"), True: Struct(">HHI")}


class Elements:
    """The data set of a file, element by element, behind its File Meta Information."""

    def __init__(self, file: File, transfer_syntax: str = "") -> None:
        """Read the File Meta Information of `file`; `transfer_syntax` is taken where it has none.

        Raises:
            BadDicom: the file is cut, or not DICOM.
        """
        file.seek(0)
        self.preamble = b""
        self.meta: list[tuple[int, bytes, bytes]] = []  # tag, VR, value; without the group length
        self.stream = Stream(file)
        start = file.read(132) or b""
        if start[128:] == b"DICM":
            self.preamble = start[:128]
            self.stream.at = 132
        else:
            file.seek(0)
        self._read_meta()
        stated = b"".join(value for tag, _, value in self.meta if tag == 0x00020010)
        self.transfer_syntax = stated.decode("latin-1").strip("\0 ") or transfer_syntax
        if uids.is_deflated(self.transfer_syntax):
            whole = io.BufferedReader(_Raw(file))
            self.stream = Stream(None, header.inflate(whole, self.stream.at))
        self.encoding = self._encoding()

    def _read_meta(self) -> None:
        """PS3.10 7.1, DICOM File Meta Information: always explicit VR little endian."""
        while True:
            ahead = self.stream.peek(8)
            if len(ahead) < 8 or ahead[:2] != b"\x02\0":
                return
            found = self.next(EXPLICIT)
            if found is None or found.length > VALUE_MAX:
                raise BadDicom("the File Meta Information is damaged", offset=self.stream.at)
            value = self.value(found.length)
            if found.tag != 0x00020000:
                self.meta.append((found.tag, found.vr, value))

    def _encoding(self) -> Encoding:
        """What the transfer syntax says, unless the bytes of the first element say another thing."""
        if self.transfer_syntax == uids.EXPLICIT_VR_BIG_ENDIAN:
            return EXPLICIT_BIG
        ahead = self.stream.peek(6)
        if len(ahead) == 6 and ahead[4:].isalpha() and ahead[4:].isupper():
            return EXPLICIT
        return IMPLICIT

    def next(self, encoding: Encoding) -> Header | None:
        """Return the next element's header; None at the end of the file.

        Raises:
            BadDicom: the file ends inside it.
        """
        stream = self.stream
        raw = stream.take(8)
        if len(raw) < 8:
            if raw.strip(b"\0"):
                raise BadDicom("the file ends inside an element", offset=stream.at)
            return None
        big = encoding.big
        if not encoding.explicit or raw[:2] in (b"\xfe\xff", b"\xff\xfe"):
            group, element, length = _PLAIN[big].unpack(raw)
            tag = group << 16 | element
            if group == 0xFFFE or encoding.explicit:
                return Header(tag, b"", length)
            return Header(tag, dictionary.vr_of(tag).encode(), length)
        group, element, vr, length = _SHORT[big].unpack(raw)
        if vr in LONG_VRS:
            more = stream.take(4)
            if len(more) < 4:
                raise BadDicom("the file ends inside an element", offset=stream.at)
            (length,) = _LONG[big].unpack(more)
        return Header(group << 16 | element, vr, length)

    def value(self, length: int) -> bytes:
        """Return the value behind a header.

        Raises:
            BadDicom: it is cut, or too long to be looked at.
        """
        if length > VALUE_MAX:
            raise BadDicom(f"a value of {length} bytes is too long for what it is", offset=self.stream.at)
        data = self.stream.take(length)
        if len(data) < length:
            raise BadDicom("an element runs past the end of the file", offset=self.stream.at)
        return data

    def skip(self, found: Header, encoding: Encoding) -> None:
        """Go behind the value of an element that was just read, whatever is nested in it."""
        if found.length != UNDEFINED:
            self.stream.skip(found.length)
            return
        inner = IMPLICIT if found.vr == b"UN" else encoding
        open_ones = [inner]  # encodings of the values of undefined length round this place
        while open_ones:
            inner = open_ones[-1]
            nested = self.next(inner)
            if nested is None:
                raise BadDicom("a sequence has no end", offset=self.stream.at, tag=found.tag)
            if nested.tag in (ITEM_END, SEQUENCE_END):
                open_ones.pop()
            elif nested.length != UNDEFINED:
                self.stream.skip(nested.length)
            else:
                if len(open_ones) == _DEPTH_MAX:
                    raise BadDicom("sequences are nested too deep", offset=self.stream.at, tag=found.tag)
                open_ones.append(IMPLICIT if nested.vr == b"UN" else inner)


class _Raw(io.RawIOBase):
    """A File as io.BufferedReader wants it."""

    def __init__(self, file: File) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer)) or b""
        buffer[: len(data)] = data
        return len(data)


def find(elements: Elements, tag: int) -> Header | None:
    """Go to the value of an element at the top of the data set; return its header, None if there is none."""
    while (found := elements.next(elements.encoding)) is not None:
        if found.tag >= tag:
            return found if found.tag == tag else None
        elements.skip(found, elements.encoding)
    return None


# --- Reading a few of them -----------------------------------------------------

Wanted = dict[int, Any]  # tag to None for a value, or to the Wanted of its items


class Value(NamedTuple):
    """The value of an element, little endian."""

    vr: bytes
    data: bytes


class Found:
    """What read() found: values by tag, and items by the tag of their sequence."""

    def __init__(self) -> None:
        self.values: dict[int, Value] = {}
        self.items: dict[int, list[Found]] = {}


def read(elements: Elements, wanted: Wanted, *, only: dict[int, frozenset[int]] | None = None) -> Found:
    """Return those of the elements in `wanted` that the data set has; reads no further than the last of them.

    `only` names, for a sequence at the top, the indexes of the items that are looked into: the others are
    there, but empty.

    Raises:
        BadDicom: the file is cut or damaged before that.
    """
    return _read_items(elements, wanted, elements.encoding, UNDEFINED, only or {}, 0)


def _read_items(
    elements: Elements,
    wanted: Wanted,
    encoding: Encoding,
    length: int,
    only: dict[int, frozenset[int]],
    depth: int,
) -> Found:
    """Read the elements of one item, or of the data set (depth 0)."""
    found = Found()
    stream = elements.stream
    end = stream.at + length if length != UNDEFINED else None
    last = max(wanted)
    while end is None or stream.at < end:
        element = elements.next(encoding)
        if element is None or element.tag == ITEM_END:
            break
        if depth == 0 and element.tag > last:
            break
        below = wanted.get(element.tag, False)
        if below is False or (below is None and element.length == UNDEFINED):
            elements.skip(element, encoding)
        elif below is None:
            found.values[element.tag] = _little(element, elements.value(element.length), encoding)
        else:
            inner = IMPLICIT if element.vr == b"UN" else encoding
            picked = only.get(element.tag)
            found.items[element.tag] = _read_sequence(elements, below, inner, element.length, picked, depth)
    return found


def _read_sequence(
    elements: Elements,
    wanted: Wanted,
    encoding: Encoding,
    length: int,
    picked: frozenset[int] | None,
    depth: int,
) -> list[Found]:
    items: list[Found] = []
    stream = elements.stream
    end = stream.at + length if length != UNDEFINED else None
    while end is None or stream.at < end:
        item = elements.next(encoding)
        if item is None or item.tag != ITEM:
            break
        if picked is None or len(items) in picked:
            items.append(_read_items(elements, wanted, encoding, item.length, {}, depth + 1))
        else:
            elements.skip(item, encoding)
            items.append(Found())
    return items


_WORDS = {b"US": 2, b"SS": 2, b"OW": 2, b"AT": 2, b"UL": 4, b"SL": 4, b"FL": 4, b"OL": 4, b"OF": 4}
_WORDS |= {b"FD": 8, b"OD": 8, b"OV": 8, b"SV": 8, b"UV": 8}


def word_of(vr: bytes) -> int:
    """Return the bytes of one number of this VR, 1 where byte order does not matter."""
    return _WORDS.get(vr, 1)


def swap(data: bytes, word: int) -> bytes:
    """Return numbers of `word` bytes in the other byte order."""
    whole = len(data) - len(data) % word
    swapped = bytearray(data)
    for n in range(word):
        swapped[n:whole:word] = data[word - 1 - n : whole : word]
    return bytes(swapped)


def _little(element: Header, data: bytes, encoding: Encoding) -> Value:
    if encoding.big and (word := word_of(element.vr)) > 1:
        data = swap(data, word)
    return Value(element.vr, data)


def numbers(value: Value | None) -> list[float]:
    """Return the values of a number, binary or text; what is none is left out."""
    if value is None:
        return []
    code = _CODES.get(value.vr)
    if code is not None:
        count = len(value.data) // word_of(value.vr)
        return list(unpack_from(f"<{count}{code}", value.data))
    found = []
    for part in value.data.decode("latin-1").split("\\"):
        try:
            found.append(float(part.strip("\0 ")))
        except ValueError:
            return found
    return found


def text(value: Value | None) -> str:
    """Return a value of VR CS, UI, DA or TM without its padding."""
    return "" if value is None else value.data.decode("latin-1").strip("\0 ")


_CODES = {b"US": "H", b"SS": "h", b"UL": "I", b"SL": "i", b"FL": "f", b"FD": "d", b"UV": "Q", b"SV": "q"}
