"""wsidicom's web client on a slide behind `hilum serve`, as a slide viewer works: levels, tiles, regions, the
ICC profile by its BulkDataURI. And dicomtrolley, which downloads what a search found.

The slide is that of phantoms.py with a colour profile, stored twice: as JPEG, and as JPEG 2000 that loses
nothing. What is seen is compared with the same files as wsidicom reads them from a folder, and with the
pixels that they were made of.
"""

from __future__ import annotations

import io
import os
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import imagecodecs
import numpy as np
import pydicom
import pytest
from peers import phantoms
from peers.serving import server
from PIL import ImageCms
from pydicom.encaps import encapsulate

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore"),  # these clients have warnings of their own
]

try:
    import requests
    from dicomtrolley import qido_rs, trolley, wado_rs, wado_uri
    from dicomtrolley.core import Query, QueryLevels
    from wsidicom import WsiDicom, WsiDicomWebClient
except ImportError:
    if os.environ.get("CI"):
        raise
    pytest.skip("wsidicom or dicomtrolley is not here", allow_module_level=True)

JPEG, JPEG_2000 = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.90"
LOSSY_MAX = 40  # of one value at the edges of something violet, JPEG with half the colour

SMALL = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
# As large as those of scanners, with its new size at its begin: ICC.1 7.2, Profile Header.
PROFILE = (len(SMALL) + 100_000).to_bytes(4, "big") + SMALL[4:] + bytes(100_000)


class Slide(NamedTuple):
    study: str
    series: str
    files: list[bytes]  # by level, the largest first
    levels: list[phantoms.Picture]


def slide(syntax: str) -> Slide:
    """The slide in a transfer syntax, under a study of its own."""
    made = phantoms.slide()
    ending = ".1" if syntax == JPEG else ".2"
    files, levels = [], []
    for phantom in made:
        ds = pydicom.dcmread(io.BytesIO(phantom.data))
        ds.StudyInstanceUID += ending
        ds.SeriesInstanceUID += ending
        ds.SOPInstanceUID += ending
        ds.FrameOfReferenceUID = ds.SeriesInstanceUID + ".9"
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        ds.OpticalPathSequence[0].ICCProfile = PROFILE
        (level,) = phantom.pictures
        if syntax == JPEG_2000:
            ds.file_meta.TransferSyntaxUID = syntax
            ds.PhotometricInterpretation, ds.LossyImageCompression = "YBR_RCT", "00"
            tiles = []
            size = phantoms.SLIDE_TILE
            for row in range(0, level.shape[0], size):
                for column in range(0, level.shape[1], size):
                    tile = np.full((size, size, 3), 236, np.uint8)
                    part = level[row : row + size, column : column + size]
                    tile[: part.shape[0], : part.shape[1]] = part
                    tiles.append(
                        imagecodecs.jpeg2k_encode(tile, codecformat="j2k", reversible=True, level=0, mct=True)
                    )
            ds.PixelData = encapsulate(tiles)
        file = io.BytesIO()
        ds.save_as(file, enforce_file_format=True)
        files.append(file.getvalue())
        levels.append(level)
    return Slide(str(ds.StudyInstanceUID), str(ds.SeriesInstanceUID), files, levels)


class Both(NamedTuple):
    url: str
    slides: dict[str, Slide]  # by transfer syntax
    folders: dict[str, Path]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    folder = tmp_path_factory.mktemp("slides")
    slides = {syntax: slide(syntax) for syntax in (JPEG, JPEG_2000)}
    folders = {}
    with server(folder / "store") as url:
        for syntax, one in slides.items():
            folders[syntax] = folder / syntax
            folders[syntax].mkdir()
            for number, file in enumerate(one.files):
                (folders[syntax] / f"{number}.dcm").write_bytes(file)
                request = urllib.request.Request(
                    f"{url}/dicom-web/studies", data=file, headers={"Content-Type": "application/dicom"}
                )
                assert urllib.request.urlopen(request).status == 200
        yield Both(url, slides, folders)


@pytest.fixture(params=[JPEG, JPEG_2000], ids=["JPEG", "JPEG 2000"])
def opened(request, both) -> Iterator[tuple[Any, Any, Slide]]:
    """The slide through the web, and the same from files."""
    one = both.slides[request.param]
    client = WsiDicomWebClient.create_client(f"{both.url}/dicom-web")
    with (
        WsiDicom.open_web(client, one.study, one.series, request.param) as web,
        WsiDicom.open(both.folders[request.param]) as local,
    ):
        yield web, local, one


def test_levels_and_their_sizes_are_seen(opened):
    web, local, one = opened
    assert [level.size for level in web.levels] == [level.size for level in local.levels]
    assert (web.size.width, web.size.height) == (one.levels[0].shape[1], one.levels[0].shape[0])
    assert web.tile_size == local.tile_size
    assert web.mpp == local.mpp
    assert len(web.levels) == 2


