"""dicomweb-client, as its users have it, against a server as ours have it: all that it can retrieve."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from makers import element, make_object, noise
from PIL import Image

import hilum
from hilum.dicom import uids

dicomweb_client = pytest.importorskip("dicomweb_client")

STUDY, SERIES = "2.25.2", "2.25.3"
IMAGE, FRAMES, JPEG, PDF = "2.25.11", "2.25.12", "2.25.13", "2.25.14"
EXPLICIT = uids.EXPLICIT_VR_LITTLE_ENDIAN


def codestream(pixels: np.ndarray[Any, Any]) -> bytes:
    import imagecodecs

    return bytes(imagecodecs.jpegls_encode(pixels))


PICTURE = np.arange(64 * 48, dtype="u1").reshape(64, 48)
PIXELS = noise(3 * 64 * 48)


def objects() -> list[bytes]:
    pdf = [
        (0x00420011, element(0x00420011, "OB", b"%PDF-1.4" + noise(70_000))),
        (0x00420012, element(0x00420012, "LO", "application/pdf")),
    ]
    return [
        make_object(IMAGE, STUDY, SERIES, pixels=PICTURE.tobytes(), rows=64, columns=48),
        make_object(FRAMES, STUDY, SERIES, pixels=PIXELS, rows=64, columns=48, frames=3),
        make_object(
            JPEG, STUDY, SERIES, fragments=[codestream(PICTURE)], rows=64, columns=48,
            transfer_syntax=uids.JPEG_LS_LOSSLESS,
        ),
        make_object(PDF, STUDY, "2.25.4", sop_class="1.2.840.10008.5.1.4.1.1.104.1", extra=pdf),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("client") / "store"
    with hilum.open(folder, create=True) as opened:
        for file in objects():
            opened.ingest(file)
    return folder


@pytest.fixture(scope="module")
def client(store: Path) -> Iterator[Any]:
    command = [
        sys.executable,
        "-m",
        "hilum",
        "serve",
        "--store",
        os.fspath(store),
        "--http",
        "127.0.0.1:0",
        "--json",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
        assert server.stdout is not None
        said = json.loads(server.stdout.readline())
        try:
            yield dicomweb_client.DICOMwebClient(url=said["dicomweb"])
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(30)


@pytest.fixture(scope="module")
def originals(store: Path) -> dict[str, pydicom.Dataset]:
    return {str(found.SOPInstanceUID): found for found in (pydicom.dcmread(io.BytesIO(f)) for f in objects())}


def by_uid(found: Any) -> dict[str, pydicom.Dataset]:
    return {str(one.SOPInstanceUID): one for one in found}


@pytest.mark.parametrize("iterate", [False, True], ids=["retrieve", "iter"])
def test_a_study_as_it_is_stored(client, originals, iterate):
    call = client.iter_study if iterate else client.retrieve_study
    assert by_uid(call(STUDY, media_types=(("application/dicom", "*"),))) == originals


@pytest.mark.parametrize("iterate", [False, True], ids=["retrieve", "iter"])
def test_a_series_decoded_by_default(client, originals, iterate):
    call = client.iter_series if iterate else client.retrieve_series
    found = by_uid(call(STUDY, SERIES))
    assert set(found) == {IMAGE, FRAMES, JPEG}
    assert {one.file_meta.TransferSyntaxUID for one in found.values()} == {EXPLICIT}
    assert np.array_equal(found[JPEG].pixel_array, PICTURE)
    assert found[IMAGE] == originals[IMAGE]


def test_an_instance_in_the_syntaxes_that_can_be_asked_for(client, originals):
    assert client.retrieve_instance(STUDY, SERIES, JPEG) == originals[JPEG]
    for syntax in (EXPLICIT, uids.JPEG_LS_LOSSLESS, uids.RLE_LOSSLESS):
        found = client.retrieve_instance(STUDY, SERIES, JPEG, media_types=(("application/dicom", syntax),))
        assert found.file_meta.TransferSyntaxUID == syntax
        if syntax != uids.JPEG_LS_LOSSLESS:  # pydicom alone can't decode that
            assert np.array_equal(found.pixel_array, PICTURE)


def test_metadata_at_all_levels(client):
    study = client.retrieve_study_metadata(STUDY)
    assert {one["00080018"]["Value"][0] for one in study} == {IMAGE, FRAMES, JPEG, PDF}
    assert len(client.retrieve_series_metadata(STUDY, SERIES)) == 3
    one = client.retrieve_instance_metadata(STUDY, SERIES, IMAGE)
    assert one["00100010"]["Value"] == [{"Alphabetic": "Doe^Jane"}]
    read = pydicom.Dataset.from_json(one, bulk_data_uri_handler=lambda tag, vr, uri: b"")
    assert read.Rows == 64


@pytest.mark.parametrize("iterate", [False, True], ids=["retrieve", "iter"])
def test_bulk_data_by_the_uris_of_the_metadata(client, iterate):
    call = client.iter_bulkdata if iterate else client.retrieve_bulkdata
    metadata = client.retrieve_instance_metadata(STUDY, SERIES, FRAMES)
    uri = metadata["7FE00010"]["BulkDataURI"]
    assert list(call(uri)) == [PIXELS]
    assert list(call(uri, media_types=(("application/octet-stream", EXPLICIT),))) == [PIXELS]
    document = client.retrieve_instance_metadata(STUDY, "2.25.4", PDF)["00420011"]["BulkDataURI"]
    assert next(iter(call(document))).startswith(b"%PDF-1.4")
    packed = client.retrieve_instance_metadata(STUDY, SERIES, JPEG)["7FE00010"]["BulkDataURI"]
    assert [
        one.rstrip(b"\0") for one in call(packed, media_types=(("image/jls", uids.JPEG_LS_LOSSLESS),))
    ] == [codestream(PICTURE).rstrip(b"\0")]


@pytest.mark.parametrize("iterate", [False, True], ids=["retrieve", "iter"])
def test_frames_by_default_and_by_type(client, iterate):
    call = client.iter_instance_frames if iterate else client.retrieve_instance_frames
    size = 64 * 48
    frames = [PIXELS[n * size : (n + 1) * size] for n in range(3)]
    assert list(call(STUDY, SERIES, FRAMES, [3, 1])) == [frames[2], frames[0]]
    octets = (("application/octet-stream", EXPLICIT),)
    assert list(call(STUDY, SERIES, FRAMES, [1, 2, 3], media_types=octets)) == frames
    assert list(call(STUDY, SERIES, JPEG, [1])) == [PICTURE.tobytes()]
    for types in (
        ("image/jls",),
        (("image/jls", uids.JPEG_LS_LOSSLESS),),
        (("image/*", "*"),),
        ("image/jls", "image/jp2"),
    ):
        (frame,) = call(STUDY, SERIES, JPEG, [1], media_types=types)
        assert frame.rstrip(b"\0") == codestream(PICTURE).rstrip(b"\0")


def test_rendered_instances_series_and_frames(client):
    picture = Image.open(io.BytesIO(client.retrieve_instance_rendered(STUDY, SERIES, IMAGE)))
    assert (picture.format, picture.size) == ("JPEG", (48, 64))
    png = client.retrieve_instance_rendered(
        STUDY, SERIES, IMAGE, media_types=("image/png",), params={"viewport": "24,32"}
    )
    assert Image.open(io.BytesIO(png)).size == (24, 32)
    frame = client.retrieve_instance_frames_rendered(STUDY, SERIES, FRAMES, [2], media_types=("image/jpeg",))
    assert Image.open(io.BytesIO(frame)).size == (48, 64)
    assert client.retrieve_instance_rendered(
        STUDY, "2.25.4", PDF, media_types=("application/pdf",)
    ).startswith(b"%PDF")
    assert client.retrieve_series_rendered(STUDY, SERIES).count(b"Content-Location") == 3
