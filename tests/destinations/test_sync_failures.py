"""A sync route's policies, and what becomes of an attempt when a service does not do what it should."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from inbox.config.model import ApiOauth2
from inbox.config.values import Secret
from relay.delivery.outcome import Delivery, Skipped
from tests.destinations.syncing import (
    CREATE,
    DELETE,
    FETCH,
    FETCHED,
    FIND,
    FOUND,
    NONE,
    SECOND,
    SYNC,
    UPDATE,
    USER,
    World,
    changed,
)
from tests.helpers.delivering import DELIVERY, context, deliver, delivered, failed, failure
from tests.helpers.scripted import Act, answer, reset

# --- policies


@pytest.mark.parametrize(
    ("missing", "expected"), [("skip", None), ("retry", "not_found"), ("dead", "no_target")]
)  # fmt: skip
def test_a_missing_counterpart_is_what_the_route_says(world: World, missing: str, expected: str | None) -> None:
    outcome = world.deliver(sync=f'missing = "{missing}"\n{SYNC}', find=NONE)
    assert world.asked == [FETCH, FIND]
    assert isinstance(outcome, Skipped) if expected is None else failed(outcome).error_class == expected


def test_several_counterparts_are_ambiguous_unless_the_first_will_do(world: World) -> None:
    several = answer(200, {"items": [{"id": "c1", "external_id": "u1"}, {"id": "c2", "external_id": "u1"}]})
    assert failure(world.deliver(find=several)) == ("ambiguous", "find: 2 counterparts")
    delivered(world.deliver(sync=f'many = "first"\n{SYNC}', find=several))


def test_a_counterpart_that_is_gone_by_the_time_is_looked_for_once_more(world: World) -> None:
    world.server.routes["PATCH /contacts/c2"] = [answer()]
    another = answer(200, {"items": [{"id": "c2", "external_id": "u1"}]})
    delivered(world.deliver(find=[FOUND, another], update=answer(404)))
    assert world.asked == [FETCH, FIND, UPDATE, FIND, "PATCH /contacts/c2"]


def test_a_counterpart_that_is_gone_and_not_found_again_is_missing(world: World) -> None:
    outcome = delivered(world.deliver(find=[FOUND, NONE], update=answer(410)))
    assert (outcome.did, world.asked) == ("created", [FETCH, FIND, UPDATE, FIND, CREATE])


def test_a_counterpart_that_is_found_and_gone_for_ever_is_a_failure(world: World) -> None:
    outcome = failed(world.deliver(update=answer(404)))
    assert (outcome.error_class, len(outcome.calls)) == ("not_found", 5)


# --- what goes wrong


@pytest.mark.parametrize("step", ["fetch", "find", "update"])
@pytest.mark.parametrize(
    ("act", "error_class"),
    [
        (answer(500), "server_error"),
        (answer(401), "auth"),
        (answer(429, b"", retry_after="9"), "throttled"),
        (answer(422), "rejected"),
        (answer(302), "redirect"),
        (reset, "unknown"),
    ],
)
def test_a_failing_step_ends_the_attempt_and_is_named(world: World, step: str, act: Act, error_class: str) -> None:
    outcome = failed(world.deliver(acts={step: act}))
    assert outcome.error_class == error_class
    assert outcome.error.startswith(f"{step}: ")
    assert outcome.calls[-1].step == step
    assert outcome.retry_after == (9.0 if error_class == "throttled" else None)


@pytest.mark.parametrize(
    ("acts", "error"),
    [
        ({"fetch": answer(200, b"<html>")}, "fetch: the answer is not JSON"),
        ({"fetch": answer(200, b'{"name": "\xe4"}')}, "fetch: the answer is not JSON"),
        *(
            ({"fetch": act}, "fetch: the answer is not an object with something in it")
            for act in (answer(200, [USER]), answer(204), answer(200, b"null"), answer(200, b'"u1"'), answer(200, {}))
        ),
        ({"fetch": answer(200, {"a": "x" * 70_000})}, "fetch: the answer is larger than 64 KiB"),
        (
            {"fetch": answer(200, b"[" * 60_000)},
            "fetch: the answer is nested deeper than 64 levels, or its brackets do not match",
        ),
        ({"find": answer(200, b"nope")}, "find: the answer is not JSON"),
        ({"find": answer(200, {"items": ["c1"]})}, "find: a match is not an object"),
        *(
            ({"find": answer(200, {"items": [match]})}, "find: the match lacks one of: target.id")
            for match in ({"name": "x"}, {"id": None}, {"id": ""}, {"id": {"oid": "c1"}}, {"id": True}, {})
        ),
    ],
)
def test_an_answer_that_is_not_what_the_step_needs_is_bad(world: World, acts: dict[str, Act], error: str) -> None:
    assert failure(world.deliver(acts=acts)) == ("bad_answer", error)


def test_a_pick_that_can_not_be_evaluated_is_a_bad_answer(world: World) -> None:
    sync = changed('pick = "items"', 'pick = "sort_by(items, &id)"')
    assert failed(world.deliver(sync=sync, find=answer(200, {"items": "x"}))).error_class == "bad_answer"


def test_an_event_that_has_no_value_for_a_template_is_a_mapping_failure(world: World) -> None:
    outcome = failed(world.deliver(sync=changed("/user/{event.entity_id}", "/user/{event.event_id}")))
    assert failure(outcome) == ("mapping", "routes.user-to-crm.sync.fetch.path: {event.event_id} has no value")
    assert outcome.calls == ()


MARKS = "\u0301" * 60_000 + "\u0316" * 60_000
"""A run of marks, which Python sorts for seconds while it normalises them, without letting another thread run."""


def test_a_value_of_a_webhook_that_is_too_long_for_a_path_fails_at_once(world: World) -> None:
    event = msgspec.structs.replace(DELIVERY, body=msgspec.json.encode({"note": MARKS}))
    outcome = failed(world.deliver(event, sync=changed("/user/{event.entity_id}", "/user/{event.body.note}")))
    where = "routes.user-to-crm.sync.fetch.path: {event.body.note}"
    assert failure(outcome) == ("mapping", f"{where} has 120000 characters, and may have at most 1024 here")
    assert outcome.calls == ()


def test_an_id_in_an_answer_that_is_too_long_for_a_path_fails_at_once(world: World) -> None:
    found = answer(200, {"items": [{"id": MARKS[59_000:61_000], "external_id": "u1"}]})
    outcome = failed(world.deliver(find=found))
    assert (outcome.error_class, [call.step for call in outcome.calls]) == ("mapping", ["fetch", "find"])
    assert "{target.id} has 2000 characters" in outcome.error


def test_a_mapping_failure_keeps_the_calls_made_before_it(world: World) -> None:
    outcome = failed(world.deliver(sync=changed('"entity.name"', "\"join(' ', entity.name)\"")))
    assert (outcome.error_class, [call.step for call in outcome.calls]) == ("mapping", ["fetch", "find"])


def test_no_further_step_starts_when_the_lease_has_ended(world: World) -> None:
    leases = iter([float("inf")])
    assert failed(world.deliver(within=context(lambda: next(leases, 0.0)))).error_class == "lease_lost"


@pytest.mark.parametrize("status", [404, 410])
@pytest.mark.parametrize("table", ["apis", "destinations"])
@pytest.mark.parametrize("delivery", [SECOND, DELETE])
def test_a_token_url_that_is_not_there_says_nothing_of_an_entity_or_its_counterpart(
    world: World, delivery: Delivery, table: str, status: int
) -> None:
    world.server.routes |= {"POST /token": [answer(status)], FETCH: [FETCHED], FIND: [FOUND], CREATE: [answer(201)]}
    config = world.config(SYNC)
    auth = ApiOauth2(f"{world.server.url}/token", client_id=Secret("me"), client_secret=Secret("pass-word"))
    endpoints = {name: msgspec.structs.replace(each, auth=auth) for name, each in getattr(config, table).items()}
    outcome = deliver(msgspec.structs.replace(config, **{table: endpoints}), delivery)
    assert failed(outcome).error_class == "auth"
    assert set(world.asked) <= {FETCH, "POST /token"}


VERIFIED = SYNC.replace(
    '"/user/{event.entity_id}" }', '"/user/{event.entity_id}", verify = { id = "event.entity_id" } }'
)


@pytest.mark.parametrize("delivery", [DELIVERY, DELETE])
@pytest.mark.parametrize(
    ("entity", "came"),
    [({**USER, "id": "u2"}, "'u2'"), ({"error": "try again later"}, "nothing"), ({**USER, "id": ["u2"]}, "'u2'")],
)
def test_of_an_entity_that_is_not_the_one_that_was_asked_for_nothing_is_written(
    world: World, delivery: Delivery, entity: dict[str, Any], came: str
) -> None:
    outcome = failed(world.deliver(delivery, fetch=answer(200, entity), find=FOUND, sync=VERIFIED))
    assert outcome.error_class == "bad_answer"
    assert outcome.error.startswith(f"fetch: the entity has {came} at id, and 'u1' was asked for")
    assert [call.step for call in outcome.calls] == ["fetch"]


def test_an_entity_that_carries_what_was_asked_for_is_taken(world: World) -> None:
    assert delivered(world.deliver(sync=VERIFIED)).did == "updated"
