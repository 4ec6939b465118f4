"""Importers, a worker on the API, a deleter and a reader beside each other, killed at random points.

The client keeps its own list of what it was told. After each round, in which every process is killed at a
moment of its own, the store opens and all that was told still holds: what was stored is there byte for
byte, what was deleted is gone, and what was under way is either. After some rounds the index is rebuilt, and
must give the same answers.

HILUM_KILL_ROUNDS sets the number of rounds (100), HILUM_KILL_SEED the first seed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from makers import make_object, noise

import hilum
from hilum import cli
from hilum.engine import folder, importer, packs, prepare, writer
from hilum.engine.index import Change
from hilum.engine.rebuild import rebuild
from hilum.engine.store import Store
from hilum.engine.verify import Problem, verify
from hilum.engine.writer import Policy, Result
from hilum.errors import HilumError, NotFound, StoreMissing

ROUNDS = int(os.environ.get("HILUM_KILL_ROUNDS", "100"))
ROUNDS_OF_STORE = 10  # then the index is rebuilt, and the next store begins
SEED = int(os.environ.get("HILUM_KILL_SEED", "1"))
LEVELS = ("patients", "studies", "series", "instances")

FILES_OF_IMPORT = 40
OBJECTS_OF_PLAN = 60
LIFE_SECONDS_MAX = 0.5
READY = "ready"
SHIPPED = "import 1"  # the command itself; the others wait for their order, so that all begin together


@functools.cache
def made(number: int, content: int) -> bytes:
    """The file of object `number`; pixels come from a small set, so that objects share blobs."""
    kind = random.Random(number)
    study = number // 7
    size = kind.choice((0, 900, 1_200, 3_000, 3_000, 6_000))
    return make_object(
        uid_of(number),
        f"2.25.5{study}",
        f"2.25.6{study}{number % 3}",
        pixels=noise(size, f"{size} {kind.randrange(12) + 20 * content}") if size else None,
        patient_id=f"P{study % 5}",
        name=f"Name{study % 5}^Of",
        series_description=f"content {content}",
    )


def uid_of(number: int) -> str:
    return f"2.25.4{number:06}"


# --- The processes that are killed ---------------------------------------------------------------------


class Deadly:
    """Stands for a module: kills this process before or after call number `left` of what changes a disk."""

    left = 1 << 60

    def __init__(self, module: Any, names: list[str]) -> None:
        self._module = module
        for name in names:
            setattr(self, name, self._counted(getattr(module, name)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    @staticmethod
    def _counted(call: Any) -> Any:
        def counted(*args: Any, **options: Any) -> Any:
            Deadly.left -= 1
            if Deadly.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            done = call(*args, **options)
            Deadly.left -= 1
            if Deadly.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return done

        return counted


def be_deadly(left: int) -> None:
    """Die at a step of a commit: a random moment seldom hits the short ones."""
    Deadly.left = left
    opening = ["open", "close", "rename", "unlink", "ftruncate"]
    names = [*opening, "write", "pwrite", "fsync", "fdatasync"]
    packs.os = folder.os = writer.os = Deadly(os, names)
    packs.PackWriter._write_queue = Deadly._counted(packs.PackWriter._write_queue)  # compiled below that
    Change.__exit__ = Deadly._counted(Change.__exit__)  # aborts are commits' neighbours too


def shrink(pack_max: int) -> None:
    writer.PACK_MAX = pack_max
    prepare.IN_MEMORY_MAX = 4_000  # some become file packs where they come as files
    importer.BATCH_FILES = 8
    folder.BALLAST_BYTES = 4_096


def opened(path: str, **options: Any) -> Store:
    """Open a store that somebody else may be about to make."""
    while True:
        try:
            return Store(path, **options)
        except StoreMissing:
            time.sleep(0.005)


def work(path: str, plan: list[Any]) -> None:
    """Do as the plan says, and say after each thing that it is done."""
    with Store(path, create=True) as store:
        for number, (verb, *arguments) in enumerate(plan):
            results: list[int] = []
            if verb == "put":
                objects = [store.prepare(made(*one)) for one in arguments]
                results = [int(result) for result in store.ingest_many(objects)]
            elif verb == "file":
                spool = Path(path + ".files", uid_of(arguments[0][0]))
                spool.write_bytes(made(*arguments[0]))
                prepared = store.prepare(spool)
                results = [int(result) for result in store.ingest_many([prepared])]
            elif verb == "replace":
                objects = [store.prepare(made(*one)) for one in arguments]
                results = [int(result) for result in store.ingest_many(objects, policy=Policy.REPLACE)]
            print(json.dumps([number, results]), flush=True)


def delete(path: str, plan: list[Any]) -> None:
    with opened(path) as store:
        for number, numbers in enumerate(plan):
            count = store.delete("instances", {"SOPInstanceUID": "\\".join(map(uid_of, numbers))})
            print(json.dumps([number, [count]]), flush=True)


def read(path: str, plan: list[Any]) -> None:
    """Read without end, and say what is neither right nor gone."""
    rng = random.Random(len(plan))
    allowed = {uid_of(number): {made(number, content) for content in contents} for number, contents in plan}
    with opened(path, read_only=True) as store:
        while True:
            for row in store.find(rng.choice(LEVELS)):
                row.to_json()
            for uid in rng.sample(sorted(allowed), min(10, len(allowed))):
                try:
                    if store.read(uid) not in allowed[uid]:
                        print(f"{uid} is other bytes", flush=True)
                except NotFound:
                    pass
                except HilumError as failure:
                    print(f"{uid}: {failure!r}", flush=True)


def serve() -> None:
    """Wait for an order on standard input, then carry it out."""
    print(READY, flush=True)
    order = json.loads(sys.stdin.readline())
    shrink(order["pack_max"])
    if order["left"]:
        be_deadly(order["left"])
    what, path, plan = order["what"], order["path"], order["plan"]
    if what == "import":
        cli.main(["import", plan, "--json", "--jobs", "2", "--store", path])
    else:
        {"work": work, "delete": delete, "read": read}[what](path, plan)


if __name__ == "__main__":
    serve()
    sys.exit()

import pytest  # noqa: E402  (the processes above do without: they start sooner)

# --- The client, who keeps a list ----------------------------------------------------------------------

GONE = -1  # in place of a content


@dataclasses.dataclass
class Client:
    """What each object may be now: a set of contents, GONE among them; one where it knows."""

    path: str
    may_be: dict[int, set[int]] = dataclasses.field(default_factory=dict)

    def of(self, number: int) -> set[int]:
        return self.may_be.setdefault(number, {GONE})

    def put(self, number: int, content: int, result: Result | None) -> None:
        """An object was sent to be stored; `result` is None where no answer came.

        Others may send the same UID at the same time, so an answer says only what can't be any more.
        """
        if result is None or result == Result.STORED:
            self.of(number).add(content)
        if result is not None:
            self.of(number).discard(GONE)

    def replaced(self, number: int, content: int, *, told: bool) -> None:
        self.may_be[number] = {content} if told else self.of(number) | {content}

    def deleted(self, number: int, *, told: bool) -> None:
        self.may_be[number] = {GONE} if told else self.of(number) | {GONE}

    def hold_against(self, store: Store) -> None:
        """Each object is one of what it may be; from now on it is what was found."""
        there = set()
        for number, contents in self.may_be.items():
            try:
                found = store.read(uid_of(number))
            except NotFound:
                assert GONE in contents, f"{uid_of(number)} is lost: {contents}"
                self.may_be[number] = {GONE}
                continue
            there.add(uid_of(number).encode())
            fits = {content for content in contents if content != GONE and made(number, content) == found}
            assert fits, f"{uid_of(number)} is none of {contents}"
            self.may_be[number] = fits
        assert set(store.find_uids("instances", ())) == there


class Killed:
    """One process that will be killed, and all that it says."""

    def __init__(self, argv: list[str]) -> None:
        paths = [os.path.dirname(os.path.dirname(hilum.__file__)), os.path.dirname(__file__)]
        variables = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")]),
        }
        self._output = tempfile.TemporaryFile()  # noqa: SIM115  (closed by end)
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=self._output, stderr=self._errors, env=variables
        )

    def wait_until_ready(self) -> None:
        while not os.fstat(self._output.fileno()).st_size:
            assert self._process.poll() is None
            time.sleep(0.002)

    def order(self, **order: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()

    def kill(self) -> None:
        self._process.kill()

    def end(self) -> list[str]:
        """What it said. It must have been killed, or have done all it had to."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        status = self._process.wait()
        with self._output, self._errors:
            self._output.seek(0)
            self._errors.seek(0)
            said, errors = self._output.read().decode(), self._errors.read().decode()
        assert status in (0, 1, -signal.SIGKILL), (status, errors)  # 1: an import with conflicts
        assert "Traceback" not in errors, errors
        return [line for line in said.splitlines() if line != READY]


