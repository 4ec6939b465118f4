"""Takes a stored head, and a way to read blobs; gives the file that came in, whole or where it is looked at.

Checks nothing: the store holds a checksum against what leaves it whole. Looks nothing up.
"""

from __future__ import annotations

import errno
import io
from collections.abc import Callable, Iterator
from typing import Any

from hilum.engine.record import Head


def original_pieces(head: Head, read_blob: Callable[[bytes, int], Iterator[bytes]]) -> Iterator[bytes]:
    """Head and blobs, put together as the file that came in."""
    at = 0  # in the head's bytes
    gone = 0  # bytes of holes so far
    for hole in head.holes:
        end = hole.offset - gone
        yield head.head[at:end]
        yield from read_blob(hole.digest, hole.length)
        at = end
        gone += hole.length
    yield head.head[at:]


class OriginalFile(io.RawIOBase):
    """A stored object as a binary file: the head is in memory, the bulk values are read where asked for."""

    def __init__(self, head: Head, read_blob: Callable[[bytes, int, int], bytes]) -> None:
        self._head = head
        self._read_blob = read_blob
        self._at = 0
        self.name = ""  # pydicom asks

    def __deepcopy__(self, memo: dict[int, Any]) -> OriginalFile:
        """For copies of pydicom's data sets, which read on from a file of their own."""
        return OriginalFile(self._head, self._read_blob)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._head.original_length}[whence]
        if base + offset < 0:
            raise OSError(errno.EINVAL, "seek before the beginning")
        self._at = base + offset
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        end = self._head.original_length
        if size is not None and size >= 0:
            end = min(end, self._at + size)
        data = b"".join(self._pieces(self._at, end))
        self._at = max(self._at, end)
        return data

    def _pieces(self, begin: int, end: int) -> Iterator[bytes]:
        head, at, gone = self._head.head, begin, 0
        for hole in self._head.holes:
            if at >= end:
                return
            if at < hole.offset:
                until = min(end, hole.offset)
                yield head[at - gone : until - gone]
                at = until
            if hole.offset <= at < hole.offset + hole.length and at < end:
                until = min(end, hole.offset + hole.length)
                yield self._read_blob(hole.digest, at - hole.offset, until - at)
                at = until
            gone += hole.length
        if at < end:
            yield head[at - gone : end - gone]
