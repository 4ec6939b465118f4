"""The equipment itself: does the recorder see what a program does, and is the simulated disk weak enough?"""

import os
import random
import shutil
import subprocess
import sys
import textwrap

import pytest
from powerloss import NotReplayable, RecordingFailed, record

PROLOGUE = """
import ctypes, mmap, os, resource, subprocess, sys, threading
root = sys.argv[1]
libc = ctypes.CDLL(None, use_errno=True)

def ack(line):
    fd = os.open(os.environ["POWERLOSS_ACK"], os.O_WRONLY | os.O_APPEND)
    os.write(fd, line.encode() + b"\\n")
    os.close(fd)

def at(name):
    return os.path.join(root, name)

def sync_folder(name=""):
    fd = os.open(at(name), os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)

def new(name, data=b"", flags=0):
    fd = os.open(at(name), os.O_RDWR | os.O_CREAT | flags)
    os.write(fd, data)
    return fd
"""


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return tmp_path_factory.mktemp("recorder")  # one for all tests, so that gcc runs once


@pytest.fixture
def run(tmp_path, workdir):
    """Record a Python script that finds its root, and a few helpers, in PROLOGUE."""

    def run_script(script, before=None):
        root = tmp_path / "root"
        root.mkdir()
        for name, data in (before or {}).items():
            (root / name).write_bytes(data)
        program = tmp_path / "program.py"
        program.write_text(PROLOGUE + textwrap.dedent(script))
        return record([sys.executable, program, root], root, workdir=workdir)

    return run_script


def all_images(trace, **options):
    return list(trace.points(rng=random.Random(1), **{"torn_max": 64, **options}))


def final_images(trace, **options):
    return list(trace.images(len(trace.ops), rng=random.Random(1), **{"torn_max": 64, **options}))


def kinds(trace):
    return [op.kind for op in trace.ops]


# --- bytes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sync", ["fsync", "fdatasync"])
def test_a_synced_write_is_in_every_image_after_its_acknowledgement(run, sync):
    trace = run(f"""
        fd = new("a", b"x" * 3000)
        sync_folder()
        os.{sync}(fd)
        ack("a")
        os.pwrite(fd, b"y" * 100, 3000)
    """)

    after = [image for image in all_images(trace) if image.acknowledged]

    assert len(after) > 3
    assert all(image.read("a")[:3000] == b"x" * 3000 for image in after)
    assert trace.acknowledged_before(len(trace.ops) - 2) == []
    assert trace.acknowledged_before(len(trace.ops) - 1) == ["a"]


def test_an_unsynced_write_is_found_lost_whole_as_zeros_and_torn_at_each_sector(run):
    trace = run(
        """
        fd = os.open(at("a"), os.O_WRONLY)
        os.pwrite(fd, b"x" * 2000, 300)
        """,
        before={"a": b"o" * 300},
    )

    found = {image.read("a") for image in final_images(trace)}

    old, new = b"o" * 300, b"x" * 2000
    assert {old, old + new, old + bytes(2000)} <= found
    assert {old + new[: cut - 300] for cut in (512, 1024, 1536, 2048)} <= found
    assert any((len(data) - 300) % 512 and 300 < len(data) < 2300 for data in found)  # and at odd bytes
    assert all(data.startswith(old) for data in found)


def test_unsynced_writes_of_two_files_land_in_any_order(run):
    trace = run(
        """
        a, b = (os.open(at(name), os.O_WRONLY) for name in "ab")
        os.write(a, b"1")
        os.write(b, b"2")
        """,
        before={"a": b"", "b": b""},
    )

    found = {(image.read("a"), image.read("b")) for image in final_images(trace, random_count=50)}

    assert {(b"", b""), (b"1", b""), (b"", b"2"), (b"1", b"2")} <= found


def test_a_later_write_can_land_without_an_earlier_one(run):
    trace = run(
        """
        fd = os.open(at("a"), os.O_WRONLY)
        os.pwrite(fd, b"1", 0)
        os.pwrite(fd, b"2", 1)
        """,
        before={"a": b""},
    )

    assert b"\0002" in {image.read("a") for image in final_images(trace, random_count=50)}


