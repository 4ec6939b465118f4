"""hilum purge: older revisions, and conflicts of what is gone, forgotten."""

from __future__ import annotations

import click

from hilum.cli import common


@click.command("purge")
@click.argument("pairs", nargs=-1, metavar="[KEY=VALUE...]")
@common.common_options
def command(pairs: tuple[str, ...], store_path: str, as_json: bool, verbose: bool) -> None:
    """Forget older revisions of the instances that match, durably.

    Without keys all revisions go, and the conflicts of instances that are no longer stored. `hilum compact`
    gives their space back.

    \b
    Example:
        hilum purge
        hilum purge PatientID=P1
    """
    from hilum.engine.compact import purge

    with common.open_store(store_path) as store:
        found = purge(store, common.parse_pairs(pairs))
    if as_json:
        common.print_json(found._asdict())
    else:
        click.echo(f"{found.revisions:,} revisions and {found.conflicts:,} conflicts forgotten")
