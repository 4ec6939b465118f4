"""hilum import: what it finds in folders, what it says of each file, and what it does not do twice."""

from __future__ import annotations

import ctypes
import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from command import Ran, run
from makers import element, make_object, noise

import hilum
from hilum.engine import importer
from hilum.engine.importer import Counts, Failure, Options, import_paths
from hilum.engine.rebuild import rebuild
from hilum.engine.verify import verify
from hilum.engine.writer import Policy

SUMMARY_KEYS = ["files", "stored", "duplicates", "conflicts", "not_dicom", "failed", "bytes", "seconds"]
FIVE = SUMMARY_KEYS[1:6]


def run_process(*words: object, **more: Any) -> Ran:
    """Run the command line in its own process."""
    done = subprocess.run(
        [sys.executable, "-m", "hilum", *map(os.fspath, words)], capture_output=True, timeout=120, **more
    )
    return Ran(done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.fixture
def store_path(tmp_path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def source(tmp_path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    return folder


def make_files(folder: Path, count: int, *, first: int = 1, size: int = 2000) -> dict[str, bytes]:
    """Files of one study with noise of their own; SOP Instance UID → bytes."""
    made = {}
    for number in range(first, first + count):
        uid = f"2.25.{number}"
        made[uid] = make_object(
            uid, "2.25.9001", f"2.25.9100{number % 3}", pixels=noise(size, number), instance_number=number
        )
        (folder / f"{number:06}.dcm").write_bytes(made[uid])
    return made


def problems(store: hilum.Store) -> list[Any]:
    found: list[Any] = []
    verify(store, on_problem=found.append, mark=False)
    return found


def contents(path: Path) -> dict[str, Any]:
    """Everything a store answers."""
    with hilum.open(path, read_only=True) as store:
        found: dict[str, Any] = {
            level: [store.row_json(row) for row in store.find(level)]
            for level in ("patients", "studies", "series", "instances")
        }
        found["bytes"] = {row.uid: store.read(row.uid) for row in store.find("instances")}
        found["counts"] = {n: v for n, v in store.stats().items() if not n.endswith("_bytes")}
    return found


def bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])  # rchar


# --- Folders ----------------------------------------------------------------------


def test_files_of_folders_at_any_depth_are_stored(store_path, source):
    folder = source
    for depth in range(60):
        folder = folder / f"d{depth}"
        folder.mkdir()
        make_files(folder, 1, first=depth + 1)

    ran = run("import", source, "--store", store_path, "--json")

    assert ran.code == 0
    assert ran.summary["stored"] == ran.summary["files"] == 60


def test_a_folder_deeper_than_the_longest_path_is_told_and_stops_nothing(store_path, source):
    make_files(source, 1)
    name = "x" * 200
    fd = os.open(source, os.O_RDONLY)
    for _ in range(25):
        os.mkdir(name, dir_fd=fd)
        inner = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)

    ran = run("import", source, "--store", store_path, "--json")

    assert (ran.code, ran.summary["stored"], ran.summary["failed"]) == (1, 1, 1)
    assert "too long" in ran.lines[0]["reason"]


def test_loops_of_links_are_harmless_and_each_folder_counts_once(store_path, source):
    inner = source / "a" / "b"
    inner.mkdir(parents=True)
    make_files(source, 3)
    make_files(inner, 2, first=10)
    (inner / "up").symlink_to(source)
    (inner / "here").symlink_to(".")
    (source / "again").symlink_to(inner)

    ran = run("import", source, inner, "--store", store_path, "--json")

    assert ran.code == 0
    assert ran.summary["stored"] == 5
    assert ran.summary["files"] == 5


def test_a_link_to_itself_and_a_broken_link_fail_and_the_files_beside_them_are_stored(store_path, source):
    make_files(source, 3)
    (source / "000000").symlink_to("000000")
    (source / "broken").symlink_to("nowhere")

    ran = run("import", source, "--store", store_path, "--json")

    assert ran.code == 1
    assert ran.summary["stored"] == 3
    assert ran.summary["failed"] == 2
    assert {Path(line["failed"]).name for line in ran.lines[:-1]} == {"000000", "broken"}


