"""The compiled parser on made bytes, one line an element: statuses, windows, bounds of time and of memory."""

from __future__ import annotations

import ast
import inspect
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from struct import pack

import pytest

from hilum import _fastparse as fast
from hilum.engine import record

DONE, NEED, DEFLATED, TRUNCATED, TOO_DEEP, UNBALANCED, OVERRUN, UNDEFINED_LENGTH, NOT_DICOM = range(9)
TOO_MANY_FRAGMENTS, HEAD_TOO_LONG = 10, 11
UNDEFINED = 0xFFFFFFFF
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
EXPLICIT, IMPLICIT, BIG = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.2"
JPEG, DEFLATE = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.1.99"
LONG = ("OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV")
SOURCE = Path(__file__).resolve().parent.parent / "src"


def explicit(tag: int, vr: str, value: bytes = b"", *, length: int | None = None, order: str = "<") -> bytes:
    """An element of explicit VR; `length` where it is not the value's."""
    length = len(value) if length is None else length
    head = pack(f"{order}HH", tag >> 16, tag & 0xFFFF) + vr.encode()
    return head + (pack(f"{order}HI", 0, length) if vr in LONG else pack(f"{order}H", length)) + value


def implicit(tag: int, value: bytes = b"", *, length: int | None = None, order: str = "<") -> bytes:
    """An element of implicit VR; an item or a delimiter of any data set."""
    return pack(f"{order}HHI", tag >> 16, tag & 0xFFFF, len(value) if length is None else length) + value


def meta(syntax: str) -> bytes:
    value = syntax.encode() + b"\0" * (len(syntax) % 2)
    return bytes(128) + b"DICM" + explicit(0x00020010, "UI", value)


ITEM_ENDS, SEQUENCE_ENDS = implicit(ITEM_END), implicit(SEQUENCE_END)
OPEN_ITEM = implicit(ITEM, length=UNDEFINED)
UIDS = (
    explicit(0x00080018, "UI", b"2.25.3")  # SOP Instance UID
    + explicit(0x00100010, "PN", b"Doe^Jane")
    + explicit(0x0020000D, "UI", b"2.25.1")  # Study
    + explicit(0x0020000E, "UI", b"2.25.2")  # Series
)
NATIVE = explicit(0x7FE00010, "OW", bytes(2048))
BROKEN_ICON = explicit(
    0x00880200,  # Icon Image Sequence, of known length: a fragment in it runs past the end of its item
    "SQ",
    implicit(
        ITEM,
        explicit(0x7FE00010, "OB", length=UNDEFINED)
        + implicit(ITEM)
        + implicit(ITEM, bytes(1100), length=0x7FFFFFFF),
    ),
)
REQUESTS = explicit(
    0x00400275,
    "SQ",
    implicit(ITEM, explicit(0x00400009, "SH", b"step1 ") + explicit(0x00401001, "SH", b"proc1 "))
    + OPEN_ITEM
    + explicit(0x00400009, "SH", b"step2 ")
    + ITEM_ENDS,
)


def encapsulated(*fragments: bytes, table: bytes = b"") -> bytes:
    items = b"".join(implicit(ITEM, fragment) for fragment in (table, *fragments))
    return explicit(0x7FE00010, "OB", length=UNDEFINED) + items + SEQUENCE_ENDS


