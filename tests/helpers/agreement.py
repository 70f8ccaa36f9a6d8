"""Invariants whenever nothing is half done: no delivery is lost, the log and the work table agree, lanes have heads."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

from sqlalchemy import Engine

from inbox.db.dialect import as_json, as_list
from inbox.errors import IllegalTransition
from inbox.events.timestamps import as_time
from relay.delivery.facts import AnyFact, decode
from relay.delivery.lifecycle import HEADS, State, fold
from tests.helpers.reading import Row, rows

Key = tuple[int, str]
"""seq and route."""


def facts_agree(engine: Engine) -> None:
    """Read all and compare.

    Raises:
        AssertionError: with everything that is wrong.
    """
    found = list(
        disagreements(
            enrolled(rows(engine, "SELECT seq, routes FROM inbox")),
            rows(engine, "SELECT seq, route, kind, detail FROM delivery_log ORDER BY id"),
            rows(engine, "SELECT * FROM open_delivery"),
        )
    )
    assert not found, found


def enrolled(events: Iterable[Row]) -> set[Key]:
    """The deliveries that arrived with these events."""
    return {(event["seq"], route) for event in events for route in as_list(event["routes"])}


def disagreements(arrived: set[Key], facts: Iterable[Row], open_rows: Iterable[Row]) -> Iterator[str]:
    """Everything that is wrong, given what has arrived, `delivery_log` by id, and `open_delivery`."""
    history: dict[Key, list[AnyFact]] = defaultdict(list, {key: [] for key in arrived})
    for row in facts:
        history[row["seq"], row["route"]].append(decode(row["kind"], as_json(row["detail"])))
    present = {(row["seq"], row["route"]): row for row in open_rows}
    for key in sorted(history.keys() | present.keys()):
        yield from _disagrees(key, history[key], present.get(key))
    yield from _lanes_without_their_head(present)


def _disagrees(key: Key, history: list[AnyFact], row: Row | None) -> Iterator[str]:
    try:
        standing = fold(history)
    except IllegalTransition as error:
        yield f"no delivery can have the facts of {key}: {error}"
        return
    if row is None:
        if standing.state is not State.ENDED:
            yield f"{key} is lost"
        return
    state = State(row["state"])
    said = (
        state if state in {State.BLOCKED, State.DEAD} else State.RECEIVED,
        row["attempt"] - int(state is State.IN_FLIGHT),  # the attempt that runs is no fact yet
        row["run"],
        row["crashes"],
    )
    if said != (standing.state, standing.attempt, standing.run, standing.crashes):
        yield f"the facts of {key} say {standing}, its row {said}"
    if state is State.READY and standing.due_at is not None and as_time(row["due_at"]) < standing.due_at:
        yield f"{key} is due at {row['due_at']}, by its facts not before {standing.due_at}"


def _lanes_without_their_head(present: Mapping[Key, Row]) -> Iterator[str]:
    lanes: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in present.values():
        lanes[row["route"], row["lane"]].append(row["state"])
    for lane, states in lanes.items():
        heads = sum(state in HEADS for state in states)
        if heads > 1 or (heads == 0 and State.WAITING in states):
            yield f"the lane {lane} has {heads} heads and {states.count(State.WAITING)} that wait"
