"""Takes what a client accepts, as header and as query parameter; gives media ranges, best first, and the
choice among offers. Pure functions; knows no resource.

PS3.18 8.7.5, Acceptable Media Types, on the grammar of RFC 9110 12.5.1, Accept. Lenient where clients are
careless: parameter values with "/" and no quotes, parameters without a value, empty list elements.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from hilum.errors import BadQuery

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_RANGE = re.compile(rf"[ \t]*({_TOKEN})(?:/({_TOKEN}))?[ \t]*")
# The value of a parameter: quoted with escapes, or all up to the next delimiter. RFC 9110 wants a token
# there, but type=application/dicom without quotes is what most clients send.
_PARAMETER = re.compile(
    rf'[ \t]*(?:({_TOKEN})[ \t]*(?:=[ \t]*("(?:[^"\\]|\\.)*"|[^;,"]*))?)?[ \t]*', re.DOTALL
)
# A list in pieces. A quotation without an end goes to the end: no piece is looked at twice.
_PIECE = re.compile(r'"(?:[^"\\]|\\.)*(?:"|\\?$)|[^",]+|,', re.DOTALL)
_WEIGHT = re.compile(r"0?\.\d+|0\.?|1(?:\.0*)?")


_LENGTH_MAX = 16_384
_REMEMBERED_LENGTH_MAX = 1024


class MediaRange(NamedTuple):
    """One media type, or a range of them with "*", that a client takes."""

    type: str  # lower case
    subtype: str
    params: dict[str, str]  # names in lower case, without q
    q: float = 1.0

    @property
    def name(self) -> str:
        return f"{self.type}/{self.subtype}"


def parse(header: str | None, query_accept: str | None = None) -> Sequence[MediaRange]:
    """What is accepted, best first; equal weights in the order they came in. Empty: anything.

    The query parameter counts alone where it is there: PS3.18 8.3.3.1, Accept Query Parameter, has it for
    links, whose Accept header is the browser's and not the page's.

    Raises:
        BadQuery: there is text, and no element of it is a media range; or there is far too much of it.
    """
    if query_accept:
        # A plus in a query string is a space once it is decoded: "application/dicom json".
        header = re.sub(r"(?<=[\w.]) (?=[\w.])", "+", query_accept)
    if not header:
        return ()
    if len(header) > _LENGTH_MAX:
        raise BadQuery(f"Accept has more than {_LENGTH_MAX:,} characters")
    return _remembered(header) if len(header) <= _REMEMBERED_LENGTH_MAX else _parse(header)


def _parse(text: str) -> tuple[MediaRange, ...]:
    found, failed = [], False
    for element in _elements(text):
        media = _media_range(element)
        if media is not None:
            found.append(media)
        elif element.strip(" \t"):
            # PS3.18 8.7.7, Accept Header Field: values that are not valid are ignored.
            failed = True
    if failed and not found:
        raise BadQuery(f"Accept has no media type that can be understood: {text[:200]!r}")
    found.sort(key=lambda media: -media.q)  # stable
    return tuple(found)


_remembered = lru_cache(maxsize=256)(_parse)  # a viewer sends the same few with thousands of requests


def _elements(text: str) -> list[str]:
    """The elements of a list; commas in quotations are no end of one."""
    elements: list[str] = []
    pieces: list[str] = []
    for piece in _PIECE.findall(text):
        if piece == ",":
            elements.append("".join(pieces))
            pieces = []
        else:
            pieces.append(piece)
    return [*elements, "".join(pieces)]


def _media_range(text: str) -> MediaRange | None:
    """One element; None if it is none."""
    head = _RANGE.match(text)
    if head is None:
        return None
    kind, subtype = head[1].lower(), (head[2] or "").lower()
    if kind == "*":
        if subtype not in ("", "*"):
            return None
        subtype = "*"  # old Java sends "*; q=.2"
    if not subtype:
        return None
    if (kind, subtype) == ("image", "jpg"):
        subtype = "jpeg"  # no registered name, and what many viewers of WADO-URI send
    at = head.end()
    params: dict[str, str] = {}
    weight = 1.0
    while at < len(text) and text[at] == ";":
        found = _PARAMETER.match(text, at + 1)
        assert found is not None  # all of it is optional
        at = found.end()
        name, value = (found[1] or "").lower(), _unquoted(found[2] or "")
        if name == "q":
            if not _WEIGHT.fullmatch(value):
                return None
            weight = float(value)
        elif name:
            params[name] = value
    return MediaRange(kind, subtype, params, weight) if at == len(text) else None


def _unquoted(value: str) -> str:
    if value.startswith('"'):
        return re.sub(r"\\(.)", r"\1", value[1:-1], flags=re.DOTALL)
    return value.rstrip(" \t")


def matches(media: MediaRange, offer: MediaRange) -> bool:
    """Whether an offer lies in a range. Parameters that the offer does not have are the client's own."""
    if media.type not in ("*", offer.type) or media.subtype not in ("*", offer.subtype):
        return False
    for name, value in media.params.items():
        offered = offer.params.get(name)
        if offered is not None and value not in ("", "*") and value.lower() != offered.lower():
            return False
    return True


def choose(ranges: Sequence[MediaRange], offers: Sequence[str]) -> str | None:
    """The offer that the client likes best; None if it takes none of them.

    The weight of an offer is that of the most specific range that it lies in: RFC 9110 12.5.1. Among equal
    weights, what is named goes before what a wildcard allows, then the order of the offers counts.
    """
    if not ranges:
        return offers[0] if offers else None
    best, chosen = (0.0, -1), None
    for offer in offers:
        weight, specific = weigh(ranges, _offered(offer))
        if weight > 0 and (weight, specific) > best:
            best, chosen = (weight, specific), offer
    return chosen


def weigh(ranges: Sequence[MediaRange], offer: MediaRange) -> tuple[float, int]:
    """(weight, specificity) of an offer; weight 0 if it is not accepted."""
    best, weight = -1, 0.0
    for media in ranges:
        if matches(media, offer):
            shared = sum(name in offer.params for name in media.params)
            specific = (media.type != "*") + (media.subtype != "*") + shared
            if specific > best:
                best, weight = specific, media.q
    return weight, best


def media_type(text: str) -> MediaRange:
    """One media type, as in Content-Type or an offer of ours.

    Raises:
        BadQuery: it is none.
    """
    found = _media_range(text)
    if found is None or "*" in (found.type, found.subtype):
        raise BadQuery(f"{text[:200]!r} is no media type")
    return found


_offered = lru_cache(maxsize=256)(media_type)
