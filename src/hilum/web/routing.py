"""Takes Starlette routes; finds the one for a path and a method in one walk. Never calls a handler.

Starlette tries one pattern after the other: with four roots over sixty routes that costs more than reading a
frame. Here a path goes down a tree, a segment at a step; a name goes before a parameter.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from starlette.routing import Route

from hilum.web.errors import BadPath, MethodNotAllowed


class Found(NamedTuple):
    """A route for a path and method."""

    route: Route
    params: dict[str, str]
    template: str  # "/studies/{study}", the same for all roots: a label of metrics


class _Node:
    __slots__ = ("below", "name", "param", "rest", "rest_name", "routes")

    def __init__(self) -> None:
        self.below: dict[str, _Node] = {}
        self.param: _Node | None = None
        self.name = ""  # of the parameter that led here
        self.routes: dict[str, tuple[Route, str]] = {}  # by method
        self.rest: dict[str, tuple[Route, str]] = {}  # those that take the rest of the path, by method
        self.rest_name = ""


class Router:
    """Routes under their prefixes."""

    def __init__(self) -> None:
        self._top = _Node()

    def add(self, prefix: str, routes: Iterable[Route]) -> None:
        """Add routes below a prefix ("" or "/dicom-web")."""
        for route in routes:
            assert route.methods, f"{route.path} must name its methods"
            node = self._top
            for segment in (prefix + route.path).strip("/").split("/"):
                if segment.startswith("{") and segment.endswith(":path}"):
                    node.rest_name = segment[1:-6]
                    _enter(node.rest, route)
                    break
                if segment.startswith("{"):
                    if node.param is None:
                        node.param = _Node()
                        node.param.name = segment[1:-1]
                    assert node.param.name == segment[1:-1], f"{route.path}: one name for one place"
                    node = node.param
                else:
                    node = node.below.setdefault(segment, _Node())
            else:
                _enter(node.routes, route)

    def find(self, method: str, path: str) -> Found:
        """The route of a path; a slash at its end is left out.

        Raises:
            BadPath: there is none.
            MethodNotAllowed: there is, for other methods.
        """
        routes, params = self._walk(path)
        found = routes.get(method)
        if found is None:
            raise MethodNotAllowed(
                f"{method[:20]} is not offered at {path[:200]}", allowed=(*sorted(routes), "OPTIONS")
            )
        return Found(found[0], params, found[1])

    def allowed(self, path: str) -> list[str]:
        """The methods of a path.

        Raises:
            BadPath: there is nothing.
        """
        return [*sorted(self._walk(path)[0]), "OPTIONS"]

    def _walk(self, path: str) -> tuple[dict[str, tuple[Route, str]], dict[str, str]]:
        if path[:1] != "/":  # "OPTIONS *"
            raise BadPath(f"there is nothing at {path[:200]}")
        segments = path[1:].split("/")
        if segments[-1] == "" and len(segments) > 1:
            segments.pop()
        params: dict[str, str] = {}
        rest: tuple[_Node, int] | None = None
        node = self._top
        routes = node.routes
        for depth, segment in enumerate(segments):
            if node.rest:
                rest = node, depth
            below = node.below.get(segment)
            if below is None:
                below = node.param
                if below is None or not segment:
                    routes = {}
                    break
                params[below.name] = segment
            node = below
            routes = node.routes
        if not routes and rest is not None:
            node, depth = rest
            params[node.rest_name] = "/".join(segments[depth:])
            routes = node.rest
        if not routes:
            raise BadPath(f"there is nothing at {path[:200]}")
        return routes, params


def _enter(routes: dict[str, tuple[Route, str]], route: Route) -> None:
    for method in route.methods or ():
        assert method not in routes, f"{method} {route.path} is there twice"
        routes[method] = route, route.path
