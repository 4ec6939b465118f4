"""hilum delete: everything under the rows that match."""

from __future__ import annotations

import click

from hilum.cli import common


@click.command("delete")
@click.argument("level", type=click.Choice(["patients", "studies", "series", "instances"]))
@click.argument("pairs", nargs=-1, required=True, metavar="KEY=VALUE...")
@common.common_options
def command(level: str, pairs: tuple[str, ...], store_path: str, as_json: bool, verbose: bool) -> None:
    """Delete patients, studies, series or instances that match, durably.

    Look first with `hilum find`, which takes the same keys. The space is free again after a compaction.

    \b
    Example:
        hilum delete studies StudyInstanceUID=1.2.3
        hilum delete series Modality=SR StudyDate=-20101231
    """
    with common.open_store(store_path) as store:
        count = store.delete(level, common.parse_pairs(pairs))
    if as_json:
        common.print_json({"deleted": count})
    else:
        click.echo(f"{count:,} instances deleted")
