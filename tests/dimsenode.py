"""What tests of DIMSE share: a node of ours on a free port, and pynetdicom as the one who asks.

with serving(tmp_path) as node:
    with associated(node, [CT_IMAGE]) as association: ...
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import pydicom
from makers import CT_IMAGE, EXPLICIT_LE
from pydicom.dataset import Dataset
from pynetdicom import AE
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.presentation import PresentationContext, build_context
from pynetdicom.transport import AssociationSocket

from hilum import api
from hilum.dimse.options import DimseSettings
from hilum.dimse.server import Server


def _close(self: AssociationSocket) -> None:
    """pynetdicom leaves a socket open that its peer has closed first; that is no leak of ours."""
    if self.socket is not None:
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()


AssociationSocket._shutdown_socket = _close

PATIENT_FIND, STUDY_FIND, PATIENT_STUDY_FIND = (f"1.2.840.10008.5.1.4.1.2.{n}.1" for n in (1, 2, 3))
PATIENT_MOVE, STUDY_MOVE = (f"1.2.840.10008.5.1.4.1.2.{n}.2" for n in (1, 2))
PATIENT_GET, STUDY_GET = (f"1.2.840.10008.5.1.4.1.2.{n}.3" for n in (1, 2))
PUSH_MODEL = "1.2.840.10008.1.20.1"
VERIFICATION = "1.2.840.10008.1.1"


class Node(NamedTuple):
    store: api.Store
    server: Server
    port: int


@contextlib.contextmanager
def serving(folder: Path, *, stored: Sequence[bytes] = (), **settings: Any) -> Iterator[Node]:
    """A node in this process, with some objects in its store."""
    wanted = {"listen": "127.0.0.1:0", "processes": 0, "stop_seconds": 2.0, **settings}
    with api.open(folder / "store", create=True) as store:
        for data in stored:
            store.ingest(data)
        with Server(DimseSettings(**wanted), store) as server:
            yield Node(store, server, server.address[1])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def associated(
    node: Node | int,
    contexts: Sequence[str | tuple[str, str] | PresentationContext] = (CT_IMAGE,),
    *,
    title: str = "SENDER",
    called: str = "HILUM",
    **further: Any,
) -> Iterator[Any]:
    """An association of pynetdicom's with a node, released at the end if it is there still."""
    entity = AE(title)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = 20
    wanted = [context_of(context) for context in contexts]
    port = node.port if isinstance(node, Node) else node
    association = entity.associate("127.0.0.1", port, contexts=wanted, ae_title=called, **further)
    try:
        yield association
    finally:
        if association.is_established:
            association.release()
        association.kill()


def context_of(context: str | tuple[str, str] | PresentationContext) -> PresentationContext:
    if isinstance(context, str):
        return build_context(context, [EXPLICIT_LE])
    if isinstance(context, PresentationContext):
        return context
    return build_context(context[0], [context[1]])


def data_set_of(file: bytes) -> bytes:
    """A file without preamble and file meta."""
    length = struct.unpack_from("<I", file, 140)[0]
    return file[144 + length :]


def meta_of(file: bytes) -> Dataset:
    return pydicom.dcmread(BytesIO(file), specific_tags=[0x00080018]).file_meta


def send(association: Any, file: bytes, **changed: Any) -> Dataset:
    """Store a file as it is, by pynetdicom's primitives: no value of it is decoded. Gives status and
    comment."""
    meta = meta_of(file)
    request = C_STORE()
    request.MessageID = 1
    request.Priority = 2
    request.AffectedSOPClassUID = changed.get("sop_class", meta.MediaStorageSOPClassUID)
    request.AffectedSOPInstanceUID = changed.get("uid", meta.MediaStorageSOPInstanceUID)
    data = changed.get("data", data_set_of(file))
    request.DataSet = BytesIO(data) if data is not None else None
    syntax = changed.get("syntax", meta.TransferSyntaxUID)
    context = next(
        found
        for found in association.accepted_contexts
        if found.abstract_syntax == request.AffectedSOPClassUID and found.transfer_syntax[0] == syntax
    )
    association._reactor_checkpoint.clear()
    try:
        association.dimse.send_msg(request, context.context_id)
        _, answer = association.dimse.get_msg(block=True)
    finally:
        association._reactor_checkpoint.set()
    status = Dataset()
    if answer is not None:
        status.Status = answer.Status
        status.ErrorComment = answer.ErrorComment or ""
        status.AffectedSOPInstanceUID = answer.AffectedSOPInstanceUID
    return status


def query(**keys: Any) -> Dataset:
    found = Dataset()
    for keyword, value in keys.items():
        setattr(found, keyword, value)
    return found
