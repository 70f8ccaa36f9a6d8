"""Finding a counterpart: page by page where the destination pages, and never "none" after an unexpected answer."""

from __future__ import annotations

import json

import pytest

from inbox.errors import ConfigError
from relay.delivery.outcome import Delivery, Skipped
from tests.destinations.scripted import Act, answer
from tests.destinations.syncing import (
    CREATE,
    DELETE,
    FETCH,
    FETCHED,
    FIND,
    SECOND,
    SYNC,
    UPDATE,
    World,
    changed,
)
from tests.helpers.delivering import delivered, failed, failure

# --- an answer that nobody expects creates nothing

NOTHING_AT_ITEMS = (
    "find: the answer has nothing at items, or null; where that means that there is none, write pick = 'items || `[]`'"
)
NO_LIST_AT_ITEMS = "find: what the answer has at items is neither a list nor an object"


@pytest.mark.parametrize(
    ("found", "error"),
    [
        ({}, NOTHING_AT_ITEMS),
        ({"contacts": []}, NOTHING_AT_ITEMS),
        ({"error": "down for maintenance"}, NOTHING_AT_ITEMS),
        ({"items": None}, NOTHING_AT_ITEMS),
        (None, NOTHING_AT_ITEMS),
        ([], NOTHING_AT_ITEMS),
        ("items", NOTHING_AT_ITEMS),
        ({"items": ""}, NO_LIST_AT_ITEMS),
        ({"items": "none"}, NO_LIST_AT_ITEMS),
        ({"items": False}, NO_LIST_AT_ITEMS),
        ({"items": 0}, NO_LIST_AT_ITEMS),
        ({"items": {}}, "find: the match lacks one of: target.id"),
        ({"items": [None]}, "find: a match is not an object"),
        ({"items": [[]]}, "find: a match is not an object"),
    ],
)
def test_where_pick_finds_no_list_the_answer_is_bad_and_nothing_is_written(
    world: World, found: object, error: str
) -> None:
    assert failure(world.deliver(find=answer(200, found))) == ("bad_answer", error)
    assert world.asked == [FETCH, FIND]


@pytest.mark.parametrize(
    ("found", "error"),
    [
        (answer(200, b""), "find: the answer is neither a list nor an object"),
        (answer(200, b"null"), "find: the answer is neither a list nor an object"),
        (answer(200, b'"none"'), "find: the answer is neither a list nor an object"),
        (answer(200, b"0"), "find: the answer is neither a list nor an object"),
        (answer(200, b"false"), "find: the answer is neither a list nor an object"),
        (answer(200, {}), "find: the match lacks one of: target.id"),
        (answer(200, {"items": None}), "find: the match lacks one of: target.id"),
    ],
)
def test_without_a_pick_what_is_neither_an_object_nor_a_list_is_bad(world: World, found: Act, error: str) -> None:
    assert failure(world.deliver(sync=changed(', pick = "items"', ""), find=found)) == ("bad_answer", error)
    assert world.asked == [FETCH, FIND]


def test_nothing_is_deleted_for_lack_of_a_counterpart_on_such_an_answer_either(world: World) -> None:
    assert failure(world.deliver(DELETE, find=answer(200, {"items": None}))) == ("bad_answer", NOTHING_AT_ITEMS)


@pytest.mark.parametrize("found", [{"items": None}, {}, {"items": []}])
def test_a_route_can_say_that_null_means_none(world: World, found: object) -> None:
    sync = changed('pick = "items"', "pick = 'items || `[]`'")
    assert delivered(world.deliver(sync=sync, find=answer(200, found))).did == "created"


# --- page by page

FIND_TABLE = 'find = { path = "/contacts", params = { externalId = "{event.entity_id}" }, pick = "items" }'
C1, C2 = {"id": "c1", "external_id": "u1"}, {"id": "c2", "external_id": "u1"}


def paged(pages: str, more: str = "") -> str:
    return more + changed(FIND_TABLE, FIND_TABLE.replace(" }, pick", f" }}, pages = {pages}, pick"))