MADE = {
    "native": meta(EXPLICIT) + UIDS + NATIVE,
    "without preamble": UIDS + NATIVE,
    "without anything": b"",
    "implicit": meta(IMPLICIT)
    + implicit(0x00080018, b"2.25.3")
    + implicit(0x00082112, implicit(ITEM, implicit(0x00081150, b"1.2 ") + bytes(8) * 200))  # source images
    + implicit(0x0020000D, b"2.25.1")
    + implicit(
        0x00400275, OPEN_ITEM + implicit(0x00400009, b"s ") + ITEM_ENDS + SEQUENCE_ENDS, length=UNDEFINED
    )
    + implicit(0x7FE00010, bytes(3000)),
    "big endian": meta(BIG)
    + explicit(0x00080018, "UI", b"2.25.3", order=">")
    + explicit(0x00280010, "US", b"\x02\x01", order=">")
    + explicit(0x7FE00010, "OW", bytes(2000), order=">"),
    "requests": meta(EXPLICIT) + UIDS + REQUESTS + NATIVE,
    "encapsulated": meta(JPEG) + UIDS + encapsulated(b"ab", bytes(900), b"", bytes(700), table=bytes(8)),
    "encapsulated, small": meta(JPEG) + UIDS + encapsulated(b"ab") + explicit(0xFFFCFFFC, "OB", bytes(10)),
    "nested bulk": meta(EXPLICIT)
    + UIDS
    + explicit(
        0x54000100,  # Waveform Sequence
        "SQ",
        OPEN_ITEM + explicit(0x54001010, "OW", bytes(70_000)) + ITEM_ENDS + SEQUENCE_ENDS,
        length=UNDEFINED,
    ),
    "private bulk": meta(EXPLICIT) + UIDS + explicit(0x00091010, "UN", bytes(66_000)) + NATIVE,
    "pixels cut": meta(EXPLICIT) + UIDS + explicit(0x7FE00010, "OW", bytes(1500), length=4000),
    "fragment cut": meta(JPEG) + UIDS + encapsulated(b"ab", bytes(2000))[:-100],
    "fragments without end": meta(JPEG) + UIDS + encapsulated(b"ab", bytes(2000))[:-8],
    "broken icon": meta(EXPLICIT) + UIDS + BROKEN_ICON + NATIVE,
    "value cut": meta(EXPLICIT) + UIDS[:-3],
    "stray delimiter": meta(EXPLICIT) + UIDS + ITEM_ENDS + NATIVE,
    "undefined length": meta(IMPLICIT) + implicit(0x00100020, b"id" + SEQUENCE_ENDS, length=UNDEFINED),
    "deflated": meta(DEFLATE) + bytes(40),
    "dumped from a network": bytes(128) + b"DICM" + implicit(0x00000002, b"1.2 ") + UIDS,
    "trailing bytes": meta(EXPLICIT) + UIDS + b"\0\0\0\0\0",
}


def found(status: int, scan: fast.Header) -> tuple[object, ...]:
    return (
        *(status, scan.at, scan.tag, scan.flags, scan.data_set_at, scan.transfer_syntax, scan.holes),
        *(scan.pixels, scan.fragments, scan.extended_offset_table, scan.upper, scan.own, scan.uids),
    )


def values(scan: fast.Header, tag: int) -> list[record.Value]:
    nested = record.NESTED_NUMBER_OF.get(tag)
    number = record.NUMBER_OF[tag] if nested is None else nested
    return record.values_of(scan.upper + scan.own, number)


def fed(data: bytes, window: Callable[[int, int], bytes]) -> tuple[object, ...]:
    """Scan through windows; `window` gives one for (offset, length) that are asked for."""
    scan = fast.Header(len(data))
    status, (at, length) = NEED, (0, 0)
    while status == NEED:
        status = scan.feed(window(at, length), at)
        at, length = scan.need
    return found(status, scan)


# --- Windows -------------------------------------------------------------------


