"""python -m hilum.pixels.worker: takes tasks on standard input, a socket; gives bytes or an error for each.

The process that the pool starts. It ends by itself when the pool closes its end of the socket, when a task
takes too long (SIGALRM, which ends the process wherever a codec hangs, the pool alive or not) and when a
codec crashes. It opens no socket of its own, and can write no file.

A task is the length of a pickle and the pickle: (name, arguments). Answers hold no pickle, since a codec may
have been made to do what a codestream wants: a status byte and a length, then the bytes, or an error in JSON.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import pickle
import resource
import signal
import socket
import sys
from collections.abc import Callable
from struct import Struct
from typing import Any

from hilum.errors import BadDicom, BadQuery, HilumError, Unsupported

TASK = Struct("<Q")
ANSWER = Struct("<BQ")
DONE, FAILED = 0, 1

_READ_MAX = 1 << 30
ERRORS: dict[str, type[HilumError]] = {kind.__name__: kind for kind in (BadDicom, BadQuery, Unsupported)}


def functions() -> dict[str, Callable[..., bytes]]:
    """What a worker can do, by name; loads the codecs, so that no task waits for them."""
    import imagecodecs
    from PIL import Image, ImageDraw, ImageFont  # noqa: F401

    from hilum.pixels import render, transcode

    # imagecodecs loads each codec when it is first named.
    for name in ("jpeg8", "jpegsof3", "jpegls", "jpeg2k", "htj2k", "jpegxl", "png"):
        getattr(imagecodecs, f"{name}_decode")
    for name in ("jpeg8", "jpegls", "htj2k", "packbits", "png"):
        getattr(imagecodecs, f"{name}_encode")
    return {"frame": transcode.frame, "render": render.render}


def read_exactly(link: socket.socket, length: int) -> bytes:
    """Return so many bytes from a blocking socket, fewer if the other end is closed before that."""
    data = link.recv(min(length, _READ_MAX), socket.MSG_WAITALL) if length else b""
    if len(data) == length:
        return data
    parts = [data]
    length -= len(data)
    while length and (data := link.recv(min(length, _READ_MAX), socket.MSG_WAITALL)):
        parts.append(data)
        length -= len(data)
    return b"".join(parts)


def main() -> None:
    """Serve one pool until it goes away."""
    seconds_max, memory_max = float(sys.argv[1]), int(sys.argv[2])
    module, _, name = sys.argv[3].partition(":")
    # Ctrl-C and a service manager's stop are for the server, which lets what it has begun come to its end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    known = getattr(importlib.import_module(module), name)()
    _limit(memory_max)
    link = socket.socket(fileno=0)
    with contextlib.suppress(OSError):  # the pool is gone
        link.sendall(ANSWER.pack(DONE, 0))
        while len(header := read_exactly(link, TASK.size)) == TASK.size:
            (length,) = TASK.unpack(header)
            name, arguments = pickle.loads(read_exactly(link, length))
            signal.setitimer(signal.ITIMER_REAL, seconds_max)
            status, answer = _run(known[name], arguments, memory_max)
            signal.setitimer(signal.ITIMER_REAL, 0)
            link.sendall(ANSWER.pack(status, len(answer)))
            link.sendall(answer)


def _limit(memory_max: int) -> None:
    """Bound what tasks can take, beyond what the process has now."""
    with open("/proc/self/statm", encoding="ascii") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + memory_max, used + memory_max))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold a patient's pixels
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def _run(function: Callable[..., bytes], arguments: tuple[Any, ...], memory_max: int) -> tuple[int, bytes]:
    try:
        return DONE, function(*arguments)
    except MemoryError:
        failure: Exception = Unsupported(f"this takes more than {memory_max:,} bytes of memory")
    except tuple(ERRORS.values()) as raised:
        failure = raised
    except Exception as raised:
        failure = BadDicom(f"{type(raised).__name__}: {raised}")
    reason = failure.reason if isinstance(failure, BadDicom) else str(failure)
    tag = failure.tag if isinstance(failure, BadDicom) else 0
    return FAILED, json.dumps([type(failure).__name__, reason, tag]).encode()


if __name__ == "__main__":
    main()
