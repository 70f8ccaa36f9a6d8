"""Folding a lane a few at a time comes to the same as folding it at once, and delivers nothing older later."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from relay.delivery import facts
from relay.delivery.lifecycle import HEADS, OpenDelivery, State
from relay.delivery.ordering import settle
from tests.core.test_ordering import FIRST_DELAY, NOW, a_row, lanes

FEW = st.integers(2, 4)
"""As many of those that wait are read in one round."""


def a_round(lane: list[OpenDelivery], few: int) -> list[OpenDelivery]:
    """Settle as `relay.store.sequence` does: with the head, what has arrived, and the first few that wait."""
    waiting = sorted((row for row in lane if row.state is State.WAITING), key=lambda row: row.key)
    read, unread = waiting[:few], waiting[few:]
    upto = read[-1].key if unread else None
    given = [row for row in lane if row.state is not State.WAITING] + read
    return settle("latest", given, NOW, FIRST_DELAY, upto) + unread


def is_open(row: OpenDelivery) -> bool:
    return row.state is not State.ENDED


def is_left(rows: list[OpenDelivery]) -> bool:
    """Return True when more is to be folded, in the next round."""
    waiting = sum(row.state is State.WAITING for row in rows)
    return waiting > 1 or (waiting == 1 and any(row.state is State.READY for row in rows))


def in_rounds(lane: list[OpenDelivery], few: int) -> list[OpenDelivery]:
    """Everything, when nothing is left to be folded; after every round the lane has its head, and nothing is lost."""
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
def test_in_rounds_of_any_size_the_same_one_survives_and_the_same_are_superseded(
    lane: list[OpenDelivery], few: int
) -> None:
    at_once = settle("latest", lane, NOW, FIRST_DELAY)
    assert sorted(map(shape, filter(is_open, in_rounds(lane, few)))) == sorted(map(shape, filter(is_open, at_once)))


@given(lanes(), FEW)
def test_each_is_superseded_by_a_newer_one_of_its_lane(lane: list[OpenDelivery], few: int) -> None:
    rows = {row.seq: row for row in in_rounds(lane, few)}
    for row in rows.values():
        if row.state is State.ENDED:
            (fact,) = (fact for fact in row.facts if isinstance(fact, facts.Superseded))
            assert rows[fact.by].key > row.key


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=12),
    FEW,
    st.data(),
)
def test_what_is_delivered_between_two_rounds_is_older_than_all_that_is_left(
    seconds: list[int], few: int, data: st.DataObject
) -> None:
    """Whatever newer ones arrive meanwhile, and whenever the head goes: in the end the newest has gone, and last."""
    rows = [a_row(seq, State.WAITING, second) for seq, second in enumerate(seconds, start=1)]
    newest = max(rows, key=lambda row: row.key)
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
    assert [row.key for row in delivered] == sorted(row.key for row in delivered)
    assert delivered[-1].seq == newest.seq


@given(lanes(), FEW)
def test_a_retry_that_is_taken_over_goes_on_from_the_same_attempts(lane: list[OpenDelivery], few: int) -> None:
    for row in in_rounds(lane, few):
        taken = [fact for fact in row.facts if isinstance(fact, facts.TookOver)]
        if taken and row.state is State.READY:
            assert (row.attempt, row.due_at) == (taken[-1].attempt, taken[-1].due_at)


def test_a_later_head_that_nobody_has_worked_on_waits_until_the_older_ones_are_folded() -> None:
    rows = [a_row(seq, State.WAITING) for seq in range(1, 6)] + [a_row(6, State.READY)]
    once = {row.seq: row.state for row in a_round(rows, 2)}
    assert (once[1], once[2], once[6]) == (State.ENDED, State.READY, State.WAITING)


def test_what_arrives_beyond_the_horizon_waits_for_a_later_round() -> None:
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
    assert head.key > max(row.key for row in unread)
