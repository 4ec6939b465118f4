"""The grammar of Accept, and the choice among offers: PS3.18 8.7.5 on RFC 9110 12.5.1."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hilum.errors import BadQuery
from hilum.web.accept import MediaRange, _parse, choose, media_type, parse

OHIF_METADATA = "application/dicom+json, multipart/related; type=application/octet-stream; transfer-syntax=*"
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"
SLIDES = ", ".join(
    (
        'multipart/related; type="image/jls"; transfer-syntax=1.2.840.10008.1.2.4.80',
        'multipart/related; type="image/jp2"; transfer-syntax=1.2.840.10008.1.2.4.90',
        'multipart/related; type="application/octet-stream"; transfer-syntax=*',
        'multipart/related; type="image/jpeg"; transfer-syntax=1.2.840.10008.1.2.4.50',
    )
)


def names(text: str | None, query: str | None = None) -> list[str]:
    return [media.name for media in parse(text, query)]


@pytest.mark.parametrize("text", [None, "", "   ", ",", " , ,"])
def test_without_a_media_type_anything_is_accepted(text):
    assert list(parse(text)) == []
    assert choose(parse(text), ["a/b", "c/d"]) == "a/b"


def test_types_and_parameters_are_read_with_and_without_quotes():
    quoted = 'multipart/related; type="application/octet-stream"; transfer-syntax=*'
    plain = "multipart/related;type=application/octet-stream;transfer-syntax=*"
    odd = 'Multipart/Related ;TYPE = "application/octet-stream" ; Transfer-Syntax = "*"'
    expected = MediaRange(
        "multipart", "related", {"type": "application/octet-stream", "transfer-syntax": "*"}, 1.0
    )

    assert list(parse(quoted)) == list(parse(plain)) == list(parse(odd)) == [expected]


def test_quoted_values_may_hold_commas_semicolons_and_escapes():
    (media,) = parse(r'a/b; x="1, 2; \"3\" \\"; y=2')

    assert media.params == {"x": r'1, 2; "3" \ '.strip(), "y": "2"}


def test_the_best_comes_first_and_equals_in_their_order():
    assert names("a/a;q=0.5, b/b, c/c;q=0.9, d/d") == ["b/b", "d/d", "c/c", "a/a"]


@pytest.mark.parametrize(
    ("text", "weight"),
    [("a/b", 1), ("a/b;q=1", 1), ("a/b;q=1.000", 1), ("a/b;q=0.5", 0.5), ("a/b;q=.2", 0.2), ("a/b;q=0", 0),
     ("a/b;q=0.", 0), ('a/b;q="0.3"', 0.3), ("a/b ; q=0.25 ; x=1", 0.25), ("a/b;Q=0.5", 0.5)],
)  # fmt: skip
def test_a_weight_is_between_0_and_1(text, weight):
    assert parse(text)[0].q == weight


@pytest.mark.parametrize("weight", ["2", "-1", "high", "1.5", "0.5x", ".", "nan", "1e-1", "inf"])
def test_an_element_with_another_weight_is_ignored(weight):
    assert names(f"a/b;q={weight}, c/d") == ["c/d"]


@pytest.mark.parametrize("text", ["a", "a/", "/b", "a b/c", "*/b", "a/b c", "ä/b", "a/b/c;"])
def test_what_is_no_media_type_is_ignored_beside_one_that_is(text):
    assert names(f"{text}, c/d") == ["c/d"]
    assert names(f"c/d, {text}") == ["c/d"]


@pytest.mark.parametrize("text", ["a", "a/", ";;;", "text", '"', "a/b;q=2", "=", "a b c", "*/b"])
def test_nothing_but_what_is_no_media_type_is_a_bad_request(text):
    with pytest.raises(BadQuery, match="Accept"):
        parse(text)


def test_stray_parameters_do_no_harm():
    (media,) = parse("application/dicom; foo; bar=; ; charset=utf-8;boundary=x;")

    assert media.name == "application/dicom"
    assert media.params == {"foo": "", "bar": "", "charset": "utf-8", "boundary": "x"}
    assert choose([media], ["application/dicom"]) == "application/dicom"


def test_the_default_of_old_java_is_understood():
    assert names("text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2")[-1] == "*/*"


def test_a_quotation_without_an_end_spoils_its_own_element_and_none_before_it():
    assert names('c/d, a/b;x="1, e/f') == ["c/d"]


def test_the_query_parameter_counts_alone_where_it_is_there():
    assert names("text/html, */*", "image/jpeg") == ["image/jpeg"]
    assert names("text/html", "") == ["text/html"]


def test_a_plus_that_the_query_string_turned_into_a_space_is_a_plus_again():
    assert names(None, "application/dicom json, multipart/related; type=application/dicom xml") == [
        "application/dicom+json",
        "multipart/related",
    ]
    assert parse(None, "multipart/related; type=application/dicom xml")[0].params == {
        "type": "application/dicom+xml"
    }


@pytest.mark.parametrize(
    ("accept", "offers", "chosen"),
    [
        ("*/*", ["a/b", "c/d"], "a/b"),
        ("c/*, */*;q=0.1", ["a/b", "c/d"], "c/d"),
        ("c/d;q=0.1, */*", ["a/b", "c/d"], "a/b"),
        ("c/d, a/b", ["a/b", "c/d"], "a/b"),
        ("x/y", ["a/b"], None),
        ("a/b;q=0", ["a/b"], None),
        ("*/*, a/b;q=0", ["a/b", "c/d"], "c/d"),
        ("application/dicom+xml, */*", ["application/dicom+json", "application/dicom+xml"],
         "application/dicom+xml"),
        (OHIF_METADATA, ["application/dicom+json", 'multipart/related; type="application/dicom+xml"'],
         "application/dicom+json"),
        ('multipart/related; type="application/dicom+xml"',
         ["application/dicom+json", 'multipart/related; type="application/dicom+xml"'],
         'multipart/related; type="application/dicom+xml"'),
        ("multipart/related; type=application/dicom+json",
         ["application/dicom+json", 'multipart/related; type="application/dicom+xml"'], None),
        ("multipart/related", ['multipart/related; type="application/dicom+xml"'],
         'multipart/related; type="application/dicom+xml"'),
        ("APPLICATION/DICOM+JSON", ["application/dicom+json"], "application/dicom+json"),
        (BROWSER, ["application/pdf"], "application/pdf"),
        (SLIDES, ['multipart/related; type="image/jp2"; transfer-syntax=1.2.840.10008.1.2.4.91'], None),
        (SLIDES, ['multipart/related; type="application/octet-stream"; transfer-syntax=1.2.840.10008.1.2.1'],
         'multipart/related; type="application/octet-stream"; transfer-syntax=1.2.840.10008.1.2.1'),
    ],
)  # fmt: skip
def test_the_offer_that_the_client_likes_best_is_chosen(accept, offers, chosen):
    assert choose(parse(accept), offers) == chosen


def test_one_media_type_is_no_list_and_no_range():
    assert media_type('multipart/related; boundary="a b"').params == {"boundary": "a b"}
    for text in ("", "a", "*/*", "a/*", "a/b, c/d", "a/b,"):
        with pytest.raises(BadQuery):
            media_type(text)


TOKENS = st.text(string.ascii_lowercase + string.digits + "!#$&-^_.+", min_size=1, max_size=12)
TEXTS = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20)
WEIGHTS = st.integers(0, 1000).map(lambda thousandths: thousandths / 1000)


def written(media: MediaRange) -> str:
    params = "".join(
        ';{}="{}"'.format(name, value.replace("\\", "\\\\").replace('"', '\\"'))
        for name, value in media.params.items()
    )
    return f"{media.name}{params};q={media.q}"


RANGES = st.builds(
    MediaRange, TOKENS, TOKENS, st.dictionaries(TOKENS.filter(lambda name: name != "q"), TEXTS), WEIGHTS
)


@given(st.lists(RANGES, min_size=1, max_size=6), st.sampled_from([",", ", ", " ,, ", ",\t"]))
def test_what_is_written_by_the_grammar_is_read_back(ranges, between):
    expected = sorted(ranges, key=lambda media: -media.q)

    assert list(parse(between.join(map(written, ranges)))) == expected


@given(st.text(max_size=200) | st.text('a/*;,="\\ q.10+', max_size=60))
def test_any_text_is_read_or_refused(text):
    try:
        ranges = parse(text)
    except BadQuery:
        return
    assert all(0 <= media.q <= 1 and media.type and media.subtype for media in ranges)
    choose(ranges, ["application/dicom+json", 'multipart/related; type="application/dicom"'])


@pytest.mark.parametrize("unit", ['"', ',"', "a/b;", '"\\"', "\\", ";", "a/b,", 'a/b;x="1\\"', " "])
def test_a_hostile_header_is_read_in_one_pass(unit):
    # A reader that goes back over what it has read would take hours for this.
    _parse("c/d, a/b;x=" + unit * (1_000_000 // len(unit)))


def test_a_header_of_absurd_length_is_a_bad_request():
    with pytest.raises(BadQuery, match="16,384"):
        parse("a/b," * 5000)
