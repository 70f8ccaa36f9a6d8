"""Reads open deliveries, rates and the last hour of each route, in a time that does not grow with the number of rows.

Counts stop at `MOST_COUNTED`, and rates read that many of the newest rows.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, Literal

import msgspec
from sqlalchemy import TextClause, text

from inbox.config.routing import matches
from inbox.db.dialect import as_list
from inbox.db.throughput import ROUTE, SOURCE, STORED, SWEPT
from inbox.events.timestamps import as_time
from relay.delivery.policy import Policies
from relay.store.statement import Statement, sql
from relay.store.transaction import Transaction

MOST_COUNTED = 10_000
"""The largest count of a state on a route; exact numbers above it would be of little use."""
_WALKED_FOR_A_COUNT = 5
"""Multiple of the count limit to scan for the oldest delivery of routes whose count stopped early."""
RATE_WINDOW = timedelta(minutes=5)

Counted = Literal["received", "waiting", "ready", "retrying", "in_flight", "blocked", "dead"]
"""A state of open deliveries. Those that are `ready` but due later count as `retrying`."""
ENDS = frozenset({"delivered", "unchanged", "superseded", "skipped", "cancelled"})
"""Facts that end a delivery."""
FAILURES = frozenset({"attempt_failed", "abandoned", "dead"})


class RouteState(msgspec.Struct, frozen=True):
    """The open deliveries of a route, and its rates."""

    route: str
    is_configured: bool
    new_name: str | None = None
    """The configured route that may be this one under a new name; None if this route is configured."""
    open: int = 0
    received: int = 0
    waiting: int = 0
    ready: int = 0
    retrying: int = 0
    in_flight: int = 0
    blocked: int = 0
    dead: int = 0
    at_least: tuple[Counted, ...] = ()
    """Counts that stopped early: there may be more."""
    oldest_received_at: datetime | None = None
    """Arrival of the oldest delivery that is not dead."""
    oldest_age_seconds: float | None = None
    next_due_at: datetime | None = None
    """Time of the next retry."""
    in_per_minute: float = 0
    out_per_minute: float = 0
    failed_per_minute: float = 0
    held_back_by: tuple[str, ...] = ()
    """Closed gates, such as `destination crm`."""


class _Open(msgspec.Struct):
    """Counts of a route's open deliveries in progress."""

    counts: Counter[Counted] = msgspec.field(default_factory=Counter)
    at_least: set[Counted] = msgspec.field(default_factory=set)
    oldest: list[int] = msgspec.field(default_factory=list)
    """A low seq of each state that is not dead; the lowest if the count is complete."""
    next_due_at: datetime | None = None


def read_routes(
    transaction: Transaction,
    configured: Iterable[str],
    held_back: Mapping[str, tuple[str, ...]],
    now: datetime,
    most: int,
) -> tuple[list[RouteState], dict[str, int]]:
    """Read the state of every route that is configured or has open deliveries.

    Args:
        transaction: a snapshot.
        configured: names of the configured routes.
        held_back: the closed gates of each route.
        now: the time of the snapshot.
        most: the largest count of a state; a lower one costs less.

    Returns:
        The routes by name, and the number of deliveries in flight on each relay.
    """
    known = set(configured)
    found: defaultdict[str, _Open] = defaultdict(_Open, {route: _Open() for route in known})
    in_flight = _count_moving(transaction, found, most)
    for row in transaction.execute(_KNOWN):
        found[row.route] = found[row.route]
    for route, opened in found.items():
        _count_route(transaction, route, opened, most)
    oldest = _read_oldest(transaction, found, _WALKED_FOR_A_COUNT * most)
    rates = _read_rates(transaction, now, most)
    routes = [
        RouteState(
            route,
            route in known,
            new_name=None,
            open=sum(opened.counts.values()),
            **{str(state): number for state, number in opened.counts.items()},
            at_least=tuple(sorted(opened.at_least)),
            oldest_received_at=oldest.get(route),
            oldest_age_seconds=_seconds(oldest.get(route), now),
            next_due_at=opened.next_due_at,
            held_back_by=held_back.get(route, ()),
            in_per_minute=round(rates["in"][route], 1),
            out_per_minute=round(rates["out"][route], 1),
            failed_per_minute=round(rates["failed"][route], 1),
        )
        for route, opened in sorted(found.items())
    ]
    return routes, in_flight


