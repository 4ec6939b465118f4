"""hilum store: what reaches a node, byte for byte, and what is said of what does not."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from command import run
from dimsenode import data_set_of, serving
from makers import (
    CT_IMAGE,
    EXPLICIT_LE,
    IMPLICIT_LE,
    MR_IMAGE,
    SECONDARY_CAPTURE,
    file_meta,
    make_object,
    noise,
)
from pynetdicom import evt
from pynetdicom.presentation import AllStoragePresentationContexts
from scps import scp

import hilum
from hilum.dicom import uids
from hilum.dimse import scu
from hilum.dimse.options import DimseSettings, Peer
from hilum.transfer.outgoing import FileSource, Outgoing, StoredSource
from hilum.transfer.work import Work
from hilum.transfer.work import run as run_work

DEFLATED = uids.DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN


@pytest.fixture(autouse=True)
def _alone(tmp_path, monkeypatch):
    """No settings and no journals but those of the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HILUM_CONFIG", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


class Taken:
    """A storage peer of pynetdicom's, and the data sets that it got, by UID."""

    def __init__(self, *statuses: int) -> None:
        self.data: dict[str, bytes] = {}
        self.syntaxes: dict[str, str] = {}
        self.order: list[str] = []
        self.associations = 0
        self._statuses = list(statuses)
        self._lock = threading.Lock()

    def handlers(self) -> list[tuple[Any, Any]]:
        return [(evt.EVT_C_STORE, self._store), (evt.EVT_ESTABLISHED, self._count)]

    def _count(self, event: Any) -> None:
        self.associations += 1

    def _store(self, event: Any) -> int:
        uid = str(event.request.AffectedSOPInstanceUID)
        with self._lock:
            status = self._statuses.pop(0) if self._statuses else 0
            self.order.append(uid)
            if status == 0 or status >> 12 == 0xB:
                self.data[uid] = event.request.DataSet.getvalue()
                self.syntaxes[uid] = str(event.context.transfer_syntax)
        return status


def objects(count: int = 3, **more: Any) -> dict[str, bytes]:
    return {
        f"2.25.1.{n}": make_object(
            f"2.25.1.{n}", "2.25.1", f"2.25.1{n % 2}", instance_number=n, pixels=noise(64, n), **more
        )
        for n in range(count)
    }


