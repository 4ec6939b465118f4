"""What sending and fetching share, whatever the protocol: the journal, handing out, where objects are put."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
from makers import make_object

import hilum
from hilum.engine.writer import Policy
from hilum.transfer import journal, work
from hilum.transfer.arriving import IntoFolder, IntoStore, Kept, file_path
from hilum.transfer.fetch import Fetch
from hilum.transfer.hierarchy import Series
from hilum.transfer.outgoing import FileSource, Outgoing

ONE = make_object("2.25.1", "2.25.9", "2.25.91", pixels=b"12")
OTHER = make_object("2.25.1", "2.25.9", "2.25.91", pixels=b"34")


def outgoing(n: int, version: str = "v") -> Outgoing:
    return Outgoing(f"2.25.{n}", "1.2", "1.2.840.10008.1.2", 100, version)


# --- The journal -----------------------------------------------------------------------


def test_a_journal_knows_what_was_taken_with_this_content_for_this_target_and_selection(tmp_path):
    first = journal.Journal(str(tmp_path), "A", ["x"])
    first.add(outgoing(1))
    first.close()
    same = journal.Journal(str(tmp_path), "A", ["x"])
    assert same.knows(outgoing(1))
    assert not same.knows(outgoing(2))
    assert not same.knows(outgoing(1, "changed"))
    assert not journal.Journal(str(tmp_path), "B", ["x"]).knows(outgoing(1))
    assert not journal.Journal(str(tmp_path), "A", ["y"]).knows(outgoing(1))
    assert not journal.Journal(str(tmp_path), "A", ["x"], again=True).knows(outgoing(1))


def test_a_line_that_was_cut_counts_for_nothing_and_spoils_no_other(tmp_path):
    found = journal.Journal(str(tmp_path), "A", [])
    for n in range(3):
        found.add(outgoing(n))
    found.close()
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-5])
    cut = journal.Journal(str(tmp_path), "A", [])
    assert [cut.knows(outgoing(n)) for n in range(3)] == [True, True, False]
    cut.add(outgoing(3))
    cut.close()
    last = journal.Journal(str(tmp_path), "A", [])
    assert [last.knows(outgoing(n)) for n in range(4)] == [True, True, False, True]


def test_a_journal_of_long_ago_is_forgotten_and_nobody_else_may_read_them(tmp_path):
    folder = tmp_path / "sent"
    old = journal.Journal(str(folder), "OLD", [])
    old.add(outgoing(1))
    (path,) = folder.iterdir()
    long_ago = time.time() - 100 * 86400
    os.utime(path, (long_ago, long_ago))
    journal.Journal(str(folder), "NEW", [])
    assert not path.exists()
    assert folder.stat().st_mode & 0o077 == 0
    assert all(found.stat().st_mode & 0o077 == 0 for found in folder.iterdir())


# --- Handing out -------------------------------------------------------------------------


class Listed:
    """A source of nothing but names."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self):
        return map(outgoing, range(self.count))


def test_each_instance_is_handed_out_once_to_several_threads():
    doing = work.Work(Listed(2000), None)
    taken: list[str] = []

    def do(found: work.Work) -> None:
        while (one := found.take()) is not None:
            taken.append(one.uid)
            found.sent(one)

    work.run(doing, 8, do)
    assert sorted(taken) == sorted(f"2.25.{n}" for n in range(2000))
    assert doing.counts.sent == 2000


def test_what_was_put_back_when_the_others_had_ended_is_done_all_the_same():
    doing = work.Work(Listed(3), None)
    first = threading.Event()
    taken: list[str] = []

    def do(found: work.Work) -> None:
        one = found.take()
        if one is not None and not first.is_set():
            first.set()
            time.sleep(0.2)
            found.put_back(one)
            return
        while one is not None:
            taken.append(one.uid)
            found.sent(one)
            one = found.take()

    work.run(doing, 2, do)
    assert sorted(taken) == ["2.25.0", "2.25.1", "2.25.2"]


def test_a_failure_of_one_thread_stops_all_and_is_raised():
    doing = work.Work(Listed(10_000), None)

    def do(found: work.Work) -> None:
        while (one := found.take()) is not None:
            found.sent(one)
            if found.counts.sent > 50:
                raise hilum.errors.Busy("enough")

    with pytest.raises(hilum.errors.Busy):
        work.run(doing, 4, do)
    assert doing.counts.sent < 10_000
    assert doing.unsent > 0


