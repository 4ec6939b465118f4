"""Takes an open store; gives back the space of what nobody can ask for any more. What is alive in wasteful
packs is copied, byte for byte, to new ones; no answer ever changes, and no pack is written to.

    mark what is alive · condemn wasteful packs · mark what has come since · copy, sync, commit the new places
    · look for anything that still relies on a condemned pack · drop · wait for readers · unlink

docs/format.md (Compaction) says why each step is safe, and what a crash behind it leaves. Importers, deleters
and readers go on meanwhile; one compaction is at work at a time.
"""

from __future__ import annotations

import contextlib
import heapq
import math
import os
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from isal.isal_zlib import crc32

from hilum.engine import catalog, header, ledger, packs, record, replay, writer
from hilum.engine.document import read_heads
from hilum.engine.index import U64, Change, PackState, pack_place, unpack_place
from hilum.engine.ledger import CHANGE_DELETED, PURGED_CONFLICTS, PURGED_REVISIONS
from hilum.engine.packs import (
    ALIGN,
    BULK_PACK,
    FILE_PACK,
    FOOTER_ENTRY,
    HEAD_PACK,
    PACK_HEADER,
    RECORD_SIZE,
    TRAILER,
    PackFile,
    PackWriter,
    Place,
)
from hilum.engine.record import Head, Instance
from hilum.engine.replay import HeadRecord
from hilum.engine.store import Store
from hilum.errors import Corrupt, HilumError, StoreLocked

WASTE_PERCENT = 4.0  # of a pack's bytes: 4 % of the whole is less than 5 % of what is alive
GRACE_SECONDS = 10.0
COMMIT_COUNT = 2_000  # records that one transaction moves, which must stay under 50 ms
COMMIT_BYTES = 64 << 20
SCAN_INSTANCES = 2_000
SCAN_PLACES = 20_000
ROUNDS_MAX = 8  # two do, but where there is little room, or others delete meanwhile
HEAD_PACKS_MAX = 100  # that are merged at once: each has a window in memory
_ROOM_LEFT = 16 << 20

Progress = Callable[[str, int, int], None]  # what is done, how much of it, of how much


class Compacted(NamedTuple):
    """What a compaction did."""

    packs: int  # that went
    copied: int  # bytes
    before: int  # bytes of all packs
    after: int
    alive: int  # bytes among them that are in use
    busy: list[str]  # wasteful packs that somebody writes to: they were left alone
    problems: list[str]  # others that were, and why


class Purged(NamedTuple):
    """What a purge took away."""

    revisions: int
    conflicts: int


def compact(
    store: Store,
    *,
    waste: float = WASTE_PERCENT,
    grace: float = GRACE_SECONDS,
    on_progress: Progress = lambda what, done, total: None,
) -> Compacted:
    """Copy what is alive out of each pack that wastes more than `waste` percent, and remove that pack.

    Its file stays for `grace` seconds: a reader that has just looked a place up reads on undisturbed.

    Raises:
        ReadOnly: the store was opened for reading.
        StoreLocked: another process compacts or verifies it.
        StoreBroken: the disk is full or broken. Nothing is lost; run it again.
    """
    store.writer.rest()  # its packs may be wasteful too
    alone = store.folder.lock_compaction()
    if alone is None:
        raise StoreLocked(f"{store.path} is being compacted or verified by another process")
    try:
        return _Compaction(store, waste, grace, on_progress).run()
    finally:
        os.close(alone)


def purge(store: Store, keys: dict[str, str] | Iterable[tuple[str, str]] = ()) -> Purged:
    """Forget the older revisions of instances that match, durably; without keys all revisions, and the
    conflicts of instances that are no longer stored. A compaction then gives their space back.

    Raises:
        BadQuery: as Store.find().
        ReadOnly: the store was opened for reading.
    """
    pairs = list(keys.items() if isinstance(keys, dict) else keys)
    chosen = set(store.find_uids("instances", pairs)) if pairs else None
    with store.index.read() as snapshot:
        revised = {ledger.uid_of_revision_key(key) for key, _ in snapshot.scan(b"revisions")}
        refused = {ledger.unpack_verdict(value).uid for _, value in snapshot.scan(b"conflicts")}
        gone = {uid for uid in refused if snapshot.get(b"sop_uids", uid) is None}
    if chosen is not None:
        revised &= chosen
        gone = set()
    return Purged(
        store.writer.purge([(PURGED_REVISIONS, uid) for uid in sorted(revised)]),
        store.writer.purge([(PURGED_CONFLICTS, uid) for uid in sorted(gone)]),
    )


