"""Takes the conditional and range headers of a request; gives what of a representation is to be sent. Reads
no data.

RFC 9110 13, Conditional Requests, and 14, Range Requests. The entity tags given here are strong: what they
name is the same byte for byte. Where an answer is packed on its way out, its tag is made weak there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from hilum.web.errors import BadRange, TooMany

_RANGE = re.compile(r"[ \t]*(?:(\d{1,19})-(\d{0,19})|-(\d{1,19}))[ \t]*")
_ETAG = re.compile(r'(?:W/)?("[^"]*")')

Headers = list[tuple[bytes, bytes]]


class Span(NamedTuple):
    """Bytes of a representation."""

    begin: int
    end: int  # behind the last

    def content_range(self, length: int) -> bytes:
        return b"bytes %d-%d/%d" % (self.begin, self.end - 1, length)


class Asked(NamedTuple):
    """The headers of a request that say under which conditions, and what part of it, is wanted."""

    accept: bytes = b""
    if_none_match: bytes = b""
    range: bytes = b""
    if_range: bytes = b""

    @property
    def is_plain(self) -> bool:
        """Whether the whole is wanted, whatever the client has."""
        return not (self.range or self.if_none_match)

    def holds(self, etag: bytes) -> bool:
        """Whether the client has this representation already: the answer is 304 then."""
        return bool(self.if_none_match) and _names(self.if_none_match, etag)

    def spans(self, etag: bytes, length: int, count_max: int) -> Sequence[Span] | None:
        """The byte ranges that are asked for; None for the whole.

        A range that is no range is passed over, as RFC 9110 14.2 (Range) has it.

        Raises:
            BadRange: none of them lies in the representation.
            TooMany: more than count_max.
        """
        if not self.range or (self.if_range and self.if_range.strip() != etag):
            return None
        unit, _, text = self.range.decode("latin-1").partition("=")
        if unit.strip().lower() != "bytes":
            return None
        pieces = text.split(",")
        if len(pieces) > count_max:
            raise TooMany(f"{len(pieces)} ranges in one request, and {count_max} are allowed")
        found = []
        for piece in pieces:
            match = _RANGE.fullmatch(piece)
            if match is None or (match[1] and match[2] and int(match[2]) < int(match[1])):
                return None
            begin = int(match[1]) if match[1] else max(0, length - int(match[3]))
            end = min(length, int(match[2]) + 1) if match[2] else length
            if begin < end:
                found.append(Span(begin, end))
        if not found:
            raise BadRange(
                f"no byte of {text[:100]} lies in the {length} bytes that there are", length=length
            )
        return found


_FIELDS = {b"accept": 0, b"if-none-match": 1, b"range": 2, b"if-range": 3}


def asked_of(headers: Sequence[tuple[bytes, bytes]]) -> Asked:
    """What the headers of an ASGI scope ask for; a header that is there twice is a list."""
    found = [b"", b"", b"", b""]
    for name, value in headers:
        at = _FIELDS.get(name)
        if at is not None:
            found[at] = found[at] + b", " + value if found[at] else value
    return Asked(*found)


def _names(text: bytes, etag: bytes) -> bool:
    decoded = text.decode("latin-1")
    return decoded.strip() == "*" or etag.decode("latin-1") in _ETAG.findall(decoded)
