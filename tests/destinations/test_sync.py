"""Sync routes whose services both work."""

from __future__ import annotations

import json
from datetime import timedelta

import msgspec
import pytest

from relay.delivery.outcome import Delivery, Skipped
from relay.sync.expressions import digest
from tests.destinations.syncing import (
    CREATE,
    DELETE,
    FETCH,
    FETCHED,
    FIND,
    FOUND,
    NONE,
    REMOVE,
    SECOND,
    SYNC,
    UPDATE,
    USER,
    World,
    changed,
)
from tests.helpers.delivering import DELIVERY, NOW, a_delivery, delivered, failed
from tests.helpers.scripted import Act, answer

# --- the way it should go


def test_a_counterpart_that_is_found_is_updated(world: World) -> None:
    outcome = delivered(world.deliver())
    assert world.asked == [FETCH, FIND, UPDATE]
    fields = {"external_id": "u1", "name": "Ada", "phone": None}
    assert (outcome.did, outcome.fetch_began_at) == ("updated", NOW)
    assert outcome.last_modified == NOW - timedelta(seconds=1.5)
    assert outcome.applied_hash == digest(fields)
    assert [(call.step, call.status) for call in outcome.calls] == [("fetch", 200), ("find", 200), ("update", 200)]
    fetch, find, update = world.server.seen
    assert json.loads(update.body) == fields
    assert update.headers["content-type"] == "application/merge-patch+json"
    assert fetch.headers["authorization"] == "Basic bWU6cGFzcy13b3Jk"
    assert find.headers["authorization"] == "Bearer crm-token"
    assert update.headers["traceparent"] == DELIVERY.traceparent
    assert fetch.headers["accept"] == "application/json"


def test_a_counterpart_that_is_not_found_is_created(world: World) -> None:
    outcome = delivered(world.deliver(find=NONE))
    assert world.asked == [FETCH, FIND, CREATE]
    assert outcome.did == "created"
    assert json.loads(world.server.seen[2].body) == {"external_id": "u1", "name": "Ada"}
    assert world.server.seen[2].headers["content-type"] == "application/json"


def test_an_update_can_replace_instead_of_patch(world: World) -> None:
    sync = changed(
        'update = { path = "/contacts/{target.id}" }',
        'update = { path = "/contacts/{target.id}", method = "PUT", format = "json" }',
    )
    world.server.routes["PUT /contacts/c1"] = [answer()]
    delivered(world.deliver(sync=sync))
    assert world.server.seen[2].headers["content-type"] == "application/json"


def test_the_idempotency_key_is_of_the_run_and_of_what_is_sent(world: World) -> None:
    for delivery in (DELIVERY, SECOND, msgspec.structs.replace(DELIVERY, run=3)):
        world.deliver(delivery)
    world.deliver(fetch=answer(200, {**USER, "name": "Eve"}))
    keys = [seen.headers["idempotency-key"] for seen in world.server.seen if seen.method == "PATCH"]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3
    assert keys[0].startswith(f"{DELIVERY.webhook_id}-0-")
    assert "idempotency-key" not in world.server.seen[0].headers


NONES = [NONE, answer(204), answer(404), answer(410)]
MATCH = {"id": "c1", "external_id": "u1"}
WITHOUT_A_PICK = changed(', pick = "items"', "")


@pytest.mark.parametrize(
    ("sync", "found", "did"),
    [
        *((SYNC, none, "created") for none in NONES),
        *((WITHOUT_A_PICK, none, "created") for none in [*NONES, answer(200, [])]),
        *((WITHOUT_A_PICK, answer(200, found), "updated") for found in ({"items": [MATCH]}, [MATCH], MATCH)),
        (changed('pick = "items"', 'pick = "result.first"'), answer(200, {"result": {"first": MATCH}}), "updated"),
    ],
)
def test_every_way_of_naming_a_match_and_of_saying_that_there_is_none_is_understood(
    world: World, sync: str, found: Act, did: str
) -> None:
    assert delivered(world.deliver(sync=sync, find=found)).did == did


def test_a_find_can_be_a_post(world: World) -> None:
    sync = changed(
        'params = { externalId = "{event.entity_id}" }',
        'method = "POST", body = { query = { id = "{event.entity_id}" } }',
    )
    world.server.routes["POST /contacts"] = [FOUND]
    delivered(world.deliver(sync=sync, create=FOUND))
    assert json.loads(world.server.seen[1].body) == {"query": {"id": "u1"}}
    assert "idempotency-key" not in world.server.seen[1].headers


