"""Takes the value of a matching key; gives a Match, which tells whether the values of an element match, and
what an index can look up. Never sees a data set, and has no say in which keys exist.

PS3.4 C.2.2.2, Attribute Matching: single value, list of UID, universal, wild card and range matching of one
attribute. Not here: sequences, date and time as one range, empty value matching, fuzzy names, and the
time zone of the data set.

Values are compared in their normal forms (normalise_text), which is also what an index stores. An index
of names stores each group of the form by itself, because a key without "=" may mean any of them.
"""

from __future__ import annotations

import re
import struct
import unicodedata
from collections.abc import Iterable, Sequence
from enum import IntEnum

from hilum.dicom.dictionary import tag_of
from hilum.errors import BadQuery


class Kind(IntEnum):
    """The kinds of matching of PS3.4 C.2.2.2 that a single attribute can have."""

    UNIVERSAL = 0  # C.2.2.2.3: matches everything, absent attributes too
    SINGLE = 1  # C.2.2.2.1
    LIST = 2  # C.2.2.2.2: one of several
    WILDCARD = 3  # C.2.2.2.4
    RANGE = 4  # C.2.2.2.5


_WILDCARD_VRS = frozenset(("AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"))
_TEMPORAL_VRS = frozenset(("DA", "TM", "DT"))
_REAL_VRS = frozenset(("DS", "FL", "FD"))
_INTEGER_VRS = frozenset(("IS", "US", "SS", "UL", "SL", "UV", "SV"))
# Values in which a backslash is text, PS3.5 6.2, Value Representation (VR).
_ONE_VALUE_VRS = frozenset(("ST", "LT", "UT", "UR"))
_MATCHABLE_VRS = (
    _WILDCARD_VRS | _TEMPORAL_VRS | _REAL_VRS | _INTEGER_VRS | _ONE_VALUE_VRS | frozenset(("AS", "AT", "UI"))
)

# -1200 to +1400, PS3.5 Table 6.2-1 (DT). Four digits beyond that, after a hyphen, are the year in which a
# range ends.
_ZONE = r"(?:\+(?:(?:0\d|1[0-3])[0-5]\d|1400)|-(?:(?:0\d|1[01])[0-5]\d|1200))"
_CLOCK = r"(\d\d)(?::?(\d\d)(?::?(\d\d)(?:\.(\d+))?)?)?"  # with colons: ACR-NEMA 2.0
_DATE = re.compile(r"(\d{4})(\d\d)(\d\d)|(\d{4})\.(\d\d)\.(\d\d)", re.ASCII)  # with full stops: ACR-NEMA 2.0
_TIME = re.compile(_CLOCK, re.ASCII)
_DATE_TIME = re.compile(rf"(\d{{4}})(?:(\d\d)(?:(\d\d)(?:{_CLOCK})?)?)?({_ZONE})?", re.ASCII)
_ONE_DATE_TIME = rf"\d{{4,14}}(?:\.\d+)?{_ZONE}?"
_DATE_TIME_RANGE = re.compile(rf"({_ONE_DATE_TIME})?\s*-\s*({_ONE_DATE_TIME})?", re.ASCII)
_RANGE = re.compile(r"([^-]*)-([^-]*)")
_EXAMPLES = {
    "DA": "20240131, 20240101-20240131, 20240101- or -20240131",
    "TM": "10, 103000.5, 1000-1059, 1000- or -1059",
    "DT": "2024, 20240131103000+0100, 202401-202403, 202401- or -202403",
}
_DAYS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


