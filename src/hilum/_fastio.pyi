from typing_extensions import Buffer

ERROR_NOT_REGULAR: int
ERROR_TOO_LARGE: int
ERROR_GROWN: int

def read_files(
    paths: list[bytes], first: int, arena: Buffer, size_max: int, enough: int
) -> list[tuple[int, int, bytes, int]]: ...
