"""Hosts, origins, names and passwords."""

from __future__ import annotations

import asyncio
import base64

import pytest
from makers import make_object
from webclient import ROOT, serving

from hilum.errors import BadQuery, StoreMissing
from hilum.web import security
from hilum.web.errors import NotAuthorized

VIEWER = "https://viewer.example.org"
OTHER = "https://evil.example.org"


@pytest.fixture(scope="module")
def cheap_hashes():
    """argon2 with parameters that cost nothing: how long it takes is not what is tested."""
    import argon2

    patch = pytest.MonkeyPatch()
    real = argon2.PasswordHasher
    patch.setattr(argon2, "PasswordHasher", lambda: real(time_cost=1, memory_cost=8, parallelism=1))
    yield
    patch.undo()


@pytest.fixture
def users(tmp_path, cheap_hashes):
    path = tmp_path / "users"
    security.write_user(str(path), "alice", "s3:cret")
    security.write_user(str(path), "bärbel", "пароль")
    return path


def basic(name: str, password: str) -> dict[str, str]:
    return {"authorization": "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()}


# Hosts.


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8080", "127.0.0.1:1", "[::1]:80", "192.0.2.1", "LOCALHOST"]
)
def test_localhost_and_plain_addresses_are_always_ours(host):
    assert security.Hosts(()).allows(host.encode())


@pytest.mark.parametrize(
    "host", ["evil.example.org", "evil.example.org:8080", "localhost.evil.example", "127.0.0.1.nip.io"]
)
def test_a_name_that_somebody_points_here_is_not_ours(host):
    hosts = security.Hosts(())

    assert not hosts.allows(host.encode())
    assert not hosts.allows(host.encode()), "asking twice must not make it known"


@pytest.mark.parametrize(
    "host", ["", " ", "a b", "a/b", "localhost:x", "localhost:123456", "a\xff", "a@b", "[::1"]
)
def test_a_host_that_is_malformed_is_never_ours(host):
    assert not security.Hosts(["*"]).allows(host.encode("latin-1"))


def test_names_that_are_allowed_are_ours_in_any_case_and_with_any_port():
    hosts = security.Hosts(["pacs.example.org"])

    assert hosts.allows(b"PACS.example.org:8443")
    assert not hosts.allows(b"other.example.org")
    assert security.Hosts(["*"]).allows(b"other.example.org")


def test_a_request_for_another_host_is_misdirected(tmp_path):
    with serving(tmp_path) as (client, _):
        answer = client.get(f"{ROOT}/studies", headers={"host": "evil.example.org"})

    assert answer.status_code == 421
    assert "allowed_hosts" in answer.json()["error"]


# Origins.


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", f"{ROOT}/studies", 200),
        ("GET", f"{ROOT}/nothing", 404),
        ("GET", f"{ROOT}/studies?limit=x", 400),
        ("PUT", f"{ROOT}/studies", 405),
        ("GET", f"{ROOT}/studies?accept=video/mp4", 406),
        ("DELETE", f"{ROOT}/studies/1.2", 403),
        ("GET", "/healthz", 200),
    ],
)
def test_every_answer_to_an_allowed_origin_may_be_read_by_it_errors_too(tmp_path, method, path, status):
    with serving(tmp_path, cors={"origins": [VIEWER]}) as (client, _):
        answer = client.request(method, path, headers={"origin": VIEWER})
        refused = client.request(method, path, headers={"origin": OTHER})

    assert answer.status_code == refused.status_code == status
    assert answer.headers["access-control-allow-origin"] == VIEWER
    assert "warning" in answer.headers["access-control-expose-headers"]
    assert "Origin" in answer.headers["vary"]
    assert "access-control-allow-origin" not in refused.headers
    assert "Origin" in refused.headers["vary"], "a cache must not give one origin's answer to another"


def test_a_server_error_may_be_read_by_an_allowed_origin(tmp_path, monkeypatch):
    with serving(tmp_path, cors={"origins": [VIEWER]}) as (client, store):
        monkeypatch.setattr(store, "changes", lambda *args, **named: {}["Doe^Jane"])
        answer = client.get("/changes", headers={"origin": VIEWER})

    assert answer.status_code == 500
    assert answer.headers["access-control-allow-origin"] == VIEWER


def test_without_a_list_no_origin_is_allowed_and_with_a_star_every_one(tmp_path):
    with serving(tmp_path / "a") as (client, _):
        answer = client.get(f"{ROOT}/studies", headers={"origin": VIEWER})
        assert "access-control-allow-origin" not in answer.headers
    with serving(tmp_path / "b", cors={"origins": ["*"]}) as (client, _):
        answer = client.get(f"{ROOT}/studies", headers={"origin": VIEWER})
        assert answer.headers["access-control-allow-origin"] == "*"
        assert "access-control-allow-credentials" not in answer.headers


def preflight(client, origin, path=f"{ROOT}/studies", method="POST", headers="content-type, authorization"):
    asked = {
        "origin": origin,
        "access-control-request-method": method,
        "access-control-request-headers": headers,
    }
    return client.options(path, headers=asked)


def test_a_preflight_says_what_a_page_may_send_and_needs_no_password(tmp_path, users):
    wanted = {"cors": {"origins": [VIEWER]}, "auth": {"method": "basic", "users_file": str(users)}}
    with serving(tmp_path, **wanted) as (client, _):
        answer = preflight(client, VIEWER)
        refused = preflight(client, OTHER)

    assert answer.status_code == 204
    assert answer.headers["access-control-allow-origin"] == VIEWER
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert answer.headers["access-control-allow-headers"] == "content-type, authorization"
    assert answer.headers["access-control-allow-credentials"] == "true"
    assert not [name for name in refused.headers if name.startswith("access-control")]


