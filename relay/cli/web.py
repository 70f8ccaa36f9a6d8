"""`relay web`: the operator's page, and the commands that say who may use it."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import Annotated

import typer

from relay.cli.command_line import Commands
from relay.cli.terminal import answer, exit_on_error, fail, say

app = typer.Typer(cls=Commands, add_completion=False)

_Role = Annotated[str, typer.Option(help="viewer, who sees, or operator, who may also act.")]
_Into = Annotated[
    Path | None,
    typer.Option(help="File that gets the line, in place of the one with the same name; else it is printed."),
]


@app.callback(invoke_without_command=True)
def web(
    context: typer.Context,
    *,
    bind: Annotated[
        str, typer.Option(help="Address and port; behind a proxy with TLS if others are to reach it.")
    ] = "127.0.0.1:8025",
) -> None:
    """Serve the operator's page and its API with gunicorn. SIGHUP reads the configuration again.

    It is closed until `web.users`, `web.tokens` or `web.proxy` in the configuration says who may use it.

    Examples:
      relay web passwd anna --role operator --into users
      relay web
      relay web --bind 0.0.0.0:8025
    """
    if context.invoked_subcommand is not None:
        return
    from inbox.loader.load import load_file
    from relay.web.app import page_of

    with exit_on_error():
        load_file().make(page_of)  # gunicorn would say the same, below its own lines
    _check_address(bind)
    arguments = ["--config", "python:relay.web.gunicorn_settings", "--bind", bind, "--workers", "1"]
    os.execv(sys.executable, [sys.executable, "-m", "gunicorn", *arguments])  # noqa: S606  # it takes this process over


@app.command()
def passwd(
    name: Annotated[str, typer.Argument(help="Name of the person.")],
    *,
    role: _Role,
    into: _Into = None,
) -> None:
    """Hash a password, and print the line of the person for the file that `web.users` names.

    Asks for the password twice without showing it. Where standard input is no terminal, its first line is the password.

    Examples:
      relay web passwd anna --role operator
      relay web passwd ben --role viewer --into users
    """
    from relay.accounts import check_password_hash, hash_password, write_entry

    _check(name, role)
    if sys.stdin.isatty():
        password = str(typer.prompt("Password", hide_input=True, confirmation_prompt=True, err=True))
    else:
        password = sys.stdin.readline().rstrip("\r\n")
    try:
        line = f"{name}:{role}:{hash_password(password)}"
    except ValueError as error:
        fail(str(error))
    with exit_on_error():
        if into is None:
            answer(line)
        else:
            write_entry(into, name, line, check_password_hash)
            say(f"{into} has the password of {name}, {role}; `web.users` in inbox.toml names the file")


@app.command()
def token(
    name: Annotated[str, typer.Argument(help="Name of the program that will use the token.")],
    *,
    role: _Role,
    into: _Into = None,
) -> None:
    """Make a token for the API, print it once, and print the line of the program for the file that `web.tokens` names.

    Only the hash of the token is in the line. The program sends it as `Authorization: Bearer TOKEN`.

    Examples:
      relay web token grafana --role viewer --into tokens
    """
    from relay.accounts import check_token_hash, hash_token, new_token, write_entry

    _check(name, role)
    made = new_token()
    line = f"{name}:{role}:{hash_token(made)}"
    with exit_on_error():
        if into is not None:
            write_entry(into, name, line, check_token_hash)
            say(f"{into} has the hash of the token of {name}, {role}; the token itself is shown only this once:")
            answer(made)
            return
    say("the token, shown only this once, and its line for the file that web.tokens names:")
    answer(made)
    answer(line)


def _check_address(bind: str) -> None:
    """Exit where another program listens on this address: gunicorn would try for five seconds, and not say what to do."""
    host, separator, port = bind.rpartition(":")
    if not separator or not port.isdecimal() or "/" in host:
        return  # a socket, or something that gunicorn judges
    host = host.strip("[]")
    try:
        socket.create_server((host, int(port)), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except (OSError, OverflowError) as error:
        why = str(getattr(error, "strerror", None) or error).partition(" (while")[0]
        fail(f"can't listen on {bind}: {why}; name another address and port with --bind")


def _check(name: str, role: str) -> None:
    from relay.accounts import NAMES, ROLES, is_name

    if not is_name(name):
        fail(f"a name has {NAMES}")
    if role not in ROLES:
        fail(f"--role must be {' or '.join(ROLES)}")
