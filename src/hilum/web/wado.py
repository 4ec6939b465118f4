"""WADO-RS: takes the path of a study, series or instance; answers with the instances as DICOM files, or with
their metadata. Frames, bulk data and pictures of them are in modules of their own.

PS3.18 10.4, Retrieve Transaction: Instance Resources and Metadata Resources.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

from starlette.requests import Request
from starlette.routing import Route

from hilum.dicom import uids
from hilum.engine import resources
from hilum.engine.resources import Resource
from hilum.errors import BadDicom, Corrupt, HilumError, Unsupported
from hilum.pixels import transcode
from hilum.web import archive, bulk, frames, media, metadata
from hilum.web.accept import MediaRange
from hilum.web.answers import Answer, Streamed, headers_of, not_modified, ranged_stream
from hilum.web.archive import Member
from hilum.web.conditional import Asked, asked_of
from hilum.web.context import Context, accept_of, context_of
from hilum.web.errors import NotAcceptable
from hilum.web.media import DICOM, Form
from hilum.web.multipart import Multipart, with_syntax
from hilum.web.reading import can_convert, syntax_of

_PART, _RELATED, _ZIP = "part", "related", "zip"  # how several instances are put together
_REASONS_SHOWN = 3


def routes() -> list[Route]:
    levels = (
        "/studies/{study}",
        "/studies/{study}/series/{series}",
        "/studies/{study}/series/{series}/instances/{instance}",
    )
    found = [Route(path, retrieve, methods=["GET", "HEAD"]) for path in levels]
    return [*found, *metadata.routes(), *frames.routes(), *bulk.routes()]


async def retrieve(request: Request) -> Answer:
    """GET /studies/{study}[/series/{series}[/instances/{instance}]][.zip]"""
    context = context_of(request)
    path = dict(request.path_params)
    last = "instance" if "instance" in path else "series" if "series" in path else "study"
    ranges = accept_of(request)
    if path[last].endswith(".zip"):
        path[last] = path[last].removesuffix(".zip")
        # A link for people: what their browser accepts is not about this.
        ranges = (MediaRange("application", "zip", {}),)
    wanted = path["study"], path.get("series", ""), path.get("instance", "")
    return await answer(context, request, wanted, ranges)


async def answer(
    context: Context,
    request: Request,
    wanted: tuple[str, str, str],
    ranges: Sequence[MediaRange],
    *,
    states_syntax: bool = True,
) -> Answer:
    """The instances of a study, a series or one alone (their UIDs, or ""), as the client takes them."""
    plan = await context.run(_plan, context, wanted, ranges)
    plan = plan._replace(states_syntax=states_syntax)
    asked = asked_of(request.scope["headers"])
    if asked.holds(plan.etag):
        return not_modified(plan.etag)
    return await _ANSWERS[plan.container](context, request, asked, plan)


class Part(NamedTuple):
    """One instance that will be sent."""

    resource: Resource
    syntaxes: tuple[str, ...]  # in which it may be, best first
    crc: int  # of the file as it is stored


class Plan(NamedTuple):
    """What will be sent, known before the first byte."""

    container: str
    parts: list[Part]
    left_out: list[str]  # reasons, one for each instance
    etag: bytes
    states_syntax: bool = True  # a single part says in which transfer syntax it is

    def content_type(self, syntax: str) -> str:
        return with_syntax(DICOM, syntax) if self.states_syntax else DICOM

    @property
    def status(self) -> int:
        return 206 if self.left_out else 200

    @property
    def warnings(self) -> list[tuple[bytes, bytes]]:
        if not self.left_out:
            return []
        reasons = "; ".join(sorted(set(self.left_out))[:_REASONS_SHOWN])
        count = len(self.left_out) + len(self.parts)
        text = f'299 hilum "{len(self.left_out)} of {count} instances are left out: {reasons}"'
        return [(b"warning", " ".join(text.split()).encode("latin-1", "replace"))]


def _plan(context: Context, wanted: tuple[str, str, str], ranges: Sequence[MediaRange]) -> Plan:
    """Decide what is sent: PS3.18 10.4.3, Response. What can't be is known now, and is no silent gap later.

    Raises:
        NotFound: nothing is stored there.
        NotAcceptable: none of it can be given in a form that is accepted.
        Corrupt: all of it is damaged.
    """
    media.refuse_mixed(ranges)
    found = resources.instances(context.store.index, *wanted)
    failure: HilumError | None = None
    for container in _containers(ranges, len(found)):
        parts, left_out = [], []
        known: dict[str, tuple[str, ...]] = {}
        for resource in found:
            stored = syntax_of(resource.instance)
            syntaxes = known.get(stored)
            if syntaxes is None:
                syntaxes = known[stored] = tuple(_syntaxes(ranges, container, stored))
            try:
                if not syntaxes:
                    name = uids.name_of(stored) or "a private transfer syntax"
                    raise NotAcceptable(
                        f"what is stored as {name} ({stored}) can't be given in a form that Accept allows"
                    )
                parts.append(Part(resource, syntaxes, _check(context, resource)))
            except (NotAcceptable, Corrupt) as reason:
                failure = failure or reason
                left_out.append(str(reason))
        if parts:
            return Plan(container, parts, left_out, _etag(container, parts))
    if failure is not None:
        raise failure
    several = " once there are several instances" if len(found) > 1 else ""
    raise NotAcceptable(
        f'instances can be given as multipart/related; type="{DICOM}", as {media.ZIP} and, but not{several}, '
        f"as {DICOM}"
        if several
        else f'an instance can be given as {DICOM}, multipart/related; type="{DICOM}" and {media.ZIP}'
    )


def _containers(ranges: Sequence[MediaRange], count: int) -> list[str]:
    """The ways of putting instances together that are accepted, best first."""
    if not ranges:
        return [_RELATED]
    found = []
    for one in ranges:
        if one.q <= 0:
            continue
        if one.name == media.ZIP:
            found.append(_ZIP)
        elif one.name == DICOM or one.name == "application/*":
            found += [_PART] if count == 1 else []
        elif one.type in ("multipart", "*"):
            found.append(_RELATED)
    return list(dict.fromkeys(found))


def _syntaxes(ranges: Sequence[MediaRange], container: str, stored: str) -> Iterator[str]:
    """The transfer syntaxes in which an instance may be in this container, best first."""
    if container == _ZIP:
        # A link for people gives the files as they are; a transfer syntax is asked for by Accept.
        asked = [one.params.get("transfer-syntax", "*") for one in ranges if one.name == media.ZIP]
        forms = [Form(False, stored if syntax == "*" else syntax) for syntax in asked]
    else:
        forms = [
            form for form in media.dicom_forms(ranges, stored) if form.multipart == (container == _RELATED)
        ]
    for form in forms:
        if form.syntax == stored or _can_be_made(stored, form.syntax):
            yield form.syntax


def _can_be_made(stored: str, target: str) -> bool:
    """Whether a whole instance may come out in another transfer syntax."""
    if media.is_native(stored) and target == uids.EXPLICIT_VR_LITTLE_ENDIAN:
        return True
    return can_convert(stored, target)


def _check(context: Context, resource: Resource) -> int:
    """The checksum of a file, if all that it is made of is there, to its last byte.

    Raises:
        Corrupt: it can't.
    """
    head = context.store.read_head(resource.instance)
    for hole in head.holes:
        context.store.read_blob(hole.digest, hole.length - 1, 1)
    return head.original_crc


def _etag(container: str, parts: Sequence[Part]) -> bytes:
    """Names the very bytes that will be sent: the boundary is made of it too."""
    hasher = hashlib.sha256(container.encode())
    for part in parts:
        instance = part.resource.instance
        hasher.update(f"{instance.sequence} {instance.container} {part.syntaxes[0]}\n".encode())
        hasher.update(instance.identity)
    return f'"{hasher.hexdigest()[:40]}"'.encode()


# --- The three ways of putting instances together ------------------------------------------------


async def _single(context: Context, request: Request, asked: Asked, plan: Plan) -> Answer:
    """PS3.18 8.6.1.1, Single Part Payload."""
    (part,) = plan.parts
    instance = part.resource.instance
    stored = syntax_of(instance)
    if part.syntaxes[0] != stored:
        syntax, pieces = await context.run(_made, context, part)
        headers = headers_of(plan.content_type(syntax), None, (b"etag", plan.etag))
        return Streamed(context, 200, headers, pieces)
    read = partial(_bytes_of, context, part.resource)
    length = instance.original_length
    return ranged_stream(context, asked, plan.etag, plan.content_type(stored), length, read)


async def _related(context: Context, request: Request, asked: Asked, plan: Plan) -> Answer:
    """PS3.18 8.6.1.2, Multipart Payload."""
    base = context.base_url(request)
    related = Multipart(DICOM, boundary=f"hilum-{plan.etag[1:-1].decode()}")
    if all(part.syntaxes[0] == syntax_of(part.resource.instance) for part in plan.parts):
        heads = [_part_head(related, base, part.resource, part.syntaxes[0]) for part in plan.parts]
        end = related.end()
        length = sum(map(len, heads)) + len(end)
        length += sum(part.resource.instance.original_length for part in plan.parts)
        pieces = _stored_parts(context, heads, plan.parts, end)
        headers = headers_of(related.content_type, length, (b"etag", plan.etag), *plan.warnings)
        return Streamed(context, plan.status, headers, pieces)
    headers = headers_of(related.content_type, None, (b"etag", plan.etag), *plan.warnings)
    return Streamed(context, plan.status, headers, _made_parts(context, related, base, plan.parts))


async def _zipped(context: Context, request: Request, asked: Asked, plan: Plan) -> Answer:
    """An archive of the files, for people: what they get is one file."""
    members = []
    for part in plan.parts:
        resource = part.resource
        name = f"{resource.study}/{resource.series}/{resource.uid}.dcm"
        is_stored = part.syntaxes[0] == syntax_of(resource.instance)
        length = resource.instance.original_length if is_stored else None
        members.append(Member(name, length, part.crc if is_stored else None))
    files = ((member, _file(context, part)) for member, part in zip(members, plan.parts, strict=True))
    names = [request.path_params.get(level) for level in ("instance", "series", "study")]
    name = next(name for name in names if name).removesuffix(".zip")
    disposition = f'attachment; filename="{name}.zip"'.encode("latin-1", "replace")
    headers = headers_of(
        media.ZIP,
        archive.length_of(members),
        (b"etag", plan.etag),
        (b"content-disposition", disposition),
        *plan.warnings,
    )
    return Streamed(context, plan.status, headers, archive.archive(files))


_ANSWERS = {_PART: _single, _RELATED: _related, _ZIP: _zipped}


def _part_head(related: Multipart, base: str, resource: Resource, syntax: str) -> bytes:
    location = f"{base}/studies/{resource.study}/series/{resource.series}/instances/{resource.uid}"
    return related.head(with_syntax(DICOM, syntax), location)


def _stored_parts(
    context: Context, heads: Sequence[bytes], parts: Sequence[Part], end: bytes
) -> Iterator[bytes]:
    for head, part in zip(heads, parts, strict=True):
        yield head
        yield from context.store.chunks(part.resource.uid)
    yield end


def _made_parts(context: Context, related: Multipart, base: str, parts: Sequence[Part]) -> Iterator[bytes]:
    for part in parts:
        syntax, pieces = _made(context, part)
        yield _part_head(related, base, part.resource, syntax)
        yield from pieces
    yield related.end()


def _file(context: Context, part: Part) -> Iterator[bytes]:
    yield from _made(context, part)[1]


def _made(context: Context, part: Part) -> tuple[str, Iterator[bytes]]:
    """An instance in the first of its transfer syntaxes that it can be had in, and which one that is.

    Raises:
        Unsupported, BadDicom: in none.
    """
    stored = syntax_of(part.resource.instance)
    failure: HilumError | None = None
    for syntax in part.syntaxes:
        if syntax == stored:
            return syntax, context.store.chunks(part.resource.uid)
        try:
            return syntax, _transcoded(context, part.resource, syntax)
        except (Unsupported, BadDicom) as reason:
            failure = failure or reason
    assert failure is not None
    raise failure


def _transcoded(context: Context, resource: Resource, target: str) -> Iterator[bytes]:
    """A whole instance in another transfer syntax, with its first frame made already.

    Raises:
        Unsupported, BadDicom: that can't be.
    """
    store = context.store
    reader = store.frames(resource.uid) if resource.instance.pixel_tag else None
    file = store.open_original(resource.uid)
    source = syntax_of(resource.instance)

    def convert(stored: Iterable[bytes]) -> Iterator[bytes]:
        assert reader is not None
        return context.pool.map("frame", ((data, reader.layout, source, target) for data in stored))

    return transcode.instance(file, reader, source, target, convert=convert)


def _bytes_of(context: Context, resource: Resource, begin: int, end: int) -> Iterable[bytes]:
    """Bytes of a file as it is stored."""
    if (begin, end) == (0, resource.instance.original_length):
        return context.store.chunks(resource.uid)
    return _slices(context.store.chunks(resource.uid), begin, end)


def _slices(pieces: Iterable[bytes], begin: int, end: int) -> Iterator[bytes]:
    """A range of the whole. All of it is read, since the checksum is of all of it."""
    at = 0
    for piece in pieces:
        low, high = max(begin - at, 0), min(end - at, len(piece))
        if low < high:
            yield piece[low:high]
        at += len(piece)
