"""Takes a port and requests as they go over the wire; asks, and gives the time of each answer. Knows nothing
of DICOM.

As lean as Python allows, so that the server is what is measured: select() on plain sockets, requests made
before, answers read into one buffer and compared where they lie. An answer of 33 KB takes about 20 µs, most
of it the kernel's; `Load.busy` says how much of a core the client had.
"""

from __future__ import annotations

import gc
import json
import resource
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from measure import Times

ROOT = "/dicom-web"
ANY_SYNTAX = "multipart/related; type=application/octet-stream; transfer-syntax=*"
_BUFFER = 1 << 20
_WHOLE = 64 << 10  # answers up to this length are compared byte by byte, and of longer ones
COMPARED_EACH = 8  # so many-th
_SECONDS_MAX = 120.0


class Ask(NamedTuple):
    """A request, and the bytes that its answer must have: as its body, or as the first part of that."""

    request: bytes
    holds: bytes = b""


class Answer(NamedTuple):
    """One answer. The body lies in the buffer of its client, until that is asked again."""

    status: int
    head: bytes  # in lower case
    body: memoryview

    def json(self) -> Any:
        return json.loads(bytes(self.body))


class Load(NamedTuple):
    """What many requests came to."""

    times: Times  # of each, in the order in which they were asked
    seconds: float  # of all
    bytes: int  # of requests, and of the bodies of answers
    busy: float  # share of a core that the client had

    @property
    def rate(self) -> float:
        return len(self.times.values) / self.seconds


def get(path: str, accept: str = "*/*", *headers: str, root: str = ROOT) -> bytes:
    """A GET below the root of the service."""
    lines = (f"GET {root}{path} HTTP/1.1", "Host: localhost", f"Accept: {accept}", *headers)
    return "\r\n".join((*lines, "", "")).encode()


_BOUNDARY = "3f1c0f6a-hilum-benchmark"
STOW_HEAD = f"--{_BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode()
STOW_END = f"\r\n--{_BOUNDARY}--\r\n".encode()


def stow_head(length: int) -> bytes:
    """The headers of a STOW-RS request whose only part has `length` bytes, and the head of that part."""
    lines = (
        f"POST {ROOT}/studies HTTP/1.1",
        "Host: localhost",
        "Accept: application/dicom+json",
        f'Content-Type: multipart/related; type="application/dicom"; boundary="{_BOUNDARY}"',
        f"Content-Length: {len(STOW_HEAD) + length + len(STOW_END)}",
    )
    return "\r\n".join((*lines, "", "")).encode() + STOW_HEAD


def stow(file: bytes) -> bytes:
    """A whole STOW-RS request with one file."""
    return stow_head(len(file)) + file + STOW_END


