"""What DCMTK and dicom3tools read in the sample files, against what Hilum says of them.

What may differ stands in DIFFERS, with the reason. A file that a peer can't read is no comparison; each test
says how many there must have been at least.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pydicom
import pytest

import hilum
from hilum.dicom import dictionary

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore::UserWarning:pydicom")]

# Keyword by level. Names and free text are left to the tests of character sets: dcmdump prints bytes.
COMPARED = {
    "patients": ["PatientID", "PatientBirthDate", "PatientSex"],
    "studies": ["StudyInstanceUID", "StudyDate", "StudyTime", "AccessionNumber", "StudyID", "PatientSize"],
    "series": ["SeriesInstanceUID", "Modality", "SeriesNumber", "SeriesDate", "SeriesTime"],
    "instances": [
        "SOPInstanceUID", "SOPClassUID", "InstanceNumber", "ImageType", "InstanceCreationDate",
        "AcquisitionDate", "ContentDate", "ContentTime", "Rows", "Columns", "NumberOfFrames", "BitsAllocated",
        "BitsStored", "HighBit", "SamplesPerPixel", "PhotometricInterpretation", "PixelRepresentation",
    ],
}  # fmt: skip
TAG_OF = {keyword: dictionary.tag_of(keyword) for keywords in COMPARED.values() for keyword in keywords}
NUMBERS = {
    "IS": float, "DS": float, "US": float, "SS": float, "UL": float, "SL": float, "FL": float, "FD": float,
}  # fmt: skip

# Name of a file → why Hilum and a peer may differ over it.
DIFFERS = {
    "TC1157_sq_item_huge_len.dcm": "an item longer than its sequence: DCMTK takes all that follows into it",
    "RG3_JPLY": "10 bits are stored, and 8 pixels of the lossy codestream are 1024: DCMTK keeps them so",
}

_LINE = re.compile(r"^\(([0-9a-f]{4}),([0-9a-f]{4})\) ([A-Za-z?]{2}) (.*?) +#\s+\d+,\s*\d+ \S+$")


def _hilum(*words: str | Path) -> str:
    command = [sys.executable, "-m", "hilum", *map(str, words)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _rows(store: Path, level: str) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in _hilum("find", level, "--json", "--store", store).splitlines()]


def _dump(dcmdump: str, path: Path) -> dict[int, tuple[str, list[str]]] | None:
    """tag → (VR, values) of what stands at top level; None where dcmdump reads no data set."""
    prints = [word for tag in TAG_OF.values() for word in ("+P", f"{tag >> 16:04x},{tag & 0xFFFF:04x}")]
    command = [dcmdump, "-q", "-Un", "+uc", "+L", "+p", *prints, str(path)]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        return None
    found = {}
    for line in done.stdout.decode("latin-1").splitlines():
        match = _LINE.match(line)  # what is inside a sequence begins with the path to it
        if match is None:
            continue
        tag, text = int(match[1] + match[2], 16), match[4]
        if text == "(no value available)":
            values = []
        else:
            values = (text[1:-1] if text.startswith("[") else text).split("\\")
        found[tag] = match[3], values
    return found or None


def _normal(vr: str, values: list[Any]) -> list[Any]:
    """Values without padding, numbers as numbers; [] where there is nothing but padding."""
    found: list[Any] = []
    for value in values:
        text = "" if value is None else str(value).strip(" \0")
        if vr == "UI":
            text = text.replace(" ", "")  # DCMTK leaves the spaces of "REM SAMPLES 1" out
        try:
            found.append(float(text) if vr in NUMBERS and text else text)
        except ValueError:
            found.append(text)
    while found and found[-1] == "":
        found.pop()
    return found


@pytest.fixture(scope="module")
def dumps(stored, program) -> dict[str, dict[int, tuple[str, list[str]]]]:
    """What dcmdump reads of each stored file, by SOP Instance UID."""
    dcmdump = program("dcmdump")
    samples = [sample for sample in stored.samples if sample.path.name not in DIFFERS]
    found = {sample.uid: _dump(dcmdump, sample.path) for sample in samples}
    return {uid: dump for uid, dump in found.items() if dump is not None}


def _compare(row: dict[str, Any], level: str, dump: dict[int, tuple[str, list[str]]]) -> Iterator[str]:
    for keyword in COMPARED[level]:
        tag = TAG_OF[keyword]
        element = row.get(f"{tag:08X}", {})
        vr, theirs = dump.get(tag, (element.get("vr", ""), []))
        vr = vr if vr in NUMBERS else element.get("vr", vr)
        if _normal(vr, element.get("Value", [])) != _normal(vr, theirs):
            yield f"{keyword}: {element.get('Value')} here, {theirs} there"


def test_find_says_of_each_instance_what_dcmdump_reads(stored, dumps):
    differing = {}
    for row in _rows(stored.folder, "instances"):
        uid = row["00080018"]["Value"][0]
        if uid in dumps and (found := list(_compare(row, "instances", dumps[uid]))):
            differing[uid] = found

    assert differing == {}
    assert len(dumps) > 0.95 * len(stored.samples)


@pytest.mark.parametrize("level", ["series", "studies", "patients"])
def test_find_says_of_each_level_what_dcmdump_reads_in_its_donor(stored, dumps, level):
    # The donor is the instance with the smallest SOP Instance UID: the first of those that are sorted so.
    donors: dict[tuple[str, ...], str] = {}
    with hilum.open(stored.folder, read_only=True) as store:
        for row in store.find(level):
            wanted = {"series": "SeriesInstanceUID", "studies": "StudyInstanceUID"}.get(level)
            keys = {wanted: row.uid} if wanted else None
            if keys is None:
                uids = [one.uid for one in store.find("instances", {"PatientID": row.uid})] if row.uid else []
            else:
                uids = [uid.decode() for uid in store.find_uids(level, keys)]
            if uids:
                donors[(row.uid,)] = min(uids, key=str.encode)
    unique = {"series": "0020000E", "studies": "0020000D", "patients": "00100020"}[level]
    differing = {}
    compared = 0
    for row in _rows(stored.folder, level):
        name = "".join(row.get(unique, {}).get("Value", [""])[:1])
        donor = donors.get((name,))
        if donor in dumps:
            compared += 1
            if found := list(_compare(row, level, dumps[donor])):
                differing[name, donor] = found

    assert differing == {}
    assert compared > 0.9 * len(donors)


def test_dicom3tools_reads_the_same_uids(stored, program):
    dckey = program("dckey")
    differing, compared = {}, 0
    with hilum.open(stored.folder, read_only=True) as store:
        rows = {row.uid: row for row in store.find("instances")}
    for sample in stored.samples[::5]:
        command = [dckey, "-k", "SOPInstanceUID", "-k", "StudyInstanceUID", "-k", "SeriesInstanceUID"]
        done = subprocess.run([*command, str(sample.path)], capture_output=True, check=False)
        theirs = [line.strip("\0 ") for line in done.stderr.decode("latin-1").splitlines()]
        theirs += [line.strip("\0 ") for line in done.stdout.decode("latin-1").splitlines()]
        theirs = [line for line in theirs if re.fullmatch(r"[0-9.]+", line)]
        if done.returncode or len(theirs) != 3:
            continue
        compared += 1
        row = rows[sample.uid]
        ours = [row.text(TAG_OF[key]) for key in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")]
        if sorted(ours) != sorted(theirs):
            differing[str(sample.path)] = ours, theirs

    assert differing == {}
    assert compared > 0.7 * len(stored.samples[::5])


# --- Files -----------------------------------------------------------------------


def test_exported_files_are_those_that_came_in_and_dcmftest_says_the_same_of_them(stored, program, tmp_path):
    dcmftest = program("dcmftest")
    _hilum("export", tmp_path, "--store", stored.folder)
    exported = {}
    for path in tmp_path.rglob("*.dcm"):
        exported[path.read_bytes()] = path
    assert len(exported) == len(stored.samples)

    verdicts = []
    for paths in (
        [sample.path for sample in stored.samples],
        [exported[sample.path.read_bytes()] for sample in stored.samples],
    ):
        done = subprocess.run([dcmftest, *map(str, paths)], capture_output=True, text=True, check=False)
        verdicts.append([line.split(":")[0] for line in done.stdout.splitlines()])
    before, after = verdicts
    assert len(before) == len(stored.samples)
    assert before == after
    assert before.count("yes") > len(before) // 2


# --- Frames ------------------------------------------------------------------------

RLE = ["1.2.840.10008.1.2.5"]
JPEG_LOSSLESS = ["1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70"]
JPEG_LOSSY = [f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 53, 55)]
JPEG_LS = ["1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81"]

# Decoder, its options, transfer syntaxes, the largest difference of a sample. Lossy JPEG leaves the
# arithmetic of the inverse DCT and of upsampling to the decoder, PS3.5 8.2.1 (JPEG Image Compression): its
# colour is not compared.
DECODERS = {
    "dcmdrle": ("dcmdrle", [], RLE, 0),
    "dcmdjpeg, lossless": ("dcmdjpeg", ["+cn"], JPEG_LOSSLESS, 0),
    "dcmdjpeg, lossy": ("dcmdjpeg", ["+cn"], JPEG_LOSSY, 2),
    "dcmdjpls": ("dcmdjpls", [], JPEG_LS, 0),
}


def _native(path: Path) -> np.ndarray[Any, Any]:
    """Samples of a native file, frame by frame, read without any of Hilum's code."""
    dataset = pydicom.dcmread(path)
    rows, columns = dataset.Rows, dataset.Columns
    samples, frames = dataset.SamplesPerPixel, int(dataset.get("NumberOfFrames", 1) or 1)
    kind = "i" if dataset.PixelRepresentation else "u"
    array = np.frombuffer(dataset.PixelData, f"<{kind}{dataset.BitsAllocated // 8}")
    array = array[: rows * columns * samples * frames]
    if samples == 1:
        return array.reshape(frames, rows, columns)
    if dataset.get("PlanarConfiguration", 0):
        return array.reshape(frames, samples, rows, columns).transpose(0, 2, 3, 1)
    return array.reshape(frames, rows, columns, samples)


