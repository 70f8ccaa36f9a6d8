"""Counts of each route's deliveries at an earlier time, folded back from the log.

A delivery that was open or dead then is so still, or has a fact since. So it takes the open deliveries and the facts since
then, however much had ended before. The facts are read backwards, a page at a time, each in a transaction of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import datetime
from functools import cache
from typing import Any

import msgspec
from sqlalchemy import TextClause, text

from inbox.db.dialect import Sql, as_json, as_list
from inbox.db.past import removed_since
from inbox.events.past import OPEN, LastFact, PastState, state_at
from inbox.events.states import RETRYING, State
from inbox.events.timestamps import as_time, time_text
from relay.store.database import SEQS_OUT_OF_ORDER, Database
from relay.store.transaction import Key, Transaction, keys_param

MOST_OPEN = 100_000
"""Open deliveries that are looked at, the oldest first."""
MOST_FACTS = 1_000_000
"""Facts that are read, the newest first."""
_PAGE = 5_000


class RouteThen(msgspec.Struct):
    """The deliveries of a route at a moment."""

    route: str
    open: int = 0
    """Deliveries that had neither ended nor died; `retrying` included."""
    retrying: int = 0
    """Deliveries that waited for their next attempt, after a failure."""
    blocked: int = 0
    dead: int = 0
    unknown: int = 0
    """Deliveries whose last fact only a newer version knows."""
    oldest_received_at: datetime | None = None
    """Arrival of the oldest open one."""

    def add(self, then: PastState, received_at: datetime) -> None:
        """Count one delivery."""
        if then.state in {OPEN, RETRYING}:
            self.open += 1
            self.retrying += then.state == RETRYING
            self.oldest_received_at = min(self.oldest_received_at or received_at, received_at)
        elif then.state == State.BLOCKED:
            self.blocked += 1
        elif then.state == State.DEAD:
            self.dead += 1
        else:
            self.unknown += then.state == "unknown"


class Past(msgspec.Struct, frozen=True):
    """Everything that the log tells of a moment."""

    at: datetime
    routes: tuple[RouteThen, ...]
    is_whole: bool
    """False: more was open, or happened since, than is read. Each count is then at least so much."""
    facts_since: int
    """Facts since the moment that were read."""
    removed: tuple[str, ...]
    """Sentences on what retention has deleted since."""


def read_past(
    database: Database, routes: Collection[str], at: datetime, on_page: Callable[[int], object] = lambda _: None
) -> Past:
    """Count the deliveries of each route at a moment.

    Args:
        database: only read.
        routes: routes that are listed even where nothing was open on them.
        at: the moment, by the database's clock; aware.
        on_page: hears after each page how many facts have been read.
    """
    counts = {route: RouteThen(route) for route in routes}
    since = _Since(at)
    with database.snapshot() as transaction:
        removed = removed_since(transaction.connection, at)
        still = transaction.execute(_open(database.sql), at=time_text(at), most=MOST_OPEN + 1)
        keys = [(row.seq, row.route) for row in still[:MOST_OPEN] if not row.has_changed]
        for begin in range(0, len(keys), _PAGE):
            _count(transaction, keys[begin : begin + _PAGE], at, counts)
        # A fact with a low number may be committed after this snapshot; its delivery is still open here, and counted.
        _count(transaction, since.read(transaction, SEQS_OUT_OF_ORDER), at, counts)
    on_page(since.facts)
    while not since.is_done and since.facts < MOST_FACTS:
        with database.read() as transaction:
            _count(transaction, since.read(transaction, _PAGE), at, counts)
        on_page(since.facts)
    is_whole = since.is_done and len(still) <= MOST_OPEN
    return Past(at, tuple(counts[route] for route in sorted(counts)), is_whole, since.facts, tuple(removed))


class _Since:
    """Walks the facts after a moment, from the newest back."""

    def __init__(self, at: datetime) -> None:
        self._at = time_text(at)
        self._below = 2**63 - 1
        self.facts = 0
        self.is_done = False

    def read(self, transaction: Transaction, most: int) -> list[Key]:
        """Return the deliveries whose first fact after the moment is among the next `most` facts.

        Times follow the numbers but for a corrected clock, so it goes on until a whole page is older.
        """
        rows = transaction.execute(_facts(transaction.sql), below=self._below, most=most, at=self._at)
        later = [row for row in rows if row.is_later]
        self.is_done = len(rows) < most or not later
        self._below = rows[-1].id if rows else 0
        self.facts += len(later)
        return [(row.seq, row.route) for row in later if row.is_first]


def _count(transaction: Transaction, keys: Iterable[Key], at: datetime, counts: dict[str, RouteThen]) -> None:
    wanted: Sequence[Key] = list(keys)
    if not wanted:
        return
    for row in transaction.execute(_last_facts(transaction.sql), wanted=keys_param(wanted), at=time_text(at)):
        received_at = as_time(row.received_at)
        last = None if row.kind is None else LastFact(row.kind, row.attempt, _detail(row.detail))
        if last is None and (received_at > at or row.route not in as_list(row.routes)):
            continue  # it had not arrived, or a later replay put it on this route
        counts.setdefault(row.route, RouteThen(row.route)).add(state_at(last, at), received_at)


def _detail(stored: str | None) -> dict[str, Any]:
    try:
        found = as_json(stored or "{}")
    except ValueError:  # changed by hand: one bad fact must not hide all others
        return {}
    return found if isinstance(found, dict) else {}


@cache
def _open(sql: Sql) -> TextClause:
    # A subquery for each row, as Postgres may build a hash of all facts for NOT EXISTS.
    return text(f"""
SELECT o.seq, o.route,
       (SELECT f.id FROM delivery_log f WHERE f.seq = o.seq AND f.route = o.route AND f.at > {sql.time(":at")} LIMIT 1)
           IS NOT NULL AS has_changed
FROM (SELECT seq, route FROM open_delivery ORDER BY seq, route LIMIT :most) o
""")


@cache
def _facts(sql: Sql) -> TextClause:
    at = sql.time(":at")
    return text(f"""
SELECT f.id, f.seq, f.route, f.at > {at} AS is_later,
       CASE WHEN f.at > {at} THEN (
            SELECT p.id FROM delivery_log p
            WHERE p.seq = f.seq AND p.route = f.route AND p.id < f.id AND p.at > {at} LIMIT 1) IS NULL END AS is_first
FROM (SELECT id, at, seq, route FROM delivery_log WHERE id < :below ORDER BY id DESC LIMIT :most) f
ORDER BY f.id DESC
""")


@cache
def _last_facts(sql: Sql) -> TextClause:
    return text(f"""
SELECT c.seq, c.route, i.received_at, i.routes, l.kind, l.attempt,
       CASE WHEN l.kind IN ('dead', 'corrected', 'attempt_failed', 'took_over', 'rescheduled')
            THEN CAST(l.detail AS text) END AS detail
FROM (
    SELECT wanted.seq, wanted.route,
           (SELECT p.id FROM delivery_log p
            WHERE p.seq = wanted.seq AND p.route = wanted.route AND p.kind <> 'erased' AND p.at <= {sql.time(":at")}
            ORDER BY p.id DESC LIMIT 1) AS last_id
    FROM {sql.rows("wanted", seq="bigint", route="text")}
) c
JOIN inbox i ON i.seq = c.seq
LEFT JOIN delivery_log l ON l.id = c.last_id
""")
