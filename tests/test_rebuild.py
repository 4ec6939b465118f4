"""hilum rebuild: the index from the packs alone, with the answers that it gave before."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command import run
from makers import make_object, noise

import hilum
from hilum.engine import prepare, writer
from hilum.engine.importer import Options, import_paths
from hilum.engine.rebuild import rebuild
from hilum.engine.verify import verify
from hilum.engine.writer import Policy
from hilum.errors import StoreLocked

LEVELS = ("patients", "studies", "series", "instances")


def answers(path: Path) -> dict[str, Any]:
    """Everything that a store says."""
    with hilum.open(path, read_only=True) as store:
        found: dict[str, Any] = {
            level: [store.row_json(row) for row in store.find(level)] for level in LEVELS
        }
        found["bytes"] = {row.uid: store.read(row.uid) for row in store.find("instances")}
        found["counts"] = {n: v for n, v in store.stats().items() if n != "index_bytes"}
        found["frames"] = {}
        for uid in found["bytes"]:
            with contextlib.suppress(hilum.errors.NotFound):
                reader = store.frames(uid)
                found["frames"][uid] = [reader.read(n) for n in range(reader.frame_count)]
    return found


def problems(path: Path) -> list[Any]:
    found: list[Any] = []
    with hilum.open(path) as store:
        verify(store, on_problem=found.append, mark=False)
    return found


def make_history(path: Path) -> None:
    """A store with replaced, deleted, refused and repeated objects, by two writers, in several packs."""
    frames = [b"\xff\xd8" + noise(1000, f"f{n}") + b"\xff\xd9" for n in range(3)]
    with hilum.open(path, create=True) as one, hilum.open(path) as two:
        for n in range(40):
            store = (one, two)[n % 2]
            uid, study, series = f"2.25.{n}", f"2.25.90{n // 10}", f"2.25.80{n // 5}"
            store.ingest(make_object(uid, study, series, patient_id=f"P{n // 20}", pixels=noise(3000, n)))
        two.ingest(
            make_object("2.25.60", "2.25.91", "2.25.81", fragments=frames, frames=3, rows=8, columns=8)
        )
        one.ingest(make_object("2.25.3", "2.25.900", "2.25.800", name="New"), policy=Policy.REPLACE)
        two.ingest(make_object("2.25.3", "2.25.909", "2.25.809", name="Newer"), policy=Policy.REPLACE)
        one.delete("series", {"SeriesInstanceUID": "2.25.801"})
        two.ingest(make_object("2.25.5", "2.25.900", "2.25.801", name="Again"))
        for store in (one, two):
            with pytest.raises(hilum.errors.Conflict):
                store.ingest(make_object("2.25.20", "2.25.1", "2.25.2"))
        one.delete("studies", {"StudyInstanceUID": "2.25.903"})


@pytest.mark.parametrize("pack_max", [1 << 30, 10_000], ids=["one pack each", "many sealed packs"])
def test_after_a_rebuild_every_answer_is_what_it_was(tmp_path, monkeypatch, pack_max):
    monkeypatch.setattr(writer, "PACK_MAX", pack_max)
    path = tmp_path / "store"
    make_history(path)
    before = answers(path)
    assert before["counts"]["revisions"] == 2
    assert before["counts"]["conflicts"] == 1
    packs = {file.name: file.read_bytes() for file in (path / "packs").iterdir()}

    ran = run("rebuild", "--store", path, "--json")

    assert (ran.code, ran.err) == (0, "")
    (summary,) = ran.lines
    assert summary["instances"] == before["counts"]["instances"]
    assert summary["problems"] == 0
    assert answers(path) == before
    assert problems(path) == []
    assert {file.name: file.read_bytes() for file in (path / "packs").iterdir()} == packs


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_the_size_of_a_rebuilds_batches_changes_nothing(tmp_path, monkeypatch, batch):
    make_history(tmp_path / "store")
    before = answers(tmp_path / "store")
    monkeypatch.setattr("hilum.engine.rebuild.BATCH_HEADS", batch)
    monkeypatch.setattr("hilum.engine.rebuild.BATCH_BLOBS", batch)

    assert rebuild(os.fspath(tmp_path / "store")).problems == []
    assert answers(tmp_path / "store") == before


@pytest.mark.parametrize(
    "gone", [["index-000001"], ["CURRENT"], ["index-000001", "CURRENT"], ["STORE"], ["commit.lock"]]
)
def test_packs_are_enough(tmp_path, gone):
    path = tmp_path / "store"
    make_history(path)
    before = answers(path)
    for name in gone:
        where = path / name
        shutil.rmtree(where) if where.is_dir() else where.unlink()

    assert run("rebuild", "--store", path).code == 0

    assert answers(path) == before
    assert problems(path) == []
    assert len(list(path.glob("index-*"))) == 1


def test_a_rebuilt_store_takes_new_objects_and_can_be_rebuilt_again(tmp_path):
    path = tmp_path / "store"
    make_history(path)
    for n in range(3):
        rebuild(os.fspath(path))
        with hilum.open(path) as store:
            store.ingest(make_object(f"2.25.7{n}", "2.25.99", "2.25.89", pixels=noise(2000, f"r{n}")))
            store.ingest(make_object("2.25.1", "2.25.99", f"2.25.8{n}"), policy=Policy.REPLACE)
            store.delete("instances", {"SOPInstanceUID": f"2.25.1{n}"})
        before = answers(path)
        rebuild(os.fspath(path))
        assert answers(path) == before
        assert problems(path) == []


def test_two_importing_processes_and_a_large_value_are_rebuilt(tmp_path, monkeypatch):
    path, source = tmp_path / "store", tmp_path / "in"
    source.mkdir()
    for n in range(200):
        (source / f"{n:03}").write_bytes(
            make_object(f"2.25.{n}", "2.25.1000", f"2.25.100{n % 7}", pixels=noise(1500, n))
        )
    (source / "large").write_bytes(make_object("2.25.900", "2.25.1001", "2.25.2000", pixels=noise(33 << 20)))
    monkeypatch.setattr("hilum.engine.importer.BATCH_FILES", 20)
    with hilum.open(path, create=True) as store:
        assert import_paths(store, [os.fspath(source)], Options(jobs=2)).stored == 201
    assert list((path / "packs").glob("*.file"))
    before = answers(path)

    assert rebuild(os.fspath(path)).instances == 201
    assert answers(path) == before
    assert problems(path) == []


@pytest.mark.parametrize("how", ["here", "elsewhere"])
def test_a_store_that_is_open_is_not_rebuilt_under_its_user(tmp_path, how):
    path = tmp_path / "store"
    make_history(path)
    if how == "here":
        with hilum.open(path) as store:
            with pytest.raises(StoreLocked):
                rebuild(os.fspath(path))
            assert run("rebuild", "--store", path).code == 1
            assert store.find("studies")
    else:
        program = (
            "import sys, hilum; s = hilum.open(sys.argv[1], read_only=True); print(1, flush=True); input()"
        )
        with subprocess.Popen(
            [sys.executable, "-c", program, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == b"1\n"
            ran = run("rebuild", "--store", path)
            assert (ran.code, ran.out) == (1, "")
            assert "in use by another process" in ran.err
            other.communicate(b"\n", timeout=30)
    assert run("rebuild", "--store", path).code == 0


def test_a_rebuild_that_is_interrupted_leaves_the_old_index_and_the_next_one_cleans_up(tmp_path, monkeypatch):
    path = tmp_path / "store"
    make_history(path)
    before = answers(path)

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rebuild(os.fspath(path), on_progress=interrupt)
    assert answers(path) == before
    rebuild(os.fspath(path))
    assert answers(path) == before
    assert len(list(path.glob("index-*"))) == 1


def test_a_rebuild_reads_no_pixels_of_sealed_packs(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "PACK_MAX", 1 << 20)
    path = tmp_path / "store"
    with hilum.open(path, create=True) as store:
        for n in range(40):
            store.ingest(make_object(f"2.25.{n}", "2.25.100", "2.25.200", pixels=noise(250_000, n)))
    # The last bulk pack is not sealed: what is in it must be proved.
    last = max((path / "packs").glob("*.bulk")).stat().st_size
    before = int(Path("/proc/self/io").read_text().split()[1])
    rebuild(os.fspath(path))
    read = int(Path("/proc/self/io").read_text().split()[1]) - before
    assert read - 2 * last < 2_000_000
    assert problems(path) == []


def test_real_files_answer_alike_after_a_rebuild(sample_files, tmp_path):
    folder, path = tmp_path / "in", tmp_path / "store"
    folder.mkdir()
    for number, file in enumerate(sample_files.values()):
        if file.is_file():
            (folder / f"{number:06}").symlink_to(file)
    with hilum.open(path, create=True) as store:
        import_paths(store, [os.fspath(folder)], Options())
        before: dict[str, Any] = {level: [store.row_json(r) for r in store.find(level)] for level in LEVELS}
        before["counts"] = {n: v for n, v in store.stats().items() if n != "index_bytes"}
        instances = {r.uid: store.locate(r.uid).instance for r in store.find("instances")}

    ran = run("rebuild", "--store", path)

    assert (ran.code, ran.err) == (0, "")
    with hilum.open(path) as store:
        after: dict[str, Any] = {level: [store.row_json(r) for r in store.find(level)] for level in LEVELS}
        after["counts"] = {n: v for n, v in store.stats().items() if n != "index_bytes"}
        assert after == before
        assert {r.uid: store.locate(r.uid).instance for r in store.find("instances")} == instances
    assert prepare.IN_MEMORY_MAX == 32 << 20
