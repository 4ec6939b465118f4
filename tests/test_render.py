"""Frames as a person sees them: made pixels for each rule, then every sample file against pydicom's LUTs."""

from __future__ import annotations

import io
import logging
import math
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from struct import pack
from typing import Any

import imagecodecs
import makers
import numpy as np
import pydicom
import pytest
from PIL import Image, ImageCms
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi_lut

import hilum
from hilum.dicom.layout import DOUBLE_FLOAT_PIXEL_DATA, FLOAT_PIXEL_DATA, PIXEL_DATA, PixelLayout
from hilum.errors import BadDicom, BadQuery, HilumError, Unsupported
from hilum.pixels import render
from hilum.pixels.decode import decode_frame
from hilum.pixels.render import GIF, JPEG, PNG, Attributes, Lut, Rendering, Tone, attributes

Array = np.ndarray[Any, Any]

TS = "1.2.840.10008.1.2"
LITTLE, BIG, VIDEO = f"{TS}.1", f"{TS}.2", f"{TS}.4.102"
GREY_8 = PixelLayout(PIXEL_DATA, 1, 1, 6, 1, 8, 8, 0, 0, "MONOCHROME2")
GREY_16 = GREY_8._replace(bits_allocated=16, bits_stored=16)
SIGNED = GREY_16._replace(pixel_representation=1)
RGB = GREY_8._replace(samples_per_pixel=3, photometric="RGB")


PLAIN = Attributes()


def shown(frame: Array, layout: PixelLayout = GREY_16, seen: Attributes = PLAIN, **asked: Any) -> Array:
    """The pixels of the PNG."""
    layout = layout._replace(rows=frame.shape[0], columns=frame.shape[1])
    data = render.render([frame.tobytes()], layout, LITTLE, seen, Rendering(media_type=PNG, **asked))
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        return np.asarray(image)


def row(*values: float, kind: str = "<u2") -> Array:
    return np.array([values], kind)


def tone(**changes: Any) -> Attributes:
    return Attributes(tones=(Tone(**changes),))


def lut(first: int, bits: int, *entries: int) -> Lut:
    return Lut(first, bits, np.array(entries, "<u2").tobytes())


# --- Windows: PS3.3 C.11.2.1.2 and C.11.2.1.3 --------------------------------


def linear(values: Array, center: float, width: float) -> Array:
    """PS3.3 C.11.2.1.2.1, Default LINEAR Function, case by case as it stands there."""
    out = np.empty(values.shape)
    for at, x in np.ndenumerate(values.astype(float)):
        if x <= center - 0.5 - (width - 1) / 2:
            out[at] = 0
        elif x > center - 0.5 + (width - 1) / 2:
            out[at] = 255
        else:
            out[at] = ((x - (center - 0.5)) / (width - 1) + 0.5) * 255
    return np.rint(out)


def linear_exact(values: Array, center: float, width: float) -> Array:
    return np.rint((((values.astype(float) - center) / width + 0.5) * 255).clip(0, 255))


def sigmoid(values: Array, center: float, width: float) -> Array:
    return np.rint(
        [
            [255 / (1 + math.exp(min(-4 * (x - center) / width, 700))) for x in line]
            for line in values.tolist()
        ]
    )


@pytest.mark.parametrize("function", [linear, linear_exact, sigmoid])
@pytest.mark.parametrize(
    ("center", "width"), [(40, 400), (-0.5, 2), (1000.25, 77.5), (0, 1), (5, 1e6), (3, 1.5)]
)
def test_a_window_is_the_standards_function(function, center, width):
    values = np.arange(-600, 1300, dtype="<i2").reshape(1, -1)
    for named in (function.__name__, function.__name__.upper(), function.__name__.replace("_", "-")):
        pixels = shown(values, SIGNED, window=(center, width, named))
        assert np.abs(pixels - function(values, center, width)).max() <= (center % 1 != 0 or width < 2)


def test_a_window_maps_its_edges_as_the_notes_of_the_standard_say():
    values = row(-5, 0, 2047, 2048, 4095, 5000, kind="<i2")
    assert shown(values, SIGNED, window=(2048, 4096, "LINEAR")).tolist() == [[0, 0, 127, 128, 255, 255]]
    assert shown(row(0, 1, 2), window=(1, 1, "LINEAR")).tolist() == [[0, 255, 255]]
    assert shown(row(0, 1, 2), window=(0, 100, "LINEAR_EXACT")).tolist() == [[128, 130, 133]]


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("width", [0.5, 1e-9, 1e-300])
def test_a_window_below_one_does_not_crash(function, width):
    pixels = shown(row(0, 1, 99), window=(1, width, function))
    assert pixels.tolist()[0][::2] == [0, 255]


@pytest.mark.parametrize(
    "window",
    [
        (0, 0, "LINEAR"),
        (0, -1, "LINEAR"),
        (math.nan, 1, "LINEAR"),
        (0, math.nan, "LINEAR"),
        (0, math.inf, "SIGMOID"),
        (0, 1, "CUBIC"),
        (0, 1, ""),
    ],
)
def test_a_window_that_makes_no_sense_is_a_bad_query(window):
    with pytest.raises(BadQuery):
        shown(row(1, 2), window=window)


