"""The `relay` command line: runs the daemon, and shows and changes deliveries.

A command imports the daemon, the demo services and the HTTP client only when it runs: `relay --help` loads none of them.
"""

from __future__ import annotations

from typing import Annotated

import typer

from relay.cli import listings, options
from relay.cli.compare import plan, rebuild, sweep, verify
from relay.cli.operations import OF_RELAY
from relay.cli.status import status
from relay.cli.web import demo_app, web_app

GRACE_SECONDS = 20.0

app = options.program(
    """Deliver stored webhooks to other systems, in order and with retries. Reads the same inbox.toml as `inbox`.

    Examples:
      relay run
      relay status
      relay dead --route crm
    """
)
app.add_typer(demo_app, name="demo")
app.add_typer(web_app, name="web")


def main() -> None:
    """Run the command line."""
    options.run(app)


@app.command()
def run(
    *,
    drain: Annotated[bool, typer.Option("--drain", help="Exit once nothing is received, due or in flight.")] = False,
    processes: Annotated[
        int, typer.Option(min=1, max=256, help="Number of relay processes; one that dies is replaced.")
    ] = 1,
    grace: Annotated[
        float, typer.Option(min=0, help="Seconds that running calls get to finish after a stop.")
    ] = GRACE_SECONDS,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log every delivery, not only failures.")] = False,
    parent: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Run the relay until it is stopped.

    SIGTERM and Ctrl-C stop it gracefully: running calls finish, unstarted deliveries are released; a second signal cuts
    running calls. SIGHUP reloads the configuration.

    Examples:
      relay run
      relay run --drain --verbose
      relay run --processes 3 --grace 60
    """
    from relay.daemon.process import RunOptions, start

    given = RunOptions(grace_seconds=grace, processes=processes, drain=drain, verbose=verbose, parent=parent)
    raise typer.Exit(start(given))


for command in (status, *OF_RELAY, plan, sweep, verify, rebuild):
    app.command()(command)
for name, command in listings.OF_RELAY.items():
    app.command(name)(command)
