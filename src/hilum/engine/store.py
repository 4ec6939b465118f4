"""The store: one folder, opened for reading and writing. Takes files, UIDs and keys; gives heads, frames,
bytes and rows. Decodes no pixels, prints nothing, speaks no protocol.

Safe from several threads; any number of processes may have the same store open.
"""

from __future__ import annotations

import io
import os
import stat
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, BinaryIO, Literal, NamedTuple, Self
from urllib.parse import quote

from isal.isal_zlib import crc32

from hilum.dicom import dictionary, json
from hilum.dicom.dictionary import Path
from hilum.engine import document, elements, header, prepare, query, record
from hilum.engine.folder import Folder
from hilum.engine.frames import BLOB_KINDS, FrameReader
from hilum.engine.index import INDEX_VERSION, U64, BlobPlace, Index, Snapshot
from hilum.engine.ledger import CHANGE_DELETED, CHANGE_REPLACED, revision_key, uids_of_key, unpack_uids
from hilum.engine.original import OriginalFile, original_pieces
from hilum.engine.packs import (
    BULK_PACK,
    FILE_PACK,
    HEAD_PACK,
    RECORD_SIZE,
    SUFFIX_OF,
    PackGone,
    PackReader,
    list_packs,
)
from hilum.engine.prepare import Arrival, Prepared
from hilum.engine.record import Head, Instance, Value
from hilum.engine.writer import Outcome, Policy, Result, Writer
from hilum.errors import BadDicom, BadQuery, Conflict, Corrupt, NotFound, ReadOnly, StoreMissing, Unsupported

_CHUNK = 1 << 20
_UID = record.NUMBER_OF[0x00080018]


class Ingested(NamedTuple):
    """What became of one object."""

    uid: str  # SOP Instance UID
    result: Result


class Located(NamedTuple):
    """An instance in the index."""

    key: bytes
    instance: Instance


class Change(NamedTuple):
    """One change of state, of one instance."""

    number: int
    kind: str  # "stored", "replaced" or "deleted"
    study: str  # UIDs; of what was deleted only its own is known
    series: str
    instance: str


class Changes(NamedTuple):
    """A part of the change log."""

    epoch: str  # of this index; another one means that the log was made anew
    last: int  # number to go on from
    more: bool
    found: list[Change]


