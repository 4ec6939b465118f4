"""The compiled scanner of multipart bodies, held against python-multipart's parser and against every way of
cutting a body into chunks."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hilum._multipart import (
    BODY_END,
    BOUNDARY_LENGTH_MAX,
    PART_BEGIN,
    PART_DATA,
    PART_END,
    PREAMBLE_LENGTH_MAX,
    Scanner,
)
from hilum.errors import BadQuery

BOUNDARY = b"=_b0"
Part = tuple[dict[str, str], bytes]


def scan(body: bytes, cuts: Iterable[int] = (), boundary: bytes = BOUNDARY, **limits: int) -> list[Part]:
    """The parts of a body that comes in chunks cut at these places."""
    scanner = Scanner(boundary, **limits)
    parts: list[tuple[dict[str, str], bytearray]] = []
    is_open = is_over = False
    begin = 0
    for end in [*cuts, len(body)]:
        for kind, value in scanner.feed(body[begin:end]):
            assert not is_over
            if kind == PART_BEGIN:
                assert not is_open
                parts.append((value, bytearray()))
                is_open = True
            elif kind == PART_DATA:
                assert is_open
                assert isinstance(value, memoryview)
                assert len(value)
                parts[-1][1].extend(value)
            elif kind == PART_END:
                assert is_open
                is_open = False
            else:
                assert kind == BODY_END
                assert not is_open
                is_over = True
        begin = end
    scanner.finish()
    assert is_over
    return [(headers, bytes(data)) for headers, data in parts]


def write(parts: Iterable[Part], boundary: bytes = BOUNDARY, newline: bytes = b"\r\n") -> bytes:
    body = b""
    for headers, data in parts:
        lines = b"".join(f"{name}: {value}".encode() + newline for name, value in headers.items())
        body += b"--" + boundary + newline + lines + newline + data + newline
    return body + b"--" + boundary + b"--" + newline


def by_python_multipart(body: bytes, boundary: bytes) -> list[Part]:
    multipart = pytest.importorskip("python_multipart.multipart")
    parts: list[tuple[dict[str, str], bytearray]] = []
    field = bytearray()
    value = bytearray()

    def header_end() -> None:
        parts[-1][0][field.decode().lower()] = value.decode().strip()
        field.clear()
        value.clear()

    parser = multipart.MultipartParser(
        boundary,
        {
            "on_part_begin": lambda: parts.append(({}, bytearray())),
            "on_header_field": lambda data, begin, end: field.extend(data[begin:end]),
            "on_header_value": lambda data, begin, end: value.extend(data[begin:end]),
            "on_header_end": header_end,
            "on_part_data": lambda data, begin, end: parts[-1][1].extend(data[begin:end]),
        },
    )
    parser.write(body)
    parser.finalize()
    return [(headers, bytes(data)) for headers, data in parts]


# What makes a body hard to cut: pieces of the boundary line itself.
pieces = st.one_of(
    st.sampled_from(
        [
            b"\r",
            b"\n",
            b"\r\n",
            b"-",
            b"--",
            b"\r\n--",
            b"\r\n--=_b",
            b"\r\n--=_b0x",
            b"=_b0",
            b"\r\n--=_b0-x",
        ]
    ),
    st.binary(max_size=6),
)
bodies = st.lists(pieces, max_size=8).map(b"".join)
names = st.text("abcdefgh-", min_size=1, max_size=6)
values = st.text('xyz/;= "0', max_size=12).map(str.strip)
all_parts = st.lists(st.tuples(st.dictionaries(names, values, max_size=3), bodies), min_size=1, max_size=4)


def is_fair(parts: list[Part]) -> bool:
    """Whether no part has a line that is a boundary, or what python-multipart takes for one."""
    return not any(
        b"--" + BOUNDARY in data.replace(b"\r\n--=_b0x", b"").replace(b"\r\n--=_b0-x", b"")
        for _, data in parts
    )


@settings(max_examples=300, deadline=None)
@given(all_parts, st.data())
def test_any_parts_in_any_chunks_come_out_as_they_went_in(parts, data):
    assume(is_fair(parts))
    body = write(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=8)))

    assert scan(body, cuts) == parts
    assert scan(body, range(1, len(body))) == parts


@settings(max_examples=200, deadline=None)
@given(all_parts)
def test_python_multipart_finds_the_same_parts(parts):
    assume(is_fair(parts))
    assume(all(b"=_b0" not in data for _, data in parts))  # it takes no longer boundary for data
    assume(all(headers for headers, _ in parts))
    body = write(parts)

    assert scan(body) == by_python_multipart(body, BOUNDARY)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(pieces | st.sampled_from([b"--=_b0\r\n", b"a: b\r\n\r\n", b"\r\n--=_b0--"]), max_size=16),
    st.data(),
)
def test_whatever_comes_all_ways_of_cutting_it_say_the_same(found, data):
    body = b"".join(found)

    def outcome(cuts: Iterable[int]) -> list[Part] | str:
        try:
            return scan(body, cuts)
        except BadQuery as failure:
            return str(failure)

    whole = outcome(())
    assert outcome(range(1, len(body))) == whole
    assert outcome(sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=5)))) == whole


def test_a_body_is_the_same_wherever_two_cuts_fall():
    body = (
        b"preamble\r\n--=_b0 \t\r\nContent-Type: application/dicom\r\nX-Folded: one\r\n two\r\n\r\n"
        b"\r\n--\r\n--=_b\r\n--=_b0x\r\n--=_b0-\r\n-\r\r\n"
        b"\r\n--=_b0\r\n\r\n\r\n--=_b0\r\nA: 1\r\n\r\n--=_b0--\r\nepilogue\r\n--=_b0\r\n"
    )
    expected = [
        (
            {"content-type": "application/dicom", "x-folded": "one two"},
            b"\r\n--\r\n--=_b\r\n--=_b0x\r\n--=_b0-\r\n-\r\r\n",
        ),
        ({}, b""),
        ({"a": "1"}, b""),
    ]
    assert scan(body) == expected
    for first in range(len(body) + 1):
        for second in range(first, len(body) + 1):
            assert scan(body, (first, second)) == expected, (first, second)


def test_what_does_not_look_like_a_boundary_is_given_as_views_of_the_chunk():
    scanner = Scanner(BOUNDARY)
    scanner.feed(b"--=_b0\r\n\r\n")
    chunk = random.Random(1).randbytes(100_000)

    ((kind, view),) = scanner.feed(chunk)

    assert kind == PART_DATA
    assert view.obj is chunk


@pytest.mark.parametrize("body", [b"a\nb", b"ends in CR\r", b"\r\n--=_b0\r\nno line of this body"])
def test_the_line_ends_of_a_sender_without_cr_are_told_by_its_first_boundary(body):
    parts = [({"content-type": "application/dicom"}, body), ({}, b"second")]
    if b"--=_b0" in body:
        body = body.replace(b"\r\n--", b"\r--")  # in such a body LF alone makes a line
        parts[0] = (parts[0][0], body)
    raw = write(parts, newline=b"\n")

    assert scan(raw) == parts
    assert scan(raw, range(1, len(raw))) == parts


def test_a_line_that_ends_in_lf_alone_is_no_boundary_for_a_sender_with_crlf():
    parts = [({}, b"pixels\n--=_b0\nmore pixels")]
    assert scan(write(parts)) == parts


def test_the_empty_line_behind_the_headers_may_be_that_of_the_boundary_too():
    assert scan(b"--=_b0\r\nA: 1\r\n\r\n--=_b0\r\n\r\n\r\n--=_b0--") == [({"a": "1"}, b""), ({}, b"")]


def test_content_length_of_a_part_decides_nothing():
    parts = [({"content-length": "3"}, b"more than three")]
    assert scan(write(parts)) == parts


def test_of_a_field_that_is_there_twice_the_first_counts():
    body = b"--=_b0\r\nA: 1\r\na: 2\r\n 3\r\n\r\n\r\n--=_b0--"
    assert scan(body) == [({"a": "1"}, b"")]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "no line with the boundary"),
        (b"--other\r\n\r\nx\r\n--other--", "no line with the boundary"),
        (b"--=_b0\r\n\r\nx", "before its last boundary"),
        (b"--=_b0\r\n\r\nx\r\n--=_b0\r\n", "before its last boundary"),
        (b"--=_b0\r\n\r\nx\r\n--=_b0", "before its last boundary"),
        (b"--=_b0\r\n\r\nx\r\n--=_b0-", "before its last boundary"),
        (b"--=_b0\r\nA: 1", "before its last boundary"),
        (b"--=_b0\r\nno colon\r\n\r\nx\r\n--=_b0--", "'no colon', which is no header field"),
        (b"--=_b0\r\n: no name\r\n\r\nx\r\n--=_b0--", "which is no header field"),
        (b"--=_b0\r\n--=_b0--\r\n\r\n", "which is no header field"),
    ],
)
def test_a_body_that_is_no_multipart_body_is_refused_in_words(body, words):
    for cuts in ((), range(1, len(body))):
        with pytest.raises(BadQuery, match=words):
            scan(body, cuts)


def test_a_body_without_parts_has_none():
    assert scan(b"--=_b0--") == []


def test_headers_are_bounded_in_bytes_and_number():
    long = write([({"a": "x" * 300}, b"")])
    many = write([({f"a{number}": "" for number in range(9)}, b"")])

    assert len(scan(long, header_bytes_max=400)) == len(scan(many, header_count_max=9)) == 1
    for cuts in ((), range(1, len(long))):
        with pytest.raises(BadQuery, match="more than 200 bytes"):
            scan(long, cuts, header_bytes_max=200)
    with pytest.raises(BadQuery, match="more than 8 header fields"):
        scan(many, header_count_max=8)


def test_headers_that_never_end_are_not_collected_for_ever():
    scanner = Scanner(BOUNDARY)
    scanner.feed(b"--=_b0\r\n")
    for _ in range(13):
        assert scanner.feed(b"a: b\r\n" * 200) == []
    with pytest.raises(BadQuery, match="more than 16384 bytes"):
        scanner.feed(b"a: b\r\n" * 200)


def test_a_body_whose_boundary_never_comes_is_refused_before_all_of_it_has_come():
    scanner = Scanner(BOUNDARY)
    scanner.feed(b"x" * PREAMBLE_LENGTH_MAX)
    with pytest.raises(BadQuery, match=f"not in the first {PREAMBLE_LENGTH_MAX} bytes"):
        scanner.feed(b"x")


@pytest.mark.parametrize("boundary", [b"", b"x" * (BOUNDARY_LENGTH_MAX + 1), b"a\r\nb", b"a\0", b"\xff"])
def test_a_boundary_that_can_be_none_is_refused(boundary):
    with pytest.raises(BadQuery, match="boundary"):
        Scanner(boundary)


@pytest.mark.parametrize("boundary", [b"x", b"-", b"--", b"'()+_,-./:=? a", b"x" * BOUNDARY_LENGTH_MAX])
def test_every_boundary_of_the_grammar_is_found(boundary):
    parts = [({"a": "1"}, b"one\r\n--"), ({}, b"\r\ntwo")]
    body = write(parts, boundary)
    assert scan(body, boundary=boundary) == parts
    assert scan(body, range(1, len(body)), boundary) == parts


def test_blanks_behind_a_boundary_are_bounded():
    short = b"--=_b0" + b" " * 60 + b"\r\n\r\nx\r\n--=_b0--"
    long = b"--=_b0\r\n\r\nx\r\n--=_b0" + b" " * 5000 + b"\r\ny\r\n--=_b0--"
    assert scan(short) == [({}, b"x")]
    for cuts in ((), range(1, len(long))):
        assert scan(long, cuts) == [({}, b"x\r\n--=_b0" + b" " * 5000 + b"\r\ny")]


def test_a_part_of_3_gb_passes_through_without_being_kept():
    scanner = Scanner(BOUNDARY)
    scanner.feed(b"--=_b0\r\n\r\n")
    chunk = random.Random(2).randbytes(1 << 20)
    total = sum(len(view) for _ in range(3 << 10) for _, view in scanner.feed(chunk))
    assert total == 3 << 30
    assert [kind for kind, _ in scanner.feed(b"\r\n--=_b0--")] == [PART_END, BODY_END]


def test_nothing_that_comes_after_the_last_boundary_counts():
    scanner = Scanner(BOUNDARY)
    scanner.feed(b"--=_b0--")
    assert scanner.feed(b"\r\n--=_b0\r\n\r\nx" * 1000) == []
    scanner.finish()


@pytest.mark.parametrize("seed", range(200))
def test_noise_made_of_boundaries_ends_in_parts_or_in_an_error(seed):
    dice = random.Random(seed)
    words = (b"\r\n--=_b0", b"--=_b0", b"\r\n", b"\n", b"a: b", b"--", b" ", b"\0\xff", b"\r")
    body = b"".join(dice.choice(words) for _ in range(dice.randrange(60)))
    cuts = sorted(dice.randrange(len(body) + 1) for _ in range(dice.randrange(10)))
    try:
        parts = scan(body, cuts)
    except BadQuery:
        return
    assert sum(len(data) for _, data in parts) <= len(body)
