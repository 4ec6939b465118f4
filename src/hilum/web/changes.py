"""What happened, and what an identifier names: change feed and look-up. Both are ours, not the Standard's.

`GET /changes?since=N&limit=M` gives what happened after the change with number N, with `last` to go on from.
`epoch` names the log: when it is another one, the store's index was made anew and a client reads from 0; one
that sends the epoch it knows is told so by 409. `GET /lookup?id=X` says of which levels X is an identifier,
and where that is. X stands in the query, since it may be a Patient ID and queries are not logged.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from hilum.api import Store
from hilum.engine.query import Asked
from hilum.errors import BadQuery, Conflict, NotFound
from hilum.web.context import choose_of, context_of

_JSON = "application/json"
_LIMIT_DEFAULT, _LIMIT_MAX = 1000, 10_000
_IDENTIFIER_LENGTH_MAX = 128

# Level → (attribute that identifies, tag of it): in the order in which the answer has them.
_IDENTIFIERS = (
    ("patients", "PatientID", 0x00100020),
    ("studies", "StudyInstanceUID", 0x0020000D),
    ("studies", "AccessionNumber", 0x00080050),
    ("series", "SeriesInstanceUID", 0x0020000E),
    ("instances", "SOPInstanceUID", 0x00080018),
)
_UPPER = (("StudyInstanceUID", 0x0020000D), ("SeriesInstanceUID", 0x0020000E), ("SOPInstanceUID", 0x00080018))


def _number(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name, str(default))
    if not text.isascii() or not text.isdigit() or int(text[:20]) >= 1 << 63:
        raise BadQuery(f"{name} is a number from 0, not {text[:40]!r}")
    return int(text)


async def changes(request: Request) -> Response:
    """The change feed."""
    context = context_of(request)
    choose_of(request, (_JSON,))
    since = _number(request, "since", 0)
    limit = min(_number(request, "limit", _LIMIT_DEFAULT), _LIMIT_MAX)
    known = request.query_params.get("epoch", "")
    found = await context.run(context.store.changes, since, limit=limit)
    if known and known != found.epoch:
        raise Conflict(f"the log of changes was made anew; its epoch is {found.epoch}: read it from 0")
    document = {
        "epoch": found.epoch,
        "since": since,
        "last": found.last,
        "more": found.more,
        "changes": [_change(change) for change in found.found],
    }
    return Response(orjson.dumps(document), media_type=_JSON)


def _change(change: Any) -> dict[str, Any]:
    named = zip((name for name, _ in _UPPER), (change.study, change.series, change.instance), strict=True)
    return {
        "number": change.number,
        "change": change.kind,
        **{name: uid for name, uid in named if uid},
    }


async def lookup(request: Request) -> Response:
    """What an identifier names."""
    context = context_of(request)
    choose_of(request, (_JSON,))
    wanted = request.query_params.get("id", "")
    if not wanted or len(wanted) > _IDENTIFIER_LENGTH_MAX:
        raise BadQuery("which identifier? /lookup?id=...")
    found = await context.run(_look_up, context.store, wanted, context.base_url(request))
    if not found:
        raise NotFound("nothing that is stored has this identifier")
    return Response(orjson.dumps(found), media_type=_JSON)


def _look_up(store: Store, wanted: str, base: str) -> list[dict[str, Any]]:
    found = []
    for level, attribute, tag in _IDENTIFIERS:
        if attribute.endswith("UID") and not _may_be_uid(wanted):
            continue
        for row in store.search(Asked(level, [(attribute, wanted)], limit=_LIMIT_DEFAULT)):
            if row.text(tag) != wanted:
                continue  # a match by rules that are wider than "the same", wildcards among them
            uids = {name: uid for name, upper in _UPPER if level != "patients" and (uid := row.text(upper))}
            url = base
            for segment, uid in zip(("studies", "series", "instances"), uids.values(), strict=False):
                url += f"/{segment}/{quote(uid, safe='')}"
            if level == "patients":
                url += f"/studies?PatientID={quote(wanted, safe='')}"
            found.append({"level": level, "attribute": attribute, **uids, "url": url})
    return found


def _may_be_uid(text: str) -> bool:
    return text.replace(".", "").isalnum()


def routes() -> list[Route]:
    """The feed and the look-up."""
    return [Route("/changes", changes), Route("/lookup", lookup)]