def test_every_tile_of_every_level_is_as_stored(opened):
    web, local, _ = opened
    for level in web.levels:
        tiles = [(x, y) for y in range(level.tiled_size.height) for x in range(level.tiled_size.width)]
        with ThreadPoolExecutor(8) as pool:  # a viewer asks for many at once
            found = list(
                pool.map(lambda tile, number=level.level: web.read_encoded_tile(number, tile), tiles)
            )
        expected = [local.read_encoded_tile(level.level, tile) for tile in tiles]
        assert [tile.rstrip(b"\0") for tile in found] == [tile.rstrip(b"\0") for tile in expected]


def test_regions_are_what_the_slide_was_made_of(opened):
    web, local, one = opened
    lossless = one.study.endswith(".2")
    for number, level in enumerate(web.levels):
        for x, y, width, height in ((0, 0, 64, 64), (100, 60, 90, 110), (7, 13, 200, 150)):
            region = np.asarray(web.read_region((x, y), level.level, (width, height)).convert("RGB"))
            assert np.array_equal(region, np.asarray(local.read_region((x, y), level.level, (width, height))))
            expected = one.levels[number][y : y + height, x : x + width].astype(int)
            difference = np.abs(region[: expected.shape[0], : expected.shape[1]] - expected)
            assert difference.max() <= (0 if lossless else LOSSY_MAX)
            assert difference.mean() <= (0 if lossless else 3)
    assert web.read_thumbnail((100, 100)).size == local.read_thumbnail((100, 100)).size


def test_the_colour_profile_is_had_by_its_uri(both):
    for one in both.slides.values():
        client = WsiDicomWebClient.create_client(f"{both.url}/dicom-web")._client
        for document in client.retrieve_series_metadata(one.study, one.series):
            profile = document["00480105"]["Value"][0]["00282000"]
            assert set(profile) == {"vr", "BulkDataURI"}
            assert profile["BulkDataURI"].startswith(f"{both.url}/dicom-web/studies/{one.study}/")
            (found,) = client.retrieve_bulkdata(profile["BulkDataURI"])
            assert found.rstrip(b"\0") == PROFILE.rstrip(b"\0")


def test_a_viewer_that_takes_jpeg_alone_is_told_what_is_not(both):
    """wsidicom tries transfer syntaxes until one is not refused with 406."""
    client = WsiDicomWebClient.create_client(f"{both.url}/dicom-web")
    for stored, one in both.slides.items():
        uid = str(pydicom.dcmread(io.BytesIO(one.files[0])).SOPInstanceUID)
        for syntax in (JPEG, JPEG_2000, "1.2.840.10008.1.2.4.91", "1.2.840.10008.1.2.4.51"):
            offered = client.is_transfer_syntax_supported(one.study, one.series, uid, pydicom.uid.UID(syntax))
            # JPEG 2000 without loss can be made of what is stored; nothing is made with loss.
            assert offered == (syntax in (stored, JPEG_2000)), (stored, syntax)
        with WsiDicom.open_web(client, one.study, one.series, [JPEG, JPEG_2000]) as web:
            assert len(web.levels) == 2


# --- dicomtrolley ------------------------------------------------------------------------------------


@pytest.fixture
def searcher(both) -> Any:
    return qido_rs.QidoRS(session=requests.Session(), url=f"{both.url}/dicom-web")


def test_dicomtrolley_finds_studies_and_what_is_in_them(both, searcher):
    studies = searcher.find_studies(Query(ModalitiesInStudy="SM"))
    assert {study.uid for study in studies} >= {one.study for one in both.slides.values()}
    for one in both.slides.values():
        (study,) = searcher.find_studies(Query(StudyInstanceUID=one.study, query_level=QueryLevels.INSTANCE))
        assert {instance.uid for series in study.series for instance in series.instances} == {
            str(pydicom.dcmread(io.BytesIO(file)).SOPInstanceUID) for file in one.files
        }


@pytest.mark.parametrize("service", ["WADO-RS", "WADO-RS at once", "WADO-URI"])
def test_dicomtrolley_downloads_what_it_found(both, searcher, service, tmp_path):
    session = requests.Session()
    downloader: Any = (
        wado_rs.WadoRS(session, f"{both.url}/dicom-web", request_per_series=service == "WADO-RS")
        if service.startswith("WADO-RS")
        else wado_uri.WadoURI(session, f"{both.url}/wado")
    )
    client = trolley.Trolley(downloader=downloader, searcher=searcher)
    one = both.slides[JPEG_2000]
    study = client.find_study(Query(StudyInstanceUID=one.study))
    client.download(study, tmp_path)
    found = {}
    for path in tmp_path.rglob("*"):
        if path.is_file():
            ds = pydicom.dcmread(path)
            found[str(ds.SOPInstanceUID)] = ds
    assert len(found) == len(one.files)
    for file in one.files:
        expected = pydicom.dcmread(io.BytesIO(file))
        ds = found[str(expected.SOPInstanceUID)]
        assert ds.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"  # it asks for none
        assert np.array_equal(ds.pixel_array, expected.pixel_array)
