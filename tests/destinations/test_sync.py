"""Sync routes: the calls and the outcome of an attempt, for all responses of both services."""

from __future__ import annotations

import json
import sys
from datetime import timedelta
from types import ModuleType
from typing import Any, NamedTuple

import msgspec
import pytest

from inbox.config.model import ApiOauth2
from inbox.config.values import Secret
from inbox.errors import ConfigError
from relay import destinations
from relay.delivery.outcome import Delivered, Delivery, Failed, Outcome, Unchanged
from relay.sync.expressions import digest
from tests.destinations.calling import (
    CREATE,
    DELETE,
    FETCH,
    FETCHED,
    FIND,
    FOUND,
    NONE,
    OWN_BODY,
    REMOVE,
    SECOND,
    SYNC,
    UPDATE,
    UPDATE_ANOTHER,
    USER,
    World,
    replace_in_sync,
)
from tests.helpers.delivering import (
    DELIVERY,
    NOW,
    ROUTE,
    a_delivery,
    as_delivered,
    as_failed,
    context,
    deliver,
    failure,
)
from tests.helpers.scripted import Act, answer, reset

C1, C2, OTHER = ({"id": f"c{n}", "external_id": f"u{of}"} for n, of in ((1, 1), (2, 1), (2, 2)))


def page(*matches: object) -> Act:
    return answer(200, {"items": matches})


def user(modified: str, **more: object) -> Act:
    return answer(200, {"id": "u1", "name": "Ada", "meta": {"lastModified": modified}, **more})


def with_fetch(more: str) -> str:
    return replace_in_sync('"/user/{event.entity_id}" }', f'"/user/{{event.entity_id}}", {more} }}')


def with_find(more: str) -> str:
    return replace_in_sync('pick = "items" }', f"{more} }}")


def with_update(more: str) -> str:
    return replace_in_sync(
        'update = { path = "/contacts/{target.id}"', f'update = {{ path = "/contacts/{{target.id}}", {more}'
    )


def describe(outcome: Outcome) -> str:
    """Return the outcome in one word, and whether the entity may be older than its event."""
    match outcome:
        case Delivered():
            return f"{outcome.did}, perhaps stale" if outcome.stale_suspected else outcome.did
        case Failed():
            return outcome.error_class
    return type(outcome).__name__.lower()


# --- the requests


def test_a_counterpart_that_is_found_is_updated(world: World) -> None:
    outcome = as_delivered(world.deliver())
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


def test_a_counterpart_that_is_not_found_is_created_without_the_fields_that_would_be_cleared(world: World) -> None:
    assert describe(world.deliver(find=NONE)) == "created"
    assert json.loads(world.server.seen[2].body) == {"external_id": "u1", "name": "Ada"}
    assert world.server.seen[2].headers["content-type"] == "application/json"


def test_an_update_can_replace_and_a_find_can_be_a_post(world: World) -> None:
    world.server.routes |= {"PUT /contacts/c1": [answer()], "POST /contacts": [FOUND]}
    as_delivered(world.deliver(sync=with_update('method = "PUT", format = "json"')))
    assert world.server.seen[2].headers["content-type"] == "application/json"
    query = 'method = "POST", body = { query = { id = "{event.entity_id}" } }'
    as_delivered(
        world.deliver(sync=replace_in_sync('params = { externalId = "{event.entity_id}" }', query), create=FOUND)
    )
    find = world.server.seen[4]
    assert json.loads(find.body) == {"query": {"id": "u1"}}
    assert "idempotency-key" not in find.headers


def test_the_idempotency_key_is_of_the_run_and_of_the_fields_that_are_sent(world: World) -> None:
    for delivery in (DELIVERY, SECOND, msgspec.structs.replace(DELIVERY, run=3)):
        world.deliver(delivery)
    world.deliver(fetch=answer(200, {**USER, "name": "Eve"}))
    keys = [seen.headers["idempotency-key"] for seen in world.server.seen if seen.method == "PATCH"]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3
    assert keys[0].startswith(f"{DELIVERY.webhook_id}-0-")
    assert "idempotency-key" not in world.server.seen[0].headers


