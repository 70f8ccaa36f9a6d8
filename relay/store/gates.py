"""Gates: what holds deliveries back besides their order. Rows of `gate`, shared by all relays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from functools import cache
from typing import Any

import msgspec
from sqlalchemy import TextClause, text

from inbox.db.dialect import Sql, rows_param
from inbox.timestamps import as_time
from relay.breaker import Breaker, BreakerState, GateKey, Gates, Health, heard
from relay.policy import RoutePolicy
from relay.store.database import Database, Transaction


def read_gates(database: Database) -> Gates:
    """Every gate that is not simply open."""
    with database.read() as transaction:
        now = transaction.now()
        rows = transaction.execute(_GATES)
    return Gates(
        now,
        frozenset((row.kind, row.name) for row in rows if row.paused_at is not None),
        {(row.kind, row.name): _breaker(row) for row in rows},
    )


class Heard(msgspec.Struct, frozen=True):
    """What one attempt says of one endpoint."""

    key: GateKey
    health: Health
    why: str


def listen(
    transaction: Transaction, all_heard: Iterable[Heard], policies: Mapping[str, RoutePolicy], now: datetime
) -> dict[GateKey, Breaker]:
    """Let the breakers hear how attempts went, under the order lock; an `alert` is noted for each that opens or closes.

    Returns:
        Those breakers as they were before.
    """
    reports = list(all_heard)
    if not reports:
        return {}
    limits = {key: limit for policy in policies.values() for key, limit in policy.breakers.items()}
    before = locked(transaction, {report.key for report in reports})
    after = {key: before.get(key, Breaker()) for key in {report.key for report in reports}}
    for report in reports:
        after[report.key] = heard(after[report.key], report.health, report.why, limits[report.key], now)
    changed = {key: breaker for key, breaker in after.items() if breaker != before.get(key, Breaker())}
    store(transaction, changed)
    _alert(transaction, before, changed)
    return {key: before.get(key, Breaker()) for key in after}


def locked(transaction: Transaction, keys: Iterable[GateKey]) -> dict[GateKey, Breaker]:
    """The breakers of these gates that have a row, locked."""
    rows = transaction.execute(_some(transaction.sql), gates=_keys(keys))
    return {(row.kind, row.name): _breaker(row) for row in rows}


def store(transaction: Transaction, breakers: Mapping[GateKey, Breaker]) -> None:
    """Write these breakers."""
    if breakers:
        rows = [
            {
                "kind": kind,
                "name": name,
                "breaker": breaker.state.value,
                "breaker_until": breaker.until,
                "breaker_cause": breaker.cause,
                "open_count": breaker.open_count,
                "failures": breaker.failures,
                "calls": breaker.calls,
                "window_began_at": breaker.window_began_at,
            }
            for (kind, name), breaker in sorted(breakers.items())
        ]
        transaction.execute(_store(transaction.sql), breakers=rows_param(rows))


def pause(database: Database, key: GateKey, *, who: str, why: str) -> None:
    """Claim nothing more that goes through this gate. Nothing is lost: what arrives waits."""
    with database.write() as transaction:
        transaction.execute(_pause(database.sql), kind=key[0], name=key[1], who=who, why=why)


def resume(database: Database, key: GateKey) -> bool:
    """Let deliveries through again: a pause is over, and a breaker closed, a retired one too. Whether anything was held back."""
    with database.write() as transaction:
        before = locked(transaction, [key])
        found = transaction.execute(_resume(database.sql), kind=key[0], name=key[1])
        closed = {k: Breaker() for k, breaker in before.items() if breaker.state is not BreakerState.CLOSED}
        _alert(transaction, before, closed)
    return bool(found)


def _alert(transaction: Transaction, before: Mapping[GateKey, Breaker], after: Mapping[GateKey, Breaker]) -> None:
    """A row of `alert` for each breaker that opens or closes; none while it opens again and again."""
    rows = []
    for (kind, name), breaker in after.items():
        was = before.get((kind, name), Breaker()).state
        if (was is BreakerState.CLOSED) != (breaker.state is BreakerState.CLOSED) or (
            breaker.state is BreakerState.RETIRED and was is not BreakerState.RETIRED
        ):
            retired = BreakerState.RETIRED in (breaker.state, was)
            rows.append(
                {
                    "kind": "retired" if retired else "breaker_open",
                    "subject": f"{kind} {name}",
                    "firing": breaker.state is not BreakerState.CLOSED,
                    "detail": {"cause": breaker.cause},
                }
            )
    if rows:
        transaction.execute(_note(transaction.sql), alerts=rows_param(rows))


def _breaker(row: Any) -> Breaker:  # noqa: ANN401  # a result row
    return Breaker(
        BreakerState(row.breaker),
        None if row.breaker_until is None else as_time(row.breaker_until),
        row.breaker_cause,
        row.open_count,
        row.failures,
        row.calls,
        None if row.window_began_at is None else as_time(row.window_began_at),
    )


def _keys(keys: Iterable[GateKey]) -> str:
    return rows_param({"kind": kind, "name": name} for kind, name in sorted(keys))


_COLUMNS = (
    "g.kind, g.name, g.breaker, g.breaker_until, g.breaker_cause, g.open_count, g.failures, g.calls, g.window_began_at"
)
_GATES = text(f"SELECT {_COLUMNS}, g.paused_at FROM gate g")


@cache
def _some(sql: Sql) -> TextClause:
    return text(f"""
SELECT {_COLUMNS}
FROM {sql.rows("gates", kind="text", name="text")} JOIN gate g ON g.kind = gates.kind AND g.name = gates.name
ORDER BY g.kind, g.name
{sql.for_update and "FOR UPDATE OF g"}
""")


@cache
def _store(sql: Sql) -> TextClause:
    columns = "breaker, breaker_until, breaker_cause, open_count, failures, calls, window_began_at"
    rows = sql.rows(
        "breakers",
        kind="text",
        name="text",
        breaker="text",
        breaker_until="time",
        breaker_cause="text",
        open_count="int",
        failures="int",
        calls="int",
        window_began_at="time",
    )
    changes = ", ".join(f"{column} = excluded.{column}" for column in columns.split(", "))
    return text(f"""
INSERT INTO gate (kind, name, {columns})
SELECT kind, name, {columns} FROM {rows}
WHERE true
ON CONFLICT (kind, name) DO UPDATE SET {changes}
""")


@cache
def _pause(sql: Sql) -> TextClause:
    return text(f"""
INSERT INTO gate (kind, name, paused_at, paused_by, pause_reason)
VALUES (:kind, :name, {sql.now}, :who, :why)
ON CONFLICT (kind, name) DO UPDATE SET paused_at = excluded.paused_at, paused_by = excluded.paused_by,
    pause_reason = excluded.pause_reason
""")


@cache
def _resume(_sql: Sql) -> TextClause:
    return text("""
DELETE FROM gate WHERE kind = :kind AND name = :name AND (paused_at IS NOT NULL OR breaker <> 'closed')
RETURNING name
""")


@cache
def _note(sql: Sql) -> TextClause:
    rows = sql.rows("alerts", kind="text", subject="text", firing="boolean", detail="json")
    return text(f"""
INSERT INTO alert (at, kind, subject, firing, detail)
SELECT (SELECT {sql.now}), kind, subject, firing, detail FROM {rows}
""")