def written(folder: Path, found: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for uid, data in found.items():
        (folder / f"{uid}.dcm").write_bytes(data)
    return folder


def stored(path: Path, found: dict[str, bytes]) -> Path:
    with hilum.open(path, create=True) as store:
        for data in found.values():
            store.ingest(data)
    return path


def sets(found: dict[str, bytes]) -> dict[str, bytes]:
    return {uid: data_set_of(data) for uid, data in found.items()}


def target(port: int) -> str:
    return f"PEER@127.0.0.1:{port}"


# --- Out of files, out of the store ----------------------------------------------------


def test_files_and_folders_arrive_byte_for_byte_and_what_is_no_dicom_is_passed_over(tmp_path):
    found = objects(4)
    folder = written(tmp_path / "in", found)
    (folder / "deep").mkdir()
    (folder / "deep" / "more.dcm").write_bytes(make_object("2.25.9", "2.25.2", "2.25.20"))
    (folder / "README").write_text("nothing")
    taken = Taken()
    with scp(taken.handlers(), [CT_IMAGE]) as port:
        ran = run("store", target(port), folder, "--json")

    assert ran.code == 0
    assert ran.summary["sent"] == 5
    assert ran.summary["not_dicom"] == 1
    assert ran.summary["failed"] == 0
    assert {uid: taken.data[uid] for uid in found} == sets(found)


def test_what_is_stored_arrives_byte_for_byte(tmp_path):
    found = objects(4)
    path = stored(tmp_path / "store", found)
    taken = Taken()
    with scp(taken.handlers(), [CT_IMAGE]) as port:
        assert run("store", target(port), "--all", "--store", path).code == 0

    assert taken.data == sets(found)


@pytest.mark.parametrize("out_of", ["files", "store"])
@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (["PatientID=P1"], {"a1", "a2", "b1"}),
        (["StudyInstanceUID=2.25.1"], {"a1", "a2"}),
        (["StudyInstanceUID=2.25.1,2.25.3"], {"a1", "a2", "c1"}),
        (["SeriesInstanceUID=2.25.12"], {"a2"}),
        (["SOPInstanceUID=2.25.1.1,2.25.3.1"], {"a1", "c1"}),
        (["PatientID=P1", "Modality=MR"], {"a2"}),
        (["PatientName=roe*"], {"c1"}),
    ],
)
def test_keys_say_which_patients_studies_series_and_instances(tmp_path, out_of, keys, expected):
    found = {
        "a1": make_object("2.25.1.1", "2.25.1", "2.25.11"),
        "a2": make_object("2.25.1.2", "2.25.1", "2.25.12", modality="MR"),
        "b1": make_object("2.25.2.1", "2.25.2", "2.25.21"),
        "c1": make_object("2.25.3.1", "2.25.3", "2.25.31", patient_id="P2", name="Roe^Rita"),
    }
    taken = Taken()
    with scp(taken.handlers(), [CT_IMAGE]) as port:
        if out_of == "files":
            ran = run("store", target(port), written(tmp_path / "in", found), *keys)
        else:
            ran = run("store", target(port), *keys, "--store", stored(tmp_path / "store", found))

    assert ran.code == 0
    uids_of = {"a1": "2.25.1.1", "a2": "2.25.1.2", "b1": "2.25.2.1", "c1": "2.25.3.1"}
    assert set(taken.data) == {uids_of[name] for name in expected}


@pytest.mark.parametrize(
    "words",
    [
        ["X@127.0.0.1:1"],
        ["X@127.0.0.1:1", "no-such-file"],
        ["X@127.0.0.1:1", "--all", "PatientID=1"],
        ["X@127.0.0.1:1", "Nonsense=1", "."],
    ],
)
def test_nothing_to_send_and_what_makes_no_sense_is_wrong_use(words):
    assert run("store", *words).code == 2


def test_the_store_is_not_sent_as_files_where_it_lies_in_the_folder(tmp_path):
    stored(tmp_path / "in" / "store", objects(2))
    (tmp_path / "in" / "one.dcm").write_bytes(make_object("2.25.9", "2.25.2", "2.25.20"))
    taken = Taken()
    with scp(taken.handlers(), [CT_IMAGE]) as port:
        ran = run("store", target(port), tmp_path / "in", "--store", tmp_path / "in" / "store", "--json")

    assert ran.summary["not_dicom"] == 0
    assert list(taken.data) == ["2.25.9"]


# --- What the peer takes ---------------------------------------------------------------


def test_each_class_and_syntax_is_proposed_as_it_is_stored(tmp_path):
    found = {
        "2.25.1": make_object("2.25.1", "2.25.9", "2.25.91", transfer_syntax=IMPLICIT_LE, pixels=b"12"),
        "2.25.2": make_object(
            "2.25.2", "2.25.9", "2.25.92", sop_class=MR_IMAGE, fragments=[b"\xff\xd8\xff\xd9"]
        ),
        "2.25.3": make_object("2.25.3", "2.25.9", "2.25.91", pixels=b"12"),
    }
    taken = Taken()
    contexts = [(CT_IMAGE, EXPLICIT_LE), (CT_IMAGE, IMPLICIT_LE), (MR_IMAGE, uids.JPEG_BASELINE)]
    with scp(taken.handlers(), contexts) as port:
        assert run("store", target(port), written(tmp_path / "in", found)).code == 0

    assert taken.data == sets(found)
    assert taken.syntaxes == {"2.25.1": IMPLICIT_LE, "2.25.2": uids.JPEG_BASELINE, "2.25.3": EXPLICIT_LE}
    assert taken.associations == 1


