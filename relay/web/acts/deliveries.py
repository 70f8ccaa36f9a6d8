"""Plans of acts on deliveries: replay, retry, cancel and unblock."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import cast

import msgspec
from sqlalchemy import text

from inbox.errors import BadFilter
from inbox.events.timestamps import rfc3339
from relay.operations.asks import Selection
from relay.store import gates
from relay.store.operator.execution import unknown_name
from relay.store.operator.plan import LEFT_OUT, BoundedPlan, Plan, bounded
from relay.store.operator.room import MOST_OPEN
from relay.store.operator.selection import GIVEN_UP, Act, Choice
from relay.web.acts.forms import Given
from relay.web.acts.plan import ActPlan, frozen, sealed
from relay.web.reading import Reading

MOST_COUNTED = 10_000
"""Deliveries that a plan examines."""
LONGEST_SECONDS = 1.0
"""Time after which a plan ends with what it has examined."""
LISTED = 10

_CONSEQUENCES: Mapping[Act, tuple[str, ...]] = {
    "replay": (
        "Each goes back to its place in its lane, by the time of its event. Later events of the lane that are open wait for it.",
        "Where the route's ordering is latest, a newer event that waits is delivered in its place.",
        f"At most {MOST_OPEN:,} replayed deliveries of a route are open at a time, so new events need not wait behind them.",
    ),
    "retry": (
        "The next attempt of each is due at once. Each keeps its attempts and its place in its lane.",
        "Pauses, circuit breakers and rate limits hold as always.",
    ),
    "cancel": (
        "They end for good, and their events never reach the destination unless somebody replays them.",
        "Later events of their lanes go on. Deliveries in flight are left as they are.",
    ),
    "unblock": (
        "Later events of each lane pass its dead delivery, and may reach the destination before it.",
        "The dead delivery stays dead and can be replayed.",
    ),
}
_NEWEST_FACT = text("SELECT coalesce(max(id), 0) AS id FROM delivery_log")
_FORCED = "With force, a replay overwrites the last delivered state with an older one."
_BACKFILL = "A backfill delivers again what was delivered, and what the route would take now and never took."


def plan(reading: Reading, kind: str, given: Given) -> ActPlan:
    """Plan an act on deliveries, of at most `MOST_COUNTED` of them.

    Raises:
        BadFilter: the selection makes no sense.
    """
    act = cast("Act", kind)
    with reading.database.read() as transaction:
        now, newest = transaction.now(), transaction.execute(_NEWEST_FACT)[0].id
    needs_everything = given.asked.is_empty
    as_of = now if given.as_of is None else min(given.as_of, now)
    chosen = frozen(given.asked, as_of, everything=needs_everything)
    choice = Choice(act, chosen, reading.config)
    mistake = choice.mistake or unknown_name(reading.database, choice)
    if mistake is not None:
        raise BadFilter(mistake)
    end = time.monotonic() + LONGEST_SECONDS
    found = bounded(reading.database, choice, listed=LISTED, most=MOST_COUNTED, is_late=lambda: time.monotonic() > end)
    planned = found.plan
    made = ActPlan(
        kind=kind,
        selection=msgspec.to_builtins(chosen),
        count=planned.count,
        is_whole=found.is_whole,
        groups=planned.groups,
        deliveries=planned.deliveries,
        left_out={LEFT_OUT[why]: number for why, number in planned.left_out.items()},
        consequences=(*_consequences(act, chosen), *_held_back(reading, planned)),
        obstacle=None if planned.count or not found.is_whole else "no delivery matches: there is nothing to do",
        needs_everything=needs_everything,
        as_of=rfc3339(as_of),
    )
    routes = sorted({group.route for group in planned.groups}) if found.is_whole else []
    if act != "replay":
        return sealed(made, routes)
    # Not a part of what is compared, as new facts about other deliveries change nothing.
    bound = {**made.selection, "until_fact": newest}
    return msgspec.structs.replace(sealed(made, routes, numbers=_limits(found)), selection=bound)


def _limits(found: BoundedPlan) -> Mapping[str, int]:
    """Return the numbers of a replay that may not grow: by state, and the time of the newest end.

    So it takes up nothing that has ended since, as by a cancel, or that another replay has delivered again. Other acts are
    about open deliveries, which go from state to state by themselves: of those the count is enough.
    """
    limits: Counter[str] = Counter()
    for group in found.plan.groups:
        limits["given_up" if group.state in GIVEN_UP else group.state] += group.count
    if found.newest_end_at is not None:
        limits["newest_end"] = int(found.newest_end_at.timestamp() * 1_000_000)
    return limits


def _consequences(act: Act, chosen: Selection) -> Iterator[str]:
    yield from _CONSEQUENCES[act]
    if chosen.force:
        yield _FORCED
    if chosen.backfill:
        yield _BACKFILL


def _held_back(reading: Reading, planned: Plan) -> Iterator[str]:
    """Name the gates that hold these deliveries back whatever the act does."""
    routes = {group.route for group in planned.groups}
    passed = {key for route in routes if route in reading.policies for key in reading.policies[route].gates}
    for row in gates.held_back(reading.database):
        if (row["kind"], row["name"]) in passed:
            held = "paused" if row["paused_at"] is not None else "held back"
            yield f"The {row['kind']} {row['name']} is {held}: nothing of it is delivered until that ends."
