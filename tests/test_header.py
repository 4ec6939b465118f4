"""header.parse: every sample file against pydicom; broken, deflated and huge files; data sets at random.

The lists below are the whole of what Hilum and pydicom read differently in some 2,000 files. An entry that is
no longer needed fails the test as well as one that is missing.
"""

from __future__ import annotations

import io
import logging
import os
import random
import subprocess
import sys
import time
import warnings
import zlib
from pathlib import Path
from struct import pack

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.multival import MultiValue
from pydicom.valuerep import DSfloat, ISfloat

from hilum import _fastparse as fast
from hilum.engine import header, prepare, record
from hilum.errors import BadDicom, Corrupt, NotDicom

UNDEFINED = 0xFFFFFFFF
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
EXPLICIT, IMPLICIT, BIG = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.2"
JPEG, DEFLATE = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.1.99"
LONG = ("OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV")
NUMBERS = ("US", "SS", "UL", "SL", "UV", "SV", "FL", "FD", "AT")
TEXTS = ("AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI", "UR", "UT")


def _fuzzed(version: int, *names: str) -> tuple[str, ...]:
    return tuple(f"fuzz-corpus/fuzz_corpus_v{version}/{name}.dcm" for name in names)


# What we refuse and pydicom reads, at least in part. A malformed length or nesting is final with us.
REFUSED = {
    "cut inside of a sequence: what is behind the cut is lost, and nothing marks where it was": (
        "pydicom/src/pydicom/data/test_files/rtplan_truncated.dcm",
        "pydicom:rtplan_truncated.dcm",
    ),
    "the last value, outside of the pixels, is shorter than its length": (
        *_fuzzed(2, "cat06_private_tags/TC0363_tag_order_violation"),
        *_fuzzed(2, "cat08_string_encoding/TC0405_latin1_utf8_payload"),
        *_fuzzed(3, "cat20_cve_dcmtk_dimse_segfault/TC0969_midvalue_truncation"),
    ),
    "an item or a delimiter outside of any sequence; pydicom drops what follows": (
        *_fuzzed(2, "cat06_private_tags/TC0357_stray_item_tag", "cat06_private_tags/TC0359_stray_item_delim"),
        *_fuzzed(3, "cat06_private_tags/TC0357_stray_item_tag", "cat06_private_tags/TC0359_stray_item_delim"),
    ),
    "a length in the File Meta Information that leads out of the file": (
        *_fuzzed(3, "cat10_cve_2026_3650/TC0677_meta_ts_vr_0000_len_64KB"),
        *_fuzzed(3, "cat10_cve_2026_3650/TC0679_meta_ts_vr_0000_len_1MB"),
        *_fuzzed(3, "cat10_cve_2026_3650/TC0681_meta_ts_vr_0000_len_1GB_declared"),
        *_fuzzed(2, "cat07_file_meta/TC0387_dicm_offset64"),
    ),
    "the deflated bytes are no data set": _fuzzed(3, "cat05_transfer_syntax/TC0345_deflate_corrupt"),
    "no DICOM at all: asked to, pydicom reads a few elements out of anything": (
        *_fuzzed(2, "cat07_file_meta/TC0385_dicm_offset0"),
        "pydicom:README.txt",
        "pydicom:crayons.icc",
        "pydicom:dicomdirtests/README.txt",
        "pydicom:dicomdirtests/TINY_ALPHA/README",
        "pydicom:rtplan.dump",
        "pydicom:rtstruct.dump",
        "pydicom:test1.json",
        "pydicom:test_PN.json",
        "pydicom:zipMR.gz",
    ),
    "one byte stands before the first element; pydicom reads nonsense from there on": (
        "pydicom:no_meta.dcm",
    ),
}

_META = "cat10_cve_2026_3650/TC0"
# What we read and pydicom refuses, or loses all of.
READ_ON = {
    "an unknown VR in the File Meta Information, with a length that leads on": (
        *_fuzzed(2, *(f"{_META}{n}" for n in ("475_meta_0001_vr_5a5a", "477_meta_0001_vr_5858"))),
        *_fuzzed(2, *(f"{_META}{n}" for n in ("563_meta_0010_vr_4141", "565_meta_0010_vr_4242"))),
        *_fuzzed(2, *(f"{_META}{n}" for n in ("645_meta_ALL_vr_5858", "647_meta_ALL_vr_4141"))),
        *_fuzzed(2, *(f"{_META}{n}" for n in ("651_meta_ALL_vr_5151", "697_meta_mixed_even_vr_ZZ"))),
        *_fuzzed(3, *(f"{_META}{n}" for n in ("479_meta_0001_vr_4141", "483_meta_0001_vr_5151"))),
        *_fuzzed(3, *(f"{_META}{n}" for n in ("559_meta_0010_vr_5a5a", "563_meta_0010_vr_4141"))),
        *_fuzzed(3, *(f"{_META}{n}" for n in ("645_meta_ALL_vr_5858", "647_meta_ALL_vr_4141"))),
        *_fuzzed(3, *(f"{_META}{n}" for n in ("651_meta_ALL_vr_5151", "695_meta_mixed_odd_vr_ZZ"))),
    ),
    "encapsulated pixels without an end: we mark them, pydicom gives up the whole data set": (
        *_fuzzed(3, "cat11_cve_2025_11266/TC0727_encap_no_delim"),
        "pydicom-data/data_store/data/emri_small_jpeg_2k_lossless_too_short.dcm",
    ),
}

