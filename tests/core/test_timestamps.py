from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inbox.events import timestamps

SECOND = 1_000_000_000
OFFSETS = st.integers(-(24 * 60 - 1), 24 * 60 - 1).map(lambda minutes: timezone(timedelta(minutes=minutes)))
MOMENTS = st.datetimes(datetime(2, 1, 1), datetime(9998, 1, 1), timezones=OFFSETS)  # noqa: DTZ001  # bounds are naive
INSTANTS = st.integers(-62_135_596_800 * SECOND, 253_402_300_800 * SECOND - 1)


@given(MOMENTS)
def test_parsing_agrees_with_the_calendar_of_the_standard_library(moment: datetime) -> None:
    assert timestamps.parse_rfc3339(moment.isoformat()) == timestamps.to_nanoseconds(moment)


@given(st.integers(0, SECOND - 1))
def test_no_digit_of_a_nanosecond_is_lost_or_rounded(fraction: int) -> None:
    assert timestamps.parse_rfc3339(f"1970-01-01T00:00:00.{fraction:09d}Z") == fraction


@given(INSTANTS)
def test_a_number_becomes_a_datetime_and_back_to_the_microsecond(instant: int) -> None:
    moment = timestamps.to_datetime(instant)
    assert moment.tzinfo is UTC
    assert timestamps.to_nanoseconds(moment) == instant // 1000 * 1000


@given(INSTANTS, INSTANTS)
def test_the_fixed_width_text_sorts_as_time_does(one: int, other: int) -> None:
    first, second = timestamps.format_fixed_width(one), timestamps.format_fixed_width(other)
    assert len(first) == len(second) == 30
    assert (first < second) == (one < other)


@pytest.mark.parametrize("year", [0, 10_000])
def test_instants_outside_the_calendar_are_refused(year: int) -> None:
    with pytest.raises(ValueError, match="outside the years 1 to 9999"):
        timestamps.to_datetime((year - 1970) * 366 * 86_400 * SECOND)


REFUSED = (
    "", "now", "infinity", "1704067200", "2024-01-01", "2024-01-01T00:00:00", "2024-01-01 00:00:00Z", "2024-01-01T00:00Z",
    "2024-01-01T24:00:00Z", "2016-12-31T23:59:60Z", "2024-02-30T00:00:00Z", "2023-02-29T00:00:00Z", "1900-02-29T00:00:00Z",
    "0000-01-01T00:00:00Z", "10000-01-01T00:00:00Z", "2024-W01-1T00:00:00Z", "2024-01-01T00:00:00EST",
    "2024-01-01T00:00:00+24:00", "2024-01-01T00:00:00+00:60", "2024-01-01T00:00:00+0000", "2024-01-01T00:00:00,5Z",
    "2024-01-01T00:00:00.Z", "2024-01-01T00:00:00.1234567890Z", "2024-01-01T00:00:00Z\n", " 2024-01-01T00:00:00Z",
    "202\N{FULLWIDTH DIGIT FOUR}-01-01T00:00:00Z", "2024-01-01T00:00:0٣Z", "2024-13-01T00:00:00Z", "2024-1-01T00:00:00Z",
)  # fmt: skip
SAME = (
    "2019-01-01T00:00:00Z", "2019-01-01t00:00:00z", "2019-01-01T00:00:00+00:00", "2019-01-01T00:00:00-00:00",
    "2019-01-01T00:00:00.000000000Z", "2019-01-01T02:00:00+02:00", "2018-12-31T18:30:00-05:30",
)  # fmt: skip
"""Spellings of one instant."""


@pytest.mark.parametrize("text", REFUSED)
def test_any_other_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"must be|names no|has an offset"):
        timestamps.parse_rfc3339(text)


def test_every_spelling_of_an_instant_is_that_instant() -> None:
    assert {timestamps.parse_rfc3339(text) for text in SAME} == {1_546_300_800 * SECOND}
    assert timestamps.parse_rfc3339("0001-01-01T00:00:00.000000001+23:59") < timestamps.parse_rfc3339(
        "0001-01-01T00:00:00Z"
    )
    assert timestamps.parse_rfc3339("9999-12-31T23:59:59-23:59") > timestamps.parse_rfc3339("9999-12-31T23:59:59Z")