@pytest.mark.parametrize("name", MADE)
def test_windows_cut_at_any_byte_give_what_one_scan_gives(name):
    data = MADE[name]
    whole = found(*fast.scan(data))
    step = max(1, len(data) // 3000)  # at every byte but in the largest
    for cut in range(0, len(data) + 1, step):
        windows = iter((data[:cut],))
        assert fed(data, lambda at, _, windows=windows: next(windows, data[at:])) == whole, cut


@pytest.mark.parametrize("more", [0, 1, 7, 64])
@pytest.mark.parametrize("name", MADE)
def test_windows_with_no_more_than_is_asked_for_give_what_one_scan_gives(name, more):
    data = MADE[name]
    assert fed(data, lambda at, length: data[at : at + length + more]) == found(*fast.scan(data))


@pytest.mark.parametrize("name", MADE)
def test_a_scan_by_descriptor_gives_what_one_in_memory_gives(name, tmp_path):
    data = MADE[name]
    (tmp_path / "file").write_bytes(data)
    with open(tmp_path / "file", "rb") as file:
        assert found(*fast.scan_fd(file.fileno(), len(data))) == found(*fast.scan(data))


def test_every_sample_file_scans_alike_in_memory_by_descriptor_and_in_the_smallest_windows(sample_files):
    for name, path in sample_files.items():
        data = path.read_bytes()
        whole = found(*fast.scan(data))
        with path.open("rb") as file:
            assert found(*fast.scan_fd(file.fileno(), len(data))) == whole, name
        assert fed(data, lambda at, length, data=data: data[at : at + length]) == whole, name


def test_a_file_that_ends_before_its_stated_size_is_an_error_of_reading(tmp_path):
    (tmp_path / "file").write_bytes(MADE["native"][:200])
    with open(tmp_path / "file", "rb") as file, pytest.raises(OSError, match="can't be read from byte 0 on"):
        fast.scan_fd(file.fileno(), 2000)


def test_a_window_that_lacks_what_was_asked_for_is_asked_for_again():
    scan = fast.Header(1000)
    assert scan.feed(b"", 0) == NEED
    assert scan.need == (0, 144)
    assert scan.feed(b"x" * 100, 500) == NEED
    assert scan.need == (0, 144)


# --- Heads: a scan of what is left when the holes are out ------------------------


def head_of(data: bytes, holes: list[tuple[int, int, int]]) -> bytes:
    parts, at = [], 0
    for offset, length, _ in holes:
        parts.append(data[at:offset])
        at = offset + length
    return b"".join([*parts, data[at:]])


@pytest.mark.parametrize("name", [name for name in MADE if fast.scan(MADE[name])[0] == DONE])
def test_a_head_scanned_again_gives_what_the_file_gave(name):
    data = MADE[name]
    _, scan = fast.scan(data)
    again = fast.Header(len(data))
    again.know_holes([(offset, length) for offset, length, _ in scan.holes])
    assert again.feed(head_of(data, scan.holes), 0) == DONE
    for what in ("at", "flags", "holes", "pixels", "upper", "own", "data_set_at", "extended_offset_table"):
        assert getattr(again, what) == getattr(scan, what), what


@pytest.mark.parametrize(
    "holes",
    [
        [(10**6, 1)],  # behind the file
        [(156 + 8, 2**64 - 1)],  # at the value of an indexed element, and longer than memory
        [(156 + 8, 6)],
        [(156 + 8, 5)],
        [(156 + 8, 2**63), (200, 2**63)],
        [(300, 5), (200, 5), (100, 5)],  # not ascending
        [(0, 0)] * 5000,
    ],
)
@pytest.mark.parametrize("name", MADE)
def test_holes_that_lie_never_make_the_scan_read_outside_of_the_head(name, holes):
    # What the answer is does not matter; that there is one does, and the sanitizer build looks on.
    data = bytes(156 - len(MADE[name][:156])) + MADE[name]
    scan = fast.Header(len(data))
    scan.know_holes(holes)
    assert scan.feed(data, 0) in range(12)


# --- What is refused, and what is not ---------------------------------------------


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("without anything", NOT_DICOM),
        ("value cut", TRUNCATED),
        ("stray delimiter", UNBALANCED),
        ("undefined length", UNDEFINED_LENGTH),
        ("deflated", DEFLATED),
        ("native", DONE),
        ("trailing bytes", DONE),
        ("dumped from a network", DONE),
        ("pixels cut", DONE),
        ("fragment cut", DONE),
        ("broken icon", DONE),
    ],
)
def test_a_scan_ends_in_this_status(name, status):
    assert fast.scan(MADE[name])[0] == status


@pytest.mark.parametrize("name", ["pixels cut", "fragment cut", "fragments without end"])
def test_pixels_that_promise_more_than_the_file_holds_are_marked_and_end_with_it(name):
    status, scan = fast.scan(MADE[name])
    assert status == DONE
    assert scan.flags & fast.FLAG_PIXELS_TRUNCATED
    tag, offset, length, encapsulated = scan.pixels
    assert (tag, offset + length) == (0x7FE00010, len(MADE[name]))
    assert encapsulated == (name != "pixels cut")
    assert scan.holes == [(offset, length, tag)]


def test_the_last_fragment_of_cut_pixels_is_what_there_is_of_it():
    data = MADE["fragment cut"]
    _, scan = fast.scan(data)
    offset, length = scan.fragments[-1]
    assert scan.pixels[1] + offset + 8 + length == len(data)
    assert length == 2000 - (100 - len(SEQUENCE_ENDS))


def test_a_sequence_with_broken_content_is_stepped_over_with_its_holes_and_its_values():
    broken = implicit(ITEM, explicit(0x00400009, "SH", b"step1 ")) + b"\0" * 30
    bulk = explicit(0x54000100, "SQ", implicit(ITEM, explicit(0x54001010, "OW", bytes(70_000)) + b"\1\2\3"))
    status, scan = fast.scan(meta(EXPLICIT) + UIDS + explicit(0x00400275, "SQ", broken) + bulk + NATIVE)
    assert status == DONE
    assert scan.flags & fast.FLAG_OPAQUE_SEQUENCE
    assert values(scan, 0x00400009) == []
    assert [tag for _, _, tag in scan.holes] == [0x7FE00010]


