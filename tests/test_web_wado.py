"""Studies, series and instances over HTTP, whole and as metadata, with their bulk data: byte for byte what
came in where that is asked for, Explicit VR Little Endian where nothing is said, and never a silent gap.
"""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import os
import warnings
import zipfile
from collections.abc import Iterator

import numpy as np
import pydicom
import pytest
from makers import element, make_object, noise
from starlette.testclient import TestClient
from starlette.types import Message
from webclient import ROOT, client_of, serving
from webparts import get, parts_of, resources_in, url_of

import hilum
from hilum.api import Store
from hilum.dicom import uids
from hilum.engine import record
from hilum.engine.importer import Options, import_paths
from hilum.engine.resources import Resource
from hilum.errors import HilumError

EXPLICIT = uids.EXPLICIT_VR_LITTLE_ENDIAN
DEFLATED = uids.DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN
STORED = 'multipart/related; type="application/dicom"; transfer-syntax=*'
SINGLE_STORED = "application/dicom; transfer-syntax=*"
STUDY = f"{ROOT}/studies/2.25.2"
SERIES = f"{STUDY}/series/2.25.3"
INSTANCE = f"{SERIES}/instances/2.25.1"
XML = 'multipart/related; type="application/dicom+xml"'


@pytest.fixture(scope="module")
def archive(
    tmp_path_factory: pytest.TempPathFactory, shared_data: os.PathLike[str]
) -> Iterator[tuple[TestClient, Store]]:
    """A store with all sample files, and a client of it."""
    folder = tmp_path_factory.mktemp("archive")
    with hilum.open(folder / "store", create=True) as store:
        import_paths(store, [os.fspath(shared_data)], Options())
        with client_of(store, log={"requests": False}) as client:
            yield client, store


@pytest.fixture(scope="module")
def everything(archive: tuple[TestClient, Store]) -> list[Resource]:
    return resources_in(archive[1])


@pytest.fixture
def study(tmp_path) -> Iterator[tuple[TestClient, Store]]:
    """A study of two series with three and two instances."""
    files = [
        make_object(f"2.25.1{n}", "2.25.2", f"2.25.3{n % 2}", pixels=noise(5000, n), instance_number=n)
        for n in range(5)
    ]
    with serving(tmp_path, files) as opened:
        yield opened


@pytest.fixture
def single(tmp_path) -> Iterator[tuple[TestClient, Store]]:
    """One instance, with pixels of 90,000 bytes."""
    file = make_object("2.25.1", "2.25.2", "2.25.3", pixels=noise(90_000), rows=300, columns=300)
    with serving(tmp_path, [file]) as opened:
        yield opened


# --- As stored -----------------------------------------------------------------------------------


def test_every_sample_file_comes_back_byte_for_byte(archive, everything):
    client, store = archive
    for one in everything:
        answer = get(client, url_of(one), SINGLE_STORED)
        assert answer.status_code == 200, (one.uid, answer.text[:200])
        assert answer.content == store.read(one.uid), one.uid
        syntax = one.instance.transfer_syntax.decode()
        assert answer.headers["content-type"] == f"application/dicom; transfer-syntax={syntax}"
        assert int(answer.headers["content-length"]) == len(answer.content)
    assert len(everything) > 1000


def test_every_study_comes_back_as_its_files(archive, everything):
    client, store = archive
    for study in {one.study for one in everything}:
        answer = get(client, f"{ROOT}/studies/{study}", STORED)
        assert answer.status_code == 200
        assert int(answer.headers["content-length"]) == len(answer.content)
        parts = parts_of(answer)
        places = {part.headers["content-location"].removeprefix("http://localhost"): part for part in parts}
        mine = [one for one in everything if one.study == study]
        assert set(places) == {url_of(one) for one in mine}
        for one in mine:
            part = places[url_of(one)]
            assert part.body == store.read(one.uid)
            syntax = one.instance.transfer_syntax.decode()
            assert part.headers["content-type"] == f"application/dicom; transfer-syntax={syntax}"


def test_a_series_is_only_what_is_in_it(study):
    client, store = study
    parts = parts_of(get(client, f"{STUDY}/series/2.25.30", STORED))
    assert [part.body for part in parts] == [store.read(f"2.25.1{n}") for n in (0, 2, 4)]


