"""The URI service, PS3.18 9: one instance by its three UIDs, as DICOM or as a picture, with every parameter
followed or refused in words.
"""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import pydicom
import pytest
from makers import element, make_object, noise
from PIL import Image
from starlette.testclient import TestClient
from webclient import serving
from webparts import get

from hilum.api import Store
from hilum.dicom import uids


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TestClient, Store]]:
    """An image, one of three frames, an object without pixels and a document."""
    row = np.linspace(0, 200, 80).astype("u1")
    pdf = [
        (0x00420011, element(0x00420011, "OB", b"%PDF-1.4" + noise(600))),
        (0x00420012, element(0x00420012, "LO", "application/pdf")),
    ]
    files = [
        make_object(
            "2.25.1", "2.25.2", "2.25.3", pixels=np.tile(row, (60, 1)).tobytes(), rows=60, columns=80
        ),
        make_object(
            "2.25.5", "2.25.2", "2.25.3", pixels=noise(14400), rows=60, columns=80, frames=3,
            transfer_syntax=uids.IMPLICIT_VR_LITTLE_ENDIAN,
        ),
        make_object("2.25.6", "2.25.2", "2.25.3"),
        make_object("2.25.7", "2.25.2", "2.25.3", sop_class="1.2.840.10008.5.1.4.1.1.104.1", extra=pdf),
    ]  # fmt: skip
    with serving(tmp_path_factory.mktemp("uri"), files) as found:
        yield found


def wado(client: TestClient, uid: str = "2.25.1", header: str | None = "*/*", /, **params: str) -> object:
    query = {"requestType": "WADO", "studyUID": "2.25.2", "seriesUID": "2.25.3", "objectUID": uid, **params}
    return get(client, "/wado?" + "&".join(f"{name}={value}" for name, value in query.items()), header)


def picture(answer: object) -> Image.Image:
    return Image.open(io.BytesIO(answer.content))  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("uid", "accept", "params", "kind"),
    [
        ("2.25.1", "*/*", {}, "image/jpeg"),
        ("2.25.1", None, {}, "image/jpeg"),
        ("2.25.1", "image/avif,image/*,*/*;q=0.8", {}, "image/jpeg"),
        ("2.25.1", "image/png", {}, "image/png"),
        ("2.25.1", "application/dicom", {}, "application/dicom"),
        ("2.25.1", "text/html", {"contentType": "image/png"}, "image/png"),
        ("2.25.1", "*/*", {"contentType": "image/gif"}, "image/gif"),
        ("2.25.1", "*/*", {"accept": "image/gif"}, "image/gif"),
        ("2.25.1", "*/*", {"contentType": "image/jp2,image/png"}, "image/png"),
        ("2.25.1", "*/*", {"contentType": "application/dicom"}, "application/dicom"),
        ("2.25.1", "*/*", {"contentType": "application/dicom,image/jpeg"}, "application/dicom"),
        ("2.25.1", "*/*", {"contentType": "image/jpeg,application/dicom"}, "image/jpeg"),
        ("2.25.5", "*/*", {}, "application/dicom"),
        ("2.25.5", "*/*", {"frameNumber": "2"}, "image/jpeg"),
        ("2.25.5", "*/*", {"contentType": "image/jpeg"}, "image/jpeg"),
        ("2.25.5", "*/*", {"contentType": "image/gif"}, "image/gif"),
        ("2.25.6", "*/*", {}, "application/dicom"),
        ("2.25.7", "*/*", {}, "application/dicom"),
        ("2.25.7", "*/*", {"contentType": "application/pdf"}, "application/pdf"),
        ("2.25.1", "*/*", {"charset": "utf-8"}, "image/jpeg"),
    ],
)
def test_the_media_type_is_what_is_asked_for_or_fits_the_object(opened, uid, accept, params, kind):
    answer = wado(opened[0], uid, accept, **params)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].split(";")[0] == kind


def test_the_object_comes_in_explicit_vr_little_endian_unless_another_syntax_is_asked_for(opened):
    client, store = opened
    answer = wado(client, "2.25.5")
    # PS3.18 8.7.3.5.2, Transfer Syntax Parameter: forbidden in the URI service.
    assert answer.headers["content-type"] == "application/dicom"
    found = pydicom.dcmread(io.BytesIO(answer.content))
    assert found.file_meta.TransferSyntaxUID == uids.EXPLICIT_VR_LITTLE_ENDIAN
    assert found.PixelData == noise(14400)
    asked = {"contentType": "application/dicom", "transferSyntax": uids.JPEG_LS_LOSSLESS}
    packed = pydicom.dcmread(io.BytesIO(wado(client, "2.25.5", **asked).content))
    assert packed.file_meta.TransferSyntaxUID == uids.JPEG_LS_LOSSLESS
    assert wado(client, "2.25.1", contentType="application/dicom").content == store.read("2.25.1")


