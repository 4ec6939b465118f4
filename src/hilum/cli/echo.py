"""hilum echo: whether a DICOM node answers, and what was negotiated."""

from __future__ import annotations

import click

from hilum.cli import common, targets
from hilum.errors import BadQuery, HilumError


@click.command("echo")
@click.argument("target")
@targets.node_options
@common.common_options
def command(
    target: str,
    aet: str | None,
    tls: bool,
    seconds: float | None,
    config: str | None,
    store_path: str,
    as_json: bool,
    verbose: bool,
) -> int:
    """Ask a DICOM node whether it answers (C-ECHO).

    TARGET is the name of a peer in hilum.toml, or AET@host:port. Says how long it took and what was
    negotiated, or why there is no answer.

    \b
    Example:
        hilum echo PACS@10.0.0.7:104
        hilum echo pacs --aet WORKSTATION3 --json
    """
    from hilum.dicom import uids
    from hilum.dimse import scu

    caller = targets.caller(target, targets.Call(config, aet, seconds, tls))
    place = f"{caller.peer.title}@{caller.peer.host}:{caller.peer.port}"
    try:
        found = scu.echo(caller)
    except BadQuery:
        raise
    except HilumError as failure:
        if as_json:
            common.print_json({"target": place, "ok": False, "reason": str(failure)})
        else:
            click.echo(f"hilum: {place}: {failure}", err=True)
        return common.FAILED
    if as_json:
        common.print_json({"target": place, "ok": True, **found._asdict()})
        return 0
    total = (found.connect_seconds + found.answer_seconds) * 1000
    click.echo(f"{place} answers in {total:.1f} ms ({found.answer_seconds * 1000:.1f} ms once connected)")
    limit = common.human_bytes(found.pdu_bytes) if found.pdu_bytes else "any size"
    click.echo(
        f"{found.implementation or 'unnamed'}; takes PDUs of {limit}; "
        f"{uids.name_of(found.transfer_syntax) or found.transfer_syntax}; {found.tls or 'no TLS'}"
    )
    return 0
