"""What does storing over HTTP cost beside the engine's own commit?

    pytest benchmarks/bench_stow.py --benchmark-enable

Instances of 39 KB, one in a request. One round is eight requests at once, without a network: what they need
beside the engine is between the two rows. The scanner is measured by itself, over noise in chunks as a server
gives them; and over what is worst for it, lines that begin as a boundary does.
"""

import asyncio
import itertools

import msgspec
import pytest
from makers import make_object, noise

import hilum
from hilum._multipart import Scanner
from hilum.settings import Settings
from hilum.web.app import make_app

AT_ONCE = 8
BOUNDARY = b"0123456789abcdef0123456789abcdef"
CHUNK = 64 << 10
BODY_BYTES = 16 << 20

TEMPLATE = make_object("1.2.100000000", "1.1", "1.3", pixels=noise(39_000))


def instances(numbers):
    """Files that differ in their UID and their pixels, as many at a time as come at once."""
    while True:
        yield [
            (TEMPLATE[:-9] + b"%09d" % number).replace(b"1.2.100000000", b"1.2.%09d" % (200_000_000 + number))
            for number in itertools.islice(numbers, AT_ONCE)
        ]


@pytest.fixture
def store(tmp_path):
    with hilum.open(tmp_path / "store", create=True) as opened:
        yield opened


def test_eight_instances_in_one_commit_of_the_engine(benchmark, store):
    files = instances(itertools.count())
    benchmark(lambda: store.ingest_many([store.prepare(file) for file in next(files)]))


def test_eight_requests_at_once(benchmark, store):
    files = instances(itertools.count())
    app = make_app(store, msgspec.convert({"log": {"requests": False}}, Settings))
    with asyncio.Runner() as runner:

        async def store_all():
            return await asyncio.gather(*(_post(app, file) for file in next(files)))

        statuses = benchmark(lambda: runner.run(store_all()))
    app.close()
    assert statuses == [200] * AT_ONCE


async def _post(app, file):
    body = b"--%b\r\nContent-Type: application/dicom\r\n\r\n%b\r\n--%b--\r\n" % (BOUNDARY, file, BOUNDARY)
    status = 0

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message):
        nonlocal status
        status = message.get("status", status)

    kind = b'multipart/related; type="application/dicom"; boundary=' + BOUNDARY
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/dicom-web/studies",
        "query_string": b"",
        "headers": [(b"host", b"localhost"), (b"content-type", kind)],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    await app(scope, receive, send)
    return status


@pytest.mark.parametrize(
    "data",
    [noise(BODY_BYTES), (b"\r\n--" + BOUNDARY[:-1]) * (BODY_BYTES // (len(BOUNDARY) + 3))],
    ids=["noise", "almost boundaries"],
)
def test_scanning_16_mib(benchmark, data):
    body = b"--%b\r\n\r\n%b\r\n--%b--\r\n" % (BOUNDARY, data, BOUNDARY)
    chunks = [body[at : at + CHUNK] for at in range(0, len(body), CHUNK)]

    def scan():
        scanner = Scanner(BOUNDARY)
        for chunk in chunks:
            scanner.feed(chunk)
        scanner.finish()

    benchmark(scan)
