from typing import Any

from typing_extensions import Buffer

PART_BEGIN: int
PART_DATA: int
PART_END: int
BODY_END: int

BOUNDARY_LENGTH_MAX: int
PREAMBLE_LENGTH_MAX: int

class Scanner:
    def __init__(
        self, boundary: bytes, *, header_bytes_max: int = 16384, header_count_max: int = 64
    ) -> None: ...
    def feed(self, chunk: Buffer) -> list[tuple[int, Any]]: ...
    def finish(self) -> None: ...
