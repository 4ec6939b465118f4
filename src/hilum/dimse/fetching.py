"""Takes what to fetch; lets a peer send it to another node (C-MOVE), or takes it from the peer (C-GET). An
object that comes is answered with Success when it is durable.

PS3.4 C.4.2, C-MOVE Operation, and C.4.3, C-GET Operation, as their SCU. Requests are hierarchical: they
name the study, and the series, of what they want.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from pynetdicom.presentation import StoragePresentationContexts

from hilum.dicom import dictionary, uids
from hilum.dicom.json import key as key_of
from hilum.dicom.json import text_of
from hilum.dicom.part10 import file_meta
from hilum.dimse import command as commands
from hilum.dimse import identifier, models, peers
from hilum.dimse.asking import PATIENT_ROOT, STUDY_ROOT
from hilum.dimse.command import Command, Field, Status
from hilum.dimse.identifier import Document
from hilum.dimse.scu import Caller, Refused, words_of
from hilum.dimse.services import OWN_SYNTAXES
from hilum.dimse.transport import Association, Context, Lost, Message, NothingAccepted
from hilum.engine.question import UNIQUE_KEYS
from hilum.engine.record import INSTANCE, PATIENT, SERIES, STUDY
from hilum.errors import HilumError, Unsupported
from hilum.transfer.arriving import Answer, Coming, Kept, Place
from hilum.transfer.fetch import Fetch
from hilum.transfer.hierarchy import LEVEL_OF, Series

_MOVE, _GET = 2, 3
_FAILED_LIST = "00080058"
_UIDS_MAX = 500  # in one request
_TRIES = 2  # of a series during which the association broke
_CONTEXTS_MAX = 128
# Retired processes of JPEG, of which nobody has seen a file: DCMTK takes no more than 50 syntaxes in a
# context.
_SELDOM = frozenset(f"1.2.840.10008.1.2.4.{arc}" for arc in (52, 54, 56, *range(58, 67)))
_LEVELS = {LEVEL_OF[name]: level for level, name in models.LEVELS.items()}


class Wanted(NamedTuple):
    """What one request asks for: the unique keys of its levels. Of the last level there may be several."""

    level: int
    keys: dict[int, Sequence[str]]

    @property
    def name(self) -> str:
        """What a person knows it by."""
        last = self.keys[self.level]
        return (
            f"{_LEVELS[self.level].lower()} {last[0]}{f' and {len(last) - 1} more' if len(last) > 1 else ''}"
        )


class Progress(NamedTuple):
    """The counters of sub-operations of one request."""

    remaining: int | None
    completed: int
    failed: int
    warned: int


class Done(NamedTuple):
    """What a request has come to."""

    progress: Progress
    status: int
    words: str  # empty: all is well
    failed_uids: tuple[str, ...]


def parted(names: Sequence[str]) -> Iterator[Sequence[str]]:
    """A list of UIDs in pieces that fit into one request."""
    for at in range(0, len(names), _UIDS_MAX):
        yield names[at : at + _UIDS_MAX]


def _identifier(wanted: Wanted) -> Document:
    """PS3.4 C.4.2.1.4.1, Request Identifier Structure."""
    document: Document = {models.QUERY_LEVEL: {"vr": "CS", "Value": [_LEVELS[wanted.level]]}}
    for level, values in wanted.keys.items():
        tag = UNIQUE_KEYS[level]
        document[key_of(tag)] = {"vr": dictionary.vr_of(tag), "Value": list(values)}
    return document


def _context_of(association: Association, verb: int, wanted: Wanted) -> Context:
    """The information model to ask by: Study Root, but for patients."""
    found = {context.abstract_syntax: context for context in association.contexts.values()}
    roots = (STUDY_ROOT, PATIENT_ROOT) if wanted.level != PATIENT else (PATIENT_ROOT,)
    for root in roots:
        # Below patients the Patient Root wants a Patient ID too.
        if f"{root}.{verb}" in found and (root == STUDY_ROOT or wanted.keys.get(PATIENT)):
            return found[f"{root}.{verb}"]
    name = {_MOVE: "C-MOVE", _GET: "C-GET"}[verb]
    raise Unsupported(f"the peer does not offer {name} for {_LEVELS[wanted.level].lower()}")


def _progress(message: Message) -> Progress:
    remaining = message.command.get(commands.REMAINING)
    return Progress(
        remaining if isinstance(remaining, int) else None,
        message.number(commands.COMPLETED),
        message.number(commands.FAILED),
        message.number(commands.WARNED),
    )


def _request(
    association: Association, context: Context, field: Field, wanted: Wanted, further: Command
) -> int:
    message_id = association.new_message_id()
    command: Command = {
        commands.COMMAND_FIELD: field,
        commands.MESSAGE_ID: message_id,
        commands.AFFECTED_SOP_CLASS: context.abstract_syntax,
        commands.PRIORITY: 0,
        commands.DATA_SET_TYPE: commands.HAS_DATA_SET,
        **further,
    }
    data = identifier.write(_identifier(wanted), context.transfer_syntax, "")
    association.send(context.id, command, [data])
    return message_id


def _answers(
    caller: Caller,
    association: Association,
    message_id: int,
    on_progress: Callable[[Progress], None],
    on_request: Callable[[Message], None],
    is_stopped: Callable[[], bool],
) -> Done:
    """Hear what comes of a request until its last answer."""
    cancelled = False
    while True:
        if is_stopped() and not cancelled:
            cancelled = True
            cancel: Command = {
                commands.COMMAND_FIELD: Field.CANCEL,
                commands.RESPONDED_TO: message_id,
                commands.DATA_SET_TYPE: commands.NO_DATA_SET,
            }
            association.send(next(iter(association.contexts)), cancel)
        message = association.next_message(caller.settings.answer_seconds)
        if not message.field & commands.RESPONSE:
            on_request(message)
            continue
        if message.number(commands.RESPONDED_TO) != message_id:
            continue
        progress, status = _progress(message), message.number(commands.STATUS)
        on_progress(progress)
        if status == Status.PENDING:
            continue
        failed: tuple[str, ...] = ()
        if message.data:
            document = identifier.read(message.data, message.context.transfer_syntax)
            failed = tuple(filter(None, text_of(document.get(_FAILED_LIST)).split("\\")))
        words = "" if status == Status.SUCCESS else _words(status, message.text(commands.ERROR_COMMENT))
        return Done(progress, status, words, failed)


def _words(status: int, comment: str) -> str:
    return f"it answers 0x{status:04X}, {words_of(status, comment)}"


# --- C-MOVE ------------------------------------------------------------------------


class Mover:
    """An association by which a peer is told to send to another node. Use release() at its end."""

    def __init__(self, caller: Caller) -> None:
        """Raises Lost: there is no association; Unsupported: the peer does not move."""
        self._caller = caller
        classes = [f"{root}.{_MOVE}" for root in (STUDY_ROOT, PATIENT_ROOT)]
        try:
            self._association = caller.connect([peers.context(uid, OWN_SYNTAXES[:2]) for uid in classes])
        except NothingAccepted:
            raise Unsupported("the peer does not offer C-MOVE") from None

    def move(
        self,
        wanted: Wanted,
        destination: str,
        on_progress: Callable[[Progress], None],
    ) -> Done:
        """Let the peer send to `destination`, an AE title that it knows.

        Raises:
            Refused: the peer does nothing of it.
            Lost: the association is over.
            Unsupported: the peer does not offer it.
        """
        context = _context_of(self._association, _MOVE, wanted)
        further: Command = {commands.MOVE_DESTINATION: destination}
        message_id = _request(self._association, context, Field.MOVE, wanted, further)
        done = _answers(
            self._caller, self._association, message_id, on_progress, lambda message: None, lambda: False
        )
        return _judged(done)

    def stop(self) -> None:
        """Let the peer stop at once."""
        self._association.break_off("interrupted")

    def release(self) -> None:
        self._association.release()
        self._association.close()


def _judged(done: Done) -> Done:
    """Raise what is no answer about instances."""
    if done.status in (Status.SUCCESS, Status.CANCEL) or done.status & 0xF000 == 0xB000:
        return done
    if done.progress.failed or done.failed_uids:
        return done
    raise Refused(done.status, done.words.partition(": ")[2])


# --- C-GET -------------------------------------------------------------------------


class Incoming:
    """An object that is coming in, as the file that it will be. Never raises while it comes: the peer is
    told at its end."""

    def __init__(self, place: Place, association: Association, context: Context, command: Command) -> None:
        self.uid = commands.text(command, commands.AFFECTED_SOP_INSTANCE)
        sop_class = commands.text(command, commands.AFFECTED_SOP_CLASS) or context.abstract_syntax
        self._place = place
        self.failure: Exception | None = None
        self.coming: Coming = place.begin(f"DIMSE {association.peer}")
        self.write(file_meta(sop_class, self.uid, context.transfer_syntax, association.peer_title))

    def write(self, data: bytes | memoryview, /) -> None:
        if self.failure is None:
            try:
                self.coming.write(data)
            except (OSError, HilumError) as failure:
                self.failure = failure

    def keep(self) -> Answer:
        """All has come.

        Raises:
            StoreFault, OSError: nothing more can be kept.
        """
        if self.failure is not None:
            self.coming.discard()
            raise self.failure
        return self._place.keep([self.coming])[0]


class Proposal(NamedTuple):
    """SOP classes to take on an association, and the transfer syntaxes of each, in groups of which the peer
    chooses one."""

    sop_classes: Sequence[str]
    syntaxes: Sequence[Sequence[str]]


class Getter:
    """An association by which objects are taken from a peer. Use release() at its end."""

    def __init__(
        self,
        caller: Caller,
        place: Place,
        sop_classes: Iterable[str],
        syntaxes: Sequence[Sequence[str]],
        on_answer: Callable[[Answer], None],
    ) -> None:
        """`sop_classes` are those of what will come, no more than there is room for; `syntaxes` are the
        transfer syntaxes of each, in groups of which the peer chooses one.

        Raises:
            Lost: there is no association.
        """
        self._caller = caller
        self._place = place
        self._on_answer = on_answer
        contexts = [peers.context(f"{root}.{_GET}", OWN_SYNTAXES[:2]) for root in (STUDY_ROOT, PATIENT_ROOT)]
        chosen = list(dict.fromkeys(sop_classes))
        contexts += [peers.context(sop_class, some) for sop_class in chosen for some in syntaxes]
        roles = [peers.role(sop_class, scu=False, scp=True) for sop_class in chosen]
        self.sop_classes = frozenset(chosen)
        self._association = caller.connect(contexts, roles)
        self._association.open_sink = self._open

    def _open(self, association: Association, context: Context, command: Command) -> Incoming:
        return Incoming(self._place, association, context, command)

    def fits(self, series: Series) -> bool:
        """Whether all of a series may come by this association, as far as anybody knows."""
        return self.sop_classes.issuperset(sop_class for _, sop_class in series.instances if sop_class)

    def get(
        self,
        wanted: Wanted,
        on_progress: Callable[[Progress], None],
        is_stopped: Callable[[], bool] = lambda: False,
    ) -> Done:
        """Take what a request asks for.

        Raises:
            Refused: the peer does nothing of it.
            Lost: the association is over.
            Unsupported: the peer does not offer it.
            StoreFault, OSError: nothing more can be kept.
        """
        context = _context_of(self._association, _GET, wanted)
        message_id = _request(self._association, context, Field.GET, wanted, {})
        done = _answers(self._caller, self._association, message_id, on_progress, self._take, is_stopped)
        return _judged(done)

    def _take(self, message: Message) -> None:
        incoming = message.sink
        if not isinstance(incoming, Incoming):
            self._association.respond(message, Status.UNRECOGNISED_OPERATION)
            return
        fields: Command = {commands.AFFECTED_SOP_INSTANCE: incoming.uid}
        try:
            answer = incoming.keep()
        except (OSError, HilumError) as failure:
            fields[commands.ERROR_COMMENT] = "it can't be kept"
            self._association.respond(message, Status.OUT_OF_RESOURCES, fields)
            self._association.break_off(f"nothing more can be kept: {failure}")
            raise
        answer = answer._replace(uid=answer.uid or incoming.uid)
        if answer.kept in (Kept.STORED, Kept.PRESENT):
            self._association.respond(message, Status.SUCCESS, fields)
        else:
            fields[commands.ERROR_COMMENT] = answer.words
            conflict = answer.kept == Kept.CONFLICT
            status = Status.DUPLICATE_INSTANCE if conflict else Status.CANNOT_UNDERSTAND
            self._association.respond(message, status, fields)
        self._on_answer(answer)

    def release(self) -> None:
        """Let go of the association, and of half an object."""
        sink = self._association.dul.abandon()
        if isinstance(sink, Incoming):
            sink.coming.discard()
        for message in self._association.inbox:
            if isinstance(message.sink, Incoming):
                message.sink.coming.discard()
        self._association.release()
        self._association.close()


class Fetcher:
    """Gets what a Fetch hands out, by one association in each thread that calls run()."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._lock = threading.Lock()
        self._busy = 0  # threads that have had an association

    def run(self, fetch: Fetch) -> None:
        """Get until nothing is left.

        Raises:
            Lost, Unsupported: there is no association to be had, or the peer offers no C-GET.
            StoreFault, OSError: nothing more can be kept.
        """
        session = _Session(self._caller, fetch)
        try:
            while (series := fetch.take()) is not None:
                try:
                    session.get(series)
                except Lost:
                    with self._lock:
                        others = self._busy
                    if session.had_one or not others:
                        raise
                    fetch.put_back(series)  # more associations than the peer takes; others go on
                    return
                with self._lock:
                    self._busy += 1
        finally:
            session.release()


