"""What past successes make needless, and what a repeated request makes necessary again. Call under the order lock."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import TextClause, text

from inbox.db.dialect import Sql, rows_param
from inbox.timestamps import as_time
from relay import facts
from relay.lifecycle import OpenDelivery, append
from relay.ordering import LastDelivered, covers
from relay.policy import UNKNOWN_ROUTE, RoutePolicy
from relay.store.database import Transaction, as_open_delivery
from relay.store.lanes import Lane, locked_of_lanes


def drop_covered(
    transaction: Transaction, received: Sequence[OpenDelivery], policies: Mapping[str, RoutePolicy], now: datetime
) -> list[OpenDelivery]:
    """On routes in `latest`, end those that the last success of their lane certainly has in it.

    What a person asked for again, or a repeat re-armed, is left alone.
    """
    lanes = {
        (row.route, row.lane)
        for row in received
        if row.run == 0 and policies.get(row.route, UNKNOWN_ROUTE).ordering == "latest"
    }
    lasts = last_delivered(transaction, lanes)
    left = []
    for row in received:
        last = lasts.get((row.route, row.lane)) if row.run == 0 else None
        covered = last is not None and covers(last, row.key, policies[row.route].skew)
        left.append(append(row, facts.Superseded(by=last.seq, because="covered"), now) if last and covered else row)
    return left


def heal(
    transaction: Transaction, delivered: Iterable[OpenDelivery], policies: Mapping[str, RoutePolicy], now: datetime
) -> list[OpenDelivery]:
    """On routes in `latest`, end the dead that a later event of their lane, which was delivered now, stands for."""
    newest = {
        (row.route, row.lane): row for row in delivered if policies.get(row.route, UNKNOWN_ROUTE).ordering == "latest"
    }
    if not newest:
        return []
    rows = transaction.execute(_dead(transaction.sql), lanes=_param(newest))
    healed = []
    for dead in map(as_open_delivery, rows):
        by = newest[dead.route, dead.lane]
        if dead.key < by.key:
            healed.append(append(dead, facts.Superseded(by=by.seq, because="healed"), now))
    return healed


def last_delivered(transaction: Transaction, lanes: Iterable[Lane]) -> dict[Lane, LastDelivered]:
    """The last success in each of these lanes that has one."""
    wanted = list(lanes)
    if not wanted:
        return {}
    rows = transaction.execute(_last_delivered(transaction.sql), lanes=_param(wanted))
    return {(row.route, row.lane): _last(row) for row in rows}


def _last(row: Any) -> LastDelivered:  # noqa: ANN401  # a result row
    began, modified = row.fetch_began_at, row.last_modified
    return LastDelivered(
        as_time(row.occurred_at),
        row.seq,
        None if began is None else as_time(began),
        None if modified is None else as_time(modified),
    )


def _param(lanes: Iterable[Lane]) -> str:
    return rows_param({"route": route, "lane": lane} for route, lane in lanes)


@cache
def _last_delivered(sql: Sql) -> TextClause:
    return text(f"""
SELECT l.route, l.lane, l.occurred_at, l.seq, l.fetch_began_at, l.last_modified
FROM {sql.rows("lanes", route="text", lane="text")} JOIN lane l ON l.route = lanes.route AND l.lane = lanes.lane
""")


@cache
def _dead(sql: Sql) -> TextClause:
    return locked_of_lanes(sql, "o.state = 'dead'")
