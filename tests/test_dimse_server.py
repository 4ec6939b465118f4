"""The server: whom it lets in, how long it waits, how it stops, and that no peer can make it fall over."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import ssl
import struct
import subprocess
import threading
import time

import pytest
from dimsenode import VERIFICATION, associated, send, serving
from makers import make_object, noise

from hilum import api
from hilum.dimse import server, services
from hilum.dimse.options import DimseSettings
from hilum.dimse.server import Server, parse_listen
from hilum.engine.writer import Writer
from hilum.errors import BadQuery


def an_object(uid="1.2.3", size=4096):
    return make_object(uid, "1.2.1", "1.2.2", pixels=noise(size, uid))


def test_an_echo_is_answered(tmp_path):
    with serving(tmp_path) as node, associated(node, [VERIFICATION]) as association:
        assert association.is_established
        assert association.send_c_echo().Status == 0
        assert association.send_c_echo(msg_id=2).Status == 0


def test_what_is_not_offered_is_not_agreed_to(tmp_path):
    worklist = "1.2.840.10008.5.1.4.31"
    with serving(tmp_path) as node, associated(node, [VERIFICATION, worklist]) as association:
        assert [found.abstract_syntax for found in association.accepted_contexts] == [VERIFICATION]
        assert [found.result for found in association.rejected_contexts] == [3]


def test_a_command_that_the_class_does_not_have_is_answered_so(tmp_path, caplog):
    with serving(tmp_path) as node, associated(node, [VERIFICATION]) as association:
        from pynetdicom.dimse_primitives import N_GET

        request = N_GET()
        request.MessageID = 1
        request.RequestedSOPClassUID = VERIFICATION
        request.RequestedSOPInstanceUID = "1.2.3"
        association._reactor_checkpoint.clear()
        association.dimse.send_msg(request, 1)
        _, answer = association.dimse.get_msg(block=True)
        association._reactor_checkpoint.set()
        assert answer.Status == 0x0211
        assert association.send_c_echo().Status == 0


def test_a_mistake_of_ours_is_answered_and_ends_nothing(tmp_path, monkeypatch, caplog):
    def broken(node, association, message):
        raise ZeroDivisionError("a mistake")

    service = services.Service(lambda uid, settings: uid == VERIFICATION, {0x0030: broken})
    monkeypatch.setattr(server, "SERVICES", (service,))
    with serving(tmp_path) as node, associated(node, [VERIFICATION]) as association:
        assert association.send_c_echo().Status == 0x0110
        assert association.send_c_echo().Status == 0x0110
    assert any("ZeroDivisionError" in line for line in caplog.messages)


# --- Who may come -------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "title", "called", "answer"),
    [
        ({"calling_titles": ("GOOD",)}, "GOOD", "HILUM", None),
        ({"calling_titles": ("GOOD",)}, "BAD", "HILUM", (1, 1, 3)),
        ({"check_called": True}, "GOOD", "HILUM", None),
        ({"check_called": True}, "GOOD", "OTHER", (1, 1, 7)),
        ({}, "ANYBODY", "ANYTHING", None),
        ({"associations": 0}, "GOOD", "HILUM", (2, 3, 2)),
    ],
)
def test_an_association_is_refused_with_its_reason(tmp_path, settings, title, called, answer):
    with serving(tmp_path, **settings) as node:
        for _ in range(5):
            with associated(node, [VERIFICATION], title=title, called=called) as association:
                assert association.is_established == (answer is None)
                said = association.acceptor.primitive
            if said is not None:  # now and then pynetdicom overtakes itself and misses the answer
                break
        if answer is not None:
            assert (said.result, said.result_source, said.diagnostic) == answer


def test_the_limit_counts_those_that_are_there_now(tmp_path):
    with serving(tmp_path, associations=2) as node:
        with (
            associated(node, [VERIFICATION]),
            associated(node, [VERIFICATION]),
            associated(node, [VERIFICATION]) as third,
        ):
            assert not third.is_established
        _wait_for(lambda: node.server._active == 0)
        with associated(node, [VERIFICATION]) as again:
            assert again.is_established


def test_an_address_that_is_not_accepted_is_hung_up_on(tmp_path, caplog):
    with serving(tmp_path, addresses=("10.0.0.0/8",)) as node:
        with associated(node, [VERIFICATION]) as association:
            assert not association.is_established
        assert "127.0.0.1: its address is not accepted" in caplog.messages
    with (
        serving(tmp_path, addresses=("10.0.0.0/8", "127.0.0.1")) as node,
        associated(node, [VERIFICATION]) as association,
    ):
        assert association.is_established


@pytest.mark.parametrize("settings", [{"addresses": ("here",)}, {"listen": "11112x"}, {"title": "A" * 17}])
def test_a_setting_that_makes_no_sense_is_told_before_anything_listens(tmp_path, settings):
    with api.open(tmp_path / "store", create=True) as store, pytest.raises(BadQuery):
        Server(DimseSettings(**{"processes": 0, **settings}), store)


def test_addresses_to_listen_at_are_read():
    assert parse_listen(":11112") == ("127.0.0.1", 11112)
    assert parse_listen("[::1]:0") == ("::1", 0)
    assert parse_listen("pacs.example.org:104") == ("pacs.example.org", 104)


# --- Time ---------------------------------------------------------------------


def test_an_association_that_says_nothing_is_ended(tmp_path, caplog):
    with serving(tmp_path, idle_seconds=0.3) as node, associated(node, [VERIFICATION]) as association:
        assert association.is_established
        _wait_for(lambda: association.is_aborted)
    _wait_for(lambda: any("nothing came for too long" in line for line in caplog.messages))


def test_a_connection_that_asks_for_nothing_is_closed(tmp_path):
    with (
        serving(tmp_path, artim_seconds=0.3) as node,
        socket.create_connection(("127.0.0.1", node.port)) as found,
    ):
        found.settimeout(10)
        assert found.recv(100) == b""


def test_a_request_that_never_ends_is_cut_off_though_bytes_trickle_in(tmp_path):
    with (
        serving(tmp_path, artim_seconds=0.5) as node,
        socket.create_connection(("127.0.0.1", node.port)) as found,
    ):
        found.sendall(struct.pack(">BBI", 1, 0, 1000))
        begun = time.monotonic()
        with contextlib.suppress(OSError):
            while time.monotonic() - begun < 10:
                found.sendall(b"\0")
                time.sleep(0.05)
        assert time.monotonic() - begun < 5


# --- Broken peers ---------------------------------------------------------------


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        struct.pack(">BBI", 1, 0, 0xFFFFFFF0) + b"x" * 100,
        struct.pack(">BBI", 1, 0, 100) + b"\xff" * 100,
        struct.pack(">BBI", 4, 0, 10) + b"\0" * 10,
        struct.pack(">BBI", 7, 0, 4) + b"\0" * 4,
        b"\x01",
    ],
    ids=["HTTP", "huge", "garbage", "data before all", "abort", "one byte"],
)
def test_what_is_no_association_is_ended_with_one_line_and_no_traceback(tmp_path, caplog, sent):
    caplog.set_level(logging.INFO, "hilum.dimse")
    with serving(tmp_path, artim_seconds=1.0) as node:
        with socket.create_connection(("127.0.0.1", node.port)) as found:
            found.sendall(sent)
            found.shutdown(socket.SHUT_WR)
            found.settimeout(10)
            with contextlib.suppress(ConnectionError):
                while found.recv(1000):
                    pass
        _wait_for(lambda: node.server._active == 0)
        with associated(node, [VERIFICATION]) as association:
            assert association.send_c_echo().Status == 0
    lines = [
        found for found in caplog.records if found.name == "hilum.dimse" and "released" not in found.message
    ]
    assert len(lines) <= 1
    assert not any(found.exc_info for found in caplog.records)


@pytest.mark.parametrize(
    "body",
    [
        struct.pack(">IBB", 200, 1, 3) + b"x" * 10,  # a PDV longer than its PDU
        struct.pack(">IBB", 1, 1, 3),
        struct.pack(">IBB", 6, 99, 3) + b"\0" * 4,  # a context that was not agreed on
        struct.pack(">IBB", 6, 1, 2) + b"data",  # a data set without command
        struct.pack(">IBB", 6, 1, 3) + b"\xff\xff\xff\xff",
        b"\0\0",
    ],
    ids=["too long", "no control", "context", "no command", "no command set", "cut"],
)
def test_a_broken_pdu_ends_the_association_with_an_abort(tmp_path, caplog, body):
    with serving(tmp_path) as node, associated(node, [VERIFICATION]) as association:
        association.dul.socket.socket.sendall(struct.pack(">BBI", 4, 0, len(body)) + body)
        _wait_for(lambda: association.is_aborted)
        _wait_for(lambda: any("SENDER@127.0.0.1" in line for line in caplog.messages))
    assert not any(found.exc_info for found in caplog.records if found.name.startswith("hilum"))


def test_hundreds_of_connections_that_come_and_go_leave_nothing(tmp_path):
    with serving(tmp_path, associations=1000) as node:
        before = threading.active_count()
        descriptors = len(os.listdir("/proc/self/fd"))
        for _ in range(300):
            socket.create_connection(("127.0.0.1", node.port)).close()
        _wait_for(lambda: node.server._active == 0)
        _wait_for(lambda: threading.active_count() <= before)
        assert len(os.listdir("/proc/self/fd")) <= descriptors + 2
        with associated(node, [VERIFICATION]) as association:
            assert association.send_c_echo().Status == 0


# --- Stopping ----------------------------------------------------------------------


def test_a_stop_finishes_what_is_under_way_and_refuses_new(tmp_path, monkeypatch):
    submit = Writer.submit
    begun, stop = threading.Event(), threading.Event()

    def slow(self, *args):
        begun.set()
        stop.wait(10)
        return submit(self, *args)

    with api.open(tmp_path / "store", create=True) as store:
        found = Server(DimseSettings(listen="127.0.0.1:0", processes=0, stop_seconds=5.0), store)
        found.start()
        port = found.address[1]
        with associated(port) as association:
            monkeypatch.setattr(Writer, "submit", slow)
            answers = []
            sender = threading.Thread(target=lambda: answers.append(send(association, an_object())))
            sender.start()
            assert begun.wait(10)
            stopper = threading.Thread(target=found.stop)
            stopper.start()
            _wait_for(lambda: not _is_open(port))
            stop.set()
            sender.join(10)
            stopper.join(15)
        assert [answer.Status for answer in answers] == [0]
        assert store.stats()["instances"] == 1


def test_an_idle_association_does_not_hold_a_stop(tmp_path):
    with serving(tmp_path, stop_seconds=30.0) as node, associated(node, [VERIFICATION]) as association:
        begun = time.monotonic()
        node.server.stop()
        assert time.monotonic() - begun < 10
        _wait_for(lambda: association.is_aborted)


# --- Processes -----------------------------------------------------------------------


def test_processes_of_their_own_serve_and_one_that_dies_is_started_again(tmp_path):
    api.open(tmp_path / "store", create=True).close()
    settings = DimseSettings(listen="127.0.0.1:0", processes=2, stop_seconds=2.0)
    with Server(settings, str(tmp_path / "store")) as found:
        port = found.address[1]
        with associated(port) as first, associated(port) as second:
            assert sorted(process.active for process in found._processes) == [1, 1]
            assert send(first, an_object("1.2.3")).Status == 0
            assert send(second, an_object("1.2.4")).Status == 0
        _wait_for(lambda: all(process.active == 0 for process in found._processes))
        died = found._processes[0].process
        os.kill(died.pid, signal.SIGKILL)
        _wait_for(lambda: all(process.process is not died for process in found._processes), 20)
        _wait_for(lambda: all(process.is_ready for process in found._processes), 30)
        for number in range(4):
            with associated(port) as association:
                assert send(association, an_object(f"1.2.{number}.9")).Status == 0
    with api.open(tmp_path / "store") as store:
        assert store.stats()["instances"] == 6


def test_a_process_that_can_not_open_the_store_is_told_at_the_start(tmp_path):
    found = Server(DimseSettings(listen="127.0.0.1:0", processes=1), str(tmp_path / "nothing"))
    with pytest.raises(BadQuery):
        found.start()


# --- TLS -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """An authority, what it has signed for a server and a client, and what a stranger has signed."""
    folder = tmp_path_factory.mktemp("tls")

    def run(*words):
        subprocess.run(["openssl", *words], check=True, capture_output=True, cwd=folder)

    for authority in ("ca", "stranger"):
        run(
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={authority}",
            "-keyout", f"{authority}.key", "-out", f"{authority}.pem",
        )  # fmt: skip
    for name, authority in (("server", "ca"), ("client", "ca"), ("other", "stranger")):
        run(
            "req",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-subj",
            f"/CN={name}",
            "-keyout",
            f"{name}.key",
            "-out",
            f"{name}.csr",
        )
        run(
            "x509", "-req", "-in", f"{name}.csr", "-CA", f"{authority}.pem", "-CAkey", f"{authority}.key",
            "-CAcreateserial", "-days", "2", "-out", f"{name}.pem",
        )  # fmt: skip
    return folder


def _tls(folder, name=None):
    context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    context.check_hostname = False
    if name is not None:
        context.load_cert_chain(folder / f"{name}.pem", folder / f"{name}.key")
    return context, None


def _tls_settings(folder, **further):
    return {
        "tls_certificate": str(folder / "server.pem"),
        "tls_key": str(folder / "server.key"),
        "tls_authorities": str(folder / "ca.pem"),
        **further,
    }


def test_tls_carries_an_object(tmp_path, certificates):
    file = an_object(size=1 << 20)
    with (
        serving(tmp_path, **_tls_settings(certificates)) as node,
        associated(node, tls_args=_tls(certificates)) as association,
    ):
        assert association.is_established
        assert send(association, file).Status == 0


@pytest.mark.parametrize(("name", "accepted"), [("client", True), (None, False), ("other", False)])
def test_mutual_tls_lets_in_only_who_has_a_certificate_that_is_believed(
    tmp_path, certificates, name, accepted
):
    with (
        serving(tmp_path, **_tls_settings(certificates, tls_mutual=True)) as node,
        associated(node, [VERIFICATION], tls_args=_tls(certificates, name)) as association,
    ):
        assert association.is_established == accepted


def test_without_tls_nothing_is_said_to_one_who_asks_in_the_clear(tmp_path, certificates, caplog):
    with serving(tmp_path, **_tls_settings(certificates)) as node:
        with associated(node, [VERIFICATION]) as association:
            assert not association.is_established
        _wait_for(lambda: any("no TLS" in line for line in caplog.messages))


def test_a_certificate_that_is_not_there_is_told_at_the_start(tmp_path):
    with api.open(tmp_path / "store", create=True) as store, pytest.raises(BadQuery, match="TLS"):
        Server(DimseSettings(processes=0, tls_certificate=str(tmp_path / "none.pem")), store)


def _is_open(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def _wait_for(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