def test_the_window_of_the_data_set_is_taken_unless_one_is_asked_for():
    values = row(0, 50, 100, 150, 200)
    seen = tone(window=(100.0, 100.0, "LINEAR_EXACT"))
    assert np.array_equal(shown(values, seen=seen), linear_exact(values, 100, 100))
    assert np.array_equal(shown(values, seen=seen, window=(50, 20, "LINEAR")), linear(values, 50, 20))


# --- Modality and VOI LUT ----------------------------------------------------


def test_rescale_comes_before_the_window():
    values = row(0, 500, 1000, 1024, 2000)
    seen = tone(slope=2.0, intercept=-1024.0)
    assert np.array_equal(
        shown(values, seen=seen, window=(40, 400, "LINEAR")), linear(values * 2.0 - 1024, 40, 400)
    )


def test_a_tiny_rescale_slope_builds_no_table_of_its_values():
    seen = tone(slope=1e-9, intercept=0.0)
    values = row(0, 30000, 65535)
    assert shown(values, seen=seen).tolist() == [[0, 117, 255]]
    assert shown(values, seen=seen, window=(3e-5, 6e-5, "LINEAR_EXACT")).tolist() == [[0, 128, 255]]
    wide = GREY_16._replace(bits_allocated=32, bits_stored=32)
    assert shown(row(0, 2**31, 2**32 - 1, kind="<u4"), wide, seen).tolist() == [[0, 128, 255]]


def test_a_negative_rescale_slope_turns_dark_to_light():
    assert shown(row(0, 500, 1000), seen=tone(slope=-1.0)).tolist() == [[255, 128, 0]]


def test_the_modality_lut_takes_the_place_of_rescale():
    seen = tone(slope=9.0, modality=lut(10, 16, 0, 100, 50), window=(50.0, 100.0, "LINEAR_EXACT"))
    assert shown(row(0, 10, 11, 12, 99), seen=seen).tolist() == [[0, 0, 255, 128, 128]]


