"""How many frames a second does the server give, beside bare uvicorn with bodies of that size?

    pytest benchmarks/bench_serve.py --benchmark-enable

Eight connections that are kept, one request at a time on each, random frames of all that are stored. One
round is REQUESTS requests, and twenty times that when measured. The yardstick is an application of three
lines that sends the same bytes over and over.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, cast

import pytest
from makers import make_object, noise

import hilum

CONNECTIONS = 8
REQUESTS = 200  # of one round as an ordinary test
ROUNDS_OF = 20  # so many times more with --benchmark-enable
INSTANCES = 40
SIZES = {"33 KB": (128, 129), "525 KB": (512, 513)}  # rows and columns of 16 bits
ACCEPT = "multipart/related; type=application/octet-stream; transfer-syntax=*"

BARE = """
import socket, sys
import uvicorn

BODY = bytes(int(sys.argv[1]))
HEADERS = [(b"content-type", b"application/octet-stream"), (b"content-length", b"%d" % len(BODY))]

async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    await send({"type": "http.response.body", "body": BODY})

listener = socket.create_server(("127.0.0.1", 0))
print('{"url": "http://127.0.0.1:%d"}' % listener.getsockname()[1], flush=True)
config = uvicorn.Config(app, loop="uvloop", http="httptools", lifespan="off", access_log=False)
uvicorn.Server(config).run(sockets=[listener])
"""


class Served(NamedTuple):
    """Something that answers: where, and what to ask for."""

    port: int
    paths: list[str]


def make_file(number: int, rows: int, columns: int) -> tuple[bytes, str]:
    """A file with one frame of noise, and the path of that frame."""
    study, series, uid = f"2.25.2{number % 4}", f"2.25.3{number % 8}", f"2.25.1{number}"
    file = make_object(
        uid, study, series, pixels=noise(rows * columns * 2, number), rows=rows, columns=columns, bits=16
    )
    return file, f"/dicom-web/studies/{study}/series/{series}/instances/{uid}/frames/1"


@contextmanager
def running(*command: str) -> Iterator[int]:
    """A server in a process of its own; the first line that it prints has its address."""
    with subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        try:
            yield int(json.loads(server.stdout.readline())["url"].rsplit(":", 1)[1])
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(30)


@pytest.fixture(scope="module", params=SIZES)
def ours(request, tmp_path_factory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("serve") / "store"
    paths = []
    with hilum.open(folder, create=True) as store:
        for number in range(INSTANCES):
            file, path = make_file(number, *SIZES[request.param])
            store.ingest(file)
            paths.append(path)
    store_option = ("--store", os.fspath(folder))
    log = ("--log", os.devnull)
    with running("-m", "hilum", "serve", *store_option, "--http", "127.0.0.1:0", "--json", *log) as port:
        yield Served(port, paths)


@pytest.fixture(scope="module", params=SIZES)
def bare(request) -> Iterator[Served]:
    rows, columns = SIZES[request.param]
    with running("-c", BARE, str(rows * columns * 2)) as port:
        yield Served(port, ["/"])


class Client(asyncio.Protocol):
    """One connection: asks, reads the whole answer, asks again. Counts the bytes of bodies."""

    def __init__(self, served: Served, count: int) -> None:
        self.bytes = 0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._served = served
        self._left = count
        self._missing = 0  # bytes of the answer that is being read
        self._head = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)
        self._ask()

    def data_received(self, data: bytes) -> None:
        if self._missing:
            self._missing -= len(data)
        else:
            self._head += data
            head, end, body = self._head.partition(b"\r\n\r\n")
            if not end:
                return
            if b" 200 " not in head[:20]:
                self.done.set_exception(ConnectionError(head.decode("latin-1")))
                return
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            self.bytes += length
            self._head, self._missing = b"", length - len(body)
        if not self._missing:
            self._ask()

    def connection_lost(self, reason: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(reason or ConnectionError("the server closed the connection"))

    def _ask(self) -> None:
        if not self._left:
            self.done.set_result(None)
            self._transport.close()
            return
        self._left -= 1
        path = random.choice(self._served.paths)
        request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: {ACCEPT}\r\n\r\n"
        self._transport.write(request.encode())


def ask(served: Served, count: int) -> int:
    """Ask for `count` frames over all connections; give the bytes of their bodies."""

    async def all_of_them() -> int:
        loop = asyncio.get_running_loop()
        made = [
            loop.create_connection(lambda: Client(served, count // CONNECTIONS), "127.0.0.1", served.port)
            for _ in range(CONNECTIONS)
        ]
        clients = [client for _, client in await asyncio.gather(*made)]
        await asyncio.wait_for(asyncio.gather(*(client.done for client in clients)), 120)
        return sum(client.bytes for client in clients)

    import uvloop

    return uvloop.run(all_of_them())


def count_of(benchmark) -> int:
    return REQUESTS if benchmark.disabled else REQUESTS * ROUNDS_OF


def test_frames_of_the_server(benchmark, ours):
    count = count_of(benchmark)
    benchmark.extra_info["requests"] = count
    assert benchmark(ask, ours, count) >= count * 33_024


def test_bare_uvicorn(benchmark, bare):
    count = count_of(benchmark)
    benchmark.extra_info["requests"] = count
    assert benchmark(ask, bare, count) >= count * 33_024
