"""Strict parsing of RFC 3339 to UTC nanoseconds, the only parser of event times, and their formats.

Parsers disagree on the same text (truncated or rounded fractions, `24:00`, `:60`, naive values, week dates). Event
times are therefore compared, keyed and stored only as parsed here, never as text. An offset is required.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, time, timedelta

_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt](\d\d):\d\d:\d\d(?:\.(\d{1,9}))?(?:[Zz]|([+-])(\d\d):(\d\d))", re.ASCII)
TIME_FORMS = (
    "a time in UTC as listings print it (2026-01-31T10:00:00.123Z), a date (2026-01-31, yesterday), a time of day (14:00),"
    " or a span back from now (15m, 1h30m, 2d)"
)
_BACK = re.compile(r"(?:[0-9]{1,9}[smhdw])+")
_PART = re.compile(r"([0-9]+)([smhdw])")
_CLOCK = re.compile(r"\d\d:\d\d(?::\d\d)?", re.ASCII)
_DAYS = {"today": 0, "yesterday": 1}
_UNIT = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_WRITTEN = re.compile(
    r"(\d{4}-\d\d-\d\d)(?:[Tt ](\d\d:\d\d)(?::(\d\d(?:\.\d{1,9})?))?([Zz]|[+-]\d\d:\d\d)?)?", re.ASCII
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NAIVE_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001  # in UTC; naive arithmetic takes a third of the time
_WHOLE_SECONDS = len("2019-01-01T00:00:00")
_SECOND = 1_000_000_000
_MAX_OFFSET_HOURS, _MAX_OFFSET_MINUTES = 23, 59


def parse_rfc3339(text: str) -> int:
    """Parse an instant to nanoseconds since 1970-01-01T00:00:00Z.

    Equal instants give equal numbers, whatever their offset (`Z`, `+00:00`, `+02:00`).

    Raises:
        ValueError: not RFC 3339, no offset, more than nine fraction digits, no such date, or a leap second.
    """
    match = _RFC_3339.fullmatch(text)
    if match is None:
        raise ValueError("must be an RFC 3339 timestamp with an offset, such as 2019-01-01T00:00:00Z")
    hour, fraction, sign, offset_hours, offset_minutes = match.groups()
    try:
        elapsed = datetime.fromisoformat(text[:_WHOLE_SECONDS]) - _NAIVE_EPOCH
    except ValueError as error:
        raise ValueError(f"names no instant: {error}") from None
    if hour == "24":  # Python 3.13 and later accept it
        raise ValueError("names no instant: hour must be in 0..23")
    seconds = elapsed.days * 86_400 + elapsed.seconds
    if sign is not None:
        if int(offset_hours) > _MAX_OFFSET_HOURS or int(offset_minutes) > _MAX_OFFSET_MINUTES:
            raise ValueError("has an offset of a day or more")
        offset = int(offset_hours) * 3600 + int(offset_minutes) * 60
        seconds += offset if sign == "-" else -offset
    return seconds * _SECOND + (int(fraction.ljust(9, "0")) if fraction else 0)


def parse_time(given: str, now: datetime) -> datetime:
    """Parse a time option: RFC 3339, a date, a time of day, or a span back from `now`. Without an offset it is UTC.

    A time of day is its last occurrence before `now`.

    Raises:
        ValueError: it is invalid; the message lists the formats.
    """
    midnight = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    try:
        if _BACK.fullmatch(given):
            return now - sum((timedelta(**{_UNIT[unit]: int(n)}) for n, unit in _PART.findall(given)), timedelta())
        if given in _DAYS:
            return midnight - timedelta(days=_DAYS[given])
        if _CLOCK.fullmatch(given):
            moment = datetime.combine(midnight, time.fromisoformat(given), UTC)
            return moment if moment <= now else moment - timedelta(days=1)
        if written := _WRITTEN.fullmatch(given):
            date, minutes, seconds, offset = written.groups()
            return to_datetime(parse_rfc3339(f"{date}T{minutes or '00:00'}:{seconds or '00'}{offset or 'Z'}"))
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{given!r} names no time: {error}. Give {TIME_FORMS}") from None
    raise ValueError(f"{given!r} is not a time. Give {TIME_FORMS}")


def to_datetime(nanoseconds: int) -> datetime:
    """Convert nanoseconds to an aware UTC datetime, truncated to microseconds.

    Raises:
        ValueError: outside the years 1 to 9999.
    """
    try:
        return _EPOCH + timedelta(microseconds=nanoseconds // 1000)
    except OverflowError:
        raise ValueError("is outside the years 1 to 9999") from None


def to_nanoseconds(moment: datetime) -> int:
    """Convert an aware datetime to nanoseconds since the epoch."""
    elapsed = moment - _EPOCH
    return ((elapsed.days * 86_400 + elapsed.seconds) * 1_000_000 + elapsed.microseconds) * 1000


def format_fixed_width(nanoseconds: int) -> str:
    """Format an instant as 30 characters whose alphabetical order is chronological.

    Raises:
        ValueError: outside the years 1 to 9999.
    """
    seconds, fraction = divmod(nanoseconds, _SECOND)
    try:
        moment = _NAIVE_EPOCH + timedelta(0, seconds)
    except OverflowError:
        raise ValueError("is outside the years 1 to 9999") from None
    return f"{moment.isoformat()}.{fraction:09d}Z"  # strftime takes three times as long


def time_text(moment: datetime) -> str:
    """Format an instant for both databases: fixed width, UTC, `2019-01-01 00:00:00.000000Z`."""
    return moment.astimezone(UTC).isoformat(" ", "microseconds")[:26] + "Z"


def rfc3339(moment: datetime, timespec: str = "auto") -> str:
    """Format an aware datetime as RFC 3339 in UTC with `Z`; `timespec` as for `datetime.isoformat`."""
    return moment.astimezone(UTC).isoformat(timespec=timespec).removesuffix("+00:00") + "Z"


def as_time(value: str | datetime) -> datetime:
    """Convert a driver's time value to an aware UTC datetime."""
    return (datetime.fromisoformat(value) if isinstance(value, str) else value).astimezone(UTC)
