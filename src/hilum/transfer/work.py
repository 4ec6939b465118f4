"""Takes a source and a journal; hands instances out to those who send them, and counts what came of each.
Knows no protocol. Safe from several threads.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol, TypeVar

from hilum.transfer.journal import Journal
from hilum.transfer.outgoing import Outgoing, Source

AHEAD = 512  # instances that are looked at before they are sent
_TICK_SECONDS = 0.2
_TRIES = 2  # of an instance during which the connection broke


class Event(NamedTuple):
    """What became of one instance that was not simply taken."""

    kind: str  # "failed", "warned"
    name: str  # path, or UID
    uid: str
    status: int | None  # of the peer, if it said one
    words: str


class Counts(NamedTuple):
    """What came of a run."""

    sent: int = 0
    warned: int = 0  # of those sent
    failed: int = 0
    skipped: int = 0  # were taken in an earlier run
    bytes: int = 0  # of those sent


class Work:
    """Instances that are to be sent, and what has come of them."""

    def __init__(
        self, source: Source, journal: Journal | None, on_event: Callable[[Event], None] = lambda event: None
    ) -> None:
        self._left: Iterator[Outgoing] = iter(source)
        self._journal = journal
        self._on_event = on_event
        self._ahead: deque[Outgoing] = deque()
        self._tries: dict[str, int] = {}
        self._lock = threading.RLock()
        self._sent = self._warned = self._failed = self._skipped = self._bytes = 0
        self._stopped_by: BaseException | None = None
        self.is_stopped = False
        self.is_all_seen = False  # the source has been read to its end

    @property
    def counts(self) -> Counts:
        return Counts(self._sent, self._warned, self._failed, self._skipped, self._bytes)

    @property
    def seen(self) -> int:
        """How many instances there are, as far as the source has been read."""
        return self._sent + self._failed + self._skipped + len(self._ahead)

    def window(self) -> list[Outgoing]:
        """The next ones, without taking them."""
        with self._lock:
            self._fill()
            return list(self._ahead)

    def _fill(self) -> None:
        while len(self._ahead) < AHEAD and not self.is_all_seen and not self.is_stopped:
            one = next(self._left, None)
            if one is None:
                self.is_all_seen = True
            elif self._journal is not None and self._journal.knows(one):
                self._skipped += 1
            else:
                self._ahead.append(one)

    def take(self) -> Outgoing | None:
        """The next one; None: there is none, or the work was stopped."""
        with self._lock:
            if self.is_stopped:
                return None
            if not self._ahead:
                self._fill()
            return self._ahead.popleft() if self._ahead else None

    def give_back(self, one: Outgoing, words: str) -> None:
        """The connection broke while it was sent: it is tried once more, and then has failed."""
        with self._lock:
            self._tries[one.uid] = tries = self._tries.get(one.uid, 0) + 1
            if tries < _TRIES:
                self._ahead.appendleft(one)
                return
        self.failed(one, None, words)

    def put_back(self, one: Outgoing) -> None:
        """It was not tried."""
        with self._lock:
            self._ahead.appendleft(one)

    def sent(self, one: Outgoing, status: int = 0, words: str = "") -> None:
        """The peer has taken it; a status other than 0 is its warning."""
        with self._lock:
            self._sent += 1
            self._bytes += one.size
            if self._journal is not None:
                self._journal.add(one)
            if status:
                self._warned += 1
                self._on_event(Event("warned", one.name, one.uid, status, words))

    def failed(self, one: Outgoing, status: int | None, words: str) -> None:
        """It was not taken."""
        with self._lock:
            self._failed += 1
            self._on_event(Event("failed", one.name, one.uid, status, words))

    def lost(self, name: str, words: str) -> None:
        """The source could not give one."""
        with self._lock:
            self._failed += 1
            self._on_event(Event("failed", name, "", None, words))

    def stop(self, reason: BaseException | None = None) -> None:
        """Hand nothing out any more."""
        self._stopped_by = self._stopped_by or reason
        self.is_stopped = True

    @property
    def fatal(self) -> BaseException | None:
        """Why it was stopped, where that is a failure."""
        return self._stopped_by

    def is_left(self) -> bool:
        """Whether there is more to be handed out."""
        return not self.is_stopped and bool(self.window())

    @property
    def unsent(self) -> int:
        """How many were seen and not sent when it was stopped."""
        return len(self._ahead)


class Stoppable(Protocol):
    """What several threads do together."""

    @property
    def fatal(self) -> BaseException | None: ...
    def stop(self, reason: BaseException | None = None) -> None: ...
    def is_left(self) -> bool: ...


S = TypeVar("S", bound=Stoppable)


def run(
    work: S, jobs: int, do: Callable[[S], None], on_tick: Callable[[S], None] = lambda work: None
) -> None:
    """Let `jobs` threads work until nothing is left. An interrupt lets each finish what it is at.

    Raises:
        What `do` raised first, when all have ended.
    """

    def guarded() -> None:
        try:
            do(work)
        except BaseException as failure:
            work.stop(failure)

    threads = [threading.Thread(target=guarded, name=f"transfer-{n}", daemon=True) for n in range(jobs)]
    for thread in threads:
        thread.start()
    try:
        while any(thread.is_alive() for thread in threads):
            for thread in threads:
                thread.join(_TICK_SECONDS / jobs)
            on_tick(work)
    except BaseException:
        work.stop()
        for thread in threads:
            thread.join()
        raise
    if work.fatal is not None:
        raise work.fatal
    if work.is_left():  # what was put back when the others had ended
        run(work, 1, do, on_tick)
