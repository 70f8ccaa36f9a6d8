"""A soak: a receiver and a relay at a steady rate, with a retention of minutes; the tables must stop growing.

A real gunicorn receiver, a real relay and a downstream that answers each call run for so many minutes. Events arrive
at a steady rate, about 1,000 entities, each a second time as a duplicate now and then, with a rejected request beside
them. Everything expires after a few minutes. `[retention]` allows no such ages, and triggers protect younger rows: the
relay is given its ages here (`benchmarks.soaking_relay`), and this throwaway database has its floors taken away.

The verdict compares the tables at the end with their size after two ages, when retention is at work.
"""

from __future__ import annotations

import json
import re
import sys
import time
from contextlib import ExitStack
from threading import Event, Thread
from typing import Annotated

import httpx
import msgspec
import typer
from rich.console import Console
from rich.table import Table as Lines
from sqlalchemy import Engine, text

from benchmarks.support import TOKEN, Kind, configured, databases, downstream, free_port, machine, running
from inbox.db import engine as engines
from inbox.db.schema import metadata

ALLOWED_GROWTH = 1.10
"""The tables at the end, as a multiple of their size when retention is at work: after two ages."""
SETTLED_AFTER_AGES = 2
_ENTITIES = 1_000
_CONNECTIONS = 16


class Minute(msgspec.Struct):
    """Figures at the end of a minute."""

    minute: int
    sent: int
    failed: int
    events: int
    facts: int
    open: int
    pruned: int
    megabytes: dict[str, float]

    @property
    def total(self) -> float:
        return round(sum(self.megabytes.values()), 1)


