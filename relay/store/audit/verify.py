"""Verify: compares everything stored with the log, chunk by chunk, while receivers and relays run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
from sqlalchemy import TextClause, text

from inbox.config.model import Config
from relay.delivery.audit import Difference
from relay.store.audit.examine import examine_all
from relay.store.database import Database
from relay.store.deliveries import Lane

LANES_AT_A_TIME = 500


class Checked(msgspec.Struct, frozen=True):
    """The findings of one chunk of the check."""

    upto: int
    """Every seq up to this one has been checked."""
    events: int = 0
    deliveries: int = 0
    facts: int = 0
    differences: tuple[Difference, ...] = ()


def verify(database: Database, config: Config) -> Iterator[Checked]:
    """Compare `open_delivery` and `lane` with the state that follows from the log. Changes nothing.

    Each chunk is looked at in a snapshot of its own, so nothing that runs is disturbed. What arrives behind a chunk
    that was looked at is left to the next time.
    """
    upto = 0
    for upto, examined in examine_all(database, config):
        differences = tuple(difference for wrong in examined.wrong for difference in wrong.differences)
        yield Checked(upto, examined.events, examined.deliveries, examined.facts, differences)
    for lanes in headless(database):
        yield Checked(upto, differences=for_lanes(lanes, NO_HEAD))
    for lanes in unlogged_successes(database):
        yield Checked(upto, differences=for_lanes(lanes, PHANTOM))


NO_HEAD = Difference("no_head", None, None, None, "one may go next", "none")
PHANTOM = Difference("last_delivered", None, None, None, "it was not delivered", "the newest delivered")


def for_lanes(lanes: Iterable[Lane], difference: Difference) -> tuple[Difference, ...]:
    """The same difference for each of these lanes."""
    return tuple(msgspec.structs.replace(difference, route=route, lane=lane) for route, lane in lanes)


def bounds(database: Database) -> tuple[int, int]:
    """The lowest and the highest seq of the inbox, for a progress bar."""
    with database.read() as transaction:
        row = transaction.execute(_BOUNDS)[0]
    return int(row.lowest or 0), int(row.highest or 0)


def headless(database: Database) -> Iterator[list[Lane]]:
    """Lanes in which deliveries wait behind no head."""
    for rows in _pages(database, _WAITING_LANES):
        if lanes := [(row.route, row.lane) for row in rows if not row.has_head]:
            yield lanes


def unlogged_successes(database: Database) -> Iterator[list[Lane]]:
    """Lanes whose remembered last delivery never happened."""
    for rows in _pages(database, _LAST_DELIVERIES):
        if lanes := [(row.route, row.lane) for row in rows if not row.was_delivered]:
            yield lanes


def _pages(database: Database, statement: TextClause) -> Iterator[list[Any]]:
    route, lane = "", ""
    while True:
        with database.snapshot() as transaction:
            rows = transaction.execute(statement, route=route, lane=lane, most=LANES_AT_A_TIME)
        if not rows:
            return
        yield rows
        route, lane = rows[-1].route, rows[-1].lane


_BOUNDS = text("SELECT min(seq) AS lowest, max(seq) AS highest FROM inbox")

_WAITING_LANES = text("""
SELECT w.route, w.lane, EXISTS (
    SELECT 1 FROM open_delivery h
    WHERE h.route = w.route AND h.lane = w.lane AND h.state IN ('ready', 'in_flight', 'blocked')) AS has_head
FROM (
    SELECT DISTINCT route, lane FROM open_delivery
    WHERE state = 'waiting' AND (route, lane) > (:route, :lane)
    ORDER BY route, lane
    LIMIT :most) w
ORDER BY w.route, w.lane
""")


# An event that is not in the inbox any more was pruned, unless there can't have been one yet.
WAS_DELIVERED = """CASE
    WHEN i.seq IS NULL THEN l.seq <= (SELECT coalesce(max(seq), 0) FROM inbox)
    ELSE l.occurred_at = i.occurred_at AND EXISTS (
        SELECT 1 FROM delivery_log f WHERE f.seq = l.seq AND f.route = l.route AND f.kind = 'delivered')
    END"""
"""True where the row `l` of `lane` remembers what was delivered; `i` is its event, where there is one."""

_LAST_DELIVERIES = text(f"""
SELECT l.route, l.lane, {WAS_DELIVERED} AS was_delivered
FROM lane l LEFT JOIN inbox i ON i.seq = l.seq
WHERE (l.route, l.lane) > (:route, :lane)
ORDER BY l.route, l.lane
LIMIT :most
""")
