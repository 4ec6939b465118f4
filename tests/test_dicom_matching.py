"""parse() and Match: PS3.4 C.2.2.2, Attribute Matching, key by key."""

from __future__ import annotations

import time

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hilum.dicom.matching import (
    Kind,
    Moments,
    normalise_name,
    normalise_text,
    normalise_value,
    parse,
    parse_offset,
    words_of,
)
from hilum.errors import BadQuery

# VR, key, values that match, values that don't. Each value stands for an element that has only this one.
TABLE = [
    # Single value: case counts, padding doesn't
    ("LO", "Smith", ["Smith", " Smith ", "Smith\0"], ["smith", "Smith J", ""]),
    ("CS", "CT", ["CT", "CT "], ["ct", "MR"]),
    ("SH", "a b", ["a b"], ["a  b"]),
    ("ST", r"C:\temp", [r"C:\temp"], ["C:"]),
    ("UI", "1.2.3", ["1.2.3", "1.2.3\0"], ["1.2.3.4"]),
    ("AS", "045Y", ["045Y"], ["45Y"]),
    # Numbers are compared as numbers
    ("IS", "7", [7, "7", "007", "7.0"], [8, 7.5, "seven"]),
    ("DS", "1.50", [1.5, "1.5", "+15e-1"], [1.51, "x"]),
    ("DS", "0", [0.0, -0.0], [1.0]),
    ("US", "007", [7], [70]),
    ("FD", "0.1", [0.1], [0.10000000149011612]),
    ("FL", "0.1", [0.10000000149011612], [0.2]),  # a stored 0.1 went through 32 bits
    ("UV", "18446744073709551615", [2**64 - 1], [2**64 - 2]),
    ("AT", "(0010,0020)", [0x00100020], [0x00100010]),
    ("AT", "PatientID", [0x00100020], [0x00100010]),
    # Lists
    ("UI", r"1.2\1.3", ["1.2", "1.3"], ["1.4", r"1.2\1.3"]),
    ("UI", "1.2,1.3,", ["1.2", "1.3"], ["1.4"]),
    ("CS", r"CT\MR", ["CT", "MR"], ["PT"]),
    ("IS", r"1\2", [1, 2], [3]),
    # Wildcards
    ("LO", "a*", ["a", "abc"], ["ba", "A"]),
    ("LO", "*b*", ["b", "abc", "a\nbc"], ["ac"]),
    ("LO", "a?c", ["abc", "a*c"], ["ac", "abbc"]),
    ("LO", "a*b*b", ["abb", "axbxb"], ["ab", "abbc"]),
    ("LO", "[a]*.", ["[a]b."], ["ab."]),
    ("CS", r"M*\CT", ["MR", "CT"], ["CTX"]),
    ("UR", "http://*", ["http://a"], ["ftp://a"]),
    # Dates
    ("DA", "20010101", ["20010101", "2001.01.01", "20010101 "], ["20010102", "2001"]),
    ("DA", "2001.01.01", ["20010101"], ["20010102"]),
    ("DA", "20010101-", ["20010101", "20240101"], ["20001231", "unknown", ""]),
    ("DA", "-20010101", ["20010101", "19991231"], ["20010102", "20010001", ""]),
    ("DA", "20010101-20011231", ["20010101", "2001.06.01", "20011231"], ["20001231", "20020101"]),
    ("DA", "2001.01.01 - 2001.12.31", ["20010101"], ["20020101"]),
    ("DA", "20240229", ["20240229"], ["20240228"]),
    # Times
    ("TM", "10", ["10", "100000", "10:59:59", "105959.999999"], ["095959.999999", "110000", ""]),
    ("TM", "1030", ["1030", "103000.5", "103059"], ["1031", "1029"]),
    ("TM", "10:30:00", ["103000", "103000.5"], ["103001"]),
    ("TM", "103000.5", ["103000.5", "103000.599999"], ["103000.6"]),
    ("TM", "1000-1059", ["10", "105959.9"], ["11", "095959"]),
    ("TM", "10-", ["235960"], ["0959"]),
    ("TM", "-10", ["105959"], ["11"]),
    # Date times
    ("DT", "2020", ["2020", "20201231235959.999999"], ["2021", "2019"]),
    ("DT", "202002", ["20200229"], ["20200301", "202001"]),
    ("DT", "20200101-20200102", ["2020010123", "20200102235959"], ["20200103"]),
    ("DT", "2019-2020", ["2019", "20201231"], ["2018", "2021"]),
    ("DT", "2020-", ["2020", "2024"], ["2019"]),
    ("DT", "-2020", ["2020", "2019"], ["2021"]),
    # ... -0500 is an offset here, not the year 500: noon in New York is 17:00 in UTC
    ("DT", "202001011200-0500", ["202001011700+0000", "202001011800+0100"], ["202001011200+0000"]),
    ("DT", "202001011200-0500-202001011300-0500", ["202001011730+0000"], ["202001011630+0000"]),
    ("DT", "202001011200+0100-", ["202001011100+0000"], ["202001011059+0000"]),
    ("DT", "-202001011200+0100", ["202001011100+0000"], ["202001011101+0000"]),
    ("DT", "202001021200+1400", ["202001012200+0000"], ["202001021200+0000"]),
    ("DT", "202001021200-1200", ["202001030000+0000"], ["202001021200+0000"]),
    # Names: case and accents don't count, components do
    ("PN", "smith", ["SMITH", "Smith^", "Smith^^^", "=Smith", "x==SMITH"], ["Smith^John", "Smithson"]),
    ("PN", "SMITH^JOHN", ["Smith^John", "smith ^ john"], ["Smith", "Smith^John^W", "Smith^^John"]),
    ("PN", "muller", ["Müller", "MU\u0308LLER"], ["Mueller"]),
    ("PN", "Straße", ["STRASSE"], ["Strase"]),
    ("PN", "van der  Berg", ["Van Der Berg"], ["vanderberg"]),
    ("PN", "smith*", ["Smith", "Smith^John", "Smithson^A"], ["John^Smith"]),
    ("PN", "*john*", ["Smith^John", "Johnson", "=Johns"], ["Smith^Jo"]),
    (
        "PN",
        "smith^j*",
        ["Smith^John", "SMITH^J", "Smith^John^W", "a=Smith^Jo"],
        ["Smith", "Smith^A^J", "Smithj"],
    ),
    ("PN", "sm?th^john", ["Smith^John"], ["Smith^John^W", "Smooth^John"]),
    ("PN", "smith^*", ["Smith", "Smith^", "Smith^John"], ["Smithson"]),
    ("PN", "*^john", ["Smith^John", "^John"], ["Smith^A^John"]),
    ("PN", "smith^^*dr", ["Smith^^Dr"], ["Smith^John^Dr"]),
    ("PN", "yamada^tarou=山田^太郎", ["Yamada^Tarou=山田^太郎=x"], ["Yamada^Tarou", "Yamada^Tarou=山本"]),
    ("PN", "=山田*", ["Yamada=山田^太郎"], ["山田^太郎", "Yamada"]),
    ("PN", "*=山田", ["=山田", "Yamada=山田"], ["山田"]),
    ("PN", "山田^太郎", ["Yamada^Tarou=山田^太郎"], ["Yamada^Tarou"]),
    ("PN", "ｶﾞ?", ["ガク"], ["カク", "ガ"]),  # half width is compatible; voiced is another letter
    ("PN", "홍^?동", ["홍^길동"], ["홍^동"]),
    ("PN", r"smith\jones^a*", ["Smith", "Jones^Ann"], ["Jones"]),
]


