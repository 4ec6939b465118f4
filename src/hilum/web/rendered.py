"""Rendered resources and thumbnails: takes the path of a study, series, instance or frames; answers with what
a person can look at: JPEG, PNG and GIF of pixels, documents and videos as they are.

PS3.18 10.4, Retrieve Transaction: Rendered Resources and Thumbnail Resources; the parameters are those of
8.3.5, Rendering Query Parameters. Presentation states are not applied.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from starlette.requests import Request
from starlette.routing import Route

from hilum.dicom import uids
from hilum.engine import record
from hilum.engine.frames import FrameReader
from hilum.engine.record import Instance
from hilum.engine.resources import Resource
from hilum.errors import BadDicom, BadQuery, NotFound
from hilum.pixels import dataset
from hilum.pixels.codecs import CODECS
from hilum.pixels.render import GIF, JPEG, PNG, Attributes, Rendering, attributes
from hilum.web import accept, bulk, media
from hilum.web.accept import MediaRange
from hilum.web.answers import Answer, Streamed, headers_of, not_modified, ranged, ranged_stream
from hilum.web.conditional import asked_of
from hilum.web.context import Context, accept_of, context_of
from hilum.web.errors import NotAcceptable, TooMany
from hilum.web.media import media_type_of
from hilum.web.multipart import Multipart
from hilum.web.reading import numbers_of, readers_of, resources_of, syntax_of

THUMBNAIL_SIDE = 128
_PICTURES = (JPEG, PNG, GIF)
_SOP_CLASS = record.NUMBER_OF[0x00080016]
_INSTANCE_NUMBER = record.NUMBER_OF[0x00200013]
_DOCUMENT_CLASSES = "1.2.840.10008.5.1.4.1.1.104."  # Encapsulated PDF, CDA, STL, OBJ, MTL
_DOCUMENT, _LENGTH = "00420011", 0x00420015
_ICC_PROFILES = ("no", "yes", "srgb", "adobergb", "rommrgb")


def routes() -> list[Route]:
    series = "/studies/{study}/series/{series}"
    instance = f"{series}/instances/{{instance}}"
    found = []
    for path in ("/studies/{study}", series, instance, f"{instance}/frames/{{frames}}"):
        found += [
            Route(f"{path}/rendered", rendered, methods=["GET", "HEAD"]),
            Route(f"{path}/thumbnail", thumbnail, methods=["GET", "HEAD"]),
        ]
    return found


async def rendered(request: Request) -> Answer:
    """GET .../rendered at all levels"""
    context = context_of(request)
    path = request.path_params
    ranges = accept_of(request)
    wanted = rendering_of(request.query_params)
    media.refuse_mixed(ranges)
    if "frames" in path:
        numbers = numbers_of(path["frames"], context.settings.limits.frames)
        return await _frames(context, request, ranges, wanted, numbers)
    found = await context.run(resources_of, context, request)
    if "instance" in path:
        return await one_instance(context, request, ranges, wanted, found[0])
    pictures = [one for one in found if is_picture(one.instance)]
    if not pictures:
        raise NotFound("nothing here has pixels that can be rendered")
    if len(pictures) > context.settings.limits.frames:
        raise TooMany(
            f"{len(pictures)} pictures, and {context.settings.limits.frames} are given in one answer"
        )
    pictures.sort(key=_order_of)
    shots = [Shot(one, (0,)) for one in pictures]
    return await _several(context, request, ranges, wanted, shots)


async def thumbnail(request: Request) -> Answer:
    """GET .../thumbnail at all levels: one small picture, of the instance and frame in the middle."""
    context = context_of(request)
    path = request.path_params
    ranges = accept_of(request)
    media.refuse_mixed(ranges)
    wanted = rendering_of(request.query_params)
    side = float(THUMBNAIL_SIDE)
    # PS3.18 10.4.1.1.4, Thumbnail Resources: nothing that tells who it is.
    wanted = wanted._replace(viewport=wanted.viewport or (side, side), annotation=())
    found = await context.run(resources_of, context, request)
    pictures = sorted((one for one in found if is_picture(one.instance)), key=_order_of)
    if not pictures:
        raise NotFound("nothing here has pixels that a thumbnail could be made of")
    one = pictures[len(pictures) // 2]
    reader = _reader_of(context, one)
    if "frames" in path:
        numbers = numbers_of(path["frames"], context.settings.limits.frames)
        index = numbers[len(numbers) // 2] - 1
    else:
        index = reader.frame_count // 2
    return await one_frame(context, request, ranges, wanted, one, index)


class Shot(NamedTuple):
    """One picture that is to be made: some frames of one instance, by their indexes."""

    resource: Resource
    indexes: tuple[int, ...]


async def one_instance(
    context: Context, request: Request, ranges: Sequence[MediaRange], wanted: Rendering, one: Resource
) -> Answer:
    """What an instance looks like, be it an image, a video or a document."""
    instance = one.instance
    if _class_of(instance).startswith(_DOCUMENT_CLASSES):
        return await _document(context, request, ranges, one)
    if not instance.pixel_tag:
        raise NotFound("this instance has nothing that can be rendered: neither pixels nor a document")
    kind = media_type_of(syntax_of(instance))
    if kind.startswith("video/"):
        return await _video(context, request, _choose(ranges, (kind,)), one)
    reader = _reader_of(context, one)
    chosen = _choose(ranges, _PICTURES)
    animated = chosen == GIF and reader.frame_count > 1
    indexes = tuple(range(reader.frame_count)) if animated else (0,)
    return await _picture(context, request, chosen, wanted, Shot(one, indexes))


async def one_frame(
    context: Context,
    request: Request,
    ranges: Sequence[MediaRange],
    wanted: Rendering,
    one: Resource,
    index: int,
) -> Answer:
    """What one frame looks like, by its index from 0."""
    return await _picture(context, request, _choose(ranges, _PICTURES), wanted, Shot(one, (index,)))


async def _frames(
    context: Context,
    request: Request,
    ranges: Sequence[MediaRange],
    wanted: Rendering,
    numbers: Sequence[int],
) -> Answer:
    (one,) = resources_of(context, request)
    kind = media_type_of(syntax_of(one.instance))
    if kind.startswith("video/"):
        raise NotAcceptable(f"frames of a video are not rendered; the whole is there as {kind}")
    reader = _reader_of(context, one)
    for number in numbers:
        if number > reader.frame_count:
            raise NotFound(f"there is no frame {number}: the instance has {reader.frame_count}")
    indexes = tuple(number - 1 for number in numbers)
    if len(indexes) == 1:
        return await one_frame(context, request, ranges, wanted, one, indexes[0])
    if _choose(ranges, _PICTURES) == GIF:
        return await _picture(context, request, GIF, wanted, Shot(one, indexes))
    return await _several(context, request, ranges, wanted, [Shot(one, (index,)) for index in indexes])


def _choose(ranges: Sequence[MediaRange], offers: Sequence[str]) -> str:
    """PS3.18 8.7.5, Acceptable Media Types; those of the parts of a multipart answer count as well."""
    flat = [_flat(one) for one in ranges]
    chosen = accept.choose(flat, offers)
    if chosen is None:
        raise NotAcceptable(f"this can be rendered as {', '.join(offers)}")
    return chosen


def _flat(one: MediaRange) -> MediaRange:
    if one.type != "multipart":
        return one
    kind, _, subtype = one.params.get("type", "*/*").lower().partition("/")
    return MediaRange(kind, subtype or "*", {}, one.q)


async def _picture(context: Context, request: Request, chosen: str, wanted: Rendering, shot: Shot) -> Answer:
    wanted = wanted._replace(media_type=chosen, frames=shot.indexes)
    asked = asked_of(request.scope["headers"])
    etag = _etag(wanted, (shot,))
    if asked.holds(etag):
        return not_modified(etag)
    return ranged(context, asked, etag, chosen, await _render(context, wanted, shot))


async def _several(
    context: Context,
    request: Request,
    ranges: Sequence[MediaRange],
    wanted: Rendering,
    shots: Sequence[Shot],
) -> Answer:
    """PS3.18 10.4.3.3, Response Payload: several pictures are parts of one answer, all of one type."""
    chosen = _choose(ranges, _PICTURES)
    wanted = wanted._replace(media_type=chosen)
    etag = _etag(wanted, shots)
    if asked_of(request.scope["headers"]).holds(etag):
        return not_modified(etag)
    related = Multipart(chosen, boundary=f"hilum-{etag[1:-1].decode()}")
    pieces = _parts(context, related, wanted, context.base_url(request), shots)
    return Streamed(context, 200, headers_of(related.content_type, None, (b"etag", etag)), pieces)


def _parts(
    context: Context, related: Multipart, wanted: Rendering, base: str, shots: Sequence[Shot]
) -> Iterator[bytes]:
    calls = (_prepare(context, wanted, shot) for shot in shots)
    for shot, picture in zip(shots, context.pool.map("render", calls), strict=True):
        one = shot.resource
        place = f"/studies/{one.study}/series/{one.series}/instances/{one.uid}"
        yield related.head(wanted.media_type, f"{base}{place}/frames/{shot.indexes[0] + 1}/rendered")
        yield picture
    yield related.end()


async def _render(context: Context, wanted: Rendering, shot: Shot) -> bytes:
    """One picture, made by a worker or kept from the last time.

    Raises:
        NotFound: there is no such frame.
        BadQuery: a parameter makes no sense for this image.
        Unsupported, BadDicom: the pixels can't be decoded.
    """
    key = shot.resource.instance.identity, wanted
    known = context.pool.cached(key)
    if known is not None:
        return known
    call = await context.run(_prepare, context, wanted, shot)
    return await asyncio.wrap_future(context.pool.submit("render", *call, key=key))


def _prepare(
    context: Context, wanted: Rendering, shot: Shot
) -> tuple[list[bytes], object, str, Attributes, Rendering]:
    """Read what the worker needs."""
    one = shot.resource
    instance, reader = readers_of(context).get(one.study, one.series, one.uid)
    syntax = syntax_of(instance)
    wanted = wanted._replace(frames=shot.indexes)
    if syntax not in CODECS:
        raise NotAcceptable(
            f"pixels in {uids.name_of(syntax) or syntax} can't be rendered: there is no decoder"
        )
    seen = attributes(context.store.open_original(one.uid), reader.layout, wanted, syntax)
    return [reader.read(index) for index in shot.indexes], reader.layout, syntax, seen, wanted


# --- What is passed on as it is ------------------------------------------------------------------


async def _document(
    context: Context, request: Request, ranges: Sequence[MediaRange], one: Resource
) -> Answer:
    """PS3.3 C.24.2, Encapsulated Document Module: in the media type that it says it is of."""
    asked = asked_of(request.scope["headers"])
    kind, length = await context.run(_document_facts, context, one)
    chosen = _choose(ranges, (kind,))
    etag = f'"{one.instance.identity[:12].hex()}-document"'.encode()
    if asked.holds(etag):
        return not_modified(etag)
    value = await context.run(context.store.bulk_data, one.uid, _DOCUMENT)
    length = length if 0 < length <= value.length else value.length
    return ranged_stream(context, asked, etag, chosen, length, bulk.reader_of(value))


def _document_facts(context: Context, one: Resource) -> tuple[str, int]:
    elements = dataset.Elements(context.store.open_original(one.uid), syntax_of(one.instance))
    lengths = dataset.numbers(dataset.read(elements, {_LENGTH: None}).values.get(_LENGTH))
    return bulk.document_type(context, one), int(lengths[0]) if lengths else 0


async def _video(context: Context, request: Request, chosen: str, one: Resource) -> Answer:
    asked = asked_of(request.scope["headers"])
    etag = f'"{one.instance.identity[:12].hex()}-video"'.encode()
    if asked.holds(etag):
        return not_modified(etag)
    length, read = await context.run(_video_stream, context, one)
    return ranged_stream(context, asked, etag, chosen, length, read)


def _video_stream(context: Context, one: Resource) -> tuple[int, bulk.Read]:
    """All of a video, which is one codestream whatever Number of Frames says: PS3.5 8.2.5, MPEG2 MP@ML Image
    Compression."""
    if one.instance.table_length:
        return _reader_of(context, one).stream(0)
    value = context.store.bulk_data(one.uid, f"{one.instance.pixel_tag:08X}")
    return value.length, bulk.reader_of(value)


# --- Parameters ----------------------------------------------------------------------------------


def rendering_of(params: Mapping[str, str]) -> Rendering:
    """PS3.18 8.3.5.1, Query Parameters for Rendered Resources. What is not known is ignored: 8.3.1, Query
    Parameter Syntax.

    Raises:
        BadQuery: a value that is none.
    """
    window = None
    if params.get("window"):
        pieces = params["window"].split(",")
        if len(pieces) not in (2, 3):
            raise BadQuery("window is center, width and function, with commas between: window=40,400,linear")
        function = pieces[2].strip() if len(pieces) == 3 else "linear"
        window = number_of("window", pieces[0]), number_of("window", pieces[1]), function
    viewport: tuple[float | None, ...] | None = None
    if params.get("viewport"):
        pieces = params["viewport"].split(",")
        if len(pieces) not in (2, 6):
            raise BadQuery("viewport is width and height, or these and x, y, width, height of the source")
        viewport = tuple(number_of("viewport", piece) if piece.strip() else None for piece in pieces)
    quality = None
    if params.get("quality"):
        quality = quality_of("quality", params["quality"])
    profile = params.get("iccprofile", "").strip().lower()
    if profile not in ("", *_ICC_PROFILES):
        raise BadQuery(f"iccprofile is {profile[:40]!r}: {', '.join(_ICC_PROFILES)}")
    annotation = tuple(
        word for word in params.get("annotation", "").lower().split(",") if word in ("patient", "technique")
    )
    return Rendering(
        window=window, viewport=viewport, quality=quality, annotation=annotation, icc_profile=profile
    )


def number_of(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not abs(value) < 1e15:
        raise BadQuery(f"{name} has {text[:40]!r}, which is no number")
    return value


def quality_of(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= 100):
        raise BadQuery(f"{name} is {text[:40]!r}, not a whole number from 1 to 100")
    return int(text)


def is_picture(instance: Instance) -> bool:
    """Whether there are pixels that can be rendered."""
    return bool(instance.pixel_tag) and syntax_of(instance) in CODECS


def _reader_of(context: Context, one: Resource) -> FrameReader:
    return readers_of(context).get(one.study, one.series, one.uid)[1]


def _class_of(instance: Instance) -> str:
    return record.raw_of(instance.entries, _SOP_CLASS).decode("latin-1")


def _order_of(one: Resource) -> tuple[float, str]:
    """By Instance Number, as people leaf through a series."""
    try:
        number = record.values_of(one.instance.entries, _INSTANCE_NUMBER)
    except (BadDicom, record.LeftInHead):
        number = []
    first = number[0] if number else None
    return (float(first) if isinstance(first, int | float) else 0.0), one.uid


def _etag(wanted: Rendering, shots: Iterable[Shot]) -> bytes:
    hasher = hashlib.sha256(repr(wanted).encode())
    for shot in shots:
        hasher.update(shot.resource.instance.identity + repr(shot.indexes).encode())
    return f'"{hasher.hexdigest()[:40]}"'.encode()
