"""Serve a store on a free port, say what to try, and end cleanly at Ctrl-C: the last part of `make demo`.

    python tools/demo.py STORE                  until Ctrl-C
    python tools/demo.py STORE --check          ask the server a few questions, then end; 1 if one goes wrong
    python tools/demo.py STORE --viewer ohif    with a viewer, as `hilum serve` has it

Needs nothing but Hilum and Python.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator

HILUM = os.path.join(os.path.dirname(sys.executable), "hilum")
STOP_SECONDS = 60
ASK_SECONDS = 60


def main() -> int:
    store, *options = sys.argv[1:]
    try:
        with own_terminal():
            return demonstrate(
                store, [word for word in options if word != "--check"], checks="--check" in options
            )
    except KeyboardInterrupt:
        print("\nStopped.")
        return 0


def demonstrate(store: str, options: list[str], *, checks: bool) -> int:
    with server(store, options) as (address, process):
        curl, find = tries(address, store)
        print(words(address, curl, find, with_viewer="--viewer" in options), flush=True)
        if checks:
            return check(address, [curl, find])
        # Both get the signal of a Ctrl-C. It ends by itself only when something is wrong with it.
        return process.wait()


def words(address: str, curl: list[str], find: list[str], *, with_viewer: bool) -> str:
    """What a person wants to know now."""
    viewer = f"\n    viewer      {address}/ohif/" if with_viewer else ""
    return f"""
Hilum serves these studies. Ctrl-C ends it.

    page        {address}/{viewer}
    DICOMweb    {address}/dicom-web
    all of it   {address}/swagger/

Try, in another terminal:

    {shlex.join(curl)}
    {shlex.join(find)}
"""


def tries(address: str, store: str) -> tuple[list[str], list[str]]:
    """Two commands that find something."""
    query = "StudyDescription=*&includefield=StudyDescription&limit=3"
    curl = ["curl", f"{address}/dicom-web/studies?{query}"]
    return curl, [os.path.relpath(HILUM), "find", "series", "Modality=CT", "--limit", "5", "--store", store]


@contextlib.contextmanager
def server(store: str, options: list[str]) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`hilum serve` on a free port: its address and its process."""
    command = [
        HILUM,
        "serve",
        "--store",
        store,
        "--http",
        "127.0.0.1:0",
        "--json",
        "--set",
        "log.requests=false",
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HILUM_")}
    # SIGTERM of make or of a shell is a wish to end, as Ctrl-C is.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    try:
        first = process.stdout.readline()
        if not first:
            sys.exit(process.wait() or 1)
        yield json.loads(first)["url"], process
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        process.terminate()
        status = process.wait(STOP_SECONDS)
        if status:
            sys.exit(f"the server ended with {status}")


@contextlib.contextmanager
def own_terminal() -> Iterator[None]:
    """Have Ctrl-C come here and not to make, which would call itself failed whatever we do."""
    if not sys.stdin.isatty() or os.tcgetpgrp(0) != os.getpgrp():
        yield
        return
    before = os.getpgrp()
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # else handing the terminal over stops us
    os.setpgid(0, 0)
    os.tcsetpgrp(0, os.getpid())
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # the terminal may have gone
            os.tcsetpgrp(0, before)


# --- Questions --------------------------------------------------------------------------


def check(address: str, commands: list[list[str]]) -> int:
    """Ask for a list, one frame, one picture and the page; run the commands that were shown."""
    wrong = 0
    for question, ask in (
        ("the list of studies", ask_studies),
        ("a frame and a picture of it", ask_frame),
        ("the page and all it is made of", ask_pages),
    ):
        wrong += report(question, lambda ask=ask: ask(address))
    for command in commands:
        if shutil.which(command[0]):
            wrong += report(shlex.join(command), lambda command=command: run(command))
    return 1 if wrong else 0


def report(question: str, ask: Callable[[], str]) -> int:
    try:
        found = ask()
    except (AssertionError, OSError, ValueError, LookupError) as failure:
        print(f"WRONG  {question}: {failure!r}")
        return 1
    print(f"ok     {question}: {found}")
    return 0


def ask_studies(address: str) -> str:
    studies = json.loads(get(f"{address}/dicom-web/studies"))
    counted = json.loads(get(f"{address}/dicom-web/studies/count"))["count"]
    assert len(studies) == counted > 0, (len(studies), counted)
    return f"{counted} studies"


def ask_frame(address: str) -> str:
    query = "Rows=128&Columns=128&Modality=CT&includefield=Rows,Columns,BitsAllocated"
    (found, *_) = json.loads(get(f"{address}/dicom-web/instances?{query}"))
    url = found["00081190"]["Value"][0]
    frame = get(f"{url}/frames/1", "application/octet-stream")
    assert len(frame) == 128 * 128 * 2, len(frame)
    picture = get(f"{url}/frames/1/rendered", "image/jpeg")
    assert picture.startswith(b"\xff\xd8\xff"), picture[:4]
    return f"{len(frame):,} bytes, and {len(picture):,} as JPEG"


def ask_pages(address: str) -> str:
    for path, needed in (
        ("/", b"<title>Hilum</title>"),
        ("/pages/page.js", b"import "),
        ("/pages/page.css", b":root"),
        ("/swagger/", b"swagger-ui-bundle.js"),
        ("/openapi.yaml", b"openapi: 3.1"),
        ("/healthz", b"ok"),
    ):
        assert needed in get(address + path), path
    return "there"


def get(url: str, accept: str = "*/*") -> bytes:
    request = urllib.request.Request(url, headers={"Accept": accept})
    # No proxy that the environment names has to do with this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=ASK_SECONDS) as answer:
        body: bytes = answer.read()
    return body


def run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=ASK_SECONDS, check=False)
    assert done.returncode == 0, done.stderr[-300:]
    assert done.stdout.strip()
    return f"{len(done.stdout):,} characters"


if __name__ == "__main__":
    sys.exit(main())
