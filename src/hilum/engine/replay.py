"""Takes the records of head packs, in the order of their sequence numbers; enters them in an index.

Recovery uses it for the tail that a crash left, rebuild for everything. Reads heads, never bulk values.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from isal.isal_zlib import crc32

from hilum.engine import header, ledger, packs, record
from hilum.engine.ledger import Ledger
from hilum.engine.packs import Record
from hilum.engine.prepare import pixel_fields
from hilum.engine.record import Head, Instance
from hilum.errors import Corrupt, HilumError


def instance_of(
    head: Head,
    parsed: header.Parsed,
    *,
    container: int,
    offset: int,
    head_length: int,
    table_length: int,
    sequence: int,
    identity: bytes,
) -> Instance:
    """The index's record of a stored head."""
    holes = head.inflated_holes if head.flags & record.DEFLATED else head.holes
    tag, pixel_offset, pixel_length, pixel_crc, pixel_digest, words = pixel_fields(parsed, holes)
    return Instance(
        flags=head.flags,
        container=container,
        offset=offset,
        head_length=head_length,
        table_length=table_length,
        sequence=sequence,
        original_length=head.original_length,
        identity=identity,
        pixel_tag=tag,
        pixel_offset=pixel_offset,
        pixel_length=pixel_length,
        pixel_crc=pixel_crc,
        pixel_digest=pixel_digest,
        pixel_words=words,
        transfer_syntax=head.transfer_syntax,
        entries=parsed.own,
    )


class HeadRecord:
    """One record of a head pack, with the bytes that say what happened."""

    __slots__ = ("container", "payload", "record")

    def __init__(self, container: int, found: Record, payload: bytes) -> None:
        self.container, self.record, self.payload = container, found, payload


def read_head_records(
    fd: int, info: packs.PackInfo, start: int, size: int, *, on_bad: Callable[[int, int], None] | None = None
) -> Iterator[HeadRecord]:
    """Give the records of a head pack in order, reading it in large pieces.

    Ends at the first thing that is no record, or whose payload does not fit its checksum. With `on_bad` such
    a thing is told to it (container, offset) and passed over, as packs.records does.
    """
    window, base = b"", start
    at = start
    while at + packs.RECORD_SIZE <= size:
        if at + packs.RECORD_SIZE > base + len(window):
            window, base = os.pread(fd, _READ, at), at
        found = packs.parse_record(window[at - base : at - base + packs.RECORD_SIZE], at, info.salt)
        if found is None or found.length + packs.padding(found.length) > size - found.offset:
            following = packs.find_record(fd, info, at + packs.ALIGN, size) if on_bad is not None else None
            if on_bad is None or following is None:
                return
            on_bad(info.number, at)
            at = following
            continue
        end = found.offset + found.length
        if end > base + len(window):
            window, base = packs.pread_exactly(fd, max(_READ, end - at), at), at
        payload = window[found.offset - base : end - base]
        if crc32(payload) == found.crc and len(payload) == found.length:
            yield HeadRecord(info.number, found, payload)
        elif on_bad is None:
            return
        else:
            on_bad(info.number, found.offset)
        at = end + packs.padding(found.length)


_READ = 4 << 20


def enter(book: Ledger, row: HeadRecord) -> Head | None:
    """Enter one record; return the head if it stores one.

    Raises:
        Corrupt: the record is whole, but its content makes no sense.
    """
    found = row.record
    if found.kind == packs.STORED:
        head = record.unpack_head(row.payload)
        parsed = header.parse_head(head)
        head_length = record.head_part_length(head)
        book.stored(
            parsed.study,
            parsed.series,
            parsed.uid,
            parsed.upper,
            instance_of(
                head,
                parsed,
                container=row.container,
                offset=found.offset,
                head_length=head_length,
                table_length=found.length - head_length,
                sequence=found.sequence,
                identity=found.digest,  # the record's own name for what it holds
            ),
        )
        return head
    if found.kind == packs.DELETED:
        book.deleted(found.sequence, ledger.unpack_uids(row.payload))
    elif found.kind == packs.CONFLICT:
        book.conflict(found.sequence, row.payload)
    elif found.kind == packs.PURGED:
        book.purged(found.sequence, ledger.unpack_purged(row.payload))
    elif found.kind == packs.BAD_BLOB:
        book.bad_blobs(found.sequence)
    elif found.kind != packs.FOOTER:
        raise Corrupt(f"record of unknown kind {found.kind}")
    return None


def upper_of(read: Callable[[int, int, int], bytes], instance: Instance) -> bytes:
    """The patient, study and series entries of a stored instance, out of its head."""
    payload = read(instance.container, instance.offset, instance.head_length)
    try:
        return header.parse_head(record.unpack_head(payload)).upper
    except HilumError as failure:
        raise Corrupt(f"head at byte {instance.offset} of pack {instance.container}: {failure}") from failure
