"""What commands that call another archive share: its name or address, who we are to it, how long we wait."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

import click

from hilum.cli import common
from hilum.errors import BadQuery

if TYPE_CHECKING:
    from hilum.dimse.scu import Caller
    from hilum.remote.client import Client
    from hilum.settings import Peer, Settings

F = TypeVar("F", bound=Callable[..., Any])

_ADDRESS = re.compile(r"(?P<title>[^@]{1,16})@(?P<host>\[[^\]]+\]|[^:@\[\]]+):(?P<port>[0-9]{1,5})")
_KEY = re.compile(r"""^(?:[A-Za-z0-9,().]|"[^"]*")+=""")


class Call(NamedTuple):
    """How to call others: what the options of a command say."""

    config: str | None
    title: str | None
    seconds: float | None
    tls: bool = False
    user: str | None = None


def node_options(command: F) -> F:
    """--aet, --timeout, --tls and --config, of commands that speak to DICOM nodes."""
    command = click.option("--config", metavar="FILE", help="Settings with known peers; see hilum init.")(
        command
    )
    command = click.option(
        "--timeout", "seconds", type=click.FloatRange(min=0.1), help="Seconds to wait for each answer."
    )(command)
    command = click.option("--tls", is_flag=True, help="By TLS, where TARGET is an address.")(command)
    return click.option("--aet", metavar="TITLE", help="Our AE title.  [default: dimse.title]")(command)


def web_options(command: F) -> F:
    """--user, --timeout and --config, of commands that speak to DICOMweb servers."""
    command = click.option("--config", metavar="FILE", help="Settings with known peers; see hilum init.")(
        command
    )
    command = click.option(
        "--timeout", "seconds", type=click.FloatRange(min=0.1), help="Seconds to wait for each answer."
    )(command)
    return click.option(
        "--user", metavar="NAME", help="Who we are there; the password is $HILUM_PASSWORD, or asked for."
    )(command)


def load(call: Call) -> Settings:
    from hilum import settings

    return settings.load(call.config)


def peer_of(word: str, settings: Settings, *, tls: bool = False) -> Peer:
    """The peer that a word names: one of hilum.toml, an AET@host:port, or a URL.

    Raises:
        BadQuery: none of these.
    """
    from hilum.settings import Peer

    known = settings.peers.get(word)
    if known is not None:
        return known
    if word.startswith(("http://", "https://")):
        parts = urlsplit(word)
        if parts.password:
            raise BadQuery("no password in a URL: set $HILUM_PASSWORD, or it is asked for")
        return Peer(url=word, user=parts.username or "")
    found = _ADDRESS.fullmatch(word)
    if found is None or not 0 < int(found["port"]) <= 0xFFFF:
        names = f" ({', '.join(settings.peers)})" if settings.peers else ""
        raise BadQuery(f"{word!r} is no peer of hilum.toml{names}, no AET@host:port and no URL")
    return Peer(title=found["title"], host=found["host"].strip("[]"), port=int(found["port"]), tls=tls)


def caller(word: str, call: Call, *, answer_seconds: float = 0.0) -> Caller:
    """Who calls a DICOM node.

    Raises:
        BadQuery: the word names none.
    """
    settings = load(call)
    peer = peer_of(word, settings, tls=call.tls)
    if not peer.host:
        raise BadQuery(f"{word} is a DICOMweb server; this needs a DICOM node: a title, host and port")
    return caller_of(word, peer, settings, call, answer_seconds=answer_seconds)


def caller_of(
    name: str, peer: Peer, settings: Settings, call: Call, *, answer_seconds: float = 0.0
) -> Caller:
    """Who calls a DICOM node; its answers may take `answer_seconds` at least, where nobody says how long."""
    from hilum.dimse import options
    from hilum.dimse.scu import Caller

    dimse = settings.dimse
    ours = options.options_of(
        settings,
        title=call.title or dimse.title,
        answer_seconds=call.seconds or max(dimse.answer_seconds, answer_seconds),
        artim_seconds=call.seconds or dimse.artim_seconds,
        connect_seconds=min(dimse.connect_seconds, call.seconds or dimse.connect_seconds),
    )
    node = options.Peer(title=peer.title, host=peer.host, port=peer.port, name=name, tls=peer.tls)
    return Caller(ours, node)


def client(word: str, call: Call) -> Client:
    """Who calls a DICOMweb server. A password that is nowhere written is asked for.

    Raises:
        BadQuery: the word names none.
    """
    settings = load(call)
    peer = peer_of(word, settings)
    if not peer.url:
        raise BadQuery(f"{word} is a DICOM node; this needs a DICOMweb server: a url")
    return client_of(peer, settings, call)


def client_of(peer: Peer, settings: Settings, call: Call, *, ask: bool = True) -> Client:
    from hilum.remote.client import Client

    user = call.user or peer.user
    password = peer.password or os.environ.get("HILUM_PASSWORD", "")
    if user and not password and ask:
        if not sys.stdin.isatty():
            raise BadQuery(f"there is no password of {user}: set $HILUM_PASSWORD, or peers.NAME.password")
        password = click.prompt(f"Password of {user}", hide_input=True, err=True)
    authorities = settings.dimse.tls_authorities
    return Client(peer.url, user, password, seconds=call.seconds or 60.0, authorities=authorities)


def parse_words(words: tuple[str, ...]) -> tuple[list[str], list[tuple[str, str]]]:
    """PATH and KEY=VALUE words apart. What looks like a key and is a file is a file."""
    paths = [word for word in words if not _KEY.match(word) or os.path.lexists(word)]
    keys = [word for word in words if _KEY.match(word) and not os.path.lexists(word)]
    for path in paths:
        if not os.path.lexists(path):
            raise click.UsageError(f"there is no {path}, and it is no KEY=VALUE")
    return paths, common.parse_pairs(keys)
