"""The bytes that packs and index hold for an instance, a series, a study and a patient. Takes and gives
bytes and tuples; touches no disk. docs/format.md has every layout here in words.

Entries are the parser's own form for indexed values, kept as they are: u8 number (the place in
`_fastparse.wanted()`), u8 flags, u16 length, value. Numbers are little endian, text is raw and is decoded
when someone asks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from struct import Struct
from typing import NamedTuple

from isal.isal_zlib import crc32

from hilum import _fastpack, _fastparse
from hilum.dicom.values import decode_values
from hilum.errors import BadDicom, Corrupt

PATIENT, STUDY, SERIES, INSTANCE = 1, 2, 3, 4

_WANTED = _fastparse.wanted()
NUMBER_OF = {tag: number for number, (tag, _, _, nested) in enumerate(_WANTED) if not nested}
NESTED_NUMBER_OF = {tag: number for number, (tag, _, _, nested) in enumerate(_WANTED) if nested}
TAG_OF = [tag for tag, _, _, _ in _WANTED]
VR_OF = [vr for _, vr, _, _ in _WANTED]
LEVEL_OF = [level for _, _, level, _ in _WANTED]
REQUEST_ATTRIBUTES = 0x00400275

CHARSET = NUMBER_OF[0x00080005]
NUMBER_COUNT = len(_WANTED)

Value = str | int | float | None


def split_entries(entries: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Give (number, entry flags, value) of each entry, in the order in which they stand."""
    at, size = 0, len(entries)
    while at + 4 <= size:
        length = entries[at + 2] | entries[at + 3] << 8
        yield entries[at], entries[at + 1], entries[at + 4 : at + 4 + length]
        at += 4 + length


def levels_of(upper: bytes) -> tuple[bytes, bytes]:
    """Part the parser's upper entries into (patient and study, series); the character set goes to both."""
    study, series = [], []
    at, size = 0, len(upper)
    while at + 4 <= size:
        end = at + 4 + (upper[at + 2] | upper[at + 3] << 8)
        level = LEVEL_OF[upper[at]]
        if level != SERIES:
            study.append(upper[at:end])
        if level in (0, SERIES):
            series.append(upper[at:end])
        at = end
    return b"".join(study), b"".join(series)


def entry(number: int, value: bytes, vr: str | None = None) -> bytes:
    """Make one entry; `vr` where it differs from the table's."""
    flags = 0
    if vr is not None and vr != VR_OF[number]:
        flags, value = _fastparse.ENTRY_HAS_VR, vr.encode("ascii") + value
    return entry_bytes(number, flags, value)


def entry_bytes(number: int, flags: int, value: bytes) -> bytes:
    """What split_entries gave, put back."""
    return bytes((number, flags, len(value) & 0xFF, len(value) >> 8)) + value


class LeftInHead(Exception):
    """The value is too long for the index: the caller must read it from the head."""


def values_of(entries: bytes, number: int) -> list[Value]:
    """Decode one attribute out of entries; [] where it is absent or empty.

    Raises:
        LeftInHead: see there.
        BadDicom: the bytes can't be a value of their VR.
    """
    if LEVEL_OF[number] and _is_nested(number):
        charset = _raw(entries, CHARSET)
        return [
            value
            for found, flags, raw in split_entries(entries)
            if found == number
            for value in _decode(number, flags, raw, charset)
        ]
    found = _fastparse.find_entry(entries, number)
    if found is None:
        return []
    return _decode(number, found[0], found[1], _raw(entries, CHARSET) if number != CHARSET else b"")


def text_of(entries: bytes, number: int) -> str:
    """The first value as text, "" where there is none or it is not decodable: for keys and labels."""
    try:
        values = values_of(entries, number)
    except (BadDicom, LeftInHead):
        return ""
    return "" if not values or values[0] is None else str(values[0])


def raw_of(entries: bytes, number: int) -> bytes:
    """The value's bytes without padding."""
    return _raw(entries, number)


def _is_nested(number: int) -> bool:
    return _WANTED[number][3]


def _raw(entries: bytes, number: int) -> bytes:
    found = _fastparse.find_entry(entries, number)
    if found is None:
        return b""
    flags, value = found
    return (value[2:] if flags & _fastparse.ENTRY_HAS_VR else value).rstrip(b"\0 ")


