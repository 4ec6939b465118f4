"""What a broken disk, a full one, a rotten byte or a foreign hand does to a store: told, never served as
right, never made worse, and mended by sending the objects again or by a rebuild."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from makers import make_object, noise

import hilum
from hilum.engine import folder, packs, prepare, record, writer
from hilum.engine.rebuild import rebuild
from hilum.engine.store import Store
from hilum.engine.verify import Problem, verify
from hilum.engine.writer import Policy, Result
from hilum.errors import (
    Conflict,
    Corrupt,
    HilumError,
    NotFound,
    ReadOnly,
    StoreBroken,
    StoreLocked,
    StoreMissing,
)

FILE_PACK_OVER = 20_000
PACK_MAX = 12_000
LEVELS = ("patients", "studies", "series", "instances")

Objects = dict[str, bytes]


def made(number: int, content: int = 0, size: int = 2_000) -> tuple[str, bytes]:
    """(UID, file) of object `number`."""
    uid = f"2.25.4{number:03}"
    data = make_object(
        uid,
        f"2.25.5{number // 4}",
        f"2.25.6{number // 4}{number % 2}",
        pixels=noise(size, 1_000 * number + content) if size else None,
        patient_id=f"P{number // 4 % 3}",
        series_description=f"content {content}",
    )
    return uid, data


def frames_of(number: int) -> tuple[str, bytes]:
    """An object of three encapsulated frames, with a table of them behind its head."""
    uid = f"2.25.4{number:03}"
    fragments = [b"\xff\xd8" + noise(700, f"{number} {n}") + b"\xff\xd9" for n in range(3)]
    return uid, make_object(uid, "2.25.59", "2.25.69", fragments=fragments, frames=3, rows=8, columns=8)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "PACK_MAX", PACK_MAX)
    monkeypatch.setattr(prepare, "IN_MEMORY_MAX", FILE_PACK_OVER)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "store")


@pytest.fixture
def objects(path: str, tmp_path: Path) -> Objects:
    """A store with packs of each kind, sealed and not, and what it holds."""
    found: Objects = {}
    large = made(90, size=FILE_PACK_OVER + 10)
    source = tmp_path / "large.dcm"
    source.write_bytes(large[1])
    with Store(path, create=True) as store:
        for numbers in ((1, 2, 3), (4, 5, 6), (7, 8), (9,), (10, 11), (12,)):
            many = [made(number, size=3_000 if number % 3 else 0) for number in numbers]
            store.ingest_many([store.prepare(data) for _, data in many])
            found |= dict(many)
        store.ingest(source)
        found |= [large]
        for one in (made(13), frames_of(14), made(15)):
            store.ingest(one[1])
            found |= [one]
        with store.index.read() as snapshot:
            kinds = {(state.kind, state.sealed) for state in snapshot.packs().values()}
    assert {(packs.BULK_PACK, True), (packs.BULK_PACK, False), (packs.HEAD_PACK, False)} <= kinds
    return found


def problems_of(store: Store, **options: Any) -> list[Problem]:
    found: list[Problem] = []
    verify(store, on_problem=found.append, **options)
    return found


def answers(store: Store) -> list[object]:
    found: list[object] = [
        sorted(json.dumps(row.to_json(), sort_keys=True) for row in store.find(level)) for level in LEVELS
    ]
    found.append(sorted((uid, store.read(uid.decode())) for uid in store.find_uids("instances", ())))
    return found


def holds(store: Store, wanted: Objects) -> None:
    assert {uid.decode() for uid in store.find_uids("instances", ())} == wanted.keys()
    for uid, data in wanted.items():
        assert store.read(uid) == data, uid


def environment() -> dict[str, str]:
    """For processes that import what this process imports."""
    paths = [os.path.dirname(os.path.dirname(hilum.__file__)), os.path.dirname(__file__)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])}


def command(*words: str) -> subprocess.CompletedProcess[str]:
    """Run hilum as a user does."""
    argv = [sys.executable, "-m", "hilum", *words]
    return subprocess.run(argv, capture_output=True, text=True, env=environment(), check=False)


def script(text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a Python program beside this one, with the names of this module."""
    argv = [sys.executable, "-c", "from test_damage import *\n" + text, *arguments]
    return subprocess.run(argv, capture_output=True, text=True, env=environment(), check=False, timeout=120)


# --- Writes that fail ----------------------------------------------------------------------------------


class Failing:
    """Stands for the module os: call number `at` of one of `names` fails, and with it all that follow."""

    def __init__(self, names: tuple[str, ...], at: int, error: int) -> None:
        self.count = 0
        self._at, self._error = at, error
        for name in names:
            setattr(self, name, self.instead_of(getattr(os, name)))

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def instead_of(self, call: Any) -> Any:
        def perhaps(*arguments: Any, **options: Any) -> Any:
            self.count += 1
            if self.count > self._at:
                raise OSError(self._error, os.strerror(self._error))
            return call(*arguments, **options)

        return perhaps


WRITES = ("write", "pwrite", "ftruncate")  # and of records, which is compiled
SYNCS = ("fsync", "fdatasync")


def ingest(store: Store, number: int, tmp_path: Path) -> tuple[str, bytes | None]:
    uid, data = made(number, size=1_500)
    assert store.ingest(data).result == Result.STORED
    return uid, data


