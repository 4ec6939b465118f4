"""Takes the bytes of one frame in one transfer syntax; gives its samples as the codestream holds them.

Never masks, extends a sign or makes RGB: decode.py finishes the frame. The table CODECS is the one list of
what can be decoded. Codecs come from imagecodecs, loaded by the first frame that needs them: its decoders let
other threads run, which pylibjpeg's OpenJPEG does not.

Every header is read before its codec is called, so a codestream that claims more pixels than the data set
does costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from hilum.dicom.layout import PixelLayout
from hilum.errors import BadDicom

Array = np.ndarray[Any, Any]


class Samples(NamedTuple):
    """One decoded frame before it is made into what the data set says it is."""

    array: Array  # (rows, columns) or (rows, columns, samples), in the codec's own type
    photometric: str  # what the samples are now, a Photometric Interpretation
    bits: int | None = None  # low bits of each that are meant, the highest of them the sign; None all


class Codec(NamedTuple):
    """How frames of one transfer syntax are decoded."""

    name: str  # for messages
    decode: Callable[[bytes, PixelLayout], Samples]


def bad(layout: PixelLayout, reason: str) -> BadDicom:
    """Return the error for a frame that can't be decoded, at the element that holds it."""
    return BadDicom(reason, tag=layout.tag)


def shape_of(layout: PixelLayout) -> tuple[int, ...]:
    """Return the shape of one frame: colour by pixel, no third axis for one sample."""
    if layout.samples_per_pixel == 1:
        return layout.rows, layout.columns
    return layout.rows, layout.columns, layout.samples_per_pixel


def _match(layout: PixelLayout, rows: int, columns: int, samples: int) -> None:
    """Refuse a codestream whose header is of another shape than the data set."""
    if (rows, columns, samples) != (layout.rows, layout.columns, layout.samples_per_pixel):
        raise bad(
            layout,
            f"codestream has {rows} rows, {columns} columns, {samples} samples; the data set has "
            f"{layout.rows}, {layout.columns}, {layout.samples_per_pixel}",
        )


# --- Native ------------------------------------------------------------------


def _native(data: bytes, layout: PixelLayout, order: str) -> Samples:
    pixels = layout.rows * layout.columns
    subsampled = layout.photometric == "YBR_FULL_422" and layout.samples_per_pixel == 3
    count = pixels * (2 if subsampled else layout.samples_per_pixel)
    needed = (count * layout.bits_allocated + 7) // 8
    if len(data) < needed:
        raise bad(layout, f"frame has {len(data)} bytes, the data set needs {needed}")
    if layout.bits_allocated == 1:
        bits = np.unpackbits(np.frombuffer(data, "u1", needed), count=count, bitorder="little")
        return Samples(_by_pixel(bits, layout), layout.photometric)
    kind = "u" if layout.bits_allocated == 8 else order + "u"
    array = np.frombuffer(data, f"{kind}{layout.bits_allocated // 8}", count)
    if subsampled:
        return Samples(_expand_422(array, layout), "YBR_FULL", layout.bits_stored)
    return Samples(_by_pixel(array, layout), layout.photometric, layout.bits_stored)


def _native_little(data: bytes, layout: PixelLayout) -> Samples:
    return _native(data, layout, "<")


def _native_big(data: bytes, layout: PixelLayout) -> Samples:
    """PS3.5 A.3, DICOM Big Endian Transfer Syntax (Explicit VR), retired in 2016.

    Eight bits a sample in VR OW come in swapped pairs, across frames too: the caller has put them right.
    """
    return _native(data, layout, ">")


def _by_pixel(flat: Array, layout: PixelLayout) -> Array:
    """PS3.3 C.7.6.3.1.3, Planar Configuration."""
    if layout.samples_per_pixel > 1 and layout.planar_configuration == 1:
        return flat.reshape(layout.samples_per_pixel, layout.rows, layout.columns).transpose(1, 2, 0)
    return flat.reshape(shape_of(layout))


def _expand_422(flat: Array, layout: PixelLayout) -> Array:
    """Y1 Y2 Cb Cr become Y1 Cb Cr Y2 Cb Cr: PS3.3 C.7.6.3.1.2, Photometric Interpretation, YBR_FULL_422.

    Always colour by pixel, whatever Planar Configuration says: no other order is defined for it.
    """
    if len(flat) % 4:
        raise bad(layout, "YBR_FULL_422 needs an even number of pixels")
    pairs = flat.reshape(-1, 4)
    return pairs[:, [0, 2, 3, 1, 2, 3]].reshape(shape_of(layout))


