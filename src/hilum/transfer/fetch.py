"""Takes what is to be fetched; hands out series after series, without what is here already, and counts what
came of each instance. Knows no protocol. Safe from several threads.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import NamedTuple

from hilum.transfer.arriving import Answer, Kept, Place
from hilum.transfer.hierarchy import Series
from hilum.transfer.work import Event


class Counts(NamedTuple):
    """What came of a run."""

    fetched: int = 0  # and kept
    present: int = 0  # were here already
    conflicts: int = 0  # other content is here, and stays
    failed: int = 0


class Fetch:
    """Series that are to be fetched, and what has come of them."""

    def __init__(
        self,
        wanted: Iterable[Series],
        place: Place,
        on_event: Callable[[Event], None] = lambda event: None,
        *,
        again: bool = False,
    ) -> None:
        """`again` fetches also what is here."""
        self._left = deque(wanted)
        self.total = sum(len(series.instances) for series in self._left)
        self.place = place
        self._on_event = on_event
        self._again = again
        self._answered: set[str] = set()
        self._lock = threading.RLock()
        self._fetched = self._present = self._conflicts = self._failed = 0
        self._stopped_by: BaseException | None = None
        self.is_stopped = False

    @property
    def counts(self) -> Counts:
        return Counts(self._fetched, self._present, self._conflicts, self._failed)

    def take(self) -> Series | None:
        """The next series, or those of its instances that are not here; None: there is none."""
        while True:
            with self._lock:
                if self.is_stopped or not self._left:
                    return None
                series = self._left.popleft()
            if self._again:
                return series
            parents = series.patient, series.study, series.series
            missing = tuple(one for one in series.instances if not self.place.has(one[0], parents))
            with self._lock:
                self._present += len(series.instances) - len(missing)
            if missing:
                is_whole = series.is_whole and len(missing) == len(series.instances)
                return series._replace(instances=missing, is_whole=is_whole)

    def answer(self, answer: Answer) -> None:
        """An instance has come."""
        with self._lock:
            if answer.uid in self._answered:
                return
            self._answered.add(answer.uid)
            if answer.kept is Kept.STORED:
                self._fetched += 1
            elif answer.kept is Kept.PRESENT:
                self._present += 1
            elif answer.kept is Kept.CONFLICT:
                self._conflicts += 1
                self._on_event(Event("conflict", answer.uid, answer.uid, None, answer.words))
            else:
                self._failed += 1
                self._on_event(Event("failed", answer.uid, answer.uid, None, answer.words))

    def rest(self, series: Series) -> Series | None:
        """What has not come of a series."""
        with self._lock:
            missing = tuple(one for one in series.instances if one[0] not in self._answered)
        return series._replace(instances=missing, is_whole=False) if missing else None

    def missed(self, series: Series, words: str) -> None:
        """What has not come of a series will not come."""
        with self._lock:
            rest = self.rest(series)
            for uid, _ in rest.instances if rest is not None else ():
                self.answer(Answer(uid, None, words))

    def put_back(self, series: Series) -> None:
        """It was not tried."""
        with self._lock:
            self._left.appendleft(series)

    def stop(self, reason: BaseException | None = None) -> None:
        """Hand nothing out any more."""
        self._stopped_by = self._stopped_by or reason
        self.is_stopped = True

    @property
    def fatal(self) -> BaseException | None:
        """Why it was stopped, where that is a failure."""
        return self._stopped_by

    def is_left(self) -> bool:
        return not self.is_stopped and bool(self._left)
