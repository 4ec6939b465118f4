"""Takes a question over one moment of the index; gives the rows that match. Never writes.

A plan names the studies that can match, by the most telling key that has an index of its own; every key is
then held against the records, so a plan may name too many, never too few. Keys below the level ask that there
be such a series or instance. Elements that are not indexed are read from the heads, last and within the time
allowed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import date, timedelta
from functools import lru_cache
from heapq import merge
from itertools import islice
from typing import Any

from hilum import _fastparse
from hilum.dicom import json
from hilum.dicom.matching import Kind, Match, Moments, normalise_text, words_of
from hilum.dicom.values import decode_values
from hilum.engine import keys, record
from hilum.engine.catalog import patient_key
from hilum.engine.elements import OFFSET_FROM_UTC, Item, Wanted
from hilum.engine.index import INSTANCE_KEY, U32, Snapshot, after_prefix
from hilum.engine.question import (
    COMPUTED,
    LEVELS,
    MODALITIES_IN_STUDY,
    PATIENT_INSTANCES,
    PATIENT_SERIES,
    PATIENT_STUDIES,
    SERIES_INSTANCES,
    STUDY_INSTANCES,
    STUDY_SERIES,
    UNIQUE_KEYS,
    Asked,
    Include,
    Key,
    Question,
    entry_number,
    level_of_path,
    parse_include,
    parse_keys,
    parse_question,
    parted,
)
from hilum.engine.record import INSTANCE, PATIENT, SERIES, STUDY, Instance, Value
from hilum.errors import BadDicom, Corrupt

__all__ = (
    "COMPUTED",
    "LEVELS",
    "Asked",
    "Found",
    "Include",
    "Query",
    "Question",
    "Row",
    "entry_number",
    "level_of_path",
    "parse_include",
    "parse_keys",
    "parse_question",
    "parted",
)

_NUMBER = record.NUMBER_OF
_STUDY_UID = _NUMBER[0x0020000D]
_SERIES_UID = _NUMBER[0x0020000E]
_SOP_UID = _NUMBER[0x00080018]
_SERIES_NUMBER = _NUMBER[0x00200011]
_INSTANCE_NUMBER = _NUMBER[0x00200013]
_OFFSET = _NUMBER[OFFSET_FROM_UTC]

# Takes a stored instance's SOP Instance UID and an entry's number; gives what was too long for the index.
ReadLeft = Callable[[bytes, int], list[Value]]
# Takes a stored instance; gives the elements wanted of its head.
ReadItem = Callable[[Instance, Wanted], Item]


# --- Rows --------------------------------------------------------------------


class Row:
    """One patient, study, series or instance that matched."""

    __slots__ = ("_donors", "_entries", "_read_left", "computed", "key", "level")

    def __init__(
        self,
        level: int,
        key: bytes,
        entries: Sequence[bytes],
        computed: dict[int, list[Value]],
        read_left: ReadLeft,
        donors: Sequence[bytes] = (),
    ) -> None:
        self.level = level
        self.key = key  # of the record at this level
        self.computed = computed
        self._donors = donors  # SOP Instance UIDs of those whose entries these are; an instance has its own
        self._entries = entries  # from the row's own level up
        self._read_left = read_left

    def values(self, number: int) -> list[Value]:
        """The values of an indexed attribute, wherever between this level and the patient it is."""
        if number >= record.NUMBER_COUNT:
            return self.computed.get(number, [])
        for level, entries in enumerate(self._entries):
            try:
                values = record.values_of(entries, number)
            except record.LeftInHead:
                return self._read_left(self._donor(level), number)
            except BadDicom:
                return []
            if values:
                return values
        return []

    def text(self, tag: int) -> str:
        """All values of one attribute as text, joined by backslashes."""
        number = tag if tag in COMPUTED else _NUMBER.get(tag)
        values = self.values(number) if number is not None else []
        return "\\".join("" if value is None else str(value) for value in values)

    @property
    def donor(self) -> bytes:
        """SOP Instance UID of the instance that speaks for the row."""
        return self._donor(0)

    def _donor(self, level: int) -> bytes:
        if self.level == INSTANCE:
            level -= 1
        return self._donors[level] if level >= 0 else record.raw_of(self._entries[0], _SOP_UID)

    @property
    def uid(self) -> str:
        """The unique key of the row's level: a UID, or the Patient ID."""
        return self.text(UNIQUE_KEYS[self.level])

    def to_json(self, include: Iterable[int] = ()) -> dict[str, Any]:
        """DICOM JSON Model Object, PS3.18 F.2: the attributes of the row's level, the unique keys above it,
        and of those in `include` the ones that are indexed here or above.

        Patient attributes come with studies, as PS3.18 10.6.3.3 (Response) has them. An attribute that was
        asked for and that is not there is empty.
        """
        shown, expected = _shown(self.level, frozenset(include))
        document: dict[str, Any] = {key: {"vr": vr} for key, vr in expected}
        requests: list[dict[str, Any]] = []
        for position, (entries, wanted) in enumerate(zip(self._entries, shown, strict=True)):
            charset = record.raw_of(entries, record.CHARSET)
            last_nested = record.NUMBER_COUNT
            for number, flags, raw in record.split_entries(entries):
                if number not in wanted:
                    continue
                values = self._decode(position, number, flags, raw, charset)
                if number >= len(_NUMBER):  # of Request Attributes Sequence: items in order, tags ascending
                    if number <= last_nested:
                        requests.append({})
                    last_nested = number
                    requests[-1][_KEYS[number]] = json.element(record.VR_OF[number], values)
                elif values:
                    document[_KEYS[number]] = json.element(record.VR_OF[number], values)
        if requests:
            document[_REQUESTS] = {"vr": "SQ", "Value": requests}
        for tag, values in self.computed.items():
            document[json.key(tag)] = json.element(COMPUTED[tag][0], values)
        # The text is UTF-8 here, whatever it was in the file: PS3.18 F.2, DICOM JSON Model.
        document["00080005"] = {"vr": "CS", "Value": ["ISO_IR 192"]}
        return dict(sorted(document.items()))

    def _decode(self, position: int, number: int, flags: int, raw: bytes, charset: bytes) -> list[Value]:
        if flags & _fastparse.ENTRY_IN_HEAD:
            return self._read_left(self._donor(position), number)
        vr = record.VR_OF[number]
        if flags & _fastparse.ENTRY_HAS_VR:
            vr, raw = raw[:2].decode("latin-1"), raw[2:]
        try:
            return decode_values(vr, raw, charset)
        except BadDicom:
            return []