class _Marks:
    """What is alive, by pack: at least all that was when it was marked, and all that came until follow()."""

    def __init__(self, store: Store, on_progress: Progress) -> None:
        self._store = store
        self._on_progress = on_progress
        with store.index.read() as snapshot:
            self.states = snapshot.packs()
            self._since = snapshot.number(b"sequence")
            self._total = snapshot.count(b"instances") + snapshot.count(b"revisions")
        self._alive: dict[int, array[int]] = {}  # offsets and lengths of payloads, in turn
        self.spoilt: set[int] = set()  # packs with a blob that is known to be bad, and alive
        self.damaged: list[str] = []  # heads that can't be read: nobody knows which blobs they name
        self._done = 0
        for table in (b"instances", b"revisions"):
            for rows in self._rows(table):
                self._mark(rows)

    def follow(self) -> None:
        """Mark what was stored since marking began, and is alive at this moment."""
        start = self._since + 1
        while True:
            found = []
            with self._store.index.read() as snapshot:
                rows = list(islice(snapshot.scan(b"changes", U64.pack(start)), SCAN_INSTANCES))
                for _, value in rows:
                    stored = snapshot.get(b"instances", value[1:]) if value[0] != CHANGE_DELETED else None
                    if stored is None:
                        continue  # gone; or replaced, and then a revision of what has a later number
                    found.append(record.unpack_instance(stored))
                    prefix = catalog.uid_of(stored) + b"\0"
                    for _, revision in snapshot.scan_prefix(b"revisions", prefix):
                        found.append(record.unpack_instance(revision))
            if not rows:
                self._since = start - 1
                return
            self._mark(found)
            start = U64.unpack(rows[-1][0])[0] + 1

    def alive(self, number: int) -> dict[int, int]:
        """Offset and length of each payload of a pack that is alive."""
        pairs = self._alive.get(number, array("Q"))
        return dict(zip(pairs[::2], pairs[1::2], strict=True))

    def _rows(self, table: bytes) -> Iterator[list[Instance]]:
        """All rows, each look at the index a short one: old pages must not be held for long.

        What comes or is moved behind our back has a later sequence number, and is follow()'s.
        """
        start = b""
        while True:
            with self._store.index.read() as snapshot:
                rows = list(islice(snapshot.scan(table, start), SCAN_INSTANCES))
            if not rows:
                return
            yield [record.unpack_instance(value) for _, value in rows]
            start = rows[-1][0] + b"\0"

    def _mark(self, instances: Sequence[Instance]) -> None:
        for instance in instances:
            self._add(instance.container, instance.offset, instance.head_length + instance.table_length)
        digests = {hole.digest for head in self._heads(instances) for hole in head.holes}
        with self._store.index.read() as snapshot:
            for digest in sorted(digests):
                place = snapshot.place(digest)
                if place is not None:
                    self._add(place.container, place.offset, place.length)
                    if place.bad:
                        self.spoilt.add(place.container)
        self._done += len(instances)
        self._on_progress("mark", self._done, max(self._total, self._done))

    def _heads(self, instances: Sequence[Instance]) -> Iterator[Head]:
        try:
            yield from read_heads(self._store.packs, instances)
            return
        except HilumError:
            pass
        for instance in instances:
            try:
                yield self._store.read_head(instance)
            except HilumError as failure:
                self.spoilt.add(instance.container)
                self.damaged.append(str(failure))

    def _add(self, container: int, offset: int, length: int) -> None:
        pairs = self._alive.get(container)
        if pairs is None:
            pairs = self._alive[container] = array("Q")
        pairs.append(offset)
        pairs.append(length)


