"""dicomweb-client against `hilum serve` over the sample files: every call it has, each answer held against
what pydicom reads in the files. tests/test_web_client.py has its calls once more, on small made objects.

Pixels of a lossy JPEG may differ by LOSSY_MAX: decoders round differently. All others are the same.
"""

from __future__ import annotations

import io
import json
import re
import urllib.request
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pydicom
import pytest
from dicomweb_client import DICOMwebClient
from makers import make_object
from peers.serving import server
from PIL import Image
from requests import HTTPError
from test_dicomjson import UNREAD, compare, strict

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore::UserWarning:pydicom")]

EXPLICIT = "1.2.840.10008.1.2.1"
LOSSY_JPEG = {f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 53, 55)}
LOSSY_MAX = 3
AS_STORED = (("application/dicom", "*"),)
UID = re.compile(r"[0-9]+(\.[0-9]+)*")
PIXELS_BYTES_MAX = 30 << 20  # of a file whose pixels are compared
BULK_BYTES_MAX = 1 << 20  # of one whose other bulk data are


class Real(NamedTuple):
    """A stored file, and what pydicom reads at its begin."""

    path: Path
    study: str
    series: str
    uid: str
    head: pydicom.Dataset

    @property
    def uids(self) -> tuple[str, str, str]:
        return self.study, self.series, self.uid

    @property
    def syntax(self) -> str:
        return str(getattr(self.head.file_meta, "TransferSyntaxUID", ""))


class Both(NamedTuple):
    """The same instances as files and behind a server."""

    client: DICOMwebClient
    files: list[Real]  # those whose identifiers pydicom and Hilum read alike

    @property
    def studies(self) -> dict[str, list[Real]]:
        found = defaultdict(list)
        for one in self.files:
            found[one.study].append(one)
        return found


@pytest.fixture(scope="module")
def both(stored) -> Iterator[Both]:
    known = set()
    with server(stored.folder) as url:
        client = DICOMwebClient(f"{url}/dicom-web")
        for row in client.search_for_instances(get_remaining=True, limit=5000):
            known.add(tuple(row[tag]["Value"][0] for tag in ("0020000D", "0020000E", "00080018")))
        assert len(known) == len(stored.samples)
        files = []
        for sample in stored.samples:
            if "fuzz-corpus" in sample.path.parts:
                continue
            head = pydicom.dcmread(sample.path, force=True, stop_before_pixels=True)
            found = Real(
                sample.path, *(str(head.get(name, "")) for name in (
                    "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"
                )), head,
            )  # fmt: skip
            # dicomweb-client itself refuses to ask for what is no UID.
            if found.uids in known and all(UID.fullmatch(uid) for uid in found.uids):
                files.append(found)
        assert len(files) > 50
        yield Both(client, files)


def values(rows: Iterable[dict[str, Any]], tag: str) -> list[Any]:
    return [row[tag]["Value"][0] for row in rows if row[tag].get("Value")]


# --- Search -------------------------------------------------------------------------------------


def test_every_study_series_and_instance_of_the_files_is_found(both):
    studies = values(both.client.search_for_studies(get_remaining=True, limit=500), "0020000D")
    assert len(studies) == len(set(studies))
    assert set(both.studies) <= set(studies)
    series = values(both.client.search_for_series(get_remaining=True, limit=500), "0020000E")
    assert {one.series for one in both.files} <= set(series)
    for study, files in list(both.studies.items())[:20]:
        found = both.client.search_for_series(study)
        assert {one.series for one in files} <= set(values(found, "0020000E"))
        found = both.client.search_for_instances(study)
        assert {one.uid for one in files} <= set(values(found, "00080018"))
        found = both.client.search_for_instances(study, files[0].series)
        assert {one.uid for one in files if one.series == files[0].series} <= set(values(found, "00080018"))


@pytest.mark.parametrize(
    "keyword", ["StudyInstanceUID", "PatientID", "AccessionNumber", "StudyDate", "StudyID"]
)
def test_what_pydicom_reads_finds_the_study(both, keyword):
    tag = f"{pydicom.datadict.tag_for_keyword(keyword):08X}"
    count = 0
    for study, files in both.studies.items():
        value = str(files[0].head.get(keyword) or "")
        if len(files) > 1 or not re.fullmatch(r"[A-Za-z0-9 .^_-]+", value) or value == "00000000":
            continue
        rows = both.client.search_for_studies(search_filters={keyword: value}, limit=5000)
        again = both.client.search_for_studies(search_filters={tag: value}, limit=5000, fields=["Rows"])
        assert study in values(rows, "0020000D"), (keyword, value, files[0].path)
        assert {value} == set(values(rows, tag))
        assert sorted(values(rows, "0020000D")) == sorted(values(again, "0020000D"))
        count += 1
    assert count > 3


