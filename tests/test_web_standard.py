"""What servers get wrong, line by line: where each line has its test, and the tests that no other file has.

The lines are those of STANDARD.md, by number, and of its list of what viewers really send, by a word of ours.
"""

from __future__ import annotations

import ast
import functools
import shutil
import socket
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from makers import element, make_object, noise, sequence
from serving import Served, server
from starlette.testclient import TestClient
from webclient import ROOT, client_of, serving

import hilum

LINES: dict[int | str, list[str]] = {
    1: [
        "test_web_qido.py::test_nothing_found_is_200_with_an_empty_list",
        "test_web_qido.py::test_nothing_found_is_204_where_the_settings_want_it",
    ],
    2: ["test_web_qido.py::test_a_truncated_answer_is_200_with_a_warning"],
    3: ["test_web_standard.py::test_a_list_of_uids_is_separated_by_commas_or_backslashes"],
    4: [
        "test_web_qido.py::test_what_is_to_be_included_is",
        "test_web_qido.py::test_a_key_that_is_included_stays_a_key",
        "test_web_qido.py::test_sequences_and_private_elements_can_be_included",
    ],
    5: ["test_web_qido.py::test_what_matches_is_found"],
    6: ["test_web_standard.py::test_every_required_key_matches_and_tells_apart"],
    7: [
        "test_web_qido.py::test_a_study_has_every_required_attribute_though_it_be_empty",
        "test_web_qido.py::test_a_series_has_every_required_attribute",
        "test_web_qido.py::test_an_instance_has_every_required_attribute",
    ],
    8: ["test_web_qido.py::test_one_row_for_a_study_whose_instances_disagree"],
    9: ["test_matching_table.py::test_a_case_is_found_or_not_as_its_clause_has_it"],
    10: [
        "test_web_qido.py::test_an_attribute_that_is_included_and_lacking_leaves_no_row_out",
        "test_dimse_find.py::test_an_answer_has_what_was_asked_for_and_says_where_it_comes_from",
        "test_dimse_find.py::test_a_key_that_is_not_matched_is_told_by_each_answer",
        "test_dimse_find.py::test_a_cancel_stops_the_answers",
    ],
    11: [
        "test_web_qido.py::test_text_in_any_character_set_comes_as_utf_8",
        "test_matching_table.py::test_a_case_is_found_or_not_as_its_clause_has_it",
    ],
    12: [
        "test_web_accept.py::test_any_text_is_read_or_refused",
        "test_web_rendered.py::test_dicom_and_rendered_media_types_are_not_mixed",
        "test_web_wado.py::test_what_can_not_be_given_is_refused_in_words",
        "test_web_wado.py::test_the_query_parameter_accept_goes_before_the_header",
        "test_web_hostile.py::test_an_accept_that_makes_no_sense_is_refused_and_not_guessed",
    ],
    13: [
        "test_web_wado.py::test_sample_files_of_every_transfer_syntax_are_given_in_explicit_vr_little_endian",
        "test_web_wado.py::test_every_sample_file_comes_back_byte_for_byte",
        "test_web_frames.py::test_ohif_gets_frames_as_they_are_stored_with_the_type_that_fits",
    ],
    14: ["test_web_wado.py::test_a_study_of_mixed_syntaxes_states_that_of_each_part"],
    15: [
        "test_web_frames.py::test_a_frame_in_several_fragments_has_no_item_tags_in_it",
        "test_web_wado.py::test_compressed_bulk_data_carries_no_item_tags_and_states_its_syntax",
        "test_web_frames.py::test_big_endian_pixels_leave_as_little_endian",
        "test_web_frames.py::test_one_bit_frames_that_begin_inside_a_byte_are_moved_to_its_begin",
        "test_web_frames.py::test_float_pixels_are_frames_too",
        "test_transcode.py::test_native_subsampled_colour_loses_nothing_and_is_called_ybr_full",
    ],
    16: [
        "test_web_frames.py::test_frame_numbers_begin_at_one_and_end_at_the_last",
        "test_web_frames.py::test_a_list_of_frames_comes_in_the_order_that_was_asked_for",
    ],
    17: [
        "test_frametable.py::test_a_frame_is_what_the_tables_say_where_they_can_be_believed",
        "test_frames.py::test_an_extended_offset_table_is_followed",
        "test_frames.py::test_one_frame_in_many_fragments_is_one_frame",
    ],
    18: [
        "test_web_wado.py::test_what_no_accepted_form_can_hold_is_left_out_with_206_and_a_warning",
        "test_web_wado.py::test_damage_found_on_the_way_ends_the_answer_and_is_no_short_body",
    ],
    19: [
        "test_dicomjson.py::test_a_value_leaves_like_this",
        "test_dicomjson.py::test_an_empty_attribute_is_there_without_value",
        "test_dicomjson.py::test_few_bytes_stand_inline_and_more_are_named_by_uri",
        "test_dicomjson.py::test_what_un_holds_is_implicit_though_its_first_length_looks_like_a_vr",
    ],
    20: [
        "test_web_app.py::test_our_urls_begin_as_the_settings_or_a_trusted_proxy_say",
        "test_web_wado.py::test_every_bulk_data_uri_that_is_handed_out_answers",
        "test_web_standard.py::test_uris_that_are_handed_out_through_a_proxy_answer_behind_it",
    ],
    21: [
        "test_web_wado.py::test_an_entity_tag_saves_sending_it_again_and_changes_with_the_content",
        "test_web_wado.py::test_metadata_is_packed_for_those_who_take_gzip",
        "test_web_wado.py::test_a_byte_range_of_an_instance_is_partial_content",
        "test_web_wado.py::test_native_pixels_are_bulk_data_with_byte_ranges",
        "test_web_frames.py::test_a_byte_range_of_a_frame_is_partial_content",
    ],
    22: [
        "test_web_rendered.py::test_window_viewport_and_quality_are_followed",
        "test_web_rendered.py::test_a_width_below_one_does_not_crash",
        "test_web_rendered.py::test_a_multi_frame_object_is_an_animation_for_those_who_ask_for_gif",
        "test_web_rendered.py::test_a_pdf_is_given_as_it_is",
        "test_web_rendered.py::test_a_video_is_given_as_it_is_with_byte_ranges",
        "test_render.py::test_monochrome1_and_an_inverse_shape_are_inverted_once",
        "test_render.py::test_a_tiny_rescale_slope_builds_no_table_of_its_values",
    ],
    23: [
        "test_web_stow.py::test_all_stored_is_200_with_the_url_of_each_instance_and_of_the_study",
        "test_web_stow.py::test_some_stored_is_202_and_each_failure_has_its_item",
        "test_web_stow.py::test_none_stored_is_409",
    ],
    24: [
        "test_web_stow.py::test_some_stored_is_202_and_each_failure_has_its_item",
        "test_web_stow.py::test_an_instance_of_another_study_fails_and_those_of_the_study_are_stored",
    ],
    25: [
        "test_web_stow.py::test_all_ways_of_writing_the_content_type_are_understood",
        "test_web_stow.py::test_a_boundary_inside_of_an_instance_is_no_boundary_unless_it_is_the_whole",
        "test_web_stow.py::test_a_single_part_is_stored",
        "test_web_stow.py::test_json_metadata_and_bulk_data_make_an_instance",
        "test_web_stow.py::test_ten_large_uploads_at_once_need_little_memory",
        "test_web_standard.py::test_a_part_of_more_than_two_gigabytes_is_stored_in_little_memory",
    ],
    "OHIF, list": ["test_web_qido.py::test_the_list_of_ohif_is_answered"],
    "OHIF, series": ["test_web_qido.py::test_the_series_of_ohif_are_answered"],
    "OHIF, metadata": ["test_web_wado.py::test_metadata_is_a_json_array_with_an_object_for_each_instance"],
    "frames without quotes": [
        "test_web_frames.py::test_ohif_gets_frames_as_they_are_stored_with_the_type_that_fits",
        "test_web_frames.py::test_one_frame_is_given_as_a_single_part_to_those_who_ask_for_it",
    ],
    "a PDF for a browser": ["test_web_rendered.py::test_a_pdf_is_given_as_it_is"],
    "slide viewers": [
        "test_web_frames.py::test_the_long_accept_of_slide_viewers_takes_what_is_stored_where_it_can",
        "test_web_standard.py::test_many_tiles_at_once_are_each_the_right_one",
        "test_web_standard.py::test_a_slide_viewer_learns_in_which_syntax_an_instance_is",
        "test_web_app.py::test_a_client_that_leaves_our_port_out_gets_urls_with_it",
        "peers/test_slides.py::test_the_colour_profile_is_had_by_its_uri",
    ],
    "dicomweb-client": [
        "test_web_client.py::test_frames_by_default_and_by_type",
        "test_web_stow.py::test_a_single_part_is_stored",
        "test_web_app.py::test_delete_takes_what_the_path_names_and_says_204_then_404",
    ],
    "cornerstone, progressive": [
        "test_web_standard.py::test_cornerstone_reads_the_begin_of_an_htj2k_frame",
    ],
    "thumbnails": ["test_web_rendered.py::test_thumbnails_are_one_small_picture_at_every_level"],
    "browsers": [
        "test_web_security.py::test_every_answer_to_an_allowed_origin_may_be_read_by_it_errors_too",
        "test_web_security.py::test_resources_are_for_their_own_origin_unless_others_are_named",
        "test_web_app.py::test_pages_and_scripts_are_isolated_and_data_is_not",
    ],
    "other roots": [
        "test_web_qido.py::test_every_path_is_searched",
        "test_web_frames.py::test_decompress_pixels_gives_the_frame_decoded_whatever_is_accepted",
    ],
}


