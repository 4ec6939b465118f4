"""hilum pull: fetch from a DICOMweb server, into the store or a folder."""

from __future__ import annotations

import click

from hilum.cli import common, fetching, targets


@click.command("pull")
@click.argument("peer")
@click.argument("pairs", nargs=-1, required=True, metavar="KEY=VALUE...")
@fetching.place_options
@targets.web_options
@common.common_options
def command(
    peer: str,
    pairs: tuple[str, ...],
    folder: str | None,
    jobs: int,
    again: bool,
    on_conflict: str,
    user: str | None,
    seconds: float | None,
    config: str | None,
    store_path: str,
    as_json: bool,
    verbose: bool,
) -> int:
    """Fetch from a DICOMweb server (QIDO-RS, then WADO-RS), into the store or a folder.

    PEER is a name in hilum.toml, or a URL. The keys say what: all studies of a patient, a list of studies,
    some series or instances. Objects come as they are stored there; what is here already is not fetched
    again.

    The password is that of hilum.toml, $HILUM_PEERS_NAME_PASSWORD or $HILUM_PASSWORD; else it is asked for.

    \b
    Example:
        hilum pull cloud StudyInstanceUID=1.2.3 --jobs 4
        hilum pull https://pacs.example.org/dicom-web PatientID=4711 --user alice --dir ./out
    """
    from hilum.remote.qido import Searcher
    from hilum.remote.wado import Puller
    from hilum.transfer import hierarchy

    keys = common.parse_pairs(pairs)
    with targets.client(peer, targets.Call(config, None, seconds, user=user)) as client:
        wanted = list(hierarchy.series_of(Searcher(client), keys))
        with fetching.place(folder, store_path, on_conflict) as where:
            return fetching.fetch(
                wanted,
                where,
                Puller(client).run,
                what="pull",
                jobs=jobs,
                again=again,
                as_json=as_json,
                verbose=verbose,
            )
