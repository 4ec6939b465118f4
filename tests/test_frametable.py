"""Frame tables of encapsulated files: each rule on made bytes, every sample file against pydicom's frames."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from struct import pack

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from isal.isal_zlib import crc32
from pydicom.encaps import generate_frames

from hilum.engine import frametable, header, prepare, record
from hilum.engine.frametable import PLAIN, WITH_ITEMS, FrameSpan, frame_spans, strip_items
from hilum.errors import BadDicom, NotDicom

UNDEFINED = 0xFFFFFFFF
EOI = b"\xff\xd9"


def item(value: bytes) -> bytes:
    return pack("<HHI", 0xFFFE, 0xE000, len(value)) + value


def text(tag: int, vr: str, value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    raw += b"\0" * (len(raw) % 2)
    long = vr in ("OV", "OB")
    head = pack("<HH", tag >> 16, tag & 0xFFFF) + vr.encode()
    return head + (pack("<HI", 0, len(raw)) if long else pack("<H", len(raw))) + raw


def made(
    fragments: Sequence[bytes],
    frame_count: int | str | None,
    *,
    basic: Sequence[int] = (),
    extended: tuple[Sequence[int], Sequence[int]] | None = None,
) -> bytes:
    """An encapsulated file; `basic` and `extended` are the tables' numbers."""
    parts = [bytes(128), b"DICM", text(0x00020010, "UI", "1.2.840.10008.1.2.4.50")]
    parts += [text(0x00080018, "UI", "2.25.3"), text(0x0020000D, "UI", "2.25.1")]
    parts += [text(0x0020000E, "UI", "2.25.2")]
    if frame_count is not None:
        parts.append(text(0x00280008, "IS", f"{frame_count:<2}"))
    if extended is not None:
        offsets, lengths = extended
        parts.append(text(0x7FE00001, "OV", pack(f"<{len(offsets)}Q", *offsets)))
        parts.append(text(0x7FE00002, "OV", pack(f"<{len(lengths)}Q", *lengths)))
    parts.append(pack("<HH2sHI", 0x7FE0, 0x0010, b"OB", 0, UNDEFINED))
    parts.append(item(pack(f"<{len(basic)}I", *basic)))
    parts += [item(fragment) for fragment in fragments]
    parts.append(pack("<HHI", 0xFFFE, 0xE0DD, 0))
    return b"".join(parts)


def frames_of(data: bytes) -> list[bytes]:
    """The frames that a reader gets out of the table behind the head, each held against its checksum."""
    prepared = prepare.prepare(memoryview(data))
    pixels = header.parse(data).pixels
    assert pixels is not None
    _, start, length, encapsulated = pixels
    assert encapsulated
    value = data[start : start + length]
    table = prepared.payload[prepared.head_length :]
    assert len(table) == prepared.table_length
    frames = []
    for offset, size, crc, form in record.FRAME_ENTRY.iter_unpack(table):
        frame = value[offset : offset + size]
        assert len(frame) == size
        assert crc32(frame) == crc
        frames.append(strip_items(frame) if form == WITH_ITEMS else frame)
    return frames


A, B, C, D = b"aaaa", b"bb" + EOI, b"cccccc", b"dd" + EOI


def at(*lengths: int) -> list[int]:
    """Offsets of items that follow each other with values of these lengths."""
    offsets, offset = [], 0
    for length in lengths:
        offsets.append(offset)
        offset += length + 8
    return offsets