@functools.cache
def names_in(file: str) -> set[str]:
    tree = ast.parse((Path(__file__).parent / file).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("line", LINES)
def test_each_line_has_its_tests(line):
    for test in LINES[line]:
        file, _, name = test.partition("::")
        assert name in names_in(file), test


def test_no_line_is_left_out():
    assert {line for line in LINES if isinstance(line, int)} == set(range(1, 26))


# --- Searches -----------------------------------------------------------------------------------------

STEP = [element(0x00400009, "SH", "SPS1") + element(0x00401001, "SH", "RP1")]
ONE = make_object(
    "2.25.1.3.1", "2.25.1", "2.25.1.3", pixels=noise(16), rows=4, columns=4, accession="ACC1",
    patient_id="P1", name="Doe^Jane", study_date="20240102", study_time="101112", study_id="S1",
    modality="CT", series_number=7, instance_number=9,
    extra=[
        (0x00080090, element(0x00080090, "PN", "Referrer^Anna")),
        (0x00400244, element(0x00400244, "DA", "20240103")),
        (0x00400245, element(0x00400245, "TM", "111213")),
        (0x00400275, sequence(0x00400275, STEP)),
    ],
)  # fmt: skip
OTHER = make_object(
    "2.25.2.3.1", "2.25.2", "2.25.2.3", accession="ACC2", patient_id="P2", name="Roe^Richard", modality="MR",
    study_date="20230102", study_time="212223", study_id="S2", series_number=8, instance_number=10,
    sop_class="1.2.840.10008.5.1.4.1.1.4",
)  # fmt: skip

REQUIRED_KEYS = {
    "studies": {
        "StudyDate": "20240102", "StudyTime": "101112", "AccessionNumber": "ACC1", "ModalitiesInStudy": "CT",
        "ReferringPhysicianName": "Referrer^Anna", "PatientName": "Doe^Jane", "PatientID": "P1",
        "StudyInstanceUID": "2.25.1", "StudyID": "S1",
    },
    "series": {
        "Modality": "CT", "SeriesInstanceUID": "2.25.1.3", "SeriesNumber": "7",
        "PerformedProcedureStepStartDate": "20240103", "PerformedProcedureStepStartTime": "111213",
        "RequestAttributesSequence.ScheduledProcedureStepID": "SPS1",
        "RequestAttributesSequence.RequestedProcedureID": "RP1",
        "00400275.00400009": "SPS1",
    },
    "instances": {
        "SOPClassUID": "1.2.840.10008.5.1.4.1.1.2", "SOPInstanceUID": "2.25.1.3.1", "InstanceNumber": "9",
    },
}  # fmt: skip


ABSENT = {"Date": "19000101", "Time": "000001"}  # by the end of a keyword


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with serving(tmp_path_factory.mktemp("standard"), [ONE, OTHER]) as (found, _):
        yield found


def studies_in(answer: Any) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [row["0020000D"]["Value"][0] for row in answer.json()]


@pytest.mark.parametrize(
    ("level", "key"), [(level, key) for level, keys in REQUIRED_KEYS.items() for key in keys]
)
def test_every_required_key_matches_and_tells_apart(client, level, key):
    """PS3.18 10.6.1.2.3: the keys of a level, and at the levels below it."""
    value = REQUIRED_KEYS[level][key]
    levels = list(REQUIRED_KEYS)
    for path in levels[levels.index(level) :]:
        answer = client.get(f"{ROOT}/{path}", params={key: value})
        assert studies_in(answer) == ["2.25.1"], path
        assert "warning" not in answer.headers
        wrong = client.get(f"{ROOT}/{path}", params={key: ABSENT.get(key[-4:], "999")})
        assert studies_in(wrong) == [], path


def test_a_list_of_uids_is_separated_by_commas_or_backslashes(client):
    for key, path in (
        ("StudyInstanceUID", "studies"),
        ("0020000E", "series"),
        ("SOPInstanceUID", "instances"),
    ):
        tail = {"studies": "", "series": ".3", "instances": ".3.1"}[path]
        for separator in (",", "\\", "%2C", "%5C"):
            uids = separator.join(f"2.25.{number}{tail}" for number in (2, 404, 1))
            answer = client.get(f"{ROOT}/{path}?{key}={uids}")
            assert sorted(studies_in(answer)) == ["2.25.1", "2.25.2"], separator
        answer = client.get(f"{ROOT}/{path}?{key}=2.25.1{tail}&{key}=2.25.2{tail}")
        assert sorted(studies_in(answer)) == ["2.25.1", "2.25.2"]


def test_a_slide_viewer_learns_in_which_syntax_an_instance_is(client):
    """wsidicom asks for Available Transfer Syntax UID, and fails where it is there without a value."""
    place = f"{ROOT}/studies/2.25.1/instances"
    (row,) = client.get(place, params={"includefield": "AvailableTransferSyntaxUID"}).json()
    assert row["00083002"] == {"vr": "UI", "Value": ["1.2.840.10008.1.2.1"]}
    (row,) = client.get(place).json()
    assert "00083002" not in row


# --- What viewers ask for ----------------------------------------------------------------------------


def test_uris_that_are_handed_out_through_a_proxy_answer_behind_it(tmp_path):
    """The proxy takes its own begin away and asks for the rest."""
    proxied = {"forwarded": 'for=10.0.0.1;host="pacs.example.org:8443";proto=https'}
    large = (0x00420011, element(0x00420011, "OB", noise(70_000)))
    file = make_object("2.25.1.3.1", "2.25.1", "2.25.1.3", pixels=noise(16), rows=4, columns=4, extra=[large])
    settings = {"http": {"trusted_proxies": ["127.0.0.1"], "allowed_hosts": ["*"]}}
    with hilum.open(tmp_path / "store", create=True) as store:
        store.ingest(file)
        with client_of(store, **settings) as client:
            # It stands for the proxy, and in this process it has no address.
            client._transport.client = ("127.0.0.1", 50000)  # type: ignore[attr-defined]
            (row,) = client.get(f"{ROOT}/instances", headers=proxied).json()
            begin = "https://pacs.example.org:8443"
            place = f"{begin}{ROOT}/studies/2.25.1/series/2.25.1.3/instances/2.25.1.3.1"
            assert row["00081190"]["Value"] == [place]
            (document,) = client.get(f"{place.removeprefix(begin)}/metadata", headers=proxied).json()
            for tag, length in (("7FE00010", 16), ("00420011", 70_000)):
                uri = document[tag]["BulkDataURI"]
                assert uri.startswith(f"{place}/bulkdata/")
                answer = client.get(uri.removeprefix(begin), headers={"accept": "application/octet-stream"})
                assert (answer.status_code, len(answer.content)) == (200, length)


def test_an_instance_with_identifiers_of_an_old_writer_is_reached_by_every_service(tmp_path):
    """ "REM SAMPLES 1" is a Series Instance UID of a file in use."""
    uid, series, study = "1.2 A_b", "REM SAMPLES 1", "072495.0449"
    file = make_object(uid, study, series, pixels=noise(3000), rows=50, columns=60)
    with serving(tmp_path, storing={"allow_delete": True}) as (client, _):
        stored = client.post(f"{ROOT}/studies", content=file, headers={"content-type": "application/dicom"})
        url = stored.json()["00081199"]["Value"][0]["00081190"]["Value"][0]
        place = url.removeprefix("http://localhost")
        assert place == f"{ROOT}/studies/{study}/series/REM%20SAMPLES%201/instances/1.2%20A_b"
        above = place.rpartition("/")[0]
        assert len(client.get(above).json()) == 1
        (row,) = client.get(f"{ROOT}/instances").json()
        assert row["00081190"]["Value"] == [url]
        for tail in ("", "/metadata", "/frames/1", "/rendered", "/thumbnail", ".zip"):
            assert client.get(place + tail).status_code == 200, tail
        uri = client.get(f"{place}/metadata").json()[0]["7FE00010"]["BulkDataURI"]
        assert client.get(uri.removeprefix("http://localhost")).status_code == 200
        params = {"requestType": "WADO", "studyUID": study, "seriesUID": series, "objectUID": uid}
        assert client.get("/wado", params=params).status_code == 200
        assert client.delete(place).status_code == 204
        assert client.get(place).status_code in (400, 404)


@pytest.mark.parametrize("kind", ["image/jpg", "image/jpeg", "image/jpg, image/png;q=0.1"])
def test_old_viewers_ask_for_image_jpg(client, kind):
    params = {"requestType": "WADO", "studyUID": "2.25.1", "seriesUID": "2.25.1.3", "objectUID": "2.25.1.3.1"}
    answer = client.get("/wado", params={**params, "contentType": kind})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/jpeg")


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, list[bytes]]]:
    """A server as in life, over a slide of 64 tiles in HTJ2K."""
    folder = tmp_path_factory.mktemp("tiles")
    pictures = [np.roll(np.arange(4096, dtype="u1"), number * 37).reshape(64, 64) for number in range(64)]
    frames = [bytes(imagecodecs.htj2k_encode(picture, reversible=True)) for picture in pictures]
    file = make_object(
        "2.25.5.3.1",
        "2.25.5",
        "2.25.5.3",
        fragments=frames,
        frames=64,
        rows=64,
        columns=64,
        transfer_syntax=HTJ2K,
    )
    with hilum.open(folder / "store", create=True) as store:
        store.ingest(file)
    with server(folder / "store") as served:
        yield served, frames


