"""C-FIND: an identifier to one engine call, rows to pending answers as they are found. Knows no matching
rule.

PS3.4 C.4.1, C-FIND Operation; three information models at all their levels. Statuses:

| what came of it | status |
|---|---|
| an answer; one to a query with a key that was not used | FF00, FF01 |
| all was said | 0000 |
| the time for reading data sets is over (`query_seconds`) | B001 |
| C-CANCEL | FE00 |
| no level of the model, a unique key that is missing, a value that makes no sense | A900 |
| an identifier that can't be read | C000 |
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from itertools import chain
from typing import Any

from hilum.dicom import dictionary
from hilum.dicom.json import text_of
from hilum.dimse import command as commands
from hilum.dimse import identifier, models
from hilum.dimse.command import Field, Status
from hilum.dimse.identifier import Document
from hilum.dimse.models import FIND, UNIQUE_KEYS
from hilum.dimse.options import DimseSettings
from hilum.dimse.services import Node, Service
from hilum.dimse.transport import Association, Message
from hilum.engine.query import Asked, Found, Row
from hilum.errors import BadDicom, BadQuery

_RETRIEVE_AE, _AVAILABILITY = "00080054", "00080056"
_OF_THE_ANSWER = (models.QUERY_LEVEL, _RETRIEVE_AE, _AVAILABILITY, models.CHARACTER_SET)
_FLUSH_BYTES = 32 << 10
_FLUSH_SECONDS = 0.005
_HOLD_SECONDS = 2.0  # that a slow peer may hold a moment of the index

_log = logging.getLogger("hilum.dimse")


def _has(sop_class: str, settings: DimseSettings) -> bool:
    return sop_class in FIND


def _find(node: Node, association: Association, message: Message) -> None:
    association.cancelled.discard(message.id)
    context = message.context
    try:
        wanted = identifier.read(message.data, context.transfer_syntax)
    except BadDicom as failure:
        _refuse(association, message, Status.CANNOT_UNDERSTAND, str(failure))
        return
    try:
        model = FIND[context.abstract_syntax]
        level = models.level_of(wanted, model)
        agreed = models.agreed(association.extended.get(context.abstract_syntax, b""))
        found = node.store.search(asked_of(wanted, level, model, agreed, node.settings))
        rows = iter(found)
        first = next(rows, None)  # raises what is wrong with the question
    except BadQuery as failure:
        _refuse(association, message, Status.DOES_NOT_MATCH, str(failure))
        return
    association.tally["queries"] += 1
    answers = _Answers(node, association, message, wanted, level, found)
    if first is not None:
        for row in _in_time(chain((first,), rows)):
            if not answers.give(row):
                association.respond(message, Status.CANCEL)
                return
    answers.flush()
    association.respond(message, Status.LIMIT_REACHED if found.more else Status.SUCCESS)


def asked_of(
    wanted: Document, level: str, model: models.Model, agreed: models.Agreed, settings: DimseSettings
) -> Asked:
    """What an identifier asks the engine for."""
    zone = text_of(wanted.get(models.TIMEZONE)).strip() if agreed.timezone else ""
    # Without negotiation the offset is no key, nor does it change one: PS3.4 C.4.1.1.3.1.
    keys = [(name, "" if name == models.TIMEZONE else value) for name, value in models.keys_of(wanted)]
    return Asked(
        models.LEVELS[level],
        [(name, value) for name, value in keys if name not in _OF_THE_ANSWER or value],
        include=[name for name, attribute in wanted.items() if attribute.get("vr") == "SQ"],
        fuzzy=agreed.fuzzy,
        timezone=zone,
        relational=agreed.relational,
        combined=agreed.combined,
        patient_root=model.patient_root,
        seconds_max=settings.query_seconds,
    )


def _refuse(association: Association, message: Message, status: int, words: str) -> None:
    _log.warning("%s: query refused with 0x%04X: %s", association.peer, status, words)
    association.respond(message, status, {commands.ERROR_COMMENT: words})


def _in_time(rows: Iterator[Row]) -> Iterator[Row]:
    """The rows; those of a peer that takes them slowly are gathered, so that the index is not held for it."""
    begun = time.monotonic()
    for row in rows:
        yield row
        if time.monotonic() - begun > _HOLD_SECONDS:
            yield from list(rows)
            return


class _Answers:
    """Pending answers to one query, sent together when there are many and at once when there are few."""

    def __init__(
        self,
        node: Node,
        association: Association,
        message: Message,
        wanted: Document,
        level: str,
        found: Found,
    ) -> None:
        self._store = node.store
        self._association = association
        self._message = message
        self._wanted = wanted
        self._found = found
        self._syntax = message.context.transfer_syntax
        self._charset = text_of(wanted.get(models.CHARACTER_SET)) or identifier.UTF_8
        # What each answer has, in the order of PS3.4 C.4.1.1.3.2, Response Identifier Structure.
        levels = list(UNIQUE_KEYS)
        self._unique = [UNIQUE_KEYS[name] for name in levels[: levels.index(level) + 1]]
        if level != "PATIENT":
            self._unique.remove(UNIQUE_KEYS["PATIENT"])
        self._constant: Document = {
            models.QUERY_LEVEL: {"vr": "CS", "Value": [level]},
            _RETRIEVE_AE: {"vr": "AE", "Value": [node.settings.title]},
        }
        if level != "PATIENT":
            self._constant[_AVAILABILITY] = {"vr": "CS", "Value": ["ONLINE"]}
        self._returned = [name for name in wanted if name not in _OF_THE_ANSWER and not name.endswith("0000")]
        self._heads = {
            status: b"".join(
                association.command_pdus(message.context.id, association.response(message, status, data=True))
            )
            for status in (Status.PENDING, Status.PENDING_WARNING)
        }
        self._out = bytearray()
        self._sent_at = 0.0

    def give(self, row: Row) -> bool:
        """Answer with a row. False: the peer wants no more."""
        document = self._store.row_json(row, self._found.include)
        data = identifier.write(self._answer(document), self._syntax, self._charset)
        self._out += self._heads[Status.PENDING_WARNING if self._found.warnings else Status.PENDING]
        for part in self._association.data_pdus(self._message.context.id, [data]):
            self._out += part
        if len(self._out) >= _FLUSH_BYTES or time.monotonic() - self._sent_at > _FLUSH_SECONDS:
            self.flush()
            return not self._association.is_cancelled(self._message.id)
        return True

    def flush(self) -> None:
        if self._out:
            self._association.write([self._out])
            self._out = bytearray()
            self._sent_at = time.monotonic()

    def _answer(self, document: Document) -> Document:
        answer = dict(self._constant)
        for name in self._unique:
            if name in document:
                answer[name] = document[name]
        for name in self._returned:
            # A return key that the object lacks is empty, and filters nothing.
            answer[name] = _shaped(document.get(name), self._wanted[name], name)
        return answer


def _shaped(attribute: Any, asked: Any, name: str) -> Any:
    """An attribute as it was asked for: of a sequence whose item names keys, these alone."""
    if attribute is None:
        vr = asked.get("vr") or dictionary.vr_of(int(name, 16))
        return {"vr": vr}
    keys = next(iter(asked.get("Value", ())), None) if asked.get("vr") == "SQ" else None
    if not keys or attribute.get("vr") != "SQ":
        return attribute
    items = [
        {inner: _shaped(item.get(inner), keys[inner], inner) for inner in keys}
        for item in attribute.get("Value", ())
        if item
    ]
    return {"vr": "SQ", "Value": items}


SERVICE = Service(_has, {Field.FIND: _find}, extended=models.answer_find)
