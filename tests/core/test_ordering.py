"""Settling a lane: its next head, and what a newer event stands for."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from inbox.config.model import Ordering
from relay.delivery import facts
from relay.delivery.lifecycle import HEADS, OpenDelivery, State
from relay.delivery.ordering import LastDelivered, covers, settle

NOW = datetime(2026, 1, 1, tzinfo=UTC)
FIRST_DELAY = timedelta(seconds=5)


def a_row(seq: int, state: State, second: int | None = None, attempt: int = 0, due_in: float = 0) -> OpenDelivery:
    occurred_at = NOW + timedelta(seconds=seq if second is None else second)
    due_at = NOW + timedelta(seconds=due_in) if state is State.READY else None
    return OpenDelivery(seq, "r", "USER|u1", occurred_at, state, attempt, 0, due_at)


def settled(ordering: Ordering, *rows: OpenDelivery) -> dict[int, OpenDelivery]:
    return {row.seq: row for row in settle(ordering, rows, NOW, FIRST_DELAY)}


@st.composite
def lanes(draw: st.DrawFn) -> list[OpenDelivery]:
    """Rows of one lane: at most one head, any number of others."""
    seconds = draw(st.lists(st.integers(0, 5), max_size=6))
    states = [draw(st.sampled_from([State.RECEIVED, State.WAITING])) for _ in seconds]
    rows = [a_row(seq, state, second) for seq, (state, second) in enumerate(zip(states, seconds, strict=True), start=1)]
    head = draw(st.sampled_from([None, *sorted(HEADS)]))
    if head is not None:
        attempt = draw(st.integers(0, 3))
        rows.append(a_row(len(rows) + 1, head, draw(st.integers(0, 5)), attempt, due_in=draw(st.integers(0, 100))))
    return rows


@given(st.sampled_from(["latest", "strict"]), lanes())
def test_a_lane_with_anything_open_has_exactly_one_head_and_nothing_is_lost(
    ordering: Ordering, lane: list[OpenDelivery]
) -> None:
    after = settle(ordering, lane, NOW, FIRST_DELAY)

    assert sorted(row.seq for row in after) == sorted(row.seq for row in lane)
    assert sum(row.state in HEADS for row in after) == (1 if lane else 0)
    assert all(row.state is not State.RECEIVED for row in after)


@given(lanes())
def test_strict_folds_nothing_and_its_head_is_the_first_unless_one_was_being_worked_on(
    lane: list[OpenDelivery],
) -> None:
    after = settle("strict", lane, NOW, FIRST_DELAY)

    assert not any(row.facts for row in after)
    head = next((row for row in after if row.state in HEADS), None)
    before = next((row for row in lane if row.state in HEADS), None)
    untouched = before is None or (
        before.state is State.READY and before.attempt == 0 and (before.due_at or NOW) <= NOW
    )
    if head is not None and untouched:
        assert head.key == min(row.key for row in lane)
    elif head is not None:
        assert head == before


@given(lanes())
def test_latest_leaves_at_most_one_besides_what_is_in_flight_and_it_is_the_newest(lane: list[OpenDelivery]) -> None:
    after = settle("latest", lane, NOW, FIRST_DELAY)

    kept = [row for row in after if row.state not in (State.ENDED, State.IN_FLIGHT, State.BLOCKED)]
    foldable = [row for row in lane if row.state not in (State.IN_FLIGHT, State.BLOCKED)]
    assert [row.seq for row in kept] == ([max(foldable, key=lambda row: row.key).seq] if foldable else [])
    for row in after:
        if row.state is State.ENDED:
            assert row.facts == (facts.Superseded(by=kept[0].seq),)


@given(st.sampled_from(["latest", "strict"]), lanes())
def test_settling_a_settled_lane_changes_nothing(ordering: Ordering, lane: list[OpenDelivery]) -> None:
    once = [row for row in settle(ordering, lane, NOW, FIRST_DELAY) if row.state is not State.ENDED]

    assert {row.seq: row for row in settle(ordering, once, NOW, FIRST_DELAY)} == {row.seq: row for row in once}


def test_what_is_in_flight_stands_for_no_other_not_even_an_older_one() -> None:
    """Its fetch may have been made before the older event's change."""
    after = settled("latest", a_row(5, State.IN_FLIGHT, attempt=1), a_row(3, State.RECEIVED))

    assert after[3].state is State.WAITING
    assert after[5].state is State.IN_FLIGHT


