"""hilum serve: the store by DICOMweb and DIMSE, until it is told to stop."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from hilum.cli import common

if TYPE_CHECKING:
    from hilum.settings import Settings


@click.command("serve")
@click.option("--http", "listen", metavar="HOST:PORT", help="Where to listen; port 0 takes a free one.")
@click.option("--no-http", is_flag=True, help="Serve DIMSE alone.")
@click.option("--dicom", metavar="HOST:PORT", help="Serve DIMSE there; port 0 takes a free one.")
@click.option("--aet", metavar="TITLE", help="Our AE title.")
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
    no_http: bool,
    dicom: str | None,
    aet: str | None,
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
    """Serve the store as DICOMweb, at /dicom-web, and by DIMSE where that is asked for.

    Settings come from hilum.toml, then the environment (HILUM_HTTP_LISTEN for http.listen), then the options
    here; what comes later weighs more. Listens on this machine alone, unless it is told otherwise. Prints its
    address when requests are answered; Ctrl-C or SIGTERM end it.

    \b
    Example:
        hilum serve --store ./archive
        hilum serve --dicom 127.0.0.1:11112 --aet HILUM
        hilum serve --http 0.0.0.0:8080 --workers 4 --set auth.method=basic
    """
    from hilum import settings

    flags: dict[str, Any] = dict(common.parse_pairs(others))
    named = {
        "http.listen": "" if no_http else listen,
        "dimse.listen": dicom,
        "dimse.title": aet,
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

    if not wanted.http.listen and not wanted.dimse.listen:
        raise click.UsageError("neither HTTP nor DIMSE is to be served: give --http or --dicom")
    _ensure_store(wanted.store, create=create)
    host = wanted.http.listen and settings.parse_listen(wanted.http.listen)[0]
    if host and host not in ("127.0.0.1", "::1", "localhost") and wanted.auth.method == "none":
        click.echo(f"whoever reaches {host} can read all of it: see auth.method in hilum init", err=True)
    with _dimse(wanted) as node:
        said = {"dicom": node} if node else {}
        if not wanted.http.listen:
            _say(as_json, {"store": wanted.store, **said}, f"Hilum serves {wanted.store} at {node}")
            _wait_for_signal()
            return
        from hilum.web import server
        from hilum.web.context import ROOT

        def ready(url: str) -> None:
            document = {"url": url, "dicomweb": f"{url}{ROOT}", "store": wanted.store, **said}
            beside = f", DIMSE at {node}" if node else ""
            _say(as_json, document, f"Hilum serves {wanted.store} at {url}/, DICOMweb at {url}{ROOT}{beside}")

        server.serve(wanted, ready, lambda words: click.echo(words, err=True))


def _ensure_store(path: str, *, create: bool) -> None:
    """What is wrong with the store is said here, once, and not by each process."""
    from hilum import api
    from hilum.errors import StoreMissing

    try:
        with api.open(path, create=create):
            pass
    except StoreMissing as failure:
        hint = "; make one with --create" if "no store" in str(failure) else ""
        raise StoreMissing(f"{failure}{hint}") from failure


@contextlib.contextmanager
def _dimse(wanted: Settings) -> Iterator[str]:
    """Serve DIMSE meanwhile, if that is asked for; gives TITLE@HOST:PORT, or nothing."""
    if not wanted.dimse.listen:
        yield ""
        return
    from hilum.dimse.options import options_of
    from hilum.dimse.server import Server

    with Server(options_of(wanted), wanted.store) as running:
        host, port = running.address
        yield f"{wanted.dimse.title}@{host}:{port}"


def _wait_for_signal() -> None:
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    stopped.wait()


def _say(as_json: bool, document: dict[str, str], words: str) -> None:
    if as_json:
        common.print_json(document)
    else:
        click.echo(words)
