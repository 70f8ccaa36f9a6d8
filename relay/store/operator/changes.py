"""Replays, retries, cancels and unblocks deliveries for an operator, under the order lock, where their routes have room."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from functools import cache
from typing import Literal

import msgspec
from sqlalchemy import TextClause, text

from inbox.config.model import Config
from inbox.db.dialect import Sql
from inbox.events.timestamps import time_text
from relay.delivery import facts
from relay.delivery.lifecycle import TRANSITIONS, OpenDelivery, State, append, step_of
from relay.delivery.policy import Policies
from relay.operations.table import MOST_OPEN
from relay.store import gates
from relay.store.deliveries import ROW, Key, as_open_delivery, keys_param, write_back
from relay.store.operator.selection import GIVEN_UP
from relay.store.reopen import find, keep_payloads, take_up
from relay.store.sequence import last_delivered, settle_lanes
from relay.store.transaction import Transaction
from relay.store.work import Work

_REPLAYABLE = GIVEN_UP | {State.ENDED}

Too = Callable[[set[Key]], set[Key]]
"""Selects the deliveries that are replayed, too."""


def replay(
    transaction: Transaction,
    config: Config,
    keys: Sequence[Key],
    fact: facts.Replayed,
    now: datetime,
    *,
    policies: Policies,
    too: Too | None,
    states: Collection[State] | None = None,
) -> int:
    """Take these up again.

    A replayed delivery begins a new run, bypasses deduplication, and gets its place in its lane by its own time: on a
    `latest` route a newer one that waits stands for it. One that is open again meanwhile is left as it is, and so is
    one that would put something older in the place of what was delivered last, unless that is replayed `too`. Without
    `too`, whatever it undoes. With `states`, only those that are still in one of them.

    Returns:
        How many were taken up.
    """
    found = replayable(transaction, config, keys, too=too, states=states)
    again = [append(row, fact, now) for row in found.again]
    take_up(transaction, found.again, again, policies)
    return len(again)


def end_or_unblock(
    transaction: Transaction,
    config: Config,
    keys: Sequence[Key],
    fact: facts.Cancelled | facts.Unblocked,
    now: datetime,
    *,
    policies: Policies,
    states: Collection[State] | None = None,
) -> int:
    """End these deliveries for good, or unblock their lanes. One that a relay has claimed meanwhile is left as it is.

    With `states`, only those that are still in one of them.

    Returns:
        How many it has happened to.
    """
    possible = [
        row
        for row in find(transaction, config, keys)
        if row.state is not State.ENDED
        and step_of(fact) in TRANSITIONS[row.state]
        and (states is None or row.state in states)
    ]
    changed = [append(row, fact, now) for row in possible]
    # Written first, so that what settling reads of these lanes is what is left of them.
    write_back(transaction, changed)
    lanes = {(row.route, row.lane) for row in changed}
    write_back(transaction, settle_lanes(transaction, [], policies, now, lanes))
    return len(changed)


LeftOut = Literal["overtaken", "route_removed", "payload_gone", "unreadable"]
"""The reason why a replay leaves a selected delivery out. `overtaken`: it would overwrite the last delivered state with an
older one. `route_removed`: it has ended on a route that is not configured any more. `payload_gone`: retention or erasure has
deleted the event's headers and body. `unreadable`: a fact can't be read."""


class Replayable(msgspec.Struct, frozen=True):
    """Selected deliveries, as a replay takes them."""

    again: Sequence[OpenDelivery]
    """The ones that it takes up."""
    left_out: dict[Key, LeftOut]


def replayable(
    transaction: Transaction,
    config: Config,
    keys: Sequence[Key],
    *,
    too: Too | None,
    states: Collection[State] | None = None,
    locked: bool = True,
) -> Replayable:
    """Find these deliveries, and the ones among them that are replayed. A plan asks without locks, a replay with them.

    Raises:
        UnreadableLog: one has a fact that this version can't read.
    """
    found = find(transaction, config, keys, locked=locked)
    possible = [row for row in found if row.state in (states or _REPLAYABLE)]
    old = set() if too is None else _overtaken(transaction, possible, too, locked=locked)
    known = {(row.seq, row.route) for row in found}
    left_out: dict[Key, LeftOut] = {key: "route_removed" for key in keys if key not in known}
    left_out |= dict.fromkeys(old, "overtaken")
    kept = keep_payloads(transaction, (row.seq for row in possible), locked=locked)
    left_out |= {(row.seq, row.route): "payload_gone" for row in possible if row.seq not in kept}
    return Replayable([row for row in possible if (row.seq, row.route) not in left_out], left_out)


def _overtaken(transaction: Transaction, rows: Sequence[OpenDelivery], too: Too, *, locked: bool) -> set[Key]:
    """Deliveries that would overwrite the last delivered state with an older one.

    What fetches carries the newest whenever it goes. Where the last delivery itself is replayed too, it comes last; also
    where it was taken up before, as by an earlier batch of the same command, and nobody has begun it.
    """
    lasts = last_delivered(transaction, {(row.route, row.lane) for row in rows})
    older = {
        (row.seq, row.route): (last.seq, row.route)
        for row in rows
        if (last := lasts.get((row.route, row.lane))) and last.fetch_began_at is None and row.key < last.key
    }
    if not older:
        return set()
    wanted = set(older.values())
    statement = _untouched(transaction.sql, locked=locked)
    comes_last = too(wanted) | {
        (row.seq, row.route) for row in transaction.execute(statement, wanted=keys_param(sorted(wanted)))
    }
    return {key for key, last in older.items() if last not in comes_last}


@cache
def _untouched(sql: Sql, *, locked: bool) -> TextClause:
    lock = sql.for_update and "FOR UPDATE OF o" if locked else ""
    return text(f"""
