"""Frames over HTTP: as they are stored, decoded or transcoded, in every grammar that viewers ask with. Each
frame of the sample files must be the very one that the engine or pydicom has.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
from makers import element, make_object, noise
from starlette.testclient import TestClient
from webclient import ROOT, client_of, serving
from webparts import get, parts_of, resources_in, url_of

import hilum
from hilum.api import Store
from hilum.dicom import uids
from hilum.engine import record
from hilum.engine.importer import Options, import_paths
from hilum.engine.resources import Resource
from hilum.errors import BadDicom, HilumError
from hilum.web.media import media_type_of

EXPLICIT = uids.EXPLICIT_VR_LITTLE_ENDIAN
ANY = "multipart/related; type=application/octet-stream; transfer-syntax=*"
SINGLE_ANY = "application/octet-stream; transfer-syntax=*"
FRAME = f"{ROOT}/studies/2.25.2/series/2.25.3/instances/2.25.1/frames"


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


def with_pixels(store: Store) -> dict[str, list[Resource]]:
    """Instances with frames that can be read, by transfer syntax."""
    found: dict[str, list[Resource]] = {}
    for one in resources_in(store):
        if not one.instance.pixel_tag or one.instance.flags & record.TRUNCATED:
            continue
        try:
            store.frame_bytes(one.uid, 0)
        except HilumError:
            continue
        found.setdefault(one.instance.transfer_syntax.decode(), []).append(one)
    return found


@pytest.fixture(scope="module")
def images(archive: tuple[TestClient, Store]) -> dict[str, list[Resource]]:
    return with_pixels(archive[1])


# --- Real files ----------------------------------------------------------------------------------


def test_the_first_and_last_frame_of_every_sample_file_leave_as_they_are_stored(archive, images):
    client, store = archive
    count = 0
    for syntax, found in images.items():
        for one in found:
            reader = store.frames(one.uid)
            for number in {1, reader.frame_count}:
                answer = get(client, url_of(one, f"/frames/{number}"), SINGLE_ANY)
                try:
                    stored = reader.read(number - 1)
                except BadDicom:
                    assert answer.status_code == 406, (syntax, one.uid)
                    continue
                assert answer.status_code == 200, (syntax, one.uid, answer.text[:200])
                if syntax == uids.EXPLICIT_VR_BIG_ENDIAN:
                    continue  # turned round: a test of its own
                assert answer.content == stored, (syntax, one.uid)
                native = syntax in (uids.IMPLICIT_VR_LITTLE_ENDIAN, uids.DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN)
                leaves_as = EXPLICIT if native or not uids.is_encapsulated(syntax) else syntax
                kind = media_type_of(leaves_as)
                assert answer.headers["content-type"] == f"{kind}; transfer-syntax={leaves_as}"
                count += 1
    assert count > 500
    assert len(images) > 20


def test_frames_of_every_transfer_syntax_are_decoded_to_the_pixels_of_the_engine(archive, images):
    client, store = archive
    decoded = set()
    for syntax, found in images.items():
        for one in found[:3]:
            try:
                expected = store.frame(one.uid, 0)
            except HilumError:
                continue
            layout = store.frames(one.uid).layout
            answer = get(client, url_of(one, "/frames/1"))
            assert answer.status_code == 200, (syntax, one.uid, answer.text[:200])
            (part,) = parts_of(answer)
            assert part.headers["content-type"] == f"application/octet-stream; transfer-syntax={EXPLICIT}"
            if layout.bits_allocated == 1:
                pixels = np.unpackbits(np.frombuffer(part.body, "u1"), bitorder="little")[: expected.size]
            elif layout.photometric == "YBR_FULL_422" and not uids.is_encapsulated(syntax):
                continue  # native frames are not decoded at all
            else:
                pixels = np.frombuffer(part.body, expected.dtype.newbyteorder("<"))[: expected.size]
            if expected.ndim == 3 and layout.planar_configuration and not uids.is_encapsulated(syntax):
                pixels = pixels.reshape(3, layout.rows, layout.columns).transpose(1, 2, 0)
            pixels = pixels.reshape(expected.shape)
            if layout.photometric.startswith("YBR_FULL") and media_type_of(syntax) in (
                "application/octet-stream", "image/dicom-rle", "image/jls", "image/jp2",
            ):  # fmt: skip
                from pydicom.pixels import convert_color_space

                pixels = convert_color_space(pixels, "YBR_FULL", "RGB")
                assert np.abs(pixels.astype(int) - expected).max() <= 1, (syntax, one.uid)
            else:
                assert np.array_equal(pixels, expected), (syntax, one.uid)
            decoded.add(syntax)
    assert len(decoded) > 15


def test_a_list_of_frames_comes_in_the_order_that_was_asked_for(archive, images):
    client, store = archive
    several = [
        one for found in images.values() for one in found if 4 <= store.frames(one.uid).frame_count <= 200
    ]
    assert len(several) > 3
    for one in several[:8]:
        last = store.frames(one.uid).frame_count
        wanted = [last, 1, 3, 1]
        answer = get(client, url_of(one, f"/frames/{','.join(map(str, wanted))}"), ANY)
        parts = parts_of(answer)
        assert [part.body for part in parts] == [store.frame_bytes(one.uid, n - 1) for n in wanted]
        assert [part.headers["content-location"].rsplit("/", 1)[1] for part in parts] == [
            str(n) for n in wanted
        ]


# --- Made ones -----------------------------------------------------------------------------------


@pytest.fixture
def three(tmp_path) -> Iterator[tuple[TestClient, Store]]:
    """One object of three native frames of 60 bytes."""
    file = make_object("2.25.1", "2.25.2", "2.25.3", pixels=noise(1800), rows=20, columns=30, frames=3)
    with serving(tmp_path, [file]) as opened:
        yield opened


@pytest.mark.parametrize(
    "accept",
    [
        None,
        "*/*",
        "multipart/related",
        'multipart/related; type="application/octet-stream"',
        "multipart/related; type=application/octet-stream",
        'multipart/related; type="*/*"',
        ANY,
        'multipart/related; type="application/octet-stream"; transfer-syntax=1.2.840.10008.1.2.1',
        "multipart/related; type=application/octet-stream; stray=1; q=0.5, chemical/x-pdb;q=0.9",
        "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8",
    ],
)
def test_native_frames_are_given_as_multipart_octets(three, accept):
    client, store = three
    answer = get(client, f"{FRAME}/2", accept)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith(
        'multipart/related; type="application/octet-stream"; boundary='
    )
    (part,) = parts_of(answer)
    assert part.body == store.frame_bytes("2.25.1", 1)
    assert part.headers["content-type"] == f"application/octet-stream; transfer-syntax={EXPLICIT}"
    assert part.headers["content-location"] == f"http://localhost{FRAME}/2"


@pytest.mark.parametrize(
    "accept",
    [
        "application/octet-stream",
        SINGLE_ANY,
        'application/octet-stream; transfer-syntax="*"',
        "application/octet-stream;transfer-syntax=1.2.840.10008.1.2.1",
        "image/png;q=0, application/octet-stream;q=0.1",
    ],
)
def test_one_frame_is_given_as_a_single_part_to_those_who_ask_for_it(three, accept):
    client, store = three
    answer = get(client, f"{FRAME}/2", accept)
    assert answer.headers["content-type"] == f"application/octet-stream; transfer-syntax={EXPLICIT}"
    assert answer.content == store.frame_bytes("2.25.1", 1)
    assert answer.headers["content-length"] == "600"


def test_the_query_parameter_accept_goes_before_the_header(three):
    client, _ = three
    answer = get(client, f"{FRAME}/2?accept=application/octet-stream", "image/png")
    assert answer.headers["content-type"].startswith("application/octet-stream")


@pytest.mark.parametrize(
    ("accept", "status", "words"),
    [
        ("image/png", 406, "application/octet-stream"),
        ("image/jpeg; transfer-syntax=1.2.840.10008.1.2.4.50", 406, "JPEG Baseline"),
        ("application/octet-stream, image/png", 400, "mixes"),
        ('multipart/related; type="application/octet-stream", text/html', 400, "mixes"),
        (";;;", 400, "Accept"),
        ("application/octet-stream; transfer-syntax=1.2.3.4", 406, "1.2.3.4"),
    ],
)
def test_what_can_not_be_given_is_refused_in_words(three, accept, status, words):
    answer = get(three[0], f"{FRAME}/1", accept)
    assert (answer.status_code, answer.json()["status"]) == (status, status)
    assert words in answer.json()["error"]


@pytest.mark.parametrize(
    ("frames", "status"),
    [("4", 404), ("1,4", 404), ("0", 400), ("-1", 400), ("x", 400), ("1,,2", 400), ("1.5", 400), ("²", 400),
     ("99999999999999999999", 400), ("1,2,3", 200), ("1%2C2", 200)],
)  # fmt: skip
def test_frame_numbers_begin_at_one_and_end_at_the_last(three, frames, status):
    assert get(three[0], f"{FRAME}/{frames}", ANY).status_code == status


def test_several_frames_are_no_single_part(three):
    answer = get(three[0], f"{FRAME}/1,2", "application/octet-stream")
    assert answer.status_code == 406
    assert "multipart" in answer.json()["error"]


def test_more_frames_than_the_limit_are_refused(tmp_path):
    file = make_object("2.25.1", "2.25.2", "2.25.3", pixels=noise(1800), rows=20, columns=30, frames=3)
    with serving(tmp_path, [file], limits={"frames": 2}) as (client, _):
        assert get(client, f"{FRAME}/1,2", ANY).status_code == 200
        assert get(client, f"{FRAME}/1,2,3", ANY).status_code == 400


@pytest.mark.parametrize(
    "names",
    [
        ("9.9", "2.25.3", "2.25.1"),
        ("2.25.2", "9.9", "2.25.1"),
        ("2.25.2", "2.25.3", "9.9"),
        ("2.25.3", "2.25.2", "2.25.1"),
    ],
)
def test_an_instance_is_not_found_under_another_study_or_series(three, names):
    client, _ = three
    get(client, f"{FRAME}/1", ANY)
    answer = get(client, "{}/studies/{}/series/{}/instances/{}/frames/1".format(ROOT, *names), ANY)
    assert answer.status_code == 404


def test_an_instance_without_pixels_has_no_frames(tmp_path):
    with serving(tmp_path, [make_object("2.25.1", "2.25.2", "2.25.3")]) as (client, _):
        answer = get(client, f"{FRAME}/1", ANY)
    assert answer.status_code == 404
    assert "no pixel data" in answer.json()["error"]


def test_a_deleted_instance_is_never_served_again(three):
    client, store = three
    assert get(client, f"{FRAME}/1", ANY).status_code == 200
    store.delete("instances", {"SOPInstanceUID": "2.25.1"})
    assert get(client, f"{FRAME}/1", ANY).status_code == 404


def test_a_replaced_instance_is_served_anew(three):
    client, store = three
    before = get(client, f"{FRAME}/1", SINGLE_ANY)
    other = make_object("2.25.1", "2.25.2", "2.25.3", pixels=noise(1800, 9), rows=20, columns=30, frames=3)
    store.ingest(other, policy=hilum.engine.writer.Policy.REPLACE)
    after = get(client, f"{FRAME}/1", SINGLE_ANY)
    assert after.content == store.frame_bytes("2.25.1", 0) != before.content
    assert after.headers["etag"] != before.headers["etag"]


# --- Conditional requests and ranges -------------------------------------------------------------


@pytest.mark.parametrize("accept", [ANY, SINGLE_ANY])
def test_an_entity_tag_saves_sending_the_frame_again(three, accept):
    client, _ = three
    first = get(client, f"{FRAME}/1", accept)
    tag = first.headers["etag"]
    again = get(client, f"{FRAME}/1", accept, if_none_match=f'"other", {tag}')
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == tag
    assert get(client, f"{FRAME}/1", accept, if_none_match='"other"').status_code == 200
    others = [
        get(client, f"{FRAME}/2", accept),
        get(client, f"{FRAME}/1", ANY if accept != ANY else SINGLE_ANY),
    ]
    assert tag not in [other.headers["etag"] for other in others]


@pytest.mark.parametrize("accept", [ANY, SINGLE_ANY])
@pytest.mark.parametrize(
    ("wanted", "begin", "end"),
    [("0-9", 0, 10), ("10-", 10, None), ("-5", -5, None), ("0-99999", 0, None), ("7-7", 7, 8)],
)
def test_a_byte_range_of_a_frame_is_partial_content(three, accept, wanted, begin, end):
    """cornerstone's progressive loading asks for the first bytes, then for the rest, and joins them."""
    client, _ = three
    whole = get(client, f"{FRAME}/1", accept).content
    answer = get(client, f"{FRAME}/1", accept, range=f"bytes={wanted}")
    assert answer.status_code == 206
    assert answer.content == whole[begin:end]
    first = begin % len(whole)
    assert answer.headers["content-range"] == f"bytes {first}-{first + len(answer.content) - 1}/{len(whole)}"


