"""Takes a question as a front end states it; gives it in the engine's own words, or says why it makes no
sense. Pure: knows which attributes are indexed, but no index.

PS3.4 C.2.2.2, Attribute Matching, and C.4.1.1.3, Identifier. What the Standard leaves open:

- A study is asked what its donor says: the attributes of patient and study that its row shows. A patient is
  asked what its own donor says of the patient, and below that there must be one study that matches.
- An element that is not indexed belongs to the level of its module (elements.level_of), and is asked of the
  instance that speaks there. All others, private ones too, are asked of every instance.
- A key of several values is met by any of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import NamedTuple

from hilum.dicom import dictionary
from hilum.dicom.dictionary import Path, Private
from hilum.dicom.matching import Kind, Match, Moments, parse, parse_offset
from hilum.engine import record
from hilum.engine.elements import OFFSET_FROM_UTC, ItemKeys, Untold, level_of
from hilum.engine.record import INSTANCE, PATIENT, SERIES, STUDY
from hilum.errors import BadQuery

LEVELS = {"patients": PATIENT, "studies": STUDY, "series": SERIES, "instances": INSTANCE}
UNIQUE_KEYS = {PATIENT: 0x00100020, STUDY: 0x0020000D, SERIES: 0x0020000E, INSTANCE: 0x00080018}

# Attributes that no instance has: the index counts or collects them. The number of such a key is its tag.
MODALITIES_IN_STUDY = 0x00080061
PATIENT_STUDIES, PATIENT_SERIES, PATIENT_INSTANCES = 0x00201200, 0x00201202, 0x00201204
STUDY_SERIES, STUDY_INSTANCES, SERIES_INSTANCES = 0x00201206, 0x00201208, 0x00201209
COMPUTED = {
    MODALITIES_IN_STUDY: ("CS", STUDY),
    PATIENT_STUDIES: ("IS", PATIENT),  # Number of Patient Related Studies
    PATIENT_SERIES: ("IS", PATIENT),
    PATIENT_INSTANCES: ("IS", PATIENT),
    STUDY_SERIES: ("IS", STUDY),  # Number of Study Related Series
    STUDY_INSTANCES: ("IS", STUDY),
    SERIES_INSTANCES: ("IS", SERIES),  # Number of Series Related Instances
}

# They say how a question is put, or who answers it, and are in no data set: PS3.4 C.2.2.2 and C.4.1.1.3.
_OF_THE_QUESTION = (0x00080005, 0x00080052)  # Specific Character Set, Query/Retrieve Level
_OF_THE_ANSWER = (0x00080054, 0x00080056, 0x00081190)  # Retrieve AE Title, Instance Availability, its URL


class Asked(NamedTuple):
    """One question, as a front end states it.

    A name is a keyword, a tag, a path of them with full stops ("RequestAttributesSequence.00400009"), or a
    private element with its creator: 0029,"SIEMENS CSA HEADER",10. The creator may also be stated by a key of
    its own, as PS3.18 8.3.4.1 (Attribute Matching) has it: 00290010=SIEMENS CSA HEADER beside 00291010=... is
    no condition, but says whose element 00291010 is, in whatever block of group 0029 that lies.
    """

    level: str  # "patients", "studies", "series" or "instances"
    keys: Sequence[tuple[str, str]] = ()  # name and value
    include: Sequence[str] = ()  # names of what the answer must have too, or "all"
    limit: int | None = None
    offset: int = 0
    order: Sequence[str] = ()  # names, "-" in front of one for descending
    fuzzy: bool = False  # names match by their words, in any order, with slips of the pen
    timezone: str = ""  # of the dates and times asked for: offset from UTC, "+0100"
    relational: bool = True  # False: the unique keys of the levels above must be there
    seconds_max: float | None = None  # for what has to be read from heads
    empty_value: bool = False  # '""' asks for attributes that are empty or absent
    combined: bool = True  # a range of dates and a range of times are one range
    patient_root: bool = False  # where it is not relational: patients are a level above studies


class Key(NamedTuple):
    """One matching key. Its match takes the values of these indexed attributes, in this order."""

    numbers: tuple[int, ...]  # of entries; the tag of what is computed
    level: int
    match: Match | Moments
    takes_offset: bool = False  # and the offset from UTC of the data set

    @property
    def number(self) -> int:
        return self.numbers[0]


class Include(NamedTuple):
    """What an answer must have beside the attributes of its level."""

    everything: bool = False  # every element of the level that is in the head
    paths: tuple[Path, ...] = ()


class Question(NamedTuple):
    """A question that makes sense."""

    level: int
    keys: tuple[Key, ...]  # by the index
    elements: Mapping[int, ItemKeys]  # by heads, for each level
    include: Include  # with the attributes that are keys: PS3.18 10.6.3.3, Response
    limit: int | None
    offset: int
    order: tuple[tuple[int, bool], ...]  # number of the entry, or tag of what is computed; descending
    seconds_max: float | None
    warnings: tuple[str, ...]

    @property
    def is_universal(self) -> bool:
        """Whether everything matches."""
        return not self.keys and not self.elements


def entry_number(path: Path) -> int | None:
    """The entry under which an attribute is indexed, None where it is not."""
    first, last = path[0], path[-1]
    if isinstance(first, Private) or isinstance(last, Private):
        return None
    if len(path) == 1:
        return record.NUMBER_OF.get(first)
    if len(path) == 2 and first == record.REQUEST_ATTRIBUTES:
        return record.NESTED_NUMBER_OF.get(last)
    return None


def level_of_path(path: Path) -> int:
    """The level at which an attribute is asked for."""
    first = path[0]
    if isinstance(first, Private):
        return INSTANCE
    if first in COMPUTED:
        return COMPUTED[first][1]
    number = record.NUMBER_OF.get(first)
    return level_of(first) if number is None else record.LEVEL_OF[number] or INSTANCE


def parted(paths: Iterable[Path], level: int) -> tuple[list[int], list[Path]]:
    """Part attributes that a row of a level shall show into tags that its records answer, and the others."""
    in_records, in_heads = [], []
    for path in paths:
        first = path[0]
        known = entry_number(path) is not None and level_of_path(path) <= level
        if len(path) == 1 and isinstance(first, int) and (known or first in COMPUTED):
            in_records.append(first)
        else:
            in_heads.append(path)
    return in_records, in_heads


def parse_include(names: Iterable[str], creators: Mapping[Path, str] | None = None) -> Include:
    """What is to be included; "all" among the names stands for every element of the level.

    Raises:
        BadQuery: an unknown name.
    """
    names = list(names)
    paths = (dictionary.path_of(name) for name in names if name != "all")
    named = [dictionary.with_creators(path, creators or {}) for path in paths]
    return Include("all" in names, tuple(dict.fromkeys(named)))


def parse_keys(pairs: Iterable[tuple[str, str]]) -> list[Key]:
    """Keys that the index alone answers, of one attribute each; universal ones ("", "*") are left out.

    For those who hold keys against objects that are not stored yet: a key of Modalities in Study is one of
    Modality.

    Raises:
        BadQuery: an unknown name, one that is not indexed, or a value that its VR can't hold.
    """
    found = []
    for name, text in pairs:
        path = dictionary.path_of(name)
        number = entry_number((0x00080060,) if path == (MODALITIES_IN_STUDY,) else path)
        if number is None:
            raise BadQuery(f"{dictionary.format_path(path)} is not indexed, so it can't be a key here")
        match = parse(record.VR_OF[number], text)
        if match.kind != Kind.UNIVERSAL:
            found.append(Key((number,), record.LEVEL_OF[number] or INSTANCE, match))
    return found


def parse_question(asked: Asked) -> Question:
    """Turn what is asked into what can be looked for.

    Raises:
        BadQuery: an unknown level or name, a value that its VR can't hold, a unique key that is missing.
    """
    if asked.level not in LEVELS:
        raise BadQuery(f"{asked.level!r} is no level: patients, studies, series or instances")
    if asked.offset < 0 or (asked.limit is not None and asked.limit < 0):
        raise BadQuery("limit and offset can't be negative")
    level = LEVELS[asked.level]
    stated, include, creators = _with_creators(asked)
    warnings, zone, wanted = [], asked.timezone, []
    for path, text in stated:
        if path == (OFFSET_FROM_UTC,):
            zone = zone or text.strip("* ")
        elif path[-1] in _OF_THE_ANSWER and text.strip("* "):
            warnings.append(f"{dictionary.format_path(path)} is not matched: it is of the answer")
        elif path[-1] not in _OF_THE_QUESTION and path not in creators:
            wanted.append((path, text))
    if not asked.relational:
        _check_hierarchy(level, wanted, patient_root=asked.patient_root)
    keys = _Keys(asked, level, parse_offset(zone) if zone else None)
    keys.add_all(wanted)
    asked_for = (path for path, _ in stated if path not in creators)
    return Question(
        level,
        tuple(keys.indexed),
        {at: elements for at, elements in keys.elements.items() if elements},
        include._replace(paths=tuple(dict.fromkeys([*include.paths, *asked_for]))),
        asked.limit,
        asked.offset,
        tuple(map(_parse_order, asked.order)),
        asked.seconds_max,
        tuple(warnings),
    )


def _with_creators(asked: Asked) -> tuple[list[tuple[Path, str]], Include, set[Path]]:
    """The keys with private elements named by their creators, what is included, and the keys that only
    state a creator of one of these."""
    stated = [(dictionary.path_of(name), text) for name, text in asked.keys]
    creators = {
        path: text.strip()
        for path, text in stated
        if not isinstance(path[-1], Private) and dictionary.is_creator(path[-1]) and text.strip("* ")
    }
    if not creators:
        return stated, parse_include(asked.include), set()
    bare = [*(path for path, _ in stated), *parse_include(asked.include).paths]
    used = {
        creator
        for creator, text in creators.items()
        if any(dictionary.with_creators(path, {creator: text}) != path for path in bare)
    }
    named = [(dictionary.with_creators(path, creators), text) for path, text in stated]
    return named, parse_include(asked.include, creators), used


class _Keys:
    """Sorts keys into those that the index answers and those that heads do."""

    def __init__(self, asked: Asked, level: int, zone: int | None) -> None:
        self._asked = asked
        self._level = level
        self._zone = zone
        self._sequences: list[int | Private] = []  # of the keys that lie in one
        self.indexed: list[Key] = []
        self.elements: dict[int, ItemKeys] = {}

    def add_all(self, wanted: Iterable[tuple[Path, str]]) -> None:
        left = [(path, text) for path, text in wanted if text.strip("* ")]
        self._sequences = [path[0] for path, _ in left if len(path) > 1]
        while left:
            path, text = left.pop(0)
            date, time = _date_and_time(path)
            if date is None or time is None:
                self._add(path, self._parse(path, text))
                continue
            other = time if path == date else date
            at = next((at for at, (found, _) in enumerate(left) if found == other), None)
            beside = left.pop(at)[1] if at is not None else ""
            texts = (text, beside) if path == date else (beside, text)
            self._add_moments(date, time, *texts)

    def _add_moments(self, date: Path, time: Path, date_text: str, time_text: str) -> None:
        """Add the keys of a date and its time, of which one may be missing."""
        days, hours = self._parse(date, date_text), self._parse(time, time_text)
        combined = self._asked.combined and _is_span(days) and _is_span(hours)
        if self._zone is None and not combined:
            self._add(date, days)
            self._add(time, hours)
            return
        parts = _unless_universal(days), _unless_universal(hours)
        moments = Moments(*parts, combined=combined, zone=self._zone)
        numbers = entry_number(date), entry_number(time)
        if numbers[0] is None or numbers[1] is None:
            self._add_elements(date, (date[-1], time[-1]), moments)
        elif moments.date is not None or moments.time is not None:
            pair = numbers[0], numbers[1]
            self.indexed.append(Key(pair, self._at(date), moments, takes_offset=self._zone is not None))

    def _add(self, path: Path, match: Match | Untold) -> None:
        """Add the key of one attribute."""
        if isinstance(match, Match) and match.kind is Kind.UNIVERSAL:
            return
        first = path[0]
        if isinstance(match, Match):
            if not isinstance(first, Private) and first in COMPUTED and len(path) == 1:
                self.indexed.append(Key((first,), self._at(path), match))
                return
            number = entry_number(path)
            # What a sequence lacks is told by its items alone.
            if number is not None and (len(path) == 1 or match.kind is not Kind.EMPTY):
                self.indexed.append(Key((number,), self._at(path), match, takes_offset=match.vr == "DT"))
                if len(path) == 1 or self._sequences.count(first) == 1:
                    return
        self._add_elements(path, path[-1:], match)

    def _add_elements(self, path: Path, steps: Path, match: Match | Moments | Untold) -> None:
        self.elements.setdefault(self._at(path), ItemKeys()).add(path[:-1], steps, match)

    def _at(self, path: Path) -> int:
        """The level at which a key is asked: below patients, a study's patient is what its donor says."""
        level = level_of_path(path)
        return STUDY if level == PATIENT != self._level else level

    def _parse(self, path: Path, text: str) -> Match | Untold:
        asked, last = self._asked, path[-1]
        if not isinstance(last, Private):
            vr = COMPUTED[last][0] if last in COMPUTED else dictionary.vr_of(last)
            if vr != "UN":
                try:
                    return parse(vr, text, fuzzy=asked.fuzzy, empty_value=asked.empty_value, zone=self._zone)
                except BadQuery as failure:
                    raise BadQuery(f"{dictionary.format_path(path)}: {failure}") from None
        return Untold(text, fuzzy=asked.fuzzy, empty_value=asked.empty_value, zone=self._zone)


