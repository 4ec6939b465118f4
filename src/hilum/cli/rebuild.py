"""hilum rebuild: the index, from the packs alone."""

from __future__ import annotations

import time

import click

from hilum.cli import common


@click.command("rebuild")
@common.common_options
def command(store_path: str, as_json: bool, verbose: bool) -> int:
    """Make the index anew, from the packs alone; nothing else may have the store open.

    Answers are the same afterwards: what was deleted, replaced or refused stays so.

    \b
    Example:
        hilum rebuild --store ./archive
    """
    from hilum.engine.rebuild import rebuild

    begin = time.monotonic()
    progress = common.Progress("rebuild", quiet=as_json)
    try:
        found = rebuild(
            store_path,
            on_progress=lambda done, total: progress.update(
                done, total, f"{common.human_bytes(done)} of heads"
            ),
        )
    finally:
        progress.close()
    seconds = time.monotonic() - begin
    if as_json:
        for problem in found.problems:
            common.print_json({"problem": problem})
        document: dict[str, float] = {
            "instances": found.instances,
            "blobs": found.blobs,
            "packs": found.packs,
        }
        document |= {"problems": len(found.problems), "seconds": round(seconds, 3)}
        common.print_json(document)
    else:
        for problem in found.problems:
            click.echo(problem, err=True)
        click.echo(
            f"{found.instances:,} instances, {found.blobs:,} blobs, {found.packs:,} packs in {seconds:.1f} s"
        )
    return common.FAILED if found.problems else 0
