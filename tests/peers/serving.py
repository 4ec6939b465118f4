"""Starts `hilum serve` as a user would: takes a store's folder and options; gives its address."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

START_SECONDS = 1000  # a viewer may have to be fetched first
STOP_SECONDS = 60


class NotStarted(Exception):
    """The server ended before it was ready; the words are its own."""


@contextmanager
def server(store: Path, *options: str) -> Iterator[str]:
    """A server on a free port, until the block ends. Its log is beside the store."""
    command = [sys.executable, "-m", "hilum", "serve", "--http", "127.0.0.1:0", "--store", str(store)]
    log = store.parent / "server.log"
    # A variable of the tests is no setting, and a setting of the tester's none of theirs.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HILUM_")}
    with open(log, "wb") as errors:
        process = subprocess.Popen(
            [*command, "--create", "--json", *options],
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment,
            cwd=store.parent,
        )
    assert process.stdout is not None
    try:
        with process.stdout as lines:
            first = lines.readline()
            if not first:
                process.wait(STOP_SECONDS)
                raise NotStarted(log.read_text(encoding="utf-8", errors="replace")[-2000:])
            yield json.loads(first)["url"]
            process.send_signal(signal.SIGTERM)
            assert process.wait(STOP_SECONDS) == 0, "the server did not end cleanly"
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
