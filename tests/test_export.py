"""hilum export: the files as they came in, and no path of a data set's leads anywhere else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from command import run
from makers import make_object, noise

import hilum
from hilum.transfer.arriving import safe_name


@pytest.fixture
def made() -> dict[str, bytes]:
    rows = [
        ("2.25.11", "2.25.1", "2.25.101", "P1", "CT"),
        ("2.25.12", "2.25.1", "2.25.101", "P1", "CT"),
        ("2.25.13", "2.25.1", "2.25.102", "P1", "SR"),
        ("2.25.21", "2.25.2", "2.25.201", "P2", "MR"),
    ]
    return {
        uid: make_object(uid, study, series, patient_id=patient, modality=modality, pixels=noise(3000, uid))
        for uid, study, series, patient, modality in rows
    }


@pytest.fixture
def path(tmp_path, made) -> Path:
    with hilum.open(tmp_path / "store", create=True) as store:
        for file in made.values():
            store.ingest(file)
    return tmp_path / "store"


def files_under(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_files_lie_as_patient_study_series_instance_and_are_the_bytes_that_came_in(path, made, tmp_path):
    ran = run("export", tmp_path / "out", "--store", path, "--json")

    assert ran.code == 0
    assert files_under(tmp_path / "out") == {
        "P1/2.25.1/2.25.101/2.25.11.dcm": made["2.25.11"],
        "P1/2.25.1/2.25.101/2.25.12.dcm": made["2.25.12"],
        "P1/2.25.1/2.25.102/2.25.13.dcm": made["2.25.13"],
        "P2/2.25.2/2.25.201/2.25.21.dcm": made["2.25.21"],
    }
    (summary,) = ran.lines
    assert (summary["files"], summary["written"], summary["present"], summary["failed"]) == (4, 4, 0, 0)
    assert summary["bytes"] == sum(map(len, made.values()))


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (["PatientID=P2"], {"2.25.21"}),
        (["Modality=CT"], {"2.25.11", "2.25.12"}),
        (["StudyInstanceUID=2.25.1", "Modality=SR"], {"2.25.13"}),
        (["SOPInstanceUID=2.25.12,2.25.21"], {"2.25.12", "2.25.21"}),
        (["PatientName=doe*"], {"2.25.11", "2.25.12", "2.25.13", "2.25.21"}),
        (["PatientID=nobody"], set()),
    ],
)
def test_with_keys_only_what_matches_is_written(path, tmp_path, keys, expected):
    ran = run("export", tmp_path / "out", *keys, "--store", path)

    assert ran.code == 0
    assert {Path(name).stem for name in files_under(tmp_path / "out")} == expected


def test_an_export_that_was_interrupted_goes_on_and_mends_what_is_cut_or_changed(path, made, tmp_path):
    run("export", tmp_path / "out", "--store", path)
    folder = tmp_path / "out" / "P1" / "2.25.1" / "2.25.101"
    whole = files_under(tmp_path / "out")
    kept = (tmp_path / "out" / "P2" / "2.25.2" / "2.25.201" / "2.25.21.dcm").stat()
    (folder / "2.25.11.dcm").write_bytes(made["2.25.11"][:100])
    (folder / "2.25.12.dcm").write_bytes(bytes(len(made["2.25.12"])))

    ran = run("export", tmp_path / "out", "--store", path, "--json")

    assert (ran.lines[-1]["written"], ran.lines[-1]["present"]) == (2, 2)
    assert files_under(tmp_path / "out") == whole
    assert (tmp_path / "out" / "P2" / "2.25.2" / "2.25.201" / "2.25.21.dcm").stat() == kept


@pytest.mark.parametrize(
    "patient",
    [
        "../../../../tmp/evil",
        "/etc/passwd",
        "..",
        ".",
        "a/b",
        "a\\b",
        "x" * 300,
        "-rf",
        "\x1b[2J",
        "Ä Ö",
        "~",
        "nul\0x",
    ],
)
def test_no_value_of_a_data_set_leads_out_of_the_destination(tmp_path, patient):
    file = make_object("2.25.1", "2.25.2", "2.25.3", patient_id=patient)
    with hilum.open(tmp_path / "store", create=True) as store:
        store.ingest(file)

    before = {path for path in tmp_path.rglob("*") if "out" not in path.parts}
    assert run("export", tmp_path / "out", "--store", tmp_path / "store").code == 0

    (name,) = files_under(tmp_path / "out")
    assert len(Path(name).parts) == 4
    assert all(
        part.isascii() and part.isprintable() and not set(part) & set("/\\ ~") for part in Path(name).parts
    )
    assert {path for path in tmp_path.rglob("*") if "out" not in path.parts} == before


def test_values_that_look_alike_once_they_are_safe_have_folders_of_their_own():
    texts = ["a b", "a_b", "a/b", "a//b", "a", ".a", "a.", "..", "", "_", "x" * 100, "x" * 101, "ä", "ö"]

    names = [safe_name(text) for text in texts]

    assert len(set(names)) == len(names)
    assert all(name not in ("", ".", "..") and len(name) < 128 for name in names)


def test_what_is_damaged_fails_by_its_name_leaves_no_file_and_stops_nothing(path, made, tmp_path):
    (bulk,) = (path / "packs").glob("*.bulk")
    data = bytearray(bulk.read_bytes())
    data[data.index(noise(3000, "2.25.12")[:50])] ^= 1
    bulk.write_bytes(data)

    ran = run("export", tmp_path / "out", "--store", path, "--json")

    assert ran.code == 1
    assert ran.lines[0]["failed"] == "2.25.12"
    assert (ran.lines[-1]["files"], ran.lines[-1]["written"], ran.lines[-1]["failed"]) == (4, 3, 1)
    assert {Path(name).name for name in files_under(tmp_path / "out")} == {
        f"{uid}.dcm" for uid in made if uid != "2.25.12"
    }


@pytest.mark.parametrize("kind", ["file", "below a file", "folder in a file's place"])
def test_a_destination_that_cannot_be_is_a_failure_in_words(path, tmp_path, kind):
    (tmp_path / "file").write_text("x")
    where = {"file": "file", "below a file": "file/below", "folder in a file's place": "out"}[kind]
    (tmp_path / "out/P1/2.25.1/2.25.101/2.25.11.dcm").mkdir(parents=True)

    ran = run("export", tmp_path / where, "--store", path)

    assert ran.code == 1
    assert "Traceback" not in ran.err
    assert ran.err.strip()
    assert ("3 files written" in ran.out) == (where == "out")


def test_an_export_of_nothing_to_a_pipe_that_closes_ends_without_a_traceback(path, tmp_path):
    with subprocess.Popen(
        [sys.executable, "-m", "hilum", "find", "instances", "--store", path, "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert b"Traceback" not in process.stderr.read()
        assert process.wait(60) in (0, 1)