def page(*matches: object, **more: object) -> Act:
    return answer(200, {"items": matches, **more})


def at(start: int, count: int = 10) -> str:
    return f"{FIND}&startIndex={start}&count={count}"


def test_by_start_a_page_is_asked_for_until_one_is_empty(world: World) -> None:
    world.server.routes |= {at(0): [page(C1)], at(1): [page()]}
    outcome = world.deliver(sync=paged("{}"))
    assert delivered(outcome).did == "updated"
    assert world.asked == [FETCH, at(0), at(1), UPDATE]
    assert [call.step for call in outcome.calls] == ["fetch", "find", "find", "update"], "each is in the log"


def test_a_first_page_without_a_match_is_the_end_by_start(world: World) -> None:
    world.server.routes |= {at(0): [page()]}
    assert delivered(world.deliver(sync=paged("{}"))).did == "created"
    assert world.asked == [FETCH, at(0), CREATE]


def test_a_second_match_on_the_second_page_is_seen(world: World) -> None:
    world.server.routes |= {at(1, 1): [page(C1)], at(2, 1): [page(C2)]}
    outcome = world.deliver(sync=paged("{ count = 1, first = 1 }"))
    assert failure(outcome) == ("ambiguous", "find: 2 counterparts")


def test_where_the_first_will_do_the_first_match_ends_the_search(world: World) -> None:
    world.server.routes |= {at(0): [page(C1)]}
    assert delivered(world.deliver(sync=paged("{}", 'many = "first"\n'))).did == "updated"
    assert world.asked == [FETCH, at(0), UPDATE]


def test_a_total_saves_the_page_that_would_be_empty(world: World) -> None:
    world.server.routes |= {at(0): [page(C1, total=1)]}
    assert delivered(world.deliver(sync=paged('{ total = "total" }'))).did == "updated"
    assert world.asked == [FETCH, at(0), UPDATE]


def test_a_total_of_none_needs_no_list_as_scim_has_it(world: World) -> None:
    world.server.routes |= {at(0): [answer(200, {"total": 0})]}
    assert delivered(world.deliver(sync=paged('{ total = "total" }'))).did == "created"


@pytest.mark.parametrize(
    ("first", "error"),
    [
        (answer(200, {"total": 1}), NOTHING_AT_ITEMS),
        (answer(200, {"total": False}), NOTHING_AT_ITEMS),
        (page(total=3), "find: page 1 is empty, and 3 matches are said to be left"),
        (page(C1), "find: the answer has no number at total"),
        (page(C1, total="1"), "find: the answer has no number at total"),
    ],
)
def test_a_total_that_can_not_be_is_a_bad_answer(world: World, first: Act, error: str) -> None:
    world.server.routes |= {at(0): [first]}
    assert failure(world.deliver(sync=paged('{ total = "total" }'))) == ("bad_answer", error)
    assert world.asked == [FETCH, at(0)]


def test_a_page_that_comes_again_whatever_is_asked_for_is_a_bad_answer(world: World) -> None:
    world.server.routes |= {at(0): [page(C1)], at(1): [page(C1)]}
    error = "find: page 2 is the one before it: does /contacts take what pages says?"
    assert failure(world.deliver(sync=paged("{}"))) == ("bad_answer", error)
    assert world.asked == [FETCH, at(0), at(1)]


CURSOR = '{ next = "next", params = { after = "{next}", limit = "{count}" } }'


def test_none_on_the_first_page_is_not_none(world: World) -> None:
    """Some services look through so many records for each page, and say where they have come to."""
    first = f"{FIND}&limit=10"
    second, third = f"{FIND}&after=a%2Fb&limit=10", f"{FIND}&after=3&limit=10"
    world.server.routes |= {first: [page(next="a/b")], second: [page(C1, next=3)], third: [page(next=None)]}
    assert delivered(world.deliver(sync=paged(CURSOR))).did == "updated"
    assert world.asked == [FETCH, first, second, third, UPDATE]


