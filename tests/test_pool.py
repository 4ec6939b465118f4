"""The pool of worker processes: what a codec may do to it, limits, the queue, the cache."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from hilum.dicom.layout import PIXEL_DATA, PixelLayout
from hilum.errors import BadDicom, BadQuery, Busy, Unsupported
from hilum.pixels import pool as module
from hilum.pixels import transcode
from hilum.pixels.pool import Pool

LITTLE, JPEG_2000 = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.4.90"
WORK = "poolwork:functions"
SECONDS_MAX = 1.0
MEMORY_MAX = 64 << 20


@pytest.fixture(scope="module", autouse=True)
def workers_find_the_work() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        yield


@pytest.fixture(scope="module")
def pool(workers_find_the_work: None) -> Iterator[Pool]:
    with Pool(1, SECONDS_MAX, MEMORY_MAX, 1 << 20, functions=WORK) as opened:
        yield opened


def still_works(pool: Pool) -> bool:
    return pool.submit("echo", b"still").result(30) == b"still"


def is_alive(process: int) -> bool:
    """A zombie is no longer one of ours."""
    try:
        state = Path(f"/proc/{process}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def gone(process: int, seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while is_alive(process) and time.monotonic() < end:
        time.sleep(0.02)
    return not is_alive(process)


# --- What a task may do ------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 1 << 16, 5 << 20])
def test_bytes_go_there_and_back_whatever_their_number(pool, size):
    data = os.urandom(size)
    assert pool.submit("echo", data).result(30) == data


def test_arguments_keep_their_order_and_several_buffers_arrive(pool):
    assert pool.submit("length", b"a" * 100_000, b"b" * 10, b"").result(30) == b"100010"


def test_a_codec_that_crashes_costs_one_request(pool):
    process = pool.submit("process").result(30)
    with pytest.raises(BadDicom, match=r"crashed over these pixels \(SIGSEGV\)"):
        pool.submit("crash").result(30)
    assert still_works(pool)
    assert pool.submit("process").result(30) != process


def test_a_codec_that_hangs_costs_one_request(pool):
    with pytest.raises(Unsupported, match="more than 1 seconds"):
        pool.submit("hang").result(30)
    assert still_works(pool)


def test_a_task_gets_its_whole_time_each_time(pool):
    for _ in range(3):
        pool.submit("sleep", 0.5 * SECONDS_MAX).result(30)


def test_a_worker_may_be_idle_for_longer_than_a_task_may_take(pool):
    process = pool.submit("process").result(30)
    time.sleep(1.3 * SECONDS_MAX)
    assert pool.submit("process").result(30) == process


def test_a_task_that_takes_too_much_memory_costs_one_request(pool):
    process = pool.submit("process").result(30)
    with pytest.raises(Unsupported, match="more than 67,108,864 bytes of memory"):
        pool.submit("take", 2 * MEMORY_MAX).result(30)
    assert pool.submit("take", MEMORY_MAX // 2).result(30) == str(MEMORY_MAX // 2).encode()
    assert pool.submit("process").result(30) == process


@pytest.mark.parametrize("how", ["kill", "leave"])
def test_a_worker_that_is_ended_from_outside_is_no_fault_of_the_pixels(pool, how):
    with pytest.raises(Busy, match="try again"):
        pool.submit(how).result(30)
    assert still_works(pool)


def test_a_worker_does_not_follow_the_servers_signals(pool):
    process = int(pool.submit("process").result(30))
    os.kill(process, signal.SIGINT)
    os.kill(process, signal.SIGTERM)
    assert int(pool.submit("process").result(30)) == process


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("bad", BadDicom, "no end marker"),
        ("query", BadQuery, "no such window"),
        ("unsupported", Unsupported, "no decoder"),
        ("wrong", BadDicom, "ZeroDivisionError: by zero"),
    ],
)
def test_an_error_comes_back_as_what_it_was(pool, name, kind, words):
    with pytest.raises(kind, match=words) as caught:
        pool.submit(name).result(30)
    if name == "bad":
        assert caught.value.tag == 0x7FE00010


def test_what_can_not_be_sent_is_an_error_of_the_one_who_asks(pool):
    with pytest.raises(TypeError):
        pool.submit("echo", threading.Lock()).result(30)
    assert still_works(pool)


def test_a_worker_can_write_no_file(pool, tmp_path):
    with pytest.raises(BadDicom, match="OSError"):
        pool.submit("write", str(tmp_path / "file")).result(30)


def test_a_worker_has_one_socket_and_nothing_of_ours(workers_find_the_work):
    with socket.socket() as one, open(__file__, "rb") as file, Pool(1, functions=WORK) as started:
        one.listen()
        assert not file.closed
        assert started.submit("sockets").result(30) == b"1"


# --- Beginning and end -------------------------------------------------------


def test_workers_end_with_the_pool(workers_find_the_work):
    opened = Pool(2, functions=WORK)
    processes = {int(opened.submit("process").result(30)) for _ in range(8)}
    opened.close()
    assert all(gone(process) for process in processes)
    with pytest.raises(Busy, match="stopping"):
        opened.submit("echo", b"")


def test_closing_does_not_wait_for_what_hangs(workers_find_the_work):
    opened = Pool(1, seconds_max=600, functions=WORK)
    running, waiting = opened.submit("hang"), opened.submit("echo", b"")
    while not running.running():
        time.sleep(0.01)
    opened.close()
    for future in (running, waiting):
        with pytest.raises(Busy):
            future.result(0)


@pytest.mark.parametrize("busy", [False, True])
def test_workers_end_when_the_server_is_killed(workers_find_the_work, busy):
    code = (
        "import sys, time\n"
        "from hilum.pixels.pool import Pool\n"
        "pool = Pool(1, 2.0, functions='poolwork:functions')\n"
        "print(pool.submit('process').result().decode(), flush=True)\n"
        f"pool.submit({('hang' if busy else 'process')!r})\n"
        "time.sleep(0.2); print('now', flush=True); time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        process = int(server.stdout.readline())
        assert server.stdout.readline() == "now\n"
        assert is_alive(process)
        server.kill()
    assert gone(process)


def test_a_worker_that_can_not_start_is_told_and_tried_again(workers_find_the_work):
    with Pool(1, functions="poolwork:nothing") as broken, pytest.raises(Busy, match="try again"):
        broken.submit("echo", b"").result(30)


# --- The queue ---------------------------------------------------------------


def test_a_full_queue_is_busy_and_takes_more_when_it_has_room(workers_find_the_work):
    with Pool(1, functions=WORK) as opened:
        futures = [opened.submit("sleep", 0.5)]
        with pytest.raises(Busy, match="wait to be decoded"):
            futures.extend(opened.submit("echo", b"1") for _ in range(1000))
        assert opened.waiting_count == module._WAITING_PER_WORKER
        assert [future.result(30) for future in futures[1:]] == [b"1"] * (len(futures) - 1)
        assert still_works(opened)


def test_waiting_bytes_are_bounded_but_one_task_always_fits(workers_find_the_work, monkeypatch):
    monkeypatch.setattr(module, "_WAITING_BYTES_MAX", 1000)
    with Pool(1, functions=WORK) as opened:
        futures = [opened.submit("sleep", 0.5)]
        while opened.waiting_count:
            time.sleep(0.01)
        futures.append(opened.submit("echo", b"x" * 5000))
        with pytest.raises(Busy):
            opened.submit("echo", b"x")
        assert futures[1].result(30) == b"x" * 5000


def test_what_is_cancelled_while_it_waits_is_never_done(workers_find_the_work):
    with Pool(1, functions=WORK) as opened:
        first, second = opened.submit("sleep", 0.3), opened.submit("kill")
        assert second.cancel()
        first.result(30)
        assert still_works(opened)


def test_map_keeps_the_order_and_waits_where_submit_refuses(workers_find_the_work):
    taken = []

    def calls():
        for n in range(200):
            taken.append(n)
            yield (str(n).encode(),)

    with Pool(2, functions=WORK) as opened:
        results = opened.map("echo", calls())
        assert next(results) == b"0"
        assert len(taken) <= 5  # it looks a few frames ahead, not all
        assert list(results) == [str(n).encode() for n in range(1, 200)]


def test_map_ends_with_the_first_failure_and_leaves_nothing_behind(workers_find_the_work):
    with Pool(1, functions=WORK) as opened:
        with pytest.raises(BadDicom, match="no end marker"):
            list(opened.map("bad", [(), (), ()]))
        assert still_works(opened)


def test_many_threads_and_an_event_loop_share_a_pool(workers_find_the_work):
    with Pool(2, functions=WORK) as opened:
        wrong = []

        def ask(n: int) -> None:
            for at in range(20):
                data = f"{n} {at}".encode()
                if opened.submit("echo", data).result(30) != data:
                    wrong.append(data)

        threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()

        async def asked() -> list[bytes]:
            futures = [asyncio.wrap_future(opened.submit("echo", bytes([n]))) for n in range(20)]
            return await asyncio.gather(*futures)

        assert asyncio.run(asked()) == [bytes([n]) for n in range(20)]
        for thread in threads:
            thread.join()
        assert wrong == []


# --- The cache ---------------------------------------------------------------


def test_a_result_is_kept_under_its_key(pool):
    assert pool.cached("a") is None
    first = pool.submit("process", key="a").result(30)
    with pytest.raises(BadDicom):
        pool.submit("crash").result(30)
    assert pool.submit("process", key="a").result(30) == first == pool.cached("a")
    assert pool.submit("process", key="b").result(30) != first


def test_an_error_is_not_kept(pool):
    with pytest.raises(BadDicom):
        pool.submit("bad", key="error").result(30)
    assert pool.cached("error") is None


def test_what_was_used_last_stays_and_bytes_are_bounded(workers_find_the_work):
    with Pool(1, cache_bytes=10 * (1000 + module._ENTRY_BYTES), functions=WORK) as opened:
        for n in range(10):
            opened.submit("echo", bytes([n]) * 1000, key=n).result(30)
        assert opened.cached(0) == bytes(1000)
        opened.submit("echo", b"x" * 1000, key=10).result(30)
        assert opened.cached(1) is None  # 0 was used after it
        assert [n for n in range(11) if opened.cached(n) is not None] == [0, *range(2, 11)]
        opened.submit("echo", b"x" * 100_000, key="large").result(30)
        assert opened.cached("large") is None
        assert opened.cached(10) is not None


# --- With real codecs --------------------------------------------------------


def test_a_worker_decodes_encodes_and_renders():
    from hilum.pixels.render import Attributes, Rendering, render

    frame = np.arange(64 * 64, dtype="<u2").reshape(64, 64)
    layout = PixelLayout(PIXEL_DATA, 1, 64, 64, 1, 16, 16, 0, 0, "MONOCHROME2")
    rendering = Rendering(window=(2000, 4000, "LINEAR"))
    with Pool(1) as opened:
        encoded = opened.submit("frame", frame.tobytes(), layout, LITTLE, JPEG_2000).result(30)
        assert encoded == transcode.frame(frame.tobytes(), layout, LITTLE, JPEG_2000)
        assert opened.submit("frame", encoded, layout, JPEG_2000, LITTLE).result(30) == frame.tobytes()
        shown = opened.submit("render", [frame.tobytes()], layout, LITTLE, Attributes(), rendering).result(30)
        assert shown == render([frame.tobytes()], layout, LITTLE, Attributes(), rendering)
        with pytest.raises(BadDicom, match="no JPEG 2000 codestream"):
            opened.submit("frame", b"nonsense", layout, JPEG_2000, LITTLE).result(30)


def test_the_pool_loads_no_codec_in_its_own_process():
    code = (
        "import sys, hilum.pixels.pool\n"
        "assert not {'imagecodecs', 'PIL', 'numpy', 'pydicom'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
