"""Does a batch take longer when the store has grown, and how long does its rebuild take?

    pytest benchmarks/bench_growth.py --benchmark-enable

One round is one batch of 1,000 instances of 2 KiB through the batch API, into a store with so many instances
in it. The empty store is the yardstick.
"""

import corpus
import ingest
import pytest

import hilum
from hilum.engine.rebuild import rebuild
from hilum.engine.writer import Result


@pytest.mark.parametrize("there", [0, 5_000])
def test_a_batch_into_a_store_that_has_grown(benchmark, tmp_path, there):
    path = str(tmp_path / "store")
    ingest.ingest("small", there, path)
    batches = iter(range(there, there + 100_000, ingest.BATCH))
    with hilum.open(path, create=True) as store:

        def store_batch(batch):
            return store.ingest_many([store.prepare(data) for data in batch])

        def setup():
            return (corpus.small_instances(next(batches), ingest.BATCH),), {}

        results = benchmark.pedantic(store_batch, setup=setup, rounds=5)
        assert results == [Result.STORED] * ingest.BATCH
        stats = store.stats()
        assert stats["instances"] >= there + ingest.BATCH
        assert store.read(corpus.tree_uid(there)) == corpus.small_instances(there, ingest.BATCH)[0]
        benchmark.extra_info.update(there=there, index_bytes=stats["index_bytes"])


def test_rebuild(benchmark, tmp_path):
    path = str(tmp_path / "store")
    ingest.ingest("small", 3_000, path)
    found = benchmark.pedantic(rebuild, args=(path,), rounds=3)
    assert (found.instances, found.blobs, found.problems) == (3_000, 3_000, [])
    with hilum.open(path, read_only=True) as store:
        assert store.read(corpus.tree_uid(0)) == corpus.small_instances(0, ingest.BATCH)[0]
