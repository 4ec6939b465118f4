"""The ASGI application: routes, limits, headers that every answer has, errors to statuses. Thin on purpose.

Takes a store and settings; knows no resource. What others do by a chain of middleware is one class here:
each link of a chain costs several microseconds, and a frame of 33 KB is answered in about a hundred.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
import secrets
import zlib
from collections.abc import Callable
from time import perf_counter

from starlette.datastructures import State
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from hilum.api import Store
from hilum.errors import BadQuery, HilumError, NotFound, StoreFault
from hilum.settings import Settings
from hilum.web import (
    changes,
    delete,
    errors,
    pages,
    qido,
    rendered,
    security,
    stow,
    swagger,
    viewer,
    wado,
    wado_uri,
)
from hilum.web.context import ROOT, Context
from hilum.web.logs import Clock, Handler, LogFile, printable
from hilum.web.metrics import CONTENT_TYPE, Metrics
from hilum.web.routing import Router

# The same services under the names that other servers gave them.
ROOTS = (ROOT, "/qidors", "/wadors")

_SERVICES = (qido, wado, rendered, stow, changes, delete)
# What stands at the top: the oldest service, our own ones once more, and what a browser is shown.
_AT_TOP = (wado_uri, changes, pages, swagger)

_log = logging.getLogger("hilum.web")

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_UID_PARAMS = ("study", "series", "instance")

# Smaller ones grow by what gzip puts round them.
_GZIP_BYTES_MIN = 1024
_GZIP_ON_THREAD = 256 << 10
_GZIP_LEVEL = 1
_PACKED = re.compile(rb"application/(?:[a-z.-]+\+)?(?:json|xml)|text/(?!event-stream)|image/svg\+xml", re.I)
# What a page isolated by COEP takes in only if it is isolated too; a PDF is a page to a browser.
_PAGE = re.compile(rb"text/html|application/pdf|(?:text|application)/javascript", re.I)

_BODILESS = frozenset(("GET", "HEAD", "OPTIONS", "DELETE"))


class App:
    """An ASGI application over one store. Close it at its end, or run its lifespan."""

    def __init__(self, context: Context) -> None:
        settings = context.settings
        self.context = context
        self.state = State()
        self.state.hilum = context
        self.metrics = Metrics()
        self.hosts = security.Hosts(settings.http.allowed_hosts)
        self.cors = security.Cors(settings)
        self.authenticator = security.authenticator(settings)
        self.needs_user = settings.auth.method != "none"
        self.clock = Clock()
        self.log_file = LogFile(settings.log)
        self.logs_requests = settings.log.requests
        self._handler = Handler(self.log_file, self.clock)
        for name in ("hilum", "uvicorn.error"):
            logging.getLogger(name).addHandler(self._handler)
        policy = settings.cors.resource_policy or ("cross-origin" if settings.cors.origins else "same-origin")
        self.headers = [
            (b"cross-origin-resource-policy", policy.encode()),
            (b"x-content-type-options", b"nosniff"),
        ]
        self.page_headers = [
            (b"cross-origin-opener-policy", b"same-origin"),
            (b"cross-origin-embedder-policy", b"require-corp"),
        ]
        self.isolates_pages = settings.cors.isolate_pages
        self.body_bytes = settings.limits.body_bytes
        self.idle_seconds = settings.limits.idle_seconds
        self.router = Router()
        for root in ROOTS:
            for service in _SERVICES:
                self.router.add(root, service.routes())
        for module in _AT_TOP:
            self.router.add("", module.routes())
        self.router.add("", viewer.routes(settings.viewer))
        self.router.add("", [Route("/healthz", self._health), Route("/metrics", self._metrics)])
        # Unlike those of others, no two processes ever give the same.
        self.request_ids = map(f"{secrets.token_hex(4)}-{{:x}}".format, itertools.count(1))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await _Exchange(self, scope, receive, send).run()
        elif scope["type"] == "lifespan":
            await _run_lifespan(receive, send, self.close)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})

    def close(self) -> None:
        """End threads, worker processes and the log. The store is the caller's."""
        self.context.close()
        for name in ("hilum", "uvicorn.error"):
            logging.getLogger(name).removeHandler(self._handler)
        self.log_file.close()

    async def _health(self, request: Request) -> Response:
        """Whether requests can be answered: the index is read."""
        await self.context.run(self.context.store.changes, limit=0)
        return Response(b'{"status":"ok"}', media_type="application/json")

    async def _metrics(self, request: Request) -> Response:
        body = await self.context.run(self.metrics.text)
        return Response(body, headers={"content-type": CONTENT_TYPE})


