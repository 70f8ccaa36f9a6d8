"""A sync route from the webhook on: odd answers of either service, entities made again, and a lane that goes on afterwards.

docs/reference/sync.md lists the results, docs/reference/delivery.md the times of retries. The steps are the relay's own, on a
clock that stands; both services answer over sockets.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine

from inbox.clock import SystemClock
from relay.operations.asks import Selection
from tests.destinations.calling import CREATE, FETCH, FIND, FOUND, NONE, OWN_BODY, REMOVE, UPDATE, replace_in_sync
from tests.helpers.daemon import BEHIND, ROUTE, Flow, SyncSteps, format_seconds, kinds, relaying, user
from tests.helpers.databases import ON_BOTH
from tests.helpers.relaying import carry_out
from tests.helpers.scripted import answer
from tests.helpers.tables import count, facts, open_states
from tests.helpers.waiting import until
from tests.store.conftest import differences, mend

TOLERANT = replace_in_sync('path = "/user/{event.entity_id}" }', 'path = "/user/{event.entity_id}", tolerance = "2s" }')
FUTURE = "2126-01-01T00:00:00Z"


@pytest.fixture
def steps(sync_steps: SyncSteps) -> SyncSteps:
    return sync_steps


def go_on(flow: Flow, steps: SyncSteps) -> None:
    """Both services are well again; a later event of the same entity is delivered, and nothing is left."""
    flow.script(fetch=user("Grace"), find=FOUND, update=answer())
    steps.later()
    before = len(flow.server.seen)
    steps.tell()
    assert flow.asked[before:] == [FETCH, FIND, UPDATE]
    assert flow.sent()[-1]["name"] == "Grace"
    assert steps.left() == {}


def details(steps: SyncSteps, kind: str) -> list[dict[str, Any]]:
    return [fact["detail"] for fact in facts(steps.database.engine) if fact["kind"] == kind]


def written(flow: Flow) -> list[str]:
    return [call for call in flow.asked if not call.startswith("GET ")]


def test_an_update_of_an_entity_not_found_waits_for_a_late_replica_then_deletes(flow: Flow, steps: SyncSteps) -> None:
    flow.script(fetch=[answer(404), user("Ada"), answer(404)])
    steps.tell()
    assert flow.asked == [FETCH], "nothing is deleted on the word of one 404"
    (failed,) = details(steps, "attempt_failed")
    assert (failed["error_class"], failed.get("counted", True)) == ("not_found", True)
    steps.later()
    assert flow.asked[1:] == [FETCH, FIND, UPDATE]
    steps.tell()
    steps.later(BEHIND.total_seconds() + 120)  # no replica is so far behind its arrival
    assert flow.asked[4:] == [FETCH, FETCH, FIND, REMOVE]
    assert details(steps, "delivered")[-1]["did"] == "deleted"
    assert steps.left() == {}


@pytest.mark.parametrize("sync", [TOLERANT])
def test_a_last_change_in_the_future_is_applied_and_covers_no_later_event(flow: Flow, steps: SyncSteps) -> None:
    """Else everything that happens to the entity for a hundred years would be taken for known already."""
    flow.script(fetch=user("Ada", FUTURE))
    steps.tell()
    assert flow.sent()[-1]["name"] == "Ada"
    assert not details(steps, "delivered")[0].get("stale_suspected", False)
    go_on(flow, steps)
    flow.script(fetch=answer(404))
    steps.later()
    steps.tell("DELETE")
    assert flow.asked[-1] == REMOVE
    assert steps.left() == {}


# --- an entity that is deleted and made again with the same id, whichever of its webhooks comes first


def test_a_delete_that_is_delivered_when_it_is_there_again_keeps_it_in_step(flow: Flow, steps: SyncSteps) -> None:
    """Its webhook was slow; the one of the create is slower still."""
    deleted_at = steps.clock.moment
    steps.advance(2)
    flow.script(fetch=user("Ada", format_seconds(deleted_at + timedelta(seconds=1))))
    steps.tell("DELETE", at=deleted_at)
    assert written(flow) == [UPDATE]
    steps.tell("CREATE", at=deleted_at + timedelta(seconds=1))
    assert set(written(flow)) == {UPDATE}
    go_on(flow, steps)


@pytest.mark.parametrize("says_when", [True, False], ids=["with its last change", "without"])
def test_a_delete_after_a_delivered_create_deletes_nothing(flow: Flow, steps: SyncSteps, says_when: bool) -> None:
    """Covers a delete that the state fetched for the create includes: by its own time, or as fetched long after."""
    deleted_at = steps.clock.moment
    steps.advance(5 if says_when else 90)
    created_at = deleted_at + timedelta(seconds=3)
    flow.script(fetch=user("Ada", format_seconds(created_at) if says_when else None), find=NONE)
    steps.tell("CREATE", at=created_at)
    steps.tell("DELETE", at=deleted_at)
    assert written(flow) == [CREATE]
    assert details(steps, "superseded") == [{"by": 1, "because": "covered"}]
    go_on(flow, steps)


@pytest.mark.parametrize(
    ("order", "fraction", "at_once"),
    [
        (("DELETE", "CREATE"), "", True),
        (("CREATE", "DELETE"), ".900", True),
        (("DELETE", "CREATE"), ".900", False),
        (("CREATE", "DELETE"), "", False),
    ],
)
def test_a_delete_and_a_create_keep_the_entity(
    flow: Flow, steps: SyncSteps, order: tuple[str, str], fraction: str, at_once: bool
) -> None:
    at = steps.clock.moment.replace(microsecond=0)
    steps.advance(2)
    flow.script(fetch=user("Ada", format_seconds(at).replace("Z", f"{fraction}Z")))
    for event_type in order:
        flow.tell(at, event_type)
        if not at_once:
            steps.until_nothing_is_due()
    for _ in range(4):
        steps.later()
    assert set(written(flow)) == {UPDATE}, "it is there, so its counterpart is kept"
    go_on(flow, steps)


def test_a_change_and_a_delete_in_one_second_delete_despite_a_late_replica(flow: Flow, steps: SyncSteps) -> None:
    at = steps.clock.moment.replace(microsecond=0)
    steps.advance(2)
    flow.script(fetch=[user("Ada", format_seconds(at)), user("Ada", format_seconds(at)), answer(404)])
    flow.tell(at)
    flow.tell(at, "DELETE")
    steps.until_nothing_is_due()
    for _ in range(4):
        steps.later()
    assert written(flow)[-1:] == [REMOVE]
    go_on(flow, steps)


# --- without a fetch: no body follows a newer one of its lane


def begin(steps: SyncSteps, *bodies: tuple[int, str]) -> None:
    """Tell of bodies, each with the seconds of its time."""
    at = steps.clock.moment
    steps.advance(60)
    for seconds, name in bodies:
        steps.tell(at=at + timedelta(seconds=seconds), name=name)


def sent_names(flow: Flow) -> list[str]:
    return [fields["name"] for fields in flow.sent()]


def replay(flow: Flow, steps: SyncSteps, chosen: Selection) -> int:
    return carry_out(steps.database, flow.config, "replay", chosen, why="asked for")


@ON_BOTH
@pytest.mark.parametrize("sync", [OWN_BODY])
def test_an_older_body_is_dead_without_a_call_until_a_person_decides(flow: Flow, steps: SyncSteps) -> None:
    begin(steps, (0, "first"), (20, "newest"), (10, "older"))
    steps.tell("CREATE", at=steps.clock.moment - timedelta(seconds=40), name="same second")
    assert sent_names(flow) == ["first", "newest", "same second"]
    (dead,) = details(steps, "dead")
    assert (dead["cause"], dead.get("calls", [])) == ("overtaken", [])
    assert replay(flow, steps, Selection(cause="overtaken")) == 0
    assert replay(flow, steps, Selection(cause="overtaken", force=True)) == 1
    steps.until_nothing_is_due()
    assert sent_names(flow)[3:] == ["older"]
    assert (steps.left(), differences(steps.database, flow.config)) == ({}, [])


@ON_BOTH
@pytest.mark.parametrize("sync", [f"skip_unchanged = true\n{OWN_BODY}"])
def test_an_older_body_does_not_follow_a_newer_one_that_was_unchanged(flow: Flow, steps: SyncSteps) -> None:
    begin(steps, (0, "same"), (20, "same"))
    steps.do("DELETE FROM lane")
    assert [each.finding for each in mend(steps.database, flow.config)] == ["last_delivered"] * 2
    begin(steps, (-50, "older"))
    assert (sent_names(flow), kinds(steps.database.engine)) == (["same"], ["delivered", "unchanged", "dead"])
    assert differences(steps.database, flow.config) == []


@pytest.mark.parametrize("sync", [OWN_BODY])
def test_bodies_that_arrive_during_retries_keep_their_order(flow: Flow, steps: SyncSteps) -> None:
    flow.script(update=[answer(503), answer(503), answer()])
    begin(steps, (10, "tried"), (20, "newer"), (0, "older"))
    steps.later()
    steps.later()
    assert sent_names(flow) == ["tried", "tried", "tried", "newer"]
    assert [dead["cause"] for dead in details(steps, "dead")] == ["overtaken"]


@pytest.mark.parametrize("sync", [OWN_BODY])
def test_a_replay_of_all_keeps_their_order_too(flow: Flow, steps: SyncSteps) -> None:
    begin(steps, (0, "a"), (10, "b"), (20, "c"))
    assert replay(flow, steps, Selection(route=ROUTE, backfill=True)) == 3
    steps.until_nothing_is_due()
    assert sent_names(flow) == ["a", "b", "c"] * 2


# --- with the daemon


@ON_BOTH
def test_a_second_change_in_one_second_with_the_same_webhook_is_delivered(flow: Flow, engine: Engine) -> None:
    this_second = SystemClock().now()
    with relaying(engine, flow.config):
        for name, status in (("first", "accepted"), ("second", "duplicate")):
            flow.script(fetch=user(name))
            assert flow.tell(this_second) == {"status": status, "seq": 1}
            until(lambda: flow.sent() and flow.sent()[-1]["name"] == name and not open_states(engine), f"the {name}")
    assert kinds(engine) == ["delivered", "rearmed", "delivered"]
    assert count(engine, "inbox") == 1
    keys = {seen.headers["idempotency-key"] for seen in flow.server.seen if seen.method == "PATCH"}
    assert len(keys) == 2, "the other service takes the second for a call of its own"
