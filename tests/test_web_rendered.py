"""Rendered resources and thumbnails over HTTP: the right media type for whoever asks, with the parameters of
the Standard; documents and videos as they are; and words where there is nothing to see.
"""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import pytest
from makers import element, encapsulated, make_object, noise
from PIL import Image
from starlette.testclient import TestClient
from webclient import ROOT, serving
from webparts import get, parts_of

from hilum.api import Store

STUDY = f"{ROOT}/studies/2.25.2"
SERIES = f"{STUDY}/series/2.25.3"
INSTANCE = f"{SERIES}/instances/2.25.1"
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"
IMAGE_OF_BROWSER = "image/avif,image/webp,image/apng,image/svg+xml,image/*,*/*;q=0.8"
WINDOW = [(0x00281050, element(0x00281050, "DS", "100")), (0x00281051, element(0x00281051, "DS", "50"))]


def ramp(rows: int, columns: int) -> bytes:
    """A picture that is dark at its left and light at its right."""
    return np.tile(np.linspace(0, 200, columns).astype("u1"), (rows, 1)).tobytes()


def picture(answer: object) -> Image.Image:
    return Image.open(io.BytesIO(answer.content))  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TestClient, Store]]:
    """A series of an image, one of five frames, and an object without pixels."""
    files = [
        make_object(
            "2.25.1", "2.25.2", "2.25.3", pixels=ramp(60, 80), rows=60, columns=80, instance_number=3
        ),
        make_object(
            "2.25.5", "2.25.2", "2.25.3", pixels=noise(24_000), rows=60, columns=80, frames=5,
            instance_number=1,
        ),
        make_object("2.25.6", "2.25.2", "2.25.3", instance_number=2),
        make_object(
            "2.25.7", "2.25.2", "2.25.4", pixels=ramp(60, 80), rows=60, columns=80, extra=WINDOW,
            name="Roe^Richard",
        ),
        make_object("2.25.8", "2.25.9", "2.25.10"),
    ]  # fmt: skip
    with serving(tmp_path_factory.mktemp("rendered"), files) as found:
        yield found


FRAMES = f"{SERIES}/instances/2.25.5"


# --- Media types ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (None, "image/jpeg"),
        ("*/*", "image/jpeg"),
        (BROWSER, "image/jpeg"),
        (IMAGE_OF_BROWSER, "image/jpeg"),
        ("image/*", "image/jpeg"),
        ("image/png", "image/png"),
        ("image/gif", "image/gif"),
        ("image/jpeg;q=0.5, image/png", "image/png"),
        ('multipart/related; type="image/jpeg"', "image/jpeg"),
    ],
)
@pytest.mark.parametrize("path", ["/rendered", "/frames/1/rendered", "/thumbnail", "/frames/1/thumbnail"])
def test_a_picture_comes_in_the_type_that_is_liked_best(opened, path, accept, kind):
    answer = get(opened[0], INSTANCE + path, accept)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == kind
    assert picture(answer).format == {"image/jpeg": "JPEG", "image/png": "PNG", "image/gif": "GIF"}[kind]


@pytest.mark.parametrize("accept", ["text/html", "image/webp", "video/mp4", "application/pdf", "image/jp2"])
def test_what_an_image_is_not_rendered_as_is_refused_with_what_it_is(opened, accept):
    answer = get(opened[0], f"{INSTANCE}/rendered", accept)
    assert answer.status_code == 406
    assert "image/jpeg" in answer.json()["error"]


def test_dicom_and_rendered_media_types_are_not_mixed(opened):
    assert get(opened[0], f"{INSTANCE}/rendered", "image/jpeg, application/dicom").status_code == 400


def test_the_query_parameter_accept_goes_before_the_header(opened):
    assert (
        get(opened[0], f"{INSTANCE}/rendered?accept=image/png", BROWSER).headers["content-type"]
        == "image/png"
    )


# --- Several pictures ----------------------------------------------------------------------------


def test_a_multi_frame_object_is_its_first_frame(opened):
    client, _ = opened
    whole = get(client, f"{FRAMES}/rendered")
    assert whole.headers["content-type"] == "image/jpeg"
    assert whole.content == get(client, f"{FRAMES}/frames/1/rendered").content


def test_a_multi_frame_object_is_an_animation_for_those_who_ask_for_gif(opened):
    client, _ = opened
    assert picture(get(client, f"{FRAMES}/rendered", "image/gif")).n_frames == 5
    assert picture(get(client, f"{FRAMES}/frames/2,4/rendered", "image/gif")).n_frames == 2
    assert picture(get(client, f"{FRAMES}/frames/2/rendered", "image/gif")).n_frames == 1


