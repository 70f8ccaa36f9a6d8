"""Gates in SQL: pauses, breakers, rate limits and rate holds. They are rows of `gate`, shared by all relays."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import text

from inbox.config.model import Config
from inbox.db.reads import Row
from inbox.events.timestamps import as_time
from relay.delivery.alerts import list_breaker_alerts
from relay.delivery.gates import Breaker, BreakerState, Gate, GateKey, Gates, Held, RateLimit, Report, apply_result
from relay.delivery.policy import HoldRequest, Policies, collect_breaker_limits, extend_holds
from relay.store.alerts import store_alerts
from relay.store.database import Database
from relay.store.statement import Statement, sql
from relay.store.transaction import Transaction
from relay.store.work import Work, process_in_parts


def read_gates(work: Work) -> Gates:
    """Read the gates, except those of entities. An unreadable gate counts as paused, so it holds back only its own deliveries."""
    with work.database.read() as transaction:
        now = transaction.now()
        keys = [(row.kind, row.name) for row in transaction.execute(_GATE_KEYS)]

    def process(some: Sequence[GateKey]) -> dict[GateKey, GateRow]:
        with work.database.read() as transaction:
            return _as_gates(transaction.execute(_GATES_OF, gates=some))

    def quarantine_one(key: GateKey, _error: Exception) -> dict[GateKey, GateRow]:
        return {key: GateRow(Breaker(), is_paused=True)}

    parts = process_in_parts(work, "look_at_gates", keys, process=process, quarantine_one=quarantine_one, name=" ".join)
    found = {key: gate for part in parts for key, gate in part.items()}
    return Gates(
        now,
        frozenset(key for key, gate in found.items() if gate.is_paused),
        {key: gate.breaker for key, gate in found.items()},
        {key: gate.held for key, gate in found.items() if gate.held is not None},
    )


class GateRow(msgspec.Struct, frozen=True):
    """A row of `gate`."""

    breaker: Breaker
    is_paused: bool = False
    held: Held | None = None
    rate_used_until: datetime | None = None


def _as_gates(rows: Iterable[Any]) -> dict[GateKey, GateRow]:
    return {
        (row.kind, row.name): GateRow(
            as_breaker(row),
            bool(row.is_paused),
            row.held_until and Held(as_time(row.held_until), row.hold_reason or ""),
            row.rate_used_until and as_time(row.rate_used_until),
        )
        for row in rows
    }


def report_to_breakers(
    transaction: Transaction,
    heard: Iterable[Report],
    policies: Policies,
    now: datetime,
    asked: Collection[HoldRequest] = (),
) -> dict[GateKey, Breaker]:
    """Report attempts to the breakers, and store an `alert` for each that opens or closes. Call under the order lock.

    Endpoints that `asked` for no further calls are held.

    Returns:
        The reported breakers as they were before.
    """
    reports = list(heard)
    if not reports and not asked:
        return {}
    limits = collect_breaker_limits(policies)
    keys = {report.key for report in reports}
    locked = lock_all(transaction, keys | {request.key for request in asked})
    _hold(transaction, extend_holds(asked, _held(locked), now))
    before = {key: locked[key].breaker if key in locked else Breaker() for key in keys}
    after = dict(before)
    for report in reports:
        after[report.key] = apply_result(after[report.key], report.health, report.why, limits[report.key], now)
    changed = {key: breaker for key, breaker in after.items() if breaker != before[key]}
    store_breakers(transaction, changed)
    store_alerts(transaction, list_breaker_alerts(before, changed), now)
    return before


def _held(locked: Mapping[GateKey, GateRow]) -> dict[GateKey, datetime]:
    return {key: gate.held.until for key, gate in locked.items() if gate.held is not None}


def lock_all(
    transaction: Transaction, keys: Collection[GateKey], *, skips_locked: bool = False
) -> dict[GateKey, GateRow]:
    """Lock these gates in one statement, in key order, after inserting missing rows.

    Call it once per transaction, with all gates. Two transactions that lock the same gates in several calls may deadlock:
    claims that locked route by route did so once a second. Inserting a row while others are locked may also deadlock. Without the
    order lock, a gate that an operator is resuming may be missing from the result; with `skips_locked`, so are gates that
    another transaction has locked.
    """
    if not keys:
        return {}
    gates = sorted(keys)
    transaction.execute(_MAKE, gates=gates)
    return _as_gates(transaction.execute(_UNLOCKED if skips_locked else _LOCKED, gates=gates))


def store_breakers(transaction: Transaction, breakers: Mapping[GateKey, Breaker]) -> None:
    """Store these breakers."""
    if breakers:
        rows = [(*key, *msgspec.structs.astuple(breaker)) for key, breaker in sorted(breakers.items())]
        transaction.execute(_STORE, breakers=rows)


def use_rates(transaction: Transaction, used_until: Mapping[GateKey, datetime]) -> None:
    """Store the times until which rates are used up. Call it in the transaction that has locked the gates."""
    transaction.execute(_USE, used=[(*key, until) for key, until in sorted(used_until.items())])


def acquire_rate(database: Database, rate_limit: RateLimit) -> float:
    """Use an endpoint's rate limit for one call outside a claim.

    Returns:
        0, or the seconds to wait before trying again if the limit is used up.
    """
    with database.write() as transaction:
        gate, now = lock_all(transaction, [rate_limit.key]).get(rate_limit.key), transaction.now()
        used = None if gate is None else gate.rate_used_until
        held = now if gate is None or gate.held is None else gate.held.until
        seconds = max(rate_limit.opens_in(used, now), (held - now).total_seconds())
        if seconds == 0:
            use_rates(transaction, {rate_limit.key: rate_limit.use(used, now, 1)})
        return seconds


def hold(database: Database, request: HoldRequest) -> None:
    """Hold a gate at an endpoint's request, unless it is already held for longer."""
    with database.write() as transaction:
        locked, now = lock_all(transaction, [request.key]), transaction.now()
        _hold(transaction, extend_holds([request], _held(locked), now))