@pytest.mark.parametrize(
    "path", ["/studies/9.9", "/studies/2.25.2/series/9.9", "/studies/2.25.2/series/2.25.30/instances/9.9",
             "/studies/9.9/series/2.25.30", "/studies/2.25.2/series/2.25.31/instances/2.25.10"]
)  # fmt: skip
@pytest.mark.parametrize("tail", ["", "/metadata", "/rendered", "/thumbnail", "/bulkdata"])
def test_what_is_not_stored_is_not_found(study, path, tail):
    answer = get(study[0], f"{ROOT}{path}{tail}")
    assert answer.status_code == 404
    assert answer.json()["error"]


# --- What Accept asks for ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "accept",
    [None, "*/*", "multipart/related", 'multipart/related; type="application/dicom"',
     "multipart/related; type=application/dicom", "image/avif, */*;q=0.1"],
)  # fmt: skip
def test_instances_are_multipart_by_default(single, accept):
    client, store = single
    answer = get(client, INSTANCE, accept)
    assert answer.headers["content-type"].startswith('multipart/related; type="application/dicom"; boundary=')
    (part,) = parts_of(answer)
    assert part.body == store.read("2.25.1")
    assert part.headers["content-location"] == f"http://localhost{INSTANCE}"


def test_one_instance_may_be_a_single_part(single):
    answer = get(single[0], INSTANCE, "application/dicom")
    assert answer.headers["content-type"] == f"application/dicom; transfer-syntax={EXPLICIT}"
    assert answer.content == single[1].read("2.25.1")


def test_several_instances_are_no_single_part(study):
    answer = get(study[0], STUDY, "application/dicom")
    assert answer.status_code == 406
    assert "multipart/related" in answer.json()["error"]


@pytest.mark.parametrize(
    ("accept", "status"),
    [
        ("text/plain", 406),
        ("application/json", 406),
        ("application/dicom; transfer-syntax=1.2.840.10008.1.2.4.50", 406),
        ("application/dicom; transfer-syntax=9.9", 406),
        ('multipart/related; type="image/jpeg"', 406),
        ("application/dicom, image/jpeg", 400),
        ('multipart/related; type="application/dicom", image/png', 400),
        ("!!!", 400),
    ],
)
def test_what_can_not_be_given_is_refused_in_words(single, accept, status):
    answer = get(single[0], INSTANCE, accept)
    assert (answer.status_code, answer.json()["status"]) == (status, status)


def test_the_query_parameter_accept_goes_before_the_header(single):
    answer = get(single[0], f"{INSTANCE}?accept=application/dicom", "text/html")
    assert answer.headers["content-type"].startswith("application/dicom;")


# --- Other transfer syntaxes ---------------------------------------------------------------------


def test_sample_files_of_every_transfer_syntax_are_given_in_explicit_vr_little_endian(archive, everything):
    """Where nothing is said; what can't be decoded comes as it is stored, and says so."""
    client, store = archive
    seen: dict[str, int] = {}
    decoded = set()
    for one in everything:
        syntax = one.instance.transfer_syntax.decode()
        if one.instance.flags & (record.TRUNCATED | record.BY_PYDICOM) or seen.get(syntax, 0) == 2:
            continue
        seen[syntax] = seen.get(syntax, 0) + 1
        answer = get(client, url_of(one), "application/dicom")
        assert answer.status_code == 200, (syntax, one.uid, answer.text[:300])
        stated = answer.headers["content-type"].removeprefix("application/dicom; transfer-syntax=")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = pydicom.dcmread(io.BytesIO(answer.content), force=True)
            if stated == syntax != EXPLICIT:
                assert answer.content == store.read(one.uid)
                continue
            assert stated == EXPLICIT
            if syntax == EXPLICIT:
                continue
            assert found.file_meta.TransferSyntaxUID == EXPLICIT
            assert found.SOPInstanceUID == one.uid
            if one.instance.pixel_tag == 0x7FE00010:
                try:
                    expected = store.frame(one.uid, 0)
                    pixels = found.pixel_array
                except (HilumError, ValueError, AttributeError):
                    continue
                layout = store.frames(one.uid).layout
                pixels = pixels[0] if layout.frame_count > 1 else pixels
                if found.PhotometricInterpretation.startswith("YBR_FULL"):
                    from pydicom.pixels import convert_color_space

                    pixels = convert_color_space(pixels, found.PhotometricInterpretation, "RGB")
                    assert np.abs(pixels.astype(int) - expected).max() <= 1, (syntax, one.uid)
                else:
                    assert np.array_equal(pixels, expected), (syntax, one.uid)
                decoded.add(syntax)
    assert len(decoded) > 12, decoded


