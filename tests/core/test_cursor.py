"""Going through a listing that moves meanwhile: nothing that stays is passed over, and it comes to an end."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs

import pytest

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


def go_through(place: Place, pages: list[list[Listed]]) -> None:
    for page in pages:
        place.advance(page)


@pytest.mark.parametrize("size", [1, 2, 3, 9, 10, 11])
def test_a_service_that_takes_a_start_of_0_for_1_comes_to_its_end(size: int) -> None:
    place, listing, seen = Place(0, 10), [entity(f"u{n}", n) for n in range(size)], list[Listed]()
    while not place.is_at_end:
        begin = max(place.start, 1) - 1
        seen += place.advance(listing[begin : begin + 10])
    assert seen == listing


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
