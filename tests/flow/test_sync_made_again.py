"""An entity that is deleted and made again with the same id, whichever of its webhooks comes first: both sides agree."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from sqlalchemy import Engine

from tests.destinations.syncing import CREATE, FETCH, FIND, FOUND, NONE, REMOVE, UPDATE
from tests.helpers.evidence import facts
from tests.helpers.in_step import Flow, SyncSteps, in_seconds, user
from tests.helpers.kinds import ON_SQLITE
from tests.helpers.scripted import answer

pytestmark = ON_SQLITE
"""SQLite alone: answers of either side don't depend on the database, and other tests run the steps on both."""


@pytest.fixture
def steps(sync_steps: SyncSteps) -> SyncSteps:
    return sync_steps


def goes_on(flow: Flow, steps: SyncSteps) -> None:
    """A later event of the same entity is delivered."""
    flow.script(fetch=user("Grace"), find=FOUND)
    steps.later()
    steps.tell()
    assert flow.asked[-3:] == [FETCH, FIND, UPDATE]
    assert flow.sent()[-1]["name"] == "Grace"
    assert steps.left() == {}


def written(flow: Flow) -> list[str]:
    return [call for call in flow.asked if not call.startswith("GET ")]


def test_a_delete_that_comes_in_time_deletes_and_the_create_creates(flow: Flow, steps: SyncSteps) -> None:
    flow.script(fetch=answer(404))
    steps.tell("DELETE")
    steps.advance(2)
    flow.script(fetch=user("Ada", in_seconds(steps.clock.moment)), find=NONE)
    steps.tell("CREATE")
    assert written(flow) == [REMOVE, CREATE]
    goes_on(flow, steps)


def test_a_delete_that_is_delivered_when_it_is_there_again_keeps_it_in_step(flow: Flow, steps: SyncSteps) -> None:
    """Its webhook was slow; the one of the create is slower still."""
    deleted_at = steps.clock.moment
    steps.advance(2)
    flow.script(fetch=user("Ada", in_seconds(deleted_at + timedelta(seconds=1))))
    steps.tell("DELETE", at=deleted_at)
    assert written(flow) == [UPDATE]
    steps.tell("CREATE", at=deleted_at + timedelta(seconds=1))
    assert set(written(flow)) == {UPDATE}
    goes_on(flow, steps)


@pytest.mark.parametrize("says_when", [True, False], ids=["with its last change", "without"])
def test_a_delete_that_comes_after_the_create_was_delivered_deletes_nothing(
    flow: Flow, steps: SyncSteps, engine: Engine, says_when: bool
) -> None:
    """Covers a delete that the state fetched for the create includes: by its own time, or as fetched long after."""
    deleted_at = steps.clock.moment
    steps.advance(5 if says_when else 90)
    created_at = deleted_at + timedelta(seconds=3)
    flow.script(fetch=user("Ada", in_seconds(created_at) if says_when else None), find=NONE)
    steps.tell("CREATE", at=created_at)
    steps.tell("DELETE", at=deleted_at)
    assert written(flow) == [CREATE]
    assert [fact["detail"] for fact in facts(engine) if fact["kind"] == "superseded"] == [
        {"by": 1, "because": "covered"}
    ]
    goes_on(flow, steps)


# --- all in one second, by times without a fraction


def second_of(steps: SyncSteps) -> datetime:
    return steps.clock.moment.replace(microsecond=0)


@pytest.mark.parametrize("order", [("DELETE", "CREATE"), ("CREATE", "DELETE")])
@pytest.mark.parametrize("fraction", ["", ".900"], ids=["the same time", "a time with a fraction"])
@pytest.mark.parametrize("at_once", [True, False], ids=["both at once", "one after the other"])
def test_a_delete_and_a_create_in_one_second_end_with_what_is_there(
    flow: Flow, steps: SyncSteps, order: tuple[str, str], fraction: str, at_once: bool
) -> None:
    at = second_of(steps)
    steps.advance(2)
    flow.script(fetch=user("Ada", in_seconds(at).replace("Z", f"{fraction}Z")))
    for event_type in order:
        flow.tell(at, event_type)
        if not at_once:
            steps.until_nothing_is_due()
    for _ in range(4):
        steps.later()
    assert set(written(flow)) == {UPDATE}, "it is there, so its counterpart is kept"
    assert flow.sent()[-1]["name"] == "Ada"
    assert steps.left() == {}
    goes_on(flow, steps)


def test_a_change_and_the_delete_in_one_second_end_with_nothing_though_a_replica_is_behind(
    flow: Flow, steps: SyncSteps
) -> None:
    at = second_of(steps)
    steps.advance(2)
    flow.script(fetch=[user("Ada", in_seconds(at)), user("Ada", in_seconds(at)), answer(404)])
    flow.tell(at)
    flow.tell(at, "DELETE")
    steps.until_nothing_is_due()
    for _ in range(4):
        steps.later()
    assert written(flow)[-1:] == [REMOVE]
    assert steps.left() == {}
    goes_on(flow, steps)
