"""Frames of an instance: takes a list of frame numbers; answers with them as stored where the client takes
them so, else decoded or transcoded. The most called of all resources, so what it does for each request is
little.

PS3.18 10.4, Retrieve Transaction: Frame Pixel Data Resources.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from starlette.requests import Request
from starlette.routing import Route

from hilum.dicom import uids
from hilum.engine.frames import FrameReader
from hilum.engine.record import Instance
from hilum.errors import BadDicom, HilumError, NotFound, Unsupported
from hilum.web import media
from hilum.web.answers import Answer, Streamed, headers_of, not_modified, ranged
from hilum.web.conditional import Asked, asked_of
from hilum.web.context import Context, accept_of, context_of
from hilum.web.errors import NotAcceptable
from hilum.web.media import Form, media_type_of
from hilum.web.multipart import Multipart, with_syntax
from hilum.web.reading import Frames, numbers_of, readers_of, syntax_of

_FORMS_MAX = 1024


def routes() -> list[Route]:
    return [
        Route(
            "/studies/{study}/series/{series}/instances/{instance}/frames/{frames}",
            frames,
            methods=["GET", "HEAD"],
        )
    ]


async def frames(request: Request) -> Answer:
    """GET .../instances/{instance}/frames/{frames}"""
    context = context_of(request)
    path = request.path_params
    numbers = numbers_of(path["frames"], context.settings.limits.frames)
    instance, reader = readers_of(context).get(path["study"], path["series"], path["instance"])
    count = reader.frame_count
    for number in numbers:
        if number > count:
            raise NotFound(f"there is no frame {number}: the instance has {count}")
    asked = asked_of(request.scope["headers"])
    failure: HilumError | None = None
    for form in _forms(request, asked, syntax_of(instance), len(numbers)):
        try:
            return await _answer(context, request, asked, instance, reader, numbers, form)
        except (Unsupported, BadDicom) as reason:
            # What can't be had in this form may still be taken in the next: as stored, if nothing else.
            failure = failure or reason
    assert failure is not None  # there is one form at least
    raise NotAcceptable(f"the pixels can't be given in a form that Accept allows: {failure}") from failure


# Accept of the same client over and over: (Accept, query, transfer syntax, several) → forms.
_KNOWN_FORMS: dict[tuple[bytes, bytes, str, bool], list[Form]] = {}


def _forms(request: Request, asked: Asked, stored: str, count: int) -> list[Form]:
    query = request.scope["query_string"]
    key = asked.accept, query, stored, count > 1
    found = _KNOWN_FORMS.get(key)
    if found is None:
        found = media.pixel_forms(accept_of(request), stored, count=count)
        if b"=true" in query and request.query_params.get("DECOMPRESS_PIXELS") == "true":
            # As the French "Sphere" server has it: decoded, whatever else is accepted.
            found = list(dict.fromkeys(Form(f.multipart, uids.EXPLICIT_VR_LITTLE_ENDIAN) for f in found))
        if len(_KNOWN_FORMS) >= _FORMS_MAX or len(asked.accept) + len(query) > 2000:
            _KNOWN_FORMS.clear()
        _KNOWN_FORMS[key] = found
    return found


async def _answer(
    context: Context,
    request: Request,
    asked: Asked,
    instance: Instance,
    reader: FrameReader,
    numbers: list[int],
    form: Form,
) -> Answer:
    # The digest of an instance can't stand in its own pixels: so it makes a boundary, and one that is always
    # the same, for ranges of the answer.
    name = f"{instance.identity[:12].hex()}-{_name_of(numbers)}-{form.syntax[18:]}"
    etag = f'"{name}-{"m" if form.multipart else "s"}"'.encode()
    if asked.holds(etag):
        return not_modified(etag)
    source = Frames(context, instance, reader, form.syntax)
    first = await source.one(numbers[0] - 1)
    content_type = with_syntax(media_type_of(form.syntax), form.syntax)
    if not form.multipart:
        return ranged(context, asked, etag, content_type, first)
    location = f"{context.base_url(request)}{_below_root(request)}"
    related = Multipart(media_type_of(form.syntax), boundary=f"hilum-{name}")
    if len(numbers) == 1:
        head, end = related.head(content_type, f"{location}{numbers[0]}"), related.end()
        return ranged(context, asked, etag, related.content_type, head, first, end)
    pieces = _parts(related, content_type, location, numbers, first, source)
    headers = headers_of(related.content_type, None, (b"etag", etag))
    return Streamed(context, 200, headers, pieces)


def _name_of(numbers: list[int]) -> str:
    """What tells one list of frames from another, short whatever they are."""
    if len(numbers) == 1:
        return str(numbers[0])
    return hashlib.sha256(repr(numbers).encode()).hexdigest()[:12]


def _below_root(request: Request) -> str:
    path = request.path_params
    return f"/studies/{path['study']}/series/{path['series']}/instances/{path['instance']}/frames/"


def _parts(
    related: Multipart, content_type: str, location: str, numbers: list[int], first: bytes, source: Frames
) -> Iterator[bytes]:
    yield related.head(content_type, f"{location}{numbers[0]}")
    yield first
    rest = numbers[1:]
    for number, data in zip(rest, source.many(number - 1 for number in rest), strict=True):
        yield related.head(content_type, f"{location}{number}")
        yield data
    yield related.end()
