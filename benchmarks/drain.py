"""The relay draining a full inbox to a forward destination, against a bare loop of threads that post the same bodies, and queues.

All call the same trivial downstream, which tells the seconds from the first request to the last. Rounds alternate, and
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
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import msgspec
import requests
import typer

from benchmarks.peers import QUEUES
from benchmarks.rows import ROWS
from benchmarks.support import (
    Kind,
    Side,
    configured,
    databases,
    downstream,
    get,
    last_line,
    libpq,
    machine,
    report,
    run_group,
)
from inbox.config.routing import routes_of
from inbox.db import intake
from inbox.db.link import link_to
from inbox.events.event import RawRequest
from inbox.loader.load import read_config
from inbox.sources import preset_of
from inbox.sources.normalize import events_of

EVENTS_OF_AN_ENTITY = 5
BATCH = 250
BARE = "bare"
LONGEST_SECONDS = 900.0
"""Of another side in a round."""
BARS: Mapping[str, float] = {"procrastinate": ROWS["drain-procrastinate"].bar}
"""Of peers, as a multiple of their rate."""
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
    against: Annotated[list[str] | None, typer.Option(help=f"Only {BARE}, {', '.join(QUEUES)}; repeatable.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Measure how fast the relay drains the inbox, as `relay run --drain` in a process of its own."""
    relay, bare = Side("relay"), Side("bare Session.post loop", bar=ROWS["drain-bare"].bar)
    wanted = against or ([BARE] if database is Kind.SQLITE else [BARE, *QUEUES])
    missing = {name: lack for name in wanted if name != BARE and (lack := QUEUES[name].missing())}
    peers = {
        name: Side(QUEUES[name].title, bar=BARS.get(name)) for name in wanted if name != BARE and name not in missing
    }
    with ExitStack() as stack:
        url, theirs = stack.enter_context(databases(database, 2))
        server = stack.enter_context(downstream())
        environment = stack.enter_context(configured(url, f"{server}/hook", concurrency))
        for _ in range(rounds):
            bodies = bodies_of(events)
            asyncio.run(preload(url, environment, bodies))
            get(server)
            subprocess.run([sys.executable, "-m", "relay", "run", "--drain"], check=True, env=environment)
            relay.rates.append(rate(server, events))
            if BARE in wanted:
                loop = ("benchmarks.drain", "--bare-loop", f"{server}/hook", str(concurrency))
                _run_side(loop, bodies, environment)
                bare.rates.append(rate(server, events))
            for name in list(peers):
                module = f"benchmarks.peers.{QUEUES[name].module}"
                try:
                    _run_side((module, libpq(theirs), f"{server}/hook", str(concurrency)), bodies, environment)
                    peers[name].rates.append(rate(server, events))
                except (SystemExit, subprocess.TimeoutExpired) as error:  # it costs no other side
                    missing[name] = str(error)
                    del peers[name]
                    get(server)
    notes = {"events": events, "concurrency": concurrency, "missing": missing, **machine()}
    sides = [side for side in (relay, bare, *peers.values()) if side.rates]
    report(f"Drain, {database}: deliveries per second", sides, notes, as_json=as_json)


def rate(server: str, events: int) -> float:
    """Requests per second that the downstream saw; each event must have arrived, and once."""
    seen = msgspec.json.decode(get(server), type=Seen)
    if (seen.requests, seen.bodies) != (events, events):
        raise SystemExit(f"{events} events became {seen.requests} requests with {seen.bodies} different bodies")
    return (seen.requests - 1) / seen.seconds


def bodies_of(events: int, entities: int | None = None, types: Sequence[str] = ("USER",)) -> list[bytes]:
    """Webhooks in the order of their times; each entity has five or as many as there are, spread over the whole."""
    run = uuid.uuid4().hex[:8]
    entities = entities or max(events // EVENTS_OF_AN_ENTITY, 1)
    return [
        msgspec.json.encode(
            {
                "id": f"{run}-{number % entities}",
                "entityType": types[number % entities % len(types)],
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
    link = link_to(url, application="benchmarks")
    await link.open()
    for batch in _batches(bodies):
        raws = [RawRequest(source.name, headers, body, _BEGIN + timedelta(days=1)) for body in batch]
        await link.write(intake.append, [events_of(source, preset, raw, routes)[0] for raw in raws])
    await link.drop()


def _batches(bodies: list[bytes]) -> Iterator[list[bytes]]:
    rest = iter(bodies)
    while batch := list(itertools.islice(rest, BATCH)):
        yield batch


def _run_side(command: Sequence[str], bodies: list[bytes], environment: Mapping[str, str]) -> None:
    """In a process of its own, like the relay."""
    line = [sys.executable, "-m", *command]
    ended = run_group(line, LONGEST_SECONDS, environment=environment, given=b"\n".join(bodies))
    if ended.returncode:
        raise SystemExit(f"{command[0]} failed: {last_line(ended.stderr)}")


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