_LONG = "cat22_cve_meddream_stack_overflow/TC1"
# Read by both; but a value of more than 8 KiB, or 32 KiB in all, is left in the head.
LEFT_IN_HEAD = {
    "a value longer than the index holds": (
        *_fuzzed(3, "cat13_cve_microdicom/TC0783_institutionname_16384"),
        *_fuzzed(3, "cat13_cve_microdicom/TC0797_studydescription_16384"),
        *_fuzzed(3, "cat13_cve_microdicom/TC0811_patientid_16384"),
        *_fuzzed(3, *(f"{_LONG}{n}" for n in ("007_patientname_32768", "023_patientid_16384"))),
        *_fuzzed(3, *(f"{_LONG}{n}" for n in ("025_patientid_32768", "059_studydescription_16384"))),
        *_fuzzed(3, *(f"{_LONG}{n}" for n in ("061_studydescription_32768", "131_studyid_16384"))),
        *_fuzzed(3, *(f"{_LONG}{n}" for n in ("095_referringphysicianname_16384", "137_all_tags_4096"))),
    ),
}

# Sample files that only pydicom could read, with the reason: none so far.
BY_PYDICOM: dict[str, tuple[str, ...]] = {}

PIXELS_CUT = {
    "native": (
        "pydicom/src/pydicom/data/test_files/MR_truncated.dcm",
        "pydicom:MR_truncated.dcm",
    ),
    "encapsulated": (
        *_fuzzed(3, "cat11_cve_2025_11266/TC0713_encap_frag_len_2gb"),
        *_fuzzed(3, "cat11_cve_2025_11266/TC0719_encap_frag_len_64_data_1"),
        *_fuzzed(3, "cat11_cve_2025_11266/TC0723_encap_wrapping_lengths"),
        *READ_ON["encapsulated pixels without an end: we mark them, pydicom gives up the whole data set"],
    ),
}


def _listed(lists: dict[str, tuple[str, ...]], files: dict[str, Path]) -> set[str]:
    """The entries that belong to this corpus; a file that is listed and not there fails here."""
    own = "pydicom:" if any(name.startswith("pydicom:") for name in files) else ""
    names = {name for group in lists.values() for name in group}
    names = {name for name in names if name.startswith("pydicom:") == bool(own)}
    assert names <= set(files)
    return names


@pytest.fixture(autouse=True)
def _without_pydicoms_complaints(caplog):
    caplog.set_level(logging.CRITICAL, "pydicom")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# --- Made bytes ------------------------------------------------------------------


def explicit(tag: int, vr: str, value: bytes = b"", *, length: int | None = None, order: str = "<") -> bytes:
    length = len(value) if length is None else length
    head = pack(f"{order}HH", tag >> 16, tag & 0xFFFF) + vr.encode()
    return head + (pack(f"{order}HI", 0, length) if vr in LONG else pack(f"{order}H", length)) + value


def implicit(tag: int, value: bytes = b"", *, length: int | None = None, order: str = "<") -> bytes:
    return pack(f"{order}HHI", tag >> 16, tag & 0xFFFF, len(value) if length is None else length) + value


def meta(syntax: str) -> bytes:
    return bytes(128) + b"DICM" + explicit(0x00020010, "UI", syntax.encode() + b"\0" * (len(syntax) % 2))


UIDS = (
    explicit(0x00080018, "UI", b"2.25.3")
    + explicit(0x00100010, "PN", b"Doe^Jane")
    + explicit(0x0020000D, "UI", b"2.25.1")
    + explicit(0x0020000E, "UI", b"2.25.2")
)
IMPLICIT_UIDS = (
    implicit(0x00080018, b"2.25.3") + implicit(0x0020000D, b"2.25.1") + implicit(0x0020000E, b"2.25.2")
)
OPEN_ITEM, ITEM_ENDS, SEQUENCE_ENDS = (
    implicit(ITEM, length=UNDEFINED),
    implicit(ITEM_END),
    implicit(SEQUENCE_END),
)


def deflated(data_set: bytes) -> bytes:
    engine = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return meta(DEFLATE) + engine.compress(data_set) + engine.flush()


def exact(parsed: header.Parsed) -> tuple[object, ...]:
    """All of Parsed but the scan, which is no value."""
    return (*parsed[:10], parsed.inflated)


def parsed_by_descriptor(data: bytes, path: Path) -> header.Parsed:
    path.write_bytes(data)
    with path.open("rb") as file:
        return header.parse_fd(file.fileno(), len(data))


def stored_head(data: bytes) -> record.Head:
    return record.unpack_head(prepare.prepare(memoryview(data)).payload)


# --- Against pydicom -----------------------------------------------------------


def _plain(vr: str, value: object) -> object:
    if isinstance(value, DSfloat | ISfloat):
        return float(value)
    if value is None or isinstance(value, float):
        return value
    if isinstance(value, int):
        return int(value)
    text = str(value)
    return (text.strip() if vr in ("DS", "IS") else text) or None


def _values_by_pydicom(dataset: pydicom.Dataset, tag: int) -> list[object]:
    if tag not in dataset:
        return []
    element = dataset[tag]
    if element.VR not in NUMBERS and element.VR not in TEXTS:
        return []
    if isinstance(element.value, MultiValue | list):
        return [_plain(element.VR, value) for value in element.value]
    plain = _plain(element.VR, element.value)
    return [] if plain is None else [plain]


