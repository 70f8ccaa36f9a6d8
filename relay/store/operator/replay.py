"""Replays, cancels and unblocks deliveries for an operator. Call under the order lock."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import datetime

from inbox.config.model import Config
from relay.delivery import facts
from relay.delivery.lifecycle import TRANSITIONS, OpenDelivery, State, append, step_of
from relay.delivery.policy import Policies
from relay.store.coverage import last_delivered
from relay.store.database import Key, Transaction
from relay.store.lanes import settle_lanes
from relay.store.reopen import find, take_up

GIVEN_UP = frozenset({State.DEAD, State.BLOCKED})
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
    found = find(transaction, config, keys)
    left = set() if too is None else overtaken(transaction, found, too)
    again = [
        append(row, fact, now)
        for row in found
        if row.state in (states or _REPLAYABLE) and (row.seq, row.route) not in left
    ]
    take_up(transaction, found, again, policies, None)
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
    transaction.write_back(changed, None)
    lanes = {(row.route, row.lane) for row in changed}
    transaction.write_back(settle_lanes(transaction, [], policies, now, lanes), None)
    return len(changed)


def overtaken(transaction: Transaction, found: Iterable[OpenDelivery], too: Too) -> set[Key]:
    """Deliveries that would overwrite the last delivered state with an older one.

    What fetches carries the newest whenever it goes; and where the last delivery itself is replayed too, it comes last.
    """
    rows = list(found)
    lasts = last_delivered(transaction, {(row.route, row.lane) for row in rows})
    older = {
        (row.seq, row.route): (last.seq, row.route)
        for row in rows
        if (last := lasts.get((row.route, row.lane))) and last.fetch_began_at is None and row.key < last.key
    }
    comes_last = too(set(older.values())) if older else set()
    return {key for key, last in older.items() if last not in comes_last}