def ingest_large(store: Store, number: int, tmp_path: Path) -> tuple[str, bytes | None]:
    uid, data = made(number, size=FILE_PACK_OVER + 1)
    source = tmp_path / "source"
    source.write_bytes(data)
    assert store.ingest(source).result == Result.STORED
    return uid, data


def replace(store: Store, number: int, tmp_path: Path) -> tuple[str, bytes | None]:
    uid, data = made(2, content=number)
    assert store.ingest(data, policy=Policy.REPLACE).result == Result.REPLACED
    return uid, data


def delete(store: Store, number: int, tmp_path: Path) -> tuple[str, bytes | None]:
    uid, _ = made(3)
    assert store.delete("instances", {"SOPInstanceUID": uid}) == 1
    return uid, None


def uid_of_operation(operation: Callable[..., object], number: int) -> str:
    return made({replace: 2, delete: 3}.get(operation, number))[0]


@pytest.mark.parametrize(
    ("names", "error"),
    [(WRITES, errno.EIO), (WRITES, errno.ENOSPC), (SYNCS, errno.EIO)],
    ids=["write EIO", "write ENOSPC", "sync EIO"],
)
@pytest.mark.parametrize("warm", [True, False], ids=["warm", "cold"])
@pytest.mark.parametrize("operation", [ingest, ingest_large, replace, delete])
def test_whichever_write_or_sync_fails_nothing_that_was_told_is_lost(
    path: str,
    objects: Objects,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    operation: Callable[[Store, int, Path], tuple[str, bytes | None]],
    warm: bool,
    names: tuple[str, ...],
    error: int,
) -> None:
    now: Objects = dict(objects)
    for at in itertools.count():
        assert at < 60
        number = 100 + 2 * at
        uid = uid_of_operation(operation, number)
        with Store(path) as store:
            if operation is delete and uid not in now:
                store.ingest(objects[uid])
                now[uid] = objects[uid]
            if warm:  # the packs are open, and one more is just as good
                warming = made(number + 1)
                store.ingest(warming[1])
                now |= [warming]
            failing = Failing(names, at, error)
            failed = False
            with monkeypatch.context() as patch:
                for module in (packs, folder, writer):
                    patch.setattr(module, "os", failing)
                if names is WRITES:
                    write = failing.instead_of(packs.PackWriter._write_queue)
                    patch.setattr(packs.PackWriter, "_write_queue", write)
                try:
                    _, told = operation(store, number, tmp_path)
                except StoreBroken:
                    failed = True
            if failed and warm and operation is not ingest_large:
                with pytest.raises(StoreBroken, match="reopen"):  # though the disk is well again
                    store.ingest(made(900)[1])
            if failed:
                for other in now.keys() - {uid}:  # reading goes on
                    assert store.read(other) == now[other]
        with Store(path) as store:
            store.writer.delete([b"2.25.0"])  # recovers
            if failed:
                before = now.get(uid)
                with contextlib.suppress(NotFound):
                    now[uid] = store.read(uid)
                if uid not in {one.decode() for one in store.find_uids("instances", ())}:
                    now.pop(uid, None)
                after = {replace: made(2, number)[1], delete: None}.get(
                    operation, made(number, size=1_500)[1]
                )
                if operation is ingest_large:
                    after = made(number, size=FILE_PACK_OVER + 1)[1]
                assert now.get(uid) in (before, after)
            elif told is None:
                del now[uid]
            else:
                now[uid] = told
            holds(store, now)
            assert problems_of(store) == []
        if not failed:
            break
    assert at > 0
    assert os.listdir(os.path.join(path, "spool")) == []
    with Store(path) as store:
        found = answers(store)
    assert rebuild(path).problems == []
    with Store(path) as store:
        assert answers(store) == found