def test_more_classes_than_an_association_has_room_for_go_by_several(tmp_path):
    classes = [str(context.abstract_syntax) for context in AllStoragePresentationContexts][:150]
    found = {
        f"2.25.{n}": make_object(f"2.25.{n}", "2.25.9999", "2.25.99991", sop_class=sop_class)
        for n, sop_class in enumerate(classes)
    }
    taken = Taken()
    with scp(taken.handlers(), [(sop_class, EXPLICIT_LE) for sop_class in classes[:100]]) as port:
        ran = run("store", target(port), written(tmp_path / "in", found), "--json")

    assert set(taken.data) == {f"2.25.{n}" for n in range(100)}
    assert ran.summary["sent"] == 100
    assert ran.summary["failed"] == 50
    assert taken.associations >= 3


@pytest.mark.parametrize("out_of", ["files", "store"])
def test_what_is_not_taken_as_it_is_goes_in_another_syntax(tmp_path, out_of):
    found = {"2.25.1": make_object("2.25.1", "2.25.9", "2.25.91", transfer_syntax=IMPLICIT_LE, pixels=b"12")}
    taken = Taken()
    with scp(taken.handlers(), [(CT_IMAGE, EXPLICIT_LE)]) as port:
        words = [written(tmp_path / "in", found)] if out_of == "files" else ["--all"]
        if out_of == "store":
            stored(tmp_path / "store", found)
        assert run("store", target(port), *words, "--store", tmp_path / "store").code == 0

    explicit = make_object("2.25.1", "2.25.9", "2.25.91", pixels=b"12")
    assert taken.syntaxes == {"2.25.1": EXPLICIT_LE}
    assert taken.data == {"2.25.1": data_set_of(explicit)}


def test_what_can_not_be_turned_into_what_the_peer_takes_has_failed_with_the_reason(tmp_path):
    found = {"2.25.1": make_object("2.25.1", "2.25.9", "2.25.91", fragments=[b"no jpeg at all"])}
    with scp(Taken().handlers(), [(CT_IMAGE, EXPLICIT_LE)]) as port:
        ran = run("store", target(port), written(tmp_path / "in", found))

    assert ran.code == 1
    assert "the peer takes no transfer syntax that JPEG Baseline" in ran.err


def test_a_class_that_is_not_taken_has_failed_and_the_others_go(tmp_path):
    found = objects(2)
    found["2.25.2"] = make_object("2.25.2", "2.25.2", "2.25.21", sop_class=SECONDARY_CAPTURE)
    taken = Taken()
    with scp(taken.handlers(), [CT_IMAGE]) as port:
        ran = run("store", target(port), written(tmp_path / "in", found))

    assert ran.code == 1
    assert "the peer does not take Secondary Capture Image Storage" in ran.err
    assert "2 sent" in ran.out
    assert set(taken.data) == set(found) - {"2.25.2"}


def test_a_peer_that_takes_no_storage_at_all_is_told_by_instance(tmp_path):
    with scp() as port:
        ran = run("store", target(port), written(tmp_path / "in", objects(2)), "--json")

    assert ran.code == 1
    assert ran.summary["failed"] == 2
    assert "does not take CT Image Storage" in ran.lines[0]["reason"]


def test_a_deflated_data_set_of_odd_length_goes_with_one_byte_more(tmp_path):
    import zlib

    for n in range(50):
        plain = data_set_of(make_object("2.25.1", "2.25.9", "2.25.91", pixels=noise(64 + 2 * n)))
        packer = zlib.compressobj(wbits=-15)
        packed = packer.compress(plain) + packer.flush()
        if len(packed) % 2:
            break
    (tmp_path / "odd.dcm").write_bytes(file_meta("2.25.1", CT_IMAGE, DEFLATED) + packed)
    taken = Taken()
    with scp(taken.handlers(), [(CT_IMAGE, DEFLATED)]) as port:
        assert run("store", target(port), tmp_path / "odd.dcm").code == 0

    assert taken.data == {"2.25.1": packed + b"\0"}


