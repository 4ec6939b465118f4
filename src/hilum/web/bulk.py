"""Bulk data: takes the URI that metadata names a value by, or the path of all that a study, series or
instance has; answers with the bytes. Byte ranges, single part and multipart.

PS3.18 10.4, Retrieve Transaction: Bulkdata Resources and Pixel Data Resources. Compressed pixels are as
frames are: as stored where the client takes them so, else decoded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

import orjson
from starlette.requests import Request
from starlette.routing import Route

from hilum.dicom import uids
from hilum.engine.document import BulkValue
from hilum.engine.resources import Resource
from hilum.errors import BadDicom, BadQuery, HilumError, NotFound, Unsupported
from hilum.pixels import dataset
from hilum.web import accept, media
from hilum.web.accept import MediaRange
from hilum.web.answers import Answer, Streamed, headers_of, not_modified, ranged_stream
from hilum.web.conditional import asked_of
from hilum.web.context import Context, accept_of, context_of
from hilum.web.errors import NotAcceptable
from hilum.web.media import OCTETS, Form, media_type_of
from hilum.web.multipart import Multipart, with_syntax
from hilum.web.reading import Frames, as_stored, can_convert, readers_of, resources_of, syntax_of

_PIECE = 1 << 20
_CHECKED_MAX = 64 << 20
_PIXELS = ("7FE00010", "7FE00008", "7FE00009")
_DOCUMENT, _MIME_TYPE = "00420011", 0x00420012
_EXPLICIT = uids.EXPLICIT_VR_LITTLE_ENDIAN

Read = Callable[[int, int], Iterable[bytes]]  # bytes from one offset to another


def routes() -> list[Route]:
    series = "/studies/{study}/series/{series}"
    instance = f"{series}/instances/{{instance}}"
    found = [Route(f"{instance}/bulkdata/{{path}}", one_value, methods=["GET", "HEAD"])]
    for path in ("/studies/{study}", series, instance):
        found.append(Route(f"{path}/bulkdata", all_values, methods=["GET", "HEAD"]))
        found.append(Route(f"{path}/pixeldata", all_pixels, methods=["GET", "HEAD"]))
    return found


async def one_value(request: Request) -> Answer:
    """GET .../instances/{instance}/bulkdata/{path}"""
    context = context_of(request)
    path = request.path_params["path"].upper()
    (one,) = resources_of(context, request)
    ranges = accept_of(request)
    value = await context.run(context.store.bulk_data, one.uid, path)
    failure: HilumError | None = None
    for given in _given(context, ranges, one, value, path):
        try:
            return await _answer(context, request, one, path, value, given)
        except (Unsupported, BadDicom) as reason:
            failure = failure or reason
    assert failure is not None  # there is one way at least
    raise NotAcceptable(f"the value can't be given in a form that Accept allows: {failure}") from failure


class Given(NamedTuple):
    """One way in which a value may leave."""

    multipart: bool
    content_type: str
    convert_to: str = ""  # the transfer syntax into which pixels are brought for that


def _given(
    context: Context, ranges: Sequence[MediaRange], one: Resource, value: BulkValue, path: str
) -> list[Given]:
    """The ways in which a value may leave, best first; one at least.

    Raises:
        NotAcceptable: the client takes none of them.
    """
    if value.is_encapsulated:
        return [
            _given_pixels(form, value) for form in media.pixel_forms(ranges, value.transfer_syntax, count=1)
        ]
    media.refuse_mixed(ranges, pixels=True)
    kinds = {OCTETS: with_syntax(OCTETS, _EXPLICIT)}
    if path == _DOCUMENT:
        kind = document_type(context, one)
        kinds = {kind: kind, **kinds}
    found = []
    for media_range in ranges or (MediaRange("*", "*", {}),):
        multipart, inner = media.inner_of(media_range)
        if media_range.q > 0:
            kind, _, subtype = inner.partition("/")
            wanted = MediaRange(kind, subtype, {})
            found += [
                Given(multipart, kinds[k]) for k in kinds if accept.matches(wanted, accept.media_type(k))
            ]
    if not found:
        raise NotAcceptable(f"this value can be given as {' and '.join(kinds)}")
    return found


def _given_pixels(form: Form, value: BulkValue) -> Given:
    stored = as_stored(value.transfer_syntax, form.syntax)
    kind = with_syntax(media_type_of(form.syntax), form.syntax)
    return Given(form.multipart, kind, "" if stored else form.syntax)


async def _answer(
    context: Context, request: Request, one: Resource, path: str, value: BulkValue, given: Given
) -> Answer:
    asked = asked_of(request.scope["headers"])
    name = f"{one.instance.identity[:12].hex()}-{path}-{given.convert_to[18:]}"
    etag = f'"{name}-{"m" if given.multipart else "s"}-{len(given.content_type)}"'.encode()
    if asked.holds(etag):
        return not_modified(etag)
    location = f"{context.base_url(request)}{_place(one)}/bulkdata/{path}"
    related = Multipart(
        given.content_type.split(";")[0], boundary=f"hilum-{hashlib.sha256(name.encode()).hexdigest()[:40]}"
    )
    if given.convert_to or value.part_count > 1:
        pieces = await context.run(_frames, context, one, value, given, related, location)
        content_type = related.content_type if given.multipart else given.content_type
        return Streamed(context, 200, headers_of(content_type, None, (b"etag", etag)), pieces)
    if not given.multipart:
        return ranged_stream(context, asked, etag, given.content_type, value.length, reader_of(value))
    head = related.head(given.content_type, location)
    length, read = _wrapped(head, value.length, reader_of(value), related.end())
    return ranged_stream(context, asked, etag, related.content_type, length, read)


def _frames(
    context: Context, one: Resource, value: BulkValue, given: Given, related: Multipart, location: str
) -> Iterator[bytes]:
    """Frames of encapsulated pixels: each is a part as a codestream, all are one part when decoded.

    Raises:
        Unsupported, BadDicom: they can't be given so; the first frame has been tried.
    """
    if not given.multipart and given.convert_to != _EXPLICIT:
        raise Unsupported("several frames can be given as multipart/related only")
    frames = _frames_of(context, one, value, given)
    if not given.multipart:
        return frames
    return chain(_parts(related, given, location, frames), (related.end(),))


def _frames_of(context: Context, one: Resource, value: BulkValue, given: Given) -> Iterator[bytes]:
    """The frames, the first of them read and converted."""
    frames: Iterator[bytes]
    if not given.convert_to:
        frames = map(value.part, range(value.part_count))
    else:
        instance, reader = readers_of(context).get(one.study, one.series, one.uid)
        stored = syntax_of(instance)
        if value.transfer_syntax != stored or not can_convert(stored, given.convert_to):
            name = uids.name_of(value.transfer_syntax) or value.transfer_syntax
            raise Unsupported(f"what is stored as {name} can't be given as {given.content_type}")
        frames = iter(Frames(context, instance, reader, given.convert_to).many(range(reader.frame_count)))
    return chain((next(frames),), frames)


def _parts(related: Multipart, given: Given, location: str, frames: Iterable[bytes]) -> Iterator[bytes]:
    """One part for all that lie side by side, else one for each."""
    if given.content_type.endswith(_EXPLICIT) or ";" not in given.content_type:
        yield related.head(given.content_type, location)
        yield from frames
        return
    for data in frames:
        yield related.head(given.content_type, location)
        yield data


def reader_of(value: BulkValue) -> Read:
    """Reads ranges of a value with one part.

    A checksum is of all of it, so all of it is read, unless it is so long that a range would cost seconds.
    """

    def read(begin: int, end: int) -> Iterator[bytes]:
        if value.length > _CHECKED_MAX:
            first, last = begin, end
        else:
            first, last = 0, value.length
        for at in range(first, last, _PIECE):
            piece = value.read(at, min(_PIECE, last - at))
            if begin < at + len(piece) and at < end:
                yield piece[max(begin - at, 0) : end - at]

    return read


def _wrapped(head: bytes, length: int, read: Read, end: bytes) -> tuple[int, Read]:
    """A value with what stands before and behind it, as one thing that ranges are taken of."""

    def read_all(begin: int, stop: int) -> Iterator[bytes]:
        behind = len(head) + length
        if begin < len(head):
            yield head[begin:stop]
        if begin < behind and stop > len(head):
            yield from read(max(begin - len(head), 0), min(stop, behind) - len(head))
        if stop > behind:
            yield end[max(begin - behind, 0) : stop - behind]

    return len(head) + length + len(end), read_all


# --- All that a study, series or instance has ------------------------------------------------------


async def all_values(request: Request) -> Answer:
    """GET .../bulkdata: every value that the metadata names by a URI."""
    return await _all(request, lambda path: True)


async def all_pixels(request: Request) -> Answer:
    """GET .../pixeldata: those of them that are Pixel Data."""
    return await _all(request, lambda path: path in _PIXELS)


async def _all(request: Request, is_wanted: Callable[[str], bool]) -> Answer:
    context = context_of(request)
    accepted = accept_of(request)
    ranges = [one for one in accepted if media.inner_of(one)[0]]
    if accepted and not ranges:
        raise NotAcceptable("all values can be given as multipart/related only")
    found = await context.run(resources_of, context, request)
    named = await context.run(_named, context, found, is_wanted)
    if not named:
        raise NotFound("there is no such bulk data here")
    related = Multipart(OCTETS)
    pieces = _all_parts(context, ranges, related, context.base_url(request), named)
    return Streamed(context, 200, headers_of(related.content_type), pieces)


def _named(
    context: Context, found: Iterable[Resource], is_wanted: Callable[[str], bool]
) -> list[tuple[Resource, str]]:
    """Instances and the paths of their values, as their metadata has them."""
    named = []
    for one in found:
        paths: list[str] = []
        _gather(orjson.loads(context.store.instance_json(one.uid, base="")), paths)
        named += [(one, path) for path in paths if is_wanted(path)]
    return named


def _gather(document: dict[str, Any], paths: list[str]) -> None:
    for element in document.values():
        if "BulkDataURI" in element:
            paths.append(element["BulkDataURI"].rsplit("/", 1)[1])
        for item in element.get("Value", ()) if element.get("vr") == "SQ" else ():
            _gather(item or {}, paths)


def _all_parts(
    context: Context,
    ranges: Sequence[MediaRange],
    related: Multipart,
    base: str,
    named: Iterable[tuple[Resource, str]],
) -> Iterator[bytes]:
    for one, path in named:
        value = context.store.bulk_data(one.uid, path)
        location = f"{base}{_place(one)}/bulkdata/{path}"
        failure: HilumError | None = None
        for given in _given(context, ranges, one, value, path):
            try:
                frames = _frames_of(context, one, value, given) if value.is_encapsulated else _whole(value)
            except (Unsupported, BadDicom) as reason:
                failure = failure or reason
                continue
            yield from _parts(related, given, location, frames)
            break
        else:
            assert failure is not None
            raise failure
    yield related.end()


def _whole(value: BulkValue) -> Iterator[bytes]:
    return iter(reader_of(value)(0, value.length))


def _place(one: Resource) -> str:
    return f"/studies/{one.study}/series/{one.series}/instances/{one.uid}"


def document_type(context: Context, one: Resource) -> str:
    """The media type that a document says it is of: PS3.3 C.24.2, Encapsulated Document Module."""
    elements = dataset.Elements(context.store.open_original(one.uid), syntax_of(one.instance))
    kind = dataset.text(dataset.read(elements, {_MIME_TYPE: None}).values.get(_MIME_TYPE)).lower()
    try:
        accept.media_type(kind)
    except BadQuery:
        return OCTETS
    return kind