_KEYS = [json.key(tag) for tag in record.TAG_OF]
_REQUESTS = json.key(record.REQUEST_ATTRIBUTES)


@lru_cache(maxsize=256)
def _shown(level: int, include: frozenset[int]) -> tuple[list[frozenset[int]], list[tuple[str, str]]]:
    """Numbers of the entries that a row shows, for each of its records from its own level up; and (key, VR)
    of the attributes that it shows even if they are empty."""
    unique = {tag for at, tag in UNIQUE_KEYS.items() if at <= level}
    asked = {_NUMBER[tag] for tag in unique | include if tag in _NUMBER}
    shown: list[set[int]] = [set() for _ in range(max(1, level - 1))]
    for number, own in enumerate(record.LEVEL_OF):
        nested = number >= len(_NUMBER)
        mine = own == level or (own == PATIENT and level == STUDY) or (nested and own <= level)
        if number != record.CHARSET and own <= level and (mine or number in asked):
            shown[level - max(own, STUDY) if level > PATIENT else 0].add(number)
    expected = [(_KEYS[number], record.VR_OF[number]) for number in sorted(asked)]
    within = [found for found in expected if record.LEVEL_OF[_NUMBER[int(found[0], 16)]] <= level]
    return [frozenset(numbers) for numbers in shown], within


# --- Answers -----------------------------------------------------------------


