"""Takes metadata as JSON or XML, and bulk data beside it; gives Part 10 files, in pieces. Never has a bulk
value in memory, and never decodes a pixel.

PS3.18 10.5.1.4 (Request Payload), F (DICOM JSON Model), PS3.19 A.1 (Native DICOM Model). What is given is
Explicit VR Little Endian, or encapsulated where the pixels come compressed. Bulk data belong to the attribute
whose BulkDataURI is the Content-Location of their part; frames that come one by one have it all, or its
subresources /frames/1, /frames/2 and so on, as retrieval names them.

Text is written in UTF-8, and Specific Character Set says so, but where plain ASCII does.
"""

from __future__ import annotations

import base64
import binascii
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from struct import Struct, error, pack
from typing import Any, NamedTuple
from urllib.parse import urljoin

import orjson

from hilum.dicom import dictionary, uids
from hilum.dicom.xml import from_xml
from hilum.errors import BadDicom, BadQuery
from hilum.pixels.rewrite import element, header, item
from hilum.web import media
from hilum.web.codestream import Codestream, read_codestream

MEMORY_BYTES = 1 << 20  # of the parts of a request; beyond that they lie on the disk
METADATA_BYTES_MAX = 32 << 20  # of one part of metadata: it becomes objects of many times its size

_CHUNK = 1 << 20
_DEPTH_MAX = 64
_VALUE_MAX = 0xFFFFFFFE  # PS3.5 7.1.1: all ones is "undefined"
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_UNDEFINED = 0xFFFFFFFF
_PIXEL_DATA = 0x7FE00010
_PIXEL_TAGS = (_PIXEL_DATA, 0x7FE00008, 0x7FE00009)

_TEXT_VRS = frozenset(
    ("AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI", "UR", "UT")
)
_BINARY_VRS = frozenset(("OB", "OD", "OF", "OL", "OV", "OW", "UN"))
_NUMBERS = {
    "FD": Struct("<d"),
    "FL": Struct("<f"),
    "SL": Struct("<i"),
    "SS": Struct("<h"),
    "SV": Struct("<q"),
    "UL": Struct("<I"),
    "US": Struct("<H"),
    "UV": Struct("<Q"),
}
_NAME_GROUPS = ("Alphabetic", "Ideographic", "Phonetic")
_LONG_VRS = frozenset(("OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"))

Document = Mapping[str, Any]


class Part(NamedTuple):
    """One part as it lies in the file of its request."""

    type: str
    params: Mapping[str, str]  # of its Content-Type
    location: str
    offset: int
    length: int


class Parts:
    """The parts of one request, in one file. Not thread-safe."""

    def __init__(self, folder: str, base: str) -> None:
        """`folder` is where a file without a name may lie; relative URIs are relative to `base`."""
        self.parts: list[Part] = []
        self._base = base
        self._file = tempfile.SpooledTemporaryFile(max_size=0, dir=folder)  # noqa: SIM115
        self._size = 0
        self._spooled = False

    def begin(self, media_type: str, params: Mapping[str, str], location: str) -> None:
        """The bytes that are written from now on are those of a new part."""
        self.parts.append(Part(media_type, params, location, self._size, 0))

    @property
    def held(self) -> int:
        """Bytes in memory."""
        return 0 if self._spooled else self._size

    @property
    def length(self) -> int:
        return self._size

    def is_quick(self, size: int) -> bool:
        """Whether so many more bytes can be written without touching a disk."""
        return not self._spooled and self._size + size <= MEMORY_BYTES

    def spool(self) -> None:
        """Hold nothing in memory from now on."""
        if not self._spooled:
            self._file.rollover()
            self._spooled = True

    def write(self, chunk: bytes | memoryview) -> None:
        if not self.is_quick(len(chunk)):
            self.spool()
        self._file.write(chunk)
        self._size += len(chunk)
        self.parts[-1] = self.parts[-1]._replace(length=self._size - self.parts[-1].offset)

    def discard(self) -> None:
        self._file.close()

    def read(self, part: Part, offset: int = 0, length: int | None = None) -> bytes:
        """Bytes of a part, from `offset` in it on."""
        self._file.seek(part.offset + offset)
        left = part.length - offset
        return self._file.read(left if length is None else min(length, left))

    def chunks(self, part: Part, offset: int = 0) -> Iterator[bytes]:
        for at in range(offset, part.length, _CHUNK):
            yield self.read(part, at, _CHUNK)

    def named(self, uri: str) -> list[Part]:
        """The parts that are the value of a BulkDataURI: one, or one for each frame, in their order."""
        wanted = urljoin(self._base, uri)
        found = [
            part for part in self.parts if part.location and urljoin(self._base, part.location) == wanted
        ]
        if found:
            return found
        prefix = f"{wanted.rstrip('/')}/frames/"
        frames: dict[int, Part] = {}
        for part in self.parts:
            location = urljoin(self._base, part.location) if part.location else ""
            number = location.removeprefix(prefix)
            if location.startswith(prefix) and number.isdecimal() and len(number) < 10:
                frames[int(number)] = part
        return [frames[number] for number in sorted(frames)]