@pytest.mark.parametrize(
    ("data", "frames"),
    [
        # No table: one fragment is one frame, as many as frames are one each, one frame has them all.
        pytest.param(made([A], 1), [A], id="one fragment"),
        pytest.param(made([A], None), [A], id="one fragment, no Number of Frames"),
        pytest.param(made([A], 5), [A], id="one fragment for five frames"),
        pytest.param(made([A, B, C], 3), [A, B, C], id="one each"),
        pytest.param(made([A, B, C], 1), [A + B + C], id="one frame of many fragments"),
        pytest.param(made([A, b"", C], 1), [A + C], id="one of them empty"),
        # More fragments than frames: a frame ends with the fragment that has the end marker near its end.
        pytest.param(made([A, B, C, D], 2), [A + B, C + D], id="by markers"),
        pytest.param(made([A, B + bytes(8), C, D], 2), [A + B + bytes(8), C + D], id="marker before padding"),
        pytest.param(made([A, B + bytes(9), C, D], 2), [A + B + bytes(9) + C + D], id="marker too far in"),
        pytest.param(made([A, B, C], 2), [A + B, C], id="the last without a marker"),
        pytest.param(made([B, B, D, D], 2), [B, B, D, D], id="more markers than frames"),
        # Fewer fragments than frames, and no table: nothing tells.
        pytest.param(made([A, B], 5), [], id="fewer fragments than frames"),
        pytest.param(made([], 1), [], id="no fragment"),
        # A Basic Offset Table.
        pytest.param(made([A, B, C], 3, basic=at(4, 4, 6)), [A, B, C], id="basic, one each"),
        pytest.param(made([A, B, C], 2, basic=[0, 24]), [A + B, C], id="basic, two and one"),
        pytest.param(made([A, B, C], 2, basic=[0, 12]), [A, B + C], id="basic, one and two"),
        pytest.param(made([A, B, C], 1, basic=[0]), [A + B + C], id="basic, all in one"),
        pytest.param(made([A, B, C, D], 5, basic=[0, 24]), [A + B, C + D], id="basic, count is wrong"),
        # A Basic Offset Table that is wrong.
        pytest.param(made([A, B, C], 3, basic=[0, 8, 20]), [A, B, C], id="basic, not at an item"),
        pytest.param(made([A, B, C], 3, basic=[8, 20, 32]), [A, B, C], id="basic, from the table's own item"),
        pytest.param(made([A, B, C], 3, basic=[0, 24, 12]), [A, B, C], id="basic, not ascending"),
        pytest.param(made([A, B, C], 3, basic=[0, 12, 12]), [A, B, C], id="basic, one twice"),
        pytest.param(made([A, B, C], 3, basic=[0, 12]), [A, B, C], id="basic, one missing"),
        pytest.param(made([A, B, C], 3, basic=[0, 12, 24, 99]), [A, B, C], id="basic, one too many"),
        pytest.param(made([A, B, C], 3, basic=[0, 0, 0]), [A, B, C], id="basic, nothing but zeros"),
        pytest.param(made([A, B, C, D], 2, basic=[0, 5]), [A + B, C + D], id="basic wrong, markers right"),
        pytest.param(made([A, B, C], 1, basic=[5]), [A + B + C], id="basic wrong, one frame"),
        # An Extended Offset Table says the frame's length without padding, and goes before the basic one.
        pytest.param(made([A, B, C], 3, extended=(at(4, 4, 6), [4, 4, 5])), [A, B, C[:5]], id="extended"),
        pytest.param(
            made([A, B, C], 3, basic=at(4, 4, 6), extended=(at(4, 4, 6), [3, 4, 6])),
            [A[:3], B, C],
            id="extended before basic",
        ),
        pytest.param(
            made([A, B, C], 3, extended=([24, 0, 12], [6, 4, 4])), [C, A, B], id="extended, in another order"
        ),
        pytest.param(
            made([A, B, C], 3, extended=([0, 12, 25], [4, 4, 6])), [A, B, C], id="extended, no item"
        ),
        pytest.param(
            made([A, B, C], 3, extended=([0, 12, 24], [4, 4, 9])), [A, B, C], id="extended, too long"
        ),
        pytest.param(
            made([A, B, C], 3, extended=([0, 0, 12], [4, 3, 4])), [A, B, C], id="extended, overlapping"
        ),
        pytest.param(made([A, B, C], 3, extended=([0, 12], [4, 4])), [A, B, C], id="extended, one missing"),
        pytest.param(
            made([A, B, C], 3, extended=([2**63, 2**64 - 8, 0], [2**64 - 1, 4, 4])),
            [A, B, C],
            id="extended, wild",
        ),
        pytest.param(
            made([A, B, C], 3, extended=([0, 12, 24], [4, 4])), [A, B, C], id="extended, not as many"
        ),
    ],
)
def test_a_frame_is_what_the_tables_say_where_they_can_be_believed(data, frames):
    assert frames_of(data) == frames


@pytest.mark.parametrize("count", ["0 ", "-3", "x "])
def test_a_number_of_frames_that_is_none_counts_as_one(count):
    assert frames_of(made([A, B, C], count)) == [A + B + C]


def test_a_table_longer_than_there_are_fragments_is_not_unpacked():
    # 64 MiB of offsets would be some 600 MB of Python numbers.
    spans = frame_spans([(8, 4), (20, 4)], 2, basic=bytes(64 << 20), extended=None, tail_of=lambda _: b"")
    assert spans == [FrameSpan(16, 4, PLAIN), FrameSpan(28, 4, PLAIN)]
    tables = bytes(64 << 20), bytes(64 << 20)
    assert frame_spans([(8, 4), (20, 4)], 2, basic=b"", extended=tables, tail_of=lambda _: b"") == spans