class _Session:
    """One association after another, by which series are got."""

    def __init__(self, caller: Caller, fetch: Fetch) -> None:
        self._caller = caller
        self._fetch = fetch
        self._getter: Getter | None = None
        self.had_one = False

    def release(self) -> None:
        if self._getter is not None:
            self._getter.release()
            self._getter = None

    def get(self, series: Series) -> None:
        """Get a series, or what is wanted of it; raises as Fetcher.run()."""
        left: Series | None = series
        words = "the peer did not send it"
        proposals = _proposals(series)
        proposal: Proposal | None = None
        tries = 0
        while left is not None:
            if self._getter is None or proposal is not None or not self._getter.fits(left):
                proposal = proposal or next(proposals, None)
                if proposal is None:
                    break
                self.release()
                self._getter = Getter(self._caller, self._fetch.place, *proposal, self._fetch.answer)
                self.had_one = True
            try:
                done = self._ask(self._getter, left)
                if done.status == Status.CANCEL:
                    return
                words = f"the peer did not send it: {done.words}" if done.words else words
                proposal = next(proposals, None)
                if proposal is None:
                    break
            except Refused as failure:
                words = str(failure)
                break
            except Lost as failure:
                words = f"the association broke: {failure}"
                self.release()
                tries += 1
                if tries == _TRIES:
                    break
                proposals = _proposals(series)
                proposal = None
            left = self._fetch.rest(left)
        self._fetch.missed(series, words)

    def _ask(self, getter: Getter, series: Series) -> Done:
        """What the last request for a series has come to, or the first that something failed of."""
        done = None
        for wanted in _wanted_of(series):
            found = getter.get(wanted, lambda progress: None, lambda: self._fetch.is_stopped)
            done = done if done is not None and done.words else found
            if found.status == Status.CANCEL:
                return found
        assert done is not None
        return done


