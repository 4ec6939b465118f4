"""How many frames a second does the server give, beside bare uvicorn with bodies of that size?

    pytest benchmarks/bench_serve.py --benchmark-enable

Eight connections that are kept, one request at a time on each, random frames of all that are stored. One
round is REQUESTS requests, and twenty times that when measured. The yardstick sends the same bytes over and
over, and does nothing else. The full runs are the rows "web-..." of run.py.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import client
import corpus
import pytest
import servers

import hilum

REQUESTS = 200  # of one round as an ordinary test
ROUNDS_OF = 20  # so many times more with --benchmark-enable
INSTANCES = 40
SIZES = {"33 KB": corpus.SMALL_PIXELS, "525 KB": corpus.FULL_PIXELS}


class Served(NamedTuple):
    """Something that answers, and what it can be asked."""

    port: int
    asks: list[client.Ask]


@pytest.fixture(scope="module", params=SIZES)
def ours(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    pixels = SIZES[request.param]
    path = str(tmp_path_factory.mktemp("serve") / "store")
    files = list(corpus.ct_series(0, INSTANCES, pixels=pixels))
    with hilum.open(path, create=True) as store:
        store.ingest_many([store.prepare(file) for file in files])
    asks = [
        client.Ask(client.get(f"{corpus.slice_path(0, number)}/frames/1", client.ANY_SYNTAX), file[-pixels:])
        for number, file in enumerate(files)
    ]
    with servers.hilum_server(path) as server:
        yield Served(server.port, asks)


@pytest.fixture(scope="module", params=SIZES)
def bare(request: pytest.FixtureRequest) -> Iterator[Served]:
    body = corpus.frame_noise(0, SIZES[request.param])
    with servers.bare_uvicorn(body) as server:
        yield Served(server.port, [client.Ask(client.get("", root="/"), body)])


def load(benchmark, served: Served) -> Callable[[], client.Load]:
    """A round, of as many requests as are worth it."""
    count = REQUESTS if benchmark.disabled else REQUESTS * ROUNDS_OF
    benchmark.extra_info["requests"] = count
    return lambda: client.closed_loop(served.port, random.choices(served.asks, k=count))


def test_frames_of_the_server(benchmark, ours):
    found = benchmark(load(benchmark, ours))
    assert len(found.times.values) >= REQUESTS


def test_bare_uvicorn(benchmark, bare):
    found = benchmark(load(benchmark, bare))
    assert len(found.times.values) >= REQUESTS


def test_another_body_than_is_wanted_fails(ours: Served):
    wrong = ours.asks[0]._replace(holds=ours.asks[1].holds)
    with pytest.raises(AssertionError, match="another body"):
        client.closed_loop(ours.port, [wrong] * client.COMPARED_EACH)


def test_an_open_loop_counts_from_the_moment_when_a_request_was_due(bare: Served):
    found = client.open_loop(bare.port, bare.asks * 20, 200.0)
    assert len(found.times.values) == 20
    assert found.seconds >= 19 / 200


def test_an_answer_is_read_to_its_end(ours: Served, tmp_path: Path):
    with client.Client(ours.port) as asking:
        for ask in ours.asks[:3]:
            assert ask.holds in bytes(asking.ask(ask.request).body)
        assert len(asking.ask(client.get("/studies", "application/dicom+json")).json()) == 1
        with pytest.raises(AssertionError, match="404"):
            asking.ask(client.get("/studies/1.2.3/metadata", "application/dicom+json"))