def test_the_tails_of_fragments_are_read_only_where_no_table_tells():
    def no_tail(index: int) -> bytes:
        raise AssertionError("asked for a tail")

    fragments = [(8, 4), (20, 4), (32, 6)]
    for count, basic in ((3, b""), (1, b""), (2, pack("<2I", 0, 24)), (9, b"")):
        frame_spans(fragments, count, basic=basic, extended=None, tail_of=no_tail)
    with pytest.raises(AssertionError, match="asked for a tail"):
        frame_spans(fragments, 2, basic=b"", extended=None, tail_of=no_tail)


@pytest.mark.parametrize("cut", range(40))
def test_items_that_are_cut_are_stripped_as_far_as_they_go(cut):
    data = (item(A) + item(b"") + item(C))[: 40 - cut]
    assert (A + C).startswith(strip_items(data))


@given(
    st.lists(st.binary(max_size=12).map(lambda value: value * 2), min_size=1, max_size=12),
    st.integers(0, 15),
    st.lists(st.integers(0, 200), max_size=12),
    st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_frames_never_overlap_nor_leave_the_value_and_are_whole_fragments(
    fragments, count, basic, true_table
):
    if true_table:
        starts = at(*map(len, fragments))
        basic = starts[:1] + starts[1 :: max(1, count)]
    spans, offset = [], 8 + 4 * len(basic)
    for fragment in fragments:
        spans.append((offset, len(fragment)))
        offset += 8 + len(fragment)
    table = pack(f"<{len(basic)}I", *basic)
    found = frame_spans(
        spans,
        count,
        basic=table,
        extended=None,
        tail_of=lambda index: fragments[index][-frametable.TAIL_LENGTH :],
    )
    value = item(table) + b"".join(map(item, fragments))
    joined = [
        strip_items(value[o : o + size]) if form == WITH_ITEMS else value[o : o + size]
        for o, size, form in found
    ]
    assert b"".join(joined) in (b"".join(fragments), b"")
    assert all(a.offset + a.length <= b.offset for a, b in pairwise(found))


# --- Against pydicom ---------------------------------------------------------------


def _by_pydicom(data: bytes, value: bytes, frame_count: int) -> list[bytes] | None:
    """pydicom's frames; None where it can't tell them apart. A data set that it loses as a whole gives the
    value alone, and the number of frames is then ours."""
    extended = None
    dataset = pydicom.dcmread(io.BytesIO(data), force=True)
    if "PixelData" in dataset:
        value = dataset.PixelData
        frame_count = int(dataset.get("NumberOfFrames") or 1)
    if "ExtendedOffsetTable" in dataset:
        extended = dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths
    try:
        return list(generate_frames(value, number_of_frames=frame_count, extended_offsets=extended))
    except ValueError:
        return None


_CUT = "fuzz-corpus/fuzz_corpus_v3/cat11_cve_2025_11266/TC07"
# Where our frames are not pydicom's, and why.
DIFFERENT = {
    "no fragment is no frame; pydicom makes an empty one": (
        "fuzz-corpus/fuzz_corpus_v3/cat04_pixel_data/TC0323_encap_zero_frag.dcm",
    ),
    "a fragment says more bytes than there are: ours goes to the end of the file, pydicom's to a delimiter": (
        f"{_CUT}13_encap_frag_len_2gb.dcm",
        f"{_CUT}19_encap_frag_len_64_data_1.dcm",
        f"{_CUT}23_encap_wrapping_lengths.dcm",
    ),
}


def test_every_encapsulated_sample_file_has_the_frames_of_pydicom(sample_files: dict[str, Path], caplog):
    caplog.set_level(logging.CRITICAL, "pydicom")
    different, count, many = set(), 0, 0
    for name, path in sample_files.items():
        data = path.read_bytes()
        try:
            parsed = header.parse(data)
        except (BadDicom, NotDicom):
            continue
        if parsed.pixels is None or not parsed.pixels[3]:
            continue
        _, start, length, _ = parsed.pixels
        ours = frames_of(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            frame_count = int(record.raw_of(parsed.own, record.NUMBER_OF[0x00280008]) or b"1")
            theirs = _by_pydicom(data, data[start : start + length], frame_count)
        count += 1
        many += len(ours) > 1
        if ours != (theirs or []):
            different.add(name)
    expected = {name for group in DIFFERENT.values() for name in group}
    assert different == {name for name in expected if name in sample_files}
    assert count >= (30 if any(name.startswith("pydicom:") for name in sample_files) else 200)
    assert many >= 3
