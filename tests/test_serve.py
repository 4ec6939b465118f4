"""hilum serve, as a process: it says where it is, answers, holds its limits, and ends when it is told to."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from makers import make_object
from serving import environment, server

import hilum
from hilum.settings import Settings
from hilum.web.server import listen, url_of

SECONDS = 30


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("served") / "store"
    with hilum.open(path, create=True) as opened:
        opened.ingest(make_object("1.2.1", "1.2", "1.2.0"))
    return path


@pytest.fixture(scope="module")
def served(store):
    with server(store, "--set", "limits.header_bytes=4096", "--set", "limits.header_seconds=0.5") as served:
        yield served


def get(url: str, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
    try:
        with urlopen(Request(url, headers=headers or {}), timeout=SECONDS) as answer:
            return answer.status, answer.read()
    except HTTPError as failure:
        with failure:
            return failure.code, failure.read()


def address(url: str) -> tuple[str, int]:
    host, port = url.removeprefix("http://").split(":")
    return host, int(port)


def talk(url: str, *pieces: bytes) -> bytes:
    """Send bytes as they are, and read until the server closes the connection."""
    with socket.create_connection(address(url), SECONDS) as peer:
        for piece in pieces:
            try:
                peer.sendall(piece)
            except OSError:  # it has heard enough
                break
        answer = b""
        try:
            while chunk := peer.recv(65536):
                answer += chunk
        except ConnectionResetError:
            pass
        return answer


def eventually(true: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_it_prints_its_address_once_it_answers(served):
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+", served.url)
    assert get(served.url + "/healthz") == (200, b'{"status":"ok"}')
    status, body = get(served.url + "/dicom-web/studies")
    assert status == 200
    assert json.loads(body)[0]["00081190"]["Value"] == [f"{served.url}/dicom-web/studies/1.2"]


def test_without_json_it_prints_one_line_for_people(store):
    command = [sys.executable, "-m", "hilum", "serve", "--http", "127.0.0.1:0", "--store", str(store)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment()
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()

    assert re.fullmatch(
        r"Hilum serves .*store at (http://127\.0\.0\.1:\d+)/, DICOMweb at \1/dicom-web\n", line
    )
    assert rest == ""
    assert process.returncode == 0


@pytest.mark.parametrize(("workers", "number"), [(1, signal.SIGTERM), (2, signal.SIGINT)])
def test_a_signal_ends_it_cleanly(store, workers, number):
    with server(store, "--workers", workers) as served:
        for _ in range(4):
            assert get(served.url + "/healthz")[0] == 200
        assert served.stop(number) == 0

        with pytest.raises(OSError, match=r".*"):
            socket.create_connection(address(served.url), 1)
        assert "Traceback" not in served.process.stderr.read()


def test_what_is_under_way_is_finished_and_what_is_new_is_refused(store):
    """The body of an upload comes in two halves, and the signal between them."""
    file = make_object("1.2.9", "1.2", "1.2.0", pixels=bytes(20_000))
    head = (
        f"POST /dicom-web/studies HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/dicom\r\n"
        f"Content-Length: {len(file)}\r\n\r\n"
    ).encode()
    with server(store) as served, socket.create_connection(address(served.url), SECONDS) as peer:
        peer.sendall(head + file[:10_000])
        eventually(lambda: "hilum_requests_in_progress 2.0" in get(served.url + "/metrics")[1].decode())
        served.process.send_signal(signal.SIGTERM)

        def is_closed() -> bool:
            try:
                socket.create_connection(address(served.url), 1).close()
            except OSError:
                return True
            return False

        eventually(is_closed)
        peer.sendall(file[10_000:])
        answer = b""
        while chunk := peer.recv(65536):
            answer += chunk
        assert served.process.wait(SECONDS) == 0

    assert answer.startswith(b"HTTP/1.1 200")
    with hilum.open(store, read_only=True) as opened:
        assert opened.read("1.2.9") == file


def test_workers_share_the_port_and_their_numbers_and_one_that_dies_is_replaced(store, tmp_path):
    log = tmp_path / "log"
    with server(store, "--workers", 2, "--log", log) as served:
        with ThreadPoolExecutor(8) as threads:
            answers = list(threads.map(get, [served.url + "/dicom-web/studies"] * 60))
        assert {status for status, _ in answers} == {200}
        eventually(lambda: log.exists() and log.read_text().count("/dicom-web/studies 200") == 60)
        ids = {line.split()[1].split("-")[0] for line in log.read_text().splitlines()}
        assert len(ids) == 2, "both answer"
        metrics = get(served.url + "/metrics")[1].decode()
        assert 'hilum_request_seconds_count{method="GET",route="/studies",status="200"} 60.0' in metrics

        workers = children(served.process.pid)
        assert len(workers) == 2
        os.kill(workers[0], signal.SIGKILL)
        eventually(lambda: len(set(children(served.process.pid)) - {workers[0]}) == 2)
        assert get(served.url + "/healthz")[0] == 200
        assert served.stop() == 0
        assert not alive(workers[1])


def test_workers_end_when_their_parent_is_killed(store):
    with server(store, "--workers", 2) as served:
        workers = children(served.process.pid)
        assert len(workers) == 2
        served.process.kill()

        eventually(lambda: not any(map(alive, workers)))


def children(pid: int) -> list[int]:
    """Processes that answer requests below one; not the helper that Python itself starts."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in found if "spawn_main" in command_of(int(child))]


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# How it begins.


