"""Takes the first bytes of a compressed frame; gives its transfer syntax, and what it says of the picture.
Decodes nothing, and knows JPEG, JPEG-LS and JPEG 2000 only.

For bulk data that come with a media type and no transfer syntax: what is lossy must not be called lossless.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import unpack_from
from typing import Any, NamedTuple

from hilum.dicom import uids

HEAD_BYTES = 64 << 10  # the headers of a codestream lie in these, but behind a long comment or profile
_BOX_COUNT_MAX = 64

_NO_LENGTH = frozenset((0x01, *range(0xD0, 0xD9)))  # markers without a segment
_JPEG_SYNTAX = {0xC0: uids.JPEG_BASELINE, 0xC1: uids.JPEG_EXTENDED}


class Codestream(NamedTuple):
    """What is known of a frame; zeros and "" where nothing is."""

    begin: int = 0  # of the codestream in its file: JP2 has boxes in front of it
    syntax: str = ""
    rows: int = 0
    columns: int = 0
    samples: int = 0
    bits: int = 0
    is_signed: bool = False
    colours: str = ""  # Photometric Interpretation, where there are several samples

    def attributes(self, frame_count: int) -> dict[int, dict[str, Any]]:
        """The attributes of PS3.3 C.7.6.3, Image Pixel Module, that follow from it, as DICOM JSON."""
        if not self.rows:
            return {}
        allocated = 8 if self.bits <= 8 else 16
        photometric = self.colours if self.samples > 1 else "MONOCHROME2"
        found: dict[int, tuple[str, Any]] = {
            0x00280002: ("US", self.samples),
            0x00280004: ("CS", photometric),
            0x00280010: ("US", self.rows),
            0x00280011: ("US", self.columns),
            0x00280100: ("US", allocated),
            0x00280101: ("US", self.bits),
            0x00280102: ("US", self.bits - 1),
            0x00280103: ("US", int(self.is_signed)),
        }
        if self.samples > 1:
            found[0x00280006] = "US", 0
        if frame_count > 1:
            found[0x00280008] = "IS", frame_count
        return {tag: {"vr": vr, "Value": [value]} for tag, (vr, value) in found.items()}


def read_codestream(read: Callable[[int, int], bytes]) -> Codestream:
    """What the first bytes say; `read` gives bytes from an offset on, fewer at the end."""
    begin = 0
    head = read(0, HEAD_BYTES)
    if head[4:8] == b"jP  ":
        begin = _codestream_box(read)
        head = read(begin, HEAD_BYTES)
    if head.startswith(b"\xff\x4f\xff\x51"):
        return _jpeg_2000(head, begin)
    if head.startswith(b"\xff\xd8\xff"):
        return _jpeg(head)
    return Codestream()


def _codestream_box(read: Callable[[int, int], bytes]) -> int:
    """Where the codestream in a JP2 file begins, 0 if there is none: ISO/IEC 15444-1 I.4, Box definition."""
    at = 0
    for _ in range(_BOX_COUNT_MAX):
        box = read(at, 16)
        if len(box) < 8:
            break
        length, kind, header = int.from_bytes(box[:4], "big"), box[4:8], 8
        if length == 1:
            length, header = int.from_bytes(box[8:16], "big"), 16
        if kind == b"jp2c":
            return at + header
        if length < header:
            break
        at += length
    return 0


def _jpeg_2000(head: bytes, begin: int) -> Codestream:
    """ISO/IEC 15444-1 A.5.1 (SIZ) and A.6.1 (COD); ISO/IEC 15444-15 has CAP for high throughput."""
    if len(head) < 44:
        return Codestream(begin)
    right, bottom, left, top = unpack_from(">IIII", head, 8)
    (samples,) = unpack_from(">H", head, 40)
    depth = head[42]
    reversible = high_throughput = transformed = False
    at = 2
    while at + 4 <= len(head):
        marker, length = unpack_from(">HH", head, at)
        if marker == 0xFF50:
            high_throughput = True
        elif marker == 0xFF52 and at + 14 <= len(head):
            transformed = head[at + 8] == 1
            reversible = head[at + 13] == 1
        elif marker == 0xFF90:  # the first tile
            break
        at += 2 + length
    if high_throughput:
        syntax = uids.HTJ2K_LOSSLESS if reversible else uids.HTJ2K
    else:
        syntax = uids.JPEG_2000_LOSSLESS if reversible else uids.JPEG_2000
    rows, columns = bottom - top, right - left
    if not (0 < rows <= 0xFFFF and 0 < columns <= 0xFFFF):
        return Codestream(begin, syntax)
    colours = "RGB"
    if transformed:  # PS3.5 8.2.4, JPEG 2000 Image Compression
        colours = "YBR_RCT" if reversible else "YBR_ICT"
    return Codestream(begin, syntax, rows, columns, samples, (depth & 0x7F) + 1, bool(depth & 0x80), colours)


def _jpeg(head: bytes) -> Codestream:
    """ISO/IEC 10918-1 B.2.2 (Frame header syntax); ISO/IEC 14495-1 C.2.2 has SOF55 for JPEG-LS."""
    found = Codestream()
    at, frame = 2, 0
    while at + 4 <= len(head) and head[at] == 0xFF:
        marker = head[at + 1]
        if marker == 0xFF:  # fill bytes
            at += 1
            continue
        if marker in _NO_LENGTH:
            at += 2
            continue
        (length,) = unpack_from(">H", head, at + 2)
        if marker == 0xDA:
            syntax = _scan_syntax(frame, head[at : at + 2 + length])
            lossy = syntax in _JPEG_SYNTAX.values()
            return found._replace(syntax=syntax, colours="YBR_FULL_422" if lossy else "RGB")
        if (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker == 0xF7:
            if at + 10 > len(head):
                break
            frame = marker
            bits, rows, columns, samples = unpack_from(">BHHB", head, at + 4)
            found = Codestream(0, "", rows, columns, samples, bits)
        at += 2 + length
    return Codestream()


def _scan_syntax(frame: int, scan: bytes) -> str:
    """The transfer syntax by the frame's marker and the first scan's header."""
    if frame in (0xC3, 0xF7) and len(scan) >= 5:
        at = 5 + 2 * scan[4]  # Ss, the predictor; in JPEG-LS NEAR, the error that is allowed
        value = scan[at] if at < len(scan) else 0
        if frame == 0xF7:
            return uids.JPEG_LS_NEAR_LOSSLESS if value else uids.JPEG_LS_LOSSLESS
        return uids.JPEG_LOSSLESS_SV1 if value == 1 else uids.JPEG_LOSSLESS
    return _JPEG_SYNTAX.get(frame, "")