def test_fifos_sockets_and_devices_are_passed_over_and_never_waited_for(store_path, source):
    make_files(source, 2)
    os.mkfifo(source / "fifo")
    (source / "null").symlink_to("/dev/null")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.fspath(source / "socket"))
        begin = time.monotonic()
        ran = run("import", source, source / "fifo", "--store", store_path, "--json")

    assert time.monotonic() - begin < 20
    assert ran.summary["stored"] == 2
    assert ran.summary["failed"] == 4
    assert ran.code == 1
    assert all(
        "not a regular file" in line["reason"] or "device" in line["reason"] for line in ran.lines[:-1]
    )


def without_overrides() -> None:
    """Take from a child of root what lets it read files that nobody may read."""
    libc = ctypes.CDLL(None)
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP


def test_unreadable_files_and_folders_fail_with_their_path_and_stop_nothing(store_path, source):
    make_files(source, 3)
    locked = source / "locked"
    locked.mkdir()
    make_files(locked, 1, first=50)
    (source / "000002.dcm").chmod(0)
    locked.chmod(0)
    try:
        ran = run_process("import", source, "--store", store_path, "--json", preexec_fn=without_overrides)
    finally:
        locked.chmod(0o755)

    assert ran.code == 1
    assert (ran.summary["stored"], ran.summary["failed"]) == (2, 2)
    assert {line["failed"]: line["reason"] for line in ran.lines[:-1]} == {
        os.fspath(source / "000002.dcm"): "Permission denied",
        os.fspath(locked): "Permission denied",
    }


@pytest.mark.parametrize("more", [["--json"], [], ["-v"]], ids=["json", "text", "verbose"])
def test_names_that_are_no_utf8_are_stored_and_told(store_path, source, more):
    odd = os.fsencode(source) + b"/caf\xe9 \xff\n\x07\x1b[2J"
    os.mkdir(odd)
    file = make_object("2.25.1", "2.25.2", "2.25.3")
    for name, content in ((b"/good\xfe.dcm", file), (b"/bad\xfe.dcm", file[:200])):
        with open(odd + name, "wb") as out:
            out.write(content)

    ran = run_process("import", source, "--store", store_path, *more)

    assert ran.code == 1
    assert "Traceback" not in ran.err
    assert not {"\x1b", "\x07"} & set(ran.err), "a file name moved the cursor or rang the bell"
    with hilum.open(store_path) as store:
        assert store.read("2.25.1") == file
        assert store.head("2.25.1").source == odd + b"/good\xfe.dcm"
    assert run_process("import", odd + b"/good\xfe.dcm", "--store", store_path).code == 0


def test_a_store_inside_the_folder_that_is_imported_is_left_out(source):
    make_files(source, 2)
    store_path = source / "hilum-store"

    for expected in ((2, 0), (0, 2)):
        ran = run("import", source, "--store", store_path, "--json")
        assert (ran.summary["stored"], ran.summary["duplicates"]) == expected
        assert (ran.summary["files"], ran.code) == (2, 0)


# --- What is not stored ----------------------------------------------------------------


def test_what_is_no_dicom_is_counted_apart_and_is_no_failure(store_path, source):
    (source / "empty").write_bytes(b"")
    (source / "text").write_text("hello\n" * 100)
    (source / "noise").write_bytes(noise(4096))
    (source / "big").write_bytes(b"\x89PNG" + noise(13 << 20))
    make_files(source, 1)

    ran = run("import", source, "--store", store_path, "--json")

    assert ran.code == 0
    assert {name: ran.summary[name] for name in FIVE} == {
        "stored": 1,
        "duplicates": 0,
        "conflicts": 0,
        "not_dicom": 4,
        "failed": 0,
    }
    assert len(ran.lines) == 1


