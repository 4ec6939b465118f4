"""Takes a VR and values as decode_values gives them; gives an attribute of the DICOM JSON Model. Never gives
anything that json.dumps(..., allow_nan=False) refuses.

PS3.18 F.2, DICOM JSON Model. Sequences, bulk data and inline binary are put together by those who have
the bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

Json = str | int | float | dict[str, str] | None

_GROUPS = ("Alphabetic", "Ideographic", "Phonetic")


def key(tag: int) -> str:
    """Return the name of an attribute object, eight upper case digits: PS3.18 F.2.2."""
    return f"{tag:08X}"


def element(vr: str, values: Sequence[str | int | float | None]) -> dict[str, str | list[Json]]:
    """Return {"vr": ..., "Value": [...]}, without Value when there are no values.

    PS3.18 F.2.5, DICOM JSON Model Null Values: an empty value among several is null. F.2.3 lets IS and DS be
    numbers or strings: numbers are numbers, and text that is none stays as it is. JSON has no NaN and
    no infinities: these are the strings "NaN", "Infinity" and "-Infinity".
    """
    if not values:
        return {"vr": vr}
    return {"vr": vr, "Value": [_json(vr, value) for value in values]}


def _json(vr: str, value: str | int | float | None) -> Json:
    if value is None or value == "":
        return None
    if isinstance(value, str):
        return _person_name(value) if vr == "PN" else value
    if vr == "AT" and isinstance(value, int):
        return key(value)
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _person_name(text: str) -> dict[str, str] | None:
    """Return the groups that are not empty, PS3.18 F.2.2; None if all are. A fourth group has no name."""
    groups = zip(_GROUPS, text.split("="), strict=False)
    return {name: group for name, group in groups if group} or None


def text_of(attribute: Mapping[str, Any] | None) -> str:
    """Return the values of an attribute object as a key has them: joined by backslashes, the groups of a
    name by equals signs."""
    if attribute is None:
        return ""
    return "\\".join(map(_text, attribute.get("Value", ())))


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return name_of(value)
    return "" if value is None else str(value)


def name_of(name: Mapping[str, str]) -> str:
    """Return a person's name in one text: PS3.5 6.2.1, Person Name (PN) Value Representation."""
    return "=".join(name.get(group, "") for group in _GROUPS).rstrip("=")
