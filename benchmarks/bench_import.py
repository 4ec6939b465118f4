"""How long does the import of a folder take, as a whole process, and in how much memory?

    pytest benchmarks/bench_import.py --benchmark-enable

One round is 300 files of 39 KB into a store that is not there yet, durable; `cp -r` of the same files, with
`sync -f` behind it, is the yardstick. Of so few files half the time is Python's start: see RESULTS.md.
"""

import json
import shutil
import sys

import corpus
import measure
import pytest
import yardsticks

import hilum

MEMORY_MAX = 300_000_000


@pytest.fixture
def destination(tmp_path):
    path = tmp_path / "destination"

    def clear():
        shutil.rmtree(path, ignore_errors=True)

    return str(path), clear


def test_import_of_a_folder(benchmark, tree, destination):
    path, clear = destination
    command = [sys.executable, "-m", "hilum", "import", str(tree), "--store", path, "--json"]
    run = benchmark.pedantic(measure.run_command, args=(command,), setup=clear, rounds=3)
    assert json.loads(run.output.splitlines()[-1])["stored"] == corpus.FEW_FILES
    with hilum.open(path, read_only=True) as store:
        for n in range(0, corpus.FEW_FILES, 50):
            with open(corpus.tree_path(str(tree), n), "rb") as file:
                assert store.read(corpus.tree_uid(n)) == file.read()
    assert 0 < run.peak.total < MEMORY_MAX
    benchmark.extra_info.update(files=corpus.FEW_FILES, memory=run.peak.total)


def test_copy_of_a_folder(benchmark, tree, destination):
    path, clear = destination
    command = yardsticks.copy_command(str(tree), path, durable=True)
    benchmark.pedantic(measure.run_command, args=(command,), setup=clear, rounds=3)
    assert yardsticks.is_copy(str(tree), path)


def test_import_of_one_large_file_stays_in_bounded_memory(tmp_path):
    source, store = str(tmp_path / "large.dcm"), str(tmp_path / "store")
    corpus.write_native(source, 400_000_000 // corpus.FRAME_BYTES)
    command = [sys.executable, "-m", "hilum", "import", source, "--store", store, "--json"]
    run = measure.run_command(command)
    assert json.loads(run.output.splitlines()[-1])["stored"] == 1
    assert 0 < run.peak.total < MEMORY_MAX
