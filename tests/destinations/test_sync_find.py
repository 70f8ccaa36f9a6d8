"""Finding a counterpart: never "none" after an unexpected answer, and never another one than was searched for."""

from __future__ import annotations

import json

import pytest

from inbox.errors import ConfigError
from relay.delivery.outcome import Delivery, Skipped
from tests.destinations.syncing import DELETE, FETCH, FETCHED, FIND, SECOND, SYNC, UPDATE, World, changed
from tests.helpers.delivering import delivered, failure
from tests.helpers.scripted import Act, answer

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
WITHOUT_A_PICK = changed(', pick = "items"', "")


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


def test_nothing_is_deleted_for_lack_of_a_counterpart_on_such_an_answer_either(world: World) -> None:
    assert failure(world.deliver(DELETE, find=answer(200, {"items": None}))) == ("bad_answer", NOTHING_AT_ITEMS)


@pytest.mark.parametrize("found", [{"items": None}, {}, {"items": []}])
def test_a_route_can_say_that_null_means_none(world: World, found: object) -> None:
    sync = changed('pick = "items"', "pick = 'items || `[]`'")
    assert delivered(world.deliver(sync=sync, find=answer(200, found))).did == "created"


# --- one answer has every match

FIND_TABLE = 'find = { path = "/contacts", params = { externalId = "{event.entity_id}" }, pick = "items" }'
C1 = {"id": "c1", "external_id": "u1"}


def page(*matches: object, **more: object) -> Act:
    return answer(200, {"items": matches, **more})


def test_an_answer_of_scim_that_counts_none_needs_no_list(world: World) -> None:
    assert delivered(world.deliver(find=answer(200, {"totalResults": 0}))).did == "created"


def test_a_match_that_comes_twice_is_one(world: World) -> None:
    assert delivered(world.deliver(find=page(C1, C1))).did == "updated"


def test_a_search_by_post_has_its_values_in_the_body(world: World) -> None:
    find = 'find = { path = "/search", method = "POST", body = { id = "{event.entity_id}" }, pick = "items" }'
    world.server.routes["POST /search"] = [page(C1)]
    assert delivered(world.deliver(sync=changed(FIND_TABLE, find))).did == "updated"
    assert [json.loads(seen.body) for seen in world.server.seen if seen.target == "/search"] == [{"id": "u1"}]


def test_without_a_counterpart_a_route_can_skip(world: World) -> None:
    assert isinstance(world.deliver(sync=f'missing = "skip"\n{SYNC}', find=page()), Skipped)


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
