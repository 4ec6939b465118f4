"""Takes prepared objects and deletions; makes them durable in the order that docs/format.md lays down.

    append blobs · sync bulk packs · take the commit lock · decide what each object is · append heads ·
    sync head packs · commit the index · release · only then answer

One Writer for each open store; safe from several threads, which it serves in groups: whoever comes first
commits for all that wait at that moment, and nobody waits for a timer. Decodes nothing, reads no pixels.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum
from functools import partial
from struct import Struct
from typing import NamedTuple, TypeVar

from isal.isal_zlib import crc32

from hilum.engine import header, ledger, packs, record, replay
from hilum.engine.folder import CommitLock, Folder
from hilum.engine.index import BlobPlace, Change, Index, PackState, Snapshot
from hilum.engine.ledger import Ledger, Verdict
from hilum.engine.packs import BULK_PACK, FILE_PACK, HEAD_PACK, PackFile, PackReader, PackWriter, Place
from hilum.engine.prepare import Blob, BlobSink, Prepared
from hilum.engine.record import Instance
from hilum.errors import Corrupt, HilumError, StoreBroken

PACK_MAX = 1 << 30  # a pack that has grown past this is sealed
DELETE_BATCH = 2_000  # instances in one transaction, which must stay under 50 ms
GROUP_MAX = 2_000  # objects in one group commit, for the same reason
_NO_DIGEST = bytes(32)

T = TypeVar("T")


class Policy(IntEnum):
    """What becomes of an object whose UID is taken by other bytes."""

    KEEP_FIRST = 0
    REPLACE = 1


class Result(IntEnum):
    STORED = 1
    DUPLICATE = 2
    CONFLICT = 3  # refused; what was there is kept
    REPLACED = 4  # stored; what was there is a revision
    HEALED = 5  # the same object was there, marked bad, and is whole again
    AGAIN = 6  # what it relied on went meanwhile: prepare it again


class Outcome(NamedTuple):
    result: Result
    key: bytes  # of the instance that is stored now under this UID
    sequence: int


_JOURNAL_TAIL = Struct("<BQ")


def journal_tail(outcome: Outcome) -> bytes:
    """What the import journal keeps of an outcome, behind the file's size and times."""
    return _JOURNAL_TAIL.pack(outcome.result, outcome.sequence) + outcome.key


def read_journal_tail(data: bytes) -> Outcome:
    result, sequence = _JOURNAL_TAIL.unpack_from(data)
    return Outcome(Result(result), data[_JOURNAL_TAIL.size :], sequence)


class _Ticket:
    __slots__ = ("done", "error", "objects", "outcomes", "policy")

    def __init__(self, objects: Sequence[Prepared], policy: Policy) -> None:
        self.objects, self.policy = objects, policy
        self.outcomes: list[Outcome] = []
        self.error: BaseException | None = None
        self.done = False


