"""Tails read each new row once, and skip none, in whatever order the rows are committed."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine, text

from inbox.db import following
from inbox.db.dialect import Sql
from inbox.db.following import ARRIVALS, MISSING_SECONDS, OUT_OF_ORDER, REJECTIONS, Feed, Follower, Position, begin
from inbox.events.timestamps import time_text
from relay.store.database import SEQS_OUT_OF_ORDER
from relay.store.reads import OUTCOMES
from tests.helpers.patience import stand_still
from tests.helpers.relaying import DONE, Steps
from tests.helpers.storing import START, Intake, an_event

REJECT = text(
    "INSERT INTO rejected_request (id, received_at, source, status, cause, reason, body_sha256)"
    " VALUES (:id, :at, 'trivore', 401, 'unauthenticated', 'no', :hash)"
)


def reject(connection: Connection, *numbers: int, seconds: int = 0) -> None:
    for number in numbers:
        at = time_text(START + timedelta(seconds=seconds))
        connection.execute(REJECT, {"id": number, "at": at, "hash": b"1"})


def committed(engine: Engine, *numbers: int, seconds: int = 0) -> None:
    with engine.begin() as connection:
        reject(connection, *numbers, seconds=seconds)


def following_from(engine: Engine, feed: Feed = REJECTIONS, *, seconds: int | None = None) -> Follower:
    since = None if seconds is None else START + timedelta(seconds=seconds)
    with engine.connect() as connection:
        return begin(connection, feed, since, 0.0)


def new(engine: Engine, follower: Follower, now: float = 0.0) -> list[int]:
    with engine.connect() as connection:
        return [row[follower.feed.number] for row in follower.read(connection, now)]


def test_new_rows_are_read_once_from_the_end_on(engine: Engine) -> None:
    committed(engine, 1, 2)
    follower = following_from(engine)
    assert new(engine, follower) == []
    committed(engine, 3, 4)
    assert [new(engine, follower), new(engine, follower)] == [[3, 4], []]


def test_a_row_that_is_committed_behind_higher_ones_is_not_skipped(engine: Engine) -> None:
    follower = following_from(engine)
    assert new(engine, follower) == []
    committed(engine, 2, 5)
    assert new(engine, follower) == [2, 5]
    committed(engine, 3)
    committed(engine, 6, 1)
    assert [new(engine, follower), new(engine, follower)] == [[1, 3, 6], []]


def test_a_row_whose_transaction_was_open_when_the_tail_began_is_not_skipped(engine: Engine) -> None:
    if not Sql(engine.dialect.name).is_postgres:
        pytest.skip("SQLite has one writer at a time")
    with engine.connect() as late, late.begin():
        stand_still(late)
        reject(late, 7)
        committed(engine, 8)
        follower = following_from(engine)
        committed(engine, 9)
        assert new(engine, follower) == [9]
    assert [new(engine, follower), new(engine, follower)] == [[7], []]


def test_a_missing_number_is_given_up_when_no_transaction_can_hold_it_any_more(engine: Engine) -> None:
    follower = following_from(engine)
    assert new(engine, follower) == []
    committed(engine, 2)
    assert new(engine, follower, 0.0) == [2]
    assert new(engine, follower, MISSING_SECONDS) == []
    committed(engine, 1)
    assert new(engine, follower, MISSING_SECONDS + 1) == [], "it is not looked for for ever"


def test_a_tail_begins_with_the_rows_since_a_time_wherever_they_are(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "PAGE", 3)
    monkeypatch.setattr(following, "_BLOCK", 4)
    monkeypatch.setattr(following, "OUT_OF_ORDER", 2)
    committed(engine, *range(1, 11))
    committed(engine, 11, 13, seconds=10)
    committed(engine, 12, seconds=0)  # readmitted: it keeps its old time
    committed(engine, 14, 15, 16, seconds=20)
    follower = following_from(engine, seconds=10)
    pages = []
    while follower.is_behind:
        pages.append(new(engine, follower))
    assert [number for page in pages for number in page] == [11, 13, 14, 15, 16]
    assert max(map(len, pages)) <= 3, "a page is bounded, whatever waits"
    committed(engine, 17, seconds=30)
    assert new(engine, follower) == [17]
    assert new(engine, following_from(engine, seconds=99)) == []


def test_arrivals_have_the_size_of_their_body_and_outcomes_their_event(engine: Engine, steps: Steps) -> None:
    arrivals, outcomes = following_from(engine, ARRIVALS), following_from(engine, OUTCOMES)
    steps.arrive(an_event(1))
    steps.attempt(DONE)
    with engine.connect() as connection:
        (event,) = arrivals.read(connection, 0.0)
        (fact,) = outcomes.read(connection, 0.0)
    assert (event["seq"], event["entity_id"], event["routes"], event["body_bytes"]) == (1, "u1", ["strict"], 8)
    assert event["received_at"] == START
    assert (fact["kind"], fact["route"], fact["entity_id"], fact["detail"]) == (
        "delivered",
        "strict",
        "u1",
        {"did": "forwarded"},
    )


def test_an_event_of_the_receiver_itself_is_followed(engine: Engine, database_url: str) -> None:
    follower = following_from(engine, ARRIVALS)
    Intake(database_url).append(an_event(1), an_event(2))
    assert new(engine, follower) == [1, 2]


@given(
    st.permutations(range(1, 30)),
    st.lists(st.integers(1, 5), min_size=29),
    st.sets(st.integers(1, 29)),
)
def test_in_any_order_of_commits_every_number_is_read_once(
    order: list[int], sizes: list[int], failed: set[int]
) -> None:
    position, there, read = Position(0), set[int](), list[int]()
    queue = [number for number in order if number not in failed]
    for size in sizes:
        there |= set(queue[:size])
        queue = queue[size:]
        page = [number for number in there if number > position.last or number in position.missing]
        read += page
        position.take(page, 0.0)
    assert sorted(read) == sorted(set(order) - failed)


def test_numbers_that_were_skipped_long_ago_cost_nothing() -> None:
    position = Position(0)
    position.take([10**12], 0.0)
    assert len(position.missing) <= OUT_OF_ORDER
    position.take([10**12 + 1], MISSING_SECONDS)
    assert position.missing == ()


def test_both_sides_assume_the_same_disorder() -> None:
    assert OUT_OF_ORDER == SEQS_OUT_OF_ORDER
