"""The store: one folder, opened for reading and writing. Takes files, UIDs and keys; gives heads, frames,
bytes and rows. Decodes no pixels, prints nothing, speaks no protocol.

Safe from several threads; any number of processes may have the same store open.
"""

from __future__ import annotations

import io
import os
import stat
import threading
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple, Self

from isal.isal_zlib import crc32

from hilum.dicom import dictionary, json
from hilum.engine import prepare, query, record
from hilum.engine.folder import Folder
from hilum.engine.frames import BLOB_KINDS, FrameReader
from hilum.engine.index import INDEX_VERSION, BlobPlace, Index, Snapshot
from hilum.engine.original import NO_TEXT_VRS, OriginalFile, original_pieces, read_element
from hilum.engine.packs import BULK_PACK, FILE_PACK, HEAD_PACK, RECORD_SIZE, SUFFIX_OF, PackReader, list_packs
from hilum.engine.prepare import Prepared
from hilum.engine.record import Head, Instance, Value
from hilum.engine.writer import Outcome, Policy, Result, Writer
from hilum.errors import BadDicom, BadQuery, Conflict, Corrupt, NotFound, ReadOnly, StoreMissing

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
        """Find patients, studies, series or instances by indexed attributes, as a list; see find_iter()."""
        return list(self.find_iter(level, keys, limit=limit, offset=offset, order=order))

    def find_iter(
        self,
        level: str,
        keys: dict[str, str] | Iterable[tuple[str, str]] = (),
        *,
        limit: int | None = None,
        offset: int = 0,
        order: Sequence[str] = (),
    ) -> Iterator[query.Row]:
        """Find patients, studies, series or instances by indexed attributes, a row at a time.

        The rows are those of one moment. Take them soon: the index keeps that moment's pages until then.

        `keys` are names (keywords or tags) and values as PS3.4 C.2.2.2 (Attribute Matching) has them.
        `order` names attributes to sort by, "-" in front of one for descending.

        Raises:
            BadQuery: an unknown level or name, a value that makes no sense.
        """
        if level not in query.LEVELS:
            raise BadQuery(f"{level!r} is no level: patients, studies, series or instances")
        if offset < 0 or (limit is not None and limit < 0):
            raise BadQuery("limit and offset can't be negative")
        wanted = query.parse_keys(_pairs(keys))
        by = [_order_of(name) for name in order]
        with self._index.read() as snapshot:
            found = query.Query(snapshot, query.LEVELS[level], wanted, self._read_left)
            yield from found.rows(limit=limit, offset=offset, order=by)

    def select(
        self, keys: dict[str, str] | Iterable[tuple[str, str]] = ()
    ) -> Iterator[tuple[query.Row, list[str]]]:
        """Give each series with instances that match, and their SOP Instance UIDs: for long work on many.

        Each series is looked up when its turn comes, so that nothing holds old pages of the index for long;
        what is deleted meanwhile is left out.
        """
        wanted = query.parse_keys(_pairs(keys))
        with self._index.read() as snapshot:
            found = query.Query(snapshot, record.SERIES, wanted, self._read_left)
            series_keys = [row.key for row in found.rows()]
        for key in series_keys:
            with self._index.read() as snapshot:
                selected = query.Query(snapshot, record.SERIES, wanted, self._read_left).in_series(key)
            if selected is not None:
                yield selected

    def find_uids(self, level: str, keys: dict[str, str] | Iterable[tuple[str, str]]) -> list[bytes]:
        """SOP Instance UIDs of everything under the rows that match, in the order of find().

        Raises:
            BadQuery: as find().
        """
        wanted = query.parse_keys(_pairs(keys))
        if level not in query.LEVELS:
            raise BadQuery(f"{level!r} is no level: patients, studies, series or instances")
        uids: list[bytes] = []
        with self._index.read() as snapshot:
            rows = query.Query(snapshot, query.LEVELS[level], wanted, self._read_left).rows()
            for row in rows:
                for _, instance in instances_under(snapshot, row):
                    uids.append(record.raw_of(instance.entries, record.NUMBER_OF[0x00080018]))
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
        return FrameReader(instance, self._packs, self.find_blob, lambda: self.read_head(instance))

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
        return self._packs.read(BLOB_KINDS, place.container, place.offset + offset, length)

    def _read_blob_pieces(self, digest: bytes, length: int) -> Iterator[bytes]:
        place = self.find_blob(digest)
        for at in range(0, length, _CHUNK):
            size = min(_CHUNK, length - at)
            yield self._packs.read(BLOB_KINDS, place.container, place.offset + at, size)

    def row_values(self, row: query.Row, path: tuple[int, ...]) -> list[Value]:
        """Any attribute of a row: out of the index, else out of the head of the instance that speaks for it.

        Raises:
            BadQuery: it is a sequence or binary, or lies in a sequence that is not indexed.
        """
        return self._row_element(row, path)[1]

    def _row_element(self, row: query.Row, path: tuple[int, ...]) -> tuple[str, list[Value]]:
        if len(path) == 1 and path[0] in row.computed:
            return query.COMPUTED[path[0]][0], row.computed[path[0]]
        number = query.entry_number(path)
        if number is not None and (len(path) > 1 or _is_in_row(row, path)):
            return record.VR_OF[number], row.values(number)
        if len(path) > 1:
            raise BadQuery("attributes inside sequences can't be included yet")
        vr = dictionary.vr_of(path[0])
        if vr in NO_TEXT_VRS and vr != "UN":
            name = dictionary.keyword_of(path[0]) or dictionary.format_tag(path[0])
            raise BadQuery(f"{name} is {vr}, and only text and numbers can be included")
        found, values = self._read_element(row.donor, path[0])
        return found or vr, values

    def row_text(self, row: query.Row, path: tuple[int, ...]) -> str:
        """The same as text, values joined by backslashes."""
        return "\\".join("" if value is None else str(value) for value in self.row_values(row, path))

    def row_json(self, row: query.Row, include: Sequence[tuple[int, ...]] = ()) -> dict[str, Any]:
        """A row as DICOM JSON, PS3.18 F.2, with the attributes in `include` beside those of its level."""
        document = row.to_json([path for path in include if _is_in_row(row, path)])
        for path in include:
            # Indexed attributes of a sequence stand in it, where the row has it.
            if json.key(path[0]) not in document and (len(path) == 1 or query.entry_number(path) is None):
                document[json.key(path[-1])] = json.element(*self._row_element(row, path))
        return dict(sorted(document.items()))

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

    # Away.

    def delete(self, level: str, keys: dict[str, str] | Iterable[tuple[str, str]]) -> int:
        """Delete every instance under the rows that match, durably; return how many.

        Raises:
            BadQuery: as find(), and when there is no key at all.
        """
        pairs = list(_pairs(keys))
        if not query.parse_keys(pairs):
            raise BadQuery("delete needs a key that narrows it down; to empty a store, remove its folder")
        return self.writer.delete(self.find_uids(level, pairs))

    def _read_left(self, uid: bytes, number: int) -> list[Value]:
        """An attribute that was too long for the index, out of the head of this instance."""
        return self._read_element(uid, record.TAG_OF[number])[1]

    def _read_element(self, uid: bytes, tag: int) -> tuple[str, list[Value]]:
        try:
            instance = self.locate(uid.decode("latin-1")).instance
        except NotFound:
            return "", []  # gone since its row was read
        return read_element(OriginalFile(self.read_head(instance), self.read_blob), tag)


