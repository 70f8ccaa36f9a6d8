"""`inbox`: the command line of the receiver. A command imports the database and the receiver only when it runs."""

from __future__ import annotations

from typing import Annotated

import typer

from relay.cli import listings
from relay.cli.examine import check, doctor, show
from relay.cli.operations import OF_INBOX
from relay.cli.options import program, run
from relay.cli.setup import copy, init, migrate, roles, schema, send
from relay.cli.web import become_gunicorn

app = program(
    """Receive webhooks without ever losing one. Reads inbox.toml from the working directory, or the file that INBOX_CONFIG names.

    Examples:
      inbox migrate
      inbox serve
      inbox list --state dead
    """
)


def main() -> None:
    """Run the command line."""
    run(app)


@app.command()
def serve(
    bind: Annotated[str, typer.Option(help="Address and port.")] = "127.0.0.1:8000",
    workers: Annotated[int | None, typer.Option(min=1, help="Number of processes; use one on SQLite.")] = None,
) -> None:
    """Serve the receiver with gunicorn. SIGHUP reloads the configuration.

    Examples:
      inbox serve
      inbox serve --bind 0.0.0.0:8080 --workers 4
    """
    from inbox.loader.load import load_file
    from inbox.receiver.app import make_endpoints

    load_file().make(make_endpoints)  # report mistakes before gunicorn prints its own lines
    become_gunicorn("inbox.gunicorn_settings", bind, workers)


for command in (migrate, roles, init, schema, check, doctor, send, show, *OF_INBOX, copy):
    app.command()(command)
for name, command in listings.OF_INBOX.items():
    app.command(name)(command)
