"""Power loss at every write and sync of the shipped store, replayed from its own system calls.

`program` uses a store as people do and acknowledges each step only after the API returned. Each disk that
it could have left is opened by `check` in a process of its own (LMDB on a broken disk may die), which holds
it against what had been acknowledged: all of that is there byte for byte, nothing dangles, work goes on. The
steps after the last acknowledged one may have happened or not: nobody was told.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from makers import make_object, noise

import hilum
from hilum.engine import folder, index, packs, prepare, writer
from hilum.engine.importer import Options, import_paths
from hilum.engine.rebuild import rebuild
from hilum.engine.store import Store
from hilum.engine.verify import Problem, verify
from hilum.engine.writer import Policy, Result
from hilum.errors import Conflict, NotFound, StoreBroken

STORE = "a/b/store"  # two folders that the store's creation makes beside its own
LEVELS = ("patients", "studies", "series", "instances")

# Each is small, so that the bytes of thousands of disks are few.
PACK_MAX = 7 << 10
FILE_PACK_OVER = 16 << 10
BALLAST = 512

HUNG_AFTER_SECONDS = 60


def made(number: int, content: int = 0, size: int = 1_500, study: int = 1) -> tuple[str, bytes]:
    """(UID, file) of object `number`; another `content` makes it other bytes under the same UID."""
    uid = f"2.25.4{number:03}"
    data = make_object(
        uid,
        f"2.25.5{study:03}",
        f"2.25.6{study:03}{number % 2}",
        pixels=noise(size, number * 1000 + content) if size else None,
        patient_id=f"P{study}",
        name=f"Name{study}^Of",
        instance_number=number,
        series_description=f"content {content}",
    )
    return uid, data


# --- What is recorded ---------------------------------------------------------------------------------


@dataclasses.dataclass
class Step:
    """One thing that is done to the store, and what it promises once it is acknowledged."""

    do: Callable[[Work], None]
    sure: dict[str, bytes | None] = dataclasses.field(default_factory=dict)
    maybe: dict[str, bytes | None] = dataclasses.field(default_factory=dict)  # nobody was told: either way
    failed: bool = False  # its sync failed


class Work:
    """The store that the program has open."""

    def __init__(self, root: str) -> None:
        self.path = os.path.join(root, STORE)
        self.files = os.path.join(os.path.dirname(root), "files")
        self.store: Store | None = None
        self.staged: prepare.Prepared | None = None

    def open(self) -> None:
        self.store = Store(self.path, create=True)

    def close(self) -> None:
        self.get().close()
        self.store = None

    def get(self) -> Store:
        assert self.store is not None
        return self.store

    def ingest(self, *objects: tuple[str, bytes], policy: Policy = Policy.KEEP_FIRST) -> None:
        store = self.get()
        store.ingest_many([store.prepare(data) for _, data in objects], policy=policy)

    def import_files(self, *objects: tuple[str, bytes]) -> None:
        folder_of_step = os.path.join(self.files, objects[0][0])
        os.makedirs(folder_of_step)
        for uid, data in objects:
            Path(folder_of_step, uid).write_bytes(data)
        counts = import_paths(self.get(), [folder_of_step], Options())
        assert counts.stored == len(objects), counts

    def ingest_file(self, found: tuple[str, bytes]) -> None:
        path = Path(self.files, f"{found[0]}.dcm")
        path.write_bytes(found[1])
        assert self.get().ingest(path).result == Result.STORED

    def conflict(self, found: tuple[str, bytes]) -> None:
        with pytest.raises(Conflict):
            self.get().ingest(found[1])

    def again(self, found: tuple[str, bytes]) -> None:
        assert self.get().ingest(found[1]).result == Result.DUPLICATE

    def delete(self, uid: str) -> None:
        assert self.get().delete("instances", {"SOPInstanceUID": uid}) == 1

    def stage_and_delete(self, staged: tuple[str, bytes], uid: str) -> None:
        """Between the two halves of an import, somebody deletes."""
        self.staged = self.get().prepare(staged[1])
        self.get().writer.stage([self.staged])
        self.delete(uid)

    def submit_staged(self) -> None:
        self.get().ingest_many([self.staged])

    def fail_to_sync(self, found: tuple[str, bytes], after: int) -> None:
        """Sync number `after` fails, and the disk is well again."""
        left = after

        def fail(fd: int) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise OSError(errno.EIO, "the disk lost some pages")
            os.fdatasync(fd)

        packs.os = type("os", (), {**vars(os), "fdatasync": staticmethod(fail)})
        with contextlib.suppress(StoreBroken):  # a writer that was broken on purpose may not sync at all
            self.get().ingest(found[1])
            assert "POWERLOSS_MUTATION" in os.environ
        packs.os = os
        self.close()
        self.open()

    def rebuild(self) -> None:
        self.close()
        assert rebuild(self.path).problems == []
        self.open()

    def killed(self, where: str, what: str, number: int = 0) -> None:
        """Let another process work on the store, and be killed."""
        argv = [sys.executable, __file__, "victim", self.path, where, what, str(number)]
        assert subprocess.run(argv, check=False).returncode == -signal.SIGKILL


def steps() -> list[Step]:
    """What the program does, in order."""
    one, two, three = made(1), made(2), made(3, study=2)
    four, five = made(4), made(5, study=3)
    large = made(6, size=FILE_PACK_OVER + 5_002)
    later = [made(number, size=size) for number, size in ((7, 3_000), (8, 2_500), (9, 0), (10, 4_000))]
    new_one = made(1, content=1)
    dying = [made(number, study=4) for number in (11, 12, 13, 15)]
    after = [made(number, study=5) for number in (16, 17, 18)]
    failing = [made(number, study=6) for number in (20, 21)]
    staged = made(22, study=6)

    def sure(*objects: tuple[str, bytes]) -> dict[str, bytes | None]:
        return dict(objects)

    return [
        Step(lambda work: work.open()),
        Step(lambda work: work.ingest(one, two, three), sure(one, two, three)),
        Step(lambda work: work.import_files(four, five), sure(four, five)),
        Step(lambda work: work.ingest(new_one, policy=Policy.REPLACE), sure(new_one)),
        Step(lambda work: work.conflict(made(2, content=1))),
        Step(lambda work: work.delete(three[0]), {three[0]: None}),
        Step(lambda work: work.ingest_file(large), sure(large)),  # a file pack
        Step(lambda work: work.ingest(later[0]), sure(later[0])),  # packs roll here and there
        Step(lambda work: work.ingest(*later[1:]), sure(*later[1:])),
        Step(lambda work: work.again(two)),
        Step(lambda work: work.ingest(three), sure(three)),
        Step(lambda work: work.close()),
        # Others are killed at the worst moments, and the next one goes on with what they left.
        Step(lambda work: work.killed("bulk", "ingest", 11), maybe=sure(dying[0])),
        Step(lambda work: work.open()),
        Step(lambda work: work.ingest(dying[1]), sure(dying[1])),
        Step(lambda work: work.killed("commit", "ingest", 13), maybe=sure(dying[2])),
        Step(lambda work: work.killed("recovery", "ingest", 13), maybe=sure(dying[2])),
        Step(lambda work: work.killed("commit", "delete", 2), maybe={two[0]: None}),
        Step(lambda work: work.ingest(two), sure(two)),  # told "stored": so it stays
        Step(lambda work: work.close()),
        Step(lambda work: work.killed("spool", "ingest", 14)),
        Step(lambda work: work.killed("create", "ingest", 15), maybe=sure(dying[3])),
        Step(lambda work: work.open()),
        Step(lambda work: work.ingest(after[0]), sure(after[0])),
        Step(lambda work: work.stage_and_delete(staged, later[0][0]), {later[0][0]: None}),
        Step(lambda work: work.submit_staged(), sure(staged)),
        Step(
            lambda work: work.fail_to_sync(failing[0], 0), maybe=sure(failing[0]), failed=True
        ),  # of the bulk pack
        Step(lambda work: work.ingest(later[0]), sure(later[0])),
        Step(
            lambda work: work.fail_to_sync(failing[1], 1), maybe=sure(failing[1]), failed=True
        ),  # of the head pack
        Step(lambda work: work.delete(after[0][0]), {after[0][0]: None}),
        Step(lambda work: work.rebuild()),
        Step(lambda work: work.ingest(after[1]), sure(after[1])),
        Step(lambda work: work.delete(four[0]), {four[0]: None}),
        Step(lambda work: work.ingest(after[2]), sure(after[2])),
    ]


def shrink() -> None:
    """Make packs roll early, and values large that are not."""
    writer.PACK_MAX = PACK_MAX
    prepare.IN_MEMORY_MAX = FILE_PACK_OVER
    folder.BALLAST_BYTES = BALLAST


def unsynced(kind: int) -> None:
    sync = packs.PackWriter.sync

    def sync_others(pack: packs.PackWriter) -> None:
        if pack.kind == kind:
            pack.flush()
        else:
            sync(pack)

    packs.PackWriter.sync = sync_others


def without_directory_syncs() -> None:
    packs.sync_directory = folder.sync_directory = lambda path: None


def without_index_syncs() -> None:
    shipped = index.lmdb.open
    index.lmdb.open = lambda *args, **options: shipped(*args, **{**options, "sync": False})


def index_before_heads() -> None:
    append_heads, enter, sync = writer.Writer._append_heads, writer.Writer._enter, packs.PackWriter.sync
    late: list[packs.PackWriter] = []

    def append_unsynced(self: writer.Writer, *args: object) -> object:
        packs.PackWriter.sync = lambda pack: (pack.flush(), late.append(pack))
        try:
            return append_heads(self, *args)
        finally:
            packs.PackWriter.sync = sync

    def enter_then_sync(self: writer.Writer, *args: object) -> None:
        enter(self, *args)
        while late:
            late.pop().sync()

    writer.Writer._append_heads, writer.Writer._enter = append_unsynced, enter_then_sync


def without_recovery_of_the_dead() -> None:
    writer.Writer._recover_dead = lambda self, gate: None


# What a careless hand could do to the writer; each must be seen.
MUTATIONS: dict[str, Callable[[], None]] = {
    "the index is committed before the heads are synced": index_before_heads,
    "bulk packs are not synced": lambda: unsynced(packs.BULK_PACK),
    "head packs are not synced": lambda: unsynced(packs.HEAD_PACK),
    "folders are not synced": without_directory_syncs,
    "the index is not synced": without_index_syncs,
    "what a killed writer left is passed over": without_recovery_of_the_dead,
    "steps are acknowledged before they are taken": lambda: None,
}


def program(root: str) -> None:
    """Take all steps, and acknowledge each."""
    broken = os.environ.get("POWERLOSS_MUTATION", "")
    shrink()
    MUTATIONS.get(broken, lambda: None)()
    work = Work(root)
    for number, step in enumerate(steps()):
        if "acknowledged" in broken:
            acknowledge(number)
        step.do(work)
        if "acknowledged" not in broken:
            acknowledge(number)
    with work.get().index.read() as snapshot:  # that it took all the ways it was made for
        sealed = Counter(state.kind for state in snapshot.packs().values() if state.sealed)
    assert sealed[packs.BULK_PACK] > 1, sealed
    assert sealed[packs.HEAD_PACK] > 0, sealed
    assert any(file.kind == packs.FILE_PACK for file in packs.list_packs(work.get().folder.packs))
    work.close()


def acknowledge(number: int) -> None:
    with open(os.environ["POWERLOSS_ACK"], "ab", buffering=0) as file:
        file.write(b"%d\n" % number)


def victim(path: str, where: str, what: str, number: str) -> None:
    """Work on the store, and be killed in between."""
    shrink()

    def die(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with Store(path) as store:
        if where == "create":  # a new pack has its name and its header, and nothing of it is synced
            writer._take_unsealed = lambda *_: []
            packs.os = type("os", (), {**vars(os), "fsync": die})
        elif where == "recovery":
            writer.Ledger = die
        elif where == "bulk":
            packs.PackWriter.sync = die
        elif where == "spool":
            packs.FilePackWriter.finish = die
        elif where == "commit":  # heads are synced; the index knows nothing of them
            store.writer.delete([])  # recovers
            writer.Ledger = die
        if what == "delete":
            store.delete("instances", {"SOPInstanceUID": made(int(number))[0]})
        elif where == "spool":
            large = os.path.join(os.environ["TMPDIR"], "large")
            Path(large).write_bytes(made(int(number), size=FILE_PACK_OVER + 1, study=4)[1])
            store.ingest(large)
        else:
            store.ingest(made(int(number), study=4)[1])


# --- What each disk is held against --------------------------------------------------------------------


class Wrong(Exception):
    """What a disk does not hold, or holds and should not."""


Expected = dict[str, set[bytes | None]]


def expected(taken: int) -> Expected:
    """What each UID may hold after `taken` acknowledged steps: one thing, or either side of the next step."""
    found: Expected = {}
    for number, step in enumerate(steps()[: taken + 1]):
        for uid, data in step.maybe.items():
            found[uid] = found.get(uid, {None}) | {data}
        for uid, data in step.sure.items():
            found[uid] = {data} if number < taken else found.get(uid, {None}) | {data}
    return found


def contents(store: Store, uids: Iterable[str]) -> dict[str, bytes | None]:
    found: dict[str, bytes | None] = {}
    for uid in uids:
        try:
            found[uid] = store.read(uid)
        except NotFound:
            found[uid] = None
    return found


def hold_against(store: Store, wanted: Expected, when: str) -> None:
    found = contents(store, wanted)
    for uid, allowed in wanted.items():
        if found[uid] not in allowed:
            raise Wrong(f"{when}: {uid} is {'gone' if found[uid] is None else 'there, or other bytes'}")
    there = {uid.decode() for uid in store.find_uids("instances", ())}
    if there != {uid for uid, data in found.items() if data is not None}:
        raise Wrong(f"{when}: find gives {sorted(there)}, read gives {found.keys()}")


def answers(store: Store) -> list[object]:
    """All that find gives at each level, all bytes, and what was decided."""
    found: list[object] = [
        sorted(json.dumps(row.to_json(), sort_keys=True) for row in store.find(level)) for level in LEVELS
    ]
    uids = sorted(uid.decode() for uid in store.find_uids("instances", ()))
    found.append([(uid, hash(store.read(uid))) for uid in uids])
    with store.index.read() as snapshot:
        found.append([[key for key, _ in snapshot.scan(name)] for name in (b"conflicts", b"revisions")])
    return found


def no_problems(store: Store, when: str) -> None:
    problems: list[Problem] = []
    verify(store, on_problem=problems.append)
    if problems:
        raise Wrong(f"{when}: verify says {problems}")


def check(root: str, taken: int, deep: bool) -> None:
    """Hold a disk against what was acknowledged on it; work on it.

    Raises:
        Wrong: it does not fit.
    """
    shrink()
    path = os.path.join(root, STORE)
    wanted = expected(taken)
    if taken:
        with Store(path, read_only=True) as store:  # before anything was recovered
            hold_against(store, wanted, "before recovery")
    new = made(999, study=9)
    with Store(path, create=not taken) as store:
        hold_against(store, wanted, "opened")
        if store.ingest(new[1]).result != Result.STORED:
            raise Wrong("a new object can't be stored")
        wanted |= {new[0]: {new[1]}}
        hold_against(store, wanted, "recovered")
        no_problems(store, "recovered")
        before = answers(store) if deep else []
        if os.listdir(store.folder.spool):
            raise Wrong("the spool holds what nobody writes")
    if deep:
        if problems := rebuild(path).problems:
            raise Wrong(f"rebuild says {problems}")
        with Store(path) as store:
            hold_against(store, wanted, "rebuilt")
            if (after := answers(store)) != before:
                raise Wrong(f"rebuild gives other answers: {before} {after}")
            if not store.delete("instances", {"SOPInstanceUID": new[0]}):
                raise Wrong("nothing can be deleted")
            no_problems(store, "rebuilt")


def serve_checks() -> None:
    """For each line (folder, steps taken, deep) on standard input, say on standard output what is wrong."""
    for line in sys.stdin:
        try:
            check(*json.loads(line))
            answer = ""
        except Exception as failure:
            answer = f"{type(failure).__name__}: {failure}"
        print(json.dumps(answer), flush=True)


class Checker:
    """A process that runs `check`, and another one when it has died."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def verdict(self, root: Path, taken: int, deep: bool) -> str:
        if self._process is None:
            argv = [sys.executable, __file__, "check"]
            self._process = subprocess.Popen(
                argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([str(root), taken, deep]) + "\n")
        self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], HUNG_AFTER_SECONDS)
        if not ready:
            self._process.kill()
            self.close()
            return "hung"
        line = self._process.stdout.readline()
        if not line:
            self.close()
            return "died"
        return str(json.loads(line))

    def close(self) -> None:
        if self._process is not None:
            self._process.communicate()
            self._process = None


