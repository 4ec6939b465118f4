"""hilum.open and the store that it gives: from Python, from several threads, from several processes."""

from __future__ import annotations

import copy
import gzip
import io
import os
import random
import subprocess
import sys
import tempfile
import threading
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from makers import element, make_object, noise
from pydicom.pixels import pixel_array

import hilum
from hilum.engine.frames import BLOB_KINDS
from hilum.engine.packs import PackReader
from hilum.engine.rebuild import rebuild
from hilum.engine.verify import verify
from hilum.engine.writer import Policy, Result
from hilum.errors import (
    BadQuery,
    Conflict,
    HilumError,
    NotDicom,
    NotFound,
    ReadOnly,
    StoreLocked,
    StoreMissing,
)

FILE = make_object("2.25.1", "2.25.2", "2.25.3", pixels=noise(6000), rows=10, columns=100, frames=6)


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(path):
    with hilum.open(path, create=True) as opened:
        yield opened


def problems(store: hilum.Store) -> list[Any]:
    found: list[Any] = []
    verify(store, on_problem=found.append, mark=False)
    return found


# --- Opening and closing ------------------------------------------------------------


def test_open_makes_no_store_unless_it_is_told_to(path):
    for more in ({}, {"read_only": True}, {"create": True, "read_only": True}):
        with pytest.raises(StoreMissing):
            hilum.open(path, **more)
        assert not path.exists()
    hilum.open(path, create=True).close()
    with hilum.open(path, create=True) as store:
        assert store.find("studies") == []


@pytest.mark.parametrize("kind", [str, Path, lambda found: Path(os.path.relpath(found))])
def test_a_path_may_be_text_or_a_path_and_relative(path, kind, tmp_path, monkeypatch):
    with hilum.open(kind(path), create=True) as store:
        monkeypatch.chdir("/")
        store.ingest(FILE)
        assert store.read("2.25.1") == FILE
    assert (path / "packs").is_dir()


def test_a_with_closes_the_store_also_after_an_exception_and_close_may_come_twice(path):
    def use() -> hilum.Store:
        with hilum.open(path, create=True) as store:
            opened.append(store)
            store.ingest(FILE)
            raise ZeroDivisionError

    opened: list[hilum.Store] = []
    with pytest.raises(ZeroDivisionError):
        use()
    (store,) = opened
    store.close()
    store.close()
    assert rebuild(os.fspath(path)).instances == 1  # nobody holds it any more


@pytest.mark.parametrize(
    "use",
    [
        lambda store: store.find("studies"),
        lambda store: store.read("2.25.1"),
        lambda store: store.ingest(FILE),
        lambda store: store.ingest(make_object("2.25.9", "2.25.2", "2.25.3", pixels=noise(3000))),
        lambda store: store.frame_bytes("2.25.1", 0),
        lambda store: store.delete("studies", {"PatientID": "P1"}),
        lambda store: store.stats(),
    ],
)
def test_a_store_that_is_closed_raises_our_error_and_writes_nothing(path, use):
    with hilum.open(path, create=True) as store:
        store.ingest(FILE)
    before = {file: file.read_bytes() for file in (path / "packs").iterdir()}
    with pytest.raises(HilumError, match="closed"):
        use(store)
    with hilum.open(path) as other:
        with pytest.raises(HilumError, match="closed"):
            use(store)
        assert other.stats()["instances"] == 1
    assert {file: file.read_bytes() for file in (path / "packs").iterdir()} == before


def test_no_descriptor_stays_open_after_close(path):
    def count() -> int:
        return len(os.listdir("/proc/self/fd"))

    def use() -> None:
        with hilum.open(path, create=True) as store:
            store.ingest(make_object("2.25.1", "2.25.2", "2.25.3", pixels=noise(3000)))
            store.read("2.25.1")
            store.frame_bytes("2.25.1", 0)
        with hilum.open(path, read_only=True) as store:
            store.read("2.25.1")
        with pytest.raises(StoreMissing):
            hilum.open(path.parent / "nowhere")
        with pytest.raises(NotDicom):
            store.prepare(path / "STORE")

    use()
    before = count()
    for _ in range(5):
        use()
    assert count() == before