def test_several_ranges_come_as_byteranges(three):
    client, store = three
    whole = store.frame_bytes("2.25.1", 0)
    answer = get(client, f"{FRAME}/1", SINGLE_ANY, range="bytes=0-4, 10-12, 9999-")
    assert answer.status_code == 206
    assert [part.body for part in parts_of(answer)] == [whole[:5], whole[10:13]]
    assert [part.headers["content-range"] for part in parts_of(answer)] == [
        "bytes 0-4/600",
        "bytes 10-12/600",
    ]


@pytest.mark.parametrize(("wanted", "status"), [
    ("bytes=600-", 416), ("bytes=9-2", 200), ("lines=1-2", 200), ("bytes=x", 200), ("bytes=-0", 416),
    ("bytes=" + ",".join(["0-1"] * 17), 400),
])  # fmt: skip
def test_ranges_that_are_none_are_passed_over_and_those_outside_are_refused(three, wanted, status):
    answer = get(three[0], f"{FRAME}/1", SINGLE_ANY, range=wanted)
    assert answer.status_code == status
    if status == 416:
        assert answer.headers["content-range"] == "bytes */600"


def test_if_range_guards_a_range_against_another_version(three):
    client, _ = three
    tag = get(client, f"{FRAME}/1", SINGLE_ANY).headers["etag"]
    assert get(client, f"{FRAME}/1", SINGLE_ANY, range="bytes=0-9", if_range=tag).status_code == 206
    assert get(client, f"{FRAME}/1", SINGLE_ANY, range="bytes=0-9", if_range='"x"').status_code == 200


