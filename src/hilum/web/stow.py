"""Takes instances in the body of a request; answers once all of them that can be stored are durable.

POST /studies and /studies/{study}: the Store Transaction, PS3.18 10.5. The body is multipart/related of
application/dicom, or of metadata and bulk data (stow_metadata.py), or a single part of one of these. It is
never in memory as a whole, and no part of it is looked at but by the engine.

*What is promised.* Parts are stored in groups of up to BATCH_COUNT or BATCH_BYTES, each group in one durable
commit, and the answer comes after the last. A request that fits in one group is stored only when it has come
whole. One that breaks off later leaves the instances of the groups before, each of them whole; sent again
they are duplicates, which is success. Nothing is ever stored of an instance that did not come whole.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import zlib
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any, NamedTuple, ParamSpec, TypeVar
from urllib.parse import quote

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from hilum._multipart import PART_BEGIN, PART_DATA, Scanner
from hilum.api import Store
from hilum.dicom.xml import to_xml
from hilum.engine.prepare import Arrival
from hilum.engine.writer import Policy
from hilum.errors import BadQuery, Busy, StoreBroken
from hilum.web.context import Context, choose_of, context_of
from hilum.web.errors import ClientGone, TooLarge, UnsupportedMediaType
from hilum.web.stow_metadata import Parts
from hilum.web.stow_storing import (
    BATCH_BYTES,
    BATCH_COUNT,
    CANNOT_UNDERSTAND,
    JSON_TYPES,
    XML_TYPES,
    Batch,
    Documents,
    Item,
    store_batches,
    store_documents,
)

P = ParamSpec("P")
T = TypeVar("T")

DICOM = "application/dicom"
ANSWER_TYPES = (*JSON_TYPES, *XML_TYPES)

FLUSH_BYTES = 1 << 20  # handed to a thread at once, when bytes go to a disk
FLUSH_BYTES_MIN = 64 << 10  # the same when memory is short
BUDGET_BYTES = 64 << 20  # of bodies that all requests of a process hold in memory; the rest goes to the disk
SPARE_BYTES = 32 << 20  # room on the disk that a request must leave

_FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
_PARAMETER = re.compile(r';\s*([^=;\s"]+)\s*=\s*("(?:[^"\\]|\\.)*"|[^;]*)')


def routes() -> list[Route]:
    return [
        Route("/studies", store_instances, methods=["POST"]),
        Route("/studies/{study}", store_instances, methods=["POST"]),
    ]


async def store_instances(request: Request) -> Response:
    """POST /studies[/{study}]: Store Transaction, PS3.18 10.5.

    Status: 200 all is stored; 202 some is, or there are warnings; 409 nothing is. 400 the body is no
    multipart body, or holds nothing; 406 and 415 by media type, 413 by size. 503 the disk is full, or failed:
    all has to be sent again.
    """
    context = context_of(request)
    answer_type = choose_of(request, ANSWER_TYPES)
    content = content_of(request.headers.get("content-type", ""))
    _keep_room(context.store, int(request.headers.get("content-length") or 0))
    intake = _Intake(request, content)
    try:
        await _take_body(request, content, intake)
        await intake.commit()
        await intake.store_documents()
    except BadQuery as failure:
        # What is stored is stored: 400 would say that nothing is.
        await intake.commit_if_begun()
        if not any(item.is_stored for item in intake.items):
            raise
        intake.items.append(Item(reason=CANNOT_UNDERSTAND, words=str(failure)))
    except OSError as failure:
        if failure.errno in _FULL_DISK:
            raise Busy("the disk is full: send it again later") from failure
        raise StoreBroken(f"what came in can't be kept: {failure.strerror}") from failure
    finally:
        intake.discard()
    if not intake.items:
        raise BadQuery("the body has no part to store")
    return answer(intake.items, answer_type, context.base_url(request))


# --- What comes in -------------------------------------------------------------


class Content(NamedTuple):
    """What Content-Type says of a body."""

    type: str  # of each part that does not say its own
    boundary: bytes | None  # None: the body is the one part
    syntax: str = ""  # transfer syntax of bulk data that don't name theirs


def content_of(header: str) -> Content:
    """What a Content-Type header says.

    Raises:
        UnsupportedMediaType: it is nothing that can be stored.
        BadQuery: a multipart type without a boundary.
    """
    media_type, params = parse_type(header)
    if media_type != "multipart/related":
        _check_type(media_type)
        return Content(media_type, None, params.get("transfer-syntax", ""))
    if not params.get("boundary"):
        raise BadQuery("the Content-Type of the body names no boundary")
    # PS3.18 8.6.1.2, Multipart Payload, demands the parameter; without it the first part's type counts.
    root = params.get("type", "").lower().partition(";")[0].strip()
    if root:
        _check_type(root)
    boundary = params["boundary"].encode("latin-1", "replace")
    return Content(root, boundary, params.get("transfer-syntax", ""))


def parse_type(header: str) -> tuple[str, dict[str, str]]:
    """Media type and parameters, names in lower case. Lenient: a boundary with "=" often has no quotes."""
    media_type, _, _ = header.partition(";")
    params: dict[str, str] = {}
    for name, value in _PARAMETER.findall(header[len(media_type) :]):
        if value.startswith('"'):
            value = re.sub(r"\\(.)", r"\1", value[1:-1])
        params.setdefault(name.lower(), value.strip())
    return media_type.strip().lower(), params


def _check_type(media_type: str) -> None:
    if media_type not in (DICOM, *JSON_TYPES, *XML_TYPES):
        known = "application/dicom, application/dicom+json and application/dicom+xml"
        raise UnsupportedMediaType(f"{media_type[:100] or 'no type'!r} is not stored here; {known} are")


async def _take_body(request: Request, content: Content, intake: _Intake) -> None:
    """Cut the body into its parts, and give them to the intake as they come.

    Raises:
        BadQuery: it is no multipart body, or ends too early.
        TooLarge: more bytes, or more parts, than the settings allow.
        ClientGone: the client went away.
    """
    if content.boundary is None:
        intake.begin({}, content.type)
        async for chunk in _chunks(request, intake.context):
            if not intake.take(chunk):
                await intake.flush()
        await intake.end()
        return
    scanner = Scanner(content.boundary)
    async for chunk in _chunks(request, intake.context):
        for kind, value in scanner.feed(chunk):
            if kind == PART_DATA:
                if not intake.take(value):
                    await intake.flush()
            elif kind == PART_BEGIN:
                intake.begin(value, content.type)
            elif intake.target is not None:
                await intake.end()
    scanner.finish()


async def _chunks(request: Request, context: Context) -> AsyncIterator[bytes]:
    """The body as the client meant it: inflated, where it was packed for the way."""
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", "", "gzip", "x-gzip", "deflate"):
        raise UnsupportedMediaType(f"Content-Encoding {encoding[:40]!r} is not taken; gzip and deflate are")
    inflated = _Inflated(context.settings.limits.body_bytes) if encoding not in ("identity", "") else None
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientGone("the client closed the connection before all had come")
        chunk = message.get("body", b"")
        if inflated is not None:
            for piece in inflated.pieces(chunk):
                yield piece
        elif chunk:
            yield chunk
        if not message.get("more_body"):
            break
    if inflated is not None:
        inflated.finish()


class _Inflated:
    """A body in gzip or zlib, unpacked in small pieces."""

    RATIO_MAX = 100  # what a body may grow, once it is over FREE_BYTES: deflate could do a thousand
    FREE_BYTES = 256 << 20

    def __init__(self, bytes_max: int) -> None:
        self._engine = zlib.decompressobj(zlib.MAX_WBITS | 32)
        self._bytes_max = bytes_max
        self._in = self._out = 0

    def pieces(self, chunk: bytes) -> Iterable[bytes]:
        self._in += len(chunk)
        allowed = min(self._bytes_max, max(self.FREE_BYTES, self._in * self.RATIO_MAX))
        while chunk:
            try:
                piece = self._engine.decompress(chunk, FLUSH_BYTES)
            except zlib.error as failure:
                raise BadQuery(f"the body can't be unpacked: {failure}") from None
            chunk = self._engine.unconsumed_tail
            self._out += len(piece)
            if self._out > allowed:
                raise TooLarge(f"the body unpacks to more than {allowed:,} bytes")
            if piece:
                yield piece

    def finish(self) -> None:
        if not self._engine.eof:
            raise BadQuery("the packed body is cut")


def _keep_room(store: Store, length: int) -> None:
    """Refuse what would fill the disk before it comes, rather than break the writer.

    Raises:
        Busy: there is no room.
    """
    status = os.statvfs(store.path)
    free = status.f_bavail * status.f_frsize
    if free < length + SPARE_BYTES:
        raise Busy(f"the disk has {free:,} bytes free, which is too few for this")


class Shared:
    """What all requests of a process have in common. Belongs to the event loop.

    Requests that are whole at the same moment are stored as one: a thread and a commit for each would cost
    several times as much. Nobody waits for a timer: what comes while a group is stored is the next group.
    """

    def __init__(self, context: Context) -> None:
        self.memory_left = BUDGET_BYTES
        self._context = context
        self._waiting: list[tuple[Batch, asyncio.Future[list[Item]]]] = []
        self._storing: asyncio.Task[None] | None = None

    async def store(self, batch: Batch) -> list[Item]:
        """Store a batch, durably; see store_batches()."""
        if any(arrival.is_spooled for arrival in batch.arrivals):
            # It is read and hashed as a whole first, and the others need not wait for that.
            return (await self._context.run(store_batches, self._context.store, [batch]))[0]
        done: asyncio.Future[list[Item]] = asyncio.get_running_loop().create_future()
        self._waiting.append((batch, done))
        if self._storing is None:
            self._storing = asyncio.create_task(self._store_groups())
        return await done

    async def _store_groups(self) -> None:
        try:
            while self._waiting:
                group, self._waiting = self._waiting, []
                await self._store_group(group)
        finally:
            self._storing = None

    async def _store_group(self, group: list[tuple[Batch, asyncio.Future[list[Item]]]]) -> None:
        try:
            batches = [batch for batch, _ in group]
            results = await self._context.run(store_batches, self._context.store, batches)
        except BaseException as failure:
            for _, done in group:
                if not done.done():
                    done.set_exception(failure)
            if not isinstance(failure, Exception):
                raise
        else:
            for (_, done), items in zip(group, results, strict=True):
                if not done.done():  # its client may have gone meanwhile
                    done.set_result(items)


def _shared_of(request: Request) -> Shared:
    state = request.app.state
    if not hasattr(state, "stow"):
        state.stow = Shared(state.hilum)
    shared: Shared = state.stow
    return shared


class _Intake:
    """One request: its parts as they come, what is stored of them, and what is still held."""

    def __init__(self, request: Request, content: Content) -> None:
        self.context = context = context_of(request)
        self.items: list[Item] = []
        self.target: Arrival | Parts | None = None  # what takes the part that is coming in
        self._documents: Parts | None = None  # metadata and bulk data
        self._shared = _shared_of(request)
        self._study = request.path_params.get("study", "").encode("utf-8", "replace")
        self._source = f"STOW-RS {request.client.host}" if request.client else "STOW-RS"
        self._request = request
        self._root = ""  # media type of the parts that don't name theirs
        self._syntax = content.syntax
        replaces = context.settings.storing.conflicts == "replace"
        self._policy = Policy.REPLACE if replaces else Policy.KEEP_FIRST
        self._batch: list[Arrival] = []
        self._batch_bytes = 0
        self._pending: list[bytes | memoryview] = []  # of the target, on their way to the disk
        self._pending_bytes = 0
        self._held = 0  # bytes of memory
        self._job: asyncio.Future[Any] | None = None  # on a thread
        self._parts = 0
        self._begun = False  # something is stored

    def begin(self, headers: dict[str, str], default_type: str) -> None:
        """A part begins.

        Raises:
            BadQuery: it is encoded as if it were mail.
            TooLarge: one too many.
        """
        self._parts += 1
        if self._parts > self.context.settings.limits.parts:
            raise TooLarge(f"more than {self.context.settings.limits.parts:,} parts are not taken")
        encoding = headers.get("content-transfer-encoding", "binary").lower()
        if encoding not in ("binary", "8bit", "7bit"):
            raise BadQuery(f"a part has Content-Transfer-Encoding {encoding[:40]!r}; HTTP needs none")
        own, params = parse_type(headers.get("content-type", ""))
        self._root = self._root or default_type or own or DICOM
        media_type = own or self._root
        if self._root == DICOM or media_type == DICOM:
            self.target = self.context.store.arrival(source=self._source)
            return
        location = headers.get("content-location", "")
        if not location and "content-id" in headers:
            location = f"cid:{headers['content-id'].strip('<> ')}"  # RFC 2392
        if self._documents is None:
            self._documents = Parts(self.context.store.folder.spool, str(self._request.url))
        self._documents.begin(media_type, params, location)
        self.target = self._documents

    def take(self, chunk: bytes | memoryview) -> bool:
        """Take bytes of the part that is coming in. False: they must be flushed before more come."""
        target, size = self.target, len(chunk)
        assert target is not None
        short = self._shared.memory_left < size
        self._hold(size)
        if not short and not self._pending and target.is_quick(size):
            target.write(chunk)
            return True
        self._pending.append(chunk)
        self._pending_bytes += size
        return self._pending_bytes < (FLUSH_BYTES_MIN if short else FLUSH_BYTES)

    async def flush(self) -> None:
        """Write what is pending, on a thread."""
        target, data = self.target, b"".join(self._pending)
        assert target is not None
        self._pending.clear()
        self._pending_bytes = 0
        held = target.held
        await self._run(_write, target, data, spool=self._shared.memory_left < 0)
        self._hold(target.held - held - len(data))

    async def end(self) -> None:
        """The part has come whole."""
        if self._pending:
            await self.flush()
        target, self.target = self.target, None
        if not isinstance(target, Arrival):
            return
        self._batch.append(target)
        self._batch_bytes += target.length
        full = len(self._batch) >= BATCH_COUNT or self._batch_bytes >= BATCH_BYTES
        if full or self._shared.memory_left < 0:
            await self.commit()

    async def commit(self) -> None:
        """Store what has come whole."""
        batch, self._batch, self._batch_bytes = self._batch, [], 0
        if not batch:
            return
        self._begun = True
        held = sum(arrival.held for arrival in batch)
        try:
            self.items += await self._shared.store(Batch(batch, self._study, self._policy))
        finally:
            self._hold(-held)

    async def store_documents(self) -> None:
        """Store what has come as metadata and bulk data, when all of it has come."""
        if self._documents is not None:
            job = Documents(
                self._documents, self._root, self._syntax, self._study, self._policy, self._source
            )
            self.items += await self._run(store_documents, self.context.store, job)

    async def commit_if_begun(self) -> None:
        """Store the whole parts of a body that went wrong behind them, if some before them are stored."""
        if self._begun:
            await self.commit()

    def discard(self) -> None:
        """Leave nothing of what was not stored."""
        if self._job is not None and not self._job.done():
            # The request was cancelled, and the thread still writes there.
            self._job.add_done_callback(lambda _: self.discard())
            return
        for left in (*self._batch, self.target, self._documents):
            if left is not None:
                left.discard()
        self._hold(-self._held)

    async def _run(self, function: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
        """Run something on a thread that works on what is held here."""
        job = asyncio.ensure_future(self.context.run(function, *args, **named))
        self._job = job
        return await asyncio.shield(job)

    def _hold(self, more: int) -> None:
        self._held += more
        self._shared.memory_left -= more


def _write(target: Arrival | Parts, data: bytes, *, spool: bool) -> None:
    if spool:
        target.spool()
    target.write(data)


# --- The answer ------------------------------------------------------------------


def answer(items: Sequence[Item], media_type: str, base: str) -> Response:
    """The answer that tells what became of each part."""
    stored = sum(item.is_stored for item in items)
    # PS3.18 10.5.3.1, Status Codes.
    if not stored:
        status = 409
    elif stored < len(items) or any(item.warning for item in items):
        status = 202
    else:
        status = 200
    document = report(items, base)
    body = to_xml(document) if media_type in XML_TYPES else orjson.dumps(document)
    # No charset: clients compare the whole header, and JSON has none.
    return Response(body, status, headers={"content-type": media_type})


def report(items: Sequence[Item], base: str) -> dict[str, Any]:
    """The Store Instances Response Module as DICOM JSON: PS3.18 I.1, Response Message Body.

    A sequence that would be empty is not there. Failures have their words in Error Comment (0000,0902) beside
    what the module demands.
    """
    studies = {item.study for item in items if item.is_stored}
    url = f"{base}/studies/{quote(min(studies), safe='')}" if len(studies) == 1 else ""
    document: dict[str, Any] = {"00081190": _url(url)}
    for tag, members in (
        ("00081198", [item for item in items if not item.is_stored and item.uid]),
        ("00081199", [item for item in items if item.is_stored]),
        ("0008119A", [item for item in items if not item.is_stored and not item.uid]),
    ):
        if members:
            document[tag] = {"vr": "SQ", "Value": [_report_item(item, base) for item in members]}
    return document


def _report_item(item: Item, base: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if item.words:
        found["00000902"] = {"vr": "LO", "Value": [item.words.replace("\\", "/")[:64]]}
    if item.uid:
        found["00081150"] = {"vr": "UI", "Value": [item.sop_class]} if item.sop_class else {"vr": "UI"}
        found["00081155"] = {"vr": "UI", "Value": [item.uid]}
    if item.is_stored:
        study, series, uid = (quote(name, safe="") for name in (item.study, item.series, item.uid))
        found["00081190"] = _url(f"{base}/studies/{study}/series/{series}/instances/{uid}")
        if item.warning:
            found["00081196"] = {"vr": "US", "Value": [item.warning]}
    else:
        found["00081197"] = {"vr": "US", "Value": [item.reason]}
    return found


def _url(url: str) -> dict[str, Any]:
    return {"vr": "UR", "Value": [url]} if url else {"vr": "UR"}
