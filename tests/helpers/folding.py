"""A second reading of the log: the state that the facts of a delivery lead to, from what they say and not from its columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, NamedTuple, get_args

import msgspec

from inbox.errors import IllegalTransition
from relay.delivery import facts
from relay.delivery.facts import AnyFact
from relay.delivery.lifecycle import OPEN, TRANSITIONS, Standing, State, step_of
from relay.delivery.outcome import Skipped, Unchanged


def standing_of(row: Any) -> Standing:  # noqa: ANN401  # a result row
    """Return the columns of a row of `delivery_log`."""
    named = row if isinstance(row, Mapping) else row._mapping
    return Standing(State(named["state"]), named["attempt"], named["run"], named["crashes"])


class Folded(NamedTuple):
    """The state of a delivery by its facts; RECEIVED stands for every open state."""

    state: State = State.RECEIVED
    attempt: int = 0
    run: int = 0
    crashes: int = 0
    due_at: datetime | None = None


NOTHING_YET = Folded()


def fold(history: Iterable[tuple[AnyFact, Standing]]) -> Folded:
    """Fold the facts of one delivery, each with what its row says of the state after it; a correction replaces all before it.

    Raises:
        IllegalTransition: no delivery can have this history, or a row says something else than its fact.
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
    targets = {TRANSITIONS[state][step_of(fact)] for state in before if step_of(fact) in TRANSITIONS[state]}
    if not targets:
        raise IllegalTransition(f"{fact} can't happen after {folded}")
    state = targets.pop()
    return Folded(State.RECEIVED if state in OPEN else state, attempt, run, crashes, due_at)


_DECODERS = {kind: msgspec.json.Decoder(fact) for kind, fact in zip(facts.KINDS, get_args(AnyFact), strict=True)}


def decode(kind: str, detail: str) -> AnyFact:
    """The fact of a row of `delivery_log`, from the JSON text of `detail`."""
    fact: AnyFact = _DECODERS[kind].decode(detail)
    return fact