SELECT o.seq, o.route
FROM {sql.rows("wanted", seq="bigint", route="text")} JOIN open_delivery o ON o.seq = wanted.seq AND o.route = wanted.route
WHERE o.attempt = 0 AND o.state IN ('received', 'waiting', 'ready')
ORDER BY o.seq, o.route
{lock}
""")


def retry(transaction: Transaction, keys: Sequence[Key], now: datetime, *, who: str, why: str) -> int:
    """Make the next attempts of these due now. One that is due already, or that a relay has claimed meanwhile, stays.

    Each keeps its attempts and its place in its lane: it is the head, and remains it. So no lane has to be settled.

    Returns:
        How many became due.
    """
    rows = transaction.execute(_due_later(transaction.sql), wanted=keys_param(keys), at=time_text(now))
    changed = []
    for row in map(as_open_delivery, rows):
        was_due_at = row.due_at or now
        changed.append(append(row, facts.Rescheduled(due_at=now, was_due_at=was_due_at, who=who, why=why), now))
    write_back(transaction, changed)
    return len(changed)


@cache
def _due_later(sql: Sql) -> TextClause:
    found = "o.seq = wanted.seq AND o.route = wanted.route"
    return text(f"""
SELECT {ROW}
FROM {sql.rows("wanted", seq="bigint", route="text")} JOIN open_delivery o ON {found}
WHERE o.state = 'ready' AND o.due_at > {sql.time(":at")}
ORDER BY o.seq, o.route
{sql.for_update and "FOR UPDATE OF o"}
""")


SAMPLED_OPEN = 5 * MOST_OPEN
"""Open replayed deliveries of a route among which those that can move are counted: each batch reads no more."""


def that_fit(work: Work, act: str, keys: Sequence[Key], *, affected: int) -> tuple[Sequence[Key], str | None]:
    """The first of these for which their routes have room; where there is none, the reason to wait.

    A replay needs room, and a retry after its first `MOST_OPEN`. Only what can move takes it: replayed deliveries for a
    replay, due ones for a retry. Those behind a closed gate or a blocked head may stay for good, and those whose next
    attempt is due later, with those behind them, for days: a command would wait with them, and every other route with it.
    """
    if act != "replay" and (act != "retry" or affected < MOST_OPEN):
        return keys, None
    database, policies = work.database, work.policies
    closed, statement = gates.read_gates(work), (_replayed_open if act == "replay" else _due)(database.sql)
    room, full = len(keys), None
    for route in sorted({route for _, route in keys}):
        if route not in policies or closed.admit(policies[route].gates) != "all":
            continue
        with database.read() as transaction:
            (found,) = transaction.execute(statement, route=route, most=MOST_OPEN, sampled=SAMPLED_OPEN)
        of_route = [place for place, key in enumerate(keys) if key[1] == route]
        fitting = max(MOST_OPEN - int(found.count), 0)
        if fitting < len(of_route) and of_route[fitting] < room:
            room, full = of_route[fitting], route
    if room == len(keys):
        return keys, None
    whole = [key for key in keys[:room] if key[0] != keys[room][0]]  # an event's deliveries stay together
    are = "replayed deliveries are open" if act == "replay" else "deliveries are due"
    return whole, None if whole else f"waits: {MOST_OPEN} {are} on route {full}"


@cache
def _replayed_open(sql: Sql) -> TextClause:
    later = f"state = 'ready' AND {{}}.due_at > (SELECT {sql.now})"
    stands = f"""SELECT 1 FROM open_delivery b WHERE b.route = replayed.route AND b.lane = replayed.lane
        AND (b.state = 'blocked' OR b.{later.format("b")})"""
    return text(f"""
SELECT count(*) AS count FROM (
    SELECT 1 FROM (
        SELECT o.route, o.lane, o.state, o.due_at FROM open_delivery o
        WHERE o.run > 0 AND o.state IN ('received', 'waiting', 'ready', 'in_flight') AND o.route = :route
          AND {gates.NOT_PAUSED}
        LIMIT :sampled) replayed
    WHERE NOT (replayed.{later.format("replayed")}) AND (replayed.state <> 'waiting' OR NOT EXISTS ({stands}))
    LIMIT :most) moving
""")


@cache
def _due(sql: Sql) -> TextClause:
    return text(f"""
SELECT count(*) AS count FROM (
    SELECT 1 FROM open_delivery o WHERE o.state = 'ready' AND o.route = :route AND o.due_at <= (SELECT {sql.now})
    LIMIT :most) due
""")
