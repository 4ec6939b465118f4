"""The full-size runs, side by side with their yardsticks; writes RESULTS.md.

    python benchmarks/run.py                        every row, under 15 minutes on 2 cores
    python benchmarks/run.py header import-small    these rows; the others stay as they were
    python benchmarks/run.py --quick                a tenth of the sizes, to see that it works; keeps nothing
    python benchmarks/run.py --cold                 also with a page cache that was dropped (root only)

Folders: --ram on a RAM file system (/dev/shm), --disk on a disk (build/bench of the project). Each run makes
a folder of its own in both and removes it. Exit status: 0 whether or not figures are reached, 1 when a
result is wrong.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import measure
import results
import rows_engine
import rows_web
from results import Outcome, number
from rows import HERE, Bench

ROWS: dict[str, Callable[[Bench], Outcome]] = {**rows_engine.ROWS, **rows_web.ROWS}
NEEDS_RAM = rows_engine.NEEDS_RAM
# Why a required figure is not reached: what a profile showed. By row, or by "row: what was measured".
REASONS: dict[str, str] = {**rows_engine.REASONS, **rows_web.REASONS}


@contextmanager
def _folders(ram: str, disk: str) -> Iterator[tuple[str, str]]:
    """One folder of our own in each place, gone at the end."""
    os.makedirs(disk, exist_ok=True)
    in_ram = tempfile.mkdtemp(prefix="hilum-bench-", dir=ram) if os.path.isdir(ram) else ""
    on_disk = tempfile.mkdtemp(prefix="run-", dir=disk)
    try:
        yield in_ram, on_disk
    finally:
        for path in filter(None, (in_ram, on_disk)):
            shutil.rmtree(path, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure Hilum beside its yardsticks.")
    parser.add_argument(
        "rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)}; all when none is named"
    )
    parser.add_argument(
        "--quick", action="store_true", help="a tenth of the sizes; RESULTS.md stays as it is"
    )
    parser.add_argument("--cold", action="store_true", help="also with a dropped page cache; needs root")
    parser.add_argument("--ram", default="/dev/shm", metavar="DIR", help="on a RAM file system")
    disk = os.path.join(os.path.dirname(HERE), "build", "bench")
    parser.add_argument("--disk", default=disk, metavar="DIR", help="on a disk")
    options = parser.parse_args()
    unknown = [name for name in options.rows if name not in ROWS]
    if unknown:
        parser.error(f"no row {', '.join(unknown)}; there are {', '.join(ROWS)}")
    machine = measure.machine()
    with _folders(options.ram, options.disk) as (ram, on_disk):
        bench = Bench(ram, on_disk, options.quick, options.cold)
        for name in options.rows or ROWS:
            if name in NEEDS_RAM and not ram:
                print(f"\n## {name}\n\nnot run: {options.ram} is no folder, see --ram")
                continue
            begin, load = time.monotonic(), os.getloadavg()[0]
            outcome = ROWS[name](bench)
            seconds = time.monotonic() - begin
            for folder in filter(None, (ram, on_disk)):
                for entry in os.listdir(folder):
                    shutil.rmtree(os.path.join(folder, entry))
            _show(name, outcome, seconds)
            if not options.quick:
                results.keep(name, outcome, machine, seconds, load)
                results.write_page(list(ROWS), REASONS)
    return 0


def _show(name: str, outcome: Outcome, seconds: float) -> None:
    print(f"\n## {name} ({seconds:.0f} s)\n")
    print("\n".join(results.section(name, outcome._asdict())))
    for check in outcome.checks:
        measured = f"{number(check.measured)} {check.unit}"
        print(f"{check.what}: {measured}, required {check.words()}: {check.verdict()}")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