def test_a_data_set_without_file_meta_is_sent_whole(tmp_path):
    body = data_set_of(make_object("2.25.1", "2.25.9", "2.25.91", transfer_syntax=IMPLICIT_LE))
    (tmp_path / "bare").write_bytes(body)
    taken = Taken()
    with scp(taken.handlers(), [(CT_IMAGE, IMPLICIT_LE)]) as port:
        assert run("store", target(port), tmp_path / "bare").code == 0

    assert taken.data == {"2.25.1": body}


# --- What the peer answers --------------------------------------------------------------


def test_a_warning_is_sent_and_a_failure_is_not_and_both_are_reported(tmp_path):
    taken = Taken(0xB000, 0xA700, 0xC123, 0xB007)
    with scp(taken.handlers(), [CT_IMAGE]) as port:
        ran = run("store", target(port), written(tmp_path / "in", objects(5)), "--json")

    assert ran.code == 1
    events = ran.lines[:-1]
    assert [event["status"] for event in events] == ["0xB000", "0xA700", "0xC123", "0xB007"]
    assert [next(iter(event)) for event in events] == ["warned", "failed", "failed", "warned"]
    assert "out of resources" in events[1]["reason"]
    assert "can't understand" in events[2]["reason"]
    assert events[1]["path"].endswith(".dcm")
    assert (ran.summary["sent"], ran.summary["warned"], ran.summary["failed"]) == (3, 2, 2)


def test_a_failure_names_the_file_its_status_and_the_reason_in_one_line(tmp_path):
    with scp(Taken(0xA700).handlers(), [CT_IMAGE]) as port:
        ran = run("store", target(port), written(tmp_path / "in", objects(1)))

    assert ran.err == f"{tmp_path}/in/2.25.1.0.dcm: failed: 0xA700, out of resources\n"
    assert ran.out.startswith("0 sent")


def test_our_own_node_says_in_words_what_it_refuses(tmp_path):
    first = make_object("2.25.1", "2.25.9", "2.25.91")
    other = make_object("2.25.1", "2.25.9", "2.25.91", name="Other^One")
    with serving(tmp_path / "peer", stored=[first]) as node:
        (tmp_path / "one.dcm").write_bytes(other)
        ran = run("store", f"HILUM@127.0.0.1:{node.port}", tmp_path / "one.dcm")
        assert node.store.read("2.25.1") == first

    assert ran.code == 1
    assert "0x0111, it has other content under this UID: other content is stored" in ran.err


def test_a_file_that_can_not_be_read_has_failed_and_the_others_go(tmp_path):
    folder = written(tmp_path / "in", objects(2))
    (folder / "cut.dcm").write_bytes(make_object("2.25.8", "2.25.9", "2.25.91")[:400])
    with scp(Taken().handlers(), [CT_IMAGE]) as port:
        ran = run("store", target(port), folder)

    assert ran.code == 1
    assert "cut.dcm: failed: not storable" in ran.err
    assert ran.out.startswith("2 sent")


# --- Several associations, broken ones, later runs ----------------------------------------


def test_several_jobs_send_each_instance_once(tmp_path):
    found = objects(40)
    taken = Taken()
    with scp(taken.handlers(), [CT_IMAGE]) as port:
        assert run("store", target(port), written(tmp_path / "in", found), "--jobs", 4).code == 0

    assert sorted(taken.order) == sorted(found)
    assert taken.data == sets(found)
    assert taken.associations == 4


