"""hilum stats: what is stored, and the bytes it takes."""

from __future__ import annotations

import click

from hilum.cli import common


@click.command("stats")
@common.common_options
def command(store_path: str, as_json: bool, verbose: bool) -> None:
    """Count patients, studies, series and instances, and the bytes they take.

    \b
    Example:
        hilum stats --store ./archive
        hilum stats --json | jq .instances
    """
    with common.open_store(store_path, read_only=True) as store:
        found = store.stats()
        tables = store.index.table_bytes() if verbose else {}
    if as_json:
        common.print_json({**found, "tables": tables} if verbose else found)
        return
    for name, value in found.items():
        shown = common.human_bytes(value) if name.endswith("bytes") else f"{value:,}"
        click.echo(f"{name.replace('_', ' '):16} {shown}")
    for name, value in tables.items():
        click.echo(f"  {name:14} {common.human_bytes(value)}")