@pytest.mark.parametrize(
    ("tag", "name"),
    [
        (0x00080018, "SOP Instance UID"),
        (0x0020000D, "Study Instance UID"),
        (0x0020000E, "Series Instance UID"),
    ],
)
def test_a_file_without_a_uid_is_not_storable_and_its_failure_has_path_reason_offset_and_tag(
    store_path, source, tag, name
):
    (source / "a.dcm").write_bytes(
        make_object("2.25.1", "2.25.2", "2.25.3", extra=[(tag, element(tag, "UI", ""))])
    )
    make_files(source, 1, first=5)

    ran = run("import", source, "--store", store_path, "--json")

    assert ran.code == 1
    assert (ran.summary["stored"], ran.summary["failed"]) == (1, 1)
    (failure,) = ran.lines[:-1]
    assert failure["failed"] == os.fspath(source / "a.dcm")
    assert failure["reason"] == f"not storable: there is no {name}"
    assert failure["tag"] == f"{tag:08X}"
    assert isinstance(failure["offset"], int)


def test_the_failure_of_a_broken_file_names_the_byte_and_the_tag_in_text_too(store_path, source):
    whole = make_object("2.25.1", "2.25.2", "2.25.3")
    at = whole.index(b"PN") - 4
    (source / "cut.dcm").write_bytes(whole[: at + 10])

    ran = run("import", source, "--store", store_path)

    assert ran.code == 1
    assert f"{source}/cut.dcm: an element runs past the end of the file at byte {at}" in ran.err
    assert "(0010,0010)" in ran.err
    assert "1 failed" in ran.out


def test_pixels_that_are_cut_are_stored_and_come_back_as_they_are(store_path, source):
    file = make_object("2.25.1", "2.25.2", "2.25.3", pixels=noise(9000))[:-5000]
    (source / "cut.dcm").write_bytes(file)

    assert run("import", source, "--store", store_path).code == 0
    with hilum.open(store_path) as store:
        assert store.read("2.25.1") == file
        with pytest.raises(hilum.errors.BadDicom, match="cut"):
            store.frame_bytes("2.25.1", 0)


# --- The report -----------------------------------------------------------------------


def test_the_last_line_of_json_has_exactly_these_keys_and_files_is_the_sum_of_five(store_path, source):
    made = make_files(source, 4)
    (source / "z_again.dcm").write_bytes(made["2.25.1"])
    (source / "z_conflict.dcm").write_bytes(make_object("2.25.2", "2.25.3", "2.25.4"))
    (source / "z_text").write_text("no DICOM")
    (source / "z_broken.dcm").write_bytes(made["2.25.3"][:300])

    ran = run("import", source, "--store", store_path, "--json")

    assert ran.code == 1
    assert ran.out.endswith("}\n")
    assert list(ran.summary) == SUMMARY_KEYS
    assert [ran.summary[name] for name in FIVE] == [4, 1, 1, 1, 1]
    assert ran.summary["files"] == 8
    assert ran.summary["bytes"] == sum(path.stat().st_size for path in source.iterdir())
    assert ran.summary["seconds"] > 0
    assert [next(iter(line)) for line in ran.lines[:-1]] == ["failed", "conflict"]
    for options in ([], ["-v"], ["Modality=CT"], ["--jobs", "2"]):
        ran = run("import", source, "--store", store_path, "--json", *options)
        assert list(ran.summary) == SUMMARY_KEYS
        assert ran.summary["files"] == sum(ran.summary[name] for name in FIVE)


