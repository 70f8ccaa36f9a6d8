"""Settling a lane: its next head, superseded events, and folding in rounds."""

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


def settle_lane(ordering: Ordering, *rows: OpenDelivery) -> dict[int, OpenDelivery]:
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
def test_an_open_lane_has_one_head_and_loses_nothing(ordering: Ordering, lane: list[OpenDelivery]) -> None:
    after = settle(ordering, lane, NOW, FIRST_DELAY)

    assert sorted(row.seq for row in after) == sorted(row.seq for row in lane)
    assert sum(row.state in HEADS for row in after) == (1 if lane else 0)
    assert all(row.state is not State.RECEIVED for row in after)


@given(lanes())
def test_strict_folds_nothing_and_its_head_is_the_first_unless_one_was_begun(lane: list[OpenDelivery]) -> None:
    after = settle("strict", lane, NOW, FIRST_DELAY)

    assert not any(row.facts for row in after)
    head = next((row for row in after if row.state in HEADS), None)
    before = next((row for row in lane if row.state in HEADS), None)
    untouched = before is None or (
        before.state is State.READY and before.attempt == 0 and (before.due_at or NOW) <= NOW
    )
    if head is not None and untouched:
        assert head.position == min(row.position for row in lane)
    elif head is not None:
        assert head == before


@given(lanes())
def test_latest_leaves_at_most_one_besides_what_is_in_flight_and_it_is_the_newest(lane: list[OpenDelivery]) -> None:
    after = settle("latest", lane, NOW, FIRST_DELAY)

    kept = [row for row in after if row.state not in (State.ENDED, State.IN_FLIGHT, State.BLOCKED)]
    foldable = [row for row in lane if row.state not in (State.IN_FLIGHT, State.BLOCKED)]
    assert [row.seq for row in kept] == ([max(foldable, key=lambda row: row.position).seq] if foldable else [])
    for row in after:
        if row.state is State.ENDED:
            assert row.facts == (facts.Superseded(by=kept[0].seq),)


@given(st.sampled_from(["latest", "strict"]), lanes())
def test_settling_a_settled_lane_changes_nothing(ordering: Ordering, lane: list[OpenDelivery]) -> None:
    once = [row for row in settle(ordering, lane, NOW, FIRST_DELAY) if row.state is not State.ENDED]

    assert {row.seq: row for row in settle(ordering, once, NOW, FIRST_DELAY)} == {row.seq: row for row in once}


def test_a_delivery_in_flight_stands_for_no_other_not_even_an_older_one() -> None:
    """Its fetch may have been made before the older event's change."""
    after = settle_lane("latest", a_row(5, State.IN_FLIGHT, attempt=1), a_row(3, State.RECEIVED))

    assert after[3].state is State.WAITING
    assert after[5].state is State.IN_FLIGHT


def test_a_newer_event_goes_on_from_the_attempts_of_the_retry_it_replaces_and_pulls_it_forward() -> None:
    after = settle_lane("latest", a_row(1, State.READY, attempt=4, due_in=3600), a_row(2, State.RECEIVED))

    assert after[1].state is State.ENDED
    assert (after[2].attempt, after[2].due_at) == (4, NOW + FIRST_DELAY)
    assert after[2].facts == (facts.TookOver(of=1, attempt=4, due_at=NOW + FIRST_DELAY),)


def test_a_retry_that_is_due_sooner_than_the_first_delay_is_not_pushed_back() -> None:
    after = settle_lane("latest", a_row(1, State.READY, attempt=1, due_in=2), a_row(2, State.RECEIVED))

    assert after[2].due_at == NOW + timedelta(seconds=2)


def test_an_older_event_does_not_pull_a_newer_ones_retry_forward() -> None:
    after = settle_lane(
        "latest", a_row(2, State.READY, second=9, attempt=4, due_in=3600), a_row(3, State.RECEIVED, second=1)
    )

    assert after[2] == a_row(2, State.READY, second=9, attempt=4, due_in=3600)
    assert after[3].state is State.ENDED


