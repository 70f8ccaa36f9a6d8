"""Curves: a rate by a growing parameter.

    python -m benchmarks.growth backlog --points 1000,100000,1000000
    python -m benchmarks.growth connections --database sqlite

The points of a curve are measured in turn, round by round, each on its own database.
"""

from __future__ import annotations

import asyncio
import operator
import statistics
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from benchmarks import harness
from benchmarks.backlog import drain_for
from benchmarks.filling import Inbox, bodies_of, preload
from benchmarks.harness import AsJson, Kind, OnDatabase, Rounds
from benchmarks.load import send_accepted

CONNECTIONS = 64
CONCURRENCY = 16
BODY_BYTES = 200
DOWNSTREAM_MILLISECONDS = 20
"""Milliseconds of a call by several relays; with faster calls, two cores are the limit."""
_ROUTE = '[routes.everything]\nsource = "trivore"\ndestination = "downstream"\nordering = "strict"\n'
_OVERHEAD = 100
"""Bytes of a body without padding."""
Rate = Callable[[], float]
"""Function that measures a point once."""


class Ground(msgspec.Struct, frozen=True):
    """Resources for the points of a curve."""

    database: Kind
    seconds: float
    events: int
    stack: ExitStack

    def configure(self, url: str, server: str = "http://127.0.0.1:9") -> dict[str, str]:
        """Write a configuration and return its environment."""
        return self.stack.enter_context(harness.configure(url, f"{server}/hook", CONCURRENCY))

    def receiver(self, url: str, connections: int = CONNECTIONS, body: int = BODY_BYTES, **more: str) -> Rate:
        """Start a receiver and return a function that measures its accepted requests per second."""
        target = self.stack.enter_context(harness.serving({**self.configure(url), **more})).target
        padding = max(body - _OVERHEAD, 0)
        send_accepted(target, 1, min(connections, CONNECTIONS), padding)  # warms up
        return lambda: send_accepted(target, self.seconds, connections, padding).rate

    def drain(
        self,
        url: str,
        bodies: Callable[[], list[bytes]],
        routes: str = _ROUTE,
        *,
        processes: int = 1,
        milliseconds: int = 0,
    ) -> Rate:
        """Return a function that measures the deliveries per second of relays to a downstream of this delay."""
        server = self.stack.enter_context(harness.downstream(milliseconds))
        environment = self.configure(url, server)
        path = Path(environment["INBOX_CONFIG"])
        path.write_text(path.read_text(encoding="utf-8").replace(_ROUTE, routes), encoding="utf-8")

        def measure() -> float:
            asyncio.run(preload(url, environment, bodies()))
            harness.seen(server)
            harness.drain(environment, processes)
            return harness.rate(server, self.events)

        return measure


def backlog(ground: Ground, url: str, open_: int) -> Rate:
    """Measure the first seconds of a backlog."""
    server, filled = ground.stack.enter_context(harness.downstream()), Inbox(url)
    environment = ground.configure(url, server)

    def measure() -> float:
        filled.empty()
        filled.add(open_, "'u' || n")
        filled.settle()
        return drain_for(server, environment, round(ground.seconds))[0]

    return measure


def inbox(ground: Ground, url: str, stored: int) -> Rate:
    """Measure intake into an inbox with ended events."""
    if stored:
        filled = Inbox(url)
        filled.add(stored, "'u' || n", state=None)
        filled.settle()
        filled.engine.dispose()
    return ground.receiver(url)


def lanes(ground: Ground, url: str, number: int) -> Rate:
    """Measure deliveries in so many lanes."""
    return ground.drain(url, lambda: bodies_of(ground.events, number))


def routes(ground: Ground, url: str, number: int) -> Rate:
    """Measure deliveries over so many routes to one destination; each event takes one."""
    types = [f"T{each}" for each in range(number)]
    written = "".join(
        f'[routes.r{each}]\nsource = "trivore"\ndestination = "downstream"\nordering = "strict"\n'
        f'when = {{ entity_type = ["{each}"] }}\n'
        for each in types
    )
    return ground.drain(url, lambda: bodies_of(ground.events, types=types), written)