def test_without_a_find_the_update_names_its_counterpart_itself(world: World) -> None:
    sync = "\n".join(line for line in SYNC.splitlines() if "find =" not in line).replace("{target.", "{event.entity_")
    world.server.routes["PATCH /contacts/u1"] = [answer(), answer(404)]
    assert [describe(world.deliver(sync=sync)) for _ in range(2)] == ["updated", "created"]
    assert world.asked == [FETCH, "PATCH /contacts/u1", FETCH, "PATCH /contacts/u1", CREATE]


@pytest.mark.parametrize(
    ("if_match", "found", "sent"),
    [
        ("target.version", answer(200, {"items": [{**C1, "version": 7}]}), "7"),
        ("etag", answer(200, {"items": [C1]}, etag='"abc"'), '"abc"'),
        ("etag", FOUND, None),
    ],
)
def test_the_version_that_was_found_is_sent_along(world: World, if_match: str, found: Act, sent: str | None) -> None:
    world.deliver(sync=with_update(f'if_match = "{if_match}"'), find=found)
    assert world.server.seen[-1].headers.get("if-match") == sent


# --- calls and outcomes

GONE = answer(410)
AGAIN, SAME, STALE = (user(at) for at in ("2026-01-01T00:00:00.5Z", "2026-01-01T00:00:00Z", "2025-12-31T23:59:58.5Z"))
FIRST = f'many = "first"\n{SYNC}'
SKIP_GONE = f'gone = "skip"\n{SYNC}'
DEACTIVATE = 'gone = "deactivate"\ndeactivate = { path = "/contacts/{target.id}", body = { active = false }'
MARK, MARK_ONCE = f"{DEACTIVATE} }}\n{SYNC}", f'{DEACTIVATE}, unless = "target.active == `false`" }}\n{SYNC}'
WITHOUT_A_PICK = replace_in_sync(', pick = "items"', "")
FRESH = with_fetch('tolerance = "1s"')
NAMED_PLACE = with_fetch('tolerance = "1s", modified = "changed.at"')
VERIFIED = with_fetch('verify = { id = "event.entity_id" }')


class Case(NamedTuple):
    end: str
    asked: tuple[str, ...]
    delivery: Delivery
    sync: str
    acts: dict[str, Act | list[Act]]


def case(end: str, *asked: str, delivery: Delivery = DELIVERY, sync: str = SYNC, **acts: Act | list[Act]) -> Case:
    return Case(end, asked, delivery, sync, acts)


