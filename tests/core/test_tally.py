"""Figures of a process while they wait to be written: nothing is lost, and memory is bounded."""

from __future__ import annotations

import pytest
from sqlalchemy.exc import DataError

from inbox.db.throughput import FLUSH_EVERY_SECONDS, MOST_SLOTS, Figure, Tally
from tests.helpers.relaying import Monotonic


@pytest.fixture
def clock() -> Monotonic:
    return Monotonic(1000.0)


@pytest.fixture
def tally(clock: Monotonic) -> Tally:
    return Tally(clock)


def taken(tally: Tally) -> list[Figure]:
    with tally.taken() as figures:
        return figures


def not_written(tally: Tally, error: Exception) -> None:
    with pytest.raises(type(error)), tally.taken():
        raise error


def test_it_adds_up_what_is_of_one_subject_and_outcome(tally: Tally) -> None:
    tally.add("source", "a", "stored", size=10)
    tally.add("source", "a", "stored", count=2, size=5)
    tally.add("source", "a", "duplicate")
    assert taken(tally) == [Figure("source", "a", "stored", 0.0, 3, 15), Figure("source", "a", "duplicate", 0.0, 1, 0)]
    assert taken(tally) == []


def test_each_figure_says_how_long_ago_it_was_counted(tally: Tally, clock: Monotonic) -> None:
    tally.add("route", "crm", "delivered")
    clock.seconds += FLUSH_EVERY_SECONDS
    tally.add("route", "crm", "delivered")
    assert [figure.age for figure in taken(tally)] == [10.0, 0.0]


def test_what_could_not_be_written_is_there_the_next_time_with_what_came_meanwhile(
    tally: Tally, clock: Monotonic
) -> None:
    tally.add("route", "crm", "delivered")
    not_written(tally, OSError())
    tally.add("route", "crm", "delivered")
    clock.seconds += FLUSH_EVERY_SECONDS
    tally.add("route", "crm", "dead")
    assert [(figure.outcome, figure.age, figure.count) for figure in taken(tally)] == [
        ("delivered", 10.0, 2),
        ("dead", 0.0, 1),
    ]


def test_what_the_database_rejects_is_not_tried_again(tally: Tally) -> None:
    tally.add("route", "crm", "delivered")
    not_written(tally, DataError("INSERT", {}, ValueError("out of range")))
    assert taken(tally) == []


def test_a_long_outage_fills_no_memory_and_loses_no_count(tally: Tally, clock: Monotonic) -> None:
    number = 10 * MOST_SLOTS
    for n in range(number):
        tally.add("source", "a", "rejected", size=1)
        clock.seconds += FLUSH_EVERY_SECONDS
        if n % 7 == 0:
            not_written(tally, OSError())
    figures = taken(tally)
    assert len(figures) <= MOST_SLOTS
    assert sum(figure.count for figure in figures) == sum(figure.bytes for figure in figures) == number
