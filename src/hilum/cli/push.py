"""hilum push: send to a DICOMweb server, out of files or out of the store."""

from __future__ import annotations

import click

from hilum.cli import common, sending, targets


@click.command("push")
@click.argument("peer")
@click.argument("words", nargs=-1, metavar="[PATH...] [KEY=VALUE...]")
@sending.selection_options
@targets.web_options
@common.common_options
def command(
    peer: str,
    words: tuple[str, ...],
    jobs: int,
    everything: bool,
    again: bool,
    user: str | None,
    seconds: float | None,
    config: str | None,
    store_path: str,
    as_json: bool,
    verbose: bool,
) -> int:
    """Send to a DICOMweb server (STOW-RS): files and folders, or what is stored here.

    PEER is a name in hilum.toml, or a URL. With paths these are sent, with keys beside them only what
    matches; with keys alone what is stored and matches; with --all all that is stored. Files go as they
    are. Run it again after an interruption: what the server has taken is not sent twice.

    The password is that of hilum.toml, $HILUM_PEERS_NAME_PASSWORD or $HILUM_PASSWORD; else it is asked for.

    \b
    Example:
        hilum push cloud ./scans --jobs 4
        hilum push https://pacs.example.org/dicom-web PatientID=4711 --user alice
    """
    from hilum.remote.stow import Pusher

    paths, keys = targets.parse_words(words)
    with targets.client(peer, targets.Call(config, None, seconds, user=user)) as client:
        return sending.send(
            client.url,
            paths,
            keys,
            lambda source: Pusher(client, source).run,
            what="push",
            jobs=jobs,
            everything=everything,
            again=again,
            store_path=store_path,
            as_json=as_json,
            verbose=verbose,
        )
