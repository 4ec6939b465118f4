from collections.abc import Iterable, Sequence

from typing_extensions import Buffer

INLINE_BYTES_MAX: int  # a binary value with more bytes leaves as BulkDataURI

# A step of a path: a tag, or (tag, Private Creator) for a private element, whose block doesn't count:
# (0x00091001, "GEMS_IDEN_01") is found as (0009,1201) where that creator has reserved block 12.
Step = int | tuple[int, str]

class Paths:
    """What is wanted of data sets; made once, used for many heads. Each path is a sequence of steps from the
    top down, and the element at its end is wanted as a whole."""

    def __init__(self, paths: Iterable[Sequence[Step]]) -> None: ...

def write(
    head: Buffer,
    holes: Sequence[tuple[int, int, *tuple[object, ...]]],
    data_set_at: int,
    implicit: bool,
    big: bool,
    *,
    uri_prefix: bytes = b"",
    wanted: Paths | None = None,
    inline_max: int = ...,
) -> bytes:
    """Return the data set of a head as one DICOM JSON Model object, UTF-8: PS3.18 F.2.

    `head` is the file without its holes, which begin with (offset, length) in bytes of the file, ascending;
    `data_set_at` is where the data set begins, `implicit` and `big` how it begins. For a deflated file give
    the inflated head and holes, 0, False and False. A BulkDataURI is `uri_prefix`, which must need no
    escape in a JSON string, and the path of the element: "7FE00010", "52009229.1.00289110.1.00420011",
    items counted from 1.

    With `wanted` only these elements, in the sequences that lead to them; every item of such a sequence is
    there, be it empty. Reading ends behind the last tag that is wanted at top level.

    Raises:
        BadDicom: the walk can't go on, with offset and tag. A head that was stored does not do that.
    """

def find(
    head: Buffer,
    holes: Sequence[tuple[int, int, *tuple[object, ...]]],
    data_set_at: int,
    implicit: bool,
    big: bool,
    path: Sequence[tuple[int, int]],
) -> tuple[int, int, str, bool, bool, bool, bytes] | None:
    """Find the element at the end of a path of (tag, item), items from 1, the last one's not looked at.

    Returns (offset, length, VR, is a hole, is encapsulated, is big endian, Specific Character Set), offset
    and length in bytes of the file; None where there is none, or a sequence that can be read.

    Raises:
        BadDicom: as for write().
    """
