"""hilum get and hilum move: what comes, where it goes, and what is said of what does not come."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from command import run
from dimsenode import STUDY_FIND, STUDY_GET, STUDY_MOVE, data_set_of, free_port, serving
from makers import CT_IMAGE, IMPLICIT_LE, MR_IMAGE, SECONDARY_CAPTURE, make_object, noise
from pydicom.dataset import Dataset
from pynetdicom import evt
from scps import scp

import hilum
from hilum.dimse.options import Peer

FILES = {
    "2.25.1.1": make_object("2.25.1.1", "2.25.1", "2.25.11", pixels=noise(500)),
    "2.25.1.2": make_object(
        "2.25.1.2", "2.25.1", "2.25.11", transfer_syntax=IMPLICIT_LE, pixels=noise(500, 2)
    ),
    "2.25.1.3": make_object(
        "2.25.1.3", "2.25.1", "2.25.12", sop_class=MR_IMAGE, modality="MR", fragments=[noise(64)]
    ),
    "2.25.2.1": make_object("2.25.2.1", "2.25.2", "2.25.21", modality="SR", sop_class=SECONDARY_CAPTURE),
    "2.25.3.1": make_object("2.25.3.1", "2.25.3", "2.25.31", patient_id="P2", name="Roe^Rita"),
}


@pytest.fixture(autouse=True)
def _alone(tmp_path, monkeypatch):
    """No settings but those of the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HILUM_CONFIG", raising=False)


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("fetch"), stored=list(FILES.values())) as found:
        yield found


def target(node: Any) -> str:
    return f"HILUM@127.0.0.1:{node.port}"


def got(folder: Path) -> dict[str, bytes]:
    """The data sets of the files in a folder."""
    return {path.stem: data_set_of(path.read_bytes()) for path in folder.rglob("*.dcm")}


def sets(names: Any) -> dict[str, bytes]:
    return {uid: data_set_of(FILES[uid]) for uid in names}


def kept(path: Path) -> dict[str, bytes]:
    """The data sets of a store."""
    with hilum.open(path, read_only=True) as store:
        return {row.uid: data_set_of(store.read(row.uid)) for row in store.find("instances")}


CHOICES = [
    (["PatientID=P1"], {"2.25.1.1", "2.25.1.2", "2.25.1.3", "2.25.2.1"}),
    (["PatientID=P2"], {"2.25.3.1"}),
    (["StudyInstanceUID=2.25.1,2.25.3"], {"2.25.1.1", "2.25.1.2", "2.25.1.3", "2.25.3.1"}),
    (["StudyInstanceUID=2.25.1", "SeriesInstanceUID=2.25.12"], {"2.25.1.3"}),
    (["StudyInstanceUID=2.25.1", "Modality=MR"], {"2.25.1.3"}),
    (["PatientName=doe*", "Modality=SR"], {"2.25.2.1"}),
    (["SOPInstanceUID=2.25.1.2,2.25.1.3", "PatientID=P1"], {"2.25.1.2", "2.25.1.3"}),
]


# --- C-GET -------------------------------------------------------------------------------


@pytest.mark.parametrize(("keys", "expected"), CHOICES)
def test_get_into_the_store_byte_for_byte(node, tmp_path, keys, expected):
    ran = run("get", target(node), *keys, "--store", tmp_path / "mine", "--json")

    assert ran.code == 0, ran.err
    assert ran.summary["fetched"] == len(expected)
    assert kept(tmp_path / "mine") == sets(expected)


@pytest.mark.parametrize(("keys", "expected"), CHOICES)
def test_get_into_a_folder_byte_for_byte(node, tmp_path, keys, expected):
    ran = run("get", target(node), *keys, "--dir", tmp_path / "out", "--json")

    assert ran.code == 0, ran.err
    assert got(tmp_path / "out") == sets(expected)
    assert not list(tmp_path.rglob("*.part"))


def test_a_folder_has_the_names_of_an_export(node, tmp_path):
    run("get", target(node), "PatientID=P2", "--dir", tmp_path / "out")
    with hilum.open(tmp_path / "other", create=True) as store:
        store.ingest(FILES["2.25.3.1"])
    run("export", tmp_path / "export", "--store", tmp_path / "other")

    def names(folder: Path) -> list[str]:
        return [str(path.relative_to(folder)) for path in folder.rglob("*.dcm")]

    assert names(tmp_path / "out") == names(tmp_path / "export") == ["P2/2.25.3/2.25.31/2.25.3.1.dcm"]