def test_several_frames_are_parts_in_the_order_that_was_asked_for(opened):
    client, _ = opened
    parts = parts_of(get(client, f"{FRAMES}/frames/3,1/rendered"))
    assert [part.body for part in parts] == [
        get(client, f"{FRAMES}/frames/{n}/rendered").content for n in (3, 1)
    ]
    assert {part.headers["content-type"] for part in parts} == {"image/jpeg"}


@pytest.mark.parametrize(("path", "count"), [(SERIES, 2), (STUDY, 3)])
def test_series_and_studies_are_a_part_for_each_image(opened, path, count):
    answer = get(opened[0], f"{path}/rendered", "image/png")
    assert answer.headers["content-type"].startswith('multipart/related; type="image/png"; boundary=')
    parts = parts_of(answer)
    assert len(parts) == count
    assert all(part.body.startswith(b"\x89PNG") for part in parts)


@pytest.mark.parametrize(
    "path", [STUDY, SERIES, INSTANCE, f"{INSTANCE}/frames/1", FRAMES, f"{FRAMES}/frames/4"]
)
def test_thumbnails_are_one_small_picture_at_every_level(opened, path):
    answer = get(opened[0], f"{path}/thumbnail")
    assert answer.headers["content-type"] == "image/jpeg"
    assert picture(answer).size == (128, 96)
    assert picture(get(opened[0], f"{path}/thumbnail?viewport=40,40")).size == (40, 30)


# --- Parameters ----------------------------------------------------------------------------------


def test_window_viewport_and_quality_are_followed(opened):
    client, _ = opened
    plain = np.asarray(picture(get(client, f"{INSTANCE}/rendered", "image/png")))
    narrow = np.asarray(picture(get(client, f"{INSTANCE}/rendered?window=100,2,linear", "image/png")))
    assert set(np.unique(narrow)) <= {0, 128, 255}
    assert len(np.unique(plain)) > 50
    assert picture(get(client, f"{INSTANCE}/rendered?viewport=40,40")).size == (40, 30)
    assert picture(get(client, f"{INSTANCE}/rendered?viewport=40,40,10,10,20,20")).size == (40, 40)
    assert picture(get(client, f"{INSTANCE}/rendered?viewport=40,40,,,20,20")).size == (40, 40)
    sizes = [len(get(client, f"{INSTANCE}/rendered?quality={quality}").content) for quality in (5, 95)]
    assert sizes[0] < sizes[1]


def test_the_window_of_the_data_set_is_used_where_none_is_asked_for(opened):
    client, _ = opened
    url = f"{STUDY}/series/2.25.4/instances/2.25.7/rendered"
    own = get(client, url, "image/png")
    assert own.content == get(client, f"{url}?window=100,50,linear", "image/png").content
    assert own.content != get(client, f"{url}?window=100,90,linear", "image/png").content


def test_a_width_below_one_does_not_crash(opened):
    assert get(opened[0], f"{INSTANCE}/rendered?window=100,0.5,linear").status_code in (200, 400)
    assert get(opened[0], f"{INSTANCE}/rendered?window=100,0.5,linear-exact").status_code == 200


def test_annotation_and_icc_profile_are_accepted(opened):
    client, _ = opened
    plain = get(client, f"{INSTANCE}/rendered?viewport=400,300", "image/png").content
    for query in ("annotation=patient", "annotation=patient,technique", "annotation=technique"):
        assert get(client, f"{INSTANCE}/rendered?viewport=400,300&{query}", "image/png").content != plain
    assert get(client, f"{INSTANCE}/rendered?annotation=other", "image/png").status_code == 200
    for profile in ("no", "yes", "srgb", "adobergb", "rommrgb"):
        assert get(client, f"{INSTANCE}/rendered?iccprofile={profile}").status_code == 200


def test_a_thumbnail_never_tells_who_it_is(opened):
    client, _ = opened
    plain = get(client, f"{INSTANCE}/thumbnail").content
    assert get(client, f"{INSTANCE}/thumbnail?annotation=patient").content == plain


@pytest.mark.parametrize(
    "query",
    ["window=1", "window=x,1,linear", "window=1,2,square", "window=1,nan,linear", "window=1,-5,linear",
     "viewport=1", "viewport=0,0", "viewport=x,y", "viewport=1e9,1e9", "viewport=10,10,999,999,5,5",
     "viewport=1,2,3", "quality=0",
     "quality=101", "quality=x", "quality=5.5", "iccprofile=cmyk", "window=inf,1,linear",
     "window=" + "9" * 400 + ",1,linear"],
)  # fmt: skip
def test_parameters_that_make_no_sense_are_refused_in_words(opened, query):
    answer = get(opened[0], f"{INSTANCE}/rendered?{query}")
    assert answer.status_code == 400
    assert answer.json()["error"]


