"""Takes the value of a matching key; gives a Match, which tells whether the values of an element match, and
what an index can look up. Never sees a data set, and has no say in which keys exist.

PS3.4 C.2.2.2, Attribute Matching: single value, list of UID, universal, wild card, range and empty value
matching of one attribute, fuzzy matching of names; and of a date and a time together (Moments), as one range
or in another time zone. Sequences are matched where their items are read.

Values are compared in their normal forms (normalise_text), which is also what an index stores. An index
of names stores each group of the form by itself, because a key without "=" may mean any of them.
"""

from __future__ import annotations

import re
import struct
import unicodedata
from collections.abc import Iterable, Sequence
from enum import IntEnum
from functools import lru_cache
from itertools import zip_longest

from hilum.dicom.dictionary import tag_of
from hilum.errors import BadQuery

Values = Sequence[str | int | float | None]


class Kind(IntEnum):
    """The kinds of matching of PS3.4 C.2.2.2 that a single attribute can have."""

    UNIVERSAL = 0  # C.2.2.2.3: matches everything, absent attributes too
    SINGLE = 1  # C.2.2.2.1
    LIST = 2  # C.2.2.2.2: one of several
    WILDCARD = 3  # C.2.2.2.4
    RANGE = 4  # C.2.2.2.5
    EMPTY = 5  # C.2.2.2.7: what is absent or has no value
    FUZZY = 6  # C.2.2.2.1.1: names only


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
_ZONE_AT_END = re.compile(rf"(?<=\d){_ZONE}$", re.ASCII)
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
    literal         SINGLE, WILDCARD: what each match has somewhere; "" where that can't be told. FUZZY: what
                    it has that matches without being fuzzy

    For PN these hold of one of the value's groups, and find more than what matches: a key with several
    groups gives only the first of them here. Put what the index finds to matches(). EMPTY and FUZZY have
    none of them.

    is_span         RANGE: written with a hyphen, not only a value of less than full precision
    """

    __slots__ = (
        "_patterns",
        "_zoned",
        "choices",
        "high",
        "is_span",
        "kind",
        "literal",
        "literal_prefix",
        "low",
        "vr",
    )

    def __init__(
        self,
        kind: Kind,
        vr: str,
        *,
        choices: tuple[str, ...] = (),
        low: str | None = None,
        high: str | None = None,
        literal_prefix: str = "",
        literal: str = "",
        patterns: Sequence[_NamePattern | _FuzzyName | re.Pattern[str]] = (),
        is_span: bool = False,
        zoned: tuple[bool, bool] = (False, False),
    ) -> None:
        self.kind = kind
        self.vr = vr
        self.choices = choices
        self.low = low
        self.high = high
        self.literal_prefix = literal_prefix
        self.literal = literal
        self.is_span = is_span
        self._patterns = patterns
        self._zoned = zoned  # DT: whether low and high are in UTC

    def matches(self, values: Values, offsets: Values = ()) -> bool:
        """Return whether any of an element's values matches; an absent or empty element has none.

        Takes the values as decode_values gives them. `offsets` are those of Timezone Offset From UTC
        (0008,0201) of the data set: only a DT looks at them.
        """
        if self.kind is Kind.UNIVERSAL:
            return True
        if self.kind is Kind.EMPTY:
            return not any(value is not None and _trimmed(str(value)) for value in values)
        if self.vr == "DT":
            return any(self._holds(str(value), offsets) for value in values if value is not None)
        return any(
            self.matches_normal(normalise_value(self.vr, value)) for value in values if value is not None
        )

    def meets(self, columns: Sequence[Values], offsets: Values) -> bool:
        """The same, as Moments has it: the values of each attribute that is asked."""
        return self.matches(columns[0], offsets)

    def matches_normal(self, normal: str) -> bool:
        """The same of one value in its normal form."""
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

    def telling_words(self, words: Iterable[str]) -> set[str]:
        """FUZZY: of many words (words_of) those of which a name holds one if it matches as a fuzzy one."""
        names = (pattern for pattern in self._patterns if isinstance(pattern, _FuzzyName))
        return {word for name in names for word in name.telling(words)}

    def _holds(self, text: str, offsets: Values) -> bool:
        """A DT between two moments: by the clock on the wall where the key states no offset, else in UTC."""
        text = _trimmed(text)
        zone = _ZONE_AT_END.search(text)
        on_wall = normalise_text("DT", text[: zone.start()] if zone else text)
        if not on_wall:
            return False
        if zone:
            in_utc = normalise_text("DT", text)
        else:
            offset = offset_of(offsets)
            in_utc = _moved(on_wall, -offset) if offset else on_wall
        low, high = (in_utc if zoned else on_wall for zoned in self._zoned)
        return (self.low is None or self.low <= low) and (self.high is None or high <= self.high)

    def __repr__(self) -> str:
        bounds = f"low={self.low!r}, high={self.high!r}, literal_prefix={self.literal_prefix!r}"
        return f"Match({self.kind.name}, {self.vr}, choices={self.choices}, {bounds})"


def parse(
    vr: str, text: str, *, fuzzy: bool = False, empty_value: bool = False, zone: int | None = None
) -> Match:
    """Return the Match for the value of one key, decoded and as the user sent it.

    Empty text, and "*" alone for every VR, is UNIVERSAL. A backslash separates several values, of which one
    must match: PS3.4 C.2.2.2.2, List of UID Matching, and what users send for other VRs as well. For UI
    a comma does too, as in PS3.18 8.3.4.1, Attribute Matching. A time or date time of less than full
    precision is the RANGE that it stands for: "10" is 10:00:00 to 10:59:59.999999.

    `fuzzy` is for names (see _FuzzyName). With `empty_value` two quotation marks are EMPTY, for any VR.
    `zone` is the query's offset from UTC in minutes: a DT that states none is meant in it.

    Raises:
        BadQuery: a value that the VR can't hold, a wildcard or a range where the VR has none, or a VR
            that can't be matched at all (SQ, UN, OB ...).
    """
    text = _trimmed(text)
    if text.strip("*") == "":
        return Match(Kind.UNIVERSAL, vr)
    if empty_value and text == '""':
        return Match(Kind.EMPTY, vr)
    if vr not in _MATCHABLE_VRS:
        raise BadQuery(f"an attribute of VR {vr} can't be matched")
    if vr in _TEMPORAL_VRS:
        return _parse_temporal(vr, text, zone)
    pieces = _pieces(vr, text)
    if vr == "PN":
        match = _parse_names(pieces)
        return _fuzzy(match, pieces) if fuzzy and match.kind is not Kind.UNIVERSAL else match
    if vr in _WILDCARD_VRS and ("*" in text or "?" in text):
        return _parse_wildcards(vr, pieces)
    choices = tuple(_query_form(vr, piece) for piece in pieces)
    if len(choices) == 1:
        one = choices[0]
        return Match(Kind.SINGLE, vr, choices=choices, low=one, high=one, literal=_literal(choices))
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
        literal=_literal(globs),
        patterns=[_compile_glob(glob) for glob in globs],
    )


def _common_prefix(globs: Iterable[str]) -> str:
    prefixes = [re.split(r"[*?]", glob, maxsplit=1)[0] for glob in globs]
    least, greatest = min(prefixes), max(prefixes)
    for index, letter in enumerate(least):
        if letter != greatest[index]:
            return least[:index]
    return least


def _literal(forms: Sequence[str]) -> str:
    """The longest run of letters that every match has; of several forms none that all have."""
    return max(re.split(r"[*?^=]", forms[0]), key=len) if len(forms) == 1 else ""


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
        literal = _literal(names)
        return Match(Kind.WILDCARD, "PN", literal_prefix=prefix, literal=literal, patterns=patterns)
    if len(stated) == 1:
        one = stated[0]
        return Match(
            Kind.SINGLE, "PN", choices=(one,), low=one, high=one, literal=_literal(names), patterns=patterns
        )
    return Match(Kind.LIST, "PN", choices=tuple(stated), patterns=patterns)


# --- Fuzzy names -------------------------------------------------------------

_WORD = re.compile(r"[^\s^=,.;'\u2019-]+")
_TYPO_MIN, _TYPOS_MIN = 4, 8  # letters of a word that may hold one slip of the pen, or two


def words_of(text: str) -> list[str]:
    """The words of names in their normal form, in the order in which they stand."""
    return _WORD.findall(text)


class _FuzzyName:
    """A name to look for by its words: PS3.4 C.2.2.2.1.1 leaves to the implementation what fuzzy means.

    Each word of the key must stand in one group of the name, in whatever order and component. A word stands
    there when one of the group's

    - begins with it ("jo" finds "John"),
    - is written alike: one letter more, less, other or changed with its neighbour in a word of four letters
      and more, two such slips in one of eight and more,
    - sounds alike (see _sound): "Meier" finds "Mayer".

    A word with wildcards matches a word as they say, or as it would without those at its ends. What matches
    without `fuzzy` always matches with it: parse() puts the plain patterns beside these.
    """

    __slots__ = ("_groups",)

    def __init__(self, name: str) -> None:
        groups = ([word for word in words_of(group) if word.strip("*")] for group in name.split("="))
        self._groups = [list(map(_FuzzyWord, words)) for words in groups if words]

    def fullmatch(self, name: str) -> bool:
        """Named as re.Pattern's, beside which Match keeps it."""
        spoken = [words_of(group) for group in name.split("=")]
        return bool(self._groups) and all(
            any(all(any(map(word.is_like, words)) for word in group) for words in spoken)
            for group in self._groups
        )

    def telling(self, words: Iterable[str]) -> set[str]:
        """Of many words those of which each name that matches holds one."""
        found = [set(filter(word.is_like, words)) for group in self._groups for word in group]
        return min(found, key=len, default=set())


