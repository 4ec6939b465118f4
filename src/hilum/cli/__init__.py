"""The command line: one file for each command, over hilum.api. Loads only the command that is asked for."""

from __future__ import annotations

import importlib
from typing import Any

import click

import hilum

# Name → (module, line for `hilum --help`). The lines stand here so that help loads no command.
COMMANDS = {
    "import": ("import_", "Store files and folders, durably."),
    "serve": ("serve", "Serve the store as DICOMweb."),
    "init": ("init", "Write a file with all settings; enter a user."),
    "find": ("find", "Find patients, studies, series or instances."),
    "echo": ("echo", "Ask a DICOM node whether it answers."),
    "store": ("store", "Send to a DICOM node."),
    "move": ("move", "Let a DICOM node send to another."),
    "get": ("get", "Fetch from a DICOM node."),
    "push": ("push", "Send to a DICOMweb server."),
    "pull": ("pull", "Fetch from a DICOMweb server."),
    "peers": ("peers", "List and test the archives that are known."),
    "export": ("export", "Write files as they came in."),
    "show": ("show", "Print the data set of an instance."),
    "frame": ("frame", "Write one frame as a picture or as it is stored."),
    "delete": ("delete", "Delete patients, studies, series or instances."),
    "stats": ("stats", "Count what is stored, and the bytes it takes."),
    "verify": ("verify", "Prove stored bytes and index against each other."),
    "compact": ("compact", "Give back the space of what is gone."),
    "purge": ("purge", "Forget older revisions."),
    "rebuild": ("rebuild", "Make the index anew, from the packs alone."),
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"hilum.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(hilum.__version__, prog_name="hilum")
def cli() -> None:
    """Hilum, a DICOM storage engine.

    \b
    Example:
        hilum import /media/cdrom --store ./archive
        hilum find studies PatientName='smith*' --store ./archive

    The store is --store DIR, else $HILUM_STORE, else ./hilum-store. Exit status: 0 done, 1 something
    failed, 2 wrong use.
    """


def main(args: list[str] | None = None) -> Any:
    """Run the command line; never ends in a traceback for what a user or a disk did."""
    from hilum.cli.common import run

    return run(cli, args)
