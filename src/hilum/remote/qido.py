"""Takes questions; asks a DICOMweb server by QIDO-RS and gives its rows, as DICOM JSON. Matches nothing
itself.

PS3.18 10.6, Search Transaction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import quote, urlencode

import orjson

from hilum.dicom import dictionary
from hilum.dicom.dictionary import Path, Private
from hilum.engine.question import UNIQUE_KEYS
from hilum.engine.record import INSTANCE, PATIENT, SERIES, STUDY
from hilum.errors import BadQuery, Unsupported
from hilum.remote.client import Client, Unreachable
from hilum.transfer.hierarchy import Document, Pair

_JSON = "application/dicom+json"
_UNIQUE = {UNIQUE_KEYS[level]: level for level in (STUDY, SERIES)}
_PAGE = 1000  # rows of one request


class Searcher:
    """Asks one server. Never relational: other servers differ in what they take below a study."""

    top = STUDY
    is_relational = False

    def __init__(self, client: Client, *, fuzzy: bool = False, timezone: str = "") -> None:
        self._client = client
        self._fuzzy, self._timezone = fuzzy, timezone
        self.warnings: list[str] = []

    def ask(self, level: int, keys: Sequence[Pair], include: Sequence[Path]) -> Iterator[Document]:
        """Rows of one level.

        Raises:
            Refused, Unreachable: the server answers with a failure, or not at all.
            Unsupported: there are no patients in QIDO-RS.
        """
        if level == PATIENT:
            raise Unsupported("DICOMweb servers are asked for studies, not for patients")
        above: dict[int, str] = {}
        parameters: list[tuple[str, str]] = []
        for path, text in keys:
            at = _UNIQUE.get(path[0]) if len(path) == 1 and isinstance(path[0], int) else None
            if at is not None and at < level:
                above[at] = text
            elif text:
                parameters.append((_name(path), text))
        parameters += [("includefield", _name(path)) for path in include]
        if self._fuzzy:
            parameters.append(("fuzzymatching", "true"))
        if self._timezone:
            parameters.append(("TimezoneOffsetFromUTC", self._timezone))
        where = "".join(
            f"/{name}/{quote(above[at], safe='')}"
            for at, name in ((STUDY, "studies"), (SERIES, "series"))
            if at in above
        )
        last = {STUDY: "studies", SERIES: "series", INSTANCE: "instances"}[level]
        return self._rows(f"{where}/{last}", parameters, UNIQUE_KEYS[level])

    def _rows(self, path: str, parameters: list[tuple[str, str]], unique: int) -> Iterator[Document]:
        """All rows, a page at a time; servers cut an answer where they like."""
        name, seen, offset = f"{unique:08X}", set[str](), 0
        while True:
            paged = [*parameters, ("limit", str(_PAGE)), *([("offset", str(offset))] if offset else [])]
            answer = self._client.get(f"{path}?{urlencode(paged, safe='*?')}", _JSON)
            body = answer.read_all()
            warning = answer.header("Warning")
            page = _parse(body) if body and answer.status != 204 else []
            fresh = 0
            for row in page:
                uid = str((row.get(name, {}).get("Value") or [""])[0])
                if uid and uid in seen:
                    continue
                seen.add(uid)
                fresh += 1
                yield row
            offset += len(page)
            # A server that knows no offset gives the same again.
            if not fresh or (len(page) < _PAGE and "299" not in warning):
                break
        if "299" in warning and "additional" not in warning and warning not in self.warnings:
            self.warnings.append(warning)


def _parse(body: bytes) -> list[Document]:
    try:
        found: Any = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise Unreachable("the answer is no JSON; is this a DICOMweb server?") from None
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise Unreachable("the answer is no DICOM JSON; is this a DICOMweb server?")
    return found


def _name(path: Path) -> str:
    """An attribute as it is written in URLs: PS3.18 8.3.4.1, Attribute Matching."""
    if any(isinstance(step, Private) for step in path):
        raise BadQuery(
            f"{dictionary.format_path(path)}: private elements can't be asked for in a URL by creator"
        )
    return ".".join(f"{step:08X}" for step in path if isinstance(step, int))


def probe(client: Client) -> str:
    """Whether a server answers a search; what it calls itself.

    Raises:
        Refused, Unreachable: it does not.
    """
    answer = client.get("/studies?limit=1", _JSON)
    body = answer.read_all()
    if body and answer.status != 204:
        _parse(body)
    return answer.header("Server")