def test_names_are_found_by_wildcards_in_any_case_and_fuzzily(both):
    count = 0
    for study, files in both.studies.items():
        name = str(files[0].head.get("PatientName") or "")
        family = name.split("=")[0].split("^")[0].strip()
        if len(files) > 1 or len(family) < 3 or not family.isalpha() or not family.isascii():
            continue
        for filters in ({"PatientName": f"{family.upper()}*"}, {"00100010": f"*{family.lower()[1:]}*"}):
            rows = both.client.search_for_studies(search_filters=filters, limit=5000)
            assert study in values(rows, "0020000D"), (filters, files[0].path)
        rows = both.client.search_for_studies(True, search_filters={"PatientName": family}, limit=5000)
        assert study in values(rows, "0020000D")
        count += 1
    assert count > 5


def test_pages_are_the_whole_and_fields_are_there(both):
    whole = both.client.search_for_instances(limit=5000)
    pages: list[Any] = []
    while page := both.client.search_for_instances(limit=97, offset=len(pages)):
        pages += page
    assert pages == whole
    assert both.client.search_for_instances(limit=97, get_remaining=True) == whole
    rows = both.client.search_for_instances(limit=5000, fields=["ImageType", "00180050", "SliceLocation"])
    by_uid = {row["00080018"]["Value"][0]: row for row in rows}
    count = 0
    for one in both.files:
        for keyword, tag in (("ImageType", "00080008"), ("SliceThickness", "00180050")):
            theirs = one.head.get(keyword)
            if theirs is None or theirs == "":
                continue
            ours = by_uid[one.uid][tag]["Value"]
            theirs = list(theirs) if isinstance(theirs, pydicom.multival.MultiValue) else [theirs]
            assert [one if one is not None else "" for one in ours] == [
                float(value) if keyword == "SliceThickness" else value for value in theirs
            ], (one.path, keyword)
            count += 1
    assert count > 50


def test_a_search_without_results_is_an_empty_list(both):
    assert both.client.search_for_studies(search_filters={"PatientID": "nobody at all"}) == []
    assert both.client.search_for_series("2.25.404") == []


# --- Metadata and bulk data ------------------------------------------------------------------------


def test_metadata_are_pydicoms_documents_but_for_what_is_listed(both, monkeypatch):
    """The list is DIFFERENCES of test_dicomjson.py."""
    monkeypatch.setattr(pydicom.config.settings, "reading_validation_mode", pydicom.config.IGNORE)
    wrong, count, base = [], 0, both.client.base_url
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for study, files in both.studies.items():
            # As it leaves, not as dicomweb-client has parsed it.
            answer = urllib.request.urlopen(f"{base}/studies/{study}/metadata").read()
            documents = {one["00080018"]["Value"][0]: one for one in json.loads(answer)}
            for one in files:
                if one.path.name.endswith(UNREAD):
                    continue
                place = f"{base}/studies/{study}/series/{one.series}/instances/{one.uid}/bulkdata/"
                text = json.dumps(documents[one.uid]).replace(place, "u/")
                data_set = pydicom.dcmread(one.path, force=True)
                wrong += [f"{one.path} {found}" for found in compare(strict(text.encode()), data_set, "")]
                count += 1
    assert count > 50
    assert wrong == []


def test_metadata_of_a_study_are_those_of_its_series_and_instances(both):
    for study, files in list(both.studies.items())[:15]:
        whole = {one["00080018"]["Value"][0]: one for one in both.client.retrieve_study_metadata(study)}
        one = files[0]
        series = both.client.retrieve_series_metadata(study, one.series)
        assert all(whole[row["00080018"]["Value"][0]] == row for row in series)
        assert both.client.retrieve_instance_metadata(*one.uids) == whole[one.uid]