class _HeadPack:
    """What the records of one head pack are, beside the heads that are alive."""

    def __init__(self, file: PackFile, end: int) -> None:
        self.file, self.end = file, end
        self.states: list[tuple[int, int, int, int]] = []  # kind, sequence, offset, length; until judged
        self.kept: set[int] = set()  # offsets of changes of state that a rebuild needs
        self.kept_bytes = 0
        self._latent = array("Q")  # kind, sequence and offset, in turn, of what a rebuild would enter
        self.damaged = False

    @property
    def first_latent(self) -> float:
        """The lowest sequence number of a record that is dead, and only a later one keeps it so."""
        return min(self._latent[1::3], default=math.inf)

    def latent(self) -> Iterator[tuple[int, int, int]]:
        return zip(self._latent[::3], self._latent[1::3], self._latent[2::3], strict=True)

    def note_latent(self, kind: int, sequence: int, offset: int) -> None:
        self._latent.extend((kind, sequence, offset))

    def keep(self, offset: int, length: int) -> None:
        self.kept.add(offset)
        self.kept_bytes += _size(length)


class _Victim(NamedTuple):
    """A pack whose space is worth having."""

    file: PackFile
    copied: int  # bytes that must be copied
    kept: set[int]  # of a head pack: offsets of the changes of state that stay


class _Round(NamedTuple):
    victims: list[_Victim]
    alive: int  # bytes in use in all packs