def _all_by_pydicom(data: bytes) -> list[object] | None:
    """pydicom's values of each indexed tag by number; None where it refuses, or has no element at all."""
    try:
        dataset = pydicom.dcmread(io.BytesIO(data), force=True)
    except Exception:  # it raises what it likes
        return None
    if not len(dataset):
        return None
    found: list[object] = []
    for tag, _, _, nested in fast.wanted():
        try:
            if nested:
                items = dataset[0x00400275].value if 0x00400275 in dataset else ()
                found.append([value for item in items for value in _values_by_pydicom(item, tag)])
            else:
                found.append(_values_by_pydicom(dataset, tag))
        except Exception:
            found.append("refused")
    return found


def _all_by_us(data: bytes) -> list[object] | None:
    """The same out of the parser's entries; None where it refuses the bytes (not for the lack of a UID)."""
    status, scan = fast.scan(data)
    try:
        parsed = header.parse(data)
        upper, own = parsed.upper, parsed.own
    except (BadDicom, NotDicom):
        if status != fast.STATUS_DONE:
            return None
        upper, own = scan.upper, scan.own
    found: list[object] = []
    for number, level in enumerate(record.LEVEL_OF):
        try:
            found.append(record.values_of(own if level == record.INSTANCE else upper, number))
        except record.LeftInHead:
            found.append("left in the head")
        except BadDicom:
            found.append("refused")
    return found


def test_every_sample_file_has_the_values_that_pydicom_finds_or_stands_in_a_list(sample_files):
    refused, read_on, left, different = set(), set(), set(), []
    count = 0
    for name, path in sample_files.items():
        data = path.read_bytes()
        ours, theirs = _all_by_us(data), _all_by_pydicom(data)
        if ours is None:
            if theirs is not None:
                refused.add(name)
        elif theirs is None:
            if any(ours):
                read_on.add(name)
        else:
            count += 1
            for number, (our, their) in enumerate(zip(ours, theirs, strict=True)):
                if our == "left in the head":
                    left.add(name)
                elif repr(our) != repr(their):  # by repr: NaN equals NaN there, and 1 is not 1.0
                    different.append(f"{name} {record.TAG_OF[number]:08X}: {our!r} is not {their!r}")
    assert different == []
    assert refused == _listed(REFUSED, sample_files)
    assert read_on == _listed(READ_ON, sample_files)
    assert left == _listed(LEFT_IN_HEAD, sample_files)
    assert count > 0.9 * len(sample_files)


def test_fewer_than_one_sample_file_in_a_hundred_needs_pydicom(sample_files):
    by_pydicom, read = set(), 0
    for name, path in sample_files.items():
        try:
            parsed = header.parse(path.read_bytes())
        except (BadDicom, NotDicom):
            continue
        read += 1
        if parsed.flags & record.BY_PYDICOM:
            by_pydicom.add(name)
    assert by_pydicom == _listed(BY_PYDICOM, sample_files)
    assert len(by_pydicom) < read / 100


def test_a_sample_file_is_parsed_alike_in_memory_by_descriptor_and_out_of_its_stored_head(sample_files):
    count = 0
    for name, path in sample_files.items():
        data = path.read_bytes()
        try:
            parsed = header.parse(data)
        except (BadDicom, NotDicom) as failure:
            refusal = failure
        else:
            refusal = None
        if refusal is not None:
            with path.open("rb") as file, pytest.raises(type(refusal)) as again:
                header.parse_fd(file.fileno(), len(data))
            assert str(again.value) == str(refusal), name
            continue
        count += 1
        with path.open("rb") as file:
            assert exact(header.parse_fd(file.fileno(), len(data))) == exact(parsed), name
        assert exact(header.parse_head(stored_head(data))) == exact(parsed), name
    assert count > 0.5 * len(sample_files)


def test_the_sample_files_whose_pixels_are_cut_are_marked_and_no_others(sample_files):
    cut = set()
    for name, path in sample_files.items():
        try:
            parsed = header.parse(path.read_bytes())
        except (BadDicom, NotDicom):
            continue
        if parsed.flags & record.TRUNCATED:
            cut.add(name)
            assert parsed.pixels is not None
            assert parsed.pixels[1] + parsed.pixels[2] == path.stat().st_size, name
    assert cut == _listed(PIXELS_CUT, sample_files)


# --- Broken in the pixels only ----------------------------------------------------

FRAGMENTS = explicit(0x7FE00010, "OB", length=UNDEFINED) + implicit(ITEM) + implicit(ITEM, b"\xff\xd8" * 700)


