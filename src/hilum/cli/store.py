"""hilum store: send to a DICOM node, out of files or out of the store."""

from __future__ import annotations

import click

from hilum.cli import common, sending, targets


@click.command("store")
@click.argument("target")
@click.argument("words", nargs=-1, metavar="[PATH...] [KEY=VALUE...]")
@sending.selection_options
@targets.node_options
@common.common_options
def command(
    target: str,
    words: tuple[str, ...],
    jobs: int,
    everything: bool,
    again: bool,
    aet: str | None,
    tls: bool,
    seconds: float | None,
    config: str | None,
    store_path: str,
    as_json: bool,
    verbose: bool,
) -> int:
    """Send to a DICOM node (C-STORE): files and folders, or what is stored here.

    With paths these are sent, with keys beside them only what matches; with keys alone what is stored and
    matches; with --all all that is stored. A KEY is one of any level, and a VALUE may be a list.

    Data sets go as they are; one that the node does not take so is sent in another transfer syntax, if that
    loses nothing. Run it again after an interruption: what the node has taken is not sent twice.

    \b
    Example:
        hilum store pacs ./scans
        hilum store PACS@10.0.0.7:104 PatientID=4711 Modality=CT,MR --jobs 4
        hilum store pacs /media/cdrom StudyDate=20240101-
        hilum store pacs SeriesInstanceUID=1.2.3,1.2.4
    """
    from hilum.dimse import scu

    paths, keys = targets.parse_words(words)
    caller = targets.caller(target, targets.Call(config, aet, seconds, tls))
    peer = caller.peer
    return sending.send(
        f"{peer.title}@{peer.host}:{peer.port}",
        paths,
        keys,
        lambda source: scu.Sender(caller, source).run,
        what="store",
        jobs=jobs,
        everything=everything,
        again=again,
        store_path=store_path,
        as_json=as_json,
        verbose=verbose,
    )
