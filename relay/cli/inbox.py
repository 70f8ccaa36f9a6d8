"""`inbox`: the command line of the receiver.

A command imports the database and the receiver only when it runs: `inbox --help` loads neither.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from relay.cli.check import check_command
from relay.cli.command_line import Commands, options, run
from relay.cli.copy import copy_command
from relay.cli.doctor import doctor_command
from relay.cli.init import init_command
from relay.cli.listings import INBOX
from relay.cli.migrate import migrate_command, roles_command
from relay.cli.operations import OF_INBOX
from relay.cli.send import send_command
from relay.cli.story import show_command
from relay.cli.terminal import exit_on_error

app = typer.Typer(
    cls=Commands,
    help="""Receive webhooks without ever losing one. Reads inbox.toml in this folder, or the file that INBOX_CONFIG names.

    Examples:
      inbox migrate
      inbox serve
      inbox list --state dead
    """,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.callback()(options)


def main() -> None:
    """Run the command line."""
    run(app)


@app.command()
def serve(
    bind: Annotated[str, typer.Option(help="Address and port.")] = "127.0.0.1:8000",
    workers: Annotated[int | None, typer.Option(help="Processes; on SQLite one is best.")] = None,
) -> None:
    """Serve the receiver with gunicorn. SIGHUP reads the configuration again.

    Examples:
      inbox serve
      inbox serve --bind 0.0.0.0:8080 --workers 4
    """
    from inbox.loader.load import load_file
    from inbox.receiver.app import endpoints_of

    with exit_on_error():
        load_file().make(endpoints_of)  # gunicorn would say the same, below its own lines
    arguments = [sys.executable, "-m", "gunicorn", "--config", "python:inbox.gunicorn_settings", "--bind", bind]
    if workers is not None:
        arguments += ["--workers", str(workers)]
    os.execv(sys.executable, arguments)  # noqa: S606  # gunicorn takes this process over, and its signals


app.command("migrate")(migrate_command)
app.command("roles")(roles_command)
app.command("init")(init_command)
app.command("check")(check_command)
app.command("doctor")(doctor_command)
app.command("send")(send_command)
app.command("list")(INBOX["list"])
app.command("show")(show_command)
app.command("tail")(INBOX["tail"])
app.command("commands")(INBOX["commands"])
app.command("rejected")(INBOX["rejected"])
for command in OF_INBOX:
    app.command()(command)
app.command("copy")(copy_command)