class Match:
    """One parsed matching key. Made by parse(); never changes, and may be shared between threads.

    For planners, in normal forms:

    choices         SINGLE, LIST: a value must have one of these
    low, high       SINGLE, RANGE: the least and the greatest that match, both included; None is no bound
    literal_prefix  WILDCARD: what each match begins with

    For PN these hold of one of the value's groups, and find more than what matches: a key with several
    groups gives only the first of them here. Put what the index finds to matches().
    """

    __slots__ = ("_patterns", "choices", "high", "kind", "literal_prefix", "low", "vr")

    def __init__(
        self,
        kind: Kind,
        vr: str,
        *,
        choices: tuple[str, ...] = (),
        low: str | None = None,
        high: str | None = None,
        literal_prefix: str = "",
        patterns: Sequence[_NamePattern | re.Pattern[str]] = (),
    ) -> None:
        self.kind = kind
        self.vr = vr
        self.choices = choices
        self.low = low
        self.high = high
        self.literal_prefix = literal_prefix
        self._patterns = patterns

    def matches(self, values: Sequence[str | int | float | None]) -> bool:
        """Return whether any of an element's values matches; an absent or empty element has none.

        Takes the values as decode_values gives them.
        """
        if self.kind is Kind.UNIVERSAL:
            return True
        return any(self._matches_one(value) for value in values if value is not None)

    def _matches_one(self, value: str | int | float) -> bool:
        normal = normalise_value(self.vr, value)
        if self._patterns:
            return any(pattern.fullmatch(normal) for pattern in self._patterns)
        if self.kind is Kind.RANGE:
            # "" is the normal form of a date that is none: it lies in no range, not even an open one.
            return (
                normal != ""
                and (self.low is None or self.low <= normal)
                and (self.high is None or normal <= self.high)
            )
        return normal in self.choices

    def __repr__(self) -> str:
        bounds = f"low={self.low!r}, high={self.high!r}, literal_prefix={self.literal_prefix!r}"
        return f"Match({self.kind.name}, {self.vr}, choices={self.choices}, {bounds})"


def parse(vr: str, text: str) -> Match:
    """Return the Match for the value of one key, decoded and as the user sent it.

    Empty text, and "*" alone for every VR, is UNIVERSAL. A backslash separates several values, of which one
    must match: PS3.4 C.2.2.2.2, List of UID Matching, and what users send for other VRs as well. For UI
    a comma does too, as in PS3.18 8.3.4.1, Attribute Matching. A time or date time of less than full
    precision is the RANGE that it stands for: "10" is 10:00:00 to 10:59:59.999999.

    Raises:
        BadQuery: a value that the VR can't hold, a wildcard or a range where the VR has none, or a VR
            that can't be matched at all (SQ, UN, OB ...).
    """
    text = _trimmed(text)
    if text.strip("*") == "":
        return Match(Kind.UNIVERSAL, vr)
    if vr not in _MATCHABLE_VRS:
        raise BadQuery(f"an attribute of VR {vr} can't be matched")
    if vr in _TEMPORAL_VRS:
        return _parse_temporal(vr, text)
    pieces = _pieces(vr, text)
    if vr == "PN":
        return _parse_names(pieces)
    if vr in _WILDCARD_VRS and ("*" in text or "?" in text):
        return _parse_wildcards(vr, pieces)
    choices = tuple(_query_form(vr, piece) for piece in pieces)
    if len(choices) == 1:
        return Match(Kind.SINGLE, vr, choices=choices, low=choices[0], high=choices[0])
    return Match(Kind.LIST, vr, choices=choices)


def normalise_text(vr: str, text: str) -> str:
    """Return the normal form of one value: what an index stores, and what a Match compares.

    Spaces, line ends and NULs at both sides go; case counts, but for names: PS3.4 C.2.2.2.1, Single Value
    Matching.

    PN      see normalise_name
    DA      YYYYMMDD
    TM      HHMMSS.FFFFFF, the begin of what a shorter one stands for
    DT      YYYYMMDDHHMMSS.FFFFFF likewise; in UTC where it states an offset, as it stands where not
    IS, DS  and the binary numbers: one spelling each, "1", "+1E0" and "1.00" as DS are "1.0", as IS "1";
            text that is no number is kept
    AT      eight upper case digits

    Dates and times sort as text in the order of time. One that is none has the form "", which no
    key matches.
    """
    if vr == "PN":
        return normalise_name(text)
    text = _trimmed(text)
    if vr in _TEMPORAL_VRS:
        span = _span(vr, text)
        return span[0] if span else ""
    if vr in _REAL_VRS or vr in _INTEGER_VRS:
        return _number_form(vr, text) or text
    return text.upper() if vr == "AT" else text


