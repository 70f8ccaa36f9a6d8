"""CPU of a webhook and of a delivery with traces, against none, with a collector that takes everything.

One process measures all sides in small parts, in an order that changes, and counts the CPU of all its threads. A busy machine
disturbs that little. Where a server's objects lie in memory makes a few percent for as long as the process lives, so all
sides of intake have one server, whose tracer is switched. The export is measured by itself, in batches as at a thousand
webhooks a second, and is added. A process gives the mean of its rounds but for the least and the greatest, and the ratio is the
mean of many processes, with its standard error. Two of the sides are without traces: their ratio shows how far off the others
may be.
"""

from __future__ import annotations

import asyncio
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
from types import SimpleNamespace
from typing import Annotated, cast

import msgspec
import typer
import uvloop
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.drain import bodies_of, preload
from benchmarks.receiver_cpu import Requests, Server
from benchmarks.support import Kind, configured, databases, downstream
from inbox.clock import Clock, SystemClock
from inbox.config.model import Config
from inbox.gunicorn_worker import HardenedWorker
from inbox.loader.load import read_config
from inbox.receiver.app import create_app, open_services
from inbox.receiver.webhook import Services
from inbox.tracing.exporting import OtelTracer
from inbox.tracing.spans import OFF
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
    exported: float = 0.0
    """CPU microseconds of an event for the export of intake, which its rounds don't have."""

    def add(self, side: str, took: float) -> None:
        getattr(self, side).append(took)

    def costs(self) -> float:
        """Return the CPU of an event with traces, divided by that without."""
        return (typical(self.on) + self.exported) / statistics.mean((typical(self.off), typical(self.again)))

    def differs(self) -> float:
        """Return the CPU of the one side without traces, divided by that of the other."""
        return typical(self.again) / typical(self.off)


def typical(rounds: Sequence[float]) -> float:
    """Return their mean but for the least and the greatest fifth, which a collection of garbage or other work has made."""
    out = len(rounds) // 5
    return statistics.mean(sorted(rounds)[out : len(rounds) - out])


SIDES_COMPARED = ("off", "again", "on")


class Asked(msgspec.Struct):
    """The task of a process of its own."""

    work: Work
    rounds: int
    number: int
    url: str
    traced: dict[str, str]
    """Variables that ask for traces."""


class Switch:
    """The services of one worker, with its tracer or without."""

    def __init__(self, config: Config, clock: Clock) -> None:
        self._config, self._clock = config, clock

    def open(self) -> Services:
        """Open them, for the receiver."""
        opened = open_services(self._config, self._clock)
        self._tracer = opened.tracer
        self._taken = SimpleNamespace(**{name: getattr(opened, name) for name in Services.__struct_fields__})
        return cast("Services", self._taken)

    def turn(self, *, is_on: bool) -> None:
        self._taken.tracer = self._tracer if is_on else OFF

    def flush(self) -> float:
        """Export what has been sampled. Returns the CPU microseconds."""
        began = time.process_time()
        assert isinstance(self._tracer, OtelTracer)
        self._tracer._processor.force_flush()  # noqa: SLF001  # nothing else waits for an export
        return (time.process_time() - began) * 1e6


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
    _choose("on", asked)
    config, clock = read_config(), SystemClock()
    switch = Switch(config, clock)
    server = Server(create_app(config, switch.open, clock), HardenedWorker.CONFIG_KWARGS["http"])
    await server.start()
    requests, rounds = Requests(100, repeated=False), asked.rounds * TURNS_AT_ONCE
    for turn, side in _turns(rounds):
        switch.turn(is_on=side == "on")
        took = await server.answer(asked.number, requests)
        if turn >= WARM:
            found.add(side, took)
        elif side == "on":
            switch.flush()
    found.exported = switch.flush() / (rounds * asked.number)
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
    processes: Annotated[int, typer.Option(min=2, help="Of each work.")] = 30,
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
                "OTEL_BSP_SCHEDULE_DELAY": "3600000",  # else a round of another side exports, too
            }
            asked = Asked(each, rounds, number, url, traced)
            turns = track(range(processes), f"{each} …", transient=True)
            found = [_in_another(asked, environment) for _ in turns]
        off, on = (statistics.mean(map(typical, some)) for some in zip(*((f.off, f.on) for f in found), strict=True))
        on += statistics.mean(one.exported for one in found)
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
