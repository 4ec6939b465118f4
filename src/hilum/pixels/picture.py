"""Takes one decoded frame; gives a PNG that a browser shows. Never reads a store, applies no palette.

The whole grey pipeline (modality LUT, VOI LUT sequences, presentation states) is not here.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np

from hilum.dicom.layout import PixelLayout
from hilum.errors import BadQuery, Unsupported

Array = np.ndarray[Any, Any]


def to_png(array: Array, layout: PixelLayout, window: tuple[float, float] | None = None) -> bytes:
    """Return a frame that decode_frame gave for `layout` as a PNG of 8 bits a sample, grey or RGB.

    `window` is (Window Center, Window Width) in the array's own values, for grey only. Without it, grey
    samples of 8 bits are shown as they are, others between the least and the greatest of the frame.

    Raises:
        BadQuery: the Window Width is less than 1.
        Unsupported: the frame is made of indices into a palette.
    """
    from PIL import Image

    if layout.photometric == "PALETTE COLOR":
        raise Unsupported("PALETTE COLOR needs its palette to be shown")
    if array.ndim == 3:
        shown = _eight_bits(array, layout)
    elif window is not None:
        shown = _windowed(array, *window)
    elif layout.bits_stored == 8 and array.dtype == np.uint8:
        shown = array
    else:
        shown = _full_range(array)
    if layout.photometric == "MONOCHROME1":
        # PS3.3 C.7.6.3.1.2, Photometric Interpretation: the least value is white.
        shown = 255 - shown
    out = BytesIO()
    Image.fromarray(np.ascontiguousarray(shown)).save(out, "PNG")
    return out.getvalue()


def _eight_bits(array: Array, layout: PixelLayout) -> Array:
    return (array >> max(0, layout.bits_stored - 8)).astype(np.uint8)


def _windowed(array: Array, center: float, width: float) -> Array:
    """PS3.3 C.11.2.1.2.1, Default LINEAR Function, with an output of 0 to 255."""
    if not width >= 1:
        raise BadQuery(f"Window Width is {width}, less than 1")
    values = array.astype(np.float64) - (center - 0.5)
    if width == 1:
        # The formula divides by width - 1; its two outer cases leave nothing between them.
        return np.where(values > 0, 255, 0).astype(np.uint8)
    return _bytes((values / (width - 1) + 0.5) * 255)


def _full_range(array: Array) -> Array:
    values = array.astype(np.float64)
    finite = values[np.isfinite(values)]  # floating-point pixels may be padded with NaN
    if not finite.size or finite.min() == finite.max():
        return np.zeros(array.shape, np.uint8)
    return _bytes((values - finite.min()) * (255 / (finite.max() - finite.min())))


def _bytes(values: Array) -> Array:
    """Return values rounded and cut to 0 to 255; what is no number becomes 0."""
    cut: Array = np.nan_to_num(values, nan=0.0).clip(0, 255)
    return np.rint(cut).astype(np.uint8)