def uris_in(document: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    for tag, attribute in document.items():
        if "BulkDataURI" in attribute:
            yield tag, attribute["vr"], attribute["BulkDataURI"]
        for value in attribute.get("Value", ()) if attribute["vr"] == "SQ" else ():
            yield from uris_in(value or {})


def test_bulk_data_are_the_values_that_pydicom_reads(both):
    count = 0
    for one in both.files:
        if one.path.stat().st_size > BULK_BYTES_MAX or one.path.name.endswith(UNREAD):
            continue
        data_set: pydicom.Dataset | None = None
        for tag, vr, uri in uris_in(both.client.retrieve_instance_metadata(*one.uids)):
            if tag == "7FE00010" or uri.rsplit("/", 1)[1] != tag or vr not in ("OB", "UN", "OF", "UT", "OW"):
                continue
            data_set = data_set or pydicom.dcmread(one.path, force=True)
            if data_set.original_encoding[1] is False:
                continue  # big endian: words are turned
            theirs = data_set[int(tag, 16)].value
            theirs = theirs.encode("utf-8") if isinstance(theirs, str) else theirs
            assert b"".join(both.client.retrieve_bulkdata(uri)).rstrip(b" \0") == theirs.rstrip(b" \0"), (
                one.path,
                tag,
            )
            assert b"".join(both.client.iter_bulkdata(uri)).rstrip(b" \0") == theirs.rstrip(b" \0")
            count += 1
    assert count > 3


# --- Instances and frames ---------------------------------------------------------------------------


def test_studies_as_stored_are_the_files(both):
    """Byte for byte through a socket; and as dicomweb-client reads them."""
    count = 0
    for study, files in both.studies.items():
        if sum(one.path.stat().st_size for one in files) > PIXELS_BYTES_MAX:
            continue
        for one in files:
            request = urllib.request.Request(
                f"{both.client.base_url}/studies/{study}/series/{one.series}/instances/{one.uid}",
                headers={"Accept": "application/dicom; transfer-syntax=*"},
            )
            assert urllib.request.urlopen(request).read() == one.path.read_bytes(), one.path
            count += 1
    assert count > 50
    for study, files in list(both.studies.items())[:10]:
        if any(not one.syntax for one in files):
            continue
        found = {str(one.SOPInstanceUID) for one in both.client.iter_study(study, media_types=AS_STORED)}
        assert {one.uid for one in files} <= found
        found = {
            str(x.SOPInstanceUID) for x in both.client.iter_series(*files[0].uids[:2], media_types=AS_STORED)
        }
        assert files[0].uid in found


def kinds(files: Iterable[Real]) -> dict[tuple[Any, ...], Real]:
    """One small file with pixels for each kind of them."""
    found: dict[tuple[Any, ...], Real] = {}
    for one in sorted(files, key=lambda one: one.path.stat().st_size):
        keywords = (
            "PhotometricInterpretation", "BitsAllocated", "BitsStored", "PixelRepresentation",
            "SamplesPerPixel", "PlanarConfiguration",
        )  # fmt: skip
        frames = one.head.get_item("NumberOfFrames")
        frames = frames is not None and str(frames.value).strip("b' ") not in ("", "None", "1")
        if one.head.get("Rows") and one.path.stat().st_size < PIXELS_BYTES_MAX:
            found.setdefault((one.syntax, frames, *map(one.head.get, keywords)), one)
    return found


def pixels_of(data_set: pydicom.Dataset) -> np.ndarray[Any, Any] | None:
    """None where pydicom can't decode them."""
    try:
        return data_set.pixel_array
    except Exception:  # a file that is broken, or a codec that is not there
        return None


def test_decoded_instances_and_frames_of_every_syntax_have_pydicoms_pixels(both):
    """In Explicit VR Little Endian pydicom reads the same pixels; the frames are the parts of that value."""
    syntaxes, count = set(), 0
    for one in kinds(both.files).values():
        expected = pixels_of(pydicom.dcmread(one.path, force=True))
        if expected is None:
            continue  # and so its Number of Frames is one
        found = both.client.retrieve_instance(*one.uids, media_types=(("application/dicom", EXPLICIT),))
        assert found.file_meta.TransferSyntaxUID == EXPLICIT
        pixels = pixels_of(found)
        assert pixels is not None, one.path
        assert pixels.shape == expected.shape, one.path
        assert pixels.dtype.itemsize == expected.dtype.itemsize, one.path
        difference = np.abs(pixels.astype("f8") - expected.astype("f8")).max()
        assert difference <= (LOSSY_MAX if one.syntax in LOSSY_JPEG else 0), (one.path, difference)
        frames = int(found.get("NumberOfFrames") or 1)
        value = next(found[tag].value for tag in (0x7FE00010, 0x7FE00008, 0x7FE00009) if tag in found)
        bits = found.Rows * found.Columns * found.get("SamplesPerPixel", 1) * found.BitsAllocated
        if found.PhotometricInterpretation == "YBR_FULL_422":
            bits = bits * 2 // 3
        if bits % 8 == 0:
            size = bits // 8
            numbers = sorted({1, frames, (frames + 1) // 2}, reverse=True)
            wanted = [value[(number - 1) * size : number * size] for number in numbers]
            assert both.client.retrieve_instance_frames(*one.uids, numbers) == wanted, one.path
            octets = (("application/octet-stream", EXPLICIT),)
            assert list(both.client.iter_instance_frames(*one.uids, numbers, octets)) == wanted, one.path
        syntaxes.add(one.syntax)
        count += 1
    assert count > 15
    assert len(syntaxes) >= 6


def test_frames_as_stored_are_the_codestreams_that_pydicom_finds(both):
    count = 0
    for one in kinds(both.files).values():
        data_set = pydicom.dcmread(one.path, force=True)
        try:
            if not pydicom.uid.UID(one.syntax).is_encapsulated:
                continue
            frames = int(data_set.get("NumberOfFrames") or 1)
            expected = list(pydicom.encaps.generate_frames(data_set.PixelData, number_of_frames=frames))
        except (ValueError, AttributeError):  # no transfer syntax, no pixels, or broken ones
            continue
        if len(expected) != frames:
            continue  # a video is one codestream of many frames
        stored = (("application/octet-stream", "*"),)
        numbers = sorted({1, frames})
        found = both.client.retrieve_instance_frames(*one.uids, numbers, media_types=stored)
        assert [frame.rstrip(b"\0") for frame in found] == [
            expected[number - 1].rstrip(b"\0") for number in numbers
        ], one.path
        count += 1
    assert count > 10


def test_pictures_have_the_size_of_the_image(both):
    count = 0
    for one in list(kinds(both.files).values())[:40]:
        if pixels_of(pydicom.dcmread(one.path, force=True)) is None or one.syntax == "":
            continue
        picture = Image.open(io.BytesIO(both.client.retrieve_instance_rendered(*one.uids)))
        assert picture.format == "JPEG"
        png = both.client.retrieve_instance_frames_rendered(*one.uids, [1], media_types=("image/png",))
        assert Image.open(io.BytesIO(png)).size == picture.size == (one.head.Columns, one.head.Rows), one.path
        count += 1
    assert count > 10


# --- Storing and deleting ------------------------------------------------------------------------------


def test_data_sets_are_stored_and_come_back_and_go(both, tmp_path):
    """Through the prefixes of the aliases, to the root and to a study."""
    chosen, data_sets = [], []
    for one in both.files:
        if one.syntax and one.path.stat().st_size < 200_000 and len(chosen) < 40:
            data_set = pydicom.dcmread(one.path)
            for tag in [tag for tag in data_set._dict if tag.element == 0]:
                del data_set[tag]  # group lengths, which pydicom does not write
            try:
                data_set.save_as(io.BytesIO(), enforce_file_format=True)
            except Exception:  # broken ones, that pydicom reads and can't write
                continue
            chosen.append(one)
            data_sets.append(data_set)
    assert len(chosen) > 20
    with server(tmp_path / "store", "--allow-delete") as url:
        client = DICOMwebClient(
            url, qido_url_prefix="qidors", wado_url_prefix="wadors", stow_url_prefix="dicom-web",
            delete_url_prefix="dicom-web",
        )  # fmt: skip
        report = client.store_instances(data_sets[:-1])
        assert "FailedSOPSequence" not in report
        assert [str(one.ReferencedSOPInstanceUID) for one in report.ReferencedSOPSequence] == [
            one.uid for one in chosen[:-1]
        ]
        for one, row in zip(chosen, report.ReferencedSOPSequence, strict=False):
            place = f"/studies/{one.study}/series/{one.series}/instances/{one.uid}"
            assert row.RetrieveURL == f"{url}/dicom-web{place}"
        with pytest.raises(HTTPError) as refused:
            client.store_instances(data_sets[-1:], study_instance_uid="2.25.404")
        assert refused.value.response.status_code == 409
        last = client.store_instances(data_sets[-1:], study_instance_uid=chosen[-1].study)
        assert len(last.ReferencedSOPSequence) == 1

        rows = client.search_for_instances(limit=5000)
        assert {row["00080018"]["Value"][0] for row in rows} == {one.uid for one in chosen}
        for one, data_set in zip(chosen, data_sets, strict=True):
            found = client.retrieve_instance(*one.uids, media_types=AS_STORED)
            assert found == data_set, one.path
            assert found.file_meta.TransferSyntaxUID == data_set.file_meta.TransferSyntaxUID

        client.delete_instance(*chosen[0].uids)
        with pytest.raises(HTTPError) as gone:
            client.retrieve_instance(*chosen[0].uids)
        assert gone.value.response.status_code == 404
        client.delete_series(*chosen[-1].uids[:2])
        assert client.search_for_instances(*chosen[-1].uids[:2]) == []
        for study in {row["0020000D"]["Value"][0] for row in client.search_for_studies(limit=5000)}:
            client.delete_study(study)
        assert client.search_for_studies() == []
        with pytest.raises(HTTPError) as gone:
            client.delete_study(chosen[1].study)
        assert gone.value.response.status_code == 404


def test_a_server_that_deletes_nothing_says_so_to_the_client(tmp_path):
    with server(tmp_path / "store") as url:
        client = DICOMwebClient(f"{url}/dicom-web")
        client.store_instances([pydicom.dcmread(io.BytesIO(make_object("2.25.1", "2.25.2", "2.25.3")))])
        with pytest.raises(HTTPError) as refused:
            client.delete_study("2.25.2")
        assert refused.value.response.status_code == 403
        assert len(client.search_for_studies()) == 1
