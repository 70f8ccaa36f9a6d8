"""However a service cuts a list into pages, and leads from one to the next, it is read whole, once, and within its endpoint."""

from __future__ import annotations

import itertools
import json
import posixpath
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Literal
from urllib.parse import parse_qs, unquote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from inbox.config.sync import Paging, PagingSetting, Sweep
from inbox.errors import ConfigError, UnusableResponse
from relay.sync.paging import LONGEST, PagesPlan, Paginator, compile_pages, next_in_header, resolve_link

API = "https://api.example.com/v1"
Asked = dict[str, str]
Answered = tuple[dict[str, Any], str | None]
"""A page, and its `Link` header."""


def pages_plan(
    pages: PagingSetting,
    method: Literal["GET", "POST"] = "GET",
    body: dict[str, Any] | None = None,
    path: str = "/users",
) -> PagesPlan:
    table = Sweep(api="a", entity_type="T", path=path, method=method, params={"active": "yes"}, body=body, pages=pages)
    return compile_pages(table, "r.listing")


def read(pages: PagingSetting, answer: Callable[[Asked], Answered], most: int = 500) -> list[int]:
    """Read all pages of a service, which answers by the query alone."""
    paginator = Paginator[int](pages_plan(pages), {}, API)
    found: list[int] = []
    for _ in range(most):
        path, query = paginator.at
        assert path == "/users"
        document, link = answer({name: values[0] for name, values in parse_qs(query).items()})
        found += paginator.take(document, link, document["items"])
        if paginator.is_at_end:
            return found
    raise AssertionError("it does not come to an end")


SIZES = st.lists(st.integers(0, 4), max_size=8)
"""Number of items on each page."""
FULL = st.tuples(st.integers(0, 30), st.integers(1, 7))
"""Number of items, and of those on each page but the last."""


def cut(sizes: list[int]) -> list[list[int]]:
    numbers = iter(range(sum(sizes)))
    return [[next(numbers) for _ in range(size)] for size in sizes] or [[]]


def answer_by_links(pages: list[list[int]], write: Callable[[int], str]) -> Callable[[Asked], Answered]:
    def answer(asked: Asked) -> Answered:
        assert asked["active"] == "yes"
        number = int(asked.get("cursor", 0))
        following = write(number + 1) if number + 1 < len(pages) else None
        header = None if following is None else f'<{API}>; rel="first", <{following}>; title="a, b"; rel="next last"'
        return {"items": pages[number], "next": following}, header

    return answer


WRITTEN = st.sampled_from([
    f"{API}/users?active=yes&cursor={{}}", "/v1/users?active=yes&cursor={}", "?active=yes&cursor={}", "users?active=yes&cursor={}",
    "HTTPS://API.EXAMPLE.COM:443/v1/users?active=yes&cursor={}#there",
])  # fmt: skip


@given(SIZES, WRITTEN, st.sampled_from(["link", "url"]))
def test_by_links_of_any_spelling(sizes: list[int], written: str, by: str) -> None:
    pages: PagingSetting = "link" if by == "link" else Paging(by="url", next="next")
    answer = answer_by_links(cut(sizes), written.format)
    assert read(pages, answer) == list(range(sum(sizes)))


@given(SIZES, st.booleans())
def test_by_a_cursor_also_over_empty_pages(sizes: list[int], has_more: bool) -> None:
    pages = cut(sizes)

    def answer(asked: Asked) -> Answered:
        number = int(asked.get("after", "c0")[1:])
        is_last = number + 1 == len(pages)
        following = None if is_last and not has_more else f"c{number + 1}"
        return {"items": pages[number], "page": {"end": following, "hasMore": not is_last}}, None

    table = Paging(by="cursor", next="page.end", more="page.hasMore" if has_more else None, params={"after": "{next}"})
    assert read(table, answer) == list(range(sum(sizes)))


ENDS: dict[str, dict[str, Any]] = {"empty": {}, "total": {"total": "total"}, "more": {"more": "more"}}


