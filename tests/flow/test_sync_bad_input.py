"""Results of bad input on a sync route, from the webhook on: the documented one, and a lane that goes on afterwards.

docs/reference/sync.md lists the results, docs/reference/delivery.md the times of retries. The steps are the relay's own, on both
databases; both services answer over sockets.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine

from tests.destinations.syncing import CREATE, FETCH, FIND, FOUND, NONE, REMOVE, SYNC, UPDATE, changed
from tests.helpers.daemon import kinds
from tests.helpers.evidence import facts, open_states
from tests.helpers.in_step import BEHIND, Flow, SyncSteps, user
from tests.helpers.kinds import ON_SQLITE
from tests.helpers.scripted import Act, answer

pytestmark = ON_SQLITE
"""SQLite alone: answers of either side don't depend on the database, and other tests run the steps on both."""

GoesOn = Callable[[Flow, SyncSteps], None]

REQUIRED = changed('name = "entity.name"', 'name = { from = "entity.name", required = true }')
LIST_OF_NAMES = changed('name = "entity.name"', "name = \"join(' ', entity.names)\"")


@pytest.fixture
def steps(sync_steps: SyncSteps) -> SyncSteps:
    return sync_steps


@pytest.fixture
def goes_on(engine: Engine) -> GoesOn:
    """Both services are well again; a later event of the same entity is delivered, and nothing is left."""

    def _goes_on(flow: Flow, steps: SyncSteps) -> None:
        flow.script(fetch=user("Grace"), find=FOUND, update=answer())
        steps.later()
        before = len(flow.server.seen)
        steps.tell()
        assert flow.asked[before:] == [FETCH, FIND, UPDATE]
        assert flow.sent()[-1]["name"] == "Grace"
        assert open_states(engine) == {}
        assert not [fact for fact in facts(engine) if fact["detail"].get("because") == "covered"]

    return _goes_on


def details(engine: Engine, kind: str) -> list[dict[str, Any]]:
    return [fact["detail"] for fact in facts(engine) if fact["kind"] == kind]


# --- the source does not know what its own event is about


def test_an_update_of_what_is_not_found_waits_for_a_replica_that_is_behind(
    flow: Flow, steps: SyncSteps, engine: Engine, goes_on: GoesOn
) -> None:
    flow.script(fetch=[answer(404), user("Ada")])
    steps.tell()
    assert flow.asked == [FETCH], "nothing is deleted on the word of one 404"
    (failed,) = details(engine, "attempt_failed")
    assert (failed["error_class"], failed.get("counted", True)) == ("not_found", True)
    steps.later()
    assert flow.asked[1:] == [FETCH, FIND, UPDATE]
    assert flow.sent()[-1]["name"] == "Ada"
    goes_on(flow, steps)


def test_an_update_of_what_stays_not_found_means_that_it_is_gone(flow: Flow, steps: SyncSteps, engine: Engine) -> None:
    flow.script(fetch=answer(404))
    steps.tell()
    steps.later(BEHIND.total_seconds() + 120)  # no replica is so far behind its arrival
    assert flow.asked == [FETCH, FETCH, FIND, REMOVE]
    assert kinds(engine) == ["attempt_failed", "delivered"]
    assert details(engine, "delivered")[0]["did"] == "deleted"
    assert open_states(engine) == {}


# --- two matches


def test_two_counterparts_are_dead_at_once_and_healed_by_the_next_event_once_there_is_one(
    flow: Flow, steps: SyncSteps, engine: Engine, goes_on: GoesOn
) -> None:
    flow.script(find=answer(200, {"items": [{"id": "c1", "external_id": "u1"}, {"id": "c2", "external_id": "u1"}]}))
    steps.tell()
    assert flow.asked == [FETCH, FIND]
    (dead,) = details(engine, "dead")
    assert (dead["cause"], dead["error"]) == ("ambiguous", "find: 2 counterparts")
    assert open_states(engine) == {"dead": 1}, "its lane is free"
    goes_on(flow, steps)
    assert details(engine, "superseded") == [{"by": 2, "because": "healed"}]


# --- malformed JSON

MALFORMED = [b"<html>Bad Gateway</html>", b'{"id": "u1", "name": ', b"\xff\xfe"]
UNUSABLE_NUMBERS = [b'{"id": 1e-99999999999999999999}', b'{"id": [1e999]}', b"[" + b"7" * 1001 + b"]"]
"""Parsers read these differently, and some raise what is no ValueError."""
NO_ENTITIES = [b"", b"[1, 2]", b"null", b"{}"]
NO_CONTACTS = [
    b'{"items": [1]}',
    b'{"items": [{"name": "no id"}]}',
    b"",
    b"{}",
    b'{"items": null}',
    b'{"items": "none"}',
]
"""Each of these would have a second contact created, if it were taken for none."""