def test_in_strict_an_older_event_goes_before_an_unattempted_head() -> None:
    after = settle_lane("strict", a_row(2, State.READY, second=9), a_row(3, State.RECEIVED, second=1))

    assert (after[2].state, after[3].state) == (State.WAITING, State.READY)


def test_in_strict_an_older_event_waits_behind_a_head_that_was_attempted() -> None:
    after = settle_lane("strict", a_row(2, State.READY, second=9, attempt=1), a_row(3, State.RECEIVED, second=1))

    assert (after[2].state, after[3].state) == (State.READY, State.WAITING)


def test_a_blocked_head_holds_everything_back() -> None:
    for ordering in ("latest", "strict"):
        after = settle_lane(ordering, a_row(1, State.BLOCKED, attempt=1), a_row(2, State.RECEIVED))
        assert (after[1].state, after[2].state) == (State.BLOCKED, State.WAITING)


SKEW = timedelta(seconds=5)
KEYS = st.tuples(st.integers(0, 40).map(lambda halves: NOW + timedelta(seconds=halves / 2)), st.integers(1, 5))


@given(KEYS, KEYS)
def test_without_a_fetch_a_later_arrival_is_covered_if_surely_older(
    key: tuple[datetime, int], last: tuple[datetime, int]
) -> None:
    """Its own clock may be behind by the skew, and its second may be nearly over."""
    latest_moment = key[0] + timedelta(seconds=1 if key[0].microsecond == 0 else 0.001)
    if key[1] >= last[1]:
        assert covers(LastDelivered(*last), key, SKEW) == (latest_moment + SKEW < last[0])


@given(KEYS, KEYS)
def test_without_a_fetch_an_earlier_arrival_is_covered_if_it_folds(
    key: tuple[datetime, int], last: tuple[datetime, int]
) -> None:
    rows = [OpenDelivery(seq, "r", "USER|u1", at, State.WAITING) for at, seq in (key, last)]
    if key[1] < last[1]:
        stands = next(row for row in settle("latest", rows, NOW, FIRST_DELAY) if row.state is not State.ENDED)
        assert covers(LastDelivered(*last), key, SKEW) == (stands.position == last)


@given(KEYS)
def test_without_a_fetch_no_event_covers_its_own_duplicate(key: tuple[datetime, int]) -> None:
    assert not covers(LastDelivered(*key), key, SKEW)


@given(KEYS, KEYS, st.integers(-40, 40))
def test_a_fetch_covers_changes_before_it_and_the_skew(
    key: tuple[datetime, int], last: tuple[datetime, int], halves: int
) -> None:
    began = last[0] + timedelta(seconds=halves / 2)
    latest_moment = key[0] + timedelta(seconds=1 if key[0].microsecond == 0 else 0.001)
    assert covers(LastDelivered(*last, began), key, SKEW) == (began > latest_moment + SKEW)


# --- Folding a lane a few at a time comes to the same as folding it at once, and delivers nothing older later


FEW = st.integers(2, 4)
"""As many of those that wait are read in one round."""


def a_round(lane: list[OpenDelivery], few: int) -> list[OpenDelivery]:
    """Settle as `relay.store.sequence` does: with the head, the arrivals, and the first few that wait."""
    waiting = sorted((row for row in lane if row.state is State.WAITING), key=lambda row: row.position)
    read, unread = waiting[:few], waiting[few:]
    upto = read[-1].position if unread else None
    given = [row for row in lane if row.state is not State.WAITING] + read
    return settle("latest", given, NOW, FIRST_DELAY, upto) + unread


def is_open(row: OpenDelivery) -> bool:
    return row.state is not State.ENDED


def is_left(rows: list[OpenDelivery]) -> bool:
    """Return True when more is to be folded, in the next round."""
    waiting = sum(row.state is State.WAITING for row in rows)
    return waiting > 1 or (waiting == 1 and any(row.state is State.READY for row in rows))


def fold_in_rounds(lane: list[OpenDelivery], few: int) -> list[OpenDelivery]:
    """Fold until nothing is left; after each round the lane has its head, and nothing is lost."""
    rows = lane
    for _ in range(len(lane) + 1):
        ended = [row for row in rows if not is_open(row)]
        settled = a_round([row for row in rows if is_open(row)], few)
        assert sum(row.state in HEADS for row in settled) == (1 if lane else 0)
        assert sorted(row.seq for row in ended + settled) == sorted(row.seq for row in lane)
        rows = ended + settled
        if not is_left(rows):
            break
    return rows