class _FuzzyWord:
    """One word of a key. Remembers its answers: an archive's names are made of few words."""

    __slots__ = ("_glob", "_known", "_letters", "_slips", "_sound", "_text")

    def __init__(self, text: str) -> None:
        self._glob = _compile_glob(text) if "*" in text or "?" in text else None
        plain = text.strip("*")
        self._text = "" if "*" in plain or "?" in plain else plain
        self._slips = (len(self._text) >= _TYPO_MIN) + (len(self._text) >= _TYPOS_MIN)
        self._letters = set(self._text)
        self._sound = _sound(self._text)
        self._known: dict[str, bool] = {}

    def is_like(self, word: str) -> bool:
        known = self._known.get(word)
        if known is None:
            known = self._known[word] = self._compare(word)
        return known

    def _compare(self, word: str) -> bool:
        if self._glob is not None and self._glob.fullmatch(word):
            return True
        text = self._text
        if not text:
            return False
        if word.startswith(text):
            return True
        if (
            abs(len(word) - len(text)) <= self._slips
            and len(self._letters.symmetric_difference(word)) <= 2 * self._slips  # a slip changes two at most
            and _slips(text, word) <= self._slips
        ):
            return True
        return self._sound != "" and self._sound == _sound(word)


def _slips(text: str, word: str) -> int:
    """Letters that are more, less or other, neighbours that changed places: optimal string alignment."""
    before: list[int] = []
    row = list(range(len(word) + 1))
    for at, letter in enumerate(text, 1):
        older, before, row = before, row, [at]
        for other_at, other in enumerate(word, 1):
            least = min(before[other_at] + 1, row[-1] + 1, before[other_at - 1] + (letter != other))
            swapped = at > 1 and other_at > 1 and letter == word[other_at - 2] and other == text[at - 2]
            row.append(min(least, older[other_at - 2] + 1) if swapped else least)
    return row[-1]