def start(*words: object, cwd: Path, **extra: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hilum", "serve", "--http", "127.0.0.1:0", *map(str, words)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=SECONDS, env={**environment(), **extra}, cwd=cwd
    )


def test_a_store_is_made_only_when_that_is_asked(tmp_path):
    done = start("--store", tmp_path / "store", cwd=tmp_path)

    assert done.returncode == 1
    assert "--create" in done.stderr
    assert not (tmp_path / "store").exists()
    with server(tmp_path / "store", "--create") as served:
        assert get(served.url + "/dicom-web/studies") == (200, b"[]")


@pytest.mark.parametrize(
    ("words", "extra", "code", "said"),
    [
        (["--set", "http.lisen=x"], {}, 2, "http.lisen is no setting"),
        (["--set", "nonsense"], {}, 2, "KEY=VALUE"),
        ([], {"HILUM_HTTP_WORKER": "1"}, 2, "HILUM_HTTP_WORKER is no setting"),
        (["--config", "nowhere.toml"], {}, 1, "nowhere.toml"),
        (["--http", "nonsense"], {}, 2, "nonsense"),
        (["--set", "auth.method=basic"], {}, 1, "hilum init --user"),
    ],
)
def test_what_is_wrong_is_said_in_a_line_before_anything_is_served(store, words, extra, code, said):
    done = start("--store", store, *words, cwd=store.parent, **extra)

    assert done.returncode == code
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_port_that_is_taken_is_said_in_a_line(store, served):
    command = [sys.executable, "-m", "hilum", "serve", "--http", served.url.removeprefix("http://")]
    done = subprocess.run(
        [*command, "--store", str(store)], capture_output=True, text=True, timeout=SECONDS, env=environment()
    )

    assert done.returncode == 1
    assert "in use" in done.stderr
    assert "Traceback" not in done.stderr


def test_flags_go_before_the_environment_and_that_before_the_file(store, tmp_path):
    (tmp_path / "hilum.toml").write_text(f'store = "{store}"\n[search]\nempty_status = 204\n')
    (tmp_path / "other").mkdir()
    with server(store, "--config", tmp_path / "hilum.toml", "--allow-delete", cwd=tmp_path) as served:
        assert get(served.url + "/dicom-web/studies?PatientID=NOBODY") == (204, b"")
        delete = Request(served.url + "/dicom-web/studies/1.999", method="DELETE")
        with pytest.raises(HTTPError) as raised:
            urlopen(delete, timeout=SECONDS)
        raised.value.close()
        assert raised.value.code == 404


def test_an_address_is_written_as_it_is_reached():
    http = type(Settings().http)
    with listen(Settings(http=http(listen="0.0.0.0:0"))) as listener:
        assert re.fullmatch(r"http://localhost:\d+", url_of(listener))
    with listen(Settings(http=http(listen="127.0.0.1:0"))) as listener:
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", url_of(listener))


# What a client may do to it.


