"""How long does the metadata of an instance and of a series of 1,000 slices take? One thread, warm.

    pytest benchmarks/bench_metadata.py --benchmark-enable

Heads have 260 elements and 6,300 bytes. `the_writer` is the compiled one alone, 100 heads a round; `pydicom`
is to_json_dict of ten, read before. "first" makes the document of a series, "again" has it kept.
"""

import io
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import corpus
import pytest

import hilum
from hilum import _dicomjson
from hilum.engine import prepare, record

BASE = "http://127.0.0.1:8080/dicom-web"
SLICES = int(os.environ.get("HILUM_BENCH_SLICES", "1000"))


@pytest.fixture(scope="module")
def heads(headers: list[bytes]) -> list[record.Head]:
    return [record.unpack_head(prepare.prepare(memoryview(data)).payload) for data in headers]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[hilum.Store]:
    """A store with one series."""
    path = tmp_path_factory.mktemp("metadata") / "store"
    with hilum.open(path, create=True) as opened:
        files = corpus.ct_series(0, SLICES, pixels=corpus.TINY_PIXELS)
        opened.ingest_many([opened.prepare(data) for data in files])
        yield opened


def _write(heads: list[record.Head]) -> list[bytes]:
    return [
        _dicomjson.write(head.head, head.holes, head.data_set_at, False, False, uri_prefix=b"http://h/")
        for head in heads
    ]


def test_the_writer(benchmark, heads):
    found = benchmark.pedantic(_write, args=(heads,), rounds=20, warmup_rounds=2)
    assert all(len(json.loads(text)) > 200 for text in found)
    benchmark.extra_info.update(heads=len(heads), bytes=sum(map(len, found)))


def test_a_few_elements(benchmark, heads):
    wanted = _dicomjson.Paths([(0x00081140, 0x00081155), (0x00280010,)])

    def work() -> list[bytes]:
        return [
            _dicomjson.write(head.head, head.holes, head.data_set_at, False, False, wanted=wanted)
            for head in heads
        ]

    found = benchmark.pedantic(work, rounds=20, warmup_rounds=2)
    assert all(len(json.loads(text)) == 2 for text in found)


def test_pydicom(benchmark, headers):
    import pydicom

    few = headers[:10]
    read = [pydicom.dcmread(io.BytesIO(data)) for data in few]
    found = benchmark.pedantic(lambda: [one.to_json_dict() for one in read], rounds=3, warmup_rounds=1)
    assert all(len(one) > 200 for one in found)
    benchmark.extra_info.update(heads=len(few))


def test_an_instance(benchmark, store):
    uid = corpus.study(0).sop_uid(0, 0).decode()
    found = benchmark.pedantic(lambda: store.instance_json(uid, base=BASE), rounds=100, warmup_rounds=5)
    assert json.loads(found)["00080018"]["Value"] == [uid]


def _series(store: hilum.Store) -> tuple[str, str]:
    about = corpus.study(0)
    return about.uid, about.series_uid(0)


def _forget(store: hilum.Store) -> None:
    shutil.rmtree(Path(store.path, "derived"), ignore_errors=True)


def _plain(store: hilum.Store) -> int:
    return sum(map(len, store.series_json(*_series(store), base=BASE).json_pieces()))


def _gzip(store: hilum.Store) -> int:
    return len(store.series_json(*_series(store), base=BASE).gzip())


@pytest.mark.parametrize("read", [_plain, _gzip], ids=["identity", "gzip"])
@pytest.mark.parametrize("again", [False, True], ids=["first", "again"])
def test_a_series(benchmark, store, read, again):
    def begin() -> None:
        if not again:
            _forget(store)

    size = benchmark.pedantic(lambda: read(store), setup=begin, rounds=10, warmup_rounds=1)
    assert size > 1000 * (1 if read is _gzip else SLICES) // 10
    benchmark.extra_info.update(slices=SLICES, bytes=size)
