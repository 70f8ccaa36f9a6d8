"""An independent fold of the log: no delivery is lost, log and work table agree, and lanes have heads."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, NamedTuple, get_args

import msgspec
from sqlalchemy import Engine

from inbox.db.dialect import as_json, as_list
from inbox.errors import IllegalTransition
from inbox.events.timestamps import as_time
from relay.delivery import facts
from relay.delivery.facts import AnyFact
from relay.delivery.lifecycle import HEADS, OPEN, TRANSITIONS, Standing, State, get_step
from relay.delivery.outcome import Skipped, Unchanged
from tests.helpers.tables import Row, rows


def standing_of(row: Any) -> Standing:  # noqa: ANN401  # a result row
    """Return the columns of a row of `delivery_log`."""
    named = row if isinstance(row, Mapping) else row._mapping
    return Standing(State(named["state"]), named["attempt"], named["run"], named["crashes"])


class Folded(NamedTuple):
    """State of a delivery by its facts; RECEIVED stands for every open state."""

    state: State = State.RECEIVED
    attempt: int = 0
    run: int = 0
    crashes: int = 0
    due_at: datetime | None = None


NOTHING_YET = Folded()


def fold(history: Iterable[tuple[AnyFact, Standing]]) -> Folded:
    """Fold the facts of one delivery, each with the state in its row; a correction replaces all facts before it.

    Raises:
        IllegalTransition: the history is impossible, or a row contradicts its fact.
    """
    known, folded = list(history), NOTHING_YET
    corrected = [number for number, (fact, _) in enumerate(known) if isinstance(fact, facts.Corrected)]
    for fact, standing in known[corrected[-1] if corrected else 0 :]:
        folded = _next(folded, fact, standing)
        said = folded._replace(due_at=None)
        if said != (State.RECEIVED if standing.state in OPEN else standing.state, *_counts(standing), None):
            raise IllegalTransition(f"{fact} leads to {folded}, and its row says {standing}")
    return folded


def _counts(standing: Standing) -> tuple[int, int, int]:
    return standing.attempt, standing.run, standing.crashes


def _next(folded: Folded, fact: AnyFact, standing: Standing) -> Folded:
    attempt, run, crashes, due_at = folded.attempt, folded.run, folded.crashes, None
    match fact:
        case facts.Corrected():
            return Folded(State.RECEIVED if standing.state in OPEN else standing.state, *_counts(standing))
        case facts.AttemptFailed():
            attempt, crashes, due_at = attempt + int(fact.counted), 0, fact.due_at
        case facts.TookOver():
            attempt, crashes, due_at = fact.attempt, fact.crashes, fact.due_at
        case facts.Rescheduled():
            due_at = fact.due_at
        case facts.Abandoned():
            attempt, crashes = attempt + 1, crashes + 1
        case facts.Replayed() | facts.Rearmed():
            attempt, run, crashes = 0, run + 1, 0
        case facts.DeliveredFact() | Unchanged() | Skipped() | facts.Dead(counted=True):
            attempt += 1
        case _:
            pass
    begins = folded == NOTHING_YET and isinstance(fact, facts.Replayed | facts.Rearmed)
    before = {State.ENDED} if begins else OPEN if folded.state is State.RECEIVED else {folded.state}
    targets = {TRANSITIONS[state][get_step(fact)] for state in before if get_step(fact) in TRANSITIONS[state]}
    if not targets:
        raise IllegalTransition(f"{fact} can't happen after {folded}")
    state = targets.pop()
    return Folded(State.RECEIVED if state in OPEN else state, attempt, run, crashes, due_at)


_DECODERS = {kind: msgspec.json.Decoder(fact) for kind, fact in zip(facts.KINDS, get_args(AnyFact), strict=True)}


def decode(kind: str, detail: str) -> AnyFact:
    """Return the fact of a row of `delivery_log`, from the JSON text of `detail`."""
    fact: AnyFact = _DECODERS[kind].decode(detail)
    return fact


Key = tuple[int, str]
"""seq and route."""


def facts_agree(engine: Engine) -> None:
    """Compare the log with the work table.

    Raises:
        AssertionError: lists every disagreement.
    """
    found = list(
        disagreements(
            list_enrolled(rows(engine, "SELECT seq, routes FROM inbox")),
            rows(engine, "SELECT seq, route, kind, state, attempt, run, crashes, detail FROM delivery_log ORDER BY id"),
            rows(engine, "SELECT * FROM open_delivery"),
        )
    )
    assert not found, found


def list_enrolled(events: Iterable[Row]) -> set[Key]:
    """Return the deliveries of these events."""
    return {(event["seq"], route) for event in events for route in as_list(event["routes"])}


def disagreements(arrived: set[Key], facts: Iterable[Row], open_rows: Iterable[Row]) -> Iterator[str]:
    """Yield every disagreement between the arrived deliveries, `delivery_log` ordered by id, and `open_delivery`."""
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
    """Return whether a row agrees with the folded facts of its delivery, and is due no earlier."""
    used = attempt - int(state is State.IN_FLIGHT)  # the running attempt has no fact yet
    said = (state if state in {State.BLOCKED, State.DEAD} else State.RECEIVED, used, run, crashes)
    early = due_at is not None and standing.due_at is not None and due_at < standing.due_at
    return said == (standing.state, standing.attempt, standing.run, standing.crashes) and not early


def lanes_without_their_head(
    rows: Iterable[tuple[tuple[str, str], State]],
) -> Iterator[tuple[tuple[str, str], int, int]]:
    """Yield each lane that has several heads, or waiting deliveries without one, with both counts."""
    lanes: dict[tuple[str, str], list[State]] = defaultdict(list)
    for lane, state in rows:
        lanes[lane].append(state)
    for lane, states in lanes.items():
        heads, waiting = sum(state in HEADS for state in states), states.count(State.WAITING)
        if heads > 1 or (waiting and not heads):
            yield lane, heads, waiting