def test_headers_without_end_are_cut_off(served):
    long = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"x" * 3000
    answer = talk(served.url, long, b"x" * 3000, *[b"x" * 60_000] * 20)

    assert answer.startswith(b"HTTP/1.1 431")


def test_many_headers_in_one_piece_are_cut_off(served):
    answer = talk(served.url, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 1000 + b"\r\n")

    assert answer.startswith(b"HTTP/1.1 431")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["status"] == 431


def test_headers_that_never_come_to_an_end_are_not_waited_for(served):
    assert talk(served.url, b"GET /healthz HTTP/1.1\r\nHost: loc").startswith(b"HTTP/1.1 408")
    assert talk(served.url).startswith(b"HTTP/1.1 408")


def test_a_connection_that_is_kept_has_time_for_each_request(served):
    with socket.create_connection(address(served.url), SECONDS) as peer:
        for _ in range(3):
            peer.sendall(b"GET /healthz HTTP/1.1\r\nHo")
            time.sleep(0.2)
            peer.sendall(b"st: localhost\r\n\r\n")
            answer = b""
            while b'"ok"' not in answer:
                chunk = peer.recv(65536)
                assert chunk, answer
                answer += chunk
            assert answer.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"nonsense\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET http://[ HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /healthz HTTP/1.1\r\nHost: a b\r\nConnection: close\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nConnection: close\r\n\r\n",
    ],
    ids=lambda text: repr(text[:24]),
)
def test_what_is_no_request_is_refused_with_4xx_and_no_trace_of_code(served, request_bytes):
    answer = talk(served.url, request_bytes)

    assert answer.startswith(b"HTTP/1.1 4")
    assert b"Traceback" not in answer
    assert get(served.url + "/healthz")[0] == 200


def test_an_old_client_needs_no_host(served):
    assert talk(served.url, b"GET /healthz HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200")


def test_requests_that_are_sent_ahead_are_answered_in_order(served):
    one = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    last = b"GET /nothing HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    answer = talk(served.url, one * 5 + last)

    assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"200"] * 5 + [b"404"]


def test_a_client_that_reads_nothing_is_given_up(store):
    with server(store, "--set", "limits.idle_seconds=0.3", "--create") as served:
        upload = make_object("1.2.50", "1.2", "1.2.0", pixels=bytes(30_000_000))
        with hilum.open(store) as opened:
            opened.ingest(upload)
        path = b"/dicom-web/studies/1.2/series/1.2.0/instances/1.2.50"
        with socket.create_connection(address(served.url), SECONDS) as peer:
            peer.sendall(b"GET %s HTTP/1.1\r\nHost: localhost\r\nAccept: application/dicom\r\n\r\n" % path)
            assert peer.recv(12) == b"HTTP/1.1 200"
            eventually(lambda: "hilum_requests_in_progress 1.0" in get(served.url + "/metrics")[1].decode())
        with hilum.open(store) as opened:
            opened.delete("instances", [("SOPInstanceUID", "1.2.50")])


def test_connections_over_their_number_are_refused_in_time(store):
    with server(store, "--set", "limits.connections=4") as served:
        peers = [socket.create_connection(address(served.url), SECONDS) for _ in range(8)]
        try:
            eventually(lambda: get(served.url + "/healthz")[0] == 503)
        finally:
            for peer in peers:
                peer.close()
        eventually(lambda: get(served.url + "/healthz")[0] == 200)


def test_many_clients_at_once_get_their_own_answers(served):
    results: list[bytes] = []

    def ask(number: int) -> None:
        answer = talk(
            served.url,
            f"GET /dicom-web/studies?PatientID=P{number % 2} HTTP/1.1\r\nHost: localhost\r\n"
            f"X-Request-ID: id-{number}\r\nConnection: close\r\n\r\n".encode(),
        )
        assert f"x-request-id: id-{number}\r\n".encode() in answer
        assert (b'"P1"' in answer) is (number % 2 == 1)
        results.append(answer)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 40


def test_the_server_is_loaded_by_no_other_command():
    code = "import sys; from hilum.cli import main\ntry: main(['serve', '--help'])\nexcept SystemExit: pass\n"
    code += "print([name for name in ('uvicorn', 'starlette', 'msgspec', 'argon2') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())

    assert done.stdout.splitlines()[-1] == "[]"