# --- Metadata --------------------------------------------------------------------


def read_metadata(data: bytes, *, is_xml: bool) -> list[Document | BadDicom]:
    """The data sets in a part of metadata: PS3.18 F.2.1 has an array of them, XML one to a document.

    Raises:
        BadDicom: it can't be read at all. What is no data set among others is given in its place.
    """
    if is_xml:
        return [from_xml(data)]
    try:
        found = orjson.loads(data)
    except orjson.JSONDecodeError as failure:
        raise BadDicom(f"the JSON can't be read: {failure}") from None
    documents = found if isinstance(found, list) else [found]
    return [
        document
        if isinstance(document, dict)
        else BadDicom("there is something else where a data set must be")
        for document in documents
    ]


def uid_in(document: Document, tag: str) -> str:
    """A UID of a data set, "" where there is none."""
    attribute = document.get(tag)
    values = attribute.get("Value") if isinstance(attribute, dict) else None
    value = values[0] if isinstance(values, list) and values else ""
    return value.strip() if isinstance(value, str) and value.isascii() and len(value) <= 64 else ""


# --- Part 10 ---------------------------------------------------------------------


def encode(document: Document, parts: Parts, syntax: str = "") -> Iterator[bytes]:
    """The Part 10 file of a data set; `syntax` is the transfer syntax that the request as a whole names.

    Raises:
        BadDicom: an attribute that is none, a value that its VR can't have, bulk data that did not come.
    """
    attributes = _attributes(document)
    pixels = _Pixels.of(attributes, parts, syntax)
    filled = pixels.filled(attributes)
    yield _file_meta(document, pixels.syntax)
    writer = _Writer(parts, pixels)
    yield from writer.data_set(_with_character_set(filled), 0)


def _attributes(document: Document) -> dict[int, dict[str, Any]]:
    """The attributes of a data set by their tags, in their order; no group lengths and no file meta."""
    found: dict[int, dict[str, Any]] = {}
    for key, attribute in document.items():
        try:
            tag = int(key, 16) if len(key) == 8 else dictionary.tag_of(key)
        except (ValueError, BadQuery):
            raise BadDicom(f"{key[:80]!r} is no tag") from None
        if not isinstance(attribute, dict):
            raise BadDicom("there is something else where an attribute must be", tag=tag)
        if tag >> 16 > 2 and tag & 0xFFFF:
            found[tag] = attribute
    return dict(sorted(found.items()))


