from __future__ import annotations

import contextlib
import re
from datetime import UTC, datetime, timedelta, timezone
from random import Random

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
    first, second = timestamps.fixed_width(one), timestamps.fixed_width(other)
    assert len(first) == len(second) == 30
    assert (first < second) == (one < other)


@pytest.mark.parametrize("year", [0, 10_000])
def test_instants_outside_the_calendar_are_refused(year: int) -> None:
    with pytest.raises(ValueError, match="outside the years 1 to 9999"):
        timestamps.to_datetime((year - 1970) * 366 * 86_400 * SECOND)


# --- another reading of RFC 3339, from its grammar and without the standard library's calendar

DAYS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


def oracle(text: str) -> int | None:
    """Nanoseconds since 1970, or None; by Howard Hinnant's `days_from_civil`, which counts eras of 400 years."""
    fields = re.fullmatch(r"([^T]+)[Tt]([^Zz+]+?)(?:\.([^.Zz+-]+))?([Zz]|[+-][^+-]+)", text)
    if fields is None:
        return None
    date, time, fraction, offset = fields.groups()
    written = [*date.split("-"), *time.split(":"), *(["00", "00"] if offset in "Zz" else offset[1:].split(":"))]
    if [len(number) for number in written] != [4, 2, 2, 2, 2, 2, 2, 2] or not all(map(is_digits, written)):
        return None
    year, month, day, hour, minute, second, away_hours, away_minutes = map(int, written)
    leap = month == 2 and year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    real_date = year >= 1 and 1 <= month <= 12 and 1 <= day <= DAYS[month - 1] + leap
    real_time = max(hour, away_hours) <= 23 and max(minute, second, away_minutes) <= 59
    if not real_date or not real_time or not (fraction is None or (is_digits(fraction) and len(fraction) < 10)):
        return None
    shifted = year - (month <= 2)
    era, of_era = divmod(shifted, 400)
    of_year = (153 * ((month + 9) % 12) + 2) // 5 + day - 1
    days = era * 146_097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year - 719_468
    minutes = (days * 24 + hour) * 60 + minute - (away_hours * 60 + away_minutes) * (-1 if offset[0] == "-" else 1)
    return (minutes * 60 + second) * 10**9 + int((fraction or "0").ljust(9, "0"))


def is_digits(text: str) -> bool:
    return bool(text) and all("0" <= character <= "9" for character in text)


def number(draw: Random, low: int, high: int, width: int) -> str:
    """Draw numbers mostly in range, sometimes just beyond it, with another width or in other digits."""
    outside = (f"{low - 1:0{width}d}", f"{high + 1:0{width}d}", str(low), "", "٣" * width, " 1", "1_0", "+1")
    return draw.choice(outside) if draw.random() < 1 / 9 else f"{draw.randint(low, high):0{width}d}"


def nearly_valid(draw: Random) -> str:
    date = "-".join(number(draw, *each) for each in ((1, 9999, 4), (1, 12, 2), (1, 31, 2)))
    time = ":".join(number(draw, *each) for each in ((0, 23, 2), (0, 59, 2), (0, 59, 2)))
    digits = "".join(draw.choices("0123456789", k=draw.randint(0, 10)))
    fraction = draw.choice(["", "", f".{digits}"])
    sign, hours, minutes = draw.choice("+-"), number(draw, 0, 23, 2), number(draw, 0, 59, 2)
    offset = draw.choice(["Z", "z", "", f"{sign}{hours}:{minutes}", f"{sign}{hours}:{minutes}", f"{sign}{hours}"])
    return f"{date}{draw.choice('TTTTTt ')}{time}{fraction}{offset}"


REFUSED = (
    "",
    "now",
    "infinity",
    "1704067200",
    "2024-01-01",
    "2024-01-01T00:00:00",
    "2024-01-01 00:00:00Z",
    "2024-01-01T00:00Z",
    "2024-01-01T24:00:00Z",
    "2016-12-31T23:59:60Z",
    "2024-02-30T00:00:00Z",
    "2023-02-29T00:00:00Z",
    "0000-01-01T00:00:00Z",
    "10000-01-01T00:00:00Z",
    "2024-W01-1T00:00:00Z",
    "2024-01-01T00:00:00EST",
    "2024-01-01T00:00:00+24:00",
    "2024-01-01T00:00:00+00:60",
    "2024-01-01T00:00:00+0000",
    "2024-01-01T00:00:00,5Z",
    "2024-01-01T00:00:00.Z",
    "2024-01-01T00:00:00.1234567890Z",
    "2024-01-01T00:00:00Z\n",
    " 2024-01-01T00:00:00Z",
    "202\N{FULLWIDTH DIGIT FOUR}-01-01T00:00:00Z",
    "1900-02-29T00:00:00Z",
)
SAME = (
    "2019-01-01T00:00:00Z",
    "2019-01-01t00:00:00z",
    "2019-01-01T00:00:00+00:00",
    "2019-01-01T00:00:00-00:00",
    "2019-01-01T00:00:00.000000000Z",
    "2019-01-01T02:00:00+02:00",
    "2018-12-31T18:30:00-05:30",
)
"""Spellings of one instant."""
EDGES = (
    "2000-02-29T00:00:00Z",
    "0001-01-01T00:00:00.000000001+23:59",
    "0001-01-01T00:00:00+23:59",
    "9999-12-31T23:59:59-23:59",
)


def parsed(text: str) -> int | None:
    with contextlib.suppress(ValueError):
        return timestamps.parse_rfc3339(text)
    return None


def test_it_reads_the_same_instant_as_another_reading_of_the_standard_or_refuses_what_that_refuses() -> None:
    draw = Random(1)
    drawn = [nearly_valid(draw) for _ in range(8_000)]
    assert [text for text in (*REFUSED, *SAME, *EDGES, *drawn) if oracle(text) != parsed(text)] == []
    assert 400 < sum(parsed(text) is not None for text in drawn) < 7_600, "as much that is read as is refused"
    for text in REFUSED:
        with pytest.raises(ValueError, match=r"must be|names no|has an offset"):
            timestamps.parse_rfc3339(text)
    assert {parsed(text) for text in SAME} == {1_546_300_800 * SECOND}
    assert parsed("1970-01-01T00:00:00Z") == 0