def test_an_undefined_length_inside_a_known_one_may_not_outgrow_it():
    # The inner sequence has no end; the outer one has, and the element behind it is the data set's again.
    inner = explicit(0x00081140, "SQ", length=UNDEFINED) + OPEN_ITEM
    outer = explicit(0x00400275, "SQ", OPEN_ITEM + inner)
    status, scan = fast.scan(meta(EXPLICIT) + outer + explicit(0x00400253, "SH", b"PPS1"))
    assert status == DONE
    assert values(scan, 0x00400253) == ["PPS1"]


def test_bytes_too_few_for_an_element_at_the_end_of_a_sequence_do_not_refuse_the_file():
    rest = explicit(0x00400275, "SQ", implicit(ITEM, b"1234"))
    assert fast.scan(meta(EXPLICIT) + UIDS + rest)[0] == DONE
    rest = explicit(0x00400275, "SQ", OPEN_ITEM + b"1234")
    assert fast.scan(meta(EXPLICIT) + UIDS + rest)[0] == DONE
    rest = explicit(0x00400275, "SQ", OPEN_ITEM + b"1234", length=UNDEFINED)
    assert fast.scan(meta(EXPLICIT) + UIDS + rest)[0] == TRUNCATED


def test_values_inside_of_request_attributes_are_found_in_every_item():
    _, scan = fast.scan(MADE["requests"])
    assert values(scan, 0x00400009) == ["step1", "step2"]
    assert values(scan, 0x00401001) == ["proc1"]


def test_the_later_of_two_elements_with_one_tag_counts():
    later = explicit(0x00100010, "PN", b"Roe^John")
    assert values(fast.scan(meta(EXPLICIT) + UIDS + later)[1], 0x00100010) == ["Roe^John"]


def test_of_two_pixel_data_the_later_one_counts_with_its_own_fragments():
    data = meta(JPEG) + UIDS + encapsulated(b"abcd", b"ef") + encapsulated(b"gh")
    _, scan = fast.scan(data)
    assert scan.fragments == [(0, 0), (8, 2)]
    assert data[scan.pixels[1] + 16 :][:2] == b"gh"


def test_numbers_of_a_big_endian_data_set_are_turned_round():
    assert values(fast.scan(MADE["big endian"])[1], 0x00280010) == [0x0201]


def test_un_of_undefined_length_is_little_endian_in_a_big_endian_data_set_too():
    # PS3.5 6.2.2 Note 2: implicit VR little endian whatever the transfer syntax
    content = OPEN_ITEM + implicit(0x00400009, b"step") + ITEM_ENDS + SEQUENCE_ENDS
    data = meta(BIG) + explicit(0x00400275, "UN", length=UNDEFINED, order=">") + content
    data += explicit(0x00400253, "SH", b"PPS1", order=">")
    status, scan = fast.scan(data)
    assert status == DONE
    assert values(scan, 0x00400009) == ["step"]
    assert values(scan, 0x00400253) == ["PPS1"]


def test_pixel_data_written_as_un_has_fragments_still():
    data = encapsulated(b"abcd").replace(b"\x10\x00OB", b"\x10\x00UN", 1)
    _, scan = fast.scan(meta(JPEG) + UIDS + data)
    assert scan.fragments == [(0, 0), (8, 4)]


def test_a_vr_with_a_space_in_it_is_read_as_an_unknown_one_of_short_form():
    status, scan = fast.scan(meta(EXPLICIT) + UIDS + explicit(0x00200010, "U ", b"text") + REQUESTS)
    assert status == DONE
    assert values(scan, 0x00400009) == ["step1", "step2"]


def test_a_long_value_of_the_file_meta_information_stays_in_the_head():
    # A hole there would have a negative place in the identity, which counts from the data set on.
    private = explicit(0x00020102, "OB", bytes(100_000))
    status, scan = fast.scan(meta(EXPLICIT) + private + UIDS)
    assert (status, scan.holes) == (DONE, [])
    assert values(scan, 0x0020000D) == ["2.25.1"]


@pytest.mark.parametrize("vr", ["SQ", "UN", "OB", "UT"])
def test_an_undefined_length_in_the_file_meta_information_is_final(vr):
    element = explicit(0x00020102, vr, b"text" + SEQUENCE_ENDS, length=UNDEFINED)
    assert fast.scan(meta(EXPLICIT) + element + UIDS)[0] == UNBALANCED


