"""Casts of mapped values to text, numbers, booleans and dates. Strict: a value that doesn't fit is a ValueError. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from datetime import UTC, date, datetime
from decimal import Decimal

from inbox.config.sync import MapField
from inbox.events.timestamps import parse_rfc3339, rfc3339, to_datetime

Cast = Callable[[object], object]

_NUMBER = re.compile(r"[+-]?[0-9]{1,1000}(?:\.[0-9]{1,1000})?(?:[eE][+-]?[0-9]{1,4})?")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_MOST_DIGITS = 1000
_LONGEST_DATE = 200
_BOOLS: dict[str, bool] = {"true": True, "false": False, "1": True, "0": False}


def cast_of(field: MapField) -> Cast | None:
    """Return the cast that `field` names. The text of its ValueError continues the words `the value`."""
    match field.cast:
        case None:
            return None
        case "date":
            return lambda value: _written(_day(value, field.read), field.write)
        case "datetime":
            return lambda value: _written(_moment(value, field.read), field.write)
        case kind:
            return {"text": _text, "int": _int, "float": _float, "bool": _bool}[kind]


def key_of(value: object) -> str:
    """Return the key of `value` in a lookup table.

    Raises:
        ValueError: it is neither text, a whole number, nor true or false.
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int):
        return str(value)
    raise ValueError(f"is {_kind(value)}, which can't be looked up")


def _kind(value: object) -> str:
    kinds = {str: "text", bool: "true or false", list: "a list", dict: "an object"}
    return kinds.get(type(value), "a number")


def _text(value: object) -> str:
    if isinstance(value, list | dict):
        raise ValueError(f"is {_kind(value)}, which is no text")  # noqa: TRY004  # every misfit is a ValueError
    return str(value).lower() if isinstance(value, bool) else str(value)


def _number(value: object, wanted: str) -> int | float | Decimal:
    if isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        return Decimal(value.strip())
    raise ValueError(f"is {_kind(value)} that is no {wanted}")


def _int(value: object) -> int:
    number = _number(value, "whole number")
    if isinstance(number, Decimal):
        if number.adjusted() >= _MOST_DIGITS:  # before its digits are written out
            raise ValueError("is too large a number")
        whole = number == number.to_integral_value()
    else:
        whole = isinstance(number, int) or number.is_integer()
    if not whole:
        raise ValueError("is a number that is not whole")
    return int(number)


def _float(value: object) -> float:
    try:
        number = float(_number(value, "number"))
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError("is too large a number")
    return number


def _bool(value: object) -> bool:
    if isinstance(value, bool):
        return value
    made = _BOOLS.get(str(value).strip().lower()) if isinstance(value, str | int) else None
    if made is None:
        raise ValueError(f"is {_kind(value)}, but none of true, false, 1 and 0")
    return made


def _moment(value: object, read: str | None) -> datetime:
    if not isinstance(value, str):
        raise ValueError(f"is {_kind(value)}, not the text of a date")  # noqa: TRY004  # every misfit is a ValueError
    if len(value) > _LONGEST_DATE:
        raise ValueError(f"has more than {_LONGEST_DATE} characters, and is no date")
    if read is None:
        return to_datetime(parse_rfc3339(value))
    try:
        moment = datetime.strptime(value, read)  # noqa: DTZ007  # UTC, unless the text has an offset
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError(f"is not written {read}, or names no date") from None


def _day(value: object, read: str | None) -> date:
    if read is None and isinstance(value, str) and _DATE.fullmatch(value):
        try:
            return date.fromisoformat(value)
        except ValueError:
            raise ValueError("names no date") from None
    return _moment(value, read).date()


def _written(moment: date, form: str | None) -> str:
    if form is None:
        return rfc3339(moment) if isinstance(moment, datetime) else moment.isoformat()
    # `%Y` of the years before 1000 has four digits on some platforms only.
    return re.sub("%(.)", lambda part: f"{moment.year:04d}" if part[1] == "Y" else moment.strftime(part[0]), form)
