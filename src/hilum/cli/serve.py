"""hilum serve: the store as DICOMweb, until it is told to stop."""

from __future__ import annotations

from typing import Any

import click

from hilum.cli import common


@click.command("serve")
@click.option("--http", "listen", metavar="HOST:PORT", help="Where to listen; port 0 takes a free one.")
@click.option("--workers", type=click.IntRange(min=1), help="Processes that answer requests.")
@click.option("--store", "store_path", metavar="DIR", help="Folder of the store.")
@click.option("--create", is_flag=True, help="Make the store if it is not there.")
@click.option("--config", metavar="FILE", help="Settings; see hilum init.")
@click.option("--viewer", metavar="NAME|DIR", help="Serve a viewer too: ohif, or a folder.")
@click.option("--base-url", metavar="URL", help="What URLs in answers begin with.")
@click.option(
    "--cors", multiple=True, metavar="ORIGIN", help="Let pages of this origin ask; may be repeated."
)
@click.option("--allow-delete", is_flag=True, help="Answer DELETE.")
@click.option("--log", "log_file", metavar="FILE", help="Write the log there.")
@click.option("--set", "others", multiple=True, metavar="KEY=VALUE", help="Any other setting.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
def command(
    listen: str | None,
    workers: int | None,
    store_path: str | None,
    create: bool,
    config: str | None,
    viewer: str | None,
    base_url: str | None,
    cors: tuple[str, ...],
    allow_delete: bool,
    log_file: str | None,
    others: tuple[str, ...],
    as_json: bool,
) -> None:
    """Serve the store as DICOMweb, at /dicom-web.

    Settings come from hilum.toml, then the environment (HILUM_HTTP_LISTEN for http.listen), then the options
    here; what comes later weighs more. Listens on this machine alone, unless it is told otherwise. Prints its
    address when requests are answered; Ctrl-C or SIGTERM end it.

    \b
    Example:
        hilum serve --store ./archive
        hilum serve --http 0.0.0.0:8080 --workers 4 --set auth.method=basic
    """
    from hilum import settings

    flags: dict[str, Any] = dict(common.parse_pairs(others))
    named = {
        "http.listen": listen,
        "http.workers": workers,
        "store": store_path,
        "viewer.name": viewer,
        "http.base_url": base_url,
        "cors.origins": list(cors) or None,
        "storing.allow_delete": allow_delete or None,
        "log.file": log_file,
    }
    flags.update((name, value) for name, value in named.items() if value is not None)
    wanted = settings.load(config, flags=flags)

    from hilum.errors import StoreMissing
    from hilum.web import server
    from hilum.web.context import ROOT

    def ready(url: str) -> None:
        if as_json:
            common.print_json({"url": url, "dicomweb": f"{url}{ROOT}", "store": wanted.store})
        else:
            click.echo(f"Hilum serves {wanted.store} at {url}{ROOT}")

    try:
        server.serve(wanted, ready, lambda words: click.echo(words, err=True), create=create)
    except StoreMissing as failure:
        hint = "; make one with --create" if "no store" in str(failure) else ""
        raise StoreMissing(f"{failure}{hint}") from failure
