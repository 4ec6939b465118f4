"""hilum compact: the space of what is gone, given back."""

from __future__ import annotations

import time

import click

from hilum.cli import common
from hilum.engine.compact import GRACE_SECONDS, WASTE_PERCENT


@click.command("compact")
@click.option(
    "--waste",
    type=click.FloatRange(0, 100),
    default=WASTE_PERCENT,
    show_default=True,
    metavar="PERCENT",
    help="Compact each pack of which more than this is not in use.",
)
@click.option(
    "--grace",
    type=click.FloatRange(0),
    default=GRACE_SECONDS,
    show_default=True,
    metavar="SECONDS",
    help="Keep what is left over for so long, for those who are reading it.",
)
@common.common_options
def command(waste: float, grace: float, store_path: str, as_json: bool, verbose: bool) -> int:
    """Give back the space of what was deleted, purged or left by a crash.

    What is in use is copied out of wasteful packs, which are then removed. Others may import, delete and
    read meanwhile; what they write to is left alone. It may be ended at any moment and run again.

    \b
    Example:
        hilum compact
        hilum compact --waste 20 --json
    """
    from hilum.engine.compact import compact

    begin = time.monotonic()
    progress = common.Progress("compact", quiet=as_json)

    def on_progress(what: str, done: int, total: int) -> None:
        rate = done / max(time.monotonic() - begin, 1e-6)
        if what == "mark":
            text = f"{done:,} instances looked at, {rate:,.0f}/s"
        elif what == "copy":
            text = f"{common.human_bytes(done)} copied, {common.human_bytes(rate)}/s"
        else:
            text = "waiting for readers"
        progress.update(done, total, text)

    try:
        with common.open_store(store_path) as store:
            found = compact(store, waste=waste, grace=grace, on_progress=on_progress)
    finally:
        progress.close()
    seconds = time.monotonic() - begin
    if as_json:
        for problem in found.problems:
            common.print_json({"problem": problem})
        document = found._asdict() | {
            "busy": len(found.busy),
            "problems": len(found.problems),
            "seconds": round(seconds, 3),
        }
        common.print_json(document)
    else:
        for problem in found.problems:
            click.echo(problem, err=True)
        for name in found.busy:
            click.echo(f"{name}: left alone, since somebody writes to it", err=True)
        click.echo(
            f"{found.packs:,} packs removed, {common.human_bytes(found.copied)} copied in {seconds:.1f} s: "
            f"{common.human_bytes(found.before)} before, {common.human_bytes(found.after)} after, "
            f"{common.human_bytes(found.alive)} in use"
        )
    return common.FAILED if found.problems else 0