@pytest.mark.parametrize("length", [62, 64, 66, 5000, 10_000_000])
def test_a_transfer_syntax_longer_than_any_uid_is_cut_and_not_known(length):
    value = b"1.2.840.10008.1.2.1." + b"9" * (length - 20)
    data = bytes(128) + b"DICM" + explicit(0x00020010, "UT", value) + UIDS
    whole = found(*fast.scan(data))
    assert whole[5] == value[:64]
    assert fed(data, lambda at, length: data[at : at + length]) == whole


# --- Bounds --------------------------------------------------------------------


def nested(depth: int, kind: str) -> bytes:
    """Sequences in sequences, `depth` deep, as a data set of explicit VR (implicit for "implicit ...")."""
    if kind.endswith("undefined"):
        opening = {
            "undefined": explicit(0x00081140, "SQ", length=UNDEFINED),
            "UN undefined": explicit(0x00091140, "UN", length=UNDEFINED),
            "implicit undefined": implicit(0x00081140, length=UNDEFINED),
        }[kind]
        closed = ITEM_ENDS + SEQUENCE_ENDS
        return (opening + OPEN_ITEM) * depth + closed * depth
    size = 16 if kind == "implicit defined" else 20  # of a sequence's header and an item's
    parts, length = [], depth * size
    for _ in range(depth):
        length -= size
        if kind == "implicit defined":
            parts.append(implicit(0x00081140, length=length + 8))
        else:
            parts.append(explicit(0x00081140, "SQ", length=length + 8))
        parts.append(implicit(ITEM, length=length))
    return b"".join(parts)


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("undefined", TOO_DEEP),
        ("UN undefined", TOO_DEEP),
        ("implicit undefined", TOO_DEEP),
        ("defined", DONE),  # the outermost has a known length: it is stepped over
        ("implicit defined", DONE),
    ],
)
def test_nesting_100_000_deep_costs_no_stack(kind, status):
    data = meta(IMPLICIT if kind.startswith("implicit") else EXPLICIT) + nested(100_000, kind)
    answers: list[int] = []
    before = threading.stack_size(128 << 10)
    try:
        thread = threading.Thread(target=lambda: answers.append(fast.scan(data)[0]))
        thread.start()
        thread.join()
    finally:
        threading.stack_size(before)
    assert answers == [status]


@pytest.mark.parametrize("kind", ["undefined", "UN undefined", "implicit undefined", "defined"])
def test_nesting_250_deep_is_read(kind):
    data = meta(IMPLICIT if kind.startswith("implicit") else EXPLICIT) + nested(250, kind)
    status, scan = fast.scan(data)
    assert status == DONE
    assert not scan.flags & fast.FLAG_OPAQUE_SEQUENCE


def overlapping_sequences() -> bytes:
    """Sequences of 36 bytes, each with an inner one that would go on to the end of the file: its elements
    swallow the beginnings of those that follow."""
    inner = explicit(0x00081140, "SQ", length=UNDEFINED) + OPEN_ITEM
    return explicit(0x00400275, "SQ", OPEN_ITEM + inner, length=36) + explicit(0x00090010, "LO", length=40)