def test_head_has_the_headers_and_no_body(three):
    client, _ = three
    request = client.build_request("HEAD", f"{FRAME}/1", headers={"accept": SINGLE_ANY})
    answer = client.send(request)
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-length"] == "600"
    assert answer.headers["etag"] == get(client, f"{FRAME}/1", SINGLE_ANY).headers["etag"]


# --- Kinds of pixels -----------------------------------------------------------------------------


def test_one_bit_frames_that_begin_inside_a_byte_are_moved_to_its_begin(tmp_path):
    value = noise(8)  # seven frames of nine bits
    extra = [(0x00280100, element(0x00280100, "US", 1)), (0x00280101, element(0x00280101, "US", 1))]
    file = make_object("2.25.1", "2.25.2", "2.25.3", pixels=value, rows=3, columns=3, frames=7, extra=extra)
    bits = "".join(f"{byte:08b}"[::-1] for byte in value)
    with serving(tmp_path, [file]) as (client, _):
        parts = parts_of(get(client, f"{FRAME}/1,2,7", ANY))
    for part, index in zip(parts, (0, 1, 6), strict=True):
        found = "".join(f"{byte:08b}"[::-1] for byte in part.body)
        assert found[:9] == bits[index * 9 : index * 9 + 9]
        assert set(found[9:]) <= {"0"}


