"""Stored frames into arrays: made bytes for each rule, and every sample file against pydicom."""

from __future__ import annotations

import logging
import random
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.encaps import generate_frames
from pydicom.pixels import get_decoder
from pydicom.pixels.decoders.base import Decoder, DecodeRunner
from pydicom.pixels.processing import convert_color_space
from pydicom.uid import UID

from hilum.dicom.layout import DOUBLE_FLOAT_PIXEL_DATA, FLOAT_PIXEL_DATA, PIXEL_DATA, PixelLayout
from hilum.dicom.native import native_frame_span, shift_bits
from hilum.errors import BadDicom, HilumError, NotFound, Unsupported
from hilum.pixels.codecs import CODECS
from hilum.pixels.decode import decode_frame, decode_samples

Array = np.ndarray[Any, Any]

SAMPLES = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
PYDICOM_SAMPLES = Path(pydicom.__file__).parent / "data" / "test_files"
FRAMES_PER_FILE_MAX = 3

TS = "1.2.840.10008.1.2"
IMPLICIT_LITTLE, LITTLE, DEFLATED, BIG = TS, f"{TS}.1", f"{TS}.1.99", f"{TS}.2"
ENCAPSULATED_NATIVE = f"{TS}.1.98"
RLE, DEFLATED_FRAME = f"{TS}.5", f"{TS}.8.1"
JPEG, JPEG_12, JPEG_LOSSLESS, JPEG_LS, JPEG_2000 = (f"{TS}.4.{n}" for n in (50, 51, 70, 80, 90))
JPEG_XL, JPEG_XL_FROM_JPEG, JPEG_XL_LOSSY, HTJ2K = (f"{TS}.4.{n}" for n in (110, 111, 112, 201))

GREY = PixelLayout(
    tag=PIXEL_DATA,
    frame_count=1,
    rows=2,
    columns=3,
    samples_per_pixel=1,
    bits_allocated=8,
    bits_stored=8,
    pixel_representation=0,
    planar_configuration=0,
    photometric="MONOCHROME2",
)
GREY_16 = GREY._replace(bits_allocated=16, bits_stored=16)
GREY_12 = GREY_16._replace(bits_stored=12)
RGB = GREY._replace(samples_per_pixel=3, photometric="RGB")


# --- Where native frames lie -------------------------------------------------


def test_native_frames_follow_each_other_without_padding():
    three = GREY._replace(frame_count=3, columns=1, rows=3)
    assert [native_frame_span(three, n) for n in range(3)] == [(0, 3, 0), (3, 3, 0), (6, 3, 0)]


def test_a_one_bit_frame_may_begin_and_end_inside_a_byte():
    nine = GREY._replace(frame_count=3, rows=3, bits_allocated=1, bits_stored=1)
    assert [native_frame_span(nine, n) for n in range(3)] == [(0, 2, 0), (1, 2, 1), (2, 2, 2)]
    fifteen = nine._replace(columns=5)
    assert native_frame_span(fifteen, 1) == (1, 3, 7)  # the last bit of byte 1, byte 2, six bits of byte 3


def test_a_subsampled_frame_has_two_samples_a_pixel():
    assert native_frame_span(RGB._replace(photometric="YBR_FULL_422", frame_count=2), 1) == (12, 12, 0)


@pytest.mark.parametrize("index", [-1, 1, 2**40])
def test_a_frame_that_is_not_there_is_not_found(index):
    with pytest.raises(NotFound, match="among 1"):
        native_frame_span(GREY, index)


