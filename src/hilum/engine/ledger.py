"""Takes changes of state in the order of their sequence numbers; makes the index say what they say.

The writer gives it what it has just appended, recovery and rebuild what they read out of head packs: one
set of rules, so a rebuilt index answers as the old one did. Appends nothing and commits nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from struct import Struct
from typing import NamedTuple

from hilum.engine import record
from hilum.engine.catalog import Catalog
from hilum.engine.index import U64, BlobPlace, Change, Snapshot, pack_place
from hilum.engine.record import Instance

_STUDY = record.NUMBER_OF[0x0020000D]
_SERIES = record.NUMBER_OF[0x0020000E]

CHANGE_STORED, CHANGE_REPLACED, CHANGE_DELETED = 1, 2, 3

_VERDICT = Struct("<BQQ32s32s")  # version, arrival, sequence that was kept, identity refused, identity kept
_BAD = Struct("<IQ")


PURGED_REVISIONS, PURGED_CONFLICTS = 1, 2


class Verdict(NamedTuple):
    """A conflict that was decided for what was stored already."""

    uid: bytes
    arrived_us: int
    kept_sequence: int
    refused: bytes  # identity
    kept: bytes
    source: bytes


def pack_uids(uids: Sequence[bytes]) -> bytes:
    """Payload of a DELETED record: the SOP Instance UIDs that went."""
    return b"".join(bytes((len(uid),)) + uid for uid in uids)


def unpack_uids(payload: bytes) -> list[bytes]:
    uids, at = [], 0
    while at < len(payload):
        uids.append(payload[at + 1 : at + 1 + payload[at]])
        at += 1 + payload[at]
    return uids


def pack_verdict(verdict: Verdict) -> bytes:
    """Payload of a CONFLICT record, and its value in the index."""
    fixed = _VERDICT.pack(1, verdict.arrived_us, verdict.kept_sequence, verdict.refused, verdict.kept)
    return fixed + bytes((len(verdict.uid),)) + verdict.uid + verdict.source


def unpack_verdict(payload: bytes) -> Verdict:
    _, arrived, kept_sequence, refused, kept = _VERDICT.unpack_from(payload)
    at = _VERDICT.size
    uid = payload[at + 1 : at + 1 + payload[at]]
    return Verdict(uid, arrived, kept_sequence, refused, kept, payload[at + 1 + len(uid) :])


def conflict_key(uid: bytes, refused: bytes) -> bytes:
    return uid + b"\0" + refused[:16]


def revision_key(uid: bytes, sequence: int) -> bytes:
    return uid + b"\0" + U64.pack(sequence)


def uid_of_revision_key(key: bytes) -> bytes:
    return key[: -1 - U64.size]


def pack_purged(purged: Sequence[tuple[int, bytes]]) -> bytes:
    """Payload of a PURGED record: what went, and the SOP Instance UID that it was of."""
    return b"".join(bytes((what, len(uid))) + uid for what, uid in purged)


def unpack_purged(payload: bytes) -> list[tuple[int, bytes]]:
    purged, at = [], 0
    while at < len(payload):
        purged.append((payload[at], payload[at + 2 : at + 2 + payload[at + 1]]))
        at += 2 + payload[at + 1]
    return purged


def pack_bad_blobs(places: Sequence[BlobPlace]) -> bytes:
    """Payload of a BAD_BLOB record: places that hold a blob no more, for which there is a better one."""
    return b"".join(_BAD.pack(place.container, place.offset) for place in places)


def unpack_bad_blobs(payload: bytes) -> list[tuple[int, int]]:
    return list(_BAD.iter_unpack(payload))


def uids_of_key(snapshot: Snapshot, key: bytes) -> tuple[bytes, bytes]:
    """(study, series) UIDs of the instance with this key."""
    study = snapshot.get(b"studies", key[:4])
    series = snapshot.get(b"series", key[:8])
    assert study is not None, key
    assert series is not None, key
    return (
        record.raw_of(record.unpack_study(study).entries, _STUDY),
        record.raw_of(record.unpack_series(series).entries, _SERIES),
    )


class Ledger:
    """The changes of one transaction. Call finish() once, at its end."""

    def __init__(self, change: Change, read_upper: Callable[[Instance], bytes]) -> None:
        self._change = change
        self._catalog = Catalog(change, read_upper)
        self._instances: dict[bytes, bytes] = {}
        self._uids: dict[bytes, bytes] = {}
        self._open: dict[bytes, tuple[bytes, Instance, bytes, bytes]] = {}  # stored by this transaction
        self._places: dict[bytes, bytes] = {}
        self._changes: list[tuple[bytes, bytes]] = []
        self._last = 0

    def stored(
        self,
        study: bytes,
        series: bytes,
        uid: bytes,
        upper: bytes,
        instance: Instance,
        *,
        fresh: bool = False,
    ) -> bytes:
        """Enter an instance whose head is in a pack; return its key.

        One that is there already becomes a revision, or is healed. `fresh` says that the caller has just
        seen that this UID is not stored.
        """
        kind = CHANGE_STORED
        if not fresh and (found := self._find(uid)) is not None:
            key, old, old_study, old_series = found
            if old.identity == instance.identity and (old_study, old_series) == (study, series):
                self._keep(key, study, series, uid, instance)
                self._change.delete(b"bad", uid)
                self._note(instance.sequence, kind, key)
                return key
            self._withdraw(uid, key, old, old_study, old_series)
            revision = record.pack_instance(old)
            self._change.put(b"revisions", revision_key(uid, old.sequence), revision)
            kind = CHANGE_REPLACED
        key = self._catalog.add(study, series, uid, upper, instance.original_length)
        self._keep(key, study, series, uid, instance)
        self._note(instance.sequence, kind, key)
        return key

    def deleted(self, sequence: int, uids: Sequence[bytes]) -> int:
        """Take instances out, with their revisions; return how many were there."""
        count = 0
        for uid in uids:
            found = self._find(uid)
            if found is None:
                continue
            count += 1
            key, old, study, series = found
            self._withdraw(uid, key, old, study, series)
            self._change.delete(b"sop_uids", uid)
            self._change.delete(b"bad", uid)
            for revision, _ in list(self._change.scan_prefix(b"revisions", uid + b"\0")):
                self._change.delete(b"revisions", revision)
        self._note(sequence, CHANGE_DELETED, pack_uids(uids))
        return count

    def conflict(self, sequence: int, payload: bytes) -> None:
        verdict = unpack_verdict(payload)
        self._change.put(b"conflicts", conflict_key(verdict.uid, verdict.refused), payload)
        self._last = max(self._last, sequence)

    def purged(self, sequence: int, purged: Sequence[tuple[int, bytes]]) -> int:
        """Forget revisions or verdicts; return how many there were."""
        count = 0
        for what, uid in purged:
            table = b"revisions" if what == PURGED_REVISIONS else b"conflicts"
            for key, _ in list(self._change.scan_prefix(table, uid + b"\0")):
                count += self._change.delete(table, key)
        self._last = max(self._last, sequence)
        return count

    def bad_blobs(self, sequence: int) -> None:
        """Nothing to enter: the better place is in the index by its own record."""
        self._last = max(self._last, sequence)

    def blob(self, digest: bytes, container: int, offset: int, length: int) -> None:
        self._places[digest] = pack_place(container, offset, length)

    def finish(self) -> None:
        """Write all of it."""
        change = self._change
        change.put_many(b"places", self._places.items())
        change.put_many(b"instances", self._instances.items())
        change.put_many(b"sop_uids", self._uids.items())
        change.put_many(b"changes", self._changes)
        self._catalog.finish()
        if self._last > change.number(b"sequence"):
            change.set_number(b"sequence", self._last)

    def _find(self, uid: bytes) -> tuple[bytes, Instance, bytes, bytes] | None:
        found = self._open.get(uid)
        if found is not None:
            return found
        key = self._change.get(b"sop_uids", uid)
        value = self._change.get(b"instances", key) if key is not None else None
        if key is None or value is None:
            return None
        return key, record.unpack_instance(value), *uids_of_key(self._change, key)

    def _keep(self, key: bytes, study: bytes, series: bytes, uid: bytes, instance: Instance) -> None:
        self._instances[key] = record.pack_instance(instance)
        self._uids[uid] = key
        self._open[uid] = key, instance, study, series

    def _withdraw(self, uid: bytes, key: bytes, old: Instance, study: bytes, series: bytes) -> None:
        self._catalog.remove(key, uid, old.original_length, study, series)
        if uid in self._open:
            del self._open[uid], self._instances[key], self._uids[uid]
        self._change.delete(b"instances", key)

    def _note(self, sequence: int, kind: int, what: bytes) -> None:
        self._changes.append((U64.pack(sequence), bytes((kind,)) + what))
        self._last = max(self._last, sequence)