def test_big_endian_pixels_leave_as_little_endian(archive, images):
    client, store = archive
    found = [
        one
        for one in images[uids.EXPLICIT_VR_BIG_ENDIAN]
        if store.frames(one.uid).layout.bits_allocated == 16
    ]
    assert found
    for one in found:
        stored = store.frame_bytes(one.uid, 0)
        answer = get(client, url_of(one, "/frames/1"), SINGLE_ANY)
        assert np.array_equal(np.frombuffer(answer.content, "<u2"), np.frombuffer(stored, ">u2"))
        assert answer.headers["content-type"].endswith(f"transfer-syntax={EXPLICIT}")


def test_float_pixels_are_frames_too(archive, images):
    client, store = archive
    found = [
        one for ones in images.values() for one in ones if one.instance.pixel_tag in (0x7FE00008, 0x7FE00009)
    ]
    assert found
    for one in found:
        answer = get(client, url_of(one, "/frames/1"), "application/octet-stream")
        kind = "<f4" if one.instance.pixel_tag == 0x7FE00008 else "<f8"
        assert np.array_equal(
            np.frombuffer(answer.content, kind), store.frame(one.uid, 0).ravel(), equal_nan=True
        )


def test_a_frame_in_several_fragments_has_no_item_tags_in_it(tmp_path):
    from makers import encapsulated

    pixels = encapsulated([b"\xff\xd8ab", b"cdef", b"gh\xff\xd9"])
    file = make_object(
        "2.25.1", "2.25.2", "2.25.3", fragments=[b"x"], rows=2, columns=2, extra=[(0x7FE00010, pixels)]
    )
    with serving(tmp_path, [file]) as (client, _):
        answer = get(client, f"{FRAME}/1", "image/jpeg")
    assert answer.content == b"\xff\xd8abcdefgh\xff\xd9"


