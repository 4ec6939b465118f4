"""Settings of the DIMSE side, and the peers that it knows. Plain values; reads no file, opens nothing."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from hilum.settings import Settings


@dataclass(frozen=True, kw_only=True, slots=True)
class Peer:
    """Another DICOM node."""

    title: str  # AE title
    host: str
    port: int
    name: str = ""  # how a person calls it; empty: its title
    tls: bool = False
    associations: int = 1  # that C-MOVE sends by at once; more than one only where it takes several


@dataclass(frozen=True, kw_only=True, slots=True)
class DimseSettings:
    """How the store is served by DIMSE. Sizes are in bytes, times in seconds."""

    listen: str = "127.0.0.1:11112"
    title: str = "HILUM"  # AE title
    processes: int = 2  # that serve associations; 0: the calling process, with its threads
    peers: tuple[Peer, ...] = ()

    # Who may come.
    calling_titles: tuple[str, ...] = ()  # AE titles that are accepted; empty: any
    addresses: tuple[str, ...] = ()  # addresses and networks that are accepted; empty: any
    check_called: bool = False  # refuse who calls us by another title
    associations: int = 200  # at once

    # What is taken.
    unknown_classes: bool = False  # objects of SOP classes that nobody knows, private ones too
    classes: tuple[str, ...] = ()  # further storage SOP classes, by UID
    conflicts: str = "keep-first"  # or "replace"
    pdu_bytes: int = 128 << 10
    memory_bytes: int = (
        256 << 20
    )  # of data sets that are coming in, for one process; the rest lies on the disk

    # Time.
    artim_seconds: float = 30.0  # until an association is agreed, or closed
    idle_seconds: float = 300.0  # without a byte of the peer
    answer_seconds: float = 60.0  # for a peer's answer to a request of ours
    connect_seconds: float = 10.0
    stop_seconds: float = 10.0  # for what is under way, when the server stops
    query_seconds: float = 60.0  # for what has to be read from heads to answer one C-FIND

    # TLS; without a certificate there is none.
    tls_certificate: str = ""
    tls_key: str = ""
    tls_authorities: str = ""  # whose certificates are believed
    tls_mutual: bool = False  # ask those who come for a certificate

    # Storage commitment.
    report_retry_seconds: float = 10.0  # after the first failure; doubled each time, up to an hour
    report_hours: float = 72.0  # until it is given up


def options_of(settings: Settings, **changed: Any) -> DimseSettings:
    """What hilum.toml, the environment and flags say of DIMSE; `changed` weighs more."""
    peers = tuple(
        Peer(
            title=peer.title,
            host=peer.host,
            port=peer.port,
            name=name,
            tls=peer.tls,
            associations=peer.associations,
        )
        for name, peer in settings.peers.items()
        if peer.host
    )
    found: dict[str, Any] = {"peers": peers, "conflicts": settings.storing.conflicts}
    found |= {
        field.name: getattr(settings.dimse, field.name)
        for field in fields(DimseSettings)
        if field.name not in found
    }
    return DimseSettings(**(found | changed))