class Writer:
    """Opens its packs at the first write, recovers what a crash left, and keeps them until close()."""

    def __init__(self, folder: Folder, index: Index, reader: PackReader) -> None:
        self._folder = folder
        self._index = index
        self._reader = reader
        self._bulk: PackWriter | None = None
        self._head: PackWriter | None = None
        self._ready = False
        self._broken: BaseException | None = None
        self._sealed: dict[int, PackState] = {}  # sealed since the last commit
        # Their locks are kept until a commit names them: a pack without a lock that no commit names is taken
        # for one that a crash left, and cut or removed.
        self._leaving: list[PackWriter | BlobSink] = []
        self._places: dict[bytes, Place] = {}  # of blobs appended since the last commit
        self._healed: dict[bytes, BlobPlace] = {}  # blobs among them whose place in the index is bad
        self._waiting: dict[bytes, bytes] = {}  # UID → identity of what has blobs among them
        self._queue: list[_Ticket] = []
        self._queue_lock = threading.Lock()
        self._lead = threading.RLock()  # whoever holds it may touch the packs

    # For callers.

    def submit(self, objects: Sequence[Prepared], policy: Policy = Policy.KEEP_FIRST) -> list[Outcome]:
        """Store objects, durably; return what became of each.

        Raises:
            StoreBroken: a write or sync failed. Nothing of this group is promised; reopen the store.
        """
        ticket = _Ticket(objects, policy)
        with self._queue_lock:
            self._queue.append(ticket)
        with self._lead:
            if not ticket.done:
                group = self._take_group(ticket)
                try:
                    self._commit(group)
                except BaseException as error:
                    for member in group:
                        member.error = error
                        for prepared in member.objects:
                            prepared.discard()  # their descriptors would stay open, and their spool files
                finally:
                    for member in group:
                        member.done = True
        if ticket.error is not None:
            raise ticket.error
        return ticket.outcomes

    def stage(self, objects: Sequence[Prepared], policy: Policy = Policy.KEEP_FIRST) -> None:
        """Append the blobs of objects that will be submitted soon, so that their bytes need not be kept.

        When it returns, the memory under the blobs may be used again.
        """
        with self._lead:
            self._prepare_to_write()
            self._guard(lambda: self._append_blobs(objects, policy))
            for prepared in objects:
                prepared.let_go()

    def append_blob(self, blob: Blob) -> None:
        """Append one blob of an object that is still being read; its bytes need not be kept after that."""
        with self._lead:
            self._prepare_to_write()
            with self._index.read() as snapshot:
                self._guard(lambda: self._append_blob(snapshot, blob))
            if self._bulk is not None:
                self._guard(self._bulk.flush)

    def delete(self, uids: Sequence[bytes]) -> int:
        """Delete instances by SOP Instance UID, durably; return how many were there."""
        count = 0
        with self._lead:
            self._folder.make_room()
            self._prepare_to_write()
            for begin in range(0, len(uids), DELETE_BATCH):
                batch = uids[begin : begin + DELETE_BATCH]
                count += self._guard(partial(self._delete_batch, batch))
        return count

    def purge(self, wanted: Sequence[tuple[int, bytes]]) -> int:
        """Forget revisions or conflicts, (ledger.PURGED_..., SOP Instance UID) each; return how many went."""
        count = 0
        with self._lead:
            self._folder.make_room()
            self._prepare_to_write()
            for begin in range(0, len(wanted), DELETE_BATCH):
                batch = wanted[begin : begin + DELETE_BATCH]
                count += self._guard(partial(self._purge_batch, batch))
        return count

    def new_file_pack(self) -> packs.FilePackWriter:
        """A place for a value too large for memory."""
        with self._lead:
            self._prepare_to_write()
            with self._folder.commit_lock():
                number = next_pack_number(self._folder, self._index)
                return packs.FilePackWriter(self._folder.path, number, self._folder.uuid)

    def rest(self) -> None:
        """Give the packs up until the next write, unless something is staged in them: for a compaction."""
        with self._lead:
            if not self._places:
                self.close()

    def recover(self) -> None:
        """Enter or cut whatever killed writers left, and what a killed compaction did."""
        with self._lead, self._folder.commit_lock() as gate:
            packs.sync_directory(self._folder.path)
            packs.sync_directory(self._folder.packs)
            self._recover_taken(gate)

    def close(self) -> None:
        with self._lead:
            for pack in (self._bulk, self._head, *self._leaving):
                if pack is not None:
                    pack.close()
            self._bulk = self._head = None
            self._leaving.clear()
            # What is staged is the next writer's to recover; so is a pack that nobody said is sealed.
            self._sealed.clear()
            self._places.clear()
            self._healed.clear()
            self._waiting.clear()
            self._ready = False

    # Groups.

    def _take_group(self, own: _Ticket) -> list[_Ticket]:
        with self._queue_lock:
            group, size = [own], len(own.objects)
            rest = []
            for ticket in self._queue:
                if ticket is own:
                    continue
                if size + len(ticket.objects) <= GROUP_MAX and ticket.policy == own.policy:
                    group.append(ticket)
                    size += len(ticket.objects)
                else:
                    rest.append(ticket)
            self._queue = rest
        return group

    def _commit(self, group: list[_Ticket]) -> None:
        self._prepare_to_write()
        objects = [found for ticket in group for found in ticket.objects]
        outcomes = self._guard(lambda: self._commit_objects(objects, group[0].policy))
        at = 0
        for ticket in group:
            ticket.outcomes = outcomes[at : at + len(ticket.objects)]
            at += len(ticket.objects)

    def _guard(self, work: Callable[[], T]) -> T:
        """Run a write. One that fails ends this writer, whatever the reason: what lies behind the last commit
        is then unknown, and only recovery may touch it.
        """
        if self._broken is not None:
            raise StoreBroken(
                "the store is closed to writes after an earlier failure; reopen it"
            ) from self._broken
        try:
            return work()
        except OSError as failure:
            self._broken = failure
            raise StoreBroken(
                f"write to the store failed: {failure.strerror}; reopen it to recover"
            ) from failure
        except BaseException as failure:
            self._broken = failure
            raise

    def _commit_objects(self, objects: list[Prepared], policy: Policy) -> list[Outcome]:
        self._append_blobs(objects, policy)
        for prepared in objects:
            self._finish_sinks(prepared, policy)
        if self._bulk is not None:
            self._bulk.sync()
            self._roll(self._bulk)
        with self._folder.commit_lock() as gate:
            self._recover_dead(gate)
            with self._index.read() as snapshot:
                last = max(snapshot.number(b"sequence"), gate.last_sequence())
                outcomes, events, verdicts = self._decide(snapshot, objects, policy, last)
            numbered = self._append_heads(gate, last, events, verdicts)
            self._enter(objects, numbered, verdicts, outcomes, last)
        self._places.clear()
        self._healed.clear()
        self._waiting.clear()
        if self._head is not None:
            self._roll(self._head)
        return outcomes

    # Blobs.

    def _append_blobs(self, objects: Sequence[Prepared], policy: Policy) -> None:
        with self._index.read() as snapshot:
            for prepared in objects:
                if not prepared.blobs or prepared.staged:
                    continue
                if policy == Policy.KEEP_FIRST and self._is_taken(snapshot, prepared):
                    continue  # will be refused: its bytes must not fill the store
                if snapshot.condemned() and self._is_whole(snapshot, prepared):
                    continue  # a duplicate: what it is made of is moved, not lost
                self._waiting[prepared.uid] = prepared.identity
                for blob in prepared.blobs:
                    if blob.place is None and len(blob.data) == blob.length:
                        self._append_blob(snapshot, blob)
        if self._bulk is not None:
            self._bulk.flush()

    def _append_blob(self, snapshot: Snapshot, blob: Blob) -> None:
        if blob.digest in self._places:
            return
        if is_kept(snapshot, blob.digest):
            return
        self._note_healed(snapshot, blob.digest)
        self._places[blob.digest] = self._bulk_pack().append(
            packs.BLOB, blob.data, digest=blob.digest, crc=blob.crc
        )

    def _note_healed(self, snapshot: Snapshot, digest: bytes) -> None:
        known = snapshot.place(digest)
        if known is not None and known.bad:
            self._healed[digest] = known

    def _is_whole(self, snapshot: Snapshot, prepared: Prepared) -> bool:
        """Whether the same object is stored, and nothing that it is made of is known to be bad."""
        key = snapshot.get(b"sop_uids", prepared.uid)
        value = snapshot.get(b"instances", key) if key is not None else None
        if value is None or record.unpack_instance(value).identity != prepared.identity:
            return False
        places = [snapshot.place(blob.digest) for blob in prepared.blobs]
        return snapshot.get(b"bad", prepared.uid) is None and all(
            place is not None and not place.bad for place in places
        )

    def _is_taken(self, snapshot: Snapshot, prepared: Prepared) -> bool:
        waiting = self._waiting.get(prepared.uid)
        if waiting is not None:
            return waiting != prepared.identity
        key = snapshot.get(b"sop_uids", prepared.uid)
        value = snapshot.get(b"instances", key) if key is not None else None
        return value is not None and record.unpack_instance(value).identity != prepared.identity

    def _finish_sinks(self, prepared: Prepared, policy: Policy) -> None:
        """Give the large values that were streamed their name, or drop those that are not needed."""
        if not prepared.sinks:
            return
        sinks = iter(prepared.sinks)
        with self._index.read() as snapshot:
            if policy == Policy.KEEP_FIRST and self._is_taken(snapshot, prepared):
                prepared.discard()
                return
            for blob in prepared.blobs:
                if blob.place is None:
                    continue
                sink = next(sinks)
                if blob.digest in self._places or is_kept(snapshot, blob.digest):
                    sink.discard()
                    continue
                self._note_healed(snapshot, blob.digest)
                place = self._places[blob.digest] = sink.finish()
                self._leaving.append(sink)
                self._sealed[place.container] = PackState(FILE_PACK, True, place.offset + place.length)
        prepared.sinks = []

    # Decisions, under the commit lock.

    def _decide(
        self, snapshot: Snapshot, objects: Sequence[Prepared], policy: Policy, last: int
    ) -> tuple[list[Outcome], list[tuple[int, Prepared, bool]], list[tuple[int, Verdict]]]:
        """What becomes of each object: (outcomes, [(index, object, fresh)] to store, [(index, verdict)])."""
        outcomes: list[Outcome] = []
        events: list[tuple[int, Prepared, bool]] = []
        verdicts: list[tuple[int, Verdict]] = []
        group: dict[bytes, tuple[bytes, int]] = {}  # UID → identity and sequence of what this group stores
        for index, prepared in enumerate(objects):
            uid = prepared.uid
            key = b""
            there: tuple[bytes, int] | None = group.get(uid)
            bad = False
            if there is None and (found := snapshot.get(b"sop_uids", uid)) is not None:
                key = found
                value = snapshot.get(b"instances", key)
                if value is None:
                    raise Corrupt(
                        f"the index names {uid.decode()} but has no record of it; run: hilum rebuild"
                    )
                old = record.unpack_instance(value)
                there = old.identity, old.sequence
                bad = snapshot.get(b"bad", uid) is not None
            if there is None:
                result = Result.STORED
            elif there[0] == prepared.identity:
                # A blob of a stored object is appended only when it was lost or damaged, or when another
                # process has stored the same object since.
                healed = bad or (
                    uid not in group
                    and any(
                        blob.digest in self._places
                        and ((place := snapshot.place(blob.digest)) is None or place.bad)
                        for blob in prepared.blobs
                    )
                )
                result = Result.HEALED if healed else Result.DUPLICATE
            else:
                result = Result.REPLACED if policy == Policy.REPLACE else Result.CONFLICT
            if result == Result.CONFLICT and there is not None:
                refused = ledger.conflict_key(uid, prepared.identity)
                if snapshot.get(b"conflicts", refused) is None:
                    now = time.time_ns() // 1000
                    verdicts.append((index, Verdict(uid, now, there[1], prepared.identity, there[0], b"")))
            if result in (Result.STORED, Result.REPLACED) or (result == Result.HEALED and bad):
                if not self._has_blobs(snapshot, prepared):
                    outcomes.append(Outcome(Result.AGAIN, b"", 0))
                    continue
                events.append((index, prepared, there is None))
                group[uid] = prepared.identity, last + len(events)
            outcomes.append(Outcome(result, key, there[1] if there is not None else 0))
        return outcomes, events, verdicts

    def _has_blobs(self, snapshot: Snapshot, prepared: Prepared) -> bool:
        # Looked up again, inside the lock: a blob that was there when it was not appended may have gone, or
        # lie where a compaction drops what nobody names. What a stored object names it moves.
        based = prepared.base is not None and self._is_stored(snapshot, *prepared.base)
        for blob in prepared.blobs:
            if blob.digest not in self._places:
                place = snapshot.place(blob.digest) if based else snapshot.lasting_place(blob.digest)
                if place is None:
                    return False
        return True

    def _is_stored(self, snapshot: Snapshot, uid: bytes, sequence: int) -> bool:
        key = snapshot.get(b"sop_uids", uid)
        value = snapshot.get(b"instances", key) if key is not None else None
        return value is not None and record.unpack_instance(value).sequence == sequence

    def _append_heads(
        self,
        gate: CommitLock,
        last: int,
        events: Sequence[tuple[int, Prepared, bool]],
        verdicts: Sequence[tuple[int, Verdict]],
    ) -> list[tuple[int, Prepared, bool, Place, int]]:
        """Append and sync heads, verdicts and healed places; return the heads with their places."""
        if not (events or verdicts or self._healed):
            return []
        gate.note_sequence(last + len(events) + len(verdicts) + bool(self._healed))
        head = self._head_pack()
        sequence = last
        numbered = []
        for index, prepared, fresh in events:
            sequence += 1
            payload = prepared.payload
            place = head.append(
                packs.STORED,
                payload,
                digest=prepared.identity,
                crc=crc32(payload),
                sequence=sequence,
            )
            numbered.append((index, prepared, fresh, place, sequence))
        for _, verdict in verdicts:
            sequence += 1
            self._append_state(packs.CONFLICT, ledger.pack_verdict(verdict), sequence)
        if self._healed:
            sequence += 1
            self._append_state(packs.BAD_BLOB, ledger.pack_bad_blobs(list(self._healed.values())), sequence)
        head.sync()
        return numbered

    def _append_state(self, kind: int, payload: bytes, sequence: int) -> None:
        self._head_pack().append(kind, payload, digest=_NO_DIGEST, crc=crc32(payload), sequence=sequence)

    def _enter(
        self,
        objects: Sequence[Prepared],
        numbered: Sequence[tuple[int, Prepared, bool, Place, int]],
        verdicts: Sequence[tuple[int, Verdict]],
        outcomes: list[Outcome],
        last: int,
    ) -> None:
        """The one index transaction of a group; none where there is nothing to enter."""
        journalled = any(prepared.journal is not None for prepared in objects)
        if not (self._places or self._sealed or numbered or verdicts or journalled):
            return
        with self._index.write() as change:
            book = Ledger(change, self._read_upper)
            for digest, place in self._places.items():
                book.blob(digest, place.container, place.offset, place.length)
            if change.count(b"bad"):
                for digest in self._places:
                    change.delete(b"bad", digest)
            for index, prepared, fresh, place, sequence in numbered:
                key = book.stored(
                    prepared.study,
                    prepared.series,
                    prepared.uid,
                    prepared.upper,
                    Instance(
                        prepared.flags,
                        place.container,
                        place.offset,
                        prepared.head_length,
                        prepared.table_length,
                        sequence,
                        prepared.original_length,
                        prepared.identity,
                        *prepared.pixels,
                        prepared.transfer_syntax,
                        prepared.own,
                    ),
                    fresh=fresh,
                )
                outcomes[index] = Outcome(outcomes[index].result, key, sequence)
            change.put_many(
                b"journal",
                [
                    (prepared.journal[0], prepared.journal[1] + journal_tail(outcome))
                    for prepared, outcome in zip(objects, outcomes, strict=True)
                    if prepared.journal is not None and outcome.key
                ],
            )
            sequence = last + len(numbered)
            for _, verdict in verdicts:
                sequence += 1
                book.conflict(sequence, ledger.pack_verdict(verdict))
            if self._healed:
                book.bad_blobs(sequence + 1)
            book.finish()
            self._put_packs(change)
        while self._leaving:
            self._leaving.pop().close()

    def _put_packs(self, change: Change) -> None:
        for pack in (self._bulk, self._head):
            if pack is not None:
                change.put_pack(pack.number, PackState(pack.kind, False, pack.end))
        for number, state in self._sealed.items():
            change.put_pack(number, state)
        self._sealed.clear()

    def _read_upper(self, instance: Instance) -> bytes:
        return replay.upper_of(
            lambda container, offset, length: self._reader.read((HEAD_PACK,), container, offset, length),
            instance,
        )

    # Deletion.

    def _delete_batch(self, uids: Sequence[bytes]) -> int:
        with self._folder.commit_lock() as gate:
            self._recover_dead(gate)
            with self._index.read() as snapshot:
                known = [uid for uid in uids if snapshot.get(b"sop_uids", uid) is not None]
                last = max(snapshot.number(b"sequence"), gate.last_sequence())
            if not known:
                return 0
            gate.note_sequence(last + 1)
            self._append_state(packs.DELETED, ledger.pack_uids(known), last + 1)
            self._head_pack().sync()
            with self._index.write() as change:
                book = Ledger(change, self._read_upper)
                count = book.deleted(last + 1, known)
                book.finish()
                # Not the bulk pack: what was staged for a later commit is not synced.
                head = self._head_pack()
                change.put_pack(head.number, PackState(head.kind, False, head.end))
        return count

    def _purge_batch(self, wanted: Sequence[tuple[int, bytes]]) -> int:
        with self._folder.commit_lock() as gate:
            self._recover_dead(gate)
            with self._index.read() as snapshot:
                last = max(snapshot.number(b"sequence"), gate.last_sequence())
            gate.note_sequence(last + 1)
            self._append_state(packs.PURGED, ledger.pack_purged(wanted), last + 1)
            self._head_pack().sync()
            with self._index.write() as change:
                book = Ledger(change, self._read_upper)
                count = book.purged(last + 1, wanted)
                book.finish()
                head = self._head_pack()
                change.put_pack(head.number, PackState(head.kind, False, head.end))
        return count

    # Packs.

    def _bulk_pack(self) -> PackWriter:
        if self._bulk is None:
            with self._folder.commit_lock():
                self._bulk = self._new_pack(BULK_PACK)
        return self._bulk

    def _head_pack(self) -> PackWriter:
        if self._head is None:
            self._head = self._new_pack(HEAD_PACK)  # the caller holds the commit lock
        return self._head

    def _new_pack(self, kind: int) -> PackWriter:
        return new_pack(self._folder, self._index, kind)

    def _roll(self, pack: PackWriter) -> None:
        """Seal a pack that is full; the next commit says so."""
        if pack.end < PACK_MAX:
            return
        pack.seal()
        self._sealed[pack.number] = PackState(pack.kind, True, pack.end)
        self._leaving.append(pack)
        if pack is self._bulk:
            self._bulk = None
        else:
            self._head = None

    # Recovery.

    def _prepare_to_write(self) -> None:
        """Once: recover every unsealed pack that no other writer holds, and take one of each kind."""
        if self._ready:
            return
        if self._broken is not None:  # closed since, and another writer has its place: take nothing from it
            raise StoreBroken("the store was closed to writes after an earlier failure") from self._broken
        try:
            self._take_packs()
            self._folder.keep_ballast()
        except OSError as failure:
            raise StoreBroken(f"{self._folder.path} can't be recovered: {failure.strerror}") from failure
        self._ready = True

    def _take_packs(self) -> None:
        with self._folder.commit_lock() as gate:
            # Whoever was killed may have left names that were never synced; what follows relies on them.
            packs.sync_directory(self._folder.path)
            packs.sync_directory(self._folder.packs)
            end_compaction(self._folder, self._index)
            taken = _take_unsealed(self._folder, self._index)
            try:
                if any(pack.size > pack.end for pack in taken):
                    self._recover(gate, taken)
            except BaseException:
                for pack in taken:
                    os.close(pack.fd)
                raise
            for pack in sorted(taken, key=lambda pack: -pack.file.number):
                if pack.sealed:
                    os.close(pack.fd)
                elif pack.file.kind == BULK_PACK and self._bulk is None:
                    self._bulk = PackWriter(pack.fd, pack.info, pack.end, fresh=False)
                elif pack.file.kind == HEAD_PACK and self._head is None:
                    self._head = PackWriter(pack.fd, pack.info, pack.end, fresh=False)
                else:
                    os.close(pack.fd)
            self._folder.clear_spool()  # inside the lock: whoever makes a spool file holds it too

    def _recover_dead(self, gate: CommitLock) -> None:
        """Enter what a writer has appended that was killed before its commit, while this one was at work.

        It has the smaller sequence numbers, so it must come before what is decided now: entered later, its
        deletion would undo what we are about to acknowledge.
        """
        with self._index.read() as snapshot:
            if gate.last_sequence() <= snapshot.number(b"sequence"):
                return
        self._recover_taken(gate)

    def _recover_taken(self, gate: CommitLock) -> None:
        taken = _take_unsealed(self._folder, self._index)
        try:
            self._recover(gate, taken)
        finally:
            for pack in taken:
                os.close(pack.fd)

    def _recover(self, gate: CommitLock, taken: list[_Unsealed]) -> None:
        """Enter what a crash left whole behind the committed ends, and cut the rest off.

        Bulk packs first, by digest; then heads, each only if every blob that it names is there. Heads
        whose sequence numbers the index has passed belong to a commit that never was, while others went
        on without it: they are cut, since nobody was told of them.
        """
        blobs: dict[bytes, Place] = {}
        for pack in taken:
            if pack.file.kind == BULK_PACK and pack.size > pack.end:
                for found in packs.records(pack.fd, pack.info, pack.end, pack.size, whole=True):
                    pack.advance(found)
                    if found.kind == packs.BLOB:
                        blobs[found.digest] = Place(pack.file.number, found.offset, found.length)
                pack.cut()
        with self._index.read() as snapshot:
            last = snapshot.number(b"sequence")
            rows = []
            for pack in taken:
                if pack.file.kind != HEAD_PACK or pack.size <= pack.end:
                    continue
                tail = list(replay.read_head_records(pack.fd, pack.info, pack.end, pack.size))
                kept = []
                if not tail or tail[0].record.sequence > last or tail[0].record.kind == packs.FOOTER:
                    for row in tail:
                        if not self._resolves(snapshot, row, blobs):
                            break
                        pack.advance(row.record)
                        kept.append(row)
                pack.cut()
                rows += kept
        rows.sort(key=lambda row: row.record.sequence)
        with self._index.write() as change:
            book = Ledger(change, self._read_upper)
            for digest, place in blobs.items():
                if not is_kept(change, digest):
                    book.blob(digest, place.container, place.offset, place.length)
            for row in rows:
                replay.enter(book, row)
            book.finish()
            # The numbers of what was cut are not used again, and whoever still holds such records is late.
            change.set_number(b"sequence", max(change.number(b"sequence"), gate.last_sequence()))
            for pack in taken:
                change.put_pack(pack.file.number, PackState(pack.file.kind, pack.sealed, pack.end))
        if rows:
            gate.note_sequence(max(gate.last_sequence(), rows[-1].record.sequence))

    def _resolves(self, snapshot: Snapshot, row: replay.HeadRecord, blobs: dict[bytes, Place]) -> bool:
        if row.record.kind != packs.STORED:
            return True
        try:
            head = record.unpack_head(row.payload)
            header.parse_head(head)
        except HilumError:
            return False  # nobody was told of it, and a store that can't be opened helps nobody
        holes = head.holes
        return all(hole.digest in blobs or snapshot.lasting_place(hole.digest) is not None for hole in holes)


