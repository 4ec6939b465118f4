"""hilum import: files and folders into the store."""

from __future__ import annotations

import os
import re
import time
from typing import Any

import click

from hilum.cli import common

_KEY = re.compile(r"^[A-Za-z0-9,().]+=")


@click.command("import", context_settings={"show_default": True})
@click.argument("words", nargs=-1, required=True, metavar="PATH... [KEY=VALUE...]")
@click.option(
    "--jobs", type=click.IntRange(min=1), default=None, help="Processes.  [default: one a core, 4 at most]"
)
@click.option(
    "--on-conflict",
    type=click.Choice(["keep-first", "replace"]),
    default="keep-first",
    help="What to do with other content under a stored SOP Instance UID.",
)
@common.common_options
def command(
    words: tuple[str, ...],
    jobs: int | None,
    on_conflict: str,
    store_path: str,
    as_json: bool,
    verbose: bool,
) -> int:
    """Store files, and folders of any depth, durably.

    With keys, only what belongs to the patients, studies or series that match. What is no DICOM is passed
    over. Run it again after an interruption: it goes on where it was.

    \b
    Example:
        hilum import /media/cdrom ./more/scan.dcm
        hilum import /archive StudyDate=20240101-20241231 Modality=CT --jobs 2
    """
    from hilum.engine.importer import Counts, Failure, Options, import_paths
    from hilum.engine.query import parse_keys
    from hilum.engine.writer import Policy

    paths = [word for word in words if not _KEY.match(word) or os.path.lexists(word)]
    keys = common.parse_pairs(word for word in words if _KEY.match(word) and not os.path.lexists(word))
    if not paths:
        raise click.UsageError("name at least one file or folder")
    parse_keys(keys)  # before there is a store
    policy = Policy.REPLACE if on_conflict == "replace" else Policy.KEEP_FIRST
    options = Options(tuple(keys), policy, jobs or min(4, os.cpu_count() or 1))
    begin = time.monotonic()
    progress = common.Progress("import", quiet=as_json)
    total = _Total(paths) if not as_json else None
    seen = Counts()

    def on_failure(failure: Failure) -> None:
        if as_json:
            common.print_json(_failure(failure))
        elif failure.kind == "failed" or verbose:
            at = f" at byte {failure.offset}, tag ({failure.tag >> 16:04X},{failure.tag & 0xFFFF:04X})"
            progress.say(f"{failure.path}: {failure.reason}{at if failure.tag else ''}")

    def on_progress(counts: Counts) -> None:
        nonlocal seen
        seen = counts
        seconds = time.monotonic() - begin
        done = counts.files + counts.skipped
        known = total.count_on() if total is not None else None
        rate = f"{done / seconds:,.0f}/s, {common.human_bytes(counts.bytes / seconds)}/s"
        progress.update(done, known, f"{done:,}{f' of {known:,}' if known else ''} files, {rate}")

    counts = Counts()
    interrupted = False
    try:
        with common.open_store(store_path, create=True) as store:
            counts = import_paths(store, paths, options, on_failure=on_failure, on_progress=on_progress)
    except KeyboardInterrupt:
        interrupted = True
        counts = seen
    finally:
        progress.close()
    seconds = time.monotonic() - begin
    if as_json:
        if keys:
            common.print_json({"skipped": counts.skipped})
        common.print_json(_summary(counts, seconds))
    else:
        _print_summary(counts, seconds, verbose)
    if interrupted:
        click.echo("interrupted; run it again to go on", err=True)
        return common.INTERRUPTED
    return common.FAILED if counts.failed or counts.conflicts else 0


class _Total:
    """Counts the files ahead of the import, a slice at a time, for the time left."""

    def __init__(self, paths: list[str]) -> None:
        self._count = 0
        self._seen: set[tuple[int, int]] = set()
        self._waiting = list(paths)

    def count_on(self) -> int | None:
        """Count for some milliseconds; the total once it is known."""
        end = time.monotonic() + 0.01
        while self._waiting:
            if time.monotonic() > end:
                return None
            path = self._waiting.pop()
            try:
                with os.scandir(path) as entries:
                    status = os.stat(path)
                    if (status.st_dev, status.st_ino) in self._seen:
                        continue
                    self._seen.add((status.st_dev, status.st_ino))
                    for entry in entries:
                        if entry.is_dir():
                            self._waiting.append(entry.path)
                        else:
                            self._count += 1
            except OSError:
                self._count += 1
        return self._count


def _failure(failure: Any) -> dict[str, Any]:
    return {
        failure.kind: failure.path.encode("utf-8", "replace").decode(),
        "reason": failure.reason,
        "offset": failure.offset,
        "tag": f"{failure.tag:08X}",
    }


def _summary(counts: Any, seconds: float) -> dict[str, Any]:
    return {
        "files": counts.files,
        "stored": counts.stored,
        "duplicates": counts.duplicates,
        "conflicts": counts.conflicts,
        "not_dicom": counts.not_dicom,
        "failed": counts.failed,
        "bytes": counts.bytes,
        "seconds": round(seconds, 3),
    }


def _print_summary(counts: Any, seconds: float, verbose: bool) -> None:
    rate = counts.files / seconds if seconds else 0
    click.echo(
        f"{counts.files:,} files, {common.human_bytes(counts.bytes)} in {seconds:.1f} s ({rate:,.0f}/s): "
        f"{counts.stored:,} stored, {counts.duplicates:,} duplicates, {counts.conflicts:,} conflicts, "
        f"{counts.not_dicom:,} not DICOM, {counts.failed:,} failed"
    )
    if counts.conflicts:
        click.echo(
            f"{counts.conflicts:,} files have other content than what is stored under their SOP Instance "
            "UID. What was stored first is kept; see --on-conflict, and -v for their names."
        )
    if verbose and counts.fallbacks:
        click.echo(f"{counts.fallbacks:,} were read by pydicom")
