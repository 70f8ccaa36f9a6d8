"""A relay that drains a full inbox to a forward destination, against a bare loop of posting threads, and queues.

All call the same trivial downstream, which measures the seconds from the first request to the last. Rounds alternate, and
the ratio is the median over the rounds. Everything runs on 127.0.0.1.
"""

from __future__ import annotations

import argparse
import asyncio
import queue
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Annotated

import requests
import typer

from benchmarks import harness
from benchmarks.filling import bodies_of, preload
from benchmarks.harness import AsJson, Kind, OnDatabase, Rounds, Side
from benchmarks.peers import QUEUES
from benchmarks.rows import ROWS

BARE = "bare"
LONGEST_SECONDS = 900.0
"""Longest seconds of another side in a round."""
BARS: Mapping[str, float] = {"procrastinate": ROWS["drain-procrastinate"].bar}
"""Bars against peers, as a multiple of their rate."""


def main(
    *,
    database: OnDatabase = Kind.POSTGRES,
    events: Annotated[int, typer.Option(min=100, max=200_000, help="In the inbox at the start of a round.")] = 5000,
    concurrency: Annotated[int, typer.Option(min=1, max=256, help="Threads on both sides.")] = 16,
    rounds: Rounds = 3,
    against: Annotated[list[str] | None, typer.Option(help=f"Only {BARE}, {', '.join(QUEUES)}; repeatable.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure the rate of `relay run --drain`."""
    relay, bare = Side("relay"), Side("bare Session.post loop", bar=ROWS["drain-bare"].bar)
    wanted = against or ([BARE] if database is Kind.SQLITE else [BARE, *QUEUES])
    missing = {name: lack for name in wanted if name != BARE and (lack := QUEUES[name].missing())}
    peers = {
        name: Side(QUEUES[name].title, bar=BARS.get(name)) for name in wanted if name != BARE and name not in missing
    }
    with ExitStack() as stack:
        url, theirs = stack.enter_context(harness.databases(database, 2))
        server = stack.enter_context(harness.downstream())
        environment = stack.enter_context(harness.configure(url, f"{server}/hook", concurrency))
        for _ in range(rounds):
            bodies = bodies_of(events)
            asyncio.run(preload(url, environment, bodies))
            harness.get(server)
            harness.drain(environment)
            relay.rates.append(harness.rate(server, events))
            if BARE in wanted:
                loop = ("benchmarks.drain", "--bare-loop", f"{server}/hook", str(concurrency))
                _run_side(loop, bodies, environment)
                bare.rates.append(harness.rate(server, events))
            for name in list(peers):
                module = f"benchmarks.peers.{QUEUES[name].module}"
                try:
                    _run_side((module, harness.libpq(theirs), f"{server}/hook", str(concurrency)), bodies, environment)
                    peers[name].rates.append(harness.rate(server, events))
                except (SystemExit, subprocess.TimeoutExpired) as error:  # the other sides go on
                    missing[name] = str(error)
                    del peers[name]
                    harness.get(server)
    notes = {"events": events, "concurrency": concurrency, "missing": missing}
    sides = [side for side in (relay, bare, *peers.values()) if side.rates]
    harness.report(f"Drain, {database}: deliveries per second", sides, notes, as_json=as_json)


def _run_side(command: Sequence[str], bodies: list[bytes], environment: Mapping[str, str]) -> None:
    """Run a side in its own process, like the relay."""
    line = [sys.executable, "-m", *command]
    ended = harness.run_group(line, LONGEST_SECONDS, environment=environment, given=b"\n".join(bodies))
    if ended.returncode:
        raise SystemExit(f"{command[0]} failed: {harness.last_line(ended.stderr)}")


def _bare_loop(url: str, concurrency: int, bodies: list[bytes]) -> None:
    todo: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    for body in (*bodies, *[None] * concurrency):
        todo.put(body)

    def work() -> None:
        with requests.Session() as session:
            while (body := todo.get()) is not None:
                response = session.post(url, data=body, headers={"Content-Type": "application/json"}, timeout=15)
                response.raise_for_status()

    threads = [threading.Thread(target=work) for _ in range(concurrency)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _bare_loop_of_this_process() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bare-loop", required=True, metavar="URL")
    parser.add_argument("concurrency", type=int)
    given = parser.parse_args()
    _bare_loop(given.bare_loop, given.concurrency, sys.stdin.buffer.read().split(b"\n"))


if __name__ == "__main__":
    if "--bare-loop" in sys.argv:
        _bare_loop_of_this_process()
    else:
        harness.start(main)
