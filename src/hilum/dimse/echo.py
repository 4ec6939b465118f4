"""C-ECHO: says that it is there. PS3.4 A, Verification Service Class."""

from __future__ import annotations

from hilum.dimse.command import Field, Status
from hilum.dimse.options import DimseSettings
from hilum.dimse.services import Node, Service
from hilum.dimse.transport import Association, Message

VERIFICATION = "1.2.840.10008.1.1"


def _has(sop_class: str, settings: DimseSettings) -> bool:
    return sop_class == VERIFICATION


def _echo(node: Node, association: Association, message: Message) -> None:
    association.respond(message, Status.SUCCESS)
    association.tally["echoes"] += 1


SERVICE = Service(_has, {Field.ECHO: _echo})
