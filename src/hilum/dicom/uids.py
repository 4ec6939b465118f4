"""Takes a UID; gives its name and, for a transfer syntax, how Pixel Data lies in the file. Never checks
whether a UID is well formed.

PS3.6 Annex A, Registry of DICOM Unique Identifiers (UIDs).
"""

from __future__ import annotations

from functools import cache

IMPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2"
EXPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
ENCAPSULATED_UNCOMPRESSED = "1.2.840.10008.1.2.1.98"
DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2.1.99"
EXPLICIT_VR_BIG_ENDIAN = "1.2.840.10008.1.2.2"
JPEG_BASELINE = "1.2.840.10008.1.2.4.50"
JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"
JPEG_LOSSLESS = "1.2.840.10008.1.2.4.57"
JPEG_LOSSLESS_SV1 = "1.2.840.10008.1.2.4.70"
JPEG_LS_LOSSLESS = "1.2.840.10008.1.2.4.80"
JPEG_LS_NEAR_LOSSLESS = "1.2.840.10008.1.2.4.81"
JPEG_2000_LOSSLESS = "1.2.840.10008.1.2.4.90"
JPEG_2000 = "1.2.840.10008.1.2.4.91"
JPEG_2000_PART_2_LOSSLESS = "1.2.840.10008.1.2.4.92"
JPEG_2000_PART_2 = "1.2.840.10008.1.2.4.93"
JPIP_REFERENCED = "1.2.840.10008.1.2.4.94"
JPIP_REFERENCED_DEFLATE = "1.2.840.10008.1.2.4.95"
MPEG2_MAIN_LEVEL = "1.2.840.10008.1.2.4.100"
MPEG2_HIGH_LEVEL = "1.2.840.10008.1.2.4.101"
MPEG4_HIGH_PROFILE = "1.2.840.10008.1.2.4.102"
HEVC_MAIN_PROFILE = "1.2.840.10008.1.2.4.107"
HEVC_MAIN_10_PROFILE = "1.2.840.10008.1.2.4.108"
JPEG_XL_LOSSLESS = "1.2.840.10008.1.2.4.110"
JPEG_XL_RECOMPRESSION = "1.2.840.10008.1.2.4.111"
JPEG_XL = "1.2.840.10008.1.2.4.112"
HTJ2K_LOSSLESS = "1.2.840.10008.1.2.4.201"
HTJ2K_LOSSLESS_RPCL = "1.2.840.10008.1.2.4.202"
HTJ2K = "1.2.840.10008.1.2.4.203"
JPIP_HTJ2K_REFERENCED = "1.2.840.10008.1.2.4.204"
JPIP_HTJ2K_REFERENCED_DEFLATE = "1.2.840.10008.1.2.4.205"
RLE_LOSSLESS = "1.2.840.10008.1.2.5"
DEFLATED_IMAGE_FRAME = "1.2.840.10008.1.2.8.1"

# JPIP objects have a Pixel Data Provider URL (0028,7FE0) in the place of Pixel Data: there is nothing
# to encapsulate, though their UIDs stand among those that do.
_JPIP = frozenset(
    (JPIP_REFERENCED, JPIP_REFERENCED_DEFLATE, JPIP_HTJ2K_REFERENCED, JPIP_HTJ2K_REFERENCED_DEFLATE)
)
_ENCAPSULATED = frozenset((RLE_LOSSLESS, ENCAPSULATED_UNCOMPRESSED))
_ENCAPSULATED_BELOW = ("1.2.840.10008.1.2.4.", "1.2.840.10008.1.2.5.", "1.2.840.10008.1.2.8.")
# Without RFC 2557 and XML, which encode no data set, and SMPTE ST 2110, which is no file.
_FILE_SYNTAXES = tuple(f"1.2.840.10008.1.2.{arc}" for arc in ("1", "2", "4.", "5", "8."))
# The data set itself is a zlib stream, PS3.5 A.5, DICOM Deflated Little Endian Transfer Syntax (Explicit VR).
_DEFLATED = frozenset(
    (DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN, JPIP_REFERENCED_DEFLATE, JPIP_HTJ2K_REFERENCED_DEFLATE)
)


def name_of(uid: str) -> str:
    """Return the name of a UID of the Standard ("CT Image Storage"), "" where it has none."""
    return _names().get(uid, ("", ""))[1]


def keyword_of(uid: str) -> str:
    """Return the keyword of a UID of the Standard ("CTImageStorage"), "" where it has none."""
    return _names().get(uid, ("", ""))[0]


def is_encapsulated(transfer_syntax: str) -> bool:
    """Return whether Pixel Data of this transfer syntax is a sequence of fragments and not one native value.

    PS3.5 A.4, Transfer Syntaxes For Encapsulation of Encoded Pixel Data. The rule, which holds for UIDs that
    we don't know as well: everything below 1.2.840.10008.1.2.4 (JPEG, JPEG-LS, JPEG 2000, MPEG, HEVC,
    JPEG XL, HTJ2K) except JPIP, everything from 1.2.840.10008.1.2.5 (RLE) and 1.2.840.10008.1.2.8
    (Deflated Image Frame) on down, and Encapsulated Uncompressed. All others, the private ones
    among them, are native until their bytes show another thing.
    """
    return (
        transfer_syntax in _ENCAPSULATED or transfer_syntax.startswith(_ENCAPSULATED_BELOW)
    ) and transfer_syntax not in _JPIP


def is_deflated(transfer_syntax: str) -> bool:
    """Return whether the bytes after the File Meta Information are one deflated stream."""
    return transfer_syntax in _DEFLATED


@cache
def file_syntaxes() -> tuple[str, ...]:
    """Return the transfer syntaxes that a stored object may have, those without compression first."""
    known = (uid for uid in _names() if uid == IMPLICIT_VR_LITTLE_ENDIAN or uid.startswith(_FILE_SYNTAXES))
    first = (EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN)
    return tuple(dict.fromkeys((*first, *known)))


@cache
def _names() -> dict[str, tuple[str, str]]:
    """Return (keyword, name) by UID."""
    from hilum.dicom import _tables  # on first use: see there

    rows = (row.split(" ", 2) for row in _tables.UIDS.split("\n"))
    return {uid: ("" if keyword == "-" else keyword, name) for uid, keyword, name in rows}
