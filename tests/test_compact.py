"""hilum compact and hilum purge: the space of what is gone comes back, and nothing else changes.

A store with a history is compacted beside writers, deleters and readers, killed at every step, and cut off by
power loss; before and after each of it the same answers come out of the index, and out of one that is made
anew from the packs.

HILUM_COMPACT_KILLS is the number of steps at which a compaction is killed (40; 0: at each of them),
HILUM_COMPACT_ROUNDS that of rounds beside others (4), HILUM_COMPACT_DISKS that of disks that power loss
leaves (200; 0: all), HILUM_COMPACT_SEED the seed of all that is drawn by lot.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import test_kill
import test_powerloss
from makers import make_object, noise

import hilum
from hilum.engine import compact as compaction
from hilum.engine import folder, packs, prepare, writer
from hilum.engine.compact import Compacted, compact, purge
from hilum.engine.index import BlobPlace, pack_place
from hilum.engine.rebuild import rebuild
from hilum.engine.resources import FrameReaders
from hilum.engine.store import Store
from hilum.engine.verify import Problem, verify
from hilum.engine.writer import Policy, Result
from hilum.errors import Conflict, Corrupt, NotFound, StoreLocked

KILLS = int(os.environ.get("HILUM_COMPACT_KILLS", "40"))
ROUNDS = int(os.environ.get("HILUM_COMPACT_ROUNDS", "4"))
DISKS = int(os.environ.get("HILUM_COMPACT_DISKS", "200"))
SEED = int(os.environ.get("HILUM_COMPACT_SEED", "1"))
LEVELS = ("patients", "studies", "series", "instances")
PACK_MAX = 30_000


def be_deadly(left: int) -> None:
    """Kill this process at step `left` of what changes the disk."""
    test_kill.be_deadly(left)
    writer.os = folder.os = packs.os


def compact_without_end(path: str, seed: int) -> None:
    """What the rounds below run beside importers, deleters and readers."""
    rng = random.Random(seed)
    test_kill.shrink(rng.choice((8_000, 30_000, 1 << 30)))
    if rng.random() < 0.7:
        be_deadly(rng.randrange(1, rng.choice((40, 200, 1_000))))
    print(test_kill.READY, flush=True)
    while True:
        with test_kill.opened(path) as store:
            found = compact(store, waste=rng.choice((0, 4)), grace=rng.choice((0, 0.05)))
            if found.problems:
                print(found.problems, flush=True)
            if rng.random() < 0.3:
                purge(store)


def compaction_steps() -> list[test_powerloss.Step]:
    """The steps of test_powerloss, with compactions among them."""
    Step, Work = test_powerloss.Step, test_powerloss.Work

    def squeeze(work: Work) -> None:
        found = compact(work.get(), waste=0, grace=0)
        assert not found.problems or "POWERLOSS_MUTATION" in os.environ, found

    def squeeze_and_go(work: Work) -> None:
        """As a process of its own does it: all packs are free."""
        squeeze(work)
        work.close()
        work.open()

    taken: list[test_powerloss.Step] = []
    for number, step in enumerate(_PLAIN_STEPS()):
        taken.append(step)
        if number in (5, 10, 17, 24, 29, 32):
            # Not between a staging and its submission, nor while the store is closed.
            taken.append(Step(squeeze if number % 2 else squeeze_and_go))
        if number == 32:
            taken.append(Step(lambda work: purge(work.get())))
            taken.append(Step(squeeze))
    return taken


_PLAIN_STEPS = test_powerloss.steps


def as_powerloss() -> None:
    """Let the programs of test_powerloss take the steps of this file."""
    test_powerloss.steps = compaction_steps
    test_powerloss.__file__ = __file__


if __name__ == "__main__":
    what, *arguments = sys.argv[1:]
    if what == "compact":
        compact_without_end(arguments[0], int(arguments[1]))
    else:
        as_powerloss()
        programs: dict[str, Callable[..., None]] = {
            "program": test_powerloss.program,
            "victim": test_powerloss.victim,
            "check": test_powerloss.serve_checks,
        }
        programs[what](*arguments)
    sys.exit()

import pytest  # noqa: E402
from command import run  # noqa: E402

# --- A store, and what it says ---------------------------------------------------------------------------


@pytest.fixture
def tmp_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in memory where there is one: nothing here asks a disk to be slow."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path_factory.mktemp("compact")
        return
    path = Path("/dev/shm", f"hilum-compact-{os.getpid()}")
    path.mkdir()
    yield path
    shutil.rmtree(path)


@pytest.fixture(autouse=True)
def _small_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "PACK_MAX", PACK_MAX)
    monkeypatch.setattr(prepare, "IN_MEMORY_MAX", 8_000)


def uid_of(number: int) -> str:
    return f"2.25.1{number:04}"


def made(number: int, content: int = 0, size: int = 2_500) -> bytes:
    """The file of object `number`; some share their pixels."""
    return make_object(
        uid_of(number),
        f"2.25.2{number // 12}",
        f"2.25.3{number // 6}",
        pixels=noise(size, f"{number % 90} {content}"),
        patient_id=f"P{number // 24}",
        series_description=f"content {content}",
    )


def delete(store: Store, *numbers: int) -> None:
    for number in numbers:
        store.delete("instances", {"SOPInstanceUID": uid_of(number)})


def make_history(path: Path, count: int = 100) -> None:
    """A store of which much is gone: deleted, replaced, refused, deleted and sent again, in many packs."""
    with hilum.open(path, create=True) as store:
        for number in range(count):
            store.ingest(made(number))
        large = path.parent / "large"
        for number in (200, 201):
            large.write_bytes(made(number, size=9_000))
            store.ingest(large)  # a file pack
        delete(store, 201, *range(0, count, 3))
        for number in range(1, 40, 3):
            store.ingest(made(number, 1), policy=Policy.REPLACE)
        for number in range(2, 20, 3):
            with pytest.raises(Conflict):
                store.ingest(made(number, 2))
        for number in range(0, 30, 6):
            store.ingest(made(number, 3))  # under a UID that was deleted
        delete(store, 6, 12)


def answers(path: Path) -> list[object]:
    """All that a store says, but for how many blobs it has that nobody asks for."""
    with hilum.open(path, read_only=True) as store:
        found: list[object] = [
            sorted(json.dumps(store.row_json(row), sort_keys=True) for row in store.find(level))
            for level in LEVELS
        ]
        found.append(sorted((uid, store.read(uid.decode())) for uid in store.find_uids("instances", ())))
        with store.index.read() as snapshot:
            found.append(sorted(snapshot.scan(b"conflicts")))
            found.append([key for key, _ in snapshot.scan(b"revisions")])
    return found


def replacements(path: Path) -> set[str]:
    """What the change log calls replaced."""
    with hilum.open(path, read_only=True) as store:
        return {change.instance for change in store.changes().found if change.kind == "replaced"}


def problems(path: Path) -> list[Problem]:
    found: list[Problem] = []
    with hilum.open(path) as store:
        verify(store, on_problem=found.append, mark=False)
    return found


def squeeze(path: Path, *, waste: float = 4.0) -> Compacted:
    with hilum.open(path) as store:
        return compact(store, waste=waste, grace=0)


def size_of(path: Path) -> int:
    return sum(file.stat().st_size for file in (path / "packs").iterdir())


def rebuilt(path: Path, copy: Path) -> list[object]:
    """The answers of an index that is made of the packs of `path` alone."""
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir()
    shutil.copytree(path / "packs", copy / "packs")
    shutil.copy(path / "STORE", copy / "STORE")
    # Of what a crash has cut rebuild says so; it was told to nobody.
    assert [words for words in rebuild(os.fspath(copy)).problems if "no whole record" not in words] == []
    assert problems(copy) == []
    return answers(copy)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    make_history(tmp_path / "store")
    return tmp_path / "store"


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Ten objects, each second one deleted, whose packs nobody writes to."""
    with hilum.open(tmp_path / "store", create=True) as store:
        for number in range(10):
            store.ingest(made(number))
        delete(store, *range(0, 10, 2))
    return tmp_path / "store"


