"""Takes a store's folder; stores made instances in it through the batch API, in a process of its own so that
its memory can be watched, and prints one line of JSON.

    python benchmarks/ingest.py small 1000000 FOLDER        100 a series, 2 series a study
    python benchmarks/ingest.py studies 100000 FOLDER       one instance a study

The bytes of a batch are made before its timer starts: what is timed is Store.prepare of each object and one
Store.ingest_many, that is from bytes in memory to durable and findable.
"""

from __future__ import annotations

import json
import sys
import time

import corpus

import hilum
from hilum.engine.writer import Result

BATCH = 1_000


def ingest(kind: str, count: int, path: str) -> dict[str, list[float]]:
    """Store `count` instances; return the seconds of each batch, by the clock and of processor time."""
    make = {"small": corpus.small_instances, "studies": corpus.studies}[kind]
    seconds, processor = [], []
    with hilum.open(path, create=True) as store:
        for first in range(0, count, BATCH):
            batch = make(first, min(BATCH, count - first))
            begin, used = time.perf_counter(), time.process_time()
            results = store.ingest_many([store.prepare(data) for data in batch])
            seconds.append(time.perf_counter() - begin)
            processor.append(time.process_time() - used)
            if results != [Result.STORED] * len(batch):
                raise AssertionError(f"batch at {first}: not everything was stored")
    return {"seconds": seconds, "processor": processor}


if __name__ == "__main__":
    print(json.dumps(ingest(sys.argv[1], int(sys.argv[2]), sys.argv[3])))
