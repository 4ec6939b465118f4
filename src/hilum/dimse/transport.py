"""Takes a connected socket; gives whole DIMSE messages and sends them. The only module that changes how
pynetdicom behaves.

pynetdicom's negotiation, PDUs of associations and its state machine (PS3.8 9.2, State Machine) are used as
they are. Four things are done in another way, by subclasses; each is measured in benchmarks/bench_dimse.py:

- *One thread for an association.* pynetdicom has two, which poll in turns with sleeps of a millisecond
  between them: three hops and a sleep for each message. Here the association's own thread reads, drives the
  state machine, serves the request and writes.
- *TCP_QUICKACK before each wait.* A sender with Nagle's algorithm (DCMTK's default, and that of many
  modalities) holds its next small write back until we acknowledge the last; the kernel would take 40 ms for
  that. It forgets the option, so it is set again each time.
- *P-DATA is taken from the buffer as it lies*, and given straight to whoever collects the data set.
  pynetdicom reads 4 KiB at a time and copies each fragment five times. What the state machine says of P-DATA
  (DT-1, DT-2, AR-6, AR-7) holds.
- *Commands are plain dicts* (command.py), not pydicom data sets with validation: 20 µs, not 700.

Nothing is decoded here but commands. Not thread-safe: an association belongs to one thread.
"""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import ssl
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from struct import Struct
from typing import Any, NamedTuple, Protocol

from pynetdicom import evt
from pynetdicom.ae import ApplicationEntity
from pynetdicom.association import Association as StandardAssociation
from pynetdicom.dul import DULServiceProvider
from pynetdicom.fsm import TRANSITION_TABLE, InvalidEventError
from pynetdicom.pdu import P_DATA_TF
from pynetdicom.pdu_primitives import A_ASSOCIATE
from pynetdicom.presentation import PresentationContext
from pynetdicom.transport import AddressInformation, AssociationSocket

from hilum.dimse import command as commands
from hilum.dimse.command import Command
from hilum.errors import BadDicom, HilumError

SEND_MAX = 128 << 10  # that we send to a peer that sets no limit
_TOLERATED_MAX = 4 << 20  # that we take: some senders don't look at what we say
_BUFFER_MIN = 16 << 10
_SEND_BUFFER = 256 << 10
_INBOX_MAX = 32  # messages of a peer that does not wait for answers
_LINGER_SECONDS = 2.0  # for the peer to close, after the last PDU
_DATA_MAX = 16 << 20  # bytes of an identifier

_P_DATA = 0x04
_PDU_HEADER = Struct(">BBI")
_PDV_HEADER = Struct(">IBB")
_HEADERS = Struct(">BBIIBB")  # both, of a PDU with one PDV
_QUICKACK = getattr(socket, "TCP_QUICKACK", None)  # of Linux

_log = logging.getLogger("hilum.dimse")


class Lost(HilumError):
    """The association is over: the peer went, broke the protocol or took too long."""


class NothingAccepted(Lost):
    """The peer agreed to an association, and to none of its presentation contexts."""


class Sink(Protocol):
    """Takes the data set of a message as it comes."""

    def write(self, data: memoryview, /) -> None: ...


class Collected:
    """A data set in memory: an identifier, or what an action is about."""

    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data: memoryview, /) -> None:
        if len(self.data) + len(data) > _DATA_MAX:
            raise BadDicom(f"an identifier of more than {_DATA_MAX} bytes")
        self.data += data


class Context(NamedTuple):
    """A presentation context that both agreed on."""

    id: int
    abstract_syntax: str
    transfer_syntax: str
    as_scu: bool
    as_scp: bool


