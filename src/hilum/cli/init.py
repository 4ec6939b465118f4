"""hilum init: a hilum.toml with all settings, and the file of users."""

from __future__ import annotations

import os
import sys

import click


@click.command("init")
@click.argument("file", default="hilum.toml", metavar="[FILE]")
@click.option("--user", metavar="NAME", help="Ask for this user's password and keep its hash.")
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input.")
def command(file: str, user: str | None, password_stdin: bool) -> None:
    """Write a hilum.toml with every setting, its default and what it means.

    A file that is there is left as it is. With --user a name and password are entered into the file of users
    beside it, and the server asks for them: auth.method is "basic" in a hilum.toml that is written now.

    \b
    Example:
        hilum init
        hilum init --user alice
    """
    from hilum import settings

    text = settings.template()
    if user is not None:
        text = text.replace('#method = "none"', 'method = "basic"')
    try:
        with open(file, "x", encoding="utf-8") as out:
            out.write(text)
        click.echo(f"wrote {file}")
    except FileExistsError:
        if user is None:
            click.echo(f"{file} is there already", err=True)
            sys.exit(1)
    if user is None:
        return
    from hilum.web import security

    wanted = settings.load(file, {})
    if password_stdin:
        password = sys.stdin.readline().rstrip("\r\n")
    else:
        password = click.prompt(f"Password of {user}", hide_input=True, confirmation_prompt=True)
    security.write_user(wanted.auth.users_file, user, password)
    click.echo(f"{user} is in {os.path.relpath(wanted.auth.users_file)}")
    if wanted.auth.method != "basic":
        click.echo(f'nobody is asked for a name yet: set auth.method to "basic" in {file}', err=True)
