"""C-STORE: what a sender is told of each object, and what lies in the store afterwards."""

from __future__ import annotations

import logging
import socket
import struct
import time

import pytest
from dimsenode import associated, data_set_of, send, serving
from makers import (
    CT_IMAGE,
    EXPLICIT_LE,
    IMPLICIT_LE,
    JPEG_BASELINE,
    MR_IMAGE,
    element,
    file_meta,
    make_object,
    noise,
)
from pynetdicom.presentation import AllStoragePresentationContexts, build_context

from hilum.dimse.options import DimseSettings
from hilum.dimse.store import Incoming, is_storage
from hilum.engine import record
from hilum.engine.writer import Writer
from hilum.errors import NotFound, StoreBroken

PRIVATE_CLASS = "1.2.826.0.1.3680043.9.9.1"
PRIVATE_SYNTAX = "1.2.826.0.1.3680043.9.9.2"


def an_object(uid="1.2.3", **changed):
    return make_object(uid, "1.2.1", "1.2.2", **{"pixels": noise(4096), **changed})


def test_an_object_is_stored_byte_for_byte_with_meta_of_ours_and_its_sender(tmp_path):
    file = an_object()
    with serving(tmp_path) as node, associated(node) as association:
        status = send(association, file)
        stored = node.store.read("1.2.3")
        head = node.store.head("1.2.3")

    assert (status.Status, status.AffectedSOPInstanceUID) == (0, "1.2.3")
    assert data_set_of(stored) == data_set_of(file)
    assert head.source == b"DIMSE SENDER@127.0.0.1"
    assert abs(head.arrived_us / 1e6 - time.time()) < 60


def test_success_is_said_after_the_commit_only(tmp_path, monkeypatch):
    order = []
    submit, respond = Writer.submit, Incoming.finish

    def noted_submit(self, *args):
        outcomes = submit(self, *args)
        order.append("durable")
        return outcomes

    def noted_finish(self):
        found = respond(self)
        order.append("answered")
        return found

    monkeypatch.setattr(Writer, "submit", noted_submit)
    monkeypatch.setattr(Incoming, "finish", noted_finish)
    with serving(tmp_path) as node, associated(node) as association:
        send(association, an_object())

    assert order == ["durable", "answered"]


@pytest.mark.parametrize(
    "syntax",
    [EXPLICIT_LE, IMPLICIT_LE, JPEG_BASELINE, "1.2.840.10008.1.2.4.203", "1.2.840.10008.1.2.5"],
)
def test_every_transfer_syntax_is_stored_as_it_came(tmp_path, syntax):
    encapsulated = syntax not in (EXPLICIT_LE, IMPLICIT_LE)
    pixels = {"pixels": None, "fragments": [noise(3000)]} if encapsulated else {}
    file = an_object(transfer_syntax=syntax, **pixels)
    with serving(tmp_path) as node, associated(node, [(CT_IMAGE, syntax)]) as association:
        status = send(association, file)
        stored = node.store.read("1.2.3")
        kept = node.store.locate("1.2.3").instance.transfer_syntax

    assert status.Status == 0
    assert data_set_of(stored) == data_set_of(file)
    assert kept == syntax.encode()


def test_a_transfer_syntax_that_nobody_knows_is_agreed_to_and_kept(tmp_path):
    file = an_object(transfer_syntax=PRIVATE_SYNTAX)
    with serving(tmp_path) as node, associated(node, [(CT_IMAGE, PRIVATE_SYNTAX)]) as association:
        status = send(association, file)
        stored = node.store.read("1.2.3")

    assert status.Status == 0
    assert data_set_of(stored) == data_set_of(file)
    assert PRIVATE_SYNTAX.encode() in stored[:400]


def test_explicit_vr_is_chosen_before_implicit_and_compressed_where_it_comes_first(tmp_path):
    wanted = [
        build_context(CT_IMAGE, [IMPLICIT_LE, EXPLICIT_LE]),
        build_context(MR_IMAGE, [IMPLICIT_LE, JPEG_BASELINE, EXPLICIT_LE]),
    ]
    with serving(tmp_path) as node, associated(node, wanted) as association:
        chosen = [str(context.transfer_syntax[0]) for context in association.accepted_contexts]

    assert chosen == [EXPLICIT_LE, JPEG_BASELINE]


