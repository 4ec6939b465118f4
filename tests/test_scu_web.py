"""hilum push, hilum pull and hilum peers: DICOMweb as its client, against our own server and bad ones."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from command import run
from dimsenode import data_set_of, free_port, serving
from makers import CT_IMAGE, IMPLICIT_LE, make_object, noise
from serving import server

import hilum
from hilum.remote import stow
from hilum.remote.client import Client
from hilum.web import security

FILES = {
    "2.25.1.1": make_object("2.25.1.1", "2.25.1", "2.25.11", pixels=noise(5000)),
    "2.25.1.2": make_object("2.25.1.2", "2.25.1", "2.25.11", transfer_syntax=IMPLICIT_LE, pixels=noise(500)),
    "2.25.1.3": make_object("2.25.1.3", "2.25.1", "2.25.12", modality="MR", fragments=[noise(64)]),
    "2.25.2.1": make_object("2.25.2.1", "2.25.2", "2.25.21", modality="SR"),
    "2.25.3.1": make_object("2.25.3.1", "2.25.3", "2.25.31", patient_id="P2", name="Roe^Rita"),
}
NAME, PASSWORD = "alice", "geheim"


@pytest.fixture(autouse=True)
def _alone(tmp_path, monkeypatch):
    """No settings and no journals but those of the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HILUM_CONFIG", raising=False)
    monkeypatch.delenv("HILUM_PASSWORD", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """A server with FILES in it; its address."""
    folder = tmp_path_factory.mktemp("full")
    with hilum.open(folder / "store", create=True) as store:
        for data in FILES.values():
            store.ingest(data)
    with server(folder / "store") as served:
        yield f"{served.url}/dicom-web"


@pytest.fixture
def empty(tmp_path):
    """A server with nothing in it; its address, and its store."""
    folder = tmp_path / "peer"
    hilum.open(folder / "store", create=True).close()
    with server(folder / "store") as served:
        yield f"{served.url}/dicom-web", folder / "store"


def written(folder: Path, found: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for uid, data in found.items():
        (folder / f"{uid}.dcm").write_bytes(data)
    return folder


def kept(path: Path) -> dict[str, bytes]:
    with hilum.open(path, read_only=True) as store:
        return {row.uid: store.read(row.uid) for row in store.find("instances")}


def got(folder: Path) -> dict[str, bytes]:
    return {path.stem: path.read_bytes() for path in folder.rglob("*.dcm")}


# --- push and pull ---------------------------------------------------------------------


def test_push_sends_files_byte_for_byte_and_goes_on_where_it_was(empty, tmp_path):
    url, store = empty
    folder = written(tmp_path / "in", FILES)
    (folder / "README").write_text("nothing")
    first = run("push", url, folder, "--jobs", 2, "--json")
    second = run("push", url, folder, "--json")
    again = run("push", url, folder, "--again", "--json")

    assert first.code == 0, first.err
    assert (first.summary["sent"], first.summary["not_dicom"]) == (5, 1)
    assert (second.summary["sent"], second.summary["skipped"]) == (0, 5)
    assert again.summary["sent"] == 5
    assert kept(store) == FILES


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (["PatientID=P2"], {"2.25.3.1"}),
        (["StudyInstanceUID=2.25.1,2.25.2"], {"2.25.1.1", "2.25.1.2", "2.25.1.3", "2.25.2.1"}),
        (["Modality=MR"], {"2.25.1.3"}),
        (["SOPInstanceUID=2.25.1.2"], {"2.25.1.2"}),
        (["--all"], set(FILES)),
    ],
)
def test_push_sends_what_is_stored_and_matches(empty, tmp_path, keys, expected):
    with hilum.open(tmp_path / "mine", create=True) as store:
        for data in FILES.values():
            store.ingest(data)
    ran = run("push", empty[0], *keys, "--store", tmp_path / "mine")

    assert ran.code == 0, ran.err
    assert kept(empty[1]) == {uid: FILES[uid] for uid in expected}


def test_a_data_set_without_file_meta_gets_one(empty, tmp_path):
    body = data_set_of(FILES["2.25.1.2"])
    (tmp_path / "bare").write_bytes(body)
    assert run("push", empty[0], tmp_path / "bare").code == 0
    with hilum.open(empty[1], read_only=True) as store:
        assert data_set_of(store.read("2.25.1.2")) == body


