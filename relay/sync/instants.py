"""Times in JSON: RFC 3339, or seconds or milliseconds since 1970. Pure."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal

from inbox.config.types import Unit
from inbox.events.timestamps import parse_rfc3339, to_datetime

_PER_UNIT = {"s": 10**9, "ms": 10**6}


def instant_of(value: object, unit: Unit = "rfc3339") -> datetime:
    """Read an instant as an aware UTC datetime.

    Raises:
        ValueError: it is none; the text continues `it` or `the value`.
    """
    return to_datetime(nanoseconds_of(value, unit))


def nanoseconds_of(value: object, unit: Unit = "rfc3339") -> int:
    """Read an instant as nanoseconds since 1970.

    Raises:
        ValueError: as `instant_of`.
    """
    if unit == "rfc3339":
        if not isinstance(value, str):
            raise ValueError("has to be a text of RFC 3339")  # every misfit is a ValueError
        try:
            return parse_rfc3339(value)
        except ValueError as error:
            raise ValueError(f"has to be RFC 3339: it {error}") from None
    if not isinstance(value, int | float | Decimal) or isinstance(value, bool):
        raise ValueError("has to be a number since 1970")  # noqa: TRY004  # likewise
    try:
        nanoseconds = int(Decimal(str(value)) * _PER_UNIT[unit])
    except (ArithmeticError, ValueError):
        raise ValueError("has to be a number since 1970") from None
    to_datetime(nanoseconds)  # refuses years that no date has
    return nanoseconds
