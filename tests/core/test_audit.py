"""Folding the facts of a delivery that may contradict themselves."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from hypothesis import given

from relay.delivery import facts
from relay.delivery.audit import Account, Logged, account
from relay.delivery.lifecycle import FoldedState, State, fold
from tests.core.test_lifecycle import histories

NOW = datetime(2026, 1, 10, tzinfo=UTC)
OLD, YOUNG = NOW - timedelta(days=8), NOW - timedelta(days=6)
PRUNED_BEFORE = NOW - timedelta(days=7)
FAILED = facts.AttemptFailed(error_class="server_error", error="503", due_at=NOW)
DELIVERED = facts.DeliveredFact(did="forwarded")


def logged(*history: tuple[facts.AnyFact | None, int], at: datetime = YOUNG) -> Iterable[Logged]:
    for number, (fact, attempt) in enumerate(history, start=1):
        yield Logged(number, "unreadable" if fact is None else facts.kind_of(fact), attempt, fact, lambda: at)


def of(*history: tuple[facts.AnyFact | None, int], at: datetime = YOUNG) -> Account:
    return account(logged(*history, at=at), PRUNED_BEFORE)


@given(histories())
def test_facts_that_the_relay_wrote_never_contradict_themselves(history: list[tuple[facts.AnyFact, int]]) -> None:
    told = of(*history)
    assert told.contradictions == ()
    assert told.folded == fold(fact for fact, _ in history)


def test_a_fact_that_cannot_follow_is_left_out_and_told() -> None:
    told = of((FAILED, 1), (DELIVERED, 2), (DELIVERED, 2))
    assert told.folded.state is State.ENDED
    assert told.contradictions == ("fact 3: delivered can't happen to a delivery that is ended",)


def test_a_missing_attempt_shows_in_what_the_later_ones_count_and_is_told_once() -> None:
    told = of((FAILED, 1), (FAILED, 3), (DELIVERED, 4))
    assert told.contradictions == ("fact 2 (attempt_failed) counts 3 attempts, the facts up to it 2",)


def test_attempts_that_may_have_been_pruned_are_not_missed() -> None:
    assert of((DELIVERED, 4), at=OLD).contradictions == ()
    assert len(of((DELIVERED, 4), at=YOUNG).contradictions) == 1


def test_one_attempt_too_many_is_told_whatever_its_age() -> None:
    assert len(of((FAILED, 1), (FAILED, 1), at=OLD).contradictions) == 1


def test_a_fact_of_another_version_is_told() -> None:
    assert of((None, 0)).contradictions == ("fact 1: no fact of this version is a unreadable like this",)


def test_a_correction_stands_for_all_that_was_before_it() -> None:
    corrected = facts.Corrected(state="open", attempt=2, run=1, who="ann", why="twice delivered")
    told = of((DELIVERED, 1), (DELIVERED, 1), (corrected, 2), (FAILED, 3))
    assert told.contradictions == ()
    assert told.folded == FoldedState(State.RECEIVED, 3, 1, 0, NOW)
    assert told.is_put_right


def test_what_was_delivered_and_what_stands_for_it_are_told() -> None:
    assert of((DELIVERED, 1), (facts.Replayed(who="ann", why="again"), 0)).delivered == DELIVERED
    assert of((facts.Superseded(by=7), 0)).superseded_by == 7
    assert of((facts.Superseded(by=7), 0), (facts.Replayed(who="ann", why="again"), 0)).superseded_by is None
