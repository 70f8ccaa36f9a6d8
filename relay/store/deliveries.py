"""Rows of `open_delivery`: read by key under the order lock, and written back with their facts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from msgspec.structs import astuple

from inbox.events.timestamps import as_time
from relay.delivery import facts
from relay.delivery.lifecycle import HEADS, OpenDelivery, State
from relay.delivery.outcome import Delivery
from relay.store.statement import Statement, sql
from relay.store.transaction import Read, Transaction

Key = tuple[int, str]
"""seq and route of a delivery."""
LeaseKey = tuple[int, str, int]
"""seq, route and the lease's token."""
Lane = tuple[str, str]
"""Route and lane."""
Lock = Literal["none", "wait", "skip"]
"""Treatment of locked rows: `wait` for them or `skip` them; `none` takes no locks."""


def lease_key_of(delivery: Delivery) -> LeaseKey:
    """Return the claim of a delivery."""
    return (delivery.seq, delivery.route, delivery.lease_token)


def format_key(key: Key) -> str:
    """Return a delivery's key in words, for the log."""
    return f"route={key[1]} seq={key[0]}"


ROW = "o.seq, o.route, o.lane, o.occurred_at, o.state, o.attempt, o.run, o.crashes, o.due_at"
"""The columns that `as_open_delivery` reads."""


def as_open_delivery(row: Any) -> OpenDelivery:  # noqa: ANN401  # a result row
    """Convert a row with the columns of ROW."""
    return OpenDelivery(
        seq=row.seq,
        route=row.route,
        lane=row.lane,
        occurred_at=as_time(row.occurred_at),
        state=State(row.state),
        attempt=row.attempt,
        run=row.run,
        crashes=row.crashes,
        due_at=None if row.due_at is None else as_time(row.due_at),
    )


def select_rows(keys: Iterable[Key], lock: Lock) -> Read:
    """Select the rows of these deliveries: the columns of ROW and of their leases."""
    return _OF_KEYS[lock], {"keys": sorted(set(keys))}


def read_rows(transaction: Transaction, keys: Iterable[Key], lock: Lock) -> list[Any]:
    """Read the rows of these deliveries."""
    statement, parameters = select_rows(keys, lock)
    return transaction.execute(statement, **parameters)


def select_leased(rows: Iterable[Any], claims: Iterable[LeaseKey]) -> dict[LeaseKey, Any]:
    """Return the rows that these claims still hold: the fence. `claimed` may have an old and the current claim of a delivery."""
    in_flight = {(row.seq, row.route): row for row in rows if row.state == State.IN_FLIGHT}
    return {
        claim: row for claim in claims if (row := in_flight.get(claim[:2])) is not None and row.lease_token == claim[2]
    }


def read_deliveries(
    transaction: Transaction, keys: Iterable[Key], *states: State, lock: Lock = "wait"
) -> list[OpenDelivery]:
    """Read the given deliveries that are in one of the `states`, or all of them without states."""
    rows = read_rows(transaction, keys, lock)
    return [as_open_delivery(row) for row in rows if not states or row.state in states]


_LOCKS: dict[Lock, str] = {"none": "", "wait": sql.lock("o"), "skip": sql.lock("o", skip=True)}
# Each row is looked up by its key, and its state is compared afterwards: an index on states has far more entries than
# live rows.
_OF_KEYS: dict[Lock, Statement] = {
    how: Statement(f"""
SELECT {ROW}, o.lease_until, o.lease_token, o.relay_node
FROM {sql.deliveries("keys")}
ORDER BY o.seq, o.route
{lock}
""")
    for how, lock in _LOCKS.items()
}


def write_back(transaction: Transaction, changed: Iterable[OpenDelivery]) -> None:
    """Append the facts of these deliveries, and update or remove their rows.

    Rows that cease to be heads are written before rows that become heads: the database refuses two heads in a lane, and
    checks row by row.
    """
    rows = sorted(changed, key=lambda row: (row.seq, row.route))
    history = [
        (row.seq, row.route, facts.get_kind(fact), *astuple(standing), transaction.node, facts.get_detail(fact))
        for row in rows
        for fact, standing in zip(row.facts, row.standings, strict=True)
    ]
    if history:
        transaction.execute(APPEND_FACTS, facts=history)
        transaction.appended.update((route, kind) for _, route, kind, *_ in history)
    remove(transaction, (row for row in rows if row.state is State.ENDED))
    stay = [row for row in rows if row.state is not State.ENDED]
    for are_heads in (False, True):
        if group := [row for row in stay if (row.state in HEADS) is are_heads]:
            transaction.execute(UPDATE_ROWS, moved=group)


def remove(transaction: Transaction, ended: Iterable[OpenDelivery]) -> None:
    """Delete the rows of these deliveries from `open_delivery`."""
    if keys := [(row.seq, row.route) for row in ended]:
        transaction.execute(DELETE_ROWS, ended=keys)


def limit_to_run(fact: str, rows: str) -> str:
    """Return an SQL condition that limits facts to the run that `rows` names, without reading earlier runs."""
    key = f"{rows}.seq AND {{0}}.route = {rows}.route"
    earlier = f"SELECT max(n.id) FROM delivery_log n WHERE n.seq = {key.format('n')} AND n.run < {rows}.run"
    return f"{fact}.seq = {key.format(fact)} AND {fact}.id > coalesce(({earlier}), 0)"


_FACTS = {
    "seq": "bigint", "route": "text", "kind": "text", "state": "text", "attempt": "int", "run": "int", "crashes": "int",
    "relay_node": "text", "detail": "json",
}  # fmt: skip
APPEND_FACTS = Statement(f"""
INSERT INTO delivery_log (at, {", ".join(_FACTS)})
SELECT (SELECT {sql.now}), {", ".join(_FACTS)}
FROM {sql.rows("facts", **_FACTS)}
""")

DELETE_ROWS = Statement(f"""
DELETE FROM open_delivery AS o
WHERE (o.seq, o.route) IN (SELECT seq, route FROM {sql.keys("ended")}){sql.match_keys("o", "ended")}
""")

_MOVED = {"state": "text", "attempt": "int", "run": "int", "crashes": "int", "due_at": "time"}
UPDATE_ROWS = Statement(f"""
UPDATE open_delivery AS o
SET {", ".join(f"{column} = moved.{column}" for column in _MOVED)}, lease_until = NULL, lease_token = NULL, relay_node = NULL
FROM {sql.rows("moved", seq="bigint", route="text", **_MOVED)}
WHERE {sql.has_key("o", "moved")}
""")