def _decode(number: int, flags: int, raw: bytes, charset: bytes) -> list[Value]:
    if flags & _fastparse.ENTRY_IN_HEAD:
        raise LeftInHead
    vr = VR_OF[number]
    if flags & _fastparse.ENTRY_HAS_VR:
        vr, raw = raw[:2].decode("latin-1"), raw[2:]
    return decode_values(vr, raw, charset)


# --- In a head pack: what is written once for each instance -------------------


class Hole(NamedTuple):
    """A bulk value that was taken out of the head."""

    offset: int  # bytes from the start of the original; of the inflated data set in `inflated_holes`
    length: int
    tag: int
    crc: int  # CRC-32 of the value
    digest: bytes  # BLAKE3-256 of the value


class Head(NamedTuple):
    """One instance without its bulk values, as a head record holds it."""

    flags: int
    original_length: int
    original_crc: int
    data_set_at: int
    arrived_us: int  # microseconds since 1970-01-01 UTC
    transfer_syntax: bytes
    source: bytes  # where it came from, free text: a path, an AE title
    holes: Sequence[Hole]
    head: bytes  # the original without the holes
    inflated_holes: Sequence[Hole]  # of a deflated data set only; lengths and offsets are inflated bytes
    inflated: bytes  # and its head, without them; empty otherwise


# Flags of a head and of an instance.
PART10 = 1
TRUNCATED = 2  # Pixel Data promises more than the file holds
DEFLATED = 4
ENCAPSULATED = 8
BIG_ENDIAN = 16
IMPLICIT_VR = 32
BY_PYDICOM = 64  # the parser left this one to pydicom
VALUE_LEFT = 128  # an indexed value is too long for the index

_HEAD = Struct("<IBBHQIIQIIHHI")
_HOLE = Struct("<QQII32s")
HEAD_VERSION = 1
assert _HEAD.size == 48
assert _HOLE.size == 56


def pack_head(head: Head) -> bytes:
    """The head part of a head record's payload; tables, if any, follow it there."""
    return _fastpack.pack_head(HEAD_VERSION, *head)


def unpack_head(payload: bytes) -> Head:
    """Read what pack_head wrote; bytes behind it (tables) are left alone.

    Raises:
        Corrupt: the checksum does not fit, or a length runs past the end.
    """
    if len(payload) < _HEAD.size:
        raise Corrupt(f"head of {len(payload)} bytes is too short")
    (
        crc,
        version,
        flags,
        hole_count,
        original_length,
        original_crc,
        data_set_at,
        arrived_us,
        head_length,
        inflated_length,
        counts,
        source_length,
        _,
    ) = _HEAD.unpack_from(payload)
    syntax_length, inflated_hole_count = counts & 0xFF, counts >> 8
    holes_at = _HEAD.size + syntax_length + source_length
    inflated_holes_at = holes_at + hole_count * _HOLE.size
    head_at = inflated_holes_at + inflated_hole_count * _HOLE.size
    end = head_at + head_length + inflated_length
    if version != HEAD_VERSION or end > len(payload) or crc32(payload[4:end]) != crc:
        raise Corrupt("checksum of a head does not fit")
    return Head(
        flags=flags,
        original_length=original_length,
        original_crc=original_crc,
        data_set_at=data_set_at,
        arrived_us=arrived_us,
        transfer_syntax=payload[_HEAD.size : _HEAD.size + syntax_length],
        source=payload[holes_at - source_length : holes_at],
        holes=_unpack_holes(payload, holes_at, hole_count),
        head=payload[head_at : head_at + head_length],
        inflated_holes=_unpack_holes(payload, inflated_holes_at, inflated_hole_count)
        if inflated_hole_count
        else (),
        inflated=payload[head_at + head_length : end],
    )


def _unpack_holes(payload: bytes, at: int, count: int) -> list[Hole]:
    return [
        Hole(offset, length, tag, crc, digest)
        for offset, length, tag, crc, digest in _HOLE.iter_unpack(payload[at : at + count * _HOLE.size])
    ]


