"""Takes what a client accepts and the transfer syntax in which something is stored; gives the forms in which
it may leave, best first. Pure functions; whether a form can be made is for the caller to say.

PS3.18 8.7.3, DICOM Media Type Sets. A form that is asked for without a transfer syntax is in the default one
of its media type, Explicit VR Little Endian for application/dicom and application/octet-stream; pixels that
are stored in another syntax of the same media type are not encoded anew for that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from hilum.dicom import uids
from hilum.errors import BadQuery
from hilum.web.accept import MediaRange
from hilum.web.errors import NotAcceptable

DICOM = "application/dicom"
OCTETS = "application/octet-stream"
ZIP = "application/zip"

# PS3.18 8.7.3.3.2, Compressed Bulkdata Media Types: the default transfer syntax of each comes first.
_SYNTAXES: dict[str, tuple[str, ...]] = {
    "image/jpeg": (
        uids.JPEG_LOSSLESS_SV1,
        uids.JPEG_BASELINE,
        uids.JPEG_EXTENDED,
        uids.JPEG_LOSSLESS,
        "1.2.840.10008.1.2.4.53",  # retired, and still met
        "1.2.840.10008.1.2.4.55",
    ),
    "image/dicom-rle": (uids.RLE_LOSSLESS,),
    "image/jls": (uids.JPEG_LS_LOSSLESS, uids.JPEG_LS_NEAR_LOSSLESS),
    "image/jp2": (uids.JPEG_2000_LOSSLESS, uids.JPEG_2000),
    "image/jpx": (uids.JPEG_2000_PART_2_LOSSLESS, uids.JPEG_2000_PART_2),
    "image/jphc": (uids.HTJ2K_LOSSLESS, uids.HTJ2K_LOSSLESS_RPCL, uids.HTJ2K),
    "image/jxl": (uids.JPEG_XL_LOSSLESS, uids.JPEG_XL_RECOMPRESSION, uids.JPEG_XL),
    "video/mpeg": (uids.MPEG2_MAIN_LEVEL, uids.MPEG2_HIGH_LEVEL),
    "video/mp4": tuple(f"1.2.840.10008.1.2.4.{number}" for number in range(102, 107)),
    "video/H265": (uids.HEVC_MAIN_PROFILE, uids.HEVC_MAIN_10_PROFILE),
}
_TYPE_OF = {syntax: name for name, syntaxes in _SYNTAXES.items() for syntax in syntaxes}
# Names that clients have for them from older editions, or out of the air.
_ALIASES = {
    "image/x-dicom-rle": "image/dicom-rle",
    "image/x-jls": "image/jls",
    "image/jpg": "image/jpeg",
    "image/jhc": "image/jphc",
    "image/jph": "image/jphc",
    "image/j2c": "image/jp2",
    "video/mpeg2": "video/mpeg",
    "video/h265": "video/H265",
}
NATIVE = frozenset(
    (
        uids.IMPLICIT_VR_LITTLE_ENDIAN,
        uids.EXPLICIT_VR_LITTLE_ENDIAN,
        uids.DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
        uids.EXPLICIT_VR_BIG_ENDIAN,
    )
)
_DICOM_TYPES = frozenset((DICOM, "application/dicom+json", "application/dicom+xml"))
_BULK_TYPES = _DICOM_TYPES | {OCTETS}
_RENDERED_NOT_BULK = frozenset(("image/png", "image/gif", "text/html", "text/plain", "text/rtf"))
_RENDERED_TYPES = _RENDERED_NOT_BULK | {"image/jpeg", "application/pdf"}


class Form(NamedTuple):
    """One way in which something may leave."""

    multipart: bool
    syntax: str  # the transfer syntax of what leaves


def media_type_of(syntax: str) -> str:
    """The media type of pixels in a transfer syntax. A fragmentable video is as the plain one."""
    return _TYPE_OF.get(syntax) or _TYPE_OF.get(syntax.removesuffix(".1"), OCTETS)


def syntaxes_of(media_type: str) -> Sequence[str]:
    """The transfer syntaxes of a media type of compressed pixels, the default one first; () for others."""
    return _SYNTAXES.get(_ALIASES.get(media_type, media_type), ())


def is_native(syntax: str) -> bool:
    """Whether pixels of this transfer syntax are samples side by side, and no codestream."""
    return syntax in NATIVE or not uids.is_encapsulated(syntax)


def refuse_mixed(ranges: Sequence[MediaRange], *, pixels: bool = False) -> None:
    """PS3.18 8.7.5, Acceptable Media Types: all are DICOM Media Types, or all are Rendered Media Types.

    With `pixels` the resource is bulk data, for which image/jpeg and its like are DICOM Media Types.

    Raises:
        BadQuery: they are of both kinds.
    """
    names = {inner_of(media)[1] for media in ranges if media.q > 0}
    dicom = names & (_BULK_TYPES if pixels else _DICOM_TYPES)
    rendered = names & (_RENDERED_NOT_BULK if pixels else _RENDERED_TYPES)
    if dicom and rendered:
        raise BadQuery(
            f"Accept mixes DICOM media types ({', '.join(sorted(dicom))}) and rendered ones "
            f"({', '.join(sorted(rendered))}): ask for one kind"
        )


def pixel_forms(ranges: Sequence[MediaRange], stored: str, *, count: int) -> list[Form]:
    """The forms in which `count` frames, or a value of Pixel Data, stored as `stored` may leave.

    Nothing accepted, or anything, is multipart/related of application/octet-stream, and as stored where
    the pixels can't be had in another way.

    Raises:
        NotAcceptable: there is none.
        BadQuery: see refuse_mixed.
    """
    refuse_mixed(ranges, pixels=True)
    native = uids.EXPLICIT_VR_LITTLE_ENDIAN
    own = native if is_native(stored) else stored
    if not ranges:
        return _unique((Form(True, native), Form(True, own)))
    found: list[tuple[float, Form]] = []
    last: list[Form] = []  # what a wildcard allows when nothing better can be made
    for media in ranges:
        if media.q <= 0:
            continue
        multipart, inner = inner_of(media)
        if count > 1 and not multipart:
            continue
        found += [(media.q, Form(multipart, syntax)) for syntax in _pixel_syntaxes(inner, media.params, own)]
        if inner == "*/*" and media.params.get("transfer-syntax") in (None, "", "*"):
            last.append(Form(multipart, own))
    if not found:
        single = count > 1 and any(not inner_of(media)[0] for media in ranges)
        raise NotAcceptable(
            "several frames can be given as multipart/related only"
            if single
            else f"pixels stored as {_named(stored)} can be given as {OCTETS} and as {media_type_of(own)}"
        )
    return _in_order(found, own, last)


def _pixel_syntaxes(inner: str, params: dict[str, str], own: str) -> Iterator[str]:
    """The transfer syntaxes that a media type allows, best first; `own` is that of the stored pixels."""
    asked = params.get("transfer-syntax", "")
    kind, _, subtype = inner.partition("/")
    any_type = inner in ("*/*", OCTETS, "application/*")
    family: Sequence[str] = _SYNTAXES.get(inner, ())
    if subtype == "*" and not any_type:
        family = [s for name, syntaxes in _SYNTAXES.items() if name.startswith(f"{kind}/") for s in syntaxes]
    if asked == "*":
        if any_type or own in family:
            yield own
        elif family:
            yield family[0]
    elif asked:
        if asked in NATIVE and any_type:
            yield uids.EXPLICIT_VR_LITTLE_ENDIAN
        elif any_type or asked in family:
            yield asked
    elif any_type:
        yield uids.EXPLICIT_VR_LITTLE_ENDIAN
    elif own in family:
        yield own
    else:
        yield from family


def dicom_forms(ranges: Sequence[MediaRange], stored: str) -> list[Form]:
    """The forms in which an instance stored as `stored` may leave as application/dicom, [] for none.

    Where no transfer syntax is asked for it is Explicit VR Little Endian, and as stored where the pixels
    can't be had in that: PS3.18 8.7.3 has this exception.
    """
    native = uids.EXPLICIT_VR_LITTLE_ENDIAN
    found: list[tuple[float, Form]] = []
    last: list[Form] = []
    for media in ranges or (_ANYTHING,):
        multipart, inner = inner_of(media)
        if media.q <= 0 or inner not in ("*/*", "application/*", DICOM):
            continue
        asked = media.params.get("transfer-syntax", "")
        if asked == "*":
            found.append((media.q, Form(multipart, stored)))
        elif asked:
            found.append((media.q, Form(multipart, asked)))
        else:
            found.append((media.q, Form(multipart, native)))
            last.append(Form(multipart, stored))
    return _in_order(found, stored, last)


_ANYTHING = MediaRange("*", "*", {})


def inner_of(media: MediaRange) -> tuple[bool, str]:
    """Whether it is multipart, and the media type of the part or of the whole.

    Anything at all is multipart: PS3.18 8.6.1.2, Multipart Payload, is the default of all retrieval.
    """
    if media.type == "multipart" and media.subtype in ("related", "*"):
        name = media.params.get("type", "*/*").lower() or "*/*"
        return True, _ALIASES.get(name, name)
    if media.type == "*":
        return True, "*/*"
    return False, _ALIASES.get(media.name, media.name)


def _in_order(found: Sequence[tuple[float, Form]], own: str, last: Sequence[Form]) -> list[Form]:
    """By weight; among equal ones what is stored in that syntax goes first, since it costs nothing."""
    ordered = sorted(found, key=lambda pair: (-pair[0], pair[1].syntax != own))
    return _unique((*(form for _, form in ordered), *last))


def _unique(forms: Sequence[Form]) -> list[Form]:
    return list(dict.fromkeys(forms))


def _named(syntax: str) -> str:
    return f"{uids.name_of(syntax) or 'a private transfer syntax'} ({syntax})"