@pytest.mark.parametrize(
    "target", [uids.JPEG_LS_LOSSLESS, uids.HTJ2K_LOSSLESS, uids.RLE_LOSSLESS, DEFLATED]
)  # fmt: skip
def test_instances_are_transcoded_without_loss(tmp_path, target):
    pixels = noise(2 * 64 * 48)
    file = make_object("2.25.1", "2.25.2", "2.25.3", pixels=pixels, rows=64, columns=48, bits=16)
    with serving(tmp_path, [file]) as (client, _):
        answer = get(client, INSTANCE, f"application/dicom; transfer-syntax={target}")
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"].endswith(target)
        with hilum.open(tmp_path / "second", create=True) as second:
            second.ingest(answer.content)
            assert second.frame("2.25.1", 0).tobytes() == pixels


def test_a_study_of_mixed_syntaxes_states_that_of_each_part(tmp_path):
    files = [
        make_object("2.25.11", "2.25.2", "2.25.3", pixels=noise(2000)),
        make_object(
            "2.25.12", "2.25.2", "2.25.3", pixels=noise(2000), transfer_syntax=uids.IMPLICIT_VR_LITTLE_ENDIAN
        ),
    ]
    with serving(tmp_path, files) as (client, store):
        stored = parts_of(get(client, STUDY, STORED))
        assert [part.syntax for part in stored] == [EXPLICIT, uids.IMPLICIT_VR_LITTLE_ENDIAN]
        given = parts_of(get(client, STUDY))
        assert [part.syntax for part in given] == [EXPLICIT, EXPLICIT]
        assert given[0].body == store.read("2.25.11")
        assert pydicom.dcmread(io.BytesIO(given[1].body)).PixelData == noise(2000)


# --- What is left out, and what breaks -----------------------------------------------------------


def test_what_no_accepted_form_can_hold_is_left_out_with_206_and_a_warning(tmp_path):
    files = [
        make_object("2.25.11", "2.25.2", "2.25.3", pixels=noise(5000)),
        make_object("2.25.12", "2.25.2", "2.25.3", fragments=[b"\xff\xd8\xff\xd9"],
                    transfer_syntax="1.2.840.10008.1.2.4.102"),
    ]  # fmt: skip
    accept = f'multipart/related; type="application/dicom"; transfer-syntax={DEFLATED}'
    with serving(tmp_path, files) as (client, _):
        answer = get(client, STUDY, accept)
        assert answer.status_code == 206
        assert answer.headers["warning"].startswith('299 hilum "1 of 2 instances are left out: ')
        assert len(parts_of(answer)) == 1
        assert get(client, f"{SERIES}/instances/2.25.12", accept).status_code == 406


def test_an_instance_that_is_damaged_is_left_out_before_the_first_byte(study):
    client, store = study
    instance = store.locate("2.25.10").instance
    damage(store, "head", instance.offset + 60)
    answer = get(client, STUDY, STORED)
    assert answer.status_code == 206
    assert "1 of 5" in answer.headers["warning"]
    assert len(parts_of(answer)) == 4
    assert get(client, f"{STUDY}/series/2.25.30/instances/2.25.10", STORED).status_code == 500


def test_an_instance_whose_pixels_are_cut_off_is_left_out_before_the_first_byte(study):
    client, store = study
    (name,) = [name for name in os.listdir(store.folder.packs) if name.endswith("bulk")]
    os.truncate(os.path.join(store.folder.packs, name), 23_000)
    answer = get(client, STUDY, STORED)
    assert answer.status_code == 206
    assert "1 of 5" in answer.headers["warning"]
    assert len(parts_of(answer)) == 4