@pytest.mark.parametrize(
    ("syntax", "pixels", "encapsulated"),
    [
        (EXPLICIT, explicit(0x7FE00010, "OW", bytes(3000), length=5000), False),
        (EXPLICIT, explicit(0x7FE00010, "OW", b"", length=2**32 - 2), False),
        (EXPLICIT, explicit(0x7FE00008, "OF", bytes(3000), length=5000), False),
        (JPEG, FRAGMENTS, True),  # no delimiter
        (JPEG, FRAGMENTS[:-100], True),  # the last fragment is cut
        (JPEG, FRAGMENTS + b"\xfe\xff\x00\xe0\x10", True),  # so is an item's header
        (JPEG, FRAGMENTS + implicit(ITEM, length=UNDEFINED), True),
        (JPEG, FRAGMENTS + explicit(0x00100010, "PN", b"no item "), True),
        (JPEG, explicit(0x7FE00010, "OB", length=UNDEFINED), True),  # not even an offset table
    ],
)
def test_a_file_broken_in_its_pixels_only_is_parsed_and_marked(syntax, pixels, encapsulated, tmp_path):
    data = meta(syntax) + UIDS + pixels
    parsed = header.parse(data)
    assert parsed.flags & record.TRUNCATED
    assert bool(parsed.flags & record.ENCAPSULATED) == encapsulated
    assert (parsed.study, parsed.series, parsed.uid) == (b"2.25.1", b"2.25.2", b"2.25.3")
    assert parsed.pixels is not None
    assert parsed.pixels[1] + parsed.pixels[2] == len(data)
    assert exact(parsed_by_descriptor(data, tmp_path / "file")) == exact(parsed)
    assert exact(header.parse_head(stored_head(data))) == exact(parsed)


def test_a_file_cut_before_its_pixels_is_refused_with_the_place_and_the_tag():
    data = meta(EXPLICIT) + UIDS
    with pytest.raises(BadDicom) as failure:
        header.parse(data[:-2])
    assert failure.value.offset == len(data) - len(explicit(0x0020000E, "UI", b"2.25.2"))
    assert failure.value.tag == 0x0020000E


@pytest.mark.parametrize(
    ("uid", "why"), [(b"", "there is no SOP"), (b"../../pwned ", "is no UID"), (b"1." * 70, "is no UID")]
)
def test_an_object_without_a_usable_uid_is_not_storable(uid, why):
    data = (
        meta(EXPLICIT) + explicit(0x00080018, "UI", uid) + UIDS[len(explicit(0x00080018, "UI", b"2.25.3")) :]
    )
    with pytest.raises(BadDicom, match=why):
        header.parse(data)


def test_every_status_that_a_scan_can_end_in_has_a_reason():
    asked_elsewhere = {fast.STATUS_DONE, fast.STATUS_NEED, fast.STATUS_DEFLATED, fast.STATUS_NOT_DICOM}
    assert set(header.REASON_OF) | set(header.FALLBACK_REASONS) | asked_elsewhere == set(range(12))


# --- Huge and hostile -------------------------------------------------------------

SCRIPT = """
import resource, sys
from hilum.engine import header, prepare
from hilum.errors import BadDicom
path, how, size = sys.argv[1], sys.argv[2], int(sys.argv[3])

def chars_read():
    with open("/proc/self/io") as file:
        return int(file.readline().split()[1])

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10

def no_sink(*blob):
    raise SystemExit("a blob was begun")

with open(path, "rb") as file:
    data = file.read() if how == "parse" else b""
    memory, begun = peak(), chars_read()
    overhead = chars_read() - begun
    try:
        if how == "parse":
            answer = header.parse(data)
        elif how == "parse_fd":
            answer = header.parse_fd(file.fileno(), size)
        else:
            answer = prepare.prepare_file(file.fileno(), size, make_sink=no_sink, append=no_sink)
        answer = "parsed"
    except BadDicom as failure:
        answer = failure.reason
    print(chars_read() - begun - 2 * overhead, peak() - memory, answer, sep=";")
"""


