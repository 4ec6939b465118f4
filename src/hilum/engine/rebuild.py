"""Takes a store's packs; makes a new index that answers as the lost one did. Reads heads and footers, never
pixels, and changes no pack.

The new generation grows beside the old one, without syncs, and becomes the store's index by one rename.
"""

from __future__ import annotations

import heapq
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from itertools import islice
from typing import NamedTuple

from hilum.engine import header, ledger, packs, record, replay
from hilum.engine.folder import FORMAT_VERSION, Folder, make_index
from hilum.engine.index import Change, Index, PackState, pack_place, unpack_place
from hilum.engine.ledger import Ledger
from hilum.engine.packs import BULK_PACK, FILE_PACK, HEAD_PACK, PackFile, PackInfo, PackReader
from hilum.engine.replay import HeadRecord
from hilum.errors import Corrupt, HilumError, StoreMissing

BATCH_HEADS = 4_000
BATCH_BLOBS = 20_000


class Rebuilt(NamedTuple):
    """What a rebuild found."""

    instances: int
    blobs: int
    packs: int
    problems: list[str]  # what could not be read, and what became of it


def rebuild(path: str, *, on_progress: Callable[[int, int], None] = lambda done, total: None) -> Rebuilt:
    """Build the index of the store at `path` anew; `on_progress` gets bytes of head packs done and in all.

    Raises:
        StoreLocked: another process has the store open.
        StoreMissing: there are no packs of a store here.
    """
    _ensure_identity(path)
    folder = Folder(path, alone=True)
    try:
        os.makedirs(folder.spool, exist_ok=True)  # packs may come from a backup that left it out
        packs.sync_directory(folder.packs)  # a writer that was killed may not have done so
        name = folder.next_index()
        index = make_index(os.path.join(folder.path, name), folder.uuid, building=True)
        try:
            result = _Rebuild(folder, index, on_progress).run()
            index.sync()
        finally:
            index.close()
        folder.switch_to(name)
        for old in folder.old_indexes():
            shutil.rmtree(old, ignore_errors=True)
        return result
    finally:
        folder.close()


def _ensure_identity(path: str) -> None:
    """A store whose STORE file is gone is known by the headers of its packs."""
    if os.path.exists(os.path.join(path, "STORE")):
        return
    for file in packs.list_packs(os.path.join(path, "packs")):
        fd = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            info = packs.read_info(fd, file.path)
        except Corrupt:
            continue
        finally:
            os.close(fd)
        new = os.path.join(path, "STORE.new")
        with open(new, "w", encoding="ascii") as out:
            json.dump({"format": FORMAT_VERSION, "uuid": str(uuid.UUID(bytes=info.store))}, out)
            out.flush()
            os.fsync(out.fileno())
        os.rename(new, os.path.join(path, "STORE"))
        packs.sync_directory(path)
        return
    raise StoreMissing(f"there is no store at {path}")


class _OpenPack(NamedTuple):
    file: PackFile
    fd: int
    info: PackInfo
    size: int


class _Lacking(NamedTuple):
    """A head that names a blob which is in no pack."""

    uid: bytes
    sequence: int
    container: int
    offset: int


def _once(rows: Iterator[HeadRecord]) -> Iterator[HeadRecord]:
    """Give each stored head once: a compaction that was killed has left the copy beside what it copied.

    The copy is taken, which lies in the pack of the higher number. State records do no harm twice.
    """
    held: HeadRecord | None = None
    for row in rows:
        if held is not None and not (
            held.record.kind == row.record.kind == packs.STORED
            and held.record.sequence == row.record.sequence
        ):
            yield held
        held = row
    if held is not None:
        yield held


