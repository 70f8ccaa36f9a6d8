"""Times in JSON: RFC 3339, or a number of seconds or milliseconds since 1970. Pure."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any

from inbox.events.timestamps import parse_rfc3339, to_datetime

_FIRST_MILLISECONDS = 100_000_000_000
"""From here on a number counts milliseconds: as seconds it is the year 5138, as milliseconds March 1973."""


def instant_of(value: object) -> datetime:
    """Read an instant as an aware UTC datetime.

    Raises:
        ValueError: it is none; the text continues `it` or `the value`.
    """
    return to_datetime(nanoseconds_of(value))


def nanoseconds_of(value: Any) -> int:  # noqa: ANN401  # any JSON
    """Read an instant as nanoseconds since 1970.

    Raises:
        ValueError: as `instant_of`.
    """
    if isinstance(value, str):
        try:
            return parse_rfc3339(value)
        except ValueError as error:
            raise ValueError(f"has to be RFC 3339, or a number since 1970: {error}") from None
    if not isinstance(value, int | float | Decimal) or isinstance(value, bool):
        raise ValueError("is no time")  # noqa: TRY004  # every misfit is a ValueError
    try:
        exact = Decimal(str(value))
        nanoseconds = int(exact * (10**6 if abs(exact) >= _FIRST_MILLISECONDS else 10**9))
    except (ArithmeticError, ValueError):
        raise ValueError("is no time") from None
    to_datetime(nanoseconds)  # refuses years that no date has
    return nanoseconds
