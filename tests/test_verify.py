"""hilum verify: a whole store has no problem, and every kind of damage is told with what would mend it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command import run
from makers import make_object, noise

import hilum
from hilum.engine import prepare
from hilum.engine.writer import Policy, Result

FILES = {
    f"2.25.{n}": make_object(f"2.25.{n}", f"2.25.8{n // 4}", f"2.25.9{n // 2}", pixels=noise(4000, n))
    for n in range(1, 9)
}
LARGE = make_object("2.25.50", "2.25.85", "2.25.95", pixels=noise(300_000, "large"))


@pytest.fixture
def path(tmp_path, monkeypatch) -> Path:
    """A store with replaced, deleted and refused objects in it, and a value in a pack of its own."""
    monkeypatch.setattr(prepare, "IN_MEMORY_MAX", 100_000)
    (tmp_path / "large.dcm").write_bytes(LARGE)
    with hilum.open(tmp_path / "store", create=True) as store:
        store.ingest_many([store.prepare(file) for file in FILES.values()])
        store.ingest(tmp_path / "large.dcm")
        store.ingest(make_object("2.25.60", "2.25.86", "2.25.96", name="Old", pixels=noise(2000, "old")))
        store.ingest(make_object("2.25.60", "2.25.86", "2.25.96", name="New"), policy=Policy.REPLACE)
        store.ingest(make_object("2.25.61", "2.25.86", "2.25.96", name="Gone"))
        store.delete("instances", {"SOPInstanceUID": "2.25.61"})
        with pytest.raises(hilum.errors.Conflict):
            store.ingest(make_object("2.25.1", "2.25.86", "2.25.96"))
    return tmp_path / "store"


def flip(file: Path, needle: bytes) -> None:
    data = bytearray(file.read_bytes())
    data[data.index(needle)] ^= 0x10
    file.write_bytes(data)


def pack(path: Path, suffix: str) -> Path:
    (found,) = (path / "packs").glob(f"*.{suffix}")
    return found


@pytest.mark.parametrize("more", [[], ["--quick"], ["--no-mark"]], ids=["whole", "quick", "no mark"])
def test_a_store_that_is_whole_has_no_problem_and_ends_with_0(path, more):
    ran = run("verify", "--store", path, *more)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.endswith(": no problems\n")
    (summary,) = run("verify", "--store", path, "--json", *more).lines
    assert (summary["instances"], summary["problems"]) == (10, 0)
    assert summary["blobs"] >= 10


def test_quick_reads_no_bulk_value(path):
    (whole,) = run("verify", "--store", path, "--json").lines
    (quick,) = run("verify", "--store", path, "--json", "--quick").lines
    assert quick["bytes"] < 60_000 < whole["bytes"]


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a blob": lambda path: flip(pack(path, "bulk"), noise(4000, 3)[500:520]),
    "a value in a pack of its own": lambda path: flip(
        pack(path, "file"), noise(300_000, "large")[99_000:99_020]
    ),
    "a head": lambda path: flip(pack(path, "head"), b"2.25.80"),
    "a bulk pack is gone": lambda path: pack(path, "bulk").unlink(),
    "a file pack is gone": lambda path: pack(path, "file").unlink(),
    "a head pack is gone": lambda path: pack(path, "head").unlink(),
    "a bulk pack is cut": lambda path: os.truncate(pack(path, "bulk"), 20_000),
    "a file pack is cut": lambda path: os.truncate(pack(path, "file"), 20_000),
    "a head pack is cut": lambda path: os.truncate(pack(path, "head"), 3_000),
    "a bulk pack is another's": lambda path: flip(pack(path, "bulk"), b"HILUMPK1"),
    "a head pack's header": lambda path: flip(pack(path, "head"), b"HILUMPK1"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damage_is_told_with_what_would_mend_it_and_ends_with_1(path, damage):
    damage(path)

    ran = run("verify", "--store", path, "--json", "--no-mark")

    assert ran.code == 1
    *told, summary = ran.lines
    assert summary["problems"] == len(told) > 0
    assert all(set(problem) == {"what", "where", "mend"} and all(problem.values()) for problem in told)
    text = run("verify", "--store", path, "--no-mark")
    assert text.code == 1
    assert len([line for line in text.err.splitlines() if "; to mend it, " in line]) == len(told)


def test_damage_of_a_blob_names_the_instance_that_it_belongs_to(path):
    DAMAGE["a blob"](path)

    ran = run("verify", "--store", path, "--json", "--no-mark")

    assert "2.25.3" in {problem["where"] for problem in ran.lines[:-1]}
    assert not {f"2.25.{n}" for n in (1, 2, 4, 5, 6, 7, 8, 50, 60)} & {row.get("where") for row in ran.lines}


def test_quick_finds_a_damaged_head_and_leaves_blobs_alone(path):
    DAMAGE["a blob"](path)
    assert run("verify", "--store", path, "--quick").code == 0
    DAMAGE["a head"](path)
    assert run("verify", "--store", path, "--quick").code == 1


@pytest.mark.parametrize("kind", ["a blob", "a value in a pack of its own", "a head"])
def test_what_is_marked_is_healed_by_the_same_object_and_verify_is_content_with_it(path, tmp_path, kind):
    DAMAGE[kind](path)
    assert run("verify", "--store", path).code == 1

    healed = []
    with hilum.open(path) as store:
        for uid, file in [*FILES.items(), ("2.25.50", tmp_path / "large.dcm")]:
            if store.ingest(file).result == Result.HEALED:
                healed.append(uid)
        for uid, file in FILES.items():
            assert store.read(uid) == file
        assert store.read("2.25.50") == LARGE
    assert len(healed) == 1
    with hilum.open(path) as store:
        assert {store.ingest(file).result for file in FILES.values()} == {Result.DUPLICATE}
    left = [line for line in run("verify", "--store", path, "--json").lines[:-1]]
    uids = {*FILES, "2.25.50", "2.25.60"}
    assert not [problem for problem in left if problem["where"] in uids], left
    assert run("rebuild", "--store", path).code in (0, 1)
    with hilum.open(path) as store:
        assert {uid: store.read(uid) for uid in FILES} == FILES
        assert store.read("2.25.50") == LARGE


def test_with_no_mark_nothing_is_written(path):
    DAMAGE["a blob"](path)
    before = {
        file: file.read_bytes() for file in path.rglob("*") if file.is_file() and file.name != "lock.mdb"
    }
    run("verify", "--store", path, "--no-mark")
    after = {
        file: file.read_bytes() for file in path.rglob("*") if file.is_file() and file.name != "lock.mdb"
    }
    assert after == before


def change_value(table: bytes, key: bytes | None = None) -> Callable[[Any], None]:
    """Flip a bit of the last byte of a row's value."""

    def change(rows: Any) -> None:
        found, value = next((k, v) for k, v in rows.scan(table) if key is None or k == key)
        rows.put(table, found, value[:-2] + bytes((value[-2] ^ 1,)) + value[-1:])

    return change


