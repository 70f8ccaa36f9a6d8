"""Sync routes: the way that all should go, a route's policies, finding, writing, and services that do not do what they should."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from inbox.config.model import ApiOauth2
from inbox.config.values import Secret
from inbox.errors import ConfigError
from relay.delivery.outcome import Delivery, Skipped, Unchanged
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
from tests.helpers.delivering import DELIVERY, NOW, a_delivery, context, deliver, delivered, failed, failure
from tests.helpers.scripted import Act, ScriptedServer, answer, reset

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


# --- an answer that nobody expects creates nothing

NOTHING_AT_ITEMS = (
    "find: the answer has nothing at items, or null; where that means that there is none, write pick = 'items || `[]`'"
)
NO_LIST_AT_ITEMS = "find: what the answer has at items is neither a list nor an object"


NOTHING: list[object] = [
    {}, {"contacts": []}, {"error": "down for maintenance"}, {"items": None}, None, [], "items",
]  # fmt: skip
NO_COLLECTION = "find: the answer is neither a list nor an object"
NO_ID = "find: the match lacks one of: target.id"


@pytest.mark.parametrize(
    ("sync", "found", "error"),
    [
        *((SYNC, answer(200, found), NOTHING_AT_ITEMS) for found in NOTHING),
        *((SYNC, answer(200, {"items": items}), NO_LIST_AT_ITEMS) for items in ("", "none", False, 0)),
        (SYNC, answer(200, {"items": {}}), NO_ID),
        (SYNC, answer(200, {"items": [None]}), "find: a match is not an object"),
        (SYNC, answer(200, {"items": [[]]}), "find: a match is not an object"),
        *((WITHOUT_A_PICK, answer(200, b), NO_COLLECTION) for b in (b"", b"null", b'"none"', b"0", b"false")),
        (WITHOUT_A_PICK, answer(200, {}), NO_ID),
        (WITHOUT_A_PICK, answer(200, {"items": None}), NO_ID),
    ],
)
def test_an_answer_without_a_list_or_object_is_bad_and_nothing_is_written(
    world: World, sync: str, found: Act, error: str
) -> None:
    assert failure(world.deliver(sync=sync, find=found)) == ("bad_answer", error)
    assert world.asked == [FETCH, FIND]


@pytest.mark.parametrize("found", [{"items": None}, {}, {"items": []}])
def test_a_route_can_say_that_null_means_none(world: World, found: object) -> None:
    sync = changed('pick = "items"', "pick = 'items || `[]`'")
    assert delivered(world.deliver(sync=sync, find=answer(200, found))).did == "created"


# --- one answer has every match

C1 = {"id": "c1", "external_id": "u1"}


def page(*matches: object, **more: object) -> Act:
    return answer(200, {"items": matches, **more})


def test_an_answer_of_scim_that_counts_none_needs_no_list(world: World) -> None:
    assert delivered(world.deliver(find=answer(200, {"totalResults": 0}))).did == "created"


def test_a_match_that_comes_twice_is_one(world: World) -> None:
    assert delivered(world.deliver(find=page(C1, C1))).did == "updated"


# --- the match carries what was searched for

OTHERS = {"id": "c2", "external_id": "u2"}
NOT_SEARCHED_FOR = "find: the match has 'u2' at external_id, and 'u1' was searched for: "


@pytest.mark.parametrize("delivery", [SECOND, DELETE], ids=["update", "delete"])
def test_nothing_is_written_to_a_match_that_was_not_searched_for(world: World, delivery: Delivery) -> None:
    """As of a service that takes no notice of the param, and lists whomever it has."""
    fetch = answer(404) if delivery is DELETE else FETCHED
    error_class, error = failure(world.deliver(delivery, fetch=fetch, find=page(OTHERS)))
    assert error_class == "bad_answer"
    assert error.startswith(NOT_SEARCHED_FOR)
    assert world.asked == [FETCH, FIND]


def test_nothing_is_marked_as_gone_that_was_not_searched_for(world: World) -> None:
    table = 'gone = "deactivate"\ndeactivate = { path = "/contacts/{target.id}", body = { active = false } }\n'
    error_class, _ = failure(world.deliver(DELETE, sync=f"{table}{SYNC}", fetch=answer(404), find=page(OTHERS)))
    assert (error_class, world.asked) == ("bad_answer", [FETCH, FIND])


def test_the_first_of_many_has_to_be_the_one_too(world: World) -> None:
    sync = f'many = "first"\n{SYNC}'
    assert failure(world.deliver(sync=sync, find=page(OTHERS, C1)))[1].startswith(NOT_SEARCHED_FOR)
    assert delivered(world.deliver(sync=sync, find=page(C1, OTHERS))).did == "updated"


def test_a_match_found_anew_after_the_counterpart_is_gone_has_to_be_the_one_too(world: World) -> None:
    outcome = world.deliver(find=[page(C1), page(OTHERS)], update=answer(404))
    assert failure(outcome)[1].startswith(NOT_SEARCHED_FOR)
    assert world.asked == [FETCH, FIND, UPDATE, FIND]


@pytest.mark.parametrize("verify", ["false", '{ "ids.external" = "event.entity_id" }'])
def test_a_route_can_say_what_a_match_carries_or_that_it_carries_nothing(world: World, verify: str) -> None:
    sync = changed('pick = "items" }', f'pick = "items", verify = {verify} }}')
    assert delivered(world.deliver(sync=sync, find=page({"id": "c1", "ids": {"external": "u1"}}))).did == "updated"


@pytest.mark.parametrize(
    ("verify", "mistake"),
    [
        ("5", "verify: expected a table or true or false, got a number"),
        ('"external_id"', "verify: expected a table or true or false, got text"),
        ("{ external_id = 5 }", "verify.external_id: expected text in quotes, got a number"),
    ],
)
def test_verify_is_a_table_or_true_or_false(world: World, verify: str, mistake: str) -> None:
    with pytest.raises(ConfigError) as caught:
        world.config(changed('pick = "items" }', f'pick = "items", verify = {verify} }}'))
    assert mistake in str(caught.value)


FIELDS = {"name": "Ada", "phone": None, "tags": ["a"], "a/b~c": 1}


def sent(server: ScriptedServer) -> tuple[str, object]:
    """The content type and the body of the last request."""
    last = server.seen[-1]
    return last.headers["content-type"], json.loads(last.body)


def formatted(form: str) -> str:
    return changed(
        'update = { path = "/contacts/{target.id}" }', f'update = {{ path = "/contacts/{{target.id}}", {form} }}'
    )


# --- formats


# --- only if nobody else has changed it


def test_the_version_that_was_found_is_sent_along(world: World) -> None:
    sync = formatted('if_match = "target.version"')
    world.deliver(sync=sync, find=answer(200, {"items": [{"id": "c1", "external_id": "u1", "version": 7}]}))
    assert world.server.seen[-1].headers["if-match"] == "7"


def test_the_etag_of_what_was_found_is_a_version_too(world: World) -> None:
    sync = formatted('if_match = "etag"')
    world.deliver(sync=sync, find=answer(200, {"items": [{"id": "c1", "external_id": "u1"}]}, etag='"abc"'))
    assert world.server.seen[-1].headers["if-match"] == '"abc"'
    world.deliver(sync=sync)
    assert "if-match" not in world.server.seen[-1].headers, "there was none"


def test_without_a_find_there_is_no_version(world: World) -> None:
    sync = formatted('if_match = "etag"').replace("{target.id}", "{event.entity_id}")
    sync = "\n".join(line for line in sync.splitlines() if "find =" not in line)
    with pytest.raises(ConfigError, match=r"update\.if_match: matches the version that find gives"):
        world.deliver(sync=sync)


# --- only if there is anything new


def test_fields_that_were_sent_last_are_not_sent_again_if_the_route_says_so(world: World) -> None:
    first = delivered(world.deliver(sync=f"skip_unchanged = true\n{SYNC}"))
    again = a_delivery(applied_hash=first.applied_hash)
    before = len(world.server.seen)
    outcome = world.deliver(again, sync=f"skip_unchanged = true\n{SYNC}")
    assert isinstance(outcome, Unchanged)
    assert [call.step for call in outcome.calls] == ["fetch", "find"]
    assert len(world.server.seen) == before + 2
    delivered(world.deliver(again))  # other routes send it all the same


def test_a_change_a_missing_counterpart_and_a_person_s_word_are_sent_all_the_same(world: World) -> None:
    sync = f"skip_unchanged = true\n{SYNC}"
    again = a_delivery(applied_hash=delivered(world.deliver(sync=sync)).applied_hash)
    changed_user = {"id": "u1", "name": "Grace"}
    delivered(world.deliver(again, sync=sync, fetch=answer(200, changed_user)))
    delivered(world.deliver(again, sync=sync, find=NONE))
    delivered(world.deliver(msgspec.structs.replace(again, run=1), sync=sync))


def test_a_value_that_a_body_of_its_own_sends_besides_the_fields_is_new_too(world: World) -> None:
    body = 'body = { contact = "{fields}", labels = "{entity.labels}" }'
    sync = f"skip_unchanged = true\n{formatted(body)}"
    tagged = answer(200, {**USER, "labels": ["a"]})
    again = a_delivery(applied_hash=delivered(world.deliver(sync=sync, fetch=tagged)).applied_hash)
    assert isinstance(world.deliver(again, sync=sync, fetch=tagged), Unchanged)
    delivered(world.deliver(again, sync=sync, fetch=answer(200, {**USER, "labels": ["a", "b"]})))


# --- gone


def test_a_counterpart_can_be_marked_as_gone_instead_of_being_deleted(world: World) -> None:
    body = 'body = { active = false, who = "{event.entity_id}" }'
    sync = f'gone = "deactivate"\ndeactivate = {{ path = "/contacts/{{target.id}}", {body} }}\n{SYNC}'
    outcome = delivered(world.deliver(SECOND, sync=sync, fetch=answer(404)))
    assert world.asked == [FETCH, FIND, UPDATE]
    assert outcome.did == "deactivated"
    assert sent(world.server) == ("application/json", {"active": False, "who": "u1"})
    assert REMOVE not in world.asked


@pytest.mark.parametrize(("active", "is_marked"), [("false", False), ("true", True), ("null", True)])
def test_a_counterpart_that_is_marked_as_gone_is_not_marked_again(
    world: World, active: str, *, is_marked: bool
) -> None:
    sync = (
        'gone = "deactivate"\ndeactivate = { path = "/contacts/{target.id}", body = { active = false }, '
        f'unless = "target.active == `false`" }}\n{SYNC}'
    )
    found = answer(200, {"items": [{"id": "c1", "external_id": "u1", "active": json.loads(active)}]})
    outcome = delivered(world.deliver(SECOND, sync=sync, fetch=answer(404), find=found))
    assert outcome.did == ("deactivated" if is_marked else "nothing_to_delete")
    assert (UPDATE in world.asked) == is_marked


# --- what was fetched is older than its event


def fresh(more: str = "") -> str:
    return changed(
        'path = "/user/{event.entity_id}" }', f'path = "/user/{{event.entity_id}}", tolerance = "1s"{more} }}'
    )


STALE = answer(200, {"id": "u1", "name": "Ada", "meta": {"lastModified": "2025-12-31T23:59:58.5Z"}})


def test_an_entity_that_is_older_than_its_event_is_fetched_again_later(world: World) -> None:
    outcome = failed(world.deliver(sync=fresh(), fetch=STALE))
    assert (outcome.error_class, world.asked) == ("stale", [FETCH])


def test_after_three_times_it_is_applied_all_the_same_and_marked(world: World) -> None:
    outcome = delivered(world.deliver(a_delivery(stale_before=3), sync=fresh(), fetch=STALE))
    assert world.asked == [FETCH, FIND, UPDATE]
    assert outcome.stale_suspected


@pytest.mark.parametrize(
    ("sync", "modified"),
    [
        (SYNC, "2020-01-01T00:00:00Z"),
        (fresh(), "2025-12-31T23:59:59Z"),
        (fresh(), "2026-01-01T00:00:00Z"),
        (fresh(), "2126-01-01T00:00:00Z"),
        (fresh(), "yesterday"),
        (fresh(', modified = "changed.at"'), "2020-01-01T00:00:00Z"),
    ],
)
def test_an_entity_that_is_fresh_enough_or_does_not_say_is_applied_at_once(
    world: World, sync: str, modified: str
) -> None:
    entity = {"id": "u1", "name": "Ada", "meta": {"lastModified": modified}}
    assert not delivered(world.deliver(sync=sync, fetch=answer(200, entity))).stale_suspected


def test_the_place_of_its_last_change_can_be_named(world: World) -> None:
    entity = {"id": "u1", "name": "Ada", "changed": {"at": "2020-01-01T00:00:00Z"}}
    outcome = world.deliver(sync=fresh(', modified = "changed.at"'), fetch=answer(200, entity))
    assert failed(outcome).error_class == "stale"
