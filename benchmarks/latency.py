"""Time from a webhook's arrival to its delivery, at steady rates, on an idle relay and beside a backlog.

One process sends the webhooks and is their downstream, so that one clock measures: from the moment before a request is
written to the moment when its delivery has been read. Arrivals are random (Poisson), or they would meet the relay's looks
always in the same phase. They are sent when they are due, however late the answers are.

The backlog is a paused route of so many open deliveries, each the head of a lane of its own. The comparison is the same with
`wake_up = false`, in turn: the relay only polls. Exits with 1 when a bar is missed. All of it runs on 127.0.0.1.
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
from typing import Annotated, cast

import httptools
import msgspec
import typer
import uvloop
from rich.console import Console
from rich.table import Table

from benchmarks.backlog import Inbox
from benchmarks.rows import ROWS
from benchmarks.support import TOKEN, Kind, configured, databases, free_port, machine, relaying, serving

BARS: Mapping[tuple[Kind, int], tuple[float, float]] = {
    (database, rate): (ROWS[f"latency-{database}-{rate}-p50"].bar, ROWS[f"latency-{database}-{rate}-p99"].bar)
    for database in Kind
    for rate in (1, 100)
}
"""The highest p50 and p99 with wake-ups on an idle relay, in milliseconds."""
RATES = (1, 10, 100, 500)
ENTITIES = 10_000
"""So many that hardly any event waits for one of its own lane."""
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
    """Median until the sender has its answer, which is part of the others."""
    p50: float
    p99: float
    worst: float
    bar: tuple[float, float] | None = None
    """The highest p50 and p99."""


class Downstream(asyncio.Protocol):
    """One connection of the relay; httptools calls the methods that begin with `on_`."""

    def __init__(self, seen_at: dict[str, float]) -> None:
        self._seen_at = seen_at
        self._parser = httptools.HttpRequestParser(self)
        self._body = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's does not inherit from it

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        self._body = b""

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        self._seen_at.setdefault(json.loads(self._body)["mark"], time.monotonic())
        assert self._transport is not None
        self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


class Arrivals:
    """Sends webhooks over idle connections, a new one when there is none."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[tuple[float, asyncio.StreamReader, asyncio.StreamWriter]] = []
        """Connections, and since when each is idle (monotonic seconds)."""
        self._sent = 0
        self.seen_at: dict[str, float] = {}
        self.answered: list[float] = []
        """Milliseconds until each answer."""

    async def send(self, rate: int, events: int) -> list[float]:
        """Send so many at this rate. Returns their latencies in milliseconds."""
        self.seen_at.clear()
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
        while len(self.seen_at) < events:
            if time.monotonic() > deadline:
                raise SystemExit(f"{events - len(self.seen_at)} of {events} events are not delivered")
            await asyncio.sleep(0.05)
        return [1000 * (self.seen_at[mark] - at) for mark, at in sent_at.items()]

    async def _request(self, mark: str, sent_at: dict[str, float]) -> None:
        event = {"id": f"u{self._sent % ENTITIES}", "entityType": "USER", "eventType": "UPDATE", "mark": mark}
        event["timestamp"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        body = json.dumps(event).encode()
        head = (
            f"POST /webhooks/trivore HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\nContent-Type: application/json\r\n"
            f"X-Webhook-Token: {TOKEN}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        reader, writer = await self._connected()
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

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Take the connection that was used last, unless the receiver may be about to close it."""
        if self._idle and time.monotonic() - self._idle[-1][0] > LONGEST_IDLE_SECONDS:
            self.close()
        if self._idle:
            return self._idle.pop()[1:]
        return await asyncio.open_connection("127.0.0.1", self._port)

    def close(self) -> None:
        while self._idle:
            self._idle.pop()[2].close()


class Bench:
    """A database, and the figures so far."""

    def __init__(self, database: Kind, url: str, rates: Sequence[int], seconds: float, least: int) -> None:
        self._database = database
        self._url = url
        self._rates = rates
        self._seconds = seconds
        self._least = least
        self.measured: list[Measured] = []

    def measure(self, backlog: int, *, wake_up: bool) -> None:
        """Measure every rate with a receiver and a relay of their own."""
        downstream = free_port()
        with ExitStack() as stack:
            environment = stack.enter_context(_configured(self._url, downstream, wake_up=wake_up))
            receiver = stack.enter_context(serving(environment))
            stack.enter_context(relaying(environment))
            uvloop.run(self._send(receiver.port, downstream, backlog, wake_up=wake_up))

    async def _send(self, receiver: int, downstream: int, backlog: int, *, wake_up: bool) -> None:
        arrivals, loop = Arrivals(receiver), asyncio.get_running_loop()
        server = await loop.create_server(lambda: Downstream(arrivals.seen_at), "127.0.0.1", downstream)
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
        """Pause the other route, and have a relay order so many events on it."""
        inbox = Inbox(self._url)
        with _configured(self._url, free_port(), wake_up=True) as environment, relaying(environment):
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
def _configured(url: str, downstream: int, *, wake_up: bool) -> Iterator[dict[str, str]]:
    setting = f"wake_up = {json.dumps(wake_up)}"
    with configured(url, f"http://127.0.0.1:{downstream}/hook", more=_STOPPED, database=setting) as environment:
        yield environment


def main(
    *,
    database: Annotated[Kind, typer.Option(help="Which database.")] = Kind.POSTGRES,
    rates: Annotated[list[int] | None, typer.Option("--rate", min=1, max=2000, help="Webhooks per second.")] = None,
    seconds: Annotated[float, typer.Option(min=1, max=600, help="How long each rate is measured.")] = 15,
    least: Annotated[int, typer.Option(min=10, max=10_000, help="Events at least, however long they take.")] = 60,
    backlog: Annotated[int, typer.Option(min=0, max=1_000_000, help="Open deliveries of a paused route.")] = 50_000,
    rounds: Annotated[int, typer.Option(min=1, max=20, help="How often each side is measured.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Measure the time from arrival to delivery, with wake-ups and without, idle and beside a backlog."""
    with databases(database) as (url,):
        bench = Bench(database, url, rates or RATES, seconds, least)
        for filled in (0, backlog) if backlog else (0,):
            if filled:
                bench.fill(filled)
            for _ in range(rounds):
                bench.measure(filled, wake_up=True)
                bench.measure(filled, wake_up=False)
    rows = [_median(list(group)) for group in _grouped(bench.measured)]
    title = f"Latency, {database}: milliseconds from arrival to delivery"
    if as_json:
        print(json.dumps({"title": title, "rows": msgspec.to_builtins(rows), "rounds": rounds, **machine()}, indent=2))
    else:
        _show(title, rows)
    raise typer.Exit(int(any(row.bar and (row.p50 > row.bar[0] or row.p99 > row.bar[1]) for row in rows)))


def _grouped(measured: Sequence[Measured]) -> list[list[Measured]]:
    groups: dict[tuple[int, int, bool], list[Measured]] = {}
    for each in measured:
        groups.setdefault((each.backlog, each.rate, not each.wake_up), []).append(each)
    return [groups[key] for key in sorted(groups)]


def _median(rounds: Sequence[Measured]) -> Measured:
    """Return the median of each figure over the rounds."""
    figures = {name: statistics.median(getattr(each, name) for each in rounds) for name in FIGURES}
    return msgspec.structs.replace(rounds[0], **figures)


def _show(title: str, rows: Sequence[Measured]) -> None:
    columns = ("backlog", "events/s", "wake-ups", "events", *FIGURES, "bar")
    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        bar = "" if row.bar is None else f"{row.bar[0]:g} / {row.bar[1]:g}"
        sides = (row.backlog, row.rate, "yes" if row.wake_up else "no", row.events)
        table.add_row(*map(str, (*sides, *(getattr(row, name) for name in FIGURES))), bar)
    console = Console(width=100, soft_wrap=True)
    console.print(table)
    for name, value in machine().items():
        console.print(f"{name.replace('_', ' ')}: {value}", highlight=False)


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(main)
    app()
