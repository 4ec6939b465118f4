"""Takes the headers of a request; says whether the host is ours, the origin allowed and the user known.

Knows no resource. Authentication is one class for each method, all with check(): `none` and `basic` are here,
one that reads tokens would stand beside them.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import ipaddress
import os
import re
import secrets
import socket
import time
from collections.abc import Iterable
from typing import Protocol

from hilum.errors import BadQuery, StoreMissing
from hilum.settings import Settings
from hilum.web.errors import NotAuthorized

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(\d{1,5}))?")
_KNOWN_HOSTS_MAX = 1024

# What a page of another origin may read beside the body.
_EXPOSED = (
    b"accept-ranges, content-disposition, content-length, content-location, content-range, etag, location, "
    b"warning, x-request-id"
)
_METHODS = b"GET, HEAD, POST, PUT, DELETE, OPTIONS"
_PREFLIGHT_SECONDS = b"600"
_HEADER_NAMES = re.compile(rb"[A-Za-z0-9!#$%&'*+.^_`|~, -]{1,1000}")

Header = tuple[bytes, bytes]


class Hosts:
    """The names that the server may be asked under.

    A page of an attacker can have its own name point here and then reads our answers as of its own origin;
    it can't have a plain address or localhost as its name. So those are always ours.
    """

    def __init__(self, allowed: Iterable[str]) -> None:
        self._allowed = {name.lower() for name in allowed}
        self._any = "*" in self._allowed
        if not self._allowed:
            self._allowed.add(socket.gethostname().lower())
        self._known: set[bytes] = set()

    def allows(self, host: bytes) -> bool:
        """Whether a Host header is well formed and one of ours."""
        if host in self._known:
            return True
        found = _HOST.fullmatch(host.decode("latin-1"))
        if found is None:
            return False
        name = found[1].lower()
        if not (self._any or name in self._allowed or name == "localhost" or _is_address(name)):
            return False
        if len(self._known) < _KNOWN_HOSTS_MAX:
            self._known.add(host)
        return True


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def is_host(text: str) -> bool:
    """Whether this is a host with or without a port, as a proxy may hand it on."""
    return _HOST.fullmatch(text) is not None


class Cors:
    """Headers for pages of other origins: the Fetch standard, CORS protocol."""

    def __init__(self, settings: Settings) -> None:
        self._origins = {origin.encode("latin-1", "replace") for origin in settings.cors.origins}
        self._any = b"*" in self._origins
        # A browser sends a password to another origin only where that is named.
        self._credentials = settings.auth.method != "none" and not self._any

    def headers(self, origin: bytes) -> list[Header]:
        """What every answer to this origin has; nothing where it is not allowed."""
        if not self._any and origin not in self._origins:
            return [(b"vary", b"Origin")] if self._origins else []
        found = [
            (b"access-control-allow-origin", b"*" if self._any else origin),
            (b"access-control-expose-headers", _EXPOSED),
        ]
        if not self._any:
            found.append((b"vary", b"Origin"))
        if self._credentials:
            found.append((b"access-control-allow-credentials", b"true"))
        return found

    def preflight(self, origin: bytes, wanted: bytes) -> list[Header]:
        """What the answer to a preflight has beside that; `wanted` are the request headers it asks for."""
        if not self._any and origin not in self._origins:
            return []
        found = [
            (b"access-control-allow-methods", _METHODS),
            (b"access-control-max-age", _PREFLIGHT_SECONDS),
        ]
        if _HEADER_NAMES.fullmatch(wanted):
            found.append((b"access-control-allow-headers", wanted))
        return found


class Authenticator(Protocol):
    """Says who asks."""

    async def check(self, authorization: bytes) -> str:
        """The user's name, of the Authorization header ("" where there is none).

        Raises:
            NotAuthorized: nobody we know.
        """
        ...


class Basic:
    """Names and passwords: RFC 7617, The 'Basic' HTTP Authentication Scheme.

    A verification takes about 0.1 s and 64 MiB by intent, so it runs on a thread, two at most at once, and
    credentials that were right are remembered for a minute, as a keyed digest. An unknown name costs as much
    as a wrong password.
    """

    _REMEMBERED_SECONDS = 60.0
    _REMEMBERED_MAX = 1024
    _LENGTH_MAX = 4096

    def __init__(self, users_file: str) -> None:
        self._file = users_file
        self._stamp: tuple[int, int, int] | None = None
        self._users: dict[str, str] = {}
        self._load()
        self._key = secrets.token_bytes(32)
        self._remembered: dict[bytes, tuple[float, str]] = {}
        self._running = asyncio.Semaphore(2)
        self._nobody = hash_password(secrets.token_hex(16))

    async def check(self, authorization: bytes) -> str:
        digest = hmac.digest(self._key, authorization, hashlib.sha256)
        now = time.monotonic()
        found = self._remembered.get(digest)
        if found is not None and found[0] > now:
            return found[1]
        name, password = _credentials(authorization[: self._LENGTH_MAX])
        async with self._running:
            if not await asyncio.to_thread(self._is_right, name, password):
                raise NotAuthorized("this name and password are not known here")
        if len(self._remembered) >= self._REMEMBERED_MAX:
            self._remembered.clear()
        self._remembered[digest] = now + self._REMEMBERED_SECONDS, name
        return name

    def _is_right(self, name: str, password: str) -> bool:
        self._load()
        known = self._users.get(name)
        return _verify(known or self._nobody, password) and known is not None

    def _load(self) -> None:
        """Read the file again where it has changed."""
        try:
            status = os.stat(self._file)
        except FileNotFoundError:
            raise StoreMissing(f"there is no {self._file}; write one with: hilum init --user NAME") from None
        stamp = status.st_ino, status.st_mtime_ns, status.st_size
        if stamp != self._stamp:
            self._users, self._stamp = read_users(self._file), stamp


class Anyone:
    """Nobody is asked for a name."""

    async def check(self, authorization: bytes) -> str:
        return ""


def authenticator(settings: Settings) -> Authenticator:
    """The one that the settings ask for.

    Raises:
        StoreMissing, BadQuery: the file of users is not there, or is damaged.
    """
    return Basic(settings.auth.users_file) if settings.auth.method == "basic" else Anyone()


def _credentials(authorization: bytes) -> tuple[str, str]:
    scheme, _, encoded = authorization.decode("latin-1").partition(" ")
    if scheme.lower() != "basic":
        raise NotAuthorized("a name and a password are needed")
    try:
        text = base64.b64decode(encoded.strip(), validate=True).decode("utf-8")
    except (binascii.Error, UnicodeDecodeError):
        raise NotAuthorized("the Authorization header can't be read") from None
    name, colon, password = text.partition(":")
    if not colon:
        raise NotAuthorized("the Authorization header can't be read")
    return name, password


def hash_password(password: str) -> str:
    """A password as it is kept: argon2id with its parameters and salt."""
    import argon2

    return argon2.PasswordHasher().hash(password)


def _verify(known: str, password: str) -> bool:
    import argon2

    try:
        return argon2.PasswordHasher().verify(known, password)
    except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError):
        return False


def read_users(path: str) -> dict[str, str]:
    """name → hash, out of a file with a line "name:hash" for each; # begins a comment.

    Raises:
        BadQuery: a line that is neither.
    """
    users = {}
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            line = line.strip()
            if not line or line.startswith("#"):
                continue
            name, colon, known = line.partition(":")
            if not colon or not name or not known.startswith("$argon2"):
                raise BadQuery(f"{path}: line {number} is not of the form name:hash")
            users[name] = known
    return users


def write_user(path: str, name: str, password: str) -> None:
    """Enter a user, or give one another password. The file is the owner's alone.

    Raises:
        BadQuery: a name that RFC 7617 does not allow, or an empty password.
    """
    if not name or ":" in name or not name.isprintable() or name.startswith("#") or name != name.strip():
        raise BadQuery(f"{name!r} can't be the name of a user")
    if not password:
        raise BadQuery("the password is empty")
    users = read_users(path) if os.path.exists(path) else {}
    users[name] = hash_password(password)
    beside = f"{path}.new"
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write("# Users of Hilum, a line name:hash for each; hilum init --user NAME writes it.\n")
        file.writelines(f"{user}:{known}\n" for user, known in users.items())
        file.flush()
        os.fsync(descriptor)
    os.replace(beside, path)
