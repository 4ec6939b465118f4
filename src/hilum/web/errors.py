"""Which error is which status, and its body: JSON with a status and words. One table for all handlers.

Errors that only HTTP has are classes here, so that a handler raises and never builds an error answer.
"""

from __future__ import annotations

import orjson
from starlette.responses import Response

from hilum import errors


class BadPath(errors.RequestFault):
    """No resource has this path."""


class MethodNotAllowed(errors.RequestFault):
    """The resource is there, but not for this method; `allowed` are those it has."""

    def __init__(self, reason: str, *, allowed: tuple[str, ...]) -> None:
        super().__init__(reason)
        self.allowed = allowed


class NotAcceptable(errors.RequestFault):
    """Nothing that can be given fits what Accept allows."""


class UnsupportedMediaType(errors.RequestFault):
    """The body is of a type that is not taken here."""


class TooLarge(errors.RequestFault):
    """The body, or a part of it, is over a limit."""


class TooMany(errors.RequestFault):
    """More UIDs, frames, ranges or parts in one request than the settings allow."""


class BadRange(errors.RequestFault):
    """None of the byte ranges lies in the value; `length` is that of the whole."""

    def __init__(self, reason: str, *, length: int) -> None:
        super().__init__(reason)
        self.length = length


class ClientGone(errors.RequestFault):
    """The client has closed its connection, or sends nothing any more."""


class Forbidden(errors.RequestFault):
    """The settings don't allow it."""


class WrongHost(errors.RequestFault):
    """The Host that is asked for is none of ours."""


class NotAuthorized(errors.RequestFault):
    """No name and password, or wrong ones."""


# A class stands for those below it that are not named. The tests hold every class of the tree against this.
STATUS: dict[type[errors.HilumError], int] = {
    errors.RequestFault: 400,
    errors.BadQuery: 400,
    # What is stored, or a frame of it, can't be given in any form that was asked for.
    errors.BadDicom: 406,
    errors.NotDicom: 406,
    errors.Unsupported: 406,
    errors.NotFound: 404,
    errors.Conflict: 409,
    errors.Busy: 503,
    errors.StoreFault: 500,
    errors.Corrupt: 500,
    errors.StoreMissing: 503,
    errors.StoreLocked: 503,
    errors.StoreBroken: 503,
    errors.ReadOnly: 403,
    BadPath: 404,
    MethodNotAllowed: 405,
    NotAcceptable: 406,
    UnsupportedMediaType: 415,
    TooLarge: 413,
    TooMany: 400,
    BadRange: 416,
    ClientGone: 408,
    Forbidden: 403,
    WrongHost: 421,
    NotAuthorized: 401,
}


def status_of(failure: errors.HilumError) -> int:
    """The status of an error, by the nearest class that the table has."""
    for kind in type(failure).__mro__:
        if kind in STATUS:
            return STATUS[kind]
    return 500


def error_response(status: int, words: str, request_id: str = "") -> Response:
    """An error as JSON, for people who read it and programs that parse it."""
    document: dict[str, str | int] = {"status": status, "error": words}
    if request_id:
        document["request"] = request_id
    body = orjson.dumps({name: _sayable(value) for name, value in document.items()})
    return Response(body, status, media_type="application/json")


def response_for(failure: errors.HilumError, request_id: str = "") -> Response:
    """The answer to a request that failed by one of our own errors."""
    status = status_of(failure)
    answer = error_response(status, str(failure) or type(failure).__name__, request_id)
    if isinstance(failure, MethodNotAllowed):
        answer.headers["allow"] = ", ".join(failure.allowed)
    elif isinstance(failure, BadRange):
        answer.headers["content-range"] = f"bytes */{failure.length}"
    elif isinstance(failure, NotAuthorized):
        # PS3.18 leaves authentication to HTTP: RFC 7617, The 'Basic' HTTP Authentication Scheme.
        answer.headers["www-authenticate"] = 'Basic realm="Hilum", charset="UTF-8"'
    elif status == 503:
        answer.headers["retry-after"] = "5"
    return answer


def _sayable(value: str | int) -> str | int:
    """Text that JSON can hold: paths of requests may come with half surrogates."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