def find_new_name(transaction: Transaction, route: str, policies: Policies) -> str | None:
    """Find the configured route that an unconfigured one may have become.

    It is the only route that takes the same events now and did not exist when they arrived. None if it has already taken
    them. Samples suffice: the first delivery in each state.
    """
    first = {row.oldest for row in transaction.execute(_COUNTS, route=route, most=1) if row.oldest is not None}
    first |= {row.oldest for row in transaction.execute(_RECEIVED, most=MOST_COUNTED) if row.route == route}
    events = transaction.execute(_SAMPLES, wanted=first)
    names = [
        name
        for name, policy in policies.items()
        if all(
            ("source", event.source) in policy.gates
            and matches(policy.when, event.entity_type, event.event_type, event.action)
            and name not in as_list(event.routes)
            for event in events
        )
    ]
    if not events or len(names) != 1:
        return None
    taken = {row.seq for row in transaction.execute(_TAKEN, wanted=first, route=names[0])}
    return names[0] if first - taken else None


def _seconds(since: datetime | None, now: datetime) -> float | None:
    return None if since is None else max((now - since).total_seconds(), 0.0)


def _count_moving(transaction: Transaction, found: defaultdict[str, _Open], most: int) -> dict[str, int]:
    """Count received and in-flight deliveries. Returns the number in flight by relay."""
    in_flight: Counter[str] = Counter()
    states: tuple[tuple[Counted, TextClause], ...] = (("received", _RECEIVED), ("in_flight", _IN_FLIGHT))
    for state, statement in states:
        rows = transaction.execute(statement, most=most)
        for row in rows:
            opened = found[row.route]
            opened.counts[state] += row.number
            opened.oldest.append(row.oldest)
            if state == "in_flight":
                in_flight[row.relay_node] += row.number
        if sum(row.number for row in rows) >= most:
            for opened in found.values():
                opened.at_least.add(state)
    return in_flight


def _count_route(transaction: Transaction, route: str, opened: _Open, most: int) -> None:
    for row in transaction.execute(_COUNTS, route=route, most=most):
        opened.counts[row.state] = row.number
        if row.number >= most:
            opened.at_least.add(row.state)
        if row.oldest is not None and row.state != "dead":
            opened.oldest.append(row.oldest)
        if row.due_at is not None:
            opened.next_due_at = as_time(row.due_at)


def _read_oldest(transaction: Transaction, found: Mapping[str, _Open], walked: int) -> dict[str, datetime]:
    """Read the arrival of each route's oldest delivery that is not dead. With many open ones, take the oldest that was counted."""
    seqs = {route: min(opened.oldest) for route, opened in found.items() if opened.oldest}
    if any(opened.at_least - {"dead"} for opened in found.values()):
        for row in transaction.execute(_WALK, most=walked):
            seqs[row.route] = min(row.oldest, seqs.get(row.route, row.oldest))
    arrived = {row.seq: as_time(row.received_at) for row in transaction.execute(_ARRIVAL, wanted=set(seqs.values()))}
    return {route: arrived[seq] for route, seq in seqs.items() if seq in arrived}


def _read_rates(transaction: Transaction, now: datetime, most: int) -> Mapping[str, Mapping[str, float]]:
    """Read rates per minute on each route: deliveries that arrive, deliveries that end, and attempts that fail."""
    since = now - RATE_WINDOW
    came = transaction.execute(_NEWEST_ARRIVALS, since=since, most=most)
    recorded = transaction.execute(_RECORDED, since=since, most=most)
    return {
        "in": _divide_by_minutes(came, lambda row: as_list(row.routes), now, most),
        "out": _divide_by_minutes(recorded, lambda row: [row.route] if row.kind in ENDS else [], now, most),
        "failed": _divide_by_minutes(recorded, lambda row: [row.route] if row.kind in FAILURES else [], now, most),
    }


