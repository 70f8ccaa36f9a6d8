"""Replay: take deliveries that are dead or ended up again, by a person's word."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from functools import cache

import msgspec
from sqlalchemy import TextClause, text

from inbox.config import Config
from inbox.db.dialect import Sql
from inbox.reads import Row, plain
from inbox.timestamps import time_text
from relay import facts
from relay.lifecycle import OpenDelivery, State, append
from relay.policy import policies
from relay.store.coverage import last_delivered
from relay.store.database import Database, Transaction
from relay.store.reopen import Key, find, take_up

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


def overtaken(database: Database, config: Config, planned: Plan) -> int:
    """How many of these a replay leaves out unless it is forced: what they carry is older than what was delivered last."""
    keys = _keys(planned)
    number = 0
    for start in range(0, len(keys), BATCH):
        with database.write() as transaction:
            transaction.lock_order()
            found = find(transaction, config, keys[start : start + BATCH])
            number += len(_overtaken(transaction, found, frozenset(keys)))
    return number


def replay(
    database: Database, config: Config, planned: Plan, *, who: str, why: str, force: bool = False
) -> Iterator[int]:
    """Do it, batch by batch, each one transaction.

    A replayed delivery begins a new run, bypasses deduplication, and gets its place in its lane by its own time: on a
    `latest` route a newer one that waits stands for it. One that is open again meanwhile is left as it is, and so is,
    without `force`, one that would put something older in the place of what was delivered last in its lane.

    Yields:
        How many of a batch were taken up again.
    """
    fact = facts.Replayed(who=who, why=why)
    keys = _keys(planned)
    for start in range(0, len(keys), BATCH):
        yield _replay_batch(database, config, keys[start : start + BATCH], fact, None if force else frozenset(keys))


def _keys(planned: Plan) -> list[Key]:
    return [(int(row["seq"]), str(row["route"])) for row in planned.deliveries]


def _replay_batch(
    database: Database,
    config: Config,
    keys: Sequence[Key],
    fact: facts.Replayed,
    planned: frozenset[Key] | None,
) -> int:
    """`planned` are all that are replayed; None: whatever it undoes."""
    with database.write() as transaction:
        now = transaction.lock_order()
        found = find(transaction, config, keys)
        left = set() if planned is None else _overtaken(transaction, found, planned)
        again = [
            append(row, fact, now)
            for row in found
            if row.state in (State.DEAD, State.BLOCKED, State.ENDED) and (row.seq, row.route) not in left
        ]
        take_up(transaction, found, again, policies(config), None)
    return len(again)


def _overtaken(transaction: Transaction, found: Iterable[OpenDelivery], planned: frozenset[Key]) -> set[Key]:
    """Those that would put something older in the place of what was delivered last.

    What fetches carries the newest whenever it goes; and where the last delivery itself is replayed too, it comes last.
    """
    rows = list(found)
    lasts = last_delivered(transaction, {(row.route, row.lane) for row in rows})
    return {
        (row.seq, row.route)
        for row in rows
        if (last := lasts.get((row.route, row.lane)))
        and last.fetch_began_at is None
        and row.key < last.key
        and (last.seq, row.route) not in planned
    }
