"""Takes instances and an association with someone who stores; sends each by C-STORE, and says what the
other side answered. Data sets go as they are stored; one that is not taken so goes in another transfer
syntax, if nothing is lost by that. Never sends half an object as a whole one.

PS3.4 B.2.3, Statuses: 0000 is success; B000, B006, B007 and whatever else begins with B is taken with a
warning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import NamedTuple

from pynetdicom.presentation import PresentationContext

from hilum.dicom import uids
from hilum.dimse import command as commands
from hilum.dimse import peers
from hilum.dimse.command import Command, Field, Status
from hilum.dimse.services import OWN_SYNTAXES
from hilum.dimse.transport import Association, Context, Lost
from hilum.errors import BadDicom, HilumError, Unsupported

CONTEXTS_MAX = 128  # of one association: PS3.8 9.3.2.2
VERIFICATION = "1.2.840.10008.1.1"

Key = tuple[str, str]  # SOP class and transfer syntax


class Sent(NamedTuple):
    """What became of one instance."""

    status: int  # of the other side; -1: it was not asked
    words: str = ""

    @property
    def is_taken(self) -> bool:
        return self.status == Status.SUCCESS or self.status & 0xF000 == 0xB000


class Offer(NamedTuple):
    """Presentation contexts to propose, and for what."""

    contexts: list[PresentationContext]
    keys: frozenset[Key]


def offer(wanted: Iterable[Key], *, room: int = CONTEXTS_MAX) -> Offer:
    """Contexts for SOP classes in their transfer syntaxes, as many as one association has room for.

    Each class is proposed in each syntax by itself, so that the other side takes all that it can, and in
    those that everything can be turned into.
    """
    contexts: list[PresentationContext] = []
    keys: set[Key] = set()
    classes: set[str] = set()
    for sop_class, syntax in wanted:
        if (sop_class, syntax) in keys:
            continue
        if len(contexts) + 2 > room:
            break
        keys.add((sop_class, syntax))
        contexts.append(peers.context(sop_class, [syntax]))
        if sop_class not in classes:
            classes.add(sop_class)
            contexts.append(
                peers.context(sop_class, (uids.EXPLICIT_VR_LITTLE_ENDIAN, uids.IMPLICIT_VR_LITTLE_ENDIAN))
            )
    return Offer(contexts, frozenset(keys))


def accepted(association: Association) -> dict[str, dict[str, Context]]:
    """The contexts on which we may send, by SOP class and transfer syntax."""
    found: dict[str, dict[str, Context]] = {}
    for context in association.contexts.values():
        if not association.is_acceptor or context.as_scu:
            found.setdefault(context.abstract_syntax, {})[context.transfer_syntax] = context
    return found


def send(
    association: Association,
    offered: dict[str, Context],
    key: Key,
    uid: str,
    data_set: Callable[[], Iterator[bytes]],
    data_set_in: Callable[[str], Iterator[bytes]],
    *,
    seconds: float,
    originator: tuple[str, int] | None = None,
) -> Sent:
    """Send one instance; `offered` are the contexts of its SOP class, `data_set` and `data_set_in` give its
    bytes.

    Raises:
        Lost: the association is over.
    """
    try:
        context, pieces = _choose(key, offered, data_set, data_set_in)
        # What can't be read is found before the first byte goes out, or after the last of a large one.
        first = next(pieces, b"")
    except (HilumError, OSError) as failure:
        return Sent(-1, str(failure))
    command: Command = {
        commands.COMMAND_FIELD: Field.STORE,
        commands.AFFECTED_SOP_CLASS: key[0],
        commands.AFFECTED_SOP_INSTANCE: uid,
        commands.PRIORITY: 0,
        commands.DATA_SET_TYPE: commands.HAS_DATA_SET,
    }
    if originator is not None:
        command[commands.ORIGINATOR_AE], command[commands.ORIGINATOR_ID] = originator
    try:
        answer = association.ask(context, command, chain((first,), pieces), seconds=seconds)
    except (HilumError, OSError) as failure:
        if isinstance(failure, Lost):
            raise
        # Half of it has gone out: the other side must not take it for whole.
        words = f"{uid} can't be read: {failure}"
        association.break_off(words)
        raise Lost(words) from failure
    return Sent(commands.number(answer, commands.STATUS), commands.text(answer, commands.ERROR_COMMENT))


def _choose(
    key: Key,
    offered: dict[str, Context],
    data_set: Callable[[], Iterator[bytes]],
    data_set_in: Callable[[str], Iterator[bytes]],
) -> tuple[Context, Iterator[bytes]]:
    """The context to use, and the data set in its transfer syntax."""
    stored = key[1]
    if stored in offered:
        pieces = data_set()
        return offered[stored], _even(pieces) if uids.is_deflated(stored) else pieces
    if not offered:
        raise Unsupported(f"the peer does not take {uids.name_of(key[0]) or key[0]}")
    from hilum.pixels import transcode

    why = ""
    for syntax in (*OWN_SYNTAXES, *offered):
        if syntax not in offered or not transcode.can_encode(syntax):
            continue
        try:
            pieces = data_set_in(syntax)
            first = next(pieces, b"")
        except (Unsupported, BadDicom) as failure:
            why = f" ({failure})"
            continue
        return offered[syntax], chain((first,), pieces)
    raise Unsupported(
        f"the peer takes no transfer syntax that {uids.name_of(stored) or stored} can be turned into{why}"
    )


def _even(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Bytes, and one more where they are odd: PS3.5 A.5 has a deflated data set padded so, and a fragment
    of a PDV must be even."""
    length = 0
    for piece in pieces:
        length += len(piece)
        yield piece
    if length % 2:
        yield b"\0"
