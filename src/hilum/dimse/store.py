"""C-STORE: takes a data set as it comes, in any transfer syntax; answers when it is durable. Decodes nothing.

PS3.4 B, Storage Service Class. What each outcome is answered with:

| what became of it | status |
|---|---|
| stored, or the same object was stored already | 0000 |
| stored, in the place of other content under this UID (`replace`) | 0000 |
| stored, but Pixel Data is shorter than it says | B007, warning |
| other content is stored under this UID, and is kept (`keep-first`) | 0111, failure: Duplicate SOP Instance |
| SOP class or instance of the command are not those of the data set, or it lacks a UID | A900 |
| no data set that can be read | C000 |
| the disk is full, or the store could not write | A700 |
| what it shares with another object went at that moment | 0110 |

Failures have their words in Error Comment (0000,0902).
"""

from __future__ import annotations

import logging

from pynetdicom.presentation import AllStoragePresentationContexts

from hilum.dicom.part10 import file_meta
from hilum.dimse import command as commands
from hilum.dimse.command import Command, Field, Status
from hilum.dimse.options import DimseSettings
from hilum.dimse.services import Node, Service
from hilum.dimse.transport import Association, Context, Message
from hilum.engine import record
from hilum.engine.prepare import Prepared
from hilum.engine.writer import Policy, Result
from hilum.errors import BadDicom, Corrupt, HilumError, NotDicom, StoreFault

STORAGE_SERVICE = "1.2.840.10008.4.2"  # of SOP Class Common Extended Negotiation
CUT_PIXELS = 0xB007  # the data set does not match its SOP class

_KNOWN = frozenset(str(context.abstract_syntax) for context in AllStoragePresentationContexts) | {
    "1.2.840.10008.5.1.1.27",  # Stored Print, Hardcopy Grayscale and Color Image, retired
    "1.2.840.10008.5.1.1.29",
    "1.2.840.10008.5.1.1.30",
    "1.3.12.2.1107.5.9.1",  # of Siemens: CSA Non-Image, CT MR Volume, AX Frame Sets
    "1.3.12.2.1107.5.99.3.10",
    "1.3.12.2.1107.5.99.3.11",
}
# PS3.6 A has storage classes alone under this root, but for those that find and retrieve protocols and
# inventories.
_ROOT = "1.2.840.10008.5.1.4.1.1."
_NO_STORAGE = tuple(f"{_ROOT}200.{number}" for number in (4, 5, 6)) + tuple(
    f"{_ROOT}201.{number}" for number in (2, 3, 4, 5, 6)
)
_STANDARD = "1.2.840.10008."
_AGAIN_MAX = 3
_ACCOUNT_BYTES = 1 << 20
_SOP_CLASS = record.NUMBER_OF[0x00080016]

_log = logging.getLogger("hilum.dimse")


def is_storage(sop_class: str, settings: DimseSettings) -> bool:
    """Whether objects of a SOP class are taken."""
    if sop_class in _KNOWN or sop_class in settings.classes:
        return True
    if sop_class.startswith(_ROOT):
        return sop_class not in _NO_STORAGE
    return settings.unknown_classes and not sop_class.startswith(_STANDARD)


