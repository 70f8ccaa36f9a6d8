"""Sequence: gives deliveries that the receiver wrote their place in their lane."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from contextlib import nullcontext
from functools import cache
from typing import NamedTuple

from psycopg.errors import LockNotAvailable
from sqlalchemy import TextClause, text
from sqlalchemy.exc import OperationalError

from inbox.db.dialect import Sql, rows_param
from relay.delivery.lifecycle import OpenDelivery, State
from relay.delivery.ordering import LanePosition
from relay.delivery.policy import UNKNOWN_ROUTE, Policies
from relay.store.bulkhead import in_parts_by_route
from relay.store.coverage import supersede_covered
from relay.store.database import Database, read_keys
from relay.store.lanes import Lane, settle_lanes
from relay.store.locked_rows import LOCKED, locked_rows
from relay.store.quarantine import quarantine
from relay.store.scan_positions import Arrivals
from relay.store.transaction import ROW, Key, as_open_delivery, key_text, keys_param

STEP = "sequence"
_TOO_MANY = OperationalError("", None, LockNotAvailable("many deliveries are locked or at fault"))
BATCH = 500
"""Rows in one transaction; on SQLite a longer one would keep the receiver waiting."""
OWN_TRANSACTION = 50
"""Deliveries of a route that are worth a transaction of their own, under the lock of that route alone."""
MOST_ROWS = 100
"""Deliveries of a route that are known to be left, so that a look past them takes a few milliseconds."""
AGAIN = 20
"""Of them, those that one look tries again: each may cost some transactions."""
MOST_PLACED = 1000
"""The same of those that have their place already: a look passes over all their lanes at once, and tries them together."""
LONG_LOOK_SECONDS = 0.05
PART_OF_THE_TIME = 1 / 10
"""The largest share of time for such looks past all that waits for one delivery, once they are long."""
LATE_SEQS = 1000
"""Numbers that are looked through again each time: what commits even later is found by the next look from the beginning."""


def sequence(database: Database, policies: Policies, relay_node: str, batch: int = BATCH) -> int:
    """Make up to `batch` received deliveries ready, waiting, or superseded.

    They are found by their state, never by a cursor over `seq`: numbers commit out of order, and a cursor loses rows. Where
    a look begins only saves reading what has ended; each second one begins at the beginning.

    Routes whose lock somebody keeps, or whose rows, are left as they are, and all others are done: `Arrivals.left`. Those of
    another configuration are left to a relay that has them, as only their `ordering` says what their lanes drop.
    With a delivery that is left, so is what comes after it in its lane on `strict`.

    Returns:
        How many of them it has sequenced itself.

    Raises:
        Exception: the database is unreachable or busy.
    """
    arrivals = database.arrivals
    before = arrivals.left
    done = _LookForReceived(database, policies, relay_node, batch).sequence()
    if arrivals.is_behind and not arrivals.left <= before:  # what is left now has hidden others
        done += _LookForReceived(database, policies, relay_node, batch).sequence()
    return done


class _LookForReceived:
    """One look for received deliveries, and what it learns of those that it leaves."""

    def __init__(self, database: Database, policies: Policies, relay_node: str, batch: int) -> None:
        self._database = database
        self._policies = policies
        self._relay_node = relay_node
        self._batch = batch
        self._before, self._known = database.arrivals.left, database.arrivals.rows
        self._off = database.back_offs.of(STEP)
        is_to_rest = time.monotonic() < database.arrivals.rests_until
        self._tried = frozenset[str]() if is_to_rest else self._before - self._off
        """Routes that were left the last time, and are looked at again."""
        self._placed = self._placed_before = database.arrivals.placed
        self._left: list[Key] = []
        self._alone: list[Key] = []
        """Deliveries that this look leaves: all, and those that it has tried by themselves or found locked."""

    def sequence(self) -> int:
        """Sequence what it finds."""
        due = [key for key in sorted(self._known) if key[1] in self._tried and key_text(key) not in self._off]
        again = [key for key in due if key not in self._placed][:AGAIN] + [key for key in due if key in self._placed]
        is_whole = False
        try:
            keys, is_full = self._keys()
            self._alone += (key for key in keys if key_text(key) in self._off)
            done = self._work(keys) + self._work(again)
            is_whole = True
        finally:  # what was left alone is known, whatever came then: what follows it is not to go first
            self._learn(again if is_whole else (), is_whole=is_whole)
        arrivals = self._database.arrivals
        arrivals.is_behind = is_full or not self._placed_before <= arrivals.placed  # a lane is free again
        return done

    def _work(self, keys: Sequence[Key]) -> int:
        return sum(
            in_parts_by_route(
                self._database,
                STEP,
                keys,
                part=self._part,
                alone=self._set_aside,
                name=key_text,
                route_of=lambda key: key[1],
                enough=OWN_TRANSACTION,
                left=self._left,
                left_alone=self._alone,
            )
        )

    def _part(self, some: Sequence[Key]) -> int:
        routes = {route for _, route in some}
        others = {*self._known, *self._alone}.difference(some)
        ahead = self._ahead_param(key for key in others if key[1] in routes)
        done = _sequence(self._database, self._policies, self._relay_node, some, ahead, is_careful=bool(self._known))
        self._alone += done.locked + done.placed
        self._placed = self._placed.difference(done.locked).union(done.placed)
        # One that is ready may be claimed at this moment: it is told when the next look finds it locked, too.
        if told := done.locked + [key for key in done.placed if key in self._known]:
            self._database.leave(STEP, map(key_text, told), {route for _, route in told}, LOCKED)
        return done.sequenced

    def _ahead_param(self, keys: Iterable[Key]) -> str | None:
        """Return the keys for which others wait, placed ones and on `strict` any; None if there is none."""
        ahead = [
            {"seq": seq, "route": route, "placed": int((seq, route) in self._placed)}
            for seq, route in keys
            if (seq, route) in self._placed or self._policies.get(route, UNKNOWN_ROUTE).ordering == "strict"
        ]
        return rows_param(ahead) if ahead else None

    def _set_aside(self, key: Key, error: Exception) -> int:
        dead = quarantine(self._database, self._policies, self._relay_node, key, cause="unprocessable", error=error)
        return int(dead is not None)

    def _learn(self, again: Collection[Key], *, is_whole: bool) -> None:
        database, arrivals = self._database, self._database.arrivals
        rows = self._known.difference(again) | {*self._alone} | {*self._left}.intersection(again)
        arrivals.rows, crowded = _most_of_each(rows, self._placed)
        arrivals.placed = self._placed & arrivals.rows
        if crowded:
            database.leave(STEP, crowded, crowded, _TOO_MANY)
        untouched = self._before - self._tried if is_whole else self._before
        arrivals.left = untouched | {route for _, route in (*self._left, *arrivals.rows)}
        since, now = arrivals.locked_since, time.monotonic()
        kept_out = {route for route in arrivals.left if database.stalls.has((route,))} | (self._off & since.keys())
        arrivals.locked_since = {route: since.get(route, now) for route in kept_out}
        if not (is_whole and self._before <= arrivals.left):
            arrivals.floor.at = None  # older rows of a route may lie before the place where the next look would begin
        if self._known.difference(again) or untouched:
            database.still_leaves(STEP)

    def _keys(self) -> tuple[list[Key], bool]:
        """Read which deliveries to sequence, in the order of lanes, and whether there may be more.

        Those of routes that were left the last time hide no others. Of those, the ones that are tried again have a part of
        the batch each: of what was not left by itself, nor waits for it.
        """
        database, arrivals, batch = self._database, self._database.arrivals, self._batch
        with arrivals.floor.look() as begin:
            last = read_keys(database, _LAST_RECEIVED) if arrivals.left else []
            known = _routes_param(self._policies.keys() - arrivals.left)
            keys = read_keys(database, _received(database.sql), batch=batch, begin_seq=begin or 0, known_routes=known)
        if keys or (last and begin is None):
            _look_from(database, max(keys or last)[0])
        is_full = len(keys) >= batch
        if self._tried:
            share = max(batch // len(self._tried), 1)
            found = self._keys_of_tried(share)
            is_full = is_full or share in Counter(route for _, route in found).values()
            keys += found
        return keys, is_full

    def _keys_of_tried(self, share: int) -> list[Key]:
        arrivals, began = self._database.arrivals, time.monotonic()
        found = read_keys(
            self._database,
            _received_of(self._database.sql),
            most=share,
            left_routes=_routes_param(self._tried),
            known=keys_param(arrivals.rows - arrivals.placed),
            ahead=self._ahead_param(arrivals.rows) or rows_param(()),
        )
        ended = time.monotonic()
        if arrivals.rows and ended - began > LONG_LOOK_SECONDS:  # past a hundred thousand that wait for one
            arrivals.rests_until = ended + (ended - began) / PART_OF_THE_TIME
        return found


def _most_of_each(rows: Iterable[Key], placed: Collection[Key]) -> tuple[set[Key], set[str]]:
    """Return so many of each route that a look past them is short, and the routes that have more."""
    kept, crowded, numbers = set[Key](), set[str](), Counter[tuple[str, bool]]()
    for key in sorted(rows):
        is_placed = key in placed
        numbers[key[1], is_placed] += 1
        if numbers[key[1], is_placed] <= (MOST_PLACED if is_placed else MOST_ROWS):
            kept.add(key)
        else:
            crowded.add(key[1])
    return kept, crowded


def _routes_param(routes: Iterable[str]) -> str:
    return rows_param({"route": route} for route in sorted(routes))


class _Done(NamedTuple):
    """Results of one transaction."""

    sequenced: int
    locked: list[Key]
    """Received deliveries that somebody has locked."""
    placed: list[Key]
    """Others that somebody has locked, without which what is received in their lane can't get a place."""


