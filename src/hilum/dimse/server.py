"""Takes settings and a store; listens, and serves associations until it is stopped, in processes of its own.

    with Server(settings, "./archive") as server:
        server.address

One thread of the calling process accepts connections and hands each to the process with the fewest: several
processes, since one has one GIL. So none is lost when a process dies, and limits are of all. With `processes`
0 all is done in the calling process, on a store that is open.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import multiprocessing
import os
import select
import signal
import socket
import ssl
import threading
import time
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, Self

from pynetdicom import evt

from hilum import api
from hilum.dimse import commitment, echo, find, peers, retrieve, store
from hilum.dimse.options import DimseSettings
from hilum.dimse.services import Node, serve
from hilum.dimse.store import STORAGE_SERVICE, Incoming
from hilum.dimse.transport import Association, Lost, tune
from hilum.errors import BadDicom, BadQuery

# What is offered. A further service, a worklist say, is one more module and one more line.
SERVICES = (echo.SERVICE, store.SERVICE, find.SERVICE, retrieve.SERVICE, commitment.SERVICE)

_BACKLOG = 1024
_HANDED, _OVER_LIMIT = b"+", b"!"  # to a process, with a connection
_DONE, _READY = b"-", b"*"  # from it: a connection has ended; it takes connections
_REFUSED_MAX = 256  # connections beyond the limit that are told so; more are closed
_RESTART_SECONDS = 1.0
_KILL_SECONDS = 5.0
_READY_SECONDS = 60.0
_STOPPING_IDLE_SECONDS = 1.0  # that an association may be silent once it is time to stop

# PS3.8 9.3.4, A-ASSOCIATE-RJ PDU Structure: result, source, reason.
_UNKNOWN_CALLING = (1, 1, 3)
_UNKNOWN_CALLED = (1, 1, 7)
_LIMIT_EXCEEDED = (2, 3, 2)

_log = logging.getLogger("hilum.dimse")


def quiet_pynetdicom() -> None:
    """Let pynetdicom log nothing: what its loggers would say in many lines, with tracebacks, we say in
    one."""
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL + 1)


def parse_listen(text: str) -> tuple[str, int]:
    """(host, port) of "127.0.0.1:11112", "[::1]:0" or ":11112", which is 127.0.0.1.

    Raises:
        BadQuery: it is no address with a port.
    """
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 0xFFFF:
        raise BadQuery(f"{text!r} is no address with a port, as 127.0.0.1:11112 is")
    return host or "127.0.0.1", int(port)


# --- One association -------------------------------------------------------------


class Served(Association):
    """An association that a peer asked for, on a thread of its own."""

    def __init__(self, serving: Serving, connected: socket.socket, address: Any, *, over_limit: bool) -> None:
        node = serving.node
        super().__init__(node.entity, "acceptor", open_sink=node.open_sink, stop_fd=node.stop_fd)
        self._serving = serving
        self._node = node
        self._connected = connected
        self._address = address
        self._over_limit = over_limit
        self._begun = time.monotonic()
        self._what = "released"
        self.name = "dimse"
        self.daemon = True

    def run_reactor(self) -> None:
        """All of its life."""
        try:
            if self._greet():
                self._run()
        except Lost as failure:
            self._what = f"lost: {self.reason or failure}"
        except BadDicom as failure:
            self._what = f"broken off: {failure}"
        except Exception as failure:  # a mistake of ours ends one association, not the server
            self._what = f"broken off by a mistake of ours: {type(failure).__name__}"
            _log.error("%s: %s", self.peer, failure, exc_info=failure)
        finally:
            self._end()

    def _greet(self) -> bool:
        """TLS and negotiation. False: it came to nothing."""
        tune(self._connected, self._node.settings.artim_seconds)
        if self._serving.tls is not None:
            try:
                self._connected = self._serving.tls.wrap_socket(self._connected, server_side=True)
            except (OSError, ssl.SSLError) as failure:
                _log.warning("%s: no TLS: %s", self._address[0], _words_of(failure))
                self._connected.close()
                self._what = ""
                return False
        self._connected.settimeout(self._node.settings.idle_seconds)
        self.accept(self._connected, self._address, self._node.settings.title)
        request = self.wait_for_request()
        if request is None:
            if not self.reason and not self.dul._end and self.dul.state == "Sta1":
                self._what = ""  # it connected and went, as those do that look whether a port is open
            else:
                self._what = f"no association: {self.reason or 'no request in time'}"
            return False
        refusal = self._refusal(request)
        if refusal is not None:
            words, answer = refusal
            self._what = f"refused: {words}"
            self.acse.send_reject(*answer)
            return False
        stated = self.requestor.sop_class_common_extended
        storage = frozenset(
            str(uid) for uid, item in stated.items() if str(item.service_class_uid) == STORAGE_SERVICE
        )
        wanted = request.presentation_context_definition_list
        self.acceptor.supported_contexts = self._node.supported(wanted, storage)
        self._agree_extended()
        self.acse.negotiate_association()
        if not self.is_established:
            self._what = f"not agreed: {self.reason or 'refused'}"
            return False
        self.agreed()
        return True

    def _refusal(self, request: Any) -> tuple[str, tuple[int, int, int]] | None:
        settings = self._node.settings
        if self._over_limit:
            return f"more than {settings.associations} associations", _LIMIT_EXCEEDED
        if settings.calling_titles and self.peer_title not in settings.calling_titles:
            return "its AE title is not accepted", _UNKNOWN_CALLING
        called = str(request.called_ae_title or "").strip()
        if settings.check_called and called != settings.title:
            return f"it calls {called!r}", _UNKNOWN_CALLED
        return None

    def _agree_extended(self) -> None:
        """SOP Class Extended Negotiation: PS3.7 D.3.3.5."""
        for uid, asked in self.requestor.sop_class_extended.items():
            service = self._node.service_of(str(uid))
            if service is not None and service.extended is not None:
                self.extended[str(uid)] = service.extended(asked)
        self._handlers[evt.EVT_SOP_EXTENDED] = (lambda event: dict(self.extended), None)

    def _run(self) -> None:
        stop_at = None
        while True:
            if self.inbox:
                serve(self._node, self, self.inbox.popleft())
                self.dul._idle_timer.restart()
                continue
            if self.release_answered():
                return
            if self.acse.is_aborted():
                self._what = self.reason or "aborted by the peer"
                self.is_aborted, self.is_established = True, False
                return
            self.check()
            idle = self.dul._idle_timer.remaining
            if self.asked_to_stop:
                now = time.monotonic()
                stop_at = stop_at or now + self._node.settings.stop_seconds
                silent = self._node.settings.idle_seconds - idle
                if now >= stop_at or silent >= _STOPPING_IDLE_SECONDS:
                    self._what = "aborted: we stop"
                    self.break_off("we stop")
                    return
                idle = min(idle, stop_at - now, _STOPPING_IDLE_SECONDS - silent)
            elif idle <= 0:
                self._what = "aborted: nothing came for too long"
                self.break_off("nothing came for too long")
                return
            self.dul.pump(max(0.0, idle))

    def _end(self) -> None:
        sink = self.dul.abandon()
        if isinstance(sink, Incoming):
            sink.discard()
            self.tally["broken off in the middle"] += 1
        for message in self.inbox:
            if isinstance(message.sink, Incoming):
                message.sink.discard()
        with contextlib.suppress(Exception):
            self.close()
        self._serving.forget(self)
        if self._what:
            counts = "".join(f", {count} {what}" for what, count in self.tally.items())
            seconds = round(time.monotonic() - self._begun, 3)
            level = logging.INFO if self._what == "released" else logging.WARNING
            _log.log(level, "%s: %s%s, %s s", self.peer, self._what, counts, seconds)


def _words_of(failure: OSError) -> str:
    reason = getattr(failure, "reason", "") or failure.strerror or type(failure).__name__
    return str(reason)


# --- One process -----------------------------------------------------------------


class Serving:
    """The associations of one process."""

    def __init__(self, opened: api.Store, settings: DimseSettings, done: Any = None) -> None:
        quiet_pynetdicom()
        self.tls = peers.server_tls(settings)
        self._stop_read, self._stop_write = os.pipe()
        self.node = Node(opened, settings, SERVICES, peers.entity(settings), self._stop_read)
        self.reporter = commitment.Reporter(self.node)
        self._done = done  # called when an association has ended
        self._lock = threading.Lock()
        self._alive: set[Served] = set()

    def begin(self) -> None:
        self.reporter.start()

    def take(self, connected: socket.socket, address: Any, *, over_limit: bool) -> None:
        """Serve a connection on a thread of its own."""
        try:
            served = Served(self, connected, address, over_limit=over_limit)
            with self._lock:
                self._alive.add(served)
            served.start()
        except (OSError, RuntimeError) as failure:  # no thread, no descriptor
            _log.error("%s: can't be served: %s", address[0], failure)
            connected.close()
            if self._done is not None:
                self._done()

    def forget(self, served: Served) -> None:
        with self._lock:
            self._alive.discard(served)
        if self._done is not None:
            self._done()

    def stop(self) -> None:
        """Let each association finish what it is at, within stop_seconds; then end it."""
        os.write(self._stop_write, b"\0")
        self.reporter.stop()
        deadline = time.monotonic() + self.node.settings.stop_seconds + _KILL_SECONDS
        with self._lock:
            alive = list(self._alive)
        for served in alive:
            served.join(max(0.0, deadline - time.monotonic()))
        self.reporter.join(max(0.1, deadline - time.monotonic()))
        if not any(served.is_alive() for served in alive):
            os.close(self._stop_read)
            os.close(self._stop_write)


def _work(path: str, settings: DimseSettings, control: socket.socket) -> None:
    """The whole life of a process that serves."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the parent says when to stop, by closing `control`
        signal.signal(number, signal.SIG_IGN)
    lock = threading.Lock()

    def done() -> None:
        with lock, contextlib.suppress(OSError):
            control.sendall(_DONE)

    with api.open(path) as opened:
        serving = Serving(opened, settings, done)
        serving.begin()
        control.sendall(_READY)
        while True:
            try:
                kind, descriptors, _, _ = socket.recv_fds(control, 1, 1)
            except OSError:
                break
            if not kind:
                break
            for descriptor in descriptors:
                connected = socket.socket(fileno=descriptor)
                try:
                    address = connected.getpeername()
                except OSError:  # it has gone already
                    connected.close()
                    done()
                    continue
                serving.take(connected, address, over_limit=kind == _OVER_LIMIT)
        serving.stop()


