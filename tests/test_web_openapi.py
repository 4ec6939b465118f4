"""The description of the services against the application: no route without a description, none described
that is not there, and nothing in it that leads nowhere. And its page, which must need nobody else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from makers import make_object
from starlette.routing import Route
from starlette.testclient import TestClient
from webclient import ROOT, client_of, serving

import hilum
from hilum.web import app, swagger
from hilum.web.routing import Router

DESCRIPTION: dict[str, Any] = yaml.safe_load(
    (Path(swagger.__file__).parent / "openapi.yaml").read_text(encoding="utf-8")
)
ALIASES = tuple(root for root in app.ROOTS if root != ROOT)
# What a browser is shown; people don't call it.
PAGES = ("/", "/pages/{path:path}", "/swagger", "/swagger/{path:path}")


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> set[tuple[str, str]]:
    """Method and path of each route of an application without a viewer."""
    found: set[tuple[str, str]] = set()

    class Recorder(Router):
        def add(self, prefix: str, routes: Any) -> None:
            routes = list(routes)
            for route in routes:
                assert isinstance(route, Route)
                found.update((method, prefix + route.path) for method in route.methods or ())
            super().add(prefix, routes)

    monkeypatch.setattr(app, "Router", Recorder)
    with hilum.open(tmp_path / "store", create=True) as store, client_of(store):
        return found


def described() -> set[tuple[str, str]]:
    found = set()
    for path, item in DESCRIPTION["paths"].items():
        item = resolve(item)
        found |= {(method.upper(), path) for method in item if method != "parameters"}
    return found


def resolve(node: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in node:
        found: Any = DESCRIPTION
        for step in node["$ref"].removeprefix("#/").split("/"):
            found = found[step]
        node = found
    return node


def walk(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    yield path, node
    if isinstance(node, dict):
        for key, value in node.items():
            yield from walk(value, f"{path}/{key}")
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from walk(value, f"{path}/{index}")


def test_each_route_is_described(served):
    ours = {
        (method, path)
        for method, path in served
        if method != "HEAD" and path not in PAGES and not path.startswith(tuple(f"{a}/" for a in ALIASES))
    }
    assert ours - described() == set()


def test_each_route_that_is_described_is_there(served):
    assert described() - served == set()


def test_the_aliases_have_what_the_root_has(served):
    below = {(method, path.removeprefix(ROOT)) for method, path in served if path.startswith(f"{ROOT}/")}
    for alias in ALIASES:
        found = {
            (method, path.removeprefix(alias)) for method, path in served if path.startswith(f"{alias}/")
        }
        assert found == below


def test_head_is_there_wherever_get_is(served):
    assert {path for method, path in served if method == "GET"} == {
        path for method, path in served if method == "HEAD"
    }


def test_all_references_lead_somewhere():
    references = [
        (path, node) for path, node in walk(DESCRIPTION) if isinstance(node, dict) and "$ref" in node
    ]
    assert len(references) > 100
    for _, node in references:
        assert isinstance(resolve(node), dict)


def test_nothing_is_described_that_nothing_refers_to():
    used = {node["$ref"] for _, node in walk(DESCRIPTION) if isinstance(node, dict) and "$ref" in node}
    for kind, members in DESCRIPTION["components"].items():
        if kind != "securitySchemes":
            assert {f"#/components/{kind}/{name}" for name in members} <= used


def test_each_place_in_a_path_has_its_parameter():
    for path, item in DESCRIPTION["paths"].items():
        item = resolve(item)
        for method in item.keys() - {"parameters"}:
            parameters = [*item.get("parameters", ()), *item[method].get("parameters", ())]
            names = {found["name"] for found in map(resolve, parameters) if found["in"] == "path"}
            assert names == set(re.findall(r"{(\w+)}", path)), (method, path)


def test_each_operation_has_a_name_of_its_own_words_and_the_answers_to_mistakes():
    names = []
    for path, item in DESCRIPTION["paths"].items():
        for method, operation in resolve(item).items():
            if method == "parameters":
                continue
            assert operation["summary"], path
            assert operation["tags"][0] in {tag["name"] for tag in DESCRIPTION["tags"]}
            assert {"4XX", "5XX"} <= operation["responses"].keys(), (method, path)
            names.append(operation.get("operationId"))
    names = [name for name in names if name]
    assert len(names) == len(set(names))


def test_it_is_openapi_3_1_and_served_as_yaml(tmp_path):
    with serving(tmp_path) as (client, _):
        answer = client.get("/openapi.yaml")

    assert answer.headers["content-type"] == "application/yaml"
    assert yaml.safe_load(answer.text) == DESCRIPTION
    assert DESCRIPTION["openapi"].startswith("3.1.")


ASKED = {
    "study": "2.25.2", "series": "2.25.3", "instance": "2.25.1", "frames": "1", "path": "7FE00010",
}  # fmt: skip
QUERIES = {
    "/wado": "requestType=WADO&studyUID=2.25.2&seriesUID=2.25.3&objectUID=2.25.1",
    "/lookup": "id=2.25.1",
    "/dicom-web/lookup": "id=2.25.1",
}


@pytest.fixture(scope="module")
def client(tmp_path_factory) -> Iterator[TestClient]:
    data = make_object("2.25.1", "2.25.2", "2.25.3", pixels=b"\1\2" * 2048, rows=64, columns=32)
    with serving(tmp_path_factory.mktemp("openapi"), [data]) as (client, _):
        yield client


@pytest.mark.parametrize(
    "path", [path for path in DESCRIPTION["paths"] if "get" in resolve(DESCRIPTION["paths"][path])]
)
def test_what_is_answered_is_of_a_status_and_a_type_that_are_described(client, path):
    answers = resolve(DESCRIPTION["paths"][path])["get"]["responses"]

    answer = client.get(path.format(**ASKED), params=QUERIES.get(path, ""))

    assert answer.status_code == 200, answer.text
    kind = answer.headers["content-type"].partition(";")[0]
    content = resolve(answers["200"])["content"]
    assert kind in content or f"{kind.partition('/')[0]}/*" in content, kind


# --- Its page --------------------------------------------------------------------------


def test_the_page_of_the_description_needs_no_other_host(client):
    page = client.get("/swagger/")

    assert page.headers["content-type"].startswith("text/html")
    sources = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(sources) >= 4
    for source in sources:
        assert "//" not in source
        assert client.get("/swagger/" + source).status_code == 200
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    assert "http" not in policy


def test_the_page_without_its_slash_leads_to_the_one_with_it(client):
    answer = client.get("/swagger", follow_redirects=False)

    assert (answer.status_code, answer.headers["location"]) == (308, "swagger/")


def test_the_page_reads_our_description_and_asks_no_other_host_to_check_it(client):
    script = client.get("/swagger/start.js").text

    assert '"../openapi.yaml"' in script
    assert "validatorUrl: null" in script


def test_the_licence_of_its_makers_comes_along(client):
    assert "Apache License" in client.get("/swagger/LICENSE").text