@pytest.mark.parametrize(("vr", "text", "yes", "no"), TABLE)
def test_a_key_matches_these_values_and_not_those(vr, text, yes, no):
    match = parse(vr, text)
    assert [value for value in yes if not match.matches([value])] == []
    assert [value for value in no if match.matches([value])] == []


@pytest.mark.parametrize(("vr", "text", "yes", "no"), TABLE)
def test_an_index_that_follows_the_match_finds_every_value_that_matches(vr, text, yes, no):
    match = parse(vr, text)
    for value in yes:
        normal = normalise_value(vr, value)
        # An index of names stores each group by itself.
        stored = normal.split("=") if vr == "PN" else [normal]
        if match.kind in (Kind.SINGLE, Kind.LIST):
            assert set(stored) & set(match.choices), value
        if match.kind in (Kind.SINGLE, Kind.RANGE):
            assert any((match.low or "") <= form <= (match.high or "\uffff") for form in stored), value
        if match.kind is Kind.WILDCARD:
            assert any(form.startswith(match.literal_prefix) for form in stored), value


@pytest.mark.parametrize(
    ("vr", "text", "kind", "choices", "low", "high", "prefix"),
    [
        ("LO", "", Kind.UNIVERSAL, (), None, None, ""),
        ("DA", "*", Kind.UNIVERSAL, (), None, None, ""),
        ("PN", "*^*", Kind.UNIVERSAL, (), None, None, ""),
        ("PN", "^^", Kind.UNIVERSAL, (), None, None, ""),
        ("SQ", " ", Kind.UNIVERSAL, (), None, None, ""),
        ("LO", "A ", Kind.SINGLE, ("A",), "A", "A", ""),
        ("DS", "1", Kind.SINGLE, ("1.0",), "1.0", "1.0", ""),
        ("UI", "1.2,1.3", Kind.LIST, ("1.2", "1.3"), None, None, ""),
        ("LO", "ab?c*", Kind.WILDCARD, (), None, None, "ab"),
        ("CS", r"MRx*\MR*", Kind.WILDCARD, (), None, None, "MR"),
        ("CS", r"M*\CT", Kind.WILDCARD, (), None, None, ""),
        ("PN", "Müller^J*", Kind.WILDCARD, (), None, None, "muller^j"),
        ("PN", "Müller^*", Kind.WILDCARD, (), None, None, "muller"),
        ("PN", "=山*", Kind.WILDCARD, (), None, None, "山"),
        ("PN", "a=b", Kind.SINGLE, ("a",), "a", "a", ""),
        ("DA", "2001.01.01", Kind.SINGLE, ("20010101",), "20010101", "20010101", ""),
        ("DA", "20010101-", Kind.RANGE, (), "20010101", None, ""),
        ("DA", "-20010101", Kind.RANGE, (), None, "20010101", ""),
        ("TM", "10", Kind.RANGE, (), "100000.000000", "105959.999999", ""),
        ("TM", "2200-0200", Kind.RANGE, (), "220000.000000", "020059.999999", ""),
        ("DT", "20240229", Kind.RANGE, (), "20240229000000.000000", "20240229235959.999999", ""),
        ("DT", "20240101-0500", Kind.RANGE, (), "20240101050000.000000", "20240102045959.999999", ""),
        ("DT", "-0500", Kind.RANGE, (), None, "05001231235959.999999", ""),  # no value before it: a year
    ],
)
def test_a_key_has_this_kind_and_these_bounds(vr, text, kind, choices, low, high, prefix):
    match = parse(vr, text)
    found = (match.kind, match.choices, match.low, match.high, match.literal_prefix)
    assert found == (kind, choices, low, high, prefix)