def head_part_length(head: Head) -> int:
    """Bytes of pack_head's answer, without making it."""
    return (
        _HEAD.size
        + len(head.transfer_syntax)
        + len(head.source)
        + (len(head.holes) + len(head.inflated_holes)) * _HOLE.size
        + len(head.head)
        + len(head.inflated)
    )


def identity_of(transfer_syntax: bytes, data_set_at: int, holes: Sequence[Hole], head: bytes) -> bytes:
    """BLAKE3-256 over what makes two objects the same: transfer syntax and data set bytes.

    Preamble and File Meta Information don't count, since C-STORE carries none; so the offsets of the
    holes count from the start of the data set.
    """
    return _fastpack.identity_of(transfer_syntax, data_set_at, holes, head)


# --- Frame tables, behind the head part of a payload --------------------------

FRAME_ENTRY = Struct("<QQII")  # offset in the value, length there, CRC-32 of those bytes, zero
BLOCK_SIZE = 262_144  # native pixels carry one CRC-32 for each block of this many bytes
assert FRAME_ENTRY.size == 24


# --- In the index -------------------------------------------------------------


class Instance(NamedTuple):
    """What the index holds of one instance: enough to find it, and to read a frame of it."""

    flags: int
    container: int  # where its head record is
    offset: int  # of that record's payload
    head_length: int  # bytes of the payload's head part
    table_length: int  # bytes of the tables behind it: frames if encapsulated, else block CRCs
    sequence: int  # of that record
    original_length: int
    identity: bytes
    pixel_tag: int  # the element with the pixels at top level; 0 where there are none
    pixel_offset: int  # of its value in the original
    pixel_length: int  # of its value; 0 for none
    pixel_crc: int
    pixel_digest: bytes  # b"" when the value lies in the head, or there are none
    pixel_words: bool  # big endian OW: see FrameReader
    transfer_syntax: bytes
    entries: bytes


_INSTANCE = Struct("<BBBBIQIIQQ32s")
_PIXELS = Struct("<QQI")
_PIXEL_TAGS = (0, 0x7FE00010, 0x7FE00008, 0x7FE00009)
_PIXELS_IN_HEAD = 16
_PIXELS_IN_WORDS = 32
INSTANCE_VERSION = 1

# The most common transfer syntaxes take one byte in a record, not twenty. Append only.
_SYNTAX_CODES = (
    b"",
    b"1.2.840.10008.1.2",
    b"1.2.840.10008.1.2.1",
    b"1.2.840.10008.1.2.1.99",
    b"1.2.840.10008.1.2.2",
    b"1.2.840.10008.1.2.4.50",
    b"1.2.840.10008.1.2.4.51",
    b"1.2.840.10008.1.2.4.57",
    b"1.2.840.10008.1.2.4.70",
    b"1.2.840.10008.1.2.4.80",
    b"1.2.840.10008.1.2.4.81",
    b"1.2.840.10008.1.2.4.90",
    b"1.2.840.10008.1.2.4.91",
    b"1.2.840.10008.1.2.4.201",
    b"1.2.840.10008.1.2.4.202",
    b"1.2.840.10008.1.2.4.203",
    b"1.2.840.10008.1.2.5",
)
_CODE_OF_SYNTAX = {uid: code for code, uid in enumerate(_SYNTAX_CODES)}
_SYNTAX_SPELT_OUT = 255


def pack_instance(instance: Instance) -> bytes:
    """An instance's record in the index; unpack_instance reads it."""
    (
        flags, container, offset, head_length, table_length, sequence, original_length, identity,
        pixel_tag, pixel_offset, pixel_length, pixel_crc, pixel_digest, pixel_words, transfer_syntax, entries,
    ) = instance  # fmt: skip
    code = _CODE_OF_SYNTAX.get(transfer_syntax, _SYNTAX_SPELT_OUT)
    pixels = _PIXEL_TAGS.index(pixel_tag)
    if pixels and not pixel_digest:
        pixels |= _PIXELS_IN_HEAD
    if pixel_words:
        pixels |= _PIXELS_IN_WORDS
    return _fastpack.pack_instance(
        INSTANCE_VERSION,
        flags,
        code,
        pixels,
        container,
        offset,
        head_length,
        table_length,
        sequence,
        original_length,
        identity,
        pixel_offset,
        pixel_length,
        pixel_crc,
        pixel_digest,
        transfer_syntax if code == _SYNTAX_SPELT_OUT else b"",
        entries,
    )