class Store:
    """A store that is open. Use it in a `with`, or close() it."""

    def __init__(self, path: str, *, create: bool = False, read_only: bool = False) -> None:
        """Open the store at `path`.

        Raises:
            StoreMissing: there is none (and `create` is False), or it has no index.
            StoreLocked: another process is rebuilding it.
            ReadOnly: it can't be written, and `read_only` is False.
        """
        self._folder = Folder(path, create=create, read_only=read_only)
        try:
            self._index = Index(self._folder.index_path(), read_only=read_only)
        except BaseException:
            self._folder.close()
            raise
        self._packs = PackReader(self._folder.packs)
        self._derived = document.Derived(os.path.join(self._folder.path, "derived"), read_only=read_only)
        self._writer = Writer(self._folder, self._index, self._packs)
        self._closing = threading.Lock()
        self._closed = False
        self.read_only = read_only
        try:
            with self._index.read() as snapshot:
                version = snapshot.number(b"version")
                if version != INDEX_VERSION:
                    raise StoreMissing(
                        f"the index in {path} has version {version}, and this Hilum reads {INDEX_VERSION}; "
                        "run: hilum rebuild"
                    )
                if snapshot.get(b"meta", b"store") != self._folder.uuid:
                    raise Corrupt(f"the index in {path} belongs to another store; run: hilum rebuild")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give locks and files up. What was acknowledged is durable already."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
        self._writer.close()
        self._packs.close()
        self._index.close()
        self._folder.close()

    @property
    def path(self) -> str:
        return self._folder.path

    @property
    def folder(self) -> Folder:
        return self._folder

    @property
    def index(self) -> Index:
        return self._index

    @property
    def packs(self) -> PackReader:
        return self._packs

    @property
    def writer(self) -> Writer:
        """The writer of this store.

        Raises:
            ReadOnly: the store was opened for reading.
        """
        if self.read_only:
            raise ReadOnly(f"{self.path} was opened for reading")
        return self._writer

    # In.

    def ingest(
        self,
        file: bytes | bytearray | memoryview | BinaryIO | str | os.PathLike[str],
        *,
        policy: Policy = Policy.KEEP_FIRST,
        source: str = "",
    ) -> Ingested:
        """Store one object, durably: a file's bytes, an open binary file, or a path.

        Raises:
            NotDicom, BadDicom: it can't be stored; the error names offset and tag.
            Conflict: other bytes are stored under its UID, and the policy is to keep them.
            StoreBroken: the store could not write; nothing is promised, reopen it.
        """
        while True:
            prepared = self.prepare(file, source=source)
            (outcome,) = self.writer.submit([prepared], policy)
            if outcome.result != Result.AGAIN:
                return _ingested(prepared, outcome)

    def prepare(
        self,
        file: bytes | bytearray | memoryview | BinaryIO | str | os.PathLike[str],
        *,
        source: str = "",
    ) -> Prepared:
        """Scan and split an object, ready for ingest_many(). Nothing is stored yet."""
        label = source.encode("utf-8", "surrogateescape")
        if isinstance(file, bytes | bytearray | memoryview):
            return prepare.prepare(memoryview(file).cast("B"), source=label)
        if isinstance(file, str | os.PathLike):
            path = os.fspath(file)
            try:
                with open(path, "rb", buffering=0) as opened:
                    return self.prepare_fd(opened.fileno(), source=label or os.fsencode(path))
            except BadDicom as failure:
                failure.path = path
                raise
        fd = _descriptor_of(file)
        if fd < 0:
            return prepare.prepare(memoryview(file.read()), source=label)
        return self.prepare_fd(fd, source=label)

    def prepare_fd(self, fd: int, *, source: bytes = b"") -> Prepared:
        """Prepare a file by its descriptor: in memory if it is small, streamed if it is large."""
        size = os.fstat(fd).st_size
        if size > prepare.IN_MEMORY_MAX:
            return prepare.prepare_file(
                fd,
                size,
                make_sink=self.writer.new_file_pack,
                append=self.writer.append_blob,
                source=source,
            )
        data = bytearray()
        while len(data) <= size and (chunk := os.pread(fd, _CHUNK, len(data))):
            data += chunk
        return prepare.prepare(memoryview(data), source=source)

    def ingest_many(self, objects: Sequence[Prepared], *, policy: Policy = Policy.KEEP_FIRST) -> list[Result]:
        """Store prepared objects in one commit; the batch API of bulk work. Keep a batch to about 1,000."""
        return [outcome.result for outcome in self.writer.submit(objects, policy)]

    def arrival(self, *, source: str = "") -> Arrival:
        """A file that comes in by pieces: write() them, finish() it for ingest_many(), then discard() it.

        Raises:
            ReadOnly: the store was opened for reading.
        """
        if self.read_only:
            raise ReadOnly(f"{self.path} was opened for reading")
        return Arrival(
            make_sink=lambda: self.writer.new_file_pack(),
            append=lambda blob: self.writer.append_blob(blob),  # the writer of that moment: it may be renewed
            make_file=lambda: tempfile.TemporaryFile(buffering=0, dir=self._folder.spool),
            source=source.encode("utf-8", "surrogateescape"),
        )

    def renew_writer(self, broken: Writer) -> None:
        """Give a writer up that raised StoreBroken; the next one recovers what it left, when it first writes.

        The way of a process that can't stop: readers go on, and what was acknowledged stays. Of several
        threads that saw the same writer break, the first one renews it.
        """
        with self._closing:
            if self._closed or self._writer is not broken:
                return
            broken.close()
            self._writer = Writer(self._folder, self._index, self._packs)

    # Out.

    def find(
        self,
        level: str,
        keys: dict[str, str] | Iterable[tuple[str, str]] = (),
        *,
        limit: int | None = None,
        offset: int = 0,
        order: Sequence[str] = (),
    ) -> list[query.Row]:
        """Find patients, studies, series or instances, as a list; see search() for more ways to ask."""
        return list(self.search(query.Asked(level, _pairs(keys), (), limit, offset, order)))

    def search(self, asked: query.Asked) -> query.Found:
        """Find patients, studies, series or instances, a row at a time: the engine call of every front end.

        Keys are names and values as PS3.4 C.2.2.2 (Attribute Matching) has them; see Asked.

        Raises:
            BadQuery: an unknown level or name, a value that makes no sense.
        """
        return query.Found(query.parse_question(asked), self._index.read, self._read_left, self._read_item)

    def count(self, asked: query.Asked) -> int:
        """How many rows match, whatever the limit and the offset.

        Raises:
            BadQuery: as search().
            Unsupported: it can't be told in the time that was allowed for reading heads.
        """
        question = query.parse_question(asked)
        with self._index.read() as snapshot:
            try:
                return query.Query(snapshot, question, self._read_left, self._read_item).count()
            except query.TimeIsUpError as failure:
                raise Unsupported(f"not counted: {failure}") from None

    def select(
        self, keys: dict[str, str] | Iterable[tuple[str, str]] = ()
    ) -> Iterator[tuple[query.Row, list[str]]]:
        """Give each series with instances that match, and their SOP Instance UIDs: for long work on many.

        Each series is looked up when its turn comes, so that nothing holds old pages of the index for long;
        what is deleted meanwhile is left out.
        """
        question = query.parse_question(query.Asked("series", _pairs(keys)))
        series_keys = [row.key for row in self.search(query.Asked("series", _pairs(keys)))]
        for key in series_keys:
            with self._index.read() as snapshot:
                found = query.Query(snapshot, question, self._read_left, self._read_item)
                selected = found.in_series(key)
            if selected is not None:
                yield selected

    def find_uids(self, level: str, keys: dict[str, str] | Iterable[tuple[str, str]]) -> list[bytes]:
        """SOP Instance UIDs of everything under the rows that match, in the order of find().

        Raises:
            BadQuery: as find().
        """
        question = query.parse_question(query.Asked(level, _pairs(keys)))
        uids: list[bytes] = []
        with self._index.read() as snapshot:
            for row in query.Query(snapshot, question, self._read_left, self._read_item).rows():
                for _, instance in instances_under(snapshot, row):
                    uids.append(record.raw_of(instance.entries, _UID))
        return uids

    def locate(self, uid: str) -> Located:
        """Find an instance by its SOP Instance UID.

        Raises:
            NotFound: it is not stored.
        """
        with self._index.read() as snapshot:
            return locate_in(snapshot, uid)

    def head(self, uid: str) -> Head:
        """The stored head of an instance: its data set without bulk values.

        Raises:
            NotFound: it is not stored.
            Corrupt: the head on disk is not what came in.
        """
        return self.read_head(self.locate(uid).instance)

    def read_head(self, instance: Instance) -> Head:
        try:
            return self._read_head(instance)
        except PackGone:
            return self._read_head(self.where_now(instance))

    def where_now(self, instance: Instance) -> Instance:
        """The record of an instance whose head's pack is gone: a compaction has moved it.

        Raises:
            NotFound: the instance has gone too.
        """
        uid = record.raw_of(instance.entries, _UID)
        with self._index.read() as snapshot:
            key = snapshot.get(b"sop_uids", uid)
            values = [
                snapshot.get(b"instances", key) if key is not None else None,
                snapshot.get(b"revisions", revision_key(uid, instance.sequence)),
            ]
        for value in values:
            if value is not None:
                found = record.unpack_instance(value)
                if found.identity == instance.identity:
                    return found
        raise NotFound(f"{uid.decode('latin-1')} has been deleted or replaced")

    def _read_head(self, instance: Instance) -> Head:
        begin = instance.offset - RECORD_SIZE
        data = self._packs.read((HEAD_PACK,), instance.container, begin, RECORD_SIZE + instance.head_length)
        if data[RECORD_SIZE - 32 : RECORD_SIZE] != instance.identity:  # a damaged index can point anywhere
            raise Corrupt(f"there is no such head at byte {instance.offset} of pack {instance.container}")
        return record.unpack_head(data[RECORD_SIZE:])

    def read(self, uid: str) -> bytes:
        """The whole file as it came in, checked against its checksum.

        Raises:
            NotFound: it is not stored.
            Corrupt: what is on disk does not give the file back.
        """
        return b"".join(self.chunks(uid))

    def chunks(self, uid: str) -> Iterator[bytes]:
        """The same in pieces of bounded size. A checksum that does not fit is found after the last one."""
        located = self.locate(uid)
        head = self.read_head(located.instance)
        crc = 0
        for piece in original_pieces(head, self._read_blob_pieces):
            crc = crc32(piece, crc)
            yield piece
        if crc != head.original_crc:
            raise Corrupt(f"{uid} is not what came in; run: hilum verify")

    def open_original(self, uid: str) -> OriginalFile:
        """The file as it came in, as a binary file that reads only what it is asked for."""
        return OriginalFile(self.head(uid), self.read_blob)

    def frames(self, uid: str) -> FrameReader:
        """A reader of the instance's frames.

        Raises:
            NotFound: it is not stored, or has no pixel data.
        """
        instance = self.locate(uid).instance
        return FrameReader(
            instance, self._packs, self.find_blob, lambda: self.read_head(instance), self.where_now
        )

    def frame_bytes(self, uid: str, index: int) -> bytes:
        """Frame `index`, from 0, as it is stored: native bytes, or a codestream without item headers.

        Raises:
            NotFound: no such instance or frame.
            BadDicom: the pixels are cut, or nothing tells where this frame lies.
            Corrupt: the bytes on disk are not what came in.
        """
        return self.frames(uid).read(index)

    def find_blob(self, digest: bytes) -> BlobPlace:
        with self._index.read() as snapshot:
            place = snapshot.place(digest)
        if place is None:
            raise Corrupt(f"blob {digest.hex()} is in no pack; run: hilum verify")
        return place

    def read_blob(self, digest: bytes, offset: int, length: int) -> bytes:
        """Bytes of a blob, unchecked: whoever needs proof holds a checksum against them."""
        place = self.find_blob(digest)
        try:
            return self._packs.read(BLOB_KINDS, place.container, place.offset + offset, length)
        except PackGone:  # moved by a compaction since it was looked up
            place = self.find_blob(digest)
            return self._packs.read(BLOB_KINDS, place.container, place.offset + offset, length)

    def _read_blob_pieces(self, digest: bytes, length: int) -> Iterator[bytes]:
        for at in range(0, length, _CHUNK):
            yield self.read_blob(digest, at, min(_CHUNK, length - at))

    def row_values(self, row: query.Row, path: Path) -> list[Value]:
        """The values of any attribute of a row, of each item of the sequences that it lies in. One that is
        not indexed is that of the instance that speaks for the row."""
        document = self.row_json(row, query.Include(paths=(path,)))
        return elements.values_at(document, path)

    def row_text(self, row: query.Row, path: Path) -> str:
        """The same as text, values joined by backslashes."""
        return "\\".join("" if value is None else str(value) for value in self.row_values(row, path))

    def row_json(
        self, row: query.Row, include: query.Include | Literal["all"] | Iterable[Path] = (), *, base: str = ""
    ) -> dict[str, Any]:
        """A row as DICOM JSON, PS3.18 F.2, with what `include` names beside the attributes of its level.

        What is not indexed at the row's level or above is that of the instance that speaks for the row. The
        URI of a value that is too long for an answer begins with `base`.
        """
        if not isinstance(include, query.Include):
            include = query.Include(True) if include == "all" else query.Include(False, tuple(include))
        above, below = query.parted(include.paths, row.level)
        document = row.to_json(above)
        if include.everything:
            found = self._head_of(row, elements.Wanted(None), base)
            mine = (name for name in found if row.level == record.INSTANCE or _level(name) <= row.level)
            document = {name: found[name] for name in mine} | document
        if below:
            self._add_from_head(row, below, document, base)
        return dict(sorted(document.items()))

    def _add_from_head(
        self, row: query.Row, paths: Sequence[Path], document: dict[str, Any], base: str
    ) -> None:
        sequences = {path[0] for path in paths if len(path) > 1}
        # What the index knows of a sequence stands in the same items as what it does not.
        indexed = [(record.REQUEST_ATTRIBUTES, tag) for tag in record.NESTED_NUMBER_OF]
        wanted = [*paths, *(path for path in indexed if path[0] in sequences)]
        document.update(self._head_of(row, elements.Wanted(wanted), base))
        for path in paths:
            if isinstance(path[0], int) and json.key(path[0]) not in document:
                document[json.key(path[0])] = {"vr": dictionary.vr_of(path[0]) if len(path) == 1 else "SQ"}

    def _head_of(self, row: query.Row, wanted: elements.Wanted, base: str) -> elements.Item:
        """Elements of the instance that speaks for a row; none if it has gone since the row was read, or if
        its head is damaged: what the index knows is an answer still, and verify tells."""
        uid = row.donor
        with self._index.read() as snapshot:
            key = snapshot.get(b"sop_uids", uid)
            value = snapshot.get(b"instances", key) if key is not None else None
            if key is None or value is None:
                return {}
            study, series = uids_of_key(snapshot, key)
        path = "/studies/{}/series/{}/instances/{}/bulkdata/".format(
            *(quote(part, safe="") for part in (study, series, uid))
        )
        try:
            return wanted.read(self.read_head(record.unpack_instance(value)), prefix=base + path)
        except Corrupt:
            return {}

    def stats(self) -> dict[str, int]:
        """Counts, and bytes on disk."""
        with self._index.read() as snapshot:
            states = snapshot.packs()
            counts = {
                name: snapshot.count(name.encode()) for name in ("patients", "studies", "series", "instances")
            }
            counts["blobs"] = snapshot.count(b"places")
            counts["conflicts"] = snapshot.count(b"conflicts")
            counts["revisions"] = snapshot.count(b"revisions")
            counts["original_bytes"] = sum(
                record.unpack_patient(value).byte_count for _, value in snapshot.scan(b"patients")
            )
        sizes = {kind: 0 for kind in SUFFIX_OF}
        for file in list_packs(self._folder.packs):
            state = states.get(file.number)
            sizes[file.kind] += state.end if state is not None else os.path.getsize(file.path)
        counts["head_bytes"] = sizes[HEAD_PACK]
        counts["bulk_bytes"] = sizes[BULK_PACK] + sizes[FILE_PACK]
        counts["index_bytes"] = self._index.file_bytes()
        return counts

    def instance_json(self, uid: str, *, base: str) -> bytes:
        """The metadata of an instance, one DICOM JSON Model object; BulkDataURIs begin with `base`.

        Raises:
            NotFound: it is not stored.
            Corrupt: the head on disk is not what came in.
        """
        with self._index.read() as snapshot:
            located = locate_in(snapshot, uid)
            study, series = uids_of_key(snapshot, located.key)
        head = self.read_head(located.instance)
        return document.instance_json(head, study, series, uid.encode("ascii"), base=base)

    def series_json(self, study: str, series: str, *, base: str) -> document.SeriesDocument:
        """The metadata of a series, an array of such objects: compressed as it is kept, or plain.

        Raises:
            NotFound: there is no such series in that study.
        """
        with self._index.read() as snapshot:
            return document.series_document(
                snapshot, self._packs, self._derived, study, series, base=base, where_now=self.where_now
            )

    def bulk_data(self, uid: str, path: str) -> document.BulkValue:
        """A bulk value of an instance, by the path in its BulkDataURI: "7FE00010", "52009229.1.00420011".

        Raises:
            NotFound: it is not stored, or has no value there.
            BadQuery: it is no path.
            Corrupt: the bytes on disk are not what came in.
        """
        instance = self.locate(uid).instance
        head = self.read_head(instance)
        place = document.bulk_value(head, path)
        frames = None
        if place.is_encapsulated and place.offset == instance.pixel_offset and instance.table_length:
            frames = FrameReader(instance, self._packs, self.find_blob, lambda: head, self.where_now)
        return document.BulkValue(head, place, self.read_blob, frames)

    # Away.

    def delete(self, level: str, keys: dict[str, str] | Iterable[tuple[str, str]]) -> int:
        """Delete every instance under the rows that match, durably; return how many.

        Raises:
            BadQuery: as find(), and when there is no key at all.
        """
        pairs = _pairs(keys)
        if query.parse_question(query.Asked(level, pairs)).is_universal:
            raise BadQuery("delete needs a key that narrows it down; to empty a store, remove its folder")
        count = self.writer.delete(self.find_uids(level, pairs))
        if count:
            self._derived.clear()
        return count

    def _read_left(self, uid: bytes, number: int) -> list[Value]:
        """An attribute that was too long for the index, out of the head of this instance."""
        tag = record.TAG_OF[number]
        nested = number >= len(record.NUMBER_OF)
        path = (record.REQUEST_ATTRIBUTES, tag) if nested else (tag,)
        try:
            instance = self.locate(uid.decode("latin-1")).instance
        except NotFound:
            return []  # gone since its row was read
        return elements.values_at(self._read_item(instance, elements.Wanted([path])), path)

    def _read_item(self, instance: Instance, wanted: elements.Wanted) -> elements.Item:
        return wanted.read(self.read_head(instance))

    # What happened.

    def last_change(self) -> int:
        """Number of the last change of state: while it is the same, so is every answer."""
        with self._index.read() as snapshot:
            return snapshot.number(b"sequence")

    def changes(self, since: int = 0, *, limit: int = 1000) -> Changes:
        """What happened after the change with number `since`, in the order in which it did.

        An instance that has gone since is told by its deletion alone.
        """
        found: list[Change] = []
        last = since
        more = False
        with self._index.read() as snapshot:
            epoch = snapshot.get(b"meta", b"epoch") or b""
            for key, value in snapshot.scan(b"changes", U64.pack(since + 1)):
                if len(found) >= limit:
                    more = True
                    break
                last = U64.unpack(key)[0]
                kind, what = value[0], value[1:]
                if kind == CHANGE_DELETED:
                    gone = (uid.decode("latin-1") for uid in unpack_uids(what))
                    found.extend(Change(last, "deleted", "", "", uid) for uid in gone)
                    continue
                stored = snapshot.get(b"instances", what)
                if stored is not None:
                    uid = record.raw_of(record.unpack_instance(stored).entries, _UID)
                    names = (name.decode("latin-1") for name in (*uids_of_key(snapshot, what), uid))
                    found.append(Change(last, "replaced" if kind == CHANGE_REPLACED else "stored", *names))
        return Changes(epoch.hex(), last, more, found)


