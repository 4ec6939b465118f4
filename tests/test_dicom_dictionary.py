"""The dictionary and the UIDs: against pydicom, whose tables they were made from, and by rules of PS3.5."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pydicom
import pytest
from pydicom._dicom_dict import DicomDictionary
from pydicom._uid_dict import UID_dictionary
from pydicom.uid import UID

from hilum.dicom import uids
from hilum.dicom.dictionary import (
    Private,
    format_path,
    format_tag,
    keyword_of,
    names_in,
    path_of,
    tag_of,
    vm_of,
    vr_of,
    with_creators,
)
from hilum.errors import BadQuery

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    "name",
    ["PatientName", " PatientName ", "00100010", "0x00100010", "0010,0010", "(0010,0010)", "(0010, 0010)"],
)
def test_a_tag_is_found_by_each_of_its_names(name):
    assert tag_of(name) == 0x00100010


def test_hexadecimal_digits_may_be_of_either_case():
    assert tag_of("7fe0,0010") == tag_of("7FE00010") == 0x7FE00010


def test_the_digits_of_a_tag_need_no_entry_in_the_dictionary():
    assert tag_of("00091001") == 0x00091001


def test_the_keyword_of_a_repeating_group_is_that_of_its_first_group():
    assert tag_of("OverlayRows") == 0x60000010
    assert keyword_of(0x60020010) == "OverlayRows"
    assert vr_of(0x60023000) == "OB"  # OB or OW: the first


@pytest.mark.parametrize(
    "name", ["", "Patient Name", "0010", "(0010,0010", "0010001G", "001000100", "x" * 5000]
)
def test_what_is_no_tag_is_a_bad_query_that_names_it(name):
    with pytest.raises(BadQuery, match=re.escape(repr(name[:80]))):
        tag_of(name)


def test_a_misspelt_keyword_brings_the_right_one_to_mind():
    with pytest.raises(BadQuery, match="did you mean PatientName"):
        tag_of("PatientsName")


def test_every_standard_element_reads_as_in_pydicom():
    for tag, (vr, vm, _, _, keyword) in DicomDictionary.items():
        first = "UN" if vr == "NONE" else vr.split(" or ")[0]
        assert (vr_of(tag), vm_of(tag), keyword_of(tag)) == (first, vm, keyword), format_tag(tag)
        if keyword:
            assert tag_of(keyword) == tag


@pytest.mark.parametrize(
    ("tag", "vr", "why"),
    [
        (0x00280106, "US", "US or SS: the first"),
        (0x7FE00010, "OB", "OB or OW: the first"),
        (0x00100000, "UL", "PS3.5 7.2: a group length"),
        (0x00090000, "UL", "PS3.5 7.2: a private group's length"),
        (0x00090010, "LO", "PS3.5 7.8.1: a private creator"),
        (0x000900FF, "LO", "PS3.5 7.8.1: the last private creator"),
        (0x00090100, "UN", "private, and no creator"),
        (0x00091001, "UN", "private"),
        (0x60013000, "UN", "odd, so not an overlay's"),
        (0x00100011, "UN", "not in the dictionary"),
        (0xFFFEE000, "UN", "an item has no VR"),
    ],
)
def test_the_vr_of_a_tag_that_has_no_plain_entry(tag, vr, why):
    assert vr_of(tag) == vr, why


def test_an_unknown_tag_has_no_keyword_and_one_value():
    assert (keyword_of(0x00100011), vm_of(0x00100011)) == ("", "1")


def test_a_tag_is_printed_as_in_the_standard():
    assert format_tag(0x7FE00010) == "(7FE0,0010)"


def test_every_uid_of_pydicom_has_its_name_and_keyword():
    for uid, (name, _, _, _, keyword) in UID_dictionary.items():
        assert (uids.name_of(uid), uids.keyword_of(uid)) == (name, keyword)


def test_an_unknown_uid_has_no_name():
    assert (uids.name_of("1.2.3"), uids.keyword_of("1.2.3")) == ("", "")


def test_every_transfer_syntax_that_is_named_in_the_code_is_in_the_table():
    named = {name: uid for name, uid in vars(uids).items() if name.isupper() and isinstance(uid, str)}
    assert len(named) == len(set(named.values())) > 30
    assert [name for name, uid in named.items() if not uids.name_of(uid)] == []


def test_pixel_data_is_encapsulated_where_pydicom_says_so():
    # pydicom takes everything that isn't one of four native ones for encapsulated; for these it is right.
    without_pixel_data = ("JPIP", "SMPTE", "RFC2557", "XMLEncoding", "Papyrus")
    for uid, (_, kind, _, _, keyword) in UID_dictionary.items():
        if kind == "Transfer Syntax" and not keyword.startswith(without_pixel_data):
            assert uids.is_encapsulated(uid) == UID(uid).is_encapsulated, keyword


@pytest.mark.parametrize(
    ("uid", "encapsulated"),
    [
        ("1.2.840.10008.1.2.4.94", False),  # JPIP Referenced: no Pixel Data at all
        ("1.2.840.10008.1.2.4.205", False),  # JPIP HTJ2K Referenced Deflate
        ("1.2.840.10008.1.2.1.98", True),  # Encapsulated Uncompressed Explicit VR Little Endian
        ("1.2.840.10008.1.2.8.1", True),  # Deflated Image Frame Compression
        ("1.2.840.10008.1.2.4.999", True),  # one that is yet to come
        ("1.2.840.10008.1.2.50", False),  # not below 1.2.840.10008.1.2.5
        ("1.2.840.113619.5.2", False),  # a private one: implicit VR with big endian pixels
        ("", False),
    ],
)
def test_a_transfer_syntax_that_pydicom_does_not_settle(uid, encapsulated):
    assert uids.is_encapsulated(uid) is encapsulated


def test_the_deflated_transfer_syntaxes_are_those_with_deflate_in_their_name():
    syntaxes = [uid for uid, entry in UID_dictionary.items() if entry[1] == "Transfer Syntax"]
    deflated = {uid for uid in syntaxes if "Deflate" in uids.keyword_of(uid)}
    deflated.discard(uids.DEFLATED_IMAGE_FRAME)  # each frame by itself; newer tables have it
    assert {uid for uid in syntaxes if uids.is_deflated(uid)} == deflated


def test_the_generated_files_are_what_the_generator_makes():
    tool = _generator()
    made_by = re.search(r"from pydicom (\S+)\. ", tool.TABLES.read_text(encoding="utf-8"))
    assert made_by is not None
    if made_by[1] != pydicom.__version__:
        pytest.skip(f"made from pydicom {made_by[1]}, and {pydicom.__version__} is installed")
    assert tool.TABLES.read_text(encoding="utf-8") == tool.tables()
    assert tool.SEQUENCE_TAGS.read_text(encoding="utf-8") == tool.sequence_tags()


def test_the_sequence_tags_of_the_scanner_are_those_of_the_dictionary_in_ascending_order():
    text = (ROOT / "src" / "_sequence_tags.pxi").read_text(encoding="utf-8")
    count = re.search(r"SEQUENCE_TAG_COUNT = (\d+)", text)
    tags = [int(tag, 16) for tag in re.findall(r"0x([0-9A-F]{8})", text)]
    assert count is not None
    assert int(count[1]) == len(tags)
    assert tags == sorted(tag for tag in DicomDictionary if vr_of(tag) == "SQ")


def test_the_layer_loads_neither_an_outside_library_nor_its_tables_before_they_are_needed():
    script = (
        "import sys; import hilum.dicom.charset, hilum.dicom.dictionary, hilum.dicom.json; "
        "import hilum.dicom.matching, hilum.dicom.uids, hilum.dicom.values; "
        "print(sorted({'pydicom', 'numpy', 'hilum.dicom._tables'} & set(sys.modules)))"
    )
    # -S: what a site directory imports for itself is not ours.
    loaded = subprocess.run(
        [sys.executable, "-B", "-S", "-c", script],
        env={"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert loaded.stdout.strip() == "[]"


def _generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_tables", ROOT / "tools" / "make_tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- Paths -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "path", "shown"),
    [
        ("PatientName", (0x00100010,), "PatientName"),
        ("RequestAttributesSequence.00400009", (0x00400275, 0x00400009),
         "RequestAttributesSequence.ScheduledProcedureStepID"),
        ("00400275.(0040,0009)", (0x00400275, 0x00400009),
         "RequestAttributesSequence.ScheduledProcedureStepID"),
        ('0029,"SIEMENS CSA HEADER",10', (Private(0x00290010, "SIEMENS CSA HEADER"),),
         '0029,"SIEMENS CSA HEADER",10'),
        ('(0029, "A.B, C 1.0", fe)', (Private(0x002900FE, "A.B, C 1.0"),), '0029,"A.B, C 1.0",FE'),
        ('00400275.0029,"A.B",01.PatientID', (0x00400275, Private(0x00290001, "A.B"), 0x00100020),
         'RequestAttributesSequence.0029,"A.B",01.PatientID'),
        ("00291001", (0x00291001,), "(0029,1001)"),
    ],
)  # fmt: skip
def test_a_path_is_named_and_shown(name, path, shown):
    assert path_of(name) == path
    assert format_path(path) == shown
    assert path_of(shown) == path


@pytest.mark.parametrize(
    "name", ["", ".", "PatientName.", ".PatientName", "a.b", '0028,"ACME",01', '0029,"",01', '0029,"A",1']
)
def test_what_is_no_path_is_a_bad_query(name):
    with pytest.raises(BadQuery):
        path_of(name)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("PatientName,PatientID", ["PatientName", "PatientID"]),
        ("00081030,00080060", ["00081030", "00080060"]),
        ("0008,1030,0008,0060", ["0008,1030", "0008,0060"]),
        ("(0008,1030), 0010,0020 ,PatientID", ["(0008,1030)", "0010,0020", "PatientID"]),
        ('0029,"A,B",10,PatientName.00100010', ['0029,"A,B",10', "PatientName.00100010"]),
        ("0008103E,0020000D", ["0008103E", "0020000D"]),
        (",a,,b", ["a", "b"]),
        ("", []),
    ],
)
def test_a_list_of_names_is_parted_at_its_commas_and_not_inside_a_tag(text, names):
    assert names_in(text) == names


def test_a_creator_that_is_stated_names_the_elements_of_its_block_and_no_others():
    creators = {(0x00290010,): "ACME", (0x00400275, 0x00290011): "OTHER"}
    assert with_creators((0x00291008,), creators) == (Private(0x00290008, "ACME"),)
    assert with_creators((0x00400275, 0x00291108), creators) == (0x00400275, Private(0x00290008, "OTHER"))
    for path in ((0x00291108,), (0x00290010,), (0x00281008,), (0x002B1008,)):
        assert with_creators(path, creators) == path