def _sequence(
    database: Database, policies: Policies, relay_node: str, keys: Sequence[Key], ahead: str | None, *, is_careful: bool
) -> _Done:
    """Sequence those of them that are received still: another relay may have been faster.

    Args:
        database: the inbox.
        policies: those of all routes.
        relay_node: this relay.
        keys: deliveries. Of those that have a place it says only which are locked, and only if it is careful.
        ahead: others that are left as they are. What comes after one in its lane is passed over.
        is_careful: True to wait for no locked row, as is done where this thread has waited for one in vain lately.
    """
    given = {"keys": keys_param(keys)}
    read = (_of_keys(database.sql), given)
    if ahead:
        read = (_of_keys_before(database.sql), {**given, "ahead": ahead})
    with database.write() as transaction:
        now, (rows,) = transaction.lock_order_and_read({route for _, route in keys}, read)
        found = [as_open_delivery(row) for row in rows]
        locked: list[OpenDelivery] = []
        if found and transaction.sql.for_update and (is_careful or transaction.is_hasty):
            lanes = {(row.route, row.lane) for row in found if row.state is State.RECEIVED}
            locked = locked_rows(transaction, ((row.seq, row.route) for row in found), lanes, policies)
        free = _without_what_waits(found, locked, policies)
        if free:
            changed = supersede_covered(transaction, free, policies, now)
            settled = settle_lanes(transaction, changed, policies, now)
            transaction.only_write()
            transaction.write_back(settled, relay_node)
    placed = [(row.seq, row.route) for row in locked if row.state is not State.RECEIVED]
    return _Done(len(free), [(row.seq, row.route) for row in locked if row.state is State.RECEIVED], placed)


