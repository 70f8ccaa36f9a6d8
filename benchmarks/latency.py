"""Time from a webhook's arrival to its delivery, at steady rates, on an idle relay and beside a backlog.

One process is sender and downstream, so that one clock measures the time from writing a request to reading its delivery.
Arrivals are random (Poisson), so that they do not stay in phase with the relay's polling. They are sent when they are due,
even if responses are late.

The backlog is a paused route of open deliveries, each the head of its own lane. The comparison is `wake_up = false`, in
turn: the relay only polls. Exits with 1 when a bar is missed. Everything runs on 127.0.0.1.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Annotated

import msgspec
import typer
import uvloop

from benchmarks import harness
from benchmarks.downstream import Connection
from benchmarks.filling import Inbox
from benchmarks.harness import TOKEN, AsJson, Kind, OnDatabase, Rounds
from benchmarks.rows import ROWS

BARS: Mapping[tuple[Kind, int], tuple[float, float]] = {
    (database, rate): (ROWS[f"latency-{database}-{rate}-p50"].bar, ROWS[f"latency-{database}-{rate}-p99"].bar)
    for database in Kind
    for rate in (1, 100)
}
"""Limits of p50 and p99 with wake-ups on an idle relay, in milliseconds."""
RATES = (1, 10, 100, 500)
ENTITIES = 10_000
"""Count of entities, so large that events rarely share a lane."""
FIGURES = ("answered", "p50", "p99", "worst")
LONGEST_IDLE_SECONDS = 3.0
LATE_SECONDS = 120.0
WARM_UP_EVENTS = 20
FILLED_WITHIN_SECONDS = 300.0
_STOPPED = """
[sources.archive]
preset = "trivore"
auth = { kind = "none" }
[routes.stopped]
source = "archive"
destination = "downstream"
"""


class Measured(msgspec.Struct):
    """Latencies of one side at one rate, in milliseconds."""

    rate: int
    backlog: int
    wake_up: bool
    events: int
    answered: float
    """Median time to the sender's response, which is part of the others."""
    p50: float
    p99: float
    worst: float
    bar: tuple[float, float] | None = None
    """Limits of p50 and p99."""


class Seen:
    """Arrival times of deliveries by the marks of their bodies."""

    def __init__(self) -> None:
        self.at: dict[str, float] = {}

    def add(self, body: bytes) -> None:
        self.at.setdefault(json.loads(body)["mark"], time.monotonic())

    def report(self) -> bytes:
        return b""


class Arrivals:
    """A sender that reuses idle connections."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[tuple[float, asyncio.StreamReader, asyncio.StreamWriter]] = []
        """Idle connections with the monotonic seconds of their last use."""
        self._sent = 0
        self.seen = Seen()
        self.answered: list[float] = []
        """Milliseconds to each response."""

    async def send(self, rate: int, events: int) -> list[float]:
        """Send events at this rate and return their latencies in milliseconds."""
        self.seen.at.clear()
        self.answered.clear()
        chance = random.Random(rate)
        due, sent_at, requests = time.monotonic(), dict[str, float](), []
        for _ in range(events):
            due += chance.expovariate(rate)
            await asyncio.sleep(due - time.monotonic())
            self._sent += 1
            requests.append(asyncio.create_task(self._request(f"m{self._sent}", sent_at)))
        await asyncio.gather(*requests)
        deadline = time.monotonic() + LATE_SECONDS
        while len(self.seen.at) < events:
            if time.monotonic() > deadline:
                raise SystemExit(f"{events - len(self.seen.at)} of {events} events are not delivered")
            await asyncio.sleep(0.05)
        return [1000 * (self.seen.at[mark] - at) for mark, at in sent_at.items()]

    async def _request(self, mark: str, sent_at: dict[str, float]) -> None:
        event = {"id": f"u{self._sent % ENTITIES}", "entityType": "USER", "eventType": "UPDATE", "mark": mark}
        event["timestamp"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        body = json.dumps(event).encode()
        head = (
            f"POST /webhooks/trivore HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\nContent-Type: application/json\r\n"
            f"X-Webhook-Token: {TOKEN}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        reader, writer = await self._connect()
        sent_at[mark] = time.monotonic()
        writer.write(head.encode() + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        if not answer.startswith(b"HTTP/1.1 200"):
            raise SystemExit(f"a webhook was not accepted: {answer[:60]!r}")
        length = answer.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
        await reader.readexactly(int(length))
        self.answered.append(1000 * (time.monotonic() - sent_at[mark]))
        if b"\r\nconnection: close\r\n" in answer.lower():
            writer.close()
        else:
            self._idle.append((time.monotonic(), reader, writer))

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Return the most recently used connection, unless the receiver may close it, or a new one."""
        if self._idle and time.monotonic() - self._idle[-1][0] > LONGEST_IDLE_SECONDS:
            self.close()
        if self._idle:
            return self._idle.pop()[1:]
        return await asyncio.open_connection("127.0.0.1", self._port)

    def close(self) -> None:
        while self._idle:
            self._idle.pop()[2].close()


