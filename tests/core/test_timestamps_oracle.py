"""The parser against another reading of RFC 3339, written from its grammar without the standard library's calendar."""

from __future__ import annotations

import re
from random import Random

from inbox.events import timestamps

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


KNOWN = (
    "2000-02-29T00:00:00Z",
    "1900-02-29T00:00:00Z",
    "2016-12-31T23:59:60Z",
    "2024-01-01T24:00:00Z",
    "0001-01-01T00:00:00.000000001+23:59",
    "0001-01-01T00:00:00+23:59",
    "9999-12-31T23:59:59-23:59",
)


def test_it_reads_the_same_instant_as_another_reading_of_the_standard_or_refuses_what_that_refuses() -> None:
    draw = Random(1)
    readable = 0
    for text in (*KNOWN, *(nearly_valid(draw) for _ in range(8_000))):
        try:
            parsed: int | None = timestamps.parse_rfc3339(text)
        except ValueError:
            parsed = None
        assert oracle(text) == parsed, text
        readable += parsed is not None
    assert 400 < readable < 7_600, "as much that is read as is refused"


def test_the_other_reading_knows_the_calendar() -> None:
    assert oracle("1970-01-01T00:00:00Z") == 0
    assert oracle("2019-01-01T02:00:00+02:00") == 1_546_300_800 * 10**9
    assert oracle("2000-02-30T00:00:00Z") is None