UPDATED, CREATED, REMOVED = ("updated", FETCH, FIND, UPDATE), ("created", FETCH, FIND, CREATE), (FETCH, FIND, REMOVE)
NOT_FOUND_ANEW = (FETCH, FIND, UPDATE, FIND)
CASES = {
    # the counterpart
    "found in a list without a pick": case(*UPDATED, sync=WITHOUT_A_PICK, find=answer(200, [C1])),
    "found alone without a pick": case(*UPDATED, sync=WITHOUT_A_PICK, find=answer(200, C1)),
    "found in the only list": case(*UPDATED, sync=WITHOUT_A_PICK, find=page(C1)),
    "found where the pick says": case(
        *UPDATED, sync=with_find('pick = "r.first"'), find=answer(200, {"r": {"first": C1}})
    ),
    "found twice": case(*UPDATED, find=page(C1, C1)),
    "found, and needs to carry nothing": case(
        *UPDATED, sync=with_find('pick = "items", verify = false'), find=page({"id": "c1"})
    ),
    "found, and carries it elsewhere": case(
        *UPDATED,
        sync=with_find('pick = "items", verify = { "ids.external" = "event.entity_id" }'),
        find=page({"id": "c1", "ids": {"external": "u1"}}),
    ),
    "counted as none by SCIM": case(*CREATED, find=answer(200, {"totalResults": 0})),
    **{
        f"null means none: {found!r}": case(*CREATED, sync=with_find("pick = 'items || `[]`'"), find=answer(200, found))
        for found in (b'{"items": null}', b"{}", b'{"items": []}')
    },
    "several": case("ambiguous", FETCH, FIND, find=page(C1, C2)),
    "the first of several": case(*UPDATED, sync=FIRST, find=page(C1, C2)),
    "missing, and skipped": case("skipped", FETCH, FIND, sync=f'missing = "skip"\n{SYNC}', find=NONE),
    "missing, and tried again": case("not_found", FETCH, FIND, sync=f'missing = "retry"\n{SYNC}', find=NONE),
    "missing, and given up": case("no_target", FETCH, FIND, sync=f'missing = "dead"\n{SYNC}', find=NONE),
    "gone meanwhile, and found anew": case(
        *("updated", *NOT_FOUND_ANEW, UPDATE_ANOTHER), find=[FOUND, page(C2)], update=answer(404), another=answer()
    ),
    "gone meanwhile, and created": case("created", *NOT_FOUND_ANEW, CREATE, find=[FOUND, NONE], update=GONE),
    "gone whenever it is found": case("not_found", *NOT_FOUND_ANEW, UPDATE, update=answer(404)),
    # the entity
    "deleted while a replica shows it": case("deleted", *REMOVED, delivery=DELETE),
    "deleted, and of no time": case("deleted", *REMOVED, delivery=DELETE, fetch=answer(200, {"id": "u1"})),
    "deleted, and not there": case("deleted", *REMOVED, delivery=DELETE, fetch=answer(404)),
    "deleted, and gone": case("deleted", *REMOVED, delivery=DELETE, fetch=GONE),
    "gone without a delete": case("deleted", *REMOVED, fetch=GONE),
    "still not there": case("deleted", *REMOVED, delivery=SECOND, fetch=answer(404)),
    "not there yet": case("not_found", FETCH, fetch=answer(404)),
    "not there yet, and tried by another event": case(
        "not_found", FETCH, delivery=a_delivery(attempt=2), fetch=answer(404)
    ),
    "made again after its delete": case(*UPDATED, delivery=DELETE, fetch=AGAIN),
    "made again in the moment of its delete, or of a replica": case("stale", FETCH, delivery=DELETE, fetch=SAME),
    "the same after three looks": case(
        *("updated, perhaps stale", FETCH, FIND, UPDATE),
        delivery=msgspec.structs.replace(DELETE, stale_before=3),
        fetch=SAME,
    ),
    "deleted without a counterpart": case("nothing_to_delete", FETCH, FIND, delivery=DELETE, find=NONE),
    "deleted with its counterpart gone": case("nothing_to_delete", *REMOVED, delivery=DELETE, remove=GONE),
    "deleted with its counterpart not there": case("nothing_to_delete", *REMOVED, delivery=DELETE, remove=answer(404)),
    "deleted, and left": case("skipped", FETCH, delivery=DELETE, sync=SKIP_GONE, fetch=answer(404)),
    "gone, and left": case("skipped", FETCH, delivery=SECOND, sync=SKIP_GONE, fetch=answer(404)),
    "gone, and marked": case("deactivated", FETCH, FIND, UPDATE, delivery=SECOND, sync=MARK, fetch=GONE),
    "gone, and marked before": case(
        *("nothing_to_delete", FETCH, FIND), sync=MARK_ONCE, fetch=GONE, find=page({**C1, "active": False})
    ),
    "gone, and not marked": case(
        *("deactivated", FETCH, FIND, UPDATE), sync=MARK_ONCE, fetch=GONE, find=page({**C1, "active": None})
    ),
    "no entity": case("skipped", delivery=a_delivery(entity_type=None, entity_id=None)),
    "no entity deleted": case("skipped", delivery=msgspec.structs.replace(DELETE, entity_type=None, entity_id=None)),
    "carries its id": case(*UPDATED, sync=VERIFIED),
    "older than its event": case("stale", FETCH, sync=FRESH, fetch=STALE),
    "older after three looks": case(
        *("updated, perhaps stale", FETCH, FIND, UPDATE), delivery=a_delivery(stale_before=3), sync=FRESH, fetch=STALE
    ),
    "older, with any age allowed": case(*UPDATED, fetch=user("2020-01-01T00:00:00Z")),
    "older, at a place that nothing names": case(*UPDATED, sync=NAMED_PLACE, fetch=user("2020-01-01T00:00:00Z")),
    "older at a place that is named": case(
        *("stale", FETCH), sync=NAMED_PLACE, fetch=user("", changed={"at": "2020-01-01T00:00:00Z"})
    ),
    **{
        f"fresh enough: {modified}": case(*UPDATED, sync=FRESH, fetch=user(modified))
        for modified in ("2025-12-31T23:59:59Z", "2026-01-01T00:00:00Z", "2126-01-01T00:00:00Z", "yesterday")
    },
}


