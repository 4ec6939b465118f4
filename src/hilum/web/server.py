"""Takes settings; listens, and answers until a signal says stop, in one process or several on one socket.

The only module that knows uvicorn. What uvicorn leaves open is closed in its protocol here: headers without
end, clients that send or take nothing, and a signal that would be raised again after a clean stop.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import multiprocessing
import os
import resource
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from hilum import api
from hilum.errors import StoreBroken, StoreMissing
from hilum.settings import Limits, Settings, parse_listen
from hilum.web import metrics, viewer
from hilum.web.app import make_app

_BACKLOG = 2048
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_RESTART_SECONDS = 1.0  # between two starts of one worker
_KILL_SECONDS = 10.0  # over what a stop may take

_log = logging.getLogger("hilum.web")


def serve(
    settings: Settings,
    ready: Callable[[str], None],
    say: Callable[[str], None] = lambda words: None,
) -> None:
    """Serve until SIGTERM or SIGINT. `ready` gets the address, once requests are answered there; `say` gets
    words before that, where something takes long.

    What is under way is finished, within limits.stop_seconds; new connections are refused meanwhile.

    Raises:
        StoreMissing: there is no store.
        StoreLocked: it is being rebuilt.
        BadQuery, StoreMissing: the file of users is damaged or not there.
        BadQuery, Unsupported: the viewer is no folder, or can't be fetched.
    """
    with api.open(settings.store):
        pass  # what is wrong with it is said here, once, and not by each worker
    viewer.prepare(settings.viewer, say)
    listener = listen(settings)
    try:
        url = url_of(listener)
        if settings.http.workers == 1:
            _work(settings, listener, lambda: ready(url))
        else:
            _Workers(settings, listener).run(lambda: ready(url))
    finally:
        listener.close()


def listen(settings: Settings) -> socket.socket:
    """The listening socket. Workers share it, so none of its connections is lost when one of them dies."""
    host, port = parse_listen(settings.http.listen)
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    return socket.create_server(address, family=family, backlog=_BACKLOG)


def url_of(listener: socket.socket) -> str:
    """The address under which a listening socket is reached from this machine."""
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "localhost"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Server(uvicorn.Server):
    """uvicorn's server, which says when it is ready and ends in peace after a signal."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None], parent: Connection | None) -> None:
        super().__init__(config)
        self._ready = ready
        self._parent = parent

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._parent is not None:
            # The pipe to the parent has an end when the parent has: nobody would stop us then.
            asyncio.get_running_loop().add_reader(self._parent.fileno(), self._on_orphaned)
        # What is here by now stays: the collector need not look at it again at each of its rounds.
        gc.collect()
        gc.freeze()
        self._ready()

    def _on_orphaned(self) -> None:
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        before = {number: signal.signal(number, self.handle_exit) for number in _STOP_SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _work(
    settings: Settings, listener: socket.socket, ready: Callable[[], None], parent: Connection | None = None
) -> None:
    """Open the store and answer requests, in this process."""
    limits = settings.limits
    # A connection is a descriptor, and many systems begin with 1,024 of them while far more may be had.
    _, descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))
    with api.open(settings.store) as store:
        app = make_app(store, settings)
        try:
            config = uvicorn.Config(
                app,
                http=protocol_for(limits),
                loop="uvloop",
                ws="none",
                lifespan="off",
                log_config=None,
                log_level=logging.WARNING,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                backlog=_BACKLOG,
                limit_concurrency=limits.connections,
                timeout_keep_alive=limits.keep_alive_seconds,
                timeout_graceful_shutdown=limits.stop_seconds,
            )
            _Server(config, ready, parent).run([listener])
        finally:
            app.close()


