"""Search (QIDO-RS): a query string to one engine call, rows to JSON or XML. Knows no matching rule.

PS3.18 10.6, Search Transaction, at all its paths, with /patients beside them; 8.3.4, Search Query Parameters.
Two things are ours: `order=StudyDate,-PatientName` sorts ("-" for descending), and `/count` behind a path
answers {"count": n}.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine, Hashable, Sequence
from contextlib import suppress
from time import monotonic
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, quote

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from hilum.api import Store
from hilum.dicom import dictionary, xml
from hilum.engine.header import UID_MAX
from hilum.engine.query import Asked
from hilum.errors import BadQuery, NotFound
from hilum.settings import Settings
from hilum.web.context import Context, choose_of, context_of
from hilum.web.errors import TooMany
from hilum.web.multipart import Multipart

Document = dict[str, Any]

# Path → (level, levels above it whose attributes come along: PS3.18 10.6.3.3, Response Payload, has those of
# the study with All Series, and those of study and series with All Instances).
_PATHS: dict[str, tuple[str, tuple[str, ...]]] = {
    "/patients": ("patients", ()),
    "/studies": ("studies", ()),
    "/series": ("series", ("studies",)),
    "/instances": ("instances", ("studies", "series")),
    "/studies/{study}/series": ("series", ()),
    "/studies/{study}/instances": ("instances", ("series",)),
    "/studies/{study}/series/{series}/instances": ("instances", ()),
}

# What is always there, though it be empty: Tables 10.6.3-3 to 10.6.3-5, types U and R.
_REQUIRED: dict[str, dict[str, str]] = {
    "patients": {"00100010": "PN", "00100020": "LO", "00100030": "DA", "00100040": "CS"},
    "studies": {
        "00080020": "DA", "00080030": "TM", "00080050": "SH", "00080090": "PN",
        "00100010": "PN", "00100020": "LO", "00100030": "DA", "00100040": "CS", "00200010": "SH",
    },
    "series": {"00080060": "CS", "0008103E": "LO", "00200011": "IS"},
    "instances": {"00080016": "UI", "00200013": "IS"},
}  # fmt: skip

_STUDY_UID, _SERIES_UID, _SOP_UID = "0020000D", "0020000E", "00080018"
_TIMEZONE = 0x00080201
_AVAILABLE_SYNTAX = "00083002"

_JSON, _PLAIN_JSON = "application/dicom+json", "application/json"
_XML, _PLAIN_XML = 'multipart/related; type="application/dicom+xml"', "application/dicom+xml"
_OFFERS = (_JSON, _PLAIN_JSON, _XML, _PLAIN_XML)

_PARAMETERS_MAX = 1000
_DEPTH_MAX = 240  # of lists and objects in each other; orjson takes 254
# One value, of what can be stored: "REM SAMPLES 1" is in use, and so are 71 characters.
_PATH_UID = re.compile(rf"[0-9A-Za-z. _-]{{1,{UID_MAX}}}")
# A plus that its sender did not escape is a space by now: an offset from UTC behind a moment.
_LOST_PLUS = re.compile(r"(?<=\d) (?=\d{4}(?:$|-))|^ (?=\d{4}$)")


class Question(NamedTuple):
    """A query string, understood."""

    asked: Asked
    warnings: list[str]


def parse(query: bytes, level: str, uids: dict[str, str], settings: Settings) -> Question:
    """What a query string asks for at a level, below the study and series that the path names.

    Raises:
        BadQuery: a value that makes no sense, or a name that looks like an attribute and is none.
        TooMany: more UIDs than the settings allow.
    """
    try:
        pairs = parse_qsl(
            query.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=_PARAMETERS_MAX
        )
    except UnicodeDecodeError:
        raise BadQuery("the query is not UTF-8, percent-encoded") from None
    except ValueError:
        raise TooMany(f"a query has {_PARAMETERS_MAX} parameters at most") from None
    search = settings.search
    limit = min(search.limit_default or search.limit_max, search.limit_max)
    offset = 0
    flags = dict.fromkeys(("fuzzymatching", "emptyvaluematching", "multiplevaluematching"), False)
    include: list[str] = []
    order: list[str] = []
    keys: dict[str, list[str]] = {}
    warnings: list[str] = []
    for name, value in pairs:
        word = name.lower()
        if word in flags:
            flags[word] = _boolean(word, value)
        elif word == "limit":
            limit = min(_number(word, value), search.limit_max)
        elif word == "offset":
            offset = _number(word, value)
        elif word == "includefield":
            include += _included(value, warnings)
        elif word == "order":
            order += [part.strip() for part in value.split(",") if part.strip()]
        elif word in ("accept", "charset"):
            pass  # PS3.18 8.3.3, Content Negotiation Query Parameters
        elif not name[:1].isupper() and not name[:1].isdigit() and name[:1] != "(":
            # PS3.18 8.3.1: what is no parameter of ours is ignored. But a client is told.
            warnings.append(f"The parameter {name[:40]!r} is not known and was not used.")
        else:
            keys.setdefault(name, []).append(value)
    wanted: list[tuple[str, str]] = []
    for name, values in keys.items():
        wanted += _keys_of(name, values, flags["multiplevaluematching"], settings.limits.uids)
    if "study" in uids:
        wanted.append(("StudyInstanceUID", _path_uid(uids["study"])))
    if "series" in uids:
        wanted.append(("SeriesInstanceUID", _path_uid(uids["series"])))
    asked = Asked(
        level,
        wanted,
        include,
        limit,
        offset,
        order,
        fuzzy=flags["fuzzymatching"],
        seconds_max=settings.limits.query_seconds,
        empty_value=flags["emptyvaluematching"],
    )
    return Question(asked, warnings)


def _keys_of(name: str, values: list[str], multiple: bool, uids_max: int) -> list[tuple[str, str]]:
    """The key of one attribute, or several of it that must all match."""
    path = dictionary.path_of(name)
    last = path[-1]
    vr = dictionary.vr_of(last) if isinstance(last, int) else "UN"
    if vr in ("UI", "CS"):
        # PS3.18 8.3.4.1, Attribute Matching: UIDs of a list are separated by commas. Code strings hold none
        # either, and several modalities are asked for in the same way.
        values = [part.strip() for value in values for part in re.split(r"[,\\]", value)]
        if len(values) > uids_max:
            raise TooMany(f"{name}: a list of more than {uids_max:,} values is not taken")
        if not multiple or vr == "UI":
            return [(name, "\\".join(values))]
    elif multiple:
        values = [part for value in values for part in value.split("\\")]
    if vr == "DT" or path == (_TIMEZONE,):
        values = [_LOST_PLUS.sub("+", value) for value in values]
    # PS3.4 C.2.2.2.8, Multiple Value Matching: each value that is asked for must be there.
    return [(name, value) for value in values]


def _included(text: str, warnings: list[str]) -> list[str]:
    """Names of a list of attributes; those that are none are told and left out."""
    found = []
    for name in dictionary.names_in(text):
        try:
            if name != "all":
                dictionary.path_of(name)
            found.append(name)
        except BadQuery:
            warnings.append(f"The attribute {name[:40]!r} of includefield is not known and was not returned.")
    return found


def _boolean(name: str, text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise BadQuery(f"{name} is true or false, not {text[:40]!r}")
    return text.lower() == "true"


def _number(name: str, text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise BadQuery(f"{name} is a number from 0, not {text[:40]!r}")
    return int(text)


def _path_uid(uid: str) -> str:
    if not _PATH_UID.fullmatch(uid):
        raise BadQuery(f"{uid[:80]!r} is no UID")
    return uid


def find(context: Context, question: Question, above: Sequence[str], base: str) -> list[bytes]:
    """The rows as DICOM JSON, with all that PS3.18 wants of an answer. Adds warnings to the question's."""
    store, asked = context.store, question.asked
    # Before the search: a row may be newer than this says, never older.
    moment = context.rows.at(store.last_change())
    found = store.search(asked)
    about = asked.level, tuple(above), found.include, base
    rows: list[bytes] = []
    missing: list[tuple[int, Hashable, Document]] = []
    end = monotonic() + (asked.seconds_max or 0.0)
    for row in found:
        if rows and monotonic() > end:  # of a thousand heads, say
            question.warnings.append("Time ran out. There are additional results that can be requested")
            break
        key: Hashable = (*about, row.key)
        finished = moment.rows.get(key)
        if finished is None:
            finished = b""
            document = store.row_json(row, found.include, base=base)
            if offset := row.text(_TIMEZONE):
                document["00080201"] = {"vr": "SH", "Value": [offset]}
            if asked.level == "instances" and _AVAILABLE_SYNTAX in document:
                # Of the archive, and in no data set. Slide viewers take an empty one for none at all.
                with suppress(NotFound):
                    stored = store.locate(row.uid).instance.transfer_syntax.decode("latin-1")
                    document[_AVAILABLE_SYNTAX] = {"vr": "UI", "Value": [stored]}
            missing.append((len(rows), key, document))
        rows.append(finished)
    question.warnings.extend(found.warnings)
    if found.more:
        # PS3.18 8.3.4.4.1, Paging Behavior.
        question.warnings.append("There are additional results that can be requested")
    for level in above:
        _join(store, [document for _, _, document in missing], level)
    kept: dict[Hashable, bytes] = {}
    for at, key, document in missing:
        finished_document = _finished(document, asked.level, base)
        try:
            rows[at] = kept[key] = orjson.dumps(finished_document)
        except TypeError:  # something that it refuses, but that a data set may hold
            rows[at] = orjson.dumps(_sayable(finished_document, question.warnings))
    context.rows.keep(moment, kept)
    return rows