# --- Transfer syntaxes ---------------------------------------------------------------------------


def first_of(images: dict[str, list[Resource]], syntax: str) -> Resource:
    assert syntax in images, f"no sample file has {syntax}"
    return images[syntax][0]


OHIF = "multipart/related; type=application/octet-stream; transfer-syntax=*"
SLIDES = (
    'multipart/related; type="image/jls"; transfer-syntax=1.2.840.10008.1.2.4.80, '
    'multipart/related; type="image/jls"; transfer-syntax=1.2.840.10008.1.2.4.81, '
    'multipart/related; type="image/jp2"; transfer-syntax=1.2.840.10008.1.2.4.90, '
    'multipart/related; type="image/jp2"; transfer-syntax=1.2.840.10008.1.2.4.91, '
    'multipart/related; type="image/jpx"; transfer-syntax=1.2.840.10008.1.2.4.92, '
    'multipart/related; type="image/jpx"; transfer-syntax=1.2.840.10008.1.2.4.93, '
    'multipart/related; type="application/octet-stream"; transfer-syntax=*, '
    'multipart/related; type="image/jpeg"; transfer-syntax=1.2.840.10008.1.2.4.50'
)


@pytest.mark.parametrize("syntax", [
    uids.JPEG_BASELINE, uids.JPEG_LOSSLESS_SV1, uids.JPEG_LS_LOSSLESS, uids.JPEG_2000_LOSSLESS,
    uids.JPEG_2000, uids.HTJ2K_LOSSLESS, uids.RLE_LOSSLESS, uids.EXPLICIT_VR_LITTLE_ENDIAN,
])  # fmt: skip
def test_ohif_gets_frames_as_they_are_stored_with_the_type_that_fits(archive, images, syntax):
    client, store = archive
    one = first_of(images, syntax)
    (part,) = parts_of(get(client, url_of(one, "/frames/1"), OHIF))
    assert part.body == store.frame_bytes(one.uid, 0)
    assert (part.media_type, part.syntax) == (media_type_of(syntax), syntax)


def test_the_long_accept_of_slide_viewers_takes_what_is_stored_where_it_can(archive, images):
    client, store = archive
    for syntax in (uids.JPEG_LS_LOSSLESS, uids.JPEG_2000_LOSSLESS, uids.JPEG_2000, uids.JPEG_BASELINE):
        one = first_of(images, syntax)
        (part,) = parts_of(get(client, url_of(one, "/frames/1"), SLIDES))
        assert part.body == store.frame_bytes(one.uid, 0), syntax
        assert (part.media_type, part.syntax) == (media_type_of(syntax), syntax)


@pytest.mark.parametrize("accept", ['multipart/related; type="*/*"', None])
def test_without_a_transfer_syntax_frames_are_decoded(archive, images, accept):
    """dicomweb-client's default, and no Accept at all."""
    client, store = archive
    one = first_of(images, uids.JPEG_2000_LOSSLESS)
    (part,) = parts_of(get(client, url_of(one, "/frames/1"), accept))
    assert part.syntax == EXPLICIT
    assert part.body[: store.frame(one.uid, 0).nbytes] == store.frame(one.uid, 0).tobytes()


