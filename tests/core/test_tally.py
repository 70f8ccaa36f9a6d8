"""Figures of a process while they wait to be written: nothing is lost, and memory is bounded."""

from __future__ import annotations

import pytest
from sqlalchemy.exc import DataError

from inbox.db.throughput import Figure, Tally


@pytest.fixture
def tally() -> Tally:
    return Tally()


def taken(tally: Tally) -> list[Figure]:
    with tally.taken() as figures:
        return figures


def not_written(tally: Tally, error: Exception) -> None:
    with pytest.raises(type(error)), tally.taken():
        raise error


def test_what_could_not_be_written_is_there_the_next_time_with_what_came_meanwhile(tally: Tally) -> None:
    tally.add("route", "crm", "delivered")
    not_written(tally, OSError())
    tally.add("route", "crm", "delivered")
    tally.add("route", "crm", "dead")
    assert [(figure.outcome, figure.count) for figure in taken(tally)] == [("delivered", 2), ("dead", 1)]


def test_what_the_database_rejects_is_not_tried_again(tally: Tally) -> None:
    tally.add("route", "crm", "delivered")
    not_written(tally, DataError("INSERT", {}, ValueError("out of range")))
    assert taken(tally) == []
