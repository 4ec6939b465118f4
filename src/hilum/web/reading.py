"""Takes the path of a resource; gives what is stored there, and frames of it in the transfer syntax asked
for.

What is in the page cache is read where it is asked for, in microseconds; all else waits on a thread or in a
worker process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from functools import cache
from weakref import WeakKeyDictionary

from starlette.requests import Request

from hilum.dicom import uids
from hilum.engine import resources
from hilum.engine.frames import FrameReader
from hilum.engine.record import Instance
from hilum.engine.resources import FrameReaders, Resource
from hilum.errors import BadQuery, Unsupported
from hilum.pixels import transcode
from hilum.pixels.codecs import CODECS
from hilum.web import media
from hilum.web.context import Context
from hilum.web.errors import TooMany

_READERS: WeakKeyDictionary[Context, FrameReaders] = WeakKeyDictionary()  # those of each application


def readers_of(context: Context) -> FrameReaders:
    """The readers of frames that an application keeps."""
    found = _READERS.get(context)
    if found is None:
        store = context.store
        found = _READERS[context] = FrameReaders(store.index, store.packs, store.read_head, store.where_now)
    return found


def resources_of(context: Context, request: Request) -> list[Resource]:
    """The instances that the path of a request names.

    Raises:
        NotFound: there are none.
    """
    path = request.path_params
    return resources.instances(
        context.store.index, path["study"], path.get("series", ""), path.get("instance", "")
    )


def syntax_of(instance: Instance) -> str:
    return _text(instance.transfer_syntax)


@cache
def _text(syntax: bytes) -> str:
    return syntax.decode("latin-1")


def numbers_of(text: str, count_max: int) -> list[int]:
    """The frame numbers of a path, in their order: "1,4,7".

    Raises:
        BadQuery: one of them is not a number from 1.
        TooMany: more than count_max.
    """
    pieces = text.split(",")
    if len(pieces) > count_max:
        raise TooMany(f"{len(pieces)} frames in one request, and {count_max} are allowed")
    found = []
    for piece in pieces:
        number = int(piece) if piece.isascii() and piece.isdigit() and len(piece) < 11 else 0
        if number < 1:
            raise BadQuery(f"{piece[:40]!r} is no frame number: they are numbers from 1, with commas between")
        found.append(number)
    return found


def as_stored(source: str, target: str) -> bool:
    """Whether frames in `source` are those of `target`, byte for byte."""
    return source == target or (
        target == uids.EXPLICIT_VR_LITTLE_ENDIAN
        and source != uids.EXPLICIT_VR_BIG_ENDIAN
        and media.is_native(source)
    )


def can_convert(source: str, target: str) -> bool:
    """Whether frames of `source` may come out in `target`; single ones may still turn out not to."""
    return source in CODECS and transcode.can_encode(target)


class Frames:
    """The frames of one instance in one transfer syntax."""

    def __init__(self, context: Context, instance: Instance, reader: FrameReader, target: str) -> None:
        self._context = context
        self._reader = reader
        self._identity = instance.identity
        self._source = syntax_of(instance)
        self._target = target
        self.is_stored = as_stored(self._source, target)

    async def one(self, index: int) -> bytes:
        """A frame by its index, from 0.

        Raises:
            NotFound: there is none.
            Unsupported: it can't be had in this transfer syntax.
            BadDicom: it can't be decoded, or nothing tells where it is.
            Corrupt: the bytes on disk are not what came in.
            Busy: too many wait to be decoded.
        """
        if self.is_stored:
            data = self._reader.read_now(index)
            return data if data is not None else await self._context.run(self._reader.read, index)
        if not can_convert(self._source, self._target):
            raise Unsupported(
                f"frames stored as {uids.name_of(self._source) or self._source} can't be given as "
                f"{uids.name_of(self._target) or self._target}"
            )
        key = self._identity, index, self._target
        pool = self._context.pool
        known = pool.cached(key)
        if known is not None:
            return known
        data = self._reader.read_now(index)
        if data is None:
            data = await self._context.run(self._reader.read, index)
        layout = self._reader.layout
        if transcode.is_quick(self._source, self._target):
            return transcode.frame(data, layout, self._source, self._target)
        return await asyncio.wrap_future(
            pool.submit("frame", data, layout, self._source, self._target, key=key)
        )

    def many(self, indexes: Iterable[int]) -> Iterator[bytes]:
        """Frames in their order, for a thread: it waits for the disk and for the workers."""
        if self.is_stored:
            return map(self._reader.read, indexes)
        layout, source, target = self._reader.layout, self._source, self._target
        if transcode.is_quick(source, target):
            return (transcode.frame(self._reader.read(index), layout, source, target) for index in indexes)
        calls = ((self._reader.read(index), layout, source, target) for index in indexes)
        return self._context.pool.map("frame", calls)
