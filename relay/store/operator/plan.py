"""Plans: the deliveries that a command would change if it were given now, also as dry runs. Changes nothing, and locks nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple

import msgspec

from inbox.db.dialect import as_json, blames_items
from inbox.db.reads import Row
from inbox.events.timestamps import as_time
from relay.store.bulkhead import in_parts
from relay.store.database import Database
from relay.store.operator import selected
from relay.store.operator.commands import BatchResult
from relay.store.operator.replay import LeftOut, replayable
from relay.store.operator.selection import Act, Choice, keys_of
from relay.store.transaction import Key, key_text

_PAGE = 200
_LARGE_PAGE = 500


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


LEFT_OUT: Mapping[LeftOut, str] = {
    "overtaken": "older than the last delivered state of their lane; --force replays them too",
    "route_removed": "ended on a route that is not configured any more; configure it again to replay them",
    "payload_gone": "have no headers and body any more: retention or erasure deleted them; `relay cancel` ends dead ones",
    "unreadable": "have a fact that can't be read; `relay verify` names it",
}
"""The sentence about deliveries that a command leaves as they are."""


def preview(database: Database, choice: Choice, most: int, *, seen: Callable[[int], None] = lambda _: None) -> Plan:
    """Make the plan of a command, with at most so many of its deliveries.

    Args:
        database: the database.
        choice: the act, and what it is about.
        most: the number of deliveries to list.
        seen: hears how many deliveries have been examined, where that takes long.
    """
    if choice.act != "replay":
        try:
            return _counted(database, choice, most)
        except Exception as error:  # one row can't be read: the others are counted without it
            if not blames_items(error):
                raise
    planned, examined = Plan(0), 0
    for page in _pages(database, choice, _PAGE):
        planned = merged(planned, examine(database, choice, page), most)
        examined += len(page.rows)
        seen(examined)
    return planned


class BoundedPlan(msgspec.Struct, frozen=True):
    """A plan that was made of the first selected deliveries."""

    plan: Plan
    is_whole: bool
    """False: there are more than were examined."""


def bounded(database: Database, choice: Choice, *, listed: int, most: int, is_late: Callable[[], bool]) -> BoundedPlan:
    """Make the plan of a command of its first deliveries, however many are selected.

    Args:
        database: the database.
        choice: the act, and what it is about.
        listed: the number of deliveries to list.
        most: the number of deliveries after which it ends.
        is_late: true when it shall end soon, with the present page or a part of it.
    """
    planned, examined = Plan(0), 0
    for page in _pages(database, choice, _LARGE_PAGE, is_late):
        part = examine(database, choice, page, is_late)
        planned = merged(planned, part, listed)
        examined += len(page.rows)
        is_cut = part.count + sum(part.left_out.values()) < len(page.rows)
        if is_cut or (page.upto is not None and (examined >= most or is_late())):
            return BoundedPlan(planned, is_whole=False)
    return BoundedPlan(planned, is_whole=True)


def _counted(database: Database, choice: Choice, most: int) -> Plan:
    """Have the database count the deliveries. Each that is selected is changed."""
    rows = next((page.rows for page in _pages(database, choice, most) if page.rows), ())
    with database.read() as transaction:
        groups = [
            Group(row.route, row.state, row.cause, int(row.count), _time(row.first_due_at), _time(row.last_due_at))
            for row in selected.groups(transaction, choice)
        ]
    return Plan(sum(group.count for group in groups), tuple(groups), tuple(rows[:most]))


def examine(
    database: Database, choice: Choice, page: selected.SelectedPage, is_late: Callable[[], bool] = lambda: False
) -> Plan:
    """Make the plan of a page. Each delivery is examined as the command itself will.

    When `is_late`, it leaves the rest out: each that can't be read costs some transactions.
    """
    left: dict[Key, LeftOut] = dict.fromkeys(page.unreadable, "unreadable")
    seen = {key for key in keys_of(page.rows) if key not in left}
    if choice.act == "replay":
        parts, seen = _left_out(database, choice, sorted(seen)), set()
        for part in parts:
            seen.update(part.keys)
            left |= part.left_out
            if is_late():
                break
    kept = seen - left.keys()
    taken = [row for row in page.rows if (row["seq"], row["route"]) in kept]
    groups = (Group(row["route"], row["state"], row["cause"], 1, *[_time(row.get("due_at"))] * 2) for row in taken)
    return merged(Plan(0, (), tuple(taken), dict(Counter(left.values()))), Plan(len(taken), tuple(groups)), len(taken))


def merged(plan: Plan, more: Plan, most: int) -> Plan:
    """Add one plan to another, with at most so many deliveries."""
    groups: dict[tuple[str, str, str | None], Group] = {}
    for group in (*plan.groups, *more.groups):
        key = (group.route, group.state, group.cause)
        groups[key] = _together(groups[key], group) if key in groups else group
    return Plan(
        plan.count + more.count,
        tuple(sorted(groups.values(), key=_largest_first)),
        (*plan.deliveries, *more.deliveries)[:most],
        dict(Counter(plan.left_out) + Counter(more.left_out)),
    )


def _together(one: Group, other: Group) -> Group:
    first = [group.first_due_at for group in (one, other) if group.first_due_at is not None]
    last = [group.last_due_at for group in (one, other) if group.last_due_at is not None]
    return msgspec.structs.replace(
        one, count=one.count + other.count, first_due_at=min(first, default=None), last_due_at=max(last, default=None)
    )


def _pages(
    database: Database, choice: Choice, most: int, is_late: Callable[[], bool] = lambda: False
) -> Iterator[selected.SelectedPage]:
    after: int | None = 0
    while after is not None:
        page = selected.page(database, choice, after=after, most=most, is_late=is_late)
        yield page
        after = page.upto


class _Part(NamedTuple):
    keys: Collection[Key]
    left_out: dict[Key, LeftOut]


def _left_out(database: Database, choice: Choice, keys: Sequence[Key]) -> Iterator[_Part]:
    states = choice.states

    def part(some: Sequence[Key]) -> _Part:
        with database.read() as transaction:
            too = None if choice.selection.force else partial(selected.among, transaction, choice)
            found = replayable(transaction, choice.config, some, too=too, states=states, locked=False)
        return _Part(some, found.left_out)

    def alone(key: Key, _error: Exception) -> _Part:
        return _Part([key], {key: "unreadable"})

    return in_parts(database, "commands", keys, part=part, alone=alone, name=key_text)


def _largest_first(group: Group) -> tuple[int, str, str, str]:
    return -group.count, group.route, group.state, group.cause or ""


def _time(value: datetime | str | None) -> datetime | None:
    return None if value is None else as_time(value)


SAMPLE = 10
"""Deliveries that the row lists; `relay_command.matched` counts all."""
DRY_RUN_PAGE = 200

_WORDS: dict[Act, str] = {"replay": "replayed", "retry": "retried", "cancel": "cancelled", "unblock": "unblocked"}


def dry_run_step(database: Database, choice: Choice, command: Any) -> BatchResult:  # noqa: ANN401  # a result row
    """Examine the next page of the selected deliveries. It changes none, and never takes longer than a page takes."""
    page = selected.page(database, choice, after=command.progress_seq or 0, most=DRY_RUN_PAGE)
    so_far = merged(_noted(command), examine(database, choice, page), SAMPLE)
    is_done = page.upto is None
    return BatchResult(
        "done" if is_done else "running",
        progress=command.progress_seq if is_done else page.upto,
        answer=_answer_of_dry_run(choice.act, so_far) if is_done else "counting",
        matched=so_far.count,
        sample={
            "groups": [msgspec.structs.asdict(group) for group in so_far.groups],
            "left_out": so_far.left_out,
            "deliveries": so_far.deliveries,
        },
    )


def _noted(command: Any) -> Plan:  # noqa: ANN401  # a result row
    if command.sample is None:
        return Plan(0)
    return msgspec.convert({"count": command.matched, **as_json(command.sample)}, Plan)


def _answer_of_dry_run(act: Act, planned: Plan) -> str:
    word = "delivery" if planned.count == 1 else "deliveries"
    said = [f"dry run: {planned.count} {word} would be {_WORDS[act]}"]
    said += [f"{number} left out: {LEFT_OUT[why]}" for why, number in planned.left_out.items()]
    return "; ".join(said)