@given(st.binary(min_size=1, max_size=40), st.data())
def test_shifted_bits_are_the_bits_counted_one_by_one(data, draw):
    bit = draw.draw(st.integers(0, 7))
    count = draw.draw(st.integers(0, 8 * len(data) - bit))
    bits = [data[n // 8] >> n % 8 & 1 for n in range(bit, bit + count)]
    expected = bytes(
        sum(b << n for n, b in enumerate(bits[at : at + 8])) for at in range(0, count, 8)
    )  # fmt: skip
    assert shift_bits(data, bit, count) == shift_bits(memoryview(data), bit, count) == expected


def test_bits_past_the_last_byte_are_refused():
    with pytest.raises(BadDicom, match="9 bits from bit 0"):
        shift_bits(b"\xff", 0, 9)


def test_the_layer_below_works_without_numpy_and_the_decoder_loads_no_codec():
    code = (
        "import sys, hilum.dicom.native\n"
        "assert 'numpy' not in sys.modules\n"
        "import hilum.pixels.decode, hilum.pixels.transcode, hilum.pixels.render\n"
        "assert not {'imagecodecs', 'PIL', 'openjpeg', 'pydicom'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- Native frames -----------------------------------------------------------


@pytest.mark.parametrize("syntax", [IMPLICIT_LITTLE, LITTLE, DEFLATED, BIG])
def test_a_native_frame_is_read_row_by_row(syntax):
    frame = decode_frame(bytes(range(6)), GREY, syntax)
    assert frame.dtype == np.uint8
    assert frame.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_a_frame_is_new_memory_that_may_be_written_to():
    data = bytearray(range(6))
    frame = decode_frame(memoryview(data), GREY, LITTLE)
    frame[:] = 9
    assert data == bytes(range(6))


def test_one_bit_frames_are_zeros_and_ones_wherever_they_begin():
    # Three frames of 3 x 3 in 27 bits: 1st all ones, 2nd all zeros, 3rd the diagonal; then a pad of ones.
    layout = GREY._replace(frame_count=3, rows=3, bits_allocated=1, bits_stored=1)
    bits = "1" * 9 + "0" * 9 + "100010001" + "1" * 5
    value = int(bits[::-1], 2).to_bytes(4, "little")
    frames = []
    for index in range(3):
        span = native_frame_span(layout, index)
        stored = value[span.offset : span.offset + span.length]
        frames.append(decode_frame(shift_bits(stored, span.bit, layout.frame_bits), layout, LITTLE))
    assert [f.dtype for f in frames] == [np.uint8] * 3
    assert [f.tolist() for f in frames] == [[[1] * 3] * 3, [[0] * 3] * 3, np.eye(3).tolist()]


def test_colour_by_plane_comes_out_by_pixel():
    data = bytes([1, 2, 3, 4, 5, 6, 11, 12, 13, 14, 15, 16, 21, 22, 23, 24, 25, 26])
    frame = decode_frame(data, RGB._replace(planar_configuration=1), LITTLE)
    assert frame.tolist() == [
        [[1, 11, 21], [2, 12, 22], [3, 13, 23]],
        [[4, 14, 24], [5, 15, 25], [6, 16, 26]],
    ]


def test_subsampled_colour_is_doubled_and_made_rgb():
    # Two pixels, Y1 Y2 Cb Cr: both share the chroma of grey with a little red.
    layout = RGB._replace(rows=1, columns=2, photometric="YBR_FULL_422")
    full = np.array([[[100, 128, 138], [200, 128, 138]]], np.uint8)
    frame = decode_frame(bytes([100, 200, 128, 138]), layout, LITTLE)
    assert frame.tolist() == [[[114, 93, 100], [214, 193, 200]]]
    assert np.array_equal(frame, convert_color_space(full, "YBR_FULL", "RGB"))


@pytest.mark.parametrize("photometric", ["YBR_RCT", "YBR_ICT"])
def test_a_transform_inside_the_codestream_is_undone_and_the_samples_are_rgb(photometric):
    frame, layout = colour_frame(photometric)
    samples = decode_samples(_jpeg_2000(frame), layout, JPEG_2000)
    assert samples.photometric == "RGB"
    assert np.array_equal(samples.array, frame)


@pytest.mark.parametrize("syntax", [LITTLE, RLE, JPEG_LS, JPEG_2000])
def test_samples_stay_in_the_colours_in_which_they_are_stored(syntax):
    frame, layout = colour_frame("YBR_FULL")
    samples = decode_samples(MAKERS[syntax][0](frame), layout, syntax)
    assert samples.photometric == "YBR_FULL"
    assert np.array_equal(samples.array, frame)


def test_an_odd_number_of_subsampled_pixels_is_refused():
    with pytest.raises(BadDicom, match="even number of pixels"):
        decode_frame(bytes(6), RGB._replace(rows=1, photometric="YBR_FULL_422"), LITTLE)


def test_junk_above_the_stored_bits_is_masked():
    data = np.array([0xF001, 0x0FFF, 0xA800, 0, 1, 2], "<u2").tobytes()
    assert decode_frame(data, GREY_12, LITTLE).tolist() == [[1, 0xFFF, 0x800], [0, 1, 2]]


def test_the_highest_stored_bit_is_the_sign_of_signed_samples():
    data = np.array([0xF001, 0x0FFF, 0xA800, 0, 1, 2], "<u2").tobytes()
    frame = decode_frame(data, GREY_12._replace(pixel_representation=1), LITTLE)
    assert frame.dtype == np.int16
    assert frame.tolist() == [[1, -1, -2048], [0, 1, 2]]


@pytest.mark.parametrize("bits", [16, 32, 64])
@pytest.mark.parametrize("signed", [0, 1])
def test_both_byte_orders_give_the_same_samples(bits, signed):
    values = np.array([[0, 1, 258], [-1, -2, 2 ** (bits - 1) - 1]]).astype(f"{'ui'[signed]}{bits // 8}")
    layout = GREY._replace(bits_allocated=bits, bits_stored=bits, pixel_representation=signed)
    for syntax, order in ((LITTLE, "<"), (BIG, ">")):
        frame = decode_frame(values.astype(values.dtype.newbyteorder(order)).tobytes(), layout, syntax)
        assert frame.dtype == values.dtype
        assert frame.dtype.isnative
        assert np.array_equal(frame, values)


@pytest.mark.parametrize(("tag", "bits"), [(FLOAT_PIXEL_DATA, 32), (DOUBLE_FLOAT_PIXEL_DATA, 64)])
def test_floating_point_pixels_keep_every_bit(tag, bits):
    # Bits Stored and Pixel Representation have no meaning here, and may be anything.
    layout = GREY._replace(tag=tag, bits_allocated=bits, bits_stored=0, pixel_representation=7)
    values = np.array([[0.1, -1e30, np.inf], [-0.0, 1e-40, np.nan]], f"<f{bits // 8}")
    frame = decode_frame(values.tobytes(), layout, LITTLE)
    assert frame.dtype == values.dtype
    assert frame.tobytes() == values.tobytes()


def test_bytes_behind_the_frame_are_ignored_and_a_missing_one_is_not():
    assert decode_frame(bytes(range(7)), GREY, LITTLE).max() == 5
    with pytest.raises(BadDicom, match="5 bytes, the data set needs 6") as caught:
        decode_frame(bytes(5), GREY, LITTLE)
    assert caught.value.tag == PIXEL_DATA


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rows": 0}, "0 rows"),
        ({"columns": 0}, "0 columns"),
        ({"rows": -1}, "-1 rows"),
        ({"columns": 65536}, "65536 columns"),
        ({"samples_per_pixel": 2}, "neither 1 nor 3"),
        ({"samples_per_pixel": 3, "planar_configuration": 2}, "Planar Configuration is 2"),
        ({"bits_allocated": 0}, "Bits Allocated is 0"),
        ({"bits_allocated": 12}, "Bits Allocated is 12"),
        ({"bits_allocated": 24, "bits_stored": 24}, "Bits Allocated is 24"),
        ({"bits_stored": 9}, "Bits Stored is 9 of 8"),
        ({"bits_stored": 0}, "Bits Stored is 0 of 8"),
        ({"pixel_representation": 2}, "Pixel Representation is 2"),
        ({"tag": FLOAT_PIXEL_DATA}, "floating-point pixels have 32"),
        ({"photometric": "YBR_FULL"}, "one sample a pixel"),
        ({"rows": 65535, "columns": 65535}, "more than 2147483648"),
    ],
)
def test_a_layout_without_sense_is_refused(changes, words):
    with pytest.raises(BadDicom, match=words):
        decode_frame(bytes(64), GREY._replace(**changes), LITTLE)


def test_colour_of_more_than_eight_bits_that_is_not_rgb_is_unsupported():
    layout = RGB._replace(photometric="YBR_FULL", bits_allocated=16, bits_stored=16)
    with pytest.raises(Unsupported, match="no conversion to RGB"):
        decode_frame(bytes(36), layout, LITTLE)


def test_ybr_becomes_the_rgb_of_pydicom_but_for_exact_halves():
    """At (Cb, Cr) of (178, 78) and (78, 178) green is x.5 exactly.

    Half up is right; pydicom's float32 falls to either side, for one frame not as for the next.
    """
    cb, cr = np.meshgrid(np.arange(256), np.arange(256), indexing="ij")
    half = ((cb == 178) & (cr == 78)) | ((cb == 78) & (cr == 178))
    layout = RGB._replace(rows=256, columns=256, photometric="YBR_FULL")
    for luma in range(0, 256, 17):
        ybr = np.stack([np.full_like(cb, luma), cb, cr], axis=-1).astype(np.uint8)
        ours = decode_frame(ybr.tobytes(), layout, LITTLE)
        theirs = convert_color_space(ybr, "YBR_FULL", "RGB")
        assert np.array_equal(ours[~half], theirs[~half])
        green = np.array([luma - 18, luma + 19]).clip(0, 255)  # -18.5 and 18.5, half up
        assert ours[half, 1].tolist() == green.tolist()


# --- Syntaxes ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("syntax", "words"),
    [
        (f"{TS}.4.100", "video decoder"),
        (f"{TS}.4.102.1", "video decoder"),
        (f"{TS}.4.108", "video decoder"),
        (f"{TS}.4.94", "JPIP"),
        (f"{TS}.4.205", "JPIP"),
        (f"{TS}.4.66", "no decoder"),
        ("1.2.3", "no decoder"),
        ("", "no decoder"),
    ],
)
def test_a_syntax_without_a_decoder_says_what_is_missing(syntax, words):
    with pytest.raises(Unsupported, match=words):
        decode_frame(bytes(6), GREY, syntax)