@pytest.mark.parametrize(
    ("prepare", "code"),
    [
        (lambda folder: make_files(folder, 1), 0),
        (lambda folder: (folder / "text").write_text("no DICOM"), 0),
        (lambda folder: (folder / "broken").write_bytes(make_object("1", "2", "3")[:250]), 1),
        (lambda folder: (folder / "dangling").symlink_to("nowhere"), 1),
        (lambda folder: None, 0),
    ],
    ids=["stored", "not DICOM", "broken", "not there", "empty folder"],
)
def test_the_exit_status_is_0_when_done_and_1_when_something_failed(store_path, source, prepare, code):
    prepare(source)

    assert run("import", source, "--store", store_path).code == code


def test_a_conflict_ends_with_1_and_replace_with_0(store_path, source):
    make_files(source, 1)
    (source / "other.dcm").write_bytes(make_object("2.25.1", "2.25.2", "2.25.3"))

    ran = run("import", source, "--store", store_path, "-v")
    assert ran.code == 1
    assert "1 conflicts" in ran.out
    assert f"{source}/other.dcm: other content" in ran.err

    ran = run("import", source, "--store", store_path, "--json", "--on-conflict", "replace")
    assert (ran.code, ran.summary["stored"], ran.summary["conflicts"]) == (0, 1, 0)
    with hilum.open(store_path) as store:
        assert store.read("2.25.1") == (source / "other.dcm").read_bytes()


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["PatientID=1"],
        ["--jobs", "0", "."],
        ["--jobs", "x", "."],
        ["--on-conflict", "merge", "."],
        ["--nonsense", "."],
        ["{source}", "NoSuchKeyword=1"],
        ["{source}", "PixelData=1"],
        ["{source}", "StudyDate=tomorrow"],
    ],
)
def test_wrong_use_ends_with_2_and_words_and_makes_no_store(store_path, source, words):
    ran = run("import", *(word.format(source=source) for word in words), "--store", store_path)

    assert ran.code == 2
    assert ran.err
    assert not store_path.exists()


def test_a_path_that_is_not_there_is_a_failure_with_its_reason(store_path, tmp_path):
    ran = run("import", tmp_path / "nowhere", "--store", store_path, "--json")

    assert ran.code == 1
    assert ran.lines[0]["failed"] == os.fspath(tmp_path / "nowhere")
    assert ran.lines[0]["reason"] == "No such file or directory"


def test_a_file_whose_name_looks_like_a_key_is_a_file(store_path, source, monkeypatch):
    monkeypatch.chdir(source)
    Path("PatientID=7").write_bytes(make_object("2.25.1", "2.25.2", "2.25.3"))

    assert run("import", "PatientID=7", "--store", store_path, "--json").summary["stored"] == 1


# --- Keys ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (["PatientID=P2"], {"2.25.3", "2.25.4"}),
        (["PatientName=doe*"], {"2.25.1", "2.25.2"}),
        (["StudyInstanceUID=2.25.11\\2.25.12"], {"2.25.1", "2.25.2", "2.25.3"}),
        (["Modality=MR"], {"2.25.2", "2.25.4"}),
        (["ModalitiesInStudy=MR"], {"2.25.2", "2.25.4"}),
        (["StudyDate=20240201-"], {"2.25.3", "2.25.4"}),
        (["PatientID=P2", "Modality=MR"], {"2.25.4"}),
        (["00100020=P1", "(0008,0060)=CT"], {"2.25.1"}),
        (["SOPInstanceUID=2.25.4"], {"2.25.4"}),
        (["PatientID=nobody"], set()),
        (["PatientID="], {"2.25.1", "2.25.2", "2.25.3", "2.25.4"}),
    ],
)
def test_with_keys_only_what_matches_them_is_stored(store_path, source, keys, expected):
    rows = [
        ("2.25.1", "2.25.11", "P1", "Doe^Jane", "CT", "20240101"),
        ("2.25.2", "2.25.11", "P1", "Doe^Jane", "MR", "20240101"),
        ("2.25.3", "2.25.12", "P2", "Roe^John", "CT", "20240201"),
        ("2.25.4", "2.25.13", "P2", "Roe^John", "MR", "20240301"),
    ]
    for uid, study, patient, name, modality, date in rows:
        file = make_object(
            uid, study, f"{study}.1", patient_id=patient, name=name, modality=modality, study_date=date
        )
        (source / f"{uid}.dcm").write_bytes(file)

    ran = run("import", source, *keys, "--store", store_path, "--json")

    assert ran.code == 0
    assert ran.summary["stored"] == ran.summary["files"] == len(expected)
    with hilum.open(store_path) as store:
        assert {row.uid for row in store.find("instances")} == expected


