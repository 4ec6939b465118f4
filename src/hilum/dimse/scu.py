"""Takes who we are and a peer; gives associations with it, and does by them what a user asks for: verify,
store. What it says of a failure is for a person.
"""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

from pynetdicom.presentation import PresentationContext

from hilum.dimse import command as commands
from hilum.dimse import peers, sending
from hilum.dimse.command import Command, Field, Status
from hilum.dimse.options import DimseSettings, Peer
from hilum.dimse.sending import VERIFICATION
from hilum.dimse.server import quiet_pynetdicom
from hilum.dimse.services import OWN_SYNTAXES
from hilum.dimse.transport import Association, Context, Lost, NothingAccepted
from hilum.transfer.outgoing import Outgoing, Source
from hilum.transfer.work import Work

_AGAIN_SECONDS = (1.0, 2.0, 4.0)  # before an association is asked for again, once one has worked

# PS3.7 C, Status Type Encoding, and PS3.4 B.2.3, C.4.1.1.4, C.4.2.1.5 and C.4.3.1.4; a family by its first
# digits.
_WORDS = {
    0x0105: "no such attribute",
    0x0106: "an attribute has a value that it can't have",
    0x0107: "a list of attributes has an error",
    0x0110: "processing failure",
    0x0111: "it has other content under this UID",
    0x0112: "no such instance",
    0x0117: "the UID is not well formed",
    0x0118: "no such SOP class",
    0x0119: "the instance is of another class",
    0x0122: "it does not support the SOP class",
    0x0124: "it does not allow that",
    0x0210: "the message id is taken",
    0x0211: "it does not know the operation",
    0x0212: "an argument has the wrong type",
    0x0213: "it lacks resources",
    0xA700: "out of resources",
    0xA701: "out of resources: it can't count the matches",
    0xA702: "out of resources: it can't send",
    0xA801: "it does not know the destination",
    0xA900: "the data set does not match the SOP class, or a key is missing",
    0xB000: "some of it failed, or values were coerced",
    0xB006: "elements were discarded",
    0xB007: "the data set does not match the SOP class",
    0xFE00: "cancelled",
}
_FAMILIES = {0xA700: "out of resources", 0xA900: "the data set does not match the SOP class"}


def words_of(status: int, comment: str = "") -> str:
    """A status for a person: what it means, and what the peer says beside it."""
    words = _WORDS.get(status) or _FAMILIES.get(status & 0xFF00, "")
    if not words:
        words = {0xC: "it can't understand or process it", 0xB: "a warning"}.get(status >> 12, "a failure")
    return f"{words}: {comment}" if comment else words


class Refused(Lost):
    """The peer answers an operation with a failure."""

    def __init__(self, status: int, comment: str) -> None:
        super().__init__(f"it answers 0x{status:04X}, {words_of(status, comment)}")
        self.status = status


class Caller:
    """Who we are, and whom we call. Safe from several threads."""

    def __init__(self, settings: DimseSettings, peer: Peer) -> None:
        """Raises BadQuery: our AE title is none."""
        quiet_pynetdicom()
        self.settings = settings
        self.peer = peer
        self.entity = peers.entity(settings)

    def connect(self, contexts: Iterable[PresentationContext], items: Iterable[Any] = ()) -> Association:
        """An association; `items` are roles and extended negotiation. Release and close it.

        Raises:
            Lost: there is none; the words say why.
        """
        return peers.connect(self.settings, self.entity, self.peer, contexts, roles=items)


# --- C-ECHO ------------------------------------------------------------------------


class Echo(NamedTuple):
    """What a verification tells."""

    connect_seconds: float  # until an association was agreed
    answer_seconds: float  # of the C-ECHO
    implementation: str
    pdu_bytes: int  # that the peer takes; 0: any
    transfer_syntax: str
    tls: str  # version and cipher; empty: there is none


def echo(caller: Caller) -> Echo:
    """Verify that the peer answers: PS3.4 A, Verification Service Class.

    Raises:
        Lost: it does not.
    """
    begin = time.monotonic()
    association = caller.connect([peers.context(VERIFICATION, OWN_SYNTAXES[:2])])
    agreed = time.monotonic()
    try:
        context = next(iter(association.contexts.values()))
        command: Command = {
            commands.COMMAND_FIELD: Field.ECHO,
            commands.AFFECTED_SOP_CLASS: VERIFICATION,
            commands.DATA_SET_TYPE: commands.NO_DATA_SET,
        }
        answer = association.ask(context, command, seconds=caller.settings.answer_seconds)
        answered = time.monotonic()
        status = commands.number(answer, commands.STATUS)
        if status != Status.SUCCESS:
            raise Refused(status, commands.text(answer, commands.ERROR_COMMENT))
        acceptor = association.acceptor
        found = Echo(
            agreed - begin,
            answered - agreed,
            str(acceptor.implementation_version_name or acceptor.implementation_class_uid or ""),
            acceptor.maximum_length or 0,
            context.transfer_syntax,
            _tls_of(association),
        )
        association.release()
        return found
    finally:
        association.close()