class Spares:
    """Processes that have started and wait for an order: the next round's, while this one is looked at."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._waiting: list[Killed] = []

    def refill(self) -> None:
        while len(self._waiting) < self._count:
            self._waiting.append(Killed([sys.executable, __file__]))

    def take(self) -> Killed:
        self.refill()
        process = self._waiting.pop()
        process.wait_until_ready()
        return process

    def close(self) -> None:
        for process in self._waiting:
            process.kill()
            process.end()


@pytest.fixture(scope="module")
def ram(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in memory where there is one: a kill leaves there what it leaves on a disk."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path_factory.mktemp("kill")
        return
    path = Path("/dev/shm", f"hilum-kill-{os.getpid()}")
    path.mkdir()
    yield path
    shutil.rmtree(path)


def wait_until_alone(path: str) -> None:
    """Helpers of a killed import end by themselves."""
    deadline = time.monotonic() + 20
    with open(os.path.join(path, "lock"), "rb") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                assert time.monotonic() < deadline, "somebody still has the store open"
                time.sleep(0.01)


def answers(store: Store) -> list[object]:
    found: list[object] = [
        sorted(json.dumps(row.to_json(), sort_keys=True) for row in store.find(level)) for level in LEVELS
    ]
    found.append(sorted((uid, store.read(uid.decode())) for uid in store.find_uids("instances", ())))
    return found


def no_problems(store: Store) -> None:
    problems: list[Problem] = []
    verify(store, on_problem=problems.append)
    assert problems == []


class Round:
    """One round: what each process is to do, what it said, and what follows."""

    def __init__(self, client: Client, number: int, rng: random.Random, directory: Path) -> None:
        self.client, self.number, self.rng = client, number, rng
        self.directory = directory
        known = sorted(client.may_be)
        rng.shuffle(known)
        first = 100 * number
        fresh = [first + n for n in range(90)]
        self.rivals = fresh[:6]  # sent with other content by both
        shared = fresh[6:16]  # sent by both
        self.imported = [self.rivals + shared + fresh[16:40], shared + fresh[40:60]]
        self.deletions = [known[at : at + 2] for at in range(0, min(len(known), 60), 2)]
        taken = {one for group in self.deletions for one in group}
        # Some that were deleted in an earlier round come again.
        back = [one for one in known if one not in taken and client.may_be[one] == {GONE}][:15]
        replaceable = [one for one in known if one not in taken and client.may_be[one] != {GONE}][:15]
        singles = shared + fresh[60:90] + back
        rng.shuffle(singles)
        self.plan: list[list[Any]] = [["put", (one, 1)] for one in self.rivals]
        self.plan += [[rng.choice(("put", "file")), (one, 0)] for one in singles[:40]]
        for at in range(40, len(singles), 4):
            self.plan.append(["put", *((one, 0) for one in singles[at : at + 4])])
        self.plan += [["replace", (one, max(client.may_be[one]) + 1)] for one in replaceable]
        rng.shuffle(self.plan)

    def run(self, spares: Spares) -> None:
        rng, path = self.rng, self.client.path
        orders: dict[str, Any] = {"work": self.plan, "delete": self.deletions, "read": self._readable()}
        processes: dict[str, Killed] = {}
        for n, numbers in enumerate(self.imported):
            source = self.directory / f"import-{n}"
            source.mkdir()
            for one in numbers:
                (source / f"{one}.dcm").write_bytes(made(one, 0))
            orders[f"import {n}"] = str(source)
        for name in orders:
            if name != SHIPPED:
                processes[name] = spares.take()
        for name, process in processes.items():
            by_step = name != "read" and rng.random() < 0.5
            process.order(
                what=name.split()[0],
                path=path,
                plan=orders[name],
                left=rng.randrange(1, rng.choice((40, 400, 2_000))) if by_step else 0,
                pack_max=rng.choice((8_000, 30_000, 1 << 30)),
            )
        argv = [sys.executable, "-m", "hilum", "import", orders[SHIPPED], "--json", "--store", path]
        processes[SHIPPED] = Killed(argv)
        begin = time.monotonic()
        moments = sorted((rng.random() * LIFE_SECONDS_MAX, name) for name in processes)
        for moment, name in moments:
            time.sleep(max(0.0, begin + moment - time.monotonic()))
            processes[name].kill()
        spares.refill()
        said = {name: process.end() for name, process in processes.items()}
        self._note(said)

    def _readable(self) -> list[tuple[int, list[int]]]:
        numbers = [*self.client.may_be, *self.imported[0], *self.imported[1]]
        return [(one, [0, 1, *range(2, 2 + self.number % 100)]) for one in numbers[:60]]

    def _note(self, said: dict[str, list[str]]) -> None:
        """Write down what follows for each object from what was said, and from what was not."""
        client = self.client
        assert said["read"] == []
        for n, numbers in enumerate(self.imported):
            lines = [json.loads(line) for line in said[f"import {n}"]]
            got_through = bool(lines) and "files" in lines[-1]
            if got_through:
                summary = lines[-1]
                assert summary["files"] == len(numbers), summary
                assert summary["failed"] == summary["not_dicom"] == 0, summary
            for one in numbers:
                client.put(one, 0, None)
                if got_through:
                    client.of(one).discard(GONE)
        answered = dict(json.loads(line) for line in said["work"])
        for number, (verb, *objects) in enumerate(self.plan):
            if number > len(answered):
                break
            for at, (one, content) in enumerate(objects):
                told = number in answered
                if verb == "replace":
                    client.replaced(one, content, told=told)
                else:
                    client.put(one, content, Result(answered[number][at]) if told else None)
                    if told and one in self.rivals:
                        stored = answered[number][at] in (Result.STORED, Result.DUPLICATE)
                        client.may_be[one] = {content if stored else 0}
        for number, numbers in enumerate(self.deletions[: len(said["delete"]) + 1]):
            for one in numbers:
                client.deleted(one, told=number < len(said["delete"]))


@pytest.fixture
def spares() -> Iterator[Spares]:
    spares = Spares(4)
    yield spares
    spares.close()


def judge(client: Client, mark: int, *, last: bool) -> None:
    """Open the store after a round, and hold it against the client's list."""
    with Store(client.path, create=True) as store:
        assert store.ingest(made(mark, 0)).result == Result.STORED
        client.put(mark, 0, Result.STORED)
    wait_until_alone(client.path)  # what a helper still did is in the list as "perhaps"
    with Store(client.path) as store:
        client.hold_against(store)
        no_problems(store)
        before = answers(store) if last else []
    if last:
        assert rebuild(client.path).problems == []
        with Store(client.path) as store:
            assert answers(store) == before
            client.hold_against(store)
            no_problems(store)


def test_nothing_that_was_told_is_lost_when_processes_are_killed(ram: Path, spares: Spares) -> None:
    for first in range(0, ROUNDS, ROUNDS_OF_STORE):
        client = Client(str(ram / f"store-{first}"))
        Path(client.path + ".files").mkdir()
        rounds = range(first, min(ROUNDS, first + ROUNDS_OF_STORE))
        for number in rounds:
            directory = ram / f"round-{number}"
            directory.mkdir()
            try:
                Round(client, number - first, random.Random(SEED + number), directory).run(spares)
                judge(client, 900_000 + number, last=number == rounds[-1])
            except BaseException:
                print(f"round {number} failed; HILUM_KILL_SEED={SEED + first} begins with its store")
                raise
            shutil.rmtree(directory)
        shutil.rmtree(client.path)
