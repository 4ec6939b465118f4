"""Takes questions; asks a peer by C-FIND and gives what it answers, as DICOM JSON. Matches nothing itself.

PS3.4 C.4.1, C-FIND Operation, as its SCU.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self

from pynetdicom.pdu_primitives import SOPClassExtendedNegotiation

from hilum.dicom import dictionary
from hilum.dicom.dictionary import Path, Private
from hilum.dicom.json import key as key_of
from hilum.dimse import command as commands
from hilum.dimse import identifier, models, peers
from hilum.dimse.command import Command, Field, Status
from hilum.dimse.identifier import Document
from hilum.dimse.scu import Caller, Refused
from hilum.dimse.services import OWN_SYNTAXES
from hilum.dimse.transport import Association, Context, Lost, NothingAccepted
from hilum.engine.question import UNIQUE_KEYS
from hilum.engine.record import PATIENT, STUDY
from hilum.errors import BadQuery, Unsupported
from hilum.transfer.hierarchy import NAME_OF, Pair

PATIENT_ROOT, STUDY_ROOT = (f"1.2.840.10008.5.1.4.1.2.{number}" for number in (1, 2))
_FIND = 1
_LEVEL_NAME = {name: level for level, name in models.LEVELS.items()}
_OF_THE_ANSWER = (models.QUERY_LEVEL, "00080054", "00080056", models.CHARACTER_SET)


class Finder:
    """An association that answers questions. Use it in a `with`; one question at a time."""

    def __init__(
        self,
        caller: Caller,
        *,
        fuzzy: bool = False,
        timezone: str = "",
    ) -> None:
        """Ask for an association.

        Raises:
            Lost: there is no association.
            Unsupported: the peer answers no queries.
        """
        self._caller = caller
        self._fuzzy, self._timezone = fuzzy, timezone
        classes = [f"{root}.{_FIND}" for root in (STUDY_ROOT, PATIENT_ROOT)]
        items = [_extended(uid, bytes((1, 1, fuzzy, bool(timezone)))) for uid in classes]
        contexts = [peers.context(uid, OWN_SYNTAXES[:2]) for uid in classes]
        none = "the peer answers no queries: it takes neither Study Root nor Patient Root FIND"
        try:
            self.association: Association = caller.connect(contexts, items)
        except NothingAccepted:
            raise Unsupported(none) from None
        self.contexts = {context.abstract_syntax: context for context in self.association.contexts.values()}
        self._find = {uid: self.contexts[uid] for uid in classes if uid in self.contexts}
        if not self._find:
            self.close()
            raise Unsupported(
                "the peer answers no queries: it takes neither Study Root nor Patient Root FIND"
            )
        self.warnings: list[str] = []
        agreed = self._agreed(next(iter(self._find)))
        if fuzzy and not agreed.fuzzy:
            self.warnings.append("the peer does not promise fuzzy matching")
        if timezone and not agreed.timezone:
            self.warnings.append("the peer does not promise to take account of the timezone")

    def _agreed(self, uid: str) -> models.Agreed:
        found = {str(name): said for name, said in self.association.acceptor.sop_class_extended.items()}
        return models.agreed(found.get(uid, b""))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.association.release()
        self.association.close()

    @property
    def top(self) -> int:
        return STUDY if f"{STUDY_ROOT}.{_FIND}" in self._find else PATIENT

    @property
    def is_relational(self) -> bool:
        return self._agreed(next(iter(self._find))).relational

    def ask(self, level: int, keys: Sequence[Pair], include: Sequence[Path]) -> Iterator[Document]:
        """Rows of one level; closing the iterator cancels.

        Raises:
            Refused: the peer answers with a failure.
            Lost: the association is over.
        """
        uid = f"{PATIENT_ROOT if level == PATIENT else STUDY_ROOT}.{_FIND}"
        context = self._find.get(uid) or self._find.get(f"{PATIENT_ROOT}.{_FIND}")
        if context is None:
            raise Unsupported("the peer has no patients to ask for: it takes no Patient Root FIND")
        document = identifier_of(level, keys, include)
        if self._timezone:
            document[models.TIMEZONE] = {"vr": "SH", "Value": [self._timezone]}
        return self._answers(context, document)

    def _answers(self, context: Context, document: Document) -> Iterator[Document]:
        association = self.association
        message_id = association.new_message_id()
        command: Command = {
            commands.COMMAND_FIELD: Field.FIND,
            commands.MESSAGE_ID: message_id,
            commands.AFFECTED_SOP_CLASS: context.abstract_syntax,
            commands.PRIORITY: 0,
            commands.DATA_SET_TYPE: commands.HAS_DATA_SET,
        }
        association.send(context.id, command, [identifier.write(document, context.transfer_syntax)])
        is_over = False
        try:
            while True:
                found = association.next_message(self._caller.settings.answer_seconds)
                if found.number(commands.RESPONDED_TO) != message_id:
                    continue
                status = found.number(commands.STATUS)
                if status not in (Status.PENDING, Status.PENDING_WARNING):
                    is_over = True
                    self._judge(status, found.text(commands.ERROR_COMMENT))
                    return
                if status == Status.PENDING_WARNING:
                    self._warn("the peer did not match some of the keys")
                yield _row(identifier.read(found.data, context.transfer_syntax))
        except Lost:
            is_over = True
            raise
        finally:
            if not is_over:
                self._cancel(context, message_id)

    def _judge(self, status: int, comment: str) -> None:
        if status == Status.LIMIT_REACHED:
            self._warn("the peer did not look at everything")
        elif status not in (Status.SUCCESS, Status.CANCEL):
            raise Refused(status, comment)

    def _warn(self, words: str) -> None:
        if words not in self.warnings:
            self.warnings.append(words)

    def _cancel(self, context: Context, message_id: int) -> None:
        """PS3.7 9.3.2.3, C-CANCEL-FIND-RQ; what was under way is read away."""
        command: Command = {
            commands.COMMAND_FIELD: Field.CANCEL,
            commands.RESPONDED_TO: message_id,
            commands.DATA_SET_TYPE: commands.NO_DATA_SET,
        }
        try:
            self.association.send(context.id, command)
            while True:
                found = self.association.next_message(self._caller.settings.answer_seconds)
                if found.number(commands.STATUS) not in (Status.PENDING, Status.PENDING_WARNING):
                    return
        except Lost:
            return


def _extended(uid: str, information: bytes) -> SOPClassExtendedNegotiation:
    """PS3.7 D.3.3.5, SOP Class Extended Negotiation."""
    item = SOPClassExtendedNegotiation()
    item.sop_class_uid = uid
    item.service_class_application_information = information
    return item


def _row(document: Document) -> Document:
    """An answer without what is of the protocol; its text is UTF-8 now."""
    row = {name: value for name, value in document.items() if name not in _OF_THE_ANSWER}
    row[models.CHARACTER_SET] = {"vr": "CS", "Value": [identifier.UTF_8]}
    return row


# --- Identifiers -----------------------------------------------------------------


def identifier_of(level: int, keys: Iterable[Pair], include: Iterable[Path]) -> Document:
    """The identifier of a question: PS3.4 C.4.1.1.3.1, Request Identifier Structure.

    Raises:
        BadQuery: a value that its VR can't hold.
    """
    document: Document = {models.QUERY_LEVEL: {"vr": "CS", "Value": [_LEVEL_NAME[NAME_OF[level]]]}}
    for path in ((UNIQUE_KEYS[level],), *include):
        _put(document, path, "")
    for path, text in keys:
        _put(document, path, text)
    return document


def _put(document: Document, path: Path, text: str) -> None:
    """Enter a key; the sequences that it lies in have one item."""
    for step in path[:-1]:
        sequence = document.setdefault(_enter(document, step), {"vr": "SQ"})
        (document,) = sequence.setdefault("Value", [{}])
    last = path[-1]
    name = _enter(document, last)
    vr = "UN" if isinstance(last, Private) else dictionary.vr_of(last)
    values = _values(vr, text, path)
    if values or name not in document:
        document[name] = {"vr": vr, **({"Value": values} if values else {})}


def _enter(document: Document, step: int | Private) -> str:
    """The name of an element; the block of a private one is reserved: PS3.5 7.8.1, Private Data Element
    Tags."""
    if not isinstance(step, Private):
        return key_of(step)
    group = step.tag >> 16
    for block in range(0x10, 0x100):
        creator = document.setdefault(key_of(group << 16 | block), {"vr": "LO", "Value": [step.creator]})
        if creator.get("Value") == [step.creator]:
            return key_of(group << 16 | block << 8 | step.tag & 0xFF)
    raise BadQuery(f"more private creators in group {group:04X} than there are blocks")


_INTEGERS = ("US", "SS", "UL", "SL", "UV", "SV")


def _values(vr: str, text: str, path: Path) -> list[Any]:
    if not text:
        return []
    if vr == "UI":
        text = text.replace(",", "\\")  # a list, as it is written in URLs
    if vr == "PN":
        return [{"Alphabetic": text}]
    try:
        if vr in _INTEGERS:
            return [int(part) for part in text.split("\\")]
        if vr in ("FL", "FD"):
            return [float(part) for part in text.split("\\")]
        if vr == "AT":
            return [key_of(dictionary.tag_of(part)) for part in text.split("\\")]
    except ValueError:
        raise BadQuery(f"{dictionary.format_path(path)}: {text[:80]!r} is no number") from None
    if vr == "SQ":
        raise BadQuery(f"{dictionary.format_path(path)} is a sequence: name a key in it, with a full stop")
    return [text]
