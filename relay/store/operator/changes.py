"""Replays, retries, cancels and unblocks deliveries for an operator, under the order lock, where their routes have room."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Literal

import msgspec

from relay.delivery import facts
from relay.delivery.lifecycle import TRANSITIONS, OpenDelivery, State, append, step_of
from relay.delivery.policy import Policies
from relay.operations.table import MOST_OPEN
from relay.store import gates
from relay.store.deliveries import Key, deliveries, write_back
from relay.store.operator.selection import GIVEN_UP, Choice, among
from relay.store.reopen import find, keep_payloads, take_up
from relay.store.sequence import last_delivered, settle_lanes
from relay.store.statement import Statement, sql
from relay.store.transaction import Transaction
from relay.store.work import Work


def change(
    transaction: Transaction,
    choice: Choice,
    keys: Sequence[Key],
    now: datetime,
    *,
    who: str,
    why: str,
    policies: Policies,
) -> int:
    """Replay, cancel, unblock or retry these. Returns how many it has happened to.

    One that is in another state by now, as a relay has claimed it or another command has changed it, is left as it is.

    A replayed delivery begins a new run, bypasses deduplication, and gets its place in its lane by its own time: on a
    `latest` route a newer one that waits stands for it. A retried one keeps its attempts and its place in its lane.
    """
    act, first = choice.act, keys[0][0]
    keys = sorted(among(transaction, choice, keys))

    def fact_of(row: OpenDelivery) -> facts.AnyFact:
        if act == "replay":
            return facts.Replayed(who=who, why=why)
        if act == "retry":
            return facts.Rescheduled(due_at=now, was_due_at=row.due_at or now, who=who, why=why)
        return facts.Cancelled(who=who, why=why) if act == "cancel" else facts.Unblocked(who=who, why=why)

    if act == "replay":
        found = replayable(transaction, choice, keys, first=first).again
        again = [append(row, fact_of(row), now) for row in found]
        take_up(transaction, found, again, policies)
        return len(again)
    changed = [
        append(row, fact, now)
        for row in find(transaction, choice.config, keys)
        if row.state is not State.ENDED and step_of(fact := fact_of(row)) in TRANSITIONS[row.state]
    ]
    # Written first, so that what settling reads of these lanes is what is left of them.
    write_back(transaction, changed)
    if act != "retry":
        lanes = {(row.route, row.lane) for row in changed}
        write_back(transaction, settle_lanes(transaction, [], policies, now, lanes))
    return len(changed)


LeftOut = Literal["overtaken", "route_removed", "payload_gone", "unreadable"]
"""The reason why a replay leaves a selected delivery out."""
LEFT_OUT: Mapping[LeftOut, str] = {
    "overtaken": "older than the last delivered state of their lane; --force replays them too",
    "route_removed": "ended on a route that is not configured any more; configure it again to replay them",
    "payload_gone": "have no headers and body any more: retention or erasure deleted them; `relay cancel` ends dead ones",
    "unreadable": "have a row that can't be read; `relay verify` names it",
}


class Replayable(msgspec.Struct, frozen=True):
    """Selected deliveries, as a replay takes them."""

    again: Sequence[OpenDelivery]
    """The ones that it takes up."""
    left_out: dict[Key, LeftOut]


def replayable(
    transaction: Transaction, choice: Choice, keys: Sequence[Key], *, first: int = 0, locked: bool = True
) -> Replayable:
    """Find these deliveries, and the ones among them that are replayed. A plan asks without locks, a replay with them.

    Unless it is forced, one is left out that would put something older in the place of what was delivered last.
    """
    found = find(transaction, choice.config, keys, locked=locked)
    possible = [row for row in found if row.state in GIVEN_UP | {State.ENDED}]
    known = {(row.seq, row.route) for row in found}
    left_out: dict[Key, LeftOut] = {key: "route_removed" for key in keys if key not in known}
    if not choice.selection.force:
        left_out |= dict.fromkeys(_overtaken(transaction, choice, possible, first, locked=locked), "overtaken")
    kept = keep_payloads(transaction, (row.seq for row in possible), locked=locked)
    left_out |= {(row.seq, row.route): "payload_gone" for row in possible if row.seq not in kept}
    return Replayable([row for row in possible if (row.seq, row.route) not in left_out], left_out)


def _overtaken(
    transaction: Transaction, choice: Choice, rows: Sequence[OpenDelivery], first: int, *, locked: bool
) -> set[Key]:
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
    wanted = sorted(set(older.values()))
    if not wanted:
        return set()
    begins = deliveries(
        transaction, wanted, State.RECEIVED, State.WAITING, State.READY, lock="wait" if locked else "none"
    )
    untouched = {(row.seq, row.route) for row in begins if row.attempt == 0}
    comes_last = among(transaction, choice, wanted, first=first) | untouched
    return {key for key, last in older.items() if last not in comes_last}


def reason_to_wait(work: Work, act: str, keys: Sequence[Key], *, affected: int) -> str | None:
    """The reason why a command waits before it changes these, as a route of theirs has no room; None: it goes on.

    A replay or retry needs room after its first `MOST_OPEN`. Only what is due and can move takes it. Behind a closed gate,
    or of a paused entity, it may stay for good: a command would wait with it, and every other route with the command.
    """
    if act not in {"replay", "retry"} or affected < MOST_OPEN:
        return None
    closed = gates.read_gates(work)
    for route in sorted({route for _, route in keys} & work.policies.keys()):
        if closed.admit(work.policies[route].gates) == "all":
            with work.database.read() as transaction:
                due = transaction.execute(_DUE, route=route, most=MOST_OPEN)[0].count
            if due >= MOST_OPEN:
                return f"waits: {MOST_OPEN} deliveries are due on route {route}"
    return None


_DUE = Statement(f"""
SELECT count(*) AS count FROM (
    SELECT 1 FROM open_delivery o
    WHERE o.state = 'ready' AND o.route = :route AND o.due_at <= (SELECT {sql.now}) AND {gates.ENTITY_NOT_PAUSED}
    LIMIT :most) due
""")