def rle_frame(*segments: bytes, literal: Callable[[bytes], bytes] | None = None) -> bytes:
    """Make an RLE frame, PS3.5 G.5, RLE Header Format, of literal runs only."""

    def runs(plain: bytes) -> bytes:
        packed = b"".join(
            bytes([len(plain[at : at + 128]) - 1]) + plain[at : at + 128] for at in range(0, len(plain), 128)
        )
        return packed + bytes(len(packed) % 2)

    packed = [(literal or runs)(s) for s in segments]
    offsets = [64 + sum(map(len, packed[:n])) for n in range(len(packed))]
    header = [len(packed), *offsets, *[0] * (15 - len(packed))]
    return np.array(header, "<u4").tobytes() + b"".join(packed)


def _rle(frame: Array) -> bytes:
    planes = frame.reshape(*frame.shape[:2], -1)
    size = frame.dtype.itemsize
    return rle_frame(
        *(
            (planes[..., n] >> (8 * byte)).astype(np.uint8).tobytes()
            for n in range(planes.shape[2])
            for byte in reversed(range(size))
        )
    )


def _deflate(frame: Array) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(frame.tobytes()) + packer.flush()


def _jpeg(frame: Array) -> bytes:
    return imagecodecs.jpeg8_encode(frame, level=100, subsampling="444")


def _jpeg_lossless(frame: Array) -> bytes:
    space = {} if frame.ndim == 2 else {"colorspace": "RGB", "outcolorspace": "RGB"}
    return imagecodecs.jpeg8_encode(frame, lossless=True, bitspersample=8 * frame.itemsize, **space)


def _jpeg_2000(frame: Array) -> bytes:
    return imagecodecs.jpeg2k_encode(frame, codecformat="j2k", reversible=True, level=0)


def _htj2k(frame: Array) -> bytes:
    return imagecodecs.htj2k_encode(frame, reversible=True)


def _jpeg_xl(frame: Array) -> bytes:
    return imagecodecs.jpegxl_encode(frame, lossless=True)


# How a frame of each syntax is made, and how far each sample may then be off.
MAKERS: dict[str, tuple[Callable[[Array], bytes], int]] = {
    **dict.fromkeys((IMPLICIT_LITTLE, LITTLE, ENCAPSULATED_NATIVE, DEFLATED), (np.ndarray.tobytes, 0)),
    BIG: (lambda frame: frame.astype(frame.dtype.newbyteorder(">")).tobytes(), 0),
    RLE: (_rle, 0),
    DEFLATED_FRAME: (_deflate, 0),
    **dict.fromkeys((f"{TS}.4.{n}" for n in (50, 51, 53, 55)), (_jpeg, 3)),
    **dict.fromkeys((f"{TS}.4.{n}" for n in (57, 70)), (_jpeg_lossless, 0)),
    **dict.fromkeys((f"{TS}.4.{n}" for n in (80, 81)), (imagecodecs.jpegls_encode, 0)),
    **dict.fromkeys((f"{TS}.4.{n}" for n in (90, 91, 92, 93)), (_jpeg_2000, 0)),
    **dict.fromkeys((f"{TS}.4.{n}" for n in (201, 202, 203)), (_htj2k, 0)),
    **dict.fromkeys((JPEG_XL, JPEG_XL_LOSSY), (_jpeg_xl, 0)),
    JPEG_XL_FROM_JPEG: (lambda frame: imagecodecs.jpegxl_encode_jpeg(_jpeg(frame)), 3),
}
ENCAPSULATED = [syntax for syntax in MAKERS if syntax not in (IMPLICIT_LITTLE, LITTLE, DEFLATED, BIG)]