def normalise_value(vr: str, value: str | int | float) -> str:
    """Return the normal form of a value as decode_values gives it; normalise_text says which that is."""
    if isinstance(value, str):
        return normalise_text(vr, value)
    if vr == "AT":
        return f"{int(value):08X}"
    return _number_form(vr, repr(value)) or repr(value)


def normalise_name(text: str) -> str:
    """Return the normal form of a person name: lower case without accents, its groups joined by "=".

    Case is folded, compatibility forms (full-width letters, half-width Katakana) are made plain, accents
    are dropped, runs of white space are one space. Components stay where they are; empty ones at the
    end of a group, and empty groups at the end, go: "SMITH^" is "SMITH", PS3.5 6.2.1, Person Name (PN)
    Value Representation.
    """
    if text.isascii():
        text = text.lower()
    else:
        text = unicodedata.normalize("NFKD", text).casefold()
        # Combining classes below 200 (Japanese voicing, Indic viramas, Hebrew points) make another letter
        # of the one they follow rather than an accented one. Composed again at the end, so that "?" stands
        # for what is one letter to the user.
        text = "".join([letter for letter in text if unicodedata.combining(letter) < 200])
        text = unicodedata.normalize("NFC", text)
    groups = text.replace("\0", " ").split("=")
    return "=".join([_components(group) for group in groups]).rstrip("=")


def _components(group: str) -> str:
    return "^".join([" ".join(component.split()) for component in group.split("^")]).rstrip("^")


def _trimmed(text: str) -> str:
    return text.strip("\0 \t\r\n\f")


def _pieces(vr: str, text: str) -> list[str]:
    """Split a key into its values. Empty ones are dropped: "1.2," is a slip of the pen."""
    if vr in _ONE_VALUE_VRS:
        return [text]
    if vr == "UI":
        text = text.replace(",", "\\")
    pieces = [piece for piece in map(_trimmed, text.split("\\")) if piece]
    if not pieces:
        raise BadQuery(f"{_quoted(text)} has no value between its separators")
    return pieces


