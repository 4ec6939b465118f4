"""Documents of a store: what an instance and a series say, what is kept of them and for how long, and that
every bulk value they name is there.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from struct import pack
from typing import Any

import pytest
from makers import IMPLICIT_LE, element, file_meta, item, make_object, noise, sequence

import hilum
from hilum.engine import document, packs
from hilum.engine.writer import Policy
from hilum.errors import BadQuery, Corrupt, HilumError, NotFound, Unsupported

BASE = "https://h.example/dicom-web"
STUDY, SERIES = "2.25.2", "2.25.3"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[hilum.Store]:
    with hilum.open(tmp_path / "store", create=True) as opened:
        yield opened


def derived(store: hilum.Store) -> list[str]:
    folder = Path(store.path, "derived")
    return sorted(os.listdir(folder)) if folder.exists() else []


def put(store: hilum.Store, number: int, *, policy: Policy = Policy.KEEP_FIRST, **facts: Any) -> None:
    facts = {"instance_number": number, "pixels": noise(2000, number), **facts}
    store.ingest(make_object(f"2.25.1.{number}", STUDY, SERIES, **facts), policy=policy)


def series(store: hilum.Store, base: str = BASE) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(store.series_json(STUDY, SERIES, base=base).json())
    return found


def uids(found: list[dict[str, Any]]) -> list[str]:
    return [one["00080018"]["Value"][0] for one in found]


def uris(found: Any) -> Iterator[tuple[str, str]]:
    """VR and URI of every bulk value that a document names."""
    if isinstance(found, dict):
        if "BulkDataURI" in found:
            yield found["vr"], found["BulkDataURI"]
        for value in found.values():
            yield from uris(value)
    elif isinstance(found, list):
        for value in found:
            yield from uris(value)


# --- Instance and series ---------------------------------------------------------------


def test_an_instance_has_its_attributes_and_names_its_pixels_below_the_base(store):
    put(store, 1)

    found = json.loads(store.instance_json("2.25.1.1", base=BASE))

    assert found["00100020"] == {"vr": "LO", "Value": ["P1"]}
    assert found["7FE00010"] == {
        "vr": "OB",
        "BulkDataURI": f"{BASE}/studies/{STUDY}/series/{SERIES}/instances/2.25.1.1/bulkdata/7FE00010",
    }


def test_a_uid_that_is_none_is_escaped_in_its_uri(store):
    store.ingest(make_object("2.25.1", "2.25.2", "REM SAMPLES 1", pixels=noise(2000)))

    ((_, uri),) = uris(json.loads(store.instance_json("2.25.1", base=BASE)))

    assert "/series/REM%20SAMPLES%201/instances/" in uri


def test_a_series_is_the_objects_of_its_instances_by_number_whatever_the_order_of_arrival(store):
    for number in (3, 10, 1, 2):
        put(store, number)
    store.ingest(make_object("2.25.9", STUDY, "2.25.4", pixels=noise(2000)))

    found = series(store)

    assert uids(found) == ["2.25.1.1", "2.25.1.2", "2.25.1.3", "2.25.1.10"]
    assert found == [json.loads(store.instance_json(uid, base=BASE)) for uid in uids(found)]


def test_compressed_plain_and_in_pieces_it_is_one_document(store, monkeypatch):
    for number in range(30):
        put(store, number)
    monkeypatch.setattr(document, "_PIECE", 1500)
    monkeypatch.setattr(document, "_BATCH_BYTES", 10_000)
    monkeypatch.setattr(document, "_READ_BYTES", 2000)
    made = store.series_json(STUDY, SERIES, base=BASE)

    plain = made.json()

    assert len(json.loads(plain)) == 30
    assert gzip.decompress(made.gzip()) == plain
    assert b"".join(made.json_pieces()) == plain
    assert len(list(made.json_pieces())) > 5
    assert made.json_length() == len(plain)


def test_heads_that_lie_together_are_read_at_once(store, monkeypatch):
    for number in range(50):
        put(store, number)
    reads = []
    read = packs.PackReader.read
    monkeypatch.setattr(packs.PackReader, "read", lambda *place: reads.append(place) or read(*place))

    store.series_json(STUDY, SERIES, base=BASE).gzip()

    assert len(reads) == 1


def test_a_series_that_does_not_exist_is_not_found(store):
    put(store, 1)
    for study, name in (
        ("2.25.8", SERIES),
        (STUDY, "2.25.8"),
        ("", SERIES),
        (STUDY, ""),
        ("é", "é"),
        ("1" * 600, "1" * 600),
    ):
        with pytest.raises(NotFound):
            store.series_json(study, name, base=BASE)


@pytest.mark.parametrize("where", [-20, 200])
def test_a_head_that_is_rotten_is_an_error_and_no_shorter_document(store, where):
    for number in (1, 2):
        put(store, number)
    instance = store.locate("2.25.1.2").instance
    path = Path(store.path, "packs", packs.pack_name(instance.container, packs.HEAD_PACK))
    with path.open("r+b") as file:
        file.seek(instance.offset + where)  # in front of it is its record, with the identity
        file.write(b"rot")

    with pytest.raises(Corrupt):
        store.series_json(STUDY, SERIES, base=BASE).gzip()
    assert derived(store) == []


# --- What is kept ------------------------------------------------------------------------


def test_a_document_is_kept_and_answers_again(store, monkeypatch):
    put(store, 1)
    first = store.series_json(STUDY, SERIES, base=BASE)
    data = first.gzip()
    assert len(derived(store)) == 1
    monkeypatch.setattr(document, "read_heads", None)  # whoever reads a head now fails

    again = store.series_json(STUDY, SERIES, base=BASE)

    assert again.gzip() == data
    assert again.etag == first.etag


def _delete(store: hilum.Store) -> None:
    store.delete("instances", {"SOPInstanceUID": "2.25.1.1"})


def _swap(store: hilum.Store) -> None:
    _delete(store)
    put(store, 1, patient_id="other")


CHANGES: dict[str, Callable[[hilum.Store], None]] = {
    "stored": lambda store: put(store, 3),
    "deleted": _delete,
    "replaced": lambda store: put(store, 1, study_description="other", policy=Policy.REPLACE),
    "deleted and stored with other bytes": _swap,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_any_instance_gives_another_document_and_another_etag(store, change):
    put(store, 1)
    put(store, 2)
    before = store.series_json(STUDY, SERIES, base=BASE)
    old = before.json()

    CHANGES[change](store)

    after = store.series_json(STUDY, SERIES, base=BASE)
    assert after.etag != before.etag
    assert after.json() != old
    assert json.loads(after.json()) == [
        json.loads(store.instance_json(u, base=BASE)) for u in uids(series(store))
    ]


def test_what_changes_nothing_keeps_the_document(store):
    put(store, 1)
    etag = store.series_json(STUDY, SERIES, base=BASE).etag

    put(store, 1)  # a duplicate
    store.ingest(make_object("2.25.9", STUDY, "2.25.4", pixels=noise(2000)))

    assert store.series_json(STUDY, SERIES, base=BASE).etag == etag


def test_a_study_that_was_deleted_answers_no_more_and_one_of_its_name_answers_anew(store):
    put(store, 1)
    old = store.series_json(STUDY, SERIES, base=BASE)
    old.gzip()

    store.delete("studies", {"StudyInstanceUID": STUDY})

    with pytest.raises(NotFound):
        store.series_json(STUDY, SERIES, base=BASE)
    put(store, 1, patient_id="other")
    new = store.series_json(STUDY, SERIES, base=BASE)
    assert new.etag != old.etag
    assert json.loads(new.json())[0]["00100020"]["Value"] == ["other"]


def test_no_copy_of_a_header_outlives_the_deletion_of_its_instance(store):
    put(store, 1, patient_id="GONE")
    store.series_json(STUDY, SERIES, base=BASE).gzip()
    derived = Path(store.path, "derived")
    assert list(derived.iterdir())

    store.delete("studies", {"StudyInstanceUID": STUDY})

    assert list(derived.iterdir()) == []


def test_each_base_has_its_own_document(store):
    put(store, 1)

    here, there = (store.series_json(STUDY, SERIES, base=base) for base in ("http://a", "http://b"))

    assert here.etag != there.etag
    assert b"http://a/studies" in here.json()
    assert b"http://b/studies" in there.json()


def test_a_document_made_before_a_change_is_that_of_its_etag(store):
    put(store, 1)
    asked = store.series_json(STUDY, SERIES, base=BASE)
    put(store, 2)

    assert uids(json.loads(asked.json())) == ["2.25.1.1"]
    assert uids(series(store)) == ["2.25.1.1", "2.25.1.2"]


@pytest.mark.parametrize("harm", ["cut", "flipped", "emptied", "removed", "the folder is removed"])
def test_what_is_kept_may_be_lost_or_harmed_at_any_time(store, harm):
    put(store, 1)
    data = store.series_json(STUDY, SERIES, base=BASE).gzip()
    path = Path(store.path, "derived", derived(store)[0])
    kept = path.read_bytes()
    if harm == "cut":
        path.write_bytes(kept[:-1])
    elif harm == "flipped":
        path.write_bytes(kept[:50] + bytes((kept[50] ^ 1,)) + kept[51:])
    elif harm == "emptied":
        path.write_bytes(b"")
    elif harm == "removed":
        path.unlink()
    else:
        shutil.rmtree(path.parent)

    assert store.series_json(STUDY, SERIES, base=BASE).gzip() == data
    assert path.read_bytes() == kept


def test_a_store_open_for_reading_answers_and_writes_nothing(store):
    put(store, 1)
    path = store.path
    store.close()

    with hilum.open(path, read_only=True) as reader:
        assert len(series(reader)) == 1
        assert derived(reader) == []


def test_a_disk_that_takes_nothing_is_no_reason_to_fail(store, monkeypatch):
    put(store, 1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", full)

    assert len(series(store)) == 1
    assert derived(store) == []


def test_a_disk_that_is_nearly_full_is_left_to_others(store, monkeypatch):
    put(store, 1)
    monkeypatch.setattr(document, "_FREE_MIN", 1 << 62)

    assert len(series(store)) == 1
    assert derived(store) == []


def test_the_oldest_used_documents_go_when_there_are_too_many(tmp_path):
    folder = document.Derived(str(tmp_path / "derived"), read_only=False, bytes_max=20_000)
    for number in range(40):
        folder.write(f"d{number}", document.Packed(7, noise(1000, number)))
        os.utime(tmp_path / "derived" / f"d{number}", (number, number))
        if number > 5:
            assert folder.read("d5") == (7, noise(1000, 5))  # in use, so it stays though it is old

    kept = {name for name in os.listdir(tmp_path / "derived")}
    assert sum((tmp_path / "derived" / name).stat().st_size for name in kept) < 24_000
    assert {"d5", "d39"} <= kept
    assert "d0" not in kept


def test_what_a_crash_left_half_written_is_cleared_away_and_never_read(tmp_path):
    folder = tmp_path / "derived"
    folder.mkdir()
    for name, age in (("old.1.new", 1), ("fresh.1.new", 0)):
        (folder / name).write_bytes(b"half")
        if age:
            os.utime(folder / name, (age, age))

    document.Derived(str(folder), read_only=False).write("d", document.Packed(9, b"document"))

    assert sorted(os.listdir(folder)) == ["d", "fresh.1.new"]


# --- Bulk values -----------------------------------------------------------------------------


def test_a_bulk_value_is_read_by_ranges(store):
    pixels = noise(5000)
    put(store, 1, pixels=pixels)

    value = store.bulk_data("2.25.1.1", "7FE00010")

    assert (value.vr, value.length, value.part_count, value.is_encapsulated) == ("OB", 5000, 1, False)
    assert value.transfer_syntax == "1.2.840.10008.1.2.1"
    assert value.read(0, 5000) == value.part(0) == pixels
    assert value.read(17, 100) == pixels[17:117]
    assert value.read(4990, 100) == pixels[4990:]
    assert value.read(6000, 10) == b""


def test_a_small_value_lies_in_the_head_and_answers_too(store):
    put(store, 1, pixels=b"few!")

    assert store.bulk_data("2.25.1.1", "7FE00010").read(0, 100) == b"few!"


def test_a_nested_value_answers_to_its_path(store):
    inner = sequence(0x00289110, [b"", element(0x00420011, "OB", b"y" * 70_000)])
    put(store, 1, extra=[(0x52009229, sequence(0x52009229, [inner]))])

    ((_, uri), _) = uris(json.loads(store.instance_json("2.25.1.1", base=BASE)))

    assert uri.endswith("/bulkdata/52009229.1.00289110.2.00420011")
    assert store.bulk_data("2.25.1.1", uri.rpartition("/")[2]).read(0, 70_000) == b"y" * 70_000


@pytest.mark.parametrize(
    "path", ["7FE00009", "52009229.1.00420011", "52009229.2.00289110.1.00420011", "52009229"]
)
def test_a_path_to_nothing_is_not_found(store, path):
    put(store, 1, extra=[(0x52009229, sequence(0x52009229, [b""]))])

    with pytest.raises(NotFound):
        store.bulk_data("2.25.1.1", path)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "x",
        "7FE0001",
        "7FE00010.",
        "7FE00010.0.00100010",
        "7FE00010.00100010",
        "7FE00010\n",
        "../7FE00010",
    ],
)
def test_what_is_no_path_is_refused(store, path):
    put(store, 1)

    with pytest.raises(BadQuery):
        store.bulk_data("2.25.1.1", path)


def test_big_endian_words_leave_as_little_endian_at_any_offset(store):
    words = noise(3000)
    body = b"".join(
        pack(">HH2sH", tag >> 16, tag & 0xFFFF, vr, len(value)) + value
        for tag, vr, value in (
            (0x00080018, b"UI", b"2.25.1.1"),
            (0x0020000D, b"UI", b"2.25.2"),
            (0x0020000E, b"UI", b"2.25.3"),
        )
    )
    body += pack(">HH2sHI", 0x7FE0, 0x0010, b"OW", 0, len(words)) + words
    store.ingest(file_meta("2.25.1.1", "1.2.840.10008.5.1.4.1.1.7", "1.2.840.10008.1.2.2") + body)
    turned = bytes(words[i ^ 1] for i in range(len(words)))

    value = store.bulk_data("2.25.1.1", "7FE00010")

    assert value.read(0, 3000) == turned
    for offset, length in ((0, 1), (1, 1), (1, 2), (2, 5), (2999, 10)):
        assert value.read(offset, length) == turned[offset : offset + length]


def test_text_leaves_as_utf_8_as_its_document_says(store):
    text = "é" * 70_000
    put(
        store,
        1,
        character_set="ISO_IR 100",
        extra=[(0x00104000, element(0x00104000, "UT", text.encode("latin-1")))],
    )

    value = store.bulk_data("2.25.1.1", "00104000")

    assert value.length == 140_000
    assert value.read(0, value.length) == text.encode()


@pytest.mark.parametrize("size", [100, 3000])
def test_frames_are_the_parts_of_encapsulated_pixels_without_item_headers(store, size):
    frames = [noise(size, number) for number in range(3)]
    put(store, 1, pixels=None, fragments=frames, frames=3)
    put(store, 2, pixels=None, fragments=frames[:1])

    several, single = (store.bulk_data(f"2.25.1.{number}", "7FE00010") for number in (1, 2))

    assert several.is_encapsulated
    assert several.transfer_syntax == "1.2.840.10008.1.2.4.50"
    assert [several.part(index) for index in range(several.part_count)] == frames
    with pytest.raises(Unsupported):
        several.read(0, 10)
    with pytest.raises(NotFound):
        several.part(3)
    assert single.part_count == 1
    assert single.read(10, 20) == frames[0][10:30]


def test_an_encapsulated_icon_is_one_part_of_all_its_fragments(store):
    fragments = item(b"\0\0\0\0") + item(b"abcd") + item(b"ef")
    icon = (
        pack("<HH", 0x7FE0, 0x0010)
        + b"OB"
        + pack("<HI", 0, 0xFFFFFFFF)
        + fragments
        + pack("<HHI", 0xFFFE, 0xE0DD, 0)
    )
    put(store, 1, extra=[(0x00880200, sequence(0x00880200, [icon]))])

    value = store.bulk_data("2.25.1.1", "00880200.1.7FE00010")

    assert value.is_encapsulated
    assert (value.length, value.read(0, 100), value.read(3, 2)) == (6, b"abcdef", b"de")


def test_a_large_single_frame_is_read_by_ranges_and_not_as_a_whole(store, monkeypatch):
    monkeypatch.setattr(document, "_WHOLE_MAX", 1000)
    frame = noise(5000)
    put(store, 1, pixels=None, fragments=[frame])

    value = store.bulk_data("2.25.1.1", "7FE00010")

    assert (value.length, value.read(0, 5000), value.read(100, 7)) == (5000, frame, frame[100:107])


def test_a_deflated_value_is_read_by_ranges_forwards_and_backwards(store):
    pixels = noise(700_000)
    plain = make_object("2.25.1.1", STUDY, SERIES, pixels=pixels)
    meta = file_meta("2.25.1.1", "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.2.1.99")
    engine = zlib.compressobj(wbits=-15)
    start = plain.index(b"\x08\x00\x16\x00")
    store.ingest(meta + engine.compress(plain[start:]) + engine.flush())

    document_ = json.loads(store.instance_json("2.25.1.1", base=BASE))
    value = store.bulk_data("2.25.1.1", "7FE00010")

    assert document_["7FE00010"]["BulkDataURI"].endswith("/7FE00010")
    assert value.read(0, 300_000) + value.read(300_000, 400_000) == pixels
    assert value.read(5, 10) == pixels[5:15]


def test_rot_in_a_value_that_is_read_to_its_end_is_an_error(store):
    put(store, 1, pixels=noise(5000))
    place = store.find_blob(store.locate("2.25.1.1").instance.pixel_digest)
    with Path(store.path, "packs", packs.pack_name(place.container, packs.BULK_PACK)).open("r+b") as file:
        file.seek(place.offset + 2500)
        file.write(b"rot")
    value = store.bulk_data("2.25.1.1", "7FE00010")

    value.read(0, 3000)
    with pytest.raises(Corrupt):
        value.read(3000, 2000)


def test_implicit_files_answer_alike(store):
    put(store, 1, transfer_syntax=IMPLICIT_LE)

    assert store.bulk_data("2.25.1.1", "7FE00010").read(0, 2000) == noise(2000, 1)


def test_every_uri_of_every_sample_file_answers(tmp_path, sample_files):
    named = 0
    with hilum.open(tmp_path / "store", create=True) as store:
        prepared = {}
        for path in sample_files.values():
            try:
                one = store.prepare(path)
            except HilumError:
                continue
            prepared.setdefault(one.uid, one)
        store.ingest_many(list(prepared.values()))
        for uid in prepared:
            name = uid.decode()
            for vr, uri in uris(json.loads(store.instance_json(name, base=BASE))):
                named += 1
                value = store.bulk_data(name, uri.rpartition("/")[2])
                assert value.vr == vr
                if value.part_count == 1:
                    assert len(value.read(0, value.length)) == value.length
                else:
                    assert all(value.part(index) for index in (0, value.part_count - 1)), uri
    assert named > 60
