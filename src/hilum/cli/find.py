"""hilum find: rows out of the index, or out of another archive."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from hilum.cli import common, targets

if TYPE_CHECKING:
    from hilum.dicom.dictionary import Path
    from hilum.engine.query import Asked, Include

# What a person wants to see of each level: (heading, tag).
_COLUMNS = {
    "patients": [
        ("PATIENT ID", 0x00100020),
        ("NAME", 0x00100010),
        ("BORN", 0x00100030),
        ("SEX", 0x00100040),
        ("STUDIES", 0x00201200),
        ("INSTANCES", 0x00201204),
    ],
    "studies": [
        ("PATIENT ID", 0x00100020),
        ("NAME", 0x00100010),
        ("DATE", 0x00080020),
        ("MODALITIES", 0x00080061),
        ("DESCRIPTION", 0x00081030),
        ("SERIES", 0x00201206),
        ("INSTANCES", 0x00201208),
        ("STUDY INSTANCE UID", 0x0020000D),
    ],
    "series": [
        ("NAME", 0x00100010),
        ("DATE", 0x00080020),
        ("NUMBER", 0x00200011),
        ("MODALITY", 0x00080060),
        ("DESCRIPTION", 0x0008103E),
        ("INSTANCES", 0x00201209),
        ("SERIES INSTANCE UID", 0x0020000E),
    ],
    "instances": [
        ("SERIES", 0x00200011),
        ("NUMBER", 0x00200013),
        ("ROWS", 0x00280010),
        ("COLUMNS", 0x00280011),
        ("FRAMES", 0x00280008),
        ("SOP CLASS", 0x00080016),
        ("SOP INSTANCE UID", 0x00080018),
    ],
}


@click.command("find")
@click.argument("level", type=click.Choice(list(_COLUMNS)))
@click.argument("pairs", nargs=-1, metavar="[KEY=VALUE...]")
@click.option("--include", multiple=True, metavar="KEY", help="Another attribute to print; may be repeated.")
@click.option("--limit", type=click.IntRange(min=0), default=None, help="Rows at most.")
@click.option("--offset", type=click.IntRange(min=0), default=0, help="Rows to leave out first.")
@click.option("--order", multiple=True, metavar="KEY", help="Sort by this attribute; -KEY for descending.")
@click.option(
    "--fuzzy", is_flag=True, help="Names by their words: any order, other spellings, slips of the pen."
)
@click.option(
    "--timezone", default="", metavar="+HHMM", help="Offset from UTC of the dates and times asked for."
)
@click.option("--from", "target", metavar="TARGET", help="Ask this archive, not the store.")
@targets.node_options
@click.option("--user", metavar="NAME", help="Who we are to a DICOMweb server.")
@common.common_options
def command(
    level: str,
    pairs: tuple[str, ...],
    include: tuple[str, ...],
    limit: int | None,
    offset: int,
    order: tuple[str, ...],
    fuzzy: bool,
    timezone: str,
    target: str | None,
    aet: str | None,
    tls: bool,
    seconds: float | None,
    config: str | None,
    user: str | None,
    store_path: str,
    as_json: bool,
    verbose: bool,
) -> None:
    """Find patients, studies, series or instances.

    A KEY is a keyword or tag of any attribute, a path into sequences with full stops between, or a private
    element with its creator. A VALUE may be a list of UIDs, hold the wildcards * and ?, be a range of dates
    and times, or be "" (two quotation marks) for what is empty or absent. Attributes that are not indexed are
    read from each object that may match, which takes its time. Without --order the newest studies come first.

    With --from TARGET, the name of a peer in hilum.toml, AET@host:port or a URL, another archive is asked
    (C-FIND or QIDO-RS). Matching is by its rules then, and rows come in its order.

    \b
    Example:
        hilum find studies PatientName='*smi*' StudyDate=20240101-
        hilum find series StudyInstanceUID=1.2.3 --include StationName --json
        hilum find instances RequestAttributesSequence.RequestedProcedureID=R7
        hilum find instances '0029,"SIEMENS CSA HEADER",08=IMAGE NUM 4'
        hilum find studies PatientID=4711 --from PACS@10.0.0.7:104
    """
    from hilum.dicom import dictionary, uids
    from hilum.engine import query

    names = [name for listed in include for name in dictionary.names_in(listed) or [""]]
    asked = query.Asked(
        level,
        common.parse_pairs(pairs),
        names,
        limit,
        offset,
        order,
        fuzzy=fuzzy,
        timezone=timezone,
        empty_value=True,
    )
    wanted = query.parse_include(names)
    call = targets.Call(config, aet, seconds, tls, user)
    found = _local(store_path, asked, wanted) if target is None else _remote(target, call, asked, wanted)
    if as_json:
        for document, _ in found:
            common.print_json(document)
        return
    columns = [heading for heading, _ in _COLUMNS[level]]
    columns += [dictionary.format_path(path).upper() for path in wanted.paths]
    cells = []
    for _, line in found:
        if level == "instances":
            line[5] = uids.name_of(line[5]) or line[5]
        cells.append(line)
    if cells:
        common.print_table(columns, cells)
    if verbose or not cells:
        click.echo(f"{len(cells)} {level}", err=True)


def _local(store_path: str, asked: Asked, wanted: Include) -> Iterator[tuple[dict[str, Any], list[str]]]:
    """Rows of the store: as JSON, and as the cells of a table."""
    with common.open_store(store_path, read_only=True) as store:
        found = store.search(asked)
        for row in found:
            line = [row.text(tag) for _, tag in _COLUMNS[asked.level]]
            line += [store.row_text(row, path) for path in wanted.paths]
            yield store.row_json(row, wanted), line
        _warn(found.warnings)


def _remote(
    target: str, call: targets.Call, asked: Asked, wanted: Include
) -> Iterator[tuple[dict[str, Any], list[str]]]:
    """The same of another archive."""
    from itertools import islice

    from hilum.cli import archives
    from hilum.dicom import json
    from hilum.engine.elements import values_at
    from hilum.errors import BadQuery
    from hilum.transfer import hierarchy

    if asked.order:
        raise BadQuery("--order is for the store; another archive has its own order")
    if wanted.everything:
        raise BadQuery("name what to include: another archive is not asked for everything")
    tags = [tag for _, tag in _COLUMNS[asked.level]]
    paths: Sequence[Path] = [*((tag,) for tag in tags), *wanted.paths]
    keys = hierarchy.parse_pairs(asked.keys)
    question = hierarchy.Question(hierarchy.LEVEL_OF[asked.level], keys, paths)
    with archives.opened(target, call, fuzzy=asked.fuzzy, timezone=asked.timezone) as archive:
        found = hierarchy.rows(archive, question)
        end = None if asked.limit is None else asked.offset + asked.limit
        for row in islice(found, asked.offset, end):
            line = [json.text_of(row.get(json.key(tag))) for tag in tags]
            line += [
                "\\".join("" if value is None else str(value) for value in values_at(row, path))
                for path in wanted.paths
            ]
            yield dict(sorted(row.items())), line
        found.close()
        _warn(archive.warnings)


def _warn(warnings: Iterable[str]) -> None:
    for warning in warnings:
        click.echo(f"hilum: {warning}", err=True)