def _divide_by_minutes(
    rows: list[Any], routes_of: Callable[[Any], list[str]], now: datetime, most: int
) -> Mapping[str, float]:
    """Divide counts by the time they span. With many recent rows, that time is shorter than the window."""
    minutes = RATE_WINDOW.total_seconds() / 60
    if rows and sum(row.number for row in rows) >= most:
        span = (now - min(as_time(row.first) for row in rows)).total_seconds() / 60
        minutes = min(minutes, max(span, 1 / 60))
    rates = defaultdict[str, float](float)
    for row in rows:
        for route in routes_of(row):
            rates[route] += row.recent / minutes
    return rates


def _select_routes_with(state: str) -> str:
    """Return SQL for the routes with a delivery in this state, by one index lookup for each."""
    return f"""
SELECT route FROM (
    WITH RECURSIVE found(route) AS (
        SELECT CAST('' AS text)
        UNION ALL
        SELECT (
            SELECT o.route FROM open_delivery o WHERE o.state = '{state}' AND o.route > found.route ORDER BY o.route LIMIT 1)
        FROM found
        WHERE found.route IS NOT NULL)
    SELECT route FROM found WHERE route <> '') of_{state}"""


_KNOWN = text("\nUNION\n".join(_select_routes_with(state) for state in ("waiting", "ready", "blocked", "dead")))
_RECEIVED = text("""
SELECT found.route, count(*) AS number, min(found.seq) AS oldest
FROM (SELECT seq, route FROM open_delivery WHERE state = 'received' ORDER BY seq LIMIT :most) found
GROUP BY found.route
""")
_IN_FLIGHT = text("""
SELECT found.route, found.relay_node, count(*) AS number, min(found.seq) AS oldest
FROM (SELECT seq, route, relay_node FROM open_delivery WHERE state = 'in_flight' ORDER BY seq, route LIMIT :most) found
GROUP BY found.route, found.relay_node
""")


_PARTS: dict[Counted, str] = {
    "waiting": "state = 'waiting' ORDER BY lane, occurred_at, seq",
    "ready": f"state = 'ready' AND due_at <= (SELECT {sql.now}) ORDER BY due_at, seq",
    "retrying": f"state = 'ready' AND due_at > (SELECT {sql.now}) ORDER BY due_at, seq",
    "blocked": "state = 'blocked' ORDER BY lane",
    "dead": "state = 'dead' ORDER BY lane, occurred_at, seq",
}


# Each part is read in index order, so that planners don't scan the table instead.
_COUNTS = Statement(
    "\nUNION ALL\n".join(
        f"""SELECT '{state}' AS state, count(*) AS number, min(found.seq) AS oldest,
    {"min(found.due_at)" if state == "retrying" else "CAST(NULL AS timestamptz)"} AS due_at
FROM (SELECT seq, due_at FROM open_delivery WHERE route = :route AND {part} LIMIT :most) found"""
        for state, part in _PARTS.items()
    )
)


_WALK = text("""
SELECT found.route, min(found.seq) AS oldest
FROM (SELECT seq, route, state FROM open_delivery ORDER BY seq, route LIMIT :most) found
WHERE found.state <> 'dead'
GROUP BY found.route
""")


_ARRIVAL = Statement(f"""
SELECT i.seq, i.received_at FROM {sql.look_up(sql.rows("wanted", seq="bigint"), "inbox i", "i.seq = wanted.seq")}
""")


_OF_WANTED = sql.rows("wanted", seq="bigint")
_SAMPLES = Statement(f"""
SELECT i.seq, i.source, i.entity_type, i.event_type, i.action, i.routes
FROM {sql.look_up(_OF_WANTED, "inbox i", "i.seq = wanted.seq")}
""")
_TAKEN = Statement(f"""
SELECT f.seq FROM {sql.look_up(_OF_WANTED, "delivery_log f", "f.seq = wanted.seq AND f.route = :route")}
UNION
SELECT o.seq FROM {sql.look_up(_OF_WANTED, "open_delivery o", "o.seq = wanted.seq AND o.route = :route")}
""")