def _without_what_waits(
    found: Sequence[OpenDelivery], locked: Sequence[OpenDelivery], policies: Policies
) -> list[OpenDelivery]:
    """Return those that are received, and are not locked, nor wait in their lane for one that is."""
    received = [row for row in found if row.state is State.RECEIVED]
    if not locked:
        return received
    first: dict[Lane, LanePosition] = {}
    closed = {(row.route, row.lane) for row in locked if row.state is not State.RECEIVED}
    for row in locked:
        lane = (row.route, row.lane)
        if policies.get(row.route, UNKNOWN_ROUTE).ordering == "strict":
            first[lane] = min(row.key, first.get(lane, row.key))
    return [
        row
        for row in received
        if (lane := (row.route, row.lane)) not in closed
        and row not in locked
        and (lane not in first or row.key < first[lane])
    ]


def _look_from(database: Database, seq: int) -> None:
    """Move the start of later looks, but so far below this one that commits a little late are found, too."""
    if database.sql.keeps_ended_entries:
        database.arrivals.floor.at = seq - LATE_SEQS


def _given(sql: Sql) -> str:
    """`state || ''` stops Postgres from reading the index of received ones from end to end, as in `record`."""
    return f"""
SELECT {ROW}
FROM {sql.deliveries("keys")}
WHERE o.state || '' IN ('received', 'ready', 'waiting')
"""


@cache
def _of_keys(sql: Sql) -> TextClause:
    return text(f"{_given(sql)} ORDER BY o.seq")