@pytest.mark.parametrize("each", CASES.values(), ids=CASES)
def test_an_attempt_makes_its_calls_and_has_its_end(world: World, each: Case) -> None:
    outcome = world.deliver(each.delivery, dict(each.acts), sync=each.sync)
    assert (describe(outcome), world.asked) == (each.end, list(each.asked))
    if each.end == "deleted":
        assert isinstance(outcome, Delivered)
        assert (outcome.fetch_began_at, outcome.applied_hash) == (NOW, None)
    if each.end == "deactivated":
        assert json.loads(world.server.seen[-1].body) == {"active": False}
        assert world.server.seen[-1].headers["content-type"] == "application/json"


@pytest.mark.parametrize("sync", [SYNC, WITHOUT_A_PICK], ids=["pick", "no pick"])
@pytest.mark.parametrize("none", [NONE, answer(204), answer(404), GONE])
def test_every_way_to_say_that_there_is_none_is_understood(world: World, sync: str, none: Act) -> None:
    assert describe(world.deliver(sync=sync, find=none)) == "created"


@pytest.mark.parametrize("delivery", [DELIVERY, DELETE])
def test_a_last_change_that_is_still_to_come_is_not_told(world: World, delivery: Delivery) -> None:
    """It would make every later event look covered."""
    outcome = as_delivered(world.deliver(delivery, fetch=user("2126-01-01T00:00:00Z")))
    assert (outcome.did, outcome.last_modified) == ("updated", None)


# --- without a fetch, the webhook's own body is the entity


@pytest.mark.parametrize(
    ("body", "content_type", "sent"),
    [
        (b'{"name": "Ada", "phone": null}', "application/json", "Ada"),
        (b"name=Ada+L.&phone=1", "application/x-www-form-urlencoded; charset=utf-8", "Ada L."),
        (b"payload=%7B%22name%22%3A%22Ada%22%7D", "application/x-www-form-urlencoded", "Ada"),
        (b'{"name": "' + b"x" * 9_000_000 + b'"}', "application/json", "x" * 9_000_000),
    ],
    ids=["json", "form", "json in a form", "large"],
)
def test_without_a_fetch_the_body_is_the_entity(world: World, body: bytes, content_type: str, sent: str) -> None:
    outcome = as_delivered(world.deliver(a_delivery(body=body, content_type=content_type), sync=OWN_BODY))
    assert (world.asked, outcome.fetch_began_at, outcome.last_modified) == ([FIND, UPDATE], None, None)
    assert json.loads(world.server.seen[1].body)["name"] == sent


def test_a_list_is_an_entity_too(world: World) -> None:
    sync = OWN_BODY.replace("entity.name", "entity[0].name")
    as_delivered(world.deliver(a_delivery(body=b'[{"name": "Ada"}]'), sync=sync))
    assert json.loads(world.server.seen[1].body)["name"] == "Ada"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"7",
        b'"name"',
        b"<user/>",
        b'{"name": "\xe4"}',
        b'{"sweep": {"left_out": "too large"}}',
    ],
)
def test_a_body_without_an_entity_makes_the_event_dead_and_clears_nothing(world: World, body: bytes) -> None:
    failed = as_failed(world.deliver(a_delivery(body=body), sync=OWN_BODY))
    assert (failed.error_class, failed.calls, world.asked) == ("mapping", (), [])
    assert failed.error.startswith("event.body: ")


def test_a_delete_event_alone_says_that_the_entity_is_gone(world: World) -> None:
    for body in (b"", b'{"name": "Ada"}'):
        assert describe(world.deliver(msgspec.structs.replace(DELETE, body=body), sync=OWN_BODY)) == "deleted"
    assert describe(world.deliver(a_delivery(body=None), sync=OWN_BODY)) == "skipped", "an erased body clears nothing"


