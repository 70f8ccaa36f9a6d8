"""The order lock while relays drain an inbox: how long it is held and waited for, for each event, and what an event costs.

Relay processes drain a full inbox by the real loop. The calls are made to a real HTTP server, answered at once within the
process, or `busy`: they take the interpreter as long as HTTP does. With `--before`, a checkout of another version drains
the same in turn, on the same server. Only ratios mean anything on a machine with other work; trips and bytes do always.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from sqlalchemy import text

from benchmarks.drain import EVENTS_OF_AN_ENTITY, preload
from benchmarks.support import Kind, before_url, beside, configured, count_rows, databases, free_port, machine, running
from inbox.db import engine as engines

_BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
HERE = Path(__file__).parents[1]


class Deliver(StrEnum):
    """The way calls are made."""

    AT_ONCE = "at-once"
    BUSY = "busy"
    HTTP = "http"


class Drained(msgspec.Struct, frozen=True):
    """Rate of one round, and its cost for each event."""

    per_second: float
    """Deliveries from the first lock to the end of the slowest process."""
    held_us: float
    """Microseconds that the order lock is held, by all processes together."""
    waited_us: float
    record_ms: float
    """Median time that one record holds the lock."""
    record_tenth_ms: float
    """The same of the fastest tenth, which other work on the machine hardly changes."""
    trips: float
    """Waits for the server while record holds the lock, for each transaction."""
    events_of_record: float
    waits: float
    """Waits for the server in all steps."""
    cpu_us: float
    """Processor time of the relays."""
    wal_bytes: float
    by_step: Mapping[str, tuple[float, float]]
    """Of each step the microseconds that it holds, and waits for, the lock."""


def bodies_of(events: int, routes: int) -> list[bytes]:
    """Webhooks in the order of their times, evenly for each route; each entity has some, spread over the whole."""
    run, entities = os.urandom(4).hex(), max(events // EVENTS_OF_AN_ENTITY, 1)
    return [
        msgspec.json.encode(
            {
                "id": f"{run}-{number % entities}",
                "entityType": f"T{number % entities % routes}",
                "eventType": "UPDATE",
                "timestamp": _BEGIN + timedelta(milliseconds=number),
            }
        )
        for number in range(events)
    ]


def config_of(url: str, downstream: str, routes: int, concurrency: int) -> str:
    """One destination of its own for each route."""
    head = f'[database]\nurl = {json.dumps(url)}\n[sources.trivore]\npreset = "trivore"\nauth = {{ kind = "none" }}'
    route = """
