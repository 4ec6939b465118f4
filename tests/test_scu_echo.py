"""hilum echo, and the words in which a call to another node fails."""

from __future__ import annotations

import socket
import time

import pytest
from command import run
from dimsenode import associated, free_port, serving
from pynetdicom import evt
from scps import listener, scp

from hilum.cli import targets
from hilum.errors import BadQuery
from hilum.settings import Peer, Settings


@pytest.fixture(autouse=True)
def _alone(tmp_path, monkeypatch):
    """No settings and no journals but those of the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HILUM_CONFIG", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def echo(port: int, *words: str) -> str:
    """The one line of an echo that fails."""
    ran = run("echo", f"PEER@127.0.0.1:{port}", *words)
    assert ran.code == 1
    assert ran.out == ""
    assert ran.err.count("\n") == 1
    return ran.err


def test_a_node_that_answers_is_told_with_its_time_and_what_was_negotiated(tmp_path):
    with serving(tmp_path, pdu_bytes=65536) as node:
        ran = run("echo", f"HILUM@127.0.0.1:{node.port}")
        found = run("echo", f"HILUM@127.0.0.1:{node.port}", "--json").summary

    assert ran.code == 0
    assert "answers in" in ran.out
    assert "HILUM; takes PDUs of 65.5 KB; Explicit VR Little Endian; no TLS" in ran.out
    assert found["ok"] is True
    assert found["pdu_bytes"] == 65536
    assert found["answer_seconds"] > 0


def test_our_title_is_that_of_the_option_else_of_hilum_toml(tmp_path):
    seen = []
    with scp(
        [(evt.EVT_REQUESTED, lambda event: seen.append(event.assoc.requestor.primitive.calling_ae_title))]
    ) as port:
        (tmp_path / "hilum.toml").write_text(
            f'[dimse]\ntitle = "MINE"\n[peers.it]\ntitle = "PEER"\nhost = "127.0.0.1"\nport = {port}\n'
        )
        assert run("echo", "it").code == 0
        assert run("echo", "it", "--aet", "OTHER").code == 0

    assert seen == ["MINE", "OTHER"]


def test_a_refused_connection_an_unknown_host_and_an_unreachable_one_are_told_apart():
    assert "connection refused: nothing listens at 127.0.0.1" in echo(free_port())
    ran = run("echo", "PEER@no.such.host.invalid:104")
    assert ran.code == 1
    assert "no.such.host.invalid is not known" in ran.err


def test_a_rejection_is_told_with_its_cause():
    with scp(require_called_aet=True, title="SOMEBODY") as port:
        assert "the association was rejected: Called AE title not recognised" in echo(port)
    with scp(require_calling_aet=["FRIEND"]) as port:
        assert "the association was rejected: Calling AE title not recognised" in echo(port)
        assert run("echo", f"PEER@127.0.0.1:{port}", "--aet", "FRIEND").code == 0


def test_a_node_over_its_limit_rejects_for_now(tmp_path):
    with serving(tmp_path, associations=1) as node, associated(node):
        assert "rejected for now: Local limit exceeded" in echo(node.port)


def test_a_node_that_says_nothing_is_a_time_out(monkeypatch):
    begin = time.monotonic()
    with listener(lambda connected: connected.recv(1 << 20) and time.sleep(1.5)) as port:
        words = echo(port, "--timeout", "0.5")

    assert "no answer to the request for an association within 0.5 s" in words
    assert time.monotonic() - begin > 0.5


def test_a_node_that_agrees_and_then_stalls_is_a_time_out():
    with scp([(evt.EVT_C_ECHO, lambda event: time.sleep(1.5) or 0)]) as port:
        assert "no answer" in echo(port, "--timeout", "0.5")


def test_what_is_no_dicom_port_is_told_so():
    with listener(
        lambda connected: connected.recv(4096) and connected.sendall(b"HTTP/1.0 400 no\r\n\r\n")
    ) as port:
        assert "PDU of type 72" in echo(port)
    with listener(lambda connected: connected.recv(4096)) as port:
        assert "is this a DICOM port, with TLS or without?" in echo(port)


def test_tls_to_a_node_without_it_is_told_so():
    with scp(acse_timeout=1, network_timeout=1) as port:
        words = echo(port, "--tls", "--timeout", "3")
    assert "TLS" in words or "no connection" in words


def test_a_node_that_answers_an_echo_with_a_failure_has_failed():
    with scp([(evt.EVT_C_ECHO, lambda event: 0x0122)]) as port:
        assert "it answers 0x0122, it does not support the SOP class" in echo(port)


def test_a_connection_that_is_reset_is_no_traceback():
    def reset(connected: socket.socket) -> None:
        connected.recv(1)
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    with listener(reset) as port:
        assert "Traceback" not in echo(port)


# --- Whom a word names ---------------------------------------------------------------

KNOWN = Settings(peers={"pacs": Peer(title="PACS", host="h", port=1), "web": Peer(url="http://w")})


@pytest.mark.parametrize(
    ("word", "peer"),
    [
        ("pacs", KNOWN.peers["pacs"]),
        ("A B@host:104", Peer(title="A B", host="host", port=104)),
        ("X@[::1]:11112", Peer(title="X", host="::1", port=11112)),
        ("https://h/dicom-web", Peer(url="https://h/dicom-web")),
    ],
)
def test_a_target_is_a_name_an_address_or_a_url(word, peer):
    assert targets.peer_of(word, KNOWN) == peer


@pytest.mark.parametrize(
    "word", ["nobody", "X@host", "X@:104", "@host:104", "X@host:0", "X@host:70000", "X" * 17 + "@h:1"]
)
def test_what_is_none_of_these_is_wrong_use_that_names_what_is_known(word):
    with pytest.raises(BadQuery, match=r"pacs, web"):
        targets.peer_of(word, KNOWN)
    assert run("echo", word).code == 2


def test_a_dicomweb_server_is_no_dicom_node(tmp_path):
    (tmp_path / "hilum.toml").write_text('[peers.web]\nurl = "http://127.0.0.1:1"\n')
    ran = run("echo", "web")
    assert ran.code == 2
    assert "is a DICOMweb server" in ran.err


def test_a_title_that_is_none_is_wrong_use():
    assert run("echo", "X@127.0.0.1:1", "--aet", "\\").code == 2
