"""Payloads in a table of their own: intake against bodies inline in `inbox`, and pruning beside intake.

    python -m benchmarks.retention intake --before /path/of/a/checkout
    python -m benchmarks.retention prune --database postgres --events 5000000 --pruned 1000000

`--before` names a checkout of the version that is compared, such as `git worktree add ../before 8627015`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import typer
from sqlalchemy import Engine, make_url, text

from benchmarks.load import Answers, send
from benchmarks.support import Kind, Side, before_url, configured, databases, machine, report, serving
from inbox.clock import SystemClock
from inbox.db import engine as engines
from inbox.db.dialect import POSTGRES
from inbox.db.engine import checkpoint
from inbox.db.leaves import FIRST_LEAF
from relay.store import database as stores
from relay.store.retention import LeasedPruner, Pruned

INTAKE_BAR, PRUNING_BAR, BYTES_BAR = 0.92, 0.90, 0.80
_OVERHEAD = 100
"""Bytes of a body without padding."""
_LEAF = 1_000_000
_PAUSE = 2.0

app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
Database = Annotated[Kind, typer.Option(help="Which database.")]
Seconds = Annotated[float, typer.Option(min=1, max=300, help="How long each side is measured in a round.")]
Connections = Annotated[int, typer.Option(min=1, max=1024, help="Of the sender.")]
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]


@app.command()
def intake(
    *,
    before: Annotated[Path, typer.Option(help="A checkout of the other version.", exists=True, file_okay=False)],
    database: Database = Kind.POSTGRES,
    sizes: Annotated[str, typer.Option(help="Sizes of a body in bytes.")] = "100,1024,16384",
    seconds: Seconds = 8,
    connections: Connections = 64,
    rounds: Annotated[int, typer.Option(min=1, max=50, help="How often each side is measured.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Compare intake with that of the other version, in the same rounds, through gunicorn."""
    for size in map(int, sizes.split(",")):
        now, then = Side("now"), Side("before", bar=INTAKE_BAR)
        with ExitStack() as stack:
            (url,) = stack.enter_context(databases(database))
            other = stack.enter_context(before_url(database, before.absolute()))
            sides = [
                (now, stack.enter_context(_receiver(url, None))),
                (then, stack.enter_context(_receiver(other, before.absolute()))),
            ]
            for _, target in sides:
                accepted(target, 1, connections, size)
            for number in range(rounds):
                for side, target in sides if number % 2 else sides[::-1]:
                    side.rates.append(accepted(target, seconds, connections, size).rate)
        title = f"Intake of bodies of {size:,} bytes, {database.value}"
        report(title, [now, then], machine(), as_json=as_json)