HTJ2K = "1.2.840.10008.1.2.4.201"
FRAME = f"{ROOT}/studies/2.25.5/series/2.25.5.3/instances/2.25.5.3.1/frames"


def test_many_tiles_at_once_are_each_the_right_one(tiles):
    import httpx2

    served, frames = tiles
    accept = {"accept": "multipart/related; type=application/octet-stream; transfer-syntax=*"}
    with httpx2.Client(base_url=served.url, headers=accept) as client, ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda number: client.get(f"{FRAME}/{number}"), range(1, 65)))
    for answer, frame in zip(found, frames, strict=True):
        assert answer.status_code == 200
        assert frame.rstrip(b"\0") in answer.content


def test_cornerstone_reads_the_begin_of_an_htj2k_frame(tiles):
    import httpx2

    served, frames = tiles
    url = f"{served.url}{FRAME}/3?accept=image/jhc"
    whole = httpx2.get(url, headers={"accept": "*/*"})
    assert whole.status_code == 200
    assert whole.content.rstrip(b"\0") == frames[2].rstrip(b"\0")
    assert whole.headers["accept-ranges"] == "bytes"
    begin = httpx2.get(url, headers={"range": "bytes=0-63"})
    assert (begin.status_code, begin.content) == (206, whole.content[:64])
    assert begin.headers["content-range"] == f"bytes 0-63/{len(whole.content)}"
    rest = httpx2.get(url, headers={"range": "bytes=64-"})
    assert begin.content + rest.content == whole.content