def test_every_storage_class_that_pynetdicom_knows_is_taken_and_no_other(tmp_path):
    settings = DimseSettings()
    known = [str(context.abstract_syntax) for context in AllStoragePresentationContexts]

    assert len(known) > 150
    assert all(is_storage(uid, settings) for uid in known)
    assert not is_storage("1.2.840.10008.5.1.4.1.1.201.2", settings)  # Inventory - FIND
    assert not is_storage(PRIVATE_CLASS, settings)
    assert is_storage(PRIVATE_CLASS, DimseSettings(unknown_classes=True))
    assert is_storage(PRIVATE_CLASS, DimseSettings(classes=(PRIVATE_CLASS,)))
    assert not is_storage("1.2.840.10008.5.1.4.31", DimseSettings(unknown_classes=True))


def test_a_private_class_is_stored_where_the_setting_says_so_and_not_agreed_to_where_not(tmp_path):
    file = an_object(sop_class=PRIVATE_CLASS)
    with serving(tmp_path) as node, associated(node, [PRIVATE_CLASS, CT_IMAGE]) as association:
        assert [context.abstract_syntax for context in association.accepted_contexts] == [CT_IMAGE]
    with (
        serving(tmp_path, unknown_classes=True) as node,
        associated(node, [PRIVATE_CLASS]) as association,
    ):
        assert send(association, file).Status == 0


def test_the_same_object_again_is_a_success_and_writes_nothing(tmp_path):
    file = an_object()
    with serving(tmp_path, stored=[file]) as node, associated(node) as association:
        before = node.store.stats()
        status = send(association, file)
        assert status.Status == 0
        assert node.store.stats() == before


def test_other_content_under_a_uid_is_never_a_plain_success_under_keep_first(tmp_path):
    first, other = an_object(), an_object(name="Other^Name")
    with serving(tmp_path, stored=[first]) as node, associated(node) as association:
        status = send(association, other)
        stored = node.store.read("1.2.3")

    assert status.Status == 0x0111
    assert "kept" in status.ErrorComment
    assert stored == first


def test_other_content_takes_the_place_under_replace(tmp_path):
    first, other = an_object(), an_object(name="Other^Name")
    with serving(tmp_path, stored=[first], conflicts="replace") as node, associated(node) as association:
        status = send(association, other)
        stored = node.store.read("1.2.3")

    assert status.Status == 0
    assert data_set_of(stored) == data_set_of(other)


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({"uid": "1.2.4"}, 0xA900),
        ({"data": None}, 0xC000),
        ({"data": b"no data set at all" * 10}, 0xC000),
        ({"data": element(0x00080018, "UI", "1.2.3")}, 0xA900),  # whole, and without study and series
    ],
    ids=["another instance", "none", "garbage", "no study"],
)
def test_what_can_not_be_stored_is_told_with_its_status_and_leaves_nothing(tmp_path, changed, status):
    with serving(tmp_path) as node, associated(node) as association:
        answer = send(association, an_object(), **changed)
        assert answer.Status == status
        assert answer.ErrorComment
        assert node.store.stats()["instances"] == 0
        assert send(association, an_object("1.2.9")).Status == 0  # and the association goes on


def test_a_class_in_the_command_that_is_not_the_data_sets_is_refused(tmp_path):
    file = an_object(sop_class=MR_IMAGE)
    with serving(tmp_path) as node, associated(node) as association:
        answer = send(association, file, sop_class=CT_IMAGE)
        assert answer.Status == 0xA900
        assert node.store.stats()["instances"] == 0


def test_pixels_that_are_cut_are_stored_with_a_warning(tmp_path):
    file = an_object()
    with serving(tmp_path) as node, associated(node) as association:
        answer = send(association, file, data=data_set_of(file)[:-100])
        assert answer.Status == 0xB007
        assert node.store.locate("1.2.3").instance.flags & record.TRUNCATED