# --- Again -------------------------------------------------------------------------------


def imported(store_path: Path, source: Path, **options: Any) -> tuple[Counts, list[Failure], int]:
    failures: list[Failure] = []
    with hilum.open(store_path, create=True) as store:
        before = bytes_read()
        counts = import_paths(store, [os.fspath(source)], Options(**options), on_failure=failures.append)
        read = bytes_read() - before
    return counts, failures, read


def test_a_second_run_reads_none_of_the_files_again(store_path, source):
    made = make_files(source, 60, size=100_000)
    size = sum(map(len, made.values()))
    (source / "conflict.dcm").write_bytes(
        make_object("2.25.1", "2.25.5", "2.25.6", pixels=noise(100_000, "c"))
    )
    first, _, read = imported(store_path, source)
    assert (first.stored, first.conflicts) == (60, 1)
    assert read >= size  # so the meter works

    second, failures, read = imported(store_path, source)

    assert (second.duplicates, second.conflicts, second.files) == (60, 1, 61)
    assert second.bytes == first.bytes
    assert [failure.path for failure in failures] == [os.fspath(source / "conflict.dcm")]
    assert read < size // 20


def test_a_second_run_hashes_nothing(store_path, source, monkeypatch):
    make_files(source, 30)
    imported(store_path, source)
    monkeypatch.setattr(importer.prepare, "prepare", lambda *args, **more: pytest.fail("hashed again"))
    monkeypatch.setattr(importer.prepare, "prepare_file", lambda *args, **more: pytest.fail("hashed again"))

    assert imported(store_path, source)[0].duplicates == 30
    monkeypatch.chdir(source.parent)
    assert imported(store_path, Path(source.name))[0].duplicates == 30  # the same files by another path


def test_a_file_that_changed_is_seen_also_with_its_old_size_and_time(store_path, source):
    make_files(source, 3)
    path = source / "000002.dcm"
    imported(store_path, source)
    status = path.stat()
    changed = make_object("2.25.777", "2.25.9001", "2.25.91002", pixels=noise(1996, "new"), instance_number=2)
    assert len(changed) == status.st_size
    path.write_bytes(changed)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    counts = imported(store_path, source)[0]

    assert (counts.stored, counts.duplicates) == (1, 2)


def test_a_deleted_instance_is_imported_again(store_path, source):
    make_files(source, 3)
    imported(store_path, source)
    with hilum.open(store_path) as store:
        assert store.delete("instances", {"SOPInstanceUID": "2.25.2"}) == 1

    counts = imported(store_path, source)[0]

    assert (counts.stored, counts.duplicates) == (1, 2)


def test_a_file_that_was_refused_is_taken_when_what_refused_it_is_gone(store_path, source):
    make_files(source, 1)
    imported(store_path, source)
    (source / "000001.dcm").unlink()
    other = make_object("2.25.1", "2.25.5", "2.25.6")
    (source / "other.dcm").write_bytes(other)
    assert imported(store_path, source)[0].conflicts == 1
    with hilum.open(store_path) as store:
        store.delete("instances", {"SOPInstanceUID": "2.25.1"})

    assert imported(store_path, source)[0].stored == 1
    with hilum.open(store_path) as store:
        assert store.read("2.25.1") == other