def _is_span(match: Match | Untold) -> bool:
    return isinstance(match, Match) and match.is_span


def _unless_universal(match: Match | Untold) -> Match | None:
    return match if isinstance(match, Match) and match.kind is not Kind.UNIVERSAL else None


@cache
def _date_and_time(path: Path) -> tuple[Path | None, Path | None]:
    """The paths of a date and of the time that goes with it, given one of them."""
    last = path[-1]
    if isinstance(last, Private) or dictionary.vr_of(last) not in ("DA", "TM"):
        return None, None
    keyword = dictionary.keyword_of(last)
    try:  # StudyDate and StudyTime, DateOfSecondaryCapture and TimeOfSecondaryCapture
        pair = (
            dictionary.tag_of(keyword.replace("Time", "Date")),
            dictionary.tag_of(keyword.replace("Date", "Time")),
        )
    except BadQuery:
        return None, None
    if [dictionary.vr_of(tag) for tag in pair] != ["DA", "TM"]:
        return None, None
    return (*path[:-1], pair[0]), (*path[:-1], pair[1])


def _parse_order(name: str) -> tuple[int, bool]:
    descending = name.startswith("-")
    path = dictionary.path_of(name.removeprefix("-"))
    first = path[0]
    if len(path) == 1 and not isinstance(first, Private) and first in COMPUTED:
        return first, descending
    number = entry_number(path)
    if number is None:
        raise BadQuery(f"{name.removeprefix('-')[:80]} is not indexed, so nothing can be sorted by it")
    return number, descending


