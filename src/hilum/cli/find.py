"""hilum find: rows out of the index."""

from __future__ import annotations

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
@common.common_options
def command(
    level: str,
    pairs: tuple[str, ...],
    include: tuple[str, ...],
    limit: int | None,
    offset: int,
    order: tuple[str, ...],
    store_path: str,
    as_json: bool,
    verbose: bool,
) -> None:
    """Find patients, studies, series or instances.

    Keys are keywords or tags of indexed attributes; values may be lists of UIDs, hold the wildcards * and ?,
    or be ranges of dates and times. Without --order the newest studies come first.

    \b
    Example:
        hilum find studies PatientName='*smi*' StudyDate=20240101-
        hilum find series StudyInstanceUID=1.2.3 --include StationName --json
    """
    from hilum.dicom import dictionary, uids
    from hilum.engine import query

    wanted = [query.parse_path(name) for names in include for name in names.split(",")]
    with common.open_store(store_path, read_only=True) as store:
        rows = store.find_iter(level, common.parse_pairs(pairs), limit=limit, offset=offset, order=order)
        if as_json:
            for row in rows:
                common.print_json(store.row_json(row, wanted))
            return
        columns = list(_COLUMNS[level])
        for path in wanted:
            name = ".".join(dictionary.keyword_of(tag) or dictionary.format_tag(tag) for tag in path)
            columns.append((name.upper(), path[-1]))
        cells = []
        for row in rows:
            line = [row.text(tag) for _, tag in columns[: len(_COLUMNS[level])]]
            if level == "instances":
                line[5] = uids.name_of(line[5]) or line[5]
            line += [store.row_text(row, path) for path in wanted]
            cells.append(line)
    if cells:
        common.print_table([heading for heading, _ in columns], cells)
    if verbose or not cells:
        click.echo(f"{len(cells)} {level}", err=True)