# --- Space -----------------------------------------------------------------------------------------------


def test_after_a_compaction_a_store_is_as_large_as_one_that_only_ever_held_what_is_left(path, tmp_path):
    before = answers(path)
    found = squeeze(path)

    assert found.after == size_of(path) < found.before / 1.4
    assert found.after <= 1.05 * found.alive
    assert (found.busy, found.problems) == ([], [])
    assert answers(path) == before
    assert problems(path) == []
    with hilum.open(tmp_path / "fresh", create=True) as fresh, hilum.open(path) as store:
        revisions = store.stats()["revisions"]
        for uid in store.find_uids("instances", ()):
            fresh.ingest(store.read(uid.decode()))
    # The revisions are in use too, and the verdicts, until they are purged.
    assert found.after < 1.05 * size_of(tmp_path / "fresh") + revisions * 5_000


def test_a_second_compaction_finds_nothing_to_do(path):
    squeeze(path)
    files = {file.name: file.stat().st_mtime_ns for file in (path / "packs").iterdir()}
    found = squeeze(path)

    assert (found.packs, found.copied) == (0, 0)
    assert {file.name: file.stat().st_mtime_ns for file in (path / "packs").iterdir()} == files


def test_a_pack_that_wastes_less_than_is_allowed_stays(small):
    before = sorted((small / "packs").iterdir())
    assert squeeze(small, waste=90).packs == 0
    assert sorted((small / "packs").iterdir()) == before
    assert squeeze(small, waste=10).packs == 2


