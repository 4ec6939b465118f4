"""Takes a stored head and the paths of elements; gives what is found there as an item, and holds keys against
items. Reads no blob, looks nothing up, and knows no index.

An item is a data set, or an item of a sequence, as an object of the DICOM JSON Model (PS3.18 F.2): one walk
serves matching and answers.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from hilum import _dicomjson
from hilum.dicom.charset import decode_text
from hilum.dicom.dictionary import Path, Private
from hilum.dicom.json import key as key_of
from hilum.dicom.matching import Match, Moments, parse
from hilum.engine import record
from hilum.engine.record import INSTANCE, PATIENT, SERIES, STUDY, Head, Value
from hilum.errors import BadDicom, BadQuery

Step = int | Private
Item = dict[str, Any]
Attribute = dict[str, Any]

OFFSET_FROM_UTC = 0x00080201
_NOT_HERE = "\N{OBJECT REPLACEMENT CHARACTER}"  # instead of a value that lies in a blob or is no text


class Wanted:
    """Paths of elements to read; made once, used for many heads. Without paths: all elements."""

    __slots__ = ("_paths", "paths")

    def __init__(self, paths: Iterable[Path] | None) -> None:
        self.paths = tuple(paths) if paths is not None else None
        self._paths = _dicomjson.Paths(self.paths) if self.paths is not None else None

    def read(self, head: Head, *, prefix: str = "") -> Item:
        """What a stored object has of them; {} of one that can't be walked.

        `prefix` is what the URI of a value begins with that is too long to stand in the answer.
        """
        data, holes, begin = head.head, head.holes, head.data_set_at
        implicit, big = bool(head.flags & record.IMPLICIT_VR), bool(head.flags & record.BIG_ENDIAN)
        if head.flags & record.DEFLATED:  # Explicit VR Little Endian: PS3.5 A.5
            data, holes, begin, implicit, big = head.inflated, head.inflated_holes, 0, False, False
        try:
            found = _dicomjson.write(
                data, holes, begin, implicit, big, uri_prefix=prefix.encode(), wanted=self._paths
            )
        except BadDicom:
            return {}
        item: Item = json.loads(found.decode("utf-8"))
        return item


# --- Items -------------------------------------------------------------------


def attribute(item: Item, step: Step) -> Attribute | None:
    """One attribute of an item; a private one in whatever block its creator has reserved there."""
    if isinstance(step, Private):
        for block in _blocks(item, step):
            found: Attribute | None = item.get(key_of(step.tag | block << 8))
            if found is not None:
                return found
        return None
    return item.get(key_of(step))


def _blocks(item: Item, step: Private) -> Iterator[int]:
    group = f"{step.tag >> 16:04X}00"
    for name, reserved in item.items():
        if name.startswith(group) and reserved.get("Value", [""])[0] == step.creator:
            yield int(name[6:], 16)


def items(item: Item, step: Step) -> list[Item]:
    """The items of a sequence; none where it is no sequence."""
    found = attribute(item, step)
    if found is None or found["vr"] != "SQ":
        return []
    inner: list[Item] = found.get("Value", [])
    return inner


def values(found: Attribute | None) -> list[Value]:
    """The values of an attribute, as decode_values gives them; a name with "=" between its groups."""
    if found is None:
        return []
    if "Value" not in found:
        if found["vr"] == "UN" and "InlineBinary" in found:
            # Text as a rule, of a private element whose VR was lost: PS3.5 6.2.2, Unknown (UN) VR.
            return [decode_text(base64.b64decode(found["InlineBinary"]), "UN", "").strip("\0 ")]
        return [_NOT_HERE] if "InlineBinary" in found or "BulkDataURI" in found else []
    if found["vr"] == "SQ":
        return [_NOT_HERE] if found["Value"] else []
    return [_name(value) if isinstance(value, dict) else value for value in found["Value"]]


def _name(groups: dict[str, str]) -> str:
    return "=".join(groups.get(group, "") for group in ("Alphabetic", "Ideographic", "Phonetic")).rstrip("=")


def values_at(item: Item, path: Path) -> list[Value]:
    """The values at a path, of every item that it leads through."""
    *sequences, last = path
    level = [item]
    for step in sequences:
        level = [inner for outer in level for inner in items(outer, step)]
    return [value for inner in level for value in values(attribute(inner, last))]


# --- Keys --------------------------------------------------------------------


class Untold:
    """The key of an element whose VR only its data set tells: a private one."""

    def __init__(self, text: str, *, fuzzy: bool, empty_value: bool, zone: int | None) -> None:
        self._text, self._fuzzy, self._empty_value, self._zone = text, fuzzy, empty_value, zone
        self._by_vr: dict[str, Match | None] = {}

    def of(self, vr: str) -> Match | None:
        """The match for a VR; None where it can't hold the key's value, which then matches nothing."""
        vr = "LO" if vr == "UN" else vr
        if vr not in self._by_vr:
            try:
                self._by_vr[vr] = parse(
                    vr, self._text, fuzzy=self._fuzzy, empty_value=self._empty_value, zone=self._zone
                )
            except BadQuery:
                self._by_vr[vr] = None
        return self._by_vr[vr]


class ItemKeys:
    """Keys of one data set, or of one item of a sequence; all of them must match.

    PS3.4 C.2.2.2.6, Sequence Matching: those of a sequence must be met by one and the same item.
    """

    def __init__(self) -> None:
        self._own: list[tuple[tuple[Step, ...], Match | Moments | Untold]] = []
        self._below: dict[Step, ItemKeys] = {}

    def add(
        self, sequences: Sequence[Step], steps: tuple[Step, ...], match: Match | Moments | Untold
    ) -> None:
        """Add a key: `steps` are the attributes that it takes, in the items of `sequences`."""
        keys = self
        for step in sequences:
            keys = keys._below.setdefault(step, ItemKeys())
        keys._own.append((steps, match))

    def __bool__(self) -> bool:
        return bool(self._own or self._below)

    def paths(self) -> set[Path]:
        """All that must be read for matches()."""
        found: set[Path] = {(step,) for steps, _ in self._own for step in steps}
        for sequence, keys in self._below.items():
            found |= {(sequence, *path) for path in keys.paths()}
        return found

    def matches(self, item: Item) -> bool:
        return self._matches(item, values(item.get(key_of(OFFSET_FROM_UTC))))

    def _matches(self, item: Item, offsets: list[Value]) -> bool:
        told: Match | Moments | Untold | None
        for steps, match in self._own:
            found = [attribute(item, step) for step in steps]
            told = match
            if isinstance(told, Untold):
                told = told.of(found[0]["vr"] if found[0] is not None else "UN")
            if told is None or not told.meets(list(map(values, found)), offsets):
                return False
        for sequence, keys in self._below.items():
            # An absent sequence has no item that could hold a value; what asks for none finds it there.
            if not any(keys._matches(inner, offsets) for inner in items(item, sequence) or [{}]):
                return False
        return True


# --- Levels ------------------------------------------------------------------

# Elements that are not indexed and are those of a patient, a study or a series: PS3.3 A.1.4, modules of the
# Patient, Study and Series IEs. They are asked of the instance that speaks for the row. Any other is an
# instance's, and is asked of every one.
_PATIENT = """
    00081120 00120010 00120020 00120021 00120030 00120031 00120040 00120042 00120062 00120063 00120064
"""
_STUDY = """
    00080051 00080096 00081032 00081049 00081062 00081084 00081110 00101020 00101021 00101022 00101023
    00101024 00102180 001021A0 001021B0 001021C0 001021D0 00102203 00120050 00120051 00120052 00120053
    00401002 00401012
"""
_SERIES = """
    00080068 00080081 0008103F 00081041 00081052 00081072 00081111 00081250 00120060 00120071 00120072
    00181002 00181008 0018100A 0018100B 00181200 00181201 00201040 00280108 00280109 00400241 00400242
    00400243 00400250 00400251 00400254 00400260 00400275 00400280
"""
_LEVEL_OF = {
    int(tag, 16): level
    for level, tags in ((PATIENT, _PATIENT), (STUDY, _STUDY), (SERIES, _SERIES))
    for tag in tags.split()
}
_LEVEL_OF_GROUP = {0x0010: PATIENT, 0x0032: STUDY, 0x0038: STUDY}


def level_of(step: Step) -> int:
    """The level at which an element that is not indexed is asked for."""
    if isinstance(step, Private):
        return INSTANCE
    return _LEVEL_OF.get(step) or _LEVEL_OF_GROUP.get(step >> 16, INSTANCE)