def _with_character_set(attributes: dict[int, dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """PS3.18 F.2.3 has all text in UTF-8, whatever the attribute says of where it came from."""
    if _is_ascii(list(attributes.values())):
        return attributes
    utf_8 = {"vr": "CS", "Value": ["ISO_IR 192"]}
    return dict(sorted({**attributes, 0x00080005: utf_8}.items()))


def _is_ascii(document: Any) -> bool:
    left = [document]
    while left:
        found = left.pop()
        if isinstance(found, str):
            if not found.isascii():
                return False
        elif isinstance(found, dict):
            left.extend(found.values())
        elif isinstance(found, list):
            left.extend(found)
    return True


def _file_meta(document: Document, syntax: str) -> bytes:
    """PS3.10 7.1, DICOM File Meta Information."""
    from hilum.pixels.transcode import IMPLEMENTATION_CLASS_UID

    body = element(0x00020001, b"OB", b"\0\1") + b"".join(
        element(tag, b"UI", uid.encode("ascii"))
        for tag, uid in (
            (0x00020002, uid_in(document, "00080016")),
            (0x00020003, uid_in(document, "00080018")),
            (0x00020010, syntax),
            (0x00020012, IMPLEMENTATION_CLASS_UID),
        )
    )
    return bytes(128) + b"DICM" + element(0x00020000, b"UL", pack("<I", len(body))) + body


class _Writer:
    """Writes attributes of the DICOM JSON Model as elements of Explicit VR Little Endian."""

    def __init__(self, parts: Parts, pixels: _Pixels) -> None:
        self._parts = parts
        self._pixels = pixels

    def data_set(self, attributes: dict[int, dict[str, Any]], depth: int) -> Iterator[bytes]:
        for tag, attribute in attributes.items():
            vr = attribute.get("vr") or dictionary.vr_of(tag)
            if not isinstance(vr, str) or len(vr) != 2 or not (vr.isascii() and vr.isupper()):
                raise BadDicom(f"{str(vr)[:20]!r} is no VR", tag=tag)
            if depth == 0 and tag == _PIXEL_DATA and self._pixels.parts:
                yield from self._pixels.element(self._parts, vr)
            elif vr == "SQ":
                yield from self._sequence(tag, attribute, depth)
            elif "BulkDataURI" in attribute:
                yield from self._bulk(tag, vr, attribute["BulkDataURI"])
            else:
                yield _short(tag, vr, _inline(tag, vr, attribute))

    def _sequence(self, tag: int, attribute: dict[str, Any], depth: int) -> Iterator[bytes]:
        if depth == _DEPTH_MAX:
            raise BadDicom("sequences are nested too deep", tag=tag)
        yield header(tag, b"SQ", _UNDEFINED)  # so that what is inside can be streamed
        for inner in _values(tag, attribute):
            if not isinstance(inner, dict | None):
                raise BadDicom("there is something else where an item must be", tag=tag)
            yield item(_ITEM, _UNDEFINED)
            yield from self.data_set(_attributes(inner or {}), depth + 1)
            yield item(_ITEM_END, 0)
        yield item(_SEQUENCE_END, 0)

    def _bulk(self, tag: int, vr: str, uri: Any) -> Iterator[bytes]:
        found = _bulk_parts(self._parts, tag, uri)
        length = sum(part.length for part in found)
        yield _long_header(tag, vr, length + length % 2)
        for part in found:
            yield from self._parts.chunks(part)
        if length % 2:
            yield _padding(vr)


def _bulk_parts(parts: Parts, tag: int, uri: Any) -> list[Part]:
    found = parts.named(uri) if isinstance(uri, str) else []
    if not found:
        raise BadDicom(f"no part has the Content-Location {str(uri)[:200]!r}", tag=tag)
    return found


def _long_header(tag: int, vr: str, length: int) -> bytes:
    if length > _VALUE_MAX:
        raise BadDicom("a value of 4 GiB or more has no place in a data set", tag=tag)
    if vr not in _LONG_VRS and length > 0xFFFF:
        vr = "UN"  # PS3.5 6.2.2, Unknown (UN) Value Representation: too long for its own VR
    return header(tag, vr.encode("ascii"), length)


def _short(tag: int, vr: str, value: bytes) -> bytes:
    value += _padding(vr) * (len(value) % 2)
    return _long_header(tag, vr, len(value)) + value


def _padding(vr: str) -> bytes:
    return b" " if vr in _TEXT_VRS and vr != "UI" else b"\0"


def _values(tag: int, attribute: dict[str, Any]) -> list[Any]:
    values = attribute.get("Value", [])
    if not isinstance(values, list):
        raise BadDicom("Value is no array", tag=tag)
    return values


def _inline(tag: int, vr: str, attribute: dict[str, Any]) -> bytes:
    """The value of an attribute that has it with it: PS3.18 F.2.3, DICOM JSON Value Representation."""
    if "InlineBinary" in attribute:
        try:
            return base64.b64decode(attribute["InlineBinary"], validate=True)
        except (binascii.Error, TypeError, ValueError):
            raise BadDicom("InlineBinary is no base64", tag=tag) from None
    values = _values(tag, attribute)
    try:
        if vr in _TEXT_VRS:
            return "\\".join(_text(vr, value, tag) for value in values).encode("utf-8")
        if vr in _NUMBERS:
            return b"".join(_NUMBERS[vr].pack(_number(vr, value, tag)) for value in values)
        if vr == "AT":
            return b"".join(pack("<HH", int(value[:4], 16), int(value[4:], 16)) for value in values)
    except (error, TypeError, ValueError, OverflowError):
        raise _unfit(vr, tag) from None
    if values:
        raise BadDicom(f"VR {vr} has InlineBinary or a BulkDataURI, and no Value", tag=tag)
    return b""


def _unfit(vr: str, tag: int) -> BadDicom:
    return BadDicom(f"a value that VR {vr} can't have", tag=tag)


def _text(vr: str, value: Any, tag: int) -> str:
    if value is None:
        return ""
    if vr == "PN" and isinstance(value, dict):
        groups = [value.get(name) or "" for name in _NAME_GROUPS]
        return "=".join(groups).rstrip("=")
    if isinstance(value, str):
        return value
    if vr in ("DS", "IS") and isinstance(value, int | float) and not isinstance(value, bool):
        return _decimal(value)
    raise _unfit(vr, tag)


def _decimal(value: int | float) -> str:
    """A number in the 16 characters that DS has: PS3.5 6.2, Value Representation."""
    text = repr(value)
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        text = str(int(value))
    digits = 16
    while len(text) > 16 and isinstance(value, float):
        digits -= 1
        text = f"{value:.{digits}g}"
    return text


def _number(vr: str, value: Any, tag: int) -> int | float:
    if isinstance(value, bool) or (
        vr not in ("FD", "FL") and isinstance(value, float) and not value.is_integer()
    ):
        raise _unfit(vr, tag)
    return float(value) if vr in ("FD", "FL") else int(value)  # "NaN" and "-Infinity" too


# --- Pixels ----------------------------------------------------------------------


class _Pixels:
    """Pixel Data that come as bulk data: their parts, and the transfer syntax that these make."""

    def __init__(self, parts: Sequence[Part], syntax: str, streams: Sequence[Codestream]) -> None:
        self.parts = parts
        self.syntax = syntax
        self._streams = streams  # of compressed parts

    @classmethod
    def of(cls, attributes: dict[int, dict[str, Any]], parts: Parts, syntax: str) -> _Pixels:
        attribute = attributes.get(_PIXEL_DATA, {})
        if "BulkDataURI" not in attribute:
            return cls((), uids.EXPLICIT_VR_LITTLE_ENDIAN, ())
        found = _bulk_parts(parts, _PIXEL_DATA, attribute["BulkDataURI"])
        streams = [read_codestream(partial(parts.read, part)) for part in found]
        chosen = _syntax_of(found[0], streams[0], attributes, syntax)
        if uids.is_encapsulated(chosen):
            return cls(found, chosen, streams)
        if not media.is_native(chosen) or chosen in (
            uids.EXPLICIT_VR_BIG_ENDIAN,
            uids.DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
        ):
            raise UnsupportedSyntax(
                f"bulk data in transfer syntax {chosen[:64]} are not taken", tag=_PIXEL_DATA
            )
        return cls(found, uids.EXPLICIT_VR_LITTLE_ENDIAN, ())

    def filled(self, attributes: dict[int, dict[str, Any]]) -> dict[int, dict[str, Any]]:
        """The data set with what the codestream says of the picture, where the metadata leave it out."""
        if not self._streams:
            return attributes
        return dict(sorted({**self._streams[0].attributes(len(self.parts)), **attributes}.items()))

    def element(self, parts: Parts, vr: str) -> Iterator[bytes]:
        if not uids.is_encapsulated(self.syntax):
            length = sum(part.length for part in self.parts)
            yield _long_header(_PIXEL_DATA, vr if vr in ("OB", "OW") else "OW", length + length % 2)
            for part in self.parts:
                yield from parts.chunks(part)
            yield b"\0" * (length % 2)
            return
        # PS3.5 A.4: a frame is one fragment here, and the Basic Offset Table says where each begins.
        yield header(_PIXEL_DATA, b"OB", _UNDEFINED)
        lengths = [part.length - stream.begin for part, stream in zip(self.parts, self._streams, strict=True)]
        offsets, at = [], 0
        for length in lengths:
            offsets.append(at)
            at += 8 + length + length % 2
            if length > _VALUE_MAX - 1:
                raise BadDicom("a frame of 4 GiB or more has no place in a fragment", tag=_PIXEL_DATA)
        table = pack(f"<{len(offsets)}I", *offsets) if len(offsets) > 1 and offsets[-1] <= _VALUE_MAX else b""
        yield item(_ITEM, len(table)) + table
        for part, stream, length in zip(self.parts, self._streams, lengths, strict=True):
            yield item(_ITEM, length + length % 2)
            yield from parts.chunks(part, stream.begin)
            yield b"\0" * (length % 2)
        yield item(_SEQUENCE_END, 0)


class UnsupportedSyntax(BadDicom):
    """Bulk data in a transfer syntax that can't be stored."""


def _syntax_of(part: Part, stream: Codestream, attributes: dict[int, dict[str, Any]], of_request: str) -> str:
    """The transfer syntax of Pixel Data that come as bulk data.

    What the part says goes before what the request or the metadata say, and the codestream before the default
    of the part's media type (PS3.18 8.7.3.3.2): image/jpeg alone would mean lossless JPEG.
    """
    available = _first(attributes.get(0x00083002))  # Available Transfer Syntax UID
    if part.type in ("", media.OCTETS):
        return part.params.get("transfer-syntax") or of_request or available or uids.EXPLICIT_VR_LITTLE_ENDIAN
    family = media.syntaxes_of(part.type)
    for said in (part.params.get("transfer-syntax", ""), of_request, available, stream.syntax):
        if said in family:
            return said
    if not family:
        raise UnsupportedSyntax(f"bulk data of type {part.type[:80]} are no Pixel Data", tag=_PIXEL_DATA)
    return family[0]


def _first(attribute: dict[str, Any] | None) -> str:
    values = attribute.get("Value") if attribute else None
    return values[0] if isinstance(values, list) and values and isinstance(values[0], str) else ""
