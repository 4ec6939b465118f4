"""Takes a study's entries; gives the secondary keys and the column texts by which it is found. Pure.

A secondary key is u8 field, the value's normal form, 0, and something that tells equal values apart; its
value is the study's number. A column text is the normal form of one study's attribute, kept in blocks of
many studies, which are searched for wildcards without reading the studies' records.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from struct import Struct

from hilum.dicom.matching import normalise_text
from hilum.engine import record
from hilum.engine.index import KEY_MAX, U32
from hilum.errors import RequestFault

_NUMBER = record.NUMBER_OF

# Fields that have a secondary key: the entry's number is the field's.
STUDY_DATE = _NUMBER[0x00080020]
STUDY_TIME = _NUMBER[0x00080030]
PATIENT_ID = _NUMBER[0x00100020]
PATIENT_NAME = _NUMBER[0x00100010]
MODALITY = _NUMBER[0x00080060]  # of its series: Modalities in Study
KEYED = frozenset(
    (
        PATIENT_ID,
        PATIENT_NAME,
        _NUMBER[0x00080050],  # Accession Number
        _NUMBER[0x00200010],  # Study ID
        _NUMBER[0x00080090],  # Referring Physician's Name
    )
)

# Fields that have a column.
COLUMNS = (
    PATIENT_NAME,
    PATIENT_ID,
    _NUMBER[0x00080050],  # Accession Number
    _NUMBER[0x00200010],  # Study ID
    _NUMBER[0x00080090],  # Referring Physician's Name
    _NUMBER[0x00081030],  # Study Description
    _NUMBER[0x00080080],  # Institution Name
)

_TEXT_MAX = KEY_MAX - 80  # of a key's value: the rest is for field, separator and UID
BLOCK_STUDIES = 256
COLUMN_KEY = Struct(">BI")  # field, block
_COLUMN_TEXT_MAX = 220  # bytes; 256 of them with their frame stay under 64 KiB
_LONG = b"\x01"  # instead of a text longer than that: its study must be looked at
_SLOT = re.compile(rb"\n[0-9a-f]{2}")
_LINE = re.compile(rb"\n([0-9a-f]{2})([^\n]*)")
_LONG_LINE = re.compile(rb"\n([0-9a-f]{2})\x01(?![^\n])")
ODD = b"\x01"  # instead of a text: not all of the study's values stand in keys, and it must be looked at


def key_text(text: str) -> bytes:
    """A normal form as it stands in a key: cut, since whoever finds it compares the record too."""
    return whole_text(text)[:_TEXT_MAX]


def whole_text(text: str) -> bytes:
    """The same, not cut."""
    return text.encode("utf-8", "surrogatepass").replace(b"\0", b" ")


def key_prefix(field: int, text: bytes) -> bytes:
    """The beginning of every key with this value."""
    return bytes((field,)) + text + b"\0"


def values_of(entries: bytes, field: int) -> list[str]:
    """The normal forms of one attribute; of a name each group by itself."""
    try:
        values = record.values_of(entries, field)
    except (RequestFault, record.LeftInHead):
        return []
    vr = record.VR_OF[field]
    forms = [normalise_text(vr, str(value)) for value in values if value is not None]
    if vr == "PN":
        forms = [group for form in forms for group in form.split("=")]
    return [form for form in forms if form]


def is_left(entries: bytes, field: int) -> bool:
    """Whether an attribute is too long for its entries."""
    try:
        record.values_of(entries, field)
    except record.LeftInHead:
        return True
    except RequestFault:
        pass
    return False


def date_key(entries: bytes, study_uid: bytes) -> bytes:
    """Every study has one, also without a date: it orders the studies, equal moments by UID."""
    date, time = values_of(entries, STUDY_DATE), values_of(entries, STUDY_TIME)
    text = (date[0] if date else "") + (time[0] if date and time else "")
    return key_prefix(STUDY_DATE, key_text(text)) + study_uid


def keys_of(study: record.Study, number: int, uid: bytes) -> set[bytes]:
    """All secondary keys of a study."""
    tail = U32.pack(number)
    found = {date_key(study.entries, uid)}
    if is_left(study.entries, STUDY_DATE) or len(values_of(study.entries, STUDY_DATE)) > 1:
        found.add(key_prefix(STUDY_DATE, ODD) + tail)
    for field in KEYED:
        if is_left(study.entries, field):
            found.add(key_prefix(field, ODD) + tail)
        for text in values_of(study.entries, field):
            found.add(key_prefix(field, key_text(text)) + tail)
    for modality in study.modalities:
        found.add(key_prefix(MODALITY, key_text(modality)) + tail)
    return found


def column_form(text: str) -> bytes:
    """A normal form, or a part of one, as it stands in a column."""
    return text.encode("utf-8", "surrogatepass").replace(b"\n", b" ")


def column_texts(entries: bytes) -> dict[int, bytes]:
    """The text of each column for one study; several values are joined by a tab."""
    found = {}
    for field in COLUMNS:
        text = column_form("\t".join(values_of(entries, field)))
        if text:
            found[field] = text if len(text) <= _COLUMN_TEXT_MAX else _LONG
        elif is_left(entries, field):
            found[field] = _LONG
    return found


def column_key(field: int, number: int) -> bytes:
    return COLUMN_KEY.pack(field, number // BLOCK_STUDIES)


def set_in_block(block: bytes, number: int, text: bytes | None) -> bytes:
    """The block with this study's text changed, or taken out."""
    slot = b"%02x" % (number % BLOCK_STUDIES)
    begin = block.find(b"\n" + slot)
    if begin >= 0:
        end = block.find(b"\n", begin + 1)
        block = block[:begin] + (block[end:] if end >= 0 else b"")
    return block + b"\n" + slot + text if text is not None else block


def texts_of_block(block: bytes) -> str:
    """The texts of a block, one a line."""
    return _SLOT.sub(b"\n", block).decode("utf-8", "surrogatepass")


def search_block(block: bytes, literal: bytes) -> Iterator[tuple[int, bytes]]:
    """Give (slot, text) of the lines that hold `literal`, or that are too long to tell (text _LONG).

    The literal is looked for in the block as a whole, so a miss costs one pass of memmem.
    """
    if not literal:
        for match in _LINE.finditer(block):
            yield int(match[1], 16), match[2]
        return
    at = block.find(literal)
    while at >= 0:
        begin = block.rfind(b"\n", 0, at + 1)
        end = block.find(b"\n", at)
        line = block[begin + 1 : end if end >= 0 else len(block)]
        if literal in line[2:]:
            yield int(line[:2], 16), line[2:]
        at = block.find(literal, end) if end >= 0 else -1
    for match in _LONG_LINE.finditer(block):
        yield int(match[1], 16), _LONG