@pytest.mark.parametrize("where", ["--store", "--dir"])
def test_what_is_here_is_not_fetched_again(node, tmp_path, where):
    first = run("get", target(node), "PatientID=P2", where, tmp_path / "mine", "--json")
    second = run(
        "get", target(node), "StudyDate=20240101-", "PatientID=*", where, tmp_path / "mine", "--json"
    )
    again = run("get", target(node), "PatientID=P2", where, tmp_path / "mine", "--again", "--json")

    assert first.summary["fetched"] == 1
    assert (second.summary["fetched"], second.summary["present"]) == (4, 1)
    assert again.summary["present"] == 1
    assert (kept if where == "--store" else got)(tmp_path / "mine") == sets(FILES)


@pytest.mark.parametrize("where", ["--store", "--dir"])
def test_other_content_under_a_uid_is_a_conflict_and_stays(node, tmp_path, where):
    mine = make_object("2.25.3.1", "2.25.3", "2.25.31", patient_id="P2", name="Roe^Rita", accession="MINE")
    if where == "--store":
        with hilum.open(tmp_path / "mine", create=True) as store:
            store.ingest(mine)
    else:
        path = tmp_path / "mine" / "P2" / "2.25.3" / "2.25.31" / "2.25.3.1.dcm"
        path.parent.mkdir(parents=True)
        path.write_bytes(mine)
    words = ["get", target(node), "PatientID=P2", where, tmp_path / "mine", "--again", "--json"]
    ran = run(*words)

    assert ran.code == 1
    assert ran.summary["conflicts"] == 1
    assert "other content" in ran.lines[0]["reason"]
    look = kept if where == "--store" else got
    assert look(tmp_path / "mine") == {"2.25.3.1": data_set_of(mine)}
    assert run(*words, "--on-conflict", "replace").code == 0
    assert look(tmp_path / "mine") == sets(["2.25.3.1"])


def test_several_jobs_fetch_each_series_once(node, tmp_path):
    ran = run("get", target(node), "StudyDate=19000101-", "--store", tmp_path / "mine", "--jobs", 3, "--json")
    assert ran.summary["fetched"] == 5
    assert kept(tmp_path / "mine") == sets(FILES)


def test_nothing_that_matches_is_no_failure_and_is_said(node, tmp_path):
    ran = run("get", target(node), "PatientID=NOBODY", "--dir", tmp_path / "out")
    assert ran.code == 0
    assert "nothing matches" in ran.err


@pytest.mark.parametrize("command", [["get"], ["move", "--to", "X"]])
@pytest.mark.parametrize("words", [[], ["PatientID"], ["PatientID="], ["Nonsense=1"]])
def test_no_key_and_what_makes_no_sense_is_wrong_use(node, command, words):
    assert run(command[0], target(node), *command[1:], *words).code == 2


def finds(instances: dict[str, str], *, with_classes: bool = True) -> Any:
    """A C-FIND handler of one study and one series with these instances: SOP class by UID."""

    def handle(event: Any) -> Any:
        level = event.identifier.QueryRetrieveLevel
        for uid, sop_class in instances.items() if level == "IMAGE" else [("", "")]:
            row = Dataset()
            row.QueryRetrieveLevel = level
            row.PatientID = "P1"
            row.StudyInstanceUID = "2.25.1"
            if level != "STUDY":
                row.SeriesInstanceUID = "2.25.11"
            if level == "IMAGE":
                row.SOPInstanceUID = uid
                if with_classes:
                    row.SOPClassUID = sop_class
            yield 0xFF00, row

    return handle


def serve_get(*operations: Any) -> Any:
    """A C-GET handler that lets pynetdicom send data sets, or fails."""

    def handle(event: Any) -> Any:
        yield len(operations)
        yield from operations

    return handle


def test_a_peer_that_does_not_send_all_is_told_by_instance(tmp_path):
    handlers = [
        (evt.EVT_C_FIND, finds({"2.25.1.1": CT_IMAGE, "2.25.1.2": CT_IMAGE})),
        (evt.EVT_C_GET, serve_get()),
    ]
    with scp(handlers, [STUDY_FIND, STUDY_GET, CT_IMAGE]) as port:
        ran = run("get", f"PEER@127.0.0.1:{port}", "PatientID=P1", "--dir", tmp_path / "out", "--json")

    assert ran.code == 1
    assert ran.summary["failed"] == 2
    assert [line["failed"] for line in ran.lines[:-1]] == ["2.25.1.1", "2.25.1.2"]
    assert "the peer did not send it" in ran.lines[0]["reason"]