@pytest.mark.parametrize("vr", ["LO", "PN", "DA", "UI", "IS", "SQ", "OB"])
def test_a_universal_key_matches_an_element_that_is_not_there(vr):
    assert parse(vr, "").matches([])
    assert parse(vr, "*").matches([])


@pytest.mark.parametrize(
    ("vr", "text"),
    [("LO", "a"), ("LO", "*a*"), ("PN", "a"), ("PN", "?"), ("DA", "-20240101"), ("IS", "0"), ("UI", "1.2")],
)
def test_a_key_that_asks_for_something_matches_no_empty_element(vr, text):
    match = parse(vr, text)
    assert not match.matches([])
    assert not match.matches([None])
    assert not match.matches(["", None])


def test_any_of_several_values_is_enough():
    assert parse("CS", "MR").matches(["CT", None, "MR"])
    assert not parse("CS", "MR").matches(["CT", "PT"])


@pytest.mark.parametrize(
    ("vr", "text", "words"),
    [
        ("DA", "20240230", "neither a DA value nor a range"),
        ("DA", "2024", "neither a DA value nor a range"),
        ("DA", "2024*", "neither a DA value nor a range"),
        ("DA", "2024-01-01", "neither a DA value nor a range"),
        ("DA", "-", "neither a DA value nor a range"),
        ("DA", "20240101-tomorrow", "'tomorrow' is no DA value"),
        ("DA", "20240102-20240101", "ends before it begins"),
        ("DA", r"20240101\20240102", "neither a DA value nor a range"),
        ("DA", "\u0662\u0660\u0662\u0664\u0660\u0661\u0660\u0661", "neither a DA value nor a range"),
        ("TM", "25", "neither a TM value nor a range"),
        ("TM", "1060", "neither a TM value nor a range"),
        ("TM", "10-1060", "'1060' is no TM value"),
        ("DT", "202413", "neither a DT value nor a range"),
        ("DT", "2024-1300", "ends before it begins"),  # -1300 is no offset, so the year 1300
        ("DT", "00010101+0100", "neither a DT value nor a range"),  # in UTC before the year 1
        ("IS", "seven", "'seven' is no number"),
        ("IS", "1*", "is no number"),
        ("IS", "1_0", "is no number"),
        ("US", "1.5", "is no number"),
        ("FL", "1e99", "is no number"),
        ("AT", "Nothing", "neither a keyword"),
        ("UI", "1.2.*", "wildcards don't work on UIDs"),
        ("UI", ",", "no value between its separators"),
        ("SQ", "a", "VR SQ can't be matched"),
        ("UN", "a", "VR UN can't be matched"),
        ("OB", "a", "VR OB can't be matched"),
    ],
)
def test_a_key_that_its_vr_cannot_hold_is_a_bad_query_that_says_why(vr, text, words):
    with pytest.raises(BadQuery, match=words):
        parse(vr, text)