def _descriptor_of(file: BinaryIO) -> int:
    """The descriptor of a plain file that stands at its begin, -1 of any other.

    A pipe can't be read by offset, and the descriptor of a gzip file gives other bytes than the file.
    """
    raw = file.raw if isinstance(file, io.BufferedReader | io.BufferedRandom) else file
    if not isinstance(raw, io.FileIO) or not stat.S_ISREG(os.fstat(raw.fileno()).st_mode) or file.tell():
        return -1
    return raw.fileno()


def _pairs(keys: dict[str, str] | Iterable[tuple[str, str]]) -> Iterable[tuple[str, str]]:
    return keys.items() if isinstance(keys, dict) else keys


def _is_in_row(row: query.Row, path: tuple[int, ...]) -> bool:
    """Whether the index has this attribute for the row: it is of the row's level, or of one above."""
    number = query.entry_number(path)
    return number is not None and record.LEVEL_OF[number] <= row.level


def _ingested(prepared: Prepared, outcome: Outcome) -> Ingested:
    uid = prepared.uid.decode("latin-1")
    if outcome.result == Result.CONFLICT:
        raise Conflict(f"{uid} is stored with other content, which is kept")
    return Ingested(uid, outcome.result)


def _order_of(name: str) -> tuple[int, bool]:
    descending = name.startswith("-")
    path = query.parse_path(name.removeprefix("-"))
    if len(path) == 1 and path[0] in query.COMPUTED:
        return path[0], descending
    number = query.entry_number(path)
    if number is None:
        raise BadQuery(f"{name.removeprefix('-')} is not indexed, so nothing can be sorted by it")
    return number, descending


def locate_in(snapshot: Snapshot, uid: str) -> Located:
    try:
        key = snapshot.get(b"sop_uids", uid.encode("ascii")) if uid else None
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