@app.command()
def prune(
    *,
    database: Database = Kind.POSTGRES,
    events: Annotated[int | None, typer.Option(min=1000, help="Stored events; 5 M, and 1 M on SQLite.")] = None,
    pruned: Annotated[int | None, typer.Option(min=100, help="Events whose payloads expire; a fifth.")] = None,
    body_bytes: Annotated[int, typer.Option(min=1, help="Size of a body.")] = 1024,
    seconds: Seconds = 10,
    rounds: Annotated[int, typer.Option(min=1, max=20, help="In each, a part of them expires.")] = 5,
    connections: Connections = 64,
    as_json: AsJson = False,
) -> None:
    """Prune payloads beside intake: what it costs the receiver, and how much of the disk it gives back."""
    events = events or (5_000_000 if database is Kind.POSTGRES else 1_000_000)
    pruned = pruned or events // 5
    with databases(database) as (url,):
        engine = engines.connect(url, application="benchmarks")
        is_postgres = engine.dialect.name == POSTGRES
        cuts = fill(engine, events, pruned // rounds, rounds, body_bytes)
        before = _size(engine)
        alone, beside = Side("intake alone", bar=PRUNING_BAR), Side("intake beside pruning")
        steps: list[tuple[Pruned, float]] = []
        worst: dict[str, float] = {"alone": 0, "beside": 0}
        added = 0
        with _receiver(url, None) as target:
            accepted(target, 1, connections, body_bytes)
            for number, cut in enumerate(cuts):
                for is_beside in (False, True) if number % 2 else (True, False):
                    with _pruning(engine, cut if is_beside else None) as made:
                        answers = accepted(target, seconds, connections, body_bytes)
                    (beside if is_beside else alone).rates.append(answers.rate)
                    key = "beside" if is_beside else "alone"
                    worst[key] = max(worst[key], answers.worst_ms)
                    added += answers.accepted
                    steps += made
        rows, took = sum(step.rows for step, _ in steps), sum(seconds for _, seconds in steps)
        grown = added * before / events  # what intake has added meanwhile takes about as much for each event
        if not is_postgres:
            checkpoint(engine)
        theirs = before * pruned / events if is_postgres else pruned * body_bytes
        back = (before + grown - _size(engine)) / theirs
        notes: dict[str, object] = {
            "payloads deleted": f"{rows:,} of {events:,} in {took:.2f} s of {len(steps)} steps",
            "bytes given back": f"{back:.1%} of theirs (bar {BYTES_BAR:.0%})",
            "worst request": f"{worst['beside']:.0f} ms beside pruning, {worst['alone']:.0f} ms without",
        }
        engine.dispose()
    report(
        f"Pruning beside intake, {database.value}, {body_bytes:,} bytes",
        [beside, alone],
        notes | machine(),
        as_json=as_json,
    )


@contextmanager
def _receiver(url: str, folder: Path | None) -> Iterator[str]:
    with configured(url) as environment, serving(environment, folder=folder) as receiver:
        yield receiver.target


def accepted(target: str, seconds: float, connections: int, body_bytes: int) -> Answers:
    answers = send(target, seconds, connections, max(body_bytes - _OVERHEAD, 0))
    if answers.refused or answers.lost:
        raise SystemExit(f"of {answers.answers} answers {answers.refused} were refusals, {answers.lost} went missing")
    return answers


@contextmanager
def _pruning(engine: Engine, cut: datetime | None) -> Iterator[list[tuple[Pruned, float]]]:
    """Prune in a thread as a relay does what is older than `cut`, until nothing is left; without a time, do nothing."""
    steps: list[tuple[Pruned, float]] = []
    if cut is None:
        yield steps
        return

    def work() -> None:
        pruner = LeasedPruner(stores.Database(engine), "benchmark")
        pruner.take()
        time.sleep(_PAUSE)
        pruned: Pruned | None = Pruned(is_done=False)
        while pruned is not None and not pruned.is_done:
            began = time.monotonic()
            if (pruned := pruner.batch("payloads", cut)) is not None:
                steps.append((pruned, time.monotonic() - began))
        if engine.dialect.name != POSTGRES:
            checkpoint(engine)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield steps
    finally:
        thread.join()


def fill(engine: Engine, events: int, part: int, rounds: int, body_bytes: int) -> list[datetime]:
    """Store events that have all ended. Of each round, a part is a day younger; returns the times that part them."""
    now = SystemClock().now()
    is_postgres = engine.dialect.name == POSTGRES
    ends = [part * (number + 1) for number in range(rounds)]
    if is_postgres:
        with engine.begin() as connection:
            bounds = [1 + FIRST_LEAF, *range(_LEAF + 1, events + 2 * _LEAF, _LEAF)]
            bounds = sorted({*bounds, *(end + 1 for end in ends if end > FIRST_LEAF)})
            for lo, hi in pairwise(bounds):
                connection.execute(text(f"SELECT inbox_payload_add_leaf({lo}, {hi})"))
    days = [40 + rounds - number for number in range(rounds)]
    ranges = [*zip([0, *ends[:-1]], ends, days, strict=True), (ends[-1], events, 1)]
    for beyond, last_of_all, age in ranges:
        for first in range(beyond + 1, last_of_all + 1, 50_000):
            at = f"{now - timedelta(days=age):%Y-%m-%d %H:%M:%S.000000Z}"
            _insert(engine, first, min(first + 49_999, last_of_all), at, body_bytes)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE" if is_postgres else "ANALYZE"))
    if not is_postgres:
        checkpoint(engine)
    return [now - timedelta(days=age, hours=-1) for age in days]


def _insert(engine: Engine, first: int, last: int, at: str, body_bytes: int) -> None:
    is_postgres = engine.dialect.name == POSTGRES
    numbers = (
        f"generate_series({first}, {last}) AS n"
        if is_postgres
        else f"(WITH RECURSIVE c(n) AS (SELECT {first} UNION ALL SELECT n + 1 FROM c WHERE n < {last}) SELECT n FROM c)"
    )
    routes = "'{everything}'" if is_postgres else "'[\"everything\"]'"
    blank = "CAST('00' AS bytea)" if is_postgres else "x'00'"
    body = (
        f"substr(convert_to(repeat(md5(CAST(n AS text)), {body_bytes // 32 + 1}), 'UTF8'), 1, {body_bytes})"
        if is_postgres
        else f"randomblob({body_bytes})"
    )
    event = f"""
INSERT INTO inbox (seq, source, dedup_key, entity_type, entity_id, event_type, action, occurred_at, received_at, routes,
                   content_type, body_bytes, body_sha256)
SELECT n, 'trivore', 'key ' || n, 'USER', 'u' || n, 'UPDATE', 'update', '{at}', '{at}', {routes}, 'application/json',
       {body_bytes}, {blank} FROM {numbers}"""
    with engine.begin() as connection:
        connection.exec_driver_sql(event)
        connection.exec_driver_sql(
            f"INSERT INTO inbox_payload (seq, headers, body) SELECT n, '{{}}', {body} FROM {numbers}"
        )
        if is_postgres:
            connection.exec_driver_sql(f"SELECT setval('inbox_seq_seq', {last})")


def _size(engine: Engine) -> float:
    """Return the bytes of payloads on disk: of their relations on Postgres, of the whole file on SQLite."""
    if engine.dialect.name != POSTGRES:
        return Path(make_url(str(engine.url)).database or "").stat().st_size
    with engine.connect() as connection:
        query = "SELECT sum(pg_total_relation_size(inhrelid)) FROM pg_inherits WHERE inhparent = 'inbox_payload'\\:\\:regclass"
        return float(connection.execute(text(query)).scalar_one())


if __name__ == "__main__":
    app()
