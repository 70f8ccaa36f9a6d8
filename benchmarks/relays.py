"""Two relay processes draining one inbox, against one: how much of a second process arrives downstream.

The downstream takes its time for each request, as real ones do. Rounds alternate, and the ratio is the median over the
rounds. All of it runs on 127.0.0.1.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from contextlib import ExitStack
from typing import Annotated

import typer

from benchmarks.drain import bodies_of, preload, rate
from benchmarks.support import Kind, Side, configured, databases, downstream, get, machine, report


def main(
    *,
    database: Annotated[Kind, typer.Option(help="Which database.")] = Kind.POSTGRES,
    processes: Annotated[int, typer.Option(min=2, max=16, help="How many are held against one.")] = 2,
    milliseconds: Annotated[int, typer.Option(min=0, max=10_000, help="How long the downstream takes.")] = 20,
    concurrency: Annotated[int, typer.Option(min=1, max=256, help="Calls at a time of each process.")] = 8,
    events: Annotated[int, typer.Option(min=100, max=200_000, help="In the inbox at the start of a round.")] = 4000,
    rounds: Annotated[int, typer.Option(min=1, max=20, help="How often each side is measured.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Measure how fast several relay processes drain the inbox, as `relay run --drain --processes N`."""
    several, one = Side(f"{processes} processes"), Side("one process", bar=0.9 * processes)
    with ExitStack() as stack:
        (url,) = stack.enter_context(databases(database))
        server = stack.enter_context(downstream(milliseconds))
        environment = stack.enter_context(configured(url, f"{server}/hook", concurrency))
        for _ in range(rounds):
            for side, number in ((several, processes), (one, 1)):
                asyncio.run(preload(url, environment, bodies_of(events)))
                get(server)
                command = [sys.executable, "-m", "relay", "run", "--drain", "--processes", str(number)]
                subprocess.run(command, check=True, env=environment)
                side.rates.append(rate(server, events))
    notes = {"events": events, "milliseconds": milliseconds, "concurrency": concurrency, **machine()}
    report(
        f"{processes} relay processes against one, {database}: deliveries per second",
        [several, one],
        notes,
        as_json=as_json,
    )


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(main)
    app()
