"""Frames as they are stored: the same bytes as pydicom's, one pread whatever the size, never a rotten one."""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path
from struct import pack
from typing import Any

import pydicom
import pytest
from makers import element, encapsulated, item, make_object, noise
from pydicom.encaps import generate_frames

import hilum
from hilum.engine import prepare, record
from hilum.engine.importer import Options, import_paths
from hilum.engine.packs import PackReader
from hilum.errors import BadDicom, Corrupt, NotFound

PIXELS = 0x7FE00010


@pytest.fixture
def store(tmp_path):
    with hilum.open(tmp_path / "store", create=True) as opened:
        yield opened


# --- Against pydicom ----------------------------------------------------------------


def pixel_element(data_set: pydicom.Dataset) -> Any:
    for tag in (PIXELS, 0x7FE00008, 0x7FE00009):
        if tag in data_set:
            return data_set[tag]
    return None


def number_of(data_set: pydicom.Dataset, keyword: str, default: int = 0) -> int:
    try:
        return int(data_set.get(keyword) or default)
    except (TypeError, ValueError, AttributeError):
        return default


def native_frames(data_set: pydicom.Dataset, value: bytes) -> list[bytes]:
    """Slices of the value by arithmetic of our own; bits one by one."""
    allocated = number_of(data_set, "BitsAllocated")
    samples = number_of(data_set, "SamplesPerPixel", 1)
    if data_set.get("PhotometricInterpretation") == "YBR_FULL_422":
        samples = 2
    bits = number_of(data_set, "Rows") * number_of(data_set, "Columns") * samples * allocated
    count = max(1, number_of(data_set, "NumberOfFrames", 1))
    if bits % 8 == 0:
        size = bits // 8
        return [
            value[n * size : (n + 1) * size] for n in range(count) if size and (n + 1) * size <= len(value)
        ]
    found = []
    for n in range(count):
        if (n + 1) * bits > 8 * len(value):
            break
        picked = bytearray((bits + 7) // 8)
        for at in range(bits):
            source = n * bits + at
            picked[at // 8] |= (value[source // 8] >> source % 8 & 1) << at % 8
        found.append(bytes(picked))
    return found


def test_every_frame_of_real_files_is_byte_for_byte_that_of_pydicom(sample_files, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for number, path in enumerate(sample_files.values()):
        if path.is_file():
            (folder / f"{number:06}").symlink_to(path)
    native = compressed = 0
    with hilum.open(tmp_path / "store", create=True) as store:
        import_paths(store, [os.fspath(folder)], Options())
        for row in store.find("instances"):
            try:
                reader = store.frames(row.uid)
            except NotFound:
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                data_set = pydicom.dcmread(io.BytesIO(store.read(row.uid)), force=True)
                found = pixel_element(data_set)
                if found is None or str(data_set.get("SOPInstanceUID")) != row.uid:
                    continue
                if found.is_undefined_length:
                    try:
                        frames = list(
                            generate_frames(
                                found.value, number_of_frames=max(1, number_of(data_set, "NumberOfFrames", 1))
                            )
                        )
                    except Exception:
                        continue  # pydicom refuses it, and so may we
                    if store.locate(row.uid).instance.flags & record.TRUNCATED or frames == [b""]:
                        continue  # a last fragment that is cut, or none at all
                    compressed += len(frames)
                else:
                    value = found.value or b""
                    big_endian = store.locate(row.uid).instance.flags & record.BIG_ENDIAN
                    if big_endian and found.VR == "OW" and number_of(data_set, "BitsAllocated") == 8:
                        # PS3.5 8.1.1, Pixel Data Encoding of Related Data Elements: words are swapped.
                        value = b"".join(value[at : at + 2][::-1] for at in range(0, len(value), 2))
                    if len(value) > 1 << 20 and number_of(data_set, "BitsAllocated") == 1:
                        continue  # bits one by one would take a minute
                    frames = native_frames(data_set, value)
                    native += len(frames)
            assert [reader.read(n) for n in range(len(frames))] == frames, row.uid
    assert native > 10
    assert compressed > 10


# --- Made ones -----------------------------------------------------------------------


def read_all(store: hilum.Store, uid: str = "2.25.1") -> list[bytes]:
    reader = store.frames(uid)
    return [reader.read(n) for n in range(reader.frame_count)]


@pytest.mark.parametrize(
    "size", [60, 700, 5_000, 90_000], ids=["in the head", "small", "one block", "blocks"]
)
def test_native_frames_are_slices_wherever_the_value_lies(store, size):
    pixels = noise(size * 7)
    file = make_object("2.25.1", "2.25.2", "2.25.3", pixels=pixels, rows=10, columns=size // 10, frames=7)
    store.ingest(file)

    assert read_all(store) == [pixels[n * size : (n + 1) * size] for n in range(7)]


@pytest.mark.parametrize(("rows", "columns", "frames"), [(3, 3, 7), (5, 7, 30), (1, 1, 17), (101, 99, 9)])
def test_one_bit_frames_that_begin_inside_a_byte_are_shifted(store, rows, columns, frames):
    bits = rows * columns
    value = noise((bits * frames + 7) // 8 + 1)
    store.ingest(
        make_object(
            "2.25.1", "2.25.2", "2.25.3", pixels=value[:-1], rows=rows, columns=columns, frames=frames,
            extra=[(0x00280100, element(0x00280100, "US", 1)), (0x00280101, element(0x00280101, "US", 1))],
        )
    )  # fmt: skip

    whole = int.from_bytes(value[:-1], "little")
    for n, frame in enumerate(read_all(store)):
        assert int.from_bytes(frame, "little") == whole >> n * bits & (1 << bits) - 1
        assert len(frame) == (bits + 7) // 8


FRAMES = [b"\xff\xd8" + noise(900 + 2 * n, n) + b"\xff\xd9" for n in range(5)]


def offsets_of(fragments: list[bytes], firsts: list[int]) -> list[int]:
    starts, at = [], 0
    for fragment in fragments:
        starts.append(at)
        at += 8 + len(fragment)
    return [starts[n] for n in firsts]


def in_two(frame: bytes) -> list[bytes]:
    return [frame[:200], frame[200:]]


TWOS = [piece for frame in FRAMES for piece in in_two(frame)]


@pytest.mark.parametrize(
    "pixels",
    [
        encapsulated(FRAMES),
        encapsulated(FRAMES, offsets_of(FRAMES, [0, 1, 2, 3, 4])),
        encapsulated(FRAMES, [7, 9, 11, 13, 17]),
        encapsulated(TWOS, offsets_of(TWOS, [0, 2, 4, 6, 8])),
        encapsulated(TWOS),
    ],
    ids=["no table", "a table", "a wrong table", "two fragments a frame", "two a frame and no table"],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_encapsulated_frames_are_codestreams_without_items(store, monkeypatch, tmp_path, pixels, streamed):
    if streamed:
        monkeypatch.setattr(prepare, "IN_MEMORY_MAX", 2000)
    file = make_object(
        "2.25.1", "2.25.2", "2.25.3", fragments=FRAMES, frames=5, rows=8, columns=8, extra=[(PIXELS, pixels)]
    )
    (tmp_path / "file.dcm").write_bytes(file)
    store.ingest(tmp_path / "file.dcm")

    assert store.read("2.25.1") == file
    assert read_all(store) == FRAMES


def test_an_extended_offset_table_is_followed(store):
    lengths = [len(frame) - 1 for frame in FRAMES]  # real frames may be odd: the last byte is padding
    table = b"".join(pack("<Q", at) for at in offsets_of(FRAMES, [0, 1, 2, 3, 4]))
    store.ingest(
        make_object(
            "2.25.1", "2.25.2", "2.25.3", fragments=FRAMES, frames=5, rows=8, columns=8,
            extra=[
                (0x7FE00001, element(0x7FE00001, "OV", table)),
                (0x7FE00002, element(0x7FE00002, "OV", b"".join(pack("<Q", n) for n in lengths))),
            ],
        )
    )  # fmt: skip

    assert read_all(store) == [frame[:-1] for frame in FRAMES]


def test_one_frame_in_many_fragments_is_one_frame(store):
    store.ingest(make_object("2.25.1", "2.25.2", "2.25.3", fragments=TWOS, frames=1, rows=8, columns=8))

    assert read_all(store) == [b"".join(FRAMES)]


@pytest.mark.parametrize("index", [-1, 5, 6, 2**31, 2**70, -(2**70)])
@pytest.mark.parametrize("kind", ["native", "encapsulated"])
def test_a_frame_before_the_first_or_past_the_last_is_not_found(store, kind, index):
    if kind == "native":
        file = make_object("2.25.1", "2.25.2", "2.25.3", pixels=noise(5000), rows=10, columns=100, frames=5)
    else:
        file = make_object("2.25.1", "2.25.2", "2.25.3", fragments=FRAMES, frames=5, rows=8, columns=8)
    store.ingest(file)

    with pytest.raises(NotFound, match="no frame"):
        store.frame_bytes("2.25.1", index)


def test_an_object_without_pixels_has_no_frames(store):
    store.ingest(make_object("2.25.1", "2.25.2", "2.25.3"))

    with pytest.raises(NotFound, match="no pixel data"):
        store.frame_bytes("2.25.1", 0)


def test_a_cut_value_gives_its_whole_frames_and_an_error_for_the_others(store):
    pixels = noise(5000)
    file = make_object("2.25.1", "2.25.2", "2.25.3", pixels=pixels, rows=10, columns=100, frames=5)
    store.ingest(file[:-1500])

    assert store.frame_bytes("2.25.1", 2) == pixels[2000:3000]
    for index in (3, 4):
        with pytest.raises(BadDicom, match="cut"):
            store.frame_bytes("2.25.1", index)


def test_fewer_fragments_than_frames_and_no_table_is_an_error_and_no_guess(store):
    store.ingest(make_object("2.25.1", "2.25.2", "2.25.3", fragments=FRAMES[:2], frames=5, rows=8, columns=8))

    for index in range(5):
        with pytest.raises(BadDicom, match="where the frames begin"):
            store.frame_bytes("2.25.1", index)


@pytest.mark.parametrize("frames", ["0", "-3", "x", "1.5", "", "9" * 40])
def test_a_number_of_frames_that_makes_no_sense_raises_nothing_else_than_our_errors(store, frames):
    extra = [(0x00280008, element(0x00280008, "IS", frames))]
    store.ingest(
        make_object("2.25.1", "2.25.2", "2.25.3", pixels=noise(4000), rows=40, columns=100, extra=extra)
    )
    store.ingest(
        make_object("2.25.4", "2.25.2", "2.25.3", fragments=FRAMES[:1], rows=40, columns=100, extra=extra)
    )

    assert store.frame_bytes("2.25.1", 0) == noise(4000)
    for uid in ("2.25.1", "2.25.4"):
        for index in (1, 10**9):
            with pytest.raises((NotFound, BadDicom)):
                store.frame_bytes(uid, index)


# --- Damage and cost -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "whole_frames"),
    [
        (
            make_object(
                "2.25.1", "2.25.2", "2.25.3", pixels=noise(600_000), rows=100, columns=1000, frames=6
            ),
            {0, 1},  # the others share a block of 256 KiB with the rotten byte
        ),
        (
            make_object("2.25.1", "2.25.2", "2.25.3", pixels=noise(60_000), rows=100, columns=100, frames=6),
            set(),
        ),
        (
            make_object("2.25.1", "2.25.2", "2.25.3", fragments=FRAMES, frames=5, rows=8, columns=8),
            {0, 1, 2, 4},
        ),
    ],
    ids=["native blocks", "native", "encapsulated"],
)
def test_a_rotten_frame_is_an_error_and_no_picture(store, file, whole_frames):
    store.ingest(file)
    expected = read_all(store)
    (bulk,) = Path(store.path, "packs").glob("*.bulk")
    whole = bulk.read_bytes()
    at = whole.index(expected[3][100:150])
    bulk.write_bytes(whole[:at] + bytes((whole[at] ^ 0x40,)) + whole[at + 1 :])

    with pytest.raises(Corrupt):
        store.read("2.25.1")
    for index, frame in enumerate(expected):
        if index in whole_frames:
            assert store.frame_bytes("2.25.1", index) == frame
        else:
            with pytest.raises(Corrupt):
                store.frame_bytes("2.25.1", index)


def test_a_frame_of_a_large_object_reads_no_more_than_itself_and_its_neighbours(store, monkeypatch):
    size, frames = 20_000, 2_000
    fragment = noise(size)
    large = b"".join(item(fragment) for _ in range(frames))
    head = make_object("2.25.1", "2.25.2", "2.25.3", fragments=[fragment], frames=frames, rows=8, columns=8)
    end = pack("<HHI", 0xFFFE, 0xE0DD, 0)
    at = head.rindex(item(fragment))
    store.ingest(head[:at] + large + end)
    store.ingest(
        make_object("2.25.4", "2.25.2", "2.25.3", pixels=bytes(size * 500), rows=100, columns=200, frames=500)
    )
    read = []
    real = PackReader.read

    def counted(self: PackReader, kinds: Any, container: int, offset: int, length: int) -> bytes:
        read.append(length)
        return real(self, kinds, container, offset, length)

    monkeypatch.setattr(PackReader, "read", counted)
    for index in (0, 1, 999, 1999):
        assert store.frame_bytes("2.25.1", index) == fragment
    assert sum(read) < 4 * (size + 100)
    assert len(read) == 8
    read.clear()
    assert store.frame_bytes("2.25.4", 499) == bytes(size)
    assert sum(read) <= 3 * record.BLOCK_SIZE