class _Rebuild:
    def __init__(self, folder: Folder, index: Index, on_progress: Callable[[int, int], None]) -> None:
        self._folder = folder
        self._index = index
        self._on_progress = on_progress
        self._problems: list[str] = []
        self._states: dict[int, PackState] = {}
        self._replaced: set[tuple[int, int]] = set()  # (container, offset) of blobs healed elsewhere
        self._lacking: list[_Lacking] = []
        self._blobs = 0

    def run(self) -> Rebuilt:
        opened = [pack for file in packs.list_packs(self._folder.packs) if (pack := self._open(file))]
        reader = PackReader(self._folder.packs)
        try:
            for pack in opened:
                if pack.file.kind in (BULK_PACK, FILE_PACK):
                    self._enter_blobs(pack)
            self._enter_heads([pack for pack in opened if pack.file.kind == HEAD_PACK], reader)
            if self._replaced:
                self._pass_over(self._replaced, opened)
            with self._index.write() as change:
                for number, state in self._states.items():
                    change.put_pack(number, state)
                self._tell_lacking(change)
                # A number that a BAD_BLOB record names would make a good place of a new pack a bad one.
                known = {*self._states, *(container for container, _ in self._replaced)}
                change.set_number(b"last_pack", max(known, default=0))
        finally:
            reader.close()
            for pack in opened:
                os.close(pack.fd)
        with self._index.read() as snapshot:
            count = snapshot.count(b"instances")
        return Rebuilt(count, self._blobs, len(opened), self._problems)

    def _open(self, file: PackFile) -> _OpenPack | None:
        fd = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            info = packs.read_info(fd, file.path)
            if info.store != self._folder.uuid or info.kind != file.kind or info.number != file.number:
                raise Corrupt(f"{file.path} belongs to another store or place")
        except Corrupt as failure:
            os.close(fd)
            if os.path.getsize(file.path) > 0:
                self._problems.append(f"left out: {failure}")
            return None
        return _OpenPack(file, fd, info, os.fstat(fd).st_size)

    def _enter_blobs(self, pack: _OpenPack) -> None:
        entries = self._blobs_of(pack)
        while batch := list(islice(entries, BATCH_BLOBS)):
            with self._index.write() as change:
                book = Ledger(change, self._no_upper)
                for digest, offset, length in batch:
                    book.blob(digest, pack.file.number, offset, length)
                book.finish()
            self._blobs += len(batch)

    def _blobs_of(self, pack: _OpenPack) -> Iterator[tuple[bytes, int, int]]:
        """The (digest, offset, length) of each blob in a pack; notes where the pack ends."""
        entries = packs.read_footer(pack.fd, pack.info, pack.size)
        if entries is not None:
            self._states[pack.file.number] = PackState(pack.file.kind, True, pack.size)
            yield from entries
            return
        # Not sealed, so its end may be torn: each blob is proved by its digest.
        end = packs.PACK_HEADER.size
        whole = pack.file.kind == BULK_PACK
        on_bad = self._on_bad_blob
        for row in packs.records(pack.fd, pack.info, end, pack.size, whole=whole, on_bad=on_bad):
            if row.kind == packs.FOOTER:
                break  # without its trailer it is no end: the next writer cuts it off
            if row.kind == packs.BLOB:
                yield row.digest, row.offset, row.length
            # A file pack ends with its only blob, without padding.
            end = min(pack.size, row.offset + row.length + packs.padding(row.length))
        if end < pack.size:
            self._problems.append(f"{pack.file.path}: {pack.size - end} bytes at its end are no whole record")
        self._states[pack.file.number] = PackState(pack.file.kind, pack.file.kind == FILE_PACK, end)

    def _pass_over(self, replaced: set[tuple[int, int]], opened: list[_OpenPack]) -> None:
        """A blob that was healed has two places, of which the one in `replaced` is rotten: take the other."""
        with self._index.write() as change:
            wrong = {
                digest: place
                for digest, value in change.scan(b"places")
                if (place := unpack_place(value))[:2] in replaced
            }
            told = len(self._problems)
            for pack in opened if wrong else ():
                if pack.file.kind == HEAD_PACK:
                    continue
                for digest, offset, length in self._blobs_of(pack):
                    if digest in wrong and (pack.file.number, offset) not in replaced:
                        change.put(b"places", digest, pack_place(pack.file.number, offset, length))
                        del wrong[digest]
            del self._problems[told:]  # told when the packs were read first
            for digest, place in wrong.items():
                value = pack_place(place.container, place.offset, place.length, bad=True)
                change.put(b"places", digest, value)

    def _enter_heads(self, heads: list[_OpenPack], reader: PackReader) -> None:
        total, done = sum(pack.size for pack in heads), 0
        rows = _once(heapq.merge(*map(self._rows_of, heads), key=lambda row: row.record.sequence))
        batch: list[HeadRecord] = []
        for row in rows:
            batch.append(row)
            if len(batch) == BATCH_HEADS:
                done += self._enter_batch(batch, reader)
                batch = []
                self._on_progress(done, total)
        self._enter_batch(batch, reader)
        self._on_progress(total, total)

    def _rows_of(self, pack: _OpenPack) -> Iterator[HeadRecord]:
        end = packs.PACK_HEADER.size
        sealed = packs.sealed_end(pack.fd, pack.info, pack.size) is not None
        for row in replay.read_head_records(pack.fd, pack.info, end, pack.size, on_bad=self._on_bad_head):
            if row.record.kind == packs.FOOTER:
                break  # without its trailer it is no end: the next writer cuts it off
            end = row.record.offset + row.record.length + packs.padding(row.record.length)
            yield row
        if not sealed and end < pack.size:
            self._problems.append(f"{pack.file.path}: {pack.size - end} bytes at its end are no whole record")
        self._states[pack.file.number] = PackState(HEAD_PACK, sealed, pack.size if sealed else end)

    def _on_bad_blob(self, container: int, offset: int) -> None:
        self._problems.append(f"pack {container}: the blob at byte {offset} is damaged and was left out")

    def _on_bad_head(self, container: int, offset: int) -> None:
        self._problems.append(f"pack {container}: the head at byte {offset} is damaged and was left out")

    def _enter_batch(self, batch: list[HeadRecord], reader: PackReader) -> int:
        with self._index.write() as change:
            book = Ledger(
                change,
                lambda instance: replay.upper_of(
                    lambda container, offset, length: reader.read((HEAD_PACK,), container, offset, length),
                    instance,
                ),
            )
            for row in batch:
                try:
                    head = replay.enter(book, row)
                except HilumError as failure:
                    self._problems.append(
                        f"pack {row.container}: record at byte {row.record.offset} left out: {failure}"
                    )
                    continue
                if row.record.kind == packs.BAD_BLOB:
                    self._replaced.update(ledger.unpack_bad_blobs(row.payload))
                if head is not None:
                    self._note_lacking(change, row, head)
            book.finish()
        return sum(packs.RECORD_SIZE + row.record.length for row in batch)

    def _note_lacking(self, change: Change, row: HeadRecord, head: record.Head) -> None:
        if any(change.get(b"places", hole.digest) is None for hole in head.holes):
            found = row.record
            uid = header.parse_head(head).uid
            self._lacking.append(_Lacking(uid, found.sequence, row.container, found.offset))

    def _tell_lacking(self, change: Change) -> None:
        """A head whose blob is nowhere stays findable, marked bad: sending the object again heals it.

        What was deleted or purged since may well lack its blobs: they have been compacted away.
        """
        for uid, sequence, container, offset in self._lacking:
            key = change.get(b"sop_uids", uid)
            value = change.get(b"instances", key) if key is not None else None
            stored = value is not None and record.unpack_instance(value).sequence == sequence
            if stored:
                change.put(b"bad", uid, b"")
            if stored or change.get(b"revisions", ledger.revision_key(uid, sequence)) is not None:
                self._problems.append(
                    f"pack {container}: head at byte {offset} names a blob that is in no pack"
                )

    def _no_upper(self, instance: record.Instance) -> bytes:
        raise AssertionError("blobs have no donor")