@pytest.mark.parametrize(("status", "words"), [(0xA701, "out of resources"), (0xC123, "can't understand")])
def test_a_refusal_of_the_peer_is_told_with_its_status(tmp_path, status, words):
    def refuse(event: Any) -> Any:
        yield 1
        yield status, None

    handlers = [(evt.EVT_C_FIND, finds({"2.25.1.1": CT_IMAGE})), (evt.EVT_C_GET, refuse)]
    with scp(handlers, [STUDY_FIND, STUDY_GET]) as port:
        ran = run("get", f"PEER@127.0.0.1:{port}", "PatientID=P1", "--dir", tmp_path / "out")

    assert ran.code == 1
    assert f"0x{status:04X}" in ran.err
    assert words in ran.err


def test_a_peer_without_c_get_is_told_so(tmp_path):
    with scp([(evt.EVT_C_FIND, finds({"2.25.1.1": CT_IMAGE}))], [STUDY_FIND]) as port:
        ran = run("get", f"PEER@127.0.0.1:{port}", "PatientID=P1", "--dir", tmp_path / "out")

    assert ran.code == 1
    assert "C-GET" in ran.err or "takes nothing of what was proposed" in ran.err


def test_an_association_that_breaks_in_the_middle_goes_on_with_what_is_missing(tmp_path):
    """The rest is asked for by instance, on a new association."""
    folder = tmp_path / "peer"
    found = {
        f"2.25.1.{n}": make_object(f"2.25.1.{n}", "2.25.1", "2.25.11", instance_number=n) for n in range(8)
    }
    from hilum.dimse import retrieve

    asked = []
    real = retrieve.Sender.send

    def breaking(self: Any, chosen: Any) -> int:
        asked.append(chosen.uid)
        if len(asked) == 4:
            self._association.break_off("a test")
        return real(self, chosen)

    with serving(folder, stored=list(found.values())) as node, pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrieve.Sender, "send", breaking)
        ran = run("get", target(node), "PatientID=P1", "--dir", tmp_path / "out", "--json")

    assert ran.code == 0, ran.err
    assert got(tmp_path / "out") == {uid: data_set_of(data) for uid, data in found.items()}
    assert len(asked) == 9  # three came, one broke, five were asked for anew
    assert not list((tmp_path / "out").rglob("*.part"))


def test_a_peer_that_stalls_is_given_up_and_a_later_run_goes_on(tmp_path):
    stop = threading.Event()

    def stall(event: Any) -> Any:
        yield 1
        stop.wait(3)
        yield 0xC000, None

    handlers = [(evt.EVT_C_FIND, finds({"2.25.3.1": CT_IMAGE})), (evt.EVT_C_GET, stall)]
    with scp(handlers, [STUDY_FIND, STUDY_GET]) as port:
        words = ["PatientID=P1", "--dir", tmp_path / "out", "--timeout", "0.4"]
        ran = run("get", f"PEER@127.0.0.1:{port}", *words)
        stop.set()

    assert ran.code == 1
    assert "no answer within 0.4 s" in ran.err


def test_an_object_is_kept_before_the_peer_is_told_so(node, tmp_path, monkeypatch):
    from hilum.dimse import fetching

    order = []
    keep, respond = fetching.Incoming.keep, fetching.Association.respond

    def watched_keep(self: Any) -> Any:
        answer = keep(self)
        order.append(("kept", self.uid))
        return answer

    def watched_respond(self: Any, message: Any, status: int, *more: Any, **others: Any) -> None:
        if self.is_requestor:
            order.append(("told", message.sink.uid))
        respond(self, message, status, *more, **others)

    monkeypatch.setattr(fetching.Incoming, "keep", watched_keep)
    monkeypatch.setattr(fetching.Association, "respond", watched_respond)
    assert run("get", target(node), "PatientID=P1", "--store", tmp_path / "mine").code == 0

    assert len(order) == 8
    assert order[::2] == [("kept", uid) for _, uid in order[::2]]
    assert order[1::2] == [("told", uid) for _, uid in order[::2]]


