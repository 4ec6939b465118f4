"""hilum peers: the archives that are known, and whether they answer."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import click

from hilum.cli import common, targets
from hilum.errors import HilumError, NotFound

if TYPE_CHECKING:
    from hilum.settings import Peer, Settings

_AT_ONCE = 32
_SECONDS = 10.0


class _Tested(NamedTuple):
    """What came of asking a peer in one way."""

    name: str
    kind: str  # "DIMSE" or "DICOMweb"
    address: str
    ok: bool | None  # None: it was not asked
    seconds: float
    words: str


@click.command("peers")
@click.argument("names", nargs=-1, metavar="[NAME...]")
@click.option("--no-test", is_flag=True, help="Only list them.")
@targets.node_options
@common.common_options
def command(
    names: tuple[str, ...],
    no_test: bool,
    aet: str | None,
    tls: bool,
    seconds: float | None,
    config: str | None,
    store_path: str,
    as_json: bool,
    verbose: bool,
) -> int:
    """List the known archives, and ask each whether it answers: by C-ECHO, by QIDO-RS, or both.

    Known are those of hilum.toml, tables called [peers.NAME]; an address may be given as well. All are asked
    at once.

    \b
    Example:
        hilum peers
        hilum peers pacs PACS2@10.0.0.8:104 --timeout 3 --json
    """
    call = targets.Call(config, aet, seconds or _SECONDS, tls)
    settings = targets.load(call)
    known = {name: targets.peer_of(name, settings, tls=tls) for name in names or settings.peers}
    if not known:
        raise NotFound("no peer is known: write a table [peers.NAME] into hilum.toml")
    asked = [(name, peer, kind) for name, peer in known.items() for kind in _kinds(peer)]
    if not no_test:  # what takes time to load is no peer's time
        from hilum.dimse import scu  # noqa: F401
        from hilum.remote import qido  # noqa: F401
    with ThreadPoolExecutor(min(_AT_ONCE, len(asked))) as pool:
        found = list(pool.map(lambda one: _test(one, settings, call, no_test=no_test), asked))
    if as_json:
        for one in found:
            common.print_json(one._asdict())
    else:
        rows = [
            (one.name, one.kind, one.address, {True: "answers", False: "fails", None: ""}[one.ok],
             f"{one.seconds * 1000:.0f} ms" if one.ok else "", one.words)
            for one in found
        ]  # fmt: skip
        common.print_table(["NAME", "KIND", "ADDRESS", "STATE", "TIME", "WORDS"], rows)
    return common.FAILED if any(one.ok is False for one in found) else 0


def _kinds(peer: Peer) -> list[str]:
    return [kind for kind, there in (("DIMSE", peer.host), ("DICOMweb", peer.url)) if there]


def _test(one: tuple[str, Peer, str], settings: Settings, call: targets.Call, *, no_test: bool) -> _Tested:
    name, peer, kind = one
    address = f"{peer.title}@{peer.host}:{peer.port}" if kind == "DIMSE" else peer.url
    if no_test:
        return _Tested(name, kind, address, None, 0.0, "")
    begin = time.monotonic()
    try:
        words = (_echo if kind == "DIMSE" else _search)(name, peer, settings, call)
        return _Tested(name, kind, address, True, round(time.monotonic() - begin, 4), words)
    except HilumError as failure:
        return _Tested(name, kind, address, False, round(time.monotonic() - begin, 4), str(failure))


def _echo(name: str, peer: Peer, settings: Settings, call: targets.Call) -> str:
    from hilum.dimse import scu

    found = scu.echo(targets.caller_of(name, peer, settings, call))
    return f"{found.implementation}{', ' + found.tls if found.tls else ''}"


def _search(name: str, peer: Peer, settings: Settings, call: targets.Call) -> str:
    from hilum.remote.qido import probe

    with targets.client_of(peer, settings, call, ask=False) as client:
        return probe(client)
