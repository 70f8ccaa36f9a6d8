"""Tails read each new row once, and skip none, in whatever order the rows are committed."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import Connection, Engine, text

from inbox.db import following
from inbox.db.dialect import Sql
from inbox.db.following import ARRIVALS, OUT_OF_ORDER, REJECTIONS, Feed, Follower, begin
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
        return begin(connection, feed, since)


def new(engine: Engine, follower: Follower) -> list[int]:
    with engine.connect() as connection:
        return [row[follower.feed.number] for row in follower.read(connection)]


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


def test_a_tail_begins_with_the_rows_since_a_time_wherever_they_are(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "PAGE", 3)
    monkeypatch.setattr(following, "NEAR", 2)
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
        (event,) = arrivals.read(connection)
        (fact,) = outcomes.read(connection)
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


def test_a_number_that_was_taken_too_long_ago_is_not_looked_for(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "OUT_OF_ORDER", 3)
    follower = following_from(engine)
    assert new(engine, follower) == []
    committed(engine, 10)
    assert new(engine, follower) == [10]
    committed(engine, 7, 8)
    assert new(engine, follower) == [8]


def test_both_sides_assume_the_same_disorder() -> None:
    assert OUT_OF_ORDER == SEQS_OUT_OF_ORDER
