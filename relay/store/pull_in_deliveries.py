"""Pulls in deliveries that are due further ahead than any rule allows, after the database's clock was set back.

`relay.delivery.time_bounds` says how far a time may lie ahead. Here are the deliveries that are due later, of which there
may be many: they are looked at in batches, by the index. The other times are in `relay.store.pull_in_times`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from functools import cache
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import TextClause, text

from inbox.config.model import Config
from inbox.db.dialect import Sql, rows_param
from inbox.events.timestamps import as_time, time_text
from relay.delivery import facts
from relay.delivery.lifecycle import append
from relay.delivery.policy import Policies
from relay.delivery.time_bounds import SLACK, asked_delay, furthest_due, is_beyond
from relay.store.bulkhead import in_parts
from relay.store.database import Database
from relay.store.pull_in_times import BATCH, TooFarAhead, pull_in_times, times_too_far_ahead
from relay.store.transaction import ROW, Transaction, as_open_delivery, key_text

MOST_BATCHES = 4
"""Consecutive transactions that move deliveries, before other steps of the relay run."""


class Place(NamedTuple):
    """The place up to which later deliveries have been checked, in the order of the index."""

    route: str = ""
    due_at: str = ""
    seq: int = 0


START = Place()


class Horizon:
    """Pulls in for one relay process, batch by batch; remembers the place it has reached."""

    def __init__(self) -> None:
        self._place = START

    def pull_in(self, database: Database, config: Config, policies: Policies, node: str | None) -> list[TooFarAhead]:
        """Check the few other times, and the next deliveries that are due later. Returns what was pulled in."""
        pulled = pull_in_times(database, config, policies)
        for _ in range(MOST_BATCHES):
            found, self._place = _due_too_late(database, policies, self._place)
            moved = _reschedule_each(database, policies, node, found)
            pulled += moved
            if not moved:
                break
        return pulled


def find_all(database: Database, config: Config, policies: Policies) -> Iterator[list[TooFarAhead]]:
    """Find everything that lies too far ahead, batch by batch; changes nothing."""
    with database.read() as transaction:
        yield times_too_far_ahead(transaction, config, policies)
    yield from _all_due_later(database, policies)


def pull_in_all(database: Database, config: Config, policies: Policies) -> Iterator[list[TooFarAhead]]:
    """Do as `find_all`, and pull in what is found."""
    yield pull_in_times(database, config, policies)
    for found in _all_due_later(database, policies):
        yield _reschedule_each(database, policies, None, found)


def _all_due_later(database: Database, policies: Policies) -> Iterator[list[TooFarAhead]]:
    found, place = _due_too_late(database, policies, START)
    yield found
    while place != START:
        found, place = _due_too_late(database, policies, place)
        yield found


def _due_too_late(database: Database, policies: Policies, place: Place) -> tuple[list[TooFarAhead], Place]:
    """The deliveries after `place` that are due too far ahead, and the next place."""
    rows, next_place = _next_due_later(database, policies, place)

    def part(some: Sequence[Any]) -> list[TooFarAhead]:
        # One snapshot for row and last fact: an attempt that ends in between is no finding.
        with database.snapshot() as transaction:
            known = transaction.execute(_again(transaction.sql, locked=False), wanted=_keys(some))
            return _too_late(transaction, list(known), policies, transaction.now())

    parts = in_parts(
        database,
        "pull_in",
        rows,
        part=part,
        name=lambda row: key_text((row.seq, row.route)),
    )
    return [one for some in parts for one in some], next_place


def _next_due_later(database: Database, policies: Policies, place: Place) -> tuple[list[Any], Place]:
    found: list[Any] = []
    with database.read() as transaction:
        later = time_text(transaction.now() + SLACK)
        routes = rows_param({"route": route} for route in policies)
        ahead = sorted(
            row.route for row in transaction.execute(_routes_ahead(database.sql), routes=routes, later=later)
        )
        for route in (route for route in ahead if route >= place.route):
            since, seq = (max(place.due_at, later), place.seq) if route == place.route else (later, 0)
            left = BATCH - len(found)
            found += transaction.execute(_due_later(database.sql), route=route, due_since=since, seq=seq, batch=left)
            if len(found) == BATCH:
                last = found[-1]
                return found, Place(route, time_text(as_time(last.due_at)), last.seq)
    return found, START


def _reschedule_each(
    database: Database, policies: Policies, node: str | None, found: Sequence[TooFarAhead]
) -> list[TooFarAhead]:
    """Make them due sooner; one that can't be changed is left as it is, and `relay verify` reports it."""
    parts = in_parts(
        database,
        "pull_in",
        found,
        part=lambda some: _reschedule(database, policies, node, some),
        name=lambda one: key_text((one.seq or 0, one.route or "")),
    )
    return [one for some in parts for one in some]