class _Choice:
    """Which packs waste space: what is dead in them, and which changes of state no rebuild needs any more.

    A deletion or purge is needed as long as any other pack has a record that it takes back. The packs that
    go in this round count too: they are on disk until all is done, and a power loss may bring them back.
    """

    def __init__(self, store: Store, marks: _Marks, waste: float) -> None:
        self._store, self._marks, self._waste = store, marks, waste
        self.problems: list[str] = []
        self._files = {file.number: file for file in packs.list_packs(store.folder.packs)}
        self._all_needed = False  # there may be records that nobody can see: every deletion stays
        self._latent: dict[bytes, int] = {}  # UID → sequence of the first record that a rebuild would enter
        self._alive_bytes = 0

    def run(self) -> _Round:
        victims = [*self._head_victims(), *self._blob_victims()]
        return _Round(victims, self._alive_bytes)

    def _is_wasteful(self, dead: int, end: int) -> bool:
        return dead > 0 and dead * 100 > self._waste * end

    def _alive(self, number: int, state: PackState) -> dict[int, int]:
        """What is alive in a pack, up to where it went when marking began: somebody may write to it."""
        alive = self._marks.alive(number)
        return {offset: length for offset, length in alive.items() if offset < state.end}

    # Heads and changes of state.

    def _head_victims(self) -> Iterator[_Victim]:
        sizes: dict[int, int] = {}  # bytes of heads that are alive, and of what a pack needs of its own
        opened: dict[int, _HeadPack] = {}
        for number, state in self._marks.states.items():
            if state.kind != HEAD_PACK:
                continue
            alive = self._alive(number, state)
            own = PACK_HEADER.size + (RECORD_SIZE + TRAILER.size) * state.sealed
            sizes[number] = own + sum(map(_size, alive.values()))
            self._alive_bytes += sizes[number]
            if number not in self._files:
                self._all_needed = True  # it may be put back from a backup
            elif sizes[number] != state.end:
                opened[number] = self._look_into(self._files[number], state, alive)
        strange = self._files.keys() - self._marks.states.keys()
        self._all_needed |= any(self._files[number].kind == HEAD_PACK for number in strange)
        first = {  # likely victims: what they hide is not looked at one by one
            number: pack.first_latent
            for number, pack in opened.items()
            if not pack.damaged
            and self._is_wasteful(pack.end - sizes[number] - sum(_size(n) for *_, n in pack.states), pack.end)
        }
        for number, pack in opened.items():
            if number not in first:
                self._list_latent(pack)
        for number, pack in opened.items():
            self._judge(pack, min((n for other, n in first.items() if other != number), default=math.inf))
            self._alive_bytes += pack.kept_bytes
        for number, pack in opened.items():
            if pack.damaged:
                self.problems.append(f"{_name(pack.file)}: it is damaged; run: hilum verify")
                continue
            live = sizes[number] + pack.kept_bytes
            if self._is_wasteful(pack.end - live, pack.end):
                yield _Victim(pack.file, live, pack.kept)

    def _look_into(self, file: PackFile, state: PackState, alive: dict[int, int]) -> _HeadPack:
        pack = _HeadPack(file, state.end)
        found = 0
        try:
            with _opened(self._store, file, state) as (fd, info):

                def on_bad(container: int, offset: int) -> None:
                    pack.damaged = True

                at = PACK_HEADER.size
                for row in replay.read_head_records(fd, info, at, state.end, on_bad=on_bad):
                    kind, offset, length, sequence, *_ = row.record
                    at = offset + _size(length) - RECORD_SIZE
                    if kind == packs.FOOTER:
                        at = state.end
                        break
                    if kind == packs.STORED and offset in alive:
                        found += 1
                    elif kind == packs.STORED:
                        pack.note_latent(kind, sequence, offset)
                    elif kind == packs.CONFLICT and self._is_known(row.payload):
                        pack.keep(offset, length)
                    elif kind == packs.CONFLICT:
                        pack.note_latent(kind, sequence, offset)
                    elif kind in (packs.DELETED, packs.PURGED, packs.BAD_BLOB):
                        pack.states.append((kind, sequence, offset, length))
                    else:
                        pack.damaged = True  # of a later version, perhaps: nothing that we could judge
        except Corrupt:
            pack.damaged = True
        else:
            # What came since the pack's end was looked up lies behind it.
            pack.damaged |= at != state.end or found != sum(offset < state.end for offset in alive)
        if pack.damaged:
            self._all_needed = True
        return pack

    def _is_known(self, payload: bytes) -> bool:
        verdict = ledger.unpack_verdict(payload)
        with self._store.index.read() as snapshot:
            return snapshot.get(b"conflicts", ledger.conflict_key(verdict.uid, verdict.refused)) == payload

    def _list_latent(self, pack: _HeadPack) -> None:
        """Note the UID of each record that would be entered by a rebuild, were it not for later ones."""
        for kind, sequence, offset in pack.latent():
            try:
                payload = self._payload(pack, offset)
                if kind == packs.STORED:
                    uid = header.parse_head(record.unpack_head(payload)).uid
                else:
                    uid = ledger.unpack_verdict(payload).uid
            except HilumError:
                self._all_needed = True
                return
            self._latent[uid] = min(sequence, self._latent.get(uid, sequence))

    def _judge(self, pack: _HeadPack, first_elsewhere: float) -> None:
        for kind, sequence, offset, length in pack.states:
            if kind == packs.BAD_BLOB:
                places = ledger.unpack_bad_blobs(self._payload(pack, offset))
                needed = any(n in self._files or n in self._marks.states for n, _ in places)
            else:
                needed = self._all_needed or first_elsewhere < sequence
                if not needed and self._latent:
                    payload = self._payload(pack, offset)
                    uids = ledger.unpack_uids(payload) if kind == packs.DELETED else None
                    if uids is None:
                        uids = [uid for _, uid in ledger.unpack_purged(payload)]
                    needed = any(self._latent.get(uid, sequence) < sequence for uid in uids)
            if needed:
                pack.keep(offset, length)

    def _payload(self, pack: _HeadPack, offset: int) -> bytes:
        reader = self._store.packs
        head = reader.read((HEAD_PACK,), pack.file.number, offset - RECORD_SIZE, RECORD_SIZE)
        length = int.from_bytes(head[16:24], "little")
        return reader.read((HEAD_PACK,), pack.file.number, offset, length)

    # Blobs.

    def _blob_victims(self) -> Iterator[_Victim]:
        for number, state in self._marks.states.items():
            if state.kind == HEAD_PACK:
                continue
            alive = self._alive(number, state)
            live = PACK_HEADER.size + sum(map(_size, alive.values()))
            if state.kind == FILE_PACK:
                live = state.end if alive else 0
            elif state.sealed:
                live += RECORD_SIZE + FOOTER_ENTRY.size * len(alive) + TRAILER.size
            self._alive_bytes += live
            file = self._files.get(number)
            if file is None:
                continue
            wasteful = self._is_wasteful(state.end - live, state.end)
            if not wasteful and not (state.sealed and state.kind == BULK_PACK):
                continue
            try:
                with _opened(self._store, file, state) as (fd, info):
                    # One whose footer is damaged is read as a whole by each rebuild.
                    if not wasteful and packs.read_footer(fd, info, state.end) is not None:
                        continue
            except Corrupt as failure:
                self.problems.append(f"{_name(file)}: {failure}; run: hilum verify")
                continue
            if self._marks.damaged:
                self.problems.append(f"{_name(file)}: a damaged head may need it; run: hilum verify")
            elif number in self._marks.spoilt:
                self.problems.append(f"{_name(file)}: it has damaged blobs; run: hilum verify")
            else:
                yield _Victim(file, live, set())


