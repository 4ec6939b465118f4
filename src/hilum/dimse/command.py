"""Takes and gives command sets, the first half of each DIMSE message, as plain dicts. Pure; knows no network.

PS3.7 6.3.1, Command Set Structure: Implicit VR Little Endian, elements of group 0000 alone. A command is a
dict from the element number to int, str or a list of tags; what the Standard does not name there is read
over.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from struct import Struct, error, pack

from hilum.errors import BadDicom

Value = int | str | list[int]
Command = dict[int, Value]

# Elements of group 0000, PS3.7 E.1, Registry of DICOM Command Elements.
GROUP_LENGTH = 0x0000
AFFECTED_SOP_CLASS = 0x0002
REQUESTED_SOP_CLASS = 0x0003
COMMAND_FIELD = 0x0100
MESSAGE_ID = 0x0110
RESPONDED_TO = 0x0120  # Message ID Being Responded To
MOVE_DESTINATION = 0x0600
PRIORITY = 0x0700
DATA_SET_TYPE = 0x0800
STATUS = 0x0900
OFFENDING_ELEMENT = 0x0901
ERROR_COMMENT = 0x0902
ERROR_ID = 0x0903
AFFECTED_SOP_INSTANCE = 0x1000
REQUESTED_SOP_INSTANCE = 0x1001
EVENT_TYPE = 0x1002
ATTRIBUTE_LIST = 0x1005
ACTION_TYPE = 0x1008
REMAINING = 0x1020  # Number of Remaining Sub-operations, and so on
COMPLETED = 0x1021
FAILED = 0x1022
WARNED = 0x1023
ORIGINATOR_AE = 0x1030  # Move Originator Application Entity Title
ORIGINATOR_ID = 0x1031  # Move Originator Message ID

_UI, _AE, _LO, _US, _UL, _AT = range(6)
_KINDS = {
    GROUP_LENGTH: _UL,
    AFFECTED_SOP_CLASS: _UI,
    REQUESTED_SOP_CLASS: _UI,
    COMMAND_FIELD: _US,
    MESSAGE_ID: _US,
    RESPONDED_TO: _US,
    MOVE_DESTINATION: _AE,
    PRIORITY: _US,
    DATA_SET_TYPE: _US,
    STATUS: _US,
    OFFENDING_ELEMENT: _AT,
    ERROR_COMMENT: _LO,
    ERROR_ID: _US,
    AFFECTED_SOP_INSTANCE: _UI,
    REQUESTED_SOP_INSTANCE: _UI,
    EVENT_TYPE: _US,
    ATTRIBUTE_LIST: _AT,
    ACTION_TYPE: _US,
    REMAINING: _US,
    COMPLETED: _US,
    FAILED: _US,
    WARNED: _US,
    ORIGINATOR_AE: _AE,
    ORIGINATOR_ID: _US,
}


class Field(IntEnum):
    """Command Field (0000,0100) of requests; a response has the highest bit set too."""

    STORE = 0x0001
    GET = 0x0010
    FIND = 0x0020
    MOVE = 0x0021
    ECHO = 0x0030
    EVENT_REPORT = 0x0100
    N_GET = 0x0110
    N_SET = 0x0120
    ACTION = 0x0130
    CREATE = 0x0140
    DELETE = 0x0150
    CANCEL = 0x0FFF


RESPONSE = 0x8000
NO_DATA_SET = 0x0101  # of DATA_SET_TYPE; anything else says that there is one
HAS_DATA_SET = 0x0001
COMMAND_BYTES_MAX = 64 << 10  # no command set comes near it


class Status(IntEnum):
    """What an operation came to. PS3.7 C, Status Type Encoding; PS3.4 B.2.3, C.4.1.1.4 and C.4.2.1.5."""

    SUCCESS = 0x0000
    CANCEL = 0xFE00
    PENDING = 0xFF00
    PENDING_WARNING = 0xFF01  # an optional key was not matched
    SUB_OPERATIONS_WARNING = 0xB000  # complete, with failures
    LIMIT_REACHED = 0xB001  # matching ended before all was looked at
    PROCESSING_FAILURE = 0x0110
    DUPLICATE_INSTANCE = 0x0111
    NO_SUCH_INSTANCE = 0x0112
    CLASS_CONFLICT = 0x0119
    NO_SUCH_ACTION = 0x0123
    DUPLICATE_TRANSACTION = 0x0131
    UNRECOGNISED_OPERATION = 0x0211
    OUT_OF_RESOURCES = 0xA700
    SUB_OPERATIONS_FAILED = 0xA702
    DESTINATION_UNKNOWN = 0xA801
    DOES_NOT_MATCH = 0xA900  # data set or identifier and SOP class
    CANNOT_UNDERSTAND = 0xC000
    UNABLE_TO_PROCESS = 0xC001


_HEADER = Struct("<HHI")
_US_ELEMENT = Struct("<HHIH")
_LENGTH_ELEMENT = Struct("<HHII")


def parse(data: bytes | bytearray | memoryview) -> Command:
    """Read a command set.

    Raises:
        BadDicom: it is none, or has no Command Field.
    """
    found: Command = {}
    at, end = 0, len(data)
    while at < end:
        try:
            group, element, length = _HEADER.unpack_from(data, at)
        except error:
            raise BadDicom("a command set ends inside an element", offset=at) from None
        at += 8
        if group or length > end - at:
            raise BadDicom("this is no command set", offset=at - 8, tag=group << 16 | element)
        kind = _KINDS.get(element)
        if kind is not None:
            found[element] = _read(kind, bytes(data[at : at + length]), at, element)
        at += length
    if not isinstance(found.get(COMMAND_FIELD), int):
        raise BadDicom("a command set without Command Field", tag=COMMAND_FIELD)
    return found


def _read(kind: int, raw: bytes, at: int, element: int) -> Value:
    if kind == _US and len(raw) == 2:
        return raw[0] | raw[1] << 8
    if kind in (_UI, _AE, _LO):
        return raw.decode("ascii", "replace").split("\\")[0].strip("\0 ")
    if kind == _UL and len(raw) == 4:
        return int.from_bytes(raw, "little")
    if kind == _AT and len(raw) % 4 == 0:
        words = memoryview(raw).cast("H").tolist()
        return [high << 16 | low for high, low in zip(words[::2], words[1::2], strict=True)]
    if not raw and kind in (_US, _UL):
        return 0
    raise BadDicom("a value of a command set has a wrong length", offset=at, tag=element)


def write(command: Mapping[int, Value]) -> bytes:
    """Give a command set as bytes, its group length in front."""
    parts = []
    for element in sorted(command):
        value, kind = command[element], _KINDS[element]
        if kind == _US and isinstance(value, int):
            parts.append(_US_ELEMENT.pack(0, element, 2, value))
            continue
        if isinstance(value, str):
            raw = value.encode("ascii", "replace")
            if kind == _LO:
                raw = raw[:64].replace(b"\\", b"/")
            raw += (b"\0" if kind == _UI else b" ") * (len(raw) % 2)
        elif isinstance(value, list):
            raw = b"".join(pack("<HH", tag >> 16, tag & 0xFFFF) for tag in value)
        else:
            raw = pack("<I", value)
        parts.append(_HEADER.pack(0, element, len(raw)) + raw)
    body = b"".join(parts)
    return _LENGTH_ELEMENT.pack(0, GROUP_LENGTH, 4, len(body)) + body


def text(command: Mapping[int, Value], element: int) -> str:
    """A text value, empty where there is none."""
    value = command.get(element, "")
    return value if isinstance(value, str) else ""


def number(command: Mapping[int, Value], element: int) -> int:
    """A number, 0 where there is none."""
    value = command.get(element, 0)
    return value if isinstance(value, int) else 0