@pytest.mark.parametrize("last", [{}, {"next": None}, {"next": ""}, {"next": False}])
def test_a_last_page_names_no_next_one(world: World, last: dict[str, object]) -> None:
    world.server.routes |= {f"{FIND}&limit=10": [page(**last)]}
    assert delivered(world.deliver(sync=paged(CURSOR))).did == "created"


@pytest.mark.parametrize("following", [True, 1.5, ["x"], {"page": 2}])
def test_a_next_page_that_can_not_be_asked_for_is_a_bad_answer(world: World, following: object) -> None:
    world.server.routes |= {f"{FIND}&limit=10": [page(next=following)]}
    error = "find: what the answer has at next is neither a text nor a number"
    assert failure(world.deliver(sync=paged(CURSOR))) == ("bad_answer", error)


@pytest.mark.parametrize(
    "link",
    [
        "http://127.0.0.1:1/v2/contacts?externalId=u1&page=2",
        "/contacts?externalId=u1&page=2",
        "?externalId=u1&page=2",
    ],
)
def test_a_link_gives_the_query_of_the_next_page_and_nothing_else(world: World, link: str) -> None:
    second = "GET /contacts?externalId=u1&page=2"
    world.server.routes |= {FIND: [page(links={"next": link})], second: [page(C1, links={})]}
    outcome = world.deliver(sync=paged('{ next = "links.next" }'), find=page(links={"next": link}))
    assert delivered(outcome).did == "updated"
    assert world.asked == [FETCH, FIND, second, UPDATE]
    assert outcome.calls[2].url == f"{world.server.url}/contacts?externalId=…&page=…"


@pytest.mark.parametrize("link", ["https://evil.example/users?page=2", "/contacts", "https://[", "/contacts/2"])
def test_a_link_that_leads_elsewhere_is_a_bad_answer(world: World, link: str) -> None:
    outcome = world.deliver(sync=paged('{ next = "links.next" }'), find=page(C1, links={"next": link}))
    error_class, error = failure(outcome)
    assert error_class == "bad_answer"
    assert error.startswith("find: the link to the next page ")
    assert world.asked == [FETCH, FIND]


def test_what_a_link_holds_can_not_break_the_request(world: World) -> None:
    link = "/contacts?page=2 HTTP/1.1\r\nX-Evil: ä"
    failed(world.deliver(sync=paged('{ next = "next" }'), find=page(C1, next=link)))
    assert world.asked[2:] == ["GET /contacts?page=2%20HTTP/1.1X-Evil:%20%C3%A4"]


def test_a_page_that_names_itself_as_the_next_is_a_bad_answer(world: World) -> None:
    again = "GET /contacts?page=1"
    world.server.routes[again] = [page(next="?page=1")]
    error = "find: page 2 names one as the next that was asked for already: it has no end"
    outcome = world.deliver(sync=paged('{ next = "next" }'), find=page(next="?page=1"))
    assert failure(outcome) == ("bad_answer", error)
    assert world.asked == [FETCH, FIND, again]


def test_pages_without_end_are_a_bad_answer_that_says_what_to_do(world: World) -> None:
    for number in range(1, 4):
        world.server.routes[f"GET /contacts?page={number}"] = [page(next=f"?page={number + 1}")]
    error = (
        "find: no end after 3 pages, so that it is not known what there is; "
        "narrow the find down by its params, or raise pages.most"
    )
    outcome = world.deliver(sync=paged('{ next = "next", most = 3 }'), find=page(next="?page=1"))
    assert failure(outcome) == ("bad_answer", error)
    assert len(world.asked) == 4


def test_a_later_page_that_is_not_there_is_the_end(world: World) -> None:
    world.server.routes |= {at(0): [page(C1)], at(1): [answer(404)]}
    assert delivered(world.deliver(sync=paged("{}"))).did == "updated"