@pytest.mark.parametrize(
    ("delivery", "ordering", "end"),
    [
        (DELIVERY, "strict", "overtaken"),
        (DELETE, "strict", "overtaken"),
        (a_delivery(run=1), "strict", "updated"),
        (DELIVERY, "latest", "updated"),
    ],
)
def test_an_older_body_makes_no_call_unless_it_is_replayed(
    world: World, delivery: Delivery, ordering: str, end: str
) -> None:
    config = world.config(OWN_BODY)
    route = msgspec.structs.replace(config.routes[ROUTE], ordering=ordering)
    world.server.routes |= {FIND: [FOUND], UPDATE: [answer()]}
    outcome = deliver(
        msgspec.structs.replace(config, routes={ROUTE: route}), msgspec.structs.replace(delivery, late=True)
    )
    assert (describe(outcome), len(world.asked)) == (end, 0 if end == "overtaken" else 2)


# --- failures


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
    outcome = as_failed(world.deliver(acts={step: act}))
    assert outcome.error_class == error_class
    assert outcome.error.startswith(f"{step}: ")
    assert outcome.calls[-1].step == step
    assert outcome.retry_after == (9.0 if error_class == "throttled" else None)


NOT_JSON, NO_OBJECT, NO_ID = "not JSON", "not an object, or is empty", "lacks one of: target.id"
NOTHING_THERE, NO_LIST, NO_COLLECTION = (
    "has no value at items",
    "is neither a list nor",
    "neither a list nor an",
)


def listing(match: bytes) -> Act:
    return answer(200, b'{"items": [%b]}' % match)


BAD: list[tuple[str, str, Act, str]] = [
    ("fetch", SYNC, answer(200, b"<html>"), NOT_JSON),
    ("fetch", SYNC, answer(200, b'{"name": "\xe4"}'), NOT_JSON),
    *(("fetch", SYNC, answer(200, body), NO_OBJECT) for body in (b'[{"id": "u1"}]', b"", b"null", b'"u1"', b"{}")),
    ("fetch", SYNC, answer(200, {"a": "x" * 70_000}), "larger than 64 KiB"),
    ("fetch", SYNC, answer(200, b"[" * 60_000), "nested deeper than 64 levels"),
    ("find", SYNC, answer(200, b"nope"), NOT_JSON),
    *(("find", SYNC, listing(each), "a match is not an object") for each in (b'"c1"', b"null", b"[]")),
    *(("find", SYNC, listing(b'{"id": %b}' % each), NO_ID) for each in (b"null", b'""', b'{"oid": "c1"}', b"true")),
    *(("find", SYNC, listing(match), NO_ID) for match in (b"{}", b'{"name": "x"}')),
    *(("find", SYNC, answer(200, body), NOTHING_THERE) for body in (b"{}", b'{"items": null}', b"null", b"[]", b'""')),
    *(("find", SYNC, answer(200, b'{"items": %b}' % each), NO_LIST) for each in (b'""', b'"none"', b"false", b"0")),
    ("find", SYNC, answer(200, {"items": {}}), NO_ID),
    *(("find", WITHOUT_A_PICK, answer(200, b), NO_COLLECTION) for b in (b"", b"null", b'"none"', b"0", b"false")),
    *(("find", WITHOUT_A_PICK, answer(200, body), NO_ID) for body in (b"{}", b'{"items": null}')),
    ("find", with_find('pick = "sort_by(items, &id)"'), answer(200, {"items": "x"}), "find: "),
]


@pytest.mark.parametrize(("step", "sync", "act", "error"), BAD)
def test_an_unusable_response_writes_nothing(world: World, step: str, sync: str, act: Act, error: str) -> None:
    outcome = as_failed(world.deliver(acts={step: act}, sync=sync))
    assert outcome.error_class == "bad_answer"
    assert outcome.error.startswith(f"{step}: ")
    assert error in outcome.error
    assert outcome.calls[-1].step == step


@pytest.mark.parametrize("delivery", [DELIVERY, DELETE])
@pytest.mark.parametrize(
    ("entity", "came"),
    [({**USER, "id": "u2"}, "'u2'"), ({"error": "try again later"}, "nothing"), ({**USER, "id": ["u2"]}, "'u2'")],
)
def test_a_wrong_entity_is_not_written(world: World, delivery: Delivery, entity: dict[str, Any], came: str) -> None:
    error_class, error = failure(world.deliver(delivery, fetch=answer(200, entity), sync=VERIFIED))
    assert error_class == "bad_answer"
    assert error.startswith(f"fetch: the entity has {came} at id, and 'u1' was asked for")
    assert world.asked == [FETCH]


