"""How long does a header take from a file? One after the other, warm, one core.

    pytest benchmarks/bench_header_file.py --benchmark-enable

One round is 300 files of 39 KB. `least` is the limit: open, pread of 8 KB, close.
"""

import os

import corpus
import pytest
import yardsticks

from hilum import _fastparse


def _ours(paths: list[str]) -> list[str]:
    found = []
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        _, scan = _fastparse.scan_fd(fd, os.fstat(fd).st_size)
        os.close(fd)
        found.append(scan.uids[2].decode())
    return found


def _pydicom(paths: list[str]) -> list[str]:
    return [yardsticks.pydicom_path(path)[2] for path in paths]


@pytest.fixture(scope="module")
def paths(tree):
    return [corpus.tree_path(str(tree), n) for n in range(corpus.FEW_FILES)]


@pytest.mark.parametrize("read", [_ours, _pydicom], ids=["ours", "pydicom"])
def test_a_header_from_a_file(benchmark, paths, read):
    found = benchmark.pedantic(read, args=(paths,), rounds=5, warmup_rounds=1)
    assert found == [corpus.tree_uid(n) for n in range(corpus.FEW_FILES)]


def test_the_least_that_a_header_from_a_file_can_cost(benchmark, paths):
    work = benchmark.pedantic(lambda: list(map(yardsticks.open_and_read, paths)), rounds=5, warmup_rounds=1)
    assert work == [yardsticks.WINDOW] * corpus.FEW_FILES
