"""Takes a stored frame, or a whole stored file; gives it in another transfer syntax. Never loses a bit of
what the source holds, and never calls lossless what was lossy.

    frame(data, layout, source, target) -> bytes
    instance(file, frames, source, target) -> pieces of a Part 10 file

What decoding makes of colours: YCbCr of the JPEG family is turned into RGB, as its decoders have always done;
all other samples stay as they are, since a conversion rounds. photometric_of() says what a frame is
afterwards, and instance() writes that into the data set.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Protocol

import numpy as np

from hilum.dicom import uids
from hilum.dicom.layout import PIXEL_DATA, PixelLayout
from hilum.errors import BadDicom, Unsupported
from hilum.pixels import dataset, encode, rewrite
from hilum.pixels.codecs import Samples
from hilum.pixels.decode import decode_samples, rgb_from_ybr
from hilum.pixels.rewrite import Edit

# What leaves has native frames in little endian: the data set around them is another matter.
_NATIVE_LITTLE = frozenset(
    (
        uids.IMPLICIT_VR_LITTLE_ENDIAN,
        uids.EXPLICIT_VR_LITTLE_ENDIAN,
        uids.DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    )
)
_NATIVE = _NATIVE_LITTLE | {uids.EXPLICIT_VR_BIG_ENDIAN}
_TARGETS = frozenset((uids.EXPLICIT_VR_LITTLE_ENDIAN, uids.DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN))
_ALWAYS_LOSSY = frozenset(
    (uids.JPEG_BASELINE, uids.JPEG_EXTENDED, "1.2.840.10008.1.2.4.53", "1.2.840.10008.1.2.4.55")
)
_MAYBE_LOSSY = frozenset(
    (
        uids.JPEG_LS_NEAR_LOSSLESS,
        uids.JPEG_2000,
        uids.JPEG_2000_PART_2,
        uids.HTJ2K,
        uids.JPEG_XL,
        uids.JPEG_XL_RECOMPRESSION,
    )
)
# Their decoders give RGB of whatever the codestream has; PS3.5 8.2.1, JPEG Image Compression.
_MADE_RGB = frozenset(
    (
        uids.JPEG_BASELINE,
        uids.JPEG_EXTENDED,
        "1.2.840.10008.1.2.4.53",
        "1.2.840.10008.1.2.4.55",
        uids.JPEG_XL_LOSSLESS,
        uids.JPEG_XL_RECOMPRESSION,
        uids.JPEG_XL,
    )
)


def can_encode(transfer_syntax: str) -> bool:
    """Return whether frames and instances can be given in this transfer syntax, whatever they are stored in.

    Deflated Explicit VR Little Endian deflates the data set, not a frame: its frames are native.
    """
    return transfer_syntax in _TARGETS or transfer_syntax in encode.ENCODERS


def is_quick(source: str, target: str) -> bool:
    """Return whether frame() only copies or reorders bytes, microseconds that are worth no worker process."""
    return source == target or (source in _NATIVE and target in _NATIVE_LITTLE)


def photometric_of(layout: PixelLayout, source: str, target: str) -> str:
    """Return the Photometric Interpretation of what frame() gives, as the data set has to say it."""
    if is_quick(source, target):
        return layout.photometric
    return encode.photometric_of(_decoded_photometric(layout, source), target)


def frame(data: bytes, layout: PixelLayout, source: str, target: str) -> bytes:
    """Return a frame of the transfer syntax `source` in `target`, without item tags.

    `data` is what FrameReader.read gives. Native frames come out in little endian; colour by pixel where they
    had to be decoded for it, in the order of the data set where not (see planar_of).

    Raises:
        Unsupported: `source` has no decoder, `target` no lossless encoder, or it can't hold such samples.
        BadDicom: the bytes are not a frame of the layout.
    """
    if source == target:
        return data
    if not can_encode(target):
        raise Unsupported(f"frames can't be encoded in transfer syntax {target}: no lossless encoder")
    if source in _NATIVE and target in _NATIVE_LITTLE:
        return _reordered(data, layout, source)
    samples = decode_samples(data, layout, source)
    wanted = _decoded_photometric(layout, source)
    if samples.photometric != wanted and layout.samples_per_pixel == 3:
        if wanted != "RGB" or not samples.photometric.startswith("YBR_FULL"):
            raise Unsupported(
                f"the codestream has {samples.photometric} samples, the data set says {layout.photometric}"
            )
        samples = Samples(rgb_from_ybr(samples.array, layout), "RGB")
    if target in _NATIVE_LITTLE:
        return encode.native_bytes(samples.array, layout)
    return encode.encode_frame(samples._replace(photometric=wanted), layout, target)


def planar_of(layout: PixelLayout, source: str, target: str) -> int:
    """Return the Planar Configuration of what frame() gives."""
    return layout.planar_configuration if is_quick(source, target) else 0


def _decoded_photometric(layout: PixelLayout, source: str) -> str:
    if layout.samples_per_pixel != 3:
        return layout.photometric
    if source in _MADE_RGB or layout.photometric in (
        "YBR_RCT",
        "YBR_ICT",
        "YBR_PARTIAL_420",
        "YBR_PARTIAL_422",
    ):
        return "RGB"
    if layout.photometric == "YBR_FULL_422":
        return "YBR_FULL"
    return layout.photometric


def _reordered(data: bytes, layout: PixelLayout, source: str) -> bytes:
    if source != uids.EXPLICIT_VR_BIG_ENDIAN or layout.bits_allocated <= 8:
        return data
    return dataset.swap(data, layout.bits_allocated // 8)


# --- Whole instances -----------------------------------------------------------

# A UUID made for Hilum, as PS3.5 B.2, UUID Derived UID, wants it.
IMPLEMENTATION_CLASS_UID = "2.25.33522740148659646470473586052021516931"
_LENGTH_MAX = 0xFFFFFFFE  # of a native value
_NO_OFFSET_TABLES = (0x7FE00001, 0x7FE00002, 0x7FE00003)  # Extended Offset Table, its lengths, total length
_LOSSY_IMAGE_COMPRESSION = 0x00282110
_OVERLAYS = range(0x60000100, 0x60200100, 0x20000)  # Overlay Bits Allocated


class Frames(Protocol):
    """What instance() needs of a FrameReader."""

    @property
    def layout(self) -> PixelLayout: ...
    @property
    def frame_count(self) -> int: ...
    def read(self, index: int, /) -> bytes: ...


Convert = Callable[[Iterator[bytes]], Iterable[bytes]]


def instance(
    file: dataset.File, frames: Frames | None, source: str, target: str, *, convert: Convert | None = None
) -> Iterator[bytes]:
    """Return the pieces of a Part 10 file that holds the same object in another transfer syntax.

    `file` is the object as it came in (Store.open_original), `frames` its frames (Store.frames), None where
    it has no pixels; `source` its transfer syntax. `convert` turns the stored frames into those of the
    target, in order, and is where worker processes come in; without it that is done here:

        convert=lambda stored: pool.map("frame", ((data, layout, source, target) for data in stored))

    The elements around the pixels stay byte for byte what they were, in Explicit VR Little Endian. Changed
    are the transfer syntax, Photometric Interpretation and Planar Configuration where the pixels have others
    now, and Lossy Image Compression where they were lossy and nothing says so. Gone are offset tables (the
    Basic Offset Table is empty), group lengths that would be wrong, and an icon that was encapsulated. Memory
    is bounded by a few frames.

    All that can be known before the first byte is raised here, with the first frame converted; what comes
    later is raised by the iterator, and the file is then cut.

    Raises:
        Unsupported, BadDicom: as for frame(); also a native value of 4 GiB or more, and overlays in unused
            bits of pixels that are to be encapsulated.
    """
    if source == target:
        frames = None  # all is copied
    elif not can_encode(target):
        raise Unsupported(f"objects can't be given in transfer syntax {target}: no lossless encoder")
    layout = frames.layout if frames is not None else None
    known = dataset.read(
        dataset.Elements(file, source),
        dict.fromkeys((0x00080016, 0x00080018, _LOSSY_IMAGE_COMPRESSION, *_OVERLAYS)),
    )
    edits: dict[int, Edit] = {}
    pixels: Callable[[dataset.Header], Iterator[bytes]] | None = None
    elements = dataset.Elements(file, source)
    if frames is not None and layout is not None:
        edits = _edits(known, layout, source, target)
        if is_quick(source, target):
            _check_native(file, source, layout)
            elements = dataset.Elements(file, source)
            pixels = _native_pixels(elements, frames, source, target)
        else:
            converted = _converted(frames, source, target, convert)
            _check(known, frames, target)
            pixels = _converted_pixels(elements, layout, target, frames.layout.frame_count, converted)
    return _file(elements, known, layout, edits, pixels, target)


def _file(
    elements: dataset.Elements,
    known: dataset.Found,
    layout: PixelLayout | None,
    edits: dict[int, Edit],
    pixels: Callable[[dataset.Header], Iterator[bytes]] | None,
    target: str,
) -> Iterator[bytes]:
    yield _meta(elements, known, target)
    body = rewrite.explicit_little(elements, layout, edits, pixels)
    if target == uids.DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN:
        yield from _deflated(body)
    else:
        yield from body


def _meta(elements: dataset.Elements, known: dataset.Found, target: str) -> bytes:
    """PS3.10 7.1, DICOM File Meta Information, of the original as far as it had one."""
    meta = {tag: (vr, value) for tag, vr, value in elements.meta}
    meta.setdefault(0x00020001, (b"OB", b"\0\1"))
    for tag, own in ((0x00020002, 0x00080016), (0x00020003, 0x00080018)):
        meta.setdefault(tag, (b"UI", dataset.text(known.values.get(own)).encode("latin-1")))
    meta[0x00020010] = (b"UI", target.encode("ascii"))
    meta.setdefault(0x00020012, (b"UI", IMPLEMENTATION_CLASS_UID.encode("ascii")))
    body = b"".join(rewrite.element(tag, *meta[tag]) for tag in sorted(meta))
    length = rewrite.element(0x00020000, b"UL", len(body).to_bytes(4, "little"))
    return (elements.preamble or bytes(128)) + b"DICM" + length + body


def _deflated(body: Iterator[bytes]) -> Iterator[bytes]:
    """PS3.5 A.5, DICOM Deflated Little Endian Transfer Syntax (Explicit VR)."""
    engine, length = zlib.compressobj(wbits=-zlib.MAX_WBITS), 0
    for piece in body:
        if packed := engine.compress(piece):
            length += len(packed)
            yield packed
    rest = engine.flush()
    yield rest + b"\0" * ((length + len(rest)) % 2)


def _edits(known: dataset.Found, layout: PixelLayout, source: str, target: str) -> dict[int, Edit]:
    edits = {tag: Edit(b"OV", None) for tag in _NO_OFFSET_TABLES}
    photometric = photometric_of(layout, source, target)
    if photometric != layout.photometric:
        edits[0x00280004] = Edit(b"CS", photometric.encode("ascii"))
    planar = planar_of(layout, source, target)
    if layout.samples_per_pixel > 1 and planar != layout.planar_configuration:
        edits[0x00280006] = Edit(b"US", planar.to_bytes(2, "little"))
    stated = dataset.text(known.values.get(_LOSSY_IMAGE_COMPRESSION))
    if (source in _ALWAYS_LOSSY and stated != "01") or (source in _MAYBE_LOSSY and not stated):
        # PS3.3 C.7.6.1.1.5, Lossy Image Compression: once lossy, always lossy.
        edits[_LOSSY_IMAGE_COMPRESSION] = Edit(b"CS", b"01")
    return edits


def _check_native(file: dataset.File, source: str, layout: PixelLayout) -> None:
    """Refuse a native value that the file does not hold, before the copy runs into its end."""
    elements = dataset.Elements(file, source)
    found = dataset.find(elements, layout.tag)
    at = elements.stream.at
    if found is None or found.length == dataset.UNDEFINED:
        raise BadDicom("there are no native pixels", offset=at, tag=layout.tag)
    if not uids.is_deflated(source) and at + found.length > file.seek(0, io.SEEK_END):
        raise BadDicom("the pixels are cut", offset=at, tag=layout.tag)


def _check(known: dataset.Found, frames: Frames, target: str) -> None:
    layout = frames.layout
    if frames.frame_count < layout.frame_count:
        raise BadDicom(f"there are {frames.frame_count} frames of {layout.frame_count}", tag=layout.tag)
    if target in encode.ENCODERS:
        for tag in _OVERLAYS:
            bits = dataset.numbers(known.values.get(tag))
            if bits and bits[0] > 1:
                raise Unsupported("an overlay lies in unused bits of the pixels, and would be lost")
    elif _native_size(layout) * layout.frame_count // 8 > _LENGTH_MAX:
        raise Unsupported("the pixels are more than the 4 GiB that a native value can have")


def _native_size(layout: PixelLayout) -> int:
    """Bits of a frame that has been decoded: YBR_FULL_422 has become YBR_FULL or RGB."""
    return layout.rows * layout.columns * layout.samples_per_pixel * layout.bits_allocated


def _converted(frames: Frames, source: str, target: str, convert: Convert | None) -> Iterator[bytes]:
    """Convert the first frame now, the others when they are asked for."""
    layout = frames.layout
    stored = (frames.read(index) for index in range(layout.frame_count))
    if convert is None:
        converted: Iterator[bytes] = (frame(data, layout, source, target) for data in stored)
    else:
        converted = iter(convert(stored))
    return chain([next(converted)], converted)


def _native_pixels(
    elements: dataset.Elements, frames: Frames, source: str, target: str
) -> Callable[[dataset.Header], Iterator[bytes]]:
    """Give a native value again, its numbers turned where they were big endian.

    Frame by frame, since the frames are checked when they are read. As it lies in the file where the frames
    don't fill it, and out of a deflated data set, of which each frame would be inflated from the beginning.
    """
    layout = frames.layout

    def pixels(found: dataset.Header) -> Iterator[bytes]:
        if found.length == dataset.UNDEFINED:
            raise BadDicom("there are no native pixels", offset=elements.stream.at, tag=layout.tag)
        vr = found.vr
        if layout.tag == PIXEL_DATA and not elements.encoding.explicit:
            vr = b"OW" if layout.bits_allocated > 8 else b"OB"
        padded = found.length + found.length % 2
        yield rewrite.header(layout.tag, vr, padded)
        size = layout.frame_bits // 8
        filled = 0 if layout.frame_bits % 8 or uids.is_deflated(source) else size * layout.frame_count
        if found.length - filled in (0, 1):
            elements.skip(found, elements.encoding)
            for index in range(layout.frame_count):
                yield frame(frames.read(index), layout, source, target)
        else:
            filled = found.length
            word = 1
            if elements.encoding.big:
                # In OW also samples of 8 bits, and of one, lie in words of 16: PS3.5 8.1.1.
                word = layout.bits_allocated // 8 if layout.bits_allocated > 8 else dataset.word_of(vr)
            for piece in elements.stream.pieces(found.length):
                yield dataset.swap(piece, word) if word > 1 else piece
        if padded > filled:
            yield bytes(padded - filled)

    return pixels


def _converted_pixels(
    elements: dataset.Elements,
    layout: PixelLayout,
    target: str,
    frame_count: int,
    converted: Iterator[bytes],
) -> Callable[[dataset.Header], Iterator[bytes]]:
    def native(found: dataset.Header) -> Iterator[bytes]:
        elements.skip(found, elements.encoding)
        bits = _native_size(layout)
        length = (bits * frame_count + 7) // 8
        vr = b"OW" if layout.bits_allocated > 8 else b"OB"
        yield rewrite.header(layout.tag, vr if layout.tag == PIXEL_DATA else found.vr, length + length % 2)
        if bits % 8:
            yield from _joined_bits(converted, bits)
        else:
            yield from (_whole(data, bits // 8, layout) for data in converted)
        if length % 2:
            yield b"\0"

    def encapsulated(found: dataset.Header) -> Iterator[bytes]:
        elements.skip(found, elements.encoding)
        # The Basic Offset Table is empty: where frames begin is not known before the last is encoded.
        yield rewrite.header(layout.tag, b"OB", dataset.UNDEFINED) + rewrite.item(dataset.ITEM, 0)
        for data in converted:
            yield rewrite.item(dataset.ITEM, len(data))
            yield data
        yield rewrite.item(dataset.SEQUENCE_END, 0)

    return encapsulated if target in encode.ENCODERS else native


def _whole(data: bytes, length: int, layout: PixelLayout) -> bytes:
    if len(data) != length:
        raise BadDicom(f"a frame has {len(data)} bytes, the data set needs {length}", tag=layout.tag)
    return data


def _joined_bits(frames: Iterator[bytes], bits: int) -> Iterator[bytes]:
    """PS3.5 8.1.1, Pixel Data Encoding of Related Data Elements: there is no padding between frames."""
    rest = np.empty(0, "u1")
    for data in frames:
        rest = np.concatenate([rest, np.unpackbits(np.frombuffer(data, "u1"), count=bits, bitorder="little")])
        whole = len(rest) // 8 * 8
        if whole:
            yield np.packbits(rest[:whole], bitorder="little").tobytes()
        rest = rest[whole:]
    if len(rest):
        yield np.packbits(rest, bitorder="little").tobytes()
