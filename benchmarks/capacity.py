"""Capacity of a fleet of relay processes on one Postgres: a model of it, and its comparison with real runs.

The model (`benchmarks.capacity_model`) is a simulation of queues. `--here` takes its costs from runs on this machine instead of
those below; `--check` also holds it against further runs with other concurrencies and more processes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from itertools import product
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.capacity_costs import FITTED_AT, Run, Testbed, fitted
from benchmarks.capacity_model import Costs, Fleet, bound, simulate
from benchmarks.support import Kind, databases

DAY = 86_400
WAL = 2_940
"""Bytes for each event with a body of 100 bytes, received and delivered: docs/reference/sizes.md."""
PEAK = 3
"""Times the average of a day that its busiest hour may have."""
MICRO = 1e-6
MEASURED = Costs(
    call=424 * MICRO,
    loop_event=102 * MICRO,
    loop_transaction=1570 * MICRO,
    server_event=73 * MICRO,
    server_transaction=1045 * MICRO,
    commit=250 * MICRO,
    downstream=66 * MICRO,
)
"""Of two slow cores, by `--here`."""
CHECKED = tuple(product((1, 2, 4), (8, 16, 24)))
"""Processes, and calls at a time of each."""
BAR = 0.15
"""Largest difference between the model and a run."""


def forecast(costs: Costs, fleet: Fleet) -> dict[str, object]:
    """A row of the table: a fleet, its rate, what a day's peak leaves of it, and what gives first."""
    found = simulate(costs, fleet)
    return {
        "processes": fleet.processes,
        "locks": fleet.locks,
        "per_second": round(found.rate),
        "at_most": round(bound(costs, fleet)),
        "millions_a_day": round(found.rate * DAY / PEAK / 1e6),
        "wal_mb_per_second": round(found.rate * WAL / 1e6, 1),
        "transactions": round(found.transactions, 3),
        "first": found.first(),
        "use": {name: round(used, 2) for name, used in found.use.items()},
    }


def compare(costs: Costs, fleet: Fleet, run: Run) -> dict[str, object]:
    """Hold a run against the model, in which other programs use as much as they did."""
    model = simulate(costs, msgspec.structs.replace(fleet, others=run.others))
    return {
        "processes": fleet.processes,
        "concurrency": fleet.concurrency,
        "measured": round(run.rate),
        "model": round(model.rate),
        "difference": round(model.rate / run.rate - 1, 3),
        "measured_transactions": round(run.transactions, 3),
        "model_transactions": round(model.transactions, 3),
        "others": round(run.others, 2),
    }


def costs_of(testbed: Testbed, answer: float, seconds: float) -> Costs:
    """Measure the costs on this machine."""
    commit = testbed.commit()
    return fitted([testbed.run(_here(*each, answer), seconds) for each in FITTED_AT], commit)


def _here(processes: int, concurrency: int, answer: float) -> Fleet:
    return Fleet(processes, concurrency, answer, os.cpu_count() or 1, 0)


def main(
    *,
    check: Annotated[bool, typer.Option("--check", help="Measure here, and hold the model against it.")] = False,
    here: Annotated[bool, typer.Option("--here", help="Measure the costs on this machine.")] = False,
    slower: Annotated[
        float, typer.Option(min=0.01, help="Times that your processors take for the same, against the measured.")
    ] = 1,
    commit: Annotated[float | None, typer.Option(min=0, help="Milliseconds that a commit waits for your disk.")] = None,
    milliseconds: Annotated[int, typer.Option(min=1, help="How long the downstream takes.")] = 20,
    concurrency: Annotated[int, typer.Option(min=1, max=256, help="Calls at a time of each process.")] = 8,
    server_cores: Annotated[int, typer.Option(min=1, help="Cores of the host of Postgres.")] = 16,
    processes: Annotated[list[int], typer.Option(help="How many; again for others.")] = [1, 4, 16, 64, 256],  # noqa: B006
    locks: Annotated[list[int], typer.Option(help="Busy routes: each has an order lock.")] = [1],  # noqa: B006
    seconds: Annotated[float, typer.Option(min=1, help="Of each run that is measured.")] = 6,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Say what relay processes on many hosts deliver, and what gives first; a host has a core for each process."""
    costs, answer = MEASURED.scaled(slower), milliseconds / 1000
    rows: list[dict[str, object]] = []
    if check or here:
        with databases(Kind.POSTGRES) as (url,):
            testbed = Testbed(url)
            costs = costs_of(testbed, answer, seconds)
            for number, calls in CHECKED if check else ():
                fleet = _here(number, calls, answer)
                rows.append(compare(costs, fleet, testbed.run(fleet, seconds)))
    if commit is not None:
        costs = msgspec.structs.replace(costs, commit=commit / 1000)
    if not check:
        costs_elsewhere = msgspec.structs.replace(costs, downstream=0.0)
        rows = [
            forecast(costs_elsewhere, Fleet(number, concurrency, answer, number, server_cores, several))
            for several in locks
            for number in processes
        ]
    notes = {"microseconds": {name: round(value / MICRO) for name, value in msgspec.structs.asdict(costs).items()}}
    _show(rows, {**notes, "load": os.getloadavg()[0]}, as_json=as_json)
    if missed := sum(abs(float(str(row.get("difference", 0)))) > BAR for row in rows):
        busiest = max(float(str(row["others"])) for row in rows)
        raise SystemExit(
            f"{missed} of {len(rows)} differ by more than {BAR:.0%}; other programs used up to {busiest} cores"
        )


def _show(rows: Sequence[dict[str, object]], notes: dict[str, object], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"rows": rows, **notes}, indent=2))
        return
    names = [name for name in rows[0] if name != "use"]  # it is too wide for a terminal
    table = Table(*names)
    for row in rows:
        table.add_row(*(str(row[name]) for name in names))
    console = Console(soft_wrap=True)
    console.print(table)
    for name, value in notes.items():
        console.print(f"{name}: {value}", highlight=False)


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(main)
    app()
