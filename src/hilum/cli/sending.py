"""What `store` and `push` share: what to send, the journal, progress and the report."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, TypeVar

import click

from hilum.cli import common
from hilum.errors import BadQuery, HilumError

if TYPE_CHECKING:
    from hilum.transfer.outgoing import Source
    from hilum.transfer.work import Event, Work

F = TypeVar("F", bound=Callable[..., object])


def selection_options(command: F) -> F:
    """--all, --again and --jobs."""
    command = click.option("--again", is_flag=True, help="Send also what was taken in an earlier run.")(
        command
    )
    command = click.option("--all", "everything", is_flag=True, help="All that is stored.")(command)
    return click.option(
        "--jobs",
        type=click.IntRange(min=1, max=64),
        default=1,
        show_default=True,
        help="Connections at once.",
    )(command)


def send(
    target: str,
    paths: list[str],
    keys: list[tuple[str, str]],
    make_sender: Callable[[Source], Callable[[Work], None]],
    *,
    what: str,
    jobs: int,
    everything: bool,
    again: bool,
    store_path: str,
    as_json: bool,
    verbose: bool,
) -> int:
    """Send files, or what is stored; return the exit status.

    Raises:
        click.UsageError: nothing says what to send.
    """
    from hilum.transfer import journal, outgoing, work

    if not paths and not keys and not everything:
        raise click.UsageError("say what to send: paths, KEY=VALUE, or --all for all that is stored")
    if everything and (paths or keys):
        raise click.UsageError("--all takes neither paths nor keys")
    begin = time.monotonic()
    progress = common.Progress(what, quiet=as_json)
    words = [f"{name}={value}" for name, value in keys]

    def on_event(event: Event) -> None:
        status = f"0x{event.status:04X}, " if event.status is not None else ""
        if as_json:
            found = {event.kind: event.uid or event.name, "path": event.name, "reason": event.words}
            common.print_json(
                found | ({"status": f"0x{event.status:04X}"} if event.status is not None else {})
            )
        elif event.kind == "failed" or verbose:
            progress.say(f"{event.name}: {event.kind}: {status}{event.words}")

    def on_tick(done: work.Work) -> None:
        counts = done.counts
        seconds = time.monotonic() - begin
        total = done.seen if done.is_all_seen else None
        count = counts.sent + counts.failed + counts.skipped
        rate = f"{counts.sent / seconds:,.0f}/s, {common.human_bytes(counts.bytes / seconds)}/s"
        progress.update(count, total, f"{count:,}{f' of {total:,}' if total else ''} instances, {rate}")

    interrupted = False
    failure: HilumError | None = None
    with ExitStack() as stack:
        stack.callback(progress.close)
        source: outgoing.FileSource | outgoing.StoredSource
        if paths:
            source = outgoing.FileSource(paths, keys, leave_out=store_path)
            selection = [*sorted(map(os.path.realpath, paths)), "", *sorted(words)]
        else:
            store = stack.enter_context(common.open_store(store_path, read_only=True))
            source = outgoing.StoredSource(store, keys)
            selection = [store.folder.uuid.hex(), *sorted(words)]
        written = journal.Journal(journal.folder(), f"{what} {target}", selection, again=again)
        stack.callback(written.close)
        doing = work.Work(source, written, on_event)
        source.on_failure = doing.lost
        try:
            work.run(doing, jobs, make_sender(source), on_tick)
        except KeyboardInterrupt:
            interrupted = True
        except BadQuery:
            raise
        except HilumError as broken:
            failure = broken
    return _report(doing, source, time.monotonic() - begin, failure, interrupted=interrupted, as_json=as_json)


def _report(
    done: Work,
    source: Source,
    seconds: float,
    failure: HilumError | None,
    *,
    interrupted: bool,
    as_json: bool,
) -> int:
    counts = done.counts
    passed_over = getattr(source, "passed_over", 0)
    if as_json:
        found = {
            **counts._asdict(),
            "not_dicom": passed_over,
            "unsent": done.unsent,
            "seconds": round(seconds, 3),
        }
        common.print_json(found | ({"reason": str(failure)} if failure is not None else {}))
    else:
        rate = counts.sent / seconds if seconds else 0
        click.echo(
            f"{counts.sent:,} sent, {common.human_bytes(counts.bytes)} in {seconds:.1f} s ({rate:,.0f}/s); "
            f"{counts.warned:,} of them with a warning, {counts.failed:,} failed, {counts.skipped:,} skipped"
            + (f"; {passed_over:,} files are not DICOM" if passed_over else "")
        )
        if counts.skipped:
            click.echo(f"{counts.skipped:,} were taken in an earlier run; --again sends them too")
        if failure is not None:
            click.echo(f"hilum: {failure}", err=True)
        if done.unsent:
            click.echo("not all was sent; run it again to go on", err=True)
    if interrupted:
        click.echo("interrupted; run it again to go on", err=True)
        return common.INTERRUPTED
    return common.FAILED if failure is not None or counts.failed else 0
