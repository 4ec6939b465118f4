"""Takes what a peer has acknowledged; gives, in a later run of the same work, what need not be sent again.

A file for each target and selection, in the user's state folder: lines of digests, appended as answers
come. A line that was cut counts for nothing: then an instance is sent once more, which harms nobody.
Deleting the folder loses nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterable

from hilum.transfer.outgoing import Outgoing

_DAYS_MAX = 90  # that a journal is kept which nobody writes to
_DIGITS = 24  # of a digest; a line has one more


def folder(environment: dict[str, str] | os._Environ[str] = os.environ) -> str:
    """Where journals are kept."""
    home = environment.get("XDG_STATE_HOME", "")
    return os.path.join(
        home if os.path.isabs(home) else os.path.expanduser("~/.local/state"), "hilum", "sent"
    )


class Journal:
    """What one peer has taken of one selection. Safe from several threads."""

    def __init__(self, folder: str, target: str, selection: Iterable[str], *, again: bool = False) -> None:
        """`again` forgets what was written before."""
        os.makedirs(folder, mode=0o700, exist_ok=True)
        _forget_old(folder)
        name = hashlib.sha256("\n".join((target, *selection)).encode("utf-8", "surrogateescape")).hexdigest()
        path = os.path.join(folder, name[:32])
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | (os.O_TRUNC if again else 0)
        self._fd = os.open(path, flags, 0o600)
        with open(path, encoding="ascii", errors="replace") as file:
            text = file.read()
        if text and not text.endswith("\n"):
            os.write(self._fd, b"\n")
        self._known = {line for line in text.split("\n")[:-1] if len(line) == _DIGITS}

    def knows(self, one: Outgoing) -> bool:
        """Whether it was taken, with this content."""
        return bool(self._known) and _digest(one) in self._known

    def add(self, one: Outgoing) -> None:
        """The peer has taken it."""
        os.write(self._fd, f"{_digest(one)}\n".encode())

    def close(self) -> None:
        os.close(self._fd)


def _digest(one: Outgoing) -> str:
    return hashlib.sha256(f"{one.uid}\n{one.version}".encode("utf-8", "replace")).hexdigest()[:_DIGITS]


def _forget_old(folder: str) -> None:
    oldest = time.time() - _DAYS_MAX * 86400
    with os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                if entry.stat().st_mtime < oldest:
                    os.unlink(entry.path)