def test_rows_columns_region_window_and_quality_are_followed(opened):
    client, _ = opened
    assert picture(wado(client, rows="30")).size == (40, 30)
    assert picture(wado(client, columns="40")).size == (40, 30)
    assert picture(wado(client, columns="40", rows="40")).size == (40, 30)
    assert picture(wado(client, region="0.5,0.5,1,1")).size == (40, 30)
    narrow = picture(wado(client, contentType="image/png", windowCenter="100", windowWidth="2"))
    assert set(np.unique(np.asarray(narrow))) <= {0, 128, 255}
    sizes = [len(wado(client, imageQuality=quality).content) for quality in ("5", "95")]
    assert sizes[0] < sizes[1]
    plain = wado(client, columns="400", contentType="image/png").content
    assert wado(client, columns="400", contentType="image/png", annotation="patient").content != plain


def test_a_frame_is_rendered_by_its_number(opened):
    client, _ = opened
    frames = [
        wado(client, "2.25.5", frameNumber=str(number), contentType="image/png") for number in (1, 2, 3)
    ]
    assert len({frame.content for frame in frames}) == 3
    assert picture(wado(client, "2.25.5", contentType="image/gif")).n_frames == 3


@pytest.mark.parametrize(
    ("params", "status", "words"),
    [
        ({"requestType": ""}, 400, "requestType"),
        ({"requestType": "QIDO"}, 400, "requestType"),
        ({"studyUID": ""}, 400, "studyUID"),
        ({"seriesUID": ""}, 400, "seriesUID"),
        ({"objectUID": ""}, 400, "objectUID"),
        ({"objectUID": "2.25.99"}, 404, "2.25.99"),
        ({"seriesUID": "2.25.99"}, 404, ""),
        ({"studyUID": "2.25.99"}, 404, ""),
        ({"anonymize": "yes"}, 406, "anonymize"),
        ({"presentationUID": "2.25.4", "presentationSeriesUID": "2.25.3"}, 406, "presentation"),
        ({"frameNumber": "2"}, 400, "frameNumber"),
        ({"frameNumber": "0"}, 400, "frameNumber"),
        ({"frameNumber": "x"}, 400, "frameNumber"),
        ({"rows": "0"}, 400, "rows"),
        ({"columns": "-5"}, 400, "columns"),
        ({"rows": "99999999"}, 400, ""),
        ({"region": "0,0,1"}, 400, "region"),
        ({"region": "0,0,2,2"}, 400, "region"),
        ({"region": "1,1,0,0"}, 400, "region"),
        ({"windowCenter": "40"}, 400, "windowWidth"),
        ({"windowWidth": "40"}, 400, "windowCenter"),
        ({"windowCenter": "x", "windowWidth": "40"}, 400, "windowCenter"),
        ({"imageQuality": "0"}, 400, "imageQuality"),
        ({"imageQuality": "101"}, 400, "imageQuality"),
        ({"contentType": "text/plain"}, 406, "image/jpeg"),
        ({"contentType": "application/dicom", "rows": "5"}, 400, "rows"),
        ({"contentType": "application/dicom", "transferSyntax": "JPEG"}, 400, "transferSyntax"),
        ({"contentType": "image/jpeg", "transferSyntax": "1.2.840.10008.1.2.1"}, 400, "transferSyntax"),
        ({"contentType": "application/dicom", "transferSyntax": "1.2.840.10008.1.2.4.50"}, 406, ""),
    ],
)
def test_what_is_wrong_or_not_offered_is_refused_in_words(opened, params, status, words):
    answer = wado(opened[0], **params)
    assert (answer.status_code, answer.json()["status"]) == (status, status), answer.text
    assert words in answer.json()["error"]


def test_a_picture_of_what_has_none_is_not_found(opened):
    assert wado(opened[0], "2.25.6", contentType="image/jpeg").status_code == 404
    assert wado(opened[0], "2.25.6", frameNumber="1").status_code == 404


def test_head_and_entity_tags_work_here_too(opened):
    client, _ = opened
    url = "/wado?requestType=WADO&studyUID=2.25.2&seriesUID=2.25.3&objectUID=2.25.1"
    head = client.head(url)
    assert (head.status_code, head.content) == (200, b"")
    assert get(client, url, "*/*", if_none_match=head.headers["etag"]).status_code == 304
