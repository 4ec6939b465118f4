"""Takes an identifier, the data set of a query, an answer or an action, as bytes; gives DICOM JSON, and back.
Pure.

Reading is the engine's own walk over a data set, so that character sets, sequences and private elements are
what they are everywhere else. Writing is for what the JSON of our own rows holds.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from struct import Struct, error
from typing import Any

import orjson

from hilum import _dicomjson
from hilum.dicom import uids
from hilum.dicom.json import name_of
from hilum.errors import BadDicom

Document = dict[str, Any]

UTF_8 = "ISO_IR 192"
BYTES_MAX = 16 << 20

# Single-byte character sets, and GB18030 and GBK, by their defined term: PS3.3 C.12.1.1.2. Those with escapes
# are read but not written: an answer that needs one is in UTF-8.
_CODECS = {
    "": "ascii",
    "ISO_IR 6": "ascii",
    "ISO_IR 100": "latin-1",
    "ISO_IR 101": "iso8859-2",
    "ISO_IR 109": "iso8859-3",
    "ISO_IR 110": "iso8859-4",
    "ISO_IR 144": "iso8859-5",
    "ISO_IR 127": "iso8859-6",
    "ISO_IR 126": "iso8859-7",
    "ISO_IR 138": "iso8859-8",
    "ISO_IR 148": "iso8859-9",
    "ISO_IR 203": "iso8859-15",
    UTF_8: "utf-8",
    "GB18030": "gb18030",
    "GBK": "gbk",
}

_LONG_VRS = frozenset(("OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"))
_ENCODED_VRS = frozenset(("LO", "LT", "PN", "SH", "ST", "UC", "UT"))  # in Specific Character Set
_NUMBERS = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "UV": "Q", "SV": "q", "FL": "f", "FD": "d"}
_SEQUENCE = "SQ"
_CHARACTER_SET = "00080005"


def read(data: bytes, transfer_syntax: str) -> Document:
    """Read a data set. Its text is decoded; Specific Character Set is there as it was stated.

    Raises:
        BadDicom: it can't be read, or is too large.
    """
    if uids.is_deflated(transfer_syntax):
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            data = inflater.decompress(data, BYTES_MAX)
        except zlib.error as failure:
            raise BadDicom(f"a deflated identifier that can't be read: {failure}") from None
    if len(data) > BYTES_MAX:
        raise BadDicom(f"an identifier of more than {BYTES_MAX} bytes")
    implicit = transfer_syntax == uids.IMPLICIT_VR_LITTLE_ENDIAN
    big = transfer_syntax == uids.EXPLICIT_VR_BIG_ENDIAN
    found: Document = orjson.loads(_dicomjson.write(data, (), 0, implicit, big, inline_max=BYTES_MAX))
    if _CHARACTER_SET in found:
        place = _dicomjson.find(data, (), 0, implicit, big, [(0x00080005, 1)])
        if place is not None:
            stated = data[place[0] : place[0] + place[1]].decode("ascii", "replace").strip(" \0")
            found[_CHARACTER_SET] = {"vr": "CS", "Value": stated.split("\\")}
    return found


def write(
    document: Mapping[str, Mapping[str, Any]], transfer_syntax: str, character_set: str = UTF_8
) -> bytes:
    """Give a data set in a transfer syntax, its text in the character set that was asked for, if it can hold
    it.

    Specific Character Set (0008,0005) becomes what the text is written in.
    """
    codec = _CODECS.get(character_set)
    if codec is None:
        character_set, codec = UTF_8, "utf-8"
    try:
        data = _write(document, transfer_syntax, character_set, codec)
    except UnicodeEncodeError:
        data = _write(document, transfer_syntax, UTF_8, "utf-8")
    if uids.is_deflated(transfer_syntax):
        deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        data = deflater.compress(data) + deflater.flush()
        data += b"\0" * (len(data) % 2)
    return data


def _write(
    document: Mapping[str, Mapping[str, Any]], transfer_syntax: str, character_set: str, codec: str
) -> bytes:
    explicit = transfer_syntax != uids.IMPLICIT_VR_LITTLE_ENDIAN
    order = ">" if transfer_syntax == uids.EXPLICIT_VR_BIG_ENDIAN else "<"
    stated = {**document, _CHARACTER_SET: {"vr": "CS", "Value": [character_set] if character_set else []}}
    return _elements(stated, explicit, order, codec)


def _elements(document: Mapping[str, Mapping[str, Any]], explicit: bool, order: str, codec: str) -> bytes:
    parts = []
    for name in sorted(document):
        attribute = document[name]
        vr = attribute.get("vr", "UN")
        if vr == _SEQUENCE:
            items = [_elements(item, explicit, order, codec) for item in attribute.get("Value", ()) if item]
            raw = b"".join(_item_head(order).pack(0xFFFE, 0xE000, len(item)) + item for item in items)
        elif "InlineBinary" in attribute:
            raw = base64.b64decode(attribute["InlineBinary"])
        else:
            raw = _value(vr, attribute.get("Value", ()), order, codec)
        if len(raw) % 2:
            raw += b"\0" if vr in ("UI", "OB", "UN") else b" "
        parts.append(_head(name, vr, len(raw), explicit, order))
        parts.append(raw)
    return b"".join(parts)


@lru_cache(maxsize=4)
def _item_head(order: str) -> Struct:
    return Struct(f"{order}HHI")


@lru_cache(maxsize=4096)
def _head(name: str, vr: str, length: int, explicit: bool, order: str) -> bytes:
    tag = int(name, 16)
    if not explicit:
        return Struct(f"{order}HHI").pack(tag >> 16, tag & 0xFFFF, length)
    if vr in _LONG_VRS or length > 0xFFFF:
        written = vr if vr in _LONG_VRS else "UN"  # PS3.5 6.2.2, Note 2: what is too long for its VR
        return Struct(f"{order}HH2sHI").pack(tag >> 16, tag & 0xFFFF, written.encode(), 0, length)
    return Struct(f"{order}HH2sH").pack(tag >> 16, tag & 0xFFFF, vr.encode(), length)


def _value(vr: str, values: Sequence[Any], order: str, codec: str) -> bytes:
    if not values:
        return b""
    code = _NUMBERS.get(vr)
    if code is not None:
        try:
            return Struct(f"{order}{len(values)}{code}").pack(*values)
        except (error, TypeError):
            return b""  # a value that its VR can't hold, out of a damaged data set
    if vr == "AT":
        tags = [int(value, 16) for value in values]
        return Struct(f"{order}{2 * len(tags)}H").pack(
            *(part for tag in tags for part in (tag >> 16, tag & 0xFFFF))
        )
    if vr == "PN":
        joined = "\\".join(name_of(value) if isinstance(value, dict) else "" for value in values)
    elif vr == "DS":
        joined = "\\".join(_decimal(value) for value in values)
    else:
        joined = "\\".join("" if value is None else str(value) for value in values)
    return joined.encode(
        codec if vr in _ENCODED_VRS else "ascii", "strict" if vr in _ENCODED_VRS else "replace"
    )


def _decimal(value: Any) -> str:
    """A number in the 16 characters of a DS."""
    text = "" if value is None else str(value)
    if len(text) > 16 and isinstance(value, float):
        digits = 16
        while len(text) > 16 and digits > 1:
            digits -= 1
            text = f"{value:.{digits}g}"
    return text
