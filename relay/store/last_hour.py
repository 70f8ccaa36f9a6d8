"""The last hour minute by minute: what arrived from each source, and what became of each route's deliveries."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from datetime import datetime, timedelta
from functools import cache

import msgspec
from sqlalchemy import TextClause, text

from inbox.db.dialect import Sql
from inbox.db.throughput import ROUTE, SOURCE, STORED, SWEPT
from inbox.events.timestamps import as_time, time_text
from relay.store.route_states import ENDS, FAILURES
from relay.store.transaction import Transaction

MINUTES = 60
_MOST_ROWS = 50_000
"""Most figures that are read: those of hundreds of routes."""
_ARRIVALS = frozenset({STORED, SWEPT})

Counts = tuple[int, ...]
"""A count for each of the `MINUTES`, the oldest first."""
NOTHING: Counts = (0,) * MINUTES


class LastHour(msgspec.Struct, frozen=True):
    """Counts of the last whole minutes. The present minute is left out: its figures are still being added up."""

    began_at: datetime
    """Beginning of the first minute."""
    arrived: Mapping[str, Counts]
    """Events of each source."""
    ended: Mapping[str, Counts]
    """Deliveries of each route that were delivered, or ended otherwise."""
    failed: Mapping[str, Counts]
    """Failed attempts of each route."""


def read_last_hour(transaction: Transaction, now: datetime) -> LastHour:
    """Read the figures of the last hour before `now`."""
    since, until = _of(now)
    found = transaction.execute(
        _figures(transaction.sql), since=time_text(since), until=time_text(until), most=_MOST_ROWS
    )
    arrived, ended, failed = _new(), _new(), _new()
    for row in found:
        place = int((as_time(row.minute) - since) / timedelta(minutes=1))
        if row.kind == SOURCE and row.outcome in _ARRIVALS:
            arrived[row.name][place] += row.count
        elif row.kind == ROUTE and row.outcome in ENDS:
            ended[row.name][place] += row.count
        elif row.kind == ROUTE and row.outcome in FAILURES:
            failed[row.name][place] += row.count
    return LastHour(since, _kept(arrived), _kept(ended), _kept(failed))


def empty_hour(now: datetime) -> LastHour:
    """Return an hour before `now` in which nothing is known."""
    return LastHour(_of(now)[0], {}, {}, {})


def _of(now: datetime) -> tuple[datetime, datetime]:
    until = now.replace(second=0, microsecond=0)
    return until - timedelta(minutes=MINUTES), until


def total(counts: Mapping[str, Counts]) -> Counts:
    """Add up the counts of all names."""
    return tuple(map(sum, zip(*counts.values(), strict=True))) if counts else NOTHING


def _new() -> defaultdict[str, list[int]]:
    return defaultdict(lambda: [0] * MINUTES)


def _kept(counts: Mapping[str, list[int]]) -> Mapping[str, Counts]:
    return {name: tuple(counted) for name, counted in counts.items()}


@cache
def _figures(sql: Sql) -> TextClause:
    """Write it so that the index by minute answers: SQLite would read all figures of these kinds by the primary key."""
    return text(f"""
SELECT t.kind, t.name, t.outcome, t.minute, t.count
FROM throughput_minute t
WHERE t.minute >= {sql.time(":since")} AND t.minute < {sql.time(":until")} AND t.kind || '' IN ('{SOURCE}', '{ROUTE}')
ORDER BY t.minute DESC
LIMIT :most
""")