@pytest.mark.parametrize(
    "write",
    [
        'fd = os.open(at("a"), os.O_WRONLY | os.O_DSYNC); os.write(fd, b"x" * 2000)',
        'fd = os.open(at("a"), os.O_WRONLY | os.O_SYNC); os.writev(fd, [b"x" * 2000])',
        'fd = os.open(at("a"), os.O_WRONLY); os.pwritev(fd, [b"x" * 2000], 0, os.RWF_DSYNC)',
    ],
    ids=["O_DSYNC", "O_SYNC", "RWF_DSYNC"],
)
def test_a_durable_write_can_tear_under_way_and_is_whole_afterwards(run, write):
    trace = run(write + '; ack("a")', before={"a": b""})

    before = {image.read("a") for image in all_images(trace) if not image.acknowledged}
    after = {image.read("a") for image in all_images(trace) if image.acknowledged}

    assert after == {b"x" * 2000}
    assert {b"", b"x" * 512, bytes(2000)} <= before


def test_a_durable_write_does_not_sync_what_was_written_before_it(run):
    trace = run(
        """
        slow = os.open(at("a"), os.O_WRONLY)
        fast = os.open(at("a"), os.O_WRONLY | os.O_DSYNC)
        os.pwrite(slow, b"11", 0)
        os.pwrite(fast, b"2", 1)
        """,
        before={"a": b"00"},
    )

    assert {image.read("a") for image in final_images(trace)} == {b"02", b"12"}


def test_sync_file_range_makes_nothing_durable(run):
    trace = run(
        """
        fd = os.open(at("a"), os.O_WRONLY)
        os.write(fd, b"x")
        assert libc.sync_file_range(fd, ctypes.c_int64(0), ctypes.c_int64(1), 7) == 0
        """,
        before={"a": b""},
    )

    assert kinds(trace) == ["write", "sync_file_range"]
    assert b"" in {image.read("a") for image in final_images(trace)}


def test_a_cut_file_is_found_at_both_sizes_until_it_is_synced(run):
    trace = run(
        """
        fd = os.open(at("a"), os.O_WRONLY)
        os.ftruncate(fd, 10)
        os.truncate(at("a"), 20)
        os.fsync(fd)
        """,
        before={"a": b"x" * 5000},
    )
    after = len(trace.ops)
    found = {image.read("a") for image in trace.images(after - 1, rng=random.Random(1), random_count=50)}

    assert found == {b"x" * 5000, b"x" * 10, b"x" * 20, b"x" * 10 + bytes(10)}
    assert [image.read("a") for image in trace.images(after, rng=random.Random(1))] == [b"x" * 10 + bytes(10)]


def test_each_way_to_write_is_replayed_to_the_byte(run):
    # record() compares with the real files: that it returns is most of the test.
    trace = run(
        """
        fd = os.open(at("a"), os.O_RDWR)
        os.lseek(fd, 5, os.SEEK_SET)
        assert os.write(fd, b"write") == 5
        assert os.writev(fd, [b"wri", b"", b"tev"]) == 6
        assert os.pwrite(fd, b"pwrite", 3) == 6
        assert os.pwritev(fd, [b"p" * 70000, b"w", b"v" * 5000], 9000) == 75001
        assert libc.pwritev2(fd, None, 0, ctypes.c_long(-1), 0) == 0
        appender = os.open(at("a"), os.O_WRONLY | os.O_APPEND)
        os.write(appender, b"appended")
        os.pwrite(appender, b"appended whatever the offset", 0)
        os.posix_fallocate(fd, 200000, 10)
        assert libc.fallocate(fd, 3, ctypes.c_int64(100), ctypes.c_int64(9000)) == 0  # punch a hole
        source = os.open(at("source"), os.O_RDONLY)
        target = os.open(at("b"), os.O_WRONLY | os.O_CREAT)  # cannot be read back through itself
        assert os.sendfile(target, source, 10, 90000) == 90000
        assert os.copy_file_range(source, target, 5000, 100, 200000) == 5000
        assert os.copy_file_range(source, target, 300, 7) == 300
        os.write(os.dup(target), b"by a copy of the descriptor")
        path = at("c").encode()
        fd = libc.creat(path, 0o600)
        assert fd >= 0 and os.write(fd, b"c") == 1
        assert libc.__open64_2(path, os.O_WRONLY | os.O_TRUNC) >= 0  # what a fortified program calls
        os.open(at("source"), os.O_RDWR | os.O_CREAT)  # is there: makes nothing
        """,
        before={"a": b"o" * 100, "source": bytes(range(256)) * 400},
    )

    writes = [op for op in trace.ops if op.kind == "write"]
    assert [op.length for op in writes[:6]] == [5, 6, 6, 75001, 8, 28]
    assert writes[3].data == b"p" * 70000 + b"w" + b"v" * 5000
    assert writes[4].offset == 84001
    assert kinds(trace)[-3:] == ["create", "write", "truncate"]