class _Output:
    """New packs of one kind, filled one after the other. Each is locked until a commit has named it."""

    def __init__(self, store: Store, kind: int) -> None:
        self._store, self._kind = store, kind
        self._pack: PackWriter | None = None
        self._sealed: list[PackWriter] = []

    def append(self, kind: int, payload: bytes, *, digest: bytes, crc: int, sequence: int) -> Place:
        if self._pack is not None and self._pack.end >= writer.PACK_MAX:
            self._pack.seal()
            self._sealed.append(self._pack)
            self._pack = None
        if self._pack is None:
            with self._store.folder.commit_lock():
                self._pack = writer.new_pack(self._store.folder, self._store.index, self._kind)
        return self._pack.append(kind, payload, digest=digest, crc=crc, sequence=sequence)

    def sync(self) -> None:
        if self._pack is not None:
            self._pack.sync()

    def put(self, change: Change) -> None:
        """Say how far each pack goes; all of that is synced."""
        for pack in self._sealed:
            change.put_pack(pack.number, PackState(self._kind, True, pack.end))
        if self._pack is not None:
            change.put_pack(self._pack.number, PackState(self._kind, False, self._pack.end))

    def let_go(self) -> None:
        while self._sealed:
            self._sealed.pop().close()

    def close(self) -> None:
        self.let_go()
        if self._pack is not None:
            self._pack.close()
            self._pack = None


class _MovedHead(NamedTuple):
    uid: bytes
    sequence: int
    old: tuple[int, int]  # container, offset
    new: Place


class _MovedBlob(NamedTuple):
    digest: bytes
    old: tuple[int, int]
    new: Place