class Message(NamedTuple):
    """One DIMSE message that came in whole."""

    context: Context
    command: Command
    sink: Sink | None  # what took its data set

    @property
    def id(self) -> int:
        return commands.number(self.command, commands.MESSAGE_ID)

    @property
    def field(self) -> int:
        return commands.number(self.command, commands.COMMAND_FIELD)

    def text(self, element: int) -> str:
        return commands.text(self.command, element)

    def number(self, element: int) -> int:
        return commands.number(self.command, element)

    @property
    def data(self) -> bytes:
        return bytes(self.sink.data) if isinstance(self.sink, Collected) else b""


# Takes the association, context and command of a message with a data set; gives what takes the data set.
OpenSink = Callable[["Association", Context, Command], Sink]


class Connection(AssociationSocket):
    """pynetdicom's socket of an association, which writes without slices and without Nagle's algorithm."""

    def __init__(
        self,
        owner: Association,
        client_socket: socket.socket | None = None,
        address: AddressInformation | None = None,
    ) -> None:
        super().__init__(owner, client_socket, address)
        self._owner = owner

    def send(self, bytestream: bytes | bytearray | memoryview) -> None:
        try:
            if self.socket is not None:
                self.socket.sendall(bytestream)
                return
        except (OSError, ValueError):
            pass
        self.event_queue.put("Evt17")

    def connect(self, primitive: Any) -> None:
        """As pynetdicom's, but that TLS begins on a connection, and that a failure is kept in words."""
        assert self.socket is not None
        address = primitive.address_info
        try:
            self.socket.settimeout(self.assoc.connection_timeout)
            self.socket.connect(address.as_tuple)
            if self.tls_args:
                context, name = self.tls_args
                self.socket = context.wrap_socket(self.socket, server_hostname=name)
        except OSError as failure:
            self._owner.reason = _why_no_connection(failure, address, self.assoc.connection_timeout)
            self._shutdown_socket()
            self.socket = None
            primitive.result = "Evt17"
        else:
            tune(self.socket, self.assoc.network_timeout)
            self.assoc.requestor.address_info = AddressInformation.from_tuple(self.socket.getsockname())
            self._is_connected = True
            primitive.result = "Evt2"
        self.provider_queue.put(primitive)
        self._ready.set()

    def _shutdown_socket(self) -> None:
        """Close it, though it was never connected."""
        if self.socket is not None:
            with contextlib.suppress(OSError):
                self.socket.shutdown(socket.SHUT_RDWR)
            self.socket.close()


def _why_no_connection(failure: OSError, address: AddressInformation, seconds: float | None) -> str:
    place = f"{address.address} port {address.port}"
    if isinstance(failure, ConnectionRefusedError):
        return f"connection refused: nothing listens at {place}"
    if isinstance(failure, TimeoutError):
        return (
            f"no connection with {place} within {seconds:g} s" if seconds else f"no connection with {place}"
        )
    if isinstance(failure, ssl.SSLCertVerificationError):
        return f"its certificate is not believed: {failure.verify_message}"
    if isinstance(failure, ssl.SSLError | ConnectionResetError):
        return f"no TLS with {place}: {getattr(failure, 'reason', '') or failure.strerror}"
    return f"no connection with {place}: {failure.strerror or failure}"


def tune(connected: socket.socket, idle_seconds: float | None) -> None:
    """Set what every connection of ours has."""
    with contextlib.suppress(OSError):
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connected.settimeout(idle_seconds)


