"""Pick-up beside a transaction that a DBA has left open: the time from an event's arrival to the record of its delivery.

Both sides work at a steady rate. First nobody disturbs them, then a transaction with a snapshot stays open, and Postgres keeps
every row and index entry that ends meanwhile. Each minute has a p99. The median of its last three minutes, when most is kept,
must stay below twice the median without it: a checkpoint, or a neighbour of this machine, then is no result. Exits with 1 when
it does not. All of it runs on 127.0.0.1; the downstream answers at once.
"""

from __future__ import annotations

import http.client
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import datetime
from typing import Annotated

import typer
from sqlalchemy import Engine, text

from benchmarks.support import TOKEN, Kind, Side, configured, databases, downstream, machine, report, serving
from inbox.clock import SystemClock
from inbox.db import engine as engines

BAR = 2.0
CONNECTIONS = 4
ENTITIES = 500
JUDGED = 3
"""Minutes at the end of the open transaction whose p99 is judged."""
_LATE_SECONDS = 120.0
"""Longest wait for the deliveries of a window to be recorded."""

_PICK_UP = text("""
SELECT count(*) AS events, count(*) - count(seconds) AS missing, 1000 * percentile_cont(0.5) WITHIN GROUP (ORDER BY seconds) AS p50,
       1000 * percentile_cont(0.99) WITHIN GROUP (ORDER BY seconds) AS p99
FROM (
    SELECT CAST(extract(epoch FROM l.at - i.received_at) AS float8) AS seconds
    FROM inbox i LEFT JOIN delivery_log l ON l.seq = i.seq AND l.kind = 'delivered'
    WHERE i.received_at >= :since AND i.received_at < :until
) AS picked_up
""")


def main(
    *,
    minutes: Annotated[int, typer.Option(min=JUDGED, max=120, help="How long the transaction stays open.")] = 5,
    base: Annotated[int, typer.Option(min=JUDGED, max=60, help="Minutes without it.")] = 3,
    minute: Annotated[float, typer.Option(min=1, max=60, help="Seconds of a minute, for a quick look.")] = 60,
    rate: Annotated[int, typer.Option(min=1, max=2000, help="Webhooks per second.")] = 200,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Measure pick-up on Postgres without and beside an open transaction, in one run."""
    beside, alone = Side("beside an open transaction"), Side("without", bar=BAR)
    with ExitStack() as stack:
        (url,) = stack.enter_context(databases(Kind.POSTGRES))
        environment = stack.enter_context(configured(url, f"{stack.enter_context(downstream())}/hook"))
        receiver = stack.enter_context(serving(environment))
        stack.enter_context(relay(environment))
        engine = engines.connect(url, application="benchmarks")
        stack.callback(engine.dispose)
        stack.enter_context(sending(receiver.port, rate))
        time.sleep(min(minute, 10))  # the first events find cold caches
        without = windows(engine, base, minute)
        with open_transaction(engine):
            with_it = windows(engine, minutes, minute)
    alone.rates += [each["p99"] for each in without[-JUDGED:]]
    beside.rates += [each["p99"] for each in with_it[-JUDGED:]]
    notes = {
        "rate": rate,
        "p50 without": [each["p50"] for each in without],
        "p50 beside": [each["p50"] for each in with_it],
        "p99 beside": [each["p99"] for each in with_it],
        **machine(),
    }
    report("Pick-up on Postgres, p99 of each minute", [beside, alone], notes, as_json=as_json, unit="ms")
    if statistics.median(beside.rates) >= BAR * statistics.median(alone.rates):
        raise typer.Exit(1)


@contextmanager
def relay(environment: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A relay as long as the block runs."""
    with subprocess.Popen([sys.executable, "-m", "relay", "run"], env=environment) as process:
        try:
            yield process
        finally:
            process.terminate()


@contextmanager
def open_transaction(engine: Engine) -> Iterator[None]:
    """A transaction that has read, and does nothing more."""
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as forgotten:
        forgotten.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        forgotten.execute(text("SELECT count(*) FROM open_delivery"))
        yield


def windows(engine: Engine, count: int, seconds: float) -> list[dict[str, float]]:
    """Wait so many times so many seconds; the pick-up of the events of each time."""
    bounds = []
    for _ in range(count):
        since = SystemClock().now()
        time.sleep(seconds)
        bounds.append({"since": since, "until": SystemClock().now()})
    return [picked_up(engine, each) for each in bounds]


def picked_up(engine: Engine, bounds: Mapping[str, datetime]) -> dict[str, float]:
    """Read the pick-up of the events of a time, when all of them are delivered."""
    deadline = time.monotonic() + _LATE_SECONDS
    while True:
        with engine.connect() as connection:
            found = connection.execute(_PICK_UP, bounds).one()
        if found.events and not found.missing:
            return {"events": found.events, "p50": round(found.p50, 1), "p99": round(found.p99, 1)}
        if time.monotonic() > deadline:
            raise SystemExit(f"{found.missing} of {found.events} events are not delivered after {_LATE_SECONDS:g} s")
        time.sleep(1)


@contextmanager
def sending(port: int, rate: int) -> Iterator[list[float]]:
    """Send webhooks at a steady rate over a few connections as long as the block runs; gives the seconds of each request."""
    ended, took = threading.Event(), list[float]()
    threads = [threading.Thread(target=_send, args=(port, rate, n, ended, took)) for n in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    try:
        yield took
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def _send(port: int, rate: int, number: int, ended: threading.Event, took: list[float]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    headers = {"Content-Type": "application/json", "X-Webhook-Token": TOKEN}
    due, sent = time.monotonic(), 0
    while not ended.wait(max(0.0, due - time.monotonic())):
        due += CONNECTIONS / rate
        sent += 1
        event = {
            "id": f"{number}-{sent % ENTITIES}",
            "entityType": "USER",
            "eventType": "UPDATE",
            "timestamp": SystemClock().now().isoformat(),
        }
        began = time.monotonic()
        connection.request("POST", "/webhooks/trivore", json.dumps(event), headers)
        connection.getresponse().read()
        took.append(time.monotonic() - began)
        if sent % 900 == 0:
            connection.close()  # the receiver ends a connection after a thousand requests
    connection.close()


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(main)
    app()