def _reschedule(
    database: Database, policies: Policies, node: str | None, found: Sequence[TooFarAhead]
) -> list[TooFarAhead]:
    """Check again under the order lock, and make deliveries that are still due too far ahead due sooner."""
    with database.write() as transaction:
        now = transaction.lock_order()
        rows = list(transaction.execute(_again(transaction.sql, locked=True), wanted=_keys(found)))
        late = _too_late(transaction, rows, policies, now)
        known = {(row.seq, row.route): as_open_delivery(row) for row in rows}
        moved = []
        for one in late:
            sooner = facts.Rescheduled(due_at=one.furthest, was_due_at=one.stored)
            moved.append(append(known[one.seq or 0, one.route or ""], sooner, now))
        transaction.write_back(moved, node)
    return late


def _too_late(transaction: Transaction, rows: Sequence[Any], policies: Policies, now: datetime) -> list[TooFarAhead]:
    """Deliveries due further ahead than their last fact and their route allow. Unreadable ones are left alone."""
    last_facts = transaction.execute(_last_facts(transaction.sql), wanted=_keys(rows))
    last = {(fact.seq, fact.route): fact for fact in last_facts}
    found = []
    for row in rows:
        fact, asked = last.get((row.seq, row.route)), timedelta(0)
        try:
            if fact is not None:
                asked = asked_delay(facts.decode(fact.kind, fact.detail), as_time(fact.at))
        except (msgspec.MsgspecError, TypeError):  # another version's fact, or a hand's: `relay verify` tells of it
            continue
        due_at, furthest = as_time(row.due_at), furthest_due(asked, policies[row.route], now)
        if is_beyond(due_at, furthest):
            found.append(TooFarAhead("due_at", "the delivery", due_at, furthest, row.seq, row.route))
    return found


def _keys(deliveries: Sequence[Any]) -> str:
    return rows_param({"seq": one.seq, "route": one.route} for one in deliveries)


@cache
def _routes_ahead(sql: Sql) -> TextClause:
    """Routes with a delivery that is due later: reads the far end of the index once for each."""
    return text(f"""
SELECT routes.route
FROM {sql.rows("routes", route="text")}
WHERE (
    SELECT o.due_at FROM open_delivery o WHERE o.route = routes.route AND o.state = 'ready'
    ORDER BY o.due_at DESC LIMIT 1) > {sql.time(":later")}
""")


@cache
def _due_later(sql: Sql) -> TextClause:
    return text(f"""
SELECT {ROW} FROM open_delivery o
WHERE o.state = 'ready' AND o.route = :route AND (o.due_at, o.seq) > ({sql.time(":due_since")}, :seq)
ORDER BY o.due_at, o.seq
LIMIT :batch
""")


@cache
def _again(sql: Sql, *, locked: bool) -> TextClause:
    return text(f"""
SELECT {ROW}
FROM {sql.rows("wanted", seq="bigint", route="text")}
JOIN open_delivery o ON o.seq = wanted.seq AND o.route = wanted.route
WHERE o.state = 'ready'
ORDER BY o.seq, o.route
{"FOR UPDATE OF o SKIP LOCKED" if locked and sql.is_postgres else ""}
""")


@cache
def _last_facts(sql: Sql) -> TextClause:
    """The last fact of each delivery that has one; its detail as text: a value edited by hand must stop nothing."""
    last = "SELECT max(f.id) FROM delivery_log f WHERE f.seq = wanted.seq AND f.route = wanted.route"
    wanted = sql.rows("wanted", seq="bigint", route="text")
    return text(f"""
SELECT wanted.seq, wanted.route, l.kind, l.at, CAST(l.detail AS text) AS detail
FROM {sql.looked_up(wanted, "delivery_log l", f"l.id = ({last})")}
""")
