"""Time from the SIGKILL of a relay process until another one makes the call that it was in the middle of.

All of it runs on 127.0.0.1. The downstream answers later than the killed process lives.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from contextlib import ExitStack
from typing import Annotated

import msgspec
import typer

from benchmarks.drain import Seen, bodies_of, preload
from benchmarks.rows import ROWS
from benchmarks.support import Kind, configured, count_rows, databases, downstream, get, machine, relaying

BAR_SECONDS = ROWS["takeover"].bar
CALL_SECONDS = 2
_LATEST_SECONDS = 120.0


def main(
    *,
    database: Annotated[Kind, typer.Option(help="Which database.")] = Kind.POSTGRES,
    rounds: Annotated[int, typer.Option(min=1, max=20, help="How often a process is killed.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Kill a relay in the middle of a call, beside another one."""
    took = []
    with ExitStack() as stack:
        (url,) = stack.enter_context(databases(database))
        server = stack.enter_context(downstream(1000 * CALL_SECONDS))
        environment = stack.enter_context(configured(url, f"{server}/hook"))
        for _ in range(rounds):
            asyncio.run(preload(url, environment, bodies_of(1)))
            with relaying(environment) as victim:
                _until_called(server)
                victim.kill()
                killed_at = time.monotonic()
            with relaying(environment):
                _until_called(server)
                took.append(round(time.monotonic() - killed_at, 1))
                while count_rows(url, "open_delivery"):
                    time.sleep(0.1)
    notes = {"seconds": took, "median": statistics.median(took), "bar_seconds": BAR_SECONDS, **machine()}
    print(json.dumps(notes, indent=2) if as_json else f"Takeover after SIGKILL, {database}: {notes}")
    raise typer.Exit(int(statistics.median(took) > BAR_SECONDS))


def _until_called(server: str) -> None:
    deadline = time.monotonic() + _LATEST_SECONDS
    while not msgspec.json.decode(get(server), type=Seen).requests:
        if time.monotonic() > deadline:
            raise SystemExit(f"no call in {_LATEST_SECONDS:g} s")
        time.sleep(0.02)


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(main)
    app()