def _finished(document: Document, level: str, base: str) -> Document:
    """A row with what its level always has, in the order of tags."""
    for key, vr in _REQUIRED[level].items():
        if key not in document:
            document[key] = {"vr": vr}
    # OHIF's list of studies dies of one without a modality, where this is there and empty. The Standard knows
    # none: Modality is of type 1.
    if "Value" not in document.get("00080061", ("Value",)):
        del document["00080061"]
    if level != "patients":
        document["00080056"] = {"vr": "CS", "Value": ["ONLINE"]}
        document["00081190"] = {"vr": "UR", "Value": [_retrieve_url(base, level, document)]}
    return dict(sorted(document.items()))


def _join(store: Store, documents: list[Document], level: str) -> None:
    """Lay the attributes of the studies or series that rows belong to under those of the rows."""
    keys = (_STUDY_UID,) if level == "studies" else (_STUDY_UID, _SERIES_UID)
    uids = dict.fromkeys(_value(document, keys[-1]) for document in documents)
    if not uids:
        return
    found = store.search(Asked(level, [(keys[-1], "\\".join(uids))]))
    upper = {}
    for row in found:
        document = store.row_json(row)
        for key, vr in _REQUIRED[level].items():
            document.setdefault(key, {"vr": vr})
        upper[tuple(_value(document, key) for key in keys)] = document
    for document in documents:
        for key, element in upper.get(tuple(_value(document, key) for key in keys), {}).items():
            document.setdefault(key, element)


