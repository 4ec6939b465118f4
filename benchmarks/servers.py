"""Takes a store, or what to answer with; runs a server beside us, and ends it. Measures nothing.

with hilum_server(store) as server: ...      `hilum serve`, as it comes, its log in a file
with bare_uvicorn(data) as server: ...       the limit: the same loop and parser, one body, no work at all
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple


class Server(NamedTuple):
    """A server that answers."""

    port: int
    pid: int


# Two messages and nothing else. A body is one piece, or as many of a megabyte as it takes.
_BARE = """
import json, socket, sys
import uvicorn

length = int(sys.argv[1])
body = sys.stdin.buffer.read(min(length, 1 << 20))
headers = [(b"content-type", b"application/octet-stream"), (b"content-length", b"%d" % length)]

async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    left = length - len(body)
    while left:
        await send({"type": "http.response.body", "body": body, "more_body": True})
        left -= len(body)
    await send({"type": "http.response.body", "body": body})

listener = socket.create_server(("127.0.0.1", 0))
config = uvicorn.Config(
    app, loop="uvloop", http="httptools", lifespan="off", access_log=False, log_level="error"
)
print(json.dumps({"url": "http://127.0.0.1:%d" % listener.getsockname()[1]}), flush=True)
uvicorn.Server(config).run(sockets=[listener])
"""


@contextmanager
def hilum_server(store: str, *options: str) -> Iterator[Server]:
    """`hilum serve` on a free port."""
    with tempfile.TemporaryDirectory(prefix="hilum-log-") as folder:
        log = os.path.join(folder, "log")
        command = [
            sys.executable,
            "-m",
            "hilum",
            "serve",
            "--store",
            store,
            "--http",
            "127.0.0.1:0",
            "--json",
        ]
        with _running([*command, "--log", log, *options], b"") as server:
            yield server
        with open(log, encoding="utf-8", errors="replace") as file:
            faults = [line for line in file if " ERROR " in line]
        if faults:
            raise AssertionError(f"the server failed: {faults[:5]}")


@contextmanager
def bare_uvicorn(body: bytes, length: int = 0) -> Iterator[Server]:
    """uvicorn that answers with `body`, over and over until it is `length` bytes: whole megabytes then."""
    with _running([sys.executable, "-c", _BARE, str(length or len(body))], body) as server:
        yield server


@contextmanager
def _running(command: list[str], given: bytes) -> Iterator[Server]:
    """A server in a process of its own; the first line that it prints has its address."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(given)
            process.stdin.close()
            line = process.stdout.readline()
            if not line:
                raise RuntimeError(f"{' '.join(command[:4])} did not start")
            yield Server(int(json.loads(line)["url"].rsplit(":", 1)[1]), process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
