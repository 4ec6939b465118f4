"""How long does one frame of a long object take, and does it matter which one?

    pytest benchmarks/bench_frame.py --benchmark-enable

4,000 frames: native, sparse but for those that are read; and encapsulated, one fragment a frame behind an
empty offset table. One round is one frame. The yardstick is a pread of as many bytes from the file itself.
"""

import os

import corpus
import pytest

import hilum

FRAMES = 4_000
INDEXES = [0, FRAMES // 2, FRAMES - 1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("frames")
    corpus.write_native(str(root / "native.dcm"), FRAMES, INDEXES)
    corpus.write_encapsulated(str(root / "encapsulated.dcm"), FRAMES)
    return root


@pytest.fixture(scope="module")
def store(folder):
    with hilum.open(folder / "store", create=True) as opened:
        opened.ingest(folder / "native.dcm")
        opened.ingest(folder / "encapsulated.dcm")
        yield opened


@pytest.mark.parametrize("index", INDEXES)
def test_a_native_frame(benchmark, store, index):
    frame = benchmark(store.frame_bytes, corpus.multiframe_uid(), index)
    assert frame == corpus.frame_noise(index, corpus.FRAME_BYTES)


@pytest.mark.parametrize("index", INDEXES)
def test_an_encapsulated_frame(benchmark, store, index):
    frame = benchmark(store.frame_bytes, corpus.multiframe_uid(1), index)
    assert frame == corpus.encapsulated_frame(index)


def test_one_pread_of_a_native_frame(benchmark, folder):
    path = folder / "native.dcm"
    fd = os.open(path, os.O_RDONLY)
    try:
        at = path.stat().st_size - corpus.FRAME_BYTES
        frame = benchmark(os.pread, fd, corpus.FRAME_BYTES, at)
        assert frame == corpus.frame_noise(FRAMES - 1, corpus.FRAME_BYTES)
    finally:
        os.close(fd)