def test_a_file_that_was_replaced_is_put_back_by_its_own_import_with_replace(store_path, source):
    first = make_files(source, 1)["2.25.1"]
    imported(store_path, source)
    with hilum.open(store_path) as store:
        store.ingest(make_object("2.25.1", "2.25.5", "2.25.6"), policy=Policy.REPLACE)

    assert imported(store_path, source)[0].conflicts == 1
    assert imported(store_path, source, policy=Policy.REPLACE)[0].stored == 1
    with hilum.open(store_path) as store:
        assert store.read("2.25.1") == first


def test_damage_that_verify_found_is_healed_by_importing_the_same_files_again(store_path, source):
    made = make_files(source, 4)
    imported(store_path, source)
    (bulk,) = (store_path / "packs").glob("*.bulk")
    data = bytearray(bulk.read_bytes())
    at = data.index(noise(2000, 2)[100:200])
    data[at] ^= 1
    bulk.write_bytes(data)
    found: list[Any] = []
    with hilum.open(store_path) as store:
        verify(store, on_problem=found.append)
        assert found

    counts = imported(store_path, source)[0]

    assert counts.stored >= 1
    with hilum.open(store_path) as store:
        assert {uid: store.read(uid) for uid in made} == made


# --- Interruption -----------------------------------------------------------------------


def test_an_import_that_is_interrupted_leaves_a_good_store_and_goes_on_where_it_was(
    store_path, source, monkeypatch
):
    made = make_files(source, 60, size=50_000)
    monkeypatch.setattr(importer, "BATCH_FILES", 10)

    def interrupt(counts: Counts) -> None:
        if counts.stored >= 30:
            raise KeyboardInterrupt

    with hilum.open(store_path, create=True) as store:
        with pytest.raises(KeyboardInterrupt):
            import_paths(store, [os.fspath(source)], Options(), on_progress=interrupt)
        assert problems(store) == []
        assert store.stats()["instances"] == 30

    counts, _, read = imported(store_path, source)
    assert (counts.stored, counts.duplicates) == (30, 30)
    assert read < 45 * 50_000
    with hilum.open(store_path) as store:
        assert {uid: store.read(uid) for uid in made} == made


@pytest.mark.parametrize("at", ["append", "sync"])
def test_an_interruption_inside_a_write_leaves_a_good_store(store_path, source, monkeypatch, at):
    made = make_files(source, 30)
    monkeypatch.setattr(importer, "BATCH_FILES", 10)
    calls = iter(range(1000))
    real = getattr(importer.Store.__init__.__globals__["Writer"].__init__.__globals__["PackWriter"], at)

    def interrupted(self: Any, *args: Any, **more: Any) -> Any:
        if next(calls) == {"append": 25, "sync": 3}[at]:
            raise KeyboardInterrupt
        return real(self, *args, **more)

    with monkeypatch.context() as patch:
        patch.setattr("hilum.engine.packs.PackWriter." + at, interrupted)
        with (
            hilum.open(store_path, create=True) as store,
            pytest.raises(KeyboardInterrupt),
        ):
            import_paths(store, [os.fspath(source)], Options())
    counts = imported(store_path, source)[0]

    assert counts.stored + counts.duplicates == 30
    with hilum.open(store_path) as store:
        assert {uid: store.read(uid) for uid in made} == made
        assert problems(store) == []
    assert rebuild(os.fspath(store_path)).instances == 30


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_ctrl_c_ends_the_command_soon_with_a_summary_and_a_store_that_opens(store_path, source, jobs):
    make_files(source, 4000, size=1500)
    process = subprocess.Popen(
        [sys.executable, "-m", "hilum", "import", source, "--store", store_path, "--json", "--jobs", jobs],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and not list(store_path.glob("packs/*.head")):
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)

    assert b"Traceback" not in err
    if process.returncode != 0:  # it may have been done before the signal came
        assert process.returncode == 130
        assert b"interrupted" in err
    if out:
        assert list(json.loads(out.splitlines()[-1])) == SUMMARY_KEYS
    with hilum.open(store_path) as store:
        assert problems(store) == []
    assert run("import", source, "--store", store_path, "--json").summary["files"] == 4000
    with hilum.open(store_path) as store:
        assert store.stats()["instances"] == 4000


