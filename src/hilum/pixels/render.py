"""Takes stored frames and the attributes around them; gives the JPEG, PNG or GIF that a person looks at.
Never reads a store, and applies no presentation state.

    rendering = Rendering(window=(40, 400, "LINEAR"), viewport=(256, 256))
    seen = attributes(store.open_original(uid), layout, rendering)
    pool.submit("render", [reader.read(0)], layout, transfer_syntax, seen, rendering)

PS3.4 N.2, Pixel Transformation Sequence: Modality LUT, VOI LUT, Presentation LUT; then, as PS3.18 8.3.5
(Rendering Query Parameters) has it, the region of the source, the viewport, annotations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache, lru_cache
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np

from hilum.dicom.charset import decode_text
from hilum.dicom.layout import PixelLayout
from hilum.errors import BadDicom, BadQuery, Unsupported
from hilum.pixels import dataset
from hilum.pixels.codecs import Array
from hilum.pixels.decode import decode_frame

JPEG, PNG, GIF = "image/jpeg", "image/png", "image/gif"
MEDIA_TYPES = (JPEG, PNG, GIF)
QUALITY = 90  # where nobody asks for one
SIDE_MAX = 16_384  # of a viewport, in pixels
PICTURE_BYTES_MAX = 256 << 20  # before it is compressed, of an animation all its frames
FRAME_MS = 100.0  # of an animation whose data set does not say

LINEAR, LINEAR_EXACT, SIGMOID = "LINEAR", "LINEAR_EXACT", "SIGMOID"
Window = tuple[float, float, str]
Extent = tuple[float, float]  # the stored values that become black and white


class Rendering(NamedTuple):
    """What is asked for: PS3.18 8.3.5.1, Query Parameters for Rendered Resources, and those of its URI
    service."""

    media_type: str = JPEG
    frames: tuple[int, ...] = (0,)  # their indexes, from 0; several only in an animation
    window: Window | None = None  # center, width, function; None is the data set's own
    viewport: tuple[float | None, ...] | None = None  # vw, vh, and sx, sy, sw, sh or without them
    quality: int | None = None  # of JPEG, 1 to 100
    annotation: tuple[str, ...] = ()  # "patient", "technique"
    icc_profile: str = ""  # "no", "yes", "srgb", "adobergb", "rommrgb"
    region: tuple[float, float, float, float] | None = None  # left, top, right, bottom, each 0 to 1


class Lut(NamedTuple):
    """A lookup table: of the Modality or VOI LUT Sequence, or one colour of a palette."""

    first: int  # the stored value that the first entry is for
    bits: int  # of an entry
    entries: bytes  # 16 bits each, little endian


class Tone(NamedTuple):
    """How the stored values of one frame become shades of grey."""

    slope: float = 1.0
    intercept: float = 0.0
    modality: Lut | None = None
    voi: Lut | None = None
    window: Window | None = None


class Attributes(NamedTuple):
    """What a picture needs of its data set besides the layout. Plain data, which goes to a worker process."""

    tones: tuple[Tone, ...] = (Tone(),)  # one for each frame of the rendering, or one for all
    inverse: bool = False  # the Presentation LUT Shape is INVERSE
    palette: tuple[Lut, Lut, Lut] | None = None
    padding: tuple[float, float] | None = None  # stored values that are no part of the picture
    aspect: float = 1.0  # height of a pixel by its width
    frame_ms: float = FRAME_MS
    patient: tuple[str, ...] = ()  # lines of annotation
    technique: tuple[str, ...] = ()
    icc_profile: bytes = b""


# --- Out of the data set -------------------------------------------------------

_LUT: dataset.Wanted = {0x00283002: None, 0x00283006: None}
_TONE: dataset.Wanted = {
    0x00281050: None,
    0x00281051: None,
    0x00281052: None,
    0x00281053: None,
    0x00281056: None,
    0x00283000: _LUT,
    0x00283010: _LUT,
}
_SHARED, _PER_FRAME = 0x52009229, 0x52009230  # Functional Groups Sequences
_GROUPS: dataset.Wanted = {0x00289145: _TONE, 0x00289132: _TONE}  # pixel value transformation, frame VOI LUT
_PALETTE = (0x00281101, 0x00281102, 0x00281103, 0x00281201, 0x00281202, 0x00281203)
_SEGMENTED = (0x00281221, 0x00281222, 0x00281223)
_WANTED: dataset.Wanted = {
    **_TONE,
    **dict.fromkeys((*_PALETTE, *_SEGMENTED)),
    0x00280034: None,  # Pixel Aspect Ratio
    0x00280120: None,  # Pixel Padding Value
    0x00280121: None,  # Pixel Padding Range Limit
    0x20500020: None,  # Presentation LUT Shape
    _SHARED: _GROUPS,
    _PER_FRAME: _GROUPS,
}
_TIMES = (0x00082144, 0x00180040, 0x00181063)  # Recommended Display Frame Rate, Cine Rate, Frame Time
_PATIENT = (0x00080005, 0x00100010, 0x00100020, 0x00100030, 0x00100040)
_TECHNIQUE = (0x00080005, 0x00080020, 0x00080060, 0x0008103E, 0x00180050, 0x00180060, 0x00181151)
_OPTICAL_PATH, _ICC_PROFILE = 0x00480105, 0x00282000


def attributes(
    file: dataset.File, layout: PixelLayout, rendering: Rendering, transfer_syntax: str = ""
) -> Attributes:
    """Read from a stored object what render() needs for `rendering`.

    `file` is an OriginalFile, or any file with the object in it, of `transfer_syntax` where it does not say.
    Nothing behind the last attribute is read, and of the Per-Frame Functional Groups only the items of the
    frames asked for.

    Raises:
        BadDicom: the data set is damaged.
    """
    wanted = dict(_WANTED)
    if len(rendering.frames) > 1:
        wanted |= dict.fromkeys(_TIMES)
    if "patient" in rendering.annotation:
        wanted |= dict.fromkeys(_PATIENT)
    if "technique" in rendering.annotation:
        wanted |= dict.fromkeys(_TECHNIQUE)
    if rendering.icc_profile not in ("", "no"):
        wanted |= {_ICC_PROFILE: None, _OPTICAL_PATH: {_ICC_PROFILE: None}}
    elements = dataset.Elements(file, transfer_syntax)
    found = dataset.read(elements, wanted, only={_PER_FRAME: frozenset(rendering.frames)})
    signed = bool(layout.pixel_representation)
    return Attributes(
        tones=_tones(found, rendering.frames, signed),
        inverse=dataset.text(found.values.get(0x20500020)) == "INVERSE",
        palette=_palette(found, signed) if layout.photometric == "PALETTE COLOR" else None,
        padding=_padding(found, signed),
        aspect=_aspect(found),
        frame_ms=_frame_ms(found),
        patient=_lines(found, _PATIENT) if "patient" in rendering.annotation else (),
        technique=_lines(found, _TECHNIQUE) if "technique" in rendering.annotation else (),
        icc_profile=_icc_profile(found),
    )


def _tones(found: dataset.Found, indexes: Sequence[int], signed: bool) -> tuple[Tone, ...]:
    """PS3.3 C.7.6.16, Multi-frame Functional Groups Module: per frame before shared before the data set."""
    below = _tone([found], signed)
    shared = found.items.get(_SHARED, [])[:1]
    if shared:
        below = _grouped(shared[0], below, signed)
    frames = found.items.get(_PER_FRAME, [])
    if not frames:
        return (below,)
    return tuple(_grouped(frames[n], below, signed) if n < len(frames) else below for n in indexes)


def _grouped(groups: dataset.Found, below: Tone, signed: bool) -> Tone:
    items = [items[0] for items in groups.items.values() if items]
    return _tone(items, signed, below)


def _tone(places: Sequence[dataset.Found], signed: bool, below: Tone | None = None) -> Tone:
    tone = below or Tone()
    for place in places:
        values = place.values
        slope, intercept = (dataset.numbers(values.get(tag)) for tag in (0x00281053, 0x00281052))
        if slope and intercept and math.isfinite(slope[0]) and math.isfinite(intercept[0]):
            tone = tone._replace(slope=slope[0], intercept=intercept[0])
        modality, voi = (place.items.get(tag, [])[:1] for tag in (0x00283000, 0x00283010))
        if modality:
            tone = tone._replace(modality=_lut_of(modality[0], signed))
        if voi:
            tone = tone._replace(voi=_lut_of(voi[0], signed))
        center, width = (dataset.numbers(values.get(tag)) for tag in (0x00281050, 0x00281051))
        if center and width:
            function = dataset.text(values.get(0x00281056)) or LINEAR
            window = (center[0], width[0], function if function in (LINEAR_EXACT, SIGMOID) else LINEAR)
            if _is_window(window):
                tone = tone._replace(window=window)
    return tone


def _is_window(window: Window) -> bool:
    center, width, _ = window
    return math.isfinite(center) and math.isfinite(width) and width > 0


def _lut_of(item: dataset.Found, signed: bool) -> Lut | None:
    return _lut(item.values.get(0x00283002), item.values.get(0x00283006), signed)


def _lut(descriptor: dataset.Value | None, data: dataset.Value | None, signed: bool) -> Lut | None:
    """PS3.3 C.11.1.1.1, LUT Descriptor: number of entries (0 is 65536), first value mapped, bits an entry.

    None for a table without sense, which is left out as if it were not there.
    """
    if descriptor is None or data is None or len(descriptor.data) < 6:
        return None
    count, first, bits = np.frombuffer(descriptor.data, "<u2", 3).tolist()
    count = count or 65536
    if first >= 0x8000 and (signed or descriptor.vr == b"SS"):
        first -= 65536
    if len(data.data) >= 2 * count:
        entries = data.data[: 2 * count]
    elif len(data.data) >= count:
        # Entries of 8 bits, two in a word.
        entries = np.frombuffer(data.data, "u1", count).astype("<u2").tobytes()
        bits = min(bits, 8)
    else:
        return None
    return Lut(first, min(max(bits, 1), 16), entries)


def _palette(found: dataset.Found, signed: bool) -> tuple[Lut, Lut, Lut] | None:
    """PS3.3 C.7.6.3.1.5, Palette Color Lookup Table Descriptor, and C.7.9.2, Segmented Palette."""
    luts = []
    for n in range(3):
        descriptor = found.values.get(_PALETTE[n])
        data = found.values.get(_PALETTE[n + 3])
        segmented = found.values.get(_SEGMENTED[n])
        if not (data and data.data) and segmented is not None and descriptor is not None:
            data = dataset.Value(b"OW", _unsegmented(segmented.data, _bits_of(descriptor)))
        lut = _lut(descriptor, data, signed)
        if lut is None:
            return None
        luts.append(lut)
    return luts[0], luts[1], luts[2]


def _bits_of(descriptor: dataset.Value) -> int:
    return int.from_bytes(descriptor.data[4:6], "little")


def _unsegmented(data: bytes, bits: int) -> bytes:
    """PS3.3 C.7.9.2.1, Segmented Palette Color Lookup Table Data: discrete, linear and indirect segments."""
    kind, width = ("<u2", 2) if bits > 8 else ("u1", 1)
    words: list[int] = np.frombuffer(data, kind, len(data) // width).tolist()
    out: list[int] = []
    starts: list[int] = []  # of each segment, in words

    def expand(at: int, copies: bool) -> int:
        """Expand the segment at this word; return where the next begins, the end if it makes no sense."""
        if at + 2 > len(words):
            return len(words)
        opcode, length = words[at], words[at + 1]
        if opcode == 0:
            out.extend(words[at + 2 : at + 2 + length])
            return at + 2 + length
        if opcode == 1 and out and at + 3 <= len(words):
            begin, end = out[-1], words[at + 2]
            out.extend(round(begin + (end - begin) * (n + 1) / length) for n in range(length))
            return at + 3
        if opcode == 2 and copies:
            wide = 4 // width  # words of the offset, which counts bytes
            parts = words[at + 2 : at + 2 + wide]
            begin = sum(part << 8 * width * n for n, part in enumerate(parts)) // width
            if begin in starts:
                index = starts.index(begin)
                for start in starts[index : index + length]:
                    expand(start, False)
            return at + 2 + wide
        return len(words)

    at = 0
    while at < len(words) and len(out) <= 65536:
        starts.append(at)
        at = expand(at, True)
    return np.array(out[:65536], "<u2").tobytes()


def _padding(found: dataset.Found, signed: bool) -> tuple[float, float] | None:
    """PS3.3 C.7.5.1.1.2, Pixel Padding Value and Pixel Padding Range Limit."""
    limits = []
    for tag in (0x00280120, 0x00280121):
        value = found.values.get(tag)
        if value is not None and value.data:
            if signed and value.vr == b"US":
                value = value._replace(vr=b"SS")
            limits += dataset.numbers(value)[:1]
    return (min(limits), max(limits)) if limits else None


def _aspect(found: dataset.Found) -> float:
    """PS3.3 C.7.6.3.1.7, Pixel Aspect Ratio: vertical, horizontal."""
    ratio = dataset.numbers(found.values.get(0x00280034))
    if len(ratio) == 2 and ratio[0] > 0 and ratio[1] > 0 and 0.1 <= ratio[0] / ratio[1] <= 10:
        return ratio[0] / ratio[1]
    return 1.0


def _frame_ms(found: dataset.Found) -> float:
    rate, cine, time = (dataset.numbers(found.values.get(tag))[:1] for tag in _TIMES)
    shown = [*time, *(1000 / rate for rate in (*cine, *rate) if rate > 0)]
    return min(max(shown[0], 10.0), 10_000.0) if shown and shown[0] > 0 else FRAME_MS


def _lines(found: dataset.Found, tags: Sequence[int]) -> tuple[str, ...]:
    sets = found.values.get(0x00080005)
    lines = []
    for tag in tags[1:]:
        value = found.values.get(tag)
        if value is not None:
            vr = value.vr.decode("latin-1")
            words = decode_text(value.data, vr, sets.data if sets is not None else b"").strip("\0 ")
            if vr == "PN":
                words = words.split("=")[0].replace("^", " ").strip()
            lines.append(words + _UNITS.get(tag, ""))
    return tuple(line for line in lines if line)


_UNITS = {0x00180050: " mm", 0x00180060: " kV", 0x00181151: " mA"}


def _icc_profile(found: dataset.Found) -> bytes:
    places = [found, *found.items.get(_OPTICAL_PATH, [])]
    return next((p.values[_ICC_PROFILE].data for p in places if _ICC_PROFILE in p.values), b"")


# --- Rendering -----------------------------------------------------------------


def render(
    frames: Sequence[bytes],
    layout: PixelLayout,
    transfer_syntax: str,
    seen: Attributes,
    rendering: Rendering,
) -> bytes:
    """Return the picture of `frames`, as FrameReader.read gives them; several are an animation, in GIF only.

    Grey goes through the Modality LUT, and the window of the rendering, else the first VOI LUT of the data
    set, else its first window. Where there is none, samples of up to 8 bits are shown from the least to the
    greatest that they can be, others from the least to the greatest that they are.

    Raises:
        BadQuery: window, viewport, region or quality make no sense.
        Unsupported: the transfer syntax has no decoder, or the picture is too large.
        BadDicom: the frames can't be decoded.
    """
    if rendering.media_type not in MEDIA_TYPES:
        raise Unsupported(f"pictures are not made as {rendering.media_type}")
    if rendering.window is not None:
        rendering = rendering._replace(window=_asked_window(*rendering.window))
    if rendering.quality is not None and not 1 <= rendering.quality <= 100:
        raise BadQuery(f"quality is {rendering.quality}, not 1 to 100")
    if not frames or (len(frames) > 1 and rendering.media_type != GIF):
        raise BadQuery(f"{len(frames)} frames are not one picture as {rendering.media_type}")
    tones = seen.tones if len(seen.tones) == len(frames) else seen.tones[:1] * len(frames)
    if rendering.window is not None:
        tones = tuple(tone._replace(voi=None, window=rendering.window) for tone in tones)
    extent = _common_extent(frames, layout, transfer_syntax, tones, seen) if len(frames) > 1 else None
    pictures, size = [], 0
    for frame, tone in zip(frames, tones, strict=True):
        shown = _shown(decode_frame(frame, layout, transfer_syntax), layout, tone, seen, extent)
        pictures.append(_framed(shown, seen, rendering))
        size += pictures[-1].nbytes
        if size > PICTURE_BYTES_MAX:
            raise Unsupported(f"{len(frames)} frames of this size are more than one picture may be")
    return _encoded(pictures, seen, rendering)


def _asked_window(center: float, width: float, function: str) -> Window:
    """PS3.18 names the functions linear, linear-exact and sigmoid; PS3.3 LINEAR, LINEAR_EXACT and SIGMOID."""
    named = function.upper().replace("-", "_")
    if named not in (LINEAR, LINEAR_EXACT, SIGMOID):
        raise BadQuery(f"{function[:40]!r} is no VOI LUT function: linear, linear-exact or sigmoid")
    window = (float(center), float(width), named)
    if not _is_window(window):
        raise BadQuery(f"a window of center {center} and width {width} shows nothing")
    return window


def _common_extent(
    frames: Sequence[bytes],
    layout: PixelLayout,
    transfer_syntax: str,
    tones: Sequence[Tone],
    seen: Attributes,
) -> Extent | None:
    """Return one range for an animation without a window, which would flicker if each frame had its own."""
    if layout.samples_per_pixel > 1 or any(tone.voi or tone.window for tone in tones):
        return None
    # Decoded twice, so that no more than one is held.
    arrays = (decode_frame(frame, layout, transfer_syntax) for frame in frames)
    extents = [found for array in arrays if (found := _extent(array, layout, seen.padding))]
    return (min(low for low, _ in extents), max(high for _, high in extents)) if extents else None


def _shown(array: Array, layout: PixelLayout, tone: Tone, seen: Attributes, extent: Extent | None) -> Array:
    """Return grey or colour of 8 bits for one decoded frame."""
    if array.ndim == 3:
        return (array >> max(0, layout.bits_stored - 8)).astype(np.uint8)
    if layout.photometric == "PALETTE COLOR":
        if seen.palette is None:
            raise BadDicom("PALETTE COLOR without its palette", tag=0x00281101)
        return _colours(array, seen.palette)
    if tone.voi is None and tone.window is None and extent is None:
        extent = _extent(array, layout, seen.padding)
    inverse = seen.inverse or layout.photometric == "MONOCHROME1"
    if array.dtype.kind == "f" or array.dtype.itemsize > 2:
        return _grey(array, tone, extent, inverse)
    table = _table(array.dtype.str, tone, extent, inverse)
    return table.take(array.view(f"u{array.dtype.itemsize}"))


@lru_cache(maxsize=32)
def _table(dtype: str, tone: Tone, extent: Extent | None, inverse: bool) -> Array:
    """Return the shade of each stored value that the type can hold, by its bits as an unsigned number."""
    kind = np.dtype(dtype)
    values = np.arange(1 << (8 * kind.itemsize), dtype=f"u{kind.itemsize}").view(kind)
    return _grey(values, tone, extent, inverse)


def _grey(array: Array, tone: Tone, extent: Extent | None, inverse: bool) -> Array:
    values = _modality(array, tone)
    if tone.voi is not None:
        shades = _looked_up(values, tone.voi) * (1 / ((1 << tone.voi.bits) - 1))
    elif tone.window is not None:
        shades = _windowed(values, *tone.window)
    elif extent is None or extent[0] == extent[1]:
        shades = np.zeros(values.shape)
    else:
        low, high = sorted(_modality(np.array(extent), tone).tolist())
        shades = (values - low) * (1 / (high - low)) if high > low else np.zeros(values.shape)
    shades = np.nan_to_num(shades, nan=0.0).clip(0, 1) * 255
    shown: Array = np.rint(shades).astype(np.uint8)
    return 255 - shown if inverse else shown


def _modality(array: Array, tone: Tone) -> Array:
    """PS3.3 C.11.1, Modality LUT Module: the table, or the slope and intercept."""
    if tone.modality is not None:
        return _looked_up(array, tone.modality)
    values = array.astype(np.float64)
    if tone.slope != 1.0:
        values *= tone.slope
    if tone.intercept:
        values += tone.intercept
    return values


def _looked_up(values: Array, lut: Lut) -> Array:
    """Values below the first one mapped take the first entry, those behind the last the last: C.11.1.1.1."""
    entries = np.frombuffer(lut.entries, "<u2").astype(np.float64)
    index = np.nan_to_num(values.astype(np.float64)) - lut.first
    return entries[np.rint(index).clip(0, len(entries) - 1).astype(np.intp)]


def _windowed(values: Array, center: float, width: float, function: str) -> Array:
    """PS3.3 C.11.2.1.2, Window Center and Window Width, and C.11.2.1.3, VOI LUT Function; output 0 to 1."""
    if function == SIGMOID:
        with np.errstate(over="ignore"):
            return 1 / (1 + np.exp(-4 * (values - center) / width))
    if function == LINEAR_EXACT:
        return (values - center) / width + 0.5
    if width <= 1:
        # The formula divides by width - 1; its two outer cases leave nothing between them.
        return (values > center - 0.5).astype(np.float64)
    return (values - (center - 0.5)) / (width - 1) + 0.5


def _extent(array: Array, layout: PixelLayout, padding: tuple[float, float] | None) -> Extent | None:
    """Return the range of a frame where no window says one; None if it has no values."""
    if array.dtype.kind != "f" and layout.bits_stored <= 8:
        span = 1 << layout.bits_stored
        return (-span / 2, span / 2 - 1) if layout.pixel_representation else (0.0, span - 1.0)
    if array.dtype.kind == "f":
        array = array[np.isfinite(array)]
    if padding is not None:
        array = array[(array < padding[0]) | (array > padding[1])]
    return (float(array.min()), float(array.max())) if array.size else None


def _colours(array: Array, palette: tuple[Lut, Lut, Lut]) -> Array:
    """PS3.3 C.7.6.3.1.5: each stored value names an entry of red, green and blue."""
    out = np.empty((*array.shape, 3), np.uint8)
    for n, lut in enumerate(palette):
        entries = np.frombuffer(lut.entries, "<u2")
        shown = (entries >> max(0, lut.bits - 8)).astype(np.uint8)
        out[..., n] = shown[(array.astype(np.int64) - lut.first).clip(0, len(shown) - 1)]
    return out


# --- Region, viewport, annotation, file ----------------------------------------


def _framed(shown: Array, seen: Attributes, rendering: Rendering) -> Array:
    """Cut the region out, fit it into the viewport, write the annotation."""
    if rendering.viewport is None and rendering.region is None and not rendering.annotation:
        return shown
    from PIL import Image

    image = Image.fromarray(shown)
    box, flips = _source_box(image.width, image.height, rendering)
    size = _target_size(box, seen.aspect, rendering.viewport)
    if (box, size) != ((0.0, 0.0, float(image.width), float(image.height)), image.size):
        image = image.resize(size, Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)
    for flip, method in zip(
        flips, (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_TOP_BOTTOM), strict=True
    ):
        if flip:
            image = image.transpose(method)
    if rendering.annotation:
        _annotate(image, seen)
    return np.asarray(image)


Box = tuple[float, float, float, float]


def _source_box(width: int, height: int, rendering: Rendering) -> tuple[Box, tuple[bool, bool]]:
    """Return left, top, right, bottom of what is shown, and whether it is flipped.

    PS3.18 8.3.5.1.3, Viewport Scaling: a negative width or height of the region flips it.
    """
    left, top, right, bottom = 0.0, 0.0, float(width), float(height)
    flips = (False, False)
    if rendering.region is not None:
        low_x, low_y, high_x, high_y = rendering.region
        if not (0 <= low_x < high_x <= 1 and 0 <= low_y < high_y <= 1):
            raise BadQuery(f"the region {rendering.region} does not lie in the image, 0 to 1 on both sides")
        left, right, top, bottom = low_x * width, high_x * width, low_y * height, high_y * height
    elif rendering.viewport is not None and len(rendering.viewport) > 2:
        sx, sy, sw, sh = (*rendering.viewport[2:], None, None, None, None)[:4]
        left, top = sx or 0.0, sy or 0.0
        wide = width - left if sw is None else sw
        high = height - top if sh is None else sh
        flips = (wide < 0, high < 0)
        right, bottom = left + abs(wide), top + abs(high)
        if not (0 <= left < min(right, width) and 0 <= top < min(bottom, height)):
            raise BadQuery("the source region of the viewport does not lie in the image")
        right, bottom = min(right, float(width)), min(bottom, float(height))
    return (left, top, right, bottom), flips


def _target_size(box: Box, aspect: float, viewport: tuple[float | None, ...] | None) -> tuple[int, int]:
    """As large as it can be in the viewport, in the proportions of the source."""
    width, height = box[2] - box[0], box[3] - box[1]
    if viewport is None:
        return max(1, round(width)), max(1, round(height))
    if len(viewport) not in (2, 6):
        raise BadQuery("viewport is two numbers or six: vw,vh,sx,sy,sw,sh")
    sides = [side for side in viewport[:2] if side is not None]
    if not all(1 <= side <= SIDE_MAX for side in sides):
        raise BadQuery(f"a viewport has sides of 1 to {SIDE_MAX} pixels")
    if aspect >= 1:
        height *= aspect
    else:
        width /= aspect
    scales = [
        side / size for side, size in zip(viewport[:2], (width, height), strict=True) if side is not None
    ]
    scale = min(scales, default=1.0)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    if max(size) > SIDE_MAX:
        raise BadQuery(f"a picture has sides of at most {SIDE_MAX} pixels")
    return size


def _annotate(image: Any, seen: Attributes) -> None:
    """Burn the patient into the upper left corner, the technique into the lower left one."""
    from PIL import ImageDraw

    draw = ImageDraw.Draw(image)
    size = max(10, min(image.height // 30, 48))
    font = _font(size)
    white, black = (255, 0) if image.mode == "L" else ((255,) * 3, (0,) * 3)
    below = image.height - size // 2 - round(1.25 * size * len(seen.technique))
    for lines, top in ((seen.patient, size // 2), (seen.technique, below)):
        for n, line in enumerate(lines):
            at = (size // 2, top + round(1.25 * size * n))
            draw.text(at, line, fill=white, font=font, stroke_width=1, stroke_fill=black)


@cache
def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _encoded(pictures: list[Array], seen: Attributes, rendering: Rendering) -> bytes:
    profile = b""
    if pictures[0].ndim == 3 and rendering.icc_profile not in ("", "no"):
        pictures, profile = _in_profile(pictures, seen.icc_profile, rendering.icc_profile)
    if rendering.media_type == GIF:
        return _gif(pictures, seen)
    import imagecodecs

    picture = np.ascontiguousarray(pictures[0])
    if rendering.media_type == PNG:
        # Runs after a difference to the left: four times the speed of the default, and no larger.
        data = bytes(imagecodecs.png_encode(picture, level=1, strategy=3, filter=16))
        return _png_with_profile(data, profile) if profile else data
    data = bytes(imagecodecs.jpeg8_encode(picture, level=rendering.quality or QUALITY))
    return _jpeg_with_profile(data, profile) if profile else data


def _gif(pictures: list[Array], seen: Attributes) -> bytes:
    from PIL import Image

    first, *others = [Image.fromarray(picture) for picture in pictures]
    out = BytesIO()
    if others:
        first.save(
            out, "GIF", save_all=True, append_images=others, duration=seen.frame_ms, loop=0, optimize=False
        )
    else:
        first.save(out, "GIF")
    return out.getvalue()


def _in_profile(pictures: list[Array], own: bytes, wanted: str) -> tuple[list[Array], bytes]:
    """Return the pictures in the colour space asked for, and its profile. Without one of its own the image
    counts as sRGB: PS3.18 8.3.5.1.5, ICC Profile."""
    from PIL import Image, ImageCms

    if wanted not in ("yes", "srgb", "adobergb", "rommrgb"):
        raise BadQuery(f"iccprofile is {wanted[:40]!r}: no, yes, srgb, adobergb or rommrgb")
    source = own or _profile("srgb")
    if wanted == "yes" or (wanted == "srgb" and not own):
        return pictures, source
    target = _profile(wanted)
    try:
        transform = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(BytesIO(source)), ImageCms.ImageCmsProfile(BytesIO(target)), "RGB", "RGB"
        )
    except (ImageCms.PyCMSError, OSError) as failure:
        raise BadDicom(f"the ICC Profile can't be used: {failure}", tag=_ICC_PROFILE) from None
    return [np.asarray(ImageCms.applyTransform(Image.fromarray(p), transform)) for p in pictures], target


@cache
def _profile(name: str) -> bytes:
    import imagecodecs

    if name == "rommrgb":
        # ISO 22028-2: primaries, white of D50, and a gamma of 1.8.
        primaries = [0.7347, 0.2653, 1.0, 0.1596, 0.8404, 1.0, 0.0366, 0.0001, 1.0]
        white = [0.3457, 0.3585, 1.0]
        return bytes(imagecodecs.cms_profile("rgb", whitepoint=white, primaries=primaries, gamma=1.8))
    return bytes(imagecodecs.cms_profile(name))


def _jpeg_with_profile(data: bytes, profile: bytes) -> bytes:
    """ICC.1 B.4, Embedding ICC profiles in JPEG files: APP2 segments behind the first marker segment."""
    size = 65519
    parts = [profile[at : at + size] for at in range(0, len(profile), size)]
    segments = b"".join(
        b"\xff\xe2"
        + (len(part) + 16).to_bytes(2, "big")
        + b"ICC_PROFILE\0"
        + bytes((n + 1, len(parts)))
        + part
        for n, part in enumerate(parts)
    )
    at = 4 + int.from_bytes(data[4:6], "big") if data[2:4] == b"\xff\xe0" else 2
    return data[:at] + segments + data[at:]


def _png_with_profile(data: bytes, profile: bytes) -> bytes:
    """PNG 11.3.2.3, iCCP Embedded ICC profile: right behind the header."""
    import zlib

    chunk = b"iCCPICC\0\0" + zlib.compress(profile)
    whole = (len(chunk) - 4).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    return data[:33] + whole + data[33:]