class _Process:
    """A process that serves, as its parent sees it."""

    def __init__(self, path: str, settings: DimseSettings) -> None:
        ours, theirs = socket.socketpair()
        context = multiprocessing.get_context("spawn")
        self.control = ours
        self.active = 0
        self.started = time.monotonic()
        self.is_ready = False
        self.process: BaseProcess = context.Process(
            target=_work, args=(path, settings, theirs), name="hilum-dimse", daemon=True
        )
        self.process.start()
        theirs.close()

    def hand(self, connected: socket.socket, *, over_limit: bool) -> bool:
        """Give a connection away. False: the process has gone."""
        try:
            socket.send_fds(self.control, [_OVER_LIMIT if over_limit else _HANDED], [connected.fileno()])
        except OSError:
            return False
        self.active += 1
        return True

    def read(self) -> bool:
        """Take what it says. False: it has gone."""
        try:
            said = self.control.recv(4096)
        except OSError:
            said = b""
        self.active = max(0, self.active - said.count(_DONE))
        self.is_ready = self.is_ready or _READY in said
        return bool(said)


# --- The server ------------------------------------------------------------------


class Server:
    """Listens from start() to stop(), or as long as a `with` lasts."""

    def __init__(self, settings: DimseSettings, opened: str | api.Store) -> None:
        """`opened` is the folder of a store, or a store that is open where `processes` is 0.

        Raises:
            BadQuery: a setting that makes no sense.
        """
        self._settings = settings
        self._networks = [_network(text) for text in settings.addresses]
        self._address = parse_listen(settings.listen)
        peers.entity(settings)
        peers.server_tls(settings)
        self._path = opened if isinstance(opened, str) else opened.path
        self._serving: Serving | None = None
        if settings.processes == 0:
            if isinstance(opened, str):
                raise BadQuery("without processes of its own the server needs a store that is open")
            self._serving = Serving(opened, settings, self._on_done)
        self._active = 0  # connections of this process
        self._processes: list[_Process] = []
        self._listener: socket.socket | None = None
        self._woken, self._wake = os.pipe()
        self._thread = threading.Thread(target=self._run, name="dimse-accept", daemon=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def address(self) -> tuple[str, int]:
        """Host and port where it listens."""
        assert self._listener is not None
        host, port = self._listener.getsockname()[:2]
        return host, port

    def start(self) -> None:
        """Listen; return when associations are served.

        Raises:
            OSError: the address can't be had.
            BadQuery: no process came up; its log says why.
        """
        family, _, _, _, address = socket.getaddrinfo(*self._address, type=socket.SOCK_STREAM)[0]
        self._listener = socket.create_server(address, family=family, backlog=_BACKLOG)
        self._listener.setblocking(False)
        if self._serving is not None:
            self._serving.begin()
        for _ in range(self._settings.processes):
            self._processes.append(_Process(self._path, self._settings))
        self._wait_until_ready()
        self._thread.start()

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + _READY_SECONDS
        for process in self._processes:
            process.control.settimeout(max(0.1, deadline - time.monotonic()))
            if not process.read():
                self.stop()
                raise BadQuery(
                    "a process that was to serve DIMSE ended before it was ready; its log says why"
                )
            process.control.settimeout(None)

    def stop(self) -> None:
        """Refuse new connections, let those that there are finish, end."""
        if self._listener is None:
            return
        os.write(self._wake, b"\0")
        if self._thread.ident is not None:
            self._thread.join()
        self._listener.close()
        self._listener = None
        if self._serving is not None:
            self._serving.stop()
        for process in self._processes:
            process.control.close()
        deadline = time.monotonic() + self._settings.stop_seconds + 2 * _KILL_SECONDS
        for process in self._processes:
            process.process.join(max(0.0, deadline - time.monotonic()))
            if process.process.is_alive():
                process.process.kill()
                process.process.join()
        os.close(self._wake)
        os.close(self._woken)

    def _on_done(self) -> None:
        self._active -= 1  # its own process: the GIL makes it one step with the thread that adds

    def _run(self) -> None:
        assert self._listener is not None
        while True:
            poll = select.poll()
            poll.register(self._woken, select.POLLIN)
            poll.register(self._listener, select.POLLIN)
            for process in self._processes:
                poll.register(process.control, select.POLLIN)
            for descriptor, _ in poll.poll():
                if descriptor == self._woken:
                    return
                if descriptor == self._listener.fileno():
                    self._accept()
                else:
                    self._hear(descriptor)

    def _hear(self, descriptor: int) -> None:
        for process in self._processes:
            if process.control.fileno() == descriptor and not process.read():
                process.control.close()
                process.process.join(_KILL_SECONDS)
                _log.error("a process ended with %s; it is started again", process.process.exitcode)
                time.sleep(max(0.0, _RESTART_SECONDS - (time.monotonic() - process.started)))
                self._processes.remove(process)
                self._processes.append(_Process(self._path, self._settings))
                return

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            connected, address = self._listener.accept()
        except OSError:
            return
        connected.setblocking(True)
        if self._networks and not _is_in(address[0], self._networks):
            _log.warning("%s: its address is not accepted", address[0])
            connected.close()
            return
        active = self._active + sum(process.active for process in self._processes)
        over_limit = active >= self._settings.associations
        if active >= self._settings.associations + _REFUSED_MAX:
            connected.close()
            return
        if self._serving is not None:
            self._active += 1
            self._serving.take(connected, address, over_limit=over_limit)
            return
        for process in sorted(self._processes, key=lambda process: process.active):
            if process.hand(connected, over_limit=over_limit):
                break
        connected.close()  # ours; the process has its own


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise BadQuery(f"{text!r} is no address and no network") from None


def _is_in(host: str, networks: list[ipaddress.IPv4Network | ipaddress.IPv6Network]) -> bool:
    address: ipaddress.IPv4Address | ipaddress.IPv6Address = ipaddress.ip_address(host.split("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return any(address in network for network in networks)