def read_hold_seconds(database: Database, key: GateKey) -> float:
    """Return the remaining seconds of an endpoint's rate hold; 0 without one."""
    with database.read() as transaction:
        until = _held(_as_gates(transaction.execute(_GATES_OF, gates=[key]))).get(key)
        return 0.0 if until is None else max((until - transaction.now()).total_seconds(), 0.0)


def pause(transaction: Transaction, key: GateKey, *, who: str, why: str) -> bool:
    """Pause this gate: deliveries that pass it are not claimed, and new ones wait.

    Returns:
        Whether the gate was open before. An existing pause keeps its operator and reason.
    """
    return bool(transaction.execute(_PAUSE, kind=key[0], name=key[1], who=who, why=why))


def resume(transaction: Transaction, key: GateKey, now: datetime) -> bool:
    """End the pause and rate hold of this gate, and close its breaker.

    Returns:
        Whether the gate held anything back.
    """
    locked = _as_gates(transaction.execute(_LOCKED, gates=[key]))
    before = {gate: row.breaker for gate, row in locked.items()}
    found = transaction.execute(_RESUME, kind=key[0], name=key[1])
    store_alerts(transaction, list_breaker_alerts(before, {gate: Breaker() for gate in before}), now)
    return bool(found)


def find_mistake(database: Database, gate: Gate, act: str, config: Config) -> str | None:
    """Return the reason the gate is invalid, or None.

    A closed gate can be resumed even if it was removed from the configuration; otherwise it would stay closed for good.
    """
    mistake = gate.mistake(config)
    if mistake is None or act != "resume" or gate.mistake(None) is not None:
        return mistake
    is_closed = any((row["kind"], row["name"]) == gate.key for row in read_closed_gates(database))
    return None if is_closed else mistake


def read_closed_gates(database: Database) -> list[Row]:
    """Read the gates that are paused or held, or whose breaker is not closed."""
    with database.read() as transaction:
        return read_closed_gates_in(transaction)


def read_closed_gates_in(transaction: Transaction) -> list[Row]:
    """Read the same gates within a transaction."""
    return transaction.fetch_rows(_HELD_BACK)


def as_breaker(row: Any) -> Breaker:  # noqa: ANN401  # a result row
    """Convert the breaker columns of a row to a breaker."""
    return Breaker(
        BreakerState(row.breaker),
        None if row.breaker_until is None else as_time(row.breaker_until),
        row.breaker_cause,
        row.open_count,
        row.failures,
        row.calls,
        None if row.window_began_at is None else as_time(row.window_began_at),
    )