# What is written in many ways and spoken in one; longer spellings first.
_SPELLINGS = (
    ("tsch", "k"), ("sch", "s"), ("ph", "f"), ("th", "t"), ("dt", "t"), ("ck", "k"), ("gh", "g"), ("wr", "r"),
    ("kn", "n"), ("qu", "k"), ("x", "ks"), ("z", "s"), ("c", "k"), ("q", "k"), ("w", "v"), ("j", "y"),
    ("ai", "e"), ("ay", "e"), ("ei", "e"), ("ey", "e"), ("y", "i"), ("ie", "i"), ("ou", "u"), ("oo", "u"),
    ("ee", "i"), ("ea", "i"), ("ae", "e"), ("oe", "e"), ("ue", "u"),
)  # fmt: skip
_SOUND_MIN = 3


def _sound(word: str) -> str:
    """How a word of Latin letters sounds, roughly and in no one language; "" for others and short ones.

    Spellings of one sound are made one, then doubled letters one; "h" and "e" inside are not heard.
    """
    if len(word) < _SOUND_MIN or not word.isascii() or not word.isalpha():
        return ""
    for written, spoken in _SPELLINGS:
        word = word.replace(written, spoken)
    word = word[0] + re.sub("[he]", "", word[1:])
    return re.sub(r"(.)\1+", r"\1", word)