def test_a_writer_that_failed_and_was_replaced_takes_no_pack_again(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store(path, create=True) as store:
        store.ingest(made(1)[1])
        broken = store.writer
        with monkeypatch.context() as patch:
            patch.setattr(packs.PackWriter, "_write_queue", Failing((), 0, errno.EIO).instead_of(None))
            with pytest.raises(StoreBroken):
                store.ingest(made(2)[1])
        count = len(os.listdir(os.path.join(path, "packs")))
        store.renew_writer(broken)

        with pytest.raises(StoreBroken, match="earlier failure"):  # a thread that still had it
            broken.submit([store.prepare(made(3)[1])])
        assert store.ingest(made(4)[1]).result == Result.STORED
        assert len(os.listdir(os.path.join(path, "packs"))) == count  # the same packs, whose locks were free
        assert problems_of(store) == []


# Takes at most 700 bytes, or half of the first buffer, of what should be written at once.
SHORT_WRITES = r"""
#define _GNU_SOURCE
#include <sys/uio.h>
#include <unistd.h>
ssize_t pwritev64(int fd, const struct iovec *iov, int count, off64_t offset)
{
    size_t size = iov[0].iov_len > 1400 ? 700 : (iov[0].iov_len + 1) / 2;
    (void)count;
    write(2, ".", 1);
    return pwrite(fd, iov[0].iov_base, size, offset);
}
"""
RECORDS = """
import os, sys
from hilum._fastpack import RecordQueue
queue = RecordQueue(0x1234567890ABCDEF)
for n in range(200):
    queue.add(4, bytes([n]) * (n * 37 % 2_000), n, bytes(32), n)
queue.write(os.open(sys.argv[1], os.O_RDWR | os.O_CREAT), 64)
"""


def test_records_of_which_the_kernel_takes_some_bytes_at_a_time_are_written_whole(tmp_path: Path) -> None:
    (tmp_path / "short.c").write_text(SHORT_WRITES)
    library = tmp_path / "short.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, tmp_path / "short.c"], check=True)
    calls = {}
    for name, preload in (("short", str(library)), ("whole", "")):
        environment = os.environ | {"LD_PRELOAD": preload}
        command = [sys.executable, "-c", RECORDS, str(tmp_path / name)]
        ran = subprocess.run(command, check=True, env=environment, stderr=subprocess.PIPE)
        calls[name] = len(ran.stderr)

    assert calls["short"] > 400
    assert calls["whole"] == 0
    assert (tmp_path / "short").read_bytes() == (tmp_path / "whole").read_bytes()
    assert (tmp_path / "whole").stat().st_size > 100_000


def test_a_write_that_takes_only_some_bytes_is_carried_on(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Short:
        def __getattr__(self, name: str) -> Any:
            return getattr(os, name)

        def pwrite(self, fd: int, data: Any, offset: int) -> int:
            return os.pwrite(fd, memoryview(data).cast("B")[:5_000], offset)

    monkeypatch.setattr(packs, "os", Short())
    with Store(path, create=True) as store:
        wanted = dict(ingest(store, number, tmp_path) for number in (1, 2))
        wanted |= [ingest_large(store, 3, tmp_path)]
        holds(store, wanted)  # type: ignore[arg-type]
        assert problems_of(store) == []


# --- A full disk ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["the index", "a pack"])
def test_a_store_that_may_not_grow_says_so_and_keeps_what_it_told(
    path: str, objects: Objects, what: str
) -> None:
    # The limit on a file's size stands for the end of the disk: first the largest file hits it.
    size = 1_500 if what == "the index" else 900_000
    done = script(
        """
import resource
path, size = sys.argv[1], int(sys.argv[2])
with Store(path) as store:
    limit = max(os.path.getsize(os.path.join(path, "index-000001", "data.mdb")), size) + 20_000
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    for number in range(100, 900):
        try:
            store.ingest(made(number, size=size if number % 2 else 0)[1])
        except StoreBroken as failure:
            print(failure, file=sys.stderr)
            break
        print(number, flush=True)
    try:
        store.ingest(made(900)[1])
        print("a dead writer wrote")
    except StoreBroken:
        pass
    for number in (1, 2, 13):
        assert store.read(made(number)[0])
""",
        path,
        str(size),
    )

    assert done.returncode == 0, done.stderr
    assert "writer" not in done.stdout
    assert ("index" if what == "the index" else "pack") in done.stderr, done.stderr
    told = [int(line) for line in done.stdout.split()]
    assert told
    wanted = dict(made(number, size=size if number % 2 else 0) for number in told)
    with Store(path) as store:
        assert store.ingest(made(950)[1]).result == Result.STORED
        assert problems_of(store) == []
        for uid, data in {**objects, **wanted}.items():
            assert store.read(uid) == data


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 6 MB, where this user may mount one."""
    mountpoint = tmp_path / "disk"
    mountpoint.mkdir()
    argv = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(mountpoint)]
    if os.geteuid() or subprocess.run(argv, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a file system")
    yield mountpoint
    subprocess.run(["umount", str(mountpoint)], check=True)


def fill_up(store: Store, told: Objects) -> None:
    """Store until the disk is full."""
    for number in range(100, 900):
        uid, data = made(number, size=60_000)
        try:
            store.ingest(data)
        except StoreBroken:
            return
        told[uid] = data
    raise AssertionError("the disk never was full")


def test_a_full_disk_takes_no_more_but_deletes(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "PACK_MAX", 1 << 30)
    monkeypatch.setattr(folder, "BALLAST_BYTES", 1 << 18)
    path = str(small_disk / "store")
    many = dict(made(number, size=0) for number in range(1_000, 2_500))
    told = dict(made(number, size=40_000) for number in range(2_600, 2_610))
    with Store(path, create=True) as store:
        for objects_of_commit in (many, told):
            store.ingest_many([store.prepare(data) for data in objects_of_commit.values()])
        fill_disk(small_disk / "filler")
        assert store.delete("instances", {"SOPInstanceUID": "\\".join(many)}) == len(many)
        holds(store, told)
    (small_disk / "filler").unlink()
    with Store(path) as store:
        fill_up(store, told)
        holds(store, told)
    fill_disk(small_disk / "filler")
    gone = sorted(told)[:5]

    with Store(path) as store:
        for uid in gone:
            assert store.delete("instances", {"SOPInstanceUID": uid}) == 1
            del told[uid]
        holds(store, told)
    with Store(path) as store:
        with contextlib.suppress(StoreBroken):
            fill_up(store, told)
        holds(store, told)
    (small_disk / "filler").unlink()
    with Store(path) as store:
        told |= [ingest(store, 950, small_disk)]  # type: ignore[arg-type]
        holds(store, told)
        assert problems_of(store) == []


def fill_disk(filler: Path) -> None:
    """Leave nothing at all."""
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4_096))
    assert os.statvfs(filler).f_bavail == 0


# --- Read-only ------------------------------------------------------------------------------------------


@pytest.fixture
def read_only(path: str, objects: Objects, tmp_path: Path) -> Iterator[str]:
    """The store on a file system that can't be written, else one whose files can't be."""
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    if os.geteuid():
        for folder_of, _, files in os.walk(path):
            for name in files:
                os.chmod(os.path.join(folder_of, name), 0o444)
            os.chmod(folder_of, 0o555)
        yield path
        for folder_of, _, _ in os.walk(path):
            os.chmod(folder_of, 0o755)
        return
    bind = subprocess.run(["mount", "--bind", path, str(mounted)], capture_output=True, check=False)
    again = ["mount", "-o", "remount,bind,ro", str(mounted)]
    if bind.returncode or subprocess.run(again, capture_output=True, check=False).returncode:
        pytest.skip("root may not mount here")
    yield str(mounted)
    subprocess.run(["umount", str(mounted)], check=True)


def test_a_store_that_cannot_be_written_opens_for_reading_only(read_only: str, objects: Objects) -> None:
    with pytest.raises(ReadOnly):
        Store(read_only).ingest(made(100)[1])
    with Store(read_only, read_only=True) as store:
        holds(store, objects)
        assert problems_of(store) == []
        with pytest.raises(ReadOnly):
            store.ingest(made(100)[1])
        with pytest.raises(ReadOnly):
            store.delete("instances", {"SOPInstanceUID": made(1)[0]})
    found = command("find", "instances", "--store", read_only)
    assert found.returncode == 0, found.stderr
    refused = command("delete", "instances", "PatientID=P1", "--store", read_only)
    assert refused.returncode == 1
    assert "can't be written" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_store_opened_for_reading_writes_nothing(path: str, objects: Objects) -> None:
    def state() -> dict[str, tuple[int, int]]:
        return {
            os.path.join(at, name): (
                os.stat(os.path.join(at, name)).st_mtime_ns,
                os.stat(os.path.join(at, name)).st_size,
            )
            for at, _, names in os.walk(path)
            for name in names
            if name != "lock.mdb"
        }

    before = state()
    with Store(path, read_only=True) as store:
        holds(store, objects)
        problems_of(store)
        with pytest.raises(ReadOnly):
            store.ingest(made(100)[1])
    assert state() == before


# --- Damaged packs --------------------------------------------------------------------------------------


def pack_files(path: str, kind: int) -> list[str]:
    return [file.path for file in packs.list_packs(os.path.join(path, "packs")) if file.kind == kind]


def frames(store: Store, uid: str) -> list[bytes]:
    """All frames of an object, checked by their checksums."""
    if not store.locate(uid).instance.pixel_tag:
        return []
    count = 3 if uid == frames_of(14)[0] else 1
    return [store.frame_bytes(uid, index) for index in range(count)]


def other_objects_survive(path: str, objects: Objects, lost: set[str]) -> None:
    """Damage stays what it is: neither new work nor a rebuild takes anything else away."""
    with Store(path) as store:
        new = made(800)
        store.ingest(new[1])
    rebuild(path)
    with Store(path) as store:
        newer = made(801)
        store.ingest(newer[1])  # recovers, and cuts what it takes for a torn end
    rebuild(path)
    with Store(path) as store:
        for uid, data in {**objects, **dict((new, newer))}.items():
            if uid not in lost:
                assert store.read(uid) == data, uid


@pytest.mark.parametrize("kind", [packs.HEAD_PACK, packs.BULK_PACK, packs.FILE_PACK])
@pytest.mark.parametrize("how", ["cut", "emptied", "deleted", "swapped", "zeroed"])
def test_a_pack_that_is_gone_or_wrong_is_told_and_mended_by_sending_again(
    path: str, objects: Objects, kind: int, how: str
) -> None:
    with Store(path) as store:
        pixels = {uid: frames(store, uid) for uid in objects}
    first, *others = pack_files(path, kind)
    if how == "cut":
        os.truncate(first, os.path.getsize(first) * 2 // 3)
    elif how == "emptied":
        os.truncate(first, 0)
    elif how == "deleted":
        os.unlink(first)
    elif how == "zeroed":
        size = os.path.getsize(first)
        Path(first).write_bytes(bytes(size))
    else:
        other = others[0] if others else pack_files(path, packs.BULK_PACK)[0]
        os.rename(first, first + ".was")
        os.rename(other, first)
        os.rename(first + ".was", other)

    with Store(path) as store:
        bad = {uid for uid in objects if is_corrupt(store, uid, objects, pixels)}
        assert bad
        assert problems_of(store)
        assert store.ingest(made(700)[1]).result == Result.STORED
        for data in objects.values():
            store.ingest(data)
        holds(store, objects | dict([made(700)]))
    done = command("verify", "--store", path)
    assert "Traceback" not in done.stderr, done.stderr
    rebuild(path)
    with Store(path) as store:
        holds(store, objects | dict([made(700)]))


def spots(path: str, what: str, rng: random.Random) -> Iterator[tuple[str, int]]:
    """Give (file, offset) of bytes in one kind of structure, without end."""
    kind = {
        "head": packs.HEAD_PACK,
        "blob": packs.BULK_PACK,
        "foot": packs.BULK_PACK,
        "file": packs.FILE_PACK,
    }
    while True:
        name = rng.choice(pack_files(path, kind[what[:4]]))
        size = os.path.getsize(name)
        if what.endswith("pack header"):
            yield name, rng.randrange(56)
            continue
        fd = os.open(name, os.O_RDONLY)
        try:
            info = packs.read_info(fd, name)
            rows = list(packs.records(fd, info, packs.PACK_HEADER.size, size, whole=False))
        finally:
            os.close(fd)
        if what == "footer":
            if rows[-1].kind == packs.FOOTER:
                yield name, rng.randrange(rows[-1].offset - packs.RECORD_SIZE, size)
            continue
        rows = [row for row in rows if row.kind != packs.FOOTER and row.length]
        row = rng.choice(rows)
        if what.endswith("record"):
            yield name, row.offset - rng.randrange(1, packs.RECORD_SIZE + 1)
        else:
            yield name, row.offset + rng.randrange(row.length)


def flip(name: str, offset: int, mask: int) -> None:
    with open(name, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes((byte ^ mask,)))


STRUCTURES = [
    "head pack header",
    "head record",
    "head payload",
    "blob pack header",
    "blob record",
    "blob payload",
    "footer",
    "file pack header",
    "file record",
    "file payload",
]


@pytest.mark.parametrize("what", STRUCTURES)
def test_a_flipped_bit_in_a_pack_is_told_and_costs_one_object_which_heals(
    path: str, objects: Objects, tmp_path: Path, what: str
) -> None:
    rng = random.Random(what)
    with Store(path) as store:
        pixels = {uid: frames(store, uid) for uid in objects}
    for (name, offset), number in zip(spots(path, what, rng), range(12), strict=False):
        copy, again = str(tmp_path / f"copy-{number}"), str(tmp_path / f"again-{number}")
        shutil.copytree(path, copy)
        flip(os.path.join(copy, "packs", os.path.basename(name)), offset, 1 << rng.randrange(8))
        context = what, os.path.basename(name), offset
        shutil.copytree(copy, again)

        with Store(path) as store:
            hit = near(store, name, offset)
        with Store(copy) as store:
            bad = {uid for uid in objects if is_corrupt(store, uid, objects, pixels)}
            assert bad <= hit, context
            assert bad or not what.endswith("payload") or not hit, context
            assert problems_of(store), context
            for uid, data in objects.items():
                result = store.ingest(data).result
                assert result == Result.HEALED or uid not in hit, (context, uid)
            holds(store, objects)
        rebuild(copy)
        with Store(copy) as store:
            store.ingest(made(801)[1])
            holds(store, objects | dict([made(801)]))

        if what.endswith("pack header"):
            continue  # a rebuild can't read a pack without its header
        other_objects_survive(again, objects, hit)


def is_corrupt(store: Store, uid: str, objects: Objects, pixels: dict[str, list[bytes]]) -> bool:
    """Whether the store says so; what it gives without saying so must be right."""
    corrupt = False
    for way, right in ((store.read, objects[uid]), (lambda uid: frames(store, uid), pixels[uid])):
        try:
            assert way(uid) == right, uid
        except Corrupt:
            corrupt = True
    return corrupt


def near(store: Store, name: str, offset: int) -> set[str]:
    """UIDs of the objects of whose head or blobs a record holds the byte at `offset` of the pack `name`."""
    number = int(os.path.basename(name)[:8])
    found = set()
    for uid in (one.decode() for one in store.find_uids("instances", ())):
        instance = store.locate(uid).instance
        places = [
            (instance.container, instance.offset, instance.head_length + instance.table_length),
            *(store.find_blob(hole.digest)[:3] for hole in store.head(uid).holes),
        ]
        for container, begin, length in places:
            if container == number and begin - packs.RECORD_SIZE <= offset < begin + length:
                found.add(uid)
    return found


# --- A damaged index ------------------------------------------------------------------------------------


def index_file(path: str) -> str:
    (name,) = [name for name in os.listdir(path) if name.startswith("index-")]
    return os.path.join(path, name, "data.mdb")


def serve_readings() -> None:
    """For each folder on standard input, say what reading the store in it gives: for `Reader`."""
    objects, pixels = None, {}
    for line in sys.stdin:
        path, good = json.loads(line)
        if objects is None:
            with Store(good, read_only=True) as store:
                objects = {uid.decode(): store.read(uid.decode()) for uid in store.find_uids("instances", ())}
                pixels = {uid: frames(store, uid) for uid in objects}
        found: Counter[str] = Counter()
        try:
            with Store(path, read_only=True) as store:
                for uid in objects:
                    try:
                        found["corrupt" if is_corrupt(store, uid, objects, pixels) else "right"] += 1
                    except NotFound:
                        found["not found"] += 1
                for level in LEVELS:
                    with contextlib.suppress(HilumError):
                        for row in store.find(level):
                            row.to_json()
        except Corrupt as failure:
            found["corrupt" if "hilum rebuild" in str(failure) else f"no way out: {failure}"] += 1
        except HilumError as failure:
            found[type(failure).__name__] += 1
        except BaseException as failure:
            found["traceback"] = 1
            found[repr(failure)] = 1
        print(json.dumps(found), flush=True)


class Reader:
    """A process that reads damaged stores, since LMDB may abort the one in which it finds a page torn."""

    def __init__(self, good: str) -> None:
        self._good = good
        self._process: subprocess.Popen[str] | None = None

    def readings(self, path: str) -> dict[str, int]:
        if self._process is None:
            argv = [sys.executable, "-c", "from test_damage import *; serve_readings()"]
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env=environment(),
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([path, self._good]) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            status = self.close()
            return {f"died of signal {-status}": 1}
        found: dict[str, int] = json.loads(line)
        return found

    def close(self) -> int:
        if self._process is None:
            return 0
        self._process.communicate()
        status, self._process = self._process.returncode, None
        return status


@pytest.fixture
def reader(path: str, objects: Objects) -> Iterator[Reader]:
    reader = Reader(path)
    yield reader
    reader.close()


# LMDB keeps no checksums of its pages. A byte that rots in a record can be seen only where something else
# contradicts it, and a rotten key can hide an object; a page that is none makes LMDB abort the process or
# read behind its file. What is promised: no object's bytes or frames are ever wrong, nothing ends in a
# traceback, and a rebuild, which does not look at the old index, brings everything back.
@pytest.mark.parametrize("damage", ["bit", "sector", "page", "cut"])
def test_a_damaged_index_never_gives_wrong_bytes_and_a_rebuild_brings_all_back(
    path: str, objects: Objects, reader: Reader, tmp_path: Path, damage: str
) -> None:
    rng = random.Random(damage)
    size = os.path.getsize(index_file(path))
    seen: Counter[str] = Counter()
    for number in range(20 if damage == "cut" else 120):
        copy = str(tmp_path / f"copy-{number}")
        shutil.copytree(path, copy)
        at = rng.randrange(size)
        with open(index_file(copy), "r+b") as file:
            if damage == "cut":
                file.truncate(at)
            else:
                length = {"bit": 1, "sector": 512, "page": 4_096}[damage]
                at -= at % length
                file.seek(at)
                old = file.read(length)
                new = bytes((old[0] ^ 1 << rng.randrange(8),)) if damage == "bit" else rng.randbytes(length)
                file.seek(at)
                file.write(new)
        found = reader.readings(copy)
        context = damage, at, found
        assert not any("traceback" in name or "no way out" in name for name in found), context
        assert not any(name.startswith("died") for name in found) or damage != "bit", context
        seen.update(found.keys())
        if number % 6 == 0:
            assert rebuild(copy).problems == []
            with Store(copy) as store:
                holds(store, objects)
                assert problems_of(store) == []
        shutil.rmtree(copy)
    assert seen["right"], seen


@pytest.mark.parametrize("pages", [(0,), (1,), (0, 1)])
@pytest.mark.parametrize("how", ["zeros", "noise"])
def test_a_damaged_beginning_of_the_index_is_said_and_rebuild_is_named(
    path: str, objects: Objects, pages: tuple[int, ...], how: str
) -> None:
    with open(index_file(path), "r+b") as file:
        for page in pages:
            file.seek(page * 4_096)
            file.write(bytes(4_096) if how == "zeros" else noise(4_096, page))

    for words in (
        ["find", "instances"],
        ["import", path],
        ["delete", "instances", "PatientID=P1"],
        ["verify"],
    ):
        done = command(*words, "--store", path)
        assert done.returncode == 1
        assert "run: hilum rebuild" in done.stderr
        assert "Traceback" not in done.stderr
    assert command("rebuild", "--store", path).returncode == 0
    with Store(path) as store:
        holds(store, objects)


# --- What lies beside the packs --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [None, b"", b"\n", b"index-000009\n", b"../packs\n", b"\xff\xfe", b"index-000001/..\n", b"packs\n"],
)
def test_without_its_current_index_a_store_says_rebuild_and_is_never_empty(
    path: str, objects: Objects, content: bytes | None
) -> None:
    current = Path(path, "CURRENT")
    current.unlink()
    if content is not None:
        current.write_bytes(content)

    for options in ({}, {"create": True}, {"read_only": True}):
        with pytest.raises(StoreMissing, match="hilum rebuild"):
            Store(path, **options)
    done = command("import", path, "--store", path)
    assert done.returncode == 1
    assert "hilum rebuild" in done.stderr
    assert command("rebuild", "--store", path).returncode == 0
    with Store(path) as store:
        holds(store, objects)
        assert problems_of(store) == []


@pytest.mark.parametrize("gone", ["index folder", "data.mdb", "lock.mdb"])
def test_a_lost_index_is_said_and_rebuilt(path: str, objects: Objects, gone: str) -> None:
    data = index_file(path)
    if gone == "index folder":
        shutil.rmtree(os.path.dirname(data))
    else:
        os.unlink(os.path.join(os.path.dirname(data), gone))

    if gone == "lock.mdb":  # LMDB makes it anew
        with Store(path) as store:
            holds(store, objects)
        return
    for options in ({}, {"create": True}, {"read_only": True}):
        with pytest.raises((StoreMissing, Corrupt), match="hilum rebuild"):
            Store(path, **options)
    assert command("rebuild", "--store", path).returncode == 0
    with Store(path) as store:
        holds(store, objects)


@pytest.mark.parametrize("gone", [("STORE",), ("STORE", "CURRENT"), ("lock", "commit.lock"), ("spool",)])
def test_a_lost_file_of_the_folder_never_makes_a_store_empty(
    path: str, objects: Objects, gone: tuple[str, ...]
) -> None:
    for name in gone:
        if os.path.isdir(os.path.join(path, name)):
            shutil.rmtree(os.path.join(path, name))
        else:
            os.unlink(os.path.join(path, name))
    try:
        with Store(path, create=True) as store:
            holds(store, objects)
    except StoreMissing:
        assert "STORE" in gone
        assert rebuild(path).problems == []
    with Store(path) as store:
        holds(store, objects)
        store.ingest(made(100)[1])
        assert problems_of(store) == []


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"format": 99, "uuid": "x"}', b"\xff" * 40])
def test_a_garbled_store_file_is_said_in_words(path: str, objects: Objects, content: bytes) -> None:
    Path(path, "STORE").write_bytes(content)

    for words in (["find", "instances"], ["import", path]):
        done = command(*words, "--store", path)
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        assert path in done.stderr


def test_the_index_of_another_store_is_refused(path: str, objects: Objects, tmp_path: Path) -> None:
    other = str(tmp_path / "other")
    with Store(other, create=True) as store:
        store.ingest(made(1)[1])
    shutil.copy(index_file(other), index_file(path))

    with pytest.raises(Corrupt, match="hilum rebuild"):
        Store(path)
    rebuild(path)  # refused, and yet not held open
    with Store(path) as store:
        holds(store, objects)


# --- What a crash leaves lying about ---------------------------------------------------------------------


def test_what_a_power_cut_left_half_made_is_cleared_away(path: str, objects: Objects) -> None:
    spool, folder_of_packs = os.path.join(path, "spool"), os.path.join(path, "packs")
    Path(spool, "00000071.file").write_bytes(noise(3_000))
    Path(spool, "00000072.file").write_bytes(b"")
    Path(folder_of_packs, "00000073.bulk").write_bytes(b"")
    Path(folder_of_packs, "00000074.head").write_bytes(b"HILUM")
    Path(folder_of_packs, "00000075.head").write_bytes(bytes(64))

    with Store(path, read_only=True) as store:
        holds(store, objects)
    with Store(path) as store:
        store.ingest(made(100)[1])
        holds(store, objects | dict([made(100)]))
        assert problems_of(store) == []
    assert os.listdir(spool) == []
    assert not any(name[6:8] in ("73", "74", "75") for name in os.listdir(folder_of_packs))
    assert rebuild(path).problems == []


def test_a_spool_file_that_somebody_writes_is_left_alone(path: str, objects: Objects) -> None:
    with Store(path) as mine, Store(path) as others:
        sink = mine.writer.new_file_pack()
        sink.write(noise(3_000))
        others.ingest(made(100)[1])
        assert len(os.listdir(os.path.join(path, "spool"))) == 1
        sink.discard()
    assert os.listdir(os.path.join(path, "spool")) == []


# --- More than one process --------------------------------------------------------------------------------


def test_ten_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    path = str(tmp_path / "store")
    program = """
path, first = sys.argv[1], int(sys.argv[2])
with Store(path, create=True) as store:
    for number in range(first, first + 12):
        store.ingest(made(number)[1])       # one after another, all alike at the seams
        store.ingest(made(number % 7)[1])   # the same by all
        print(number, flush=True)
"""
    argv = [sys.executable, "-c", "from test_damage import *\n" + program, path]
    processes = [
        subprocess.Popen([*argv, str(100 + 8 * n)], stdout=subprocess.PIPE, text=True, env=environment())
        for n in range(10)
    ]
    told = {int(line) for process in processes for line in process.communicate()[0].split()}

    assert [process.returncode for process in processes] == [0] * 10
    assert told == set(range(100, 100 + 8 * 9 + 12))
    with Store(path) as store:
        holds(store, dict(made(number) for number in told | {number % 7 for number in told}))
        assert problems_of(store) == []
        before = answers(store)
    assert rebuild(path).problems == []
    with Store(path) as store:
        assert answers(store) == before


def test_a_second_process_reads_and_writes_while_a_store_is_open(path: str, objects: Objects) -> None:
    with Store(path) as store:
        store.ingest(made(100)[1])
        done = script("print(Store(sys.argv[1]).ingest(made(101)[1]).result.name)", path)
        assert done.stdout == "STORED\n", done.stderr
        assert store.read(made(101)[0]) == made(101)[1]
        store.ingest(made(102)[1])
        found = command("find", "instances", "--json", "--store", path)
        assert len(found.stdout.splitlines()) == len(objects) + 3


def test_a_rebuild_is_refused_in_words_while_another_process_has_the_store_open(
    path: str, objects: Objects
) -> None:
    with Store(path, read_only=True) as store:
        done = command("rebuild", "--store", path)
        assert done.returncode == 1
        assert "is in use by another process" in done.stderr
        with pytest.raises(StoreLocked):
            rebuild(path)
        holds(store, objects)


def test_a_store_does_not_open_while_it_is_rebuilt(
    path: str, objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "LOCK_WAIT_SECONDS", 0.2)
    alone = folder.Folder(path, alone=True)
    try:
        begin = time.monotonic()
        with pytest.raises(StoreLocked, match="being rebuilt"):
            Store(path)
        assert time.monotonic() - begin >= 0.2
    finally:
        alone.close()
    with Store(path) as store:
        holds(store, objects)


# --- Decisions and healing, also after a rebuild -----------------------------------------------------------


def test_what_was_decided_stays_so_after_a_rebuild_with_two_writers(path: str) -> None:
    with Store(path, create=True) as one, Store(path) as other:
        for number in range(8):
            (one, other)[number % 2].ingest(made(number)[1])
        with pytest.raises(Conflict):
            other.ingest(made(0, content=1)[1])
        with pytest.raises(Conflict):
            one.ingest(made(1, content=1)[1])
        for content in (1, 2):
            (one, other)[content % 2].ingest(made(2, content=content)[1], policy=Policy.REPLACE)
        assert other.delete("instances", {"SOPInstanceUID": made(4)[0]}) == 1
        assert one.delete("instances", {"SOPInstanceUID": made(5)[0]}) == 1
        assert one.ingest(made(5, content=3)[1]).result == Result.STORED
        assert other.delete("instances", {"SOPInstanceUID": made(6)[0]}) == 1
        assert other.ingest(made(6)[1]).result == Result.STORED
        assert one.delete("instances", {"SOPInstanceUID": made(6)[0]}) == 1
        wanted = dict(made(number) for number in (0, 1, 3, 7))
        wanted |= dict((made(2, content=2), made(5, content=3)))
        holds(one, wanted)
        before = answers(other)
        counts = {name: one.stats()[name] for name in ("conflicts", "revisions", "instances")}
        assert counts == {"conflicts": 2, "revisions": 2, "instances": 6}

    for _ in range(2):
        assert rebuild(path).problems == []
        with Store(path) as store:
            holds(store, wanted)
            assert answers(store) == before
            assert {name: store.stats()[name] for name in counts} == counts
            assert problems_of(store) == []


@pytest.mark.parametrize("rolled", [True, False], ids=["sealed", "open"])
@pytest.mark.parametrize("healer", ["first", "second"])
@pytest.mark.parametrize("what", ["blob", "head"])
def test_a_marked_object_heals_when_it_is_sent_again_and_stays_whole_after_a_rebuild(
    path: str, monkeypatch: pytest.MonkeyPatch, what: str, healer: str, rolled: bool
) -> None:
    # The healing writer's packs have the smaller or the larger numbers: a rebuild must not go by them.
    monkeypatch.setattr(writer, "PACK_MAX", 1 << 30)
    uid, data = made(50)
    with Store(path, create=True) as first:
        first.ingest(made(1)[1])
        with Store(path) as second:
            second.ingest(data)
            instance = second.locate(uid).instance
            if what == "head":
                container, offset, kind = instance.container, instance.offset + 100, packs.HEAD_PACK
            else:
                place = second.find_blob(instance.pixel_digest)
                container, offset, kind = place.container, place.offset + 100, packs.BULK_PACK
            if rolled:
                monkeypatch.setattr(writer, "PACK_MAX", 1)
                second.ingest(made(51)[1])
                monkeypatch.setattr(writer, "PACK_MAX", 1 << 30)
            flip(os.path.join(path, "packs", packs.pack_name(container, kind)), offset, 4)
            with pytest.raises(Corrupt):
                first.read(uid)
            assert first.ingest(data).result == Result.DUPLICATE  # nobody has looked yet
            problems = problems_of(first)
            assert any("send" in problem.mend for problem in problems)
            healing = first if healer == "first" else second
            assert healing.ingest(data).result == Result.HEALED
            assert first.read(uid) == second.read(uid) == data
            assert healing.ingest(data).result == Result.DUPLICATE
    for _ in range(2):
        rebuild(path)
        with Store(path) as store:
            assert store.read(uid) == data
            assert store.read(made(1)[0]) == made(1)[1]
            assert len(problems_of(store)) <= 1  # the rotten bytes lie there still, and are nobody's
            assert store.ingest(data).result == Result.DUPLICATE


@pytest.mark.parametrize("kind", [packs.HEAD_PACK, packs.BULK_PACK])
def test_a_pack_whose_header_is_damaged_is_kept_for_whoever_can_mend_it(
    path: str, objects: Objects, kind: int
) -> None:
    name = pack_files(path, kind)[-1]
    before = Path(name).read_bytes()
    flip(name, 30, 1)
    assert rebuild(path).problems
    with Store(path) as store:
        store.ingest(made(100)[1])

    flip(name, 30, 1)
    assert Path(name).read_bytes() == before
    rebuild(path)
    with Store(path) as store:
        holds(store, objects | dict([made(100)]))


@pytest.mark.parametrize("kind", [packs.HEAD_PACK, packs.BULK_PACK])
def test_a_record_that_lost_only_its_padding_does_not_put_the_next_one_out_of_step(
    path: str, kind: int
) -> None:
    uid = made(1)[0]
    with Store(path, create=True) as store:
        for number in range(8):
            text = "x" * 2 * number
            data = make_object(uid, "2.25.5", "2.25.6", series_description=text, pixels=noise(1_502, number))
            store.ingest(data, policy=Policy.REPLACE)
            instance = store.locate(uid).instance
            if packs.padding(instance.head_length):
                break
    (name,) = pack_files(path, kind)
    os.truncate(name, os.path.getsize(name) - 1)
    rebuild(path)

    with Store(path) as store:
        store.ingest(made(2)[1])
        instance = store.locate(made(2)[0]).instance
        assert (
            instance.offset % packs.ALIGN == store.find_blob(instance.pixel_digest).offset % packs.ALIGN == 0
        )
        problems = problems_of(store)
        assert all(problem.where in (uid, "2.25.4001") for problem in problems), problems


def test_an_index_that_points_at_another_instance_is_found_out(path: str, objects: Objects) -> None:
    first, second = made(1)[0].encode(), made(2)[0].encode()
    with Store(path) as store:
        one, other = store.locate(first.decode()), store.locate(second.decode())
        with store.index.write() as change:
            moved = one.instance._replace(
                container=other.instance.container,
                offset=other.instance.offset,
                head_length=other.instance.head_length,
            )
            change.put(b"instances", one.key, record.pack_instance(moved))
        with pytest.raises(Corrupt):
            store.read(first.decode())
        with store.index.write() as change:
            change.put(b"sop_uids", first, other.key)
        with pytest.raises(Corrupt, match="hilum rebuild"):
            store.read(first.decode())
        assert problems_of(store)
    rebuild(path)
    with Store(path) as store:
        holds(store, objects)
