"""Frames into codestreams that lose nothing: each encoder by Hilum's decoder, and pydicom's if it has one."""

from __future__ import annotations

import re
import zlib
from typing import Any

import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom.pixels import get_decoder
from pydicom.uid import UID

from hilum.dicom.layout import DOUBLE_FLOAT_PIXEL_DATA, FLOAT_PIXEL_DATA, PIXEL_DATA, PixelLayout
from hilum.errors import Unsupported
from hilum.pixels.codecs import CODECS, Samples
from hilum.pixels.decode import decode_samples
from hilum.pixels.encode import ENCODERS, encode_frame, native_bytes, photometric_of

Array = np.ndarray[Any, Any]

TS = "1.2.840.10008.1.2"
RLE, DEFLATED_FRAME = f"{TS}.5", f"{TS}.8.1"
JPEG_LOSSLESS, JPEG_LS, JPEG_2000, HTJ2K, HTJ2K_RPCL = (f"{TS}.4.{n}" for n in (70, 80, 90, 201, 202))
BY_PYDICOM = (RLE, JPEG_2000, HTJ2K, HTJ2K_RPCL)  # what it decodes with libraries that are installed here
DEPTHS = [(1, 1), (8, 8), (8, 5), (16, 16), (16, 12), (16, 8), (16, 7), (32, 32), (64, 64)]
COLOURS = ["MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB", "YBR_FULL"]


def layout_of(
    rows: int = 37,
    columns: int = 53,
    bits: tuple[int, int] = (8, 8),
    signed: int = 0,
    colour: str = "MONOCHROME2",
) -> PixelLayout:
    samples = 3 if colour in ("RGB", "YBR_FULL") else 1
    return PixelLayout(PIXEL_DATA, 1, rows, columns, samples, *bits, signed, 0, colour)


def frame_of(layout: PixelLayout) -> Array:
    """Half of it slopes and boxes, half noise over all values that there are."""
    bits, signed = layout.bits_stored, layout.pixel_representation and layout.bits_allocated > 1
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    kind = f"{'ui'[signed]}{max(1, layout.bits_allocated // 8)}"
    shape = (layout.rows, layout.columns, layout.samples_per_pixel)
    dice = np.random.default_rng(7)
    frame = dice.integers(low, high, shape, dtype=f"{'ui'[signed]}8", endpoint=True)
    smooth = (
        np.add.outer(np.arange(layout.rows // 2), np.arange(layout.columns)) // 3 % min(high + 1, 1 << 31)
    )
    frame[: layout.rows // 2] = smooth[..., None]
    frame = frame.astype(kind)
    return frame[..., 0] if layout.samples_per_pixel == 1 else frame


def there_and_back(frame: Array, layout: PixelLayout, syntax: str) -> Samples:
    data = encode_frame(Samples(frame, layout.photometric), layout, syntax)
    assert len(data) % 2 == 0
    named = photometric_of(layout.photometric, syntax)
    return decode_samples(data, layout._replace(photometric=named), syntax)


@pytest.mark.parametrize("syntax", ENCODERS)
@pytest.mark.parametrize("bits", DEPTHS, ids=str)
@pytest.mark.parametrize("signed", [0, 1])
@pytest.mark.parametrize("colour", COLOURS)
def test_every_sample_comes_back(syntax, bits, signed, colour):
    layout = layout_of(bits=bits, signed=signed, colour=colour)
    frame = frame_of(layout)
    can = bits[0] <= ENCODERS[syntax].bits_max and (
        bits[0] > 1 or (layout.samples_per_pixel == 1 and syntax in (RLE, DEFLATED_FRAME))
    )
    if syntax == RLE and layout.samples_per_pixel * bits[0] > 15 * 8:
        can = False
    if not can:
        with pytest.raises(Unsupported):
            encode_frame(Samples(frame, colour), layout, syntax)
        return
    samples = there_and_back(frame, layout, syntax)
    assert samples.photometric == colour
    assert samples.array.dtype == frame.dtype
    assert np.array_equal(samples.array, frame)


@pytest.mark.parametrize("syntax", ENCODERS)
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 300), (300, 1), (2, 3), (31, 65), (600, 70)])
def test_a_frame_of_any_shape_comes_back(syntax, rows, columns):
    for colour in ("MONOCHROME2", "RGB"):
        layout = layout_of(rows, columns, (16, 12), colour=colour)
        frame = frame_of(layout)
        assert np.array_equal(there_and_back(frame, layout, syntax).array, frame)