# --- Several processes ---------------------------------------------------------------------


def test_one_process_and_two_make_stores_that_answer_alike(tmp_path, source, monkeypatch):
    for folder in ("a", "b", "c"):
        (source / folder).mkdir()
    made = make_files(source / "a", 300) | make_files(source / "b", 300, first=301)
    made |= make_files(source / "c", 300, first=601)
    (source / "c" / "text").write_text("no DICOM")
    (source / "a" / "broken").write_bytes(made["2.25.1"][:250])
    (source / "c" / "z_same.dcm").write_bytes(made["2.25.1"])
    monkeypatch.setattr(importer, "BATCH_FILES", 50)

    found = {}
    for jobs in (1, 2, 4):
        counts, failures, _ = imported(tmp_path / f"store{jobs}", source, jobs=jobs)
        found[jobs] = (counts, sorted(failures), contents(tmp_path / f"store{jobs}"))

    assert found[1][0].stored == 900
    assert found[1][0].duplicates == found[1][0].not_dicom == found[1][0].failed == 1
    assert found[2] == found[1]
    assert found[4] == found[1]
    assert len(list((tmp_path / "store2" / "packs").glob("*.head"))) > 1, "one process did all of it"
    assert found[1][2]["bytes"] == made


def test_a_helper_that_dies_costs_nothing(store_path, source, monkeypatch):
    made = make_files(source, 300)
    monkeypatch.setattr(importer, "BATCH_FILES", 10)
    killed = []
    real = importer._Helpers.feed

    def feed(self: Any, queue: Any) -> None:
        real(self, queue)
        if self._helpers and not killed:
            killed.append(self._helpers[0].process.pid)
            self._helpers[0].process.kill()

    monkeypatch.setattr(importer._Helpers, "feed", feed)

    counts = imported(store_path, source, jobs=2)[0]

    assert killed
    assert counts.files == counts.stored + counts.duplicates == 300
    with hilum.open(store_path) as store:
        assert {uid: store.read(uid) for uid in made} == made
        assert problems(store) == []


# --- Progress ----------------------------------------------------------------------------------


def test_on_a_terminal_there_is_a_bar_that_ends_with_the_summary(store_path, source):
    make_files(source, 200)
    terminal, inner = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "hilum", "import", source, "--store", store_path],
        stdout=inner,
        stderr=inner,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
    )
    os.close(inner)
    shown = b""
    while select.select([terminal], [], [], 60)[0]:
        try:
            shown += os.read(terminal, 65536)
        except OSError:  # the other side is closed
            break
    os.close(terminal)

    assert process.wait(timeout=60) == 0
    assert b"\x1b[" in shown
    assert b"import" in shown
    assert b"200 files" in shown
    assert b"Traceback" not in shown


def test_elsewhere_progress_is_plain_lines_with_rate_and_time_left(store_path, source, monkeypatch):
    make_files(source, 60)
    monkeypatch.setattr(importer, "BATCH_FILES", 10)
    monkeypatch.setattr("hilum.cli.common._PLAIN_SECONDS", 0.0)

    ran = run("import", source, "--store", store_path)

    assert ran.code == 0
    assert "\x1b" not in ran.err
    lines = ran.err.splitlines()
    assert lines
    assert all(line.startswith("import: ") and "/s" in line for line in lines)
    assert any(" left" in line for line in lines)
    assert "60 files" in ran.out
    assert run("import", source, "--store", store_path, "--json").err == ""


# --- Memory -----------------------------------------------------------------------------------