@pytest.mark.parametrize(
    "broken",
    [("fetch", content) for content in MALFORMED + UNUSABLE_NUMBERS + NO_ENTITIES]
    + [("find", content) for content in MALFORMED + UNUSABLE_NUMBERS + NO_CONTACTS],
)
def test_malformed_json_of_either_side_is_tried_again_by_the_schedule(
    flow: Flow, steps: SyncSteps, engine: Engine, goes_on: GoesOn, broken: tuple[str, bytes]
) -> None:
    step, content = broken
    well = {"fetch": user("Ada"), "find": FOUND}[step]
    flow.script(**{step: [answer(200, content), well]})
    steps.tell()
    (failed,) = details(engine, "attempt_failed")
    assert failed["error_class"] == "bad_answer"
    assert failed["error"].startswith(f"{step}: ")
    assert flow.sent() == flow.sent(CREATE) == []
    steps.later()
    assert flow.sent()[-1]["name"] == "Ada"
    assert flow.sent(CREATE) == []
    assert open_states(engine) == {}
    goes_on(flow, steps)


@pytest.mark.parametrize("step", ["fetch", "find"])
def test_malformed_json_that_stays_is_given_up_when_the_schedule_has_run_out(
    flow: Flow, steps: SyncSteps, engine: Engine, goes_on: GoesOn, step: str
) -> None:
    flow.script(**{step: answer(200, b"{")})
    steps.tell()
    steps.later()
    steps.later()
    assert kinds(engine) == ["attempt_failed", "attempt_failed", "dead"]
    (dead,) = details(engine, "dead")
    assert (dead["cause"], dead["error"]) == ("exhausted", f"{step}: the answer is not JSON")
    goes_on(flow, steps)


@pytest.mark.parametrize("find", [FOUND, NONE], ids=["update", "create"])
def test_what_is_answered_to_a_change_need_not_be_json(
    flow: Flow, steps: SyncSteps, engine: Engine, goes_on: GoesOn, find: Act
) -> None:
    flow.script(find=find, update=answer(200, b"<html>"), create=answer(201, b"{"))
    steps.tell()
    assert kinds(engine) == ["delivered"]
    assert open_states(engine) == {}
    goes_on(flow, steps)


# --- a mapped field is missing


def test_a_field_that_is_missing_is_left_out_or_cleared_as_the_route_says(
    flow: Flow, steps: SyncSteps, goes_on: GoesOn
) -> None:
    flow.script(fetch=answer(200, {"id": "u1"}))
    steps.tell()
    assert flow.sent() == [{"external_id": "u1", "phone": None}]
    goes_on(flow, steps)


@pytest.mark.parametrize(
    ("sync", "entity"),
    [
        (REQUIRED, {"id": "u1"}),
        (REQUIRED, {"id": "u1", "name": None}),
        (LIST_OF_NAMES, {"id": "u1", "name": "Ada"}),
    ],
    ids=["absent", "null", "of another kind"],
)
def test_a_field_that_has_to_be_there_and_is_missing_is_dead_at_once_and_named(
    flow: Flow, steps: SyncSteps, engine: Engine, entity: dict[str, object]
) -> None:
    flow.script(fetch=answer(200, entity))
    steps.tell()
    assert flow.sent() == []
    (dead,) = details(engine, "dead")
    assert dead["cause"] == "mapping"
    assert "routes.users-to-crm.sync.map.name" in dead["error"]
    assert open_states(engine) == {"dead": 1}
    flow.script(fetch=user("Grace", names=["Grace"]))
    steps.later()
    steps.tell()
    assert flow.sent()[-1]["name"] == "Grace"
    assert open_states(engine) == {}


# --- a last change that is still to come

TOLERANT = changed('path = "/user/{event.entity_id}" }', 'path = "/user/{event.entity_id}", tolerance = "2s" }')
FUTURE = "2126-01-01T00:00:00Z"


@pytest.mark.parametrize("sync", [SYNC, TOLERANT], ids=["no tolerance", "tolerance"])
def test_a_last_change_in_the_future_is_applied_and_proves_nothing_of_later_events(
    flow: Flow, steps: SyncSteps, engine: Engine, goes_on: GoesOn
) -> None:
    """Else everything that happens to the entity for a hundred years would be taken for known already."""
    flow.script(fetch=user("Ada", FUTURE))
    steps.tell()
    assert flow.asked == [FETCH, FIND, UPDATE]
    assert flow.sent()[-1]["name"] == "Ada"
    (delivered,) = details(engine, "delivered")
    assert not delivered.get("stale_suspected", False)
    goes_on(flow, steps)


@pytest.mark.parametrize("sync", [TOLERANT])
def test_the_delete_of_what_had_a_last_change_in_the_future_deletes_its_counterpart(
    flow: Flow, steps: SyncSteps, engine: Engine
) -> None:
    flow.script(fetch=user("Ada", FUTURE))
    steps.tell()
    steps.later()
    flow.script(fetch=answer(404))
    steps.tell("DELETE")
    assert flow.asked[-1] == REMOVE
    assert open_states(engine) == {}