def test_damage_found_on_the_way_ends_the_answer_and_is_no_short_body(single):
    client, store = single
    damage(store, "bulk", 40_000)
    messages: list[Message] = []
    asked = False

    async def receive() -> Message:
        nonlocal asked
        if asked:
            await asyncio.sleep(60)
        asked = True
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        messages.append(message)

    scope = {
        "type": "http", "http_version": "1.1", "method": "GET", "scheme": "http", "path": INSTANCE,
        "raw_path": INSTANCE.encode(), "query_string": b"", "root_path": "", "client": None, "server": None,
        "headers": [(b"host", b"localhost"), (b"accept", SINGLE_STORED.encode())],
    }  # fmt: skip
    asyncio.run(client.app(scope, receive, send))
    if messages[0]["status"] == 200:
        # A server closes the connection on an answer that ends without its last message.
        assert messages[-1].get("more_body") is True
    else:
        assert messages[0]["status"] == 500


def damage(store: Store, kind: str, at: int) -> None:
    (name,) = [name for name in os.listdir(store.folder.packs) if name.endswith(kind)]
    with open(os.path.join(store.folder.packs, name), "r+b") as pack:
        pack.seek(at)
        byte = pack.read(1)
        pack.seek(at)
        pack.write(bytes((byte[0] ^ 0xFF,)))


# --- Conditional requests, ranges, HEAD ----------------------------------------------------------


@pytest.mark.parametrize("tail", ["", "/metadata"])
@pytest.mark.parametrize(
    "path", [STUDY, f"{STUDY}/series/2.25.30", f"{STUDY}/series/2.25.30/instances/2.25.10"]
)
def test_an_entity_tag_saves_sending_it_again_and_changes_with_the_content(study, path, tail):
    client, store = study
    accept = "application/dicom+json" if tail else STORED
    tag = get(client, path + tail, accept).headers["etag"]
    again = get(client, path + tail, accept, if_none_match=tag)
    assert (again.status_code, again.content) == (304, b"")
    if "instances" not in path:
        store.delete("instances", {"SOPInstanceUID": "2.25.12"})
        assert get(client, path + tail, accept, if_none_match=tag).status_code == 200


def test_the_same_answer_has_the_same_bytes_and_tag(study):
    answers = [get(study[0], STUDY, STORED) for _ in range(2)]
    assert answers[0].content == answers[1].content
    assert answers[0].headers["etag"] == answers[1].headers["etag"]


def test_a_byte_range_of_an_instance_is_partial_content(single):
    client, store = single
    whole = store.read("2.25.1")
    answer = get(client, INSTANCE, SINGLE_STORED, range="bytes=500-80000")
    assert answer.status_code == 206
    assert answer.content == whole[500:80001]
    assert answer.headers["content-range"] == f"bytes 500-80000/{len(whole)}"
    assert answer.headers["content-length"] == "79501"
    assert get(client, INSTANCE, SINGLE_STORED, range="bytes=999999-").status_code == 416


@pytest.mark.parametrize(
    "path",
    [STUDY, SERIES, INSTANCE, f"{INSTANCE}/metadata", f"{INSTANCE}/bulkdata/7FE00010",
     f"{INSTANCE}/rendered", f"{INSTANCE}/thumbnail", f"{STUDY}.zip", f"{SERIES}/rendered"],
)  # fmt: skip
def test_head_says_what_get_says_without_a_body(single, path):
    client, _ = single
    head, whole = (
        client.request(method, path, headers={"accept-encoding": "identity"}) for method in ("HEAD", "GET")
    )
    assert (head.status_code, head.content) == (200, b"")
    for name in ("content-type", "etag", "content-length"):
        assert head.headers.get(name) == whole.headers.get(name), name


# --- Archives ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "accept"), [(f"{STUDY}.zip", "text/html"), (STUDY, "application/zip")])
def test_a_study_comes_as_an_archive_of_its_files(study, path, accept):
    client, store = study
    answer = get(client, path, accept)
    assert answer.headers["content-type"] == "application/zip"
    assert int(answer.headers["content-length"]) == len(answer.content)
    assert 'filename="2.25.2.zip"' in answer.headers["content-disposition"]
    with zipfile.ZipFile(io.BytesIO(answer.content)) as files:
        assert files.testzip() is None
        assert {name: files.read(name) for name in files.namelist()} == {
            f"2.25.2/2.25.3{n % 2}/2.25.1{n}.dcm": store.read(f"2.25.1{n}") for n in range(5)
        }