def _deflated_frame(data: bytes, layout: PixelLayout) -> Samples:
    """PS3.5 A.4.13, Deflated Image Frame Compression: a native frame, deflated on its own."""
    import imagecodecs

    needed = (layout.frame_bits + 7) // 8
    # One byte more than the frame: an odd one may have been padded before it was deflated. Nothing
    # that inflates to more than that is ever held.
    return _native_little(bytes(imagecodecs.deflate_decode(data, raw=True, out=needed + 1)), layout)


# --- RLE ---------------------------------------------------------------------


def _rle(data: bytes, layout: PixelLayout) -> Samples:
    """PS3.5 Annex G, Encapsulated RLE Compressed Images: one segment for each byte of a sample."""
    if len(data) < 64:
        raise bad(layout, "frame is shorter than the RLE header")
    header = np.frombuffer(data, "<u4", 16).tolist()
    sample_bytes = max(1, layout.bits_allocated // 8)
    segment_count = layout.samples_per_pixel * sample_bytes
    if header[0] != segment_count:
        raise bad(layout, f"RLE header counts {header[0]} segments, the data set needs {segment_count}")
    ends = [*header[2 : segment_count + 1], len(data)]
    pixels = layout.rows * layout.columns
    byte_count = (pixels + 7) // 8 if layout.bits_allocated == 1 else pixels
    planes = np.empty((layout.rows, layout.columns, layout.samples_per_pixel, sample_bytes), "u1")
    for n, (start, end) in enumerate(zip(header[1:], ends, strict=False)):
        if not 64 <= start <= end <= len(data):
            raise bad(layout, f"RLE segment {n} lies outside the frame")
        plane = _rle_segment(data[start:end], byte_count)
        if len(plane) < byte_count:
            raise bad(layout, f"RLE segment {n} has {len(plane)} bytes of {byte_count}")
        if layout.bits_allocated == 1:
            plane = np.unpackbits(plane, count=pixels, bitorder="little")
        # Segments come with the most significant byte first, and the array is little endian.
        sample, byte = divmod(n, sample_bytes)
        planes[:, :, sample, sample_bytes - 1 - byte] = plane.reshape(layout.rows, layout.columns)
    kind = "u1" if sample_bytes == 1 else f"<u{sample_bytes}"
    array = planes.view(kind).reshape(shape_of(layout))
    bits = None if layout.bits_allocated == 1 else layout.bits_stored
    return Samples(array, layout.photometric, bits)


def _rle_segment(source: bytes, byte_count: int) -> Array:
    """Return the first `byte_count` bytes of one segment, fewer if it has no more.

    A segment may be padded with more pixels than the frame has: at most twice as many, so that a small frame
    can't take all memory. One byte at its end may be a pad that is not the 0 of PS3.5 G.3, The RLE Algorithm.
    """
    import imagecodecs

    size_max = 2 * byte_count + 64
    try:
        segment = imagecodecs.packbits_decode(source, out=size_max)
    except imagecodecs.PackbitsError:
        segment = imagecodecs.packbits_decode(source[:-1], out=size_max)
    return np.frombuffer(segment, "u1", min(byte_count, len(segment)))


# --- JPEG and JPEG-LS --------------------------------------------------------


class JpegHeader(NamedTuple):
    """What the markers up to the frame header say, ISO/IEC 10918-1 B.2.2 and 14495-1 C.2.2."""

    precision: int
    samples: int
    component_ids: bytes
    jfif: bool
    adobe_transform: int | None  # 0 none, 1 YCbCr, 2 YCCK; None without an Adobe marker


_STANDALONE = {0x01, *range(0xD0, 0xD9)}  # TEM, RSTn and SOI have no length
_FRAME_HEADERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # SOFn; DHT, JPG and DAC lie between


def _jpeg_header(data: bytes, layout: PixelLayout) -> JpegHeader:
    """Read the markers, and refuse a frame of another shape, or one without an end.

    libjpeg fills what is missing from a truncated frame with grey and only warns, so the end is looked for
    here: no entropy-coded byte can look like it.
    """
    jfif, adobe_transform, at = False, None, 0
    while True:
        at = data.find(b"\xff", at)
        if at < 0 or at + 1 >= len(data):
            raise bad(layout, "no frame header in the JPEG codestream")
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        at += 2
        if marker in _STANDALONE:
            continue
        length = int.from_bytes(data[at : at + 2], "big")
        segment = data[at + 2 : at + length]
        at += length
        if marker in _FRAME_HEADERS:
            break
        if 0xE0 <= marker <= 0xEF and segment.startswith(b"JFIF"):
            jfif = True
        elif marker == 0xEE and segment.startswith(b"Adobe") and len(segment) >= 12:
            adobe_transform = segment[11]
    if len(segment) < 6 or len(segment) < 6 + 3 * segment[5]:
        raise bad(layout, "the JPEG frame header is cut off")
    rows, columns = int.from_bytes(segment[1:3], "big"), int.from_bytes(segment[3:5], "big")
    samples = segment[5]
    _match(layout, rows, columns, samples)
    if data.rfind(b"\xff\xd9", at) < 0:
        raise bad(layout, "the JPEG codestream is truncated: it has no end marker")
    return JpegHeader(segment[0], samples, segment[6 : 6 + 3 * samples : 3], jfif, adobe_transform)


def _jpeg_photometric(header: JpegHeader, layout: PixelLayout) -> str:
    """Return what the samples of a codestream are, where its markers know better than the data set.

    PS3.5 8.2.1, JPEG Image Compression, has both agree; they often do not.
    """
    if header.samples != 3:
        return layout.photometric
    if header.component_ids in (b"RGB", b"rgb"):
        return "RGB"
    if header.jfif and "YBR" not in layout.photometric:
        return "YBR_FULL"
    return layout.photometric


def _jpeg(data: bytes, layout: PixelLayout) -> Samples:
    """ISO/IEC 10918-1: 8 and 12 bits, sequential and progressive, and lossless to 16 bits."""
    import imagecodecs

    header = _jpeg_header(data, layout)
    if header.samples != 3:
        return Samples(imagecodecs.jpeg8_decode(data), layout.photometric, layout.bits_stored)
    if header.adobe_transform == 1:
        return Samples(imagecodecs.jpeg8_decode(data, outcolorspace="RGB"), "RGB", layout.bits_stored)
    # Named the same on both sides, so that libjpeg transforms nothing: decode.py does, as the data set says.
    array = imagecodecs.jpeg8_decode(data, colorspace="YCBCR", outcolorspace="YCBCR")
    return Samples(array, _jpeg_photometric(header, layout), layout.bits_stored)


def _jpeg_ls(data: bytes, layout: PixelLayout) -> Samples:
    """JPEG-LS has no signed samples: PS3.5 8.2.3, JPEG-LS Image Compression, so the sign is made here."""
    import imagecodecs

    header = _jpeg_header(data, layout)
    bits = header.precision if layout.pixel_representation else None
    return Samples(imagecodecs.jpegls_decode(data), _jpeg_photometric(header, layout), bits)


# --- JPEG 2000 and HTJ2K -----------------------------------------------------


def _jpeg_2000_bits(data: bytes, layout: PixelLayout) -> int | None:
    """Read the SIZ marker segment, ISO/IEC 15444-1 A.5.1; return how many low bits to keep, None for all.

    Encoders often declare signed samples unsigned, or the reverse; then the data set is right, and the bits
    above the codestream's precision are not.
    """
    at = 0
    if data.startswith(b"\x00\x00\x00\x0cjP  "):
        # A whole JP2 file, against PS3.5 A.4.4, JPEG 2000 Image Compression, but met.
        at = data.find(b"jp2c") + 4
    siz = data[at : at + 43]
    if len(siz) < 43 or not siz.startswith(b"\xff\x4f\xff\x51"):
        raise bad(layout, "no JPEG 2000 codestream")
    right, bottom, left, top = (int.from_bytes(siz[n : n + 4], "big") for n in (8, 12, 16, 20))
    _match(layout, bottom - top, right - left, int.from_bytes(siz[40:42], "big"))
    signed, precision = siz[42] >> 7, (siz[42] & 0x7F) + 1
    if layout.photometric.startswith("MONOCHROME") and signed != layout.pixel_representation:
        return precision
    return None


def _jpeg_2000(data: bytes, layout: PixelLayout) -> Samples:
    """OpenJPEG: PS3.5 8.2.4, JPEG 2000 Image Compression, and High-Throughput JPEG 2000, ISO/IEC 15444-15.

    OpenJPH has twice its speed for the latter, but a damaged codestream can end the process (a division by
    zero) or never return, and a truncated one gives half a picture without a word.
    """
    import imagecodecs

    bits = _jpeg_2000_bits(data, layout)
    # The codec undoes the transform of YBR_ICT and YBR_RCT, PS3.3 C.7.6.3.1.2, Photometric Interpretation;
    # YBR_FULL is no transform of the codestream's own, and stays.
    photometric = "RGB" if layout.photometric in ("YBR_ICT", "YBR_RCT") else layout.photometric
    return Samples(imagecodecs.jpeg2k_decode(data), photometric, bits)


# --- JPEG XL -----------------------------------------------------------------


def _jpeg_xl_size(data: bytes) -> tuple[int, int] | None:
    """Return (rows, columns) of the SizeHeader of ISO/IEC 18181-1; None if it is not where it belongs."""
    at = 0
    if data.startswith(b"\x00\x00\x00\x0cJXL "):
        box = min((n for n in (data.find(b"jxlc"), data.find(b"jxlp")) if n >= 0), default=-1)
        at = box + (8 if data[box : box + 4] == b"jxlp" else 4)  # a part begins with its number
    if data[at : at + 2] != b"\xff\x0a":
        return None
    bits = int.from_bytes(data[at + 2 : at + 14], "little")

    def take(count: int) -> int:
        nonlocal bits
        value = bits & ((1 << count) - 1)
        bits >>= count
        return value

    small = take(1)

    def side() -> int:
        return 8 * (take(5) + 1) if small else take((9, 13, 18, 30)[take(2)]) + 1

    rows = side()
    ratio = take(3)
    if ratio == 0:
        return rows, side()
    wide, high = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))[ratio - 1]
    return rows, rows * wide // high