class Provider(DULServiceProvider):
    """pynetdicom's upper layer without its thread: pump() does a turn of what its reactor does."""

    def __init__(self, assoc: Association) -> None:
        super().__init__(assoc)
        self._owner = assoc
        self._buffer = bytearray(_BUFFER_MIN)
        self._begin = self._end = 0
        self._command = bytearray()
        self._open: tuple[Context, Command, Sink] | None = None

    # What pynetdicom calls.

    def start(self) -> None:
        self._idle_timer.start()
        self._owner._dul_ready.set()
        self.drive()

    def is_alive(self) -> bool:
        return False

    def send_pdu(self, primitive: Any) -> None:
        super().send_pdu(primitive)
        self.drive()

    def receive_pdu(self, wait: bool = False, timeout: float | None = None) -> Any:
        deadline = None if timeout is None else time.monotonic() + timeout
        while wait and self.to_user_queue.empty() and self.state != "Sta1":
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                break
            self.pump(left)
        return super().receive_pdu(wait=False)

    # What there is instead of the reactor.

    @property
    def state(self) -> str:
        return str(self.state_machine.current_state)

    def drive(self) -> None:
        """Let the state machine act on all that has happened.

        Raises:
            Lost: something happened that must not in this state.
        """
        try:
            while not (self.state == "Sta1" and self._kill_thread):  # what comes after the end is no event
                if not self.event_queue.empty():
                    self.state_machine.do_action(self.event_queue.get(block=False))
                elif not self._process_recv_primitive():
                    return
        except InvalidEventError as failure:
            self._kill_thread = True
            raise Lost(str(failure)) from None

    def pump(self, seconds: float | None) -> bool:
        """Wait at most so long for bytes of the peer, and act on what has come. False: nothing has."""
        if self.artim_timer.expired:
            self.event_queue.put("Evt18")
            self.drive()
            return True
        owner = self.socket
        connected = owner.socket if owner is not None else None
        if connected is None:
            return False
        if not self._wait(connected, seconds):
            return False
        if len(self._buffer) - self._end < 4096:
            self._make_room(_BUFFER_MIN)
        try:
            with memoryview(self._buffer) as view:
                count = connected.recv_into(view[self._end :])
        except (TimeoutError, ssl.SSLWantReadError):
            return False
        except (OSError, ValueError):
            count = 0
        if not count:
            self.event_queue.put("Evt17")
            self.drive()
            return True
        self._end += count
        self._idle_timer.restart()
        self._act()
        return True

    def _wait(self, connected: socket.socket, seconds: float | None) -> bool:
        if isinstance(connected, ssl.SSLSocket) and connected.pending():
            return True
        if _QUICKACK is not None:
            with contextlib.suppress(OSError):
                connected.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)
        if self.artim_timer._start_time is not None and self.artim_timer._end_time is None:
            left = max(0.0, self.artim_timer.remaining)
            seconds = left if seconds is None else min(seconds, left)
        poll = select.poll()
        try:
            poll.register(connected, select.POLLIN)
        except (OSError, ValueError):
            return True  # it is closed, which reading will say
        number = connected.fileno()
        if self._owner.stop_fd >= 0 and not self._owner.asked_to_stop and seconds != 0:
            poll.register(self._owner.stop_fd, select.POLLIN)
        ready = [fd for fd, _ in poll.poll(None if seconds is None else max(0, int(seconds * 1000 + 0.999)))]
        if self._owner.stop_fd in ready:
            self._owner.asked_to_stop = True
        return number in ready

    def _make_room(self, size: int) -> None:
        """Have at least so many bytes behind those that were read."""
        kept = self._buffer[self._begin : self._end]
        if len(kept) + size > len(self._buffer):
            self._buffer = bytearray(len(kept) + size)
        self._buffer[: len(kept)] = kept
        self._begin, self._end = 0, len(kept)

    def _act(self) -> None:
        """Act on each whole PDU in the buffer."""
        while self._end - self._begin >= 6 and self.state != "Sta1":
            kind, _, length = _PDU_HEADER.unpack_from(self._buffer, self._begin)
            if not 1 <= kind <= 7 or length > _TOLERATED_MAX:
                self._refuse(f"PDU of type {kind} and {length} bytes")
                return
            end = self._begin + 6 + length
            if end > self._end:
                if end > len(self._buffer):
                    # Two at once where there is room: the sender need not wait while one is looked at.
                    self._make_room(2 * (6 + length) - (self._end - self._begin))
                return
            begin, self._begin = self._begin, end
            try:
                if kind == _P_DATA and TRANSITION_TABLE.get(("Evt10", self.state)) in ("DT-2", "AR-6"):
                    with memoryview(self._buffer) as view, view[begin + 6 : end] as body:
                        self._take(body)
                    continue
                pdu, event = (
                    (P_DATA_TF(), "Evt10") if kind == _P_DATA else self._decode_pdu(self._buffer[begin:end])
                )
            except BadDicom as failure:
                self._refuse(failure.reason)
                return
            except Exception as failure:  # of pynetdicom's decoders, of any kind
                self._refuse(f"PDU of type {kind} that can't be read: {type(failure).__name__}")
                return
            self._recv_pdu.put(pdu)
            self.event_queue.put(event)
            self.drive()
        if self._begin == self._end:
            self._begin = self._end = 0

    def _refuse(self, words: str) -> None:
        """PS3.8 9.2: an unrecognised or invalid PDU, which ends the association."""
        self._owner.reason = self._owner.reason or words
        self._begin = self._end = 0
        self.event_queue.put("Evt19")
        self.drive()

    def _take(self, body: memoryview) -> None:
        """The PDVs of one P-DATA-TF: PS3.8 9.3.5, P-DATA-TF PDU Structure, and E.2, Message Control
        Header."""
        at, end = 0, len(body)
        while at < end:
            if end - at < 6:
                raise BadDicom("a P-DATA PDU ends inside the head of a PDV")
            length, context_id, control = _PDV_HEADER.unpack_from(body, at)
            if length < 2 or length > end - at - 4:
                raise BadDicom("a PDV runs past the end of its PDU")
            with body[at + 6 : at + 4 + length] as data:
                if control & 1:
                    self._take_command(context_id, data, last=bool(control & 2))
                else:
                    self._take_data(data, last=bool(control & 2))
            at += 4 + length

    def _take_command(self, context_id: int, data: memoryview, *, last: bool) -> None:
        if self._open is not None:
            raise BadDicom("a command comes before the data set of the last one has ended")
        self._command += data
        if len(self._command) > commands.COMMAND_BYTES_MAX:
            raise BadDicom("a command set without end")
        if not last:
            return
        command = commands.parse(self._command)
        self._command.clear()
        context = self._owner.contexts.get(context_id)
        if context is None:
            raise BadDicom(f"a message on presentation context {context_id}, which was not accepted")
        if command.get(commands.DATA_SET_TYPE) == commands.NO_DATA_SET:
            self._owner.take(Message(context, command, None))
        else:
            self._open = context, command, self._owner.open_sink(self._owner, context, command)

    def _take_data(self, data: memoryview, *, last: bool) -> None:
        if self._open is None:
            raise BadDicom("a data set without a command")
        context, command, sink = self._open
        sink.write(data)
        if last:
            self._open = None
            self._owner.take(Message(context, command, sink))

    def abandon(self) -> Sink | None:
        """The data set that was coming in, which will never be whole."""
        found, self._open = self._open, None
        return found[2] if found is not None else None


