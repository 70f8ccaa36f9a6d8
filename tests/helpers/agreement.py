"""Invariants whenever nothing is half done: no delivery is lost, the log and the work table agree, lanes have heads."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from datetime import datetime

from sqlalchemy import Engine
from tests.helpers.tables import Row, rows

from inbox.db.dialect import as_json, as_list
from inbox.errors import IllegalTransition
from inbox.events.timestamps import as_time
from relay.delivery.facts import AnyFact
from relay.delivery.lifecycle import HEADS, Standing, State
from tests.helpers.agreement import Folded, decode, fold, standing_of

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
            rows(engine, "SELECT seq, route, kind, state, attempt, run, crashes, detail FROM delivery_log ORDER BY id"),
            rows(engine, "SELECT * FROM open_delivery"),
        )
    )
    assert not found, found


def enrolled(events: Iterable[Row]) -> set[Key]:
    """The deliveries that arrived with these events."""
    return {(event["seq"], route) for event in events for route in as_list(event["routes"])}


def disagreements(arrived: set[Key], facts: Iterable[Row], open_rows: Iterable[Row]) -> Iterator[str]:
    """Everything that is wrong, given what has arrived, `delivery_log` by id, and `open_delivery`."""
    history: dict[Key, list[tuple[AnyFact, Standing]]] = defaultdict(list, {key: [] for key in arrived})
    for row in facts:
        fact = decode(row["kind"], json.dumps(as_json(row["detail"])))
        history[row["seq"], row["route"]].append((fact, standing_of(row)))
    present = {(row["seq"], row["route"]): row for row in open_rows}
    for key in sorted(history.keys() | present.keys()):
        yield from _disagrees(key, history[key], present.get(key))
    states = (((row["route"], row["lane"]), State(row["state"])) for row in present.values())
    for lane, heads, waiting in lanes_without_their_head(states):
        yield f"the lane {lane} has {heads} heads and {waiting} that wait"


def _disagrees(key: Key, history: list[tuple[AnyFact, Standing]], row: Row | None) -> Iterator[str]:
    try:
        standing = fold(history)
    except IllegalTransition as error:
        yield f"no delivery can have the facts of {key}: {error}"
        return
    if row is None:
        if standing.state is not State.ENDED:
            yield f"{key} is lost"
        return
    state, due_at = State(row["state"]), as_time(row["due_at"]) if row["due_at"] is not None else None
    if not follows(standing, state, attempt=row["attempt"], run=row["run"], crashes=row["crashes"], due_at=due_at):
        yield f"the facts of {key} say {standing}, its row {dict(row)}"


def follows(standing: Folded, state: State, *, attempt: int, run: int, crashes: int, due_at: datetime | None) -> bool:
    """Tell whether a row says what the facts of its delivery fold to, and is due no earlier."""
    used = attempt - int(state is State.IN_FLIGHT)  # the attempt that runs is no fact yet
    said = (state if state in {State.BLOCKED, State.DEAD} else State.RECEIVED, used, run, crashes)
    early = due_at is not None and standing.due_at is not None and due_at < standing.due_at
    return said == (standing.state, standing.attempt, standing.run, standing.crashes) and not early


def lanes_without_their_head(
    rows: Iterable[tuple[tuple[str, str], State]],
) -> Iterator[tuple[tuple[str, str], int, int]]:
    """Yield each lane with more than one head, or with some that wait and none: its heads, and how many wait."""
    lanes: dict[tuple[str, str], list[State]] = defaultdict(list)
    for lane, state in rows:
        lanes[lane].append(state)
    for lane, states in lanes.items():
        heads, waiting = sum(state in HEADS for state in states), states.count(State.WAITING)
        if heads > 1 or (waiting and not heads):
            yield lane, heads, waiting