def test_a_conflict_is_told_by_instance_and_the_others_go(empty, tmp_path):
    url, store = empty
    other = make_object("2.25.3.1", "2.25.3", "2.25.31", patient_id="P2", name="New^Name")
    assert run("push", url, written(tmp_path / "first", {"2.25.3.1": other})).code == 0
    ran = run("push", url, written(tmp_path / "in", FILES), "--json")

    assert ran.code == 1
    assert (ran.summary["sent"], ran.summary["failed"]) == (4, 1)
    assert ran.lines[0]["failed"] == "2.25.3.1"
    assert "other content under this UID" in ran.lines[0]["reason"]
    assert kept(store)["2.25.3.1"] == other


CHOICES = [
    (["PatientID=P1"], {"2.25.1.1", "2.25.1.2", "2.25.1.3", "2.25.2.1"}),
    (["StudyInstanceUID=2.25.1,2.25.3"], {"2.25.1.1", "2.25.1.2", "2.25.1.3", "2.25.3.1"}),
    (["StudyInstanceUID=2.25.1", "SeriesInstanceUID=2.25.12"], {"2.25.1.3"}),
    (["PatientName=doe*", "Modality=SR"], {"2.25.2.1"}),
    (["SOPInstanceUID=2.25.1.2,2.25.1.3", "PatientID=P1"], {"2.25.1.2", "2.25.1.3"}),
]


@pytest.mark.parametrize(("keys", "expected"), CHOICES)
@pytest.mark.parametrize("where", ["--store", "--dir"])
def test_pull_fetches_what_the_keys_say_byte_for_byte(full, tmp_path, where, keys, expected):
    ran = run("pull", full, *keys, where, tmp_path / "mine", "--json")

    assert ran.code == 0, ran.err
    assert ran.summary["fetched"] == len(expected)
    look = kept if where == "--store" else got
    assert look(tmp_path / "mine") == {uid: FILES[uid] for uid in expected}
    assert not list(tmp_path.rglob("*.part"))


def test_pull_leaves_out_what_is_here(full, tmp_path):
    words = ["--store", tmp_path / "mine", "--json"]
    assert run("pull", full, "SOPInstanceUID=2.25.1.1", "PatientID=P1", *words).summary["fetched"] == 1
    rest = run("pull", full, "PatientID=*", "StudyDate=19000101-", "--jobs", 3, *words)

    assert (rest.summary["fetched"], rest.summary["present"]) == (4, 1)
    assert kept(tmp_path / "mine") == FILES


def test_find_from_a_server_prints_what_the_local_find_prints(full, tmp_path):
    run("pull", full, "StudyDate=19000101-", "--store", tmp_path / "mine")
    for words in (
        ["studies"],
        ["studies", "PatientID=P2"],
        ["series", "Modality=CT"],
        ["instances", "PatientID=P1"],
    ):
        local = run("find", *words, "--store", tmp_path / "mine")
        remote = run("find", *words, "--from", full)
        assert remote.out == local.out
        assert remote.out
    assert len(run("find", "studies", "--limit", 2, "--json", "--from", full).lines) == 2
    assert run("find", "patients", "--from", full).code == 1


def test_many_instances_are_found_page_by_page(full, monkeypatch):
    from hilum.remote import qido

    monkeypatch.setattr(qido, "_PAGE", 2)
    assert len(run("find", "studies", "--json", "--from", full).lines) == 3
    assert len(run("find", "instances", "--json", "--from", full).lines) == 5


# --- Users -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """A server that asks for a name and password."""
    folder = tmp_path_factory.mktemp("guarded")
    with hilum.open(folder / "store", create=True) as store:
        store.ingest(FILES["2.25.3.1"])
    security.write_user(str(folder / "users"), NAME, PASSWORD)
    words = ["--set", "auth.method=basic", "--set", f"auth.users_file={folder / 'users'}"]
    with server(folder / "store", *words) as served:
        yield f"{served.url}/dicom-web"


