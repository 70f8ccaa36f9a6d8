"""Compares stored deliveries with their facts, some seqs at a time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from functools import cache, partial
from itertools import groupby
from typing import Any

import msgspec
from sqlalchemy import TextClause, text

from inbox.config.model import Config
from inbox.config.routing import OWN_LANE, kind_of_lane, lane_of, possible_lanes
from inbox.db.dialect import Sql, as_list, rows_param
from inbox.events.states import RETENTION_FLOOR_DAYS
from inbox.events.timestamps import as_time
from relay.delivery import facts
from relay.delivery.audit import Account, Difference, Logged, Subject, account, compare
from relay.delivery.lifecycle import OpenDelivery
from relay.store.database import Database
from relay.store.deliveries import ROW, as_open_delivery
from relay.store.sequence import last_delivered
from relay.store.transaction import Transaction

SPAN_SEQS = 500
"""Seqs at a time: what is held in memory, locked at once, and on SQLite what a reader keeps from being copied back."""

_FACTS_AT_A_TIME = 200
_PATIENT = text("SET LOCAL idle_in_transaction_session_timeout = '60s'")
"""Nobody waits for this reader's locks, and a machine that is busy for 3 s must not end `relay verify`."""
_PRUNED_AFTER = timedelta(days=RETENTION_FLOOR_DAYS)

Key = tuple[int, str]


class Event(msgspec.Struct, frozen=True):
    """The columns of the inbox that the comparison reads."""

    seq: int
    entity_type: str | None
    entity_id: str | None
    dedup_key: str
    occurred_at: datetime
    routes: tuple[str, ...]


class Wrong(msgspec.Struct, frozen=True):
    """A delivery that is stored otherwise than its facts have it."""

    subject: Subject
    event: Event | None
    differences: tuple[Difference, ...]


class Examined(msgspec.Struct, frozen=True):
    """Counts of the examined events, deliveries and facts, and the deliveries that are wrong."""

    events: int
    deliveries: int
    facts: int
    wrong: tuple[Wrong, ...]


def examine_all(database: Database, config: Config) -> Iterator[tuple[int, Examined]]:
    """Compare everything that is stored, some seqs at a time, also those without an event; each in a snapshot of its own.

    Yields:
        The seq up to which everything has been compared, and what was found.
    """
    upto, is_last = 0, False
    while not is_last:
        with database.snapshot() as transaction:
            if transaction.sql.is_postgres:
                transaction.connection.execute(_PATIENT)
            seqs = [row.seq for row in transaction.execute(_NEXT_SEQS, after=upto, most=SPAN_SEQS)]
            examined = examine(transaction, seqs, config)
        upto, is_last = seqs[-1] if seqs else upto, len(seqs) < SPAN_SEQS
        yield upto, examined


def examine(transaction: Transaction, seqs: Sequence[int], config: Config, *, locked: bool = False) -> Examined:
    """Compare everything stored of these seqs with their facts.

    It must see one moment: a snapshot, or under the order lock with the rows `locked`. On Postgres a receiver may commit
    between two statements under the lock, so the events are read first: their deliveries came with them. A delivery without an
    event may have got one since it was read, so whoever removes it has to look in the same statement.
    """
    wanted = rows_param({"seq": seq} for seq in seqs)
    events = {row.seq: _event(row) for row in transaction.execute(_events(transaction.sql), wanted=wanted)}
    rows = {
        (row.seq, row.route): as_open_delivery(row)
        for row in transaction.execute(_rows(transaction.sql, locked=locked), wanted=wanted)
    }
    pruned_before = transaction.now() - _PRUNED_AFTER
    accounts: dict[Key, Account] = {}
    number_of_facts = 0
    log = transaction.stream(_facts(transaction.sql), _FACTS_AT_A_TIME, wanted=wanted)
    for key, history in groupby(log, key=lambda row: (row.seq, row.route)):
        logged = [_logged(row) for row in history]
        number_of_facts += len(logged)
        accounts[key] = account(logged, pruned_before)
    subjects = list(_subjects(events, rows, accounts))
    found: dict[Key, list[Difference]] = defaultdict(list)
    for subject in subjects:
        found[subject.seq, subject.route] += compare(subject)
    for difference in (
        *_compare_superseded(transaction, subjects),
        *_compare_last_delivered(transaction, subjects, config),
    ):
        found[difference.seq or 0, difference.route or ""].append(difference)
    wrong = tuple(
        Wrong(subject, events.get(subject.seq), tuple(found[subject.seq, subject.route]))
        for subject in subjects
        if found[subject.seq, subject.route]
    )
    return Examined(len(events), sum(subject.is_expected for subject in subjects), number_of_facts, wrong)


def _event(row: Any) -> Event:  # noqa: ANN401  # a result row
    return Event(
        row.seq, row.entity_type, row.entity_id, row.dedup_key, as_time(row.occurred_at), tuple(as_list(row.routes))
    )


def _logged(row: Any) -> Logged:  # noqa: ANN401  # a result row
    fact: facts.AnyFact | None
    try:
        fact = facts.decode(row.kind, row.detail)
    except msgspec.MsgspecError:
        fact = None
    return Logged(row.id, row.kind, row.attempt, fact, partial(as_time, row.at))


