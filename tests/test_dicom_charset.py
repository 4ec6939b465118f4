# ruff: noqa: RUF001 (letters of other scripts that look like Latin ones are the point here)
"""decode_text: the examples of PS3.5 Annexes H to K byte by byte, and whatever else against pydicom."""

from __future__ import annotations

import warnings

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydicom.charset import convert_encodings, decode_bytes
from pydicom.valuerep import TEXT_VR_DELIMS

from hilum.dicom.charset import decode_text


@pytest.mark.parametrize(
    ("sets", "data", "text"),
    [
        # Default repertoire, and ASCII under any other
        (b"", b"Adams^John", "Adams^John"),
        (b"ISO_IR 192", b"Adams^John", "Adams^John"),
        # Single-byte sets, PS3.3 Table C.12-2
        (b"ISO_IR 100", b"Buc^J\xe9r\xf4me", "Buc^Jérôme"),
        (b"ISO_IR 101", b"W\xb3a\xb6", "Właś"),
        (b"ISO_IR 109", b"\xa6\xe6", "Ĥĉ"),
        (b"ISO_IR 110", b"\xe0\xb3", "āŗ"),
        (b"ISO_IR 126", b"\xc4\xe9\xef\xed\xf5\xf3\xe9\xef\xf2", "Διονυσιος"),
        (b"ISO_IR 127", b"\xe2\xc8\xc7\xe6\xea^\xe4\xe6\xd2\xc7\xd1", "قباني^لنزار"),
        (b"ISO_IR 138", b"\xf9\xf8\xe5\xef^\xe3\xe1\xe5\xf8\xe4", "שרון^דבורה"),
        (b"ISO_IR 144", b"\xbb\xee\xdace\xdc\xd1yp\xd3", "Люкceмбypг"),
        (b"ISO_IR 148", b"\xc7avu\xfeo\xf0lu", "Çavuşoğlu"),
        (b"ISO_IR 166", b"\xa1\xd2", "กา"),
        (b"ISO_IR 13", b"\xd4\xcf\xc0\xde^\xc0\xdb\xb3", "ﾔﾏﾀﾞ^ﾀﾛｳ"),
        # Several sets, PS3.3 Tables C.12-3 and C.12-4. ESC 02/04 04/02 is JIS X 0208, ESC 02/08 04/02 ASCII
        (
            b"\\ISO 2022 IR 87",
            b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B",
            "Yamada^Tarou=山田^太郎",
        ),
        # ... and ESC 02/08 04/10 JIS X 0201 Romaji, when value 1 is ISO 2022 IR 13
        (
            b"ISO 2022 IR 13\\ISO 2022 IR 87",
            b"\xd4\xcf\xc0\xde^\xc0\xdb\xb3=\x1b$B;3ED\x1b(J^\x1b$BB@O:\x1b(J",
            "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎",
        ),
        (b"\\ISO 2022 IR 13", b"A\x1b)I\xd4\xcf\x1b(BB", "AﾔﾏB"),
        (b"\\ISO 2022 IR 159", b"\x1b$(D0!\x1b(B", "丂"),
        # Korean: ESC 02/04 02/09 04/03 is KS X 1001
        (
            b"\\ISO 2022 IR 149",
            b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7",
            "Hong^Gildong=洪^吉洞",
        ),
        # Chinese: ESC 02/04 02/09 04/01 is GB 2312
        (
            b"\\ISO 2022 IR 58",
            b"Zhang^XiaoDong=\x1b$)A\xd5\xc5^\x1b$)A\xd0\xa1\xb6\xab",
            "Zhang^XiaoDong=张^小东",
        ),
        (b"ISO 2022 IR 100\\ISO 2022 IR 144", b"\xc4\x1b-L\xbf\xe0\x1b-A\xc4", "ÄПрÄ"),
        (b"\\ISO 2022 IR 101", b"\x1b-B\xb3", "ł"),
        (b"\\ISO 2022 IR 109", b"\x1b-C\xa6", "Ĥ"),
        (b"\\ISO 2022 IR 110", b"\x1b-D\xe0", "ā"),
        (b"\\ISO 2022 IR 126", b"\x1b-F\xc4", "Δ"),
        (b"\\ISO 2022 IR 127", b"\x1b-G\xc7", "ا"),
        (b"\\ISO 2022 IR 138", b"\x1b-H\xe0", "א"),
        (b"\\ISO 2022 IR 148", b"\x1b-M\xfe", "ş"),
        (b"\\ISO 2022 IR 166", b"\x1b-T\xa1", "ก"),
        # Latin alphabet no. 9 has the euro sign
        (b"ISO_IR 203", b"\xa4", "€"),
        (b"\\ISO 2022 IR 203", b"\xa4\x1b-b\xa4", "¤€"),
        # Multi-byte sets without extensions, PS3.3 Table C.12-5
        (b"ISO_IR 192", b"Wang^XiaoDong=\xe7\x8e\x8b^\xe5\xb0\x8f\xe6\x9d\xb1", "Wang^XiaoDong=王^小東"),
        (b"GB18030", b"Wang^XiaoDong=\xcd\xf5^\xd0\xa1\xb6\xab", "Wang^XiaoDong=王^小东"),
        (b"GBK", b"\xcd\xf5^\xd0\xa1\xb6\xab", "王^小东"),
        # A second byte of 5C is no backslash
        (b"ISO_IR 13", b"\x83\x5c\\\x95\x5c", "ソ\\表"),
        (b"GB18030", b"\x81\x5c\\\x81\x5c", "乗\\乗"),
    ],
)
def test_each_character_set_of_the_standard_is_read(sets, data, text):
    assert decode_text(data, "PN", sets) == text
    assert decode_text(data, "PN", sets.decode("ascii")) == text