def test_a_password_comes_from_hilum_toml_the_environment_or_a_prompt(guarded, tmp_path, monkeypatch):
    words = ["pull", "it", "PatientID=P2", "--dir", tmp_path / "out", "--again"]
    peer = f'[peers.it]\nurl = "{guarded}"\nuser = "{NAME}"\n'
    (tmp_path / "hilum.toml").write_text(peer)
    none = run(*words)
    assert none.code == 2
    assert "HILUM_PASSWORD" in none.err
    monkeypatch.setenv("HILUM_PEERS_IT_PASSWORD", PASSWORD)
    assert run(*words).code == 0
    monkeypatch.setenv("HILUM_PEERS_IT_PASSWORD", "wrong")
    assert "it does not know alice with this password" in run(*words).err
    monkeypatch.delenv("HILUM_PEERS_IT_PASSWORD")
    monkeypatch.setenv("HILUM_PASSWORD", PASSWORD)
    assert run(*words).code == 0
    assert run("pull", guarded, "PatientID=P2", "--dir", tmp_path / "out", "--user", NAME).code == 0
    assert (
        run("pull", guarded.replace("//", f"//{NAME}@"), "PatientID=P2", "--dir", tmp_path / "out").code == 0
    )
    monkeypatch.delenv("HILUM_PASSWORD")
    (tmp_path / "hilum.toml").write_text(f'{peer}password = "{PASSWORD}"\n')
    assert run(*words).code == 0


def test_without_a_user_the_server_says_that_it_asks_for_one(guarded, tmp_path):
    ran = run("push", guarded, written(tmp_path / "in", FILES))
    assert ran.code == 1
    assert "401 Unauthorized: it asks for a user" in ran.err


def test_no_password_goes_in_a_url():
    ran = run("pull", "http://alice:geheim@127.0.0.1:1/", "PatientID=P2")
    assert ran.code == 2
    assert "no password in a URL" in ran.err


# --- Servers that misbehave ----------------------------------------------------------------