def test_a_preflight_for_nothing_is_404_and_may_be_read(tmp_path):
    with serving(tmp_path, cors={"origins": [VIEWER]}) as (client, _):
        answer = preflight(client, VIEWER, "/nothing")

    assert answer.status_code == 404
    assert answer.headers["access-control-allow-origin"] == VIEWER


def test_resources_are_for_their_own_origin_unless_others_are_named(tmp_path):
    policies = []
    for number, cors in enumerate(({}, {"origins": [VIEWER]}, {"resource_policy": "same-site"})):
        with serving(tmp_path / str(number), cors=cors) as (client, _):
            policies.append(client.get("/nothing").headers["cross-origin-resource-policy"])

    assert policies == ["same-origin", "cross-origin", "same-site"]


# Names and passwords.


@pytest.fixture
def guarded(tmp_path, users):
    wanted = {"auth": {"method": "basic", "users_file": str(users)}, "cors": {"origins": [VIEWER]}}
    with serving(tmp_path, [make_object("1.2.3", "1.2", "1.2.1")], **wanted) as (client, _):
        yield client


@pytest.mark.parametrize(("name", "password"), [("alice", "s3:cret"), ("bärbel", "пароль")])
def test_a_known_name_with_its_password_is_let_in_again_and_again(guarded, name, password):
    for _ in range(3):
        assert guarded.get(f"{ROOT}/studies", headers=basic(name, password)).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        basic("alice", "wrong"),
        basic("alice", ""),
        basic("alic", "s3:cret"),
        basic("", ""),
        {"authorization": "Bearer abc"},
        {"authorization": "Basic"},
        {"authorization": "Basic !!!"},
        {"authorization": "Basic " + base64.b64encode(b"no colon").decode()},
        {"authorization": "Basic " + base64.b64encode(b"\xff\xfe:x").decode()},
        {"authorization": "Basic " + "A" * 20_000},
    ],
    ids=str,
)
def test_anybody_else_is_asked_for_a_name_and_a_page_may_read_that(guarded, headers):
    answer = guarded.get(f"{ROOT}/studies", headers={**headers, "origin": VIEWER})

    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Basic realm=")
    assert answer.headers["access-control-allow-origin"] == VIEWER
    assert answer.headers["access-control-allow-credentials"] == "true"
    assert "error" in answer.json()


@pytest.mark.parametrize(
    "path", [f"{ROOT}/studies", "/metrics", "/changes", "/nothing", "/wado?requestType=WADO"]
)
def test_without_a_name_nothing_is_told_not_even_what_is_there(guarded, path):
    assert guarded.get(path).status_code == 401


def test_health_is_told_to_everybody(guarded):
    assert guarded.get("/healthz").status_code == 200


def test_a_right_password_is_verified_once_a_minute_and_a_wrong_one_each_time(users, monkeypatch):
    calls = []
    real = security._verify
    monkeypatch.setattr(security, "_verify", lambda known, given: calls.append(given) or real(known, given))

    async def ask():
        checker = security.Basic(str(users))
        right = basic("alice", "s3:cret")["authorization"].encode()
        wrong = basic("alice", "no")["authorization"].encode()
        for _ in range(3):
            assert await checker.check(right) == "alice"
            with pytest.raises(NotAuthorized):
                await checker.check(wrong)
        checker._remembered = {key: (0.0, name) for key, (_, name) in checker._remembered.items()}
        await checker.check(right)

    asyncio.run(ask())
    assert sorted(calls) == ["no"] * 3 + ["s3:cret"] * 2


def test_an_unknown_name_costs_a_verification_too(users, monkeypatch):
    calls = []
    real = security._verify
    monkeypatch.setattr(security, "_verify", lambda known, given: calls.append(known) or real(known, given))

    async def ask():
        with pytest.raises(NotAuthorized):
            await security.Basic(str(users)).check(basic("nobody", "x")["authorization"].encode())

    asyncio.run(ask())
    assert len(calls) == 1
    assert calls[0].startswith("$argon2id$")


def test_a_user_who_is_entered_later_is_known_without_a_restart(guarded, users):
    assert guarded.get(f"{ROOT}/studies", headers=basic("carol", "new")).status_code == 401

    security.write_user(str(users), "carol", "new")

    assert guarded.get(f"{ROOT}/studies", headers=basic("carol", "new")).status_code == 200
    assert guarded.get(f"{ROOT}/studies", headers=basic("alice", "s3:cret")).status_code == 200


@pytest.mark.parametrize("name", ["", "a:b", "a\n", "#a", " a", "a\x07"])
def test_a_name_that_can_be_no_user_is_refused(tmp_path, name):
    with pytest.raises(BadQuery):
        security.write_user(str(tmp_path / "users"), name, "x")


def test_an_empty_password_is_refused(tmp_path):
    with pytest.raises(BadQuery, match="empty"):
        security.write_user(str(tmp_path / "users"), "alice", "")


def test_a_file_of_users_that_is_damaged_or_missing_is_said_at_the_start(tmp_path):
    (tmp_path / "users").write_text("alice:plaintext\n")

    with pytest.raises(BadQuery, match="line 1"):
        security.Basic(str(tmp_path / "users"))
    with pytest.raises(StoreMissing, match="hilum init --user"):
        security.Basic(str(tmp_path / "nowhere"))
