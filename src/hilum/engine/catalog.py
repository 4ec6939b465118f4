"""Takes instances that come and go inside one Change; keeps series, studies, patients, keys and columns true.

Knows the rules of docs/architecture.md on donors, counts and patients. Commits nothing: the writer does,
and holds the commit lock around it.
"""

from __future__ import annotations

from collections.abc import Callable

from blake3 import blake3

from hilum.engine import keys, record
from hilum.engine.index import INSTANCE_KEY, SERIES_KEY, U32, Change
from hilum.engine.record import Patient, Series, Study

_UID = record.NUMBER_OF[0x00080018]
_PATIENT_ID = record.NUMBER_OF[0x00100020]
_ISSUER = record.NUMBER_OF[0x00100021]
_MODALITY = record.NUMBER_OF[0x00080060]

PATIENT_KEY_MAX = 440  # bytes of Patient ID and issuer in a key; of a longer one the end is a digest
DIGEST_SIZE = 32


def uid_of(instance_record: bytes) -> bytes:
    """SOP Instance UID of an instance record."""
    return record.raw_of(record.unpack_instance(instance_record).entries, _UID)


def series_key_name(series_uid: bytes, study: int) -> bytes:
    return series_uid + b"\0" + U32.pack(study)


def patient_key(entries: bytes, study_uid: bytes) -> bytes:
    """What makes two patients one: issuer and Patient ID; without an ID each study has its own."""
    identifier = record.text_of(entries, _PATIENT_ID).strip()
    if not identifier:
        return b"\1" + study_uid
    issuer = record.text_of(entries, _ISSUER).strip()
    key = keys.whole_text(identifier) + b"\0" + issuer.encode("utf-8", "surrogatepass")
    if len(key) > PATIENT_KEY_MAX:  # two that begin alike are still two
        key = key[: PATIENT_KEY_MAX - DIGEST_SIZE] + blake3(key).digest()
    return b"\2" + key


def patient_entries(entries: bytes) -> bytes:
    """Those of a study's entries that are its patient's."""
    return b"".join(
        record.entry_bytes(found, flags, raw)
        for found, flags, raw in record.split_entries(entries)
        if record.LEVEL_OF[found] in (0, record.PATIENT)
    )


class _OpenSeries:
    """A series that this change touches."""

    __slots__ = (
        "count",
        "donor",
        "donor_upper",
        "entries",
        "fresh",
        "lost",
        "next",
        "number",
        "prefix",
        "size",
        "study",
        "uid",
    )

    def __init__(self, study: int, number: int, uid: bytes, state: Series, *, fresh: bool) -> None:
        self.study, self.number, self.uid = study, number, uid
        self.prefix = SERIES_KEY.pack(study, number)
        self.count, self.next, self.size, self.donor, self.entries = state
        self.fresh = fresh
        self.lost = False  # its donor went
        self.donor_upper: bytes | None = None  # upper entries of a donor that came with this change


class _OpenStudy:
    __slots__ = ("before", "number", "series", "uid")

    def __init__(self, number: int, uid: bytes, before: Study | None) -> None:
        self.number, self.uid, self.before = number, uid, before
        self.series: dict[bytes, _OpenSeries] = {}


class _OpenPatient:
    """What this change does to one patient: studies before and after it."""

    __slots__ = ("gone", "here", "keys")

    def __init__(self) -> None:
        self.gone: list[Study] = []
        self.keys: set[bytes] = set()  # under which those that are gone found the patient
        self.here: list[Study] = []