def _jpeg_xl(data: bytes, layout: PixelLayout) -> Samples:
    """libjxl: PS3.5 8.2.15, JPEG XL Image Compression. Colour comes out as RGB, whatever it was stored as."""
    import imagecodecs

    size = _jpeg_xl_size(data)
    if size is None:
        raise bad(layout, "no JPEG XL codestream")
    _match(layout, *size, layout.samples_per_pixel)
    array = imagecodecs.jpegxl_decode(data, 0)  # of an animation the first image only
    photometric = "RGB" if layout.samples_per_pixel == 3 else layout.photometric
    return Samples(array, photometric, layout.bits_stored)


# PS3.6 Annex A, Registry of DICOM Unique Identifiers (UIDs), Table A-1, and retired ones that are still met.
CODECS: dict[str, Codec] = {
    "1.2.840.10008.1.2": Codec("Implicit VR Little Endian", _native_little),
    "1.2.840.10008.1.2.1": Codec("Explicit VR Little Endian", _native_little),
    "1.2.840.10008.1.2.1.98": Codec("Encapsulated Uncompressed Explicit VR Little Endian", _native_little),
    "1.2.840.10008.1.2.1.99": Codec("Deflated Explicit VR Little Endian", _native_little),
    "1.2.840.10008.1.2.2": Codec("Explicit VR Big Endian", _native_big),
    "1.2.840.10008.1.2.5": Codec("RLE Lossless", _rle),
    "1.2.840.10008.1.2.8.1": Codec("Deflated Image Frame Compression", _deflated_frame),
    "1.2.840.10008.1.2.4.50": Codec("JPEG Baseline", _jpeg),
    "1.2.840.10008.1.2.4.51": Codec("JPEG Extended", _jpeg),
    "1.2.840.10008.1.2.4.53": Codec("JPEG Spectral Selection", _jpeg),
    "1.2.840.10008.1.2.4.55": Codec("JPEG Full Progression", _jpeg),
    "1.2.840.10008.1.2.4.57": Codec("JPEG Lossless", _jpeg),
    "1.2.840.10008.1.2.4.70": Codec("JPEG Lossless, First-Order Prediction", _jpeg),
    "1.2.840.10008.1.2.4.80": Codec("JPEG-LS Lossless", _jpeg_ls),
    "1.2.840.10008.1.2.4.81": Codec("JPEG-LS Near-Lossless", _jpeg_ls),
    "1.2.840.10008.1.2.4.90": Codec("JPEG 2000 Lossless", _jpeg_2000),
    "1.2.840.10008.1.2.4.91": Codec("JPEG 2000", _jpeg_2000),
    "1.2.840.10008.1.2.4.92": Codec("JPEG 2000 Part 2 Lossless", _jpeg_2000),
    "1.2.840.10008.1.2.4.93": Codec("JPEG 2000 Part 2", _jpeg_2000),
    "1.2.840.10008.1.2.4.110": Codec("JPEG XL Lossless", _jpeg_xl),
    "1.2.840.10008.1.2.4.111": Codec("JPEG XL JPEG Recompression", _jpeg_xl),
    "1.2.840.10008.1.2.4.112": Codec("JPEG XL", _jpeg_xl),
    "1.2.840.10008.1.2.4.201": Codec("HTJ2K Lossless", _jpeg_2000),
    "1.2.840.10008.1.2.4.202": Codec("HTJ2K Lossless RPCL", _jpeg_2000),
    "1.2.840.10008.1.2.4.203": Codec("HTJ2K", _jpeg_2000),
}
