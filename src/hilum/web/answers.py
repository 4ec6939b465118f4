"""Takes a status, headers and bytes, whole or as they are read; sends them. Never joins what it is given,
never holds more than two batches of a long answer.

These stand beside Starlette's responses because of their cost: a frame is sent with two messages and nothing
else, and a long answer is read on a thread while what was read before is on its way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator, Iterable, Iterator, Sequence

from starlette.types import Receive, Scope, Send

from hilum.web.conditional import Asked, Headers, Span
from hilum.web.context import Context
from hilum.web.multipart import Multipart

BATCH_BYTES = 1 << 20
_JOIN_BELOW = 64 << 10  # pieces smaller than this are joined: a message costs more than the copy

Answer = Callable[[Scope, Receive, Send], Awaitable[None]]


class Whole:
    """An answer whose body is in memory, in one piece or several."""

    def __init__(self, status: int, headers: Headers, *pieces: bytes) -> None:
        self._status = status
        self._headers = headers
        self._pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self._status, "headers": self._headers})
        if scope["method"] != "HEAD":
            for piece in self._pieces[:-1]:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        last = self._pieces[-1] if self._pieces and scope["method"] != "HEAD" else b""
        await send({"type": "http.response.body", "body": last})


class Streamed:
    """An answer whose pieces come from an iterator that may wait for the disk.

    An iterator that raises after the first byte ends the connection: a client can tell that from an end.
    """

    def __init__(self, context: Context, status: int, headers: Headers, pieces: Iterable[bytes]) -> None:
        self._context = context
        self._status = status
        self._headers = headers
        self._pieces = iter(pieces)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "HEAD":
            await Whole(self._status, self._headers)(scope, receive, send)
            return
        run = self._context.run
        # The first batch is read before the status is sent: most failures show there.
        batch = await run(next_batch, self._pieces)
        await send({"type": "http.response.start", "status": self._status, "headers": self._headers})
        gone = asyncio.ensure_future(_disconnected(receive))
        ahead: asyncio.Future[list[bytes]] | None = None
        try:
            while batch and not gone.done():
                ahead = asyncio.ensure_future(run(next_batch, self._pieces))
                for piece in batch:
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
                batch = await ahead
        finally:
            gone.cancel()
            if ahead is not None and not ahead.done():
                await asyncio.wait((ahead,))
            if isinstance(self._pieces, Generator):
                await run(self._pieces.close)  # what it has under way in workers is of no use any more
        if not batch:
            await send({"type": "http.response.body", "body": b""})


def next_batch(pieces: Iterator[bytes]) -> list[bytes]:
    """About BATCH_BYTES of pieces, small ones joined; [] at the end."""
    found: list[bytes] = []
    small: list[bytes] = []
    size = 0
    for piece in pieces:
        if len(piece) < _JOIN_BELOW:
            small.append(piece)
        else:
            if small:
                found.append(b"".join(small))
                small.clear()
            found.append(piece)
        size += len(piece)
        if size >= BATCH_BYTES:
            break
    if small:
        found.append(b"".join(small))
    return [piece for piece in found if piece]


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def headers_of(content_type: str, length: int | None = None, *more: tuple[bytes, bytes]) -> Headers:
    """The headers that all answers of retrieval have: what it is, how long, and that Accept chose it."""
    found: Headers = [(b"content-type", content_type.encode("latin-1", "replace"))]
    if length is not None:
        found.append((b"content-length", b"%d" % length))
    found.append((b"vary", b"accept"))
    found.extend(more)
    return found


def not_modified(etag: bytes) -> Whole:
    return Whole(304, [(b"etag", etag), (b"vary", b"accept")])


def whole(headers: Headers, *pieces: bytes) -> Whole:
    """A 200 with these pieces, sent as one where that is cheaper than messages of their own."""
    if len(pieces) > 1 and sum(map(len, pieces)) < 2 * _JOIN_BELOW:
        return Whole(200, headers, b"".join(pieces))
    return Whole(200, headers, *filter(None, pieces))


def ranged(context: Context, asked: Asked, etag: bytes, content_type: str, *pieces: bytes) -> Whole:
    """A representation that is in memory, or the byte ranges of it that are asked for."""
    length = sum(map(len, pieces))
    spans = asked.spans(etag, length, context.settings.limits.ranges) if asked.range else None
    tags = (b"etag", etag), (b"accept-ranges", b"bytes")
    if spans is None:
        return whole(headers_of(content_type, length, *tags), *pieces)
    data = b"".join(pieces) if len(pieces) > 1 else pieces[0]
    headers, found = _partial(content_type, length, spans, lambda span: [data[span.begin : span.end]])
    return Whole(206, [*headers, *tags], *found)


def ranged_stream(
    context: Context,
    asked: Asked,
    etag: bytes,
    content_type: str,
    length: int,
    read: Callable[[int, int], Iterable[bytes]],
) -> Streamed:
    """The same of one that is read when it is sent: read(begin, end) gives its pieces."""
    spans = asked.spans(etag, length, context.settings.limits.ranges) if asked.range else None
    tags = (b"etag", etag), (b"accept-ranges", b"bytes")
    if spans is None:
        return Streamed(context, 200, headers_of(content_type, length, *tags), read(0, length))
    headers, pieces = _partial(content_type, length, spans, lambda span: read(span.begin, span.end))
    return Streamed(context, 206, [*headers, *tags], pieces)


def _partial(
    content_type: str, length: int, spans: Sequence[Span], read: Callable[[Span], Iterable[bytes]]
) -> tuple[Headers, Iterable[bytes]]:
    """Headers and pieces of a 206: RFC 9110 15.3.7, 206 Partial Content."""
    if len(spans) == 1:
        (span,) = spans
        headers = headers_of(content_type, span.end - span.begin)
        return [*headers, (b"content-range", span.content_range(length))], read(span)
    parts = Multipart("")

    def pieces() -> Iterator[bytes]:
        for span in spans:
            yield parts.range_head(content_type, span.content_range(length).decode())
            yield from read(span)
        yield parts.end()

    return headers_of(parts.content_type), pieces()