class Found:
    """The rows that match, of one moment. Iterate once, and soon: until then the index keeps old pages.

    When the iteration has ended, `more` says whether there are rows that it did not give, and `warnings` has
    in words what the one who asked should know.
    """

    def __init__(
        self, question: Question, read: Callable[[], Snapshot], read_left: ReadLeft, read_item: ReadItem
    ) -> None:
        self.include = question.include
        self.warnings = list(question.warnings)
        self.more = False
        self._question = question
        self._read, self._read_left, self._read_item = read, read_left, read_item

    def __iter__(self) -> Iterator[Row]:
        question = self._question
        count = -question.offset  # of rows given; below zero while the first are left out
        with self._read() as snapshot:
            query = Query(snapshot, question, self._read_left, self._read_item)
            try:
                for row in query.rows():
                    if question.limit is not None and count >= question.limit:
                        self.more = True
                        return
                    count += 1
                    if count > 0:
                        yield row
            except TimeIsUpError as failure:
                self.more = True
                self.warnings.append(str(failure))
            if query.heads_lost:
                self.warnings.append(
                    f"{query.heads_lost:,} data sets are damaged and could not be looked into"
                )


class TimeIsUpError(Exception):
    """The time for reading heads is over."""


class Query:
    """One question, over one snapshot. rows() may be called once."""

    def __init__(
        self, snapshot: Snapshot, question: Question, read_left: ReadLeft, read_item: ReadItem
    ) -> None:
        self._snapshot = snapshot
        self._question = question
        self._level = question.level
        self._read_left = read_left
        self._read_item = read_item
        self._patient_keys = [key for key in question.keys if key.level == PATIENT]
        self._study_keys = [key for key in question.keys if key.level == STUDY]
        self._series_keys = [key for key in question.keys if key.level == SERIES]
        self._instance_keys = [key for key in question.keys if key.level == INSTANCE]
        self._elements = question.elements
        self._wanted = {
            level: Wanted({*elements.paths(), (OFFSET_FROM_UTC,)})
            for level, elements in question.elements.items()
        }
        self._asks_instances = bool(self._instance_keys) or INSTANCE in self._elements
        self._asks_series = self._asks_instances or bool(self._series_keys) or SERIES in self._elements
        self._asks_studies = self._asks_series or bool(self._study_keys) or STUDY in self._elements
        self._takes_offset = any(key.takes_offset for key in question.keys)
        self._asks_computed = any(key.number in COMPUTED for key in self._study_keys)
        self._asks_counts = any(key.number in _PATIENT_COUNTS for key in self._study_keys)
        self._seconds_left = math.inf if question.seconds_max is None else question.seconds_max
        self._heads_read = 0
        self.heads_lost = 0  # that are damaged: nobody can say whether they match

    def rows(self) -> Iterator[Row]:
        """Give the rows, all of them, in the order that was asked for.

        Without one: studies newest first (equal moments by UID), series and instances by their numbers,
        patients by ID and issuer, those without an ID first, by their study. It never depends on the order
        of arrival.

        Raises:
            TimeIsUpError: a head has to be read, and the time for that is over.
        """
        # Sorted before it is sorted: rows that `order` finds equal stand as they would without it.
        found = self._patients() if self._level == PATIENT else self._below_studies()
        if self._question.order:
            rows = list(found)
            for number, descending in reversed(self._question.order):
                rows.sort(key=lambda row: _sort_key(row, number), reverse=descending)
            found = iter(rows)
        return found

    def count(self) -> int:
        """How many rows there are. Raises as rows() does."""
        if self._question.is_universal:
            return self._snapshot.count(_TABLE_OF[self._level])
        found = self._patients() if self._level == PATIENT else self._below_studies(unordered=True)
        return sum(1 for _ in found)

    def in_series(self, key: bytes) -> tuple[Row, list[str]] | None:
        """The row of one series, and the UIDs of its instances that match; None if it has gone."""
        value = self._snapshot.get(b"series", key)
        parent = self._snapshot.get(b"studies", key[:4])
        if value is None or parent is None:
            return None
        study = record.unpack_study(parent)
        row = self._series_row(key, record.unpack_series(value), study)
        found = self._instances_of(key, self._offsets(study), in_order=True)
        return row, [record.raw_of(instance.entries, _SOP_UID).decode("latin-1") for _, instance in found]

    # Keys.

    def _holds(self, wanted: Iterable[Key], row: Row, offsets: list[Value]) -> bool:
        return all(key.match.meets(list(map(row.values, key.numbers)), offsets) for key in wanted)

    def _offsets(self, study: record.Study) -> list[Value]:
        """The offset from UTC of the data sets of a study: the one that its donor states."""
        if not self._takes_offset:
            return []
        return Row(STUDY, b"", (study.entries,), {}, self._read_left, (study.donor,)).values(_OFFSET)

    def _holds_in_head(self, level: int, donor: bytes, instance: Instance | None = None) -> bool:
        """Hold the keys of elements that are not indexed against the head of the instance that speaks."""
        elements = self._elements.get(level)
        if elements is None:
            return True
        if self._seconds_left <= 0:
            raise TimeIsUpError(
                f"the time for looking into data sets was over after {self._heads_read:,} of them; there may "
                "be more that match"
            )
        begin = time.monotonic()
        if instance is None:
            key = self._snapshot.get(b"sop_uids", donor)
            value = self._snapshot.get(b"instances", key) if key is not None else None
            if value is None:
                return False
            instance = record.unpack_instance(value)
        try:
            item = self._read_item(instance, self._wanted[level])
        except Corrupt:
            self.heads_lost += 1
            return False
        finally:
            self._heads_read += 1
            self._seconds_left -= time.monotonic() - begin
        return elements.matches(item)

    # Studies.

    def _below_studies(self, *, unordered: bool = False) -> Iterator[Row]:
        for number, study in self._studies(unordered=unordered):
            offsets = self._offsets(study)
            if self._level == STUDY:
                if self._has_below(number, offsets):
                    yield self._study_row(number, study)
                continue
            for key, series in self._series_of(number, offsets):
                if self._level == SERIES:
                    if self._has_instance(key, offsets):
                        yield self._series_row(key, series, study)
                    continue
                for instance_key, instance in self._instances_of(key, offsets, in_order=not unordered):
                    entries = (instance.entries, series.entries, study.entries)
                    donors = (series.donor, study.donor)
                    yield Row(INSTANCE, instance_key, entries, {}, self._read_left, donors)

    def _studies(self, *, unordered: bool = False) -> Iterator[tuple[int, record.Study]]:
        """The studies that match, newest first unless the caller needs no order."""
        plan = self._plan()
        if plan is None or (not unordered and len(plan) > _WALK_AT):
            for number in self._by_date(plan):
                study = self._match_study(number)
                if study is not None:
                    yield number, study
            return
        found = ((number, study) for number in sorted(plan) if (study := self._match_study(number)))
        if unordered:
            yield from found
            return
        dated = [(_date_order(study), number, study) for number, study in found]
        dated.sort(key=lambda row: row[0], reverse=True)
        for _, number, study in dated:
            yield number, study

    def _match_study(self, number: int) -> record.Study | None:
        value = self._snapshot.get(b"studies", U32.pack(number))
        if value is None:
            return None
        study = record.unpack_study(value)
        if self._study_keys:
            row = self._study_row(number, study, computed=self._asks_computed)
            if not self._holds(self._study_keys, row, self._offsets(study)):
                return None
        return study if self._holds_in_head(STUDY, study.donor) else None

    def _has_below(self, study: int, offsets: list[Value]) -> bool:
        if not self._asks_series:
            return True
        return any(self._has_instance(key, offsets) for key, _ in self._series_of(study, offsets))

    def _has_instance(self, series_key: bytes, offsets: list[Value]) -> bool:
        return not self._asks_instances or any(True for _ in self._instances_of(series_key, offsets))

    def _series_of(self, study: int, offsets: list[Value]) -> Iterator[tuple[bytes, record.Series]]:
        """The series of a study that match, by Series Number, then UID."""
        found = []
        for key, value in self._snapshot.scan_prefix(b"series", U32.pack(study)):
            series = record.unpack_series(value)
            computed: dict[int, list[Value]] = {SERIES_INSTANCES: [series.instance_count]}
            row = Row(SERIES, key, (series.entries,), computed, self._read_left, (series.donor,))
            if self._holds(self._series_keys, row, offsets):
                found.append((key, series))
        if len(found) > 1:
            found.sort(key=lambda row: _number_order(row[1].entries, _SERIES_NUMBER, _SERIES_UID))
        for key, series in found:
            if self._holds_in_head(SERIES, series.donor):
                yield key, series

    def _instances_of(
        self, series_key: bytes, offsets: list[Value], *, in_order: bool = False
    ) -> Iterable[tuple[bytes, Instance]]:
        found = self._matching_instances(series_key, offsets)
        if not in_order:
            return found
        return sorted(found, key=lambda row: _number_order(row[1].entries, _INSTANCE_NUMBER, _SOP_UID))

    def _matching_instances(
        self, series_key: bytes, offsets: list[Value]
    ) -> Iterator[tuple[bytes, Instance]]:
        only = self._instance_key(series_key)
        for key, value in self._snapshot.scan_prefix(b"instances", series_key) if only is None else only:
            instance = record.unpack_instance(value)
            row = Row(INSTANCE, key, (instance.entries,), {}, self._read_left)
            if self._holds(self._instance_keys, row, offsets) and self._holds_in_head(
                INSTANCE, b"", instance
            ):
                yield key, instance

    def _instance_key(self, series_key: bytes) -> list[tuple[bytes, bytes]] | None:
        """The instances that the SOP Instance UIDs asked for name in this series; None where none are."""
        for wanted in self._instance_keys:
            if wanted.number == _SOP_UID and isinstance(wanted.match, Match) and wanted.match.choices:
                found = []
                for uid in dict.fromkeys(wanted.match.choices):
                    key = self._snapshot.get(b"sop_uids", uid.encode("latin-1", "replace"))
                    value = self._snapshot.get(b"instances", key) if key is not None else None
                    if key is not None and value is not None and key.startswith(series_key):
                        found.append((key, value))
                return found
        return None

    # Patients.

    def _patients(self) -> Iterator[Row]:
        """The patients that match, by ID: their own keys are held against what their own donor says, and
        below that there must be a study that matches. So a row shows what it was found by."""
        snapshot = self._snapshot
        plan = self._plan()
        if plan is None:
            numbers: Iterable[bytes] = (value for _, value in snapshot.scan(b"patient_ids"))
        else:  # the donor is that of one of its studies, so these name every patient that can match
            values = (snapshot.get(b"studies", U32.pack(number)) for number in plan)
            found = {record.unpack_study(value).patient for value in values if value is not None}
            numbers = sorted(map(U32.pack, found), key=self._patient_key)
        for number in numbers:
            value = snapshot.get(b"patients", number)
            if value is None:
                continue
            patient = record.unpack_patient(value)
            donors = (patient.donor,)
            row = Row(PATIENT, number, (patient.entries,), _counts_of(patient), self._read_left, donors)
            if (
                self._holds(self._patient_keys, row, [])
                and self._holds_in_head(PATIENT, patient.donor)
                and self._has_study(number)
            ):
                yield row

    def _patient_key(self, number: bytes) -> bytes:
        """Where a patient stands in the order of IDs: its key there."""
        value = self._snapshot.get(b"patients", number)
        study = next(self._snapshot.scan_prefix(b"patient_studies", number), None)
        parent = self._snapshot.get(b"studies", study[0][4:]) if study is not None else None
        if value is None or parent is None:
            return b""
        uid = record.raw_of(record.unpack_study(parent).entries, _STUDY_UID)
        return patient_key(record.unpack_patient(value).entries, uid)

    def _has_study(self, patient: bytes) -> bool:
        if not self._asks_studies:
            return True
        for key, _ in self._snapshot.scan_prefix(b"patient_studies", patient):
            number = U32.unpack(key[4:])[0]
            study = self._match_study(number)
            if study is not None and self._has_below(number, self._offsets(study)):
                return True
        return False

    # Rows.

    def _study_row(self, number: int, study: record.Study, *, computed: bool = True) -> Row:
        found: dict[int, list[Value]] = {}
        if computed:
            found[MODALITIES_IN_STUDY] = list(study.modalities)
            found[STUDY_SERIES], found[STUDY_INSTANCES] = [study.series_count], [study.instance_count]
        if self._asks_counts:
            value = self._snapshot.get(b"patients", U32.pack(study.patient))
            found |= _counts_of(record.unpack_patient(value)) if value is not None else {}
        return Row(STUDY, U32.pack(number), (study.entries,), found, self._read_left, (study.donor,))

    def _series_row(self, key: bytes, series: record.Series, study: record.Study) -> Row:
        computed: dict[int, list[Value]] = {SERIES_INSTANCES: [series.instance_count]}
        donors = (series.donor, study.donor)
        return Row(SERIES, key, (series.entries, study.entries), computed, self._read_left, donors)

    # Plans.

    def _plan(self) -> set[int] | None:
        """Numbers of the studies that can match; None for all of them, which are best taken by date."""
        by_number = {key.number: key.match for key in self._question.keys if isinstance(key.match, Match)}
        for number, by_uid in (
            (_STUDY_UID, self._by_study_uid),
            (_SOP_UID, self._by_sop_uid),
            (_SERIES_UID, self._by_series_uid),
        ):
            match = by_number.get(number)
            if match is not None and match.choices:
                return {found for uid in match.choices for found in by_uid(uid.encode("latin-1", "replace"))}
        for number in _KEYED_BY_WEIGHT:
            match = by_number.get(number)
            if match is not None and match.choices:
                return self._odd(number) | {
                    found
                    for choice in match.choices
                    for found in self._numbers(keys.key_prefix(number, keys.key_text(choice)))
                }
        for number in _KEYED_BY_WEIGHT:
            match = by_number.get(number)
            if match is not None and match.kind == Kind.WILDCARD and len(match.literal_prefix) > 1:
                prefix = bytes((number,)) + keys.key_text(match.literal_prefix)
                found = self._unless_many(self._numbers(prefix))
                if found is not None:
                    return self._odd(number) | found
        begin, end = self._span()
        if begin is not None or end is not None:
            dated = set(islice(self._dated(begin, end), _WALK_AT + 1))
            if len(dated) <= _WALK_AT:
                return self._odd(keys.STUDY_DATE) | {U32.unpack(value)[0] for _, value in dated}
        for number in keys.COLUMNS:
            match = by_number.get(number)
            if match is not None and match.kind is not Kind.EMPTY:
                found = self._unless_many(self._by_column(number, match))
                if found is not None:
                    return found
        match = by_number.get(MODALITIES_IN_STUDY) or by_number.get(keys.MODALITY)
        if match is not None and match.choices:
            prefixes = (keys.key_prefix(keys.MODALITY, keys.key_text(choice)) for choice in match.choices)
            return self._unless_many(number for prefix in prefixes for number in self._numbers(prefix))
        return None

    def _unless_many(self, numbers: Iterable[int]) -> set[int] | None:
        """A plan; None where it names so many studies that some rows are found sooner without it."""
        if self._question.limit is None:
            return set(numbers)
        many = max(_WALK_AT, self._snapshot.count(b"studies") // 20)
        found = set(islice(numbers, many + 1))
        return found if len(found) <= many else None

    def _odd(self, field: int) -> set[int]:
        """Studies whose values of a field no key tells."""
        return set(self._numbers(keys.key_prefix(field, keys.ODD)))

    def _numbers(self, prefix: bytes) -> Iterator[int]:
        for _, value in self._snapshot.scan_prefix(b"keys", prefix):
            yield U32.unpack(value)[0]

    def _span(self) -> tuple[str | None, str | None]:
        """The first and the last Study Date that can match."""
        for key in self._question.keys:
            match = key.match.date if isinstance(key.match, Moments) else key.match
            if key.number == keys.STUDY_DATE and match is not None:
                if not key.takes_offset:
                    return match.low, match.high
                # In another time zone it is another day.
                return _day_beside(match.low, -2), _day_beside(match.high, 2)
        return None, None

    def _dated(self, low: str | None, high: str | None) -> Iterator[tuple[bytes, bytes]]:
        """The keys by date of the studies between two dates, the newest first, and their numbers."""
        field = bytes((keys.STUDY_DATE,))
        end = after_prefix(field + (high.encode() if high is not None else b""))
        odd = keys.key_prefix(keys.STUDY_DATE, keys.ODD)
        for key, value in self._snapshot.scan(b"keys", field + (low or "").encode(), end, reverse=True):
            if not key.startswith(odd):  # it has a key of its moment too
                yield key, value

    def _by_date(self, only: set[int] | None) -> Iterator[int]:
        """The studies that can match by their date, the newest first; of these only, if there are any."""
        low, high = self._span()
        found: Iterable[tuple[bytes, bytes]] = self._dated(low, high)
        odd: set[bytes] = set()
        if low is not None or high is not None:
            odd = {U32.pack(number) for number in self._odd(keys.STUDY_DATE)}
            studies = ((self._snapshot.get(b"studies", number), number) for number in odd)
            strays = [(_date_order(record.unpack_study(value)), number) for value, number in studies if value]
            found = merge(
                (row for row in found if row[1] not in odd), sorted(strays, reverse=True), reverse=True
            )
        for _, value in found:
            number = U32.unpack(value)[0]
            if only is None or number in only:
                yield number

    def _by_study_uid(self, uid: bytes) -> Iterator[int]:
        found = self._snapshot.get(b"study_uids", uid)
        if found is not None:
            yield U32.unpack(found)[0]

    def _by_sop_uid(self, uid: bytes) -> Iterator[int]:
        found = self._snapshot.get(b"sop_uids", uid)
        if found is not None:
            yield INSTANCE_KEY.unpack(found)[0]

    def _by_series_uid(self, uid: bytes) -> Iterator[int]:
        for key, _ in self._snapshot.scan_prefix(b"series_uids", uid + b"\0"):
            yield U32.unpack(key[-4:])[0]

    def _by_column(self, number: int, match: Match) -> Iterator[int]:
        """Studies whose text holds the longest literal of a pattern, or a word that is like the name's."""
        literal = keys.column_form(match.literal)
        for block_key, block in self._snapshot.scan_prefix(b"columns", bytes((number,))):
            first = keys.COLUMN_KEY.unpack(block_key)[1] * keys.BLOCK_STUDIES
            parts = [literal]
            if match.kind is Kind.FUZZY:
                words = set(words_of(keys.texts_of_block(block)))
                parts += map(keys.column_form, match.telling_words(words))
            for part in parts:
                for slot, _ in keys.search_block(block, part):
                    yield first + slot


# A plan of more studies than these is walked through by date, so that the first rows come at once.
_WALK_AT = 2_000

_KEYED_BY_WEIGHT = (
    _NUMBER[0x00080050],  # Accession Number
    keys.PATIENT_ID,
    keys.PATIENT_NAME,
    _NUMBER[0x00200010],  # Study ID
    _NUMBER[0x00080090],  # Referring Physician's Name
)
_TABLE_OF = {PATIENT: b"patients", STUDY: b"studies", SERIES: b"series", INSTANCE: b"instances"}
_PATIENT_COUNTS = (PATIENT_STUDIES, PATIENT_SERIES, PATIENT_INSTANCES)


def _counts_of(patient: record.Patient) -> dict[int, list[Value]]:
    counts = patient.study_count, patient.series_count, patient.instance_count
    return {tag: [count] for tag, count in zip(_PATIENT_COUNTS, counts, strict=True)}


def _day_beside(text: str | None, days: int) -> str | None:
    """A day some days later; None for no bound, also where the calendar ends."""
    if text is None:
        return None
    try:
        day = date(int(text[:4]), int(text[4:6]), int(text[6:])) + timedelta(days=days)
    except (ValueError, OverflowError):
        return None
    return day.isoformat().replace("-", "")


def _date_order(study: record.Study) -> bytes:
    return keys.date_key(study.entries, record.raw_of(study.entries, _STUDY_UID))


def _number_order(entries: bytes, number: int, uid: int) -> tuple[bool, float, bytes]:
    """By an IS value; those without one come last."""
    value = _finite(record.raw_of(entries, number))
    return value is None, value or 0.0, record.raw_of(entries, uid)


def _sort_key(row: Row, number: int) -> tuple[int, float, str]:
    """Absent values first, numbers as numbers, text in its normal form."""
    values = row.values(number)
    value = values[0] if values else None
    if value is None:
        return 0, 0.0, ""
    if isinstance(value, int | float):
        finite = _finite(value)
        return (2, 0.0, str(value)) if finite is None else (1, finite, "")
    vr = COMPUTED[number][0] if number in COMPUTED else record.VR_OF[number]
    return 2, 0.0, normalise_text(vr, value)


def _finite(value: bytes | float) -> float | None:
    """A number that can be put in order."""
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