@pytest.mark.parametrize(
    ("delivery", "sync", "acts"),
    [
        (SECOND, SYNC, {"find": page(OTHER)}),
        (DELETE, SYNC, {"find": page(OTHER), "fetch": answer(404)}),
        (DELETE, MARK, {"find": page(OTHER), "fetch": answer(404)}),
        (SECOND, FIRST, {"find": page(OTHER, C1)}),
        (SECOND, SYNC, {"find": [page(C1), page(OTHER)], "update": answer(404)}),
    ],
    ids=["update", "delete", "deactivate", "the first of many", "found anew"],
)
def test_a_wrong_match_is_not_written(
    world: World, delivery: Delivery, sync: str, acts: dict[str, Act | list[Act]]
) -> None:
    """A service may ignore the parameter and list any user."""
    error_class, error = failure(world.deliver(delivery, acts, sync=sync))
    assert error_class == "bad_answer"
    assert error.startswith("find: the match has 'u2' at external_id, and 'u1' was searched for; ")
    assert world.asked[-1] == FIND
    assert describe(world.deliver(sync=FIRST, find=page(C1, OTHER))) == "updated"


LONG = "\u0301" * 1_100
"""Combining marks, whose normalization would block all threads for seconds."""


@pytest.mark.parametrize(
    ("old", "new", "found", "steps"),
    [
        ("/user/{event.entity_id}", "/user/{event.event_id}", FOUND, []),
        ("/user/{event.entity_id}", "/user/{event.body.note}", FOUND, []),
        ("clear", "clear", page({**C1, "id": LONG}), ["fetch", "find"]),
    ],
    ids=["no value", "a long value of a webhook", "a long value of an answer"],
)
def test_an_unusable_value_is_a_mapping_failure(world: World, old: str, new: str, found: Act, steps: list[str]) -> None:
    event = a_delivery(body=msgspec.json.encode({"note": LONG}))
    outcome = as_failed(world.deliver(event, sync=replace_in_sync(old, new), find=found))
    assert (outcome.error_class, [call.step for call in outcome.calls]) == ("mapping", steps)


def test_no_further_step_starts_when_the_lease_has_ended(world: World) -> None:
    leases = iter([float("inf")])
    assert as_failed(world.deliver(within=context(lambda: next(leases, 0.0)))).error_class == "lease_lost"


@pytest.mark.parametrize("status", [404, 410])
@pytest.mark.parametrize("table", ["apis", "destinations"])
@pytest.mark.parametrize("delivery", [SECOND, DELETE])
def test_a_missing_token_url_is_an_auth_failure(world: World, delivery: Delivery, table: str, status: int) -> None:
    world.server.routes |= {"POST /token": [answer(status)], FETCH: [FETCHED], FIND: [FOUND], CREATE: [answer(201)]}
    config = world.config(SYNC)
    auth = ApiOauth2(f"{world.server.url}/token", client_id=Secret("me"), client_secret=Secret("pass-word"))
    endpoints = {name: msgspec.structs.replace(each, auth=auth) for name, each in getattr(config, table).items()}
    outcome = deliver(msgspec.structs.replace(config, **{table: endpoints}), delivery)
    assert as_failed(outcome).error_class == "auth"
    assert set(world.asked) <= {FETCH, "POST /token"}


# --- unchanged fields


def test_fields_that_were_sent_last_are_not_sent_again_if_the_route_says_so(world: World) -> None:
    body = 'body = { contact = "{fields}", labels = "{entity.labels}" }'
    sync = f"skip_unchanged = true\n{with_update(body)}"
    tagged = answer(200, {**USER, "labels": ["a"]})
    again = a_delivery(applied_hash=as_delivered(world.deliver(sync=sync, fetch=tagged)).applied_hash)
    outcome = world.deliver(again, sync=sync, fetch=tagged)
    assert isinstance(outcome, Unchanged)
    assert [call.step for call in outcome.calls] == ["fetch", "find"]
    for delivery, how in (
        (again, {"fetch": answer(200, {**USER, "labels": ["a"], "name": "Grace"})}),
        (again, {"fetch": answer(200, {**USER, "labels": ["a", "b"]})}),  # labels are in the body but not in the fields
        (again, {"fetch": tagged, "find": NONE}),
        (msgspec.structs.replace(again, run=1), {"fetch": tagged}),  # an operator's replay
    ):
        as_delivered(world.deliver(delivery, dict(how), sync=sync))
    as_delivered(world.deliver(again, sync=with_update(body), fetch=tagged))


