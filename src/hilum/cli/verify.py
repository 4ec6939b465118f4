"""hilum verify: stored bytes and index, proved against each other."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from hilum.cli import common
from hilum.errors import ReadOnly

if TYPE_CHECKING:
    from hilum.api import Store


@click.command("verify")
@click.option("--quick", is_flag=True, help="Heads and index only; no bulk value is read.")
@click.option("--no-mark", is_flag=True, help="Leave no mark on what is damaged.")
@common.common_options
def command(quick: bool, no_mark: bool, store_path: str, as_json: bool, verbose: bool) -> int:
    """Check digests, the checksums of the originals, and the index both ways.

    Says what is damaged and what would mend it, and mends nothing. What is damaged is marked, so that the
    same object, sent again, heals it.

    \b
    Example:
        hilum verify
        hilum verify --quick --json
    """
    from hilum.engine.verify import Problem, verify

    begin = time.monotonic()
    progress = common.Progress("verify", quiet=as_json)

    def on_problem(problem: Problem) -> None:
        if as_json:
            common.print_json(problem._asdict())
        else:
            progress.say(f"{problem.where}: {problem.what}; to mend it, {problem.mend}")

    def on_progress(done: int, total: int) -> None:
        rate = done / max(time.monotonic() - begin, 1e-6)
        progress.update(done, total, f"{common.human_bytes(done)}, {common.human_bytes(rate)}/s")

    try:
        with _open(store_path, no_mark=no_mark) as store:
            found = verify(store, quick=quick, on_problem=on_problem, on_progress=on_progress)
    finally:
        progress.close()
    seconds = time.monotonic() - begin
    if as_json:
        common.print_json({**found._asdict(), "seconds": round(seconds, 3)})
    else:
        click.echo(
            f"{found.instances:,} instances, {found.blobs:,} blobs, {common.human_bytes(found.bytes)} read "
            f"in {seconds:.1f} s: {found.problems or 'no'} problem{'s' if found.problems != 1 else ''}"
        )
    return common.FAILED if found.problems else 0


def _open(path: str, *, no_mark: bool) -> Store:
    """For writing, so that marks can be left; for reading where nothing can be written anyway."""
    try:
        return common.open_store(path, read_only=no_mark)
    except ReadOnly:
        return common.open_store(path, read_only=True)