@pytest.mark.parametrize(
    "block",
    [
        overlapping_sequences(),
        explicit(0x00400275, "SQ", OPEN_ITEM + explicit(0x00081140, "SQ", length=UNDEFINED)),
        explicit(0x00400275, "SQ", b"12345678"),
        explicit(0x00400275, "SQ", implicit(ITEM, length=UNDEFINED)),
        explicit(0x00100010, "PN") + explicit(0x00080005, "CS"),
        explicit(0x00081140, "SQ", length=UNDEFINED) + SEQUENCE_ENDS,
        SEQUENCE_ENDS,
    ],
)
def test_the_time_of_a_scan_is_bounded_by_the_bytes_whatever_they_say(block):
    # Were any of these quadratic, 8 MiB of it would take minutes; the bound leaves room for a slow machine.
    data = meta(EXPLICIT) + block * ((8 << 20) // len(block))
    begun = time.perf_counter()
    fast.scan(data)
    assert time.perf_counter() - begun < 5


def test_an_indexed_element_that_comes_a_million_times_costs_no_memory():
    one = explicit(0x00100010, "PN") + explicit(0x00080005, "CS", b"ISO_IR 6")
    _, scan = fast.scan(meta(EXPLICIT) + one * 1_000_000 + UIDS)
    assert len(scan.upper) < 34_000
    assert len(scan.own) < 34_000


def test_an_index_value_too_many_is_left_in_the_head_and_said_so():
    long = explicit(0x00104000, "UT", b"x" * (fast.VALUE_BYTES_MAX + 2))
    _, scan = fast.scan(meta(EXPLICIT) + long + UIDS)
    assert scan.flags & fast.FLAG_VALUE_LEFT
    with pytest.raises(record.LeftInHead):
        values(scan, 0x00104000)
    assert values(scan, 0x0020000D) == ["2.25.1"]


def test_a_head_of_more_than_64_mib_is_refused_where_it_passes_them():
    value = explicit(0x00091010, "UN", bytes(60_000))
    status, scan = fast.scan(meta(EXPLICIT) + value * 3500)
    assert status == HEAD_TOO_LONG
    assert fast.HEAD_BYTES_MAX < scan.at < fast.HEAD_BYTES_MAX + 61_000


def test_more_fragments_than_the_most_are_refused():
    data = meta(JPEG) + explicit(0x7FE00010, "OB", length=UNDEFINED) + implicit(ITEM) * (2_097_152 + 1)
    assert fast.scan(data)[0] == TOO_MANY_FRAGMENTS


MEASURE = """
import resource, sys
from hilum import _fastparse as fast
data = bytes.fromhex(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for _ in range(100):
    fast.scan(data)
    with open(sys.argv[2], "rb") as file:
        status, scan = fast.scan_fd(file.fileno(), int(sys.argv[3]))
print(status, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("vr", ["OB", "UT", "SQ", "UN"])
@pytest.mark.parametrize("tag", [0x00080005, 0x00091010, 0x00104000, 0x00400275, 0x7FE00010])
def test_a_value_of_4_gib_is_no_allocation(tag, vr, tmp_path):
    data = meta(EXPLICIT) + explicit(tag, vr, length=2**32 - 2)
    with open(tmp_path / "sparse", "wb") as file:
        file.write(data)
        file.truncate(len(data) + 2**32 - 2)
    answer = subprocess.run(
        [sys.executable, "-c", MEASURE, data.hex(), str(tmp_path / "sparse"), str(len(data) + 2**32 - 2)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        check=True,
        text=True,
    )
    status, grown = answer.stdout.split()
    # A sequence that is none is stepped over, and then the head is all of the file.
    assert int(status) == (HEAD_TOO_LONG if vr == "SQ" or (vr, tag) == ("UN", 0x00400275) else DONE)
    assert int(grown) * 1024 < 1 << 20


def test_a_header_that_is_dropped_gives_its_memory_back():
    data = meta(JPEG) + UIDS + encapsulated(*[b"ab"] * 20_000)
    for _ in range(20):
        fast.scan(data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(400):
        fast.scan(data)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 16 << 20


# --- The boundary ----------------------------------------------------------------


def test_the_indexed_tags_ascend_and_have_a_level_each():
    table = fast.wanted()
    tags = [tag for tag, _, _, nested in table if not nested]
    assert tags == sorted(set(tags))
    assert {level for _, _, level, _ in table} <= {0, 1, 2, 3, 4}
    assert len(table) < 256  # a number is one byte


def test_find_entry_gives_the_last_entry_and_never_one_that_is_cut():
    number = record.NUMBER_OF[0x00100010]
    entries = record.entry(number, b"first") + record.entry(number + 1, b"x") + record.entry(number, b"last")
    assert fast.find_entry(entries, number) == (0, b"last")
    assert fast.find_entry(entries, number + 2) is None
    for cut in range(len(entries)):
        answer = fast.find_entry(entries[:cut], number)
        assert answer in (None, (0, b"first"), (0, b"last"))


def test_the_stub_names_all_that_the_module_has():
    stub = ast.parse((SOURCE / "hilum" / "_fastparse.pyi").read_text())
    names = {node.target.id for node in stub.body if isinstance(node, ast.AnnAssign)}
    names |= {node.name for node in stub.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    assert names == {
        name for name in vars(fast) if not name.startswith("_") and not inspect.ismodule(getattr(fast, name))
    }
    (header,) = [node for node in stub.body if isinstance(node, ast.ClassDef)]
    methods = {node.name for node in header.body if isinstance(node, ast.FunctionDef)} - {"__init__"}
    assert methods == {name for name in vars(fast.Header) if not name.startswith("_")}
