"""What `get` and `pull` share: where it goes, progress and the report."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import click

from hilum.cli import common
from hilum.errors import BadQuery, HilumError

if TYPE_CHECKING:
    from hilum.transfer.arriving import Place
    from hilum.transfer.fetch import Fetch
    from hilum.transfer.hierarchy import Series
    from hilum.transfer.work import Event

F = TypeVar("F", bound=Callable[..., object])


def place_options(command: F) -> F:
    """--dir, --jobs, --again and --on-conflict."""
    command = click.option(
        "--on-conflict",
        type=click.Choice(["keep-first", "replace"]),
        default="keep-first",
        show_default=True,
        help="What to do with other content under a SOP Instance UID that is here.",
    )(command)
    command = click.option("--again", is_flag=True, help="Fetch also what is here already.")(command)
    command = click.option(
        "--jobs",
        type=click.IntRange(min=1, max=64),
        default=1,
        show_default=True,
        help="Connections at once.",
    )(command)
    return click.option("--dir", "folder", metavar="FOLDER", help="Write files there, not into the store.")(
        command
    )


@contextmanager
def place(folder: str | None, store_path: str, on_conflict: str) -> Iterator[Place]:
    """Where what comes is kept."""
    from hilum.engine.writer import Policy
    from hilum.transfer.arriving import IntoFolder, IntoStore

    policy = Policy.REPLACE if on_conflict == "replace" else Policy.KEEP_FIRST
    if folder is not None:
        yield IntoFolder(folder, policy)
        return
    with common.open_store(store_path, create=True) as store:
        yield IntoStore(store, policy)


def fetch(
    wanted: Sequence[Series],
    where: Place,
    run: Callable[[Fetch], None],
    *,
    what: str,
    jobs: int,
    again: bool,
    as_json: bool,
    verbose: bool,
) -> int:
    """Fetch what is wanted; return the exit status."""
    from hilum.transfer import fetch, work

    begin = time.monotonic()
    progress = common.Progress(what, quiet=as_json)

    def on_event(event: Event) -> None:
        if as_json:
            common.print_json({event.kind: event.uid, "reason": event.words})
        elif event.kind == "failed" or verbose:
            progress.say(f"{event.name}: {event.kind}: {event.words}")

    def on_tick(doing: Fetch) -> None:
        count = sum(doing.counts)
        rate = doing.counts.fetched / (time.monotonic() - begin)
        progress.update(count, doing.total, f"{count:,} of {doing.total:,} instances, {rate:,.0f}/s")

    doing = fetch.Fetch(wanted, where, on_event, again=again)
    interrupted = False
    failure: HilumError | None = None
    try:
        work.run(doing, jobs, run, on_tick)
    except KeyboardInterrupt:
        interrupted = True
    except BadQuery:
        raise
    except HilumError as broken:
        failure = broken
    finally:
        progress.close()
    counts, seconds = doing.counts, time.monotonic() - begin
    missing = doing.total - sum(counts)
    if as_json:
        found = {**counts._asdict(), "series": len(wanted), "missing": missing, "seconds": round(seconds, 3)}
        common.print_json(found | ({"reason": str(failure)} if failure is not None else {}))
    else:
        rate = counts.fetched / seconds if seconds else 0
        click.echo(
            f"{counts.fetched:,} fetched of {len(wanted):,} series in {seconds:.1f} s ({rate:,.0f}/s); "
            f"{counts.present:,} were here, {counts.conflicts:,} conflicts, {counts.failed:,} failed"
        )
        if failure is not None:
            click.echo(f"hilum: {failure}", err=True)
        if missing:
            click.echo("not all was fetched; run it again to go on", err=True)
    if interrupted:
        click.echo("interrupted; run it again to go on", err=True)
        return common.INTERRUPTED
    if not wanted and not as_json:
        click.echo("nothing matches", err=True)
    return common.FAILED if failure is not None or counts.failed or counts.conflicts or missing else 0