def is_kept(snapshot: Snapshot, digest: bytes) -> bool:
    """Whether a blob need not be appended again: it is there, not known to be bad, and will stay."""
    place = snapshot.lasting_place(digest)
    return place is not None and not place.bad


def next_pack_number(folder: Folder, index: Index) -> int:
    """A number that no pack has or had. The caller holds the commit lock."""
    numbers = [file.number for file in packs.list_packs(folder.packs)]
    numbers += [file.number for file in packs.list_packs(folder.spool)]
    with index.read() as snapshot:
        highest = max([snapshot.number(b"last_pack"), *numbers], default=0)
    with index.write() as change:
        change.set_number(b"last_pack", highest + 1)
    return highest + 1


def new_pack(folder: Folder, index: Index, kind: int) -> PackWriter:
    """A new pack. The caller holds the commit lock, so that nobody takes it for one that was left."""
    return PackWriter.create(folder.packs, next_pack_number(folder, index), kind, folder.uuid)


def end_compaction(folder: Folder, index: Index) -> None:
    """Finish what a killed compaction began, if none is at work. The caller holds the commit lock.

    What it condemned may be relied on again, as far as it is still there; what it dropped goes.
    """
    with index.read() as snapshot:
        if not snapshot.condemned() and not any(state.dropped for state in snapshot.packs().values()):
            return
    fd = folder.lock_compaction()
    if fd is None:
        return
    try:
        finish_compaction(folder, index)
    finally:
        os.close(fd)