class Catalog:
    """The instances, series, studies and patients of one Change.

    Put and delete the instance records that go with add() and remove(), then call finish() once.
    `read_upper` gives the patient, study and series entries of a stored instance out of its head: it is
    asked only when a donor has gone.
    """

    def __init__(self, change: Change, read_upper: Callable[[record.Instance], bytes]) -> None:
        self._change = change
        self._read_upper = read_upper
        self._studies: dict[bytes, _OpenStudy] = {}
        self._patients: dict[int, _OpenPatient] = {}
        self._columns: dict[bytes, dict[int, bytes | None]] = {}

    def add(self, study_uid: bytes, series_uid: bytes, uid: bytes, upper: bytes, size: int) -> bytes:
        """Count an instance of `size` bytes in; return the key under which the caller puts its record."""
        study = self._studies.get(study_uid) or self._study(study_uid)
        series = study.series.get(series_uid) or self._series(study, series_uid)
        if not series.lost and (not series.donor or uid < series.donor):
            series.donor, series.donor_upper = uid, upper
        number = series.next
        series.next = number + 1
        series.count += 1
        series.size += size
        return series.prefix + U32.pack(number)

    def remove(self, key: bytes, uid: bytes, size: int, study_uid: bytes, series_uid: bytes) -> None:
        """Count an instance out; the caller deletes its record before finish()."""
        study = self._study(study_uid)
        series = study.series.get(series_uid)
        if series is None:
            series = self._load_series(study, series_uid, INSTANCE_KEY.unpack(key)[1])
        series.count -= 1
        series.size -= size
        if series.donor == uid:
            series.lost = True

    def finish(self) -> None:
        """Write every series, study and patient that was touched, and what they are found by."""
        for study in self._studies.values():
            self._finish_study(study)
        for number, patient in self._patients.items():
            self._finish_patient(number, patient)
        for key, texts in self._columns.items():
            self._finish_column(key, texts)

    # Opening.

    def _study(self, uid: bytes) -> _OpenStudy:
        found = self._studies.get(uid)
        if found is not None:
            return found
        change = self._change
        number = change.get(b"study_uids", uid)
        if number is None:
            study = _OpenStudy(change.take_numbers(b"last_study"), uid, None)
            change.put(b"study_uids", uid, U32.pack(study.number))
        else:
            value = change.get(b"studies", number)
            assert value is not None, uid
            study = _OpenStudy(U32.unpack(number)[0], uid, record.unpack_study(value))
        self._studies[uid] = study
        return study

    def _series(self, study: _OpenStudy, uid: bytes) -> _OpenSeries:
        change = self._change
        name = series_key_name(uid, study.number)
        number = change.get(b"series_uids", name)
        if number is not None:
            return self._load_series(study, uid, U32.unpack(number)[0])
        taken = change.take_numbers(b"last_series")
        change.put(b"series_uids", name, U32.pack(taken))
        series = _OpenSeries(study.number, taken, uid, Series(0, 1, 0, b"", b""), fresh=True)
        study.series[uid] = series
        return series

    def _load_series(self, study: _OpenStudy, uid: bytes, number: int) -> _OpenSeries:
        value = self._change.get(b"series", SERIES_KEY.pack(study.number, number))
        assert value is not None, uid
        series = _OpenSeries(study.number, number, uid, record.unpack_series(value), fresh=False)
        study.series[uid] = series
        return series

    # Closing.

    def _finish_study(self, study: _OpenStudy) -> None:
        change, before = self._change, study.before
        for series in study.series.values():
            self._finish_series(series)
        number = U32.pack(study.number)
        rows = [record.unpack_series(value) for _, value in change.scan_prefix(b"series", number)]
        if not rows:
            change.delete(b"studies", number)
            change.delete(b"study_uids", study.uid)
            if before is not None:
                self._move(study, before, None)
            return
        donor = min(row.donor for row in rows)
        upper = self._upper_of_donor(study, donor)
        if upper is not None:
            entries = record.levels_of(upper)[0]
        else:
            assert before is not None  # a new study has its donor in this change
            entries = before.entries
        if before is not None and entries == before.entries:
            patient = before.patient
        else:
            patient = self._patient_number(entries, study.uid)
        modalities = {record.raw_of(row.entries, _MODALITY).decode("latin-1") for row in rows}
        after = Study(
            patient,
            len(rows),
            sum(row.instance_count for row in rows),
            sum(row.byte_count for row in rows),
            donor,
            tuple(sorted(modalities - {""})),
            entries,
        )
        if after != before:
            change.put(b"studies", number, record.pack_study(after))
            self._move(study, before, after)

    def _move(self, study: _OpenStudy, before: Study | None, after: Study | None) -> None:
        """Keys, columns and patients follow a study that came, changed or went."""
        change = self._change
        self._move_words(study, before, after)
        if before is not None:
            left = self._patients.setdefault(before.patient, _OpenPatient())
            left.gone.append(before)
            left.keys.add(patient_key(before.entries, study.uid))
            if after is None or after.patient != before.patient:
                change.delete(b"patient_studies", SERIES_KEY.pack(before.patient, study.number))
        if after is not None:
            self._patients.setdefault(after.patient, _OpenPatient()).here.append(after)
            if before is None or after.patient != before.patient:
                change.put(b"patient_studies", SERIES_KEY.pack(after.patient, study.number), b"")

    def _move_words(self, study: _OpenStudy, before: Study | None, after: Study | None) -> None:
        """What a study is found by; most instances that come to one change nothing but its counts."""
        if before and after and before.entries == after.entries and before.modalities == after.modalities:
            return
        change = self._change
        number = U32.pack(study.number)
        old = keys.keys_of(before, study.number, study.uid) if before is not None else set()
        new = keys.keys_of(after, study.number, study.uid) if after is not None else set()
        for key in old - new:
            change.delete(b"keys", key)
        for key in new - old:
            change.put(b"keys", key, number)
        old_texts = keys.column_texts(before.entries) if before is not None else {}
        new_texts = keys.column_texts(after.entries) if after is not None else {}
        for field in old_texts.keys() | new_texts.keys():
            if old_texts.get(field) != new_texts.get(field):
                block = self._columns.setdefault(keys.column_key(field, study.number), {})
                block[study.number] = new_texts.get(field)

    def _patient_number(self, entries: bytes, study_uid: bytes) -> int:
        key = patient_key(entries, study_uid)
        number = self._change.get(b"patient_ids", key)
        if number is not None:
            return int(U32.unpack(number)[0])
        taken = self._change.take_numbers(b"last_patient")
        self._change.put(b"patient_ids", key, U32.pack(taken))
        return taken

    def _finish_patient(self, number: int, changed: _OpenPatient) -> None:
        """Add and subtract; all studies are looked at only when the donor may have gone."""
        change = self._change
        key = U32.pack(number)
        value = change.get(b"patients", key)
        patient = record.unpack_patient(value) if value is not None else Patient(0, 0, 0, 0, b"", b"")
        here, gone = changed.here, changed.gone
        studies = patient.study_count + len(here) - len(gone)
        if studies == 0:
            change.delete(b"patients", key)
            for name in changed.keys:
                change.delete(b"patient_ids", name)
            return
        donors = [(study.donor, study.entries) for study in here]
        donor, entries = patient.donor, patient.entries
        if any(study.donor == donor for study in gone):
            donors += self._donors_of(number)
            donor, entries = min(donors)
        elif donors and (not donor or min(donors)[0] <= donor):
            donor, entries = min(donors)
        after = Patient(
            studies,
            patient.series_count + sum(s.series_count for s in here) - sum(s.series_count for s in gone),
            patient.instance_count
            + sum(s.instance_count for s in here)
            - sum(s.instance_count for s in gone),
            patient.byte_count + sum(s.byte_count for s in here) - sum(s.byte_count for s in gone),
            donor,
            patient_entries(entries),
        )
        change.put(b"patients", key, record.pack_patient(after))

    def _donors_of(self, patient: int) -> list[tuple[bytes, bytes]]:
        found = []
        for key, _ in self._change.scan_prefix(b"patient_studies", U32.pack(patient)):
            value = self._change.get(b"studies", key[4:])
            if value is not None:
                study = record.unpack_study(value)
                found.append((study.donor, study.entries))
        return found

    def _finish_column(self, key: bytes, texts: dict[int, bytes | None]) -> None:
        block = self._change.get(b"columns", key) or b""
        for number, text in texts.items():
            block = keys.set_in_block(block, number, text)
        if block:
            self._change.put(b"columns", key, block)
        else:
            self._change.delete(b"columns", key)

    def _finish_series(self, series: _OpenSeries) -> None:
        change = self._change
        if series.count == 0:
            if not series.fresh:
                change.delete(b"series", series.prefix)
            change.delete(b"series_uids", series_key_name(series.uid, series.study))
            return
        if series.lost:
            series.donor, series.donor_upper = self._next_donor(series.prefix)
        if series.donor_upper is not None:
            series.entries = record.levels_of(series.donor_upper)[1]
        state = Series(series.count, series.next, series.size, series.donor, series.entries)
        change.put(b"series", series.prefix, record.pack_series(state))

    def _next_donor(self, series_key: bytes) -> tuple[bytes, bytes]:
        """The smallest SOP Instance UID that is left in a series, and its upper entries."""
        donor, value = min(
            (uid_of(value), value) for _, value in self._change.scan_prefix(b"instances", series_key)
        )
        return donor, self._read_upper(record.unpack_instance(value))

    def _upper_of_donor(self, study: _OpenStudy, donor: bytes) -> bytes | None:
        """The study donor's upper entries; None where they are what the study has already."""
        for series in study.series.values():
            # A series that is empty now had it once: what it knows of its donor is of bytes that are gone.
            if series.count and series.donor == donor and series.donor_upper is not None:
                return series.donor_upper
        if study.before is not None and study.before.donor == donor:
            return None
        key = self._change.get(b"sop_uids", donor)
        value = self._change.get(b"instances", key) if key is not None else None
        assert value is not None, donor
        return self._read_upper(record.unpack_instance(value))