def test_series_and_instances_come_as_archives_too(study):
    client, _ = study
    for path, count in (
        (f"{STUDY}/series/2.25.30.zip", 3),
        (f"{STUDY}/series/2.25.30/instances/2.25.10.zip", 1),
    ):
        with zipfile.ZipFile(io.BytesIO(get(client, path).content)) as files:
            assert len(files.namelist()) == count


def test_an_archive_of_transcoded_files_is_whole(study):
    client, _ = study
    answer = get(client, STUDY, f"application/zip; transfer-syntax={DEFLATED}")
    assert "content-length" not in answer.headers
    with zipfile.ZipFile(io.BytesIO(answer.content)) as files:
        assert files.testzip() is None
        for name in files.namelist():
            found = pydicom.dcmread(io.BytesIO(files.read(name)))
            assert found.file_meta.TransferSyntaxUID == DEFLATED


# --- Metadata ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "accept",
    [None, "*/*", "application/dicom+json", "application/json",
     "application/dicom+json, multipart/related; type=application/octet-stream; transfer-syntax=*"],
)  # fmt: skip
def test_metadata_is_a_json_array_with_an_object_for_each_instance(study, accept):
    client, _ = study
    kind = "application/json" if accept == "application/json" else "application/dicom+json"
    for path, count in (
        (STUDY, 5),
        (f"{STUDY}/series/2.25.30", 3),
        (f"{STUDY}/series/2.25.30/instances/2.25.12", 1),
    ):
        answer = get(client, f"{path}/metadata", accept)
        assert answer.status_code == 200
        assert answer.headers["content-type"] == kind
        found = answer.json()
        assert len(found) == count
        assert {one["0020000D"]["Value"][0] for one in found} == {"2.25.2"}
        assert len({one["00080018"]["Value"][0] for one in found}) == count


def test_metadata_as_xml_has_a_part_for_each_instance(study):
    client, _ = study
    answer = get(client, f"{STUDY}/metadata", XML)
    parts = parts_of(answer)
    assert len(parts) == 5
    assert {part.headers["content-type"] for part in parts} == {"application/dicom+xml"}
    assert all(b"<NativeDicomModel" in part.body for part in parts)


def test_metadata_is_not_given_as_what_it_is_not(study):
    assert get(study[0], f"{STUDY}/metadata", "application/dicom").status_code == 406


@pytest.mark.parametrize(
    "path", [STUDY, f"{STUDY}/series/2.25.30", f"{STUDY}/series/2.25.30/instances/2.25.10"]
)
def test_metadata_is_packed_for_those_who_take_gzip(study, path):
    client, _ = study
    request = client.build_request("GET", f"{path}/metadata", headers={"accept-encoding": "gzip"})
    with client.stream("GET", f"{path}/metadata", headers={"accept-encoding": "gzip"}) as answer:
        raw = b"".join(answer.iter_raw())
    assert answer.headers["content-encoding"] == "gzip"
    plain = get(client, f"{path}/metadata", accept_encoding="identity")
    assert "content-encoding" not in plain.headers
    assert json.loads(gzip.decompress(raw)) == plain.json()
    assert answer.headers["etag"].removeprefix("W/") == plain.headers["etag"]
    assert request.method == "GET"


# --- Bulk data -----------------------------------------------------------------------------------


def bulk_uris(document: object) -> list[str]:
    if isinstance(document, list):
        return [uri for one in document for uri in bulk_uris(one)]
    if not isinstance(document, dict):
        return []
    own = [document["BulkDataURI"]] if isinstance(document.get("BulkDataURI"), str) else []
    return own + [uri for value in document.values() for uri in bulk_uris(value)]