def test_of_a_short_write_only_what_was_written_is_recorded(run):
    trace = run("""
        fd = new("a")
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        assert os.pwrite(fd, b"0123456789abcdef", (1 << 20) - 10) == 10
    """)

    assert trace.ops[-1].data == b"0123456789"


def test_a_failed_call_is_not_recorded(run):
    trace = run(
        """
        fd = os.open(at("a"), os.O_RDONLY)
        for call in (
            lambda: os.write(fd, b"x"),
            lambda: os.open(at("a"), os.O_CREAT | os.O_EXCL),
            lambda: os.open(at("no/file"), os.O_CREAT),
            lambda: os.mkdir(at("a")),
            lambda: os.rename(at("b"), at("c")),
            lambda: os.unlink(at("b")),
            lambda: os.rmdir(root),
            lambda: os.ftruncate(fd, 1),
        ):
            try:
                call()
            except OSError as failure:
                assert failure.errno
            else:
                raise AssertionError("it did not fail")
        """,
        before={"a": b"x"},
    )

    assert trace.ops == []


# --- names -------------------------------------------------------------------------------------------


def test_a_synced_file_vanishes_if_its_folder_was_never_synced(run):
    trace = run("""
        fd = new("a", b"x")
        os.fsync(fd)
        ack("file")
        sync_folder()
        ack("folder")
    """)
    images = all_images(trace)

    assert {image.read("a") for image in images if image.acknowledged == ("file",)} == {None, b"x"}
    assert {image.read("a") for image in images if image.acknowledged == ("file", "folder")} == {b"x"}


def test_a_name_can_land_before_its_bytes(run):
    trace = run("""
        new("a", b"x")
        sync_folder()
    """)

    assert {image.read("a") for image in final_images(trace)} == {b"", b"\0", b"x"}


def test_a_rename_is_undone_or_done_and_never_half_until_its_folder_is_synced(run):
    trace = run(
        """
        fd = new("new", b"2")
        os.fsync(fd)
        sync_folder()
        ack("written")
        os.rename(at("new"), at("CURRENT"))
        ack("renamed")
        sync_folder()
        ack("synced")
        """,
        before={"CURRENT": b"1"},
    )
    found = {}
    for image in all_images(trace):
        state = image.read("CURRENT"), image.read("new")
        found.setdefault(len(image.acknowledged), set()).add(state)

    assert found[2] == {(b"1", b"2"), (b"2", None)}
    assert found[3] == {(b"2", None)}


def test_a_rename_between_folders_never_loses_both_names(run):
    trace = run("""
        os.mkdir(at("from"))
        os.mkdir(at("to"))
        os.fsync(new("from/a", b"x"))
        sync_folder("from")
        sync_folder()
        ack("made")
        os.rename(at("from/a"), at("to/b"))
        ack("moved")
        sync_folder("to")
        ack("synced")
        sync_folder("from")
        ack("both")
    """)
    found = {}
    for image in all_images(trace):
        names = tuple(sorted(path for path in image.files if image.read(path) == b"x"))
        found.setdefault(len(image.acknowledged), set()).add(names)

    assert found[2] == {("from/a",), ("to/b",), ("from/a", "to/b")}
    assert found[3] == {("to/b",), ("from/a", "to/b")}
    assert found[4] == {("to/b",)}


