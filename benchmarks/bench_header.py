"""How long does a header in memory take to become what the index holds of it? One thread, warm.

    pytest benchmarks/bench_header.py --benchmark-enable

One round is 100 headers of 260 elements and 6,300 bytes. `scan` is the limit: the parser alone.
"""

import corpus
import pytest
import yardsticks

from hilum import _fastparse
from hilum.engine import header, record


def _ours(headers: list[bytes]) -> list[tuple[str, ...]]:
    parsed = [header.parse(data) for data in headers]
    assert all(found.upper and found.own for found in parsed)
    return [tuple(uid.decode() for uid in (found.study, found.series, found.uid)) for found in parsed]


def _scan(headers: list[bytes]) -> list[tuple[str, ...]]:
    scans = [_fastparse.scan(data)[1] for data in headers]
    return [tuple(uid.decode() for uid in found.uids[:3]) for found in scans]


def _pydicom(headers: list[bytes]) -> list[tuple[str, ...]]:
    return [yardsticks.pydicom_all(data) for data in headers]


def _dicomsdl(headers: list[bytes]) -> list[tuple[str, ...]]:
    dicomsdl = pytest.importorskip("dicomsdl")
    return [yardsticks.dicomsdl_bytes(dicomsdl, data) for data in headers]


@pytest.mark.parametrize(
    "read", [_ours, _scan, _pydicom, _dicomsdl], ids=["ours", "scan", "pydicom", "dicomsdl"]
)
def test_a_header_in_memory(benchmark, headers, read):
    found = benchmark.pedantic(read, args=(headers,), rounds=5, warmup_rounds=1)
    abouts = [corpus.study(n) for n in range(len(headers))]
    assert found == [(about.uid, about.series_uid(0), about.sop_uid(0, 0).decode()) for about in abouts]
    benchmark.extra_info.update(headers=len(headers), bytes=corpus.HEAD_BYTES * len(headers))


def test_what_the_index_holds_of_a_header_is_what_pydicom_reads(headers):
    for data in headers[:10]:
        parsed = header.parse(data)
        assert yardsticks.stored_values(parsed.upper + parsed.own) == yardsticks.indexed_values(data)
        assert not parsed.flags & record.BY_PYDICOM