def _quoted(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")


# --- Text and numbers --------------------------------------------------------


def _query_form(vr: str, text: str) -> str:
    """Return the normal form of a key's value, which unlike a stored one must make sense."""
    if vr in _REAL_VRS or vr in _INTEGER_VRS:
        form = _number_form(vr, text)
        if form is None:
            raise BadQuery(f"{_quoted(text)} is no number, as {vr} must be")
        return form
    if vr == "AT":
        return f"{tag_of(text):08X}"
    if vr == "UI" and ("*" in text or "?" in text):
        raise BadQuery(f"{_quoted(text)}: wildcards don't work on UIDs")
    return normalise_text(vr, text)


def _number_form(vr: str, text: str) -> str | None:
    if "_" in text:  # "1_000" is a number to Python only
        return None
    try:
        if vr in _INTEGER_VRS:
            try:
                return str(int(text))
            except ValueError:
                if vr != "IS":
                    return None
                number = float(text)  # an IS of "1.0" is a 1, and "1.5" is kept for what it is
                return str(int(number)) if number.is_integer() else repr(number)
        number = float(text)
        if vr == "FL":  # the stored one went through 32 bits; "0.1" must find it
            number = struct.unpack("<f", struct.pack("<f", number))[0]
    except (ValueError, OverflowError):
        return None
    return repr(number + 0.0)  # -0.0 + 0.0 is 0.0


def _parse_wildcards(vr: str, pieces: Iterable[str]) -> Match:
    globs = [normalise_text(vr, piece) for piece in pieces]
    return Match(
        Kind.WILDCARD,
        vr,
        literal_prefix=_common_prefix(globs),
        patterns=[_compile_glob(glob) for glob in globs],
    )


def _common_prefix(globs: Iterable[str]) -> str:
    prefixes = [re.split(r"[*?]", glob, maxsplit=1)[0] for glob in globs]
    least, greatest = min(prefixes), max(prefixes)
    for index, letter in enumerate(least):
        if letter != greatest[index]:
            return least[:index]
    return least


def _compile_glob(glob: str) -> re.Pattern[str]:
    """Return the pattern of PS3.4 C.2.2.2.4: * is any text, the empty one too, and ? any one character.

    Each run between two * is an atomic group: the leftmost place where it fits is the right one, so that
    nothing is tried twice, and "*a*a*a*a*b" takes no more than the text's length times the key's.
    """
    first, *rest = [
        "".join("." if letter == "?" else re.escape(letter) for letter in run) for run in glob.split("*")
    ]
    if not rest:
        return re.compile(first, re.DOTALL)
    middle = "".join(f"(?>.*?{run})" for run in rest[:-1] if run)
    return re.compile(f"{first}{middle}.*{rest[-1]}", re.DOTALL)


# --- Names -------------------------------------------------------------------


class _NamePattern:
    """One name to look for: for each group that the key states its components."""

    __slots__ = ("_anywhere", "_groups")

    def __init__(self, name: str) -> None:
        groups = name.split("=")
        # A key without "=" may be in any script; the user didn't say in which group.
        self._anywhere = len(groups) == 1
        self._groups = [
            (number, [_compile_glob(component) for component in group.split("^")])
            for number, group in enumerate(groups)
            if group.strip("*^")
        ]

    def fullmatch(self, name: str) -> bool:
        """Named as re.Pattern's, beside which Match keeps it."""
        groups = name.split("=")
        if self._anywhere:
            components = self._groups[0][1]
            return any(_components_match(components, group) for group in groups)
        return all(
            number < len(groups) and _components_match(components, groups[number])
            for number, components in self._groups
        )


def _components_match(patterns: Sequence[re.Pattern[str]], group: str) -> bool:
    """Compare component by component; the last pattern gets the rest of the group.

    So "smith*" is put to the whole group, and "smith^j*" to "smith" and "john^william".
    """
    if not group:
        return False
    components = group.split("^", len(patterns) - 1)
    components += [""] * (len(patterns) - len(components))
    return all(
        pattern.fullmatch(component) is not None
        for pattern, component in zip(patterns, components, strict=True)
    )


def _parse_names(pieces: Sequence[str]) -> Match:
    names = [normalise_name(piece) for piece in pieces]
    if any(not name.strip("*^=") for name in names):
        return Match(Kind.UNIVERSAL, "PN")  # "^^", "*^*": nothing is asked
    stated = [next(group for group in name.split("=") if group.strip("*^")) for name in names]
    patterns = [_NamePattern(name) for name in names]
    if any("*" in name or "?" in name for name in names):
        # Not beyond the family name's end: "smith^*" matches "smith", whose normal form has no "^".
        prefix = _common_prefix(stated).rstrip("^")
        return Match(Kind.WILDCARD, "PN", literal_prefix=prefix, patterns=patterns)
    if len(stated) == 1:
        return Match(
            Kind.SINGLE, "PN", choices=(stated[0],), low=stated[0], high=stated[0], patterns=patterns
        )
    return Match(Kind.LIST, "PN", choices=tuple(stated), patterns=patterns)


# --- Dates and times ---------------------------------------------------------


def _parse_temporal(vr: str, text: str) -> Match:
    """Parse a DA, TM or DT key: one value, or a range of PS3.4 C.2.2.2.5, Range Matching."""
    span = _span(vr, text)
    if span is not None:
        low, high = span
        if low == high:
            return Match(Kind.SINGLE, vr, choices=(low,), low=low, high=high)
        return Match(Kind.RANGE, vr, low=low, high=high)
    found = (_DATE_TIME_RANGE if vr == "DT" else _RANGE).fullmatch(text)
    first, last = (found[1] or "", found[2] or "") if found else ("", "")
    if not first and not last:
        raise BadQuery(f"{_quoted(text)} is neither a {vr} value nor a range ({_EXAMPLES[vr]})")
    low_bound = _stated_span(vr, first)[0] if first else None
    high_bound = _stated_span(vr, last)[1] if last else None
    # TM is let through: together with dates, a range from 22:00 to 02:00 makes sense.
    if vr != "TM" and low_bound is not None and high_bound is not None and low_bound > high_bound:
        raise BadQuery(f"the range {_quoted(text)} ends before it begins")
    return Match(Kind.RANGE, vr, low=low_bound, high=high_bound)


def _stated_span(vr: str, text: str) -> tuple[str, str]:
    span = _span(vr, _trimmed(text))
    if span is None:
        raise BadQuery(f"{_quoted(text)} is no {vr} value ({_EXAMPLES[vr]})")
    return span


def _span(vr: str, text: str) -> tuple[str, str] | None:
    """Return the first and the last normal form that a date or time stands for; None if it is neither."""
    if vr == "DA":
        found = _DATE.fullmatch(text)
        date = _date(found[1] or found[4], found[2] or found[5], found[3] or found[6]) if found else None
        return (date[0], date[1]) if date else None
    if vr == "TM":
        found = _TIME.fullmatch(text)
        return _time(*found.groups()) if found else None
    found = _DATE_TIME.fullmatch(text)
    if found is None:
        return None
    date = _date(found[1], found[2], found[3])
    time = _time(found[4], found[5], found[6], found[7])
    if date is None or time is None:
        return None
    low, high = date[0] + time[0], date[1] + time[1]
    zone = found[8]
    if not zone:
        return low, high
    try:
        return _utc(low, zone), _utc(high, zone)
    except (ValueError, OverflowError):  # a year before 1 or after 9999
        return None


def _date(year: str, month: str | None, day: str | None) -> tuple[str, str] | None:
    number = int(month or 1)
    if not 1 <= number <= 12:
        return None
    y = int(year)
    leap_day = number == 2 and y % 4 == 0 and (y % 100 != 0 or y % 400 == 0)
    days = _DAYS[number - 1] + leap_day
    if day is not None:
        return (year + month + day,) * 2 if month and 1 <= int(day) <= days else None
    return f"{year}{month or '01'}01", f"{year}{month or '12'}{days if month else 31}"


def _time(
    hour: str | None, minute: str | None, second: str | None, fraction: str | None
) -> tuple[str, str] | None:
    if int(hour or 0) > 23 or int(minute or 0) > 59 or int(second or 0) > 60:
        return None
    if second == "60":  # a leap second; in this form it stays within its minute
        second = "59"
    low = f"{hour or '00'}{minute or '00'}{second or '00'}.{(fraction or '')[:6]:0<6}"
    high = f"{hour or '23'}{minute or '59'}{second or '59'}.{(fraction or '')[:6]:9<6}"
    return low, high


def _utc(text: str, zone: str) -> str:
    from datetime import datetime, timedelta  # most processes never see an offset

    minutes = int(zone[1:3]) * 60 + int(zone[3:5])
    local = datetime.strptime(text, "%Y%m%d%H%M%S.%f")
    shifted = local - timedelta(minutes=-minutes if zone[0] == "-" else minutes)
    # Not strftime: its %Y has no leading zeros on some systems.
    return re.sub(r"[-:T]", "", shifted.isoformat(timespec="microseconds"))