def _subjects(
    events: Mapping[int, Event], rows: Mapping[Key, OpenDelivery], accounts: Mapping[Key, Account]
) -> Iterator[Subject]:
    routed = {(event.seq, route) for event in events.values() for route in event.routes}
    for seq, route in sorted(routed | rows.keys() | accounts.keys()):
        event = events.get(seq)
        yield Subject(
            seq=seq,
            route=route,
            occurred_at=None if event is None else event.occurred_at,
            lanes=frozenset() if event is None else _lanes_of(event),
            is_routed=(seq, route) in routed,
            row=rows.get((seq, route)),
            account=accounts.get((seq, route), Account()),
        )


def _lanes_of(event: Event) -> frozenset[str]:
    return possible_lanes(entity_type=event.entity_type, entity_id=event.entity_id, key=event.dedup_key)


def _compare_superseded(transaction: Transaction, subjects: Sequence[Subject]) -> Iterator[Difference]:
    """Check that an event that supersedes another one comes later in their lane."""
    folded = [s for s in subjects if s.account.superseded_by is not None and s.is_expected]
    if not folded:
        return
    by = rows_param({"seq": subject.account.superseded_by} for subject in folded)
    found = {row.seq: _event(row) for row in transaction.execute(_events(transaction.sql), wanted=by)}
    highest = transaction.execute(_HIGHEST)[0].seq or 0
    for subject in folded:
        newer = found.get(subject.account.superseded_by or 0)
        if newer is None:  # pruned: then there is nothing to hold it against
            well = (subject.account.superseded_by or 0) <= highest
        else:
            well = (newer.occurred_at, newer.seq) > (subject.occurred_at, subject.seq)
        if not well:
            told = f"superseded by {subject.account.superseded_by}, which can't stand for it"
            yield Difference("superseded_by", subject.seq, subject.route, None, told, "no row")


def _compare_last_delivered(
    transaction: Transaction, subjects: Sequence[Subject], config: Config
) -> Iterator[Difference]:
    """Check that a lane remembers a delivery at least as new as each event delivered in it, whatever its route says now."""
    delivered = [
        (subject, lane)
        for subject in subjects
        if subject.is_expected and subject.route in config.routes and (lane := lane_of_success(subject)) is not None
    ]
    known = last_delivered(transaction, {(subject.route, lane) for subject, lane in delivered})
    for subject, lane in delivered:
        newest = known.get((subject.route, lane))
        if newest is None or newest.key < (subject.occurred_at, subject.seq):
            told = "nothing was delivered" if newest is None else f"seq {newest.seq} was the newest delivered"
            yield Difference("last_delivered", subject.seq, subject.route, lane, "delivered", told)


def lane_of_success(subject: Subject) -> str | None:
    """The lane that has to remember the subject's last delivery; None when there is none, or its lane was its own."""
    delivered = subject.account.delivered
    if delivered is None or delivered.lane == "event":
        return None
    return next((lane for lane in subject.lanes if kind_of_lane(lane) == delivered.lane), None)


def present_lane(event: Event, route: str, config: Config) -> str:
    """The lane that the event would get if it arrived now; on a route that the configuration lacks, its entity's."""
    known = config.routes.get(route)
    lanes = _lanes_of(event)
    if known is None:
        return max(lanes, key=lambda lane: (not lane.startswith(OWN_LANE), len(lane)))
    return lane_of(known, entity_type=event.entity_type, entity_id=event.entity_id, key=event.dedup_key)


_NEXT_SEQS = text("""
SELECT seq
FROM (
    SELECT seq FROM (SELECT seq FROM inbox WHERE seq > :after ORDER BY seq LIMIT :most) arrived
    UNION
    SELECT seq FROM (SELECT DISTINCT seq FROM open_delivery WHERE seq > :after ORDER BY seq LIMIT :most) opened
    UNION
    SELECT seq FROM (SELECT DISTINCT seq FROM delivery_log WHERE seq > :after ORDER BY seq LIMIT :most) logged) stored
ORDER BY seq
LIMIT :most
""")
_HIGHEST = text("SELECT max(seq) AS seq FROM inbox")


@cache
def _rows(sql: Sql, *, locked: bool) -> TextClause:
    return text(f"""
SELECT {ROW}
FROM {sql.rows("wanted", seq="bigint")} JOIN open_delivery o ON o.seq = wanted.seq
ORDER BY o.seq, o.route
{sql.for_update and "FOR UPDATE OF o" if locked else ""}
""")


@cache
def _facts(sql: Sql) -> TextClause:
    found = sql.looked_up(sql.rows("wanted", seq="bigint"), "delivery_log f", "f.seq = wanted.seq")
    return text(f"""
SELECT f.id, f.at, f.seq, f.route, f.kind, f.attempt, CAST(f.detail AS text) AS detail
FROM {found}
ORDER BY f.seq, f.route, f.id
""")


@cache
def _events(sql: Sql) -> TextClause:
    return text(f"""
SELECT i.seq, i.entity_type, i.entity_id, i.dedup_key, i.occurred_at, i.routes
FROM {sql.rows("wanted", seq="bigint")} JOIN inbox i ON i.seq = wanted.seq
""")
