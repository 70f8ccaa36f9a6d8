"""CPU of a webhook and of a delivery with traces, against none, with a collector that takes everything.

One process measures all sides in small parts, in an order that changes, and counts the CPU of all its threads. A busy machine
disturbs that little. Of equal servers in one process, the one that was made later is slower, and where its objects lie in
memory makes a few percent for as long as the process lives. So there are many processes, as many of each order: a process
gives the median of its rounds, and the ratio is the mean of the processes, with its standard error. Two of the sides are
without traces: their ratio shows how far off the others may be.
"""

from __future__ import annotations

import asyncio
import importlib
import itertools
import logging
import math
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from enum import StrEnum
from typing import Annotated

import msgspec
import typer
import uvloop
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.drain import bodies_of, preload
from benchmarks.receiver_cpu import SIDES, Requests, Server
from benchmarks.support import Kind, configured, databases, downstream
from relay.daemon.start import RunOptions, start

ONE = "--one-work"
TURNS_AT_ONCE = 5
"""Rounds of intake for one of drains, which take longer to start."""
WARM = 2
"""Rounds that are left out: the first request to the collector takes a tenth of a second, once."""


class Work(StrEnum):
    """A kind of work that is measured."""

    INTAKE = "intake"
    DRAIN = "drain"


class Found(msgspec.Struct):
    """CPU microseconds of an event in each round, by side."""

    off: list[float] = []
    again: list[float] = []
    on: list[float] = []

    def add(self, side: str, took: float) -> None:
        getattr(self, side).append(took)

    def costs(self) -> float:
        """Return the median of the side with traces, divided by the mean of the medians of those without."""
        off = statistics.mean((statistics.median(self.off), statistics.median(self.again)))
        return statistics.median(self.on) / off

    def differs(self) -> float:
        """Return the median of the one side without traces, divided by that of the other."""
        return statistics.median(self.again) / statistics.median(self.off)


SIDES_COMPARED = Found.__struct_fields__
ORDERS = tuple(itertools.permutations(SIDES_COMPARED))


class Asked(msgspec.Struct):
    """The task of a process of its own."""

    work: Work
    order: tuple[str, ...]
    """The sides, as they are made."""
    rounds: int
    number: int
    url: str
    traced: dict[str, str]
    """Variables that ask for traces."""


def _turns(rounds: int) -> list[tuple[int, str]]:
    return [
        (turn, side) for turn in range(rounds + WARM) for side in random.sample(SIDES_COMPARED, len(SIDES_COMPARED))
    ]


def _choose(side: str, asked: Asked) -> None:
    for name in asked.traced:
        os.environ.pop(name, None)
    if side == "on":
        os.environ.update(asked.traced)


async def _intake(asked: Asked, found: Found) -> None:
    servers: dict[str, Server] = {}
    for side in asked.order:
        _choose(side, asked)
        servers[side] = Server(*SIDES["durable"]())
        await servers[side].start()
    requests = Requests(100, repeated=False)
    for turn, side in _turns(asked.rounds * TURNS_AT_ONCE):
        took = await servers[side].answer(asked.number, requests)
        if turn >= WARM:
            found.add(side, took)
    for server in servers.values():
        await server.stop()


def _drain(asked: Asked, found: Found) -> None:
    for turn, side in _turns(asked.rounds):
        _choose(side, asked)
        idle = _run()
        asyncio.run(preload(asked.url, os.environ, bodies_of(asked.number)))
        took = _run() - idle
        if turn >= WARM:
            found.add(side, took / asked.number * 1e6)


def _run() -> float:
    """Run a relay until nothing is due. Returns the CPU seconds."""
    began = time.process_time()
    start(RunOptions(grace_seconds=5, drain=True), nullcontext)
    return time.process_time() - began


def measure(asked: Asked) -> Found:
    """Measure both sides in this process."""
    importlib.import_module("inbox.tracing.exporting")  # else one round of one side would import it
    logging.getLogger("inbox.tracing").disabled = True  # it tells that there is another tracer already
    found = Found()
    if asked.work is Work.INTAKE:
        uvloop.run(_intake(asked, found))
    else:
        _drain(asked, found)
    return found


def _in_another(asked: Asked, environment: Mapping[str, str]) -> Found:
    command = [sys.executable, "-m", "benchmarks.tracing", ONE]
    given = msgspec.json.encode(asked)
    ended = subprocess.run(command, input=given, check=False, capture_output=True, env=environment)
    if ended.returncode:
        raise SystemExit(ended.stderr.decode())
    return msgspec.json.decode(ended.stdout.rpartition(b"RESULT ")[2], type=Found)


def _mean(ratios: Sequence[float]) -> str:
    return f"{statistics.mean(ratios):.3f} ± {statistics.stdev(ratios) / math.sqrt(len(ratios)):.3f}"


def main(
    *,
    database: Annotated[Kind, typer.Option(help="Which database.")] = Kind.SQLITE,
    work: Annotated[list[Work] | None, typer.Option(help="Only this; repeatable.")] = None,
    share: Annotated[float, typer.Option(min=0, max=1, help="Of the traces that are sampled.")] = 0.01,
    processes: Annotated[int, typer.Option(min=2, help="A multiple of six is as many of each order.")] = 30,
    rounds: Annotated[
        int, typer.Option(min=1, max=100, help="Of drains in a process; of intake, five times as many.")
    ] = 2,
    number: Annotated[int, typer.Option(min=100, help="Of events in a round.")] = 600,
) -> None:
    """Measure the CPU of an event, in microseconds, without and with traces."""
    described = f"CPU µs of an event, {database}, {share:.0%} sampled"
    table = Table("work", "off", "on", "on / off", "off / off", title=described)
    for each in work or Work:
        with ExitStack() as stack:
            (url,) = stack.enter_context(databases(database))
            called, collector = stack.enter_context(downstream()), stack.enter_context(downstream())
            environment = stack.enter_context(configured(url, f"{called}/hook", concurrency=16))
            traced = {
                "OTEL_EXPORTER_OTLP_ENDPOINT": collector,
                "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
                "OTEL_TRACES_SAMPLER_ARG": str(share),
            }
            orders = itertools.islice(itertools.cycle(ORDERS), processes)
            asked = [Asked(each, order, rounds, number, url, traced) for order in orders]
            found = [_in_another(one, environment) for one in track(asked, f"{each} …", transient=True)]
        off, on = (
            statistics.mean(map(statistics.median, some)) for some in zip(*((f.off, f.on) for f in found), strict=True)
        )
        table.add_row(
            each, f"{off:.0f}", f"{on:.0f}", _mean([f.costs() for f in found]), _mean([f.differs() for f in found])
        )
    Console(soft_wrap=True).print(table)
    print(f"load average {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    if sys.argv[1:2] == [ONE]:
        result = measure(msgspec.json.decode(sys.stdin.buffer.read(), type=Asked))
        print("RESULT", msgspec.json.encode(result).decode())
    else:
        app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
        app.command()(main)
        app()
