"""Memory of an import stays bounded, however a file is made up."""

import os
import struct
import subprocess
import sys

import pytest
from makers import make_object

MEGABYTE = 1 << 20
BOUND = 300 * MEGABYTE  # RssAnon + RssShmem of an import

_PROGRAM = """
import re, sys, threading, time
from hilum import api

def resident():
    with open("/proc/self/status") as file:
        return 1024 * sum(int(kb) for kb in re.findall(r"Rss(?:Anon|Shmem):\\s+(\\d+) kB", file.read()))

peak, done = 0, False
def watch():
    global peak
    while not done:
        peak = max(peak, resident())
        time.sleep(0.005)

thread = threading.Thread(target=watch)
thread.start()
with api.open(sys.argv[1], create=True) as store:
    uid = store.ingest(sys.argv[2]).uid
    done = True
    thread.join()
    size = sum(len(piece) for piece in store.chunks(uid))
print(peak, size)
"""


@pytest.mark.parametrize(("values", "size"), [(60, 20 * MEGABYTE), (2, 600 * MEGABYTE)])
def test_many_or_large_bulk_values_in_one_file_are_never_all_in_memory(tmp_path, values, size):
    path = tmp_path / "large.dcm"
    with open(path, "wb") as file:
        file.write(make_object("1.2.3", "1.2", "1.1", pixels=b""))
        for number in range(values):
            file.write(struct.pack("<HH2sHI", 0x7FE1, 0x1010 + number, b"OB", 0, size))
            file.seek(size, os.SEEK_CUR)  # zeros that take no disk
        file.truncate(file.tell())

    answer = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(tmp_path / "store"), str(path)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout.split()

    assert int(answer[0]) < BOUND
    assert int(answer[1]) == path.stat().st_size
