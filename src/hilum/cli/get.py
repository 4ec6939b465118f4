"""hilum get: fetch from a DICOM node, into the store or a folder."""

from __future__ import annotations

import click

from hilum.cli import common, fetching, targets


@click.command("get")
@click.argument("target")
@click.argument("pairs", nargs=-1, required=True, metavar="KEY=VALUE...")
@fetching.place_options
@targets.node_options
@common.common_options
def command(
    target: str,
    pairs: tuple[str, ...],
    folder: str | None,
    jobs: int,
    again: bool,
    on_conflict: str,
    aet: str | None,
    tls: bool,
    seconds: float | None,
    config: str | None,
    store_path: str,
    as_json: bool,
    verbose: bool,
) -> int:
    """Fetch from a DICOM node (C-FIND, then C-GET), into the store or a folder.

    The keys say what: all studies of a patient, a list of studies, some series or instances. What is here
    already is not fetched again. An object is kept before the node is told so.

    \b
    Example:
        hilum get pacs PatientID=4711
        hilum get PACS@10.0.0.7:104 StudyInstanceUID=1.2.3,1.2.4 --dir ./out
        hilum get pacs StudyInstanceUID=1.2.3 Modality=SR
    """
    from hilum.dimse.asking import Finder
    from hilum.dimse.fetching import Fetcher
    from hilum.transfer import hierarchy

    keys = common.parse_pairs(pairs)
    caller = targets.caller(target, targets.Call(config, aet, seconds, tls), answer_seconds=300.0)
    with Finder(caller) as finder:
        wanted = list(hierarchy.series_of(finder, keys))
    with fetching.place(folder, store_path, on_conflict) as where:
        return fetching.fetch(
            wanted,
            where,
            Fetcher(caller).run,
            what="get",
            jobs=jobs,
            again=again,
            as_json=as_json,
            verbose=verbose,
        )