def test_a_newer_event_goes_on_from_the_attempts_of_the_retry_it_replaces_and_pulls_it_forward() -> None:
    after = settled("latest", a_row(1, State.READY, attempt=4, due_in=3600), a_row(2, State.RECEIVED))

    assert after[1].state is State.ENDED
    assert (after[2].attempt, after[2].due_at) == (4, NOW + FIRST_DELAY)
    assert after[2].facts == (facts.TookOver(of=1, attempt=4, due_at=NOW + FIRST_DELAY),)


def test_a_retry_that_is_due_sooner_than_the_first_delay_is_not_pushed_back() -> None:
    after = settled("latest", a_row(1, State.READY, attempt=1, due_in=2), a_row(2, State.RECEIVED))

    assert after[2].due_at == NOW + timedelta(seconds=2)


def test_an_older_event_does_not_pull_a_newer_ones_retry_forward() -> None:
    after = settled(
        "latest", a_row(2, State.READY, second=9, attempt=4, due_in=3600), a_row(3, State.RECEIVED, second=1)
    )

    assert after[2] == a_row(2, State.READY, second=9, attempt=4, due_in=3600)
    assert after[3].state is State.ENDED


def test_in_strict_an_older_event_goes_before_a_head_that_nobody_has_worked_on() -> None:
    after = settled("strict", a_row(2, State.READY, second=9), a_row(3, State.RECEIVED, second=1))

    assert (after[2].state, after[3].state) == (State.WAITING, State.READY)


def test_in_strict_an_older_event_waits_behind_a_head_that_was_attempted() -> None:
    after = settled("strict", a_row(2, State.READY, second=9, attempt=1), a_row(3, State.RECEIVED, second=1))

    assert (after[2].state, after[3].state) == (State.READY, State.WAITING)


def test_a_blocked_head_holds_everything_back() -> None:
    for ordering in ("latest", "strict"):
        after = settled(ordering, a_row(1, State.BLOCKED, attempt=1), a_row(2, State.RECEIVED))
        assert (after[1].state, after[2].state) == (State.BLOCKED, State.WAITING)


SKEW = timedelta(seconds=5)
KEYS = st.tuples(st.integers(0, 40).map(lambda halves: NOW + timedelta(seconds=halves / 2)), st.integers(1, 5))


@given(KEYS, KEYS)
def test_without_a_fetch_one_that_arrives_later_is_covered_only_when_clocks_within_the_skew_prove_it_older(
    key: tuple[datetime, int], last: tuple[datetime, int]
) -> None:
    """Its own clock may be behind by the skew, and its second may be nearly over."""
    latest_moment = key[0] + timedelta(seconds=1 if key[0].microsecond == 0 else 0.001)
    if key[1] >= last[1]:
        assert covers(LastDelivered(*last), key, SKEW) == (latest_moment + SKEW < last[0])


@given(KEYS, KEYS)
def test_without_a_fetch_one_that_arrived_earlier_is_covered_when_it_would_have_been_folded(
    key: tuple[datetime, int], last: tuple[datetime, int]
) -> None:
    rows = [OpenDelivery(seq, "r", "USER|u1", at, State.WAITING) for at, seq in (key, last)]
    if key[1] < last[1]:
        stands = next(row for row in settle("latest", rows, NOW, FIRST_DELAY) if row.state is not State.ENDED)
        assert covers(LastDelivered(*last), key, SKEW) == (stands.key == last)


@given(KEYS)
def test_without_a_fetch_no_event_covers_itself_so_that_a_repeat_of_it_is_delivered_again(
    key: tuple[datetime, int],
) -> None:
    assert not covers(LastDelivered(*key), key, SKEW)


@given(KEYS, KEYS, st.integers(-40, 40))
def test_what_was_fetched_covers_what_had_changed_before_by_any_clock_within_the_skew(
    key: tuple[datetime, int], last: tuple[datetime, int], halves: int
) -> None:
    began = last[0] + timedelta(seconds=halves / 2)
    latest_moment = key[0] + timedelta(seconds=1 if key[0].microsecond == 0 else 0.001)
    assert covers(LastDelivered(*last, began), key, SKEW) == (began > latest_moment + SKEW)
