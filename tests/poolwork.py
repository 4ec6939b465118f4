"""What the workers of tests/test_pool.py can do: all that a codec should not. Imported by those alone."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import threading
import time
from collections.abc import Callable

from hilum.errors import BadDicom, BadQuery, Unsupported


def functions() -> dict[str, Callable[..., bytes]]:
    return {
        "echo": lambda data: data,
        "length": lambda *parts: str(sum(map(len, parts))).encode(),
        "process": lambda: str(os.getpid()).encode(),
        "crash": lambda: bytes(ctypes.string_at(0)),
        "kill": lambda: os.kill(os.getpid(), signal.SIGKILL) or b"",
        "leave": lambda: os._exit(3),
        "hang": hang,
        "sleep": lambda seconds: time.sleep(seconds) or b"",
        "take": lambda size: str(len(bytearray(size))).encode(),
        "bad": lambda: refuse(BadDicom("no end marker", tag=0x7FE00010)),
        "query": lambda: refuse(BadQuery("no such window")),
        "unsupported": lambda: refuse(Unsupported("no decoder")),
        "wrong": lambda: refuse(ZeroDivisionError("by zero")),
        "write": lambda path: str(open(path, "wb", buffering=0).write(b"x")).encode(),
        "sockets": sockets,
        "files": lambda: str(len(os.listdir("/proc/self/fd"))).encode(),
    }


def refuse(failure: Exception) -> bytes:
    raise failure


def hang() -> bytes:
    """Neither Python nor a signal handler of its own gets a word in, as in a loop of a codec."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()
    return b""


def sockets() -> bytes:
    """How many sockets this process has open."""
    count = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            with socket.socket(fileno=os.dup(int(name))) as found:
                count += found.family is not None
        except OSError:
            continue
    return str(count).encode()