def _fuzzy(plain: Match, pieces: Sequence[str]) -> Match:
    names = [_FuzzyName(normalise_name(piece)) for piece in pieces]
    return Match(Kind.FUZZY, "PN", literal=plain.literal, patterns=[*names, *plain._patterns])


# --- Dates and times ---------------------------------------------------------


def _parse_temporal(vr: str, text: str, zone: int | None) -> Match:
    """Parse a DA, TM or DT key: one value, or a range of PS3.4 C.2.2.2.5, Range Matching."""
    span = _span(vr, text)
    if span is not None:
        (low, high), zoned = _in_zone(vr, text, span, zone)
        if low == high:
            return Match(Kind.SINGLE, vr, choices=(low,), low=low, high=high, zoned=(zoned, zoned))
        return Match(Kind.RANGE, vr, low=low, high=high, zoned=(zoned, zoned))
    found = (_DATE_TIME_RANGE if vr == "DT" else _RANGE).fullmatch(text)
    first, last = (found[1] or "", found[2] or "") if found else ("", "")
    if not first and not last:
        raise BadQuery(f"{_quoted(text)} is neither a {vr} value nor a range ({_EXAMPLES[vr]})")
    low_bound = high_bound = None
    low_zoned = high_zoned = False
    if first:
        (low_bound, _), low_zoned = _in_zone(vr, first, _stated_span(vr, first), zone)
    if last:
        (_, high_bound), high_zoned = _in_zone(vr, last, _stated_span(vr, last), zone)
    # TM is let through: together with dates, a range from 22:00 to 02:00 makes sense.
    if vr != "TM" and low_bound is not None and high_bound is not None and low_bound > high_bound:
        raise BadQuery(f"the range {_quoted(text)} ends before it begins")
    zoned_bounds = low_zoned, high_zoned
    return Match(Kind.RANGE, vr, low=low_bound, high=high_bound, is_span=True, zoned=zoned_bounds)


def _in_zone(vr: str, text: str, span: tuple[str, str], zone: int | None) -> tuple[tuple[str, str], bool]:
    """A DT key's bounds in UTC, and True, where it or the query states an offset; else as they are."""
    if vr != "DT":
        return span, False
    if _ZONE_AT_END.search(_trimmed(text)):
        return span, True
    if zone is None:
        return span, False
    return (_moved(span[0], -zone), _moved(span[1], -zone)), True


def _stated_span(vr: str, text: str) -> tuple[str, str]:
    span = _span(vr, _trimmed(text))
    if span is None:
        raise BadQuery(f"{_quoted(text)} is no {vr} value ({_EXAMPLES[vr]})")
    return span


@lru_cache(maxsize=8192)  # an archive has few dates, and a range is held against all of them
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
    minutes = parse_offset(zone)
    try:
        return _shifted(low, -minutes), _shifted(high, -minutes)
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


def parse_offset(text: str) -> int:
    """Minutes of an offset from UTC, "+0100".

    Raises:
        BadQuery: it is none.
    """
    text = _trimmed(text)
    if not re.fullmatch(_ZONE, text, re.ASCII):
        raise BadQuery(f"{_quoted(text)} is no offset from UTC, such as +0100")
    minutes = int(text[1:3]) * 60 + int(text[3:5])
    return -minutes if text[0] == "-" else minutes


