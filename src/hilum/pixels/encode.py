"""Takes the samples of one frame; gives its codestream in a syntax that loses nothing. Never converts
colours.

    encode_frame(samples, layout, "1.2.840.10008.1.2.4.80") -> bytes

The table ENCODERS is the one list of what can be encoded. Codecs are loaded by the first frame that needs
them.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from hilum.dicom import uids
from hilum.dicom.layout import PIXEL_DATA, PixelLayout
from hilum.errors import Unsupported
from hilum.pixels.codecs import Array, Samples

_RLE_SEGMENTS_MAX = 15
_DEFLATE_LEVEL = 6


class Encoder(NamedTuple):
    """How frames are made in one transfer syntax."""

    name: str  # for messages
    encode: Callable[[Array, PixelLayout, str], bytes]  # samples, layout, their Photometric Interpretation
    bits_max: int  # of a sample
    transforms: bool = False  # makes YBR_RCT of RGB inside the codestream


def photometric_of(photometric: str, transfer_syntax: str) -> str:
    """Return what the data set calls samples of this Photometric Interpretation, once they are encoded.

    PS3.5 8.2.4, JPEG 2000 Image Compression: RGB that went through the reversible transform is YBR_RCT.
    """
    encoder = ENCODERS.get(transfer_syntax)
    return "YBR_RCT" if photometric == "RGB" and encoder is not None and encoder.transforms else photometric


def encode_frame(samples: Samples, layout: PixelLayout, transfer_syntax: str) -> bytes:
    """Return one frame as it lies in a fragment of the transfer syntax, without item tags, of even length.

    `samples` are those of decode_samples, or an array of that type and shape and what its colours are.

    Raises:
        Unsupported: there is no encoder, or it can't hold samples of this kind.
    """
    encoder = ENCODERS.get(transfer_syntax)
    if encoder is None:
        raise Unsupported(
            f"frames can't be encoded in transfer syntax {transfer_syntax}: no lossless encoder"
        )
    if layout.tag != PIXEL_DATA:
        raise Unsupported(f"{encoder.name} holds no floating-point pixels")
    if layout.bits_allocated > encoder.bits_max:
        raise Unsupported(f"{encoder.name} is not made of {layout.bits_allocated} bits a sample here")
    if layout.bits_allocated == 1 and (transfer_syntax not in _ONE_BIT or layout.samples_per_pixel > 1):
        raise Unsupported(f"{encoder.name} is not made of one bit a sample here")
    data = encoder.encode(np.ascontiguousarray(samples.array), layout, samples.photometric)
    return data + b"\0" * (len(data) % 2)


def native_bytes(array: Array, layout: PixelLayout) -> bytes:
    """Return samples as native little endian bytes, colour by pixel; one-bit ones packed from bit 0 on."""
    if layout.bits_allocated == 1:
        return np.packbits(array.ravel(), bitorder="little").tobytes()
    return array.astype(array.dtype.newbyteorder("<"), order="C", copy=False).tobytes()


def _jpeg_2000(array: Array, layout: PixelLayout, photometric: str) -> bytes:
    """OpenJPEG, reversible: PS3.5 8.2.4, JPEG 2000 Image Compression."""
    import imagecodecs

    if layout.bits_stored <= 8:
        array = array.astype(f"{array.dtype.kind}1", copy=False)
    return bytes(
        imagecodecs.jpeg2k_encode(
            array,
            level=0,
            codecformat="j2k",
            reversible=True,
            bitspersample=layout.bits_stored,
            mct=photometric == "RGB",
            # A small image can't be halved as often as the codec does of itself.
            resolutions=min(6, min(layout.rows, layout.columns).bit_length()),
        )
    )


def _htj2k(array: Array, layout: PixelLayout, photometric: str) -> bytes:
    """OpenJPH, reversible, in the progression RPCL that it writes of itself.

    PS3.5 10.18: RPCL, a base resolution of at most 64 pixels, and tile-part lengths for .202; they do no harm
    in .201.
    """
    import imagecodecs

    longest = max(layout.rows, layout.columns)
    return bytes(
        imagecodecs.htj2k_encode(
            array,
            reversible=True,
            rgb=photometric == "RGB" if array.ndim == 3 else None,
            tlm=True,
            resolutions=max(5, (longest - 1).bit_length() - 6),
        )
    )


def _jpeg_ls(array: Array, layout: PixelLayout, photometric: str) -> bytes:
    """CharLS: PS3.5 8.2.3, JPEG-LS Image Compression, lossless.

    There is no sign, so a signed sample goes in as the unsigned one of the same bits.
    """
    import imagecodecs

    return bytes(imagecodecs.jpegls_encode(array.view(f"u{array.dtype.itemsize}")))


def _jpeg_lossless(array: Array, layout: PixelLayout, photometric: str) -> bytes:
    """libjpeg-turbo: process 14, selection value 1, PS3.5 8.2.1, JPEG Image Compression.

    There is no sign, so a signed sample goes in as the unsigned one of its Bits Stored low bits.
    """
    import imagecodecs

    if layout.bits_stored < 2:
        raise Unsupported("JPEG Lossless is not made of one bit a sample")
    array = array.view(f"u{array.dtype.itemsize}") & ((1 << layout.bits_stored) - 1)
    if layout.bits_stored <= 8:
        array = array.astype("u1", copy=False)
    # Named the same on both sides, so that libjpeg transforms nothing. Not YCBCR: the codec then makes a
    # Huffman table for the chroma, and forgets to say so in the scan header.
    name = "RGB" if photometric == "RGB" else "UNKNOWN"
    space = name if array.ndim == 3 else None
    return bytes(
        imagecodecs.jpeg8_encode(
            array,
            lossless=True,
            predictor=1,
            bitspersample=layout.bits_stored,
            colorspace=space,
            outcolorspace=space,
        )
    )


def _rle(array: Array, layout: PixelLayout, photometric: str) -> bytes:
    """PS3.5 Annex G, Encapsulated RLE Compressed Images; no run goes over the end of a row (G.3.1)."""
    import imagecodecs

    size = array.dtype.itemsize
    planes = array.reshape(layout.rows, layout.columns, layout.samples_per_pixel)
    if layout.samples_per_pixel * size > _RLE_SEGMENTS_MAX:
        raise Unsupported(f"RLE Lossless has room for {_RLE_SEGMENTS_MAX} bytes a pixel")
    if layout.bits_allocated == 1:
        # Rows don't begin at a byte, so there is only the frame as a whole.
        segments = [bytes(imagecodecs.packbits_encode(native_bytes(array, layout)))]
    else:
        little = planes.astype(planes.dtype.newbyteorder("<"), copy=False)
        by_byte = little.view("u1").reshape(*planes.shape, size)
        segments = [
            bytes(imagecodecs.packbits_encode(by_byte[:, :, sample, byte].copy(), axis=-1))
            for sample in range(layout.samples_per_pixel)
            for byte in reversed(range(size))  # the most significant first
        ]
    segments = [segment + b"\0" * (len(segment) % 2) for segment in segments]
    header = np.zeros(16, "<u4")
    header[0] = len(segments)
    header[1 : len(segments) + 1] = 64 + np.cumsum([0, *map(len, segments[:-1])])
    return header.tobytes() + b"".join(segments)


def _deflated_frame(array: Array, layout: PixelLayout, photometric: str) -> bytes:
    """PS3.5 A.4.13, Deflated Image Frame Compression."""
    engine = zlib.compressobj(_DEFLATE_LEVEL, wbits=-zlib.MAX_WBITS)
    return engine.compress(native_bytes(array, layout)) + engine.flush()


ENCODERS: dict[str, Encoder] = {
    uids.RLE_LOSSLESS: Encoder("RLE Lossless", _rle, 64),
    uids.DEFLATED_IMAGE_FRAME: Encoder("Deflated Image Frame Compression", _deflated_frame, 64),
    uids.JPEG_LOSSLESS_SV1: Encoder("JPEG Lossless, First-Order Prediction", _jpeg_lossless, 16),
    uids.JPEG_LS_LOSSLESS: Encoder("JPEG-LS Lossless", _jpeg_ls, 16),
    uids.JPEG_2000_LOSSLESS: Encoder("JPEG 2000 Lossless", _jpeg_2000, 16, True),
    uids.HTJ2K_LOSSLESS: Encoder("HTJ2K Lossless", _htj2k, 16, True),
    uids.HTJ2K_LOSSLESS_RPCL: Encoder("HTJ2K Lossless RPCL", _htj2k, 16, True),
}
_ONE_BIT = (uids.RLE_LOSSLESS, uids.DEFLATED_IMAGE_FRAME)