@cache
def _of_keys_before(sql: Sql) -> TextClause:
    waits_for_none = f"(o.state || '' <> 'received' OR {_IS_AFTER_NONE})"
    return text(f"WITH {_ahead(sql)} {_given(sql)} AND {waits_for_none} ORDER BY o.seq")


def _ahead(sql: Sql) -> str:
    """Select the places of `ahead`, once: SQLite would read the parameter for each delivery again.

    A placed one counts as long as it can be locked and changed by what arrives, any other until it is sequenced.
    """
    given = sql.rows("ahead", seq="bigint", route="text", placed="int")
    found = sql.looked_up(given, "open_delivery a", "a.seq = ahead.seq AND a.route = ahead.route")
    return f"""ahead_rows AS MATERIALIZED (
    SELECT a.route, a.lane, a.occurred_at, a.seq FROM {found} WHERE ahead.placed = 0 AND a.state || '' = 'received'
), closed_lanes AS MATERIALIZED (
    SELECT a.route, a.lane FROM {found} WHERE ahead.placed = 1 AND a.state || '' IN ('ready', 'waiting'))"""


_IS_AFTER_NONE = """(o.route, o.lane) NOT IN (SELECT route, lane FROM closed_lanes) AND NOT EXISTS (
    SELECT 1 FROM ahead_rows a
    WHERE a.route = o.route AND a.lane = o.lane AND (a.occurred_at, a.seq) < (o.occurred_at, o.seq))"""
"""It holds for a delivery `o` that waits for none of `_ahead` in its lane.

Postgres looks up each in the closed lanes, however many there are, as it keeps what stands behind a NOT IN by its hash.
"""


_IN_ORDER = "SELECT seq, route FROM ({}) found ORDER BY occurred_at, seq, route"
_LAST_RECEIVED = text(
    "SELECT o.seq, o.route FROM open_delivery o WHERE o.state = 'received' ORDER BY o.seq DESC LIMIT 1"
)


@cache
def _received(sql: Sql) -> TextClause:
    return text(
        _IN_ORDER.format(f"""
    SELECT o.seq, o.route, o.occurred_at FROM open_delivery o
    WHERE o.state = 'received' AND o.seq >= :begin_seq AND {_is_known(sql)}
    ORDER BY o.seq, o.route
    LIMIT :batch
""")
    )


@cache
def _received_of(sql: Sql) -> TextClause:
    of_route = (
        "o.route = left_routes.route AND o.state = 'received'"
        " AND NOT EXISTS (SELECT 1 FROM known_rows WHERE known_rows.seq = o.seq AND known_rows.route = o.route)"
        f" AND {_IS_AFTER_NONE}"
    )
    found = sql.first_of(_left(sql), "open_delivery o", of_route, "o.seq", ":most")
    return text(f"""
WITH known_rows AS MATERIALIZED (SELECT seq, route FROM {sql.rows("known", seq="bigint", route="text")}), {_ahead(sql)}
{_IN_ORDER.format(f"SELECT o.seq, o.route, o.occurred_at FROM {found}")}
""")


def _left(sql: Sql) -> str:
    return sql.rows("left_routes", route="text")


def _is_known(sql: Sql) -> str:
    return f"o.route IN (SELECT route FROM {sql.rows('known_routes', route='text')})"


def any_received(database: Database, policies: Policies) -> bool:
    """True when there is anything to sequence; takes no lock, so an idle relay disturbs nobody."""
    arrivals = database.arrivals
    # Where some are left, it looks at all there is; that is not the turn of `_keys` to begin at the beginning.
    place = nullcontext(None) if arrivals.left else arrivals.floor.look()
    with place as begin, database.read() as transaction:
        found = transaction.execute(
            _any_received(database.sql), begin_seq=begin or 0, known_routes=_routes_param(policies)
        )
    if not found and arrivals.left:
        database.arrivals = Arrivals(arrivals.floor)  # another relay has done them
    elif found and not arrivals.left:  # else the place is that of the others, which lie behind what is left
        _look_from(database, found[0].seq)
    return bool(found)


@cache
def _any_received(sql: Sql) -> TextClause:
    return text(f"""
SELECT o.seq FROM open_delivery o
WHERE o.state = 'received' AND o.seq >= :begin_seq AND {_is_known(sql)} ORDER BY o.seq LIMIT 1
""")