# --- What is large -------------------------------------------------------------------------------------

LARGE = (1 << 31) + (64 << 20)  # bytes of Pixel Data: their number has no room in 31 bits
MEMORY_MAX = 200 << 20


def test_a_part_of_more_than_two_gigabytes_is_stored_in_little_memory(tmp_path):
    """By chunks, since its sender does not know its length; and its last frame is given."""
    frame = 32 << 20
    count = LARGE // frame
    small = make_object("2.25.6.3.1", "2.25.6", "2.25.6.3", pixels=b"", rows=4096, columns=8192, frames=count)
    head, piece = small[:-4] + struct.pack("<I", LARGE), bytes(1 << 20)
    with server(tmp_path / "store", "--create") as served:
        host, port = served.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=300) as connection:
            lead = b"--b\r\nContent-Type: application/dicom\r\n\r\n"
            connection.sendall(
                f"POST {ROOT}/studies HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n"
                'Content-Type: multipart/related; type="application/dicom"; boundary=b\r\n\r\n'.encode()
            )
            for chunk in (lead + head, *([piece] * (LARGE // len(piece))), b"\r\n--b--\r\n"):
                connection.sendall(b"%x\r\n" % len(chunk))
                connection.sendall(chunk)
                connection.sendall(b"\r\n")
            connection.sendall(b"0\r\n\r\n")
            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
        lines = Path(f"/proc/{served.process.pid}/status").read_text(encoding="ascii").splitlines()
        held = sum(int(line.split()[1]) << 10 for line in lines if line.startswith(("RssAnon", "RssShmem")))
        assert held < MEMORY_MAX

        import httpx2

        place = f"{served.url}{ROOT}/studies/2.25.6/series/2.25.6.3/instances/2.25.6.3.1/frames"
        last = httpx2.get(f"{place}/{count}", headers={"accept": "application/octet-stream"})
        assert (last.status_code, len(last.content)) == (200, frame)
    shutil.rmtree(tmp_path / "store")  # pytest keeps what tests leave
