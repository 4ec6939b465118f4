"""Takes a tag or a name; gives what the data dictionary says of it. Never reads a file, and knows no
private element: those are UN.

PS3.6 6, Registry of DICOM Data Elements. Tags are ints 0xGGGGEEEE. An attribute is named by a path: the
sequences that it lies in, then itself. A private one is named by group, creator and the last two digits,
since its creator may have reserved another block in each data set.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache, lru_cache
from typing import NamedTuple

from hilum.errors import BadQuery

_DIGITS = "([0-9A-Fa-f]{4})"
_HEXADECIMAL = re.compile(rf"(?:0[xX])?{_DIGITS}{_DIGITS}|{_DIGITS}, ?{_DIGITS}|\({_DIGITS}, ?{_DIGITS}\)")
_UNKNOWN = ("UN", "1", "")


def tag_of(name: str) -> int:
    """Return the tag that a user means by a name.

    Takes a keyword ("PatientName", as it is spelt in PS3.6) or the digits of a tag: "00100010",
    "0x00100010", "0010,0010", "(0010,0010)". Digits need no entry in the dictionary. The keyword of a
    repeating group ("OverlayRows") is the first group's, 60000010.

    Raises:
        BadQuery: neither; the message has the keywords that look most like it.
    """
    name = name.strip()
    tag = _tags().get(name)
    if tag is not None:
        return tag
    digits = _HEXADECIMAL.fullmatch(name)
    if digits is not None:
        return int("".join(filter(None, digits.groups())), 16)
    raise BadQuery(f"{name[:80]!r} is neither a keyword of the dictionary nor a tag{_suggestions(name)}")


class Private(NamedTuple):
    """A private element, wherever its block is: PS3.5 7.8.1, Private Data Element Tags."""

    tag: int  # gggg00ee: two digits of the block don't count
    creator: str


Path = tuple[int | Private, ...]

# (gggg,"creator",ee), with or without brackets; in a name no other comma, quotation mark or full stop.
_PRIVATE = re.compile(r'\(?([0-9A-Fa-f]{4}), ?"([^"]+)", ?([0-9A-Fa-f]{2})\)?')
_DEPTH_MAX = 64  # what follows a path calls itself at each step
_STOP = re.compile(r'\.(?=(?:[^"]*"[^"]*")*[^"]*$)')  # a full stop that is in no creator
_NAMES = re.compile(
    r'(?:\([^()]*\)|(?<![^,. ])[0-9A-Fa-f]{4}, ?(?:"[^"]*", ?[0-9A-Fa-f]{2}|[0-9A-Fa-f]{4})(?!\w)|[^,])+'
)


@lru_cache(maxsize=1024)
def path_of(name: str) -> Path:
    """Return the path of the attribute that a user means by a name.

    Takes what tag_of takes, several of them with full stops between for what lies in sequences
    ("RequestAttributesSequence.00400009"), and 0029,"SIEMENS CSA HEADER",10 for a private element.

    Raises:
        BadQuery: no such keyword, or not a tag; or a path deeper than any data set.
    """
    if name.count(".") > _DEPTH_MAX:
        raise BadQuery(f"{name[:80]!r}: a path of more than {_DEPTH_MAX} sequences")
    return tuple(map(_step_of, _STOP.split(name)))


def _step_of(name: str) -> int | Private:
    found = _PRIVATE.fullmatch(name.strip())
    if found is None:
        return tag_of(name)
    group = int(found[1], 16)
    if not group & 1:
        raise BadQuery(f"{name[:80]!r}: a private element is in an odd group")
    return Private(group << 16 | int(found[3], 16), found[2].strip())


def names_in(text: str) -> list[str]:
    """Return the names in a list with commas between: those inside a tag are no end of a name."""
    return [name.strip() for name in _NAMES.findall(text)]


def format_path(path: Path) -> str:
    """Return a path as users write it: keywords where there are some."""
    return ".".join(map(_format_step, path))


def _format_step(step: int | Private) -> str:
    if isinstance(step, Private):
        return f'{step.tag >> 16:04X},"{step.creator}",{step.tag & 0xFF:02X}'
    return keyword_of(step) or format_tag(step)


def with_creators(path: Path, creators: Mapping[Path, str]) -> Path:
    """Return a path with its private tags replaced where their creators are stated.

    `creators` are the values of Private Creator elements (gggg,00bb) by their paths, as a query has them
    beside the elements themselves: PS3.18 8.3.4.1, Attribute Matching.
    """
    if not creators:
        return path
    named: list[int | Private] = []
    for at, step in enumerate(path):
        if not isinstance(step, Private) and is_private(step):
            creator = creators.get((*path[:at], step & 0xFFFF0000 | step >> 8 & 0xFF))
            if creator:
                step = Private(step & 0xFFFF00FF, creator)
        named.append(step)
    return tuple(named)


def is_private(tag: int) -> bool:
    """Whether a tag is a private element's in a block: PS3.5 7.8.1."""
    return bool(tag & 0x10000) and tag & 0xFFFF >= 0x1000