def test_without_a_find_the_update_names_its_counterpart_itself(world: World) -> None:
    sync = (
        changed('find = { path = "/contacts", params = { externalId = "{event.entity_id}" }, pick = "items" }', "")
        .replace("{target.id}", "{event.entity_id}")
    )  # fmt: skip
    world.server.routes["PATCH /contacts/u1"] = [answer(), answer(404)]
    assert [delivered(world.deliver(sync=sync)).did for _ in range(2)] == ["updated", "created"]
    assert world.asked == [FETCH, "PATCH /contacts/u1", FETCH, "PATCH /contacts/u1", CREATE]


def test_a_route_without_update_leaves_a_counterpart_alone(world: World) -> None:
    outcome = world.deliver(sync=changed('update = { path = "/contacts/{target.id}" }', ""))
    assert isinstance(outcome, Skipped)
    assert world.asked == [FETCH, FIND]


# --- gone


@pytest.mark.parametrize("fetched", [answer(404), answer(410), FETCHED, answer(200, {"id": "u1"})])
def test_a_delete_event_deletes_the_counterpart_also_where_a_replica_still_shows_the_entity(
    world: World, fetched: Act
) -> None:
    outcome = delivered(world.deliver(DELETE, fetch=fetched))
    assert world.asked == [FETCH, FIND, REMOVE]
    assert (outcome.did, outcome.fetch_began_at, outcome.applied_hash) == ("deleted", NOW, None)


def test_an_entity_made_again_after_its_delete_is_kept_in_step(world: World) -> None:
    again = {**USER, "meta": {"lastModified": "2026-01-01T00:00:00.5Z"}}
    outcome = delivered(world.deliver(DELETE, fetch=answer(200, again)))
    assert world.asked == [FETCH, FIND, UPDATE]
    assert outcome.did == "updated"


def test_an_entity_changed_in_the_moment_of_its_delete_is_asked_for_again_and_then_believed(world: World) -> None:
    """It was made again in the same second, or a replica is behind: time tells."""
    same = answer(200, {**USER, "meta": {"lastModified": "2026-01-01T00:00:00Z"}})
    assert failed(world.deliver(DELETE, fetch=same)).error_class == "stale"
    assert world.asked == [FETCH]
    outcome = delivered(world.deliver(msgspec.structs.replace(DELETE, stale_before=3), fetch=same))
    assert (outcome.did, outcome.stale_suspected) == ("updated", True)


@pytest.mark.parametrize("delivery", [DELIVERY, DELETE])
def test_a_last_change_that_is_still_to_come_is_not_told(world: World, delivery: Delivery) -> None:
    """It would prove of every later event that it is known already."""
    to_come = answer(200, {**USER, "meta": {"lastModified": "2126-01-01T00:00:00Z"}})
    outcome = delivered(world.deliver(delivery, fetch=to_come))
    assert (outcome.did, outcome.last_modified) == ("updated", None)


@pytest.mark.parametrize("acts", [{"find": NONE}, {"remove": answer(404)}, {"remove": answer(410)}])
def test_deleting_what_is_not_there_is_a_success(world: World, acts: dict[str, Act]) -> None:
    assert delivered(world.deliver(DELETE, acts)).did == "nothing_to_delete"


FRESH = a_delivery(attempt=2)


@pytest.mark.parametrize("delivery", [DELIVERY, FRESH], ids=["first attempt", "took over the retry of another"])
def test_an_entity_that_is_not_there_yet_is_asked_for_again_while_its_event_is_fresh(
    world: World, delivery: Delivery
) -> None:
    assert failed(world.deliver(delivery, fetch=answer(404))).error_class == "not_found"
    assert world.asked == [FETCH]


@pytest.mark.parametrize(
    ("delivery", "fetched"),
    [(DELIVERY, answer(410)), (SECOND, answer(404))],
    ids=["gone for certain", "still not there"],
)
def test_an_entity_that_is_gone_is_deleted(world: World, delivery: Delivery, fetched: Act) -> None:
    outcome = delivered(world.deliver(delivery, fetch=fetched))
    assert world.asked == [FETCH, FIND, REMOVE]
    assert (outcome.did, outcome.fetch_began_at) == ("deleted", NOW)


@pytest.mark.parametrize("delivery", [DELETE, SECOND])
def test_a_route_can_leave_the_counterpart_of_what_is_gone(world: World, delivery: Delivery) -> None:
    outcome = world.deliver(delivery, sync=f'gone = "skip"\n{SYNC}', fetch=answer(404))
    assert isinstance(outcome, Skipped)
    assert world.asked == [FETCH]


@pytest.mark.parametrize("delivery", [DELIVERY, DELETE])
def test_an_event_that_names_no_entity_is_skipped_without_a_call(world: World, delivery: Delivery) -> None:
    outcome = world.deliver(msgspec.structs.replace(delivery, entity_type=None, entity_id=None))
    assert outcome == Skipped((), "the event names no entity")
    assert world.asked == []