[destinations.d{number}]
kind = "forward"
url = "{downstream}"
signing_secret = "benchmark-key"
concurrency = {concurrency}
allow_http = true
allow_private = true
[routes.r{number}]
source = "trivore"
destination = "d{number}"
ordering = "strict"
when = {{ entity_type = ["T{number}"] }}
"""
    each = max(concurrency // routes, 1)
    return head + "".join(
        route.format(number=number, downstream=downstream, concurrency=each) for number in range(routes)
    )


def drain(
    checkout: Path, url: str, environment: Mapping[str, str], *, deliver: Deliver, processes: int, events: int
) -> Drained:
    """Let so many processes of a checkout drain the database."""
    before = _wal(url)
    command = [sys.executable, beside("lock_relay.py"), deliver]
    paths = {**environment, "PYTHONPATH": str(checkout)}
    relays = [
        subprocess.Popen(command, env=paths, cwd=checkout, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        for _ in range(processes)
    ]
    told = [json.loads(relay.communicate()[0].splitlines()[-1]) for relay in relays]
    if left := count_rows(url, "open_delivery"):
        raise SystemExit(f"{left} deliveries are left")
    steps: dict[str, list[Any]] = defaultdict(list)
    for one in told:
        for name, step in one["steps"].items():
            steps[name].append(step)
    by_step = {
        name: (_us(sum(s["held"] for s in some), events), _us(sum(s["waited"] for s in some), events))
        for name, some in steps.items()
    }
    records = sum(s["times"] for s in steps["record"])
    return Drained(
        per_second=round(events / max(one["seconds"] for one in told), 1),
        held_us=round(sum(held for held, _ in by_step.values()), 1),
        waited_us=round(sum(waited for _, waited in by_step.values()), 1),
        record_ms=round(statistics.median(s["held_median"] for s in steps["record"]) * 1000, 2),
        record_tenth_ms=round(statistics.median(s["held_tenth"] for s in steps["record"]) * 1000, 2),
        trips=round(sum(s["trips"] for s in steps["record"]) / records, 2),
        events_of_record=round(events / records, 1),
        waits=round(sum(one["waits"] for one in told) / events, 2),
        cpu_us=_us(sum(one["cpu"] for one in told), events),
        wal_bytes=round((_wal(url) - before) / events),
        by_step=by_step,
    )


def _us(seconds: float, events: int) -> float:
    return round(seconds * 1e6 / events, 1)


def _wal(url: str) -> int:
    engine = engines.connect(url, application="benchmarks")
    with engine.connect() as connection:
        written: int = connection.execute(
            text("SELECT CAST(pg_current_wal_insert_lsn() - '0/0' AS bigint)")
        ).scalar_one()
    engine.dispose()
    return written


_FIGURES = {
    "per_second": "per second", "held_us": "held µs", "waited_us": "waited µs", "record_ms": "record ms",
    "record_tenth_ms": "tenth ms", "trips": "trips of record", "events_of_record": "events of record", "waits": "waits",
    "cpu_us": "CPU µs", "wal_bytes": "WAL bytes",
}  # fmt: skip


def main(
    *,
    before: Annotated[Path | None, typer.Option(help="A checkout of another version.", exists=True)] = None,
    deliver: Annotated[Deliver, typer.Option(help="How calls are made.")] = Deliver.HTTP,
    processes: Annotated[list[int], typer.Option(min=1, max=16, help="Relay processes; repeatable.")] = [1, 2],  # noqa: B006
    routes: Annotated[list[int], typer.Option(min=1, max=64, help="Routes; repeatable.")] = [1],  # noqa: B006
    events: Annotated[int, typer.Option(min=100, max=200_000, help="In the inbox at the start of a round.")] = 3000,
    concurrency: Annotated[int, typer.Option(min=1, max=256, help="Calls at a time of each process.")] = 16,
    rounds: Annotated[int, typer.Option(min=1, max=20, help="How often each side is measured.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Measure the order lock on Postgres."""
    sides = {"now": HERE} | ({} if before is None else {"before": before})
    found: dict[tuple[str, int, int], list[Drained]] = defaultdict(list)
    with ExitStack() as stack:
        (url,) = stack.enter_context(databases(Kind.POSTGRES))
        urls = {"now": url} | (
            {} if before is None else {"before": stack.enter_context(before_url(Kind.POSTGRES, before))}
        )
        server = f"http://127.0.0.1:{free_port()}"
        stack.enter_context(running("benchmarks.downstream", server.rpartition(":")[2], ready=server))
        for number in range(rounds):
            for how_many in routes:
                for relays in processes:
                    for name in sides if number % 2 else reversed(sides):
                        with configured(url) as plain, NamedTemporaryFile("w", suffix=".toml") as file:
                            file.write(config_of(urls[name], f"{server}/hook", how_many, concurrency))
                            file.flush()
                            environment = {**plain, "INBOX_CONFIG": file.name}
                            asyncio.run(preload(urls[name], environment, bodies_of(events, how_many)))
                            drained = drain(
                                sides[name], urls[name], environment, deliver=deliver, processes=relays, events=events
                            )
                            found[name, relays, how_many].append(drained)
    _tell(found, {"deliver": deliver, "events": events, "concurrency": concurrency, **machine()}, as_json=as_json)


def _tell(
    found: Mapping[tuple[str, int, int], Sequence[Drained]], notes: Mapping[str, object], *, as_json: bool
) -> None:
    if as_json:
        rows = [
            {"side": name, "processes": processes, "routes": routes, "rounds": msgspec.to_builtins(some)}
            for (name, processes, routes), some in found.items()
        ]
        print(json.dumps({"drained": rows, **notes}, indent=2))
        return
    table = Table("", "processes", "routes", *_FIGURES.values(), box=None)
    for (name, processes, routes), some in found.items():
        medians = [f"{statistics.median(getattr(one, figure) for one in some):g}" for figure in _FIGURES]
        table.add_row(name, str(processes), str(routes), *medians)
    console = Console(soft_wrap=True)
    console.print(table)
    for (name, processes, routes), some in found.items():
        console.print(f"{name} {processes} {routes}: {some[-1].by_step}", highlight=False)
    console.print(notes, highlight=False)


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(main)
    app()