def _descriptor_of(file: BinaryIO) -> int:
    """The descriptor of a plain file that stands at its begin, -1 of any other.

    A pipe can't be read by offset, and the descriptor of a gzip file gives other bytes than the file.
    """
    raw = file.raw if isinstance(file, io.BufferedReader | io.BufferedRandom) else file
    if not isinstance(raw, io.FileIO) or not stat.S_ISREG(os.fstat(raw.fileno()).st_mode) or file.tell():
        return -1
    return raw.fileno()


def _pairs(keys: dict[str, str] | Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    return list(keys.items() if isinstance(keys, dict) else keys)


def _level(name: str) -> int:
    """The level of an attribute, by its name in DICOM JSON."""
    return query.level_of_path((int(name, 16),))


def _ingested(prepared: Prepared, outcome: Outcome) -> Ingested:
    uid = prepared.uid.decode("latin-1")
    if outcome.result == Result.CONFLICT:
        raise Conflict(f"{uid} is stored with other content, which is kept")
    return Ingested(uid, outcome.result)


def locate_in(snapshot: Snapshot, uid: str) -> Located:
    try:
        key = snapshot.get(b"sop_uids", uid.encode("ascii")) if 0 < len(uid) <= header.UID_MAX else None
    except UnicodeEncodeError:
        key = None
    if not key:
        raise NotFound(f"no instance {uid[:80]!r} is stored")
    value = snapshot.get(b"instances", key)
    if value is None:
        raise Corrupt(f"the index names {uid} but has no record of it; run: hilum rebuild")
    instance = record.unpack_instance(value)
    if record.raw_of(instance.entries, _UID) != uid.encode("ascii"):
        raise Corrupt(f"the index has another instance in the place of {uid}; run: hilum rebuild")
    return Located(key, instance)


def instances_under(snapshot: Snapshot, row: query.Row) -> Iterator[tuple[bytes, Instance]]:
    """Every instance of a patient, study or series; an instance itself."""
    prefixes = [row.key]
    if row.level == record.PATIENT:
        prefixes = [key[4:] for key, _ in snapshot.scan_prefix(b"patient_studies", row.key)]
    for prefix in prefixes:
        for key, value in snapshot.scan_prefix(b"instances", prefix):
            yield key, record.unpack_instance(value)