@contextmanager
def bad(handle: Callable[[BaseHTTPRequestHandler, bytes], None]) -> Iterator[str]:
    """A server that answers each request as `handle` does, which gets the body."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            handle(self, self.rfile.read(int(self.headers.get("Content-Length") or 0)))

        do_POST = do_GET

        def log_message(self, *words: Any) -> None:
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.daemon_threads = True
    thread = threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{running.server_port}/dicom-web"
    finally:
        running.shutdown()
        running.server_close()
        thread.join()


def reply(
    handler: BaseHTTPRequestHandler,
    status: int,
    body: bytes,
    kind: str = "application/dicom+json",
    **headers: str,
) -> None:
    handler.send_response(status)
    handler.send_header("Content-Type", kind)
    handler.send_header("Content-Length", str(len(body)))
    for name, text in headers.items():
        handler.send_header(name, text)
    handler.end_headers()
    handler.wfile.write(body)


def uids_in(body: bytes) -> list[str]:
    return [uid for uid in FILES if data_set_of(FILES[uid]) in body]


def stow_answer(stored: list[str], failed: dict[str, int] | None = None) -> bytes:
    def item(uid: str, **more: Any) -> dict[str, Any]:
        return {
            "00081150": {"vr": "UI", "Value": [CT_IMAGE]},
            "00081155": {"vr": "UI", "Value": [uid]},
            **more,
        }

    found: dict[str, Any] = {}
    if stored:
        found["00081199"] = {"vr": "SQ", "Value": [item(uid) for uid in stored]}
    if failed:
        reasons = [item(uid, **{"00081197": {"vr": "US", "Value": [code]}}) for uid, code in failed.items()]
        found["00081198"] = {"vr": "SQ", "Value": reasons}
    return json.dumps(found).encode()


@pytest.mark.parametrize(
    ("status", "words"),
    [(503, "503 Service Unavailable"), (404, "404 Not Found"), (302, "it sends us to http://else")],
)
def test_a_server_that_takes_nothing_ends_the_run_with_the_reason(tmp_path, status, words):
    with bad(lambda handler, body: reply(handler, status, b"", Location="http://else")) as url:
        ran = run("push", url, written(tmp_path / "in", FILES), "--json")

    assert ran.code == 1
    assert words in ran.summary["reason"]
    assert (ran.summary["sent"], ran.summary["unsent"]) == (0, 5)


def test_a_request_that_is_refused_as_a_whole_is_cut_until_the_culprit_is_known(tmp_path):
    """Some servers take nothing of a request in which they can't read one part, and don't say which."""
    taken: list[str] = []

    def handle(handler: BaseHTTPRequestHandler, body: bytes) -> None:
        found = uids_in(body)
        if "2.25.1.3" in found:
            reply(handler, 400, b"bad")
        else:
            taken.extend(found)
            reply(handler, 200, stow_answer(found))

    with bad(handle) as url:
        ran = run("push", url, written(tmp_path / "in", FILES), "--json")

    assert ran.code == 1
    assert sorted(taken) == sorted(set(FILES) - {"2.25.1.3"})
    assert [line["failed"] for line in ran.lines[:-1]] == ["2.25.1.3"]
    assert (ran.summary["sent"], ran.summary["failed"], ran.summary["unsent"]) == (4, 1, 0)


def test_each_instance_gets_what_the_server_says_of_it(tmp_path):
    def handle(handler: BaseHTTPRequestHandler, body: bytes) -> None:
        reply(handler, 202, stow_answer(["2.25.1.1", "2.25.1.2"], {"2.25.1.3": 0xA700, "2.25.2.1": 0xC122}))

    with bad(handle) as url:
        ran = run("push", url, written(tmp_path / "in", FILES), "--json")

    reasons = {line["failed"]: (line.get("status"), line["reason"]) for line in ran.lines[:-1]}
    assert reasons == {
        "2.25.1.3": ("0xA700", "out of resources"),
        "2.25.2.1": ("0xC122", "it does not support the transfer syntax"),
        "2.25.3.1": (None, "the server does not say what became of it"),
    }
    assert ran.summary["sent"] == 2


def test_an_answer_in_xml_is_read_too(tmp_path):
    from hilum.dicom.xml import to_xml

    body = to_xml(json.loads(stow_answer(list(FILES))))
    with bad(lambda handler, _: reply(handler, 200, body, "application/dicom+xml")) as url:
        assert run("push", url, written(tmp_path / "in", FILES), "--json").summary["sent"] == 5


def test_a_server_that_goes_away_and_comes_back_is_tried_again(tmp_path, monkeypatch):
    monkeypatch.setattr(stow, "_AGAIN_SECONDS", (0.01, 0.01, 0.01))
    monkeypatch.setattr(stow, "BATCH_COUNT", 1)
    count = 0

    def handle(handler: BaseHTTPRequestHandler, body: bytes) -> None:
        nonlocal count
        count += 1
        if count in (3, 4):
            reply(handler, 503, b"")
        else:
            reply(handler, 200, stow_answer(uids_in(body)))

    with bad(handle) as url:
        ran = run("push", url, written(tmp_path / "in", FILES), "--json")

    assert ran.code == 0
    assert ran.summary["sent"] == 5
    assert count == 7


def test_a_push_that_was_cut_off_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(stow, "BATCH_COUNT", 1)
    monkeypatch.setattr(stow, "_AGAIN_SECONDS", ())
    taken: list[str] = []

    def handle(handler: BaseHTTPRequestHandler, body: bytes) -> None:
        if len(taken) == 2:
            reply(handler, 503, b"")
            return
        taken.extend(uids_in(body))
        reply(handler, 200, stow_answer(uids_in(body)))

    folder = written(tmp_path / "in", FILES)
    with bad(handle) as url:
        first = run("push", url, folder, "--json")
        assert (first.code, first.summary["sent"], first.summary["unsent"]) == (1, 2, 3)
        taken.append("")
        second = run("push", url, folder, "--json")

    assert (second.summary["sent"], second.summary["skipped"]) == (3, 2)
    assert sorted(filter(None, taken)) == sorted(FILES)


def test_a_connection_that_was_closed_while_idle_is_no_failure():
    def handle(handler: BaseHTTPRequestHandler, body: bytes) -> None:
        reply(handler, 200, b"[]")
        handler.close_connection = True  # without telling

    with bad(handle) as url, Client(url) as client:
        for _ in range(3):
            assert client.get("/studies", "application/dicom+json").read_all() == b"[]"


ROWS = {
    "series": [
        {"0020000D": {"vr": "UI", "Value": ["2.25.1"]}, "0020000E": {"vr": "UI", "Value": ["2.25.11"]}}
    ],
    "instances": [{"00080018": {"vr": "UI", "Value": [uid]}} for uid in ("2.25.1.1", "2.25.1.2")],
    "studies": [{"0020000D": {"vr": "UI", "Value": ["2.25.1"]}, "00100020": {"vr": "LO", "Value": ["P1"]}}],
}


def wado(body: Callable[[str], tuple[int, bytes, str]]) -> Callable[[BaseHTTPRequestHandler, bytes], None]:
    """A server whose searches answer ROWS, and whose retrieves answer what `body` gives for a path."""

    def handle(handler: BaseHTTPRequestHandler, _: bytes) -> None:
        path = urlsplit(handler.path).path
        if "transfer-syntax" not in handler.headers["Accept"]:
            offset = parse_qs(urlsplit(handler.path).query).get("offset")
            rows = [] if offset else ROWS[path.rpartition("/")[2]]
            reply(handler, 200, json.dumps(rows).encode())
            return
        status, data, kind = body(path)
        reply(handler, status, data, kind)

    return handle


def multipart(*files: bytes, end: bytes = b"--x--\r\n") -> bytes:
    return (
        b"".join(b"--x\r\nContent-Type: application/dicom\r\n\r\n" + file + b"\r\n" for file in files) + end
    )


RELATED = 'multipart/related; type="application/dicom"; boundary=x'


def pull(url: str, tmp_path: Path) -> Any:
    return run("pull", url, "StudyInstanceUID=2.25.1", "--dir", tmp_path / "out", "--json")


def test_an_answer_that_is_cut_keeps_what_came_whole_and_the_rest_is_asked_for_by_name(tmp_path, monkeypatch):
    from hilum.remote import wado as module

    monkeypatch.setattr(module, "_AGAIN_SECONDS", (0.01,))
    first, second = FILES["2.25.1.1"], FILES["2.25.1.2"]

    def body(path: str) -> tuple[int, bytes, str]:
        if path.endswith("/instances/2.25.1.2"):
            return 200, multipart(second), RELATED
        return 200, multipart(first, second)[:-200], RELATED

    with bad(wado(body)) as url:
        ran = pull(url, tmp_path)

    assert ran.code == 0, ran.err
    assert got(tmp_path / "out") == {"2.25.1.1": first, "2.25.1.2": second}


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((404, b"gone", "text/plain"), "404 Not Found: gone"),
        ((200, multipart(FILES["2.25.1.1"]), RELATED), "the server did not send it"),
        ((200, multipart(FILES["2.25.1.1"], b"junk"), RELATED), "the server did not send it"),
    ],
)
def test_what_does_not_come_has_failed_with_the_reason(tmp_path, answer, words):
    with bad(wado(lambda path: answer)) as url:
        ran = pull(url, tmp_path)

    assert ran.code == 1
    assert any(words in line.get("reason", "") for line in ran.lines)


@pytest.mark.parametrize("answer", [(200, b"<html>", "text/html"), (200, b"no boundary", RELATED)])
def test_an_answer_that_is_nothing_of_the_kind_ends_the_run_with_the_reason(tmp_path, answer):
    with bad(wado(lambda path: answer)) as url:
        ran = pull(url, tmp_path)

    assert ran.code == 1
    assert "not multipart/related" in ran.summary["reason"] or "cut, or broken" in ran.summary["reason"]


def test_a_single_part_is_taken_too(tmp_path):
    with bad(wado(lambda path: (200, FILES["2.25.1.1"], "application/dicom"))) as url:
        pull(url, tmp_path)
    assert got(tmp_path / "out") == {"2.25.1.1": FILES["2.25.1.1"]}


def test_a_single_part_that_is_cut_is_not_kept(tmp_path):
    def handle(handler: BaseHTTPRequestHandler, body: bytes) -> None:
        if "transfer-syntax" not in handler.headers["Accept"]:
            wado(lambda path: (200, b"", ""))(handler, body)
            return
        handler.send_response(200)
        handler.send_header("Content-Type", "application/dicom")
        handler.send_header("Content-Length", str(len(FILES["2.25.1.1"])))
        handler.end_headers()
        handler.wfile.write(FILES["2.25.1.1"][:-100])
        handler.close_connection = True

    with bad(handle) as url:
        ran = pull(url, tmp_path)

    assert ran.code == 1
    assert "the answer was cut" in ran.summary["reason"]
    assert got(tmp_path / "out") == {}


@pytest.mark.parametrize("body", [b"<html>hello</html>", b'{"a": 1}', b"[1]"])
def test_a_server_that_is_no_dicomweb_server_is_told_so(tmp_path, body):
    with bad(lambda handler, _: reply(handler, 200, body, "text/html")) as url:
        ran = pull(url, tmp_path)
    assert ran.code == 1
    assert "is this a DICOMweb server?" in ran.err


def test_an_unreachable_server_is_told_in_one_line(tmp_path):
    ran = pull(f"http://127.0.0.1:{free_port()}/dicom-web", tmp_path)
    assert ran.code == 1
    assert "connection refused" in ran.err
    assert ran.err.count("\n") == 1


def test_a_server_that_stalls_is_a_time_out(tmp_path):
    over = threading.Event()
    with bad(lambda handler, _: over.wait(5) and None) as url:
        ran = run("pull", url, "PatientID=P1", "--dir", tmp_path / "out", "--timeout", "0.3")
        over.set()
    assert ran.code == 1
    assert "within 0.3 s" in ran.err


@pytest.mark.parametrize("url", ["http://", "https:///x", "http://h:0/", "http://h/?q=1"])
def test_what_is_no_url_is_wrong_use(url):
    assert run("pull", url, "PatientID=P1").code == 2


def test_the_name_and_password_go_to_the_server_that_was_named_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("HILUM_PASSWORD", "a:ü")
    seen: list[str] = []

    def handle(handler: BaseHTTPRequestHandler, _: bytes) -> None:
        seen.append(handler.headers.get("Authorization", ""))
        reply(handler, 307, b"", Location=f"http://127.0.0.1:{free_port()}/")

    with bad(handle) as url:
        assert run("pull", url, "PatientID=P1", "--user", "bob").code == 1

    assert [base64.b64decode(found.removeprefix("Basic ")).decode() for found in seen] == ["bob:a:ü"]


# --- peers -----------------------------------------------------------------------------


def test_peers_lists_and_asks_all_that_are_known(full, tmp_path):
    with serving(tmp_path / "node") as node:
        (tmp_path / "hilum.toml").write_text(
            f'[peers.both]\ntitle = "HILUM"\nhost = "127.0.0.1"\nport = {node.port}\n'
            f'url = "{full}"\n'
            f'[peers.gone]\ntitle = "GONE"\nhost = "127.0.0.1"\nport = {free_port()}\n'
            f'[peers.web]\nurl = "http://127.0.0.1:{free_port()}"\n'
        )
        ran = run("peers", "--json")
        table = run("peers", "both")
        listed = run("peers", "--no-test", "--json")

    assert ran.code == 1
    assert [(line["name"], line["kind"], line["ok"]) for line in ran.lines] == [
        ("both", "DIMSE", True), ("both", "DICOMweb", True),
        ("gone", "DIMSE", False), ("web", "DICOMweb", False),
    ]  # fmt: skip
    assert all("connection refused" in line["words"] for line in ran.lines if not line["ok"])
    assert table.code == 0
    assert table.out.count("answers") == 2
    assert listed.code == 0
    assert [line["ok"] for line in listed.lines] == [None] * 4


def test_peers_are_asked_at_once(tmp_path):
    import time

    over = threading.Event()
    with bad(lambda handler, _: over.wait(5) and None) as url:
        tables = "".join(f'[peers.p{n}]\nurl = "{url}"\n' for n in range(10))
        (tmp_path / "hilum.toml").write_text(tables)
        begin = time.monotonic()
        ran = run("peers", "--timeout", "0.5", "--json")
        seconds = time.monotonic() - begin
        over.set()

    assert ran.code == 1
    assert len(ran.lines) == 10
    assert all("within 0.5 s" in line["words"] for line in ran.lines)
    assert seconds < 4.5  # one after the other would take five


def test_no_peers_is_said():
    ran = run("peers")
    assert ran.code == 1
    assert "[peers.NAME]" in ran.err