def test_a_synced_removal_of_a_moved_file_brings_its_new_name(run):
    trace = run("""
        os.mkdir(at("from"))
        os.mkdir(at("to"))
        os.fsync(new("from/a", b"x"))
        sync_folder("from")
        sync_folder()
        new("to/first")
        os.rename(at("from/a"), at("to/b"))
        sync_folder("from")
    """)

    for image in final_images(trace):
        assert sorted(image.files) == ["to/b", "to/first"]


def test_names_of_one_folder_land_in_their_order(run):
    trace = run("""
        for name in "abc":
            new(name)
        os.unlink(at("a"))
    """)

    found = {tuple(sorted(image.files)) for image in final_images(trace, random_count=60)}

    assert found == {(), ("a",), ("a", "b"), ("a", "b", "c"), ("b", "c")}


def test_a_folder_that_was_never_synced_vanishes_with_what_is_in_it(run):
    trace = run("""
        os.mkdir(at("d"))
        os.fsync(new("d/a", b"x"))
        sync_folder("d")
    """)

    assert {(image.folders, image.read("d/a")) for image in final_images(trace)} == {
        ((), None),
        (("d",), b"x"),
    }


def test_links_folders_and_nameless_files_are_replayed(run):
    trace = run(
        """
        os.link(at("old"), at("linked"))
        os.rename(at("old"), at("linked"))  # of two names of one file: does nothing
        os.mkdir(at("d"))
        here = os.open(at("d"), os.O_RDONLY)
        fd = os.open("inner", os.O_WRONLY | os.O_CREAT, dir_fd=here)
        os.write(fd, b"inner")
        os.rename("inner", "moved", src_dir_fd=here, dst_dir_fd=here)
        os.rename(at("d"), at("e"))
        os.write(fd, b" and more")
        os.mkdir("f", dir_fd=here)
        os.rmdir(at("e/f/"))
        nameless = os.open(root, os.O_TMPFILE | os.O_RDWR)
        os.write(nameless, b"named late")
        assert libc.linkat(-100, b"/proc/self/fd/%d" % nameless, -100, at("late").encode(), 0x400) == 0
        for n in range(20):  # an inode's number is given out again
            os.close(new("short-lived", b"%d" % n))
            os.remove(at("short-lived"))
        fd = new("gone", b"x")
        os.unlink(at("gone"))
        os.write(fd, b"y")
        """,
        before={"old": b"old"},
    )

    whole = next(image for image in final_images(trace) if image.label == "all that was written")

    assert {path: bytes(content) for path, content in whole.files.items()} == {
        "old": b"old",
        "linked": b"old",
        "e/moved": b"inner and more",
        "late": b"named late",
    }


# --- what an image is --------------------------------------------------------------------------------


def test_an_image_on_disk_has_the_bytes_links_and_holes_of_the_image(run, tmp_path):
    trace = run("""
        os.mkdir(at("d"))
        fd = new("d/sparse", b"head")
        os.pwrite(fd, b"tail", 1 << 30)
        os.ftruncate(fd, (1 << 30) + 5000)
        os.link(at("d/sparse"), at("linked"))
        new("empty")
    """)
    whole = next(image for image in final_images(trace) if image.label == "all that was written")

    whole.write_to(tmp_path / "disk")

    status = (tmp_path / "disk/d/sparse").stat()
    assert status.st_size == (1 << 30) + 5000
    assert status.st_blocks * 512 < 1 << 20
    assert os.path.samefile(tmp_path / "disk/d/sparse", tmp_path / "disk/linked")
    assert (tmp_path / "disk/empty").read_bytes() == b""
    with (tmp_path / "disk/linked").open("rb") as file:
        assert file.read(5) == b"head\0"
        file.seek(1 << 30)
        assert file.read() == b"tail" + bytes(4996)


def test_an_image_is_given_once_and_again_only_when_more_was_acknowledged(run):
    trace = run("""
        fd = new("a", b"x" * 5000)
        os.fsync(fd)
        sync_folder()
        ack("a")
        ack("b")
    """)
    images = all_images(trace)
    states = [(image.read("a"), len(image.acknowledged)) for image in images]

    assert len(states) == len(set(states))
    assert [acknowledged for data, acknowledged in states if data == b"x" * 5000] == [0, 1, 2]