def grey_frame(dtype: str) -> tuple[Array, PixelLayout]:
    """A slope of 40 x 50, with a box of the greatest value."""
    rows, columns = np.mgrid[0:40, 0:50]
    top = np.iinfo(dtype).max
    frame = ((rows + columns) * (top // 100)).astype(dtype)
    frame[10:20, 30:45] = top
    bits = 8 * frame.itemsize
    return frame, GREY._replace(rows=40, columns=50, bits_allocated=bits, bits_stored=bits)


def colour_frame(photometric: str = "RGB") -> tuple[Array, PixelLayout]:
    grey, _ = grey_frame("uint8")
    frame = np.stack([grey, grey[::-1], grey[:, ::-1]], axis=-1)
    return np.ascontiguousarray(frame), RGB._replace(rows=40, columns=50, photometric=photometric)


def test_every_syntax_of_the_table_has_a_made_frame():
    assert set(MAKERS) == set(CODECS)


@pytest.mark.parametrize("syntax", MAKERS)
def test_a_made_grey_frame_comes_back(syntax):
    make, off_max = MAKERS[syntax]
    frame, layout = grey_frame("uint8")
    decoded = decode_frame(make(frame), layout, syntax)
    assert decoded.dtype == np.uint8
    assert np.abs(decoded.astype(int) - frame).max() <= off_max


@pytest.mark.parametrize("syntax", [syntax for syntax, (_, off_max) in MAKERS.items() if off_max == 0])
def test_a_made_frame_of_sixteen_bits_comes_back(syntax):
    frame, layout = grey_frame("uint16")
    decoded = decode_frame(MAKERS[syntax][0](frame), layout, syntax)
    assert decoded.dtype == np.uint16
    assert np.array_equal(decoded, frame)


@pytest.mark.parametrize("syntax", MAKERS)
def test_a_made_colour_frame_comes_back_as_rgb(syntax):
    make, off_max = MAKERS[syntax]
    # An encoder of baseline JPEG stores YCbCr, and the data set says so.
    frame, layout = colour_frame("YBR_FULL" if make is _jpeg else "RGB")
    decoded = decode_frame(make(frame), layout, syntax)
    assert decoded.shape == (40, 50, 3)
    assert np.abs(decoded.astype(int) - frame).max() <= off_max


def test_twelve_bit_jpeg_comes_back():
    frame, layout = grey_frame("uint16")
    frame >>= 4
    data = imagecodecs.jpeg8_encode(frame, level=100, bitspersample=12)
    decoded = decode_frame(data, layout._replace(bits_stored=12), JPEG_12)
    assert decoded.dtype == np.uint16
    assert np.abs(decoded.astype(int) - frame).max() <= 3


@pytest.mark.parametrize("syntax", ENCAPSULATED)
def test_a_frame_of_another_shape_than_the_layout_is_refused(syntax):
    make = MAKERS[syntax][0]
    grey, layout = grey_frame("uint8")
    for other in (layout._replace(rows=41), layout._replace(columns=99), RGB._replace(rows=40, columns=50)):
        with pytest.raises(BadDicom):
            decode_frame(make(grey), other, syntax)


@pytest.mark.parametrize("syntax", ENCAPSULATED)
@pytest.mark.parametrize("part", [0.0, 0.02, 0.5, 0.9])
def test_a_truncated_frame_is_refused(syntax, part):
    frame, layout = grey_frame("uint8")
    data = MAKERS[syntax][0](frame)
    with pytest.raises(BadDicom):
        decode_frame(data[: int(part * len(data))], layout, syntax)


@pytest.mark.parametrize("syntax", ENCAPSULATED)
def test_a_damaged_frame_gives_an_array_or_bad_dicom_and_nothing_else(syntax):
    dice = random.Random(syntax)
    frame, layout = grey_frame("uint8")
    whole = MAKERS[syntax][0](frame)
    for _ in range(200):
        data = bytearray(whole)
        for _ in range(dice.choice((1, 2, 8))):
            data[dice.randrange(min(len(data), dice.choice((40, 200, 10**6))))] = dice.randrange(256)
        with suppress(BadDicom):
            assert decode_frame(bytes(data), layout, syntax).shape == frame.shape


def test_an_error_of_a_codec_stays_inside():
    frame, layout = grey_frame("uint16")
    data = bytearray(imagecodecs.jpegls_encode(frame))
    data[-20:-2] = b"\x7f" * 18
    with pytest.raises(BadDicom, match="JPEG-LS Lossless frame can't be decoded: ") as caught:
        decode_frame(data, layout, JPEG_LS)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def _jpeg_with_size(data: bytes, rows: int, columns: int) -> bytes:
    at = next(
        data.index(b"\xff" + sof) for sof in (b"\xc0", b"\xc1", b"\xc3", b"\xf7") if b"\xff" + sof in data
    )
    return data[: at + 5] + rows.to_bytes(2, "big") + columns.to_bytes(2, "big") + data[at + 9 :]


def _jpeg_2000_with_size(data: bytes, rows: int, columns: int) -> bytes:
    return data[:8] + columns.to_bytes(4, "big") + rows.to_bytes(4, "big") + data[16:]


def _jpeg_xl_with_size(data: bytes, rows: int, columns: int) -> bytes:
    # Not small, selector 2 (18 bits) for both sides, no ratio; nothing is read behind that.
    bits = 2 << 1 | (rows - 1) << 3 | 2 << 24 | (columns - 1) << 26
    return data[:2] + bits.to_bytes(12, "little")


@pytest.mark.parametrize(
    ("syntax", "resize"),
    [
        *[(syntax, _jpeg_with_size) for syntax in (JPEG, JPEG_LOSSLESS, JPEG_LS)],
        *[(syntax, _jpeg_2000_with_size) for syntax in (JPEG_2000, HTJ2K)],
        (JPEG_XL, _jpeg_xl_with_size),
    ],
)
def test_a_codestream_that_claims_a_huge_image_is_refused_before_it_is_decoded(syntax, resize, monkeypatch):
    frame, layout = grey_frame("uint8")
    data = MAKERS[syntax][0](frame)
    for name in ("jpeg8", "jpegls", "jpeg2k", "jpegxl"):
        monkeypatch.setattr(imagecodecs, f"{name}_decode", lambda *_, **__: pytest.fail("it was decoded"))
    with pytest.raises(BadDicom, match="60000 rows, 59000 columns"):
        decode_frame(resize(data, 60000, 59000), layout, syntax)


def test_a_deflated_frame_that_inflates_beyond_the_frame_is_refused():
    with pytest.raises(BadDicom, match="Deflated Image Frame Compression"):
        decode_frame(_deflate(np.zeros(10**7, np.uint8)), GREY, DEFLATED_FRAME)


def test_floating_point_pixels_are_native_only():
    layout = GREY._replace(tag=FLOAT_PIXEL_DATA, bits_allocated=32)
    with pytest.raises(BadDicom, match="no floating-point"):
        decode_frame(rle_frame(bytes(6)), layout, RLE)


# --- RLE ---------------------------------------------------------------------


def test_one_bit_rle_packs_eight_pixels_in_a_byte():
    layout = GREY._replace(rows=3, bits_allocated=1, bits_stored=1)
    frame = decode_frame(rle_frame(b"\x11\x01"), layout, RLE)
    assert frame.tolist() == np.eye(3).tolist()


def test_an_rle_segment_may_be_longer_than_the_frame_but_not_without_end():
    assert decode_frame(rle_frame(bytes(range(8))), GREY, RLE).max() == 5
    run = b"\x81\x07" * 1000  # 128 bytes each
    with pytest.raises(BadDicom, match="RLE Lossless frame can't be decoded"):
        decode_frame(rle_frame(b"", literal=lambda _: run), GREY, RLE)


def test_an_rle_segment_may_be_padded_with_any_byte():
    frame = decode_frame(rle_frame(b"", literal=lambda _: b"\x05abcdef\x20"), GREY, RLE)
    assert frame.tobytes() == b"abcdef"


def test_an_rle_frame_without_its_header_is_refused():
    with pytest.raises(BadDicom, match="shorter than the RLE header"):
        decode_frame(rle_frame(bytes(6))[:63], GREY, RLE)


def test_an_rle_segment_that_is_too_short_is_refused():
    with pytest.raises(BadDicom, match="segment 0 has 5 bytes of 6"):
        decode_frame(rle_frame(bytes(5)), GREY, RLE)


@pytest.mark.parametrize("count", [0, 2, 16, 2**32 - 1])
def test_an_rle_header_with_another_number_of_segments_is_refused(count):
    data = count.to_bytes(4, "little") + rle_frame(bytes(6))[4:]
    with pytest.raises(BadDicom, match=f"counts {count} segments"):
        decode_frame(data, GREY, RLE)


@pytest.mark.parametrize("offset", [0, 63, 1000, 2**32 - 1])
def test_an_rle_segment_outside_the_frame_is_refused(offset):
    data = rle_frame(bytes(6))
    with pytest.raises(BadDicom, match="segment 0 lies outside"):
        decode_frame(data[:4] + offset.to_bytes(4, "little") + data[8:], GREY, RLE)


# --- Colour and sign of codestreams ------------------------------------------


def _with_marker(jpeg: bytes, code: int, payload: bytes) -> bytes:
    """Put an application marker first, and take the encoder's own away."""
    at = 2
    while 0xE0 <= jpeg[at + 1] <= 0xEF:
        at += 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
    return jpeg[:2] + bytes([0xFF, code]) + (len(payload) + 2).to_bytes(2, "big") + payload + jpeg[at:]


def _jpeg_without_transform(frame: Array) -> bytes:
    """Samples stored as they are, under component ids 1, 2, 3: only markers can tell what they are."""
    return imagecodecs.jpeg8_encode(
        frame, level=100, subsampling="444", colorspace="YCBCR", outcolorspace="YCBCR"
    )


JFIF = b"JFIF\x00\x01\x02\x00\x00\x01\x00\x01\x00\x00"


def _adobe(transform: int) -> bytes:
    return b"Adobe\x00\x64\x00\x00\x00\x00" + bytes([transform])


@pytest.mark.parametrize(
    ("photometric", "marker", "converted"),
    [
        ("RGB", (0xEE, _adobe(0)), False),
        ("RGB", (0xE0, JFIF), True),
        ("YBR_FULL", (0xE0, JFIF), True),
        ("YBR_FULL_422", (0xE0, JFIF), True),
        ("YBR_RCT", (0xE0, JFIF), False),
        # Both say YCbCr: converted once, where pydicom does it twice.
        ("YBR_FULL", (0xEE, _adobe(1)), True),
        ("RGB", (0xEE, _adobe(1)), True),
    ],
)
def test_a_jpeg_is_converted_to_rgb_once_if_its_markers_or_the_data_set_say_ybr(
    photometric, marker, converted
):
    frame, layout = colour_frame(photometric)
    stored = convert_color_space(frame, "RGB", "YBR_FULL") if converted else frame
    data = _with_marker(_jpeg_without_transform(stored), *marker)
    decoded = decode_frame(data, layout, JPEG)
    assert np.abs(decoded.astype(int) - frame).max() <= 6


def test_a_jpeg_marker_may_come_after_fill_bytes():
    frame, layout = grey_frame("uint8")
    data = _jpeg(frame)
    assert decode_frame(data[:2] + b"\xff\xff" + data[2:], layout, JPEG).shape == frame.shape


def test_a_jpeg_that_ends_in_its_frame_header_is_refused():
    frame, layout = grey_frame("uint8")
    data = _jpeg(frame)
    with pytest.raises(BadDicom, match="frame header is cut off"):
        decode_frame(data[: data.index(b"\xff\xc0") + 9], layout, JPEG)


def test_a_jpeg_with_components_named_rgb_is_rgb():
    frame, layout = colour_frame("YBR_FULL")
    data = imagecodecs.jpeg8_encode(
        frame, level=100, subsampling="444", colorspace="RGB", outcolorspace="RGB"
    )
    assert b"R\x11\x00G\x11\x00B\x11\x00" in data  # the component ids in its frame header
    decoded = decode_frame(data, layout, JPEG)
    assert np.abs(decoded.astype(int) - frame).max() <= 3


@pytest.mark.parametrize("photometric", ["YBR_RCT", "YBR_ICT", "RGB"])
def test_the_component_transform_of_jpeg_2000_is_undone_once(photometric):
    frame, layout = colour_frame(photometric)
    data = imagecodecs.jpeg2k_encode(frame, codecformat="j2k", reversible=True, level=0, mct=True)
    assert np.array_equal(decode_frame(data, layout, JPEG_2000), frame)


def test_ybr_full_in_jpeg_2000_is_made_rgb():
    frame, layout = colour_frame("YBR_FULL")
    data = imagecodecs.jpeg2k_encode(
        convert_color_space(frame, "RGB", "YBR_FULL"), codecformat="j2k", reversible=True, level=0, mct=False
    )
    assert np.abs(decode_frame(data, layout, JPEG_2000).astype(int) - frame).max() <= 2


def test_a_sign_that_a_jpeg_2000_codestream_does_not_declare_is_made():
    # Twelve bits in two's complement, declared unsigned by the codestream: 0xFFF is -1.
    frame = np.tile(np.array([0, 1, 0x7FF, 0x800, 0xFFF], np.uint16), (4, 2))
    data = imagecodecs.jpeg2k_encode(frame, codecformat="j2k", reversible=True, level=0, bitspersample=12)
    layout = GREY_12._replace(rows=4, columns=10, pixel_representation=1)
    decoded = decode_frame(data, layout, JPEG_2000)
    assert decoded.dtype == np.int16
    assert decoded[0].tolist() == [0, 1, 0x7FF, -0x800, -1] * 2
    # As pydicom does, for grey only.
    indexes = decode_frame(data, layout._replace(photometric="PALETTE COLOR"), JPEG_2000)
    assert indexes.max() == 0xFFF


def test_jpeg_ls_samples_are_as_signed_as_the_data_set_says():
    # JPEG-LS has no sign to declare. Eight bits, in sixteen allocated.
    frame = np.tile(np.array([0, 1, 0x7F, 0x80, 0xFF], np.uint8), (4, 2))
    layout = GREY_16._replace(rows=4, columns=10, bits_stored=8, pixel_representation=1)
    decoded = decode_frame(imagecodecs.jpegls_encode(frame), layout, JPEG_LS)
    assert decoded.dtype == np.int16
    assert decoded[0].tolist() == [0, 1, 0x7F, -0x80, -1] * 2


def test_jpeg_2000_in_a_whole_jp2_file_is_decoded():
    frame, layout = grey_frame("uint8")
    data = imagecodecs.jpeg2k_encode(frame, codecformat="jp2", reversible=True, level=0)
    assert np.array_equal(decode_frame(data, layout, JPEG_2000), frame)


def test_samples_wider_than_bits_allocated_are_refused():
    frame, layout = grey_frame("uint16")
    with pytest.raises(BadDicom, match="uint16, which Bits Allocated does not hold"):
        decode_frame(_jpeg_2000(frame), layout._replace(bits_allocated=8, bits_stored=8), JPEG_2000)


def test_samples_narrower_than_bits_allocated_are_widened():
    frame, layout = grey_frame("uint8")
    decoded = decode_frame(_jpeg(frame), layout._replace(bits_allocated=16), JPEG)
    assert decoded.dtype == np.uint16
    assert np.abs(decoded.astype(int) - frame).max() <= 3


# --- Every sample file against pydicom ---------------------------------------

# Syntaxes that pydicom decodes only with libraries that are no dependency, or not at all. Here it is given a
# codec of imagecodecs as its plugin, so that all that comes after the codec is still its own. For lossless
# JPEG that is another implementation than Hilum's.
STAND_INS: dict[str, Callable[[bytes], Array]] = {
    **dict.fromkeys((f"{TS}.4.{n}" for n in (51, 53, 55)), imagecodecs.jpeg8_decode),
    **dict.fromkeys((f"{TS}.4.{n}" for n in (57, 70)), imagecodecs.jpegsof3_decode),
    **dict.fromkeys((f"{TS}.4.{n}" for n in (80, 81)), imagecodecs.jpegls_decode),
}

STAND_IN_ENCODERS: dict[Callable[[bytes], Array], Callable[[Array], bytes]] = {
    imagecodecs.jpeg8_decode: lambda frame: imagecodecs.jpeg8_encode(frame, bitspersample=12),
    imagecodecs.jpegsof3_decode: _jpeg_lossless,
    imagecodecs.jpegls_decode: imagecodecs.jpegls_encode,
}

NEW_SYNTAX = "pydicom 3.0 does not know the transfer syntax"
LENIENT = "an attribute is missing or unknown that the pixels don't need"
HILUM_ALONE = {
    "fuzz-corpus/fuzz_corpus_v2/cat04_pixel_data/TC0327_mono2_spp3.dcm": LENIENT,
    "fuzz-corpus/fuzz_corpus_v2/cat04_pixel_data/TC0333_pi_empty.dcm": LENIENT,
    "fuzz-corpus/fuzz_corpus_v2/cat04_pixel_data/TC0335_pi_256chars.dcm": LENIENT,
    "fuzz-corpus/fuzz_corpus_v3/cat04_pixel_data/TC0327_mono2_spp3.dcm": LENIENT,
    "fuzz-corpus/fuzz_corpus_v3/cat04_pixel_data/TC0331_pi_invalid.dcm": LENIENT,
    "fuzz-corpus/fuzz_corpus_v3/cat04_pixel_data/TC0335_pi_256chars.dcm": LENIENT,
    "fuzz-corpus/fuzz_corpus_v3/cat16_cve_dcmtk_null_pathtraversal/TC0879_missing_spp.dcm": LENIENT,
    "made-here/rgb_jpegxl_lossless.dcm": NEW_SYNTAX,
    "made-here/rgb_jpegxl_lossy.dcm": NEW_SYNTAX,
    "orthanc-jxl/tests/data/test_ct1_jxl.dcm": NEW_SYNTAX,
    "pydicom-data/data_store/data/liver_deflate.dcm": NEW_SYNTAX,
    "pydicom-data/data_store/data/liver_nonbyte_aligned_deflate.dcm": NEW_SYNTAX,
    "pydicom-data/data_store/data/liver_nonbyte_aligned_rle.dcm": "pydicom 3.0 has no RLE of one bit",
    "pydicom-data/data_store/data/liver_rle.dcm": "pydicom 3.0 has no RLE of one bit",
    "viewerv3/tests/fixtures/dicom_decoder/synthetic_rgb_no_color_markers_jpeg_baseline.dcm": (
        "Pillow refuses components named RGB without a marker"
    ),
}

# Files whose pixels are those of another one exactly: the witness where pydicom is none, or a second one.
WG04 = "dicom-test-files/data/WG04"
CT_IMAGE = "cs3d/packages/dicomImageLoader/examplesOld/test-images/CTImage.dcm"
LIVER = "pydicom-data/data_store/data/liver"
SYNTHETIC = "viewerv3/tests/fixtures/dicom_decoder/synthetic_monochrome"
TWINS = [
    *[
        (f"{WG04}/{kind}/{name}_{kind}", f"{WG04}/REF/{name}_UNC")
        for kind, names in {
            "J2KR": "CT1 CT2 MR1 MR3 MR4 NM1",
            "JLSL": "CT1 CT2 MR1 MR3 MR4 NM1",
            "JPLL": "CT1 CT2 MR1 MR3 MR4",
            "RLE": "CT1 CT2 MR1 MR3 MR4 NM1",
        }.items()
        for name in names.split()
    ],
    (f"{CT_IMAGE}_JPEGProcess14TransferSyntax_{TS}.4.57.dcm", f"{CT_IMAGE}"),
    (f"{CT_IMAGE}_JPEGProcess14SV1TransferSyntax_{TS}.4.70.dcm", f"{CT_IMAGE}"),
    (f"{CT_IMAGE}_JPEGLSLosslessTransferSyntax_{TS}.4.80.dcm", f"{CT_IMAGE}"),
    # The same coefficients, sequential and in two progressions.
    (
        f"{CT_IMAGE}_JPEGProcess6_8TransferSyntax_{TS}.4.53.dcm",
        f"{CT_IMAGE}_JPEGProcess2_4TransferSyntax_{TS}.4.51.dcm",
    ),
    (
        f"{CT_IMAGE}_JPEGProcess10_12TransferSyntax_{TS}.4.55.dcm",
        f"{CT_IMAGE}_JPEGProcess2_4TransferSyntax_{TS}.4.51.dcm",
    ),
    (f"{LIVER}_deflate.dcm", f"{LIVER}.dcm"),
    (f"{LIVER}_rle.dcm", f"{LIVER}.dcm"),
    (f"{LIVER}_nonbyte_aligned_deflate.dcm", f"{LIVER}_nonbyte_aligned.dcm"),
    (f"{LIVER}_nonbyte_aligned_rle.dcm", f"{LIVER}_nonbyte_aligned.dcm"),
    ("orthanc-jxl/tests/data/test_ct1_jxl.dcm", "orthanc-jxl/tests/data/test_ct1.dcm"),
    *[
        (f"{SYNTHETIC}_{kind}.dcm", f"{SYNTHETIC}_uncompressed_12_bit.dcm")
        for kind in ("jpeg_lossless_p14", "jpeg_lossless_sv1", "jpegls_lossless", "rle_lossless")
    ],
]

needs_samples = pytest.mark.skipif(not SAMPLES.is_dir(), reason="no sample files beside the project")
FOLDERS = sorted(p.name for p in SAMPLES.iterdir() if p.is_dir()) if SAMPLES.is_dir() else ["none"]


def is_available(uid: str) -> bool:
    """Called by pydicom for a plugin in this module."""
    return uid in STAND_INS


def stand_in_frame(data: bytes, runner: DecodeRunner) -> bytes:
    """Called by pydicom for a plugin in this module."""
    frame = STAND_INS[runner.transfer_syntax](data)
    runner.set_option("planar_configuration", 0)
    runner.set_option("bits_allocated", 8 * frame.itemsize)
    return frame.tobytes()


@pytest.fixture(autouse=True, scope="module")
def quiet_pydicom() -> Iterator[None]:
    """Half of the sample files make pydicom warn, and each that it can't decode makes it log a traceback."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    yield
    logger.setLevel(level)


def data_set_of(path: Path) -> pydicom.Dataset | None:
    """Return the data set if pydicom can read it and it has pixels of a known layout."""
    try:
        data_set = pydicom.dcmread(path, force=True)
        has_pixels = any(tag in data_set for tag in (PIXEL_DATA, FLOAT_PIXEL_DATA, DOUBLE_FLOAT_PIXEL_DATA))
        if not has_pixels or "TransferSyntaxUID" not in data_set.file_meta:
            return None
        layout_of(data_set)
    except Exception:  # whatever a damaged file makes pydicom raise
        return None
    return data_set


def layout_of(data_set: pydicom.Dataset) -> PixelLayout:
    def number(keyword: str, default: int) -> int:
        value = data_set.get(keyword)
        return default if value is None else int(value)

    return PixelLayout(
        tag=next(tag for tag in (PIXEL_DATA, FLOAT_PIXEL_DATA, DOUBLE_FLOAT_PIXEL_DATA) if tag in data_set),
        frame_count=number("NumberOfFrames", 1) or 1,
        rows=number("Rows", 0),
        columns=number("Columns", 0),
        samples_per_pixel=number("SamplesPerPixel", 1),
        bits_allocated=number("BitsAllocated", 0),
        bits_stored=number("BitsStored", 0),
        pixel_representation=number("PixelRepresentation", 0),
        planar_configuration=number("PlanarConfiguration", 0),
        photometric=str(data_set.get("PhotometricInterpretation") or ""),
    )


class CantCut(Exception):
    """Too few fragments, and no offset table."""


def our_frames(data_set: pydicom.Dataset) -> list[Array]:
    """Cut the frames out of the value and decode them, as the engine does.

    Raises HilumError for what Hilum refuses, CantCut where pydicom can't tell the fragments of the frames.
    """
    layout, syntax = layout_of(data_set), str(data_set.file_meta.TransferSyntaxUID)
    element = data_set[layout.tag]
    value = element.value or b""
    indexes = range(min(layout.frame_count, FRAMES_PER_FILE_MAX))
    if syntax not in (IMPLICIT_LITTLE, LITTLE, DEFLATED, BIG):
        try:
            stored = list(islice(generate_frames(value, number_of_frames=layout.frame_count), len(indexes)))
        except ValueError as failure:
            raise CantCut from failure
        return [decode_frame(frame, layout, syntax) for frame in stored]
    if syntax == BIG and element.VR == "OW" and layout.bits_allocated == 8:
        value = np.frombuffer(value, "u2").byteswap().tobytes()
    frames = []
    for index in indexes:
        span = native_frame_span(layout, index)
        stored = value[span.offset : span.offset + span.length]
        if span.bit:
            stored = shift_bits(stored, span.bit, layout.frame_bits)
        frames.append(decode_frame(stored, layout, syntax))
    return frames


def pydicom_frames(data_set: pydicom.Dataset) -> list[Array]:
    """Raises whatever pydicom raises, if it can't decode the frames with a stand-in either."""
    syntax = data_set.file_meta.TransferSyntaxUID
    count = min(layout_of(data_set).frame_count, FRAMES_PER_FILE_MAX)
    try:
        decoder = get_decoder(syntax)
        return [decoder.as_array(data_set, index=n)[0] for n in range(count)]
    except Exception:
        if syntax not in STAND_INS:
            raise
    decoder = Decoder(UID(syntax))
    decoder.add_plugin("imagecodecs", (__name__, "stand_in_frame"))
    return [decoder.as_array(data_set, index=n)[0] for n in range(count)]


def same(ours: list[Array], theirs: list[Array]) -> bool:
    """Every bit the same, but that pydicom leaves big-endian samples in their order."""
    return len(ours) == len(theirs) and all(
        a.dtype == b.dtype.newbyteorder("=")
        and a.shape == b.shape
        and a.tobytes() == b.astype(a.dtype).tobytes()
        for a, b in zip(ours, theirs, strict=True)
    )


def compare(folder: Path, root: Path) -> set[str]:
    """Compare each file of a folder; return those that only Hilum decodes, as paths below the root."""
    alone = set()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(root).as_posix()
        data_set = data_set_of(path)
        if data_set is None:
            continue
        ours = None
        with suppress(HilumError, CantCut):
            ours = our_frames(data_set)
        theirs = None
        with suppress(Exception):  # for a damaged file pydicom raises almost anything
            theirs = pydicom_frames(data_set)
        if theirs is not None:
            assert ours is not None, f"only pydicom decodes {name}"
            assert same(ours, theirs), f"other pixels than pydicom's in {name}"
        elif ours is not None:
            alone.add(name)
    return alone


@needs_samples
@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.filterwarnings("ignore")
def test_frames_of_the_sample_files_are_those_of_pydicom(folder):
    expected = {name for name in HILUM_ALONE if name.startswith(f"{folder}/")}
    assert compare(SAMPLES / folder, SAMPLES) == expected


@pytest.mark.filterwarnings("ignore")
def test_frames_of_pydicoms_own_files_are_those_of_pydicom():
    assert compare(PYDICOM_SAMPLES, PYDICOM_SAMPLES) == set()


@needs_samples
@pytest.mark.parametrize(("one", "other"), TWINS, ids=[Path(one).name for one, _ in TWINS])
@pytest.mark.filterwarnings("ignore")
def test_a_file_and_its_twin_in_another_syntax_have_the_same_pixels(one, other):
    first, second = (pydicom.dcmread(SAMPLES / name, force=True) for name in (one, other))
    for data_set in (first, second):
        data_set.file_meta.setdefault("TransferSyntaxUID", UID(IMPLICIT_LITTLE))
    assert same(our_frames(first), our_frames(second))


@pytest.mark.parametrize("syntax", STAND_INS)
@pytest.mark.filterwarnings("ignore")
def test_pydicom_still_needs_the_stand_in(syntax):
    frame, _ = grey_frame("uint16")
    data_set = pydicom.Dataset()
    data_set.file_meta = pydicom.dataset.FileMetaDataset()
    data_set.file_meta.TransferSyntaxUID = UID(syntax)
    data_set.Rows, data_set.Columns, data_set.SamplesPerPixel = 40, 50, 1
    data_set.PhotometricInterpretation, data_set.PixelRepresentation = "MONOCHROME2", 0
    data_set.BitsAllocated, data_set.BitsStored = 16, 12
    encode = STAND_IN_ENCODERS[STAND_INS[syntax]]
    data_set.PixelData = pydicom.encaps.encapsulate([encode(frame >> 4)])
    with pytest.raises((RuntimeError, NotImplementedError)):
        get_decoder(syntax).as_array(data_set, index=0)
    assert pydicom_frames(data_set)[0].shape == (40, 50)
