"""hilum show: one data set, as text or DICOM JSON."""

from __future__ import annotations

import warnings

import click

from hilum.cli import common
from hilum.errors import BadDicom

_INLINE_MAX = 1024  # bytes of a binary value in JSON; a longer one is named by a URI


@click.command("show")
@click.argument("uid")
@common.common_options
def command(uid: str, store_path: str, as_json: bool, verbose: bool) -> None:
    """Print the data set of the instance with this SOP Instance UID.

    \b
    Example:
        hilum show 1.2.840.113619.2.1.1
        hilum show 1.2.840.113619.2.1.1 --json | jq '."00100010"'
    """
    with common.open_store(store_path, read_only=True) as store, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom warns of values that are merely odd
        dataset = store.dataset(uid)
        try:
            if as_json:
                document = dataset.to_json_dict(
                    bulk_data_threshold=_INLINE_MAX,
                    bulk_data_element_handler=lambda element: f"bulkdata/{int(element.tag):08X}",
                    suppress_invalid_tags=True,
                )
            else:
                text = str(dataset)
        except Exception as failure:  # pydicom raises many kinds for values that can't be decoded
            raise BadDicom(f"pydicom can't show this data set: {failure}") from None
    if as_json:
        common.print_json(document)
    else:
        click.echo(text)