def test_the_same_seed_gives_the_same_images(run):
    trace = run("""
        for name in "abc":
            fd = new(name, os.urandom(3000))
            os.write(fd, os.urandom(3000))
    """)

    assert [image.fingerprint() for image in all_images(trace)] == [
        image.fingerprint() for image in all_images(trace)
    ]


def test_a_large_write_is_torn_at_torn_max_places(run):
    trace = run('new("a", b"x" * 5_000_000)')

    assert sum(", torn after" in image.label for image in final_images(trace, torn_max=7)) == 7


# --- what cannot be replayed -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ('mmap.mmap(os.open(at("a"), os.O_RDWR), 10)', "a: mapped shared and writable"),
        ('os.rename(os.environ["POWERLOSS_ACK"], at("b"))', "b: moved in from outside the root"),
        ('os.rename(at("a"), root + ".out")', "a: moved out of the root"),
        (
            'libc.renameat2(-100, at("a").encode(), -100, at("z").encode(), 2)',
            "z: renamed with RENAME_EXCHANGE",
        ),
        ('os.symlink("a", at("b"))', "is neither a file nor a folder"),
        (
            """
            libc.fopen.restype = ctypes.c_void_p
            stream = ctypes.c_void_p(libc.fopen(at("a").encode(), b"w"))
            libc.fputs(b"unseen", stream)
            libc.fflush(stream)
            """,
            "did not see all that was done to a$",
        ),
        (
            """
            mkdirat = {"x86_64": 258, "aarch64": 34}[os.uname().machine]
            libc.syscall(mkdirat, -100, at("d").encode(), 0o700)
            """,
            "did not see all that was done to d$",
        ),
    ],
    ids=["map", "moved in", "moved out", "exchange", "symlink", "stdio", "syscall"],
)
def test_a_change_that_cannot_be_replayed_is_refused_loudly(run, script, why):
    with pytest.raises(NotReplayable, match=why):
        run(script, before={"a": b"0123456789", "z": b""})


def test_a_private_or_read_only_map_is_welcome(run):
    trace = run(
        """
        fd = os.open(at("a"), os.O_RDWR)
        mmap.mmap(fd, 10, mmap.MAP_PRIVATE)[0] = 1
        mmap.mmap(fd, 10, prot=mmap.PROT_READ)
        """,
        before={"a": b"0123456789"},
    )

    assert trace.ops == []


def test_a_program_that_fails_is_reported_with_its_stderr(run):
    with pytest.raises(RecordingFailed, match="status 3:\nwhat went wrong"):
        run('sys.stderr.write("what went wrong"); sys.exit(3)')


def test_the_recorder_refuses_to_lie_under_its_root(tmp_path):
    with pytest.raises(ValueError, match="cannot lie under the root"):
        record([sys.executable], tmp_path, workdir=tmp_path / "inner")


# --- many threads and processes ----------------------------------------------------------------------


def test_the_ops_of_two_processes_come_in_the_order_in_which_they_happened(run):
    trace = run("""
        child = subprocess.Popen([sys.executable, "-c", '''if True:
            import os, sys
            fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
            for line in sys.stdin:
                os.write(fd, line.encode())
                print(line, end="", flush=True)
        ''', at("child")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        fd = new("parent")
        for n in range(20):
            os.write(fd, b"%d\\n" % n)
            child.stdin.write(f"{n}\\n")
            child.stdin.flush()
            child.stdout.readline()
            ack(str(n))
        child.stdin.close()
        assert child.wait() == 0
    """)
    told = [(op.path, op.data) for op in trace.ops if op.kind == "write" and op.length]
    written = [(name, b"%d\n" % n) for n in range(20) for name in ("parent", "child")]

    assert told == written
    assert len({op.pid for op in trace.ops}) == 2
    for image in final_images(trace):
        assert image.acknowledged == tuple(map(str, range(20)))


