"""Bugs that the model found, or that its construction revealed: each test is as short as possible."""

from __future__ import annotations

from relay.delivery.outcome import Call, Delivered, Failed
from relay.operations.asks import Selection
from tests.helpers.commanding import carry_out
from tests.helpers.relaying import CONFIG, HOPELESS, FakeClock, Steps
from tests.helpers.storing import an_event

STALE = Failed((Call("fetch", "GET", "https://id/", "answered", 1.0, 200),), "stale", "older than its event")


def test_what_was_replayed_is_no_dead_letter_of_its_cause_any_more(steps: Steps) -> None:
    steps.arrive(an_event(1), an_event(2, "u2"))
    for _ in range(2):
        steps.attempt(HOPELESS)
    carry_out(steps.database, CONFIG, "replay", Selection(seq=1), why="mended")
    assert carry_out(steps.database, CONFIG, "cancel", Selection(cause="mapping"), why="not needed") == 1
    assert [(seq, state) for seq, _, state in steps.states()] == [(1, "ready")]


def test_a_late_success_without_a_fetch_does_not_cover_what_is_newer_than_itself(
    steps: Steps, clock: FakeClock
) -> None:
    """An update is fetched, an older delete comes late, and then an update from between the two, which neither has in it."""
    steps.advance(11)
    steps.arrive(an_event(1, second=10, routes=["latest"]))
    steps.attempt(Delivered((), "updated", fetch_began_at=clock.now()), "latest")
    steps.arrive(an_event(2, second=8, routes=["latest"]))
    assert steps.attempt(Delivered((), "deleted"), "latest").late
    steps.arrive(an_event(3, second=9, routes=["latest"]))
    assert [state for _, _, state in steps.states()] == ["ready"]


def test_one_that_was_put_off_and_not_counted_is_not_due_sooner_because_an_older_one_came(steps: Steps) -> None:
    steps.arrive(an_event(2))
    delivery = steps.claim()
    steps.record([(delivery, STALE)])
    steps.arrive(an_event(1))
    carry_out(steps.database, CONFIG, "cancel", Selection(seq=2), why="it is the older one")
    steps.advance(0.5)
    assert steps.claim_due(1, "strict") == []
    steps.facts_agree()
