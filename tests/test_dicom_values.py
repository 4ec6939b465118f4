"""decode_values: bytes written out, and every text and number of the sample files against pydicom."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.charset import convert_encodings
from pydicom.dataelem import RawDataElement
from pydicom.multival import MultiValue
from pydicom.tag import Tag
from pydicom.valuerep import DSfloat, ISfloat
from pydicom.values import convert_value

from hilum.dicom.values import decode_values
from hilum.errors import BadDicom

SAMPLES = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
PYDICOM_SAMPLES = Path(pydicom.__file__).parent / "data" / "test_files"

BINARY_SIZE = {"US": 2, "SS": 2, "UL": 4, "SL": 4, "UV": 8, "SV": 8, "FL": 4, "FD": 8, "AT": 2}
TEXT_VRS = ("AE", "AS", "CS", "DA", "DS", "DT", "IS", "TM", "UI", "UR")
TEXT_VRS += ("LO", "LT", "PN", "SH", "ST", "UC", "UT")  # these under Specific Character Set


@pytest.fixture(autouse=True)
def _without_pydicoms_log(caplog):
    caplog.set_level(logging.CRITICAL, "pydicom")


@pytest.mark.parametrize(
    ("vr", "data", "values"),
    [
        ("AE", b"  STORE \\ SCP ", ["STORE", "SCP"]),
        ("AS", b"045Y", ["045Y"]),
        ("CS", b"ORIGINAL\\PRIMARY ", ["ORIGINAL", "PRIMARY"]),
        ("CS", b" A \\B ", [" A ", "B"]),  # only the end of the field is padding
        ("DA", b"20240131", ["20240131"]),
        ("DT", b"20240131103000+0100 ", ["20240131103000+0100"]),
        ("TM", b"103000.5\0", ["103000.5"]),
        ("SH", b" a \\b\0", [" a", "b"]),
        ("LO", b"a\\\\b ", ["a", None, "b"]),
        ("UC", b"a\\b", ["a", "b"]),
        ("ST", b" a\\b  ", [" a\\b"]),  # one value: a backslash is text
        ("LT", b"a\r\nb ", ["a\r\nb"]),
        ("UT", b"a\\b\0", ["a\\b"]),
        ("UR", b"http://a/?b\\c ", ["http://a/?b\\c"]),
        ("UI", b"1.2.3\0", ["1.2.3"]),
        ("UI", b"1.2 \\1.3\0", ["1.2", "1.3"]),
        ("PN", b"A^B=C=D ", ["A^B=C=D"]),
        ("PN", b"A^B==\\=C=", ["A^B", "=C"]),
        ("IS", b" 12\\-3 ", [12, -3]),
        ("IS", b"1.0\\1.5", [1, 1.5]),
        ("IS", b"12\\\\3", [12, None, 3]),
        ("IS", b"9007199254740993", [9007199254740993]),
        ("IS", b"1.2.3 ", ["1.2.3"]),
        ("IS", b"inf", ["inf"]),
        ("DS", b"1.50\\ -2e3 ", [1.5, -2000.0]),
        ("DS", b"1,5 ", ["1,5"]),
        ("DS", b"-inf", [-math.inf]),
        ("US", b"\x01\x00\xff\xff", [1, 65535]),
        ("SS", b"\x01\x00\xff\xff", [1, -1]),
        ("UL", b"\x01\x00\x00\x80", [0x80000001]),
        ("SL", b"\xff\xff\xff\xff", [-1]),
        ("UV", b"\xff\xff\xff\xff\xff\xff\xff\xff", [2**64 - 1]),
        ("SV", b"\xff\xff\xff\xff\xff\xff\xff\xff", [-1]),
        ("FL", b"\x00\x00\xc0\x3f", [1.5]),
        ("FD", b"\x00\x00\x00\x00\x00\x00\xf8\x3f", [1.5]),
        ("AT", b"\x10\x00\x20\x00\xe0\x7f\x10\x00", [0x00100020, 0x7FE00010]),
    ],
)
def test_bytes_of_each_vr_give_these_values(vr, data, values):
    assert decode_values(vr, data, b"") == values


@pytest.mark.parametrize("vr", [*TEXT_VRS, *BINARY_SIZE])
def test_an_element_without_bytes_has_no_values(vr):
    assert decode_values(vr, b"", b"") == []


@pytest.mark.parametrize("vr", TEXT_VRS)
def test_an_element_of_nothing_but_spaces_has_no_values(vr):
    assert decode_values(vr, b"  ", b"") == []


@pytest.mark.parametrize("vr", ["SQ", "UN", "OB", "OD", "OF", "OL", "OV", "OW", "ZZ", ""])
def test_a_vr_of_bytes_or_items_has_no_values(vr):
    assert decode_values(vr, b"1234", b"") == []


@pytest.mark.parametrize("vr", BINARY_SIZE)
def test_a_binary_value_that_is_cut_off_is_bad_dicom(vr):
    with pytest.raises(BadDicom, match=f"{vr} value of 3 bytes"):
        decode_values(vr, b"\x01\x02\x03", b"")


def test_a_backslash_inside_a_character_does_not_divide_a_value():
    # Shift-JIS 83 5C is one Katakana letter
    assert decode_values("LO", b"\x83\x5c\\b", b"ISO_IR 13") == ["ソ", "b"]


@given(st.sampled_from(TEXT_VRS), st.binary(max_size=30), st.sampled_from([b"", b"ISO_IR 192", b"ISO_IR 13"]))
@settings(deadline=None)
def test_text_is_never_refused(vr, data, sets):
    assert all(
        value is None or isinstance(value, str | int | float) for value in decode_values(vr, data, sets)
    )


# What we read otherwise than pydicom 3.0.2, on purpose: (why, VR, bytes, character sets, ours, pydicom's).
# None of it occurs in the sample files.
DIFFERENCES = [
    (
        "the escape sequence of GB 2312 is no part of the text",
        *("PN", b"\x1b$)A\xd5\xc5", "\\ISO 2022 IR 58", ["张"], ["\x1b$)A张"]),
    ),
    ("Latin alphabet no. 9 is in PS3.3 Table C.12-2", "LO", b"\xa4", "ISO_IR 203", ["€"], ["¤"]),
    ("UTF-7 can give half a surrogate pair", "LO", b"+2AA-", "utf-7", ["+2AA-"], ["\ud800"]),
    ("one bad number leaves the others numbers", "DS", b"1.5\\x", "", [1.5, "x"], ["1.5", "x"]),
    ("one bad number leaves the others numbers", "IS", b"1\\x", "", [1, "x"], ["1", "x"]),
    ("only Python reads 1_0 as ten", "DS", b"1_0", "", ["1_0"], [10.0]),
    ("only Python reads 1_0 as ten", "IS", b"1_0", "", ["1_0"], [10]),
    ("an integer keeps all its digits", "IS", b"9007199254740993", "", [9007199254740993], [2.0**53]),
    ("the infinite is no integer", "IS", b"inf", "", ["inf"], OverflowError),
    ("a cut-off tag is damage, not a shorter list", "AT", b"\1\0\2\0\3\0", "", BadDicom, [0x10002]),
    ("a NUL in a term names no codec", "LO", b"a", "a\0b", ["a"], ValueError),
]


@pytest.mark.parametrize(("why", "vr", "data", "sets", "ours", "theirs"), DIFFERENCES)
def test_a_listed_difference_to_pydicom_is_one_still(why, vr, data, sets, ours, theirs):
    assert _outcome(lambda: decode_values(vr, data, sets)) == ours, why
    assert _outcome(lambda: _pydicom(vr, data, sets)) == theirs, why


@pytest.mark.skipif(
    not SAMPLES.is_dir(), reason="the sample files are not beside the project, in ../shared/data"
)
def test_every_sample_file_reads_as_in_pydicom():
    rows = (SAMPLES / "MANIFEST.tsv").read_text(encoding="utf-8").splitlines()[1:]
    _compare([SAMPLES / row.split("\t", 1)[0] for row in rows], element_count_min=200_000)


def test_every_file_that_pydicom_brings_along_reads_as_in_pydicom():
    _compare(sorted(PYDICOM_SAMPLES.rglob("*.dcm")), element_count_min=2_000)


def _compare(paths: list[Path], *, element_count_min: int) -> None:
    count = 0
    differences = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, of what is wrong with the files
        for path in paths:
            for tag, vr, data, sets, theirs in _elements(path):
                count += 1
                ours = _outcome(lambda vr=vr, data=data, sets=sets: decode_values(vr, data, sets))
                # By repr: NaN equals NaN there, and 1 is not 1.0.
                if repr(ours) != repr(theirs):
                    differences.append(f"{path} {tag} {vr} {data[:40]!r}: {ours!r} is not {theirs!r}")
    assert differences == []
    assert count >= element_count_min


def _elements(path: Path) -> Iterator[tuple[str, str, bytes, str, list[object]]]:
    """Give tag, VR, bytes in little endian, character sets and pydicom's values of the elements of a file."""
    try:
        ds = pydicom.dcmread(path, force=True, stop_before_pixels=True)
    except Exception:
        return  # damaged on purpose; whether we read such a file is another test's question
    terms = ds.get("SpecificCharacterSet") or ""
    sets = terms if isinstance(terms, str) else "\\".join(terms)
    for tag in list(ds.keys()):
        raw = ds.get_item(tag)
        if not isinstance(raw, RawDataElement) or raw.value is None:
            continue  # (0008,0005) itself, which pydicom has parsed by now
        vr = ds[tag].VR
        size = BINARY_SIZE.get(vr)
        if size is None and vr not in TEXT_VRS:
            continue
        data = raw.value
        if size is not None and not raw.is_little_endian:
            data = b"".join(data[start : start + size][::-1] for start in range(0, len(data), size))
        yield str(ds[tag].tag), vr, data, sets, _plain(vr, ds[tag].value)


def _pydicom(vr: str, data: bytes, sets: str) -> list[object]:
    terms = sets.split("\\")
    raw = RawDataElement(Tag(0x00091001), vr, len(data), data, 0, False, True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        encodings = convert_encodings(terms if len(terms) > 1 else terms[0])
        return _plain(vr, convert_value(vr, raw, encodings))


def _plain(vr: str, value: object) -> list[object]:
    if isinstance(value, MultiValue | list):
        return [_plain_value(vr, item) for item in value]
    plain = _plain_value(vr, value)
    return [] if plain is None else [plain]


def _plain_value(vr: str, value: object) -> object:
    if value is None:
        return None
    if isinstance(value, DSfloat | ISfloat):
        return float(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return value
    text = str(value)
    # pydicom gives an empty number back with its spaces
    return (text.strip() if vr in ("DS", "IS") else text) or None


def _outcome(read):
    """Give what `read` returns, or the class of what it raises."""
    try:
        return read()
    except (BadDicom, OverflowError, ValueError) as failure:
        return type(failure)