def _collect(association: Association, context: Context, command: Command) -> Sink:
    return Collected()


class Association(StandardAssociation):
    """An association on the thread that uses it."""

    def __init__(
        self,
        ae: ApplicationEntity,
        mode: str,
        *,
        open_sink: OpenSink = _collect,
        stop_fd: int = -1,
    ) -> None:
        super().__init__(ae, mode)
        self.dul: Provider = Provider(self)
        self.acse_timeout = ae.acse_timeout
        self.network_timeout = ae.network_timeout
        self.open_sink = open_sink
        self.stop_fd = stop_fd  # readable when it is time to stop
        self.inbox: deque[Message] = deque()
        self.cancelled: set[int] = set()
        self.contexts: dict[int, Context] = {}
        self.extended: dict[str, bytes] = {}  # SOP class → what was agreed by extended negotiation
        self.tally: Counter[str] = Counter()
        self.reason = ""  # why it ended badly
        self.asked_to_stop = False  # stop_fd was readable
        self._fragment_max = SEND_MAX
        self._next_id = 0

    def _bind_defaults(self) -> None:
        """Handlers of extended negotiation, and none that log each PDU."""
        for event in (evt.EVT_SOP_EXTENDED, evt.EVT_SOP_COMMON, evt.EVT_USER_ID, evt.EVT_ASYNC_OPS):
            self._handlers[event] = (evt.get_default_handler(event), None)

    @property
    def peer(self) -> str:
        """Who it is, for the log: "MODALITY@10.0.0.7"."""
        user = self.requestor if self.is_acceptor else self.acceptor
        address = user.address_info.address if user.address_info is not None else "?"
        return f"{self.peer_title or '?'}@{address}"

    @property
    def peer_title(self) -> str:
        title = self.requestor.ae_title if self.is_acceptor else self.acceptor.ae_title
        return str(title or "").strip()

    # Beginning.

    def accept(self, connected: socket.socket, address: Any, title: str) -> None:
        """Take a connection that came in; negotiation is the next."""
        self.set_socket(Connection(self, client_socket=connected))
        self.acceptor.maximum_length = self.ae.maximum_pdu_size
        self.acceptor.ae_title = title
        self.acceptor.address_info = AddressInformation.from_tuple(connected.getsockname()[:2])
        self.acceptor.implementation_class_uid = self.ae.implementation_class_uid
        self.acceptor.implementation_version_name = self.ae.implementation_version_name
        self.requestor.address_info = AddressInformation.from_tuple(address[:2])

    def wait_for_request(self) -> A_ASSOCIATE | None:
        """The A-ASSOCIATE request, None if none comes in time."""
        self.dul.start()
        while self.dul.to_user_queue.empty() and self.dul.state != "Sta1":
            self.dul.pump(self.acse_timeout)
            if self.asked_to_stop:
                return None
        found = self.dul.receive_pdu()
        if not isinstance(found, A_ASSOCIATE):
            return None
        self.requestor.primitive = found
        self.requestor.ae_title = found.calling_ae_title
        return found

    def connect(self, contexts: Iterable[PresentationContext]) -> None:
        """Request an association, as its requestor. Addresses and titles are set.

        Raises:
            Lost: it was not accepted; the words say by whom and why.
        """
        wanted = list(contexts)
        for index, context in enumerate(wanted):
            context.context_id = 2 * index + 1
        self.requestor.requested_contexts = wanted
        with contextlib.suppress(Lost):
            self.request()
        if not self.is_established:
            reason, is_agreed = self._why_not(), bool(self._rejected_cx)
            self.close()
            raise (NothingAccepted if is_agreed else Lost)(reason)
        self.agreed()

    def _why_not(self) -> str:
        answer = self.acceptor.primitive
        if isinstance(answer, A_ASSOCIATE):
            if answer.result:
                for_now = " for now" if answer.result == 2 else ""
                return f"the association was rejected{for_now}: {answer.reason_str}"
            return "it takes nothing of what was proposed"
        if self.reason:
            return self.reason
        if self._sent_abort:
            return f"no answer to the request for an association within {self.acse_timeout:g} s"
        return "it broke off before an association was agreed; is this a DICOM port, with TLS or without?"

    def agreed(self) -> None:
        """Negotiation is over: keep what came of it."""
        for found in self._accepted_cx.values():
            if found.context_id is not None and found.abstract_syntax is not None:
                self.contexts[found.context_id] = Context(
                    found.context_id,
                    str(found.abstract_syntax),
                    str(found.transfer_syntax[0]),
                    bool(found.as_scu),
                    bool(found.as_scp),
                )
        theirs = self.acceptor.maximum_length if self.is_requestor else self.requestor.maximum_length
        # A limit counts what is behind the head of the PDU: 4 bytes of length, context and control come
        # first. A fragment has an even number of bytes: PS3.8 E.2.
        self._fragment_max = max(16, min(theirs or SEND_MAX, SEND_MAX)) - 6 & ~1

    # Messages.

    def take(self, message: Message) -> None:
        """A message has come whole."""
        if message.field == commands.Field.CANCEL:
            self.cancelled.add(message.number(commands.RESPONDED_TO))
            return
        if self.is_acceptor and len(self.inbox) >= _INBOX_MAX:
            raise BadDicom(f"more than {_INBOX_MAX} requests at once")
        self.inbox.append(message)

    def next_message(self, seconds: float) -> Message:
        """The next message of the peer.

        Raises:
            Lost: the association is over, or none came in time; it is aborted then.
        """
        deadline = time.monotonic() + seconds
        while not self.inbox:
            self.check()
            left = deadline - time.monotonic()
            if left <= 0:
                self.break_off(f"no answer within {seconds:g} s")
                raise Lost(f"no answer within {seconds:g} s")
            self.dul.pump(left)
        return self.inbox.popleft()

    def check(self) -> None:
        """Raise Lost if the association is over."""
        if self.dul.state != "Sta6" or not self.is_established:
            raise Lost(self.reason or "the peer has gone")

    def is_cancelled(self, message_id: int) -> bool:
        """Whether the peer has asked to stop, as far as it has been heard."""
        if message_id not in self.cancelled:
            self.dul.pump(0)
        return message_id in self.cancelled

    def send(
        self, context_id: int, command: Mapping[int, commands.Value], pieces: Iterable[bytes] = ()
    ) -> None:
        """Send a message; `pieces` are its data set, of any sizes.

        Raises:
            Lost: the association is over.
        """
        self.write(self.pdus(context_id, command, pieces))

    def write(self, pdus: Iterable[bytes | bytearray | memoryview]) -> None:
        """Send P-DATA PDUs that lie in parts, in writes of a good size: DT-1 and AR-7 of the state
        machine."""
        out = bytearray()
        for part in pdus:
            out += part
            if len(out) >= _SEND_BUFFER:
                self._send(out)
                out = bytearray()
        if out:
            self._send(out)

    def _send(self, data: bytearray) -> None:
        if TRANSITION_TABLE.get(("Evt9", self.dul.state)) not in ("DT-1", "AR-7"):
            raise Lost(self.reason or "the peer has gone")
        connection = self.dul.socket
        assert isinstance(connection, Connection)
        connection.send(data)
        if not self.dul.event_queue.empty():
            self.reason = self.reason or "the peer takes nothing"
            self.dul.drive()
            raise Lost(self.reason)

    def pdus(
        self, context_id: int, command: Mapping[int, commands.Value], pieces: Iterable[bytes] = ()
    ) -> Iterable[bytes | memoryview]:
        """The parts of a message's PDUs, heads and fragments in turn: PS3.8 9.3.5 and D.1."""
        yield from self.command_pdus(context_id, command)
        if command[commands.DATA_SET_TYPE] != commands.NO_DATA_SET:
            yield from self.data_pdus(context_id, pieces)

    def command_pdus(
        self, context_id: int, command: Mapping[int, commands.Value]
    ) -> Iterable[bytes | memoryview]:
        return self._fragments(context_id, 1, [commands.write(command)], self._fragment_max)

    def data_pdus(self, context_id: int, pieces: Iterable[bytes]) -> Iterable[bytes | memoryview]:
        return self._fragments(context_id, 0, pieces, self._fragment_max)

    @staticmethod
    def _fragments(
        context_id: int, control: int, pieces: Iterable[bytes], size: int
    ) -> Iterable[bytes | memoryview]:
        """A fragment is known to be the last only when nothing comes behind it, so one is held back."""
        held: list[bytes | memoryview] = []
        count = 0
        for piece in pieces:
            view = memoryview(piece)
            while view:
                if count == size:
                    yield _HEADERS.pack(_P_DATA, 0, count + 6, count + 2, context_id, control)
                    yield from held
                    held, count = [], 0
                part, view = view[: size - count], view[size - count :]
                held.append(part)
                count += len(part)
        yield _HEADERS.pack(_P_DATA, 0, count + 6, count + 2, context_id, control | 2)
        yield from held

    def response(
        self,
        message: Message,
        status: int,
        fields: Mapping[int, commands.Value] | None = None,
        *,
        data: bool = False,
    ) -> Command:
        """The command set of an answer to a request."""
        answer: Command = {
            commands.COMMAND_FIELD: message.field | commands.RESPONSE,
            commands.RESPONDED_TO: message.id,
            commands.DATA_SET_TYPE: commands.HAS_DATA_SET if data else commands.NO_DATA_SET,
            commands.STATUS: status,
        }
        if sop_class := message.text(commands.AFFECTED_SOP_CLASS) or message.text(
            commands.REQUESTED_SOP_CLASS
        ):
            answer[commands.AFFECTED_SOP_CLASS] = sop_class
        if fields:
            answer.update(fields)
        return answer

    def respond(
        self,
        message: Message,
        status: int,
        fields: Mapping[int, commands.Value] | None = None,
        *,
        data: bytes | None = None,
    ) -> None:
        """Answer a request."""
        answer = self.response(message, status, fields, data=data is not None)
        self.send(message.context.id, answer, [data] if data is not None else ())

    def new_message_id(self) -> int:
        self._next_id = self._next_id % 0xFFFF + 1
        return self._next_id

    def ask(
        self,
        context: Context,
        command: Command,
        pieces: Iterable[bytes] = (),
        *,
        seconds: float | None = None,
    ) -> Command:
        """Send a request and wait for its answer, while requests of the peer wait in the inbox.

        Raises:
            Lost: the association is over, or there is no answer in time; it is aborted then.
        """
        message_id = self.new_message_id()
        self.send(context.id, {**command, commands.MESSAGE_ID: message_id}, pieces)
        deadline = None if seconds is None else time.monotonic() + seconds
        while True:
            for index, found in enumerate(self.inbox):
                if found.field & commands.RESPONSE and found.number(commands.RESPONDED_TO) == message_id:
                    del self.inbox[index]
                    return found.command
            self.check()
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                self.break_off("no answer in time")
                raise Lost("no answer in time")
            self.dul.pump(left)

    # End.

    def release_answered(self) -> bool:
        """Answer the peer's request to release, if there is one."""
        if not self.acse.is_release_requested():
            return False
        self.acse.send_release(is_response=True)
        self.is_released, self.is_established = True, False
        return True

    def release(self) -> None:
        """Release the association, as its requestor."""
        with contextlib.suppress(Lost):
            if self.is_established and self.dul.state == "Sta6":
                self.acse.negotiate_release()

    def break_off(self, reason: str) -> None:
        """End the association with an A-ABORT."""
        self.reason = self.reason or reason
        if self._sent_abort or self.dul.state in ("Sta1", "Sta13"):
            return
        self._sent_abort = True
        with contextlib.suppress(Lost):
            self.acse.send_abort(0x00)

    def _abort_blocking(self, block: bool = True) -> None:
        self.break_off("")  # what pynetdicom's own abort() calls

    def close(self) -> None:
        """Let the connection go. After the last PDU the peer is given time to close first, since what
        it has sent and nobody reads would make the kernel take back what it has not read."""
        with contextlib.suppress(Lost):
            deadline = time.monotonic() + _LINGER_SECONDS
            while self.dul.state == "Sta13" and (left := deadline - time.monotonic()) > 0:
                if not self.dul.pump(left):
                    break
        connection = self.dul.socket
        if connection is not None and connection.socket is not None:
            with contextlib.suppress(OSError):
                connection.socket.close()
            connection.socket = None
            connection._is_connected = False
