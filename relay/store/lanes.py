"""What the store reads of lanes, and how it settles them: the shell around `relay.ordering`. Call under the order lock."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import datetime
from functools import cache

from sqlalchemy import TextClause, text

from inbox.db.dialect import Sql, rows_param
from relay.lifecycle import OpenDelivery, State
from relay.ordering import settle
from relay.policy import UNKNOWN_ROUTE, RoutePolicy
from relay.store.database import ROW, Transaction, as_open_delivery

Lane = tuple[str, str]
"""Route and lane."""


def settle_lanes(
    transaction: Transaction,
    changed: Iterable[OpenDelivery],
    policies: Mapping[str, RoutePolicy],
    now: datetime,
    besides: Iterable[Lane] = (),
) -> list[OpenDelivery]:
    """Give every lane that `changed` touches its head again.

    `changed` are deliveries as this transaction has made them so far: those that arrived, and heads that have ended,
    died, or are to be retried. What else is in their lanes, and in the lanes `besides`, is read here, and locked.

    Returns:
        What is to be written: `changed` and whatever settling moved besides, each in its last state.
    """
    lanes: dict[Lane, list[OpenDelivery]] = defaultdict(list, {lane: [] for lane in besides})
    for row in changed:
        lanes[row.route, row.lane].append(row)
    known = {(row.seq, row.route) for rows in lanes.values() for row in rows}
    before: dict[tuple[int, str], OpenDelivery] = {}
    for row in _present(transaction, lanes, policies):
        if (row.seq, row.route) not in known:
            before[row.seq, row.route] = row
            lanes[row.route, row.lane].append(row)
    written = []
    for (route, _), rows in lanes.items():
        policy = policies.get(route, UNKNOWN_ROUTE)
        out = [row for row in rows if row.state in _OUTSIDE_THE_LANE]
        inside = [row for row in rows if row.state not in _OUTSIDE_THE_LANE]
        settled = settle(policy.ordering, inside, now, policy.schedule.first_delay)
        written += out + [row for row in settled if before.get((row.seq, row.route)) != row]
    return written


_OUTSIDE_THE_LANE = frozenset({State.ENDED, State.DEAD})


def _present(
    transaction: Transaction, lanes: Iterable[Lane], policies: Mapping[str, RoutePolicy]
) -> list[OpenDelivery]:
    wanted = list(lanes)
    if not wanted:
        return []
    rows = []
    latest = [(route, lane) for route, lane in wanted if policies.get(route, UNKNOWN_ROUTE).ordering == "latest"]
    strict = [(route, lane) for route, lane in wanted if policies.get(route, UNKNOWN_ROUTE).ordering == "strict"]
    for some, statement in ((latest, _all_waiting), (strict, _first_waiting)):
        if some:
            parameter = rows_param({"route": route, "lane": lane} for route, lane in some)
            rows += transaction.execute(statement(transaction.sql), lanes=parameter)
    return [*heads_of(transaction, wanted), *map(as_open_delivery, rows)]


def heads_of(transaction: Transaction, lanes: Iterable[Lane]) -> list[OpenDelivery]:
    """The heads of these lanes; those that are ready are locked."""
    wanted = rows_param({"route": route, "lane": lane} for route, lane in lanes)
    return [as_open_delivery(row) for row in transaction.execute(_heads(transaction.sql), lanes=wanted)]


def _lanes(sql: Sql) -> str:
    return sql.rows("lanes", route="text", lane="text")


@cache
def _heads(sql: Sql) -> TextClause:
    """Those that are ready are locked: one may be claimed at this moment, and then is not ours to fold.

    The others are only read. Without the order lock nothing ends them; one in flight may be given back, and is not written
    here; its relay renews its lease, and would pass over a row that is locked.
    """
    of_lane = "o.route = lanes.route AND o.lane = lanes.lane AND o.state IN ('ready', 'in_flight', 'blocked')"
    return text(f"""
WITH found AS MATERIALIZED (
    SELECT {ROW} FROM {sql.looked_up(_lanes(sql), "open_delivery o", of_lane)}
), ready AS MATERIALIZED (
    SELECT {ROW}
    FROM found JOIN open_delivery o ON o.seq = found.seq AND o.route = found.route
    WHERE found.state = 'ready'
    ORDER BY o.seq, o.route
    {sql.for_update and "FOR UPDATE OF o"}
)
SELECT * FROM ready UNION ALL SELECT * FROM found WHERE state <> 'ready'
""")


def locked_of_lanes(sql: Sql, condition: str) -> TextClause:
    """The deliveries in the lanes of the parameter `lanes` of which `condition` is true, locked in their order.

    The condition must be one that nothing changes without the order lock.
    """
    of_lane = f"o.route = lanes.route AND o.lane = lanes.lane AND {condition}"
    return text(f"""
WITH found AS MATERIALIZED (
    SELECT o.seq, o.route FROM {sql.looked_up(_lanes(sql), "open_delivery o", of_lane)}
)
SELECT {ROW}
FROM found JOIN open_delivery o ON o.seq = found.seq AND o.route = found.route
ORDER BY o.seq, o.route
{sql.for_update and "FOR UPDATE OF o"}
""")


@cache
def _all_waiting(sql: Sql) -> TextClause:
    of_lane = "o.route = lanes.route AND o.lane = lanes.lane AND o.state = 'waiting'"
    return text(f"SELECT {ROW} FROM {sql.looked_up(_lanes(sql), 'open_delivery o', of_lane)}")


@cache
def _first_waiting(sql: Sql) -> TextClause:
    """One index entry for each lane, however many wait.

    In two steps: in one, Postgres without statistics hashes every row that waits (24,000 read for 32 lanes, 5.9 ms
    instead of 0.2).
    """
    return text(f"""
WITH firsts AS MATERIALIZED (
    SELECT lanes.route, (
        SELECT w.seq FROM open_delivery w
        WHERE w.route = lanes.route AND w.lane = lanes.lane AND w.state = 'waiting'
        ORDER BY w.occurred_at, w.seq
        LIMIT 1) AS seq
    FROM {_lanes(sql)}
)
SELECT {ROW}
FROM firsts JOIN open_delivery o ON o.seq = firsts.seq AND o.route = firsts.route
""")