def test_a_voi_lut_comes_before_the_window_of_the_data_set_and_after_one_that_is_asked_for():
    seen = tone(voi=lut(-1, 8, 255, 128, 0), intercept=-5.0, window=(0.0, 1.0, "LINEAR"))
    assert shown(row(0, 4, 5, 6, 60), seen=seen).tolist() == [[255, 255, 128, 0, 0]]
    assert shown(row(0, 4, 5, 6, 60), seen=seen, window=(0, 1, "LINEAR")).tolist() == [[0, 0, 255, 255, 255]]


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_the_greatest_value_of_a_voi_lut_is_white(bits):
    top = (1 << bits) - 1
    seen = tone(voi=lut(0, bits, 0, top // 2, top))
    assert shown(row(0, 1, 2), seen=seen).tolist() == [[0, round(255 * (top // 2) / top), 255]]


def test_without_any_window_all_values_are_seen():
    assert shown(row(-1000, 0, 1000, kind="<i2"), SIGNED).tolist() == [[0, 128, 255]]
    assert shown(row(0, 100, 255, kind="u1"), GREY_8).tolist() == [[0, 100, 255]]
    assert shown(row(7, 7, 7)).tolist() == [[0, 0, 0]]
    five_bits = GREY_8._replace(bits_stored=5)
    assert shown(row(0, 31, kind="u1"), five_bits).tolist() == [[0, 255]]
    signed = GREY_8._replace(pixel_representation=1)
    assert shown(row(-128, 0, 127, kind="i1"), signed).tolist() == [[0, 128, 255]]


def test_padding_does_not_stretch_the_range():
    seen = Attributes(padding=(-2000.0, -2000.0))
    assert shown(row(-2000, 0, 50, 100, kind="<i2"), SIGNED, seen).tolist() == [[0, 0, 128, 255]]
    assert shown(row(-2000, -2000, kind="<i2"), SIGNED, seen).tolist() == [[0, 0]]


def test_monochrome1_and_an_inverse_shape_are_inverted_once():
    values = row(0, 50, 100)
    one = GREY_16._replace(photometric="MONOCHROME1")
    assert shown(values, one).tolist() == [[255, 127, 0]]
    assert shown(values, seen=Attributes(inverse=True)).tolist() == [[255, 127, 0]]
    assert shown(values, one, Attributes(inverse=True)).tolist() == [[255, 127, 0]]
    assert shown(values, one, window=(50, 100, "LINEAR_EXACT")).tolist() == [[255, 127, 0]]


def test_one_bit_frames_are_black_and_white_even_if_they_are_flat():
    layout = GREY_8._replace(rows=1, columns=8, bits_allocated=1, bits_stored=1)
    for stored, expected in ((b"\xf0", [0] * 4 + [255] * 4), (b"\xff", [255] * 8), (b"\0", [0] * 8)):
        data = render.render([stored], layout, LITTLE, Attributes(), Rendering(media_type=PNG))
        assert imagecodecs.png_decode(data).tolist() == [expected]


@pytest.mark.parametrize(("tag", "kind"), [(FLOAT_PIXEL_DATA, "<f4"), (DOUBLE_FLOAT_PIXEL_DATA, "<f8")])
def test_floating_point_pixels_are_shown_and_what_is_no_number_is_black(tag, kind):
    layout = GREY_8._replace(tag=tag, bits_allocated=8 * int(kind[2]))
    values = row(math.nan, -1, 0, 1, math.inf, -math.inf, kind=kind)
    assert shown(values, layout).tolist() == [[0, 0, 128, 255, 255, 0]]
    assert shown(values, layout, window=(0, 4, "LINEAR_EXACT")).tolist() == [[0, 64, 128, 191, 255, 0]]
    assert shown(row(math.nan, math.nan, kind=kind), layout).tolist() == [[0, 0]]


# --- Colour ------------------------------------------------------------------


def test_rgb_is_shown_as_it_is_and_of_sixteen_bits_its_highest_eight():
    colour = np.arange(18, dtype=np.uint8).reshape(1, 6, 3)
    assert np.array_equal(shown(colour, RGB), colour)
    deep = np.array([[[0, 0x1234, 0xFFFF]]], "<u2")
    assert shown(deep, RGB._replace(bits_allocated=16, bits_stored=16)).tolist() == [[[0, 0x12, 0xFF]]]
    twelve = np.array([[[0, 0x123, 0xFFF]]], "<u2")
    assert shown(twelve, RGB._replace(bits_allocated=16, bits_stored=12)).tolist() == [[[0, 0x12, 0xFF]]]


def test_ybr_is_shown_as_rgb():
    colour = np.array([[[76, 85, 255]]], np.uint8)
    assert (
        np.abs(shown(colour, RGB._replace(photometric="YBR_FULL")).astype(int) - [[[254, 0, 0]]]).max() <= 1
    )


def test_a_palette_names_colours_and_values_outside_it_take_its_ends():
    palette = (lut(1, 8, 10, 20, 30), lut(1, 16, 0x1000, 0x2000, 0x3000), lut(1, 8, 0, 0, 255))
    layout = GREY_8._replace(photometric="PALETTE COLOR")
    pixels = shown(row(0, 1, 2, 3, 200, kind="u1"), layout, Attributes(palette=palette))
    assert pixels.tolist() == [[[10, 16, 0], [10, 16, 0], [20, 32, 0], [30, 48, 255], [30, 48, 255]]]


def test_a_palette_that_is_not_there_is_not_guessed():
    with pytest.raises(BadDicom, match="palette"):
        shown(row(0, 1, kind="u1"), GREY_8._replace(photometric="PALETTE COLOR"))


# --- Region, viewport and annotation -----------------------------------------

SLOPE = np.add.outer(np.arange(40) * 2, np.arange(60) * 3).astype(np.uint8)


@pytest.mark.parametrize(
    ("viewport", "size"),
    [
        ((30, 30), (30, 20)),
        ((600, 100), (150, 100)),
        ((60, 40), (60, 40)),
        ((30, None), (30, 20)),
        ((None, 80), (120, 80)),
        ((1, 1), (1, 1)),
        ((None, None), (60, 40)),
        ((100, 100, 0, 0, 30, 10), (100, 33)),
    ],
)
def test_a_picture_is_as_large_as_its_viewport_lets_it_be_in_its_proportions(viewport, size):
    assert shown(SLOPE, GREY_8, viewport=viewport).shape == size[::-1]


def test_a_source_region_is_cut_out_and_a_negative_one_is_flipped():
    region = SLOPE[5:25, 10:40]
    assert np.array_equal(shown(SLOPE, GREY_8, viewport=(30, 20, 10, 5, 30, 20)), region)
    assert np.array_equal(shown(SLOPE, GREY_8, viewport=(30, 20, 10, 5, -30, 20)), region[:, ::-1])
    assert np.array_equal(shown(SLOPE, GREY_8, viewport=(30, 20, 10, 5, 30, -20)), region[::-1])
    rest = shown(SLOPE, GREY_8, viewport=(50, 35, 10, 5, None, None))
    assert np.array_equal(rest, SLOPE[5:, 10:])
    beyond = shown(SLOPE, GREY_8, viewport=(20, 10, 50, 35, 500, 500))
    assert beyond.shape == (10, 20)


def test_a_region_in_parts_of_the_whole_is_cut_out():
    assert np.array_equal(shown(SLOPE, GREY_8, region=(0.5, 0.25, 1.0, 0.75)), SLOPE[10:30, 30:])
    small = shown(SLOPE, GREY_8, region=(0.5, 0.25, 1.0, 0.75), viewport=(15, None))
    assert small.shape == (10, 15)


@pytest.mark.parametrize(
    "asked",
    [
        {"viewport": (0, 10)},
        {"viewport": (10, -1)},
        {"viewport": (10, math.nan)},
        {"viewport": (10, 1e9)},
        {"viewport": (10,)},
        {"viewport": (10, 10, 1)},
        {"viewport": (10, 10, 60, 0, 5, 5)},
        {"viewport": (10, 10, -1, 0, 5, 5)},
        {"viewport": (10, 10, 0, 0, 0, 5)},
        {"viewport": (10, 10, math.nan, 0, 5, 5)},
        {"viewport": (10, 10, math.inf, 0, 5, 5)},
        {"viewport": (None, 16000, 0, 0, 60, 1)},
        {"region": (0.5, 0, 0.5, 1)},
        {"region": (0, 0, 1.1, 1)},
        {"region": (-0.1, 0, 1, 1)},
        {"region": (math.nan, 0, 1, 1)},
        {"quality": 0, "window": (1, 1, "LINEAR")},
        {"quality": 101},
    ],
)
def test_parameters_without_sense_are_bad_queries(asked):
    with pytest.raises(BadQuery):
        shown(SLOPE, GREY_8, **asked)


def test_pixels_that_are_not_square_are_made_so_in_a_viewport():
    tall = Attributes(aspect=2.0)
    assert shown(SLOPE, GREY_8, tall, viewport=(60, 400)).shape == (80, 60)
    assert shown(SLOPE, GREY_8, tall).shape == (40, 60)  # without one a pixel is a pixel
    assert shown(SLOPE, GREY_8, Attributes(aspect=0.5), viewport=(60, 400)).shape == (20, 60)


def test_annotation_is_burned_in_where_it_is_asked_for():
    frame = np.full((200, 300), 100, np.uint8)
    seen = Attributes(patient=("DOE JANE", "P1"), technique=("CT",))
    pixels = shown(frame, GREY_8, seen, annotation=("patient", "technique"))
    assert (pixels[:40, :120] > 200).sum() > 20
    assert (pixels[-40:, :120] > 200).sum() > 5
    assert (pixels[:, 200:] == 100).all()
    plain = shown(frame, GREY_8, Attributes())
    assert (plain == 100).all()
    colour = shown(np.full((60, 80, 3), 100, np.uint8), RGB, seen, annotation=("patient",))
    assert (colour > 200).any()


# --- Files -------------------------------------------------------------------


def test_jpeg_is_near_and_its_quality_counts():
    frame = np.tile(SLOPE // 2, (3, 3))
    layout = GREY_8._replace(rows=120, columns=180)
    sizes = []
    for quality, off in ((100, 2), (90, 8), (None, 8), (10, 60)):
        data = render.render([frame.tobytes()], layout, LITTLE, Attributes(), Rendering(quality=quality))
        assert data.startswith(b"\xff\xd8\xff")
        assert np.abs(imagecodecs.jpeg8_decode(data).astype(int) - frame).max() <= off
        sizes.append(len(data))
    assert sizes[0] > sizes[1] == sizes[2] > sizes[3]


def test_colour_jpeg_keeps_its_colours():
    frame = np.empty((32, 32, 3), np.uint8)
    frame[:] = (200, 40, 90)
    layout = RGB._replace(rows=32, columns=32)
    data = render.render([frame.tobytes()], layout, LITTLE, Attributes(), Rendering())
    assert np.abs(imagecodecs.jpeg8_decode(data).astype(int) - frame).max() <= 3


def test_several_frames_are_an_animation_with_the_time_of_the_data_set():
    frames = [np.full((8, 8), shade, np.uint8) for shade in (0, 120, 250)]
    layout = GREY_8._replace(rows=8, columns=8, frame_count=3)
    asked = Rendering(media_type=GIF, frames=(0, 1, 2))
    data = render.render([one.tobytes() for one in frames], layout, LITTLE, Attributes(frame_ms=250.0), asked)
    with Image.open(io.BytesIO(data), formats=["GIF"]) as image:
        assert image.n_frames == 3
        assert image.info["duration"] == 250
        assert image.info["loop"] == 0
        for n, frame in enumerate(frames):
            image.seek(n)
            assert np.abs(np.asarray(image.convert("L")).astype(int) - frame).max() <= 1
    one = render.render([frames[1].tobytes()], layout, LITTLE, Attributes(), Rendering(media_type=GIF))
    with Image.open(io.BytesIO(one), formats=["GIF"]) as image:
        assert image.n_frames == 1
    for media_type in (JPEG, PNG):
        with pytest.raises(BadQuery, match="3 frames"):
            render.render([b""] * 3, layout, LITTLE, Attributes(), Rendering(media_type=media_type))


def test_each_frame_of_an_animation_has_its_own_tone():
    layout = GREY_16._replace(rows=8, columns=8, frame_count=2)
    frame = np.full((8, 8), 100, "<u2").tobytes()
    seen = Attributes(tones=(Tone(window=(100.0, 10.0, "LINEAR")), Tone(window=(500.0, 10.0, "LINEAR"))))
    data = render.render([frame, frame], layout, LITTLE, seen, Rendering(media_type=GIF, frames=(0, 1)))
    with Image.open(io.BytesIO(data), formats=["GIF"]) as image:
        shades = []
        for n in range(image.n_frames):
            image.seek(n)
            shades.append(int(np.asarray(image.convert("L"))[0, 0]))
    assert abs(shades[0] - 142) <= 1
    assert shades[1] == 0


def test_an_animation_without_a_window_does_not_flicker():
    layout = GREY_16._replace(rows=1, columns=2, frame_count=2)
    frames = [row(0, 100).tobytes(), row(0, 200).tobytes()]
    asked = Rendering(media_type=GIF, frames=(0, 1))
    with Image.open(io.BytesIO(render.render(frames, layout, LITTLE, Attributes(), asked))) as image:
        shades = []
        for n in range(2):
            image.seek(n)
            shades.append(np.asarray(image.convert("L"))[0].tolist())
    assert shades == [[0, 128], [0, 255]]


def test_what_is_too_large_for_one_picture_is_unsupported(monkeypatch):
    monkeypatch.setattr(render, "PICTURE_BYTES_MAX", 10_000)
    layout = GREY_8._replace(rows=100, columns=100, frame_count=2)
    asked = Rendering(media_type=GIF, frames=(0, 1))
    with pytest.raises(Unsupported, match="2 frames of this size"):
        render.render([bytes(10_000)] * 2, layout, LITTLE, Attributes(), asked)
    small = asked._replace(viewport=(50.0, 50.0))
    assert render.render([bytes(10_000)] * 2, layout, LITTLE, Attributes(), small)


def test_other_media_types_and_sources_without_a_decoder_are_unsupported():
    with pytest.raises(Unsupported, match="image/webp"):
        render.render([b""], GREY_8, LITTLE, Attributes(), Rendering(media_type="image/webp"))
    with pytest.raises(Unsupported, match="video"):
        render.render([b""], GREY_8, VIDEO, Attributes(), Rendering())
    with pytest.raises(BadDicom):
        render.render([b"x"], GREY_8, LITTLE, Attributes(), Rendering())


# --- ICC profiles ------------------------------------------------------------


def profile_in(data: bytes) -> bytes:
    with Image.open(io.BytesIO(data)) as image:
        return image.info.get("icc_profile") or b""


@pytest.mark.parametrize("media_type", [JPEG, PNG])
def test_a_profile_is_embedded_and_the_colours_are_converted(media_type):
    own = bytes(imagecodecs.cms_profile("adobergb"))
    frame = np.empty((16, 16, 3), np.uint8)
    frame[:] = (100, 150, 50)
    layout = RGB._replace(rows=16, columns=16)

    def made(profile: str, source: bytes) -> tuple[bytes, list[int]]:
        asked = Rendering(media_type=media_type, icc_profile=profile, quality=100)
        data = render.render([frame.tobytes()], layout, LITTLE, Attributes(icc_profile=source), asked)
        with Image.open(io.BytesIO(data)) as image:
            return profile_in(data), list(image.convert("RGB").getpixel((8, 8)))

    for asked in ("", "no"):
        assert made(asked, own) == (b"", made("", b"")[1])
    kept, colour = made("yes", own)
    assert kept == own
    assert np.abs(np.array(colour) - (100, 150, 50)).max() <= 2
    srgb, converted = made("srgb", own)
    transform = ImageCms.buildTransform(
        ImageCms.ImageCmsProfile(io.BytesIO(own)), ImageCms.ImageCmsProfile(io.BytesIO(srgb)), "RGB", "RGB"
    )
    expected = np.asarray(ImageCms.applyTransform(Image.fromarray(frame), transform))[8, 8]
    assert np.abs(expected.astype(int) - converted).max() <= 2
    assert np.abs(np.array(converted) - (100, 150, 50)).max() > 5
    names = {made(name, b"")[0] for name in ("srgb", "adobergb", "rommrgb")}
    assert len(names) == 3
    assert b"" not in names


def test_a_profile_of_many_segments_is_whole_and_a_broken_one_is_told():
    layout = RGB._replace(rows=16, columns=16)
    own = bytes(imagecodecs.cms_profile("srgb"))
    large = pack(">I", 200_000) + own[4:] + bytes(200_000 - len(own))
    seen, asked = Attributes(icc_profile=large), Rendering(icc_profile="yes")
    assert profile_in(render.render([bytes(768)], layout, LITTLE, seen, asked)) == large
    broken = Attributes(icc_profile=b"nonsense")
    with pytest.raises(BadDicom, match="ICC Profile"):
        render.render([bytes(768)], layout, LITTLE, broken, asked._replace(icc_profile="srgb"))
    with pytest.raises(BadQuery, match="iccprofile"):
        render.render([bytes(768)], layout, LITTLE, seen, asked._replace(icc_profile="cmyk"))


def test_grey_has_no_profile():
    data = render.render([bytes(6)], GREY_8, LITTLE, Attributes(), Rendering(icc_profile="srgb"))
    assert profile_in(data) == b""


# --- Attributes out of a data set --------------------------------------------


def file_of(*elements: bytes) -> io.BytesIO:
    tags = {
        int.from_bytes(one[:2], "little") << 16 | int.from_bytes(one[2:4], "little"): one for one in elements
    }
    body = b"".join(tags[tag] for tag in sorted(tags))
    return io.BytesIO(makers.file_meta("2.25.1", makers.CT_IMAGE, LITTLE) + body)


def ds(tag: int, value: str) -> bytes:
    return makers.element(tag, "DS", value)


def lut_item(descriptor: Sequence[int], data: bytes, vr: str = "US") -> bytes:
    raw = pack("<3H", *(value & 0xFFFF for value in descriptor))
    return makers.element(0x00283002, vr, raw) + makers.element(0x00283006, "OW", data)


def read(*elements: bytes, layout: PixelLayout = GREY_16, **asked: Any) -> Attributes:
    return attributes(file_of(*elements), layout, Rendering(**asked))


def test_rescale_window_and_function_are_read():
    seen = read(
        ds(0x00281050, "40\\50"),
        ds(0x00281051, "400\\60 "),
        ds(0x00281052, "-1024"),
        ds(0x00281053, "2.5"),
        makers.element(0x00281056, "CS", "SIGMOID"),
        makers.element(0x20500020, "CS", "INVERSE"),
    )
    assert seen.tones == (Tone(2.5, -1024.0, window=(40.0, 400.0, "SIGMOID")),)
    assert seen.inverse


@pytest.mark.parametrize(
    "elements",
    [
        [ds(0x00281050, "40")],
        [ds(0x00281051, "400")],
        [ds(0x00281050, "40"), ds(0x00281051, "0")],
        [ds(0x00281050, "40"), ds(0x00281051, "-3")],
        [ds(0x00281050, "wide"), ds(0x00281051, "400")],
        [ds(0x00281050, "nan"), ds(0x00281051, "400")],
        [ds(0x00281050, ""), ds(0x00281051, "")],
        [ds(0x00281053, "1e999"), ds(0x00281052, "0")],
    ],
)
def test_half_a_window_or_one_without_sense_is_no_window(elements):
    assert read(*elements).tones == (Tone(),)


def test_luts_are_read_and_those_without_sense_are_left_out():
    entries = np.array([1, 2, 3], "<u2").tobytes()
    good = lut_item((3, 5, 16), entries)
    assert read(makers.sequence(0x00283010, [good])).tones[0].voi == Lut(5, 16, entries)
    assert read(makers.sequence(0x00283000, [good])).tones[0].modality == Lut(5, 16, entries)
    below = read(makers.sequence(0x00283010, [lut_item((3, -5, 16), entries, "SS")]))
    assert below.tones[0].voi == Lut(-5, 16, entries)
    bytewise = read(makers.sequence(0x00283010, [lut_item((4, 0, 8), b"\1\2\3\4")]))
    assert bytewise.tones[0].voi == lut(0, 8, 1, 2, 3, 4)
    for bad in (lut_item((9, 5, 16), entries), b"", makers.element(0x00283002, "US", b"\1\0")):
        assert read(makers.sequence(0x00283010, [bad])).tones == (Tone(),)
    whole = lut_item((0, 0, 16), bytes(131_072))
    assert len(read(makers.sequence(0x00283010, [whole])).tones[0].voi.entries) == 131_072


def test_functional_groups_of_the_frame_come_before_shared_ones_and_those_before_the_data_set():
    def voi(center: int) -> bytes:
        return makers.sequence(0x00289132, [ds(0x00281050, str(center)) + ds(0x00281051, "10")])

    def rescale(slope: int) -> bytes:
        return makers.sequence(0x00289145, [ds(0x00281052, "0") + ds(0x00281053, str(slope))])

    shared = makers.sequence(0x52009229, [voi(2) + rescale(3)])
    frames = makers.sequence(0x52009230, [b"", voi(20), voi(30) + rescale(7)])
    layout = GREY_16._replace(frame_count=3)
    seen = read(ds(0x00281050, "1"), ds(0x00281051, "10"), shared, frames, layout=layout, frames=(2, 0, 1))
    assert [(one.window[0], one.slope) for one in seen.tones] == [(30.0, 7.0), (2.0, 3.0), (20.0, 3.0)]
    single = read(ds(0x00281050, "1"), ds(0x00281051, "10"), shared, frames, frames=(0,))
    assert single.tones[0].window[0] == 2.0, "an enhanced object of one frame has functional groups too"


def test_palettes_are_read_whole_and_segmented():
    layout = GREY_8._replace(photometric="PALETTE COLOR")
    descriptors = [makers.element(0x00281101 + n, "US", pack("<3H", 4, 0, 16)) for n in range(3)]
    entries = [np.array([n, 2, 3, 4], "<u2").tobytes() for n in range(3)]
    plain = [makers.element(0x00281201 + n, "OW", entries[n]) for n in range(3)]
    assert [one.entries for one in read(*descriptors, *plain, layout=layout).palette] == entries
    # One value, then three on the way to 40, as PS3.3 C.7.9.2.1 and C.7.9.2.2 have it.
    segments = np.array([0, 1, 10, 1, 3, 40], "<u2").tobytes()
    segmented = [makers.element(0x00281221 + n, "OW", segments) for n in range(3)]
    seen = read(*descriptors, *segmented, layout=layout)
    assert [np.frombuffer(one.entries, "<u2").tolist() for one in seen.palette] == [[10, 20, 30, 40]] * 3
    assert read(*descriptors, layout=layout).palette is None
    assert read(*descriptors, *plain, layout=GREY_8).palette is None


@pytest.mark.parametrize("bits", [8, 16])
def test_segments_are_those_of_pydicom(bits):
    from pydicom.pixels.processing import _expand_segmented_lut

    indirect = [
        2,
        2,
        *((4, 0) if bits == 16 else (2, 0, 0, 0)),
    ]  # again two segments, from the second word on
    words = [0, 2, 5, 9, 1, 4, 200, 0, 1, 7, 1, 3, 0]
    for data in (words, [0, 1, 3, 1, 255, 250], words[:4] + words[4:]):
        raw = np.array(data, "<u2" if bits == 16 else "u1").tobytes()
        ours = np.frombuffer(render._unsegmented(raw, bits), "<u2").tolist()
        assert ours == _expand_segmented_lut(tuple(data), "<H" if bits == 16 else "<B")
    # An indirect segment copies others, by the offset of the first: bytes, from the least significant word.
    at = 2 * 4 if bits == 16 else 4
    offset = [at & 0xFFFF, 0] if bits == 16 else [at, 0, 0, 0]
    raw = np.array([*words, 2, 2, *offset], "<u2" if bits == 16 else "u1").tobytes()
    plain = np.frombuffer(
        render._unsegmented(np.array(words, "<u2" if bits == 16 else "u1").tobytes(), bits), "<u2"
    )
    assert len(indirect) > 2
    ours = np.frombuffer(render._unsegmented(raw, bits), "<u2").tolist()
    assert ours[: len(plain)] == plain.tolist()
    assert ours[len(plain) :] == [50, 100, 150, 200, 7]


def test_a_hostile_segmented_palette_takes_no_memory():
    words = [0, 1, 9] + [1, 65535, 9] * 20_000 + [2, 65535, 0, 0] * 5000
    assert len(render._unsegmented(np.array(words, "<u2").tobytes(), 16)) <= 131_072


def test_padding_follows_pixel_representation():
    value = makers.element(0x00280120, "US", 0xF830)
    limit = makers.element(0x00280121, "US", 0xF831)
    assert read(value).padding == (63536.0, 63536.0)
    assert read(value, limit, layout=SIGNED).padding == (-2000.0, -1999.0)
    assert read().padding is None


@pytest.mark.parametrize(
    ("text", "aspect"), [("2\\1", 2.0), ("480\\640", 0.75), ("0\\1", 1.0), ("x", 1.0), ("1\\999", 1.0)]
)
def test_the_aspect_ratio_is_vertical_by_horizontal(text, aspect):
    assert read(makers.element(0x00280034, "IS", text)).aspect == aspect


@pytest.mark.parametrize(
    ("elements", "frame_ms"),
    [
        ([], 100.0),
        ([ds(0x00181063, "33.3")], 33.3),
        ([makers.element(0x00180040, "IS", "20")], 50.0),
        ([makers.element(0x00082144, "IS", "4")], 250.0),
        ([ds(0x00181063, "40"), makers.element(0x00180040, "IS", "1")], 40.0),
        ([ds(0x00181063, "0")], 100.0),
        ([makers.element(0x00180040, "IS", "0")], 100.0),
        ([ds(0x00181063, "1e9")], 10_000.0),
    ],
)
def test_the_time_of_a_frame_is_read_from_frame_time_or_a_rate(elements, frame_ms):
    layout = GREY_16._replace(frame_count=2)
    assert read(*elements, layout=layout, frames=(0, 1)).frame_ms == pytest.approx(frame_ms)


def test_annotation_is_read_only_if_it_is_asked_for_and_in_its_character_set():
    elements = [
        makers.element(0x00080005, "CS", "ISO_IR 192"),
        makers.element(0x00080060, "CS", "CT"),
        makers.element(0x00100010, "PN", "Müller^Jörg=x".encode()),
        makers.element(0x00100020, "LO", "P1"),
        ds(0x00180050, "5"),
    ]
    assert (read(*elements).patient, read(*elements).technique) == ((), ())
    seen = read(*elements, annotation=("patient", "technique"))
    assert seen.patient == ("Müller Jörg", "P1")
    assert seen.technique == ("CT", "5 mm")


def test_a_profile_is_read_from_the_image_or_its_optical_path():
    one = makers.element(0x00282000, "OB", b"profile!")
    path = makers.sequence(0x00480105, [makers.element(0x00282000, "OB", b"of path!")])
    assert read(one).icc_profile == b""
    assert read(one, icc_profile="yes").icc_profile == b"profile!"
    assert read(path, icc_profile="srgb").icc_profile == b"of path!"


def test_a_damaged_data_set_is_bad_dicom():
    whole = file_of(
        ds(0x00281050, "40"), makers.sequence(0x00283010, [lut_item((3, 5, 16), bytes(6))])
    ).getvalue()
    for cut in (1, 5, 9):
        with pytest.raises(BadDicom):
            attributes(io.BytesIO(whole[:-cut]), GREY_16, Rendering())


def test_rendering_loads_codecs_only_when_it_renders():
    code = (
        "import sys, hilum.pixels.render\nassert not {'imagecodecs', 'PIL', 'pydicom'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- The sample files against pydicom ----------------------------------------


@pytest.fixture(autouse=True, scope="module")
def quiet_pydicom() -> Iterator[None]:
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    yield
    logger.setLevel(level)


LOOK = (0x00281050, 0x00281051, 0x00281052, 0x00281053, 0x00281056, 0x00283000, 0x00283010)


def by_pydicom(array: Array, data_set: pydicom.Dataset, layout: PixelLayout) -> Array | None:
    """The picture as numpy and pydicom's LUTs make it; None where nothing says how it is to be seen."""
    if layout.photometric == "PALETTE COLOR":
        bits = data_set.RedPaletteColorLookupTableDescriptor[2]
        return (apply_color_lut(array, data_set)[..., :3] >> (bits - 8)).astype(np.uint8)
    if array.ndim == 3:
        return (array >> max(0, layout.bits_stored - 8)).astype(np.uint8)
    look = pydicom.Dataset()
    places = [data_set]
    for name in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for item in data_set.get(name, [])[:1]:
            for inner in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
                places += item.get(inner, [])[:1]
    for place in places:
        for tag in LOOK:
            if tag in place:
                look.add(place[tag])
    look.BitsStored, look.PixelRepresentation = layout.bits_stored, layout.pixel_representation
    look.PhotometricInterpretation = layout.photometric
    values = apply_modality_lut(array, look)
    if look.get("VOILUTSequence"):
        bits = look.VOILUTSequence[0].LUTDescriptor[2]
        shades = apply_voi_lut(values, look, prefer_lut=True) / (2**bits - 1)
    else:
        center, width = (
            value[0] if isinstance(value, pydicom.multival.MultiValue) else value
            for value in (look.get("WindowCenter"), look.get("WindowWidth"))
        )
        if center is None or width is None or width <= 0:
            return None
        if width > 1 and array.dtype.kind != "f":
            look.WindowCenter, look.WindowWidth = center, width
            seen = apply_voi_lut(values, look, prefer_lut=False)
            low, high = (
                apply_voi_lut(np.array([value]), look, prefer_lut=False)[0] for value in (-1e12, 1e12)
            )
            shades = (seen - low) / (high - low)
        else:
            shades = (values > center - 0.5).astype(float)
    picture = np.rint(shades.clip(0, 1) * 255).astype(np.uint8)
    is_inverse = layout.photometric == "MONOCHROME1" or data_set.get("PresentationLUTShape") == "INVERSE"
    return 255 - picture if is_inverse else picture


# Files for which pydicom has no answer of its own. Of a palette in big endian it takes the words as they lie.
WITHOUT_ANSWER = {"TC0941_voi_lut_huge_entries.dcm", "I_000000.dcm"}


def stored(store: hilum.api.Store, files: dict[str, Path]) -> Iterator[tuple[str, str]]:
    """Store all files in a few commits; give the UID and the name of each that could be stored."""
    names = {}
    for name, path in files.items():
        with suppress(HilumError):
            names.setdefault(store.prepare(path), name)
    for at in range(0, len(names), 500):
        store.ingest_many(list(names)[at : at + 500])
    yield from {prepared.uid.decode(): name for prepared, name in names.items()}.items()


@pytest.mark.filterwarnings("ignore")
def test_every_sample_picture_is_as_pydicoms_luts_make_it(tmp_path, shared_files: dict[str, Path]):
    compared, wrong = 0, []
    with hilum.open(tmp_path / "store", create=True) as store:
        for uid, name in stored(store, shared_files):
            try:
                frames = store.frames(uid)
                syntax = store.locate(uid).instance.transfer_syntax.decode()
                array = decode_frame(frames.read(0), frames.layout, syntax)
            except HilumError:
                continue
            seen = attributes(store.open_original(uid), frames.layout, Rendering(), syntax)
            data = render.render([frames.read(0)], frames.layout, syntax, seen, Rendering(media_type=PNG))
            if Path(name).name in WITHOUT_ANSWER or (syntax == BIG and seen.palette):
                continue
            expected = by_pydicom(array, pydicom.dcmread(store.open_original(uid), force=True), frames.layout)
            if expected is None:
                continue
            pixels = imagecodecs.png_decode(data)
            compared += 1
            if pixels.shape != expected.shape or np.abs(pixels.astype(int) - expected).max() > 1:
                wrong.append(name)
    assert wrong == []
    assert compared > 500
