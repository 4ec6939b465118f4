"""Peers for the tests of our own requests: pynetdicom as the one who is asked, and servers that misbehave.

with scp([(evt.EVT_C_STORE, handler)], [CT_IMAGE]) as port: ...
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from dimsenode import VERIFICATION, context_of
from pynetdicom import AE
from pynetdicom.presentation import PresentationContext


@contextlib.contextmanager
def scp(
    handlers: Sequence[tuple[Any, Callable[..., Any]]] = (),
    contexts: Sequence[str | tuple[str, str] | PresentationContext] = (),
    *,
    title: str = "PEER",
    **settings: Any,
) -> Iterator[int]:
    """pynetdicom as a server on a free port; `settings` are attributes of its AE."""
    entity = AE(title)
    entity.add_supported_context(VERIFICATION)
    for context in contexts:
        made = context_of(context)
        entity.add_supported_context(str(made.abstract_syntax), [str(name) for name in made.transfer_syntax])
    for name, value in settings.items():
        setattr(entity, name, value)
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=list(handlers))
    assert server is not None
    try:
        yield server.socket.getsockname()[1]
    finally:
        server.shutdown()


@contextlib.contextmanager
def listener(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server that does with each connection what `serve` does, and then closes it."""
    server = socket.create_server(("127.0.0.1", 0))
    over = threading.Event()

    def run() -> None:
        while not over.is_set():
            try:
                connected, _ = server.accept()
            except OSError:
                return
            with connected, contextlib.suppress(OSError):
                connected.settimeout(10)
                serve(connected)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield server.getsockname()[1]
    finally:
        over.set()
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join()
