"""Takes the bytes of one element; gives its values as str, int and float. Never gives bytes, and never
refuses text: a DS that is no number is a str.

PS3.5 6.2, Value Representation (VR), and 6.4, Value Multiplicity (VM) and Delimitation.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable

from hilum.dicom.charset import decode_text
from hilum.errors import BadDicom

Value = str | int | float | None

# VR to struct code and bytes of one value, little endian.
_BINARY = {
    "US": ("H", 2),
    "SS": ("h", 2),
    "UL": ("I", 4),
    "SL": ("i", 4),
    "UV": ("Q", 8),
    "SV": ("q", 8),
    "FL": ("f", 4),
    "FD": ("d", 8),
    "AT": ("H", 4),
}
_LONG_TEXT = frozenset(("ST", "LT", "UT"))


def decode_values(vr: str, data: bytes, character_sets: bytes | str) -> list[Value]:
    """Return the values of one element.

    Takes the value field, little endian, and the raw value of Specific Character Set (0008,0005) as
    decode_text does. The list is empty for an empty value (nothing but padding is empty), and has None
    for an empty one among several. Padding is gone, as pydicom removes it: on both sides for AE, UI, IS and
    DS, at the end of each value for SH, LO and UC, at the end of the whole field for the others.

    AT is an int 0xGGGGEEEE. PN is one str, "Alphabetic=Ideographic=Phonetic", without the empty groups
    at its end. IS is an int, or a float where the text has a fraction; DS is a float (NaN and infinities are
    possible); text that is no number stays a str, each value for itself.

    SQ, UN, OB, OW and the other O VRs, and any VR that is no VR of text or numbers: always [].
    Whoever wants those bytes reads them from the store by offset and length.

    Raises:
        BadDicom: a binary value whose length is not a multiple of its VR's. The error knows neither
            offset nor tag; the caller does.
    """
    binary = _BINARY.get(vr)
    if binary is not None:
        return _numbers(vr, data, *binary)
    if vr in _LONG_TEXT:
        return _listed([decode_text(data, vr, character_sets).rstrip("\0 ")])
    if vr == "UR":
        return _listed([decode_text(data, vr, "").rstrip()])
    clean = _CLEAN.get(vr)
    if clean is None:
        return []
    if vr in _PADDED_AT_THE_END:
        data = data.rstrip(b"\0 ")
    return _listed([clean(text) for text in decode_text(data, vr, character_sets).split("\\")])


def _listed(values: list[Value]) -> list[Value]:
    if len(values) == 1 and values[0] == "":
        return []
    return [None if value == "" else value for value in values]


def _numbers(vr: str, data: bytes, code: str, size: int) -> list[Value]:
    count, rest = divmod(len(data), size)
    if rest:
        raise BadDicom(f"{vr} value of {len(data)} bytes, not a multiple of {size}")
    if vr == "AT":  # the group first, then the element, each little endian
        words = struct.unpack(f"<{2 * count}H", data)
        return [group << 16 | element for group, element in zip(words[::2], words[1::2], strict=True)]
    return list(struct.unpack(f"<{count}{code}", data))


def _name(text: str) -> str:
    return text.rstrip("=")


def _text(text: str) -> str:
    return text.rstrip("\0 ")


def _code(text: str) -> str:
    return text  # spaces at the begin, and before a backslash, are the value's own in pydicom's view


def _stripped(text: str) -> str:
    return text.strip()


def _decimal(text: str) -> str | float:
    text = text.strip()
    if "_" in text:  # "1_000" is a number to Python, not to the Standard
        return text
    try:
        return float(text)
    except ValueError:
        return text


def _integer(text: str) -> str | int | float:
    text = text.strip()
    try:
        if "_" not in text:
            return int(text)
    except ValueError:
        pass
    number = _decimal(text)
    if isinstance(number, str) or not math.isfinite(number):
        return text
    return int(number) if number.is_integer() else number  # "1.0" is written where "1" is meant


_CLEAN: dict[str, Callable[[str], Value]] = {
    "AE": _stripped,
    "AS": _code,
    "CS": _code,
    "DA": _code,
    "DS": _decimal,
    "DT": _code,
    "IS": _integer,
    "LO": _text,
    "PN": _name,
    "SH": _text,
    "TM": _code,
    "UC": _text,
    "UI": _stripped,
}
_PADDED_AT_THE_END = frozenset(("AS", "CS", "DA", "DS", "DT", "IS", "PN", "TM", "UI"))
