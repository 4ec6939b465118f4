"""The table of services: which SOP classes each has, what it agrees to, who serves its requests. Knows no
rule of any of them; a further service is a module and a line in server.py."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from pynetdicom.ae import ApplicationEntity
from pynetdicom.presentation import PresentationContext

from hilum.api import Store
from hilum.dicom import uids
from hilum.dimse import command as commands
from hilum.dimse.command import Command, Status
from hilum.dimse.options import DimseSettings
from hilum.dimse.transport import Association, Collected, Context, Lost, Message, Sink
from hilum.errors import HilumError

_log = logging.getLogger("hilum.dimse")

# What a data set of ours is written in, the best first.
OWN_SYNTAXES = (
    uids.EXPLICIT_VR_LITTLE_ENDIAN,
    uids.IMPLICIT_VR_LITTLE_ENDIAN,
    uids.EXPLICIT_VR_BIG_ENDIAN,
    uids.DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
)

Handler = Callable[["Node", Association, Message], None]


@dataclass(frozen=True, slots=True)
class Service:
    """One service class, as its SCP."""

    has: Callable[[str, DimseSettings], bool]  # whether a SOP class is one of it
    handlers: Mapping[int, Handler]  # by Command Field
    any_syntax: bool = False  # data sets are not read here, so any transfer syntax is good
    both_roles: bool = False  # the one who asks may be its SCP
    open_sink: Callable[[Node, Association, Context, Command], Sink] | None = None
    extended: Callable[[bytes], bytes] | None = None  # what we say to application information


@dataclass(slots=True)
class Node:
    """What all associations of a process share."""

    store: Store
    settings: DimseSettings
    services: Sequence[Service]
    entity: ApplicationEntity
    stop_fd: int = -1
    held: int = 0  # bytes of data sets in memory
    lock: threading.Lock = field(default_factory=threading.Lock)
    wake_reporter: Callable[[], None] = lambda: None  # there is a report to send

    def service_of(self, sop_class: str) -> Service | None:
        return next((service for service in self.services if service.has(sop_class, self.settings)), None)

    def open_sink(self, association: Association, context: Context, command: Command) -> Sink:
        service = self.service_of(context.abstract_syntax)
        is_ours = service is not None and commands.number(command, commands.COMMAND_FIELD) in service.handlers
        if is_ours and service is not None and service.open_sink is not None:
            return service.open_sink(self, association, context, command)
        return Collected()

    def supported(
        self, wanted: Sequence[PresentationContext], stated_storage: frozenset[str]
    ) -> list[PresentationContext]:
        """What we support of what is asked for; `stated_storage` are SOP classes that the peer calls
        storage."""
        found: dict[str, PresentationContext] = {}
        for context in wanted:
            sop_class = str(context.abstract_syntax)
            service = self.service_of(sop_class)
            if service is None and sop_class in stated_storage:
                service = next(known for known in self.services if known.any_syntax)
            if service is None:
                continue
            made = found.get(sop_class)
            if made is None:
                made = found[sop_class] = PresentationContext()
                made.abstract_syntax = context.abstract_syntax
                if service.both_roles:
                    made.scu_role = made.scp_role = True
            proposed = [syntax for syntax in context.transfer_syntax if syntax not in made.transfer_syntax]
            if service.any_syntax:
                # In the order of the one who asks, but that explicit VR goes before what has none or turns
                # bytes round.
                proposed.sort(key=_rank)
            else:
                proposed = [syntax for own in OWN_SYNTAXES for syntax in proposed if syntax == own]
            made.transfer_syntax = [*made.transfer_syntax, *proposed]
        return [made for made in found.values() if made.transfer_syntax]


_LAST = (uids.IMPLICIT_VR_LITTLE_ENDIAN, uids.EXPLICIT_VR_BIG_ENDIAN)


def _rank(syntax: str) -> int:
    return _LAST.index(syntax) + 1 if syntax in _LAST else 0


def serve(node: Node, association: Association, message: Message) -> None:
    """Serve one request.

    Raises:
        Lost: the association is over.
    """
    if message.field & commands.RESPONSE:
        _log.warning("%s: an answer that nobody waits for", association.peer)
        return
    service = node.service_of(message.context.abstract_syntax) or next(
        s for s in node.services if s.any_syntax
    )
    handler = service.handlers.get(message.field)
    if handler is None:
        _log.warning(
            "%s: command 0x%04X is not offered on this presentation context", association.peer, message.field
        )
        association.respond(message, Status.UNRECOGNISED_OPERATION)
        return
    try:
        handler(node, association, message)
    except Lost:
        raise
    except HilumError as failure:
        _log.warning("%s: %s", association.peer, failure)
        association.respond(message, Status.UNABLE_TO_PROCESS, {commands.ERROR_COMMENT: str(failure)})
    except Exception as failure:  # a mistake of ours must not end the server, nor leave the peer waiting
        _log.error("%s: %s: %s", association.peer, type(failure).__name__, failure, exc_info=failure)
        association.respond(message, Status.PROCESSING_FAILURE)
