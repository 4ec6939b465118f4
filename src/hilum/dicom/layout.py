"""How the pixels of an object are laid out: what a decoder must know besides the bytes. Decodes nothing."""

from __future__ import annotations

from typing import NamedTuple

PIXEL_DATA = 0x7FE00010
FLOAT_PIXEL_DATA = 0x7FE00008
DOUBLE_FLOAT_PIXEL_DATA = 0x7FE00009


class PixelLayout(NamedTuple):
    """The Image Pixel Module's description of one object, PS3.3 C.7.6.3, Image Pixel Module."""

    tag: int  # the element that holds the pixels: one of the three above
    frame_count: int  # Number of Frames, 1 where it is absent
    rows: int
    columns: int
    samples_per_pixel: int
    bits_allocated: int
    bits_stored: int
    pixel_representation: int  # 0 unsigned, 1 two's complement
    planar_configuration: int  # 0 colour by pixel, 1 colour by plane
    photometric: str  # Photometric Interpretation, as it is in the data set

    @property
    def frame_bits(self) -> int:
        """Bits of one native frame; a multiple of 8 but for Bits Allocated 1.

        YBR_FULL_422 has two samples a pixel on average, PS3.3 C.7.6.3.1.2, Photometric Interpretation.
        """
        samples = 2 if self.photometric == "YBR_FULL_422" else self.samples_per_pixel
        return self.rows * self.columns * samples * self.bits_allocated