def test_a_bad_query_quotes_no_more_than_a_line_of_the_key():
    with pytest.raises(BadQuery) as failure:
        parse("DA", "x" * 1_000_000)
    assert len(str(failure.value)) < 250


@pytest.mark.parametrize(
    ("vr", "text", "normal"),
    [
        ("LO", " a  B\0", "a  B"),
        ("DA", "2024.01.31", "20240131"),
        ("DA", "20240132", ""),
        ("TM", "1030", "103000.000000"),
        ("TM", "235960.25", "235959.250000"),  # a leap second stays in its minute
        ("TM", "103000.1234567", "103000.123456"),
        ("DT", "2024", "20240101000000.000000"),
        ("DT", "20240101003000+0100", "20231231233000.000000"),
        ("IS", "+007", "7"),
        ("IS", "7.0", "7"),
        ("IS", "a", "a"),
        ("DS", "1.50", "1.5"),
        ("DS", "-0", "0.0"),
        ("AT", "7fe00010", "7FE00010"),
    ],
)
def test_text_has_this_normal_form(vr, text, normal):
    assert normalise_text(vr, text) == normal


@pytest.mark.parametrize(
    ("name", "normal"),
    [
        ("SMITH^", "smith"),
        ("Smith^John^^Dr^", "smith^john^^dr"),
        (" Smith  A ^ John ", "smith a^john"),
        ("^John", "^john"),
        ("==a^=", "==a"),
        ("Jérôme", "jerome"),
        ("Çavuşoğlu", "cavusoglu"),
        ("İzmir", "izmir"),
        ("ΔΙΟΝΥΣΊΟΣ", "διονυσιοσ"),
        ("\uff39ama\uff44a=ﾔﾏﾀﾞ", "yamada=ヤマダ"),  # full-width Y and d, half-width Katakana
        ("홍^길동", "홍^길동"),
        ("", ""),
    ],
)
def test_a_name_has_this_normal_form(name, normal):
    assert normalise_name(name) == normal


