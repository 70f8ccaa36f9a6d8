"""What is stored of the deliveries of some events, held against their facts: one span of seqs at a time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from functools import cache, partial
from itertools import groupby
from typing import Any

import msgspec
from sqlalchemy import TextClause, text

from inbox.config import Config
from inbox.db.dialect import Sql, as_list, rows_param
from inbox.db.views import RETENTION_FLOOR_DAYS
from inbox.routing import OWN_LANE, lane_of, possible_lanes
from inbox.timestamps import as_time
from relay import facts
from relay.audit import Account, Difference, Logged, Subject, account, compare, shown
from relay.lifecycle import OpenDelivery
from relay.store.database import ROW, Transaction, as_open_delivery

SPAN_EVENTS = 500
"""Events at a time: what is held in memory, and on SQLite what a reader keeps from being copied back."""

_FACTS_AT_A_TIME = 200
_END = 2**63 - 1
_PRUNED_AFTER = timedelta(days=RETENTION_FLOOR_DAYS)

Key = tuple[int, str]


class Event(msgspec.Struct, frozen=True):
    """What is compared of a row of the inbox."""

    seq: int
    entity_type: str | None
    entity_id: str | None
    dedup_key: str
    occurred_at: datetime
    routes: tuple[str, ...]


class Span(msgspec.Struct, frozen=True):
    """Events one after the other: those with `after` < seq <= `last`."""

    after: int
    last: int
    events: tuple[Event, ...]

    @property
    def is_last(self) -> bool:
        """Whether nothing comes after it."""
        return self.last == _END


class Wrong(msgspec.Struct, frozen=True):
    """A delivery of which something is stored otherwise than its facts have it."""

    subject: Subject
    event: Event | None
    differences: tuple[Difference, ...]


class Examined(msgspec.Struct, frozen=True):
    """A span that was looked at: how many deliveries and facts it has, and those that are wrong."""

    deliveries: int
    facts: int
    wrong: tuple[Wrong, ...]


def next_span(transaction: Transaction, after: int) -> Span:
    """The events that follow `after`; the last span reaches beyond them, to what has no event."""
    rows = transaction.execute(_EVENTS, after=after, most=SPAN_EVENTS)
    events = tuple(_event(row) for row in rows)
    return Span(after, events[-1].seq if len(events) == SPAN_EVENTS else _END, events)


def examine(transaction: Transaction, span: Span, config: Config, *, locked: bool = False) -> Examined:
    """Compare everything that is stored of these events' deliveries with their facts.

    It must see one moment: a snapshot, or under the order lock with the rows `locked`.
    """
    where = {"after": span.after, "last": span.last}
    rows = {
        (row.seq, row.route): as_open_delivery(row)
        for row in transaction.execute(_rows(transaction.sql, locked=locked), **where)
    }
    pruned_before = transaction.now() - _PRUNED_AFTER
    accounts: dict[Key, Account] = {}
    number_of_facts = 0
    for key, history in groupby(_facts(transaction, where), key=lambda row: (row.seq, row.route)):
        logged = [_logged(row) for row in history]
        number_of_facts += len(logged)
        accounts[key] = account(logged, pruned_before)
    events = {event.seq: event for event in span.events}
    subjects = list(_subjects(events, rows, accounts))
    found: dict[Key, list[Difference]] = defaultdict(list)
    for subject in subjects:
        found[subject.seq, subject.route] += compare(subject)
    for difference in (
        *_compare_view(transaction, subjects, where),
        *_compare_superseded(transaction, subjects),
        *_compare_last_delivered(transaction, subjects, events, config),
    ):
        found[_key_of(difference)].append(difference)
    wrong = tuple(
        Wrong(subject, events.get(subject.seq), tuple(found[subject.seq, subject.route]))
        for subject in subjects
        if found[subject.seq, subject.route]
    )
    return Examined(sum(subject.is_expected for subject in subjects), number_of_facts, wrong)


def _event(row: Any) -> Event:  # noqa: ANN401  # a result row
    return Event(
        row.seq, row.entity_type, row.entity_id, row.dedup_key, as_time(row.occurred_at), tuple(as_list(row.routes))
    )


def _logged(row: Any) -> Logged:  # noqa: ANN401  # a result row
    fact: facts.AnyFact | None
    try:
        fact = facts.decode_text(row.kind, row.detail)
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


def _compare_view(
    transaction: Transaction, subjects: Sequence[Subject], where: Mapping[str, int]
) -> Iterator[Difference]:
    """The view `delivery` shows every delivery, once, as it is."""
    wanted = rows_param({"seq": seq} for seq in sorted({subject.seq for subject in subjects}))
    shows = {
        (row.seq, row.route): (row.state or "", row.attempts)
        for row in transaction.execute(_view(transaction.sql), wanted=wanted, **where)
        if row.route is not None
    }
    expected = {(subject.seq, subject.route): shown(subject) for subject in subjects if subject.is_expected}
    for seq, route in sorted(shows.keys() | expected.keys()):
        said, seen = expected.get((seq, route)), shows.get((seq, route))
        if said != seen:
            yield Difference("view", seq, route, None, _told(said), _told(seen))


def _told(line: tuple[str, int] | None) -> str:
    return "no line" if line is None else f"{line[0]}, {line[1]} attempts"


def _compare_superseded(transaction: Transaction, subjects: Sequence[Subject]) -> Iterator[Difference]:
    """An event that stands for another one comes later in their lane."""
    folded = [s for s in subjects if s.account.superseded_by is not None and s.is_expected]
    if not folded:
        return
    by = rows_param({"seq": subject.account.superseded_by} for subject in folded)
    found = {row.seq: _event(row) for row in transaction.execute(_these_events(transaction.sql), wanted=by)}
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
    transaction: Transaction, subjects: Sequence[Subject], events: Mapping[int, Event], config: Config
) -> Iterator[Difference]:
    """A lane knows of a delivery at least as new as each of its delivered events."""
    delivered = [s for s in subjects if s.account.delivered is not None and s.is_expected and s.route in config.routes]
    lanes = {(subject.route, lane) for subject in delivered for lane in subject.lanes if not lane.startswith(OWN_LANE)}
    asked = rows_param({"route": route, "lane": lane} for route, lane in sorted(lanes))
    known = {
        (row.route, row.lane): (as_time(row.occurred_at), row.seq)
        for row in transaction.execute(_last_delivered(transaction.sql), lanes=asked)
    }
    for subject in delivered:
        newest = max(
            (known[subject.route, lane] for lane in subject.lanes if (subject.route, lane) in known), default=None
        )
        event = events[subject.seq]
        if newest is None and present_lane(event, subject.route, config).startswith(OWN_LANE):
            continue
        if newest is None or newest < (event.occurred_at, event.seq):
            told = "nothing was delivered" if newest is None else f"seq {newest[1]} was the newest delivered"
            yield Difference("last_delivered", subject.seq, subject.route, None, "delivered", told)


def present_lane(event: Event, route: str, config: Config) -> str:
    """The lane that the event would have if it arrived now; on a route that the configuration lacks, its entity's."""
    known = config.routes.get(route)
    lanes = _lanes_of(event)
    if known is None:
        return max(lanes, key=lambda lane: (not lane.startswith(OWN_LANE), len(lane)))
    return lane_of(known, entity_type=event.entity_type, entity_id=event.entity_id, key=event.dedup_key)


