"""A client for the application over a store, in this process: no sockets, no server.

    with client_of(store) as client:
        client.get("/dicom-web/studies").json()

`serving(...)` makes the store too, out of files. Settings are given as in hilum.toml:
`client_of(store, storing={"allow_delete": True})`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from starlette.testclient import TestClient

import hilum
from hilum.api import Store
from hilum.settings import Settings
from hilum.web.app import make_app

ROOT = "/dicom-web"


@contextmanager
def client_of(store: Store, **settings: Any) -> Iterator[TestClient]:
    """A client of the application over an open store. Errors of the server are answers, as in life."""
    app = make_app(store, msgspec.convert(settings, Settings))
    with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as client:
        yield client


@contextmanager
def serving(
    folder: Path, files: Iterable[bytes | Path] = (), **settings: Any
) -> Iterator[tuple[TestClient, Store]]:
    """A new store in a folder with these objects, and a client of the application over it."""
    with hilum.open(folder / "store", create=True) as store:
        for file in files:
            store.ingest(file)
        with client_of(store, **settings) as client:
            yield client, store
