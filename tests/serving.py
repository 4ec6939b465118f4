"""Starts `hilum serve` as a user would, in a process of its own, and ends it.

with server(store_folder) as served:
    httpx2.get(served.url + "/healthz")
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

READY_SECONDS = 60


class Served(NamedTuple):
    """A server that answers."""

    url: str
    process: subprocess.Popen[str]

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait; return the exit status."""
        self.process.send_signal(number)
        return self.process.wait(READY_SECONDS)


def environment() -> dict[str, str]:
    """The one of this process without settings of Hilum."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith("HILUM_")}
    source = str(Path(__file__).resolve().parent.parent / "src")
    return {**kept, "PYTHONPATH": os.pathsep.join(filter(None, (source, kept.get("PYTHONPATH"))))}


@contextmanager
def server(store: Path, *words: object, cwd: Path | None = None) -> Iterator[Served]:
    """Serve a store on a free port until the `with` ends."""
    command = [
        sys.executable,
        "-m",
        "hilum",
        "serve",
        "--json",
        "--http",
        "127.0.0.1:0",
        "--store",
        str(store),
    ]
    with subprocess.Popen(
        [*command, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        cwd=cwd or store.parent,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            line = process.stdout.readline()  # the server ends, or says that it is ready
            assert line, process.stderr.read()
            yield Served(json.loads(line)["url"], process)
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(READY_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()
            process.stdout.close()
            process.stderr.close()