def test_a_key_of_many_wildcards_takes_no_longer_than_its_length_times_the_text_s():
    # A pattern that goes back would try each of the 131 million ways to choose 6 of the 70 letters.
    match = parse("LT", "*a" * 6 + "*b")
    start = time.perf_counter()
    assert not match.matches(["a" * 70])
    assert time.perf_counter() - start < 0.5


@given(st.text())
@settings(deadline=None)
def test_the_normal_form_of_a_normal_name_is_itself(name):
    assert normalise_name(normalise_name(name)) == normalise_name(name)


@given(st.sampled_from(["LO", "DA", "TM", "DT", "IS", "DS", "FL", "US", "AT", "UI"]), st.text())
@settings(deadline=None)
def test_the_normal_form_of_normal_text_is_itself(vr, text):
    assert normalise_text(vr, normalise_text(vr, text)) == normalise_text(vr, text)


@given(st.text(alphabet="ab*?.[", max_size=8), st.text(alphabet="ab.[", max_size=8))
@settings(deadline=None, max_examples=1000)
def test_wildcards_match_as_their_definition_says(key, text):
    assume(("*" in key or "?" in key) and key.strip("*"))
    assert parse("LO", key).matches([text]) == _matches_by_definition(key, text)


def _matches_by_definition(key: str, text: str) -> bool:
    if not key:
        return not text
    if key[0] == "*":
        return any(_matches_by_definition(key[1:], text[start:]) for start in range(len(text) + 1))
    return bool(text) and key[0] in ("?", text[0]) and _matches_by_definition(key[1:], text[1:])


@given(
    st.sampled_from(["AE", "PN", "LO", "DA", "TM", "DT", "IS", "DS", "FL", "US", "AT", "UI", "UR"]), st.text()
)
@settings(deadline=None)
def test_a_key_is_a_match_or_a_bad_query_and_nothing_else(vr, text):
    try:
        match = parse(vr, text)
    except BadQuery:
        return
    match.matches([text, 1, 1.5, None])


# --- Empty values, fuzzy names, moments ----------------------------------------


@pytest.mark.parametrize("vr", ["LO", "PN", "DA", "TM", "DT", "IS", "UI", "SQ", "OB", "AT"])
def test_two_quotation_marks_ask_for_what_is_empty_where_that_was_agreed(vr):
    match = parse(vr, '""', empty_value=True)
    assert match.kind is Kind.EMPTY
    assert match.matches([])
    assert match.matches(["", None])
    assert not match.matches(["20240101", ""])


NAMES = st.text(alphabet="abcdeh^=*? 'ü山", max_size=12)


@given(NAMES, NAMES.filter(lambda name: not set(name) & set("*?")))
@settings(deadline=None, max_examples=1000)
def test_what_matches_a_name_matches_it_fuzzily_too(key, name):
    plain, fuzzy = parse("PN", key), parse("PN", key, fuzzy=True)
    assert fuzzy.matches([name]) or not plain.matches([name])


@given(NAMES, NAMES.filter(lambda name: not set(name) & set("*?")))
@settings(deadline=None, max_examples=1000)
def test_a_name_that_matches_fuzzily_has_the_literal_or_a_telling_word(key, name):
    match = parse("PN", key, fuzzy=True)
    normal = normalise_name(name)
    if match.kind is Kind.FUZZY and any(map(match.matches_normal, normal.split("="))):
        assert match.literal in normal or match.telling_words(words_of(normal))


