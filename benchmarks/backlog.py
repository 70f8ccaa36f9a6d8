"""Effect of a large backlog on the relay.

- `mountain`: deliveries/s of the first seconds with a million arrived events, against those while arrivals hold a
  thousand open; and the relay's peak memory.
- `lane`: deliveries/s of 10,000 lanes while another one has 100,000 events behind a head that has failed, against those
  without it.
- `fold`: the number of downstream updates for a million updates of a thousand entities on a sync route in `latest`.

All of it runs on 127.0.0.1; the downstream answers at once.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from sqlalchemy import Connection, text

from benchmarks.rows import ROWS
from benchmarks.support import Kind, Side, configured, databases, downstream, get, machine, repeating, report
from inbox.db import engine as engines
from inbox.db.dialect import POSTGRES

BAR_MIB = 150
HELD_OPEN = 1000
_MOMENT = "2026-01-01 00:00:00.000000Z"


class What(StrEnum):
    """Kind of backlog."""

    MOUNTAIN = "mountain"
    LANE = "lane"
    FOLD = "fold"


class Seen(msgspec.Struct):
    """Requests that the downstream has received since the last query."""

    requests: int
    bodies: int
    seconds: float


class Inbox:
    """Fills the database as the receiver would have, faster."""

    def __init__(self, url: str) -> None:
        self.engine = engines.connect(url, application="benchmarks")
        self.is_postgres = self.engine.dialect.name == POSTGRES
        self._last = 0

    def add(self, events: int, entity: str, state: str = "received", route: str = "everything") -> None:
        """So many events of the entities that `entity`, an SQL expression over the number n, names."""
        first, self._last = self._last + 1, self._last + events
        numbers = (
            f"generate_series({first}, {self._last}) AS n"
            if self.is_postgres
            else f"(WITH RECURSIVE c(n) AS (SELECT {first} UNION ALL SELECT n + 1 FROM c WHERE n < {self._last}) SELECT n FROM c)"
        )
        when, blob = ("TIMESTAMPTZ ", "bytea") if self.is_postgres else ("", "blob")
        routes = f"ARRAY['{route}']" if self.is_postgres else f"'[\"{route}\"]'"
        body = f"""'{{"id": "' || {entity} || '", "entityType": "USER", "n": ' || n || '}}'"""
        with self.engine.begin() as connection:
            _run(
                connection,
                f"""
INSERT INTO inbox (seq, source, dedup_key, entity_type, entity_id, event_type, action, occurred_at, received_at, routes,
                   content_type, body_bytes, body_sha256)
SELECT n, 'trivore', 'key ' || n, 'USER', {entity}, 'UPDATE', 'update', {when}'{_MOMENT}', {when}'{_MOMENT}', {routes},
       'application/json', length({body}), CAST('00' AS {blob})
FROM {numbers}""",
            )
            _run(
                connection,
                f"INSERT INTO inbox_payload (seq, headers, body) SELECT n, '{{}}', CAST({body} AS {blob}) FROM {numbers}",
            )
            _run(
                connection,
                f"""
INSERT INTO open_delivery (seq, route, lane, occurred_at, state)
SELECT n, '{route}', 'USER|' || {entity}, {when}'{_MOMENT}', '{state}' FROM {numbers}""",
            )
            if self.is_postgres:  # a relay refuses a database whose sequence is behind
                _run(connection, f"SELECT setval('inbox_seq_seq', {self._last})")

    def add_after(self, events: int, entity: str, route: str) -> None:
        """Add events behind those that a receiver has stored, and have a receiver store its next ones behind them."""
        with self.engine.begin() as connection:
            self._last = connection.execute(text("SELECT coalesce(max(seq), 0) FROM inbox")).scalar_one()
            if self.is_postgres:
                connection.execute(text("SELECT setval('inbox_seq_seq', :last)"), {"last": self._last + events})
        self.add(events, entity, route=route)

    def count(self, state: str | None = None) -> int:
        """Count the open deliveries, or those in a state."""
        with self.engine.connect() as connection:
            found = connection.execute(
                text("SELECT count(*) FROM open_delivery WHERE state = coalesce(:state, state)"), {"state": state}
            )
            return int(found.scalar_one())

    def settle(self) -> None:
        """As autovacuum leaves it."""
        with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM ANALYZE" if self.is_postgres else "ANALYZE"))

    def empty(self) -> None:
        """Begin again."""
        with self.engine.begin() as connection:
            if self.is_postgres:
                kept = ("inbox", "inbox_payload", "delivery_log")
                for table in kept:
                    connection.execute(text(f"ALTER TABLE {table} DISABLE TRIGGER ALL"))
                connection.execute(text(f"TRUNCATE {', '.join(kept)}, open_delivery, lane, alert, gate"))
                for table in kept:
                    connection.execute(text(f"ALTER TABLE {table} ENABLE TRIGGER ALL"))
            else:
                connection.execute(text("DELETE FROM open_delivery"))
                connection.execute(text("DELETE FROM lane"))


def _run(connection: Connection, statement: str) -> None:
    connection.execute(text(statement.replace(":", "\\:")))


def main(
    *,
    what: Annotated[What, typer.Argument(help="Which mountain.")],
    database: Annotated[Kind, typer.Option(help="Which database.")] = Kind.POSTGRES,
    events: Annotated[int, typer.Option(min=1000, max=5_000_000, help="In the mountain.")] = 1_000_000,
    seconds: Annotated[int, typer.Option(min=2, max=600, help="For so long the mountain is drained.")] = 30,
    rounds: Annotated[int, typer.Option(min=1, max=20, help="How often each side is measured.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Measure what a mountain does to the relay."""
    with ExitStack() as stack:
        (url,) = stack.enter_context(databases(database))
        server = stack.enter_context(downstream())
        environment = stack.enter_context(configured(url, f"{server}/hook", 16))
        if what is What.FOLD:
            print(json.dumps(fold(Inbox(url), server, environment, events), indent=2))
            return
        sides, notes = (
            mountain(Inbox(url), server, environment, events, seconds=seconds, rounds=rounds)
            if what is What.MOUNTAIN
            else lane(Inbox(url), server, environment, rounds)
        )
    report(f"{what}, {database}: deliveries per second", sides, {**notes, **machine()}, as_json=as_json)


