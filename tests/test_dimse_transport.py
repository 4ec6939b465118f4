"""The transport below the services: what is changed of pynetdicom's, seen from the other end of the wire."""

from __future__ import annotations

import socket
import struct
from io import BytesIO

import pytest
from dimsenode import VERIFICATION, associated, data_set_of, send, serving
from makers import CT_IMAGE, make_object, noise
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dsutils import encode

from hilum.dimse import command as commands
from hilum.dimse import transport
from hilum.dimse.transport import Association
from hilum.errors import BadDicom

COMMAND = {
    commands.AFFECTED_SOP_CLASS: CT_IMAGE,
    commands.COMMAND_FIELD: commands.Field.STORE,
    commands.MESSAGE_ID: 7,
    commands.PRIORITY: 2,
    commands.DATA_SET_TYPE: 1,
    commands.AFFECTED_SOP_INSTANCE: "1.2.3",
    commands.ORIGINATOR_AE: "MOVER",
    commands.ORIGINATOR_ID: 3,
}


def an_object(uid="1.2.3", size=100_000):
    return make_object(uid, "1.2.1", "1.2.2", pixels=noise(size, uid))


# --- Commands -----------------------------------------------------------------


def test_a_command_is_written_as_pynetdicom_writes_it():
    request = C_STORE()
    request.MessageID, request.Priority = 7, 2
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = CT_IMAGE, "1.2.3"
    request.MoveOriginatorApplicationEntityTitle, request.MoveOriginatorMessageID = "MOVER", 3
    request.DataSet = BytesIO(b"data")
    message = C_STORE_RQ()
    message.primitive_to_message(request)

    assert commands.write(COMMAND) == encode(message.command_set, True, True)


def test_a_command_is_read_as_it_was_written():
    read = commands.parse(commands.write(COMMAND))
    del read[commands.GROUP_LENGTH]
    assert read == COMMAND

    failed = {commands.COMMAND_FIELD: 0x8001, commands.OFFENDING_ELEMENT: [0x00080018, 0x00100010]}
    read = commands.parse(commands.write(failed))
    del read[commands.GROUP_LENGTH]
    assert read == failed


def test_an_element_of_a_command_that_nobody_knows_is_read_over():
    extra = struct.pack("<HHI", 0, 0x5110, 4) + b"odd!"
    assert commands.parse(commands.write(COMMAND) + extra)[commands.MESSAGE_ID] == 7


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0\0\2",
        struct.pack("<HHI", 0, 0x0100, 0xFFFFFFFF),
        struct.pack("<HHI", 8, 0x0018, 2) + b"1\0",
        struct.pack("<HHI", 0, 0x0110, 2) + b"\1\0",
        struct.pack("<HHI", 0, 0x0100, 3) + b"\1\0\0",
    ],
    ids=["empty", "cut", "endless", "no group 0000", "no command field", "odd"],
)
def test_what_is_no_command_is_refused(data):
    with pytest.raises(BadDicom):
        commands.parse(data)


def test_an_error_comment_fits_its_value_representation():
    written = commands.write({commands.COMMAND_FIELD: 1, commands.ERROR_COMMENT: "ä\\b" + "x" * 100})
    comment = commands.text(commands.parse(written), commands.ERROR_COMMENT)
    assert len(comment) == 64
    assert comment.startswith("?/b")


# --- The wire ------------------------------------------------------------------


