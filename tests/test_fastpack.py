"""What the compiled packing writes, held against the reading half and against plain Python."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from hilum._fastpack import RecordQueue, crc_of_two, pack_head, record_header
from hilum.engine import packs, record
from hilum.engine.record import Head, Hole

DIGESTS = st.binary(min_size=32, max_size=32)
U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)
HOLES = st.lists(st.builds(Hole, U64, U64, U32, U32, DIGESTS), max_size=5).map(tuple)


@given(st.binary(max_size=500), st.binary(max_size=500))
def test_the_checksum_of_two_stretches_is_that_of_both_at_once(first, second):
    assert crc_of_two(zlib.crc32(first), zlib.crc32(second), len(second)) == zlib.crc32(first + second)


@pytest.mark.parametrize("length", [0, 1, 262_144, 2**31 + 7])
def test_the_checksum_of_a_long_second_stretch_needs_only_its_length(length):
    whole, zeros = zlib.crc32(b"begin"), 0
    left = length
    while left:
        piece = bytes(min(left, 1 << 24))
        whole, zeros, left = zlib.crc32(piece, whole), zlib.crc32(piece, zeros), left - len(piece)
    assert crc_of_two(zlib.crc32(b"begin"), zeros, length) == whole


@given(
    st.builds(
        Head,
        st.integers(0, 255), U64, U32, U32, U64, st.binary(max_size=255), st.binary(max_size=300),
        HOLES, st.binary(max_size=300), HOLES, st.binary(max_size=300),
    )
)  # fmt: skip
def test_a_head_reads_as_it_was_packed(head):
    payload = record.pack_head(head)
    found = record.unpack_head(payload + b"tables")

    assert found._replace(holes=tuple(found.holes), inflated_holes=tuple(found.inflated_holes)) == head
    assert record.head_part_length(head) == len(payload)


@pytest.mark.parametrize(
    "wrong",
    [
        {"transfer_syntax": bytes(256)},
        {"source": bytes(65_536)},
        {"holes": [Hole(0, 0, 0, 0, bytes(32))] * 65_536},
    ],
)
def test_more_than_a_field_of_a_head_holds_is_refused(wrong):
    fields = {
        "version": 1, "flags": 0, "original_length": 0, "original_crc": 0, "data_set_at": 0, "arrived_us": 0,
        "transfer_syntax": b"", "source": b"", "holes": (), "head": b"", "inflated_holes": (),
        "inflated": b"",
    }  # fmt: skip
    with pytest.raises(OverflowError):
        pack_head(**(fields | wrong))


@given(st.integers(0, 255), HOLES, st.binary(max_size=300), st.integers(0, 300))
def test_the_identity_is_that_of_docs_format(syntax_length, holes, head, begin):
    begin = min(begin, len(head))
    syntax = b"1" * syntax_length
    holes = [hole._replace(offset=begin + hole.offset % 2**40) for hole in holes]
    expected = bytes((syntax_length,)) + syntax
    for hole in holes:
        expected += (hole.offset - begin).to_bytes(8, "little") + hole.length.to_bytes(8, "little")
        expected += hole.tag.to_bytes(4, "little") + bytes(4) + hole.digest
    expected += head[begin:]

    assert record.identity_of(syntax, begin, holes, head) == blake3(expected).digest()


@given(U64, st.lists(st.tuples(st.integers(1, 15), st.binary(max_size=70), U64, DIGESTS, U32), max_size=30))
def test_queued_records_lie_in_the_pack_as_their_reader_expects(tmp_path_factory, salt, rows):
    path = tmp_path_factory.getbasetemp() / "records"
    queue = RecordQueue(salt)
    sizes = [queue.add(kind, payload, sequence, digest, crc) for kind, payload, sequence, digest, crc in rows]
    assert queue.length == sum(sizes)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    try:
        queue.write(fd, 64)
    finally:
        os.close(fd)
    data = path.read_bytes()[64:]

    assert len(data) == sum(sizes)
    at = 0
    for (kind, payload, sequence, digest, crc), size in zip(rows, sizes, strict=True):
        found = packs.parse_record(data[at : at + 64], at, salt)
        assert found == packs.Record(kind, at + 64, len(payload), sequence, digest, crc)
        assert data[at : at + 64] == record_header(salt, kind, len(payload), sequence, digest, crc)
        assert data[at + 64 : at + size] == payload + bytes(packs.padding(len(payload)))
        assert packs.parse_record(data[at : at + 64], at, salt ^ 1) is None
        at += size


def test_a_full_queue_refuses_and_an_empty_one_writes_nothing(tmp_path: Path):
    queue = RecordQueue(1)
    while not queue.is_full:
        queue.add(4, b"x", 0, bytes(32), 0)
    with pytest.raises(AssertionError):
        queue.add(4, b"x", 0, bytes(32), 0)
    fd = os.open(tmp_path / "pack", os.O_RDWR | os.O_CREAT)
    queue.write(fd, 0)
    size = os.fstat(fd).st_size
    queue.write(fd, size)

    assert size == queue.count + 512 * 72
    assert os.fstat(fd).st_size == size
    os.close(fd)


def test_a_write_that_fails_names_the_errno_and_forgets_the_records(tmp_path: Path):
    queue = RecordQueue(1)
    queue.add(4, b"x", 0, bytes(32), 0)
    (tmp_path / "pack").touch()
    fd = os.open(tmp_path / "pack", os.O_RDONLY)
    with pytest.raises(OSError, match="Bad file descriptor"):
        queue.write(fd, 0)
    os.close(fd)
    assert queue.count == 0
