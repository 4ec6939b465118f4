"""Takes a level and matching keys; gives the rows that match, out of the index alone. Never writes.

One engine call for every front end. A plan names the studies that can match, by the most telling key that
has an index of its own; every key is then held against the records, so a plan may name too many, never too
few. Keys below the level ask that there be such a series or instance.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

from hilum.dicom import dictionary, json
from hilum.dicom.matching import Kind, Match, normalise_text, parse
from hilum.engine import keys, record
from hilum.engine.index import INSTANCE_KEY, U32, Snapshot, after_prefix
from hilum.engine.record import INSTANCE, PATIENT, SERIES, STUDY, Value
from hilum.errors import BadDicom, BadQuery

LEVELS = {"patients": PATIENT, "studies": STUDY, "series": SERIES, "instances": INSTANCE}

_NUMBER = record.NUMBER_OF
_STUDY_UID = _NUMBER[0x0020000D]
_SERIES_UID = _NUMBER[0x0020000E]
_SOP_UID = _NUMBER[0x00080018]
_SERIES_NUMBER = _NUMBER[0x00200011]
_INSTANCE_NUMBER = _NUMBER[0x00200013]

# Attributes that no instance has: the index counts or collects them.
MODALITIES_IN_STUDY = 0x00080061
COMPUTED = {
    MODALITIES_IN_STUDY: ("CS", STUDY),
    0x00201200: ("IS", PATIENT),  # Number of Patient Related Studies
    0x00201202: ("IS", PATIENT),  # ... Series
    0x00201204: ("IS", PATIENT),  # ... Instances
    0x00201206: ("IS", STUDY),  # Number of Study Related Series
    0x00201208: ("IS", STUDY),  # ... Instances
    0x00201209: ("IS", SERIES),  # Number of Series Related Instances
}
UNIQUE_KEYS = {PATIENT: 0x00100020, STUDY: 0x0020000D, SERIES: 0x0020000E, INSTANCE: 0x00080018}


class Key(NamedTuple):
    """One matching key, with the place where its attribute is indexed."""

    number: int  # of the entry; -1 for Modalities in Study
    level: int
    text: str
    match: Match


def parse_path(name: str) -> tuple[int, ...]:
    """Tags of an attribute as users name it: "PatientName", "00100010", "RequestAttributesSequence.00400009".

    Raises:
        BadQuery: no such keyword, or not a tag.
    """
    return tuple(dictionary.tag_of(part) for part in name.split("."))


def entry_number(path: tuple[int, ...]) -> int | None:
    """The entry under which an attribute is indexed, None where it is not."""
    if len(path) == 1:
        return _NUMBER.get(path[0])
    if len(path) == 2 and path[0] == record.REQUEST_ATTRIBUTES:
        return record.NESTED_NUMBER_OF.get(path[1])
    return None


def parse_keys(pairs: Iterable[tuple[str, str]]) -> list[Key]:
    """Turn NAME=VALUE pairs into keys; universal ones ("", "*") are left out.

    Raises:
        BadQuery: an unknown name, one that is not indexed, or a value that its VR can't hold.
    """
    found = []
    for name, text in pairs:
        path = parse_path(name)
        if path == (MODALITIES_IN_STUDY,):
            match = parse("CS", text)
            if match.kind != Kind.UNIVERSAL:
                found.append(Key(-1, STUDY, text, match))
            continue
        number = entry_number(path)
        if number is None:
            shown = ".".join(dictionary.keyword_of(tag) or dictionary.format_tag(tag) for tag in path)
            raise BadQuery(f"{shown} is not indexed, so it can't be a key")
        match = parse(record.VR_OF[number], text)
        if match.kind != Kind.UNIVERSAL:
            found.append(Key(number, record.LEVEL_OF[number] or INSTANCE, text, match))
    return found


# Takes a stored instance's SOP Instance UID and an entry's number; gives what was too long for the index.
ReadLeft = Callable[[bytes, int], list[Value]]


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
        if tag in self.computed:
            values = self.computed[tag]
        else:
            number = _NUMBER.get(tag)
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

    def attributes(self, include: Iterable[tuple[int, ...]] = ()) -> dict[int, tuple[str, list[Value]]]:
        """tag → (VR, values): the attributes of the row's level, the unique keys above it, and `include`.

        Patient attributes come with studies, as PS3.18 10.6.3.3 (Response) has them.
        """
        found: dict[int, tuple[str, list[Value]]] = {}
        wanted = {(tag,) for level, tag in UNIQUE_KEYS.items() if level <= self.level} | set(include)
        for number, tag in enumerate(record.TAG_OF):
            own = record.LEVEL_OF[number]
            path = (record.REQUEST_ATTRIBUTES, tag) if number >= len(_NUMBER) else (tag,)
            mine = own == self.level or (own == PATIENT and self.level == STUDY)
            if len(path) == 1 and (mine or own == 0 or path in wanted):
                values = self.values(number)
                if values or path in wanted:
                    found[tag] = self._vr(number), values
        for tag, values in self.computed.items():
            found[tag] = COMPUTED[tag][0], values
        return dict(sorted(found.items()))

    def _vr(self, number: int) -> str:
        return record.VR_OF[number]

    def to_json(self, include: Iterable[tuple[int, ...]] = ()) -> dict[str, Any]:
        """DICOM JSON Model Object, PS3.18 F.2."""
        found = self.attributes(include)
        document: dict[str, Any] = {
            json.key(tag): json.element(vr, values) for tag, (vr, values) in found.items()
        }
        if self.level >= SERIES:
            requests = self._requests()
            if requests:
                document[json.key(record.REQUEST_ATTRIBUTES)] = {"vr": "SQ", "Value": requests}
        # The text is UTF-8 here, whatever it was in the file: PS3.18 F.2, DICOM JSON Model.
        document["00080005"] = {"vr": "CS", "Value": ["ISO_IR 192"]}
        return dict(sorted(document.items()))

    def _requests(self) -> list[dict[str, Any]]:
        columns = {tag: self.values(number) for tag, number in record.NESTED_NUMBER_OF.items()}
        count = max(map(len, columns.values()))
        return [
            {
                json.key(tag): json.element("SH", values[index : index + 1])
                for tag, values in columns.items()
                if index < len(values)
            }
            for index in range(count)
        ]


class Query:
    """One question, over one snapshot. rows() may be called once."""

    def __init__(
        self,
        snapshot: Snapshot,
        level: int,
        wanted: Sequence[Key],
        read_left: ReadLeft,
    ) -> None:
        self._snapshot = snapshot
        self._level = level
        self._read_left = read_left
        self._study_keys = [key for key in wanted if key.level <= STUDY]
        self._series_keys = [key for key in wanted if key.level == SERIES]
        self._instance_keys = [key for key in wanted if key.level == INSTANCE]
        self._wanted = wanted

    def rows(
        self, *, limit: int | None = None, offset: int = 0, order: Sequence[tuple[int, bool]] = ()
    ) -> Iterator[Row]:
        """Give the rows, `order` being (entry number, descending) of the attributes to sort by; the number of
        a computed one is its tag.

        Without an order: studies newest first (equal moments by UID), series and instances by their
        numbers, patients by ID. It never depends on the order of arrival.
        """
        # Sorted before it is sorted: rows that `order` finds equal stand as they would without it.
        found = self._patients() if self._level == PATIENT else self._below_studies()
        if order:
            rows = list(found)
            for number, descending in reversed(order):
                rows.sort(key=lambda row: _sort_key(row, number), reverse=descending)
            found = iter(rows)
        end = sys.maxsize if limit is None else min(offset + limit, sys.maxsize)
        yield from islice(found, min(offset, end), end)

    def in_series(self, key: bytes) -> tuple[Row, list[str]] | None:
        """The row of one series, and the UIDs of its instances that match; None if it has gone."""
        value = self._snapshot.get(b"series", key)
        parent = self._snapshot.get(b"studies", key[:4])
        if value is None or parent is None:
            return None
        row = self._series_row(key, record.unpack_series(value), record.unpack_study(parent))
        found = self._instances_of(key, in_order=True)
        return row, [record.raw_of(instance.entries, _SOP_UID).decode("latin-1") for _, instance in found]

    # Studies.

    def _below_studies(self) -> Iterator[Row]:
        for number, study in self._studies(unordered=False):
            if self._level == STUDY:
                if self._has_below(number):
                    yield self._study_row(number, study)
                continue
            series_rows = self._series_of(number)
            for key, series in series_rows:
                if self._level == SERIES:
                    if not self._instance_keys or any(True for _ in self._instances_of(key)):
                        yield self._series_row(key, series, study)
                    continue
                for instance_key, instance in self._instances_of(key, in_order=True):
                    entries = (instance.entries, series.entries, study.entries)
                    donors = (series.donor, study.donor)
                    yield Row(INSTANCE, instance_key, entries, {}, self._read_left, donors)

    def _studies(self, *, unordered: bool) -> Iterator[tuple[int, record.Study]]:
        """The studies that match, newest first unless the caller needs no order."""
        plan = self._plan()
        if plan is None:
            candidates: Iterable[int] = self._by_date()
        elif unordered:
            candidates = sorted(plan)
        else:
            found = [(number, study) for number in sorted(plan) if (study := self._match_study(number))]
            found.sort(key=lambda row: _date_order(row[1]), reverse=True)
            yield from found
            return
        for number in candidates:
            study = self._match_study(number)
            if study is not None:
                yield number, study

    def _match_study(self, number: int) -> record.Study | None:
        value = self._snapshot.get(b"studies", U32.pack(number))
        if value is None:
            return None
        study = record.unpack_study(value)
        row = Row(STUDY, U32.pack(number), (study.entries,), {}, self._read_left, (study.donor,))
        for key in self._study_keys:
            values: Sequence[Value] = study.modalities if key.number < 0 else row.values(key.number)
            if not key.match.matches(values):
                return None
        return study

    def _has_below(self, study: int) -> bool:
        if not self._series_keys and not self._instance_keys:
            return True
        for key, _ in self._series_of(study):
            if not self._instance_keys or any(True for _ in self._instances_of(key)):
                return True
        return False

    def _series_of(self, study: int) -> list[tuple[bytes, record.Series]]:
        """The series of a study that match, by Series Number, then UID."""
        found = []
        for key, value in self._snapshot.scan_prefix(b"series", U32.pack(study)):
            series = record.unpack_series(value)
            row = Row(SERIES, key, (series.entries,), {}, self._read_left, (series.donor,))
            if all(wanted.match.matches(row.values(wanted.number)) for wanted in self._series_keys):
                found.append((key, series))
        if len(found) > 1:
            found.sort(key=lambda row: _number_order(row[1].entries, _SERIES_NUMBER, _SERIES_UID))
        return found

    def _instances_of(
        self, series_key: bytes, *, in_order: bool = False
    ) -> Iterable[tuple[bytes, record.Instance]]:
        found = self._matching_instances(series_key)
        if not in_order:
            return found
        return sorted(found, key=lambda row: _number_order(row[1].entries, _INSTANCE_NUMBER, _SOP_UID))

    def _matching_instances(self, series_key: bytes) -> Iterator[tuple[bytes, record.Instance]]:
        only = self._instance_key(series_key)
        for key, value in self._snapshot.scan_prefix(b"instances", series_key) if only is None else only:
            instance = record.unpack_instance(value)
            row = Row(INSTANCE, key, (instance.entries,), {}, self._read_left)
            if all(wanted.match.matches(row.values(wanted.number)) for wanted in self._instance_keys):
                yield key, instance

    def _instance_key(self, series_key: bytes) -> list[tuple[bytes, bytes]] | None:
        """The instances that the SOP Instance UIDs asked for name in this series; None where none are."""
        for wanted in self._instance_keys:
            if wanted.number == _SOP_UID and wanted.match.choices:
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
        snapshot = self._snapshot
        if not self._wanted:
            numbers: Iterable[int] = [U32.unpack(key)[0] for key, _ in snapshot.scan(b"patients")]
        else:
            numbers = {
                study.patient for number, study in self._studies(unordered=True) if self._has_below(number)
            }
        rows = []
        for number in numbers:
            value = snapshot.get(b"patients", U32.pack(number))
            if value is None:
                continue
            patient = record.unpack_patient(value)
            computed: dict[int, list[Value]] = {
                0x00201200: [patient.study_count],
                0x00201202: [patient.series_count],
                0x00201204: [patient.instance_count],
            }
            donors = (patient.donor,)
            rows.append(Row(PATIENT, U32.pack(number), (patient.entries,), computed, self._read_left, donors))
        rows.sort(key=lambda row: (row.text(0x00100020), row.text(0x00100021), row.donor))
        return iter(rows)

    # Rows.

    def _study_row(self, number: int, study: record.Study) -> Row:
        computed: dict[int, list[Value]] = {
            MODALITIES_IN_STUDY: list(study.modalities),
            0x00201206: [study.series_count],
            0x00201208: [study.instance_count],
        }
        return Row(STUDY, U32.pack(number), (study.entries,), computed, self._read_left, (study.donor,))

    def _series_row(self, key: bytes, series: record.Series, study: record.Study) -> Row:
        computed: dict[int, list[Value]] = {0x00201209: [series.instance_count]}
        donors = (series.donor, study.donor)
        return Row(SERIES, key, (series.entries, study.entries), computed, self._read_left, donors)

    # Plans.

    def _plan(self) -> set[int] | None:
        """Numbers of the studies that can match; None for all of them, which are best taken by date."""
        by_number = {key.number: key for key in self._wanted}
        for number, by_uid in (
            (_STUDY_UID, self._by_study_uid),
            (_SOP_UID, self._by_sop_uid),
            (_SERIES_UID, self._by_series_uid),
        ):
            key = by_number.get(number)
            if key is not None and key.match.choices:
                return {
                    found for uid in key.match.choices for found in by_uid(uid.encode("latin-1", "replace"))
                }
        for number in _KEYED_BY_WEIGHT:
            key = by_number.get(number)
            if key is not None and key.match.choices:
                return self._odd(number) | {
                    found
                    for choice in key.match.choices
                    for found in self._numbers(keys.key_prefix(number, keys.key_text(choice)))
                }
        for number in _KEYED_BY_WEIGHT:
            key = by_number.get(number)
            if key is not None and key.match.kind == Kind.WILDCARD and len(key.match.literal_prefix) > 1:
                prefix = bytes((number,)) + keys.key_text(key.match.literal_prefix)
                return self._odd(number) | set(self._numbers(prefix))
        date = by_number.get(keys.STUDY_DATE)
        if date is not None and (date.match.low is not None or date.match.high is not None):
            low, high = date.match.low or "", date.match.high
            begin = bytes((keys.STUDY_DATE,)) + low.encode()
            end = after_prefix(bytes((keys.STUDY_DATE,)) + (high.encode() if high is not None else b""))
            dated = {U32.unpack(value)[0] for _, value in self._snapshot.scan(b"keys", begin, end)}
            return self._odd(keys.STUDY_DATE) | dated
        for number in keys.COLUMNS:
            key = by_number.get(number)
            if key is not None:
                return set(self._by_column(key))
        modality = by_number.get(-1) or by_number.get(keys.MODALITY)
        if modality is not None and modality.match.choices:
            return {
                found
                for choice in modality.match.choices
                for found in self._numbers(keys.key_prefix(keys.MODALITY, keys.key_text(choice)))
            }
        return None

    def _odd(self, field: int) -> set[int]:
        """Studies whose values of a field no key tells."""
        return set(self._numbers(keys.key_prefix(field, keys.ODD)))

    def _numbers(self, prefix: bytes) -> Iterator[int]:
        for _, value in self._snapshot.scan_prefix(b"keys", prefix):
            yield U32.unpack(value)[0]

    def _by_date(self) -> Iterator[int]:
        odd = keys.key_prefix(keys.STUDY_DATE, keys.ODD)
        for key, value in self._snapshot.scan_prefix(b"keys", bytes((keys.STUDY_DATE,)), reverse=True):
            if not key.startswith(odd):  # it has a key of its moment too
                yield U32.unpack(value)[0]

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

    def _by_column(self, key: Key) -> Iterator[int]:
        """Studies whose text holds the longest literal of a pattern."""
        vr = record.VR_OF[key.number]
        runs = [
            run.encode("utf-8", "surrogatepass").replace(b"\n", b" ")  # as it is in a column
            for piece in key.text.split("\\")
            for run in [max(re.split(r"[*?^=]", normalise_text(vr, piece)), key=len)]
        ]
        literal = runs[0] if len(runs) == 1 else b""
        prefix = bytes((key.number,))
        for block_key, block in self._snapshot.scan_prefix(b"columns", prefix):
            first = keys.COLUMN_KEY.unpack(block_key)[1] * keys.BLOCK_STUDIES
            for slot, _ in keys.search_block(block, literal):
                yield first + slot


_KEYED_BY_WEIGHT = (
    _NUMBER[0x00080050],  # Accession Number
    keys.PATIENT_ID,
    keys.PATIENT_NAME,
    _NUMBER[0x00200010],  # Study ID
    _NUMBER[0x00080090],  # Referring Physician's Name
)


def _date_order(study: record.Study) -> bytes:
    return keys.date_key(study.entries, record.raw_of(study.entries, _STUDY_UID))


def _number_order(entries: bytes, number: int, uid: int) -> tuple[bool, float, bytes]:
    """By an IS value; those without one come last."""
    value = _finite(record.raw_of(entries, number))
    return value is None, value or 0.0, record.raw_of(entries, uid)


def _sort_key(row: Row, number: int) -> tuple[int, float, str]:
    """Absent values first, numbers as numbers, text in its normal form."""
    values = row.computed.get(number, []) if number in COMPUTED else row.values(number)
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