def protocol_for(limits: Limits) -> type[HttpToolsProtocol]:
    """uvicorn's protocol with bounds on what it leaves unbounded."""

    class Bounded(HttpToolsProtocol):
        _in_head = True
        _head_bytes = 0
        _head_timer: asyncio.TimerHandle | None = None
        _write_timer: asyncio.TimerHandle | None = None
        _refusal = ""

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._head_timer = self.loop.call_later(limits.header_seconds, self._on_slow_head)

        def connection_lost(self, exc: Exception | None) -> None:
            for timer in (self._head_timer, self._write_timer):
                if timer is not None:
                    timer.cancel()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self._in_head and not self.transport.is_closing():
                self._head_bytes += len(data)
                if self._head_bytes > limits.header_bytes:
                    self._refuse(431, "the headers are longer than limits.header_bytes")
                elif self._head_timer is None:
                    self._head_timer = self.loop.call_later(limits.header_seconds, self._on_slow_head)

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._in_head = True

        def on_headers_complete(self) -> None:
            self._in_head = False
            self._head_bytes = 0
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None
            size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if size > limits.header_bytes:
                self._refusal = "the headers are longer than limits.header_bytes"
                raise RuntimeError(self._refusal)  # out of the parser, which answers by send_400_response
            super().on_headers_complete()

        def on_message_complete(self) -> None:
            super().on_message_complete()
            self._in_head = False

        def send_400_response(self, msg: str) -> None:
            if self._refusal:
                self._refuse(431, self._refusal)
            else:
                self._refuse(400, "this is no HTTP request")

        def _on_slow_head(self) -> None:
            self._head_timer = None
            if self._in_head and not self.transport.is_closing():
                self._refuse(408, "the headers took longer than limits.header_seconds")

        def _refuse(self, status: int, words: str) -> None:
            cycle = self.cycle
            is_open = cycle is not None and not cycle.response_complete
            if not self.pipeline and not (is_open and cycle.response_started):  # else an answer is on its way
                body = b'{"status":%d,"error":"%s"}' % (status, words.encode())
                head = b"HTTP/1.1 %d \r\ncontent-type: application/json\r\nconnection: close\r\n" % status
                self.transport.write(b"%scontent-length: %d\r\n\r\n%s" % (head, len(body), body))
            if is_open:
                cycle.disconnected = True  # its handler hears of it, and writes no more
                cycle.message_event.set()
            self.transport.close()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._write_timer = self.loop.call_later(limits.idle_seconds, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._write_timer is not None:
                self._write_timer.cancel()
                self._write_timer = None

    return Bounded


class _Workers:
    """Several processes on one listening socket. One that dies is started again."""

    def __init__(self, settings: Settings, listener: socket.socket) -> None:
        self._settings = settings
        self._listener = listener
        self._context = multiprocessing.get_context("spawn")
        self._workers: dict[BaseProcess, tuple[Connection, float]] = {}
        self._stopping = False

    def run(self, ready: Callable[[], None]) -> None:
        """Start all, watch them, stop all."""
        folder = tempfile.mkdtemp(prefix="hilum-metrics-")
        os.environ[metrics.FOLDER_VARIABLE] = folder  # workers inherit it, and share their numbers there
        woken, wake = self._context.Pipe(duplex=False)

        def on_signal(number: int, frame: Any) -> None:
            self._stopping = True
            wake.send_bytes(b"")

        before = {number: signal.signal(number, on_signal) for number in _STOP_SIGNALS}
        try:
            for _ in range(self._settings.http.workers):
                self._start()
            self._wait_until_ready(woken)
            if not self._stopping:
                ready()
            while not self._stopping:
                self._watch(woken)
        finally:
            self._stop()
            for number, handler in before.items():
                signal.signal(number, handler)
            del os.environ[metrics.FOLDER_VARIABLE]
            shutil.rmtree(folder, ignore_errors=True)

    def _start(self) -> None:
        ours, theirs = self._context.Pipe()
        worker = self._context.Process(
            target=_work_for, args=(self._settings, self._listener, theirs), name="hilum-web"
        )
        worker.start()
        theirs.close()
        self._workers[worker] = ours, time.monotonic()

    def _wait_until_ready(self, woken: Connection) -> None:
        waiting = {ours for ours, _ in self._workers.values()}
        while waiting and not self._stopping:
            for pipe in wait([*waiting, woken]):
                if pipe is woken:
                    return
                try:
                    pipe.recv_bytes()  # type: ignore[union-attr]
                except EOFError:
                    raise StoreBroken("a worker ended before it was ready; its log says why") from None
                waiting.discard(pipe)

    def _watch(self, woken: Connection) -> None:
        """Until something ends: start it again."""
        wait([woken, *(worker.sentinel for worker in self._workers)])
        for worker in [worker for worker in self._workers if not worker.is_alive()]:
            if self._stopping:
                return
            ours, started = self._workers.pop(worker)
            ours.close()
            _log.error("worker %s ended with %s; it is started again", worker.pid, worker.exitcode)
            metrics.forget(worker.pid or 0)
            time.sleep(max(0.0, _RESTART_SECONDS - (time.monotonic() - started)))
            self._start()

    def _stop(self) -> None:
        for worker in self._workers:
            worker.terminate()
        end = time.monotonic() + self._settings.limits.stop_seconds + _KILL_SECONDS
        for worker in self._workers:
            worker.join(max(0.0, end - time.monotonic()))
            if worker.is_alive():
                worker.kill()
                worker.join()
        for ours, _ in self._workers.values():
            ours.close()


def _work_for(settings: Settings, listener: socket.socket, parent: Connection) -> None:
    """The whole life of a worker process."""
    for number in _STOP_SIGNALS:  # until the server listens for them
        signal.signal(number, lambda *_: os._exit(0))
    with contextlib.suppress(StoreMissing, BrokenPipeError):
        _work(settings, listener, lambda: parent.send_bytes(b"ready"), parent)
