"""Takes the UIDs of a resource, as a URI names them; gives the instances under it. Decodes nothing.

A resource is a study, a series of it, or an instance of that: UIDs that exist, but not under each other,
name nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from hilum.engine import record
from hilum.engine.catalog import series_key_name
from hilum.engine.frames import FrameReader, Spot
from hilum.engine.header import UID_MAX
from hilum.engine.index import U32, BlobPlace, Index, Snapshot, unpack_place
from hilum.engine.packs import PackReader
from hilum.engine.record import Head, Instance
from hilum.errors import Corrupt, NotFound

_FACTS = 72  # bytes of an instance's record up to its attributes, whatever the transfer syntax
_UID = record.NUMBER_OF[0x00080018]
_SERIES_UID = record.NUMBER_OF[0x0020000E]


class Resource(NamedTuple):
    """One stored instance, with the UIDs above it."""

    study: str
    series: str
    uid: str  # SOP Instance UID
    instance: Instance


def instances(index: Index, study: str, series: str = "", uid: str = "") -> list[Resource]:
    """The instances of a study, of a series or one alone, in the order in which they came.

    Raises:
        NotFound: there is no such study, or no such series in it, or no such instance in that.
    """
    with index.read() as snapshot:
        if uid:
            return [Resource(study, series, uid, _find_instance(snapshot, study, series, uid)[2])]
        prefix = _find_study(snapshot, study)
        if series:
            prefix = _find_series(snapshot, study, prefix, series)
        found = []
        current, series_uid = b"", series
        for key, value in snapshot.scan_prefix(b"instances", prefix):
            if not series and key[:8] != current:
                current = key[:8]
                series_uid = _series_uid(snapshot, current)
            instance = record.unpack_instance(value)
            found.append(Resource(study, series_uid, _uid_of(instance), instance))
    if not found:
        raise NotFound(f"nothing is stored in {series[:80] or study[:80]}")
    return found


def series_of(index: Index, study: str) -> list[str]:
    """The Series Instance UIDs of a study.

    Raises:
        NotFound: there is no such study.
    """
    with index.read() as snapshot:
        prefix = _find_study(snapshot, study)
        return [_series_uid(snapshot, key) for key, _ in snapshot.scan_prefix(b"series", prefix)]


class FrameReaders:
    """Finds readers of frames by the UIDs of their instances, and keeps those that were asked for last.

    None is given before the index has been asked whether it still holds: what was deleted, replaced or moved
    since is found anew, or not at all.
    """

    def __init__(
        self,
        index: Index,
        packs: PackReader,
        read_head: Callable[[Instance], Head],
        where_now: Callable[[Instance], Instance],
        count_max: int = 4096,
    ) -> None:
        self._index = index
        self._packs = packs
        self._read_head = read_head
        self._where_now = where_now
        self._count_max = count_max
        self._kept: dict[tuple[str, str, str], _Kept] = {}

    def get(self, study: str, series: str, uid: str) -> tuple[Instance, FrameReader]:
        """The instance and a reader of its frames.

        Raises:
            NotFound: there is no such instance in that series and study, or it has no pixels.
        """
        name = study, series, uid
        kept = self._kept.pop(name, None)
        with self._index.read() as snapshot:
            # Keys are never used again, so the same record under the same key is the same instance.
            if kept is None or snapshot.get(b"instances", kept.key) != kept.value:
                key, value, instance = _find_instance(snapshot, study, series, uid)
            else:
                key, value, instance = kept.key, kept.value, kept.instance
            place = snapshot.get(b"places", instance.pixel_digest) if instance.pixel_digest else b""
            if kept is None or kept.instance is not instance or kept.place != place:
                reader = self._reader(instance, place)
                kept = _Kept(key, value, place, instance, reader)
        self._kept[name] = kept  # at the end: the first is the one that was asked for longest ago
        if len(self._kept) > self._count_max:
            self._kept.pop(next(iter(self._kept)), None)
        return kept.instance, kept.reader

    def mark(self, study: str, series: str, uid: str, index: int) -> Mark | None:
        """What it takes to read a frame again at once, one that get() gave the reader of and that was read.

        None if its bytes don't lie as they leave, or the reader is not kept any more.
        """
        kept = self._kept.get((study, series, uid))
        spot = kept.reader.spot(index) if kept is not None else None
        if kept is None or spot is None or kept.place is None:
            return None
        return Mark(kept.key, kept.value[:_FACTS], kept.instance.pixel_digest, kept.place, spot)

    def read_marked(self, mark: Mark) -> bytes | None:
        """The frame, None if it would have to be waited for, or if its instance is not what it was.

        Raises:
            Corrupt: the bytes on disk are not what came in.
        """
        with self._index.read() as snapshot:
            value = snapshot.get(b"instances", mark.key)
            if value is None or not value.startswith(mark.facts):
                return None
            if snapshot.get(b"places", mark.digest) != mark.place:
                return None
        return mark.spot.read_now(self._packs)

    def _reader(self, instance: Instance, place: bytes | None) -> FrameReader:
        def find_blob(digest: bytes) -> BlobPlace:
            with self._index.read() as snapshot:
                found = snapshot.place(digest)
            if found is None:
                raise Corrupt(f"blob {digest.hex()} is in no pack; run: hilum verify")
            return found

        known = unpack_place(place) if place else None
        return FrameReader(
            instance, self._packs, find_blob, lambda: self._read_head(instance), self._where_now, known
        )


class Mark(NamedTuple):
    """A frame that can be read at once, as long as the index says the same of its instance."""

    key: bytes
    facts: bytes  # the begin of the instance's record, with a number that no other record ever has
    digest: bytes
    place: bytes  # the record of the pixels' place
    spot: Spot


class _Kept(NamedTuple):
    key: bytes
    value: bytes  # the record of the instance
    place: bytes | None  # the record of its pixels' place
    instance: Instance
    reader: FrameReader


def _find_study(snapshot: Snapshot, study: str) -> bytes:
    number = snapshot.get(b"study_uids", _bytes_of(study))
    if number is None:
        raise NotFound(f"no study {study[:80]!r} is stored")
    return number


def _find_series(snapshot: Snapshot, study: str, number: bytes, series: str) -> bytes:
    """The prefix of the keys of a series' instances."""
    found = snapshot.get(b"series_uids", series_key_name(_bytes_of(series), U32.unpack(number)[0]))
    if found is None:
        raise NotFound(f"no series {series[:80]!r} is stored in study {study[:80]!r}")
    return number + found