@pytest.mark.parametrize("syntax", BY_PYDICOM)
@pytest.mark.parametrize(("bits", "signed"), [((8, 8), 0), ((16, 12), 0), ((16, 12), 1), ((16, 16), 1)])
@pytest.mark.parametrize("colour", ["MONOCHROME2", "RGB"])
@pytest.mark.filterwarnings(
    "ignore:The bit depth of the JPEG2000", "ignore:The .0028,0101. Bits Stored value"
)
def test_pydicom_finds_the_same_samples(syntax, bits, signed, colour):
    layout = layout_of(bits=bits, signed=signed, colour=colour)
    frame = frame_of(layout)
    data_set = pydicom.Dataset()
    data_set.file_meta = pydicom.dataset.FileMetaDataset()
    data_set.file_meta.TransferSyntaxUID = UID(syntax)
    data_set.Rows, data_set.Columns = layout.rows, layout.columns
    data_set.SamplesPerPixel, data_set.PlanarConfiguration = layout.samples_per_pixel, 0
    data_set.PhotometricInterpretation = photometric_of(colour, syntax)
    data_set.BitsAllocated, data_set.BitsStored = bits
    data_set.PixelRepresentation = signed
    encoded = encode_frame(Samples(frame, colour), layout, syntax)
    data_set.PixelData = pydicom.encaps.encapsulate([encoded])
    theirs = get_decoder(syntax).as_array(data_set, index=0)[0]
    assert np.array_equal(theirs, frame)


@pytest.mark.parametrize("signed", [0, 1])
def test_other_codecs_find_the_same_samples_in_jpeg_and_jpeg_ls(signed):
    layout = layout_of(bits=(16, 16), signed=signed)
    frame = frame_of(layout)
    samples = Samples(frame, "MONOCHROME2")
    lossless = imagecodecs.jpegsof3_decode(encode_frame(samples, layout, JPEG_LOSSLESS))
    near = imagecodecs.jpegls_decode(encode_frame(samples, layout, JPEG_LS))
    assert np.array_equal(lossless.view(frame.dtype), frame)
    assert np.array_equal(near.view(frame.dtype), frame)


def test_nothing_that_can_lose_is_made():
    lossy = {f"{TS}.4.{n}" for n in (50, 51, 53, 55, 81, 91, 92, 93, 111, 112, 203)}
    assert not lossy & set(ENCODERS)
    assert set(ENCODERS) <= set(CODECS)
    layout = layout_of()
    for syntax in lossy:
        with pytest.raises(Unsupported, match="no lossless encoder"):
            encode_frame(Samples(frame_of(layout), "MONOCHROME2"), layout, syntax)


@pytest.mark.parametrize("syntax", ENCODERS)
@pytest.mark.parametrize(("tag", "bits"), [(FLOAT_PIXEL_DATA, 32), (DOUBLE_FLOAT_PIXEL_DATA, 64)])
def test_floating_point_pixels_are_native_only(syntax, tag, bits):
    layout = layout_of(bits=(bits, bits))._replace(tag=tag)
    with pytest.raises(Unsupported, match="no floating-point"):
        encode_frame(Samples(np.zeros((37, 53), f"f{bits // 8}"), "MONOCHROME2"), layout, syntax)


# --- What each codestream says of itself -------------------------------------