def _tls_of(association: Association) -> str:
    connected = association.dul.socket.socket if association.dul.socket is not None else None
    if not isinstance(connected, ssl.SSLSocket):
        return ""
    cipher = connected.cipher()
    return f"{connected.version()} {cipher[0] if cipher else ''}".strip()


# --- C-STORE -----------------------------------------------------------------------


class Sender:
    """Sends what a Work hands out, by one association in each thread that calls run()."""

    def __init__(self, caller: Caller, source: Source) -> None:
        self._caller = caller
        self._source = source
        self._lock = threading.Lock()
        self._busy = 0  # threads that have an association
        self._beginning = 0  # threads that are about to have one

    def run(self, work: Work) -> None:
        """Send until nothing is left.

        Raises:
            Lost: there is no association to be had, and no other thread has one.
        """
        one = work.take()
        while one is not None:
            association, keys = self._begin(work, one)
            if association is None:
                return
            try:
                one = self._send(work, association, keys, one)
                if association.is_established:
                    association.release()
            finally:
                association.close()
                with self._lock:
                    self._busy -= 1

    def _begin(self, work: Work, one: Outgoing) -> tuple[Association | None, frozenset[sending.Key]]:
        """An association for an instance and those behind it; none where other threads will do its work."""
        with self._lock:
            self._beginning += 1
        try:
            return self._try_to_begin(work, one)
        finally:
            with self._lock:
                self._beginning -= 1

    def _try_to_begin(self, work: Work, one: Outgoing) -> tuple[Association | None, frozenset[sending.Key]]:
        tries = 0
        while True:
            wanted = sending.offer(map(_key, (one, *work.window())), room=sending.CONTEXTS_MAX - 1)
            try:
                # With Verification something is accepted also where no storage is: that is told by instance.
                contexts = [*wanted.contexts, peers.context(VERIFICATION, OWN_SYNTAXES[:2])]
                association = self._caller.connect(contexts)
            except Lost as failure:
                with self._lock:
                    busy, beginning = self._busy, self._beginning > 1
                # Where others begin too, one of them may just have got all that the peer gives; and where
                # something was sent, the peer may not have seen yet that an association has ended.
                waits = _AGAIN_SECONDS if beginning or work.counts.sent else ()
                if busy and not isinstance(failure, NothingAccepted):
                    work.put_back(one)
                    return None, wanted.keys
                if isinstance(failure, NothingAccepted) or tries >= len(waits) or work.is_stopped:
                    work.put_back(one)
                    raise
                time.sleep(waits[tries])
                tries += 1
                continue
            with self._lock:
                self._busy += 1
            return association, wanted.keys

    def _send(
        self, work: Work, association: Association, keys: frozenset[sending.Key], one: Outgoing | None
    ) -> Outgoing | None:
        """Send what the association was made for; return the first that it was not made for."""
        contexts = sending.accepted(association)
        while one is not None:
            key = _key(one)
            if key not in keys:
                return one
            try:
                sent = self._send_one(association, contexts.get(one.sop_class, {}), one)
            except Lost as failure:
                work.give_back(one, f"the association broke: {failure}")
                return work.take()
            if sent.is_taken:
                work.sent(one, sent.status, words_of(sent.status, sent.words) if sent.status else "")
            elif sent.status < 0:
                work.failed(one, None, sent.words)
            else:
                work.failed(one, sent.status, words_of(sent.status, sent.words))
            one = work.take()
        return None

    def _send_one(self, association: Association, offered: dict[str, Context], one: Outgoing) -> sending.Sent:
        return sending.send(
            association,
            offered,
            _key(one),
            one.uid,
            lambda: self._source.data_set(one),
            lambda syntax: self._source.data_set_in(one, syntax),
            seconds=self._caller.settings.answer_seconds,
        )


def _key(one: Outgoing) -> sending.Key:
    return one.sop_class, one.transfer_syntax