class _Exchange:
    """One request and its answer."""

    __slots__ = (
        "app", "bodies_end", "cors", "gzips", "held", "inner_receive", "inner_send", "method", "origin",
        "received", "request_id", "route", "scope", "sent", "status",
    )  # fmt: skip

    def __init__(self, app: App, scope: Scope, receive: Receive, send: Send) -> None:
        self.app = app
        self.scope = scope
        self.inner_receive = receive
        self.inner_send = send
        self.method: str = scope["method"]
        self.route = "none"
        self.status = 0
        self.received = 0
        self.sent = 0
        self.gzips = False
        self.held: Message | None = None
        self.origin = b""
        self.bodies_end = False

    async def run(self) -> None:
        """Answer. Whatever happens, the client gets an answer, metrics and log their line."""
        app = self.app
        begin = perf_counter()
        app.metrics.in_progress.inc()
        try:
            await self._answer()
        except asyncio.CancelledError:
            raise
        except HilumError as failure:
            await self._fail(failure)
        except Exception as failure:
            _log.error("request %s failed", self.request_id, exc_info=failure)
            await self._refuse(
                errors.error_response(500, "the server failed; its log says where", self.request_id)
            )
        finally:
            seconds = perf_counter() - begin
            app.metrics.in_progress.dec()
            app.metrics.observe(self.method, self.route, self.status, seconds, self.received, self.sent)
            if app.logs_requests:
                client = self.scope["client"]
                app.log_file.write(
                    f"{app.clock.now()} {self.request_id} {client[0] if client else '-'} {self.method}"
                    f" {printable(self.scope['path'])} {self.status} {self.sent} {seconds * 1000:.2f}ms"
                )

    async def _answer(self) -> None:
        app, scope = self.app, self.scope
        host = origin = authorization = length = asked_id = b""
        wanted_method = wanted_headers = None
        for name, value in scope["headers"]:
            if name == b"host":
                host = value
            elif name == b"accept-encoding":
                self.gzips = b"gzip" in value and b"gzip;q=0" not in value.replace(b" ", b"")
            elif name == b"origin":
                origin = value
            elif name == b"authorization":
                authorization = value
            elif name == b"content-length":
                length = value
            elif name == b"x-request-id":
                asked_id = value
            elif name == b"access-control-request-method":
                wanted_method = value
            elif name == b"access-control-request-headers":
                wanted_headers = value
        if asked_id and _REQUEST_ID.fullmatch(asked_id):
            self.request_id = asked_id.decode()
        else:
            self.request_id = next(app.request_ids)
        self.origin = origin
        # HTTP/1.0 may leave the host out.
        if not app.hosts.allows(host) and (host or scope["http_version"] != "1.0"):
            raise errors.WrongHost("this server does not answer for the host that was asked: allowed_hosts")
        method = self.method
        if method == "OPTIONS":
            await self._options(wanted_method is not None, wanted_headers or b"")
            return
        if app.needs_user and scope["path"] != "/healthz":
            scope["user"] = await app.authenticator.check(authorization)
        found = app.router.find(method, scope["path"])
        self.route = found.template
        receive = self.inner_receive
        if method not in _BODILESS:
            if length and (not length.isdigit() or len(length) > 18 or int(length) > app.body_bytes):
                raise errors.TooLarge(f"a body of more than {app.body_bytes:,} bytes is not taken")
            receive = self.receive
        scope["app"] = app
        scope["path_params"] = found.params
        response = await found.route.endpoint(Request(scope, receive, self.send))
        await response(scope, receive, self.send)

    async def _options(self, is_preflight: bool, wanted: bytes) -> None:
        """What may be done here. A browser's preflight brings no password, so it is answered to anybody."""
        allowed = self.app.router.allowed(self.scope["path"])
        self.route = "preflight" if is_preflight else "options"
        answer = Response(status_code=204, headers={"allow": ", ".join(allowed)})
        if is_preflight and self.origin:
            answer.raw_headers += self.app.cors.preflight(self.origin, wanted)
        await answer(self.scope, self.inner_receive, self.send)

    async def _fail(self, failure: HilumError) -> None:
        if isinstance(failure, NotFound):
            # A UID that is none can't be stored, but we have seen such stored: so it is asked for first.
            for name in _UID_PARAMS:
                uid = self.scope.get("path_params", {}).get(name)
                if uid is not None and (len(uid) > 64 or not _UID.fullmatch(uid)):
                    failure = BadQuery(f"{uid[:80]!r} is no UID")
                    break
        if isinstance(failure, StoreFault) and errors.status_of(failure) >= 500:
            _log.error("request %s: %s: %s", self.request_id, type(failure).__name__, failure)
        await self._refuse(errors.response_for(failure, self.request_id))

    async def _refuse(self, answer: Response) -> None:
        """Answer with an error. An answer that has begun just ends, and the connection with it."""
        if self.status:
            return
        self.held = None
        if self.method not in _BODILESS:
            # What is left of the body is not read: the connection can't be used again.
            answer.headers["connection"] = "close"
        await answer(self.scope, self.inner_receive, self.send)

    async def receive(self) -> Message:
        """A piece of the body, counted, and not waited for without end."""
        try:
            async with asyncio.timeout(self.app.idle_seconds):
                message = await self.inner_receive()
        except TimeoutError:
            raise errors.ClientGone("nothing more of the body has come") from None
        self.received += len(message.get("body", b""))
        if self.received > self.app.body_bytes:
            raise errors.TooLarge(f"a body of more than {self.app.body_bytes:,} bytes is not taken")
        return message

    async def send(self, message: Message) -> None:
        """Pass an answer on: with the headers that all answers have, packed where that is wanted."""
        if message["type"] == "http.response.start":
            headers = message["headers"]
            message["headers"] = headers = [*headers, *self.app.headers]
            headers.append((b"x-request-id", self.request_id.encode("latin-1")))
            if self.origin:
                headers += self.app.cors.headers(self.origin)
            kind = packing = b""
            for name, value in headers:
                if name == b"content-type":
                    kind = value
                elif name == b"content-encoding":
                    packing = value
            if self.app.isolates_pages and _PAGE.match(kind):
                headers += self.app.page_headers
            # Ranges are of the bytes as they are, and other codings pass as they came.
            whole = not packing and message["status"] not in (204, 206, 304, 416)
            if self.gzips and whole and self.method != "HEAD" and _PACKED.match(kind):
                self.held = message  # until it is known how long the body is
                return
            self.status = message["status"]
            await self.inner_send(message)
            return
        if message["type"] == "http.response.body":
            if self.held is not None:
                await self._send_held(message)
                return
            body = message.get("body", b"")
            if self.method == "HEAD":
                if message.get("more_body"):
                    return
                body = b""
                message = {"type": "http.response.body", "body": b""}
            self.sent += len(body)
        await self.inner_send(message)

    async def _send_held(self, message: Message) -> None:
        start, self.held = self.held, None
        assert start is not None
        body = message.get("body", b"")
        if not message.get("more_body") and len(body) >= _GZIP_BYTES_MIN:
            if len(body) > _GZIP_ON_THREAD:
                body = await self.app.context.run(_gzip, body)
            else:
                body = _gzip(body)
            kept = [
                # What is packed is not the same byte for byte: RFC 9110 8.8.1, Weak versus Strong.
                (name, b"W/" + value if name == b"etag" and not value.startswith(b"W/") else value)
                for name, value in start["headers"]
                if name not in (b"content-length", b"accept-ranges")
            ]
            start["headers"] = [
                *kept,
                (b"content-encoding", b"gzip"),
                (b"content-length", str(len(body)).encode()),
            ]
            message = {"type": "http.response.body", "body": body}
        start["headers"].append((b"vary", b"Accept-Encoding"))
        self.status = start["status"]
        self.sent += len(body)
        await self.inner_send(start)
        await self.inner_send(message)


def _gzip(body: bytes) -> bytes:
    return zlib.compress(body, _GZIP_LEVEL, 31)


async def _run_lifespan(receive: Receive, send: Send, close: Callable[[], None]) -> None:
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
        else:
            close()
            await send({"type": "lifespan.shutdown.complete"})
            return


def make_app(store: Store, settings: Settings) -> App:
    """The application over an open store, which stays the caller's to close."""
    return App(Context(store, settings))