def test_an_instance_during_which_the_connection_breaks_twice_has_failed():
    events: list[work.Event] = []
    doing = work.Work(Listed(1), None, events.append)
    for _ in range(2):
        one = doing.take()
        assert one is not None
        doing.give_back(one, "broken")
    assert doing.take() is None
    assert [event.kind for event in events] == ["failed"]


# --- Where objects are put -----------------------------------------------------------------


def put(place: IntoStore | IntoFolder, *files: bytes) -> list[Kept | None]:
    comings = []
    for file in files:
        coming = place.begin("a test")
        coming.write(file[:100])
        coming.write(memoryview(file)[100:])
        comings.append(coming)
    return [answer.kept for answer in place.keep(comings)]


@pytest.fixture(params=["store", "folder"])
def place(request, tmp_path):
    """A function that makes a place, with a policy."""
    if request.param == "folder":
        yield lambda policy=Policy.KEEP_FIRST: IntoFolder(str(tmp_path / "out"), policy)
        return
    with hilum.open(tmp_path / "store", create=True) as store:
        yield lambda policy=Policy.KEEP_FIRST: IntoStore(store, policy)


def test_an_object_is_stored_once_and_other_content_is_a_conflict_or_replaces(place):
    parents = ("P1", "2.25.9", "2.25.91")
    assert not place().has("2.25.1", parents)
    assert put(place(), ONE) == [Kept.STORED]
    assert place().has("2.25.1", parents)
    assert put(place(), ONE) == [Kept.PRESENT]
    assert put(place(), OTHER) == [Kept.CONFLICT]
    assert put(place(Policy.REPLACE), OTHER) == [Kept.STORED]
    assert put(place(), OTHER) == [Kept.PRESENT]


def test_what_is_no_dicom_is_not_kept_and_spoils_no_other(place):
    good = make_object("2.25.2", "2.25.9", "2.25.91")
    assert put(place(), b"junk" * 100, good, ONE[:300]) == [None, Kept.STORED, None]


def test_the_same_data_set_with_another_file_meta_is_the_same_object(place):
    assert put(place(), ONE) == [Kept.STORED]
    assert put(place(), ONE.replace(b"2.25.7", b"2.25.8", 1)) == [Kept.PRESENT]


def test_a_file_that_is_not_whole_has_no_name_that_ends_in_dcm(tmp_path):
    place = IntoFolder(str(tmp_path))
    coming = place.begin("a test")
    coming.write(ONE[:200])
    assert not list(tmp_path.rglob("*.dcm"))
    coming.discard()
    assert not list(tmp_path.rglob("*.*"))


def test_a_path_never_leads_out_of_its_folder():
    path = Path(file_path("/out", ("../../etc", "..", "a/b"), "../x"))
    assert path.is_relative_to("/out")
    assert ".." not in path.parts
    assert file_path("/out", ("", "1", "2"), "3") == "/out/no-patient-id/1/2/3.dcm"


def test_a_file_is_durable_before_it_has_its_name(tmp_path, monkeypatch):
    done: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda fd: done.append("sync"))
    real = os.replace
    monkeypatch.setattr(os, "replace", lambda *words: (done.append("name"), real(*words)))
    assert put(IntoFolder(str(tmp_path / "out")), ONE) == [Kept.STORED]
    assert done[:2] == ["sync", "name"]
    assert done[2:] == ["sync"] * 4  # the folders: its own, those above, the top


# --- What is fetched --------------------------------------------------------------------


def series(n: int, count: int) -> Series:
    return Series("P1", "2.25.9", f"2.25.9{n}", tuple((f"2.25.{n}.{m}", "1.2") for m in range(count)), True)


def test_a_series_of_which_some_is_here_is_no_whole_one(tmp_path):
    path = tmp_path / "P1" / "2.25.9" / "2.25.91" / "2.25.1.0.dcm"
    path.parent.mkdir(parents=True)
    path.write_bytes(ONE)
    fetch = Fetch([series(1, 3), series(2, 2)], IntoFolder(str(tmp_path)))
    first, second = fetch.take(), fetch.take()
    assert first is not None
    assert second is not None
    assert not first.is_whole
    assert [uid for uid, _ in first.instances] == ["2.25.1.1", "2.25.1.2"]
    assert second.is_whole
    assert fetch.take() is None
    assert fetch.counts.present == 1


def test_files_in_two_places_are_two_and_links_in_a_circle_end(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one.dcm").write_bytes(ONE)
    (tmp_path / "a" / "round").symlink_to(tmp_path / "a")
    assert [one.uid for one in FileSource([str(tmp_path / "a"), str(tmp_path / "a" / "one.dcm")], [])] == [
        "2.25.1"
    ] * 2
