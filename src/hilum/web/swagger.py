"""The description of all services, /openapi.yaml, and a page that shows it, /swagger/. Needs no other host.

Swagger UI 5 lies in the folder `swagger` as its makers distribute it (swagger-ui-dist); the page around it is
ours, since theirs comes with an address of theirs in it.
"""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.routing import Route

from hilum.web import static
from hilum.web.answers import Answer

# Swagger UI sets styles of elements, and has its arrows as data: in its style sheet.
_POLICY = (
    b"content-security-policy",
    b"default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    b"connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
)

_HERE = Path(__file__).resolve().parent
_description = static.Folder(str(_HERE))
_files = static.Folder(str(_HERE / "swagger"), _POLICY)


async def description(request: Request) -> Answer:
    """GET /openapi.yaml"""
    return await _description.answer(request, "openapi.yaml")


async def index(request: Request) -> Answer:
    """GET /swagger/"""
    if not request.scope["path"].endswith("/"):
        return static.redirect("swagger/")
    return await _files.answer(request, "index.html")


async def file(request: Request) -> Answer:
    """GET /swagger/{path}"""
    return await _files.answer(request, request.path_params["path"])


def routes() -> list[Route]:
    """The description and its page."""
    return [
        Route("/openapi.yaml", description),
        Route("/swagger", index),
        Route("/swagger/{path:path}", file),
    ]
