from collections.abc import Sequence

from typing_extensions import Buffer

Hole = tuple[int, int, int, int, bytes]  # offset, length, tag, CRC-32, digest

def crc_of_two(first: int, second: int, second_length: int) -> int: ...
def pack_head(
    version: int,
    flags: int,
    original_length: int,
    original_crc: int,
    data_set_at: int,
    arrived_us: int,
    transfer_syntax: bytes,
    source: bytes,
    holes: Sequence[Hole],
    head: bytes,
    inflated_holes: Sequence[Hole],
    inflated: bytes,
) -> bytes: ...
def identity_of(transfer_syntax: bytes, data_set_at: int, holes: Sequence[Hole], head: bytes) -> bytes: ...
def pack_instance(
    version: int,
    flags: int,
    syntax_code: int,
    pixels: int,
    container: int,
    offset: int,
    head_length: int,
    table_length: int,
    sequence: int,
    original_length: int,
    identity: bytes,
    pixel_offset: int,
    pixel_length: int,
    pixel_crc: int,
    pixel_digest: bytes,
    spelt_syntax: bytes,
    entries: bytes,
) -> bytes: ...
def record_header(salt: int, kind: int, length: int, sequence: int, digest: bytes, crc: int) -> bytes: ...

class RecordQueue:
    length: int
    count: int
    def __init__(self, salt: int) -> None: ...
    @property
    def is_full(self) -> bool: ...
    def add(self, kind: int, payload: Buffer, sequence: int, digest: bytes, crc: int) -> int: ...
    def write(self, fd: int, offset: int) -> None: ...