def test_every_bulk_data_uri_that_is_handed_out_answers(archive, everything):
    client, _ = archive
    count = 0
    for one in everything[::3]:
        answer = get(client, url_of(one, "/metadata"))
        if answer.status_code != 200:
            continue
        for uri in bulk_uris(answer.json()):
            value = get(client, uri.removeprefix("http://localhost"), "*/*")
            assert value.status_code == 200, (uri, value.text[:200])
            assert parts_of(value)
            count += 1
    assert count > 100


@pytest.mark.parametrize(
    "accept", ["application/octet-stream", "application/octet-stream; transfer-syntax=*"]
)
def test_native_pixels_are_bulk_data_with_byte_ranges(single, accept):
    client, _ = single
    url = f"{INSTANCE}/bulkdata/7FE00010"
    whole = get(client, url, accept)
    assert whole.content == noise(90_000)
    assert whole.headers["content-type"] == f"application/octet-stream; transfer-syntax={EXPLICIT}"
    part = get(client, url, accept, range="bytes=70000-")
    assert (part.status_code, part.content) == (206, noise(90_000)[70000:])
    assert get(client, url, accept, if_none_match=whole.headers["etag"]).status_code == 304


def test_bulk_data_as_multipart_says_where_it_is_from(single):
    client, _ = single
    for accept in (None, 'multipart/related; type="*/*"', "multipart/related; type=application/octet-stream"):
        answer = get(client, f"{INSTANCE}/bulkdata/7FE00010", accept)
        (part,) = parts_of(answer)
        assert part.body == noise(90_000)
        assert part.headers["content-location"] == f"http://localhost{INSTANCE}/bulkdata/7FE00010"
        ranged = get(client, f"{INSTANCE}/bulkdata/7FE00010", accept, range="bytes=100-400")
        assert ranged.content == answer.content[100:401]


@pytest.mark.parametrize(
    ("path", "status"), [("00100010", 200), ("00189999", 404), ("x", 400), ("7FE00010.1", 400)]
)
def test_paths_of_bulk_data_that_lead_nowhere(single, path, status):
    assert get(single[0], f"{INSTANCE}/bulkdata/{path}").status_code == status


def test_compressed_bulk_data_carries_no_item_tags_and_states_its_syntax(tmp_path):
    frames = [b"\xff\xd8" + noise(700, n) + b"\xff\xd9" for n in range(3)]
    file = make_object("2.25.1", "2.25.2", "2.25.3", fragments=frames, rows=8, columns=8, frames=3)
    url = f"{INSTANCE}/bulkdata/7FE00010"
    with serving(tmp_path, [file]) as (client, _):
        for accept in (
            'multipart/related; type="image/jpeg"',
            "multipart/related; type=application/octet-stream; transfer-syntax=*",
        ):
            parts = parts_of(get(client, url, accept))
            assert [part.body for part in parts] == frames
            assert {part.syntax for part in parts} == {uids.JPEG_BASELINE}
        assert get(client, url, "image/jpeg").status_code == 406


def test_all_bulk_data_of_a_study_is_given_in_one_answer(study):
    client, _ = study
    for tail in ("/bulkdata", "/pixeldata"):
        parts = parts_of(get(client, STUDY + tail))
        assert [part.body for part in parts] == [noise(5000, n) for n in (0, 2, 4, 1, 3)]
        assert parts[0].headers["content-location"].endswith("/instances/2.25.10/bulkdata/7FE00010")


def test_an_encapsulated_document_is_bulk_data_of_its_own_type(tmp_path):
    extra = [
        (0x00420011, element(0x00420011, "OB", b"%PDF-1.4" + noise(70_000))),
        (0x00420012, element(0x00420012, "LO", "application/pdf")),
    ]
    file = make_object("2.25.1", "2.25.2", "2.25.3", sop_class="1.2.840.10008.5.1.4.1.1.104.1", extra=extra)
    with serving(tmp_path, [file]) as (client, _):
        url = f"{INSTANCE}/bulkdata/00420011"
        answer = get(client, url, "application/pdf")
        assert answer.headers["content-type"] == "application/pdf"
        assert answer.content.startswith(b"%PDF-1.4")
        assert parts_of(get(client, url))[0].headers["content-type"] == "application/pdf"
        assert get(client, url, "application/octet-stream").content == answer.content
        assert get(client, url, "image/jpeg").status_code == 406
