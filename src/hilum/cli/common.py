"""What all commands share: the store's option, keys, errors as words and exit codes, progress, tables."""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from hilum.errors import BadQuery, HilumError, StoreMissing

if TYPE_CHECKING:
    from hilum.api import Store

F = TypeVar("F", bound=Callable[..., Any])

FAILED, WRONG_USE, INTERRUPTED = 1, 2, 130
_PLAIN_SECONDS = 5.0  # between two lines of progress where there is no terminal


def common_options(command: F) -> F:
    """--store, --json and -v, which every command takes."""
    command = click.option("-v", "--verbose", is_flag=True, help="Say more on standard error.")(command)
    command = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")(command)
    return click.option(
        "--store",
        "store_path",
        metavar="DIR",
        envvar="HILUM_STORE",
        default="./hilum-store",
        help="Folder of the store.  [default: $HILUM_STORE, else ./hilum-store]",
    )(command)


def run(cli: click.Group, args: list[str] | None) -> Any:
    """Run the group; turn Hilum's errors into one line and an exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names and paths may hold what its encoding can't say
            stream.reconfigure(errors="backslashreplace")
    try:
        status = cli.main(args=args, prog_name="hilum", standalone_mode=False)
    except click.exceptions.Abort:
        click.echo("interrupted", err=True)
        sys.exit(INTERRUPTED)
    except click.ClickException as failure:
        failure.show()
        sys.exit(failure.exit_code)
    except HilumError as failure:
        click.echo(f"hilum: {failure}", err=True)
        sys.exit(WRONG_USE if isinstance(failure, BadQuery) else FAILED)
    except BrokenPipeError:
        # The reader of our output has gone. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILED)
    except OSError as failure:
        click.echo(
            f"hilum: {failure.filename or ''}: {failure.strerror or failure}".replace(" :", ""), err=True
        )
        sys.exit(FAILED)
    sys.exit(status if isinstance(status, int) else 0)


def open_store(path: str, *, create: bool = False, read_only: bool = False) -> Store:
    """Open the store of a command; reading commands leave no trace in it."""
    from hilum import api

    try:
        return api.open(path, create=create, read_only=read_only)
    except StoreMissing as failure:
        hint = "" if create or "rebuild" in str(failure) else "; make one with: hilum import PATH --store DIR"
        raise StoreMissing(f"{failure}{hint}") from failure


def parse_pairs(words: Iterable[str]) -> list[tuple[str, str]]:
    """KEY=VALUE words to pairs.

    Raises:
        click.UsageError: a word without "=".
    """
    pairs = []
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name:
            raise click.UsageError(f"{word!r} is not of the form KEY=VALUE")
        pairs.append((name, text))
    return pairs


def print_json(document: Any) -> None:
    """One JSON document on a line of its own."""
    import orjson

    try:
        data = orjson.dumps(document)
    except TypeError:  # something that it refuses, but that a data set or a file name may hold
        data = orjson.dumps(_sayable(document))
    click.echo(data)


def _sayable(document: Any) -> Any:
    """Integers of more than 64 bits as text, as PS3.18 F.2.3 allows; text without half surrogates."""
    if isinstance(document, dict):
        return {_sayable(key): _sayable(value) for key, value in document.items()}
    if isinstance(document, list | tuple):
        return [_sayable(value) for value in document]
    if isinstance(document, str):
        return document.encode("utf-8", "replace").decode()
    if isinstance(document, int) and not -(1 << 63) <= document < 1 << 64:
        return str(document)
    return document


def human_bytes(count: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def human_seconds(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
    return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min"


class Progress:
    """A bar with rate and time left on a terminal, a line now and then elsewhere, nothing for programs."""

    def __init__(self, what: str, *, quiet: bool) -> None:
        self._what = what
        self._quiet = quiet
        self._begin = self._last = time.monotonic()
        self._bar: Any = None
        self._task: Any = None
        if not quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[done]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._bar.add_task(what, total=None, done="")
            self._bar.start()

    def update(self, done: float, total: float | None, text: str) -> None:
        """`done` of `total` (None while unknown) in any unit; `text` says it in words."""
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total, done=text)
        elif not self._quiet and now - self._last >= _PLAIN_SECONDS:
            self._last = now
            left = ""
            if total and done:
                left = f", {human_seconds((now - self._begin) * (total - done) / done)} left"
            click.echo(f"{self._what}: {text}{left}", err=True)

    def say(self, line: str) -> None:
        """Print a line to standard error without breaking the bar."""
        line = _printable(line)  # names of files are anybody's
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            click.echo(line, err=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table for people: fitted to the terminal, unbroken where the output goes elsewhere."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=not sys.stdout.isatty())
    for row in rows:
        table.add_row(*[Text(_printable(cell)) for cell in row])
    console = Console() if sys.stdout.isatty() else Console(width=10_000)
    with console.capture() as captured:
        console.print(table)
    for line in captured.get().splitlines():
        click.echo(line.rstrip())


def _printable(text: str) -> str:
    """Text of a data set, safe for a terminal: control characters could move the cursor."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
