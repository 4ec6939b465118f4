"""Takes what a data set is; gives the preamble and File Meta Information that make a file of it. Pure.

PS3.10 7.1, DICOM File Meta Information.
"""

from __future__ import annotations

from functools import lru_cache
from struct import pack

IMPLEMENTATION_CLASS_UID = "2.25.33522740148659646470473586052021516931"
IMPLEMENTATION_VERSION = "HILUM"


@lru_cache(maxsize=256)
def _begin(sop_class: str) -> bytes:
    return _element(0x0001, b"OB", b"\0\1") + _element(0x0002, b"UI", sop_class.encode("ascii", "replace"))


@lru_cache(maxsize=1024)
def _end(transfer_syntax: str, title: str) -> bytes:
    end = _element(0x0010, b"UI", transfer_syntax.encode("ascii", "replace"))
    end += _element(0x0012, b"UI", IMPLEMENTATION_CLASS_UID.encode())
    end += _element(0x0013, b"SH", IMPLEMENTATION_VERSION.encode())
    return end + (_element(0x0016, b"AE", title.encode("ascii", "replace")[:16]) if title else b"")


def _element(element: int, vr: bytes, value: bytes) -> bytes:
    value += (b" " if vr in (b"SH", b"AE") else b"\0") * (len(value) % 2)
    if vr == b"OB":
        return pack("<HH2sHI", 2, element, vr, 0, len(value)) + value
    return pack("<HH2sH", 2, element, vr, len(value)) + value


def file_meta(sop_class: str, uid: str, transfer_syntax: str, title: str = "") -> bytes:
    """Preamble and File Meta Information of an object that came without; `title` is the AE that sent it."""
    body = _begin(sop_class) + _element(0x0003, b"UI", uid.encode("ascii", "replace"))
    body += _end(transfer_syntax, title)
    return b"\0" * 128 + b"DICM" + pack("<HH2sHI", 2, 0, b"UL", 4, len(body)) + body


def without_meta(begin: bytes) -> int:
    """How many bytes of a file lie before its data set, told by the first 144 of them: (0002,0000) File Meta
    Information Group Length comes first, and counts what is behind it."""
    return 144 + int.from_bytes(begin[140:144], "little")
