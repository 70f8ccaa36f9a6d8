"""Replay: take deliveries that are dead or ended up again, by a person's word."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any

import msgspec
from sqlalchemy import TextClause, text

from inbox.config import Config
from inbox.db.dialect import Sql, as_json, rows_param
from inbox.reads import Row, plain
from inbox.routing import lane_of
from inbox.timestamps import as_time, time_text
from relay import facts
from relay.lifecycle import OpenDelivery, State, append, fold
from relay.policy import policies
from relay.store.database import ROW, Database, Transaction, as_open_delivery
from relay.store.lanes import settle_lanes

BATCH = 200
"""Deliveries in one transaction."""


class Selection(msgspec.Struct, frozen=True):
    """Which deliveries: every condition that is given must hold."""

    route: str | None = None
    seq: int | None = None
    source: str | None = None
    entity_type: str | None = None
    entity_id: str | None = None
    cause: str | None = None
    since: datetime | None = None
    """Died at or after; with `seq` or an entity: arrived at or after."""

    @property
    def dead_only(self) -> bool:
        """Unless one event or entity is named, only dead letters are meant: ended deliveries are left alone."""
        return self.cause is not None or (self.seq is None and self.entity_id is None)


class Plan(msgspec.Struct, frozen=True):
    """What a replay would take up again, in the order of arrival: rows of the view `dead_letter` or `delivery`."""

    deliveries: tuple[Row, ...]


def plan(database: Database, selection: Selection) -> Plan:
    """Look at what a replay would do; changes nothing."""
    statement = _dead(database.sql) if selection.dead_only else _any(database.sql)
    with database.read() as transaction:
        found = transaction.execute(
            statement,
            route=selection.route,
            seq=selection.seq,
            source=selection.source,
            entity_type=selection.entity_type,
            entity_id=selection.entity_id,
            since=None if selection.since is None else time_text(selection.since),
            **({"cause": selection.cause} if selection.dead_only else {}),
        )
        return Plan(tuple(plain(row._mapping) for row in found))  # noqa: SLF001  # SQLAlchemy's public name


def _conditions(sql: Sql, since: str) -> str:
    texts = " AND ".join(sql.optional(column, "text") for column in ("route", "source", "entity_type", "entity_id"))
    return f"{texts} AND {sql.optional('seq', 'bigint')} AND {sql.optional(since, 'time', parameter='since', operator='>=')}"


@cache
def _dead(sql: Sql) -> TextClause:
    return text(f"""
SELECT * FROM dead_letter
WHERE {_conditions(sql, "died_at")} AND {sql.optional("cause", "text")}
ORDER BY seq, route
""")


@cache
def _any(sql: Sql) -> TextClause:
    return text(f"""
SELECT * FROM delivery
WHERE {_conditions(sql, "received_at")} AND route IS NOT NULL
  AND state NOT IN ('received', 'waiting', 'ready', 'in_flight')
ORDER BY seq, route
""")


def replay(database: Database, config: Config, planned: Plan, *, who: str, why: str) -> Iterator[int]:
    """Do it, batch by batch, each one transaction.

    A replayed delivery begins a new run, bypasses deduplication, and gets its place in its lane by its own time: on a
    `latest` route a newer one that waits stands for it. One that is open again meanwhile is left as it is.

    Yields:
        How many of a batch were taken up again.
    """
    fact = facts.Replayed(who=who, why=why)
    keys = [(int(row["seq"]), str(row["route"])) for row in planned.deliveries]
    for start in range(0, len(keys), BATCH):
        yield _replay_batch(database, config, keys[start : start + BATCH], fact)


def _replay_batch(database: Database, config: Config, keys: Sequence[tuple[int, str]], fact: facts.Replayed) -> int:
    rows = rows_param({"seq": seq, "route": route} for seq, route in keys)
    with database.write() as transaction:
        now = transaction.lock_order()
        present = [as_open_delivery(row) for row in transaction.execute(_present(database.sql), replayed=rows)]
        dead = [row for row in present if row.state in (State.DEAD, State.BLOCKED)]
        ended = _ended(transaction, config, rows, {(row.seq, row.route) for row in present})
        again = [append(row, fact, now) for row in (*dead, *ended)]
        if ended:
            transaction.execute(_reopen(database.sql), reopened=rows_param(_reopened(row) for row in ended))
        transaction.write_back(settle_lanes(transaction, again, policies(config), now), None)
    return len(again)


def _ended(transaction: Transaction, config: Config, rows: str, present: set[tuple[int, str]]) -> list[OpenDelivery]:
    """Deliveries that have left `open_delivery`, as their facts and the configuration tell them."""
    history: dict[tuple[int, str], list[facts.AnyFact]] = defaultdict(list)
    for row in transaction.execute(_history(transaction.sql), replayed=rows):
        history[row.seq, row.route].append(facts.decode(row.kind, as_json(row.detail)))
    return [
        _from_facts(event, history[event.seq, event.route], config)
        for event in transaction.execute(_events(transaction.sql), replayed=rows)
        if (event.seq, event.route) not in present and event.route in config.routes
    ]


def _from_facts(event: Any, history: Sequence[facts.AnyFact], config: Config) -> OpenDelivery:  # noqa: ANN401  # a result row
    standing = fold(history)
    lane = lane_of(
        config.routes[event.route], entity_type=event.entity_type, entity_id=event.entity_id, key=event.dedup_key
    )
    return OpenDelivery(
        seq=event.seq,
        route=event.route,
        lane=lane,
        occurred_at=as_time(event.occurred_at),
        state=standing.state,
        attempt=standing.attempt,
        run=standing.run,
    )


def _reopened(row: OpenDelivery) -> Mapping[str, object]:
    return {"seq": row.seq, "route": row.route, "lane": row.lane, "occurred_at": row.occurred_at, "run": row.run}


def _replayed(sql: Sql) -> str:
    return sql.rows("replayed", seq="bigint", route="text")


@cache
def _present(sql: Sql) -> TextClause:
    return text(f"""
SELECT {ROW}
FROM {_replayed(sql)} JOIN open_delivery o ON o.seq = replayed.seq AND o.route = replayed.route
ORDER BY o.seq, o.route
{sql.for_update and "FOR UPDATE OF o"}
""")


@cache
def _history(sql: Sql) -> TextClause:
    return text(f"""
SELECT l.seq, l.route, l.kind, l.detail
FROM {_replayed(sql)} JOIN delivery_log l ON l.seq = replayed.seq AND l.route = replayed.route
ORDER BY l.id
""")


@cache
def _events(sql: Sql) -> TextClause:
    return text(f"""
SELECT i.seq, replayed.route, i.entity_type, i.entity_id, i.dedup_key, i.occurred_at
FROM {_replayed(sql)} JOIN inbox i ON i.seq = replayed.seq
ORDER BY i.seq, replayed.route
""")


@cache
def _reopen(sql: Sql) -> TextClause:
    rows = sql.rows("reopened", seq="bigint", route="text", lane="text", occurred_at="time", run="int")
    return text(f"""
INSERT INTO open_delivery (seq, route, lane, occurred_at, state, run)
SELECT seq, route, lane, occurred_at, 'received', run FROM {rows}
""")
