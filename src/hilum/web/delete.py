"""DELETE of studies, series and instances, where the settings allow it. Never deletes by anything but UIDs.

Not in PS3.18, but as others have it: 204 when it is done, durably; 404 where nothing was; 403 where it is not
switched on.
"""

from __future__ import annotations

import re

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from hilum.engine.header import UID_MAX
from hilum.errors import BadQuery, NotFound
from hilum.web.context import context_of
from hilum.web.errors import Forbidden

# No list and no wildcard may come through a path. Wider than PS3.5 9.1: what was stored can be deleted.
_UID = re.compile(rf"[0-9A-Za-z. _-]{{1,{UID_MAX}}}")
_LEVELS = (("study", "studies", "StudyInstanceUID"), ("series", "series", "SeriesInstanceUID"),
           ("instance", "instances", "SOPInstanceUID"))  # fmt: skip


async def delete(request: Request) -> Response:
    """Delete everything at and below the path."""
    context = context_of(request)
    if not context.settings.storing.allow_delete:
        raise Forbidden("deleting is not switched on here: storing.allow_delete")
    keys, level = [], ""
    for param, level_here, attribute in _LEVELS:
        uid = request.path_params.get(param)
        if uid is None:
            break
        if not _UID.fullmatch(uid):
            raise BadQuery(f"{uid[:80]!r} is no UID")
        keys.append((attribute, uid))
        level = level_here
    if not await context.run(context.store.delete, level, keys):
        raise NotFound("nothing is stored here under this UID")
    return Response(status_code=204)


def routes() -> list[Route]:
    """The three levels."""
    paths = (
        "/studies/{study}",
        "/studies/{study}/series/{series}",
        "/studies/{study}/series/{series}/instances/{instance}",
    )
    return [Route(path, delete, methods=["DELETE"]) for path in paths]
