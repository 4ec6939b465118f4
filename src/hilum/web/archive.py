"""Takes files as they are read; gives the bytes of a ZIP archive of them. Holds none of them, compresses
nothing.

APPNOTE.TXT 6.3, .ZIP File Format Specification. Sizes and checksums stand in front of each file where they
are known, so that the length of the whole archive is known before its first byte.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from struct import pack
from typing import NamedTuple
from zlib import crc32

_ZIP64 = 45  # version needed to extract
_STREAMED = 1 << 3  # flag: sizes and checksum stand behind the file
_DATE = 1 << 5 | 1  # 1980-01-01: what DICOM knows of time is in the files
_BIG = 0xFFFFFFFF


class Member(NamedTuple):
    """One file of an archive; `length` and `crc` are None where only reading it can tell."""

    name: str
    length: int | None
    crc: int | None


def length_of(members: Iterable[Member]) -> int | None:
    """Bytes of the whole archive; None where that is not known."""
    total = len(_end(0, 0, 0))
    for member in members:
        if member.length is None or member.crc is None:
            return None
        size = len(member.name.encode())
        total += 30 + size + 20 + member.length + 46 + size + 28
    return total


def archive(members: Iterable[tuple[Member, Iterable[bytes]]]) -> Iterator[bytes]:
    """Give the archive. What comes in a known length must be of that length."""
    at = 0
    entries: list[bytes] = []
    for member, pieces in members:
        name = member.name.encode()
        known = member.length is not None and member.crc is not None
        length, crc = member.length or 0, member.crc or 0
        flags = (1 << 11) | (0 if known else _STREAMED)  # names are UTF-8
        head = (
            pack("<IHHHHHIIIHH", 0x04034B50, _ZIP64, flags, 0, 0, _DATE, crc, _BIG, _BIG, len(name), 20)
            + name
            + pack("<HHQQ", 1, 16, length, length)
        )
        yield head
        if known:
            yield from pieces
        else:
            length = crc = 0
            for piece in pieces:
                crc = crc32(piece, crc)
                length += len(piece)
                yield piece
            yield pack("<IIQQ", 0x08074B50, crc, length, length)
        entries.append(
            pack(
                "<IHHHHHHIIIHHHHHII",
                0x02014B50, 3 << 8 | _ZIP64, _ZIP64, flags, 0, 0, _DATE, crc, _BIG, _BIG, len(name), 28,
                0, 0, 0, 0o100644 << 16, _BIG,
            )
            + name
            + pack("<HHQQQ", 1, 24, length, length, at)
        )  # fmt: skip
        at += len(head) + length + (0 if known else 24)
    yield from entries
    yield _end(len(entries), sum(map(len, entries)), at)


def _end(count: int, size: int, at: int) -> bytes:
    """The end of the central directory, in its form for large archives and in the plain one."""
    return (
        pack("<IQHHIIQQQQ", 0x06064B50, 44, _ZIP64, _ZIP64, 0, 0, count, count, size, at)
        + pack("<IIQI", 0x07064B50, 0, at + size, 1)
        + pack("<IHHHHIIH", 0x06054B50, 0, 0, 0xFFFF, 0xFFFF, _BIG, _BIG, 0)
    )
