"""Small made data for the benchmarks when they run as ordinary tests."""

from pathlib import Path

import corpus
import pytest


@pytest.fixture(scope="session")
def headers() -> list[bytes]:
    """100 files in memory, with CT headers of 260 elements and 6,300 bytes."""
    return corpus.header_files(100)


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 files of 39 KB, in two studies."""
    root = tmp_path_factory.mktemp("tree") / "source"
    corpus.write_tree(str(root), corpus.FEW_FILES)
    return root