def test_decompress_pixels_gives_the_frame_decoded_whatever_is_accepted(archive, images):
    client, store = archive
    one = first_of(images, uids.JPEG_2000_LOSSLESS)
    (part,) = parts_of(get(client, url_of(one, "/frames/1?DECOMPRESS_PIXELS=true"), OHIF))
    assert part.syntax == EXPLICIT
    assert part.body[: store.frame(one.uid, 0).nbytes] == store.frame(one.uid, 0).tobytes()


@pytest.mark.parametrize(
    ("accept", "syntax"),
    [
        ("image/jls", uids.JPEG_LS_LOSSLESS),
        ("image/jls; transfer-syntax=1.2.840.10008.1.2.4.80", uids.JPEG_LS_LOSSLESS),
        ("image/jphc", uids.HTJ2K_LOSSLESS),
        ("image/jhc", uids.HTJ2K_LOSSLESS),
        ("image/dicom-rle", uids.RLE_LOSSLESS),
        ("image/x-dicom-rle", uids.RLE_LOSSLESS),
        ("image/jp2", uids.JPEG_2000_LOSSLESS),
    ],
)
def test_frames_are_transcoded_without_loss_to_the_syntax_that_is_asked_for(archive, images, accept, syntax):
    from hilum.pixels.decode import decode_frame

    client, store = archive
    one = next(
        one for one in images[EXPLICIT] if store.frames(one.uid).layout[4:8] == (1, 16, 16, 1)
        or store.frames(one.uid).layout[4:6] == (1, 16)
    )  # fmt: skip
    answer = get(client, url_of(one, "/frames/1"), accept)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == f"{media_type_of(syntax)}; transfer-syntax={syntax}"
    pixels = decode_frame(answer.content, store.frames(one.uid).layout, syntax)
    assert np.array_equal(pixels, store.frame(one.uid, 0))


def test_what_can_not_be_decoded_is_given_as_stored_or_refused_with_the_reason(tmp_path):
    file = make_object(
        "2.25.1", "2.25.2", "2.25.3", fragments=[b"\xff\xd8 no JPEG \xff\xd9 "], rows=2, columns=2
    )
    with serving(tmp_path, [file]) as (client, store), warnings.catch_warnings():
        for accept in (None, "*/*", ANY, 'multipart/related; type="image/jpeg"'):
            (part,) = parts_of(get(client, f"{FRAME}/1", accept))
            assert part.body == store.frame_bytes("2.25.1", 0)
            assert part.syntax == uids.JPEG_BASELINE
        answer = get(client, f"{FRAME}/1", "application/octet-stream")
    assert answer.status_code == 406
    assert "JPEG" in answer.json()["error"]


@pytest.mark.parametrize("served", [False, True], ids=["never served", "served before"])
def test_a_rotten_frame_is_an_error_and_no_picture(three, served):
    client, store = three
    if served:
        assert get(client, f"{FRAME}/1", ANY).status_code == 200
    (name,) = [name for name in os.listdir(store.folder.packs) if name.endswith("bulk")]
    with open(os.path.join(store.folder.packs, name), "r+b") as pack:
        pack.seek(300)
        pack.write(b"rot")
    answer = get(client, f"{FRAME}/1", ANY)
    assert answer.status_code == 500
    assert "verify" in answer.json()["error"]


def test_frames_in_blocks_of_their_own_checksums_are_the_same_when_asked_for_again(tmp_path):
    """Native pixels of several blocks; frames that begin and end in the middle of one."""
    pixels = noise(5 * 300_000)
    file = make_object("2.25.1", "2.25.2", "2.25.3", pixels=pixels, rows=500, columns=600, frames=5)
    with serving(tmp_path, [file]) as (client, store):
        for _ in range(2):
            for number in (1, 2, 5):
                answer = get(client, f"{FRAME}/{number}", SINGLE_ANY)
                assert answer.content == pixels[(number - 1) * 300_000 : number * 300_000]
        (name,) = [name for name in os.listdir(store.folder.packs) if name.endswith("bulk")]
        with open(os.path.join(store.folder.packs, name), "r+b") as pack:
            pack.seek(700_000)
            pack.write(b"rot")
        assert get(client, f"{FRAME}/1", SINGLE_ANY).status_code == 200
        assert get(client, f"{FRAME}/3", SINGLE_ANY).status_code == 500
        assert get(client, f"{FRAME}/2", SINGLE_ANY).status_code == 500, "the block that they share"
