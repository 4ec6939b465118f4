"""Takes what a test wants in a DICOM object; gives the bytes of a Part 10 file. Pure Python, no pydicom.

    element(0x00100020, "LO", b"P1")                      one element, explicit VR little endian
    make_object("2.25.1", "2.25.2", "2.25.3", pixels=b"..")     a whole file

The same arguments give the same bytes. Unknown keyword arguments are an error; `extra` takes elements of
the caller's own. Text is latin-1; lengths become even as PS3.5 7.1.1 (Data Element Fields) wants them.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from struct import pack

EXPLICIT_LE = "1.2.840.10008.1.2.1"
IMPLICIT_LE = "1.2.840.10008.1.2"
JPEG_BASELINE = "1.2.840.10008.1.2.4.50"
CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
MR_IMAGE = "1.2.840.10008.5.1.4.1.1.4"

LONG_VRS = {"OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"}
ZERO_PADDED = {"UI", "OB", "OW", "OD", "OF", "OL", "OV", "UN"}
UNDEFINED = 0xFFFFFFFF

Value = bytes | str | int


def value_bytes(vr: str, value: Value) -> bytes:
    """A value as it lies in a file: an int by its VR, text in latin-1, padded to an even length."""
    if isinstance(value, int):
        value = {"US": pack("<H", value & 0xFFFF), "UL": pack("<I", value & 0xFFFFFFFF)}.get(vr) or str(value)
    raw = value.encode("latin-1") if isinstance(value, str) else value
    return raw + (b"\0" if vr in ZERO_PADDED else b" ") * (len(raw) % 2)


def element(tag: int, vr: str, value: Value = b"", *, implicit: bool = False) -> bytes:
    """One data element: PS3.5 7.1.2 (Explicit VR), or 7.1.3 (Implicit VR) when `implicit`."""
    raw = value_bytes(vr, value)
    head = pack("<HH", tag >> 16, tag & 0xFFFF)
    if implicit:
        return head + pack("<I", len(raw)) + raw
    if vr in LONG_VRS:
        return head + vr.encode() + pack("<HI", 0, len(raw)) + raw
    return head + vr.encode() + pack("<H", len(raw)) + raw


def item(content: bytes) -> bytes:
    """One item with its length: of a sequence, or a fragment of encapsulated pixels."""
    return pack("<HHI", 0xFFFE, 0xE000, len(content)) + content


def sequence(tag: int, items: Iterable[bytes]) -> bytes:
    """A sequence of items of explicit length, each the elements in it."""
    return element(tag, "SQ", b"".join(item(one) for one in items))


def encapsulated(fragments: Sequence[bytes], offsets: Sequence[int] = ()) -> bytes:
    """Pixel Data of undefined length with one item for each fragment: PS3.5 A.4."""
    table = b"".join(pack("<I", offset) for offset in offsets)
    body = b"".join(item(f + b"\0" * (len(f) % 2)) for f in fragments)
    head = pack("<HH", 0x7FE0, 0x0010) + b"OB" + pack("<HI", 0, UNDEFINED)
    return head + item(table) + body + pack("<HHI", 0xFFFE, 0xE0DD, 0)


def file_meta(uid: str, sop_class: str, transfer_syntax: str) -> bytes:
    """Preamble, prefix and File Meta Information: PS3.10 7.1."""
    body = b"".join(
        (
            element(0x00020001, "OB", b"\0\1"),
            element(0x00020002, "UI", sop_class),
            element(0x00020003, "UI", uid),
            element(0x00020010, "UI", transfer_syntax),
            element(0x00020012, "UI", "2.25.7"),
        )
    )
    return b"\0" * 128 + b"DICM" + element(0x00020000, "UL", len(body)) + body


def noise(size: int, seed: int | str = 0) -> bytes:
    """Bytes that no codec makes smaller, the same for the same seed."""
    return random.Random(seed).randbytes(size)


def make_object(
    uid: str,
    study: str,
    series: str,
    *,
    pixels: bytes | None = None,
    fragments: Sequence[bytes] | None = None,
    name: str = "Doe^Jane",
    patient_id: str = "P1",
    issuer: str | None = None,
    birth_date: str = "19700101",
    sex: str = "F",
    modality: str = "CT",
    sop_class: str = CT_IMAGE,
    study_date: str = "20240102",
    study_time: str = "101112",
    study_description: str = "Thorax",
    series_description: str = "axial",
    accession: str = "A1",
    study_id: str = "S1",
    series_number: int = 1,
    instance_number: int = 1,
    character_set: str | None = None,
    rows: int | None = None,
    columns: int | None = None,
    bits: int = 8,
    frames: int = 1,
    transfer_syntax: str | None = None,
    extra: Iterable[tuple[int, bytes]] = (),
) -> bytes:
    """A whole DICOM file with one instance.

    `pixels` are native bytes; without `rows` and `columns` the image is one row as wide as they are.
    `fragments` are encapsulated frames, one fragment each. With neither there is no Pixel Data. `extra` are
    (tag, element bytes) pairs, put in their place in the data set; one whose tag is there already takes its
    place.
    """
    implicit = transfer_syntax == IMPLICIT_LE
    if transfer_syntax is None:
        transfer_syntax = EXPLICIT_LE if fragments is None else JPEG_BASELINE
    texts: list[tuple[int, str, Value | None]] = [
        (0x00080005, "CS", character_set),
        (0x00080016, "UI", sop_class),
        (0x00080018, "UI", uid),
        (0x00080020, "DA", study_date),
        (0x00080030, "TM", study_time),
        (0x00080050, "SH", accession),
        (0x00080060, "CS", modality),
        (0x00081030, "LO", study_description),
        (0x0008103E, "LO", series_description),
        (0x00100010, "PN", name),
        (0x00100020, "LO", patient_id),
        (0x00100021, "LO", issuer),
        (0x00100030, "DA", birth_date),
        (0x00100040, "CS", sex),
        (0x0020000D, "UI", study),
        (0x0020000E, "UI", series),
        (0x00200010, "SH", study_id),
        (0x00200011, "IS", series_number),
        (0x00200013, "IS", instance_number),
    ]
    elements = {
        tag: element(tag, vr, value, implicit=implicit) for tag, vr, value in texts if value is not None
    }
    if pixels is not None or fragments is not None:
        if rows is None or columns is None:
            rows, columns = 1, max(1, min(0xFFFF, len(pixels or b"") // (bits // 8) // frames))
        image: list[tuple[int, str, Value]] = [
            (0x00280002, "US", 1),
            (0x00280004, "CS", "MONOCHROME2"),
            (0x00280008, "IS", frames),
            (0x00280010, "US", rows),
            (0x00280011, "US", columns),
            (0x00280100, "US", bits),
            (0x00280101, "US", bits),
            (0x00280102, "US", bits - 1),
            (0x00280103, "US", 0),
        ]
        elements |= {tag: element(tag, vr, value, implicit=implicit) for tag, vr, value in image}
        if fragments is not None:
            elements[0x7FE00010] = encapsulated(fragments)
        elif pixels is not None:
            vr = "OB" if bits == 8 else "OW"
            elements[0x7FE00010] = element(0x7FE00010, vr, pixels, implicit=implicit)
    elements.update(extra)
    return file_meta(uid, sop_class, transfer_syntax) + b"".join(elements[tag] for tag in sorted(elements))
