"""What does a frame cost that is decoded, encoded or rendered on the fly, with its way to a worker?

    pytest benchmarks/bench_decode.py --benchmark-enable

512 x 512 pixels of 16 bits, like a slice of CT: soft shapes and noise. Eight distinct frames take
turns, and nothing is kept in the cache. The yardstick of each row is the codec alone, on the same bytes in
this process. JPEG 2000 and HTJ2K are read by both builds of OpenJPEG: that of imagecodecs is the newer one,
lets other threads run and is not slower, so Hilum uses it. OpenJPH is twice as fast for HTJ2K, but gives half
pictures of damaged frames without a word.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Any

import corpus
import imagecodecs
import pytest

from hilum.dicom.layout import PIXEL_DATA, PixelLayout
from hilum.pixels import transcode
from hilum.pixels.pool import Pool
from hilum.pixels.render import Attributes, Rendering, Tone, render

LITTLE = "1.2.840.10008.1.2.1"
SYNTAXES = {
    "JPEG 2000": "1.2.840.10008.1.2.4.90",
    "HTJ2K": "1.2.840.10008.1.2.4.201",
    "JPEG-LS": "1.2.840.10008.1.2.4.80",
    "JPEG lossless": "1.2.840.10008.1.2.4.70",
    "RLE": "1.2.840.10008.1.2.5",
}
ALONE: dict[str, dict[str, Callable[[bytes], Any]]] = {
    "JPEG 2000": {"OpenJPEG of imagecodecs": imagecodecs.jpeg2k_decode},
    "HTJ2K": {"OpenJPEG of imagecodecs": imagecodecs.jpeg2k_decode, "OpenJPH": imagecodecs.htj2k_decode},
    "JPEG-LS": {"CharLS": imagecodecs.jpegls_decode},
    "JPEG lossless": {"libjpeg-turbo": imagecodecs.jpeg8_decode},
}
SIDE, FRAMES = corpus.PICTURE_SIDE, 8
LAYOUT = PixelLayout(PIXEL_DATA, 1, SIDE, SIDE, 1, 16, 16, 0, 0, "MONOCHROME2")
SEEN = Attributes(tones=(Tone(intercept=-1024.0, window=(40.0, 400.0, "LINEAR")),))
WINDOW = Rendering(window=(40.0, 400.0, "LINEAR"))


NATIVE = [corpus.ct_picture(number) for number in range(FRAMES)]


def stored(name: str) -> list[bytes]:
    return [transcode.frame(frame, LAYOUT, LITTLE, SYNTAXES[name]) for frame in NATIVE]


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    with Pool(1) as opened:
        opened.submit("frame", stored("RLE")[0], LAYOUT, SYNTAXES["RLE"], LITTLE).result()
        yield opened


@pytest.mark.parametrize(
    ("name", "codec"), [(name, codec) for name, codecs in ALONE.items() for codec in codecs]
)
def test_decode_by_the_codec_alone(benchmark, name, codec):
    frames = cycle(stored(name))
    benchmark(lambda: ALONE[name][codec](next(frames)))


@pytest.mark.parametrize("name", ["JPEG 2000", "HTJ2K"])
def test_decode_by_pylibjpeg_openjpeg_alone(benchmark, name):
    openjpeg = pytest.importorskip("openjpeg.utils")
    frames = cycle(stored(name))
    benchmark(lambda: openjpeg.decode_pixel_data(next(frames), version=2))


@pytest.mark.parametrize("name", SYNTAXES)
def test_decode_by_a_worker(benchmark, pool, name):
    frames = cycle(stored(name))
    result = benchmark(lambda: pool.submit("frame", next(frames), LAYOUT, SYNTAXES[name], LITTLE).result())
    assert result in NATIVE


@pytest.mark.parametrize("name", SYNTAXES)
def test_encode_by_a_worker(benchmark, pool, name):
    frames = cycle(NATIVE)
    benchmark(lambda: pool.submit("frame", next(frames), LAYOUT, LITTLE, SYNTAXES[name]).result())


def test_render_a_window_as_jpeg_here(benchmark):
    frames = cycle(NATIVE)
    benchmark(lambda: render([next(frames)], LAYOUT, LITTLE, SEEN, WINDOW))


def test_render_a_window_as_jpeg_by_a_worker(benchmark, pool):
    frames = cycle(NATIVE)
    benchmark(lambda: pool.submit("render", [next(frames)], LAYOUT, LITTLE, SEEN, WINDOW).result())