def test_more_jobs_than_the_peer_takes_associations_send_all_the_same(tmp_path):
    found = objects(30)
    with serving(tmp_path / "peer", associations=1) as node:
        ran = run(
            "store", f"HILUM@127.0.0.1:{node.port}", written(tmp_path / "in", found), "--jobs", 5, "--json"
        )
        assert {row.uid for row in node.store.find("instances")} == set(found)

    assert ran.code == 0
    assert ran.summary["sent"] == 30


def test_an_association_that_breaks_is_made_anew_and_nothing_is_lost(tmp_path):
    found = objects(10)
    taken = Taken()
    count = 0

    def sometimes(event: Any) -> int:
        nonlocal count
        count += 1
        if count in (3, 7):
            event.assoc.abort()
            return 0xC000
        return taken._store(event)

    with scp([(evt.EVT_C_STORE, sometimes)], [CT_IMAGE]) as port:
        ran = run("store", target(port), written(tmp_path / "in", found), "--json")

    assert ran.code == 0
    assert taken.data == sets(found)


def test_an_instance_that_always_breaks_the_association_fails_alone(tmp_path):
    found = objects(6)
    taken = Taken()

    def refuse(event: Any) -> int:
        if event.request.AffectedSOPInstanceUID == "2.25.1.3":
            event.assoc.abort()
            return 0xC000
        return taken._store(event)

    with scp([(evt.EVT_C_STORE, refuse)], [CT_IMAGE]) as port:
        ran = run("store", target(port), written(tmp_path / "in", found), "--json")

    assert ran.code == 1
    assert set(taken.data) == set(found) - {"2.25.1.3"}
    assert "the association broke" in ran.lines[0]["reason"]
    assert ran.lines[0]["failed"] == "2.25.1.3"


def test_a_peer_that_stalls_is_given_up_with_the_reason(tmp_path):
    stop = threading.Event()

    def stall(event: Any) -> int:
        stop.wait(5)
        return 0

    with scp([(evt.EVT_C_STORE, stall)], [CT_IMAGE]) as port:
        ran = run("store", target(port), written(tmp_path / "in", objects(1)), "--timeout", "0.4")
        stop.set()

    assert ran.code == 1
    assert "no answer in time" in ran.err


def test_a_run_that_was_cut_off_goes_on_and_again_sends_all(tmp_path):
    found = objects(9)
    folder = written(tmp_path / "in", found)
    taken = Taken(0, 0, 0, 0, *[0xA700] * 5)
    with scp(taken.handlers(), [CT_IMAGE]) as port:
        assert run("store", target(port), folder).code == 1
        assert len(taken.data) == 4
        taken.order.clear()
        second = run("store", target(port), folder, "--json")
        assert second.code == 0
        assert (second.summary["sent"], second.summary["skipped"]) == (5, 4)
        assert len(taken.order) == 5
        assert taken.data == sets(found)
        assert run("store", target(port), folder, "--json").summary["skipped"] == 9
        assert run("store", target(port), folder, "--again", "--json").summary["sent"] == 9
        assert run("store", target(port), folder, "--json").summary["skipped"] == 9


def test_a_journal_is_of_one_target_one_selection_and_one_content(tmp_path):
    found = objects(2)
    folder = written(tmp_path / "in", found)
    taken = Taken()
    with scp(taken.handlers(), [CT_IMAGE]) as port, scp(Taken().handlers(), [CT_IMAGE]) as other:
        assert run("store", target(port), folder, "--json").summary["sent"] == 2
        assert run("store", target(other), folder, "--json").summary["sent"] == 2
        assert run("store", target(port), folder, "PatientID=P1", "--json").summary["sent"] == 2
        changed = make_object("2.25.1.0", "2.25.1", "2.25.10", name="New^Name")
        (folder / "2.25.1.0.dcm").write_bytes(changed)
        assert run("store", target(port), folder, "--json").summary["sent"] == 1

    assert taken.data["2.25.1.0"] == data_set_of(changed)


