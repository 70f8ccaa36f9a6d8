"""Finding a counterpart: page by page where the destination pages, and never "none" after an unexpected answer."""

from __future__ import annotations

import json

import pytest

from inbox.errors import ConfigError
from relay.delivery.outcome import Delivery, Skipped
from tests.destinations.syncing import CREATE, DELETE, FETCH, FETCHED, FIND, FOUND, SECOND, SYNC, UPDATE, World, changed
from tests.helpers.delivering import delivered, failed, failure
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
def test_where_no_list_or_object_is_found_the_answer_is_bad_and_nothing_is_written(
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


# --- page by page

FIND_TABLE = 'find = { path = "/contacts", params = { externalId = "{event.entity_id}" }, pick = "items" }'
C1, C2 = {"id": "c1", "external_id": "u1"}, {"id": "c2", "external_id": "u1"}


def paged(pages: str, more: str = "") -> str:
    return more + changed(FIND_TABLE, FIND_TABLE.replace(" }, pick", f" }}, pages = {pages}, pick"))


def page(*matches: object, **more: object) -> Act:
    return answer(200, {"items": matches, **more})


NO_NEXT: list[dict[str, object]] = [{}, {"next": None}, {"next": ""}, {"next": False}]


def at(start: int, count: int = 10) -> str:
    return f"{FIND}&startIndex={start}&count={count}"


CURSOR = '{ by = "cursor", next = "next", params = { after = "{next}", limit = "{count}" } }'
START, TOTAL, LINK = '{ by = "start" }', '{ by = "start", total = "total" }', '{ by = "url", next = "next" }'
FIRST = f"{FIND}&limit=10"


def after(place: str) -> str:
    return f"{FIND}&after={place}&limit=10"


def numbered(number: int) -> str:
    return f"GET /contacts?page={number}"


Pages = dict[str, Act]
SEARCHES: dict[str, tuple[str, Pages, str]] = {
    "by start until a page is empty": (START, {at(0): page(C1), at(1): page()}, "updated"),
    "a first page without a match is the end by start": (START, {at(0): page()}, "created"),
    "a total saves the page that would be empty": (TOTAL, {at(0): page(C1, total=1)}, "updated"),
    "a total of none needs no list, as SCIM has it": (TOTAL, {at(0): answer(200, {"total": 0})}, "created"),
    "a later page that is not there is the end": (START, {at(0): page(C1), at(1): answer(404)}, "updated"),
    # some services look through so many records for each page, and say where they have come to
    "none on the first page is not none": (
        CURSOR,
        {FIRST: page(next="a/b"), after("a%2Fb"): page(C1, next=3), after("3"): page(next=None)},
        "updated",
    ),
    **{f"{last} names no next page": (CURSOR, {FIRST: page(**last)}, "created") for last in NO_NEXT},
}


@pytest.mark.parametrize(("pages", "answers", "did"), SEARCHES.values(), ids=SEARCHES)
def test_pages_are_asked_for_one_after_the_other_until_the_end(
    world: World, pages: str, answers: Pages, did: str
) -> None:
    world.server.routes |= {page: [act] for page, act in answers.items()}
    outcome = delivered(world.deliver(sync=paged(pages)))
    assert outcome.did == did
    assert world.asked == [FETCH, *answers, UPDATE if did == "updated" else CREATE]
    steps = ["fetch", *["find" for _ in answers], "update" if did == "updated" else "create"]
    assert [call.step for call in outcome.calls] == steps, "each is in the log"


def test_where_the_first_will_do_the_first_match_ends_the_search(world: World) -> None:
    world.server.routes |= {at(0): [page(C1)]}
    assert delivered(world.deliver(sync=paged(START, 'many = "first"\n'))).did == "updated"
    assert world.asked == [FETCH, at(0), UPDATE]


NO_END = (
    "find: no end after 3 pages, so that it is not known what there is; "
    "narrow the call down by its params, or raise pages.most"
)
LEFT = "find: page 1 is empty, and 3 items are said to be left; where total counts items that no page has, remove it"
NO_TOTAL = "find: the answer has no number at total"
BAD: dict[str, tuple[str, Pages, str]] = {
    "a total and nothing": (TOTAL, {at(0): answer(200, {"total": 1})}, NOTHING_AT_ITEMS),
    "a total that is none": (TOTAL, {at(0): answer(200, {"total": False})}, NOTHING_AT_ITEMS),
    "an empty page too early": (
        TOTAL, {at(0): page(total=3)}, LEFT,
    ),
    "no total": (TOTAL, {at(0): page(C1)}, NO_TOTAL),
    "a total that is a text": (TOTAL, {at(0): page(C1, total="1")}, NO_TOTAL),
    "a page that comes again whatever is asked for": (
        START,
        {at(0): page(C1), at(1): page(C1)},
        "find: page 2 came before: does the call take what pages says?",
    ),
    "a page that names itself as the next": (
        LINK,
        {FIND: page(next="?page=1"), numbered(1): page(next="?page=1")},
        "find: page 2 names one as the next that was asked for already: it has no end",
    ),
    "pages without end": (
        '{ by = "url", next = "next", most = 3 }',
        {FIND: page(next="?page=1"), **{numbered(n): page(next=f"?page={n + 1}") for n in (1, 2)}},
        NO_END,
    ),
    **{
        f"{following!r} as the next page": (
            CURSOR,
            {FIRST: page(next=following)},
            "find: next finds neither a text nor a number in the answer",
        )
        for following in (True, 1.5, ["x"], {"page": 2})
    },
    **{
        f"a {gone} for a page that another leads to": (
            CURSOR,
            {FIRST: page(next=2), after("2"): answer(gone)},
            "find: page 2 is not there, though the one before leads to it",
        )
        for gone in (404, 410, 204)
    },
    "a later page that is no JSON": (START, {at(0): page(C1), at(1): answer(200, b"{")}, "find: the answer is not JSON"),
    "a later page with no objects": (START, {at(0): page(C1), at(1): page("x")}, "find: a match is not an object"),
}  # fmt: skip


@pytest.mark.parametrize(("pages", "answers", "error"), BAD.values(), ids=BAD)
def test_pages_that_can_not_be_are_a_bad_answer_and_nothing_is_written(
    world: World, pages: str, answers: Pages, error: str
) -> None:
    world.server.routes |= {page: [act] for page, act in answers.items()}
    outcome = world.deliver(sync=paged(pages), find=answers.get(FIND, FOUND))
    assert failure(outcome) == ("bad_answer", error)
    assert world.asked == [FETCH, *answers]


@pytest.mark.parametrize(("second", "error_class"), [(answer(503), "server_error"), (page(C2), "ambiguous")])
def test_a_second_match_and_a_failure_on_the_second_page_are_seen(world: World, second: Act, error_class: str) -> None:
    world.server.routes |= {at(1, 1): [page(C1)], at(2, 1): [second]}
    assert failure(world.deliver(sync=paged('{ by = "start", count = 1, first = 1 }')))[0] == error_class
    assert world.asked == [FETCH, at(1, 1), at(2, 1)]


SECOND_PAGE = "GET /contacts?externalId=u1&page=2"


@pytest.mark.parametrize(
    "link", ["{url}/contacts?externalId=u1&page=2", "/contacts?externalId=u1&page=2", "?externalId=u1&page=2"]
)
def test_a_link_to_the_next_page_is_followed_absolute_or_relative(world: World, link: str) -> None:
    world.server.routes[SECOND_PAGE] = [page(C1, links={})]
    first = page(links={"next": link.format(url=world.server.url)})
    outcome = world.deliver(sync=paged('{ by = "url", next = "links.next" }'), find=first)
    assert delivered(outcome).did == "updated"
    assert world.asked == [FETCH, FIND, SECOND_PAGE, UPDATE]
    assert outcome.calls[2].url == f"{world.server.url}/contacts?externalId=…&page=…"


def test_a_link_header_is_followed_to_another_path_as_github_has_them(world: World) -> None:
    header = f'<{world.server.url}/repositories/7/contacts?page=2>; rel="next", <{world.server.url}/x>; rel="last"'
    world.server.routes["GET /repositories/7/contacts?page=2"] = [page(C1)]
    outcome = world.deliver(sync=paged('"link"'), find=answer(200, {"items": []}, link=header))
    assert delivered(outcome).did == "updated"
    assert world.asked == [FETCH, FIND, "GET /repositories/7/contacts?page=2", UPDATE]


@pytest.mark.parametrize(
    "link",
    ["https://evil.example/contacts?page=2", "//evil.example/contacts?page=2", "file:///etc/passwd", "https://["],
)
@pytest.mark.parametrize("by", ["link", "url"])
def test_a_link_that_leads_elsewhere_is_a_bad_answer(world: World, link: str, by: str) -> None:
    pages = '{ by = "url", next = "next" }' if by == "url" else '{ by = "link" }'
    first = answer(200, {"items": [C1], "next": link}, link=f'<{link}>; rel="next"')
    error_class, error = failure(world.deliver(sync=paged(pages), find=first))
    assert error_class == "bad_answer"
    assert error.startswith("find: the link to the next page ")
    assert world.asked == [FETCH, FIND]


def test_what_a_link_holds_can_not_break_the_request(world: World) -> None:
    link = "/contacts?page=2 HTTP/1.1\r\nX-Evil: ä"
    failed(world.deliver(sync=paged(LINK), find=page(C1, next=link)))
    assert world.asked[2:] == ["GET /contacts?page=2%20HTTP/1.1X-Evil:%20%C3%A4"]


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
        'pages = { by = "start" }, pick = "items" }'
    )
    world.server.routes["POST /search"] = [page(C1), page()]
    assert delivered(world.deliver(sync=changed(FIND_TABLE, find))).did == "updated"
    assert [json.loads(seen.body)["from"] for seen in world.server.seen if seen.target == "/search"] == [0, 1]


def test_the_place_may_stand_in_the_path(world: World) -> None:
    find = 'find = { path = "/contacts/from/{start}", pages = { by = "start" }, pick = "items", verify = false }'
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
    outcome = world.deliver(sync=paged(LINK), find=page(next=link))
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
