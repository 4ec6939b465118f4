"""Takes a pixel layout and a frame's index; gives where that native frame lies. Never decodes a pixel.

Native frames only, PS3.5 8.2, Native or Encapsulated Format Encoding. They follow each other without any
padding, so with Bits Allocated 1 a frame may begin and end inside a byte, PS3.5 8.1.1, Pixel Data Encoding of
Related Data Elements.
"""

from __future__ import annotations

from typing import NamedTuple

from hilum.dicom.layout import PixelLayout
from hilum.errors import BadDicom, NotFound


class FrameSpan(NamedTuple):
    """Where one native frame lies in the value of Pixel Data."""

    offset: int  # of its first byte, in bytes from the start of the value
    length: int  # in bytes, with the bytes that it shares with its neighbours
    bit: int  # where it begins in its first byte, 0 to 7, counted from the least significant


def native_frame_span(layout: PixelLayout, index: int) -> FrameSpan:
    """Return where the frame with this index, from 0, lies.

    The value may be too short to hold it: its length is known to the caller alone.

    Raises:
        NotFound: index is negative, or not below Number of Frames.
    """
    if not 0 <= index < layout.frame_count:
        raise NotFound(f"no frame {index + 1} among {layout.frame_count}")
    first = index * layout.frame_bits
    end = first + layout.frame_bits
    offset = first // 8
    return FrameSpan(offset, (end + 7) // 8 - offset, first % 8)


def shift_bits(data: bytes | memoryview, bit: int, bit_count: int) -> bytes:
    """Return `bit_count` bits of `data` from bit number `bit` on, moved to begin at bit 0; the rest is zero.

    Bits count from the least significant of the first byte: PS3.5 8.1.1 puts the first pixel there.

    Raises:
        BadDicom: there are fewer bits than that.
    """
    end = bit + bit_count
    if end > 8 * len(data):
        raise BadDicom(f"{bit_count} bits from bit {bit} on do not fit in {len(data)} bytes")
    whole = int.from_bytes(data[: (end + 7) // 8], "little")
    return ((whole >> bit) & ((1 << bit_count) - 1)).to_bytes((bit_count + 7) // 8, "little")
