from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from inbox.events import timestamps
from inbox.events.event import Identity, dedup_key, swept_key, swept_parts

PARTS = st.lists(st.text(alphabet='ab|\\:"é😀', max_size=6), min_size=1, max_size=4).map(tuple)
INSTANTS = st.integers(
    timestamps.parse_rfc3339("2000-01-01T00:00:00Z"), timestamps.parse_rfc3339("2100-01-01T00:00:00Z")
)


def identity(parts: tuple[str, ...], occurred_ns: int = 0, *, key_has_time: bool = True) -> Identity:
    return Identity("USER", "u1", "UPDATE", "update", occurred_ns, parts, key_has_time)


@given(PARTS, PARTS, st.booleans())
def test_different_parts_never_give_the_same_key(
    some: tuple[str, ...], others: tuple[str, ...], key_has_time: bool
) -> None:
    same = dedup_key(identity(some, key_has_time=key_has_time)) == dedup_key(
        identity(others, key_has_time=key_has_time)
    )
    assert same == (some == others)


@given(PARTS, st.sampled_from(["2019-01-01T00:00:00Z", "2019-01-01T00:00:00.000+00:00", "2019-01-01T02:00:00+02:00"]))
def test_equal_instants_give_equal_keys_however_they_are_spelled(parts: tuple[str, ...], spelling: str) -> None:
    key = dedup_key(identity(parts, timestamps.parse_rfc3339(spelling)))
    assert key == dedup_key(identity(parts, 1_546_300_800_000_000_000))


@given(PARTS, PARTS, st.lists(INSTANTS, min_size=2, max_size=2, unique=True).map(sorted))
def test_keys_with_a_time_sort_as_time_does(
    some: tuple[str, ...], others: tuple[str, ...], instants: list[int]
) -> None:
    earlier, later = instants
    assert dedup_key(identity(some, earlier)) < dedup_key(identity(others, later))


@given(PARTS, INSTANTS, INSTANTS)
def test_a_key_without_a_time_does_not_depend_on_it(parts: tuple[str, ...], one: int, other: int) -> None:
    assert dedup_key(identity(parts, one, key_has_time=False)) == dedup_key(identity(parts, other, key_has_time=False))


@given(st.text(alphabet="a|\\😀", min_size=900, max_size=1500), st.booleans())
def test_a_long_key_still_fits_an_index_and_still_tells_parts_apart(text: str, key_has_time: bool) -> None:
    keys = {
        dedup_key(identity(parts, key_has_time=key_has_time))
        for parts in ((text,), (text, ""), ("", text), (text + "a",))
    }
    assert len(keys) == 4
    assert all(len(key.encode()) <= 1000 for key in keys)


@given(st.text(alphabet="u1|\\é", min_size=1, max_size=4), PARTS, st.booleans())
def test_no_key_holds_the_id_of_its_entity(entity_id: str, parts: tuple[str, ...], key_has_time: bool) -> None:
    holding = Identity("USER", entity_id, "U", "update", 0, (*parts, f"user-{entity_id}"), key_has_time)
    after_time = dedup_key(holding).removeprefix(f"{timestamps.fixed_width(0)}|")
    assert re.fullmatch(r"\\sha256:[A-Za-z0-9_-]{32}", after_time)


def test_a_key_that_does_not_name_the_entity_stays_readable() -> None:
    assert dedup_key(identity(("evt_1",), key_has_time=False)) == "evt_1"


def test_the_key_of_a_sweeps_event_is_found_again_by_entity_and_time() -> None:
    swept = identity(swept_parts("USER", "u1"), 7)
    assert dedup_key(swept) == swept_key("USER", "u1", 7)