def test_the_same_store_may_be_open_twice_in_one_process(path):
    with (
        hilum.open(path, create=True) as one,
        hilum.open(path) as two,
        hilum.open(path, read_only=True) as three,
    ):
        one.ingest(FILE)
        two.ingest(make_object("2.25.4", "2.25.2", "2.25.3"))
        assert [s.stats()["instances"] for s in (one, two, three)] == [2, 2, 2]
        assert three.read("2.25.4") == one.read("2.25.4")
        with pytest.raises(ReadOnly):
            three.ingest(FILE)
        one.close()
        assert two.read("2.25.1") == FILE
    with hilum.open(path, read_only=True) as three:
        with pytest.raises(StoreLocked, match="reading"):
            hilum.open(path)
        assert three.read("2.25.1") == FILE


def test_a_store_opened_for_reading_reads_all_and_writes_nothing(path):
    with hilum.open(path, create=True) as store:
        store.ingest(FILE)
    before = {file: file.read_bytes() for file in (path / "packs").iterdir()}
    with hilum.open(path, read_only=True) as store:
        assert store.read("2.25.1") == FILE
        assert store.frame("2.25.1", 0).shape == (10, 100)
        assert store.find("studies")[0].uid == "2.25.2"
        for write in (
            lambda: store.ingest(make_object("2.25.4", "2.25.2", "2.25.3")),
            lambda: store.ingest(FILE),
            lambda: store.ingest_many([store.prepare(FILE)]),
            lambda: store.delete("studies", {"PatientID": "P1"}),
        ):
            with pytest.raises(ReadOnly):
                write()
    assert {file: file.read_bytes() for file in (path / "packs").iterdir()} == before


# --- In ------------------------------------------------------------------------------------


def as_open_file(file: bytes, folder: Path) -> Any:
    (folder / "open.dcm").write_bytes(file)
    return open(folder / "open.dcm", "rb")


def as_unbuffered(file: bytes, folder: Path) -> Any:
    (folder / "open.dcm").write_bytes(file)
    return open(folder / "open.dcm", "rb", buffering=0)


def as_gzip(file: bytes, folder: Path) -> Any:
    with gzip.open(folder / "packed.dcm.gz", "wb") as out:
        out.write(file)
    return gzip.open(folder / "packed.dcm.gz", "rb")


def as_pipe(file: bytes, folder: Path) -> Any:
    read, write = os.pipe()
    threading.Thread(target=lambda: (os.write(write, file), os.close(write))).start()
    return os.fdopen(read, "rb")


def as_part_of_a_file(file: bytes, folder: Path) -> Any:
    (folder / "open.dcm").write_bytes(b"something else" + file)
    opened = open(folder / "open.dcm", "rb")  # noqa: SIM115
    opened.seek(14)
    return opened


def as_temporary(file: bytes, folder: Path) -> Any:
    opened = tempfile.NamedTemporaryFile(dir=folder)  # noqa: SIM115
    opened.write(file)
    opened.seek(0)
    return opened


def as_unflushed(file: bytes, folder: Path) -> Any:
    opened = open(folder / "new.dcm", "w+b")  # noqa: SIM115
    opened.write(file)
    opened.seek(0)
    return opened


