"""C-GET and C-MOVE: an identifier to instances, sent by C-STORE on the same association or to a peer that is
known by its AE title. Sends data sets as they are stored; transcodes where the receiver takes less and
nothing is lost.

PS3.4 C.4.2, C-MOVE Operation, and C.4.3, C-GET Operation. Statuses:

| what came of it | status |
|---|---|
| under way, with its four counters | FF00 |
| all were sent | 0000 |
| some could not be sent, or were taken with a warning | B000 |
| none could be sent | A702 |
| C-CANCEL | FE00 |
| the destination is no peer | A801 |
| no level of the model, a unique key that is missing, other keys | A900 |
| an identifier that can't be read | C000 |

Failed SOP Instance UID List (0008,0058) is in the last answer where there is one.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from hilum.dicom.json import text_of
from hilum.dimse import command as commands
from hilum.dimse import identifier, models, peers, sending
from hilum.dimse.command import Command, Field, Status
from hilum.dimse.identifier import Document
from hilum.dimse.models import GET, MOVE, UNIQUE_KEYS, Model
from hilum.dimse.options import Peer
from hilum.dimse.services import Node, Service
from hilum.dimse.transport import Association, Lost, Message
from hilum.engine import record
from hilum.engine.query import Asked
from hilum.errors import BadDicom, BadQuery, HilumError
from hilum.transfer.outgoing import data_set_of_stored, transcoded

_FAILED_LIST = "00080058"
_CONTEXTS_MAX = 128  # of one association: PS3.8 9.3.2.2
_FAILED_MAX = 4096  # UIDs that are named
_HELPER_SECONDS = 0.1
_SOP_CLASS = record.NUMBER_OF[0x00080016]

_log = logging.getLogger("hilum.dimse")


class Chosen(NamedTuple):
    """One instance to send."""

    uid: str
    sop_class: str
    transfer_syntax: str


class Counts:
    """The four counters of sub-operations. Safe from several threads."""

    def __init__(self, total: int) -> None:
        self.remaining, self.completed, self.failed, self.warned = total, 0, 0, 0
        self.failed_uids: list[str] = []
        self._lock = threading.Lock()

    def add(self, uid: str, status: int) -> None:
        """What a receiver said of an instance; -1 where it could not be sent."""
        with self._lock:
            self.remaining -= 1
            if status == Status.SUCCESS:
                self.completed += 1
            elif status & 0xF000 == 0xB000:
                self.warned += 1
            else:
                self.failed += 1
                if len(self.failed_uids) < _FAILED_MAX:
                    self.failed_uids.append(uid)

    def fields(self, *, final: bool) -> Command:
        # 16 bits hold what is left of a patient with 65,536 instances: PS3.7 C.
        found: Command = {
            commands.COMPLETED: min(self.completed, 0xFFFF),
            commands.FAILED: min(self.failed, 0xFFFF),
            commands.WARNED: min(self.warned, 0xFFFF),
        }
        if not final or self.remaining:
            found[commands.REMAINING] = min(self.remaining, 0xFFFF)
        return found

    @property
    def status(self) -> int:
        """What it has come to: PS3.4 Table C.4-2, C-MOVE Response Status Values."""
        if not self.failed and not self.warned:
            return Status.SUCCESS
        return (
            Status.SUB_OPERATIONS_WARNING if self.completed or self.warned else Status.SUB_OPERATIONS_FAILED
        )


# --- What is asked for -------------------------------------------------------------


def choose(node: Node, wanted: Document, model: Model, *, relational: bool) -> list[Chosen]:
    """The instances that an identifier asks for: PS3.4 C.4.2.1.4, Identifier Structure. Each once, by series.

    Raises:
        BadQuery: it is not as it must be.
    """
    level = models.level_of(wanted, model)
    names = list(UNIQUE_KEYS)
    above = [name for name in names[: names.index(level)] if name in model.levels]
    keys = {name: text_of(wanted.get(UNIQUE_KEYS[name])).strip() for name in names}
    if not keys[level]:
        raise BadQuery(f"the unique key of the level {level} has no value")
    for name in above:
        if not keys[name] and not relational:
            raise BadQuery(
                f"the unique key of the level {name} has no value, and the request is not relational"
            )
    used = [(UNIQUE_KEYS[name], keys[name]) for name in (*above, level) if keys[name]]
    if any(character in value for _, value in used for character in "*?"):
        raise BadQuery("a unique key has a wildcard; a retrieve names what it wants")
    return [_chosen(node, row.uid) for row in node.store.search(Asked("instances", used))]


def _chosen(node: Node, uid: str) -> Chosen:
    instance = node.store.locate(uid).instance
    sop_class = record.raw_of(instance.entries, _SOP_CLASS).strip(b" \0").decode("latin-1")
    return Chosen(uid, sop_class, instance.transfer_syntax.decode("latin-1"))


# --- Sending one -------------------------------------------------------------------


class Sender:
    """Sends instances on one association, by the presentation contexts that it has."""

    def __init__(self, node: Node, association: Association, *, originator: tuple[str, int] | None) -> None:
        self._node = node
        self._association = association
        self._originator = originator
        self._contexts = sending.accepted(association)

    def send(self, chosen: Chosen) -> int:
        """Send one; return what the receiver said, or a failure of ours.

        Raises:
            Lost: the association is over.
        """
        store, uid = self._node.store, chosen.uid
        sent = sending.send(
            self._association,
            self._contexts.get(chosen.sop_class, {}),
            (chosen.sop_class, chosen.transfer_syntax),
            uid,
            lambda: data_set_of_stored(store, uid),
            lambda syntax: transcoded(store, uid, chosen.transfer_syntax, syntax),
            seconds=self._node.settings.answer_seconds,
            originator=self._originator,
        )
        if sent.status < 0:
            _log.warning("%s: %s can't be sent: %s", self._association.peer, uid, sent.words)
            return Status.PROCESSING_FAILURE
        if sent.status:
            _log.warning("%s: %s: it says 0x%04X %s", self._association.peer, uid, sent.status, sent.words)
        return sent.status


# --- C-GET ---------------------------------------------------------------------------


def _begin(
    node: Node, association: Association, message: Message, known: dict[str, Model]
) -> list[Chosen] | None:
    """What is asked for; None: it was refused."""
    association.cancelled.discard(message.id)
    context = message.context
    try:
        wanted = identifier.read(message.data, context.transfer_syntax)
        agreed = models.agreed(association.extended.get(context.abstract_syntax, b""))
        return choose(node, wanted, known[context.abstract_syntax], relational=agreed.relational)
    except BadDicom as failure:
        status, words = Status.CANNOT_UNDERSTAND, str(failure)
    except BadQuery as failure:
        status, words = Status.DOES_NOT_MATCH, str(failure)
    _log.warning("%s: retrieve refused with 0x%04X: %s", association.peer, status, words)
    association.respond(message, status, {commands.ERROR_COMMENT: words})
    return None


def _get(node: Node, association: Association, message: Message) -> None:
    chosen = _begin(node, association, message, GET)
    if chosen is None:
        return
    counts = Counts(len(chosen))
    sender = Sender(node, association, originator=None)
    for one in chosen:
        if association.is_cancelled(message.id):
            _end(association, message, counts, Status.CANCEL)
            return
        counts.add(one.uid, sender.send(one))
        association.tally["sent"] += 1
        if counts.remaining:
            association.respond(message, Status.PENDING, counts.fields(final=False))
    _end(association, message, counts, counts.status)


def _end(association: Association, message: Message, counts: Counts, status: int) -> None:
    data = None
    if counts.failed_uids:
        document = {_FAILED_LIST: {"vr": "UI", "Value": counts.failed_uids}}
        data = identifier.write(document, message.context.transfer_syntax, "")
    association.respond(message, status, counts.fields(final=True), data=data)


# --- C-MOVE --------------------------------------------------------------------------


def _move(node: Node, association: Association, message: Message) -> None:
    title = message.text(commands.MOVE_DESTINATION)
    peer = peers.find(node.settings, title)
    if peer is None:
        _log.warning("%s: C-MOVE to %r, which is no peer", association.peer, title)
        words = {commands.ERROR_COMMENT: f"{title} is no peer"}
        association.respond(message, Status.DESTINATION_UNKNOWN, words)
        return
    chosen = _begin(node, association, message, MOVE)
    if chosen is None:
        return
    counts = Counts(len(chosen))
    if chosen:
        association.respond(message, Status.PENDING, counts.fields(final=False))
    moving = _Moving(node, peer, chosen, counts, (association.peer_title, message.id))

    def go_on() -> bool:
        if counts.remaining:
            association.respond(message, Status.PENDING, counts.fields(final=False))
        return not association.is_cancelled(message.id)

    helpers = [threading.Thread(target=moving.run, daemon=True) for _ in range(1, peer.associations)]
    for helper in helpers:
        helper.start()
    try:
        moving.run(go_on)
        while any(helper.is_alive() for helper in helpers) and not moving.is_stopped:
            helpers[0].join(_HELPER_SECONDS)
            if not go_on():
                moving.stop()
    finally:
        moving.stop()
    for helper in helpers:
        helper.join()
    association.tally["moved"] += counts.completed + counts.warned
    if association.is_cancelled(message.id) and counts.remaining:
        _end(association, message, counts, Status.CANCEL)
        return
    moving.give_up()
    _end(association, message, counts, counts.status)


class _Moving:
    """Instances on their way to a peer, by one association or several, each of which takes the next that is
    left."""

    def __init__(
        self, node: Node, peer: Peer, chosen: Sequence[Chosen], counts: Counts, originator: tuple[str, int]
    ) -> None:
        self._node = node
        self._peer = peer
        self._left = deque(chosen)
        self._counts = counts
        self._originator = originator
        self._lock = threading.Lock()
        self.is_stopped = False

    def stop(self) -> None:
        """Send no more than what is under way."""
        self.is_stopped = True

    def give_up(self) -> None:
        """Count what is left as failed."""
        while self._left:
            self._counts.add(self._left.popleft().uid, Status.PROCESSING_FAILURE)

    def run(self, go_on: Callable[[], bool] = lambda: True) -> None:
        """Send until nothing is left, or go_on() says no. An association that is lost is made anew, unless
        the last one came to nothing."""
        while self._left and not self.is_stopped:
            try:
                offered = self._offer()
                association = peers.connect(
                    self._node.settings, self._node.entity, self._peer, offered.contexts
                )
            except HilumError as failure:
                _log.warning("%s@%s: %s", self._peer.title, self._peer.host, failure)
                return
            sent = 0
            try:
                sent = self._send(association, offered.keys, go_on)
                association.release()
            except Lost as failure:
                _log.warning("%s: %s", association.peer, failure)
            finally:
                association.close()
            if not sent:
                return

    def _send(
        self, association: Association, offered: frozenset[sending.Key], go_on: Callable[[], bool]
    ) -> int:
        """Send what the association was made for; return how many."""
        sender = Sender(self._node, association, originator=self._originator)
        sent = 0
        while not self.is_stopped:
            with self._lock:
                if not self._left or (self._left[0].sop_class, self._left[0].transfer_syntax) not in offered:
                    return sent
                one = self._left.popleft()
            try:
                status = sender.send(one)
            except Lost:
                self._counts.add(one.uid, Status.PROCESSING_FAILURE)
                if not sent:
                    raise
                return sent
            self._counts.add(one.uid, status)
            sent += 1
            if not go_on():
                self.stop()
        return sent

    def _offer(self) -> sending.Offer:
        """Presentation contexts for what is left, as far as one association has room."""
        with self._lock:
            return sending.offer((one.sop_class, one.transfer_syntax) for one in self._left)


SERVICE = Service(
    lambda uid, settings: uid in MOVE or uid in GET,
    {Field.GET: _get, Field.MOVE: _move},
    extended=models.answer_retrieve,
)