def test_of_an_emptied_store_nothing_is_left(path):
    with hilum.open(path) as store:
        store.writer.delete(store.find_uids("instances", ()))
        purge(store)
    assert squeeze(path).after == 0
    assert not any((path / "packs").iterdir())
    assert answers(path) == rebuilt(path, path.parent / "copy")
    with hilum.open(path) as store:
        assert store.ingest(made(1)).result == Result.STORED
    assert problems(path) == []


def test_a_file_pack_that_a_crash_left_without_a_name_is_removed(small, monkeypatch):
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    large = small.parent / "large"
    large.write_bytes(made(50, size=9_000))
    with hilum.open(small) as store, monkeypatch.context() as patched:
        patched.setattr(writer.Writer, "_recover_dead", die)
        with pytest.raises(KeyboardInterrupt):
            store.ingest(large)
    assert list((small / "packs").glob("*.file"))
    squeeze(small)
    assert not list((small / "packs").glob("*.file"))
    assert problems(small) == []


def test_a_bulk_pack_with_a_damaged_footer_is_copied_though_nothing_in_it_is_dead(tmp_path):
    path = tmp_path / "store"
    with hilum.open(path, create=True) as store:
        for number in range(30):
            store.ingest(made(number))
    first = min((path / "packs").glob("*.bulk"))
    data = bytearray(first.read_bytes())
    data[-3] ^= 1
    first.write_bytes(data)
    assert [found.where for found in problems(path)] == [first.name]
    squeeze(path)
    assert not first.exists()
    assert problems(path) == []


def test_there_is_no_compaction_without_room_for_its_copies(small, monkeypatch):
    full = os.statvfs(small)

    class Full:
        f_bavail, f_frsize = 0, full.f_frsize

    monkeypatch.setattr(
        compaction, "os", type("os", (), {**vars(os), "statvfs": staticmethod(lambda _: Full)})
    )
    before = answers(small)
    found = squeeze(small)
    assert found.packs == 0
    assert "room" in found.problems[0]
    assert answers(small) == before


# --- Rebuild ---------------------------------------------------------------------------------------------


def test_packs_that_come_back_after_power_loss_bring_nothing_back(path, tmp_path, monkeypatch):
    """A name that was removed is there again, or not, until the folder is synced: any of them."""
    rng = random.Random(SEED)
    stages: list[Path] = []
    shipped = writer.remove_dropped

    def keep_a_copy(where: folder.Folder, index: Any) -> int:
        with index.read() as snapshot:
            dropped = [number for number, state in snapshot.packs().items() if state.dropped]
        if dropped:
            stages.append(tmp_path / f"stage-{len(stages)}")
            shutil.copytree(path, stages[-1])
            (stages[-1] / "dropped").write_text(json.dumps(dropped))
        return shipped(where, index)

    monkeypatch.setattr(writer, "remove_dropped", keep_a_copy)
    monkeypatch.setattr("hilum.engine.rebuild.BATCH_HEADS", 1)  # a head and its copy are not one batch
    before = answers(path)
    replaced = replacements(path)
    squeeze(path)
    assert len(stages) >= 2  # deletions go when what they took back has gone
    for stage in stages:
        dropped = json.loads((stage / "dropped").read_text())
        choices = [set(), set(dropped), *({one} for one in dropped)]
        choices += [set(rng.sample(dropped, rng.randrange(len(dropped)))) for _ in range(8)]
        for gone in choices:
            again = tmp_path / "again"
            shutil.copytree(stage, again)
            for file in packs.list_packs(os.fspath(again / "packs")):
                if file.number in gone:
                    os.unlink(file.path)
            assert rebuilt(again, tmp_path / "copy") == before, gone
            assert replacements(tmp_path / "copy") == replaced, gone
            shutil.rmtree(again)