class Bench:
    """A database and the figures so far."""

    def __init__(self, database: Kind, url: str, rates: Sequence[int], seconds: float, least: int) -> None:
        self._database = database
        self._url = url
        self._rates = rates
        self._seconds = seconds
        self._least = least
        self.measured: list[Measured] = []

    def measure(self, backlog: int, *, wake_up: bool) -> None:
        """Measure every rate with a new receiver and relay."""
        downstream = harness.free_port()
        with ExitStack() as stack:
            environment = stack.enter_context(_configure(self._url, downstream, wake_up=wake_up))
            receiver = stack.enter_context(harness.serving(environment))
            stack.enter_context(harness.relaying(environment))
            uvloop.run(self._send(receiver.port, downstream, backlog, wake_up=wake_up))

    async def _send(self, receiver: int, downstream: int, backlog: int, *, wake_up: bool) -> None:
        arrivals, loop = Arrivals(receiver), asyncio.get_running_loop()
        server = await loop.create_server(lambda: Connection(arrivals.seen), "127.0.0.1", downstream)
        await arrivals.send(20, WARM_UP_EVENTS)
        for rate in self._rates:
            events = max(round(rate * self._seconds), self._least)
            took = await arrivals.send(rate, events)
            cuts = statistics.quantiles(took, n=100, method="inclusive")
            figures = (statistics.median(arrivals.answered), cuts[49], cuts[98], max(took))
            answered, p50, p99, worst = (round(each, 1) for each in figures)
            bar = BARS.get((self._database, rate)) if wake_up and not backlog else None
            self.measured.append(Measured(rate, backlog, wake_up, events, answered, p50, p99, worst, bar))
        arrivals.close()
        server.close()

    def fill(self, backlog: int) -> None:
        """Pause the other route and let a relay sequence so many events on it."""
        inbox = Inbox(self._url)
        with _configure(self._url, harness.free_port(), wake_up=True) as environment, harness.relaying(environment):
            command = [sys.executable, "-m", "relay", "pause", "--route", "stopped", "--reason", "benchmark", "--yes"]
            subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
            inbox.add_after(backlog, "'u' || n", route="stopped")
            deadline = time.monotonic() + FILLED_WITHIN_SECONDS
            while inbox.count("received"):
                if time.monotonic() > deadline:
                    raise SystemExit("the backlog is not in order")
                time.sleep(0.5)
        inbox.settle()
        inbox.engine.dispose()


@contextmanager
def _configure(url: str, downstream: int, *, wake_up: bool) -> Iterator[dict[str, str]]:
    setting = f"wake_up = {json.dumps(wake_up)}"
    with harness.configure(url, f"http://127.0.0.1:{downstream}/hook", more=_STOPPED, database=setting) as environment:
        yield environment


def main(
    *,
    database: OnDatabase = Kind.POSTGRES,
    rates: Annotated[list[int] | None, typer.Option("--rate", min=1, max=2000, help="Webhooks per second.")] = None,
    seconds: Annotated[float, typer.Option(min=1, max=600, help="How long each rate is measured.")] = 15,
    least: Annotated[int, typer.Option(min=10, max=10_000, help="Events at least, however long they take.")] = 60,
    backlog: Annotated[int, typer.Option(min=0, max=1_000_000, help="Open deliveries of a paused route.")] = 50_000,
    rounds: Rounds = 1,
    as_json: AsJson = False,
) -> None:
    """Measure the time from arrival to delivery, with wake-ups and without, idle and beside a backlog."""
    with harness.databases(database) as (url,):
        bench = Bench(database, url, rates or RATES, seconds, least)
        for filled in (0, backlog) if backlog else (0,):
            if filled:
                bench.fill(filled)
            for _ in range(rounds):
                bench.measure(filled, wake_up=True)
                bench.measure(filled, wake_up=False)
    rows = [_median(list(group)) for group in _group(bench.measured)]
    harness.tell(
        f"Latency, {database}: milliseconds from arrival to delivery",
        {"rows": rows, "rounds": rounds},
        Measured.__struct_fields__,
        map(msgspec.structs.astuple, rows),
        as_json=as_json,
    )
    raise typer.Exit(int(any(row.bar and (row.p50 > row.bar[0] or row.p99 > row.bar[1]) for row in rows)))


def _group(measured: Sequence[Measured]) -> list[list[Measured]]:
    groups: dict[tuple[int, int, bool], list[Measured]] = {}
    for each in measured:
        groups.setdefault((each.backlog, each.rate, not each.wake_up), []).append(each)
    return [groups[key] for key in sorted(groups)]


def _median(rounds: Sequence[Measured]) -> Measured:
    """Return the median of each figure over the rounds."""
    figures = {name: statistics.median(getattr(each, name) for each in rounds) for name in FIGURES}
    return msgspec.structs.replace(rounds[0], **figures)


if __name__ == "__main__":
    harness.start(main)