# --- maps; tests/core/test_mapping.py tests their rules

MAP = 'map = { name = "entity.name", phone = "entity.phone", external_id = "event.entity_id" }'
RICH = """map.name = "entity.name"
    map.phone = "entity.phone"
    map.external_id = { from = "event.entity_id", required = true }
    map.age = { from = "entity.age", cast = "int", default = 0 }
    map.gender = { from = "entity.gender", lookup = { M = "male", F = "female" } }
    map.tenant = { value = "north" }
    map.initial = { function = "hooks_of_sync_test:initial" }
    transform = "hooks_of_sync_test:finish"
"""
ENTITY = {**USER, "age": "36", "gender": "F"}


@pytest.fixture
def hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    made: Any = ModuleType("hooks_of_sync_test")
    made.initial = lambda _event, entity, _target: entity["name"][0]
    made.finish = lambda fields, event, _entity, target: {**fields, "seq": event["seq"], "is_new": target is None}
    monkeypatch.setitem(sys.modules, "hooks_of_sync_test", made)


@pytest.mark.usefixtures("hooks")
def test_a_map_arrives_at_the_counterpart_and_an_error_in_it_keeps_it_from_being_written(world: World) -> None:
    sync = replace_in_sync(MAP, RICH)
    fields = {"external_id": "u1", "name": "Ada", "age": 36, "gender": "female", "tenant": "north", "initial": "A"}
    for found, more in ((FOUND, {"phone": None, "is_new": False}), (NONE, {"is_new": True})):
        as_delivered(world.deliver(sync=sync, fetch=answer(200, ENTITY), find=found))
        assert json.loads(world.server.seen[-1].body) == {**fields, "seq": 7, **more}
    error = failure(world.deliver(sync=sync, fetch=answer(200, {**ENTITY, "age": "old"})))
    assert error == ("mapping", "routes.user-to-crm.sync.map.age: the value is text, not a whole number")
    assert world.asked[-1] == FIND


# --- mistakes


def mistake(world: World, sync: str) -> str:
    with pytest.raises(ConfigError) as caught:
        destinations.build(world.config(sync))
    return str(caught.value)


@pytest.mark.parametrize(
    ("sync", "why"),
    [
        (with_find('pick = "items", verify = 5'), "verify: expected a table or true or false, got a number"),
        (with_find("verify = { external_id = 5 }"), "verify.external_id: expected text in quotes, got a number"),
        (
            "\n".join(line for line in with_update('if_match = "etag"').splitlines() if "find =" not in line),
            "update.if_match: matches the version that find gives",
        ),
    ],
)
def test_a_mistake_is_told_with_its_key(world: World, sync: str, why: str) -> None:
    assert why in mistake(world, sync)


@pytest.mark.usefixtures("hooks")
def test_every_mistake_of_every_route_is_told_at_the_start(world: World) -> None:
    wrong = replace_in_sync(
        MAP, 'map = { a = "entity.[", b = { from = "thing" }, c = { function = "hooks_of_sync_test:no" } }'
    )
    for old, new in (
        ('clear_when_absent = ["phone"]', ""),
        ('"/user/{event.entity_id}"', '"/user/{entity.id}/{thing}", params = { a = "{", b = "{}" }'),
        ('path = "/contacts/{target.id}"', 'path = "contacts"'),
    ):
        wrong = wrong.replace(old, new)
    config = world.config(wrong)
    other = msgspec.structs.replace(config.routes["user-to-crm"], name="other")
    with pytest.raises(ConfigError) as caught:
        destinations.build(msgspec.structs.replace(config, routes={**config.routes, "other": other}))
    places = [line.partition(": ")[0].removeprefix("routes.") for line in str(caught.value).splitlines()]
    expected = [
        *("delete.path", "fetch.params.a", "fetch.params.b", "fetch.path", "fetch.path", "find.verify", "map.a"),
        *("map.b.from", "map.c.function", "update.path"),
    ]
    assert sorted(places) == sorted(f"{route}.sync.{each}" for route in ("user-to-crm", "other") for each in expected)
