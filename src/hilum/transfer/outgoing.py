"""Takes files and folders, or keys of a store; gives the instances to send, one after another, and their
bytes. Reads heads only, until the bytes are asked for; decodes nothing but what has to go in another
transfer syntax.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple, Protocol

from hilum import api
from hilum.dicom.part10 import file_meta, without_meta
from hilum.engine import header, importer, query, record
from hilum.errors import BadDicom, HilumError, NotDicom

_CHUNK = 1 << 20
_SOP_CLASS = record.NUMBER_OF[0x00080016]


class Outgoing(NamedTuple):
    """One instance to send."""

    uid: str
    sop_class: str
    transfer_syntax: str
    size: int  # bytes of its file
    version: str  # changes with its content
    path: bytes = b""  # of its file; empty for what lies in the store
    data_set_at: int = 0
    is_part10: bool = True

    @property
    def name(self) -> str:
        """What a person knows it by."""
        return os.fsdecode(self.path) or self.uid


class Source(Protocol):
    """Where instances come from. Safe from several threads, but for the iteration."""

    def __iter__(self) -> Iterator[Outgoing]: ...

    def file(self, one: Outgoing) -> Iterator[bytes]:
        """Its Part 10 file, in pieces."""
        ...

    def data_set(self, one: Outgoing) -> Iterator[bytes]:
        """Its data set as it is stored, in pieces."""
        ...

    def data_set_in(self, one: Outgoing, transfer_syntax: str) -> Iterator[bytes]:
        """Its data set in another transfer syntax, without loss.

        Raises:
            Unsupported, BadDicom: it can't be had.
        """
        ...


def without(pieces: Iterable[bytes], count: int) -> Iterator[bytes]:
    """Bytes without the first `count`."""
    for piece in pieces:
        if count >= len(piece):
            count -= len(piece)
            continue
        yield piece[count:] if count else piece
        count = 0


def data_set_of(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The data set of a Part 10 file in pieces."""
    begin = b""
    for piece in pieces:
        begin += piece
        if len(begin) >= 144:
            break
    return without(chain((begin,), pieces), without_meta(begin))


def data_set_of_stored(store: api.Store, uid: str) -> Iterator[bytes]:
    """The data set of a stored instance, as it is stored.

    Raises:
        NotFound, Corrupt: it can't be read.
    """
    return without(store.chunks(uid), store.head(uid).data_set_at)


def transcoded(store: api.Store, uid: str, source: str, target: str) -> Iterator[bytes]:
    """The data set of a stored instance in another transfer syntax, without loss.

    Raises:
        Unsupported, BadDicom: as pixels.transcode.instance().
    """
    from hilum.pixels import transcode

    frames = store.frames(uid) if store.locate(uid).instance.pixel_tag else None
    return data_set_of(transcode.instance(store.open_original(uid), frames, source, target))


# --- Out of the store ----------------------------------------------------------------


class StoredSource:
    """Instances of a store, by keys."""

    def __init__(self, store: api.Store, keys: Sequence[tuple[str, str]]) -> None:
        self._store = store
        self._keys = keys
        self.on_failure: Callable[[str, str], None] = lambda name, words: None

    def __iter__(self) -> Iterator[Outgoing]:
        for _, found in self._store.select(self._keys):
            for uid in found:
                try:
                    instance = self._store.locate(uid).instance
                except HilumError as failure:
                    self.on_failure(uid, str(failure))
                    continue
                yield Outgoing(
                    uid,
                    record.raw_of(instance.entries, _SOP_CLASS).strip(b" \0").decode("latin-1"),
                    instance.transfer_syntax.decode("latin-1"),
                    instance.original_length,
                    instance.identity.hex(),
                    data_set_at=-1,  # in its head, which is read when it is sent
                    is_part10=bool(instance.flags & record.PART10),
                )

    def file(self, one: Outgoing) -> Iterator[bytes]:
        if one.is_part10:
            return self._store.chunks(one.uid)
        return chain((file_meta(one.sop_class, one.uid, one.transfer_syntax),), self.data_set(one))

    def data_set(self, one: Outgoing) -> Iterator[bytes]:
        return data_set_of_stored(self._store, one.uid)

    def data_set_in(self, one: Outgoing, transfer_syntax: str) -> Iterator[bytes]:
        return transcoded(self._store, one.uid, one.transfer_syntax, transfer_syntax)


# --- Out of files --------------------------------------------------------------------


class FileSource:
    """Instances in files and folders; with keys, only those that match. What is no DICOM is passed over."""

    def __init__(self, paths: Sequence[str], keys: Sequence[tuple[str, str]], *, leave_out: str = "") -> None:
        self._paths = paths
        self._keys = query.parse_keys(keys)
        self._leave_out = leave_out  # the store's folder, which may lie in what is sent
        self.passed_over = 0
        self.on_failure: Callable[[str, str], None] = lambda name, words: None

    def __iter__(self) -> Iterator[Outgoing]:
        def fail(failure: importer.Failure) -> None:
            self.on_failure(failure.path, failure.reason)

        leave_out = self._leave_out if os.path.isdir(self._leave_out) else ""
        for folder in importer.walk(self._paths, fail, leave_out=leave_out):
            for path in folder:
                found = self._look(path)
                if found is not None:
                    yield found

    def _look(self, path: bytes) -> Outgoing | None:
        try:
            with open(path, "rb", buffering=0) as file:
                status = os.fstat(file.fileno())
                parsed = header.parse_fd(file.fileno(), status.st_size)
        except NotDicom:
            self.passed_over += 1
            return None
        except BadDicom as failure:
            self.on_failure(os.fsdecode(path), failure.reason)
            return None
        except OSError as failure:
            self.on_failure(os.fsdecode(path), failure.strerror or str(failure))
            return None
        if not importer.matches(self._keys, parsed.upper, parsed.own):
            return None
        return Outgoing(
            parsed.uid.strip(b" \0").decode("latin-1"),
            record.raw_of(parsed.own, _SOP_CLASS).strip(b" \0").decode("latin-1"),
            parsed.transfer_syntax.decode("latin-1"),
            status.st_size,
            f"{status.st_size}-{status.st_mtime_ns}",
            path,
            parsed.data_set_at,
            bool(parsed.flags & record.PART10),
        )

    def file(self, one: Outgoing) -> Iterator[bytes]:
        if one.is_part10:
            return _read(one.path, 0)
        return chain((file_meta(one.sop_class, one.uid, one.transfer_syntax),), self.data_set(one))

    def data_set(self, one: Outgoing) -> Iterator[bytes]:
        return _read(one.path, one.data_set_at)

    def data_set_in(self, one: Outgoing, transfer_syntax: str) -> Iterator[bytes]:
        return self._in_store(one, transfer_syntax)

    def _in_store(self, one: Outgoing, transfer_syntax: str) -> Iterator[bytes]:
        """By a store of its own that lasts as long: only the engine knows where frames lie."""
        with tempfile.TemporaryDirectory(prefix="hilum-") as folder, api.open(folder, create=True) as store:
            uid = store.ingest(os.fsdecode(one.path)).uid
            yield from transcoded(store, uid, one.transfer_syntax, transfer_syntax)


def _read(path: bytes, at: int) -> Iterator[bytes]:
    with open(path, "rb", buffering=0) as file:
        file.seek(at)
        while piece := file.read(_CHUNK):
            yield piece
