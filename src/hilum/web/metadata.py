"""Metadata of a study, series or instance: takes its path; answers with DICOM JSON or with Native DICOM Model
XML.

PS3.18 10.4, Retrieve Transaction: Metadata Resources. A series has a document that is kept, packed; a study
is its series', one after the other.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Iterator
from functools import partial

import orjson
from starlette.requests import Request
from starlette.routing import Route

from hilum.dicom import xml
from hilum.engine import resources
from hilum.engine.document import SeriesDocument
from hilum.engine.resources import Resource
from hilum.web.answers import Answer, Streamed, Whole, headers_of, not_modified
from hilum.web.conditional import Headers, asked_of
from hilum.web.context import Context, choose_of, context_of
from hilum.web.multipart import Multipart
from hilum.web.reading import resources_of

_JSON = "application/dicom+json"
_XML = 'multipart/related; type="application/dicom+xml"'
_OFFERS = (_JSON, _XML, "application/json")
_GZIP = (b"content-encoding", b"gzip")


def routes() -> list[Route]:
    return [
        Route("/studies/{study}/metadata", of_study, methods=["GET", "HEAD"]),
        Route("/studies/{study}/series/{series}/metadata", of_series, methods=["GET", "HEAD"]),
        Route(
            "/studies/{study}/series/{series}/instances/{instance}/metadata",
            of_instance,
            methods=["GET", "HEAD"],
        ),
    ]


async def of_study(request: Request) -> Answer:
    """GET /studies/{study}/metadata"""
    context = context_of(request)
    chosen = choose_of(request, _OFFERS)
    if chosen == _XML:
        return await _xml(context, request)
    study, base = request.path_params["study"], context.base_url(request)
    uids = await context.run(resources.series_of, context.store.index, study)
    if len(uids) == 1:
        return await _one_series(context, request, chosen, study, uids[0], base)
    documents = await context.run(_documents, context, study, uids, base)
    etag = _etag(*(document.etag for document in documents))
    if asked_of(request.scope["headers"]).holds(etag):
        return not_modified(etag)
    pieces: Iterator[bytes] = _joined(documents)
    headers = headers_of(chosen, None, (b"etag", etag))
    if _takes_gzip(request):
        headers, pieces = _packed(headers, etag), _compressed(pieces)
    return Streamed(context, 200, headers, pieces)


async def of_series(request: Request) -> Answer:
    """GET /studies/{study}/series/{series}/metadata"""
    context = context_of(request)
    chosen = choose_of(request, _OFFERS)
    if chosen == _XML:
        return await _xml(context, request)
    path = request.path_params
    return await _one_series(
        context, request, chosen, path["study"], path["series"], context.base_url(request)
    )


async def of_instance(request: Request) -> Answer:
    """GET /studies/{study}/series/{series}/instances/{instance}/metadata"""
    context = context_of(request)
    chosen = choose_of(request, _OFFERS)
    if chosen == _XML:
        return await _xml(context, request)
    (resource,) = resources_of(context, request)
    base = context.base_url(request)
    etag = _etag(resource.instance.identity.hex(), base)
    if asked_of(request.scope["headers"]).holds(etag):
        return not_modified(etag)
    body = await context.run(partial(context.store.instance_json, resource.uid, base=base))
    return Whole(200, headers_of(chosen, len(body) + 2, (b"etag", etag)), b"[" + body + b"]")


async def _one_series(
    context: Context, request: Request, chosen: str, study: str, series: str, base: str
) -> Answer:
    document = await context.run(partial(context.store.series_json, study, series, base=base))
    etag = _etag(document.etag)
    if asked_of(request.scope["headers"]).holds(etag):
        return not_modified(etag)
    if _takes_gzip(request):
        body = await context.run(document.gzip)
        return Whole(200, _packed(headers_of(chosen, len(body)), etag), body)
    body = await context.run(document.json)
    return Whole(200, headers_of(chosen, len(body), (b"etag", etag)), body)


def _documents(context: Context, study: str, uids: Iterable[str], base: str) -> list[SeriesDocument]:
    return [context.store.series_json(study, series, base=base) for series in uids]


def _joined(documents: Iterable[SeriesDocument]) -> Iterator[bytes]:
    """One array of several."""
    lead = b"["
    for document in documents:
        body = document.json()
        if len(body) > 2:
            yield lead
            yield body[1:-1]
            lead = b","
    yield b"]" if lead == b"," else b"[]"


def _compressed(pieces: Iterable[bytes]) -> Iterator[bytes]:
    engine = zlib.compressobj(1, zlib.DEFLATED, 31)
    for piece in pieces:
        if packed := engine.compress(piece):
            yield packed
    yield engine.flush()


async def _xml(context: Context, request: Request) -> Answer:
    """PS3.18 8.7.3.2, DICOM Media Types: each instance is a part, PS3.19 A.1, Native DICOM Model."""
    found = await context.run(resources_of, context, request)
    base = context.base_url(request)
    etag = _etag("xml", base, *(resource.instance.identity.hex() for resource in found))
    if asked_of(request.scope["headers"]).holds(etag):
        return not_modified(etag)
    related = Multipart("application/dicom+xml", boundary=f"hilum-{etag[1:-1].decode()}")
    headers = headers_of(related.content_type, None, (b"etag", etag))
    return Streamed(context, 200, headers, _xml_parts(context, related, base, found))


def _xml_parts(context: Context, related: Multipart, base: str, found: Iterable[Resource]) -> Iterator[bytes]:
    for resource in found:
        document = orjson.loads(context.store.instance_json(resource.uid, base=base))
        place = f"/studies/{resource.study}/series/{resource.series}/instances/{resource.uid}"
        yield related.head("application/dicom+xml", f"{base}{place}/metadata")
        yield xml.to_xml(document)
    yield related.end()


def _takes_gzip(request: Request) -> bool:
    value = request.headers.get("accept-encoding", "").replace(" ", "")
    return "gzip" in value and "gzip;q=0" not in value


def _packed(headers: Headers, etag: bytes) -> Headers:
    """What is packed is another representation, so its entity tag is weak: RFC 9110 8.8.1, Weak versus
    Strong.
    """
    kept = [field for field in headers if field[0] not in (b"etag", b"vary")]
    return [*kept, _GZIP, (b"vary", b"accept, accept-encoding"), (b"etag", b"W/" + etag)]


def _etag(*names: str) -> bytes:
    return f'"{hashlib.sha256(chr(10).join(names).encode()).hexdigest()[:40]}"'.encode()