_BREAKER = {
    "breaker": "text", "breaker_until": "time", "breaker_cause": "text", "open_count": "int", "failures": "int",
    "calls": "int", "window_began_at": "time",
}  # fmt: skip
"""The columns of a breaker and their types, in the order of the fields of `Breaker`."""
GATE_COLUMNS = f"g.kind, g.name, {', '.join(f'g.{column}' for column in _BREAKER)}"
"""The columns that `as_breaker` reads."""
_GATE_KEYS = text("SELECT g.kind, g.name FROM gate g WHERE g.kind <> 'entity'")
_ENTITY = " || '|' || ".join(
    rf"replace(replace(i.{part}, '\', '\\'), '|', '\|')" for part in ("source", "entity_type", "entity_id")
)
_IS_PAUSED = "SELECT 1 FROM gate g WHERE g.kind = 'entity' AND g.paused_at IS NOT NULL"
ENTITY_NOT_PAUSED = f"""(({_IS_PAUSED} LIMIT 1) IS NULL OR (
    {_IS_PAUSED} AND g.name = (SELECT {_ENTITY} FROM inbox i WHERE i.seq = o.seq) LIMIT 1) IS NULL)"""
"""SQL condition that the entity of the delivery `o` is not paused. If no entity is paused, it reads no event.

The gate of the entity is looked up by name (`relay.delivery.gates.make_entity_key`), however many are paused.
"""


_OF_KEYS = f"""
SELECT {GATE_COLUMNS}, g.paused_at IS NOT NULL AS is_paused, g.rate_used_until, g.held_until, g.hold_reason
FROM {sql.rows("gates", kind="text", name="text")} JOIN gate g ON g.kind = gates.kind AND g.name = gates.name
ORDER BY g.kind, g.name
"""
_GATES_OF = Statement(_OF_KEYS)
_LOCKED = Statement(_OF_KEYS + sql.lock("g"))
_UNLOCKED = Statement(_OF_KEYS + sql.lock("g", skip=True))

_COLUMNS = ", ".join(_BREAKER)
_STORE = Statement(f"""
INSERT INTO gate (kind, name, {_COLUMNS})
SELECT kind, name, {_COLUMNS} FROM {sql.rows("breakers", kind="text", name="text", **_BREAKER)}
WHERE true
ON CONFLICT (kind, name) DO UPDATE SET {", ".join(f"{column} = excluded.{column}" for column in _BREAKER)}
""")

# Inserts only missing rows: ON CONFLICT would wait for a row that another transaction is changing.
_MAKE = Statement(f"""
INSERT INTO gate (kind, name)
SELECT kind, name FROM {sql.rows("gates", kind="text", name="text")}
WHERE (SELECT 1 FROM gate g WHERE g.kind = gates.kind AND g.name = gates.name) IS NULL
ON CONFLICT (kind, name) DO NOTHING
""")


_USE = Statement(f"""
UPDATE gate AS g
SET rate_used_until = used.used_until
FROM {sql.rows("used", kind="text", name="text", used_until="time")}
WHERE g.kind = used.kind AND g.name = used.name
""")


_PAUSE = Statement(f"""
INSERT INTO gate (kind, name, paused_at, paused_by, pause_reason)
VALUES (:kind, :name, {sql.now}, :who, :why)
ON CONFLICT (kind, name) DO UPDATE SET paused_at = excluded.paused_at, paused_by = excluded.paused_by,
    pause_reason = excluded.pause_reason
WHERE gate.paused_at IS NULL
RETURNING name
""")


_RESUME = Statement(f"""
DELETE FROM gate
WHERE kind = :kind AND name = :name AND (paused_at IS NOT NULL OR breaker <> 'closed' OR held_until > (SELECT {sql.now}))
RETURNING name
""")


# Selects the gates that hold deliveries back; expired holds are null.
_HELD_BACK = Statement(f"""
SELECT kind, name, paused_at, paused_by, pause_reason, breaker, breaker_until, breaker_cause,
    CASE WHEN held_until > (SELECT {sql.now}) THEN held_until END AS held_until,
    CASE WHEN held_until > (SELECT {sql.now}) THEN hold_reason END AS hold_reason
FROM gate
WHERE paused_at IS NOT NULL OR breaker <> 'closed' OR held_until > (SELECT {sql.now})
ORDER BY kind, name
""")


def _hold(transaction: Transaction, held: Mapping[GateKey, tuple[datetime, str]]) -> None:
    if held:
        transaction.execute(_STORE_HOLDS, held=[(*key, *hold) for key, hold in sorted(held.items())])


_STORE_HOLDS = Statement(f"""
UPDATE gate AS g
SET held_until = held.until, hold_reason = held.why
FROM {sql.rows("held", kind="text", name="text", until="time", why="text")}
WHERE g.kind = held.kind AND g.name = held.name
""")
