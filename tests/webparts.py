"""Takes a multipart answer; gives its parts. Written from RFC 2046 alone, and strict, so that it is no mirror
of the code under test.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from starlette.testclient import TestClient
from webclient import ROOT

from hilum.api import Store
from hilum.engine import resources
from hilum.engine.resources import Resource


class Part(NamedTuple):
    headers: dict[str, str]  # names in lower case
    body: bytes

    @property
    def media_type(self) -> str:
        return self.headers["content-type"].split(";")[0].strip()

    @property
    def syntax(self) -> str:
        return parameters(self.headers["content-type"])["transfer-syntax"]


def parameters(content_type: str) -> dict[str, str]:
    pairs = (piece.partition("=") for piece in content_type.split(";")[1:])
    return {name.strip().lower(): value.strip().strip('"') for name, _, value in pairs}


def parts_of(answer: Any) -> list[Part]:
    """The parts of an answer; an assertion fails where it is not well formed."""
    content_type = answer.headers["content-type"]
    assert content_type.startswith(("multipart/related;", "multipart/byteranges;")), content_type
    delimiter = b"--" + parameters(content_type)["boundary"].encode()
    body: bytes = answer.content
    assert body.startswith(delimiter + b"\r\n")
    assert body.endswith(b"\r\n" + delimiter + b"--\r\n")
    assert len(delimiter) <= 72, "RFC 2046 5.1.1: a boundary has at most 70 characters"
    inner = body[len(delimiter) + 2 : -len(delimiter) - 6]
    found = []
    for piece in inner.split(b"\r\n" + delimiter + b"\r\n"):
        head, found_end, data = piece.partition(b"\r\n\r\n")
        assert found_end, "a part has no end of its headers"
        lines = (line.partition(":") for line in head.decode("ascii").split("\r\n"))
        found.append(Part({name.lower(): value.strip() for name, _, value in lines}, data))
    return found


def resources_in(store: Store) -> list[Resource]:
    """Every instance of a store."""
    found: list[Resource] = []
    for row in store.find("studies"):
        found += resources.instances(store.index, row.uid)
    return found


def url_of(one: Resource, tail: str = "") -> str:
    return f"{ROOT}/studies/{one.study}/series/{one.series}/instances/{one.uid}{tail}"


def get(client: TestClient, url: str, accept: str | None = None, **headers: str) -> Any:
    """GET with these headers alone; without `accept` there is no Accept."""
    request = client.build_request("GET", url, headers={k.replace("_", "-"): v for k, v in headers.items()})
    del request.headers["accept"]
    if accept is not None:
        request.headers["accept"] = accept
    return client.send(request)
