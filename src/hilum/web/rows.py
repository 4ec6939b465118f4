"""Keeps finished rows of searches as long as nothing is stored or deleted. Knows not what is in them.

A viewer asks for the same list again and again, and to write a row costs ten times as much as to find it.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable
from typing import NamedTuple


class Moment(NamedTuple):
    """The rows of one state of the store: read them freely, keep new ones by RowCache.keep."""

    last: int  # number of the last change of state
    rows: dict[Hashable, bytes]


class RowCache:
    """Rows of the newest state that was asked for; all of them go when it changes, or when they are too many.

    Safe from several threads.
    """

    def __init__(self, bytes_max: int = 32 << 20) -> None:
        self._bytes_max = bytes_max
        self._lock = threading.Lock()
        self._moment = Moment(-1, {})
        self._bytes = 0

    def at(self, last: int) -> Moment:
        """The rows of the state whose last change has this number."""
        with self._lock:
            if last > self._moment.last:
                self._moment, self._bytes = Moment(last, {}), 0
            return self._moment if last == self._moment.last else Moment(last, {})

    def keep(self, moment: Moment, rows: dict[Hashable, bytes]) -> None:
        """Add rows to a moment, unless it has passed."""
        with self._lock:
            if moment is not self._moment:
                return
            self._bytes += sum(map(len, rows.values()))
            if self._bytes > self._bytes_max:
                self._moment, self._bytes = Moment(moment.last, {}), 0
            else:
                moment.rows.update(rows)