_NEWEST_ARRIVALS = Statement(f"""
SELECT found.routes, count(*) AS number, min(found.received_at) AS first,
       count(CASE WHEN found.received_at > {sql.time(":since")} THEN 1 END) AS recent
FROM (SELECT routes, received_at FROM inbox ORDER BY seq DESC LIMIT :most) found
GROUP BY found.routes
""")


_RECORDED = Statement(f"""
SELECT found.route, found.kind, count(*) AS number, min(found.at) AS first,
       count(CASE WHEN found.at > {sql.time(":since")} THEN 1 END) AS recent
FROM (SELECT route, kind, at FROM delivery_log ORDER BY id DESC LIMIT :most) found
GROUP BY found.route, found.kind
""")


# --- figures of the last hour, day or week

Span = Literal["hour", "day", "week"]
_MOST_ROWS = 50_000
"""Maximum number of rows to read, enough for hundreds of routes."""
_ARRIVALS = frozenset({STORED, SWEPT})

Counts = tuple[int, ...]
"""A count for each step of a span, the oldest first."""


class Figures(msgspec.Struct, frozen=True):
    """Counts of each minute of an hour, or of each hour of a day or a week.

    The current minute or hour is omitted, as it is still being counted.
    """

    began_at: datetime
    """Start of the first step."""
    step_seconds: int
    steps: int
    arrived: Mapping[str, Counts]
    """Events by source."""
    ended: Mapping[str, Counts]
    """Ended deliveries by route."""
    failed: Mapping[str, Counts]
    """Failed attempts by route."""

    def get_counts(self, counts: Mapping[str, Counts], name: str) -> Counts:
        """Return the counts of a name, or zeros without counts."""
        return counts.get(name, (0,) * self.steps)

    def add_up(self, counts: Mapping[str, Counts]) -> Counts:
        """Add up the counts of all names."""
        return tuple(map(sum, zip(*counts.values(), strict=True))) if counts else (0,) * self.steps


def read_figures(transaction: Transaction, now: datetime, span: Span = "hour") -> Figures:
    """Read the figures of the span before `now`."""
    until = now.replace(minute=now.minute if span == "hour" else 0, second=0, microsecond=0)
    steps, step = _STEPS[span]
    since = until - steps * step
    arrived, ended, failed = (defaultdict[str, list[int]](lambda: [0] * steps) for _ in range(3))
    for row in transaction.execute(_FIGURES[span == "hour"], since=since, until=until, most=_MOST_ROWS):
        place = int((as_time(row.began_at) - since) / step)
        for counts, kind, outcomes in ((arrived, SOURCE, _ARRIVALS), (ended, ROUTE, ENDS), (failed, ROUTE, FAILURES)):
            if row.kind == kind and row.outcome in outcomes:
                counts[row.name][place] += int(row.count)
    made = ({name: tuple(each) for name, each in counts.items()} for counts in (arrived, ended, failed))
    return Figures(since, int(step.total_seconds()), steps, *made)


_STEPS: Mapping[Span, tuple[int, timedelta]] = {
    "hour": (60, timedelta(minutes=1)),
    "day": (24, timedelta(hours=1)),
    "week": (168, timedelta(hours=1)),
}
# `|| ''` makes SQLite use the index by minute instead of reading all rows of these kinds by the primary key.
_FIGURES = {
    by_minute: Statement(f"""
SELECT t.kind, t.name, t.outcome, {"t.minute" if by_minute else sql.hour("t.minute")} AS began_at, sum(t.count) AS count
FROM throughput_minute t
WHERE t.minute >= {sql.time(":since")} AND t.minute < {sql.time(":until")} AND t.kind || '' IN ('{SOURCE}', '{ROUTE}')
GROUP BY 1, 2, 3, 4
ORDER BY 4 DESC
LIMIT :most
""")
    for by_minute in (False, True)
}
