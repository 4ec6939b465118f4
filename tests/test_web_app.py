"""What all answers have in common: routes, statuses, headers, limits, logs, metrics; the change feed, the
look-up and DELETE."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from makers import make_object
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from webclient import ROOT, serving

import hilum
from hilum import errors as engine_errors
from hilum.settings import Log, Settings
from hilum.web import errors
from hilum.web.app import App, make_app
from hilum.web.context import context_of
from hilum.web.logs import Clock, LogFile, printable
from hilum.web.routing import Router

FILES = [make_object(f"1.2.{n}", "1.2", "1.2.0", instance_number=n) for n in (1, 2)]


@pytest.fixture
def client(tmp_path) -> Iterator[TestClient]:
    with serving(tmp_path, FILES, log={"file": str(tmp_path / "log")}) as (client, _):
        yield client


def app_of(client: TestClient) -> App:
    app = client.app
    assert isinstance(app, App)
    return app


def add(client: TestClient, endpoint: Any, path: str = "/test", methods: list[str] | None = None) -> None:
    """Give the application one more resource."""
    app_of(client).router.add("", [Route(path, endpoint, methods=methods)])


def log_of(client: TestClient) -> str:
    app = app_of(client)
    app.log_file.flush()
    return Path(app.context.settings.log.file).read_text(encoding="utf-8")


# Errors and statuses.


def below(kind: type[engine_errors.HilumError]) -> Iterator[type[engine_errors.HilumError]]:
    for one in kind.__subclasses__():
        yield one
        yield from below(one)


def test_every_error_of_the_tree_has_a_status_of_its_own():
    ours = {kind for kind in below(engine_errors.HilumError) if kind.__module__.startswith("hilum.")}
    tree = {kind for kind in ours if kind.__module__ in ("hilum.errors", "hilum.web.errors")}

    assert tree == set(errors.STATUS)
    for kind in ours - tree:
        if not kind.__module__.startswith(("hilum.web.", "hilum.engine.", "hilum.pixels.")):
            continue  # of a front end beside this one, whose errors never come here
        named = next(one for one in kind.__mro__ if one in errors.STATUS)
        assert named not in (engine_errors.RequestFault, engine_errors.StoreFault), kind


def test_only_faults_of_the_store_and_too_much_work_are_errors_of_the_server():
    ours = {kind for kind, status in errors.STATUS.items() if status >= 500}

    assert all(issubclass(kind, engine_errors.StoreFault | engine_errors.Busy) for kind in ours)
    assert errors.STATUS[engine_errors.Corrupt] == 500
    assert errors.STATUS[engine_errors.StoreBroken] == 503


def test_a_class_that_the_table_lacks_has_the_status_of_the_one_above():
    class Odd(engine_errors.NotFound):
        pass

    try:
        assert errors.status_of(Odd("x")) == 404
        assert errors.status_of(engine_errors.HilumError("x")) == 500
    finally:
        engine_errors.NotFound.__subclasses__()  # the class is gone with this function


@pytest.mark.parametrize(
    "path",
    ["/nothing", ROOT, f"{ROOT}/", f"{ROOT}/nothing", f"{ROOT}//studies", f"{ROOT}/studies/1.2/nothing",
     "/%00", "/..%2f..%2fetc%2fpasswd", "/%ff"],
)  # fmt: skip
def test_a_path_that_nothing_is_at_is_404_in_words(client, path):
    answer = client.get(path)

    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/json"
    document = answer.json()
    assert document["status"] == 404
    assert document["request"] == answer.headers["x-request-id"]
    assert len(document["error"]) > 10


@pytest.mark.parametrize(
    ("method", "path"),
    [("PUT", "/studies"), ("PATCH", "/studies/1.2"), ("POST", "/series"), ("DELETE", "/studies"),
     ("NONSENSE", "/instances")],
)  # fmt: skip
def test_another_method_is_405_and_says_which_there_are(client, method, path):
    answer = client.request(method, ROOT + path)

    assert answer.status_code == 405
    assert "OPTIONS" in answer.headers["allow"]
    assert method not in answer.headers["allow"].split(", ")


def test_options_says_what_a_path_offers(client):
    answer = client.options(f"{ROOT}/studies")

    assert answer.status_code == 204
    assert {"GET", "HEAD", "OPTIONS"} <= set(answer.headers["allow"].split(", "))
    assert client.options("/nothing").status_code == 404


def test_a_uid_that_is_none_is_400_and_one_that_is_not_stored_is_404(tmp_path):
    with serving(tmp_path, storing={"allow_delete": True}) as (client, _):
        assert client.delete(f"{ROOT}/studies/1.2.3").status_code == 404
        answer = client.delete(f"{ROOT}/studies/abc")

    assert answer.status_code == 400
    assert "'abc' is no UID" in answer.json()["error"]


def test_a_failure_that_nobody_thought_of_is_500_without_its_words(client):
    async def fail(request: Request) -> Response:
        raise LookupError("Doe^Jane")

    add(client, fail)
    answer = client.get("/test")

    assert answer.status_code == 500
    assert "Doe" not in answer.text
    assert "Traceback" not in answer.text
    log = log_of(client)
    assert answer.json()["request"] in log
    assert "LookupError" in log
    assert "in fail" in log or " fail\n" in log
    assert "Doe" not in log


def test_a_fault_of_the_store_is_logged_in_its_own_words(client):
    async def fail(request: Request) -> Response:
        raise engine_errors.Corrupt("pack 7 is rotten")

    add(client, fail)

    assert client.get("/test").status_code == 500
    assert "Corrupt: pack 7 is rotten" in log_of(client)


def test_an_answer_that_breaks_off_is_never_taken_for_a_whole_one(client):
    async def pieces() -> AsyncIterator[bytes]:
        yield b"one"
        raise engine_errors.Corrupt("pack 7 is rotten")

    async def half(request: Request) -> Response:
        return StreamingResponse(pieces())

    app = app_of(client)
    add(client, half)
    sent = asyncio.run(exchange(app, "/test"))

    assert sent[0]["status"] == 200
    assert sent[-1]["type"] != "http.response.body" or sent[-1]["more_body"]


async def exchange(
    app: App, path: str, headers: list[tuple[bytes, bytes]] | None = None
) -> list[dict[str, Any]]:
    """What the application sends for a request, message for message."""
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "scheme": "http",
        "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "",
        "headers": [(b"host", b"localhost"), *(headers or [])], "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80), "state": {},
    }  # fmt: skip
    sent: list[dict[str, Any]] = []

    requests = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> dict[str, Any]:
        return requests.pop() if requests else await asyncio.Future()

    async def send(message: Any) -> None:
        sent.append(dict(message))

    await app(scope, receive, send)
    return sent


# Headers.


@pytest.mark.parametrize("path", ["/healthz", "/nothing", f"{ROOT}/studies"])
def test_every_answer_has_its_id_and_is_taken_for_what_it_says_it_is(client, path):
    answers = [client.get(path) for _ in range(3)]

    assert len({answer.headers["x-request-id"] for answer in answers}) == 3
    assert all(answer.headers["x-content-type-options"] == "nosniff" for answer in answers)


@pytest.mark.parametrize(
    ("asked", "taken"),
    [("abc-1.2_3", True), ("a" * 64, True), ("a" * 65, False), ("a b", False), ("a\tb", False), ("", False),
     ("é", False)],
)  # fmt: skip
def test_an_id_that_comes_with_a_request_is_taken_if_it_is_harmless(client, asked, taken):
    answer = client.get("/healthz", headers={"x-request-id": asked.encode()})

    assert (answer.headers["x-request-id"] == asked) is taken


def test_pages_and_scripts_are_isolated_and_data_is_not(tmp_path):
    async def page(request: Request) -> Response:
        return Response("<p>", media_type=request.query_params["type"])

    for isolated in (True, False):
        with serving(tmp_path / str(isolated), cors={"isolate_pages": isolated}) as (client, _):
            add(client, page)
            for kind in ("text/html", "text/javascript", "application/javascript"):
                headers = client.get("/test", params={"type": kind}).headers
                assert (headers.get("cross-origin-opener-policy") == "same-origin") is isolated
                assert (headers.get("cross-origin-embedder-policy") == "require-corp") is isolated
            headers = client.get("/test", params={"type": "application/json"}).headers
            assert "cross-origin-embedder-policy" not in headers


# Packing.


BODY = json.dumps(["words"] * 1000).encode()


@pytest.mark.parametrize(
    ("kind", "status", "extra", "packed"),
    [
        ("application/json", 200, {}, True),
        ("application/dicom+json; charset=utf-8", 200, {}, True),
        ("application/dicom+xml", 200, {}, True),
        ("text/html", 200, {}, True),
        ("application/json", 404, {}, True),
        ("application/json", 206, {}, False),
        ("application/json", 200, {"content-encoding": "identity"}, False),
        ("application/octet-stream", 200, {}, False),
        ("image/jpeg", 200, {}, False),
        ('multipart/related; type="application/dicom+xml"', 200, {}, False),
    ],
)
def test_text_is_packed_and_nothing_else(client, kind, status, extra, packed):
    async def give(request: Request) -> Response:
        return Response(BODY, status, headers={"content-type": kind, "etag": '"x"', **extra})

    add(client, give)
    answer = client.get("/test", headers={"accept-encoding": "gzip"})

    assert (answer.headers.get("content-encoding") == "gzip") is packed
    assert answer.content == BODY
    # What is packed is not the same byte for byte: RFC 9110 8.8.1.
    assert answer.headers["etag"] == ('W/"x"' if packed else '"x"')
    if packed:
        assert answer.headers["vary"] == "Accept-Encoding"


@pytest.mark.parametrize("accept", ["identity", "br", "gzip;q=0", "gzip; q=0"])
def test_nothing_is_packed_for_a_client_that_does_not_want_it(client, accept):
    async def give(request: Request) -> Response:
        return Response(BODY, media_type="application/json")

    add(client, give)

    assert "content-encoding" not in client.get("/test", headers={"accept-encoding": accept}).headers


def test_what_is_packed_already_passes_as_it_is(client):
    async def give(request: Request) -> Response:
        return Response(
            gzip.compress(BODY), headers={"content-type": "application/json", "content-encoding": "gzip"}
        )

    add(client, give)

    assert client.get("/test").content == BODY


def test_a_streamed_text_arrives_whole_and_a_short_one_is_left_alone(client):
    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(BODY), 1000):
            yield BODY[at : at + 1000]

    async def stream(request: Request) -> Response:
        return StreamingResponse(pieces(), media_type="application/json")

    async def short(request: Request) -> Response:
        return Response(b"[]", media_type="application/json")

    add(client, stream)
    add(client, short, "/short")

    assert client.get("/test", headers={"accept-encoding": "gzip"}).content == BODY
    answer = client.get("/short", headers={"accept-encoding": "gzip"})
    assert (answer.content, "content-encoding" in answer.headers) == (b"[]", False)


def test_a_head_request_runs_the_handler_and_sends_no_body(client):
    async def pieces() -> AsyncIterator[bytes]:
        yield b"one"
        yield b"two"

    async def stream(request: Request) -> Response:
        return StreamingResponse(pieces(), headers={"x-made": "yes"})

    add(client, stream)
    sent = client.head("/test")

    assert sent.headers["x-made"] == "yes"
    assert sent.content == b""


# Bodies.


async def count_body(request: Request) -> Response:
    size = 0
    async for piece in request.stream():
        size += len(piece)
    return Response(str(size))


def chunks(*pieces: bytes) -> Iterator[bytes]:
    yield from pieces


def test_a_body_within_the_limit_is_read_and_one_over_it_is_413(tmp_path):
    with serving(tmp_path, limits={"body_bytes": 10}) as (client, _):
        add(client, count_body, methods=["POST"])

        assert client.post("/test", content=b"1234567890").text == "10"
        assert client.post("/test", content=chunks(b"12345", b"67890")).text == "10"
        for body in (b"12345678901", chunks(b"12345", b"678901")):
            answer = client.post("/test", content=body)
            assert answer.status_code == 413
            assert "10 bytes" in answer.json()["error"]
            assert answer.headers["connection"] == "close"


@pytest.mark.parametrize("length", ["-1", "x", "1e3", "9" * 30])
def test_a_length_that_is_none_is_413(client, length):
    add(client, count_body, methods=["POST"])

    assert client.post("/test", content=b"", headers={"content-length": length}).status_code == 413


def test_a_client_that_sends_nothing_more_is_given_up(tmp_path):
    with serving(tmp_path, limits={"idle_seconds": 0.01}) as (client, _):
        app = app_of(client)

        async def forever() -> dict[str, Any]:
            await asyncio.sleep(60)
            return {}

        add(client, count_body, methods=["POST"])
        sent: list[dict[str, Any]] = []

        async def run() -> None:
            async def send(message: Any) -> None:
                sent.append(message)

            scope = {
                "type": "http", "http_version": "1.1", "method": "POST", "scheme": "http", "path": "/test",
                "query_string": b"", "root_path": "", "headers": [(b"host", b"localhost")],
                "client": None, "server": None,
            }  # fmt: skip
            await app(scope, forever, send)

        asyncio.run(run())

    assert sent[0]["status"] == 408


# Where we are asked.


@pytest.mark.parametrize(
    ("settings", "headers", "expected"),
    [
        ({}, {}, "http://localhost"),
        ({}, {"host": "127.0.0.1:8042"}, "http://127.0.0.1:8042"),
        ({}, {"forwarded": "host=evil.example;proto=https", "x-forwarded-host": "evil.example"},
         "http://localhost"),
        ({"base_url": "https://pacs.example.org/a/dicom-web/"}, {"x-forwarded-host": "evil.example"},
         "https://pacs.example.org/a"),
        ({"trusted_proxies": ["192.0.2.0/24"]}, {"x-forwarded-host": "evil.example"}, "http://localhost"),
        ({"trusted_proxies": ["127.0.0.0/8"]},
         {"x-forwarded-host": "pacs.example.org", "x-forwarded-proto": "https",
          "x-forwarded-prefix": "/pacs"},
         "https://pacs.example.org/pacs"),
        ({"trusted_proxies": ["127.0.0.1"]},
         {"forwarded": 'for=1.2.3.4;host="pacs.example.org:8443";proto=https'},
         "https://pacs.example.org:8443"),
        ({"trusted_proxies": ["127.0.0.1"]},
         {"forwarded": "host=evil.example;proto=http, for=1.2.3.4;host=pacs.example.org;proto=https"},
         "https://pacs.example.org"),
        ({"trusted_proxies": ["127.0.0.1"]}, {"x-forwarded-host": "evil.example, pacs.example.org"},
         "http://pacs.example.org"),
        ({"trusted_proxies": ["127.0.0.1"]}, {"x-forwarded-host": "a b", "x-forwarded-proto": "gopher",
         "x-forwarded-prefix": "//evil"}, "http://localhost"),
        ({"trusted_proxies": ["127.0.0.1"]}, {"x-forwarded-prefix": '/a"b'}, "http://localhost"),
    ],
)  # fmt: skip
def test_our_urls_begin_as_the_settings_or_a_trusted_proxy_say(tmp_path, settings, headers, expected):
    with serving(tmp_path, FILES, http=settings) as (client, _):
        client_at = TestClient(client.app, base_url="http://localhost", client=("127.0.0.1", 5))
        answer = client_at.get(f"{ROOT}/studies", headers=headers)

    assert answer.json()[0]["00081190"]["Value"] == [f"{expected}{ROOT}/studies/1.2"]


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", "127.0.0.1:8042"),  # as dicomweb-client has it
        ("localhost", "localhost:8042"),
        ("127.0.0.1:80", "127.0.0.1:80"),
        ("localhost:9", "localhost:9"),
        ("192.0.2.7", "192.0.2.7"),  # a proxy's
        ("pacs.example.org", "pacs.example.org"),
    ],
)
def test_a_client_that_leaves_our_port_out_gets_urls_with_it(client, host, expected):
    app = app_of(client)
    scope = {
        "type": "http", "method": "GET", "scheme": "http", "path": "/", "query_string": b"", "client": None,
        "headers": [(b"host", host.encode())], "server": ("127.0.0.1", 8042), "app": app,
    }  # fmt: skip

    assert app.context.base_url(Request(scope)) == f"http://{expected}{ROOT}"


# Changes, look-up, DELETE.


def test_the_feed_says_what_happened_in_order_and_goes_on_from_there(tmp_path):
    with serving(tmp_path, FILES, storing={"allow_delete": True}) as (client, store):
        first = client.get("/changes").json()
        assert [change["change"] for change in first["changes"]] == ["stored", "stored"]
        assert first["changes"][0] == {
            "number": first["changes"][0]["number"],
            "change": "stored",
            "StudyInstanceUID": "1.2",
            "SeriesInstanceUID": "1.2.0",
            "SOPInstanceUID": "1.2.1",
        }
        assert not first["more"]
        assert client.get(f"/changes?since={first['last']}").json()["changes"] == []

        store.ingest(make_object("1.3.1", "1.3", "1.3.0"))
        client.delete(f"{ROOT}/studies/1.2/series/1.2.0/instances/1.2.1")
        then = client.get(f"{ROOT}/changes?since={first['last']}").json()

    assert [(change["change"], change["SOPInstanceUID"]) for change in then["changes"]] == [
        ("stored", "1.3.1"),
        ("deleted", "1.2.1"),
    ]
    assert then["epoch"] == first["epoch"]


def test_the_feed_comes_in_pages_that_lose_nothing(client):
    numbers, since = [], 0
    while True:
        page = client.get(f"/changes?since={since}&limit=1").json()
        numbers += [change["SOPInstanceUID"] for change in page["changes"]]
        since = page["last"]
        if not page["more"]:
            break

    assert numbers == ["1.2.1", "1.2.2"]


def test_a_replaced_instance_is_told_as_replaced(tmp_path):
    with serving(tmp_path, FILES) as (client, store):
        store.ingest(
            make_object("1.2.1", "1.2", "1.2.0", name="Other"), policy=hilum.engine.writer.Policy.REPLACE
        )

        assert client.get("/changes").json()["changes"][-1]["change"] == "replaced"


def test_a_client_that_knows_another_epoch_is_told(client):
    epoch = client.get("/changes").json()["epoch"]

    assert client.get(f"/changes?since=1&epoch={epoch}").status_code == 200
    assert client.get("/changes?since=1&epoch=0123").status_code == 409


def test_a_rebuilt_index_has_another_epoch_and_the_same_changes(tmp_path):
    from hilum.engine.rebuild import rebuild

    with serving(tmp_path, FILES) as (client, _):
        before = client.get("/changes").json()
    rebuild(str(tmp_path / "store"))
    with serving(tmp_path) as (client, _):
        after = client.get("/changes").json()

    assert after["epoch"] != before["epoch"]
    assert after["changes"] == before["changes"]


@pytest.mark.parametrize(
    "query", ["since=x", "since=-1", "limit=x", "since=99999999999999999999", "since=%C2%B2"]
)
def test_a_feed_from_nowhere_is_400(client, query):
    assert client.get(f"/changes?{query}").status_code == 400


@pytest.mark.parametrize(
    ("identifier", "expected"),
    [
        ("1.2", [("studies", f"{ROOT}/studies/1.2")]),
        ("1.2.0", [("series", f"{ROOT}/studies/1.2/series/1.2.0")]),
        ("1.2.1", [("instances", f"{ROOT}/studies/1.2/series/1.2.0/instances/1.2.1")]),
        ("P1", [("patients", f"{ROOT}/studies?PatientID=P1")]),
        ("A1", [("studies", f"{ROOT}/studies/1.2")]),
    ],
)
def test_an_identifier_of_any_level_is_looked_up(client, identifier, expected):
    for path in ("/lookup", f"{ROOT}/lookup"):
        found = client.get(path, params={"id": identifier}).json()

        assert [(one["level"], one["url"].removeprefix("http://localhost")) for one in found] == expected


@pytest.mark.parametrize(
    ("identifier", "status"),
    [("nobody", 404), ("*", 404), ("P?", 404), ("1.2\\1.3", 404), ("", 400), ("x" * 200, 400), ("p1", 404)],
)
def test_what_is_no_identifier_of_anything_is_said(client, identifier, status):
    assert client.get("/lookup", params={"id": identifier}).status_code == status


@pytest.mark.parametrize(
    ("path", "left"),
    [
        ("/studies/1.2", 0),
        ("/studies/1.2/series/1.2.0", 0),
        ("/studies/1.2/series/1.2.0/instances/1.2.1", 1),
    ],
)
def test_delete_takes_what_the_path_names_and_says_204_then_404(tmp_path, path, left):
    with serving(tmp_path, FILES, storing={"allow_delete": True}) as (client, store):
        assert client.delete(ROOT + path).status_code == 204
        assert store.stats()["instances"] == left
        assert client.delete(ROOT + path).status_code == 404


@pytest.mark.parametrize(
    "path",
    [
        "/studies/1.9",
        "/studies/1.9/series/1.2.0",
        "/studies/1.2/series/1.2.9",
        "/studies/1.2/series/1.9/instances/1.2.1",
    ],
)
def test_delete_of_what_is_not_there_deletes_nothing(tmp_path, path):
    with serving(tmp_path, FILES, storing={"allow_delete": True}) as (client, store):
        assert client.delete(ROOT + path).status_code == 404
        assert store.stats()["instances"] == 2


@pytest.mark.parametrize("uid", ["*", "1.2%5C1.3", "1.2,1.3", "%3F", "1.*"])
def test_delete_takes_no_pattern_and_no_list(tmp_path, uid):
    with serving(tmp_path, FILES, storing={"allow_delete": True}) as (client, store):
        assert client.delete(f"{ROOT}/studies/{uid}").status_code == 400
        assert store.stats()["instances"] == 2


def test_delete_is_403_unless_it_is_switched_on(tmp_path):
    with serving(tmp_path, FILES) as (client, store):
        answer = client.delete(f"{ROOT}/studies/1.2")
        assert store.stats()["instances"] == 2

    assert answer.status_code == 403
    assert "storing.allow_delete" in answer.json()["error"]


# Health, metrics, logs.


def test_health_is_told_after_a_look_at_the_index(client, monkeypatch):
    assert client.get("/healthz").json() == {"status": "ok"}

    def broken(*args: object, **named: object) -> None:
        raise engine_errors.Corrupt("the index is damaged")

    monkeypatch.setattr(app_of(client).context.store, "changes", broken)

    assert client.get("/healthz").status_code == 500


def test_metrics_count_requests_by_route_and_status(client):
    for path in (
        f"{ROOT}/studies",
        "/qidors/studies",
        f"{ROOT}/studies/1.2/series",
        f"{ROOT}/studies/1.3/series",
    ):
        client.get(path)
    client.get("/nothing/1.2.3")
    text = client.get("/metrics").text

    def count(route: str, status: int) -> str:
        labels = f'{{method="GET",route="{route}",status="{status}"}}'
        return re.search(rf"hilum_request_seconds_count{re.escape(labels)} (\S+)", text)[1]

    assert count("/studies", 200) == "2.0"
    assert count("/studies/{study}/series", 200) == "2.0"
    assert count("none", 404) == "1.0"
    assert "hilum_request_seconds_bucket" in text
    assert re.search(r'hilum_sent_bytes_total{route="/studies"} [1-9]', text)
    assert "1.2.3" not in text, "a path is no label"


def test_an_unknown_method_is_no_label_of_its_own(client):
    for number in range(20):
        client.request(f"M{number}", "/nothing")

    assert len(set(re.findall(r'method="(\w+)"', client.get("/metrics").text))) < 5


def test_each_request_has_a_line_with_its_id_and_without_its_query(client):
    answer = client.get(f"{ROOT}/studies?PatientName=Doe^Jane")
    client.get("/a%0Ab%20c")
    lines = log_of(client).splitlines()

    assert re.fullmatch(
        rf"\d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{{3}}Z {answer.headers['x-request-id']} testclient GET "
        rf"{ROOT}/studies 200 \d+ \d+\.\d\dms",
        lines[0],
    )
    assert " /a\\nb\\x20c 404 " in lines[1]
    assert "Doe" not in "".join(lines)


def test_lines_of_requests_can_be_left_out(tmp_path):
    with serving(tmp_path, log={"file": str(tmp_path / "log"), "requests": False}) as (client, _):
        client.get("/healthz")
        assert log_of(client) == ""


def test_a_full_log_is_put_aside_and_the_oldest_goes(tmp_path):
    path = tmp_path / "logs" / "hilum.log"
    log = LogFile(Log(file=str(path), bytes_max=100, files=2))
    for number in range(20):
        log.write(f"{number:04d} " + "x" * 40)
        log.flush()
    log.close()

    files = sorted(path.parent.iterdir())
    assert [file.name for file in files] == ["hilum.log", "hilum.log.1", "hilum.log.2"]
    assert all(file.stat().st_size <= 100 for file in files)
    kept = "".join(file.read_text() for file in reversed(files))
    assert re.findall(r"(?m)^\d{4}", kept) == [f"{number:04d}" for number in range(20 - kept.count("\n"), 20)]


def test_two_processes_rotate_one_log_and_lose_no_line(tmp_path):
    settings = Log(file=str(tmp_path / "log"), bytes_max=500, files=100)
    logs = [LogFile(settings), LogFile(settings)]
    for number in range(200):
        logs[number % 2].write(f"{number:04d}")
        logs[number % 2].flush()
    for log in logs:
        log.close()

    lines = [line for file in tmp_path.iterdir() for line in file.read_text().splitlines()]
    assert sorted(lines) == [f"{number:04d}" for number in range(200)]
    assert len(list(tmp_path.iterdir())) > 1


def test_of_two_processes_that_find_a_log_full_one_puts_it_aside(tmp_path, monkeypatch):
    import fcntl

    settings = Log(file=str(tmp_path / "log"), bytes_max=10, files=9)
    first, second = LogFile(settings), LogFile(settings)
    first.write("one")
    first.flush()
    real = fcntl.flock

    def come_second(fd: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", real)
        second.write("two, of ten bytes")
        second.flush()
        real(fd, operation)

    monkeypatch.setattr(fcntl, "flock", come_second)
    first.write("three, of ten bytes")
    first.flush()
    first.close()
    second.close()

    assert (tmp_path / "log.1").read_text() == "one\n"
    assert (tmp_path / "log").read_text() == "two, of ten bytes\nthree, of ten bytes\n"


def test_a_line_holds_one_printable_word_for_a_path():
    assert printable("/studies/1.2") == "/studies/1.2"
    for path in ("/a b", "/a\nb", "/\x1b[31m", "/é", "/\udcff", "/" + "x" * 5000):
        word = printable(path)
        assert word.isascii()
        assert word.isprintable()
        assert " " not in word
        assert len(word) < 2100


def test_the_clock_of_the_log_is_utc():
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", Clock().now())


# The rest.


async def answer_nothing(request: Request) -> Response:
    return Response()


def test_names_go_before_parameters_and_a_rest_takes_what_is_left():
    router = Router()
    for path in ("/a/{x}", "/a/count", "/a/{x}/b/{y}", "/files/{rest:path}"):
        router.add("/root", [Route(path, answer_nothing)])

    def find(path: str) -> tuple[str, dict[str, str]]:
        found = router.find("GET", path)
        return found.template, found.params

    assert find("/root/a/count") == ("/a/count", {})
    assert find("/root/a/1") == ("/a/{x}", {"x": "1"})
    assert find("/root/a/1/b/2/") == ("/a/{x}/b/{y}", {"x": "1", "y": "2"})
    assert find("/root/files/x/y.js") == ("/files/{rest:path}", {"rest": "x/y.js"})
    for path in ("/root/a", "/root/a//b/2", "/root/a/count/b/2", "/root", "/", "", "/root/a/1/b"):
        with pytest.raises(errors.BadPath):
            router.find("GET", path)


def test_blocking_calls_run_side_by_side_up_to_their_number(tmp_path):
    import threading

    running, most = 0, 0
    lock = threading.Lock()

    def work() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        threading.Event().wait(0.01)
        with lock:
            running -= 1

    with hilum.open(tmp_path / "store", create=True) as store:
        app = make_app(store, Settings(http=type(Settings().http)(threads=3)))

        async def run() -> None:
            await asyncio.gather(*(app.context.run(work) for _ in range(12)))

        asyncio.run(run())
        app.close()
    assert most == 3


def test_a_handler_gets_the_context(client):
    async def tell(request: Request) -> Response:
        context = context_of(request)
        return Response(f"{context.store.path} {context.settings.http.listen}")

    add(client, tell)

    assert client.get("/test").text.endswith("127.0.0.1:8080")