class _Compaction:
    def __init__(self, store: Store, waste: float, grace: float, on_progress: Progress) -> None:
        self._store = store
        self._folder, self._index = store.folder, store.index
        self._waste, self._grace = waste, grace
        self._on_progress = on_progress
        self._problems: dict[str, None] = {}  # each once, in their order
        self._busy: dict[str, None] = {}
        self._failed: set[int] = set()  # packs that turned out to be damaged, or are still relied on
        self._gone = self._copied = 0
        self._done = self._to_do = 0
        self._heads = _Output(store, HEAD_PACK)
        self._states = _Output(store, HEAD_PACK)  # apart: most of it goes in the next round
        self._blobs = _Output(store, BULK_PACK)
        self._moved_heads: list[_MovedHead] = []
        self._moved_blobs: list[_MovedBlob] = []
        self._waiting = 0  # bytes copied since the last commit

    def run(self) -> Compacted:
        self._folder.make_room()
        self._store.writer.recover()
        with self._folder.commit_lock():
            writer.finish_compaction(self._folder, self._index)
            self._remove_nameless()
        before = self._size()
        for left in reversed(range(ROUNDS_MAX + 1)):
            marks = _Marks(self._store, self._on_progress)
            choice = _Choice(self._store, marks, self._waste)
            victims, alive = choice.run()
            self._tell(choice.problems)
            victims = self._that_fit([one for one in victims if one.file.number not in self._failed])
            if not victims or not left or not self._round(marks, victims):
                break
        return Compacted(
            self._gone, self._copied, before, self._size(), alive, list(self._busy), list(self._problems)
        )

    def _tell(self, problems: Iterable[str]) -> None:
        self._problems.update(dict.fromkeys(problems))

    def _size(self) -> int:
        total = 0
        for file in packs.list_packs(self._folder.packs):
            with contextlib.suppress(FileNotFoundError):
                total += os.path.getsize(file.path)
        return total

    def _remove_nameless(self) -> None:
        """Remove file packs that a crash left between their rename and the commit. Under the commit lock."""
        with self._index.read() as snapshot:
            states, last = snapshot.packs(), snapshot.number(b"last_pack")
        for file in packs.list_packs(self._folder.packs):
            # One with a later number than this index ever gave is not its to judge.
            if file.kind == FILE_PACK and file.number not in states and file.number <= last:
                fd = packs.open_for_writing(file)
                if fd is not None:  # else its writer is alive, and about to commit
                    os.unlink(file.path)
                    os.close(fd)
                    self._gone += 1

    def _that_fit(self, victims: list[_Victim]) -> list[_Victim]:
        """As many as there is room to copy, those first that cost the least; the next round has more room."""
        status = os.statvfs(self._folder.path)
        room = status.f_bavail * status.f_frsize - _ROOM_LEFT
        heads = [one for one in victims if one.file.kind == HEAD_PACK]
        blobs = [one for one in victims if one.file.kind != HEAD_PACK]
        chosen: list[_Victim] = []
        copied = 0
        for group, count_max in ((heads, HEAD_PACKS_MAX), (blobs, len(blobs))):
            for one in sorted(group, key=lambda one: one.copied)[:count_max]:
                if copied + one.copied <= (room if not chosen else room // 2):
                    chosen.append(one)
                    copied += one.copied
        if victims and not chosen:
            self._tell(["the disk has no room to copy what is alive in any pack"])
        return sorted(chosen, key=lambda one: one.file.number)

    # One round.

    def _round(self, marks: _Marks, victims: list[_Victim]) -> bool:
        """Empty some packs and remove them; return whether any went."""
        locks: list[int] = []
        try:
            victims = self._condemn(marks, victims, locks)
            marks.follow()
            alive = {one.file.number: marks.alive(one.file.number) for one in victims}
            for one in victims:
                came_back = one.file.kind == FILE_PACK and alive[one.file.number]
                if came_back or (one.file.kind != HEAD_PACK and marks.damaged):
                    self._failed.add(one.file.number)
            self._done, self._to_do = 0, sum(one.copied for one in victims)
            self._copy_heads([one for one in victims if one.file.kind == HEAD_PACK], marks.states, alive)
            for one in victims:
                if one.file.kind == BULK_PACK and one.file.number not in self._failed:
                    self._copy_blobs(one.file, marks.states[one.file.number], alive[one.file.number])
            self._commit()
            self._find_users(alive)
            gone = self._drop(alive)
        except BaseException:
            # What was copied stays copied; what was not is as good as before.
            with contextlib.suppress(HilumError), self._folder.commit_lock(), self._index.write() as change:
                writer.spare(change, change.condemned())
            raise
        finally:
            for output in (self._heads, self._states, self._blobs):
                output.close()
            for fd in locks:
                os.close(fd)
        if gone:
            self._wait()
            with self._folder.commit_lock():
                self._gone += writer.remove_dropped(self._folder, self._index)
        return bool(gone)

    def _condemn(self, marks: _Marks, victims: list[_Victim], locks: list[int]) -> list[_Victim]:
        """From this commit on nobody relies on these packs anew. Those are passed over that somebody writes
        to, or has written to since they were marked: they may hold what no mark knows.
        """
        chosen = []
        with self._folder.commit_lock(), self._index.write() as change:
            states = change.packs()
            for one in victims:
                number = one.file.number
                state = states.get(number)
                if state is None or state != marks.states[number]:
                    continue
                if not state.sealed:
                    fd = packs.open_for_writing(one.file)
                    if fd is None:
                        self._busy[_name(one.file)] = None
                        continue
                    locks.append(fd)
                change.put_pack(number, state._replace(condemned=True))
                chosen.append(one)
            change.condemn(one.file.number for one in chosen)
        return chosen

    def _copy_heads(
        self, victims: list[_Victim], states: dict[int, PackState], alive: dict[int, dict[int, int]]
    ) -> None:
        """All at once, since the records of a pack stand in the order of their sequence numbers."""
        with contextlib.ExitStack() as stack:
            rows = [
                self._live_rows(stack, one, states[one.file.number], alive[one.file.number])
                for one in victims
            ]
            for row in heapq.merge(*rows, key=lambda row: row.record.sequence):
                found = row.record
                is_head = found.kind == packs.STORED
                try:
                    uid = header.parse_head(record.unpack_head(row.payload)).uid if is_head else b""
                except HilumError as failure:
                    self._fail(row.container, f"the head at byte {found.offset}: {failure}")
                    continue
                place = (self._heads if is_head else self._states).append(
                    found.kind, row.payload, digest=found.digest, crc=found.crc, sequence=found.sequence
                )
                if is_head:
                    old = row.container, found.offset
                    self._moved_heads.append(_MovedHead(uid, found.sequence, old, place))
                self._count(found.length)

    def _live_rows(
        self, stack: contextlib.ExitStack, one: _Victim, state: PackState, alive: dict[int, int]
    ) -> Iterator[HeadRecord]:
        fd, info = stack.enter_context(_opened(self._store, one.file, state))

        def on_bad(container: int, offset: int) -> None:
            self._fail(container, f"the record at byte {offset} is damaged")

        left = len(one.kept)
        for row in replay.read_head_records(fd, info, PACK_HEADER.size, state.end, on_bad=on_bad):
            if row.record.kind == packs.FOOTER:
                break
            if row.record.kind == packs.STORED:
                if row.record.offset in alive:
                    yield row
            elif row.record.offset in one.kept:
                left -= 1
                yield row
        if left:  # of heads the index knows which are missing
            self._fail(one.file.number, "a change of state that it had is gone")

    def _copy_blobs(self, file: PackFile, state: PackState, alive: dict[int, int]) -> None:
        with _opened(self._store, file, state) as (fd, info):
            for offset in sorted(alive):
                length = alive[offset]
                data = packs.pread_exactly(fd, RECORD_SIZE + length, offset - RECORD_SIZE)
                found = packs.parse_record(data[:RECORD_SIZE], offset - RECORD_SIZE, info.salt)
                payload = data[RECORD_SIZE:]
                fits = found is not None and (found.kind, found.length) == (packs.BLOB, len(payload))
                if found is None or not fits or crc32(payload) != found.crc:
                    self._fail(file.number, f"the blob at byte {offset} is damaged")
                    continue
                with self._index.read() as snapshot:
                    place = snapshot.place(found.digest)
                if place is None or place[:2] != (file.number, offset):
                    continue  # it was sent again meanwhile, and lies elsewhere
                new = self._blobs.append(packs.BLOB, payload, digest=found.digest, crc=found.crc, sequence=0)
                self._moved_blobs.append(_MovedBlob(found.digest, (file.number, offset), new))
                self._count(length)

    def _fail(self, number: int, what: str) -> None:
        self._failed.add(number)
        self._tell([f"pack {number}: {what}; run: hilum verify"])

    def _count(self, length: int) -> None:
        self._copied += length
        self._waiting += length
        self._done += _size(length)
        if len(self._moved_heads) + len(self._moved_blobs) >= COMMIT_COUNT or self._waiting >= COMMIT_BYTES:
            self._commit()
        self._on_progress("copy", min(self._done, self._to_do), self._to_do)

    def _commit(self) -> None:
        """Make the copies durable, and then the places that are looked up."""
        for output in (self._blobs, self._heads, self._states):
            output.sync()
        with self._folder.commit_lock(), self._index.write() as change:
            for blob in self._moved_blobs:
                place = change.place(blob.digest)
                if place is not None and place[:2] == blob.old:
                    change.put(b"places", blob.digest, pack_place(*blob.new))
            for head in self._moved_heads:
                self._move_head(change, head)
            for output in (self._blobs, self._heads, self._states):
                output.put(change)
        for output in (self._blobs, self._heads, self._states):
            output.let_go()
        self._moved_blobs.clear()
        self._moved_heads.clear()
        self._waiting = 0

    def _move_head(self, change: Change, head: _MovedHead) -> None:
        """It may have become a revision since, or have gone."""
        key = change.get(b"sop_uids", head.uid)
        rows = [(b"instances", key)] if key is not None else []
        rows.append((b"revisions", ledger.revision_key(head.uid, head.sequence)))
        for table, name in rows:
            value = change.get(table, name)
            if value is not None:
                instance = record.unpack_instance(value)
                if (instance.container, instance.offset) == head.old:
                    moved = record.moved_instance(value, head.new.container, head.new.offset)
                    change.put(table, name, moved)

    # The end of a round.

    def _find_users(self, alive: dict[int, dict[int, int]]) -> None:
        """Look through the whole index for what still relies on a condemned pack. What is dead is taken out
        of it; a pack with anything else stays.
        """
        for table in (b"instances", b"revisions"):
            start = b""
            while rows := self._scan(table, start):
                for _, value in rows:
                    self._stay(record.unpack_instance(value).container, alive)
                start = rows[-1][0] + b"\0"
        start = b""
        while rows := self._scan(b"places", start):
            dead = []
            for digest, value in rows:
                place = unpack_place(value)
                if place.container in alive and place.container not in self._failed:
                    if place.offset in alive[place.container]:
                        self._stay(place.container, alive)
                    else:
                        dead.append(digest)
            for at in range(0, len(dead), COMMIT_COUNT):
                self._forget(dead[at : at + COMMIT_COUNT], alive)
            start = rows[-1][0] + b"\0"

    def _scan(self, table: bytes, start: bytes) -> list[tuple[bytes, bytes]]:
        with self._index.read() as snapshot:
            return list(islice(snapshot.scan(table, start), SCAN_PLACES))

    def _stay(self, container: int, alive: dict[int, dict[int, int]]) -> None:
        if container in alive and container not in self._failed:
            self._fail(container, "something that was not copied is alive in it")

    def _forget(self, digests: Sequence[bytes], alive: dict[int, dict[int, int]]) -> None:
        with self._folder.commit_lock(), self._index.write() as change:
            for digest in digests:
                place = change.place(digest)
                if place is not None and place.container in alive:  # not sent again meanwhile
                    change.delete(b"places", digest)
                    change.delete(b"bad", digest)

    def _drop(self, alive: dict[int, dict[int, int]]) -> list[int]:
        with self._folder.commit_lock(), self._index.write() as change:
            gone = [number for number in alive if number not in self._failed]
            states = change.packs()
            for number in gone:
                change.put_pack(number, states[number]._replace(condemned=False, dropped=True))
            writer.spare(change, [number for number in alive if number in self._failed])
            change.condemn(change.condemned() - set(gone))
        return gone

    def _wait(self) -> None:
        """Let readers end who looked a place up before it was moved."""
        end = time.monotonic() + self._grace
        while (left := end - time.monotonic()) > 0:
            self._on_progress("wait", round(self._grace - left), round(self._grace))
            time.sleep(min(left, 0.5))


class _opened:
    """A pack's descriptor and header, for as long as it is looked at.

    Raises:
        Corrupt: it is cut, or not the pack that it should be.
    """

    def __init__(self, store: Store, file: PackFile, state: PackState) -> None:
        self._store, self._file, self._state = store, file, state

    def __enter__(self) -> tuple[int, packs.PackInfo]:
        file = self._file
        self._fd = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            info = packs.read_info(self._fd, _name(file))
            if (info.store, info.number, info.kind) != (self._store.folder.uuid, file.number, file.kind):
                raise Corrupt(f"{_name(file)} belongs to another store or place")
            if os.fstat(self._fd).st_size < self._state.end:
                raise Corrupt(f"{_name(file)} is cut")
        except BaseException:
            os.close(self._fd)
            raise
        return self._fd, info

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def _name(file: PackFile) -> str:
    return os.path.basename(file.path)


def _size(length: int) -> int:
    """Bytes that a payload takes in its pack."""
    return RECORD_SIZE + length + -length % ALIGN