def offset_of(offsets: Values) -> int | None:
    """The same of the values of (0008,0201); None where there is none that makes sense."""
    for value in offsets:
        try:
            return parse_offset(str(value))
        except BadQuery:
            continue
    return None


def _shifted(moment: str, minutes: int) -> str:
    from datetime import datetime, timedelta  # most processes never see an offset

    moved = datetime.strptime(moment, "%Y%m%d%H%M%S.%f") + timedelta(minutes=minutes)
    # Not strftime: its %Y has no leading zeros on some systems.
    return re.sub(r"[-:T]", "", moved.isoformat(timespec="microseconds"))


def _moved(moment: str, minutes: int) -> str:
    """A moment some minutes later, left alone where that is no year of four digits."""
    try:
        return _shifted(moment, minutes)
    except (ValueError, OverflowError):
        return moment


# --- Date and time together --------------------------------------------------

_DAY_BEGINS, _DAY_ENDS = "000000.000000", "235959.999999"


class Moments:
    """The keys of a date and of the time that goes with it, held against both. At least one is asked for.

    Two ranges become one, PS3.4 C.2.2.2.5, Range Matching, with combined matching of date and time: from the
    first time of the first day to the last time of the last, not these hours on each of the days. They
    stay two where one of them is no range, or a time is bounded on a side where the date is not. A date
    without a time stands for its whole day, and all of it must lie in the range.

    `zone` is the query's offset from UTC in minutes: where the data set states its own, its dates and
    times are taken to the query's zone first. A date without a time stays as it is.
    """

    __slots__ = ("_high", "_low", "_one_range", "_zone", "date", "time")

    def __init__(
        self, date: Match | None, time: Match | None, *, combined: bool = True, zone: int | None = None
    ) -> None:
        self.date = date
        self.time = time
        self._zone = zone
        self._low: str | None = None
        self._high: str | None = None
        self._one_range = combined and date is not None and time is not None and _combine(date, time)
        if date is not None and time is not None and self._one_range:
            if date.low is not None:
                self._low = date.low + (time.low or _DAY_BEGINS)
            if date.high is not None:
                self._high = date.high + (time.high or _DAY_ENDS)
            if self._low is not None and self._high is not None and self._low > self._high:
                raise BadQuery("the range of date and time ends before it begins")

    def meets(self, columns: Sequence[Values], offsets: Values) -> bool:
        return self.matches(columns[0], columns[1], offsets)

    def matches(self, dates: Values, times: Values = (), offsets: Values = ()) -> bool:
        """Return whether any date with its time matches, the first with the first and so on."""
        if self.date is not None and self.date.kind is Kind.EMPTY and not self.date.matches(dates):
            return False
        if self.time is not None and self.time.kind is Kind.EMPTY and not self.time.matches(times):
            return False
        here = offset_of(offsets) if self._zone is not None else None
        shift = self._zone - here if self._zone is not None and here is not None else 0
        pairs = zip_longest(dates, times) if dates or times else [(None, None)]
        return any(self._holds(date, time, shift) for date, time in pairs)

    def _holds(self, date: str | float | None, time: str | float | None, shift: int) -> bool:
        day = normalise_value("DA", date) if date is not None else ""
        clock = normalise_value("TM", time) if time is not None else ""
        if shift and clock:
            moved = _moved((day or "20000101") + clock, shift)
            day, clock = moved[:8] if day else "", moved[8:]
        if self._one_range:
            first, last = day + (clock or _DAY_BEGINS), day + (clock or _DAY_ENDS)
            return (
                day != ""
                and (self._low is None or self._low <= first)
                and (self._high is None or last <= self._high)
            )
        return _holds_part(self.date, day) and _holds_part(self.time, clock)


def _combine(date: Match, time: Match) -> bool:
    return (
        date.is_span
        and time.is_span
        and (time.low is None or date.low is not None)
        and (time.high is None or date.high is not None)
    )


def _holds_part(match: Match | None, normal: str) -> bool:
    return match is None or match.kind in (Kind.EMPTY, Kind.UNIVERSAL) or match.matches_normal(normal)