def environment() -> dict[str, str]:
    """For programs that import what this process imports."""
    paths = [os.path.dirname(os.path.dirname(hilum.__file__)), os.path.dirname(__file__)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])}


if __name__ == "__main__":
    {"program": program, "victim": victim, "check": serve_checks}[sys.argv[1]](*sys.argv[2:])
    sys.exit()

# --- The tests -----------------------------------------------------------------------------------------

from powerloss import Image, Trace, record  # noqa: E402  (not needed above, where a program runs this file)


@pytest.fixture(scope="module")
def ram(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in memory where there is one: thousands of disks are written, and synced again and again."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path_factory.mktemp("disks")
        return
    path = Path("/dev/shm", f"hilum-powerloss-{os.getpid()}")
    path.mkdir()
    yield path
    shutil.rmtree(path)


def recorded(ram: Path, mutation: str = "") -> Trace:
    work = ram / f"recorded-{len(os.listdir(ram))}"  # no blanks: LD_PRELOAD would part it there
    temporary = work / "tmp"
    temporary.mkdir(parents=True)
    variables = {**environment(), "TMPDIR": str(temporary)}
    if mutation:
        variables["POWERLOSS_MUTATION"] = mutation
    argv = [sys.executable, __file__, "program", work / "root"]
    return record(argv, work / "root", workdir=work, env=variables)


@pytest.fixture(scope="module")
def trace(ram: Path) -> Trace:
    return recorded(ram)


def verdicts(images: Iterable[Image], ram: Path, *, deep_every: int = 0) -> Iterator[tuple[Image, str]]:
    """Give each image with what is wrong with it; "" for nothing."""
    checkers = [Checker() for _ in range(os.cpu_count() or 1)]
    free = list(checkers)

    def judge(numbered: tuple[int, Image]) -> tuple[Image, str]:
        number, image = numbered
        checker = free.pop()
        root = ram / f"disk-{number}"
        try:
            image.write_to(root)
            deep = bool(deep_every) and number % deep_every == 0
            return image, checker.verdict(root, len(image.acknowledged), deep)
        finally:
            free.append(checker)
            shutil.rmtree(root, ignore_errors=True)

    try:
        with ThreadPoolExecutor(len(checkers)) as pool:
            waiting = []
            for numbered in enumerate(images):
                waiting.append(pool.submit(judge, numbered))
                if len(waiting) > 4 * len(checkers):
                    yield waiting.pop(0).result()
            for one in waiting:
                yield one.result()
    finally:
        for checker in checkers:
            checker.close()


def shuffled_points(trace: Trace, seed: int) -> list[Image]:
    """Many disks, in an order in which a fault that shows on few of them is seen early."""
    images = list(trace.points(rng=random.Random(seed), torn_max=8, random_count=8))
    random.Random(seed).shuffle(images)
    return images


def test_each_disk_that_power_loss_can_leave_holds_all_that_was_acknowledged(trace: Trace, ram: Path) -> None:
    images = trace.points(rng=random.Random(1), torn_max=16, random_count=10)

    seen: Counter[int] = Counter()
    for image, verdict in verdicts(images, ram, deep_every=8):
        assert not verdict, (image.at, image.label, image.acknowledged, verdict)
        seen[len(image.acknowledged)] += 1
    assert sorted(seen) == list(range(len(steps()) + 1))
    assert seen.total() > 2_500


@pytest.mark.parametrize(
    ("kinds", "path"),
    [
        ("fdatasync", "*.bulk"),
        ("fdatasync", "*.head"),
        ("fsync", "*.file"),
        ("fsync", "*/packs"),
        ("fsync", "*/store"),
        ("fsync", "*/index-*"),
        ("fsync", "a"),
        ("fdatasync", "*/data.mdb"),
        ("dsync", "*/data.mdb"),
    ],
)
def test_a_disk_that_breaks_a_promise_loses_something(trace: Trace, ram: Path, kinds: str, path: str) -> None:
    # The proof that the test above can fail, and that the store needs each of these syncs.
    images = shuffled_points(trace.weakened(kinds, path=path), 2)

    assert any(verdict for _, verdict in verdicts(images, ram, deep_every=8))


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_writer_that_is_broken_on_purpose_is_found_out(ram: Path, mutation: str) -> None:
    images = shuffled_points(recorded(ram, mutation), 3)

    assert any(verdict for _, verdict in verdicts(images, ram, deep_every=8))


def with_pages_dropped(trace: Trace, step: int) -> Trace:
    """The same run on a disk that, during a step, took a sync for failed and forgot what it was to sync."""
    begin, end = (
        at for at, op in enumerate(trace.ops) if op.kind == "ack" and int(op.data) in (step - 1, step)
    )
    ops = list(trace.ops)
    for at in range(begin, end):
        op = ops[at]
        if op.kind == "write" and op.path.endswith((".bulk", ".head")):
            ops[at] = dataclasses.replace(op, kind="sync_file_range", data=b"", length=0)
    return Trace(trace._initial, ops)


def test_what_a_failed_sync_dropped_is_written_again_before_it_is_relied_on(trace: Trace, ram: Path) -> None:
    # Reading does not tell: the pages are in memory still, and clean.
    failing = [number for number, step in enumerate(steps()) if step.failed]
    assert len(failing) == 2
    for step in failing:
        images = shuffled_points(with_pages_dropped(trace, step), 4)
        late = [image for image in images if len(image.acknowledged) > step][:400]
        for image, verdict in verdicts(late, ram):
            assert not verdict, (image.at, image.label, len(image.acknowledged), verdict)