def _value(document: Document, key: str) -> str:
    values = document.get(key, {}).get("Value")
    return values[0] if values else ""


def _retrieve_url(base: str, level: str, document: Document) -> str:
    url = f"{base}/studies/{quote(_value(document, _STUDY_UID), safe='')}"
    if level != "studies":
        url += f"/series/{quote(_value(document, _SERIES_UID), safe='')}"
    if level == "instances":
        url += f"/instances/{quote(_value(document, _SOP_UID), safe='')}"
    return url


def _sayable(document: Any, warnings: list[str], depth: int = 0) -> Any:
    """Integers of more than 64 bits as text, as PS3.18 F.2.3 allows; text without half surrogates; and no
    sequence nested deeper than JSON is read elsewhere either."""
    if isinstance(document, dict):
        return {key: _sayable(value, warnings, depth + 1) for key, value in document.items()}
    if isinstance(document, list):
        if depth > _DEPTH_MAX:
            warnings.append("Sequences are nested too deep; the innermost were left out.")
            return []
        return [_sayable(value, warnings, depth + 1) for value in document]
    if isinstance(document, str):
        return document.encode("utf-8", "replace").decode()
    if isinstance(document, int) and not -(1 << 63) <= document < 1 << 64:
        return str(document)
    return document


Handler = Callable[[Request], Coroutine[Any, Any, Response]]


def _searching(level: str, above: tuple[str, ...]) -> Handler:
    async def search(request: Request) -> Response:
        context = context_of(request)
        media_type = choose_of(request, _OFFERS)
        question = parse(request.scope["query_string"], level, request.path_params, context.settings)
        base = context.base_url(request)

        def answer() -> Response:
            rows = find(context, question, above, base)
            if not rows and context.settings.search.empty_status == 204:
                return Response(status_code=204)
            if media_type in (_XML, _PLAIN_XML):
                return _xml_answer(rows, base)
            return Response(b"[%s]" % b",".join(rows), media_type=media_type)

        return _with_warnings(await context.run(answer), base, question.warnings)

    return search


def _counting(level: str) -> Handler:
    async def count(request: Request) -> Response:
        context = context_of(request)
        choose_of(request, (_PLAIN_JSON,))
        question = parse(request.scope["query_string"], level, request.path_params, context.settings)
        found = await context.run(context.store.count, question.asked)
        answer = Response(b'{"count":%d}' % found, media_type=_PLAIN_JSON)
        return _with_warnings(answer, context.base_url(request), question.warnings)

    return count


def _xml_answer(rows: list[bytes], base: str) -> Response:
    """A part for each result: PS3.18 8.7.3, DICOM Media Type Sets, has XML in multipart/related alone."""
    related = Multipart(_PLAIN_XML)
    pieces = []
    for document in map(orjson.loads, rows):
        url = document.get("00081190", {}).get("Value", [base])[0]
        pieces += [related.head(_PLAIN_XML, url), xml.to_xml(document)]
    return Response(b"".join([*pieces, related.end()]), headers={"content-type": related.content_type})


def _with_warnings(answer: Response, base: str, warnings: list[str]) -> Response:
    for words in dict.fromkeys(warnings):
        # RFC 7234 5.5, Warning: code, agent, text; PS3.18 has the base of the service as the agent.
        text = f"299 {base}: {words}".encode("ascii", "replace").replace(b"\r", b" ").replace(b"\n", b" ")
        answer.raw_headers.append((b"warning", text))
    return answer


def routes() -> list[Route]:
    """The resources that can be searched, and their counts."""
    found = []
    for path, (level, above) in _PATHS.items():
        found.append(Route(path, _searching(level, above)))
        found.append(Route(f"{path}/count", _counting(level)))
    return found
