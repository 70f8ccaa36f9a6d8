"""The pace of retention: batches of about 100 ms, never so small that they get nowhere."""

from __future__ import annotations

import pytest

from inbox.db.retention.pace import BATCH_SECONDS, LONGEST_PAUSE, Pace, pace_of
from inbox.db.retention.state import LEASE_SECONDS

PACES = [pytest.param(pace_of(is_postgres=True), id="postgres"), pytest.param(pace_of(is_postgres=False), id="sqlite")]


def settled(pace: Pace, fixed: float, of_a_row: float) -> Pace:
    """The pace after many batches, each of which takes `fixed` seconds and some for each row."""
    for _ in range(50):
        pace = pace.after(fixed + of_a_row * pace.most)
    return pace


@pytest.mark.parametrize("pace", PACES)
def test_a_batch_takes_about_its_time(pace: Pace) -> None:
    most = settled(pace, 0.0, 0.001).most
    assert most == pytest.approx(BATCH_SECONDS / 0.001, rel=0.1)
    assert settled(pace, 0.0, 0.0).most == pace.highest


@pytest.mark.parametrize("pace", PACES)
def test_a_long_way_to_the_database_does_not_make_batches_of_single_rows(pace: Pace) -> None:
    """Seven statements to another region take longer than a batch should."""
    assert settled(pace, 0.3, 0.0001).most == pace.least > 1


@pytest.mark.parametrize("pace", PACES)
def test_a_batch_that_fails_is_taken_apart_to_its_last_row(pace: Pace) -> None:
    for _ in range(10):
        pace = pace.shrunk()
    assert pace.most == 1


@pytest.mark.parametrize("pace", PACES)
def test_a_pause_is_shorter_than_the_lease(pace: Pace) -> None:
    assert pace.pause(0.1) == pytest.approx(0.1 * pace.rest)
    assert pace.pause(3600) == LONGEST_PAUSE < LEASE_SECONDS / 2
