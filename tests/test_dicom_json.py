"""element() and key(): the examples of PS3.18 F.2 and what must not break a document."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hilum.dicom.json import element, key


@pytest.mark.parametrize(
    ("vr", "values", "attribute"),
    [
        ("CS", [], {"vr": "CS"}),
        ("CS", ["CT", "MR"], {"vr": "CS", "Value": ["CT", "MR"]}),
        ("LO", ["a", None, ""], {"vr": "LO", "Value": ["a", None, None]}),  # F.2.5
        ("IS", [12, None, "1.2.3"], {"vr": "IS", "Value": [12, None, "1.2.3"]}),
        ("DS", [1.5, "1,5"], {"vr": "DS", "Value": [1.5, "1,5"]}),
        ("UV", [2**64 - 1], {"vr": "UV", "Value": [2**64 - 1]}),
        ("FD", [math.nan, math.inf, -math.inf], {"vr": "FD", "Value": ["NaN", "Infinity", "-Infinity"]}),
        ("AT", [0x0020000D, 0x7FE00010], {"vr": "AT", "Value": ["0020000D", "7FE00010"]}),
        ("PN", ["Buc^Jérôme"], {"vr": "PN", "Value": [{"Alphabetic": "Buc^Jérôme"}]}),
        (
            "PN",
            ["Yamada^Tarou=山田^太郎=やまだ^たろう"],
            {
                "vr": "PN",
                "Value": [
                    {"Alphabetic": "Yamada^Tarou", "Ideographic": "山田^太郎", "Phonetic": "やまだ^たろう"}
                ],
            },
        ),
        ("PN", ["=山田", None], {"vr": "PN", "Value": [{"Ideographic": "山田"}, None]}),
        (
            "PN",
            ["a=b=c=d"],
            {"vr": "PN", "Value": [{"Alphabetic": "a", "Ideographic": "b", "Phonetic": "c"}]},
        ),
        ("PN", ["==="], {"vr": "PN", "Value": [None]}),
    ],
)
def test_values_become_this_attribute(vr, values, attribute):
    assert element(vr, values) == attribute


def test_an_attribute_is_named_by_eight_upper_case_digits():
    assert key(0x0020000D) == "0020000D"


@given(
    st.sampled_from(["DS", "IS", "FD", "PN", "LO", "UL"]),
    st.lists(st.one_of(st.none(), st.text(), st.integers(), st.floats())),
)
@settings(deadline=None)
def test_no_values_break_a_strict_document(vr, values):
    document = json.dumps(element(vr, values), allow_nan=False)
    assert json.loads(document) == element(vr, values)
