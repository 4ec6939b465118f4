"""Takes a folder and the path of a request; answers with the file there. Never leaves the folder or lists it.

For pages that come with Hilum and for viewers. A file is looked at anew for each request; beside `x.js` a
file `x.js.gz` is sent to those who take it packed.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from typing import NamedTuple

from starlette.requests import Request

from hilum.web.answers import Answer, Streamed, Whole
from hilum.web.conditional import Headers, asked_of
from hilum.web.context import ROOT, context_of
from hilum.web.errors import BadPath

_TYPES = {
    "css": "text/css",
    "gif": "image/gif",
    "html": "text/html; charset=utf-8",
    "ico": "image/x-icon",
    "jpeg": "image/jpeg",
    "jpg": "image/jpeg",
    "js": "text/javascript",
    "json": "application/json",
    "map": "application/json",
    "mjs": "text/javascript",
    "mp4": "video/mp4",
    "pdf": "application/pdf",
    "png": "image/png",
    "svg": "image/svg+xml",
    "ttf": "font/ttf",
    "txt": "text/plain; charset=utf-8",
    "wasm": "application/wasm",
    "webmanifest": "application/manifest+json",
    "webp": "image/webp",
    "woff": "font/woff",
    "woff2": "font/woff2",
    "xml": "application/xml",
    "yaml": "application/yaml",
}
PACKED = frozenset(("css", "html", "js", "json", "mjs", "svg", "wasm"))  # what is worth a .gz beside it

_PIECE_BYTES = 256 << 10
# Builders put a digest of the content into the name: what has it never changes.
_DIGEST_IN_NAME = re.compile(r"(?:^|[.-])[0-9a-f]{16,}\.")


class File(NamedTuple):
    """A file as it will be sent."""

    path: str
    name: str  # without the .gz of a packed one
    size: int
    etag: bytes
    packed: bool

    def headers(self) -> Headers:
        """The headers of an answer that has it."""
        lasting = _DIGEST_IN_NAME.search(self.name) is not None
        found = [
            (b"content-type", type_of(self.name).encode()),
            (b"content-length", b"%d" % self.size),
            (b"etag", self.etag),
            (b"cache-control", b"max-age=31536000, immutable" if lasting else b"no-cache"),
            (b"vary", b"accept-encoding"),
        ]
        return [*found, (b"content-encoding", b"gzip")] if self.packed else found

    def pieces(self) -> Iterator[bytes]:
        """Its bytes: as many as the headers say."""
        left = self.size
        with open(self.path, "rb") as file:
            while left and (piece := file.read(min(left, _PIECE_BYTES))):
                yield piece
                left -= len(piece)


def type_of(name: str) -> str:
    """The media type of a file by its name."""
    return _TYPES.get(_ending(name), "application/octet-stream")


def is_of_known_type(path: str) -> bool:
    """Whether a path ends as the name of a file does, and not as a UID or a word."""
    return _ending(path) in _TYPES


def _ending(name: str) -> str:
    return name.rpartition("/")[2].rpartition(".")[2].lower() if "." in name else ""


class Folder:
    """Files below a folder."""

    def __init__(self, path: str, *headers: tuple[bytes, bytes]) -> None:
        """`headers` come with every answer."""
        self._root = os.path.realpath(path)
        self._headers = headers

    async def answer(self, request: Request, path: str) -> Answer:
        """Answer with a file.

        Raises:
            BadPath: there is none.
        """
        context = context_of(request)
        codings = request.headers.get("accept-encoding", "").replace(" ", "")
        takes_packed = "gzip" in codings and "gzip;q=0" not in codings
        file = await context.run(self.find, path, takes_packed=takes_packed)
        if asked_of(request.scope["headers"]).holds(file.etag):
            kept = [(name, value) for name, value in file.headers() if name in _KEPT_BY_304]
            return Whole(304, [*kept, *self._headers])
        return Streamed(context, 200, [*file.headers(), *self._headers], file.pieces())

    def find(self, path: str, *, takes_packed: bool = False) -> File:
        """The file at a path below the folder.

        Raises:
            BadPath: there is none, or the path leads out of the folder.
        """
        segments = path.split("/")
        # No hidden files either: a folder that is under version control has its history in one.
        if any(not segment or segment.startswith(".") or "\0" in segment for segment in segments):
            raise BadPath(f"there is nothing at {path[:200]}")
        full = os.path.join(self._root, *segments)
        for packed in (True, False) if takes_packed and _ending(path) in PACKED else (False,):
            real = os.path.realpath(full + ".gz" if packed else full)
            try:
                status = os.stat(real)
            except (OSError, UnicodeEncodeError):
                continue
            # After links were followed: one that leads out is not ours to serve.
            if not real.startswith(self._root + os.sep) or not stat.S_ISREG(status.st_mode):
                continue
            etag = f'"{status.st_mtime_ns:x}-{status.st_size:x}{"-gz" if packed else ""}"'.encode()
            return File(real, segments[-1], status.st_size, etag, packed)
        raise BadPath(f"there is nothing at {path[:200]}")


_KEPT_BY_304 = frozenset((b"etag", b"cache-control", b"vary"))  # RFC 9110 15.4.5, 304 Not Modified


def page(body: bytes, content_type: str, *headers: tuple[bytes, bytes]) -> Whole:
    """A small answer that is made for each request."""
    found = [(b"content-type", content_type.encode()), (b"content-length", b"%d" % len(body))]
    return Whole(200, [*found, (b"cache-control", b"no-cache"), *headers], body)


def redirect(location: str) -> Whole:
    """A lasting redirect to a place relative to the path that was asked for."""
    return Whole(308, [(b"location", location.encode("latin-1", "replace")), (b"content-length", b"0")], b"")


def prefix_of(request: Request) -> str:
    """What a proxy has in front of our paths, "" or "/pacs": pages write it before paths of this origin."""
    base = context_of(request).base_url(request)
    return "/".join(["", *base.split("/")[3:]]).removesuffix(ROOT)
