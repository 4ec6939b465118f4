"""A few seconds of the fuzz in a sanitizer build, and the proof that it would find something."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fuzz import sanitized

SECONDS = 8
SEED = 1


@pytest.fixture(scope="module")
def builds() -> dict[str, Path]:
    """The sanitizer build and the one with the planted over-read, made at the same time."""
    try:
        sanitized.find_libasan()
    except sanitized.NoSanitizer as missing:
        if os.environ.get("CI"):
            pytest.fail(f"CI must be able to fuzz: {missing}")
        pytest.skip(f"no sanitizer build: {missing}")
    with ThreadPoolExecutor(2) as pool:
        plain = pool.submit(sanitized.build)
        planted = pool.submit(sanitized.build, planted=True)
        return {"plain": plain.result(), "planted": planted.result()}


def test_no_mutated_file_makes_the_parser_read_outside_of_a_buffer_or_contradict_itself(builds):
    done = sanitized.fuzz(builds["plain"], SECONDS, SEED, capture=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split(" inputs", 1)[0]) > 50, done.stdout


def test_the_fuzz_finds_a_planted_over_read_of_one_byte(builds):
    done = sanitized.fuzz(builds["planted"], 10 * SECONDS, SEED, capture=True)
    assert done.returncode == sanitized.REPORT, (done.stdout, done.stderr)
    assert "AddressSanitizer: heap-buffer-overflow" in done.stderr
    assert "READ of size 1" in done.stderr
    assert "read_elements" in done.stderr
    assert (builds["planted"].parent / "last-input").exists()
