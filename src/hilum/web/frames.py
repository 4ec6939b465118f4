"""Frames of an instance: takes a list of frame numbers; answers with them as stored where the client takes
them so, else decoded or transcoded. Never gives a frame that has been deleted or replaced since.

PS3.18 10.4, Retrieve Transaction: Frame Pixel Data Resources. They are the most called of all: so what an
answer needs besides the frame is kept, and asking again costs a look at the index and one pread.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import NamedTuple
from weakref import WeakKeyDictionary

from starlette.requests import Request
from starlette.routing import Route

from hilum.dicom import uids
from hilum.engine.frames import FrameReader
from hilum.engine.record import Instance
from hilum.engine.resources import Mark
from hilum.errors import BadDicom, HilumError, NotFound, Unsupported
from hilum.web import media
from hilum.web.answers import Answer, Streamed, headers_of, not_modified, ranged, whole
from hilum.web.conditional import Asked, Headers, asked_of
from hilum.web.context import Context, accept_of, context_of
from hilum.web.errors import NotAcceptable
from hilum.web.media import Form, media_type_of
from hilum.web.multipart import Multipart, with_syntax
from hilum.web.reading import Frames, numbers_of, readers_of, syntax_of

_READY_MAX = 32_768  # answers that are kept, of about 2 KB
_NAME_MAX = 1024  # bytes of what they are known by

# All that an answer depends on: path, Accept, query, and what our URLs begin with.
Name = tuple[str, bytes, bytes, str]


class Ready(NamedTuple):
    """The answer to a request that came before, but for the bytes of the frame."""

    mark: Mark
    headers: Headers
    head: bytes  # before the frame
    end: bytes  # behind it


class Wanted(NamedTuple):
    """What one request is about."""

    name: Name
    place: tuple[str, str, str]  # UIDs of study, series and instance
    numbers: list[int]  # of the frames

    @property
    def location(self) -> str:
        """The URL of a frame, without its number."""
        study, series, instance = self.place
        return f"{self.name[3]}/studies/{study}/series/{series}/instances/{instance}/frames/"


_READY: WeakKeyDictionary[Context, dict[Name, Ready]] = WeakKeyDictionary()  # of each application


def routes() -> list[Route]:
    path = "/studies/{study}/series/{series}/instances/{instance}/frames/{frames}"
    return [Route(path, frames, methods=["GET", "HEAD"])]


async def frames(request: Request) -> Answer:
    """GET .../instances/{instance}/frames/{frames}"""
    context = context_of(request)
    scope = request.scope
    asked = asked_of(scope["headers"])
    base = context.base_url(request)
    name = scope["path"], asked.accept, scope["query_string"], base
    known = _READY.get(context)
    ready = known.get(name) if known is not None and asked.is_plain else None
    if ready is not None:
        data = readers_of(context).read_marked(ready.mark)
        if data is not None:
            return whole(ready.headers, ready.head, data, ready.end)
    path = request.path_params
    numbers = numbers_of(path["frames"], context.settings.limits.frames)
    place = path["study"], path["series"], path["instance"]
    instance, reader = readers_of(context).get(*place)
    count = reader.frame_count
    for number in numbers:
        if number > count:
            raise NotFound(f"there is no frame {number}: the instance has {count}")
    wanted = Wanted(name, place, numbers)
    failure: HilumError | None = None
    for form in _forms(request, asked, syntax_of(instance), len(numbers)):
        try:
            return await _answer(context, asked, wanted, instance, reader, form)
        except (Unsupported, BadDicom) as reason:
            # What can't be had in this form may still be taken in the next: as stored, if nothing else.
            failure = failure or reason
    assert failure is not None  # there is one form at least
    raise NotAcceptable(f"the pixels can't be given in a form that Accept allows: {failure}") from failure


def _forms(request: Request, asked: Asked, stored: str, count: int) -> list[Form]:
    found = media.pixel_forms(accept_of(request), stored, count=count)
    if b"=true" in request.scope["query_string"] and request.query_params.get("DECOMPRESS_PIXELS") == "true":
        # As the French "Sphere" server has it: decoded, whatever else is accepted.
        return list(dict.fromkeys(Form(form.multipart, uids.EXPLICIT_VR_LITTLE_ENDIAN) for form in found))
    return found


async def _answer(
    context: Context, asked: Asked, wanted: Wanted, instance: Instance, reader: FrameReader, form: Form
) -> Answer:
    """The answer in one form.

    Raises:
        Unsupported, BadDicom: the first frame can't be had in it.
    """
    # The digest of an instance can't stand in its own pixels: so it makes a boundary, and one that is always
    # the same, for ranges of the answer.
    numbers = wanted.numbers
    tag = f"{instance.identity[:12].hex()}-{_short(numbers)}-{form.syntax[18:]}"
    etag = f'"{tag}-{"m" if form.multipart else "s"}"'.encode()
    if asked.holds(etag):
        return not_modified(etag)
    source = Frames(context, instance, reader, form.syntax)
    first = await source.one(numbers[0] - 1)
    media_type = media_type_of(form.syntax)
    content_type = with_syntax(media_type, form.syntax)
    related = Multipart(media_type, boundary=f"hilum-{tag}")
    if len(numbers) > 1:
        pieces = _parts(related, content_type, wanted, first, source)
        return Streamed(context, 200, headers_of(related.content_type, None, (b"etag", etag)), pieces)
    head = end = b""
    if form.multipart:
        head, end = related.head(content_type, f"{wanted.location}{numbers[0]}"), related.end()
        content_type = related.content_type
    if not asked.is_plain:
        return ranged(context, asked, etag, content_type, head, first, end)
    length = len(head) + len(first) + len(end)
    headers = headers_of(content_type, length, (b"etag", etag), (b"accept-ranges", b"bytes"))
    if source.is_stored:
        _remember(context, wanted, headers, head, end)
    return whole(headers, head, first, end)


def _remember(context: Context, wanted: Wanted, headers: Headers, head: bytes, end: bytes) -> None:
    name = wanted.name
    if sum(map(len, name)) > _NAME_MAX:
        return
    mark = readers_of(context).mark(*wanted.place, wanted.numbers[0] - 1)
    if mark is None:
        return
    known = _READY.setdefault(context, {})
    known.pop(name, None)
    known[name] = Ready(mark, headers, head, end)
    if len(known) > _READY_MAX:
        del known[next(iter(known))]  # the oldest


def _short(numbers: list[int]) -> str:
    """What tells one list of frames from another, short whatever they are."""
    if len(numbers) == 1:
        return str(numbers[0])
    return hashlib.sha256(repr(numbers).encode()).hexdigest()[:12]


def _parts(
    related: Multipart, content_type: str, wanted: Wanted, first: bytes, source: Frames
) -> Iterator[bytes]:
    yield related.head(content_type, f"{wanted.location}{wanted.numbers[0]}")
    yield first
    rest = wanted.numbers[1:]
    for number, data in zip(rest, source.many(number - 1 for number in rest), strict=True):
        yield related.head(content_type, f"{wanted.location}{number}")
        yield data
    yield related.end()