def test_a_store_that_can_not_write_is_out_of_resources_and_mended_for_the_next(tmp_path, monkeypatch):
    submit = Writer.submit
    with serving(tmp_path) as node, associated(node) as association:
        broken = node.store.writer

        def failing(self, *args):
            if self is broken:
                raise StoreBroken("no space left")
            return submit(self, *args)

        monkeypatch.setattr(Writer, "submit", failing)
        assert send(association, an_object()).Status == 0xA700
        assert send(association, an_object()).Status == 0
        assert node.store.writer is not broken


def test_a_large_object_is_not_held_in_memory(tmp_path, monkeypatch):
    held = []
    write = Incoming.write

    def noted(self, data):
        write(self, data)
        held.append(self._arrival.held)

    monkeypatch.setattr(Incoming, "write", noted)
    file = an_object(pixels=noise(1 << 20) * 40, rows=5120, columns=8192)
    with serving(tmp_path) as node, associated(node) as association:
        assert send(association, file).Status == 0
        stored = b"".join(node.store.chunks("1.2.3"))

    assert data_set_of(stored) == data_set_of(file)
    assert 0 < max(held) < 2 << 20


def test_many_at_once_go_to_the_disk_beyond_the_memory_that_is_allowed(tmp_path):
    file = an_object(pixels=noise(1 << 20) * 8, rows=2048, columns=4096)
    with serving(tmp_path, memory_bytes=3 << 20) as node, associated(node) as association:
        incoming = []
        original = Incoming.write

        def noted(self, data):
            original(self, data)
            incoming.append(self._arrival.held)

        Incoming.write = noted
        try:
            assert send(association, file).Status == 0
        finally:
            Incoming.write = original
        assert max(incoming) < 5 << 20
        assert incoming[-1] == 0  # it lies on the disk by then
        assert data_set_of(node.store.read("1.2.3")) == data_set_of(file)


def test_an_association_that_ends_inside_a_data_set_leaves_nothing_and_one_line(tmp_path, caplog):
    file = an_object(pixels=noise(1 << 20) * 4, rows=2048, columns=2048)
    with caplog.at_level(logging.INFO, "hilum.dimse"), serving(tmp_path) as node:
        with associated(node) as association:
            association.dul._send = None  # the reactor must not go on with it
            connection = association.dul.socket.socket
            meta = file_meta("1.2.3", CT_IMAGE, EXPLICIT_LE)
            assert meta
            command = _store_command("1.2.3")
            connection.sendall(_pdu(association, command, 3))
            connection.sendall(_pdu(association, data_set_of(file)[:100_000], 0))
            connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        _wait_for(lambda: any("broken off" in line for line in caplog.messages))
        assert node.store.stats()["instances"] == 0
        with pytest.raises(NotFound):
            node.store.locate("1.2.3")
    lines = [line for line in caplog.messages if "SENDER@127.0.0.1" in line]
    assert len(lines) == 1
    assert "1 broken off in the middle" in lines[0]
    assert not any(found.exc_info for found in caplog.records)
    assert list((tmp_path / "store" / "spool").iterdir()) == []


def _store_command(uid: str) -> bytes:
    from hilum.dimse import command as commands

    return commands.write(
        {
            commands.COMMAND_FIELD: commands.Field.STORE,
            commands.MESSAGE_ID: 1,
            commands.AFFECTED_SOP_CLASS: CT_IMAGE,
            commands.AFFECTED_SOP_INSTANCE: uid,
            commands.PRIORITY: 0,
            commands.DATA_SET_TYPE: commands.HAS_DATA_SET,
        }
    )


def _pdu(association, data: bytes, control: int) -> bytes:
    context = association.accepted_contexts[0].context_id
    return struct.pack(">BBIIBB", 4, 0, len(data) + 6, len(data) + 2, context, control) + data


def _wait_for(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