def is_creator(tag: int) -> bool:
    """Whether it is a Private Creator's, which reserves a block."""
    return bool(tag & 0x10000) and 0x10 <= tag & 0xFFFF <= 0xFF


def keyword_of(tag: int) -> str:
    """Return the keyword of a tag, "" where the dictionary has none."""
    return _entry(tag)[2]


def vr_of(tag: int) -> str:
    """Return the VR of a tag, "UN" where the dictionary doesn't know it.

    Where the Standard leaves a choice ("US or SS", "OB or OW", "US or SS or OW") it is the first: which
    one applies stands in other elements of the data set, so whoever has these must settle it.
    """
    return _entry(tag)[0].partition("/")[0]


def vm_of(tag: int) -> str:
    """Return the value multiplicity as PS3.6 writes it ("1", "1-n", "2-2n"); "1" for an unknown tag."""
    return _entry(tag)[1]


def format_tag(tag: int) -> str:
    """Return a tag as the Standard prints it: "(0010,0010)"."""
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"


def _entry(tag: int) -> tuple[str, str, str]:
    """Return VR (with its alternatives), VM and keyword."""
    entry = _elements().get(tag)
    if entry is not None:
        return entry
    group, element = tag >> 16, tag & 0xFFFF
    if element == 0:
        return "UL", "1", ""  # PS3.5 7.2, Group Length: any group may have one
    if group & 1:
        # PS3.5 7.8.1, Private Data Element Tags: (gggg,0010-00FF) reserve a block, and are LO
        return ("LO", "1", "") if is_creator(tag) else _UNKNOWN
    for mask, value, repeated in _repeating():
        if tag & mask == value:
            return repeated
    return _UNKNOWN


def _suggestions(name: str) -> str:
    from difflib import get_close_matches  # only on the way to an error: it costs as much as this layer

    # Names of more than 100 characters are no misspelt keyword; the longest has 64.
    close = get_close_matches(name, _tags(), n=3) if len(name) <= 100 else []
    return f"; did you mean {' or '.join(close)}?" if close else ""


@cache
def _elements() -> dict[int, tuple[str, str, str]]:
    from hilum.dicom import _tables  # on first use: most processes never ask

    rows = (row.split(" ") for row in _tables.ELEMENTS.split("\n"))
    return {int(tag, 16): (vr, vm, "" if keyword == "-" else keyword) for tag, vr, vm, keyword in rows}


@cache
def _repeating() -> list[tuple[int, int, tuple[str, str, str]]]:
    """Return (mask, value, entry): a tag is in the group when tag & mask == value."""
    from hilum.dicom import _tables

    table = []
    for row in _tables.REPEATING.split("\n"):
        digits, vr, vm, keyword = row.split(" ")
        mask = int("".join("0" if digit == "x" else "F" for digit in digits), 16)
        table.append((mask, int(digits.replace("x", "0"), 16), (vr, vm, keyword)))
    return table


@cache
def _tags() -> dict[str, int]:
    tags = {keyword: value for _, value, (_, _, keyword) in _repeating()}
    tags.update((keyword, tag) for tag, (_, _, keyword) in _elements().items() if keyword)
    return tags