SOURCES = {
    "bytes": lambda file, folder: file,
    "bytearray": lambda file, folder: bytearray(file),
    "memoryview": lambda file, folder: memoryview(file),
    "a view of a part": lambda file, folder: memoryview(b"xx" + file + b"yy")[2:-2],
    "BytesIO": lambda file, folder: io.BytesIO(file),
    "path": lambda file, folder: Path(as_open_file(file, folder).name),
    "text path": lambda file, folder: as_open_file(file, folder).name,
    "file": as_open_file,
    "unbuffered file": as_unbuffered,
    "gzip": as_gzip,
    "pipe": as_pipe,
    "the rest of a file": as_part_of_a_file,
    "temporary file": as_temporary,
    "a file just written": as_unflushed,
}


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("make", SOURCES.values(), ids=SOURCES)
def test_an_object_comes_from_bytes_a_path_or_any_binary_file(store, tmp_path, make):
    source = make(FILE, tmp_path)

    found = store.ingest(source)

    assert found == ("2.25.1", Result.STORED)
    assert store.read("2.25.1") == FILE
    assert store.ingest(FILE).result == Result.DUPLICATE


def test_a_buffer_may_be_changed_once_it_is_stored(store):
    buffer = bytearray(FILE)
    store.ingest(buffer)
    buffer[:] = bytes(len(buffer))
    assert store.read("2.25.1") == FILE


def test_what_is_refused_raises_by_whose_fault_it_is_and_stores_nothing(store, tmp_path):
    store.ingest(FILE)
    (tmp_path / "cut.dcm").write_bytes(FILE[:300])
    with pytest.raises(NotDicom):
        store.ingest(b"hello, this is no DICOM object at all" * 10)
    with pytest.raises(hilum.errors.BadDicom) as caught:
        store.ingest(tmp_path / "cut.dcm")
    assert caught.value.path == os.fspath(tmp_path / "cut.dcm")
    assert caught.value.offset > 128
    assert caught.value.tag
    with pytest.raises(Conflict):
        store.ingest(make_object("2.25.1", "2.25.2", "2.25.3"))
    for wrong in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(OSError, match=str(wrong)):
            store.ingest(wrong)
    assert store.stats()["instances"] == 1
    assert (
        store.ingest(make_object("2.25.1", "2.25.2", "2.25.3"), policy=Policy.REPLACE).result
        == Result.REPLACED
    )


def test_ingest_many_answers_in_the_order_asked(store):
    files = [make_object(f"2.25.{n}", "2.25.2", "2.25.3", pixels=noise(1500, n)) for n in range(1, 40)]
    random.Random(1).shuffle(files)
    prepared = [store.prepare(file) for file in [*files, files[3]]]
    assert store.ingest_many(prepared) == [Result.STORED] * 39 + [Result.DUPLICATE]
    assert store.ingest_many([]) == []


# --- Out -------------------------------------------------------------------------------------


def test_the_head_is_the_file_without_its_bulk_values(store):
    store.ingest(FILE)
    head = store.head("2.25.1")
    (hole,) = head.holes
    assert head.original_length == len(FILE)
    assert head.head == FILE[: hole.offset] + FILE[hole.offset + hole.length :]
    assert FILE[hole.offset : hole.offset + hole.length] == noise(6000)
    assert head.transfer_syntax == b"1.2.840.10008.1.2.1"


@pytest.mark.parametrize("uid", ["", "2.25.9", "2.25.1 ", "2.25.1\0", "é", "x" * 100_000, "\udcff"])
def test_what_is_not_stored_is_not_found_by_any_reader(store, uid):
    store.ingest(FILE)
    for read in (
        store.read,
        store.head,
        store.dataset,
        store.open_original,
        store.frames,
        lambda uid: store.frame_bytes(uid, 0),
        lambda uid: store.frame(uid, 0),
        lambda uid: list(store.chunks(uid)),
    ):
        with pytest.raises(NotFound) as caught:
            read(uid)
        assert len(str(caught.value)) < 300


def test_find_refuses_what_makes_no_sense(store):
    for level, more in (
        ("images", {}),
        ("studies", {"keys": {"Nonsense": "1"}}),
        ("studies", {"limit": -1}),
        ("studies", {"offset": -1}),
        ("studies", {"order": ["Nonsense"]}),
    ):
        with pytest.raises(BadQuery):
            store.find(level, **more)


