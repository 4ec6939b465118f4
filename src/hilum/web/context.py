"""What each handler gets: the store, the settings, threads for engine calls, the base of our URLs.

A handler is `async def handler(request: Request) -> Response`, and asks context_of(request). It raises errors
of hilum.errors and web.errors and never builds an error answer itself.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from typing import TYPE_CHECKING, ParamSpec, TypeVar, cast

from starlette.requests import Request

from hilum.api import Store
from hilum.settings import Settings
from hilum.web import accept, security
from hilum.web.errors import NotAcceptable
from hilum.web.rows import RowCache

if TYPE_CHECKING:
    from hilum.pixels.pool import Pool

P = ParamSpec("P")
T = TypeVar("T")

ROOT = "/dicom-web"

# RFC 7239 4, Forwarded HTTP Header Field: pairs of one element, the last element being the nearest proxy's.
_PAIR = re.compile(r'([A-Za-z]+)=(?:"((?:[^"\\]|\\.)*)"|([^;,"\s]*))')
_FORWARDED = (b"x-forwarded-proto", b"x-forwarded-host", b"x-forwarded-prefix")
_PREFIX = re.compile(r"(/[A-Za-z0-9._~-]+)*/?")


class Context:
    """One for each application, for its whole life."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self.store = store
        self.settings = settings
        self.rows = RowCache()
        self._threads = ThreadPoolExecutor(settings.http.threads, thread_name_prefix="hilum")
        self._base = settings.http.base_url.rstrip("/")
        self._proxies = [ipaddress.ip_network(text, strict=False) for text in settings.http.trusted_proxies]

    @cached_property
    def pool(self) -> Pool:
        """Worker processes that decode and render; started when first asked for."""
        from hilum.pixels.pool import Pool

        wanted = self.settings.pixels
        return Pool(wanted.workers, wanted.seconds_max, wanted.memory_bytes, wanted.cache_bytes)

    async def run(self, function: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
        """Run a blocking engine call on a thread. At most settings.http.threads run at once, others wait.

        A hop costs 110-190 microseconds: what takes less than that is better called directly.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, partial(function, *args, **named))

    def base_url(self, request: Request) -> str:
        """What RetrieveURL and bulk data URIs begin with, "https://host/dicom-web".

        From the settings, else as a proxy that we trust says it was asked, else from the request itself.
        """
        if self._base:
            return self._base
        scope = request.scope
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        scheme, host, prefix = scope["scheme"], headers.get(b"host", ""), ""
        if self._proxies and self._is_proxy(scope["client"]):
            forwarded = headers.get(b"forwarded", "").rpartition(",")[2]
            pairs = {name.lower(): quoted or plain for name, quoted, plain in _PAIR.findall(forwarded)}
            said = [headers.get(name, "").rpartition(",")[2].strip() for name in _FORWARDED]
            asked_scheme, asked_host = pairs.get("proto") or said[0], pairs.get("host") or said[1]
            if asked_scheme.lower() in ("http", "https"):
                scheme = asked_scheme.lower()
            if security.is_host(asked_host):
                host = asked_host
            if _PREFIX.fullmatch(said[2]):
                prefix = said[2].rstrip("/")
        return f"{scheme}://{_with_port(host, scope['server'])}{prefix}{ROOT}"

    def _is_proxy(self, client: tuple[str, int] | None) -> bool:
        try:
            address = ipaddress.ip_address(client[0] if client else "")
        except ValueError:
            return False
        return any(address in network for network in self._proxies)

    def close(self) -> None:
        """End threads and worker processes; the store is the caller's."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        if "pool" in self.__dict__:
            self.pool.close()


def _with_port(host: str, server: tuple[str, int | None] | None) -> str:
    """A host with our port, where it is our own address and lacks it.

    dicomweb-client leaves the port out of Host, and then could not follow a URL that we make of it. A name,
    or another address, may stand for a proxy on port 80: these are left as they are.
    """
    address, port = server or ("", None)
    if not host:
        host = address or "localhost"
    ours = host.strip("[]") == address or (host == "localhost" and address in ("127.0.0.1", "::1"))
    return f"{host}:{port}" if ours and port not in (None, 80) else host


def context_of(request: Request) -> Context:
    return cast(Context, request.app.state.hilum)


def accept_of(request: Request) -> Sequence[accept.MediaRange]:
    """What the client takes, best first: PS3.18 8.7.5, Acceptable Media Types. Empty: anything."""
    headers = [value for name, value in request.scope["headers"] if name == b"accept"]
    text = b", ".join(headers).decode("latin-1")
    query = request.query_params.getlist("accept") if b"accept=" in request.scope["query_string"] else ()
    return accept.parse(text, ", ".join(query))


def choose_of(request: Request, offers: Sequence[str]) -> str:
    """The media type of the answer, out of what can be given.

    Raises:
        NotAcceptable: the client takes none of them.
    """
    chosen = accept.choose(accept_of(request), offers)
    if chosen is None:
        raise NotAcceptable(f"this resource can be given as {', '.join(offers)}")
    return chosen
