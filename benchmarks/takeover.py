"""Time from the SIGKILL of a relay process during a call until another one makes the call.

Everything runs on 127.0.0.1. The downstream answers after the process is killed.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from contextlib import ExitStack

import typer

from benchmarks import harness
from benchmarks.filling import bodies_of, preload
from benchmarks.harness import AsJson, Kind, OnDatabase, Rounds
from benchmarks.rows import ROWS

BAR = ROWS["takeover"].bar
CALL_SECONDS = 2
_LATEST_SECONDS = 120.0


def main(*, database: OnDatabase = Kind.POSTGRES, rounds: Rounds = 3, as_json: AsJson = False) -> None:
    """Measure the takeover of a call after the SIGKILL of its relay."""
    took = []
    with ExitStack() as stack:
        (url,) = stack.enter_context(harness.databases(database))
        server = stack.enter_context(harness.downstream(1000 * CALL_SECONDS))
        environment = stack.enter_context(harness.configure(url, f"{server}/hook"))
        for _ in range(rounds):
            asyncio.run(preload(url, environment, bodies_of(1)))
            with harness.relaying(environment) as victim:
                _until_called(server)
                victim.kill()
                killed_at = time.monotonic()
            with harness.relaying(environment):
                _until_called(server)
                took.append(round(time.monotonic() - killed_at, 1))
                while harness.count_rows(url, "open_delivery"):
                    time.sleep(0.1)
    median = statistics.median(took)
    columns = ("seconds", "median", "bar")
    title = f"Takeover after SIGKILL, {database}"
    harness.tell(title, {"seconds": took}, columns, [(took, median, BAR)], as_json=as_json)
    raise typer.Exit(int(median > BAR))


def _until_called(server: str) -> None:
    deadline = time.monotonic() + _LATEST_SECONDS
    while not harness.seen(server).requests:
        if time.monotonic() > deadline:
            raise SystemExit(f"no call in {_LATEST_SECONDS:g} s")
        time.sleep(0.02)


if __name__ == "__main__":
    harness.start(main)
