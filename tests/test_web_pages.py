"""The plain page at / as it is sent: what it may load, and that nothing of a data set can become markup in
it. What it does in a browser is tested in peers/test_browser.py."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from starlette.testclient import TestClient
from webclient import serving

from hilum.web import pages

FOLDER = Path(pages.__file__).parent / "pages"
SCRIPTS = sorted(FOLDER.glob("*.js"))


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    with serving(tmp_path) as (client, _):
        yield client


class Elements(HTMLParser):
    """All elements of a page with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_the_page_is_at_the_top(client):
    answer = client.get("/")

    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "<title>Hilum</title>" in answer.text


def test_all_that_the_page_refers_to_is_served_from_here(client):
    found = Elements(client.get("/").text).found
    references = [
        value
        for tag, attributes in found
        for key, value in attributes.items()
        if value and key in ("src", "href") and tag != "a"
    ]
    assert len(references) >= 3
    for reference in references:
        assert "//" not in reference
        assert client.get(f"/{reference}").status_code == 200
    for tag, attributes in found:
        if tag == "a" and (place := attributes.get("href")) and not place.startswith("#"):
            assert client.get(f"/{place}").status_code == 200


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_each_script_is_served_as_one_and_imports_only_what_is_there(client, script):
    answer = client.get(f"/pages/{script.name}")

    assert answer.headers["content-type"].startswith("text/javascript")
    for name in re.findall(r'from "([^"]+)"', answer.text):
        assert (FOLDER / name).is_file()


def test_its_policy_lets_nothing_run_but_our_files_and_nobody_frame_it(client):
    for path in ("/", "/pages/page.js"):
        policy = dict(
            part.strip().split(" ", 1)
            for part in client.get(path).headers["content-security-policy"].split(";")
        )
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"


def test_nothing_stands_in_the_page_that_its_policy_forbids(client):
    text = client.get("/").text
    for tag, attributes in Elements(text).found:
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
        assert tag != "style"
        assert tag != "script" or "src" in attributes


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_no_script_makes_markup_of_text(script):
    text = script.read_text(encoding="utf-8")
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|createContextualFragment|DOMParser"
        r"|\beval\(|new Function|srcdoc|setHTML|javascript:",
        text,
    )


def test_nothing_of_it_comes_from_another_host():
    for path in FOLDER.iterdir():
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://(?!host/)", text), path.name


def test_without_a_viewer_there_is_no_link_to_one(client):
    assert '<meta name="viewer" content="" data-label="">' in client.get("/").text


def test_with_a_viewer_the_page_knows_where_it_is(tmp_path):
    build = tmp_path / "build"
    build.mkdir()
    (build / "index.html").write_text("theirs")
    with serving(tmp_path, viewer={"name": str(build)}) as (client, _):
        assert '<meta name="viewer" content="viewer/" data-label="Viewer">' in client.get("/").text


@pytest.mark.parametrize("path", ["/pages/..%2fapp.py", "/pages/../app.py", "/pages/", "/pages/missing.js"])
def test_no_path_below_it_leads_elsewhere(client, path):
    assert client.get(path).status_code == 404


def test_files_are_asked_for_again_so_that_a_new_version_is_seen(client):
    answer = client.get("/pages/page.js")

    assert answer.headers["cache-control"] == "no-cache"
    etag = answer.headers["etag"]
    assert client.get("/pages/page.js", headers={"if-none-match": etag}).status_code == 304