@pytest.mark.parametrize(
    ("key", "yes", "no"),
    [
        ("john smith", ["Smith^John", "SMITH^JOHN^A", "x=Smith^John"], ["Smith^Jane", "Smith=John"]),
        ("jo sm", ["Smith^John"], ["Bloggs^Jo"]),
        ("smiht", ["Smith"], ["Smart"]),
        ("smth", ["Smith"], ["Sam"]),
        ("johannson", ["Johansson", "Johanssen"], ["Jansen"]),
        ("meier", ["Mayer", "Maier", "Meyer"], ["Mueller"]),
        ("phillip", ["Filip"], ["Paul"]),
        ("tom", ["Tom", "Tommy"], ["Tim"]),  # too short for a slip
        ("van der berg", ["Berg^Van Der", "Van-Der-Berg"], ["Berg^Van"]),
        ("山田", ["=山田^太郎"], ["=山本^太郎"]),
        ("a=b", ["A^x=B^y"], ["A^x"]),
    ],
)
def test_a_fuzzy_key_matches_these_names_and_not_those(key, yes, no):
    match = parse("PN", key, fuzzy=True)
    assert [name for name in yes if not match.matches([name])] == []
    assert [name for name in no if match.matches([name])] == []


def test_fuzzy_is_for_names_alone():
    assert parse("LO", "smiht", fuzzy=True).kind is Kind.SINGLE
    assert parse("PN", "*", fuzzy=True).kind is Kind.UNIVERSAL


@pytest.mark.parametrize(
    ("date", "time", "zone", "offset", "yes", "no"),
    [
        # One range: from the first time of the first day to the last of the last.
        ("20240101-20240103", "1000-1100", None, None,
         ["20240102 0000", "20240101 10", "20240103 1100"],
         ["20240101 0959", "20240103 1101", "20240104 1030", "20240101 ", " 1030"]),
        ("20240101-20240103", "1100-1000", None, None, ["20240102 ", "20240102 2359"],
         ["20240101 10", "20240103 "]),
        ("20240101-", "10-", None, None, ["20240101 10", "20240102 09", "20240102 "],
         ["20240101 09", "20240101 "]),
        # Two: one of them is no range, or bounded where the other is not.
        ("20240101", "10-11", None, None, ["20240101 1030"], ["20240101 12", "20240102 1030"]),
        ("20240101-20240103", "10", None, None, ["20240102 1030"], ["20240102 11"]),
        ("20240101-", "-10", None, None, ["20240102 09"], ["20240102 11", "20231231 09"]),
        # In the zone of the query.
        ("20240101", "", 0, "+0200", ["20240102 0130", "20240101 12", "20240101 "],
         ["20240101 0130", "20240102 03"]),
        ("", "23", 0, "+0200", ["20240102 0130", " 0130"], ["20240102 2330"]),
        ("20240101-20240101", "22-23", -60, "+0100", ["20240102 0030"], ["20240101 2230"]),
        ("20240101", "", 0, None, ["20240101 0130"], ["20240102 0130"]),
        ("99991231", "", 0, "-0200", ["99991231 2330"], []),  # the calendar ends there
    ],
)  # fmt: skip
def test_a_date_and_its_time_match_together(date, time, zone, offset, yes, no):
    asked = [parse(vr, text) if text else None for vr, text in (("DA", date), ("TM", time))]
    moments = Moments(*asked, zone=zone)

    def matches(stored):
        day, _, clock = stored.partition(" ")
        return moments.matches([day] if day else [], [clock] if clock else [], [offset] if offset else [])

    assert [stored for stored in yes if not matches(stored)] == []
    assert [stored for stored in no if matches(stored)] == []


def test_a_date_time_without_an_offset_is_in_the_zone_of_the_query_and_of_the_data_set():
    assert parse("DT", "2024010112", zone=60).matches(["2024010111+0000"])
    assert not parse("DT", "2024010112", zone=60).matches(["2024010112+0000"])
    assert parse("DT", "2024010112", zone=60).matches(["2024010113"], ["+0200"])
    assert parse("DT", "2024010112").matches(["2024010112+0900"])  # by the clock on its wall
    assert parse("DT", "2024010112+0000").matches(["2024010112"])  # nobody says otherwise


@pytest.mark.parametrize("text", ["", "1", "+1", "+01:00", "+1500", "-1300", "CET", "+0160"])
def test_what_is_no_offset_from_utc_is_a_bad_query(text):
    with pytest.raises(BadQuery, match="no offset from UTC"):
        parse_offset(text)
    assert parse_offset("-0930") == -570
