"""Names that a filter may give though the configuration lacks them: the database has rows of them."""

from __future__ import annotations

from sqlalchemy import Engine

from inbox.db.reads import has
from tests.helpers.relaying import DONE, Steps
from tests.helpers.storing import an_event


def test_a_route_is_known_while_something_of_it_is_open_and_after_it_was_delivered(
    engine: Engine, steps: Steps
) -> None:
    assert not has(engine, "route", "strict")
    steps.receive(an_event(1))
    assert has(engine, "route", "strict")
    steps.arrive()
    steps.attempt(DONE)
    assert steps.states() == []
    assert has(engine, "route", "strict")
    assert not has(engine, "route", "latest")


def test_a_source_is_known_by_its_events(engine: Engine, steps: Steps) -> None:
    steps.receive(an_event(1))
    assert has(engine, "source", "trivore")
    assert not has(engine, "source", "trivor")
    assert not has(engine, "rejected_source", "trivore")
