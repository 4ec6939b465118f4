"""The command line as a whole: help, exit statuses, words instead of tracebacks, and each command once."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import run
from makers import element, make_object, noise, sequence
from PIL import Image

import hilum
from hilum.cli import COMMANDS
from hilum.engine.importer import Options, import_paths

CT = "2.25.11"
JPEG = "2.25.12"
REPORT = "2.25.13"


def run_process(*words: Any, **more: Any) -> subprocess.CompletedProcess[bytes]:
    """Run the command line in its own process."""
    command = [sys.executable, "-m", "hilum", *map(os.fspath, words)]
    return subprocess.run(command, capture_output=True, timeout=60, **more)


def jpeg(array: np.ndarray[Any, Any]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(array).save(out, "JPEG", quality=100)
    return out.getvalue()


GREY = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5
FRAMES = [jpeg(GREY), jpeg(GREY[::-1].copy())]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "store"
    with hilum.open(folder, create=True) as store:
        store.ingest(
            make_object(CT, "2.25.1", "2.25.101", pixels=GREY.tobytes() * 3, rows=6, columns=8, frames=3)
        )
        store.ingest(
            make_object(
                JPEG, "2.25.1", "2.25.102", fragments=FRAMES, rows=6, columns=8, frames=2, modality="XC"
            )
        )
        store.ingest(make_object(REPORT, "2.25.2", "2.25.201", modality="SR", name="Doe^Jane\x1b[2J"))
    return folder


# --- Help ----------------------------------------------------------------------------


def test_help_names_every_command_and_each_has_an_example_and_the_three_options():
    ran = run("--help")
    assert ran.code == 0
    assert "Example" in ran.out
    for name in COMMANDS:
        assert re.search(rf"^  {name} +\w", ran.out, re.MULTILINE)
        command = run(name, "--help")
        assert command.code == 0
        assert re.search(rf"Example:\n +hilum {name}\b", command.out)
        if name not in ("serve", "init"):  # which have a log, and no store
            assert all(option in command.out for option in ("--store", "--json", "-v", "--verbose"))
        assert "--help" in command.out
        assert run(name, "-h").out == command.out


def test_the_issued_commands_are_the_commands():
    assert set(COMMANDS) == {
        "import", "serve", "init", "find", "export", "show", "frame", "delete", "stats", "verify", "compact",
        "purge", "rebuild", "echo", "store", "move", "get", "push", "pull", "peers",
    }  # fmt: skip


def test_the_version_is_that_of_the_package():
    assert hilum.__version__ in run("--version").out


@pytest.mark.parametrize(
    "words",
    [
        ["nonsense"],
        ["--nonsense"],
        ["find"],
        ["show"],
        ["show", CT, "more"],
        ["frame", CT],
        ["frame", CT, "1"],
        ["frame", CT, "one", "-o", "x.png"],
        ["frame", CT, "1.5", "-o", "x.png"],
        ["frame", CT, "1", "-o", "x.png", "--window", "40"],
        ["frame", CT, "1", "-o", "x.png", "--window", "a", "b"],
        ["stats", "more"],
        ["verify", "more"],
        ["rebuild", "more"],
        ["export"],
        ["export", "/tmp/out", "PatientID"],
        ["stats", "--store"],
    ],
)
def test_wrong_use_ends_with_2_and_words(path, words, monkeypatch):
    monkeypatch.setenv("HILUM_STORE", os.fspath(path))
    ran = run(*words)

    assert ran.code == 2
    assert ran.out == ""
    assert ran.err.strip()
    assert "Traceback" not in ran.err


def test_a_command_alone_shows_what_there_is():
    assert "Commands" in run().out + run().err


# --- Which store -----------------------------------------------------------------------


def test_the_store_is_the_option_else_the_variable_else_a_folder_here(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HILUM_STORE", raising=False)
    assert run("stats").code == 1
    shutil.copytree(path, "hilum-store")
    run("delete", "studies", "StudyInstanceUID=2.25.2")
    assert run("stats", "--json").lines[0]["instances"] == 2
    monkeypatch.setenv("HILUM_STORE", os.fspath(path))
    assert run("stats", "--json").lines[0]["instances"] == 3
    assert run("stats", "--json", "--store", "hilum-store").lines[0]["instances"] == 2


READING = [
    ["find", "studies"],
    ["show", CT],
    ["frame", CT, "1", "-o", "{out}"],
    ["export", "{out}"],
    ["stats"],
    ["verify"],
    ["verify", "--quick"],
    ["delete", "studies", "PatientID=P1"],
    ["rebuild"],
]


def missing(where: Path) -> None:
    pass


def a_file(where: Path) -> None:
    where.write_text("not a store")


def an_empty_folder(where: Path) -> None:
    where.mkdir()


def another_folder(where: Path) -> None:
    where.mkdir()
    (where / "letter.txt").write_text("Dear")


def garbage(where: Path) -> None:
    where.mkdir()
    for name in ("STORE", "CURRENT", "lock"):
        (where / name).write_bytes(noise(100, name))


@pytest.mark.parametrize("words", READING, ids=" ".join)
@pytest.mark.parametrize("make", [missing, a_file, an_empty_folder, another_folder, garbage])
@pytest.mark.parametrize("more", [[], ["--json"]], ids=["text", "json"])
def test_where_there_is_no_store_every_command_says_so_and_makes_none(tmp_path, words, make, more):
    where = tmp_path / "where"
    make(where)
    before = {found: found.is_file() and found.read_bytes() for found in tmp_path.rglob("*")}

    ran = run(*(word.format(out=tmp_path / "out") for word in words), "--store", where, *more)

    assert ran.code in (1, 2)
    assert ran.out == ""
    assert ran.err.startswith("hilum: ")
    assert str(where) in ran.err
    after = {found: found.is_file() and found.read_bytes() for found in tmp_path.rglob("*")}
    after = {found: data for found, data in after.items() if found.name not in ("lock", "commit.lock")}
    assert after == {
        found: data for found, data in before.items() if found.name not in ("lock", "commit.lock")
    }


@pytest.mark.parametrize("make", [a_file, another_folder, garbage])
def test_import_makes_no_store_over_something_else(tmp_path, make):
    where = tmp_path / "where"
    make(where)
    (tmp_path / "file.dcm").write_bytes(make_object("2.25.1", "2.25.2", "2.25.3"))

    ran = run("import", tmp_path / "file.dcm", "--store", where)

    assert ran.code == 1
    assert str(where) in ran.err
    assert not (where / "packs").exists()


def test_a_store_without_its_index_says_to_rebuild_and_is_never_silently_empty(path, tmp_path):
    shutil.copytree(path, tmp_path / "store")
    shutil.rmtree(tmp_path / "store" / "index-000001")
    for words in (
        ["find", "studies"],
        ["stats"],
        ["import", path],
        ["verify"],
        ["delete", "studies", "PatientID=P1"],
    ):
        ran = run(*words, "--store", tmp_path / "store")
        assert (ran.code, ran.out) == (1, "")
        assert "hilum rebuild" in ran.err
    assert run("rebuild", "--store", tmp_path / "store").code == 0
    assert run("stats", "--store", tmp_path / "store", "--json").lines[0]["instances"] == 3


def test_reading_commands_leave_no_trace_in_the_store(path, tmp_path):
    shutil.copytree(path, tmp_path / "store")
    names = ("data.mdb", "STORE", "CURRENT")

    def state() -> dict[str, bytes]:
        found = (tmp_path / "store").rglob("*")
        return {
            p.name: p.read_bytes()
            for p in found
            if p.is_file() and (p.name in names or p.parent.name == "packs")
        }

    before = state()
    for words in READING[:5]:
        assert run(*(w.format(out=tmp_path / "out") for w in words), "--store", tmp_path / "store").code == 0
        if (tmp_path / "out").is_file():
            (tmp_path / "out").unlink()
    assert state() == before


# --- Hostile arguments --------------------------------------------------------------------

HOSTILE = [
    "",
    " ",
    "\0",
    "%s%n",
    "../../etc/passwd",
    "x" * 100_000,
    "1" * 500,
    "\U0001f480",
    "-",
    "--",
    "'; DROP",
    "\\",
    "=",
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_no_argument_brings_a_traceback(path, tmp_path, text):
    for words in (
        ["show", text],
        ["show", text, "--json"],
        ["frame", text, "1", "-o", tmp_path / "out.png"],
        ["find", "studies", f"PatientID={text}"],
        ["find", "studies", f"PatientName={text}*"],
        ["find", "studies", f"StudyDate={text}"],
        ["find", "instances", f"SOPInstanceUID={text}"],
        ["find", "series", f"{text}=1"],
        ["find", text],
        ["find", "studies", "--include", text],
        ["find", "studies", "--order", text],
        ["delete", "studies", f"StudyInstanceUID=9{text}"],
        ["export", tmp_path / "out", f"PatientID={text}x"],
    ):
        ran = run(*words, "--store", path)
        assert ran.code in (0, 1, 2), words
        assert "Traceback" not in ran.err
        assert len(ran.err) < 5_000 or words == ["find", text]
    with hilum.open(path) as store:
        assert store.stats()["instances"] == 3


def test_bytes_that_are_no_utf8_bring_no_traceback_in_any_place(path, tmp_path):
    odd = b"\xff\xfe\x80"
    for words in (
        [b"show", odd],
        [b"find", b"studies", b"PatientID=" + odd],
        [b"find", b"studies", b"PatientName=" + odd + b"*", b"--json"],
        [b"find", odd],
        [b"find", b"studies", odd + b"=1"],
        [b"stats", b"--store", os.fsencode(tmp_path) + b"/" + odd],
        [b"frame", CT.encode(), b"1", b"-o", os.fsencode(tmp_path) + b"/" + odd],
        [b"frame", CT.encode(), b"1", b"--json", b"-o", os.fsencode(tmp_path) + b"/" + odd],
        [b"export", os.fsencode(tmp_path) + b"/out" + odd],
        [b"rebuild", b"--store", odd],
    ):
        more = [] if b"--store" in words else [b"--store", os.fsencode(path)]
        done = subprocess.run(
            [os.fsencode(sys.executable), b"-m", b"hilum", *words, *more], capture_output=True, timeout=60
        )
        assert b"Traceback" not in done.stderr, (words, done.stderr)
        assert done.returncode in (0, 1, 2)
        assert done.returncode == 0 or done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_names_that_the_terminal_cannot_show_bring_no_traceback(tmp_path, encoding):
    with hilum.open(tmp_path / "store", create=True) as store:
        name = "\u0416\u4e01^\U0001f480".encode()
        extra = [(0x00100010, element(0x00100010, "PN", name))]
        store.ingest(make_object("2.25.1", "2.25.2", "2.25.3", character_set="ISO_IR 192", extra=extra))
    for words in (
        ["find", "studies"],
        ["find", "studies", "--json"],
        ["show", "2.25.1"],
        ["show", "2.25.1", "--json"],
    ):
        done = run_process(
            *words, "--store", tmp_path / "store", env={**os.environ, "PYTHONIOENCODING": encoding}
        )
        assert done.returncode == 0, done.stderr
        if "--json" in words or encoding == "utf-8":
            assert "\u0416\u4e01" in done.stdout.decode()


def test_a_reader_that_goes_away_brings_no_traceback(path):
    for words in (["show", CT], ["find", "instances", "--json"], ["stats"], ["frame", CT, "1", "-o", "-"]):
        read, write = os.pipe()
        os.close(read)
        process = subprocess.Popen(
            [sys.executable, "-m", "hilum", *words, "--store", path], stdout=write, stderr=subprocess.PIPE
        )
        os.close(write)
        _, err = process.communicate(timeout=60)
        assert b"Traceback" not in err
        assert b"Error" not in err
        assert process.returncode in (0, 1)


def test_a_full_device_brings_words_and_1(path):
    with open("/dev/full", "wb") as full:
        for words in (["show", CT], ["stats", "--json"]):
            done = subprocess.run(
                [sys.executable, "-m", "hilum", *words, "--store", path],
                stdout=full,
                stderr=subprocess.PIPE,
                timeout=60,
            )
            assert done.returncode == 1
            assert b"Traceback" not in done.stderr
            assert b"No space left" in done.stderr


# --- show -----------------------------------------------------------------------------------


def test_show_prints_the_data_set_as_pydicom_does(path):
    ran = run("show", CT, "--store", path)
    assert ran.code == 0
    assert "(0010,0010) Patient's Name" in ran.out
    assert "Array of 144 elements" in ran.out
    assert ran.out.count("(0002,0010) Transfer Syntax UID") == 1
    assert "\x1b" not in run("show", REPORT, "--store", path).out


def test_show_json_is_one_dicom_json_object_on_one_line(path):
    ran = run("show", JPEG, "--store", path, "--json")
    (document,) = ran.lines
    assert document["00080018"] == {"vr": "UI", "Value": [JPEG]}
    assert document["00100010"] == {"vr": "PN", "Value": [{"Alphabetic": "Doe^Jane"}]}
    assert document["7FE00010"]["vr"] == "OB"
    assert "Value" not in document["7FE00010"]


def test_show_of_what_is_not_stored_ends_with_1(path):
    ran = run("show", "2.25.999", "--store", path)
    assert (ran.code, ran.out) == (1, "")
    assert "2.25.999" in ran.err


@pytest.mark.parametrize(
    "extra",
    [
        element(0x00200013, "IS", "9" * 30),
        element(0x00200013, "IS", "x"),
        element(0x00101020, "DS", "nan"),
        element(0x00080020, "DA", "yesterday"),
        element(0x00280010, "US", b"\1"),
        element(0x00189087, "FD", b"\0\0\0\0\0\0\xf8\x7f"),
        element(0x00091001, "UN", noise(3000)),
        sequence(0x00400275, [b""]),
        sequence(0x00081140, [element(0x00081150, "UI", "1.2")]),
    ],
)
def test_show_of_a_strange_value_is_json_or_an_error_in_words(tmp_path, extra):
    tag = int.from_bytes(extra[:2], "little") << 16 | int.from_bytes(extra[2:4], "little")
    with hilum.open(tmp_path / "store", create=True) as store:
        store.ingest(make_object("2.25.1", "2.25.2", "2.25.3", extra=[(tag, extra)]))
    for more in ([], ["--json"]):
        ran = run("show", "2.25.1", "--store", tmp_path / "store", *more)
        assert "Traceback" not in ran.err
        assert ran.code in (0, 1)
        if more and not ran.code:
            json.loads(ran.out, parse_constant=pytest.fail)


# --- frame ------------------------------------------------------------------------------------


def test_frame_writes_a_png_that_is_the_frame(path, tmp_path):
    ran = run("frame", CT, "2", "-o", tmp_path / "out.png", "--store", path)
    assert ran.code == 0
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out.png")), GREY)

    ran = run("frame", JPEG, "2", "-o", tmp_path / "jpeg.png", "--store", path, "--json")
    assert ran.lines[0]["shape"] == [6, 8]
    shown = np.asarray(Image.open(tmp_path / "jpeg.png")).astype(int)
    assert np.abs(shown - GREY[::-1]).max() < 6


def test_frame_raw_writes_the_bytes_as_they_are_stored(path, tmp_path):
    assert run("frame", JPEG, "2", "--raw", "-o", tmp_path / "out.jpg", "--store", path).code == 0
    written = (tmp_path / "out.jpg").read_bytes()
    assert written.rstrip(b"\0") == FRAMES[1].rstrip(b"\0")
    done = run_process("frame", CT, "3", "--raw", "-o", "-", "--store", path)
    assert done.stdout == GREY.tobytes()


def test_frame_with_a_window_shows_it(path, tmp_path):
    assert (
        run("frame", CT, "1", "--window", "100", "1", "-o", tmp_path / "out.png", "--store", path).code == 0
    )
    assert set(np.unique(np.asarray(Image.open(tmp_path / "out.png")))) == {0, 255}
    assert run("frame", CT, "1", "--window", "100", "0", "-o", tmp_path / "no.png", "--store", path).code == 2


@pytest.mark.parametrize("number", ["0", "-1", "4", "99999999999999999999999", "-99999999999999999999"])
@pytest.mark.parametrize("more", [[], ["--raw"]], ids=["png", "raw"])
def test_a_frame_that_is_not_there_ends_with_1_and_writes_no_file(path, tmp_path, number, more):
    ran = run("frame", "--store", path, "-o", tmp_path / "out", *more, "--", CT, number)

    assert ran.code == 1
    assert "no frame" in ran.err
    assert not (tmp_path / "out").exists()


def test_what_is_no_image_has_no_frame(path, tmp_path):
    for more in ([], ["--raw"]):
        ran = run("frame", REPORT, "1", "-o", tmp_path / "out", *more, "--store", path)
        assert ran.code == 1
        assert "no pixel data" in ran.err
        assert not (tmp_path / "out").exists()


def test_a_picture_that_cannot_be_written_is_told(path, tmp_path):
    for where in (tmp_path / "no" / "folder.png", tmp_path):
        ran = run("frame", CT, "1", "-o", where, "--store", path)
        assert ran.code == 1
        assert str(where) in ran.err
        assert "Traceback" not in ran.err


# --- stats ------------------------------------------------------------------------------------


def test_stats_count_what_is_stored_and_the_bytes_it_takes(path):
    (found,) = run("stats", "--store", path, "--json").lines
    assert {name: found[name] for name in ("patients", "studies", "series", "instances", "blobs")} == {
        "patients": 1, "studies": 2, "series": 3, "instances": 3, "blobs": found["blobs"],
    }  # fmt: skip
    packs = sum(file.stat().st_size for file in (path / "packs").iterdir())
    assert found["head_bytes"] + found["bulk_bytes"] == packs
    text = run("stats", "--store", path).out
    assert re.search(r"instances +3\n", text)
    assert "tables" in run("stats", "--store", path, "--json", "-v").lines[0]


# --- Real files ----------------------------------------------------------------------------------


def test_no_command_ends_in_a_traceback_on_any_real_file(shared_data, tmp_path):
    with hilum.open(tmp_path / "store", create=True) as store:
        import_paths(store, [os.fspath(shared_data)], Options())
        uids = [row.uid for row in store.find("instances")]
    assert len(uids) > 1000
    failed = []
    for number, uid in enumerate(uids):
        words = (
            ["show", uid],
            ["show", uid, "--json"],
            ["frame", uid, "1", "-o", tmp_path / "out"],
            ["frame", uid, "1", "-o", tmp_path / "out", "--raw"],
        )[number % 4]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ran = run(*words, "--store", tmp_path / "store")
        assert ran.code in (0, 1), (words, ran.err)
        assert ran.code == 0 or re.match(r"hilum: .", ran.err)
        if words[-1] == "--json" and ran.code == 0:
            json.loads(ran.out, parse_constant=pytest.fail)
        if words[0] == "show" and ran.code:
            failed.append((uid, ran.err))
    assert len(failed) < 10, failed