def test_a_deletion_stays_as_long_as_any_pack_has_what_it_took_away(tmp_path):
    path = tmp_path / "store"
    with hilum.open(path, create=True) as one:
        for number in range(40):
            one.ingest(made(number, size=1_100))
        one.writer.rest()
        with hilum.open(path) as two:  # takes the packs of the first, which makes others
            two.ingest(made(40))
            delete(one, 3)
            for number in range(41, 60):
                one.ingest(made(number))
            delete(one, *range(41, 60))
    before = answers(path)
    found = squeeze(path, waste=20)  # the pack with object 3 has less waste than that
    assert found.packs > 0
    assert answers(path) == before == rebuilt(path, tmp_path / "copy")
    squeeze(path, waste=0)
    assert answers(path) == before == rebuilt(path, tmp_path / "copy")
    kinds = {
        row.record.kind
        for file in packs.list_packs(os.fspath(path / "packs"))
        if file.kind == packs.HEAD_PACK
        for row in rows_of(file)
    }
    assert kinds == {packs.STORED}


def rows_of(file: packs.PackFile) -> Iterator[Any]:
    from hilum.engine import replay

    fd = os.open(file.path, os.O_RDONLY)
    try:
        info = packs.read_info(fd, file.path)
        rows = replay.read_head_records(fd, info, packs.PACK_HEADER.size, os.fstat(fd).st_size)
        yield from (row for row in rows if row.record.kind != packs.FOOTER)
    finally:
        os.close(fd)


def test_a_head_pack_that_is_lost_keeps_every_deletion(path, tmp_path):
    lost = max((path / "packs").glob("*.head"), key=lambda file: file.stat().st_size)
    with hilum.open(path) as store:
        everything = set(store.find_uids("instances", ()))
        store.writer.delete(sorted(everything))
        purge(store)
    shutil.move(lost, tmp_path / lost.name)
    squeeze(path)
    shutil.move(tmp_path / lost.name, lost)  # out of a backup
    assert rebuilt(path, tmp_path / "copy")[3] == []


def test_a_number_that_a_record_of_a_bad_blob_names_is_not_given_again(small):
    with hilum.open(small) as store:
        store.writer._healed[bytes(32)] = BlobPlace(99, 128, 10, True)  # in a pack that is gone by now
        store.ingest(made(20))
    rebuild(os.fspath(small))
    with hilum.open(small) as store, store.index.read() as snapshot:
        assert snapshot.number(b"last_pack") == 99


def verify_and_mark(path: Path) -> list[Problem]:
    found: list[Problem] = []
    with hilum.open(path) as store:
        verify(store, on_problem=found.append)
    return found


# --- Purge -----------------------------------------------------------------------------------------------


def test_a_purge_forgets_revisions_and_no_rebuild_brings_them_back(path, tmp_path):
    first = answers(path)
    with hilum.open(path) as store:
        found = purge(store)
        assert found.revisions == len(first[6]) > 0
        assert found.conflicts == 0
        delete(store, 2, 5)
        assert purge(store) == (0, 2)
        assert purge(store) == (0, 0)
    before = answers(path)
    assert before[6] == []
    assert len(before[5]) == len(first[5]) - 2
    assert rebuilt(path, tmp_path / "copy") == before
    squeeze(path)
    assert answers(path) == before == rebuilt(path, tmp_path / "copy")
    assert problems(path) == []


def test_a_purge_with_keys_forgets_those_of_what_matches(path):
    ran = run("purge", f"SOPInstanceUID={uid_of(1)}", "--store", path, "--json")
    assert (ran.code, ran.summary) == (0, {"revisions": 1, "conflicts": 0})
    assert not any(key.startswith(uid_of(1).encode()) for key in answers(path)[6])
    assert len(answers(path)[6]) > 1


def test_a_revision_that_was_healed_once_does_not_come_back_after_its_purge(tmp_path):
    path = tmp_path / "store"
    with hilum.open(path, create=True) as store:
        store.ingest(made(1))
        with store.index.write() as change:
            change.put(b"bad", uid_of(1).encode(), b"")
        assert store.ingest(made(1)).result == Result.HEALED  # two heads of the same object
        for number in range(2, 20):
            store.ingest(made(number))
        store.ingest(made(1, 1), policy=Policy.REPLACE)
        purge(store)
    before = answers(path)
    for waste in (40, 0):
        squeeze(path, waste=waste)
        assert answers(path) == before == rebuilt(path, tmp_path / "copy")


# --- Damage ----------------------------------------------------------------------------------------------


