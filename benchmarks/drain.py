"""The relay draining a full inbox to a forward destination, against a bare loop of threads that post the same bodies.

Both call the same trivial downstream, which tells the seconds from the first request to the last. Rounds alternate, and
the ratio is the median over the rounds. All of it runs on 127.0.0.1.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import queue
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import msgspec
import requests
import typer

from benchmarks.support import Kind, Side, configured, databases, free_port, get, machine, report, running
from inbox.config.routing import routes_of
from inbox.db import engine as engines
from inbox.db.intake import STORES
from inbox.events.event import RawRequest
from inbox.loader.load import read_config
from inbox.sources import preset_of
from inbox.sources.normalize import events_of

EVENTS_OF_AN_ENTITY = 5
BATCH = 250
_BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


class Seen(msgspec.Struct):
    """Requests that the downstream received."""

    requests: int
    bodies: int
    seconds: float


def main(
    *,
    database: Annotated[Kind, typer.Option(help="Which database.")] = Kind.POSTGRES,
    events: Annotated[int, typer.Option(min=100, max=200_000, help="In the inbox at the start of a round.")] = 5000,
    concurrency: Annotated[int, typer.Option(min=1, max=256, help="Threads on both sides.")] = 16,
    rounds: Annotated[int, typer.Option(min=1, max=20, help="How often each side is measured.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Measure how fast the relay drains the inbox, as `relay run --drain` in a process of its own."""
    relay, bare = Side("relay"), Side("bare Session.post loop", bar=0.80)
    process_seconds = []
    with ExitStack() as stack:
        (url,) = stack.enter_context(databases(database))
        server = f"http://127.0.0.1:{free_port()}"
        port = server.rpartition(":")[2]
        stack.enter_context(running("benchmarks.downstream", port, ready=server))
        environment = stack.enter_context(configured(url, f"{server}/hook", concurrency))
        for _ in range(rounds):
            bodies = bodies_of(events)
            asyncio.run(preload(url, environment, bodies))
            get(server)
            began = time.monotonic()
            command = "from relay.cli.main import main; main()"
            subprocess.run([sys.executable, "-c", command, "run", "--drain"], check=True, env=environment)
            process_seconds.append(round(time.monotonic() - began, 2))
            relay.rates.append(rate(server, events))
            _run_bare_loop(server, concurrency, bodies, environment)
            bare.rates.append(rate(server, events))
    notes = {"events": events, "concurrency": concurrency, "relay_process_seconds": process_seconds, **machine()}
    report(f"Drain, {database}: deliveries per second", [relay, bare], notes, as_json=as_json)


def rate(server: str, events: int) -> float:
    """Requests per second that the downstream saw; each event must have arrived, and once."""
    seen = msgspec.json.decode(get(server), type=Seen)
    if (seen.requests, seen.bodies) != (events, events):
        raise SystemExit(f"{events} events became {seen.requests} requests with {seen.bodies} different bodies")
    return (seen.requests - 1) / seen.seconds


def bodies_of(events: int) -> list[bytes]:
    """Webhooks in the order of their times; each entity has some, spread over the whole."""
    run = uuid.uuid4().hex[:8]
    entities = max(events // EVENTS_OF_AN_ENTITY, 1)
    return [
        msgspec.json.encode(
            {
                "id": f"{run}-{number % entities}",
                "entityType": "USER",
                "eventType": "UPDATE",
                "timestamp": _BEGIN + timedelta(milliseconds=number),
            }
        )
        for number in range(events)
    ]


async def preload(url: str, environment: Mapping[str, str], bodies: list[bytes]) -> None:
    """Store the webhooks as the receiver does."""
    config = read_config(Path(environment["INBOX_CONFIG"]), environment)
    source = config.sources["trivore"]
    preset, routes = preset_of(source), routes_of(source.name, config.routes.values())
    headers = {"content-type": "application/json", "user-agent": "benchmark"}
    engine = engines.connect_async(url, application="benchmarks")
    async with engine.connect() as connection:
        store = STORES[engine.dialect.name]()
        for batch in _batches(bodies):
            raws = [RawRequest(source.name, headers, body, _BEGIN + timedelta(days=1)) for body in batch]
            await store.append(connection, [events_of(source, preset, raw, routes)[0] for raw in raws])
    await engine.dispose()


def _batches(bodies: list[bytes]) -> Iterator[list[bytes]]:
    rest = iter(bodies)
    while batch := list(itertools.islice(rest, BATCH)):
        yield batch


def _run_bare_loop(server: str, concurrency: int, bodies: list[bytes], environment: Mapping[str, str]) -> None:
    """In a process of its own, like the relay."""
    command = [sys.executable, "-m", "benchmarks.drain", "--bare-loop", f"{server}/hook", str(concurrency)]
    subprocess.run(command, check=True, env=environment, input=b"\n".join(bodies))


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
        app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
        app.command()(main)
        app()