# --- Hierarchy ---------------------------------------------------------------

_NAME_OF = {PATIENT: "patient", STUDY: "study", SERIES: "series", INSTANCE: "instance"}


def _check_hierarchy(level: int, wanted: Iterable[tuple[Path, str]], *, patient_root: bool) -> None:
    """PS3.4 C.4.1.3.1.1, Hierarchical Search Method: one value of the unique key of each level above, and no
    other key of these. Without a patient root patients are described at the level of studies.

    Raises:
        BadQuery: it is not so; the Identifier does not match the SOP Class, A900.
    """
    texts = {path: text for path, text in wanted if text.strip("* ")}
    above = [at for at in (PATIENT, STUDY, SERIES) if at < level and (at != PATIENT or patient_root)]
    for at in above:
        unique = UNIQUE_KEYS[at]
        keyword, text = dictionary.keyword_of(unique), texts.get((unique,), "")
        if not text or any(sign in text for sign in ("\\*?" if at == PATIENT else "\\*?,")):
            raise BadQuery(
                f"{keyword} must have one value in a query at the level of {_NAME_OF[level]}, or the query "
                "be relational"
            )
    for path in texts:
        at = level_of_path(path)
        if at == PATIENT and not patient_root:
            at = STUDY if level != PATIENT else PATIENT
        if at in above and path != (UNIQUE_KEYS[at],):
            raise BadQuery(
                f"{dictionary.format_path(path)} is a key of a {_NAME_OF[at]}, above the level of "
                f"{_NAME_OF[level]}; that takes a relational query"
            )
