"""What the peer tests share: other programs, and a store with the sample files in it.

A program that is not here is a skip, and a failure where CI is set: there it must have been installed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

import hilum
from hilum.engine.writer import Result
from hilum.errors import RequestFault


class Sample(NamedTuple):
    """A sample file that is stored."""

    path: Path
    uid: str  # SOP Instance UID


class Stored(NamedTuple):
    """A store, and the files that are in it."""

    folder: Path
    samples: list[Sample]  # by SOP Instance UID, in the order of its bytes


@pytest.fixture(scope="session")
def program() -> Callable[[str], str]:
    """Path of a program by its name."""

    def find(name: str) -> str:
        path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/bin")
        if path is None:
            words = f"{name} is not here; `make peers` as root installs it"
            if os.environ.get("CI"):
                pytest.fail(words)
            pytest.skip(words)
        return path

    return find


@pytest.fixture(scope="session")
def stored(sample_files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Stored:
    """The sample files that can be stored, the first of each SOP Instance UID."""
    folder = tmp_path_factory.mktemp("peers") / "store"
    samples = []
    with hilum.open(folder, create=True) as store:
        batch = []
        for path in sample_files.values():
            try:
                batch.append((path, store.prepare(path)))
            except RequestFault:
                continue
        results = store.ingest_many([prepared for _, prepared in batch])
        for (path, prepared), result in zip(batch, results, strict=True):
            if result == Result.STORED:
                samples.append(Sample(path, prepared.uid.decode("ascii")))
    samples.sort(key=lambda sample: sample.uid.encode("ascii"))
    return Stored(folder, samples)
