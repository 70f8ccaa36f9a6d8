"""Two relay processes that drain one inbox, against one.

The downstream takes some time for each request, as real ones do. Rounds alternate, and the ratio is the median over the
rounds. Everything runs on 127.0.0.1.
"""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from typing import Annotated

import typer

from benchmarks import harness
from benchmarks.filling import bodies_of, preload
from benchmarks.harness import AsJson, Kind, OnDatabase, Rounds, Side


def main(
    *,
    database: OnDatabase = Kind.POSTGRES,
    processes: Annotated[int, typer.Option(min=2, max=16, help="How many are held against one.")] = 2,
    milliseconds: Annotated[int, typer.Option(min=0, max=10_000, help="How long the downstream takes.")] = 20,
    concurrency: Annotated[int, typer.Option(min=1, max=256, help="Calls at a time of each process.")] = 8,
    events: Annotated[int, typer.Option(min=100, max=200_000, help="In the inbox at the start of a round.")] = 4000,
    rounds: Rounds = 3,
    as_json: AsJson = False,
) -> None:
    """Measure the rate of `relay run --drain --processes N`."""
    several, one = Side(f"{processes} processes"), Side("one process", bar=0.9 * processes)
    with ExitStack() as stack:
        (url,) = stack.enter_context(harness.databases(database))
        server = stack.enter_context(harness.downstream(milliseconds))
        environment = stack.enter_context(harness.configure(url, f"{server}/hook", concurrency))
        for _ in range(rounds):
            for side, number in ((several, processes), (one, 1)):
                asyncio.run(preload(url, environment, bodies_of(events)))
                harness.get(server)
                harness.drain(environment, number)
                side.rates.append(harness.rate(server, events))
    notes = {"events": events, "milliseconds": milliseconds, "concurrency": concurrency}
    title = f"{processes} relay processes against one, {database}: deliveries per second"
    harness.report(title, [several, one], notes, as_json=as_json)


if __name__ == "__main__":
    harness.start(main)