@pytest.mark.parametrize(
    ("bits", "signed"), [((8, 5), 0), ((16, 12), 0), ((16, 12), 1), ((16, 16), 1), ((16, 7), 1)]
)
def test_the_precision_of_jpeg_2000_is_bits_stored(bits, signed):
    """PS3.5 8.2.4, JPEG 2000 Image Compression."""
    layout = layout_of(bits=bits, signed=signed)
    data = encode_frame(Samples(frame_of(layout), "MONOCHROME2"), layout, JPEG_2000)
    assert data.startswith(b"\xff\x4f\xff\x51")  # a codestream, no JP2 file
    assert data[42] == signed << 7 | bits[1] - 1  # Ssiz


@pytest.mark.parametrize("syntax", [JPEG_2000, HTJ2K, HTJ2K_RPCL])
def test_only_rgb_is_transformed_and_the_wavelet_is_reversible(syntax):
    for colour, transform, named in (("RGB", 1, "YBR_RCT"), ("YBR_FULL", 0, "YBR_FULL")):
        layout = layout_of(colour=colour)
        data = encode_frame(Samples(frame_of(layout), colour), layout, syntax)
        cod = data.index(b"\xff\x52")
        assert data[cod + 8] == transform
        assert data[cod + 13] == 1  # the 5-3 filter
        assert photometric_of(colour, syntax) == named


@pytest.mark.parametrize("side", [64, 65, 512, 1000, 5000])
def test_htj2k_rpcl_has_its_order_its_levels_and_its_lengths(side):
    """PS3.5 10.18, Transfer Syntaxes for HTJ2K: RPCL, a base resolution of 64 or less, tile-part lengths."""
    layout = layout_of(side, 8)
    data = encode_frame(Samples(frame_of(layout), "MONOCHROME2"), layout, HTJ2K_RPCL)
    main = data[: data.index(b"\xff\x90")]
    cod = main.index(b"\xff\x52")
    assert main[cod + 5] == 2
    assert -(-side // 2 ** main[cod + 9]) <= 64
    assert b"\xff\x55" in main


@pytest.mark.parametrize("colour", ["MONOCHROME2", "RGB", "YBR_FULL"])
def test_jpeg_lossless_is_process_14_with_selection_value_1_and_tables_that_it_names(colour):
    layout = layout_of(bits=(16, 12), colour=colour)
    data = encode_frame(Samples(frame_of(layout), colour), layout, JPEG_LOSSLESS)
    assert data[data.index(b"\xff\xc3") + 4] == 12
    sos = data.index(b"\xff\xda")
    count = data[sos + 4]
    assert data[sos + 5 + 2 * count] == 1
    named = {data[sos + 6 + 2 * n] >> 4 for n in range(count)}
    defined = {data[found.start() + 4] for found in re.finditer(b"\xff\xc4", data[:sos])}
    assert named == defined


def test_no_rle_run_goes_over_the_end_of_a_row():
    """PS3.5 G.3.1, The RLE Algorithm: each row is encoded for itself."""
    layout = layout_of(5, 200)
    data = encode_frame(Samples(np.full((5, 200), 9, np.uint8), "MONOCHROME2"), layout, RLE)
    assert np.frombuffer(data, "<u4", 3).tolist() == [1, 64, 0]
    assert data[64:] == b"\x81\x09\xb9\x09" * 5  # a run of 128, a run of 72


def test_rle_segments_are_even_and_begin_with_the_most_significant_byte():
    layout = layout_of(1, 3, (16, 16))
    data = encode_frame(Samples(np.array([[0x0102, 0x0304, 0x0506]], np.uint16), "MONOCHROME2"), layout, RLE)
    assert np.frombuffer(data, "<u4", 4).tolist() == [2, 64, 68, 0]
    assert data[64:] == b"\x02\x01\x03\x05\x02\x02\x04\x06"


def test_a_deflated_frame_is_a_raw_stream_of_the_native_one():
    layout = layout_of(3, 3, (1, 1))
    frame = np.eye(3, dtype=np.uint8)
    data = encode_frame(Samples(frame, "MONOCHROME2"), layout, DEFLATED_FRAME)
    assert zlib.decompress(data, -15) == native_bytes(frame, layout) == b"\x11\x01"