class Client:
    """One connection that is kept; one request after the other."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._socket = _connect(port)
        self._reading = _Reading()

    def ask(self, request: bytes, status: int = 200) -> Answer:
        """Send a request, read its answer.

        Raises:
            AssertionError: its status is another.
        """
        self._socket.sendall(request)
        return self.read(status)

    def send(self, data: bytes | memoryview) -> None:
        """Send a piece of a request that is too long for one."""
        self._socket.sendall(data)

    def read(self, status: int = 200) -> Answer:
        """Read an answer."""
        reading = self._reading
        while not reading.take(self._socket):
            pass
        if reading.status != status:
            raise AssertionError(f"{reading.head!r} {bytes(reading.body)[:500]!r}")
        if b"connection: close" in reading.head:
            self._socket.close()
            self._socket = _connect(self._port)
        return Answer(reading.status, reading.head, reading.body)

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def closed_loop(port: int, asks: Sequence[Ask], connections: int = 8) -> Load:
    """Ask all, on each connection one after the other without a pause.

    Raises:
        AssertionError: an answer is not what it must be.
    """
    rest = iter(asks)
    with _lines(port, connections) as lines:
        used, begin = _processor(), time.perf_counter()
        for line in lines.values():
            line.next(rest, begin)
        _answer_all(lines, lambda line: line.next(rest, time.perf_counter()))
        return _load(lines, time.perf_counter() - begin, _processor() - used)


def open_loop(port: int, asks: Iterable[Ask], rate: float, connections: int = 32) -> Load:
    """Ask at fixed moments, `rate` a second, whatever the answers do. A time counts from the moment when it
    was due: what waits behind a slow answer is as late as it is.

    Raises:
        AssertionError: an answer is not what it must be.
    """
    with _lines(port, connections) as lines:
        idle = deque(lines.values())
        used, begin = _processor(), time.perf_counter()
        for number, ask in enumerate(asks):
            due = begin + number / rate
            while (left := due - time.perf_counter()) > 0 or not idle:
                _answer_some(lines, idle.append, max(0.0, left) if idle else _SECONDS_MAX)
            idle.popleft().begin(ask, due)
        _answer_all(lines, idle.append)
        return _load(lines, time.perf_counter() - begin, _processor() - used)


def _connect(port: int) -> socket.socket:
    made = socket.create_connection(("127.0.0.1", port), _SECONDS_MAX)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


class _Reading:
    """An answer on its way into a buffer."""

    def __init__(self) -> None:
        self._buffer = bytearray(_BUFFER)
        self._view = memoryview(self._buffer)
        self._have = 0
        self._body_at = 0  # 0: its head is not there yet
        self._end = 0
        self._has_length = True
        self.status = 0
        self.head = b""

    @property
    def body(self) -> memoryview:
        return self._view[self._body_at : self._end]

    def take(self, source: socket.socket) -> bool:
        """Read what there is; True at the end of the answer."""
        if self._have == self._end:
            self._have = self._body_at = self._end = 0
            self._has_length = True
        count = source.recv_into(self._view[self._have :])
        if not count:
            if self._has_length:
                raise AssertionError("the server closed the connection")
            self._end = self._have
            return True
        self._have += count
        if not self._body_at:
            at = self._buffer.find(b"\r\n\r\n", 0, self._have)
            if at < 0:
                return False
            self._begin(at + 4)
        if not self._has_length:
            self._grow(2 * self._have)
            return False
        return self._have >= self._end

    def _begin(self, body_at: int) -> None:
        self._body_at = body_at
        self.head = bytes(self._buffer[:body_at]).lower()
        self.status = int(self.head[9:12])
        _, found, rest = self.head.partition(b"content-length: ")
        if found:
            self._end = body_at + int(rest.partition(b"\r")[0])
            self._grow(self._end)
        elif b"connection: close" in self.head:
            self._has_length = False  # it ends with the connection
        else:
            raise AssertionError(f"an answer without a length: {self.head!r}")

    def _grow(self, length: int) -> None:
        if length > len(self._buffer):
            grown = bytearray(length)
            grown[: self._have] = self._view[: self._have]
            self._buffer, self._view = grown, memoryview(grown)

    def holds(self, wanted: bytes, whole: bool) -> bool:
        """Whether this answer has the bytes that are wanted."""
        at = self._body_at
        if b"\r\ncontent-type: multipart/" in self.head:
            at = self._buffer.find(b"\r\n\r\n", at, self._end) + 4
        if at + len(wanted) > self._end:
            return False
        if whole or len(wanted) <= _WHOLE:
            return self._buffer.startswith(wanted, at)
        return self._buffer.startswith(wanted[:64], at) and self._buffer.startswith(
            wanted[-64:], at + len(wanted) - 64
        )


class _Line:
    """A connection of a loop: what it waits for, and the times of what it has had."""

    def __init__(self, port: int) -> None:
        self.socket = _connect(port)
        self.socket.setblocking(False)
        self.unsent = memoryview(b"")
        self.waits = False
        self.found: list[tuple[float, float]] = []  # when it was due, seconds
        self.bytes = 0
        self._ask = Ask(b"")
        self._since = 0.0
        self._reading = _Reading()

    def next(self, asks: Iterator[Ask], now: float) -> None:
        ask = next(asks, None)
        if ask is not None:
            self.begin(ask, now)

    def begin(self, ask: Ask, since: float) -> None:
        self._ask, self._since, self.waits = ask, since, True
        self.unsent = memoryview(ask.request)
        self.send()

    def send(self) -> None:
        with suppress(BlockingIOError):
            self.unsent = self.unsent[self.socket.send(self.unsent) :]

    def receive(self) -> bool:
        """Whether the answer is whole now."""
        reading = self._reading
        if not reading.take(self.socket):
            return False
        now = time.perf_counter()
        self.found.append((self._since, now - self._since))
        self.waits = False
        wanted = self._ask.holds
        if reading.status != 200 or not reading.holds(wanted, len(self.found) % COMPARED_EACH == 0):
            raise AssertionError(f"{self._ask.request[:300]!r} gave {reading.head!r} and another body")
        self.bytes += len(self._ask.request) + len(reading.body)
        return True


@contextmanager
def _lines(port: int, count: int) -> Iterator[dict[int, _Line]]:
    """Connections by descriptor. Nothing is collected meanwhile: that would be a pause of the client's."""
    made = [_Line(port) for _ in range(count)]
    gc.disable()
    try:
        yield {line.socket.fileno(): line for line in made}
    finally:
        gc.enable()
        for line in made:
            line.socket.close()


def _answer_all(lines: dict[int, _Line], done: Callable[[_Line], object]) -> None:
    """Read until nobody waits."""
    while any(line.waits for line in lines.values()):
        _answer_some(lines, done, _SECONDS_MAX)


def _answer_some(lines: dict[int, _Line], done: Callable[[_Line], object], seconds: float) -> None:
    """Wait so long at most; read what has come, and call `done` for each answer that is whole."""
    unsent = [descriptor for descriptor, line in lines.items() if line.unsent]
    readable, writable, _ = select.select(list(lines), unsent, [], seconds)
    if not readable and not writable and seconds == _SECONDS_MAX:
        raise AssertionError(f"no answer in {seconds:.0f} s")
    for descriptor in writable:
        lines[descriptor].send()
    for descriptor in readable:
        line = lines[descriptor]
        if line.receive():
            done(line)


def _load(lines: dict[int, _Line], seconds: float, used: float) -> Load:
    found = sorted(pair for line in lines.values() for pair in line.found)
    return Load(
        Times(tuple(took for _, took in found)),
        seconds,
        sum(line.bytes for line in lines.values()),
        used / seconds,
    )


def _processor() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