def test_each_wait_for_a_peer_begins_with_an_acknowledgement(tmp_path, monkeypatch):
    order = []
    wait, set_option = transport.Provider._wait, socket.socket.setsockopt

    def noted_wait(self, connected, seconds):
        order.append("wait")
        return wait(self, connected, seconds)

    def noted_option(self, level, option, value):
        if (level, option, value) == (socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1):
            order.append("acknowledge")
        set_option(self, level, option, value)

    monkeypatch.setattr(transport.Provider, "_wait", noted_wait)
    monkeypatch.setattr(socket.socket, "setsockopt", noted_option)
    with serving(tmp_path) as node, associated(node) as association:
        for number in range(5):
            assert send(association, an_object(f"1.2.{number}")).Status == 0

    assert order.count("wait") > 5
    assert order == ["wait", "acknowledge"] * (len(order) // 2)


def test_nagle_is_off_on_our_side(tmp_path):
    with serving(tmp_path) as node, associated(node) as association:
        assert association.is_established
        (served,) = node.server._serving._alive
        connected = served.dul.socket.socket
        assert connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize("size", [1, 5, 6, 7, 100, 1000])
def test_pdus_that_come_in_pieces_are_put_together(tmp_path, size):
    """A whole association, its bytes cut at every `size`."""
    file = an_object(size=3000)
    with serving(tmp_path) as node, associated(node) as association:
        stream = b"".join(_store_pdus(association, file, fragment=700))
        connected = association.dul.socket.socket
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        association._reactor_checkpoint.clear()
        for at in range(0, len(stream), size):
            connected.sendall(stream[at : at + size])
        _, answer = association.dimse.get_msg(block=True)
        association._reactor_checkpoint.set()
        assert answer.Status == 0
        assert data_set_of(node.store.read("1.2.3")) == data_set_of(file)


def test_a_command_in_many_fragments_and_several_pdvs_in_one_pdu_are_read(tmp_path):
    file = an_object(size=3000)
    with serving(tmp_path) as node, associated(node) as association:
        context = association.accepted_contexts[0].context_id
        command = commands.write({**COMMAND, commands.AFFECTED_SOP_INSTANCE: "1.2.3"})
        data = data_set_of(file)
        pdvs = [(command[at : at + 10], 1) for at in range(0, len(command), 10)]
        pdvs[-1] = (pdvs[-1][0], 3)
        pdvs += [(data[at : at + 500], 0) for at in range(0, len(data), 500)] + [(b"", 2)]
        body = b"".join(struct.pack(">IBB", len(part) + 2, context, control) + part for part, control in pdvs)
        association._reactor_checkpoint.clear()
        association.dul.socket.socket.sendall(struct.pack(">BBI", 4, 0, len(body)) + body)
        _, answer = association.dimse.get_msg(block=True)
        association._reactor_checkpoint.set()
        assert answer.Status == 0


def test_requests_that_do_not_wait_for_answers_are_served_in_their_order(tmp_path):
    files = [an_object(f"1.2.{number}", 2000) for number in range(10)]
    with serving(tmp_path) as node, associated(node) as association:
        association._reactor_checkpoint.clear()
        stream = b"".join(
            b"".join(_store_pdus(association, file, uid=f"1.2.{number}", message=number + 1))
            for number, file in enumerate(files)
        )
        association.dul.socket.socket.sendall(stream)
        answers = [association.dimse.get_msg(block=True)[1] for _ in files]
        association._reactor_checkpoint.set()
        assert [(answer.MessageIDBeingRespondedTo, answer.Status) for answer in answers] == [
            (number + 1, 0) for number in range(10)
        ]


@pytest.mark.parametrize("limit", [0, 64, 1000, 16384])
def test_what_is_sent_keeps_to_the_length_that_the_peer_takes(tmp_path, limit):
    """Answers of many PDUs, reassembled by pynetdicom, and no PDU longer than it allows."""
    from dimsenode import STUDY_FIND, query

    seen = []
    with serving(tmp_path, stored=[an_object()]) as node:
        with associated(node, [STUDY_FIND], max_pdu=limit) as association:
            read = association.dul._decode_pdu

            def noted(data):
                if data[0] == 4:
                    seen.append(struct.unpack_from(">I", data, 2)[0])
                return read(data)

            association.dul._decode_pdu = noted
            keys = query(QueryRetrieveLevel="STUDY", StudyInstanceUID="", PatientName="", StudyDescription="")
            found = list(association.send_c_find(keys, STUDY_FIND))
        assert [status.Status for status, _ in found] == [0xFF00, 0]
        assert found[0][1].StudyInstanceUID == "1.2.1"
    assert seen
    if limit:
        assert max(seen) <= limit


def test_a_peer_that_sends_longer_pdus_than_we_said_is_borne(tmp_path):
    file = an_object(size=1 << 20)
    with serving(tmp_path, pdu_bytes=16384) as node, associated(node) as association:
        association._reactor_checkpoint.clear()
        association.dul.socket.socket.sendall(b"".join(_store_pdus(association, file, fragment=1 << 20)))
        _, answer = association.dimse.get_msg(block=True)
        association._reactor_checkpoint.set()
        assert answer.Status == 0


def test_fragments_hold_what_they_are_given_in_any_pieces():
    pieces = [b"abc", b"", b"defghij", b"k"]
    for size in range(1, 13):
        stream = b"".join(Association._fragments(1, 0, pieces, size))
        found, last, at = b"", [], 0
        while at < len(stream):
            _, _, length, inner, context, control = struct.unpack_from(">BBIIBB", stream, at)
            assert (length, context) == (inner + 4, 1)
            assert inner - 2 <= size
            found += stream[at + 12 : at + 6 + length]
            last.append(control)
            at += 6 + length
        assert found == b"abcdefghijk"
        assert last == [0] * (len(last) - 1) + [2]


def test_a_release_is_answered_and_the_connection_is_closed_by_the_one_who_asked(tmp_path):
    with serving(tmp_path) as node, associated(node, [VERIFICATION]) as association:
        association.release()
        assert association.is_released
        assert not association.is_aborted


def test_an_answer_that_nobody_waits_for_is_read_over(tmp_path, caplog):
    with serving(tmp_path) as node, associated(node, [VERIFICATION]) as association:
        answer = commands.write(
            {
                commands.COMMAND_FIELD: commands.Field.ECHO | commands.RESPONSE,
                commands.RESPONDED_TO: 9,
                commands.DATA_SET_TYPE: commands.NO_DATA_SET,
                commands.STATUS: 0,
            }
        )
        association.dul.socket.socket.sendall(
            struct.pack(">BBIIBB", 4, 0, len(answer) + 6, len(answer) + 2, 1, 3) + answer
        )
        assert association.send_c_echo().Status == 0
    assert any("nobody waits for" in line for line in caplog.messages)


def _store_pdus(association, file, *, fragment=16_000, uid="1.2.3", message=1):
    context = association.accepted_contexts[0].context_id
    command = commands.write({**COMMAND, commands.AFFECTED_SOP_INSTANCE: uid, commands.MESSAGE_ID: message})
    data = data_set_of(file)
    parts = [(command, 3)]
    cuts = range(0, len(data), fragment)
    parts += [(data[at : at + fragment], 2 if at == cuts[-1] else 0) for at in cuts]
    for part, control in parts:
        yield struct.pack(">BBIIBB", 4, 0, len(part) + 6, len(part) + 2, context, control) + part