@pytest.mark.parametrize(
    ("misspelt", "term"),
    [
        ("ISO-IR 100", "ISO_IR 100"),
        ("ISO IR 101", "ISO_IR 101"),
        ("ISO-IR 192", "ISO_IR 192"),
        ("ISO 2022-IR 144", "ISO 2022 IR 144"),
        ("ISO_2022_IR_126", "ISO 2022 IR 126"),
        ("ISO_IR 101 \0", "ISO_IR 101"),
        ("windows-1251", "windows-1251"),
        ("latin2", "ISO_IR 101"),
        ("utf-8", "ISO_IR 192"),
        ("nonsense", ""),
        ("", "ISO_IR 100"),
        ("ISO_IR 192\\ISO 2022 IR 87", "ISO_IR 192"),  # stand-alone: the second is ignored
        ("ISO 2022 IR 101\\GB18030", "ISO_IR 101"),  # and as an extension it is none
    ],
)
def test_a_misspelt_term_means_what_pydicom_takes_it_for(misspelt, term):
    data = bytes(range(0xC0, 0x100))
    assert decode_text(data, "LO", misspelt) == decode_text(data, "LO", term) == _pydicom(data, misspelt)


@pytest.mark.parametrize("vr", ["AE", "AS", "CS", "DA", "DS", "DT", "IS", "TM", "UI", "UR"])
def test_a_vr_outside_the_character_set_is_latin_1(vr):
    assert decode_text(b"\xe9\x1b$B", vr, b"ISO_IR 192") == "é\x1b$B"


@pytest.mark.parametrize("vr", ["SH", "LO", "UC", "ST", "LT", "UT", "PN"])
def test_a_vr_inside_the_character_set_is_decoded_by_it(vr):
    assert decode_text(b"\xc3\xa9", vr, b"ISO_IR 192") == "é"


def test_bytes_that_are_no_character_become_replacement_characters():
    assert decode_text(b"a\xffb", "LO", b"ISO_IR 192") == "a\ufffdb"


def test_an_escape_to_a_set_that_was_not_announced_stays_in_the_text():
    assert decode_text(b"\x1b-F\xc4", "LO", b"ISO_IR 100") == "\x1b-FÄ"


@pytest.mark.parametrize("control", ["\t", "\n", "\f", "\r"])
def test_a_control_character_brings_the_first_set_back(control):
    data = b"\x1b-F\xc4" + control.encode("ascii") + b"\xc4"
    assert decode_text(data, "LT", b"\\ISO 2022 IR 126") == f"Δ{control}Ä"


@pytest.mark.parametrize(
    "term", ["hex", "rot13", "a\0b", "idna", "punycode", "unicode_escape", "undefined", "utf-7"]
)
def test_a_codec_that_is_no_character_set_is_taken_for_the_default(term):
    # "utf-7" could give half a surrogate pair, which no UTF-8 answer can carry.
    assert decode_text(b"\\q+2AA-\x1b", "LT", term) == "\\q+2AA-\x1b"


@pytest.mark.parametrize(("term", "data"), [("utf-16-le", b"a\0b\0"), ("cp037", b"\x81\x82")])
def test_ascii_bytes_are_not_ascii_under_every_codec(term, data):
    assert decode_text(data, "LO", term) == "ab"


@pytest.mark.parametrize(("position", "text"), [(32, "Δ"), (33, "\x1b-FÄ")])
def test_no_term_after_the_32nd_is_looked_at(position, text):
    # Each unknown one costs an attempt to import it, and a hostile value could have thousands.
    sets = "\\" * (position - 1) + "ISO 2022 IR 126"
    assert decode_text(b"\x1b-F\xc4", "LO", sets) == text


# All that pydicom knows, but for the escape to GB 2312, which it leaves in the text.
_TERMS = st.sampled_from(
    ["", "ISO_IR 6", "ISO_IR 13", "ISO_IR 100", "ISO_IR 126", "ISO_IR 192", "GB18030", "GBK", "latin2", "x"]
    + [f"ISO 2022 IR {number}" for number in (6, 13, 87, 100, 101, 127, 138, 144, 148, 149, 159, 166)]
)
_PARTS = st.one_of(
    st.sampled_from([b"\x1b(B", b"\x1b(J", b"\x1b)I", b"\x1b$B", b"\x1b$(D", b"\x1b$)C", b"\x1b$", b"\x1b"]),
    st.sampled_from([b"\x1b-" + bytes([last]) for last in b"ABCDFGHLMTZ"]),
    st.sampled_from([b"\\", b"^", b"=", b"\r\n", b"\t", b"\f", b"abc", b";3ED", b"\xfb\xf3", b"\x83\x5c"]),
    st.binary(max_size=4),
)


@given(st.lists(_TERMS, min_size=1, max_size=4).map("\\".join), st.lists(_PARTS, max_size=8).map(b"".join))
@example("\\ISO 2022 IR 87", b"\x1b$B;")  # half a character
@example("ISO_IR 192\\ISO 2022 IR 149", b"\x1b$)C\xfb\xf3")
@settings(deadline=None, max_examples=500)
def test_any_bytes_under_any_sets_read_as_in_pydicom(sets, data):
    assert decode_text(data, "UC", sets) == _pydicom(data, sets)


@given(st.text(max_size=40), st.binary(max_size=40))
@settings(deadline=None)
def test_nothing_is_refused_and_everything_can_be_sent_as_utf_8(sets, data):
    decode_text(data, "LO", sets).encode("utf-8")


def _pydicom(data: bytes, sets: str) -> str:
    terms = sets.rstrip(" \0").split("\\")  # as pydicom.filereader reads (0008,0005)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return decode_bytes(data, convert_encodings(terms if len(terms) > 1 else terms[0]), TEXT_VR_DELIMS)