def _find_instance(snapshot: Snapshot, study: str, series: str, uid: str) -> tuple[bytes, bytes, Instance]:
    """Key and record of an instance, and what that says."""
    name = _bytes_of(uid)
    key = snapshot.get(b"sop_uids", name)
    if key is None:
        raise NotFound(f"no instance {uid[:80]!r} is stored")
    if not key.startswith(_find_series(snapshot, study, _find_study(snapshot, study), series)):
        raise NotFound(f"instance {uid[:80]!r} is not in series {series[:80]!r}")
    value = snapshot.get(b"instances", key)
    if value is None:
        raise Corrupt(f"the index names {uid} but has no record of it; run: hilum rebuild")
    instance = record.unpack_instance(value)
    if record.raw_of(instance.entries, _UID) != name:
        raise Corrupt(f"the index has another instance in the place of {uid}; run: hilum rebuild")
    return key, value, instance


def _series_uid(snapshot: Snapshot, key: bytes) -> str:
    value = snapshot.get(b"series", key)
    if value is None:
        raise Corrupt("the index has instances of a series that it has no record of; run: hilum rebuild")
    return record.raw_of(record.unpack_series(value).entries, _SERIES_UID).decode("ascii", "replace")


def _uid_of(instance: Instance) -> str:
    return record.raw_of(instance.entries, _UID).decode("ascii", "replace")


def _bytes_of(uid: str) -> bytes:
    """A UID as the index has it; what can't be one is as good as not stored."""
    try:
        found = uid.encode("ascii")
    except UnicodeEncodeError:
        found = b""
    if not 0 < len(found) <= UID_MAX:
        raise NotFound(f"{uid[:80]!r} is no UID")
    return found
