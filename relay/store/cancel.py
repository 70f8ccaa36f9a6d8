"""Cancel and unblock: a person ends deliveries, or lets a lane go on past its dead head."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache

from sqlalchemy import TextClause, text

from inbox.config import Config
from inbox.db.dialect import Sql
from inbox.reads import plain
from inbox.timestamps import time_text
from relay import facts
from relay.lifecycle import TRANSITIONS, State, append, step_of
from relay.policy import policies
from relay.store.database import Database
from relay.store.lanes import settle_lanes
from relay.store.reopen import Key, find
from relay.store.replay import BATCH, Plan, Selection


def plan_cancel(database: Database, selection: Selection) -> Plan:
    """What a cancel would end: open deliveries that nobody works on, and the dead. Changes nothing."""
    return _plan(database, selection, ("received", "waiting", "ready", "blocked", "dead"))


def plan_unblock(database: Database, selection: Selection) -> Plan:
    """What an unblock would let lanes go on past: dead heads that block them. Changes nothing."""
    return _plan(database, selection, ("blocked",))


def _plan(database: Database, selection: Selection, states: Sequence[str]) -> Plan:
    with database.read() as transaction:
        found = transaction.execute(
            _open(database.sql, tuple(states)),
            route=selection.route,
            seq=selection.seq,
            source=selection.source,
            entity_type=selection.entity_type,
            entity_id=selection.entity_id,
            cause=selection.cause,
            since=None if selection.since is None else time_text(selection.since),
        )
        return Plan(tuple(plain(row._mapping) for row in found))  # noqa: SLF001  # SQLAlchemy's public name


def cancel(database: Database, config: Config, planned: Plan, *, who: str, why: str) -> Iterator[int]:
    """End them, batch by batch, each one transaction. What a relay has begun meanwhile is left as it is.

    Yields:
        How many of a batch were ended.
    """
    yield from _do(database, config, planned, facts.Cancelled(who=who, why=why))


def unblock(database: Database, config: Config, planned: Plan, *, who: str, why: str) -> Iterator[int]:
    """Let the lanes go on past them; they stay dead. As `cancel`."""
    yield from _do(database, config, planned, facts.Unblocked(who=who, why=why))


def _do(database: Database, config: Config, planned: Plan, fact: facts.Cancelled | facts.Unblocked) -> Iterator[int]:
    keys: list[Key] = [(int(row["seq"]), str(row["route"])) for row in planned.deliveries]
    for start in range(0, len(keys), BATCH):
        with database.write() as transaction:
            now = transaction.lock_order()
            found = find(transaction, config, keys[start : start + BATCH])
            possible = [
                row for row in found if row.state is not State.ENDED and step_of(fact) in TRANSITIONS[row.state]
            ]
            changed = [append(row, fact, now) for row in possible]
            transaction.write_back(settle_lanes(transaction, changed, policies(config), now), None)
        yield len(changed)


@cache
def _open(sql: Sql, states: tuple[str, ...]) -> TextClause:
    listed = ", ".join(f"'{state}'" for state in states)
    texts = " AND ".join(
        sql.optional(f"i.{column}", "text", parameter=column) for column in ("source", "entity_type", "entity_id")
    )
    return text(f"""
SELECT o.seq, o.route, o.lane, o.state, o.attempt AS attempts, i.source, i.entity_type, i.entity_id, i.event_type,
       i.received_at, l.detail ->> 'cause' AS cause
FROM open_delivery o
JOIN inbox i ON i.seq = o.seq
LEFT JOIN delivery_log l ON l.id = (
    SELECT max(f.id) FROM delivery_log f WHERE f.seq = o.seq AND f.route = o.route AND f.kind = 'dead')
WHERE o.state IN ({listed}) AND {texts}
  AND {sql.optional("o.route", "text", parameter="route")} AND {sql.optional("o.seq", "bigint", parameter="seq")}
  AND {sql.optional("l.detail ->> 'cause'", "text", parameter="cause")}
  AND {sql.optional("i.received_at", "time", parameter="since", operator=">=")}
ORDER BY o.seq, o.route
""")
