"""Plans: the deliveries that a command would change if it were given now. Changes nothing, and locks nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from functools import partial

import msgspec

from inbox.db.reads import Row
from inbox.events.timestamps import as_time
from relay.store.bulkhead import in_parts
from relay.store.database import Database, Key, key_text
from relay.store.operator import execution, selected
from relay.store.operator.replay import GIVEN_UP, LeftOut, replayable
from relay.store.operator.selection import Choice, keys_of


class Group(msgspec.Struct, frozen=True):
    """The deliveries of a plan that have the same route, state and cause."""

    route: str
    state: str
    cause: str | None
    count: int
    first_due_at: datetime | None = None
    """For attempts that wait: the first that is due."""
    last_due_at: datetime | None = None


class Plan(msgspec.Struct, frozen=True):
    """The deliveries that a command would change."""

    count: int
    groups: tuple[Group, ...] = ()
    """The largest first."""
    deliveries: tuple[Row, ...] = ()
    """The first of them, in the order of arrival."""
    left_out: dict[LeftOut, int] = {}
    """Selected deliveries that the command leaves as they are, by the reason."""


def preview(database: Database, choice: Choice, most: int, *, seen: Callable[[int], None] = lambda _: None) -> Plan:
    """Make the plan of a command, with at most so many of its deliveries.

    Args:
        database: the database.
        choice: the act, and what it is about.
        most: the number of deliveries to list.
        seen: hears how many deliveries have been examined, where that takes long.
    """
    if choice.act == "replay":
        return _plan_of_replay(database, choice, most, seen)
    rows = next((page.rows for page in _pages(database, choice, most) if page.rows), ())
    with database.read() as transaction:
        groups = [
            Group(row.route, row.state, row.cause, int(row.count), _time(row.first_due_at), _time(row.last_due_at))
            for row in selected.groups(transaction, choice)
        ]
    return Plan(sum(group.count for group in groups), tuple(groups), tuple(rows[:most]))


def _plan_of_replay(database: Database, choice: Choice, most: int, seen: Callable[[int], None]) -> Plan:
    """Examine each selected delivery as the replay itself will."""
    counts: Counter[tuple[str, str, str | None]] = Counter()
    left_out: Counter[LeftOut] = Counter()
    listed: list[Row] = []
    examined = 0
    for page in _pages(database, choice, execution.BATCH):
        rows = page.rows
        unreadable: dict[Key, LeftOut] = dict.fromkeys(page.unreadable, "unreadable")
        left = unreadable | _left_out(database, choice, [key for key in keys_of(rows) if key not in unreadable])
        taken = [row for row in rows if (row["seq"], row["route"]) not in left]
        counts.update((row["route"], row["state"], row["cause"]) for row in taken)
        left_out.update(left.values())
        listed += taken[: most - len(listed)]
        examined += len(rows)
        seen(examined)
    groups = sorted((Group(*key, number) for key, number in counts.items()), key=_largest_first)
    return Plan(counts.total(), tuple(groups), tuple(listed), dict(left_out))


def _pages(database: Database, choice: Choice, most: int) -> Iterator[selected.SelectedPage]:
    after: int | None = 0
    while after is not None:
        page = selected.page(database, choice, after=after, most=most)
        yield page
        after = page.upto


def _left_out(database: Database, choice: Choice, keys: Sequence[Key]) -> dict[Key, LeftOut]:
    states = GIVEN_UP if choice.is_about_dead else None

    def part(some: Sequence[Key]) -> dict[Key, LeftOut]:
        with database.read() as transaction:
            too = None if choice.selection.force else partial(selected.among, transaction, choice)
            return replayable(transaction, choice.config, some, too=too, states=states, locked=False).left_out

    def alone(key: Key, _error: Exception) -> dict[Key, LeftOut]:
        return {key: "unreadable"}

    parts = in_parts(database, "commands", keys, part=part, alone=alone, name=key_text)
    return {key: why for left in parts for key, why in left.items()}


def _largest_first(group: Group) -> tuple[int, str, str, str]:
    return -group.count, group.route, group.state, group.cause or ""


def _time(value: datetime | str | None) -> datetime | None:
    return None if value is None else as_time(value)