@pytest.mark.parametrize("gone", [404, 410, 204])
def test_a_page_that_another_leads_to_and_is_not_there_is_never_taken_for_none(world: World, gone: int) -> None:
    first, second = f"{FIND}&limit=10", f"{FIND}&after=2&limit=10"
    world.server.routes |= {first: [page(next=2)], second: [answer(gone)]}
    error = "find: page 2 is not there, though the one before leads to it"
    assert failure(world.deliver(sync=paged(CURSOR))) == ("bad_answer", error)
    assert world.asked == [FETCH, first, second]


@pytest.mark.parametrize(
    ("act", "error_class"),
    [(answer(503), "server_error"), (answer(200, b"{"), "bad_answer"), (page("x"), "bad_answer")],
)
def test_a_later_page_that_fails_ends_the_attempt_and_nothing_is_written(
    world: World, act: Act, error_class: str
) -> None:
    world.server.routes |= {at(0): [page(C1)], at(1): [act]}
    assert failure(world.deliver(sync=paged("{}")))[0] == error_class
    assert world.asked == [FETCH, at(0), at(1)]


def test_the_version_is_that_of_the_answer_that_had_the_match(world: World) -> None:
    world.server.routes |= {
        f"{FIND}&limit=10": [answer(200, {"items": [], "next": 2}, ETag='"one"')],
        f"{FIND}&after=2&limit=10": [answer(200, {"items": [C1], "next": 3}, ETag='"two"')],
        f"{FIND}&after=3&limit=10": [answer(200, {"items": []}, ETag='"three"')],
    }
    sync = paged(CURSOR).replace('{target.id}" }', '{target.id}", if_match = "etag" }', 1)
    assert delivered(world.deliver(sync=sync)).did == "updated"
    assert world.server.seen[-1].headers["if-match"] == '"two"'


def test_a_search_by_post_can_have_its_place_in_the_body(world: World) -> None:
    find = (
        'find = { path = "/search", method = "POST", body = { id = "{event.entity_id}", from = "{start}" }, '
        'pages = { params = {} }, pick = "items" }'
    )
    world.server.routes["POST /search"] = [page(C1), page()]
    assert delivered(world.deliver(sync=changed(FIND_TABLE, find))).did == "updated"
    assert [json.loads(seen.body)["from"] for seen in world.server.seen if seen.target == "/search"] == [0, 1]


def test_the_place_may_stand_in_the_path(world: World) -> None:
    find = 'find = { path = "/contacts/from/{start}", pages = { params = {} }, pick = "items" }'
    with_start = [f"GET /contacts/from/{start}" for start in (0, 1)]
    world.server.routes |= {with_start[0]: [page(C1)], with_start[1]: [page()]}
    assert delivered(world.deliver(sync=changed(FIND_TABLE, find))).did == "updated"
    assert world.asked == [FETCH, *with_start, UPDATE]


def test_without_a_counterpart_on_any_page_a_route_can_skip(world: World) -> None:
    world.server.routes |= {f"{FIND}&limit=10": [page(next=2)], f"{FIND}&after=2&limit=10": [page()]}
    assert isinstance(world.deliver(sync=paged(CURSOR, 'missing = "skip"\n')), Skipped)


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


def test_a_match_of_a_later_page_has_to_be_the_one_too(world: World) -> None:
    world.server.routes |= {f"{FIND}&limit=10": [page(next=2)], f"{FIND}&after=2&limit=10": [page(OTHERS)]}
    assert failure(world.deliver(sync=paged(CURSOR)))[1].startswith(NOT_SEARCHED_FOR)


def test_a_link_that_asks_for_somebody_else_is_followed_to_nobody(world: World) -> None:
    """Only its query is taken, and what that finds is none that was searched for."""
    link = "/contacts?externalId=u2"
    world.server.routes |= {"GET /contacts?externalId=u2": [page(OTHERS)]}
    outcome = world.deliver(sync=paged('{ next = "next" }'), find=page(next=link))
    assert failure(outcome)[1].startswith(NOT_SEARCHED_FOR)


def test_what_is_found_anew_after_the_counterpart_is_gone_has_to_be_the_one_too(world: World) -> None:
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