@pytest.mark.parametrize("decoder", DECODERS)
def test_frames_are_those_that_dcmtk_decodes(stored, program, decoder, tmp_path, record_property):
    name, options, syntaxes, tolerance = DECODERS[decoder]
    differing: dict[str, str] = {}
    compared = candidates = 0
    with hilum.open(stored.folder, read_only=True) as store:
        for sample in stored.samples:
            instance = store.locate(sample.uid).instance
            if instance.transfer_syntax.decode() not in syntaxes or not instance.pixel_tag:
                continue
            layout = store.frames(sample.uid).layout
            if layout.samples_per_pixel > 1 and (tolerance or layout.photometric != "RGB"):
                continue
            candidates += 1
            out = tmp_path / "native.dcm"
            command = [program(name), *options, str(sample.path), str(out)]
            if subprocess.run(command, capture_output=True, check=False).returncode:
                continue
            theirs = _native(out)
            compared += 1
            for index in range(len(theirs)):
                ours = store.frame(sample.uid, index)
                if ours.shape != theirs[index].shape:
                    differing[str(sample.path)] = f"{ours.shape} here, {theirs[index].shape} there"
                    break
                distance = np.abs(ours.astype(np.int64) - theirs[index].astype(np.int64)).max()
                if distance > tolerance and sample.path.name not in DIFFERS:
                    differing[str(sample.path)] = f"frame {index + 1} differs by {distance}"
                    break

    record_property("compared", compared)
    assert differing == {}
    assert compared >= candidates // 2


def test_stored_frames_are_the_fragments_that_dcmdump_writes(stored, program, tmp_path):
    dcmdump = program("dcmdump")
    differing, compared = {}, 0
    with hilum.open(stored.folder, read_only=True) as store:
        for sample in stored.samples:
            instance = store.locate(sample.uid).instance
            if not instance.pixel_tag or not instance.transfer_syntax.startswith(b"1.2.840.10008.1.2.4."):
                continue
            out = tmp_path / sample.uid
            out.mkdir()
            command = [dcmdump, "-q", "+W", str(out), str(sample.path)]
            if subprocess.run(command, capture_output=True, check=False).returncode:
                continue
            fragments = sorted(out.iterdir(), key=lambda path: int(path.suffixes[-2][1:]))[
                1:
            ]  # [0]: offset table
            reader = store.frames(sample.uid)
            if len(fragments) != reader.frame_count:
                continue
            compared += 1
            for index, path in enumerate(fragments):
                if reader.read(index) != path.read_bytes():
                    differing[str(sample.path)] = f"frame {index + 1}"
                    break

    assert differing == {}
    assert compared > 0