def test_rows_outlive_the_store(path):
    with hilum.open(path, create=True) as store:
        store.ingest(FILE)
        (row,) = store.find("instances", [("PatientID", "P1")], limit=1)
    assert row.uid == "2.25.1"
    assert row.text(0x00100010) == "Doe^Jane"
    assert row.to_json()["00080018"] == {"vr": "UI", "Value": ["2.25.1"]}


# --- Frames as arrays -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bits", "signed", "dtype"),
    [
        (8, 0, "uint8"),
        (8, 1, "int8"),
        (16, 0, "uint16"),
        (16, 1, "int16"),
        (32, 0, "uint32"),
        (32, 1, "int32"),
    ],
)
def test_a_frame_is_rows_by_columns_in_the_type_of_its_bits(store, bits, signed, dtype):
    values = np.frombuffer(noise(6 * 8 * 3 * bits // 8), dtype).reshape(3, 6, 8)
    extra = [(0x00280103, element(0x00280103, "US", signed))]
    store.ingest(
        make_object(
            "2.25.1",
            "2.25.2",
            "2.25.3",
            pixels=values.tobytes(),
            rows=6,
            columns=8,
            frames=3,
            bits=bits,
            extra=extra,
        )
    )
    for index in range(3):
        frame = store.frame("2.25.1", index)
        assert (frame.shape, frame.dtype) == ((6, 8), np.dtype(dtype))
        assert np.array_equal(frame, values[index])


def test_a_colour_frame_has_samples_last_and_one_bit_is_0_and_1_in_bytes(store):
    colour = noise(6 * 8 * 3 * 2)
    extra = [
        (0x00280002, element(0x00280002, "US", 3)),
        (0x00280004, element(0x00280004, "CS", "RGB")),
        (0x00280006, element(0x00280006, "US", 0)),
    ]
    store.ingest(
        make_object("2.25.1", "2.25.2", "2.25.3", pixels=colour, rows=6, columns=8, frames=2, extra=extra)
    )
    frame = store.frame("2.25.1", 1)
    assert (frame.shape, frame.dtype) == ((6, 8, 3), np.uint8)
    assert frame.tobytes() == colour[144:]
    one_bit = [(0x00280100, element(0x00280100, "US", 1)), (0x00280101, element(0x00280101, "US", 1))]
    store.ingest(
        make_object(
            "2.25.4", "2.25.2", "2.25.3", pixels=b"\x2d\x01", rows=3, columns=3, frames=1, extra=one_bit
        )
    )
    assert store.frame("2.25.4", 0).tolist() == [[1, 0, 1], [1, 0, 1], [0, 0, 1]]
    with pytest.raises(NotFound):
        store.frame("2.25.4", 1)


def test_frames_of_pydicoms_own_files_are_its_pixel_arrays(pydicom_files, tmp_path):
    compared = 0
    with hilum.open(tmp_path / "store", create=True) as store:
        for name, file in pydicom_files.items():
            try:
                uid = store.ingest(file).uid
                frame = store.frame(uid, 0)
            except HilumError:
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    expected = pixel_array(file, index=0)
                except Exception:
                    continue
            assert frame.dtype == expected.dtype, name
            assert np.array_equal(frame, expected), name
            compared += 1
    assert compared > 30


# --- Data sets ----------------------------------------------------------------------------------------


def test_a_header_value_is_read_without_the_pixels_and_the_pixels_when_they_are_looked_at(store, monkeypatch):
    store.ingest(FILE)
    read: list[int] = []
    real = PackReader.read

    def counted(self: PackReader, kinds: Any, container: int, offset: int, length: int) -> bytes:
        if kinds == BLOB_KINDS:
            read.append(length)
        return real(self, kinds, container, offset, length)

    monkeypatch.setattr(PackReader, "read", counted)
    dataset = store.dataset("2.25.1")

    assert dataset.PatientName == "Doe^Jane"
    assert dataset.NumberOfFrames == 6
    assert dataset.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"
    assert "PixelData" in dataset
    assert read == []
    assert dataset.PixelData == noise(6000)
    assert read == [6000]
    assert np.array_equal(dataset.pixel_array[3], store.frame("2.25.1", 3))


def test_a_data_set_is_pydicoms_in_every_way(store, tmp_path):
    store.ingest(FILE)
    dataset = store.dataset("2.25.1")
    expected = pydicom.dcmread(io.BytesIO(FILE))

    assert dataset == expected
    assert copy.deepcopy(store.dataset("2.25.1")) == expected  # with pixels that it must still read
    assert str(dataset) == str(expected)
    assert dataset.to_json_dict() == expected.to_json_dict()
    dataset.save_as(tmp_path / "saved.dcm", enforce_file_format=False)
    assert (tmp_path / "saved.dcm").read_bytes() == FILE
    dataset.PatientName = "Other"
    assert store.read("2.25.1") == FILE


def test_real_data_sets_are_pydicoms(pydicom_files, tmp_path):
    compared = 0
    with hilum.open(tmp_path / "store", create=True) as store:
        for name, file in pydicom_files.items():
            try:
                uid = store.ingest(file).uid
            except HilumError:
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                expected = pydicom.dcmread(file, force=True)
                try:
                    text = str(expected)
                except Exception:
                    continue
                assert str(store.dataset(uid)) == text, name
            compared += 1
    assert compared > 60


# --- The original as a file -------------------------------------------------------------------------------


def test_the_original_can_be_read_as_a_file_from_anywhere(store):
    private = element(0x00091010, "OB", noise(70_000, "a"))
    file = make_object("2.25.1", "2.25.2", "2.25.3", pixels=noise(5000), extra=[(0x00091010, private)])
    store.ingest(file)
    original = store.open_original("2.25.1")
    rng = random.Random(5)
    assert len(store.head("2.25.1").holes) == 2
    for _ in range(300):
        at, size = rng.randrange(len(file) + 10), rng.choice((0, 1, 7, 100, 5000, 80_000, -1))
        assert original.seek(at) == at
        expected = file[at : at + size] if size >= 0 else file[at:]
        assert original.read(size) == expected
        assert original.tell() == max(at, at + len(expected))
    assert original.seek(-10, io.SEEK_END) == len(file) - 10
    assert original.read() == file[-10:]
    assert io.BufferedReader(store.open_original("2.25.1")).read() == file
    with pytest.raises(OSError, match="before"):
        original.seek(-1)


# --- Threads and processes --------------------------------------------------------------


def test_eight_threads_store_read_find_and_delete_and_all_answers_hold_together(path):
    threads, each = 8, 25
    shared = [make_object(f"2.25.9{n}", "2.25.7", "2.25.8", pixels=noise(3000, n)) for n in range(each)]
    own = {
        (t, n): make_object(
            f"2.25.{t}{n:03}",
            f"2.25.5{t % 3}",
            f"2.25.6{t}",
            patient_id=f"P{t % 2}",
            pixels=noise(3000, t * 100 + n),
        )
        for t in range(threads)
        for n in range(each)
    }
    results: Counter[Result] = Counter()
    lock = threading.Lock()
    start = threading.Barrier(threads)

    def work(t: int) -> None:
        start.wait()
        mine: Counter[Result] = Counter()
        for n in range(each):
            uid, file = f"2.25.{t}{n:03}", own[t, n]
            assert store.ingest(file).result == Result.STORED
            assert store.read(uid) == file
            mine[store.ingest(shared[(n + t) % each]).result] += 1
            assert store.frame_bytes(uid, 0) == noise(3000, t * 100 + n)
            (row,) = store.find("instances", {"SOPInstanceUID": uid})
            assert row.uid == uid
            for study in store.find("studies"):
                assert int(study.text(0x00201208)) >= 1
            if n % 3 == 0:
                assert store.delete("instances", {"SOPInstanceUID": uid}) == 1
                with pytest.raises(NotFound):
                    store.read(uid)
        with lock:
            results.update(mine)

    with hilum.open(path, create=True) as store:
        with ThreadPoolExecutor(threads) as pool:
            for done in [pool.submit(work, t) for t in range(threads)]:
                done.result(timeout=120)
        assert results == {Result.STORED: each, Result.DUPLICATE: each * (threads - 1)}
        left = {f"2.25.{t}{n:03}" for t, n in own if n % 3} | {f"2.25.9{n}" for n in range(each)}
        assert {row.uid for row in store.find("instances")} == left
        assert store.stats()["instances"] == len(left)
        assert problems(store) == []
        before = [store.row_json(row) for row in store.find("studies")]
    rebuild(os.fspath(path))
    with hilum.open(path) as store:
        assert [store.row_json(row) for row in store.find("studies")] == before


def test_an_error_of_one_object_in_a_group_is_not_anothers(store):
    store.ingest(FILE)
    start = threading.Barrier(8)

    def work(n: int) -> Any:
        start.wait()
        try:
            if n % 2:
                return store.ingest(make_object(f"2.25.1{n}", "2.25.2", "2.25.3")).result
            return store.ingest(make_object("2.25.1", "2.25.2", "2.25.3", name=f"N{n}")).result
        except Conflict:
            return "conflict"

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == ["conflict", Result.STORED] * 4
    assert store.read("2.25.1") == FILE


_PROCESS = """
import json, sys
sys.path.insert(0, sys.argv[3])
from makers import make_object, noise
import hilum
number = int(sys.argv[2])
found = {}
with hilum.open(sys.argv[1], create=True) as store:
    print("ready", flush=True)
    input()
    for n in range(40):
        pixels = noise(2000, number * 100 + n)
        own = make_object(f"2.25.{number}{n:03}", "2.25.2", f"2.25.3{number}", pixels=pixels)
        store.ingest(own)
        assert store.read(f"2.25.{number}{n:03}") == own
        shared = make_object(f"2.25.9{n:03}", "2.25.2", "2.25.39", pixels=noise(2000, f"s{n}"))
        result = store.ingest(shared).result
        found[result.name] = found.get(result.name, 0) + 1
        if n % 4 == 0:
            assert store.delete("instances", {"SOPInstanceUID": f"2.25.{number}{n:03}"}) == 1
print(json.dumps(found))
"""


def test_several_processes_make_store_and_delete_in_one_store_together(path):
    import json

    count = 4
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _PROCESS, path, str(n), os.path.dirname(__file__)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for n in range(count)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"  # all four made it, or found it made
    outputs = []
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        out, _ = process.communicate(timeout=120)
        assert process.returncode == 0
        outputs.append(json.loads(out))

    total = sum(map(Counter, outputs), Counter())
    assert total == {"STORED": 40, "DUPLICATE": 40 * (count - 1)}
    with hilum.open(path) as store:
        assert store.stats()["instances"] == 40 + 30 * count
        assert problems(store) == []
        before = [store.row_json(row) for row in store.find("instances")]
    assert rebuild(os.fspath(path)).problems == []
    with hilum.open(path) as store:
        assert [store.row_json(row) for row in store.find("instances")] == before


def test_a_reader_in_another_process_sees_each_commit(path, store):
    program = (
        "import sys, hilum\n"
        "with hilum.open(sys.argv[1], read_only=True) as store:\n"
        "    for line in sys.stdin:\n"
        "        print(sum(len(store.read(row.uid)) for row in store.find('instances')), flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as reader:
        assert reader.stdin is not None
        assert reader.stdout is not None
        total = 0
        for n in range(5):
            file = make_object(f"2.25.{n}", "2.25.2", "2.25.3", pixels=noise(2000, n))
            store.ingest(file)
            total += len(file)
            reader.stdin.write("again\n")
            reader.stdin.flush()
            assert int(reader.stdout.readline()) == total
        store.delete("studies", {"StudyInstanceUID": "2.25.2"})
        reader.stdin.write("again\n")
        reader.stdin.flush()
        assert int(reader.stdout.readline()) == 0
        reader.communicate(timeout=30)