def unpack_instance(data: bytes) -> Instance:
    (
        version,
        flags,
        code,
        pixels,
        container,
        offset,
        head_length,
        table_length,
        sequence,
        original_length,
        identity,
    ) = _INSTANCE.unpack_from(data)
    if version != INSTANCE_VERSION:
        raise Corrupt(f"instance record of version {version}")
    at = _INSTANCE.size
    pixel_offset = pixel_length = pixel_crc = 0
    pixel_digest = b""
    if pixels:
        pixel_offset, pixel_length, pixel_crc = _PIXELS.unpack_from(data, at)
        at += _PIXELS.size
        if not pixels & _PIXELS_IN_HEAD:
            pixel_digest = data[at : at + 32]
            at += 32
    if code == _SYNTAX_SPELT_OUT:
        syntax = data[at + 1 : at + 1 + data[at]]
        at += 1 + len(syntax)
    else:
        syntax = _SYNTAX_CODES[code]
    return Instance(
        flags,
        container,
        offset,
        head_length,
        table_length,
        sequence,
        original_length,
        identity,
        _PIXEL_TAGS[pixels & 15],
        pixel_offset,
        pixel_length,
        pixel_crc,
        pixel_digest,
        bool(pixels & _PIXELS_IN_WORDS),
        syntax,
        data[at:],
    )


def moved_instance(data: bytes, container: int, offset: int) -> bytes:
    """An instance's record, with its head elsewhere."""
    return data[:4] + container.to_bytes(4, "little") + offset.to_bytes(8, "little") + data[16:]


class Series(NamedTuple):
    """A series, with the attributes of its donor: the instance with the smallest SOP Instance UID."""

    instance_count: int
    next_instance: int  # number of the next instance to come; never used again
    byte_count: int  # of the originals
    donor: bytes  # its SOP Instance UID
    entries: bytes


class Study(NamedTuple):
    """A study, with the attributes of its donor and what is summed over its series."""

    patient: int
    series_count: int
    instance_count: int
    byte_count: int
    donor: bytes
    modalities: tuple[str, ...]  # each once, in order of the text
    entries: bytes


class Patient(NamedTuple):
    """A patient, with the attributes of the donor among all its instances."""

    study_count: int
    series_count: int
    instance_count: int
    byte_count: int
    donor: bytes
    entries: bytes


_SERIES = Struct("<IIQH")
_STUDY = Struct("<IIIQHH")
_PATIENT = Struct("<IIIQH")


def pack_series(series: Series) -> bytes:
    fixed = _SERIES.pack(series.instance_count, series.next_instance, series.byte_count, len(series.donor))
    return fixed + series.donor + series.entries


def unpack_series(data: bytes) -> Series:
    count, following, size, donor = _SERIES.unpack_from(data)
    at = _SERIES.size + donor
    return Series(count, following, size, data[_SERIES.size : at], data[at:])


def pack_study(study: Study) -> bytes:
    modalities = "\\".join(study.modalities).encode()
    fixed = _STUDY.pack(
        study.patient,
        study.series_count,
        study.instance_count,
        study.byte_count,
        len(study.donor),
        len(modalities),
    )
    return fixed + study.donor + modalities + study.entries


def unpack_study(data: bytes) -> Study:
    patient, series, instances, size, donor, modalities = _STUDY.unpack_from(data)
    at = _STUDY.size + donor
    text = data[at : at + modalities].decode()
    return Study(
        patient,
        series,
        instances,
        size,
        data[_STUDY.size : at],
        tuple(text.split("\\")) if text else (),
        data[at + modalities :],
    )


def pack_patient(patient: Patient) -> bytes:
    fixed = _PATIENT.pack(
        patient.study_count,
        patient.series_count,
        patient.instance_count,
        patient.byte_count,
        len(patient.donor),
    )
    return fixed + patient.donor + patient.entries


def unpack_patient(data: bytes) -> Patient:
    studies, series, instances, size, donor = _PATIENT.unpack_from(data)
    at = _PATIENT.size + donor
    return Patient(studies, series, instances, size, data[_PATIENT.size : at], data[at:])
