"""Takes a peer; gives an association with it, over TLS where it wants that. Knows how certificates are
checked, and no service."""

from __future__ import annotations

import ssl
from collections.abc import Iterable

from pynetdicom.ae import ApplicationEntity
from pynetdicom.pdu_primitives import SCP_SCU_RoleSelectionNegotiation
from pynetdicom.presentation import PresentationContext, build_context
from pynetdicom.transport import AddressInformation

from hilum.dicom.part10 import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION
from hilum.dimse.options import DimseSettings, Peer
from hilum.dimse.transport import Association, Connection, Lost
from hilum.errors import BadQuery


def entity(settings: DimseSettings) -> ApplicationEntity:
    """What pynetdicom wants to know of us.

    Raises:
        BadQuery: the AE title is none.
    """
    try:
        made = ApplicationEntity(settings.title)
    except (ValueError, TypeError) as failure:
        raise BadQuery(f"{settings.title!r} is no AE title: {failure}") from None
    made.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    made.implementation_version_name = IMPLEMENTATION_VERSION
    made.maximum_pdu_size = settings.pdu_bytes
    made.maximum_associations = 1 << 20  # they are counted where they come in
    made.acse_timeout = settings.artim_seconds
    made.network_timeout = settings.idle_seconds
    made.connection_timeout = settings.connect_seconds
    made.dimse_timeout = settings.answer_seconds
    return made


def find(settings: DimseSettings, title: str) -> Peer | None:
    """The peer with this AE title, None where none is known."""
    return next((peer for peer in settings.peers if peer.title == title), None)


def server_tls(settings: DimseSettings) -> ssl.SSLContext | None:
    """How we show ourselves to those who come; None: not by TLS. PS3.15 B.12, Modified BCP 195 profile: 1.2
    or newer.

    Raises:
        BadQuery: a file is not there, or holds no certificate or key.
    """
    if not settings.tls_certificate:
        return None
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    _load(made, settings)
    if settings.tls_mutual:
        made.verify_mode = ssl.CERT_REQUIRED
    return made


def client_tls(settings: DimseSettings) -> ssl.SSLContext:
    """How we show ourselves to those whom we call, and whom we believe.

    Raises:
        BadQuery: as server_tls().
    """
    made = ssl.create_default_context()
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    # DICOM nodes are known by their certificate, and seldom have it made out to a host name: PS3.15 leaves
    # open what is checked.
    made.check_hostname = False
    _load(made, settings)
    return made


def _load(made: ssl.SSLContext, settings: DimseSettings) -> None:
    try:
        if settings.tls_certificate:
            made.load_cert_chain(settings.tls_certificate, settings.tls_key or None)
        if settings.tls_authorities:
            made.load_verify_locations(settings.tls_authorities)
    except (OSError, ssl.SSLError) as failure:
        raise BadQuery(f"the TLS certificate, key or authorities can't be used: {failure}") from None


def context(abstract_syntax: str, transfer_syntaxes: Iterable[str]) -> PresentationContext:
    """A presentation context to propose."""
    return build_context(abstract_syntax, list(transfer_syntaxes))


def role(sop_class: str, *, scu: bool, scp: bool) -> SCP_SCU_RoleSelectionNegotiation:
    """The roles that we want to play: PS3.7 D.3.3.4, SCP/SCU Role Selection Negotiation."""
    item = SCP_SCU_RoleSelectionNegotiation()
    item.sop_class_uid = sop_class
    item.scu_role, item.scp_role = scu, scp
    return item


def connect(
    settings: DimseSettings,
    made: ApplicationEntity,
    peer: Peer,
    contexts: Iterable[PresentationContext],
    *,
    roles: Iterable[SCP_SCU_RoleSelectionNegotiation] = (),
    stop_fd: int = -1,
) -> Association:
    """An association with a peer, agreed on. Release and close it.

    Raises:
        Lost: there is none; the words say why.
        BadQuery: TLS is wanted and the certificate can't be used.
    """
    association = Association(made, "requestor", stop_fd=stop_fd)
    try:
        remote = AddressInformation.from_addr_port(peer.host, peer.port)
    except OSError as failure:
        raise Lost(f"{peer.host} is not known: {failure.strerror}") from None
    local = AddressInformation.from_tuple(("", 0) if remote.is_ipv4 else ("::0", 0))
    connection = Connection(association, address=local)
    if peer.tls:
        connection.tls_args = client_tls(settings), peer.host
    association.set_socket(connection)
    association.acceptor.ae_title = peer.title
    association.acceptor.address_info = remote
    association.requestor.ae_title = settings.title
    association.requestor.address_info = local
    association.requestor.maximum_length = settings.pdu_bytes
    association.requestor.implementation_class_uid = made.implementation_class_uid
    association.requestor.implementation_version_name = made.implementation_version_name
    for item in roles:
        association.requestor.add_negotiation_item(item)
    association.connect(contexts)
    return association