def mountain(
    inbox: Inbox, server: str, environment: Mapping[str, str], events: int, *, seconds: int, rounds: int
) -> tuple[list[Side], dict[str, object]]:
    """The first seconds of a million, and the same while arrivals hold a thousand open, in turn."""
    high, low = Side(f"{events} open"), Side(f"{HELD_OPEN} held open", bar=ROWS["mountain"].bar)
    peaks = []
    for _ in range(rounds):
        inbox.empty()
        inbox.add(events, "'u' || n")
        inbox.settle()
        rate, peak = drained_for(server, environment, seconds)
        high.rates.append(rate)
        peaks.append(peak)
        inbox.empty()
        with _arrivals(inbox):
            low.rates.append(drained_for(server, environment, seconds)[0])
    return [high, low], {"peak_mib": peaks, "bar_mib": BAR_MIB, "seconds": seconds}


def lane(
    inbox: Inbox, server: str, environment: Mapping[str, str], rounds: int
) -> tuple[list[Side], dict[str, object]]:
    """10,000 lanes beside one that stands, and alone."""
    beside, alone = Side("beside a lane that stands"), Side("alone", bar=ROWS["stopped-lane"].bar)
    for _ in range(rounds):
        for side in (beside, alone):
            inbox.empty()
            if side is beside:
                inbox.add(1, "'stuck'", "dead")
                inbox.add(100_000, "'stuck'", "waiting")
            inbox.add(10_000, "'u' || n")
            inbox.settle()
            get(f"{server}/")
            subprocess.run([sys.executable, "-m", "relay", "run", "--drain"], check=True, env=environment)
            seen = msgspec.json.decode(get(f"{server}/"), type=Seen)
            assert seen.requests == 10_000, seen
            side.rates.append((seen.requests - 1) / seen.seconds)
    return [beside, alone], {"behind_the_head": 100_000}


def fold(inbox: Inbox, server: str, environment: Mapping[str, str], events: int) -> dict[str, object]:
    """A million updates of a thousand entities, on a sync route."""
    path = Path(environment["INBOX_CONFIG"])
    written = path.read_text(encoding="utf-8")
    plain = written[: written.index("[destinations.downstream]")]
    path.write_text(plain + _SYNC.format(server=server), encoding="utf-8")
    inbox.add(events, "'u' || (n % 1000)")
    inbox.settle()
    get(f"{server}/")
    began = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "relay", "run", "--drain"], env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    seen = msgspec.json.decode(get(f"{server}/"), type=Seen)
    return {
        "events": events,
        "entities": 1000,
        "updates_downstream": seen.requests,
        "bar": 2000,
        "left_open": inbox.count(),
        "seconds": round(time.monotonic() - began, 1),
        "peak_mib": round(usage.ru_maxrss / 1024),
        "bar_mib": BAR_MIB,
        **machine(),
    }


_SYNC = """
[apis.identity]
base_url = "{server}"
allow_http = true
allow_private = true
[destinations.downstream]
kind = "sync"
base_url = "{server}"
allow_http = true
allow_private = true
[routes.everything]
source = "trivore"
destination = "downstream"
[routes.everything.sync]
gone = "skip"
missing = "skip"
fetch = {{ api = "identity", path = "/entities/{{event.entity_id}}" }}
update = {{ path = "/contacts/{{event.entity_id}}", method = "PUT", format = "json" }}
[routes.everything.sync.map]
name = "entity.name"
"""


def drained_for(server: str, environment: Mapping[str, str], seconds: int) -> tuple[float, int]:
    """Return the downstream's requests per second from its first one on, and the relay's peak memory in MiB."""
    get(f"{server}/")
    process = subprocess.Popen([sys.executable, "-m", "relay", "run"], env=environment, stderr=subprocess.DEVNULL)
    time.sleep(seconds)
    seen = msgspec.json.decode(get(f"{server}/"), type=Seen)
    if process.poll() is not None:
        raise SystemExit(f"the relay has ended with {process.returncode}")
    process.send_signal(signal.SIGTERM)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if seen.requests < 2:
        raise SystemExit(f"the relay has delivered {seen.requests} events in {seconds} s: give it more --seconds")
    return (seen.requests - 1) / seen.seconds, round(usage.ru_maxrss / 1024)


def _arrivals(inbox: Inbox) -> AbstractContextManager[None]:
    """Somebody who sees to it that a thousand are open all the time."""

    def feed() -> None:
        missing = HELD_OPEN - inbox.count()
        if missing > HELD_OPEN // 4:
            inbox.add(missing, "'u' || n")

    return repeating(feed, 0.02)


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(main)
    app()
