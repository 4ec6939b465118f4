"""Takes folders and files; stores what is DICOM in them, and says what became of each. Prints nothing.

The calling process imports, and more processes beside it where there is much to do: each has its own packs,
and the index puts their commits in a row. Run again after an interruption it goes on without reading what
the journal knows.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import selectors
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from struct import Struct
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from blake3 import blake3

from hilum import _fastio
from hilum.engine import prepare, query, record
from hilum.engine.index import Snapshot
from hilum.engine.prepare import Prepared
from hilum.engine.question import Key
from hilum.engine.store import Store
from hilum.engine.writer import Outcome, Policy, Result, read_journal_tail
from hilum.errors import BadDicom, HilumError, NotDicom, StoreFault

if TYPE_CHECKING:
    import subprocess

BATCH_FILES = 1_000
ARENA_BYTES = 24 << 20  # files are read into it side by side
ARENA_FILE_MAX = 12 << 20  # a larger one is read by itself
ARENA_ENOUGH = 2 << 20  # of small files at once: what was just read is hashed while a cache still has it
COMMIT_BYTES = 192 << 20  # of files between two commits, where they are large
BATCH_BYTES = 64 << 20  # of large files in a batch, by the size of the first of each folder
_SPAWN_AT = 1  # batches that must be waiting beside our own before another process pays
_AHEAD = 2  # batches that each process has in hand

_COLLECT_AFTER = 100_000  # objects made and not freed; a batch makes about 20,000, in no circle

_STAT = Struct("<QqqQ")  # size, mtime_ns, ctime_ns, inode: what read_files gives too


class Failure(NamedTuple):
    """A file that could not be stored."""

    path: str
    reason: str
    offset: int  # bytes from the start of the file
    tag: int
    kind: str  # "failed" or "conflict"


class Counts(NamedTuple):
    """What became of files. `files` is the sum of the five that follow it."""

    files: int = 0
    stored: int = 0
    duplicates: int = 0
    conflicts: int = 0
    not_dicom: int = 0
    failed: int = 0
    skipped: int = 0  # did not match the keys; not among `files`
    bytes: int = 0  # of all `files`
    fallbacks: int = 0  # of those stored: read by pydicom

    def plus(self, other: Counts) -> Counts:
        return Counts(*map(sum, zip(self, other, strict=True)))


class _Tally:
    """Counts while they are counted."""

    __slots__ = Counts._fields

    def __init__(self) -> None:
        self.files = self.stored = self.duplicates = self.conflicts = 0
        self.not_dicom = self.failed = self.skipped = self.bytes = self.fallbacks = 0

    def counts(self) -> Counts:
        return Counts(*(getattr(self, name) for name in Counts._fields))


class Options(NamedTuple):
    """How to import."""

    keys: tuple[tuple[str, str], ...] = ()
    policy: Policy = Policy.KEEP_FIRST
    jobs: int = 1


# --- Walking -------------------------------------------------------------------


def walk(
    paths: Iterable[str], on_failure: Callable[[Failure], None], *, leave_out: str = ""
) -> Iterator[list[bytes]]:
    """Give the files under `paths`, folder by folder, sorted; links are followed, each folder counts once.

    The folder `leave_out` is passed over: the store itself may lie in what is imported.
    """
    seen: set[tuple[int, int]] = set()
    if leave_out:
        status = os.stat(leave_out)
        seen.add((status.st_dev, status.st_ino))
    for path in paths:
        if os.path.isdir(path):
            yield from _walk_folder(os.fsencode(path), seen, on_failure)
        else:
            yield [os.fsencode(path)]


def _walk_folder(
    root: bytes, seen: set[tuple[int, int]], on_failure: Callable[[Failure], None]
) -> Iterator[list[bytes]]:
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        files, folders = [], []
        try:
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as entries:
                for entry in entries:
                    if _is_folder(entry):
                        folders.append(entry.path)
                    else:
                        files.append(entry.path)
        except OSError as failure:
            on_failure(Failure(os.fsdecode(folder), failure.strerror or str(failure), 0, 0, "failed"))
            continue
        files.sort()
        waiting += sorted(folders, reverse=True)
        if files:
            yield files


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, say: reading it as a file tells why
        return False


def batches(folders: Iterable[list[bytes]]) -> Iterator[list[bytes]]:
    """Cut and join the folders' files to batches of BATCH_FILES, or fewer where the files are large."""
    batch: list[bytes] = []
    for files in folders:
        rest = files
        size_max = max(1, min(BATCH_FILES, BATCH_BYTES // max(1, _size_of(files[0]))))
        while rest:
            room = max(0, size_max - len(batch))
            batch += rest[:room]
            rest = rest[room:]
            if len(batch) >= size_max:
                yield batch
                batch = []
    if batch:
        yield batch


def _size_of(path: bytes) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def matches(keys: Iterable[Key], upper: bytes, own: bytes) -> bool:
    """Whether an object that is not stored matches keys, by the entries of its levels."""
    for key in keys:
        number = key.number if key.number >= 0 else record.NUMBER_OF[0x00080060]
        entries = own if record.LEVEL_OF[number] == record.INSTANCE else upper
        try:
            values = record.values_of(entries, number)
        except (BadDicom, record.LeftInHead):
            return False
        if not key.match.matches(values):
            return False
    return True


# --- One batch, in one process ----------------------------------------------------


class BatchImporter:
    """Imports batches of files, one after another, into an open store."""

    def __init__(self, store: Store, options: Options) -> None:
        self._store = store
        self._policy = options.policy
        self._keys = query.parse_keys(options.keys)
        self._arena = bytearray(ARENA_BYTES)
        self._view = memoryview(self._arena)
        self._folders: dict[bytes, bytes] = {}  # folder → the beginning of its journal keys
        self._failures: list[Failure] = []
        self._tally = _Tally()

    def run(self, paths: list[bytes]) -> tuple[Counts, list[Failure]]:
        """Import a batch, durably; return what became of it.

        Raises:
            StoreBroken: the store could not write. What was committed before stays.
        """
        self._tally, self._failures = _Tally(), []
        journal = [self._journal_key(path) for path in paths]
        rest = self._unknown(paths, journal)
        pending: list[tuple[bytes, int, Prepared]] = []
        first, staged = 0, 0
        names = [paths[index] for index in rest]
        while first < len(names):
            rows = _fastio.read_files(names, first, self._arena, ARENA_FILE_MAX, ARENA_ENOUGH)
            ready: list[Prepared] = []
            for position, (offset, size, status, error) in enumerate(rows, first):
                path = names[position]
                if error == _fastio.ERROR_TOO_LARGE:
                    self._count(self._import_large(path, journal[rest[position]]), size, path=path)
                    continue
                prepared = self._prepare(path, offset, size, error)
                if prepared is None:
                    continue
                prepared.journal = journal[rest[position]], status
                ready.append(prepared)
                pending.append((path, size, prepared))
                staged += size
            self._store.writer.stage(ready, self._policy)
            first += len(rows)
            if staged >= COMMIT_BYTES:
                self._commit(pending)
                pending, staged = [], 0
        self._commit(pending)
        return self._tally.counts(), self._failures

    def _journal_key(self, path: bytes) -> bytes:
        cut = path.rfind(b"/") + 1
        folder, name = path[:cut], path[cut:]
        prefix = self._folders.get(folder)
        if prefix is None:
            if len(self._folders) > 1_000:
                self._folders.clear()
            prefix = blake3(os.path.realpath(folder or b".")).digest()[:12]
            self._folders[folder] = prefix
        return prefix + name

    def _unknown(self, paths: list[bytes], journal: list[bytes]) -> list[int]:
        """Indexes of the files that the journal does not know, or knows otherwise; count the others."""
        if self._keys:
            return list(range(len(paths)))
        rest = []
        with self._store.index.read() as snapshot:
            if not snapshot.count(b"journal"):
                return list(range(len(paths)))
            for index, (path, key) in enumerate(zip(paths, journal, strict=True)):
                known = self._known(snapshot, path, key)
                if known is None:
                    rest.append(index)
                else:
                    self._count(*known, path=path)
        return rest

    def _known(self, snapshot: Snapshot, path: bytes, key: bytes) -> tuple[Result, int] | None:
        """(result, size) of a file that was imported before and has not changed, nor what it gave."""
        value = snapshot.get(b"journal", key)
        if value is None:
            return None
        try:
            status = os.stat(path)
        except OSError:
            return None
        now = _STAT.pack(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
        if value[: _STAT.size] != now:
            return None
        outcome = read_journal_tail(value[_STAT.size :])
        if outcome.result == Result.CONFLICT and self._policy != Policy.KEEP_FIRST:
            return None
        found = snapshot.get(b"instances", outcome.key)
        if found is None or record.unpack_instance(found).sequence != outcome.sequence:
            return None
        if snapshot.count(b"bad"):
            return None  # it may be the one that heals what is bad
        kept = outcome.result == Result.CONFLICT
        return (Result.CONFLICT if kept else Result.DUPLICATE), status.st_size

    def _prepare(self, path: bytes, offset: int, size: int, error: int) -> Prepared | None:
        if error:
            self._fail(path, size, OSError(error, _words_of(error)))
            return None
        try:
            prepared = prepare.prepare(self._view[offset : offset + size], source=path)
        except (HilumError, OSError) as failure:
            self._fail(path, size, failure)
            return None
        if not matches(self._keys, prepared.upper, prepared.own):
            self._tally.skipped += 1
            return None
        return prepared

    def _commit(self, pending: list[tuple[bytes, int, Prepared]]) -> None:
        outcomes = self._store.writer.submit([prepared for _, _, prepared in pending], self._policy)
        for (path, size, prepared), outcome in zip(pending, outcomes, strict=True):
            if outcome.result == Result.AGAIN:
                self._count(self._import_large(path, None), size, path=path)
                continue
            self._count(outcome.result, size, path=path, prepared=prepared)

    def _import_large(self, path: bytes, journal: bytes | None) -> Result | None:
        """Import one file by itself, in bounded memory; None when it failed and was counted."""
        size = 0
        try:
            with open(path, "rb", buffering=0) as file:
                status = os.fstat(file.fileno())
                size = status.st_size
                while True:
                    prepared = self._store.prepare_fd(file.fileno(), source=path)
                    if not matches(self._keys, prepared.upper, prepared.own):
                        prepared.discard()
                        self._tally.skipped += 1
                        return None
                    if journal is not None:
                        stat = _STAT.pack(size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
                        prepared.journal = journal, stat
                    outcome: Outcome = self._store.writer.submit([prepared], self._policy)[0]
                    if outcome.result != Result.AGAIN:
                        return outcome.result
        except StoreFault:
            raise
        except (HilumError, OSError) as failure:
            self._fail(path, size, failure)
            return None

    def _count(
        self, result: Result | None, size: int, *, path: bytes = b"", prepared: Prepared | None = None
    ) -> None:
        if result is None:
            return
        tally = self._tally
        tally.files += 1
        tally.bytes += size
        if result in (Result.STORED, Result.REPLACED, Result.HEALED):
            tally.stored += 1
        elif result == Result.CONFLICT:
            tally.conflicts += 1
        else:
            tally.duplicates += 1
        if prepared is not None and prepared.flags & record.BY_PYDICOM:
            tally.fallbacks += 1
        if result == Result.CONFLICT:
            reason = "other content is stored under this SOP Instance UID, and is kept"
            self._failures.append(Failure(os.fsdecode(path), reason, 0, 0x00080018, "conflict"))

    def _fail(self, path: bytes, size: int, failure: Exception) -> None:
        self._tally.files += 1
        self._tally.bytes += size
        if isinstance(failure, NotDicom):
            self._tally.not_dicom += 1
            return
        self._tally.failed += 1
        offset, tag, reason = 0, 0, str(failure)
        if isinstance(failure, BadDicom):
            offset, tag, reason = failure.offset, failure.tag, failure.reason
        elif isinstance(failure, OSError):
            reason = failure.strerror or str(failure)
        self._failures.append(Failure(os.fsdecode(path), reason, offset, tag, "failed"))


def _words_of(error: int) -> str:
    if error == _fastio.ERROR_NOT_REGULAR:
        return "not a regular file"
    if error == _fastio.ERROR_GROWN:
        return "the file became shorter while it was read"
    return os.strerror(error)


# --- All batches, in one process or several ------------------------------------------


def import_paths(
    store: Store,
    paths: Sequence[str],
    options: Options,
    *,
    on_failure: Callable[[Failure], None] = lambda failure: None,
    on_progress: Callable[[Counts], None] = lambda counts: None,
) -> Counts:
    """Import files and folders; return what became of them. Everything counted as stored is durable.

    Raises:
        BadQuery: a key that makes no sense.
        StoreBroken: the store could not write; run it again after the cause is mended.
    """
    with _rare_collection():
        return _import_paths(store, paths, options, on_failure, on_progress)


@contextlib.contextmanager
def _rare_collection() -> Iterator[None]:
    """Look for circles of garbage less often: each look goes over all that waits for its commit."""
    before = gc.get_threshold()
    gc.set_threshold(_COLLECT_AFTER, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _import_paths(
    store: Store,
    paths: Sequence[str],
    options: Options,
    on_failure: Callable[[Failure], None],
    on_progress: Callable[[Counts], None],
) -> Counts:
    counts = Counts()

    def fail_in_walk(failure: Failure) -> None:
        nonlocal counts
        counts = counts.plus(Counts(files=1, failed=1))
        on_failure(failure)

    importer = BatchImporter(store, options)
    waiting = batches(walk(paths, fail_in_walk, leave_out=store.path))
    helpers = _Helpers(store.path, options)
    queue: deque[list[bytes]] = deque()
    try:
        while True:
            ahead = _AHEAD * max(1, options.jobs) + 1
            queue.extend(islice(waiting, ahead - len(queue)))
            if options.jobs > 1 and len(queue) > _SPAWN_AT:
                helpers.start(options.jobs - 1)
            helpers.feed(queue)
            if queue:
                done = [importer.run(queue.popleft())]
            else:
                done = []
                if not helpers.busy:
                    break
            for batch_counts, failures in [*done, *helpers.collect(wait=not done)]:
                counts = counts.plus(batch_counts)
                for failure in failures:
                    on_failure(failure)
            queue.extend(helpers.orphans())
            on_progress(counts)
    finally:
        helpers.close()
    return counts


class _Helper:
    __slots__ = ("buffer", "given", "process")

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.given: deque[list[bytes]] = deque()
        self.buffer = b""


class _Helpers:
    """Processes that import batches beside this one: one JSON line a batch in, one out."""

    def __init__(self, store: str, options: Options) -> None:
        self._store = store
        self._options = options
        self._helpers: list[_Helper] = []
        self._selector = selectors.DefaultSelector()
        self._orphans: list[list[bytes]] = []
        self._failure: str | None = None

    @property
    def busy(self) -> bool:
        return any(helper.given for helper in self._helpers) or bool(self._orphans)

    def start(self, count: int) -> None:
        """Have `count` processes; those that died are not replaced."""
        if self._helpers:
            return
        import subprocess  # a small import never needs it

        for _ in range(count):
            process = subprocess.Popen(
                [sys.executable, "-m", "hilum.engine.importer"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is for the parent, which ends them in order
            )
            helper = _Helper(process)
            order = {
                "store": self._store,
                "keys": self._options.keys,
                "policy": int(self._options.policy),
                "parent": os.getpid(),
            }
            self._send(helper, order)
            assert process.stdout is not None
            os.set_blocking(process.stdout.fileno(), False)
            self._selector.register(process.stdout, selectors.EVENT_READ, helper)
            self._helpers.append(helper)

    def feed(self, queue: deque[list[bytes]]) -> None:
        """Give each process work ahead, and keep one batch for ourselves."""
        for helper in self._helpers:
            while len(queue) > 1 and len(helper.given) < _AHEAD and helper.process.poll() is None:
                batch = queue.popleft()
                helper.given.append(batch)
                self._send(helper, [os.fsdecode(path) for path in batch])

    def collect(self, *, wait: bool) -> list[tuple[Counts, list[Failure]]]:
        """The batches that were finished meanwhile.

        Raises:
            StoreFault: a process said that the store can't go on.
        """
        found = []
        for key, _ in self._selector.select(None if wait and self.busy and not self._orphans else 0):
            helper: _Helper = key.data
            file: IO[bytes] = key.fileobj  # type: ignore[assignment]
            while True:
                try:
                    data = os.read(file.fileno(), 1 << 20)
                except BlockingIOError:
                    break
                if not data:
                    self._selector.unregister(file)
                    self._orphans += helper.given  # it died: its batches are ours again
                    helper.given.clear()
                    break
                helper.buffer += data
            *lines, helper.buffer = helper.buffer.split(b"\n")
            for line in lines:
                answer = json.loads(line)
                if "error" in answer:
                    raise StoreFault(answer["error"])
                helper.given.popleft()
                failures = [Failure(*row) for row in answer["failures"]]
                found.append((Counts(*answer["counts"]), failures))
        return found

    def orphans(self) -> list[list[bytes]]:
        left, self._orphans = self._orphans, []
        return left

    def close(self) -> None:
        for helper in self._helpers:
            assert helper.process.stdin is not None
            assert helper.process.stdout is not None
            with contextlib.suppress(BrokenPipeError):
                helper.process.stdin.close()
        for helper in self._helpers:
            assert helper.process.stdout is not None
            os.set_blocking(helper.process.stdout.fileno(), True)
            while helper.process.stdout.read(1 << 16):
                pass
            helper.process.stdout.close()
            helper.process.wait()
        self._selector.close()

    def _send(self, helper: _Helper, message: Any) -> None:
        assert helper.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # collect() sees the end of its output
            helper.process.stdin.write(json.dumps(message).encode("ascii") + b"\n")
            helper.process.stdin.flush()


def _serve() -> None:
    """The other end of _Helpers: batches in on standard input, what became of them out."""
    line = sys.stdin.buffer.readline()
    if not line.endswith(b"\n"):
        return  # the parent was killed before it could say what to do
    order = json.loads(line)
    options = Options(tuple((name, text) for name, text in order["keys"]), Policy(order["policy"]))
    try:
        with _rare_collection(), Store(order["store"]) as store:
            importer = BatchImporter(store, options)
            for line in sys.stdin.buffer:
                # A parent that was killed has left batches in the pipe: nobody waits for them any more.
                if not line.endswith(b"\n") or os.getppid() != order["parent"]:
                    return
                counts, failures = importer.run([os.fsencode(path) for path in json.loads(line)])
                _answer({"counts": counts, "failures": failures})
    except HilumError as failure:
        _answer({"error": str(failure)})
    except BrokenPipeError:
        # The parent was killed. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _answer(message: Any) -> None:
    sys.stdout.buffer.write(json.dumps(message).encode("ascii") + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    _serve()
