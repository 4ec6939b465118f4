"""Takes tasks on pixels; gives a Future for each, and does them in worker processes with limits. Never runs a
codec itself, so a codestream that crashes or hangs one costs one request.

    pool = Pool(2, seconds_max=30, memory_max=1 << 30, cache_bytes=64 << 20)
    pool.submit("frame", data, layout, source, target).result()      # transcode.frame
    pool.submit("render", frames, layout, source, attributes, rendering).result()    # render.render

From asyncio: `await asyncio.wrap_future(pool.submit(...))`. Safe from several threads.

Workers are started anew, not forked, and share nothing but one socket, whose other end only the pool has.
A task goes over it as it is, and its answer comes back. Half a megabyte there and back takes 0.2 ms; shared
memory would save half of that, and is not worth its locks.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
from collections import OrderedDict, deque
from collections.abc import Hashable, Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

from hilum.errors import BadDicom, Busy, HilumError, Unsupported
from hilum.pixels import worker

_WAITING_PER_WORKER = 32
_WAITING_BYTES_MAX = 256 << 20
_SOCKET_BYTES = 1 << 20
_ENTRY_BYTES = 512  # of the cache, beside the result
_START_SECONDS = 60.0  # for a worker to load its codecs, on a machine that is busy


class _Task(NamedTuple):
    name: str
    arguments: tuple[Any, ...]
    size: int  # bytes that it holds while it waits
    key: Hashable | None
    future: Future[bytes]


class Pool:
    """Worker processes, the queue before them and the cache behind them."""

    def __init__(
        self,
        workers: int = 2,
        seconds_max: float = 30.0,
        memory_max: int = 1 << 30,
        cache_bytes: int = 64 << 20,
        functions: str = "hilum.pixels.worker:functions",
    ) -> None:
        """Start `workers` processes; the call does not wait for them.

        `seconds_max` bounds one task, `memory_max` the bytes that it may take beyond what an idle worker has,
        `cache_bytes` all results that are kept. `functions` is where a worker finds what it can do, module
        and name, as an entry point has them.
        """
        self._command = [sys.executable, "-m", worker.__name__, str(seconds_max), str(memory_max), functions]
        self._seconds_max = seconds_max
        self._cache = _Cache(cache_bytes)
        self._waiting: deque[_Task] = deque()
        self._waiting_bytes = 0
        self._waiting_max = _WAITING_PER_WORKER * workers
        self._changed = threading.Condition()
        self._closed = False
        self._workers: set[_Worker] = set()
        self._threads = [
            threading.Thread(target=self._serve, name=f"pixels-{n}", daemon=True) for n in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def waiting_count(self) -> int:
        """Tasks that no worker has taken yet."""
        return len(self._waiting)

    def submit(self, name: str, *arguments: Any, key: Hashable | None = None) -> Future[bytes]:
        """Have a worker run one of worker.functions(); arguments are bytes, numbers, text, tuples of those.

        With a `key`, the result is kept under it as long as there is room, and taken from there the next
        time: (instance identity, frame index, target). The key must name all that the result depends on.

        The Future raises what the function raises, and:
            Unsupported: it took more than `seconds_max` or `memory_max`.
            BadDicom: the codec crashed.
            Busy: the worker was ended from outside, or can't be started.

        Raises:
            Busy: too many tasks wait already, or the pool is closed.
        """
        future: Future[bytes] = Future()
        if key is not None and (known := self._cache.get(key)) is not None:
            future.set_result(known)
            return future
        self._put(_Task(name, arguments, _size_of(arguments), key, future), patient=False)
        return future

    def map(self, name: str, calls: Iterable[tuple[Any, ...]]) -> Iterator[bytes]:
        """Run a function for each of `calls`, its arguments, and give the results in their order.

        For long work on many frames: one more than there are workers is on its way at once, and it waits
        where submit() would refuse. It blocks, so it is for threads.

        Raises:
            Busy: the pool is closed. And what the Future of submit() raises.
        """
        running: deque[Future[bytes]] = deque()
        try:
            for arguments in calls:
                future: Future[bytes] = Future()
                self._put(_Task(name, arguments, _size_of(arguments), None, future), patient=True)
                running.append(future)
                if len(running) > len(self._threads):
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            for future in running:
                future.cancel()

    def cached(self, key: Hashable) -> bytes | None:
        """Return what submit() has kept under this key: it saves reading the frame."""
        return self._cache.get(key)

    def close(self) -> None:
        """End the workers. What waits or is under way fails with Busy."""
        with self._changed:
            self._closed = True
            left = list(self._waiting)
            self._waiting.clear()
            running = list(self._workers)
            self._changed.notify_all()
        for task in left:
            if task.future.set_running_or_notify_cancel():
                task.future.set_exception(Busy("the server is stopping"))
        for one in running:
            one.kill()
        for thread in self._threads:
            thread.join()

    # The queue.

    def _put(self, task: _Task, *, patient: bool) -> None:
        with self._changed:
            while not self._closed and not self._has_room(task):
                if not patient:
                    raise Busy(f"{len(self._waiting)} pictures wait to be decoded already; try again")
                self._changed.wait()
            if self._closed:
                raise Busy("the server is stopping")
            self._waiting.append(task)
            self._waiting_bytes += task.size
            self._changed.notify_all()

    def _has_room(self, task: _Task) -> bool:
        if not self._waiting:
            return True
        return (
            len(self._waiting) < self._waiting_max and self._waiting_bytes + task.size <= _WAITING_BYTES_MAX
        )

    def _take(self) -> _Task | None:
        with self._changed:
            while not self._waiting:
                if self._closed:
                    return None
                self._changed.wait()
            task = self._waiting.popleft()
            self._waiting_bytes -= task.size
            self._changed.notify_all()
            return task

    # One thread for each worker.

    def _serve(self) -> None:
        mine = self._started()  # before there is a task for it
        while (task := self._take()) is not None:
            if not task.future.set_running_or_notify_cancel():
                continue
            try:
                if mine is None:
                    mine = self._start()
                result = mine.run(task.name, task.arguments)
            except _Gone as gone:
                task.future.set_exception(gone.reason)
                self._end(mine)
                mine = self._started()
            except Exception as failure:  # the function's own, or arguments that can't be sent
                task.future.set_exception(failure)
            else:
                if task.key is not None:
                    self._cache.put(task.key, result)
                task.future.set_result(result)
        self._end(mine)

    def _start(self) -> _Worker:
        started = _Worker(self._command, self._seconds_max)
        with self._changed:
            self._workers.add(started)
            if self._closed:
                started.kill()
        try:
            started.wait_until_ready()
        except _Gone:
            self._end(started)
            raise
        return started

    def _started(self) -> _Worker | None:
        """Start a worker; None if that fails: the next task tries again, and tells."""
        try:
            return self._start() if not self._closed else None
        except (_Gone, OSError):
            return None

    def _end(self, ended: _Worker | None) -> None:
        if ended is not None:
            with self._changed:
                self._workers.discard(ended)
            ended.close()


def _size_of(value: Any) -> int:
    if isinstance(value, bytes | bytearray | memoryview):
        return len(value)
    if isinstance(value, tuple | list):
        return sum(map(_size_of, value))
    return 0


class _Gone(Exception):
    """The worker has ended; `reason` is what the one who asked is told."""

    def __init__(self, reason: HilumError) -> None:
        super().__init__(str(reason))
        self.reason = reason


class _Worker:
    """One worker process and the socket to it. Used by one thread; any may kill() it."""

    def __init__(self, command: list[str], seconds_max: float) -> None:
        self._seconds_max = seconds_max  # for the message; the process itself keeps to it
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BYTES)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SOCKET_BYTES)
        self._link = ours
        with theirs:
            self._process = subprocess.Popen(
                command,
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env=_environment(),
            )

    def wait_until_ready(self) -> None:
        """Return when the codecs are loaded."""
        self._link.settimeout(_START_SECONDS)
        try:
            self._receive()
        except TimeoutError:
            raise _Gone(Busy("a worker for pixels did not start in time; try again")) from None
        self._link.settimeout(None)

    def run(self, name: str, arguments: tuple[Any, ...]) -> bytes:
        """Return the function's result, or raise its error; _Gone if the process ended over it."""
        task = pickle.dumps((name, arguments), pickle.HIGHEST_PROTOCOL)
        try:
            self._link.sendall(worker.TASK.pack(len(task)))
            self._link.sendall(task)
        except OSError:
            raise self._gone() from None
        return self._receive()

    def _receive(self) -> bytes:
        status, length = worker.ANSWER.unpack(self._read(worker.ANSWER.size))
        answer = self._read(length)
        if status == worker.DONE:
            return answer
        kind, reason, tag = json.loads(answer)
        raise BadDicom(reason, tag=tag) if kind == "BadDicom" else worker.ERRORS[kind](reason)

    def _read(self, length: int) -> bytes:
        try:
            data = worker.read_exactly(self._link, length)
        except ConnectionError:
            data = b""
        if len(data) < length:
            raise self._gone()
        return data

    def _gone(self) -> _Gone:
        code = self._process.wait()
        if code == -signal.SIGALRM:
            return _Gone(Unsupported(f"this takes more than {self._seconds_max:g} seconds"))
        if code < 0 and code != -signal.SIGKILL:
            return _Gone(BadDicom(f"the codec crashed over these pixels ({signal.Signals(-code).name})"))
        return _Gone(Busy("a worker for pixels has ended; try again"))

    def kill(self) -> None:
        """End the process now, whatever it does."""
        self._process.kill()

    def close(self) -> None:
        """End the process and give up the socket."""
        self._link.close()
        self._process.kill()
        self._process.wait()


def _environment() -> dict[str, str]:
    """Where this Hilum is found, and what makes its workers quick."""
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        # More threads would fight the other workers for their cores.
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        # glibc keeps the memory of one frame for the next. Given back and taken again, page by page, it costs
        # a millisecond for a frame of half a megabyte.
        "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
        "MALLOC_TRIM_THRESHOLD_": str(64 << 20),
    }


class _Cache:
    """The results that were used last, up to so many bytes of them."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._results: OrderedDict[Hashable, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> bytes | None:
        with self._lock:
            found = self._results.get(key)
            if found is not None:
                self._results.move_to_end(key)
            return found

    def put(self, key: Hashable, result: bytes) -> None:
        with self._lock:
            old = self._results.pop(key, None)
            self._bytes -= len(old) + _ENTRY_BYTES if old is not None else 0
            if len(result) + _ENTRY_BYTES > self._bytes_max:
                return
            self._results[key] = result
            self._bytes += len(result) + _ENTRY_BYTES
            while self._bytes > self._bytes_max:
                self._bytes -= len(self._results.popitem(last=False)[1]) + _ENTRY_BYTES