def spoil(path: Path, value: bytes, suffix: str) -> Path:
    for pack in sorted((path / "packs").glob(f"*.{suffix}")):
        data = bytearray(pack.read_bytes())
        if (at := data.find(value)) >= 0:
            data[at + len(value) // 2] ^= 1
            pack.write_bytes(data)
            return pack
    raise AssertionError("no such bytes")


def test_a_damaged_blob_stops_only_its_own_pack(path):
    alive = noise(2_500, "8 0")  # of object 8
    pack = spoil(path, alive, "bulk")
    found = squeeze(path)

    assert [words for words in found.problems if "verify" in words] == found.problems != []
    assert pack.exists()
    assert found.packs > 5
    with hilum.open(path) as store:
        with pytest.raises(Corrupt):
            store.read(uid_of(8))
        assert store.read(uid_of(7)) == made(7, 1)
        with store.index.read() as snapshot:
            assert not snapshot.condemned()
    verify_and_mark(path)
    with hilum.open(path) as store:
        assert store.ingest(made(8)).result == Result.HEALED
    assert squeeze(path).problems == []
    assert not pack.exists()
    assert problems(path) == []


def test_nothing_is_dropped_that_a_damaged_head_may_name(path):
    bulk = {file.name for file in (path / "packs").glob("*.bulk")}
    head = spoil(path, uid_of(7).encode() + b"\0" * (len(uid_of(7)) % 2) + b"\x08\0 \0DA", "head")
    for _ in range(2):
        found = squeeze(path)
        assert any("damaged head" in words for words in found.problems)
        assert head.exists()
        assert bulk <= {file.name for file in (path / "packs").glob("*.bulk")}
    assert run("compact", "--store", path, "--grace", "0").code == 1


# --- Beside others ---------------------------------------------------------------------------------------


def test_packs_that_somebody_writes_to_are_left_alone_and_told(small):
    with hilum.open(small) as other:
        other.ingest(made(20))
        delete(other, 1)
        found = squeeze(small)
        assert len(found.busy) == 2
        assert found.packs == 0
        assert other.ingest(made(21)).result == Result.STORED
        other.writer.rest()
        assert squeeze(small).packs >= 2
        assert other.ingest(made(22)).result == Result.STORED
    assert problems(small) == []


def test_one_compaction_at_a_time_and_none_while_the_store_is_verified(small):
    with hilum.open(small) as store:
        compacting = store.folder.lock_compaction()
        with pytest.raises(StoreLocked):
            compact(store)
        with pytest.raises(StoreLocked):
            verify(store, on_problem=print)
        os.close(compacting)
        verifying = store.folder.lock_compaction(shared=True)
        with pytest.raises(StoreLocked):
            compact(store)
        assert problems(small) == []
        os.close(verifying)


def test_what_is_staged_on_a_blob_that_goes_meanwhile_is_asked_for_again(path):
    dead = make_object("2.25.77", "2.25.7", "2.25.8", pixels=noise(2_500, "3 0"))  # those of object 3
    with hilum.open(path) as store:
        prepared = store.prepare(dead)
        store.writer.stage([prepared])
        squeeze(path)
        assert store.ingest_many([prepared]) == [Result.AGAIN]
        assert store.ingest(dead).result == Result.STORED
        assert store.read("2.25.77") == dead
    assert problems(path) == []


def between(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, work: Callable[[], object]) -> list[int]:
    """Have `work` done each time before a function is called, but not inside of itself."""
    shipped, inside, calls = getattr(owner, name), [False], [0]

    def first_work(*args: Any, **options: Any) -> Any:
        if not inside[0]:
            inside[0] = True
            calls[0] += 1
            try:
                work()
            finally:
                inside[0] = False
        return shipped(*args, **options)

    monkeypatch.setattr(owner, name, first_work)
    return calls


@pytest.mark.parametrize("name", ["_append_blobs", "_finish_sinks", "_commit_objects", "_roll", "_enter"])
def test_a_compaction_at_any_point_of_a_commit_takes_nothing_that_it_relies_on(path, name, monkeypatch):
    if name == "_enter":  # is inside the commit lock, which the compaction takes too
        owner: Any = folder.Folder
        name = "commit_lock"
    else:
        owner = writer.Writer
    monkeypatch.setattr(writer, "PACK_MAX", 4_000)  # packs roll at each commit
    large = path.parent / "large"
    sent = {}
    with hilum.open(path) as store, hilum.open(path) as other, monkeypatch.context() as patched:
        calls = between(patched, owner, name, lambda: compact(other, waste=0, grace=0))
        for number in range(20):
            sent[number] = made(number, number % 2)  # some whose blobs are dead, or were
            store.ingest(sent[number], policy=Policy.REPLACE)
            if number % 5 == 0:
                sent[100 + number] = made(100 + number, size=9_000)
                large.write_bytes(sent[100 + number])
                store.ingest(large)
        assert calls[0] > 10
        for number, data in sent.items():
            assert store.read(uid_of(number)) == data
    assert problems(path) == []
    assert answers(path) == rebuilt(path, path.parent / "copy")


@pytest.mark.parametrize(
    "name", ["_condemn", "_copy_heads", "_copy_blobs", "_commit", "_find_users", "_drop"]
)
def test_whatever_comes_and_goes_at_any_point_of_a_compaction_is_right(path, name, monkeypatch):
    numbers = itertools.count(300)
    left = iter(range(2, 100, 3))
    sent: dict[int, bytes] = {}

    def work() -> None:
        if len(sent) > 40:
            return
        with hilum.open(path) as other:  # and closed: its packs are free
            number = next(numbers)
            sent[number] = made(number)
            other.ingest(sent[number])
            for again in (0, 3, 9):  # deleted, so their blobs are dead, but for this
                sent[again] = made(again)
                other.ingest(sent[again], policy=Policy.REPLACE)
            if (gone := next(left, None)) is not None:
                delete(other, gone)
                sent[gone] = b""
            changed = 1 + 3 * (number - 300)
            sent[changed] = made(changed, 5)
            other.ingest(sent[changed], policy=Policy.REPLACE)

    with monkeypatch.context() as patched:
        assert between(patched, compaction._Compaction, name, work)[0] == 0
        squeeze(path)
    assert sent
    with hilum.open(path) as store:
        for number, data in sent.items():
            if data:
                assert store.read(uid_of(number)) == data
            else:
                with pytest.raises(NotFound):
                    store.read(uid_of(number))
    assert problems(path) == []
    before = answers(path)
    assert rebuilt(path, path.parent / "copy") == before
    squeeze(path)
    assert answers(path) == before == rebuilt(path, path.parent / "copy")


def test_what_comes_while_it_is_marked_is_not_lost(path, monkeypatch):
    sent: dict[int, bytes] = {}

    def work() -> None:
        if len(sent) > 40:
            return
        with hilum.open(path) as other:
            for number in (0, 3, 9, 400 + len(sent)):
                sent[number] = made(number)
                other.ingest(sent[number], policy=Policy.REPLACE)

    monkeypatch.setattr(compaction, "SCAN_INSTANCES", 10)
    with monkeypatch.context() as patched:
        between(patched, compaction._Marks, "_mark", work)
        squeeze(path)
    with hilum.open(path) as store:
        for number, data in sent.items():
            assert store.read(uid_of(number)) == data
    assert problems(path) == []
    assert answers(path) == rebuilt(path, path.parent / "copy")


def test_an_object_that_shares_the_blobs_of_a_stored_one_can_be_stored_meanwhile(small, monkeypatch):
    # As an edit does: it has a new head, and not the bytes.
    kept: list[Result] = []
    edited = make_object("2.25.77", "2.25.7", "2.25.8", pixels=noise(2_500, "1 0"))  # those of object 1

    def edit() -> None:
        if kept:
            return
        with hilum.open(small) as other:
            prepared = other.prepare(edited)
            prepared.let_go()
            kept.extend(other.ingest_many([prepared]))
            instance = other.locate(uid_of(1)).instance
            prepared = other.prepare(edited)
            prepared.let_go()
            prepared.base = uid_of(1).encode(), instance.sequence
            kept.extend(other.ingest_many([prepared]))

    with monkeypatch.context() as patched:
        between(patched, compaction._Compaction, "_copy_heads", edit)
        squeeze(small)
    assert kept == [Result.AGAIN, Result.STORED]
    with hilum.open(small) as store:
        assert store.read("2.25.77") == edited
    assert problems(small) == []


def test_a_duplicate_is_told_as_one_and_not_written_again_while_its_pack_is_condemned(small, monkeypatch):
    told: list[tuple[Result, int]] = []

    def again() -> None:
        before = size_of(small)
        with hilum.open(small) as other:
            told.append((other.ingest(made(1)).result, size_of(small) - before))

    with monkeypatch.context() as patched:
        between(patched, compaction._Compaction, "_copy_heads", again)
        squeeze(small)
    assert set(told) == {(Result.DUPLICATE, 0)}


def test_what_is_healed_while_it_is_marked_is_not_lost(tmp_path, monkeypatch):
    # A blob gets another place then, without any change that the change log would tell.
    path = tmp_path / "store"
    monkeypatch.setattr(writer, "PACK_MAX", 6_000)
    with hilum.open(path, create=True) as store:
        for number in range(11):
            store.ingest(made(number))
        delete(store, 9)
        digest = store.head(uid_of(0)).holes[0].digest
        with store.index.write() as change:
            change.put(b"places", digest, pack_place(*store.find_blob(digest)[:3], bad=True))
    monkeypatch.setattr(writer, "PACK_MAX", PACK_MAX)

    def heal() -> None:
        with hilum.open(path) as other:  # appends to the last pack, of which much is dead
            if other.find_blob(digest).bad:
                assert other.ingest(made(0)).result == Result.HEALED

    with monkeypatch.context() as patched:
        calls = between(patched, compaction._Compaction, "_condemn", heal)
        squeeze(path)
    assert calls[0]
    with hilum.open(path) as store:
        assert store.read(uid_of(0)) == made(0)
    assert problems(path) == []


def test_a_pack_that_was_dropped_is_not_taken_by_the_next_writer(small, monkeypatch):
    def store_one() -> None:
        with hilum.open(small) as other:
            other.ingest(made(20))
            other.writer.recover()

    with monkeypatch.context() as patched:
        calls = between(patched, compaction._Compaction, "_wait", store_one)
        squeeze(small)
    assert calls[0]
    assert {file.number for file in packs.list_packs(os.fspath(small / "packs"))} & {1, 2} == set()
    assert problems(small) == []


def test_readers_that_hold_on_to_what_was_moved_read_on(path, monkeypatch):
    with hilum.open(path) as store:
        store.ingest(
            make_object("2.25.60", "2.25.2", "2.25.3", fragments=[noise(900, n) for n in range(3)], frames=3)
        )
        store.writer.rest()
        monkeypatch.setattr(packs.PackReader, "SWEEP_SECONDS", 0.0)
        reader = store.frames("2.25.60")
        native = store.frames(uid_of(1))
        original = store.open_original(uid_of(1))
        located = store.locate(uid_of(1)).instance
        pieces = store.chunks(uid_of(1))
        first = next(pieces)
        frames = [reader.read(index) for index in range(3)]
        document = store.series_json("2.25.20", "2.25.30", base="")
        pixels = native.read(0)
        _, kept = FrameReaders(store.index, store.packs, store.read_head, store.where_now).get(
            "2.25.20", "2.25.30", uid_of(1)
        )
        store._packs._sweep_at = 0.0
        squeeze(path, waste=0)
        store.frame_bytes(uid_of(2), 0)  # any read sweeps
        store.frame_bytes(uid_of(2), 0)
        open_files = [
            os.readlink(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd") if fd_is(name)
        ]
        assert not [name for name in open_files if "/packs/" in name and "(deleted)" in name]

        assert [reader.read(index) for index in range(3)] == frames
        assert native.read(0) == kept.read(0) == pixels
        assert original.read() == made(1, 1) == first + b"".join(pieces)
        assert store.read_head(located) == store.head(uid_of(1))
        assert len(json.loads(document.json())) > 0
        delete(store, 1)
        squeeze(path, waste=0)
        with pytest.raises(NotFound):
            store.read_head(located)


def fd_is(name: str) -> bool:
    return os.path.islink(f"/proc/self/fd/{name}")


def test_a_descriptor_is_not_closed_under_a_read_that_has_begun(tmp_path):
    path = tmp_path / "00000001.bulk"
    path.write_bytes(b"x" * 100)
    (tmp_path / "00000002.bulk").write_bytes(b"y" * 100)
    reader = packs.PackReader(os.fspath(tmp_path))
    shipped, during = packs.pread_exactly, []

    def sweep_meanwhile(fd: int, length: int, offset: int) -> bytes:
        if not during:
            during.append(fd)
            path.unlink()
            reader._sweep_at = 0.0
            assert reader.read((packs.BULK_PACK,), 2, 0, 1) == b"y"  # sweeps
            os.fstat(fd)  # still open
        return shipped(fd, length, offset)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(packs, "pread_exactly", sweep_meanwhile)
        assert reader.read((packs.BULK_PACK,), 1, 0, 10) == b"x" * 10
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(during[0])
    with pytest.raises(packs.PackGone):
        reader.read((packs.BULK_PACK,), 1, 0, 10)
    reader.close()


# --- The command -----------------------------------------------------------------------------------------


def test_the_command_says_what_it_did(path):
    before = size_of(path)
    ran = run("compact", "--store", path, "--grace", "0", "--json")
    assert (ran.code, ran.err) == (0, "")
    assert ran.summary["before"] == before
    assert ran.summary["after"] == size_of(path)
    assert ran.summary["problems"] == ran.summary["busy"] == 0
    ran = run("compact", "--store", path)
    assert ran.code == 0
    assert "0 packs removed" in ran.out
    assert run("compact", "--waste", "200", "--store", path).code == 2
    assert run("purge", "word", "--store", path).code == 2


# --- Killed ----------------------------------------------------------------------------------------------


def killed_at(path: Path, left: int) -> bool:
    """Compact in a process of its own, which dies at step `left`; return whether it came so far."""
    child = os.fork()
    if not child:
        status = 1
        try:
            be_deadly(left)
            squeeze(path, waste=0)
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def test_a_compaction_that_is_killed_at_any_step_loses_nothing(tmp_path):
    base = tmp_path / "base" / "store"
    base.parent.mkdir()
    make_history(base, 30)
    before = answers(base)
    count = next(
        left
        for left in itertools.count(40, 40)
        if not killed_at(shutil.copytree(base, tmp_path / f"length-{left}"), left)
    )
    steps = list(range(1, count))
    if KILLS:
        steps = sorted(random.Random(SEED).sample(steps, min(KILLS, len(steps))))
    killed = 0
    for left in steps:
        path = tmp_path / "killed"
        shutil.copytree(base, path)
        killed += killed_at(path, left)
        assert answers(path) == before, left
        assert rebuilt(path, tmp_path / "copy") == before, left
        if left % 3 == 0:  # the index is lost while the compaction is half done
            rebuild(os.fspath(path))
            assert answers(path) == before, left
        if left % 2:
            with hilum.open(path) as store:  # somebody else goes on
                assert store.ingest(made(3)).result == Result.STORED
                assert store.ingest(made(1, 1)).result == Result.DUPLICATE
                delete(store, 3)
        assert problems(path) == [], left
        found = squeeze(path)
        assert found.after <= 1.05 * found.alive + 2 * packs.PACK_HEADER.size, left
        assert answers(path) == before == rebuilt(path, tmp_path / "copy"), left
        assert problems(path) == [], left
        shutil.rmtree(path)
    assert killed > len(steps) // 2


class _BesideCompaction(test_kill.Round):
    """A round of test_kill with a process that compacts and purges all the time."""

    def run(self, spares: test_kill.Spares) -> None:
        seed = self.rng.randrange(1 << 30)
        process = test_kill.Killed([sys.executable, __file__, "compact", self.client.path, str(seed)])
        try:
            process.wait_until_ready()
            super().run(spares)
        finally:
            process.kill()
            said = process.end()
        assert said == []


def test_nothing_is_lost_when_compactions_run_beside_importers_deleters_and_readers(tmp_path):
    spares = test_kill.Spares(4)
    client = test_kill.Client(os.fspath(tmp_path / "store"))
    Path(client.path + ".files").mkdir()
    try:
        for number in range(ROUNDS):
            directory = tmp_path / f"round-{number}"
            directory.mkdir()
            rng = random.Random(SEED + number)
            _BesideCompaction(client, number, rng, directory).run(spares)
            test_kill.judge(client, 900_000 + number, last=number % 3 == 2)
            shutil.rmtree(directory)
    finally:
        spares.close()
    path = Path(client.path)
    before = answers(path)
    found = squeeze(path, waste=4)
    assert found.problems == []
    assert found.after <= 1.05 * found.alive
    assert answers(path) == before == rebuilt(path, tmp_path / "copy")


# --- Power loss ------------------------------------------------------------------------------------------


@pytest.fixture
def powerloss(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(test_powerloss, "steps", compaction_steps)
    monkeypatch.setattr(test_powerloss, "__file__", __file__)
    return tmp_path


def test_each_disk_that_power_loss_leaves_of_a_store_that_is_compacted_holds_all(powerloss):
    trace = test_powerloss.recorded(powerloss)
    images = list(trace.points(rng=random.Random(SEED), torn_max=8, random_count=8))
    random.Random(SEED).shuffle(images)
    seen = 0
    for image, verdict in test_powerloss.verdicts(images[: DISKS or None], powerloss, deep_every=2):
        assert not verdict, (image.at, image.label, len(image.acknowledged), verdict)
        seen += 1
    assert seen >= min(DISKS or 1_000, 100)