def shape(row: OpenDelivery) -> tuple[object, ...]:
    return (row.seq, row.state, row.attempt, row.crashes, row.due_at)


@given(lanes(), FEW)
def test_rounds_of_any_size_end_with_the_same_delivery(lane: list[OpenDelivery], few: int) -> None:
    at_once = settle("latest", lane, NOW, FIRST_DELAY)
    assert sorted(map(shape, filter(is_open, fold_in_rounds(lane, few)))) == sorted(
        map(shape, filter(is_open, at_once))
    )


@given(lanes(), FEW)
def test_each_is_superseded_by_a_newer_one_of_its_lane(lane: list[OpenDelivery], few: int) -> None:
    rows = {row.seq: row for row in fold_in_rounds(lane, few)}
    for row in rows.values():
        if row.state is State.ENDED:
            (fact,) = (fact for fact in row.facts if isinstance(fact, facts.Superseded))
            assert rows[fact.by].position > row.position


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12), FEW, st.data())
def test_deliveries_between_rounds_are_older_than_the_rest(seconds: list[int], few: int, data: st.DataObject) -> None:
    """Whatever newer ones arrive meanwhile, and whenever the head goes: in the end the newest has gone, and last."""
    rows = [a_row(seq, State.WAITING, second) for seq, second in enumerate(seconds, start=1)]
    newest = max(rows, key=lambda row: row.position)
    delivered: list[OpenDelivery] = []
    while rows:
        if data.draw(st.booleans(), "one arrives") and len(delivered) < 3:
            newest = a_row(newest.seq + 100, State.RECEIVED, 10 + newest.seq)
            rows.append(newest)
        rows = [row for row in a_round(rows, few) if is_open(row)]
        (head,) = (row for row in rows if row.state in HEADS)
        if data.draw(st.booleans(), "the head is delivered") or len(rows) == 1:
            delivered.append(head)
            rows.remove(head)
    assert [row.position for row in delivered] == sorted(row.position for row in delivered)
    assert delivered[-1].seq == newest.seq


@given(lanes(), FEW)
def test_a_retry_that_is_taken_over_goes_on_from_the_same_attempts(lane: list[OpenDelivery], few: int) -> None:
    for row in fold_in_rounds(lane, few):
        taken = [fact for fact in row.facts if isinstance(fact, facts.TookOver)]
        if taken and row.state is State.READY:
            assert (row.attempt, row.due_at) == (taken[-1].attempt, taken[-1].due_at)


def test_a_later_unattempted_head_waits_until_the_older_ones_are_folded() -> None:
    rows = [a_row(seq, State.WAITING) for seq in range(1, 6)] + [a_row(6, State.READY)]
    once = {row.seq: row.state for row in a_round(rows, 2)}
    assert (once[1], once[2], once[6]) == (State.ENDED, State.READY, State.WAITING)


def test_an_arrival_beyond_the_horizon_waits_for_a_later_round() -> None:
    rows = [a_row(seq, State.WAITING) for seq in range(1, 6)] + [a_row(7, State.RECEIVED)]
    once = {row.seq: row.state for row in a_round(rows, 3)}
    assert once == {
        1: State.ENDED,
        2: State.ENDED,
        3: State.READY,
        4: State.WAITING,
        5: State.WAITING,
        7: State.WAITING,
    }


def test_the_newest_first_would_be_followed_by_older_ones() -> None:
    """A control: settled without saying that more wait, the one that arrived last goes before those."""
    rows = [a_row(seq, State.WAITING) for seq in (1, 2)] + [a_row(7, State.RECEIVED)]
    unread = [a_row(seq, State.WAITING) for seq in (3, 4)]
    settled = settle("latest", rows, NOW, FIRST_DELAY)
    (head,) = (row for row in settled if row.state in HEADS)
    assert head.position > max(row.position for row in unread)