def main(
    *,
    database: Annotated[Kind, typer.Option(help="Which database.")] = Kind.POSTGRES,
    minutes: Annotated[int, typer.Option(min=3, max=10_000, help="How long.")] = 60,
    rate: Annotated[int, typer.Option(min=1, max=10_000, help="Events a second.")] = 200,
    age: Annotated[int, typer.Option(min=1, max=100_000, help="Minutes after which everything expires.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Run so long at so many events a second; exit with 1 when the tables have grown."""
    if minutes <= SETTLED_AFTER_AGES * age:
        raise typer.BadParameter(
            f"--minutes must be more than {SETTLED_AFTER_AGES} times --age, to see more than the filling"
        )
    with ExitStack() as stack:
        (url,) = stack.enter_context(databases(database))
        engine = engines.connect(url, application="benchmarks")
        stack.callback(engine.dispose)
        lower_floors(engine, age)
        server = stack.enter_context(downstream(1))
        environment = stack.enter_context(configured(url, f"{server}/hook", 16))
        receiver = f"http://127.0.0.1:{(port := free_port())}"
        gunicorn = ("-c", "python:inbox.gunicorn_settings", "--bind", f"127.0.0.1:{port}", "--workers", "1")
        stack.enter_context(running("gunicorn", *gunicorn, ready=f"{receiver}/health/ready", environment=environment))
        stack.enter_context(running("benchmarks.soaking_relay", str(age), ready=server, environment=environment))
        load = Load(receiver, rate)
        stack.callback(load.stop)
        found = [_wait(engine, load, minute, as_json=as_json) for minute in range(1, minutes + 1)]
    raise typer.Exit(_report(found, database, rate, age, as_json=as_json))


class Load:
    """Sends events at a steady rate over some connections, late ones at once, with some duplicates and rejected requests."""

    def __init__(self, receiver: str, rate: int) -> None:
        self.sent = self.failed = 0
        self._url = f"{receiver}/webhooks/trivore"
        self._ended = Event()
        self._threads = [Thread(target=self._run, args=(n, rate), daemon=True) for n in range(_CONNECTIONS)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _run(self, first: int, rate: int) -> None:
        """Send every so many-th event, when it is due."""
        began, number = time.monotonic(), first
        with httpx.Client(trust_env=False, timeout=10) as client:
            while not self._ended.is_set():
                due = (time.monotonic() - began) * rate
                while number < due and not self._ended.is_set():
                    number += _CONNECTIONS
                    self._send(client, number)
                self._ended.wait(0.005)

    def _send(self, client: httpx.Client, number: int) -> None:
        known = number - 1 if number % 50 == 0 else number  # a duplicate now and then
        token = "wrong" if number % 100 == 0 else TOKEN
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(1_700_000_000 + known // 1000)) + f".{known % 1000:03d}Z"
        event = {
            "id": f"u{known % _ENTITIES}", "timestamp": at, "entityType": "USER", "eventType": "UPDATE", "padding": "x" * 100,
        }  # fmt: skip
        try:
            answer = client.post(self._url, json=event, headers={"X-Webhook-Token": token})
            self.failed += answer.status_code not in {200, 401}
        except httpx.HTTPError:
            self.failed += 1
        self.sent += 1


def lower_floors(engine: Engine, age: int) -> None:
    """Write the functions and triggers of this throwaway database anew, with minutes in place of the days of the floor."""
    floor = re.compile(r"(interval '|'-)7 days'")
    with engine.begin() as connection:
        if engine.dialect.name == "sqlite":
            found = connection.execute(text("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'")).all()
            for name, statement in found:
                if floor.search(statement):
                    connection.execute(text(f"DROP TRIGGER {name}"))
                    lowered = floor.sub(rf"\g<1>{age - 1} minutes'", statement)
                    connection.exec_driver_sql(lowered)
            return
        statements = connection.scalars(
            text(
                "SELECT pg_get_functiondef(p.oid) FROM pg_proc p WHERE p.pronamespace = current_schema()::regnamespace"
            )
        ).all()
        for statement in statements:
            if floor.search(statement):
                connection.exec_driver_sql(floor.sub(rf"\g<1>{age - 1} minutes'", statement).replace("%", "%%"))


def _wait(engine: Engine, load: Load, minute: int, *, as_json: bool) -> Minute:
    time.sleep(60)
    with engine.connect() as connection:

        def one(statement: str) -> int:
            return int(connection.execute(text(statement)).scalar_one() or 0)

        found = Minute(
            minute,
            load.sent,
            load.failed,
            one("SELECT count(*) FROM inbox"),
            one("SELECT count(*) FROM delivery_log"),
            one("SELECT count(*) FROM open_delivery"),
            one("SELECT sum(rows) FROM pruning"),
            {name: size for name, size in _sizes(engine).items() if size},
        )
    if not as_json:
        print(msgspec.json.encode({**msgspec.structs.asdict(found), "total": found.total}).decode(), file=sys.stderr)
    return found


def _sizes(engine: Engine) -> dict[str, float]:
    """The megabytes of each table with its indexes and partitions; on SQLite of the pages of the file in use."""
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            pages, free, size = (
                int(connection.exec_driver_sql(f"PRAGMA {name}").scalar_one())
                for name in ("page_count", "freelist_count", "page_size")
            )
            return {"file": round(pages * size / 1e6, 1), "of it free": -round(free * size / 1e6, 1)}
        statement = text("""
SELECT coalesce(sum(pg_total_relation_size(relid)), 0) FROM pg_partition_tree(CAST(:name AS regclass))
""")
        return {
            name: round(
                int(
                    connection.execute(statement, {"name": name}).scalar_one()
                    or connection.execute(
                        text("SELECT pg_total_relation_size(CAST(:name AS regclass))"), {"name": name}
                    ).scalar_one()
                )
                / 1e6,
                1,
            )
            for name in metadata.tables
        }


def _report(found: list[Minute], database: Kind, rate: int, age: int, *, as_json: bool) -> int:
    settled = found[min(SETTLED_AFTER_AGES * age, len(found)) - 1]
    last = found[-1]
    growth = last.total / max(settled.total, 0.1)
    is_steady = growth <= ALLOWED_GROWTH
    verdict = {
        "settled_minute": settled.minute,
        "settled_megabytes": settled.total,
        "last_megabytes": last.total,
        "growth": round(growth, 3),
        "allowed": ALLOWED_GROWTH,
        "is_steady": is_steady,
        "failed_requests": last.failed,
    }
    notes = {"database": database, "events_per_second": rate, "age_minutes": age, **machine()}
    if as_json:
        minutes = [{**msgspec.structs.asdict(each), "total": each.total} for each in found]
        print(json.dumps({"minutes": minutes, "verdict": verdict, **notes}, indent=2))
    else:
        lines = Lines("minute", "sent", "failed", "events", "facts", "open", "pruned", "MB")
        for each in found:
            figures = (each.minute, each.sent, each.failed, each.events, each.facts, each.open, each.pruned, each.total)
            lines.add_row(*map(str, figures))
        console = Console(soft_wrap=True)
        console.print(lines)
        for name, value in {**verdict, **notes}.items():
            console.print(f"{name.replace('_', ' ')}: {value}", highlight=False)
    return 0 if is_steady and not last.failed else 1


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(main)
    app()
