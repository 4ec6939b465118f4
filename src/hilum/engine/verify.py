"""Takes an open store; proves its bytes and its index against each other, and says what does not fit.

Mends nothing. What it finds rotten it marks in the index (unless told not to), so that the same object sent
again is stored again instead of taken for a duplicate.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

from isal.isal_zlib import crc32, crc32_combine

from hilum.engine import catalog, header, keys, ledger, packs, record, replay
from hilum.engine.index import U32, PackState, Snapshot, pack_place
from hilum.engine.packs import BULK_PACK, FILE_PACK, HEAD_PACK
from hilum.engine.record import Head, Instance
from hilum.engine.store import Store
from hilum.errors import Corrupt, HilumError, StoreLocked


class Problem(NamedTuple):
    """Something that does not fit."""

    what: str
    where: str  # a SOP Instance UID, a pack, a digest
    mend: str  # what would mend it


class Verified(NamedTuple):
    """What was looked at."""

    instances: int
    blobs: int
    bytes: int  # that were read
    problems: int


def verify(
    store: Store,
    *,
    quick: bool = False,
    mark: bool = True,
    on_problem: Callable[[Problem], None],
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Verified:
    """Check a store. `quick` reads heads but no blobs; `on_progress` gets bytes done and in all.

    Raises:
        StoreLocked: a compaction is at work, so that packs go while they are looked at.
    """
    away = store.folder.lock_compaction(shared=True)
    if away is None:
        raise StoreLocked(f"{store.path} is being compacted; verify it afterwards")
    try:
        return _Verify(store, quick, on_problem, on_progress).run(mark and not store.read_only)
    finally:
        os.close(away)


class _Verify:
    def __init__(
        self,
        store: Store,
        quick: bool,
        on_problem: Callable[[Problem], None],
        on_progress: Callable[[int, int], None],
    ) -> None:
        self._store = store
        self._quick = quick
        self._tell = on_problem
        self._on_progress = on_progress
        self._count = 0
        self._bytes = 0
        self._total = 0
        self._bad_places: list[bytes] = []
        self._bad_uids: list[bytes] = []
        self._foreign: set[int] = set()  # packs that are gone, or whose header is not theirs
        self._salts: dict[int, int] = {}
        self._blobs = 0
        self._live = 0

    def run(self, mark: bool) -> Verified:
        with self._store.index.read() as snapshot:
            states = {n: state for n, state in snapshot.packs().items() if not state.dropped}
            files = {file.number: file for file in packs.list_packs(self._store.folder.packs)}
            self._total = sum(state.end for state in states.values())
            for number, state in sorted(states.items()):
                file = files.get(number)
                if file is None:
                    self._foreign.add(number)
                    again = "send its objects again, or restore the file from a backup"
                    self._problem("the file is gone", packs.pack_name(number, state.kind), again)
                else:
                    self._check_pack(snapshot, file, state.end)
            self._check_places(snapshot, self._ends_of(files, states))
            self._check_instances(snapshot)
            self._check_heads(snapshot, files, states)
            self._check_levels(snapshot)
        if mark and (self._bad_places or self._bad_uids):
            self._mark()
        self._on_progress(self._total, self._total)
        return Verified(self._live, self._blobs, self._bytes, self._count)

    def _problem(self, what: str, where: str, mend: str) -> None:
        self._count += 1
        self._tell(Problem(what, where, mend))

    # Packs and blobs.

    def _check_pack(self, snapshot: Snapshot, file: packs.PackFile, end: int) -> None:
        fd = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
        name = os.path.basename(file.path)
        again = "send its objects again, or restore the file from a backup"
        try:
            size = os.fstat(fd).st_size
            if size < end:
                self._problem(f"the file is cut: {size} bytes of {end}", name, again)
            try:
                info = packs.read_info(fd, name)
            except Corrupt as failure:
                self._foreign.add(file.number)
                self._problem(str(failure), name, again)
                return
            if info.store != self._store.folder.uuid or info.number != file.number:
                self._foreign.add(file.number)
                self._problem("the file belongs to another store or place", name, "put the right file there")
                return
            self._salts[file.number] = info.salt
            if file.kind in (BULK_PACK, FILE_PACK) and not self._quick:
                self._check_blobs(snapshot, fd, info, min(end, size))
            sealed = snapshot.packs()[file.number].sealed
            if sealed and file.kind == BULK_PACK and packs.read_footer(fd, info, size) is None:
                self._problem(
                    "the footer is damaged", name, "compact the pack; rebuild reads its records instead"
                )
        finally:
            os.close(fd)

    def _check_blobs(self, snapshot: Snapshot, fd: int, info: packs.PackInfo, end: int) -> None:
        at = packs.PACK_HEADER.size
        for found in packs.records(fd, info, at, end, whole=False, on_bad=self._on_bad_blob):
            at = found.offset + found.length + packs.padding(found.length)
            self._bytes += found.length
            self._on_progress(self._bytes, self._total)
            if found.kind == packs.BLOB and not packs.payload_fits(fd, found):
                place = snapshot.place(found.digest)
                here = place is not None and (place.container, place.offset) == (info.number, found.offset)
                if here:
                    self._bad_places.append(found.digest)
                self._problem(
                    "a blob is not what came in" if here else "an unused blob is damaged",
                    f"{found.digest.hex()} at byte {found.offset} of pack {info.number}",
                    "send one of its objects again",
                )
            if found.kind == packs.FOOTER:
                return
        if at < end and info.kind == BULK_PACK:
            self._problem(
                f"no record at byte {at}, though {end} bytes were committed",
                packs.pack_name(info.number, info.kind),
                "send the objects again that are reported below",
            )

    def _ends_of(self, files: dict[int, packs.PackFile], states: dict[int, PackState]) -> dict[int, int]:
        """Bytes of each pack of blobs that are there and committed; without those that are not our packs."""
        return {
            number: min(states[number].end, os.path.getsize(file.path))
            for number, file in files.items()
            if number in states and number not in self._foreign and file.kind != HEAD_PACK
        }

    def _check_places(self, snapshot: Snapshot, ends: dict[int, int]) -> None:
        """Every place lies inside a pack and points at a record of that digest."""
        for digest, _ in snapshot.scan(b"places"):
            self._blobs += 1
            place = snapshot.place(digest)
            assert place is not None
            if place.offset + place.length > ends.get(place.container, 0):
                self._bad_places.append(digest)
                self._problem("a blob lies outside its pack", digest.hex(), "send one of its objects again")
                continue
            if self._quick:
                continue
            try:
                at = place.offset - packs.RECORD_SIZE
                data = self._store.packs.read((BULK_PACK, FILE_PACK), place.container, at, packs.RECORD_SIZE)
            except Corrupt as failure:
                self._bad_places.append(digest)
                self._problem(str(failure), digest.hex(), "send one of its objects again")
                continue
            salt = self._salts.get(place.container)
            found = packs.parse_record(data, at, salt) if salt is not None else None
            wanted = packs.BLOB, digest, place.length
            if found is None or (found.kind, found.digest, found.length) != wanted:
                self._bad_places.append(digest)
                what = "a blob's record is not where the index has it"
                self._problem(what, digest.hex(), "send one of its objects again")

    # Instances.

    def _check_instances(self, snapshot: Snapshot) -> None:
        bad = set(self._bad_places)
        for key, value in snapshot.scan(b"instances"):
            self._live += 1
            instance = record.unpack_instance(value)
            uid = catalog.uid_of(value)
            name = uid.decode("latin-1")
            if snapshot.get(b"sop_uids", uid) != key:
                self._problem("the index does not find this instance by its UID", name, "run: hilum rebuild")
            try:
                head = self._store.read_head(instance)
                self._bytes += instance.head_length
                self._check_head(snapshot, head, instance, bad, name, key)
            except HilumError as failure:
                self._bad_uids.append(uid)
                self._problem(str(failure), name, "send the object again")
            self._on_progress(self._bytes, self._total)
        for uid, key in snapshot.scan(b"sop_uids"):
            if snapshot.get(b"instances", key) is None:
                self._problem(
                    "the index has a UID without its instance", uid.decode("latin-1"), "run: hilum rebuild"
                )

    def _check_head(
        self, snapshot: Snapshot, head: Head, instance: Instance, bad: set[bytes], name: str, key: bytes
    ) -> None:
        parsed = header.parse_head(head)
        if parsed.own != instance.entries:
            self._problem("the index holds other attributes than the head", name, "run: hilum rebuild")
        if (parsed.study, parsed.series) != ledger.uids_of_key(snapshot, key):
            self._problem("the index has this instance in another series", name, "run: hilum rebuild")
        identity = record.identity_of(head.transfer_syntax, head.data_set_at, head.holes, head.head)
        if identity != instance.identity:
            raise Corrupt("the head is not what came in")
        if original_crc(head) != head.original_crc:
            raise Corrupt("head and blobs do not give the original back")
        for hole in head.holes:
            place = snapshot.place(hole.digest)
            if place is None:
                self._bad_places.append(hole.digest)
            if place is None or hole.digest in bad:
                self._problem("a bulk value is lost or damaged", name, "send the object again")

    # Head packs against the index.

    def _check_heads(
        self, snapshot: Snapshot, files: dict[int, packs.PackFile], states: dict[int, PackState]
    ) -> None:
        """Every stored head is live, a revision, replaced by itself, or deleted."""
        live = {record.unpack_instance(value).sequence for _, value in snapshot.scan(b"instances")}
        known = live.copy()
        known |= {record.unpack_instance(value).sequence for _, value in snapshot.scan(b"revisions")}
        gone: dict[bytes, int] = {}
        unknown: list[tuple[int, bytes, str]] = []
        for number, state in sorted(states.items()):
            if state.kind != HEAD_PACK or number not in files:
                continue
            for row in self._head_records(files[number], state.end):
                sequence = row.record.sequence
                live.discard(sequence)
                if row.record.kind == packs.DELETED:
                    for uid in ledger.unpack_uids(row.payload):
                        gone[uid] = max(gone.get(uid, 0), sequence)
                elif row.record.kind == packs.STORED and sequence not in known:
                    where = f"byte {row.record.offset} of pack {number}"
                    try:
                        parsed = header.parse_head(record.unpack_head(row.payload))
                    except HilumError as failure:
                        self._problem(f"a head can't be read: {failure}", where, "none: it is not in use")
                        continue
                    unknown.append((sequence, parsed.uid, where))
        if live:  # can be read, perhaps, but a rebuild would not find it
            for _, found in snapshot.scan(b"instances"):
                if record.unpack_instance(found).sequence in live:
                    self._bad_uids.append(catalog.uid_of(found))
                    name = self._bad_uids[-1].decode("latin-1")
                    self._problem("the record of its head is damaged", name, "send the object again")
        for sequence, uid, where in unknown:
            key = snapshot.get(b"sop_uids", uid)
            value = snapshot.get(b"instances", key) if key is not None else None
            healed = value is not None and record.unpack_instance(value).sequence > sequence
            if gone.get(uid, 0) < sequence and not healed:
                self._problem("the index does not know a stored head", where, "run: hilum rebuild")

    def _head_records(self, file: packs.PackFile, end: int) -> Iterator[replay.HeadRecord]:
        fd = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            info = packs.read_info(fd, file.path)
            size = min(end, os.fstat(fd).st_size)
            at = packs.PACK_HEADER.size
            for row in replay.read_head_records(fd, info, at, size, on_bad=self._on_bad_record):
                at = row.record.offset + row.record.length + packs.padding(row.record.length)
                if row.record.kind == packs.FOOTER:
                    return
                yield row
            if at < end:
                self._problem(
                    f"no record at byte {at}, though {end} bytes were committed",
                    os.path.basename(file.path),
                    "send the objects again that are reported",
                )
        except Corrupt:
            return  # told when the pack was checked
        finally:
            os.close(fd)

    def _on_bad_blob(self, container: int, offset: int) -> None:
        where = f"byte {offset} of pack {container}"
        self._problem("a blob's record is damaged", where, "send one of its objects again")

    def _on_bad_record(self, container: int, offset: int) -> None:
        self._problem("a head is damaged", f"byte {offset} of pack {container}", "send the object again")

    # Series, studies, patients.

    def _check_levels(self, snapshot: Snapshot) -> None:
        """Counts are sums, donors are the smallest and speak, keys and columns are those of the records."""
        rebuild = "run: hilum rebuild"
        key_count = 0
        for number, value in snapshot.scan(b"studies"):
            study = record.unpack_study(value)
            uid = record.raw_of(study.entries, record.NUMBER_OF[0x0020000D])
            name = uid.decode("latin-1")
            rows = []
            for series_key, series_value in snapshot.scan_prefix(b"series", number):
                series = record.unpack_series(series_value)
                found = [
                    (catalog.uid_of(row), record.unpack_instance(row).original_length)
                    for _, row in snapshot.scan_prefix(b"instances", series_key)
                ]
                rows.append(series)
                counted = len(found), sum(size for _, size in found), min(found)[0] if found else b""
                if counted != (series.instance_count, series.byte_count, series.donor):
                    self._problem("a series counts other instances than it has", name, rebuild)
                if self._says_other(snapshot, series.donor, series.entries, level=record.SERIES):
                    self._problem("a series has other attributes than its donor", name, rebuild)
            summed = len(rows), sum(row.instance_count for row in rows), sum(row.byte_count for row in rows)
            if summed != (study.series_count, study.instance_count, study.byte_count):
                self._problem("a study counts other series than it has", name, rebuild)
            if rows and min(row.donor for row in rows) != study.donor:
                self._problem("a study has its attributes from the wrong instance", name, rebuild)
            elif self._says_other(snapshot, study.donor, study.entries, level=record.STUDY):
                self._problem("a study has other attributes than its donor", name, rebuild)
            wanted = keys.keys_of(study, U32.unpack(number)[0], uid)
            key_count += len(wanted)
            if any(snapshot.get(b"keys", key) != number for key in wanted):
                self._problem("a study is not found by all of its keys", name, rebuild)
            for field, text in keys.column_texts(study.entries).items():
                block = snapshot.get(b"columns", keys.column_key(field, U32.unpack(number)[0])) or b""
                slot = U32.unpack(number)[0] % keys.BLOCK_STUDIES
                if (slot, text) not in set(keys.search_block(block, b"")):
                    self._problem("a study is not in all of its columns", name, rebuild)
            if snapshot.get(b"patients", U32.pack(study.patient)) is None:
                self._problem("a study has no patient", name, rebuild)
            if snapshot.get(b"patient_ids", catalog.patient_key(study.entries, uid)) != U32.pack(
                study.patient
            ):
                self._problem("a study is under another patient than its own", name, rebuild)
        if key_count != snapshot.count(b"keys"):
            self._problem("there are keys of studies that are gone", "keys", rebuild)

        for number, value in snapshot.scan(b"patients"):
            self._check_patient(snapshot, number, record.unpack_patient(value))

    def _check_patient(self, snapshot: Snapshot, number: bytes, patient: record.Patient) -> None:
        name = record.text_of(patient.entries, record.NUMBER_OF[0x00100020]) or "a patient without an ID"
        studies = [
            record.unpack_study(value)
            for key, _ in snapshot.scan_prefix(b"patient_studies", number)
            if (value := snapshot.get(b"studies", key[4:])) is not None
        ]
        summed = (
            len(studies),
            sum(study.series_count for study in studies),
            sum(study.instance_count for study in studies),
            sum(study.byte_count for study in studies),
        )
        if summed != patient[:4]:
            self._problem("a patient counts other studies than it has", name, "run: hilum rebuild")
        donor, entries = min(((study.donor, study.entries) for study in studies), default=(b"", b""))
        if (donor, catalog.patient_entries(entries)) != (patient.donor, patient.entries):
            self._problem("a patient has other attributes than its donor", name, "run: hilum rebuild")

    def _says_other(self, snapshot: Snapshot, donor: bytes, entries: bytes, *, level: int) -> bool:
        """Whether a series or study says other than the head of its donor; no, if that can't be read."""
        key = snapshot.get(b"sop_uids", donor) if donor else None
        value = snapshot.get(b"instances", key) if key is not None else None
        if value is None:
            return False
        try:
            parsed = header.parse_head(self._store.read_head(record.unpack_instance(value)))
        except HilumError:
            return False  # told already
        return record.levels_of(parsed.upper)[level == record.SERIES] != entries

    def _mark(self) -> None:
        with self._store.folder.commit_lock(), self._store.index.write() as change:
            for digest in self._bad_places:
                # The import journal is not trusted while anything is in this table.
                change.put(b"bad", digest, b"")
                place = change.place(digest)
                if place is not None:
                    value = pack_place(place.container, place.offset, place.length, bad=True)
                    change.put(b"places", digest, value)
            for uid in self._bad_uids:
                change.put(b"bad", uid, b"")


def original_crc(head: Head) -> int:
    """The checksum of the whole original, out of the head's bytes and the holes' own checksums."""
    crc = at = gone = 0
    for hole in head.holes:
        end = hole.offset - gone
        crc = crc32(head.head[at:end], crc)
        crc = crc32_combine(crc, hole.crc, hole.length)
        at, gone = end, gone + hole.length
    return int(crc32(head.head[at:], crc))