def test_large_writes_of_many_threads_and_processes_do_not_interleave(run):
    trace = run("""
        def work(name):
            fd = new(name)
            for n in range(10):
                os.writev(fd, [name.encode(), b"%06d" % n, os.urandom(200_000)])
                os.fdatasync(fd)

        children = [os.fork() for _ in range(2)]
        threads = [threading.Thread(target=work, args=(f"{os.getpid()}-{n}",)) for n in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for child in filter(None, children):
            os.waitpid(child, 0)
    """)

    # The second fork happens in two processes: four in all, each with two threads of ten writes.
    assert kinds(trace).count("write") == 4 * 2 * 10
    assert kinds(trace).count("fdatasync") == 4 * 2 * 10


# --- LMDB --------------------------------------------------------------------------------------------

LMDB_WRITER = """
import lmdb

env = lmdb.open(at("index"), subdir=True, map_size=1 << 30)
env.sync(True)
sync_folder("index")
sync_folder()
ack("opened")
for n in range(6):
    with env.begin(write=True) as txn:
        for m in range(20):
            txn.put(b"key %d %d" % (n, m), b"%d" % n * 300)
        if n:
            txn.delete(b"key %d 0" % (n - 1))
    ack(f"key {n} 1")
env.close()
"""

# Beside the test: LMDB on a broken disk may well read behind the end of its file, and die of it.
LMDB_READER = """
import sys
import lmdb

for line in sys.stdin:
    path, *keys = line.rstrip("\\n").split("\\t")
    try:
        with lmdb.open(path, subdir=True, map_size=1 << 30) as env, env.begin() as txn:
            lost = [key for key in keys if txn.get(key.encode()) is None]
            rows = sum(1 for _ in txn.cursor())
            torn = rows != txn.stat()["entries"]
        with lmdb.open(path, subdir=True, map_size=1 << 30) as env, env.begin(write=True) as txn:
            txn.put(b"the next writer", b"goes on")
        print(f"lost {lost}" if lost else "torn" if torn else "ok", flush=True)
    except lmdb.Error as failure:
        print(type(failure).__name__, flush=True)
"""


class Reader:
    """Asks LMDB_READER, and starts another one when it has died."""

    process = None

    def verdict(self, path, keys):
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, "-c", LMDB_READER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        self.process.stdin.write("\t".join([str(path), *keys]) + "\n")
        self.process.stdin.flush()
        verdict = self.process.stdout.readline().rstrip("\n")
        if not verdict:
            self.close()
        return verdict or "died"

    def close(self):
        if self.process is not None:
            self.process.communicate()
            self.process = None


@pytest.fixture
def reader():
    reader = Reader()
    yield reader
    reader.close()


def lmdb_verdicts(trace, reader, directory):
    """Give (image, what the reader says of it)."""
    for image in all_images(trace, torn_max=8, random_count=6):
        disk = directory / "disk"
        image.write_to(disk)
        keys = [line for line in image.acknowledged if line != "opened"]
        verdict = reader.verdict(disk / "index", keys)
        shutil.rmtree(disk)
        yield image, verdict


def test_lmdb_opens_and_has_each_acknowledged_key_in_every_image(run, reader, tmp_path):
    trace = run(LMDB_WRITER)
    assert sum(op.kind == "fdatasync" for op in trace.ops) >= 6
    assert sum(op.durable for op in trace.ops) >= 6  # the meta pages

    count = 0
    for image, verdict in lmdb_verdicts(trace, reader, tmp_path):
        # Before its first sync the environment may be half there: that is no promise of LMDB's.
        if image.acknowledged:
            assert verdict == "ok", (image.at, image.label)
            count += 1
    assert count > 100


@pytest.mark.parametrize("promise", ["fdatasync", "dsync"])
def test_lmdb_loses_keys_on_a_disk_that_breaks_a_promise(run, reader, tmp_path, promise):
    # The proof that the test above can fail.
    trace = run(LMDB_WRITER).weakened(promise, path="index/data.mdb")

    assert any(
        verdict != "ok"
        for image, verdict in lmdb_verdicts(trace, reader, tmp_path)
        if len(image.acknowledged) > 1
    )


def test_a_folder_that_was_never_synced_can_lose_a_whole_lmdb_environment(run, reader, tmp_path):
    trace = run(LMDB_WRITER).weakened("fsync", path="index")

    assert any(
        verdict.startswith("lost")
        for image, verdict in lmdb_verdicts(trace, reader, tmp_path)
        if image.acknowledged
    )
