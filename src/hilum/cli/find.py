"""hilum find: rows out of the index."""

from __future__ import annotations

from collections.abc import Iterable

import click

from hilum.cli import common

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
    store_path: str,
    as_json: bool,
    verbose: bool,
) -> None:
    """Find patients, studies, series or instances.

    A KEY is a keyword or tag of any attribute, a path into sequences with full stops between, or a private
    element with its creator. A VALUE may be a list of UIDs, hold the wildcards * and ?, be a range of dates
    and times, or be "" (two quotation marks) for what is empty or absent. Attributes that are not indexed are
    read from each object that may match, which takes its time. Without --order the newest studies come first.

    \b
    Example:
        hilum find studies PatientName='*smi*' StudyDate=20240101-
        hilum find series StudyInstanceUID=1.2.3 --include StationName --json
        hilum find instances RequestAttributesSequence.RequestedProcedureID=R7
        hilum find instances '0029,"SIEMENS CSA HEADER",08=IMAGE NUM 4'
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
    with common.open_store(store_path, read_only=True) as store:
        found = store.search(asked)
        if as_json:
            for row in found:
                common.print_json(store.row_json(row, wanted))
            _warn(found.warnings)
            return
        columns = list(_COLUMNS[level])
        columns += [(dictionary.format_path(path).upper(), 0) for path in wanted.paths]
        cells = []
        for row in found:
            line = [row.text(tag) for _, tag in _COLUMNS[level]]
            if level == "instances":
                line[5] = uids.name_of(line[5]) or line[5]
            line += [store.row_text(row, path) for path in wanted.paths]
            cells.append(line)
    if cells:
        common.print_table([heading for heading, _ in columns], cells)
    _warn(found.warnings)
    if verbose or not cells:
        click.echo(f"{len(cells)} {level}", err=True)


def _warn(warnings: Iterable[str]) -> None:
    for warning in warnings:
        click.echo(f"hilum: {warning}", err=True)