@pytest.mark.parametrize(
    ("path", "status"),
    [("/frames/2/rendered", 404), ("/frames/0/rendered", 400), ("/frames/x/rendered", 400),
     ("/frames/2/thumbnail", 404), ("/frames/1,9/rendered", 404)],
)  # fmt: skip
def test_frames_that_are_not_there_are_not_rendered(opened, path, status):
    assert get(opened[0], INSTANCE + path).status_code == status


@pytest.mark.parametrize(
    "path",
    [f"{SERIES}/instances/2.25.6", f"{ROOT}/studies/2.25.9", f"{ROOT}/studies/2.25.9/series/2.25.10"],
)
@pytest.mark.parametrize("what", ["rendered", "thumbnail"])
def test_where_there_is_nothing_to_see_it_says_so(opened, path, what):
    answer = get(opened[0], f"{path}/{what}")
    assert answer.status_code == 404
    assert "nothing" in answer.json()["error"] or "pixel" in answer.json()["error"]


def test_an_entity_tag_saves_rendering_it_again(opened):
    client, _ = opened
    tag = get(client, f"{INSTANCE}/rendered").headers["etag"]
    assert get(client, f"{INSTANCE}/rendered", if_none_match=tag).status_code == 304
    assert get(client, f"{INSTANCE}/rendered?quality=7", if_none_match=tag).status_code == 200


# --- Documents and videos ------------------------------------------------------------------------


def document(kind: str, content: bytes, sop_class: str) -> bytes:
    extra = [
        (0x00420011, element(0x00420011, "OB", content)),
        (0x00420012, element(0x00420012, "LO", kind)),
        (0x00420015, element(0x00420015, "UL", len(content).to_bytes(4, "little"))),
    ]
    return make_object("2.25.1", "2.25.2", "2.25.3", sop_class=sop_class, extra=extra)


@pytest.mark.parametrize("size", [501, 100_001])
@pytest.mark.parametrize("accept", [BROWSER, "*/*", None, "application/pdf"])
def test_a_pdf_is_given_as_it_is(tmp_path, accept, size):
    content = b"%PDF-1.4" + noise(size)
    with serving(tmp_path, [document("application/pdf", content, "1.2.840.10008.5.1.4.1.1.104.1")]) as (
        client,
        _,
    ):
        answer = get(client, f"{INSTANCE}/rendered", accept)
        assert answer.headers["content-type"] == "application/pdf"
        assert answer.content == content, "without the byte that pads it"
        part = get(client, f"{INSTANCE}/rendered", accept, range="bytes=2-9")
        assert (part.status_code, part.content) == (206, content[2:10])
        assert get(client, f"{INSTANCE}/rendered", "image/jpeg").status_code == 406
        assert get(client, f"{INSTANCE}/thumbnail").status_code == 404


def test_a_cda_document_is_given_as_xml(tmp_path):
    content = b"<?xml version='1.0'?><ClinicalDocument/>"
    with serving(tmp_path, [document("text/XML", content, "1.2.840.10008.5.1.4.1.1.104.2")]) as (client, _):
        answer = get(client, f"{INSTANCE}/rendered", BROWSER)
    assert answer.headers["content-type"] == "text/xml"
    assert answer.content == content


@pytest.mark.parametrize(
    ("syntax", "kind"),
    [("1.2.840.10008.1.2.4.102", "video/mp4"), ("1.2.840.10008.1.2.4.103.1", "video/mp4"),
     ("1.2.840.10008.1.2.4.100", "video/mpeg"), ("1.2.840.10008.1.2.4.107", "video/H265")],
)  # fmt: skip
@pytest.mark.parametrize(
    "fragments", [[noise(3_000_001)], [noise(70_000), noise(7_000, 1)]], ids=["one", "two"]
)
def test_a_video_is_given_as_it_is_with_byte_ranges(tmp_path, syntax, kind, fragments):
    file = make_object(
        "2.25.1", "2.25.2", "2.25.3", fragments=[b"x"], transfer_syntax=syntax, frames=90, rows=8, columns=8,
        extra=[(0x7FE00010, encapsulated(fragments))],
    )  # fmt: skip
    content = b"".join(piece + b"\0" * (len(piece) % 2) for piece in fragments)
    with serving(tmp_path, [file]) as (client, _):
        for accept in (BROWSER, "video/*", kind):
            answer = get(client, f"{INSTANCE}/rendered", accept)
            assert answer.headers["content-type"] == kind
            assert answer.content == content
        part = get(client, f"{INSTANCE}/rendered", kind, range="bytes=69990-70010")
        assert (part.status_code, part.content) == (206, content[69990:70011])
        assert get(client, f"{INSTANCE}/rendered", "image/jpeg").status_code == 406
        assert get(client, f"{INSTANCE}/thumbnail").status_code == 404