def finish_compaction(folder: Folder, index: Index) -> None:
    """The same for whoever holds the lock of compaction too."""
    with index.write() as change:
        spare(change, change.condemned())
    remove_dropped(folder, index)


def spare(change: Change, numbers: Iterable[int]) -> None:
    """Let packs be condemned no more."""
    states = change.packs()
    gone = set(numbers)
    for number in gone:
        if number in states:
            change.put_pack(number, states[number]._replace(condemned=False))
    change.condemn(change.condemned() - gone)


def remove_dropped(folder: Folder, index: Index) -> int:
    """Remove the files of dropped packs, durably, then their states; return how many.

    The caller holds the commit lock and that of compaction.
    """
    with index.read() as snapshot:
        dropped = {number: state for number, state in snapshot.packs().items() if state.dropped}
    if not dropped:
        return 0
    for number, state in dropped.items():
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(folder.packs, packs.pack_name(number, state.kind)))
    # Without this a power loss could bring a pack back that a later compaction took for gone.
    packs.sync_directory(folder.packs)
    with index.write() as change:
        for number in dropped:
            change.drop_pack(number)
    return len(dropped)


class _Unsealed:
    """A pack that recovery holds the lock of."""

    def __init__(self, file: PackFile, fd: int, info: packs.PackInfo, end: int) -> None:
        self.file, self.fd, self.info, self.end = file, fd, info, end
        self._begin = end
        self.size = os.fstat(fd).st_size
        self.sealed = False

    def advance(self, found: packs.Record) -> None:
        if found.kind != packs.FOOTER:
            self.end = found.offset + found.length + packs.padding(found.length)
        elif packs.sealed_end(self.fd, self.info, self.size) is not None:
            self.end = self.size
            self.sealed = True  # otherwise it is cut: nothing may lie behind a footer

    def cut(self) -> None:
        """Drop what is not whole, and make durable what is."""
        if self.end < self.size:
            os.ftruncate(self.fd, self.end)
            self.size = self.end
        # What is left is written again: if a sync failed here, the kernel takes its pages for clean, and
        # reads them out of memory, though they never reached the disk. A sync writes only what is dirty.
        at = self._begin
        while at < self.end and (data := os.pread(self.fd, min(1 << 20, self.end - at), at)):
            at += os.pwrite(self.fd, data, at)
        os.fsync(self.fd)


def _take_unsealed(folder: Folder, index: Index) -> list[_Unsealed]:
    """Lock every unsealed head and bulk pack that nobody else holds."""
    with index.read() as snapshot:
        states = snapshot.packs()
    taken = []
    for file in packs.list_packs(folder.packs):
        state = states.get(file.number)
        if file.kind not in (HEAD_PACK, BULK_PACK):
            continue
        if state is not None and (state.sealed or state.condemned or state.dropped):
            continue
        fd = packs.open_for_writing(file)
        if fd is None:
            continue
        try:
            info = packs.read_info(fd, file.path)
        except Corrupt:
            if state is None and os.fstat(fd).st_size <= packs.PACK_HEADER.size:
                # A crash between the file's creation and its header: nothing in it was ever committed.
                os.unlink(file.path)
            os.close(fd)
            continue
        end = state.end if state is not None else packs.PACK_HEADER.size
        pack = _Unsealed(file, fd, info, end)
        ours = info.store == folder.uuid and info.number == file.number and info.kind == file.kind
        if not ours or pack.size < end:
            os.close(fd)  # damaged: left as it is for verify to tell, and not written to
            continue
        taken.append(pack)
    return taken