def test_a_peer_that_goes_away_for_good_ends_the_run_with_the_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(scu, "_AGAIN_SECONDS", (0.01, 0.01))
    folder = written(tmp_path / "in", objects(6))
    taken = Taken()
    gone = threading.Event()

    def serve_two(event: Any) -> int:
        if len(taken.data) == 2:
            gone.set()
            event.assoc.abort()
            return 0xC000
        return taken._store(event)

    def refuse(event: Any) -> None:
        if gone.is_set():
            event.assoc.abort()

    with scp([(evt.EVT_C_STORE, serve_two), (evt.EVT_REQUESTED, refuse)], [CT_IMAGE]) as port:
        ran = run("store", target(port), folder, "--json")

    assert ran.code == 1
    assert (ran.summary["sent"], ran.summary["failed"], ran.summary["unsent"]) == (2, 0, 4)
    assert "broke off" in ran.summary["reason"]


# --- Underneath ------------------------------------------------------------------------


def test_an_interrupt_lets_the_instance_that_is_under_way_finish(tmp_path):
    found = objects(20)
    folder = written(tmp_path / "in", found)
    taken = Taken()
    source = FileSource([str(folder)], [])
    work = Work(source, None)
    with scp(taken.handlers(), [CT_IMAGE]) as port:
        caller = scu.Caller(DimseSettings(), Peer(title="PEER", host="127.0.0.1", port=port))

        def tick(done: Work) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run_work(work, 1, scu.Sender(caller, source).run, tick)

    assert work.counts.sent == len(taken.data)
    assert {uid: sets(found)[uid] for uid in taken.data} == taken.data


def test_a_head_that_is_damaged_fails_before_a_byte_goes_out(tmp_path):
    found = objects(2)
    path = stored(tmp_path / "store", found)
    taken = Taken()

    class Damaged(StoredSource):
        def data_set(self, one: Outgoing):
            if one.uid == "2.25.1.0":
                raise hilum.errors.Corrupt("it is rotten")
            return super().data_set(one)

    events = []
    with scp(taken.handlers(), [CT_IMAGE]) as port, hilum.open(path, read_only=True) as store:
        source = Damaged(store, [])
        work = Work(source, None, events.append)
        caller = scu.Caller(DimseSettings(), Peer(title="PEER", host="127.0.0.1", port=port))
        run_work(work, 1, scu.Sender(caller, source).run)

    assert set(taken.data) == {"2.25.1.1"}
    assert [(event.kind, event.words) for event in events] == [("failed", "it is rotten")]
    assert taken.associations == 1


def test_half_an_object_is_never_taken_for_a_whole_one(tmp_path):
    found = objects(3)
    folder = written(tmp_path / "in", found)
    taken = Taken()

    class Rotting(FileSource):
        def data_set(self, one: Outgoing):
            pieces = super().data_set(one)
            if one.uid == "2.25.1.1":
                yield next(pieces)[:100]
                raise OSError(5, "Input/output error")
            yield from pieces

    events: list[Any] = []
    aborts: list[Any] = []
    with scp([*taken.handlers(), (evt.EVT_ABORTED, aborts.append)], [CT_IMAGE]) as port:
        source = Rotting([str(folder)], [])
        work = Work(source, None, events.append)
        caller = scu.Caller(DimseSettings(), Peer(title="PEER", host="127.0.0.1", port=port))
        run_work(work, 1, scu.Sender(caller, source).run)

    assert taken.data == {uid: data for uid, data in sets(found).items() if uid != "2.25.1.1"}
    assert len(events) == 1
    assert len(aborts) == 2  # it is told so, and need not guess; it was tried twice
    assert "can't be read" in events[0].words


def test_the_words_of_a_status_know_its_family():
    assert scu.words_of(0xA7FF) == "out of resources"
    assert scu.words_of(0xC999, "no") == "it can't understand or process it: no"
    assert scu.words_of(0xB123) == "a warning"