def body(ground: Ground, url: str, size: int) -> Rate:
    """Measure intake of bodies of this size in bytes."""
    return ground.receiver(url, body=size)


def connections(ground: Ground, url: str, number: int) -> Rate:
    """Measure intake over so many connections."""
    return ground.receiver(url, connections=number)


def relays(ground: Ground, url: str, processes: int) -> Rate:
    """Measure deliveries of so many relay processes."""
    return ground.drain(
        url, lambda: bodies_of(ground.events), processes=processes, milliseconds=DOWNSTREAM_MILLISECONDS
    )


def receivers(ground: Ground, url: str, workers: int) -> Rate:
    """Measure intake by so many workers."""
    return ground.receiver(url, WEB_CONCURRENCY=str(workers))


class Curve(msgspec.Struct, frozen=True):
    """A growing parameter and its points."""

    prepare: Callable[[Ground, str, int], Rate]
    title: str
    unit: str
    points: tuple[int, ...]


CURVES: Mapping[str, Curve] = {
    "backlog": Curve(backlog, "The first seconds of a backlog", "deliveries/s", (1000, 10_000, 100_000, 1_000_000)),
    "inbox": Curve(inbox, "Intake by events in the inbox", "requests/s", (0, 100_000, 1_000_000, 5_000_000)),
    "lanes": Curve(lanes, "Deliveries by lanes", "deliveries/s", (1, 10, 100, 1000, 10_000)),
    "routes": Curve(routes, "Deliveries by routes", "deliveries/s", (1, 10, 50, 200)),
    "body": Curve(body, "Intake by bytes of a body", "requests/s", (200, 1024, 16_384, 65_536, 260_000)),
    "connections": Curve(connections, "Intake by connections", "requests/s", (1, 8, 64, 256, 1000)),
    "relays": Curve(
        relays, f"Deliveries by relay processes, calls of {DOWNSTREAM_MILLISECONDS} ms", "deliveries/s", (1, 2, 4, 8)
    ),
    "receivers": Curve(receivers, "Intake by workers", "requests/s", (1, 2, 4)),
}


def main(
    *,
    curve: Annotated[str, typer.Argument(help=f"One of {', '.join(CURVES)}.")],
    database: OnDatabase = Kind.POSTGRES,
    points: Annotated[str, typer.Option(help="Other points, as 1,10,100.")] = "",
    seconds: Annotated[float, typer.Option(min=1, max=300, help="How long a rate of intake is measured.")] = 8,
    events: Annotated[int, typer.Option(min=100, max=200_000, help="That relays drain.")] = 4000,
    rounds: Rounds = 3,
    as_json: AsJson = False,
) -> None:
    """Measure the points of a curve."""
    if curve not in CURVES:
        raise SystemExit(f"no curve {curve}; there are {', '.join(CURVES)}")
    chosen = CURVES[curve]
    at = [int(point) for point in points.split(",")] if points else list(chosen.points)
    with ExitStack() as stack:
        urls = stack.enter_context(harness.databases(database, len(at)))
        ground = Ground(database, seconds, events, stack)
        rates = [chosen.prepare(ground, url, point) for url, point in zip(urls, at, strict=True)]
        measured: list[list[float]] = [[] for _ in at]
        for _ in range(rounds):
            for each, found in zip(rates, measured, strict=True):
                found.append(round(each(), 1))
    points_of = [{"at": point, "rounds": found} for point, found in zip(at, measured, strict=True)]
    told = {"database": database, "unit": chosen.unit, "points": points_of}
    to_first = [round(statistics.median(map(operator.truediv, found, measured[0])), 2) for found in measured]
    rows = zip(at, map(statistics.median, measured), measured, to_first, strict=True)
    harness.tell(chosen.title, told, ("at", chosen.unit, "rounds", "to the first"), rows, as_json=as_json)


if __name__ == "__main__":
    harness.start(main)
