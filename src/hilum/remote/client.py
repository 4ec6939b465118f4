"""Takes the URL of a DICOMweb server, and who we are; gives answers to requests, one connection for each
thread. Says in words why there is none. Knows no DICOM, follows no redirect: whoever got there would get
the password too.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import ssl
import threading
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from hilum.errors import BadQuery, HilumError

_CHUNK = 256 << 10
_WORDS_MAX = 300
_BODY_MAX = 256 << 20  # of an answer that is read as a whole


class Unreachable(HilumError):
    """The server can't be reached, or the connection broke."""


class Broken(Unreachable):
    """The connection broke in the middle of a request; it may be the fault of what was sent.

    `was_idle`: it had lain idle before, so that the server may have closed it for that.
    """

    def __init__(self, words: str, *, was_idle: bool) -> None:
        super().__init__(words)
        self.was_idle = was_idle


class Refused(HilumError):
    """The server answers with a failure."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status


class Answer:
    """An answer whose body is still to be read. Close it, or read it to its end."""

    def __init__(self, client: Client, response: http.client.HTTPResponse) -> None:
        self._client = client
        self._response = response
        self.status = response.status

    def header(self, name: str) -> str:
        return self._response.getheader(name) or ""

    def read(self, size: int = _CHUNK) -> bytes:
        """The next bytes; none at the end.

        Raises:
            Unreachable: the connection broke.
        """
        try:
            data = self._response.read(size)
        except (OSError, http.client.HTTPException) as failure:
            self._client.drop()
            raise Unreachable(self._client.words_of(failure)) from None
        if not data and self._response.length:  # of what Content-Length has told
            self._client.drop()
            raise Unreachable("the answer was cut")
        return data

    def read_all(self) -> bytes:
        """The whole body.

        Raises:
            Unreachable: the connection broke, or there is no end of it.
        """
        parts, size = [], 0
        while part := self.read():
            parts.append(part)
            size += len(part)
            if size > _BODY_MAX:
                self.close()
                raise Unreachable("an answer without end")
        return b"".join(parts)

    def close(self) -> None:
        """Done with it; what is left of the body is not read."""
        if not self._response.isclosed():
            self._client.drop()


class Client:
    """Requests to one server. Safe from several threads."""

    def __init__(
        self, url: str, user: str = "", password: str = "", *, seconds: float = 60.0, authorities: str = ""
    ) -> None:
        """`authorities` is a file with certificates that are believed beside those of the system.

        Raises:
            BadQuery: it is no URL.
        """
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            port = 0
        if parts.scheme not in ("http", "https") or not parts.hostname or port == 0 or parts.query:
            raise BadQuery(f"{url!r} is no URL of a DICOMweb server")
        if parts.password:
            raise BadQuery("no password in a URL: set $HILUM_PASSWORD, or peers.NAME.password")
        self.host, self.port = parts.hostname, port or (443 if parts.scheme == "https" else 80)
        self.url = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
        self._path = parts.path.rstrip("/")
        self._seconds = seconds
        self._tls: ssl.SSLContext | None = None
        if parts.scheme == "https":
            self._tls = ssl.create_default_context()
            if authorities:
                try:
                    self._tls.load_verify_locations(authorities)
                except (OSError, ssl.SSLError) as failure:
                    raise BadQuery(f"{authorities}: {failure}") from None
        self._headers = {"User-Agent": "Hilum", "Accept-Encoding": "identity"}
        if user:
            token = base64.b64encode(f"{user}:{password}".encode()).decode("ascii")
            self._headers["Authorization"] = f"Basic {token}"
        self.user = user
        self._has_password = bool(password)
        self._mine = threading.local()
        self._all: list[http.client.HTTPConnection] = []
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            for connection in self._all:
                connection.close()
            self._all.clear()

    def get(self, path: str, accept: str) -> Answer:
        """GET; `path` is below the URL.

        Raises:
            Unreachable, Refused: there is no answer, or one with a failure.
        """
        return self._checked(self._request("GET", path, {"Accept": accept}, None))

    def post(self, path: str, headers: Mapping[str, str], body: Iterable[bytes], length: int) -> Answer:
        """POST a body of `length` bytes; the answer may be a failure.

        Raises:
            Unreachable: there is no answer. The body may have arrived all the same.
        """
        return self._request("POST", path, {**headers, "Content-Length": str(length)}, body)

    def drop(self) -> None:
        """Give the connection of this thread up."""
        connection = getattr(self._mine, "connection", None)
        if connection is not None:
            self._mine.connection = None
            with self._lock, contextlib.suppress(ValueError):
                self._all.remove(connection)
            connection.close()

    def _connect(self) -> http.client.HTTPConnection:
        made: http.client.HTTPConnection
        if self._tls is not None:
            made = http.client.HTTPSConnection(
                self.host, self.port, timeout=self._seconds, context=self._tls, blocksize=_CHUNK
            )
        else:
            made = http.client.HTTPConnection(self.host, self.port, timeout=self._seconds, blocksize=_CHUNK)
        made.connect()
        self._mine.connection = made
        with self._lock:
            self._all.append(made)
        return made

    def _request(
        self, method: str, path: str, headers: Mapping[str, str], body: Iterable[bytes] | None
    ) -> Answer:
        connection: http.client.HTTPConnection | None = getattr(self._mine, "connection", None)
        is_used = connection is not None
        try:
            connection = connection or self._connect()
            # A server that refuses a body may answer, and close, before it has taken it.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self._send(connection, method, path, headers, body)
            return Answer(self, connection.getresponse())
        except (OSError, http.client.HTTPException) as failure:
            self.drop()
            if is_used and body is None:  # it was closed while nobody used it
                return self._request(method, path, headers, body)
            if isinstance(failure, ConnectionResetError | BrokenPipeError | http.client.HTTPException):
                raise Broken(self.words_of(failure), was_idle=is_used) from None
            raise Unreachable(self.words_of(failure)) from None

    def _send(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: Iterable[bytes] | None,
    ) -> None:
        connection.putrequest(method, f"{self._path}{path}", skip_accept_encoding=True)
        for name, text in {**self._headers, **headers}.items():
            connection.putheader(name, text)
        connection.endheaders()
        for piece in body or ():
            connection.send(piece)

    def _checked(self, answer: Answer) -> Answer:
        if answer.status < 300:
            return answer
        raise self.refusal(answer)

    def refusal(self, answer: Answer) -> Refused:
        """A failure in words; what the server says of it is read."""
        status = answer.status
        said = " ".join(answer.read(_WORDS_MAX).decode("utf-8", "replace").split())
        answer.close()
        reason = http.client.responses.get(status, "")
        if status == 401:
            words = f"it does not know {self.user} with this password" if self.user else "it asks for a user"
            if self.user and not self._has_password:
                words = f"there is no password of {self.user}"
            return Refused(status, f"401 {reason}: {words}")
        if 300 <= status < 400:
            return Refused(status, f"{status} {reason}: it sends us to {answer.header('Location')[:200]}")
        return Refused(status, f"{status} {reason}{f': {said}' if said else ''}")

    def words_of(self, failure: Exception) -> str:
        """Why there is no answer."""
        place = f"{self.host} port {self.port}"
        if isinstance(failure, ConnectionRefusedError):
            return f"connection refused: nothing listens at {place}"
        if isinstance(failure, TimeoutError):
            return f"no answer from {place} within {self._seconds:g} s"
        if isinstance(failure, ssl.SSLCertVerificationError):
            return f"its certificate is not believed: {failure.verify_message}"
        if isinstance(failure, ssl.SSLError):
            return f"no TLS with {place}: {failure.reason}"
        if isinstance(failure, OSError) and failure.errno and not failure.strerror:
            return f"no connection with {place}: {failure}"
        if isinstance(failure, http.client.HTTPException):
            return f"the connection with {place} broke: {type(failure).__name__}"
        return f"no connection with {place}: {getattr(failure, 'strerror', '') or failure}"