def _proposals(series: Series) -> Iterator[Proposal]:
    """What to propose for a series, one association after another: each of its SOP classes in each transfer
    syntax by itself, so that all can come as it is stored. Where the peer does not tell the classes, all
    that are known."""
    classes = sorted({sop_class for _, sop_class in series.instances if sop_class})
    syntaxes: Sequence[Sequence[str]] = [[syntax] for syntax in uids.file_syntaxes()]
    if not classes:
        classes = [str(found.abstract_syntax) for found in StoragePresentationContexts]
        compressed = [syntax for syntax in uids.file_syntaxes() if uids.is_encapsulated(syntax)]
        syntaxes = [OWN_SYNTAXES, [syntax for syntax in compressed if syntax not in _SELDOM]]
    room = (_CONTEXTS_MAX - len((STUDY_ROOT, PATIENT_ROOT))) // len(syntaxes)
    for at in range(0, len(classes), room):
        yield Proposal(classes[at : at + room], syntaxes)


def _wanted_of(series: Series) -> Iterator[Wanted]:
    """The requests for a series: as a whole, or by lists of its instances."""
    above: dict[int, Sequence[str]] = {STUDY: [series.study], SERIES: [series.series]}
    if series.is_whole:
        yield Wanted(SERIES, above)
        return
    for some in parted([uid for uid, _ in series.instances]):
        yield Wanted(INSTANCE, {**above, INSTANCE: some})