class Incoming:
    """A data set that is coming in, as the file that it will be. Never raises while it comes: the peer is
    told at its end."""

    def __init__(self, node: Node, association: Association, context: Context, command: Command) -> None:
        self._node = node
        self.uid = commands.text(command, commands.AFFECTED_SOP_INSTANCE)
        self.sop_class = commands.text(command, commands.AFFECTED_SOP_CLASS) or context.abstract_syntax
        self._arrival = node.store.arrival(source=f"DIMSE {association.peer}")
        self._failure: Exception | None = None
        self._accounted = 0
        self._arrival.write(
            file_meta(self.sop_class, self.uid, context.transfer_syntax, association.peer_title)
        )

    def write(self, data: memoryview, /) -> None:
        if self._failure is not None:
            return
        try:
            self._arrival.write(data)
            if self._arrival.held - self._accounted > _ACCOUNT_BYTES:
                self._account(self._arrival.held)
                if self._node.held > self._node.settings.memory_bytes:
                    self._arrival.spool()
            elif self._accounted and not self._arrival.held:
                self._account(0)
        except (OSError, HilumError) as failure:
            self._failure = failure

    def _account(self, held: int) -> None:
        with self._node.lock:
            self._node.held += held - self._accounted
        self._accounted = held

    def finish(self) -> tuple[int, str]:
        """All has come: store it. (status, words)."""
        if self._failure is not None:
            return self._broken(self._failure)
        try:
            for _ in range(_AGAIN_MAX):
                prepared = self._arrival.finish()
                refusal = self._mismatch(prepared)
                if refusal:
                    prepared.discard()
                    return Status.DOES_NOT_MATCH, refusal
                replaces = self._node.settings.conflicts == "replace"
                writer = self._node.store.writer
                try:
                    (outcome,) = writer.submit([prepared], Policy.REPLACE if replaces else Policy.KEEP_FIRST)
                except StoreFault:
                    self._node.store.renew_writer(writer)
                    raise
                if outcome.result == Result.CONFLICT:
                    return Status.DUPLICATE_INSTANCE, "other content is stored under this UID, and is kept"
                if outcome.result != Result.AGAIN:
                    if prepared.flags & record.TRUNCATED:
                        return CUT_PIXELS, "Pixel Data is shorter than it says"
                    return Status.SUCCESS, ""
                if not self._arrival.can_finish_again:
                    break
        except (BadDicom, NotDicom) as failure:
            words = failure.reason if isinstance(failure, BadDicom) else "no data set"
            is_whole = self._arrival.names().is_whole  # what is missing is missing
            return (Status.DOES_NOT_MATCH if is_whole else Status.CANNOT_UNDERSTAND), words
        except (OSError, StoreFault) as failure:
            return self._broken(failure)
        return Status.PROCESSING_FAILURE, "what it shares with another object has gone: send it again"

    def _mismatch(self, prepared: Prepared) -> str:
        if self.uid and prepared.uid.strip(b" \0") != self.uid.encode("ascii", "replace"):
            return "the data set has another SOP Instance UID than the command"
        sop_class = record.raw_of(prepared.own, _SOP_CLASS).strip(b" \0").decode("latin-1")
        if sop_class and sop_class != self.sop_class:
            return "the data set has another SOP Class UID than the command"
        return ""

    def _broken(self, failure: Exception) -> tuple[int, str]:
        if isinstance(failure, Corrupt):
            return Status.PROCESSING_FAILURE, "what came in is not what was kept"
        return Status.OUT_OF_RESOURCES, "the store could not write"

    def discard(self) -> None:
        """Leave nothing of it but what was stored."""
        self._arrival.discard()
        if self._accounted:
            self._account(0)


def _store(node: Node, association: Association, message: Message) -> None:
    incoming = message.sink
    if not isinstance(incoming, Incoming):
        association.respond(
            message, Status.CANNOT_UNDERSTAND, {commands.ERROR_COMMENT: "there is no data set"}
        )
        return
    try:
        status, words = incoming.finish()
    finally:
        incoming.discard()
    fields: Command = {commands.AFFECTED_SOP_INSTANCE: incoming.uid}
    if status == Status.SUCCESS:
        association.tally["stored"] += 1
    else:
        fields[commands.ERROR_COMMENT] = words
        association.tally["stored with a warning" if status == CUT_PIXELS else "refused"] += 1
        _log.warning("%s: %s: 0x%04X, %s", association.peer, incoming.uid, status, words)
    association.respond(message, status, fields)


SERVICE = Service(is_storage, {Field.STORE: _store}, any_syntax=True, both_roles=True, open_sink=Incoming)