def lose_row(table: bytes) -> Callable[[Any], None]:
    return lambda rows: rows.delete(table, next(iter(rows.scan(table)))[0])


@pytest.mark.parametrize(
    "change",
    [
        change_value(b"instances"),
        change_value(b"series"),
        change_value(b"studies"),
        change_value(b"patients"),
        lose_row(b"instances"),
        lose_row(b"sop_uids"),
        lose_row(b"places"),
        lose_row(b"keys"),
        lose_row(b"columns"),
        lose_row(b"patients"),
        lambda rows: rows.put(b"sop_uids", b"2.25.999", bytes(12)),
        lambda rows: rows.put(b"keys", b"\x20nobody\0\0\0\0\7", b"\0\0\0\7"),
    ],
    ids=[
        "an instance's attributes", "a series' attributes", "a study's attributes", "a patient's attributes",
        "an instance lost", "a UID lost", "a place lost", "a key lost", "a column lost", "a patient lost",
        "a UID too many", "a key too many",
    ],
)  # fmt: skip
def test_an_index_that_says_other_than_the_packs_is_told_and_a_rebuild_mends_it(path, change):
    with hilum.open(path) as store, store.index.write() as rows:
        change(rows)

    ran = run("verify", "--store", path, "--json", "--no-mark")

    assert ran.code == 1
    assert ran.lines[:-1]
    assert "Traceback" not in ran.err
    assert run("rebuild", "--store", path).code == 0
    assert run("verify", "--store", path).code == 0


def test_the_index_is_held_against_the_heads_both_ways(path):
    """Another store's index, of the same UUID, but older or newer than the packs."""
    older, newer = path.parent / "older", path.parent / "newer"
    shutil.copytree(path, older)
    with hilum.open(path) as store:
        store.ingest(make_object("2.25.70", "2.25.87", "2.25.97"))
        store.delete("instances", {"SOPInstanceUID": "2.25.2"})
    shutil.copytree(path, newer)
    shutil.copytree(newer / "index-000001", older / "index-000001", dirs_exist_ok=True)

    ran = run("verify", "--store", older, "--json", "--no-mark")

    assert ran.code == 1
    assert "2.25.70" in {problem["where"] for problem in ran.lines[:-1]}


def test_a_head_that_the_index_has_lost_is_told_by_its_place(path):
    with hilum.open(path) as store:
        key = store.locate("2.25.5").key
        with store.index.write() as rows:
            rows.delete(b"instances", key)
            rows.delete(b"sop_uids", b"2.25.5")

    ran = run("verify", "--store", path, "--json", "--no-mark")

    assert ran.code == 1
    (told,) = [row for row in ran.lines[:-1] if "does not know a stored head" in row["what"]]
    assert "pack" in told["where"]
