"""Takes one stored frame and its layout; gives its pixels as an array. Never opens a file.

The pixels are those of pydicom's Dataset.pixel_array: unused bits masked, sign extended, colour by pixel,
YBR_FULL and YBR_FULL_422 turned into RGB. Palettes, modality and VOI transformations are left to the caller.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from hilum.dicom.layout import DOUBLE_FLOAT_PIXEL_DATA, FLOAT_PIXEL_DATA, PIXEL_DATA, PixelLayout
from hilum.errors import HilumError, Unsupported
from hilum.pixels.codecs import CODECS, Array, Samples, bad, shape_of

FRAME_BYTES_MAX = 2**31  # of one decoded frame

_NATIVE = {  # the only ones that may hold floating-point pixels
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.1",
    "1.2.840.10008.1.2.1.99",
    "1.2.840.10008.1.2.2",
}

# PS3.6 Annex A, Registry of DICOM Unique Identifiers (UIDs), Table A-1. A fragmentable video has the UID of
# the plain one with ".1" behind it.
_WHY_NOT = {
    **{
        f"1.2.840.10008.1.2.4.{n}": "the pixels are a video, and there is no video decoder here"
        for n in range(100, 109)
    },
    **{
        f"1.2.840.10008.1.2.4.{n}": "the pixels are on a JPIP server, and there is no JPIP client here"
        for n in (94, 95, 204, 205)
    },
}


def decode_frame(data: bytes | memoryview, layout: PixelLayout, transfer_syntax: str) -> Array:
    """Return one frame as (rows, columns) or (rows, columns, samples), in the byte order of this machine.

    `data` is the native bytes of the frame, those of Bits Allocated 1 moved to begin at bit 0
    (hilum.dicom.native.shift_bits), or the codestream of an encapsulated one without item tags. Bytes after
    its end are ignored. The array is new and may be written to.

    The type follows Bits Allocated and Pixel Representation; Bits Allocated 1 gives uint8 0 and 1, Float and
    Double Float Pixel Data float32 and float64.

    Raises:
        Unsupported: there is no decoder for the transfer syntax, or no conversion of the colours.
        BadDicom: the layout makes no sense, or the bytes are not a frame of it.
    """
    samples = decode_samples(data, layout, transfer_syntax)
    if samples.photometric in ("YBR_FULL", "YBR_FULL_422"):
        return rgb_from_ybr(samples.array, layout)
    return samples.array


def decode_samples(data: bytes | memoryview, layout: PixelLayout, transfer_syntax: str) -> Samples:
    """The same in the colours in which the frame is stored; `photometric` of the answer says which those are.

    They may be others than the data set's: a codec undoes the transform of YBR_RCT and YBR_ICT itself.
    YBR_FULL_422 comes out as YBR_FULL. Nothing is lost on the way, but what a lossy codestream had lost.
    """
    codec = CODECS.get(transfer_syntax)
    if codec is None:
        raise Unsupported(_why_not(transfer_syntax))
    dtype = _dtype(layout)
    if layout.tag != PIXEL_DATA and transfer_syntax not in _NATIVE:
        raise bad(layout, f"{codec.name} holds no floating-point pixels")
    try:
        samples = codec.decode(bytes(data), layout)
    except (HilumError, MemoryError, ImportError):
        raise
    except Exception as failure:
        # Each codec has exceptions of its own, without a common base.
        raise bad(layout, f"{codec.name} frame can't be decoded: {failure}") from None
    return _finish(samples, layout, dtype)


def _why_not(transfer_syntax: str) -> str:
    reason = _WHY_NOT.get(transfer_syntax.removesuffix(".1"), "there is no decoder for it")
    return f"frames of transfer syntax {transfer_syntax} can't be decoded: {reason}"


def _dtype(layout: PixelLayout) -> np.dtype[np.generic]:
    """Check the layout, PS3.3 C.7.6.3, Image Pixel Module, and return the type of its samples."""
    if not (0 < layout.rows <= 0xFFFF and 0 < layout.columns <= 0xFFFF):
        raise bad(layout, f"{layout.rows} rows and {layout.columns} columns are no image")
    if layout.samples_per_pixel not in (1, 3):
        raise bad(layout, f"Samples per Pixel is {layout.samples_per_pixel}, neither 1 nor 3")
    if layout.samples_per_pixel == 3 and layout.planar_configuration not in (0, 1):
        raise bad(layout, f"Planar Configuration is {layout.planar_configuration}, neither 0 nor 1")
    if layout.tag in (FLOAT_PIXEL_DATA, DOUBLE_FLOAT_PIXEL_DATA):
        kind, bits = "f", 32 if layout.tag == FLOAT_PIXEL_DATA else 64
        if layout.bits_allocated != bits:
            raise bad(layout, f"Bits Allocated is {layout.bits_allocated}, floating-point pixels have {bits}")
    else:
        if layout.bits_allocated not in (1, 8, 16, 32, 64):
            raise bad(layout, f"Bits Allocated is {layout.bits_allocated}")
        if not 1 <= layout.bits_stored <= layout.bits_allocated:
            raise bad(layout, f"Bits Stored is {layout.bits_stored} of {layout.bits_allocated} bits")
        if layout.pixel_representation not in (0, 1):
            raise bad(layout, f"Pixel Representation is {layout.pixel_representation}, neither 0 nor 1")
        kind = "u" if layout.bits_allocated == 1 else "ui"[layout.pixel_representation]
    dtype = np.dtype(f"{kind}{max(1, layout.bits_allocated // 8)}")
    size = layout.rows * layout.columns * layout.samples_per_pixel * dtype.itemsize
    if size > FRAME_BYTES_MAX:
        raise bad(layout, f"a frame of {size} bytes is more than {FRAME_BYTES_MAX}")
    return dtype


def _finish(samples: Samples, layout: PixelLayout, dtype: np.dtype[np.generic]) -> Samples:
    """Make what a codec gave into what the data set says it is."""
    array = samples.array
    if array.shape != shape_of(layout):
        raise bad(layout, f"decoded frame has the shape {array.shape}, the data set {shape_of(layout)}")
    if array.dtype.kind not in "ui" or array.dtype.itemsize > dtype.itemsize:
        raise bad(layout, f"decoded samples are {array.dtype}, which Bits Allocated does not hold")
    if dtype.kind == "f":
        return samples._replace(array=array.astype(array.dtype.newbyteorder("=")).view(dtype))
    array = array.astype(dtype)
    unused = 0 if samples.bits is None else 8 * dtype.itemsize - samples.bits
    if unused > 0:
        # PS3.5 8.1.1, Pixel Data Encoding of Related Data Elements: bits above High Bit may hold anything.
        np.left_shift(array, unused, out=array)
        np.right_shift(array, unused, out=array)
    return samples._replace(array=array)


@cache
def _ybr_tables() -> tuple[Array, Array, Array]:
    """Return what Cr adds to red, what 256 Cb + Cr adds to green and what Cb adds to blue.

    PS3.3 C.7.6.3.1.2, Photometric Interpretation, YBR_FULL, solved for RGB and rounded half up.
    """
    chroma = np.arange(-128, 128)
    # In whole thousandths of 1/587: floating point would put the two exact halves, at Cb and Cr of 50 either
    # side of 128, on this or that side of the rounding.
    green = -(114 * 1772 * chroma[:, None] + 299 * 1402 * chroma[None, :])
    return (
        ((1402 * chroma + 500) // 1000).astype("i2"),
        ((2 * green + 587_000) // (2 * 587_000)).astype("i2").ravel(),
        ((1772 * chroma + 500) // 1000).astype("i2"),
    )


def rgb_from_ybr(array: Array, layout: PixelLayout) -> Array:
    """Return YBR_FULL samples as RGB.

    Raises:
        Unsupported: they have more than 8 bits.
        BadDicom: there is one sample a pixel.
    """
    if array.ndim != 3:
        raise bad(layout, f"Photometric Interpretation is {layout.photometric} with one sample a pixel")
    if array.dtype != np.uint8:
        raise Unsupported(f"{layout.photometric} of {array.dtype} has no conversion to RGB here")
    red, green, blue = _ybr_tables()
    luma = array[..., 0].astype("i2")
    cb, cr = array[..., 1], array[..., 2]
    out = np.empty_like(array, order="C")
    for sample, added in enumerate((red[cr], green[(cb.astype("u2") << 8) | cr], blue[cb])):
        np.clip(luma + added, 0, 255, out=out[..., sample], casting="unsafe")
    return out