_PEAK = """
import sys, threading, time
from hilum.cli import main

peak = 0

def watch():
    global peak
    while True:
        with open("/proc/self/status") as status:
            lines = dict(line.split(":", 1) for line in status)
        peak = max(peak, int(lines["RssAnon"].split()[0]) + int(lines["RssShmem"].split()[0]))
        time.sleep(0.002)

threading.Thread(target=watch, daemon=True).start()
try:
    main(sys.argv[1:])
finally:
    time.sleep(0.01)
    print(peak, file=sys.stderr)
"""


def test_a_file_of_300_megabytes_needs_less_than_a_third_of_that_in_memory(store_path, source):
    size = 300_000_000
    head = make_object("2.25.1", "2.25.2", "2.25.3", rows=1000, columns=1000, frames=300, pixels=b"")
    assert head[-4:] == bytes(4)
    with open(source / "large.dcm", "wb") as file:
        file.write(head[:-4] + size.to_bytes(4, "little"))
        file.truncate(len(head) + size)  # sparse
    make_files(source, 20, first=100)

    done = subprocess.run(
        [sys.executable, "-c", _PEAK, "import", source, "--store", store_path, "--json", "--jobs", "1"],
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["stored"] == 21
    assert int(done.stderr) < 100_000, f"{done.stderr.strip()} kB"
    with hilum.open(store_path) as store:
        assert store.frame_bytes("2.25.1", 299) == bytes(1_000_000)
        assert sum(map(len, store.chunks("2.25.1"))) == len(head) + size


def test_a_conflict_and_a_duplicate_of_a_large_file_leave_no_spool_file_and_have_their_path(
    store_path, source
):
    for name, uid, fill in (("a", "2.25.1", b"a"), ("b", "2.25.1", b"b"), ("c", "2.25.1", b"a")):
        file = make_object(uid, "2.25.2", "2.25.3", rows=6000, columns=6000, pixels=fill * 36_000_000)
        (source / name).write_bytes(file)

    ran = run("import", source, "--store", store_path, "--json")

    assert [ran.summary[name] for name in FIVE] == [1, 1, 1, 0, 0]
    assert ran.lines[0]["conflict"] == os.fspath(source / "b")
    assert list((store_path / "spool").iterdir()) == []
    assert len(list((store_path / "packs").glob("*.file"))) == 1
    again = run("import", source, "--store", store_path, "--json")
    assert [again.summary[name] for name in FIVE] == [0, 2, 1, 0, 0]


# --- Files that others made ------------------------------------------------------------------------


def test_every_stored_file_comes_back_byte_for_byte_from_read_and_from_export(sample_files, tmp_path):
    paths = [path for path in sample_files.values() if path.is_file()]
    folder = tmp_path / "in"
    folder.mkdir()
    for number, path in enumerate(paths):
        (folder / f"{number:06}").symlink_to(path)
    failures: list[Failure] = []
    with hilum.open(tmp_path / "store", create=True) as store:
        counts = import_paths(store, [os.fspath(folder)], Options(), on_failure=failures.append)
        assert counts.files == len(paths)
        stored = {row.uid for row in store.find("instances")}
        assert len(stored) == counts.stored > len(paths) // 2
        by_source = {}
        for uid in stored:
            data = store.read(uid)
            by_source[uid] = data
            assert data == Path(os.fsdecode(store.head(uid).source)).read_bytes()
        assert problems(store) == []
        rows = {
            row.uid: [row.text(tag) for tag in (0x00100020, 0x0020000D, 0x0020000E)]
            for row in store.find("instances")
        }

    ran = run("export", tmp_path / "out", "--store", tmp_path / "store", "--json")

    assert ran.code == 0
    assert ran.summary["written"] == len(stored)
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(files) == len(stored)
    assert sorted(path.read_bytes() for path in files) == sorted(by_source.values())
    for path in files:
        assert len(path.relative_to(tmp_path / "out").parts) == 4  # patient/study/series/instance
    assert len(rows) == len(stored)
    assert rebuild(os.fspath(tmp_path / "store")).instances == len(stored)
