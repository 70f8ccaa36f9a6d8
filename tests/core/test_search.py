"""However its answers are cut into pages, a search finds none, the one, or that there are several."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inbox.config.sync import Find, Paging
from inbox.errors import ConfigError
from relay.sync.compiled_route import Search, compile_find

SCOPE = {"event": {"entity_id": "u1"}}
BASE = "https://crm.example.com"
PAGES = st.lists(st.integers(0, 3), min_size=1, max_size=8)
"""Number of matches on each page."""


def search(pages: Paging, enough: int = 2) -> Search:
    table = Find(path="/contacts", params={"id": "{event.entity_id}"}, pick="items", pages=pages, verify=False)
    return Search(compile_find(table, "routes.r.sync.find", {"event"}), SCOPE, BASE, enough=enough)


def run(made: Search, answers: list[dict[str, Any]]) -> int:
    """Number of answers requested."""
    for number, answer in enumerate(answers, 1):
        if not made.take(answer, None):
            return number
    raise AssertionError("it asks on after the last page")


def cut(lengths: list[int]) -> list[list[dict[str, int]]]:
    numbers = iter(range(sum(lengths)))
    return [[{"id": next(numbers)} for _ in range(length)] for length in lengths]


def pages_needed(lengths: list[int], enough: int) -> int:
    """By the first page that brings enough of them, or the last."""
    return next((at for at in range(1, len(lengths)) if sum(lengths[:at]) >= enough), len(lengths))


@given(PAGES, st.sampled_from([1, 2]))
def test_by_a_cursor_it_looks_on_until_it_knows(lengths: list[int], enough: int) -> None:
    answers = [
        {"items": items, "next": number if number < len(lengths) else None}
        for number, items in enumerate(cut(lengths), 1)
    ]
    made = search(Paging(by="cursor", next="next", params={"after": "{next}"}), enough)
    assert run(made, answers) == pages_needed(lengths, enough)
    assert min(len(made.matches), enough) == min(sum(lengths), enough)


@given(PAGES.map(lambda lengths: [length for length in lengths if length]), st.sampled_from([1, 2]))
def test_by_start_it_looks_on_until_it_knows_and_asks_from_where_it_is(lengths: list[int], enough: int) -> None:
    made, asked = search(Paging(by="start", first=1), enough), []
    for items in [*cut(lengths), []]:
        asked.append(made.pages.at)
        if not made.take({"items": items}, None):
            break
    starts = [1 + sum(lengths[:number]) for number in range(pages_needed([*lengths, 0], enough))]
    assert asked == [("/contacts", f"id=u1&startIndex={start}&count=10") for start in starts]
    assert min(len(made.matches), enough) == min(sum(lengths), enough)
    assert len(asked) <= Find(path="/contacts", pages=Paging(by="start")).most_calls


@pytest.mark.parametrize(
    ("find", "mistake"),
    [
        ({"pages": Paging(by="start", params={"limit": "{count}"})}, r"find\.pages: no param has \{start\}"),
        ({"pages": Paging(by="page", params={})}, r"find\.pages: no param has \{page\}"),
        ({"pages": Paging(by="cursor", next="next")}, r"find\.pages: no param has \{next\}"),
        ({"pages": Paging(by="start", params={"after": "{next}"})}, r"find\.pages\.params\.after: .* looks for 'next'"),
        ({"pages": Paging(by="url", next="a[")}, r"find\.pages\.next"),
        ({"pages": Paging(by="start", total="a[")}, r"find\.pages\.total"),
        ({"pages": Paging(by="start", more="a[")}, r"find\.pages\.more"),
        ({"pages": Paging(by="start"), "pick": "a["}, r"find\.pick"),
        (
            {"params": {"offset": "{start}"}},
            r"find\.params\.offset: 'start' looks for 'start'; what is known here is: event",
        ),
    ],
)
def test_a_mistake_in_the_table_is_found_at_the_start(find: dict[str, Any], mistake: str) -> None:
    with pytest.raises(ConfigError, match=mistake):
        compile_find(Find(path="/contacts", **find), "routes.r.sync.find", {"event"})


def test_the_place_may_stand_in_the_path_and_the_finds_own_params_too() -> None:
    params, pages = {"offset": "{start}"}, Paging(by="start")
    table = Find(path="/contacts/from/{start}", params=params, pages=pages, verify=False)
    made = Search(compile_find(table, "routes.r.sync.find", {"event"}), SCOPE, BASE, enough=2)
    assert made.pages.at == ("/contacts/from/0", "offset=0")
    assert made.take([{"id": 1}], None)
    assert made.pages.at == ("/contacts/from/1", "offset=1")
