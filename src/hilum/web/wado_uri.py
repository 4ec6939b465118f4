"""WADO-URI: takes the query parameters of /wado; answers with one instance, as DICOM or rendered.

PS3.18 9, URI Service and Resources: 9.4, Retrieve DICOM Instance Transaction, and 9.5, Retrieve Rendered
Instance Transaction.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from starlette.requests import Request
from starlette.routing import Route

from hilum.engine import resources
from hilum.engine.resources import Resource
from hilum.errors import BadQuery, NotFound, Unsupported
from hilum.pixels.render import Rendering
from hilum.web import accept, rendered, wado
from hilum.web.accept import MediaRange
from hilum.web.answers import Answer
from hilum.web.context import Context, context_of
from hilum.web.media import DICOM
from hilum.web.reading import readers_of

_UID = re.compile(r"[0-9]+(?:\.[0-9]+)+")
_UIDS = ("studyUID", "seriesUID", "objectUID")
# Of them, PS3.18 9.4 knows nothing: they are about pictures.
_RENDERING = (
    "annotation", "columns", "frameNumber", "imageQuality", "presentationSeriesUID", "presentationUID",
    "region", "rows", "windowCenter", "windowWidth",
)  # fmt: skip


def routes() -> list[Route]:
    return [Route("/wado", retrieve, methods=["GET", "HEAD"])]


async def retrieve(request: Request) -> Answer:
    """GET /wado?requestType=WADO&studyUID=…&seriesUID=…&objectUID=…"""
    context = context_of(request)
    params = request.query_params
    if params.get("requestType", "").upper() != "WADO":
        raise BadQuery("requestType must be there, and be WADO")
    for name in _UIDS:
        if not params.get(name):
            raise BadQuery(f"{name} is missing: this service gives one instance, by its three UIDs")
    if params.get("anonymize"):
        # What is not taken out is not given: to leave the parameter out of account would betray a patient.
        raise Unsupported("anonymize is not offered: this server gives objects as they are stored")
    if params.get("presentationUID") or params.get("presentationSeriesUID"):
        raise Unsupported("presentationUID is not offered: this server applies no presentation states")
    study, series, uid = (params[name] for name in _UIDS)
    (one,) = await context.run(resources.instances, context.store.index, study, series, uid)
    ranges = _ranges(request, params)
    if _is_dicom(context, ranges, params, one):
        given = [name for name in _RENDERING if params.get(name)]
        if given:
            raise BadQuery(f"{given[0]} is about pictures, and {DICOM} is asked for")
        syntax = params.get("transferSyntax", "").strip()
        if syntax and not _UID.fullmatch(syntax):
            raise BadQuery(f"transferSyntax is {syntax[:70]!r}, which is no UID")
        asked = MediaRange("application", "dicom", {"transfer-syntax": syntax} if syntax else {})
        return await wado.answer(context, request, (study, series, uid), [asked], states_syntax=False)
    if params.get("transferSyntax"):
        raise BadQuery(f"transferSyntax is for {DICOM}, and a picture is asked for")
    wanted = _rendering(params)
    if params.get("frameNumber"):
        return await _frame(context, request, ranges, wanted, one, params["frameNumber"])
    return await rendered.one_instance(context, request, ranges, wanted, one)


def _ranges(request: Request, params: Mapping[str, str]) -> list[MediaRange]:
    """What is acceptable: contentType, a list of media types, goes before Accept."""
    query = params.get("contentType") or params.get("accept")
    found = accept.parse(request.headers.get("accept"), query)
    return [one for one in found if one.q > 0]


def _is_dicom(context: Context, ranges: list[MediaRange], params: Mapping[str, str], one: Resource) -> bool:
    """Whether the DICOM object is wanted, and no picture of it.

    PS3.18 9.3, Transactions Overview: where nothing is asked for it is a picture. An object that is none, or
    of several frames without the number of one, is the object.
    """
    asked = next((media for media in ranges if media.name not in ("*/*", "application/*")), None)
    if asked is not None and (params.get("contentType") or params.get("accept") or asked.name == DICOM):
        return asked.name == DICOM
    if params.get("transferSyntax"):
        return True
    if any(params.get(name) for name in _RENDERING):
        return False
    if not rendered.is_picture(one.instance):
        return True
    return readers_of(context).get(one.study, one.series, one.uid)[1].frame_count > 1


async def _frame(
    context: Context,
    request: Request,
    ranges: list[MediaRange],
    wanted: Rendering,
    one: Resource,
    text: str,
) -> Answer:
    """PS3.18 9.5.2, Behavior: a number that is none of a frame is a bad request, and no missing resource."""
    if not rendered.is_picture(one.instance):
        raise NotFound("this instance has no frames that can be rendered")
    count = readers_of(context).get(one.study, one.series, one.uid)[1].frame_count
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
    if not 1 <= number <= count:
        raise BadQuery(f"frameNumber is {text[:20]!r}, and the instance has the frames 1 to {count}")
    return await rendered.one_frame(context, request, ranges, wanted, one, number - 1)


def _rendering(params: Mapping[str, str]) -> Rendering:
    """PS3.18 9.5.1.2, Query Parameters, as those of the rendered resources.

    Raises:
        BadQuery: a value that is none, or a center without its width.
    """
    number = rendered.number_of
    center, width = params.get("windowCenter"), params.get("windowWidth")
    if bool(center) != bool(width):
        raise BadQuery("windowCenter and windowWidth go together")
    window = (
        (number("windowCenter", center), number("windowWidth", width), "LINEAR") if center and width else None
    )
    columns, rows = params.get("columns"), params.get("rows")
    viewport = None
    if columns or rows:
        viewport = tuple(
            _side(name, text) if text else None for name, text in (("columns", columns), ("rows", rows))
        )
    region = None
    if params.get("region"):
        corners = [number("region", piece) for piece in params["region"].split(",")]
        if len(corners) != 4:
            raise BadQuery("region is left, top, right and bottom, each from 0 to 1, with commas between")
        region = corners[0], corners[1], corners[2], corners[3]
    quality = params.get("imageQuality")
    return rendered.rendering_of({"annotation": params.get("annotation", "")})._replace(
        window=window,
        viewport=viewport,
        region=region,
        quality=rendered.quality_of("imageQuality", quality) if quality else None,
    )


def _side(name: str, text: str) -> float:
    if not (text.isascii() and text.isdigit() and int(text[:9]) > 0):
        raise BadQuery(f"{name} is {text[:40]!r}, not a whole number of pixels")
    return float(text[:9])