def test_a_place_that_can_keep_nothing_more_ends_the_run_with_the_reason(node, tmp_path, monkeypatch):
    from hilum.transfer import arriving

    def full(self: Any, comings: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(arriving.IntoFolder, "keep", full)
    ran = run("get", target(node), "PatientID=P1", "--dir", tmp_path / "out")

    assert ran.code == 1
    assert "No space left on device" in ran.err


def test_what_a_peer_sends_that_is_no_data_set_has_failed(tmp_path):
    from hilum.dimse import retrieve

    with (
        serving(tmp_path / "peer", stored=[FILES["2.25.3.1"]]) as node,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(
            retrieve, "data_set_of_stored", lambda store, uid: iter([b"\x08\x00\x05\x00CS\xff\xff garbage"])
        )
        ran = run("get", target(node), "PatientID=P2", "--dir", tmp_path / "out", "--json")

    assert ran.code == 1
    assert ran.summary["failed"] == 1
    assert got(tmp_path / "out") == {}


def test_a_peer_that_does_not_tell_classes_is_asked_with_a_broad_list(tmp_path):
    asked = []

    def refuse(event: Any) -> Any:
        asked.append({str(c.abstract_syntax) for c in event.assoc.requestor.requested_contexts})
        yield 0

    handlers = [(evt.EVT_C_FIND, finds({"2.25.1.1": CT_IMAGE}, with_classes=False)), (evt.EVT_C_GET, refuse)]
    with scp(handlers, [STUDY_FIND, STUDY_GET, CT_IMAGE]) as port:
        run("get", f"PEER@127.0.0.1:{port}", "PatientID=P1", "--dir", tmp_path / "out")

    assert any(CT_IMAGE in found for found in asked)
    assert all(len(found) > 20 for found in asked)


# --- C-MOVE ------------------------------------------------------------------------------


@pytest.fixture
def moving(tmp_path):
    """A node that knows two others: one that stores, and one that is not there."""
    with serving(tmp_path / "there") as there:
        known = (
            Peer(title="THERE", host="127.0.0.1", port=there.port),
            Peer(title="GONE", host="127.0.0.1", port=free_port()),
        )
        with serving(tmp_path / "here", stored=list(FILES.values()), peers=known) as here:
            yield here, there


@pytest.mark.parametrize(("keys", "expected"), CHOICES)
def test_move_lets_the_node_send_what_the_keys_say(moving, keys, expected):
    here, there = moving
    ran = run("move", target(here), "--to", "THERE", *keys, "--json")

    assert ran.code == 0, ran.err
    assert ran.summary["sent"] == len(expected)
    assert {row.uid: data_set_of(there.store.read(row.uid)) for row in there.store.find("instances")} == sets(
        expected
    )


def test_the_destination_may_be_a_peer_of_hilum_toml(moving, tmp_path):
    here, there = moving
    (tmp_path / "hilum.toml").write_text(
        f'[peers.here]\ntitle = "HILUM"\nhost = "127.0.0.1"\nport = {here.port}\n'
        f'[peers.elsewhere]\ntitle = "THERE"\nhost = "127.0.0.1"\nport = 1\n'
    )
    ran = run("move", "here", "--to", "elsewhere", "StudyInstanceUID=2.25.3")

    assert ran.code == 0
    assert "1 sent to THERE" in ran.out
    assert [row.uid for row in there.store.find("instances")] == ["2.25.3.1"]


def test_an_unknown_destination_is_told_so(moving):
    ran = run("move", target(moving[0]), "--to", "NOBODY", "PatientID=P1")
    assert ran.code == 1
    assert "0xA801, it does not know the destination" in ran.err


def test_a_destination_that_is_not_there_fails_each_instance_by_name(moving):
    ran = run("move", target(moving[0]), "--to", "GONE", "StudyInstanceUID=2.25.1", "--json")
    assert ran.code == 1
    assert ran.summary["failed"] == 3
    assert {line["failed"] for line in ran.lines[:-1]} == {"2.25.1.1", "2.25.1.2", "2.25.1.3"}


def test_a_title_that_is_too_long_is_wrong_use(moving):
    assert run("move", target(moving[0]), "--to", "X" * 17, "PatientID=P1").code == 2


def test_a_node_without_c_move_is_told_so():
    with scp([(evt.EVT_C_FIND, finds({"2.25.1.1": CT_IMAGE}))], [STUDY_FIND]) as port:
        ran = run("move", f"PEER@127.0.0.1:{port}", "--to", "X", "StudyInstanceUID=1.2")
    assert ran.code == 1
    assert "the peer does not offer C-MOVE" in ran.err


def test_lists_go_in_requests_that_a_node_can_take(tmp_path):
    asked = []

    def handle(event: Any) -> Any:
        asked.append((event.identifier.QueryRetrieveLevel, event.identifier.SOPInstanceUID))
        yield ("127.0.0.1", 1, {"ae_title": "X"})
        yield 0

    listed = ",".join(f"2.25.{n}" for n in range(1001))
    with scp([(evt.EVT_C_MOVE, handle)], [STUDY_MOVE]) as port:
        run(
            "move", f"PEER@127.0.0.1:{port}", "--to", "X", "StudyInstanceUID=1.2", "SeriesInstanceUID=1.3",
            f"SOPInstanceUID={listed}",
        )  # fmt: skip

    assert [(level, len(found) if not isinstance(found, str) else 1) for level, found in asked] == [
        ("IMAGE", 500), ("IMAGE", 500), ("IMAGE", 1),
    ]  # fmt: skip
