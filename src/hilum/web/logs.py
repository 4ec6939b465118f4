"""Takes lines; appends them to a rotating file that several processes share, or to standard error.

A line for each request, and what our own loggers say. Never any patient data: paths have UIDs alone, the
query is left out, and of an exception type and places are written, but no words that may quote a value.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import threading
import time
import traceback
from types import TracebackType

from hilum.settings import Log

_FLUSH_SECONDS = 0.2
_BUFFER_LINES = 512
_PATH_MAX = 512

# Exceptions that speak of code or files, not of values.
_OWN_WORDS = (AttributeError, ImportError, NameError, OSError, TypeError)


class LogFile:
    """Lines, gathered and appended in one write. Safe from several threads; processes may share a file."""

    def __init__(self, settings: Log) -> None:
        self._path = settings.file
        self._bytes_max = settings.bytes_max
        self._files = settings.files
        self._lines: list[str] = []
        self._lock = threading.Lock()
        self._timer: asyncio.TimerHandle | None = None
        self._fd = self._open() if self._path else 2

    def write(self, line: str) -> None:
        """Append a line, a little later: the loop that runs here flushes it, else close() does."""
        self._lines.append(line)
        if len(self._lines) >= _BUFFER_LINES:
            self.flush()
        elif self._timer is None:
            with contextlib.suppress(RuntimeError):  # no loop runs on this thread
                self._timer = asyncio.get_running_loop().call_later(_FLUSH_SECONDS, self._on_time)

    def _on_time(self) -> None:
        self._timer = None
        self.flush()

    def flush(self) -> None:
        """Append what was gathered. A full disk loses lines, never a request."""
        with self._lock:
            lines, self._lines = self._lines, []
            if not lines:
                return
            data = ("\n".join(lines) + "\n").encode("utf-8", "backslashreplace")
            with contextlib.suppress(OSError):
                if self._path:
                    self._rotate(len(data))
                os.write(self._fd, data)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.flush()
        with self._lock:
            if self._path and self._fd >= 0:
                os.close(self._fd)
                self._path, self._fd = "", 2

    def _open(self) -> int:
        folder = os.path.dirname(self._path)
        if folder:
            os.makedirs(folder, exist_ok=True)
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)

    def _rotate(self, more: int) -> None:
        """Begin a new file where this one is full, or where another process has begun one."""
        if not self._is_current():
            self._reopen()
        size = os.fstat(self._fd).st_size
        if not size or size + more <= self._bytes_max:
            return
        # The lock is on the file that is full: who gets it next sees that the path is another's by then.
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        if self._is_current():
            for number in range(self._files - 1, 0, -1):
                with contextlib.suppress(FileNotFoundError):
                    os.replace(f"{self._path}.{number}", f"{self._path}.{number + 1}")
            os.replace(self._path, f"{self._path}.1")
        self._reopen()

    def _is_current(self) -> bool:
        mine = os.fstat(self._fd)
        try:
            there = os.stat(self._path)
        except FileNotFoundError:
            return False
        return (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino)

    def _reopen(self) -> None:
        old, self._fd = self._fd, self._open()
        os.close(old)


class Clock:
    """The time as text, for a line: made once for each second."""

    def __init__(self) -> None:
        self._second = -1
        self._text = ""

    def now(self) -> str:
        """ISO 8601 in UTC, to the millisecond."""
        now = time.time()
        second = int(now)
        if second != self._second:
            self._second, self._text = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._text}.{int((now - second) * 1000):03d}Z"


def printable(path: str) -> str:
    """A path as it stands in a line: one word of bounded length, without anything that moves a cursor."""
    if path.isascii() and path.isprintable() and " " not in path and len(path) <= _PATH_MAX:
        return path
    return ascii(path[:_PATH_MAX])[1:-1].replace(" ", "\\x20")


class Handler(logging.Handler):
    """What loggers say, as lines of the same file."""

    def __init__(self, file: LogFile, clock: Clock) -> None:
        super().__init__(logging.INFO)
        self._file = file
        self._clock = clock

    def emit(self, record: logging.LogRecord) -> None:
        words = record.getMessage().replace("\n", " ")
        self._file.write(f"{self._clock.now()} {record.levelname} {record.name}: {words}")
        if record.exc_info and record.exc_info[0] is not None:
            for line in exception_lines(*record.exc_info):
                self._file.write(line)
        if record.levelno >= logging.ERROR:
            self._file.flush()


def exception_lines(
    kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
) -> list[str]:
    """Where an exception came from. Not its words: they may quote a name out of a data set."""
    places = traceback.extract_tb(trace)
    lines = [f"    {place.filename}:{place.lineno} {place.name}" for place in places]
    words = f": {error}" if isinstance(error, _OWN_WORDS) else ""
    return [*lines, f"    {kind.__name__ if kind else 'exception'}{words}"]
