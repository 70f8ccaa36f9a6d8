"""Going through a listing that moves meanwhile: nothing that stays is passed over, and it comes to an end."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import count
from urllib.parse import parse_qs

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inbox.config.sync import Paging, Sweep
from inbox.errors import UnusableAnswer
from relay.store.sweeps import Listed
from relay.sync.paging import Paginator, compile_pages

START = datetime(2026, 1, 1, tzinfo=UTC)


class Place:
    """The place in a listing that is read by start, page after page."""

    def __init__(self, first: int, count: int) -> None:
        pages = Paging(by="start", first=first, count=count)
        plan = compile_pages(Sweep(api="a", entity_type="T", path="/users", params={}, pages=pages), "r.listing")
        self._paginator = Paginator[Listed](plan, {}, "https://api.example.com")

    @property
    def start(self) -> int:
        return int(parse_qs(self._paginator.at[1])["startIndex"][0])

    @property
    def is_at_end(self) -> bool:
        return self._paginator.is_at_end

    def advance(self, page: list[Listed]) -> list[Listed]:
        return self._paginator.take({}, None, page)


def entity(name: str, second: int) -> Listed:
    return Listed(name, START + timedelta(seconds=second))


MOVE = st.tuples(st.sampled_from(["change", "delete"]), st.integers(0, 40))
MOVES = st.lists(st.lists(MOVE, max_size=5), max_size=10)
"""Before each page."""


@given(size=st.integers(0, 40), a_page=st.integers(1, 10), first=st.integers(0, 1), moves=MOVES)
def test_what_is_not_changed_meanwhile_comes_however_the_listing_moves(
    size: int, a_page: int, first: int, moves: list[list[tuple[str, int]]]
) -> None:
    listing = [entity(f"u{n}", n) for n in range(size)]
    seconds, steps = count(1000), iter(moves)
    place, seen, asked = Place(first, a_page), set[Listed](), 0
    while not place.is_at_end:
        for kind, which in next(steps, ()) if asked else ():
            if which >= len(listing) or a_page == 1:
                continue
            moved = listing.pop(which)
            if kind == "change":
                listing.append(entity(moved.id, next(seconds)))
        begin = place.start - first
        seen.update(place.advance(listing[begin : begin + a_page]))
        asked += 1
        assert asked <= 20 * (size + len(moves) + 1), "it does not come to an end"
    assert {each for each in listing if each.modified < START + timedelta(seconds=1000)} <= seen


def go_through(place: Place, pages: list[list[Listed]]) -> None:
    for page in pages:
        place.advance(page)


def test_pages_of_one_go_by_one() -> None:
    place, listing = Place(1, 1), [entity("a", 1), entity("b", 2)]
    seen = []
    while not place.is_at_end:
        seen += place.advance(listing[place.start - 1 : place.start])
    assert seen == listing


def test_what_was_changed_and_has_come_to_the_end_is_no_sign_that_pages_connect() -> None:
    place, listing = Place(0, 5), [entity(f"u{n}", n) for n in range(10)]
    seen = place.advance(listing[:5])
    listing = listing[3:] + [entity(f"u{n}", 100 + n) for n in range(3)]
    while not place.is_at_end:
        seen += place.advance(listing[place.start : place.start + 5])
    assert {each.id for each in seen} == {f"u{n}" for n in range(10)}


def test_the_same_entities_changed_meanwhile_are_another_page() -> None:
    place, listing = Place(0, 2), [entity(f"u{n}", n) for n in range(4)]
    seen = place.advance(listing[:2])
    listing = [listing[3], *(entity(f"u{n}", 100 + n) for n in range(3))]
    while not place.is_at_end:
        seen += place.advance(listing[place.start : place.start + 2])
    assert set(listing) <= set(seen)


@pytest.mark.parametrize("size", [1, 2, 3, 9, 10, 11])
def test_a_service_that_takes_a_start_of_0_for_1_comes_to_its_end(size: int) -> None:
    place, listing, seen = Place(0, 10), [entity(f"u{n}", n) for n in range(size)], list[Listed]()
    while not place.is_at_end:
        begin = max(place.start, 1) - 1
        seen += place.advance(listing[begin : begin + 10])
    assert seen == listing


@pytest.mark.parametrize("period", [1, 2, 3, 7])
def test_pages_that_go_round_are_noticed(period: int) -> None:
    listing = [entity(f"{n}", n) for n in range(period)]
    place, pages = Place(0, 2), [[listing[n], listing[(n + 1) % period]] for n in range(period)]
    with pytest.raises(UnusableAnswer, match="came before"):
        go_through(place, [pages[number % period] for number in range(10 * period)])


def test_a_listing_that_changes_faster_than_it_is_read_is_given_up() -> None:
    others = [[entity(f"{page} {n}", n) for n in range(5)] for page in range(100)]
    with pytest.raises(UnusableAnswer, match="don't connect"):
        go_through(Place(0, 5), others)


def test_an_api_that_takes_whole_pages_alone_is_given_up() -> None:
    """Asked for the second page with the last of the first, it gives the second; asked from further back, the first."""
    place, listing = Place(0, 10), [entity(f"u{n}", n) for n in range(50)]

    def page() -> list[Listed]:
        begin = -(-place.start // 10) * 10 if place.start % 10 == 9 else place.start // 10 * 10
        return listing[begin : begin + 10]

    with pytest.raises(UnusableAnswer, match="don't connect"):
        go_through_all(place, page)


def go_through_all(place: Place, page: Callable[[], list[Listed]]) -> None:
    for _ in range(1000):
        place.advance(page())