@given(FULL, st.sampled_from([*ENDS]), st.integers(0, 1), st.sampled_from(["page", "start"]))
def test_by_number_with_any_end(listed: tuple[int, int], end: str, first: int, by: Literal["page", "start"]) -> None:
    size, count = listed
    asked_for = []

    def answer(asked: Asked) -> Answered:
        position = int(asked[by]) - first
        asked_for.append(position)
        begin = position * count if by == "page" else position
        return {"items": list(range(size))[begin : begin + count], "total": size, "more": begin + count < size}, None

    table = Paging(by=by, first=first, count=count, params={by: f"{{{by}}}"}, **ENDS[end])
    assert read(table, answer) == list(range(size))
    if by == "page" and (end == "more" or (end == "total" and size)):
        assert len(asked_for) == max(-(-size // count), 1), "no page is asked for in vain"


def test_by_start_a_listing_that_has_moved_far_is_caught_up_with_in_few_steps() -> None:
    listing, asked_for = list(range(200)), []

    def answer(asked: Asked) -> Answered:
        asked_for.append(start := int(asked["start"]))
        if len(asked_for) == 12:
            del listing[:100]
        return {"items": listing[start : start + 10]}, None

    table = Paging(by="start", first=0, count=10, params={"start": "{start}"})
    assert read(table, answer) == list(range(200))
    assert len(asked_for) < 60


MOVE = st.tuples(st.sampled_from(["change", "delete"]), st.integers(0, 30))
MOVES = st.lists(st.lists(MOVE, max_size=4), max_size=8)
"""Before each page but the first."""


@given(st.integers(0, 30), st.integers(2, 7), MOVES, st.sampled_from([*ENDS]))
def test_by_start_a_moving_listing_is_read_whole(
    size: int, count: int, moves: list[list[tuple[str, int]]], end: str
) -> None:
    """A changed entity is another one, at the end of the listing."""
    listing, changed, steps = list(range(size)), itertools.count(1000), iter([[], *moves])

    def answer(asked: Asked) -> Answered:
        for kind, which in next(steps, ()):
            if which < len(listing):
                listing.pop(which)
                listing.extend([next(changed)] if kind == "change" else [])
        begin = int(asked["start"])
        page = listing[begin : begin + count]
        return {"items": page, "total": len(listing), "more": begin + count < len(listing)}, None

    table = Paging(by="start", count=count, params={"start": "{start}"}, **ENDS[end])
    try:
        found = read(table, answer)
    except UnusableResponse:
        return  # it says so
    assert {each for each in listing if each < size} <= {*found}


def test_without_pages_one_answer_has_everything() -> None:
    assert read("none", lambda _: ({"items": [1, 2], "next": "/x"}, '</x>; rel="next"')) == [1, 2]


def test_by_post_the_cursor_is_in_the_body_from_the_second_page_on() -> None:
    body = {"variables": {"first": "{count}", "after": "{next}"}, "sort": ["name", "{next}"]}
    paginator = Paginator[int](pages_plan(Paging(by="cursor", next="end"), "POST", body), {}, API)
    assert json.loads(paginator.body or b"") == {"variables": {"first": 100}, "sort": ["name"]}
    paginator.take({"end": "b64=="}, None, [1])
    assert json.loads(paginator.body or b"") == {
        "variables": {"first": 100, "after": "b64=="},
        "sort": ["name", "b64=="],
    }


def take_all(pages: Paging, documents: list[dict[str, Any]]) -> None:
    paginator = Paginator[int](pages_plan(pages), {}, API)
    for document in documents:
        assert not paginator.is_at_end
        paginator.take(document, None, document["items"])


CURSOR = Paging(by="cursor", next="next", params={"after": "{next}"})
MORE = Paging(by="cursor", next="next", more="more", params={"after": "{next}"})
BAD: dict[str, tuple[Paging, list[dict[str, Any]], str]] = {
    "the same cursor": (CURSOR, [{"items": [1], "next": "a"}, {"items": [2], "next": "a"}], "refers to an earlier page"),
    "cursors in a circle": (CURSOR, [{"items": [n], "next": f"{n % 3}"} for n in range(9)], "refers to an earlier page"),
    "the same page": (CURSOR, [{"items": [1], "next": "a"}, {"items": [1], "next": "b"}], "page 2 repeats an earlier page"),
    "pages in a circle": (
        Paging(by="page"), [{"items": [n % 3, 9 - n % 3]} for n in range(30)], "repeats an earlier page: check that",
    ),
    "a link to itself": (Paging(by="url", next="next"), [{"items": [1], "next": "?active=yes"}], "refers to an earlier page"),
    "a link to the first page": (
        Paging(by="url", next="next"),
        [{"items": [1], "next": "?p=2"}, {"items": [2], "next": "/v1/users?active=yes"}],
        "refers to an earlier page",
    ),
    "more that is no truth": (MORE, [{"items": [1], "next": "a", "more": "yes"}], "neither true nor false at more"),
    "more that is missing": (MORE, [{"items": [1], "next": "a"}], "neither true nor false at more"),
    "more without a cursor": (MORE, [{"items": [1], "more": True}], "there are more items, but has no value at next"),
    "a cursor that is a list": (CURSOR, [{"items": [1], "next": ["a"]}], "neither a text nor a number"),
    "a cursor without end": (CURSOR, [{"items": [1], "next": "x" * (LONGEST + 1)}], "more than 8192 characters"),
    "a total that is no number": (Paging(by="page", total="total"), [{"items": [1], "total": "9"}], "no number at total"),
    "too many pages": (
        Paging(by="page", most=3), [{"items": [n]} for n in range(9)], "no end after 3 pages.*raise pages.most",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("pages", "documents", "error"), BAD.values(), ids=BAD)
def test_pages_that_lead_nowhere_are_an_error(pages: Paging, documents: list[dict[str, Any]], error: str) -> None:
    with pytest.raises(UnusableResponse, match=error):
        take_all(pages, documents)


@pytest.mark.parametrize(
    ("pages", "mistake"),
    [
        (Paging(by="cursor", next="next"), r"r\.listing\.pages: no param has \{next\}, .*write params = \{ NAME = "),
        (Paging(by="start", params={"limit": "{count}"}), r"pages: no param has \{start\}"),
        (Paging(by="start", params={"after": "{next}"}), r"pages\.params\.after: .* unknown name 'next'"),
        (Paging(by="url", next="a["), r"pages\.next"),
        (Paging(by="start", total="a["), r"pages\.total"),
    ],
)
def test_a_mistake_in_the_table_is_found_at_the_start(pages: Paging, mistake: str) -> None:
    with pytest.raises(ConfigError, match=mistake):
        pages_plan(pages)


@pytest.mark.parametrize("size", [1, 2, 3, 9, 10, 11])
def test_a_service_that_takes_a_start_of_0_for_1_comes_to_its_end(size: int) -> None:
    def answer(asked: Asked) -> Answered:
        begin = max(int(asked["startIndex"]), 1) - 1
        return {"items": list(range(size))[begin : begin + 10]}, None

    assert read(Paging(by="start", first=0, count=10), answer) == list(range(size))


def test_a_listing_that_changes_faster_than_it_is_read_is_given_up() -> None:
    pages = iter([{"items": list(range(page * 5, page * 5 + 5))} for page in range(100)])
    with pytest.raises(UnusableResponse, match="don't connect"):
        read(Paging(by="start", first=0, count=5), lambda _: (next(pages), None))


# --- A link to the next page is followed within its endpoint alone, whatever it says


BASE = "https://api.example.com/v1?key=secret"
CURRENT = "https://api.example.com/v1/users?active=yes"

# --- the Link header


@pytest.mark.parametrize(
    ("header", "following"),
    [
        (None, None),
        ("", None),
        (", ,", None),
        ('<https://a/x?page=2>; rel="next"', "https://a/x?page=2"),
        ('<https://a/1>; rel="prev", <https://a/3>; rel="next"', "https://a/3"),
        ("</x>;rel=next", "/x"),
        ("<?a=1,2;3> ;\tREL = Next ,", "?a=1,2;3"),
        ('</x>; rel="last NEXT first"', "/x"),
        ('</x>; title="a, <b>; rel=\\"next\\""; rel="prev", </y>; rel="next"', "/y"),
        ("</x>; rel=prev; rel=next", None),
        ('</x>; rel="next"; anchor="/other"', None),
        ('</x>; anchor=""; rel="next"', None),
        ('</x>; rel="nextpage"', None),
        ("</x>; rel", None),
        ("</x>;; rel=next;", "/x"),
        ('<>; rel="next"', ""),
        ('</x>; rel="next", </x>; rel="next"', "/x"),
        ("</x>; title*=UTF-8''n%C3%A4chste; rel=next", "/x"),
    ],
)
def test_the_next_page_is_that_of_the_link_header(header: str | None, following: str | None) -> None:
    assert next_in_header(header) == following


@pytest.mark.parametrize(
    "header",
    [
        "https://a/x; rel=next", "</x; rel=next", '</x>; rel="next', "</x> rel=next", '</x>; rel=next "', "<</x>>; rel=next",
        '</x>; rel="next" </y>; rel="prev"', "next",
    ],
)  # fmt: skip
def test_a_header_that_can_not_be_read_is_not_the_last_page(header: str) -> None:
    with pytest.raises(UnusableResponse, match="the Link header can't be read"):
        next_in_header(header)


@pytest.mark.parametrize(
    "part", ["</x>; rel=prev, ", "</x>" + ";" * 60, '</x>; a="' + "\\\\" * 60 + '", ', " " * 60, "," * 60, "; a=b", "<"]
)
def test_a_large_header_is_read_in_no_time(part: str) -> None:
    header = f"</x>; rel=prev{' ' if part.strip() else ''}" + part * (65_536 // len(part))
    began = time.process_time()
    with suppress(UnusableResponse):
        next_in_header(header)
    assert time.process_time() - began < 1


# --- within the endpoint


@pytest.mark.parametrize(
    ("link", "path", "query"),
    [
        ("https://api.example.com/v1/users?page=2", "/users", "page=2"),
        ("https://api.example.com:443/v1/users?page=2#x", "/users", "page=2"),
        ("HTTPS://API.example.COM/v1/users?page=2", "/users", "page=2"),
        ("//api.example.com/v1/users?page=2", "/users", "page=2"),
        ("/v1/repositories/7/issues?page=2", "/repositories/7/issues", "page=2"),
        ("?page=2", "/users", "page=2"),
        ("groups", "/groups", ""),
        ("https://api.example.com/v1?page=2", "/", "page=2"),
        ("?key=secret&page=2", "/users", "page=2"),
        ("?page=a b\u00e4\r\nX: y", "/users", "page=a%20b%C3%A4X:%20y"),
        ("/v1/%C3%A4 b", "/%C3%A4%20b", ""),
    ],
)
def test_a_link_within_the_endpoint_is_followed(link: str, path: str, query: str) -> None:
    assert resolve_link(link, BASE, CURRENT) == (path, query)


ELSEWHERE = [
    "https://evil.example/v1/users", "//evil.example/v1/users", "http://api.example.com/v1/users",
    "https://api.example.com:8443/v1/users", "https://api.example.com.evil.example/v1/users", "https://api.example.com./v1/users",
    "https://me@api.example.com/v1/users", "https://me:pw@api.example.com/v1/users", "https://api.example.com@evil.example/v1/users",
    "https://@api.example.com/v1/users", "https://evil.example\\@api.example.com/v1/users", "file:///v1/users", "file:///etc/passwd",
    "ftp://api.example.com/v1/users", "javascript:alert(1)", "data:text/plain,x",  "https://[::1]/v1/users",
    "https://%61pi.example.com/v1/users", "https://api\u3002example.com/v1/users", "https://\uff41pi.example.com/v1/users",
]  # fmt: skip
BESIDE = ["/", "/v2/users", "/v1x/users", "/V1/users", "../users", "/v1/../admin", "/v1//evil/x", "/%76%31/users"]
SLY = ["/v1/%2e%2e/admin", "/v1/..;x/admin", "/v1/a\\..\\..\\admin", "/v1/%252e%252e/admin", "/v1/x%00y"]


@pytest.mark.parametrize(
    ("link", "why"),
    [
        *(
            (link, "leads elsewhere: it must have the scheme, host and port of base_url.*base_url")
            for link in ELSEWHERE
        ),
        *((link, "its path is not below that of base_url; shorten the path.*base_url") for link in (*BESIDE, API[:-3])),
        *((link, "could lead to another resource") for link in SLY),
        (f"?a={'x' * 8192}", "more than 8192 characters"),
    ],
)
def test_a_link_to_another_origin_or_with_a_user_is_refused_with_a_remedy(link: str, why: str) -> None:
    with pytest.raises(UnusableResponse, match=why) as caught:
        resolve_link(link, BASE, CURRENT)
    assert "evil" not in str(caught.value), "nothing of the link is repeated"


PIECES = [
    "https:", "http:", "//", "/", "\\", "..", ".", "%2e", "%2f", "v1", "users", "api.example.com", "evil.example", "@", ":",
    "443", "?", "#", "a=b", "&", " ", "\t", "\n", "\r", ";", "[", "]", "\u3002", "\uff0f", "\x00", "\ud800",
]  # fmt: skip


@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join) | st.text())
@example("https://api.example.com/v1/users?page=2")
def test_a_request_for_any_link_is_one_line_below_the_endpoint(link: str) -> None:
    try:
        path, query = resolve_link(link, BASE, CURRENT)
    except UnusableResponse:
        return
    assert path.startswith("/")
    assert not path.startswith("//")
    for text in (path, query):
        assert text.isascii()
        assert text.isprintable()
        assert not set(" #") & set(text)
    assert "?" not in path
    seen = f"/v1{path}"
    for _ in range(10):
        for read in (seen, seen.replace("\\", "/")):
            assert posixpath.normpath(read).startswith("/v1"), seen
        seen = unquote(seen)
