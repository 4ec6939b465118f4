"""The plain page at `/`: studies, search, thumbnails, upload. Gives its files and no data. All that it
shows it asks of the same services that every other client uses.
"""

from __future__ import annotations

import html
from pathlib import Path

from starlette.requests import Request
from starlette.routing import Route

from hilum.web import static, viewer
from hilum.web.answers import Answer
from hilum.web.context import context_of

# Nothing from elsewhere and nothing inline: text of a data set could not run even where it became markup.
_POLICY = (
    b"content-security-policy",
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    b"form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
)
_REFERRER = b"referrer-policy", b"same-origin"

_FOLDER = Path(__file__).resolve().parent / "pages"
_files = static.Folder(str(_FOLDER), _POLICY)


async def index(request: Request) -> Answer:
    """GET /"""
    context = context_of(request)
    link = viewer.link_of(context.settings.viewer)
    text = await context.run((_FOLDER / "index.html").read_text, "utf-8")
    for name, value in (("LABEL", link.label if link else ""), ("PATH", link.path if link else "")):
        text = text.replace(f"%VIEWER_{name}%", html.escape(value))
    return static.page(text.encode(), "text/html; charset=utf-8", _POLICY, _REFERRER)


async def file(request: Request) -> Answer:
    """GET /pages/{path}"""
    return await _files.answer(request, request.path_params["path"])


def routes() -> list[Route]:
    """The page, and what it is made of."""
    return [Route("/", index), Route("/pages/{path:path}", file)]