def _measured(path: Path, how: str, size: int) -> tuple[int, int, str]:
    """(bytes read, growth of the peak of memory, answer) of one call in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(path), how, str(size)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        check=True,
        text=True,
    )
    read, grown, answer = done.stdout.strip().split(";")
    return int(read), int(grown), answer


def test_the_scan_of_a_5_gb_file_reads_less_than_64_kib_and_takes_no_memory(tmp_path):
    path = tmp_path / "sparse"
    private = explicit(0x00091010, "OB", length=2**32 - 2)  # a value of 4 GiB, and then a GiB of pixels
    pixels = explicit(0x7FE00010, "OW", length=1 << 30)
    with path.open("wb") as file:
        file.write(meta(EXPLICIT) + UIDS + private)
        file.seek(2**32 - 2, io.SEEK_CUR)
        file.write(pixels)
        size = file.tell() + (1 << 30)
        file.truncate(size)
    assert size > 5 * 10**9
    read, grown, answer = _measured(path, "parse_fd", size)
    assert answer == "parsed"
    assert read < 64 << 10
    assert grown < 4 << 20


@pytest.mark.parametrize("how", ["parse", "parse_fd", "prepare_file"])
def test_a_head_of_200_mb_is_refused_in_bounded_memory(how, tmp_path):
    path = tmp_path / "long"
    value = explicit(0x00091010, "UN", bytes(60_000))
    with path.open("wb") as file:
        file.write(meta(EXPLICIT) + UIDS)
        for _ in range(3500):
            file.write(value)
        size = file.tell()
    assert size > 200 * 10**6
    read, grown, answer = _measured(path, how, size)
    assert answer == "more than 67108864 bytes outside of bulk values"
    assert read < 70 << 20
    assert grown < 8 << 20


@pytest.mark.parametrize("length", [UNDEFINED, 0xFFFFFFFE])
def test_a_sequence_of_4_gib_of_nothing_is_refused_at_once(length, tmp_path):
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.write(
            meta(EXPLICIT) + explicit(0x00081140, "SQ", length=length) + implicit(ITEM, length=UNDEFINED)
        )
        size = file.tell() + 2**32
        file.truncate(size)
    _, grown, answer = _measured(path, "parse_fd", size)
    assert answer != "parsed"
    assert grown < 4 << 20


def test_nesting_100_000_deep_is_refused_or_stepped_over_by_parse():
    undefined = (explicit(0x00081140, "SQ", length=UNDEFINED) + OPEN_ITEM) * 100_000
    with pytest.raises(BadDicom, match="nested too deep"):
        header.parse(meta(EXPLICIT) + UIDS + undefined)
    known = explicit(0x00400275, "SQ", implicit(ITEM, undefined))
    assert header.parse(meta(EXPLICIT) + UIDS + known).uid == b"2.25.3"


def test_a_stored_head_that_can_not_be_scanned_is_corrupt():
    head = stored_head(meta(EXPLICIT) + UIDS + explicit(0x7FE00010, "OW", bytes(2000)))
    for broken in (
        head._replace(head=head.head[:-20]),
        head._replace(head=b""),
        head._replace(holes=[]),
        head._replace(holes=[head.holes[0]._replace(length=2**64 - 1)]),
        head._replace(holes=[head.holes[0]._replace(offset=140, length=2**63)]),
        head._replace(head=b"something else", flags=head.flags | record.BY_PYDICOM),
        stored_head(deflated(UIDS))._replace(flags=record.PART10),
        stored_head(deflated(UIDS))._replace(inflated=UIDS[:-1]),
    ):
        with pytest.raises(Corrupt):
            header.parse_head(broken)


# --- Deflated ----------------------------------------------------------------------


def icon(broken: bytes) -> bytes:
    """A sequence of known length with a bulk value in it, and then `broken`."""
    return explicit(
        0x00880200, "SQ", implicit(ITEM, explicit(0x00091010, "OB", bytes(range(256)) * 300) + broken)
    )


DEFLATED = {
    "small": UIDS,
    "native": UIDS + explicit(0x7FE00010, "OW", bytes(1_000_000)),
    "a bulk value in a sequence": UIDS + icon(b"") + explicit(0x7FE00010, "OW", bytes(5000)),
    "a bulk value in a sequence that is stepped over": UIDS
    + icon(b"\1\2\3")
    + explicit(0x0088FFFF, "LO", b"x "),
    "many bulk values": UIDS + explicit(0x00880201, "OB", random.Random(1).randbytes(70_000)) * 40,
    "a value over the edge of a piece": UIDS
    + explicit(0x00090010, "UN", bytes(60_000)) * 8
    + explicit(0x00104000, "UT", b"text"),
    "pixels cut": UIDS + explicit(0x7FE00010, "OW", bytes(600_000), length=2_000_000),
    "fragments": UIDS + FRAGMENTS + SEQUENCE_ENDS,
    "fragments cut": UIDS + FRAGMENTS[:-7],
}


@pytest.mark.parametrize("name", DEFLATED)
def test_a_deflated_data_set_parses_as_the_inflated_one(name, tmp_path):
    data_set = DEFLATED[name]
    data = deflated(data_set)
    start = len(meta(EXPLICIT))
    plain, parsed = header.parse(meta(EXPLICIT) + data_set), header.parse(data)
    assert (parsed.upper, parsed.own, parsed.uid) == (plain.upper, plain.own, plain.uid)
    assert parsed.flags == plain.flags | record.DEFLATED
    assert parsed.inflated is not None
    assert parsed.inflated.holes == [(offset - start, length, tag) for offset, length, tag in plain.holes]
    if plain.pixels is not None:
        assert parsed.pixels == (plain.pixels[0], plain.pixels[1] - start, *plain.pixels[2:])
    head, at = b"", 0
    for offset, length, _ in parsed.inflated.holes:
        head, at = head + data_set[at:offset], offset + length
    assert parsed.inflated.head == head + data_set[at:]
    assert exact(parsed_by_descriptor(data, tmp_path / "file")) == exact(parsed)
    assert exact(header.parse_head(stored_head(data))) == exact(parsed)


@pytest.mark.parametrize("value", [b"", b"AE"])
def test_a_deflated_file_whose_meta_ends_with_an_empty_element_is_read_again_from_its_head(value):
    plain = deflated(UIDS + explicit(0x7FE00010, "OW", bytes(5000)))
    begin = len(meta(DEFLATE))
    data = plain[:begin] + explicit(0x00020016, "AE", value) + plain[begin:]
    parsed = header.parse(data)

    assert parsed.uid == b"2.25.3"
    assert exact(header.parse_head(stored_head(data))) == exact(parsed)


def test_of_more_bulk_values_than_a_head_record_counts_the_rest_stays_in_the_inflated_head():
    one = explicit(0x00880200, "SQ", implicit(ITEM, explicit(0x7FE00010, "OB", bytes(1024))))
    data = deflated(UIDS + one * 300)
    parsed = header.parse(data)
    assert parsed.inflated is not None
    assert len(parsed.inflated.holes) == 255
    assert len(parsed.inflated.head) > 45 * 1024
    assert exact(header.parse_head(stored_head(data))) == exact(parsed)


def test_a_stream_is_inflated_whole_whatever_its_length():
    # Where a piece ends inside of the stream's last match, zlib has taken all input and still holds bytes.
    for length in range((256 << 10) - 2, (256 << 10) + 300):
        engine = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
        stream = engine.compress(bytes(length)) + engine.flush()
        assert sum(map(len, header.inflate(io.BytesIO(stream), 0))) == length


@pytest.mark.parametrize("cut", [1, 2, 10])
def test_a_deflated_data_set_that_is_cut_is_refused(cut):
    with pytest.raises(BadDicom, match="cut"):
        header.parse(deflated(UIDS)[:-cut])


def test_a_stored_block_is_no_command_set():
    # A deflate stream may begin with two zero bytes, which are the group of a command.
    data_set = UIDS + explicit(0x00200010, "SH", bytes(0x100 - len(UIDS) - 8))
    stream = b"\0" + pack("<HH", len(data_set), 0xFFFF ^ len(data_set)) + data_set + b"\3\0"
    assert len(data_set) == 0x100
    assert header.parse(meta(DEFLATE) + stream).uid == b"2.25.3"


def test_a_long_value_in_the_meta_information_of_a_deflated_file_is_no_hole_of_its_data_set():
    private = explicit(0x00020102, "OB", bytes(range(256)) * 400)
    data = deflated(DEFLATED["native"])
    start = len(meta(DEFLATE))
    parsed = header.parse(data[:start] + private + data[start:])
    assert parsed.inflated is not None
    assert [tag for _, _, tag in parsed.inflated.holes] == [0x7FE00010]
    assert exact(header.parse_head(stored_head(data[:start] + private + data[start:])))[0] == b"2.25.1"


@pytest.mark.parametrize(
    "data_set",
    [
        UIDS + explicit(0x00091010, "UN", bytes(60_000)) * 3000,
        UIDS + explicit(0x00081140, "SQ", bytes(180 << 20)),  # stepped over: all of it is head
        UIDS + bytes(180 << 20),
    ],
    ids=["values", "a broken sequence", "padding"],
)
def test_a_bomb_in_the_head_is_refused_in_bounded_memory(data_set, tmp_path):
    path = tmp_path / "bomb"
    path.write_bytes(deflated(data_set))
    assert path.stat().st_size < 300_000
    _, grown, answer = _measured(path, "parse_fd", path.stat().st_size)
    assert answer == "more than 67108864 bytes outside of bulk values"
    assert grown < 160 << 20


def test_a_bomb_in_the_pixels_costs_no_memory(tmp_path):
    path = tmp_path / "bomb"
    path.write_bytes(deflated(UIDS + explicit(0x7FE00010, "OW", bytes(300 << 20))))
    _, grown, answer = _measured(path, "parse_fd", path.stat().st_size)
    assert answer == "parsed"
    assert grown < 8 << 20


def test_a_stream_that_inflates_to_more_than_the_most_is_refused_there(monkeypatch):
    monkeypatch.setattr(header, "INFLATED_MAX", 1 << 20)
    with pytest.raises(BadDicom, match="inflates to more than 1048576 bytes"):
        header.parse(deflated(UIDS + explicit(0x7FE00010, "OW", bytes(2 << 20))))


# --- What goes to pydicom ------------------------------------------------------------

LONELY = implicit(0x00100020, b"id 1" + SEQUENCE_ENDS, length=UNDEFINED)  # legal of old, and no sequence
PARTS = {
    0x00080005: implicit(0x00080005, b"ISO_IR 192"),
    0x00080018: implicit(0x00080018, b"2.25.3"),
    0x00100010: implicit(0x00100010, "Müller^Ü".encode()),
    0x00100020: LONELY,
    0x0020000D: implicit(0x0020000D, b"2.25.1"),
    0x0020000E: implicit(0x0020000E, b"2.25.2"),
    0x00280010: implicit(0x00280010, pack("<H", 258)),
    0x00400275: implicit(
        0x00400275,
        implicit(ITEM, implicit(0x00400009, b"step")) + implicit(ITEM, implicit(0x00401001, b"proc")),
    ),
    0x7FE00010: implicit(0x7FE00010, bytes(3000)),
}


def made(parts: dict[int, bytes], syntax: str = IMPLICIT) -> bytes:
    return meta(syntax) + b"".join(parts[tag] for tag in sorted(parts))


def test_an_undefined_length_outside_of_sequences_goes_to_pydicom_and_all_its_values_come_back():
    data = made(PARTS)
    assert fast.scan(data)[0] == fast.STATUS_UNDEFINED_LENGTH
    parsed = header.parse(data)
    assert parsed.flags == record.BY_PYDICOM | record.PART10 | record.IMPLICIT_VR
    assert (parsed.study, parsed.series, parsed.uid) == (b"2.25.1", b"2.25.2", b"2.25.3")
    assert parsed.transfer_syntax == IMPLICIT.encode()
    assert parsed.holes == []
    assert parsed.pixels == (0x7FE00010, len(data) - 3000, 3000, False)
    assert _all_by_us(data) == _all_by_pydicom(data)
    texts = {tag: record.values_of(parsed.upper, record.NUMBER_OF[tag]) for tag in (0x00100010, 0x00100020)}
    assert texts == {0x00100010: ["Müller^Ü"], 0x00100020: ["id 1"]}
    assert record.values_of(parsed.own, record.NUMBER_OF[0x00280010]) == [258]


def test_what_pydicom_read_makes_the_round_through_a_stored_head_and_a_descriptor(tmp_path):
    data = made(PARTS)
    parsed = header.parse(data)
    assert exact(parsed_by_descriptor(data, tmp_path / "file")) == exact(parsed)
    assert exact(header.parse_head(stored_head(data))) == exact(parsed)


def test_numbers_that_pydicom_read_leave_as_little_endian():
    big = explicit(0x00080018, "UI", b"2.25.3", order=">")
    big += explicit(0x0020000D, "UI", b"2.25.1", order=">") + explicit(0x0020000E, "UI", b"2.25.2", order=">")
    big += explicit(0x00280010, "US", pack(">H", 258), order=">")
    big += explicit(0x00280011, "SS", pack(">h", -2), order=">")
    big += explicit(0x00880140, "UT", b"text", length=UNDEFINED, order=">")
    data = meta(BIG) + big + implicit(SEQUENCE_END, order=">")
    parsed = header.parse(data)
    assert parsed.flags & (record.BY_PYDICOM | record.BIG_ENDIAN) == record.BY_PYDICOM | record.BIG_ENDIAN
    assert record.values_of(parsed.own, record.NUMBER_OF[0x00280010]) == [258]
    assert record.values_of(parsed.own, record.NUMBER_OF[0x00280011]) == [-2]


def test_a_value_too_long_for_the_index_is_left_in_the_head_by_the_fallback_too():
    parsed = header.parse(made(PARTS | {0x00104000: implicit(0x00104000, b"x" * 9000)}))
    assert parsed.flags & record.VALUE_LEFT
    with pytest.raises(record.LeftInHead):
        record.values_of(parsed.upper, record.NUMBER_OF[0x00104000])


def test_values_of_the_fallback_that_are_too_many_for_the_index_are_left_in_the_head():
    texts = (0x00081030, 0x0008103E, 0x00081040, 0x00081090, 0x00181030, 0x00400254)
    parsed = header.parse(made(PARTS | {tag: implicit(tag, b"x" * 8000) for tag in texts}))
    assert len(parsed.upper) < 34_000
    assert parsed.flags & record.VALUE_LEFT


@pytest.mark.parametrize(
    "broken",
    [
        {0x00100020: implicit(0x00100020, b"no end of it", length=UNDEFINED)},
        {0x00080018: b""},
        {0x00080018: implicit(0x00080018, b"../../pwned ")},
    ],
)
def test_what_pydicom_can_not_read_either_is_refused_with_the_parsers_reason(broken):
    with pytest.raises(BadDicom, match="undefined length outside of sequences and fragments"):
        header.parse(made(PARTS | broken))


def test_a_file_too_large_for_pydicom_is_not_given_to_it(monkeypatch):
    monkeypatch.setattr(header, "FALLBACK_MAX", 1000)
    with pytest.raises(BadDicom, match="undefined length outside"):
        header.parse(made(PARTS))


def test_no_bomb_comes_to_pydicom_by_way_of_the_meta_information():
    lonely = explicit(0x00020102, "UT", b"text" + SEQUENCE_ENDS, length=UNDEFINED)
    data = deflated(UIDS)
    with pytest.raises(BadDicom, match="stands where it can't"):
        header.parse(data[:132] + lonely + data[132:])


# --- Data sets at random ------------------------------------------------------------

TEXT_OF = {
    "UI": st.from_regex(rb"2\.25\.[1-9][0-9]{0,20}", fullmatch=True),
    "DA": st.just(b"20240131"),
    "TM": st.just(b"101112.5"),
    "DT": st.just(b"20240131101112"),
    "AS": st.just(b"045Y"),
    "IS": st.integers(-(2**31), 2**31).map(lambda n: str(n).encode()),
    "DS": st.floats(-1e9, 1e9).map(lambda n: f"{n:.6g}".encode()),
    "US": st.binary(min_size=2, max_size=2),
}
WORDS = st.text("abc ^=äß\\ü", max_size=12).map(lambda text: text.encode("latin-1"))
INDEXED = {tag: vr for tag, vr, _, nested in fast.wanted() if not nested and tag != 0x00080005}


def _padded(vr: str, value: bytes) -> bytes:
    return value + (b"\0" if vr in ("UI", "OB", "UN") else b" ") * (len(value) % 2)


@st.composite
def data_sets(draw: st.DrawFn) -> bytes:
    """A valid file: indexed, private and nested elements in any encoding, each length of either kind."""
    syntax = draw(st.sampled_from((EXPLICIT, IMPLICIT, BIG)))
    order = ">" if syntax == BIG else "<"

    def element(tag: int, vr: str, value: bytes, length: int | None = None) -> bytes:
        if syntax == IMPLICIT:
            return implicit(tag, value, length=length)
        return explicit(tag, vr, value, length=length, order=order)

    def sequence(tag: int, depth: int) -> bytes:
        items = []
        for _ in range(draw(st.integers(0, 3))):
            content = b""
            if draw(st.booleans()):
                content += element(0x00400009, "SH", _padded("SH", draw(WORDS)[:16].strip()))
            if draw(st.booleans()):
                content += element(0x00401001, "SH", _padded("SH", draw(WORDS)[:16].strip()))
            if depth and draw(st.booleans()):
                content += sequence(0x0040A730, depth - 1)  # Content Sequence
            content += element(0x00491010, "UN", bytes(draw(st.sampled_from((0, 6, 70_000 if depth else 2)))))
            if draw(st.booleans()):
                items.append(implicit(ITEM, content, order=order))
            else:
                items.append(implicit(ITEM, content, length=UNDEFINED, order=order))
                items.append(implicit(ITEM_END, order=order))
        if draw(st.booleans()):
            return element(tag, "SQ", b"".join(items))
        return element(tag, "SQ", b"".join(items), UNDEFINED) + implicit(SEQUENCE_END, order=order)

    tags = draw(st.sets(st.sampled_from(sorted(INDEXED)), max_size=20)) | {0x00080018, 0x0020000D, 0x0020000E}
    elements = {0x00080005: element(0x00080005, "CS", b"ISO_IR 100")}
    for tag in tags:
        vr = INDEXED[tag]
        value = draw(TEXT_OF.get(vr, WORDS))
        elements[tag] = element(tag, vr, _padded(vr, value))
    for tag, depth in ((0x00081140, 2), (0x00400275, 1), (0x00409096, 3)):
        if draw(st.booleans()):
            elements[tag] = sequence(tag, depth)
    if draw(st.booleans()):
        elements[0x00091010] = element(0x00091010, "UN", draw(st.binary(max_size=40).map(lambda v: v * 2)))
    if draw(st.booleans()):
        elements[0x7FE00010] = element(0x7FE00010, "OW", bytes(draw(st.sampled_from((0, 100, 4000)))))
    body = b"".join(elements[tag] for tag in sorted(elements))
    return meta(syntax) + body if order == ">" or draw(st.booleans()) else body


def _quickly(data: bytes) -> tuple[int, fast.Header]:
    begun = time.perf_counter()
    answer = fast.scan(data)
    assert time.perf_counter() - begun < 1
    return answer


@given(data_sets())
@settings(max_examples=150, deadline=None)
def test_a_valid_data_set_has_the_values_that_pydicom_finds(data):
    # Without File Meta Information pydicom guesses the encoding from the first VR, as we do.
    assert header.parse(data).uid
    ours = _all_by_us(data)
    assert ours is not None
    assert list(map(repr, ours)) == list(map(repr, _all_by_pydicom(data) or ()))


@given(data_sets())
@settings(max_examples=60, deadline=None)
def test_a_valid_data_set_makes_the_round_through_a_stored_head(data):
    assert exact(header.parse_head(stored_head(data))) == exact(header.parse(data))


@given(data_sets())
@settings(max_examples=30, deadline=None)
def test_every_prefix_of_a_valid_file_ends_in_a_status(data):
    for length in range(0, len(data), 1 + len(data) // 2000):
        status, scan = _quickly(data[:length])
        assert status in range(12)
        assert status != fast.STATUS_NEED
        assert 0 <= scan.at <= length


@given(data_sets(), st.randoms(use_true_random=False))
@settings(max_examples=150, deadline=None)
def test_a_mutated_file_ends_in_a_status_and_scans_alike_in_windows(data, chance):
    mutated = bytearray(data)
    for _ in range(chance.randint(1, 6)):
        at = chance.randrange(len(mutated))
        mutated[at : at + chance.randint(0, 4)] = chance.choice(
            [
                b"\xff\xff\xff\xff",
                b"\0\0\0\0",
                b"\xfe\xff\x00\xe0",
                b"\xfe\xff\x0d\xe0",
                b"\xfe\xff\xdd\xe0",
                b"\1",
            ]
        )
    whole = bytes(mutated)
    status, scan = _quickly(whole)
    again = fast.Header(len(whole))
    state, (at, length) = fast.STATUS_NEED, (0, 0)
    while state == fast.STATUS_NEED:
        state = again.feed(whole[at : at + length], at)
        at, length = again.need
    for what in ("at", "tag", "flags", "holes", "pixels", "fragments", "upper", "own"):
        assert getattr(again, what) == getattr(scan, what), what
    assert state == status
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            parsed = header.parse(whole)
        except (BadDicom, NotDicom):
            return
    if not parsed.flags & record.BY_PYDICOM:
        assert exact(header.parse_head(_head(whole, parsed))) == exact(parsed)


def _head(data: bytes, parsed: header.Parsed) -> record.Head:
    """The stored head of a file, made without what prepare does beyond it."""
    parts, at = [], 0
    for offset, length, _ in parsed.holes:
        parts.append(data[at:offset])
        at = offset + length
    inflated = parsed.inflated
    return record.Head(
        flags=parsed.flags,
        original_length=len(data),
        original_crc=0,
        data_set_at=parsed.data_set_at,
        arrived_us=0,
        transfer_syntax=parsed.transfer_syntax,
        source=b"",
        holes=[record.Hole(*hole, 0, bytes(32)) for hole in parsed.holes],
        head=b"".join([*parts, data[at:]]),
        inflated_holes=[record.Hole(*hole, 0, bytes(32)) for hole in inflated.holes] if inflated else [],
        inflated=inflated.head if inflated else b"",
    )


def test_holes_past_the_most_stay_in_the_head_and_the_round_is_the_same():
    data = meta(EXPLICIT) + UIDS
    one = explicit(0x00880200, "SQ", implicit(ITEM, explicit(0x7FE00010, "OB", bytes(1024))), length=None)
    data += one * 5000
    parsed = header.parse(data)
    assert len(parsed.holes) == 4096
    assert exact(header.parse_head(_head(data, parsed))) == exact(parsed)