def _key_of(difference: Difference) -> Key:
    return (difference.seq or 0, difference.route or "")


def _facts(transaction: Transaction, where: Mapping[str, int]) -> Iterator[Any]:
    yield from transaction.stream(_FACTS, _FACTS_AT_A_TIME, **where)


_EVENTS = text("""
SELECT seq, entity_type, entity_id, dedup_key, occurred_at, routes FROM inbox
WHERE seq > :after ORDER BY seq LIMIT :most
""")
_HIGHEST = text("SELECT max(seq) AS seq FROM inbox")
_FACTS = text("""
SELECT id, at, seq, route, kind, attempt, CAST(detail AS text) AS detail FROM delivery_log
WHERE seq > :after AND seq <= :last
ORDER BY seq, route, id
""")


@cache
def _rows(sql: Sql, *, locked: bool) -> TextClause:
    return text(f"""
SELECT {ROW} FROM open_delivery o
WHERE o.seq > :after AND o.seq <= :last
ORDER BY o.seq, o.route
{sql.for_update if locked else ""}
""")


@cache
def _view(sql: Sql) -> TextClause:
    return text(f"""
SELECT delivery.seq, delivery.route, delivery.state, delivery.attempts
FROM {sql.lines_of("delivery", "wanted")}
""")


@cache
def _these_events(sql: Sql) -> TextClause:
    return text(f"""
SELECT i.seq, i.entity_type, i.entity_id, i.dedup_key, i.occurred_at, i.routes
FROM {sql.rows("wanted", seq="bigint")} JOIN inbox i ON i.seq = wanted.seq
""")


@cache
def _last_delivered(sql: Sql) -> TextClause:
    return text(f"""
SELECT l.route, l.lane, l.occurred_at, l.seq
FROM {sql.rows("lanes", route="text", lane="text")} JOIN lane l ON l.route = lanes.route AND l.lane = lanes.lane
""")
