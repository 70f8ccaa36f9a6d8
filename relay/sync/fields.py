"""The fields of a counterpart: compiled from a route's map at startup, and evaluated for each event. Pure.

The result is JSON. An absent value is omitted, since a null would delete it downstream. Only a field in
`clear_when_absent` is sent as null, and only in an update.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import partial
from typing import Any

import msgspec

from inbox.config.sync import MapField, SyncRoute
from inbox.errors import BodyErased, MappingError, collect_config_errors
from inbox.events.strict_json import DEEPEST
from inbox.events.timestamps import parse_rfc3339, rfc3339, to_datetime
from relay.sync.expressions import Expression, Hook, Scope

Cast = Callable[[object], object]

_NUMBER = re.compile(r"[+-]?[0-9]{1,1000}(?:\.[0-9]{1,1000})?(?:[eE][+-]?[0-9]{1,4})?")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_MOST_DIGITS = 1000
_LONGEST_DATE = 200
_BOOLS: dict[str, bool] = {"true": True, "false": False, "1": True, "0": False}


def choose_cast(field: MapField) -> Cast | None:
    """Return the cast of `field`. The text of its ValueError continues the words `the value`."""
    match field.cast:
        case None:
            return None
        case "date":
            return lambda value: _format_date(_day(value, field.read), field.write)
        case "datetime":
            return lambda value: _format_date(_moment(value, field.read), field.write)
        case kind:
            return {"text": _text, "int": _int, "float": _float, "bool": _bool}[kind]


def make_key(value: object) -> str:
    """Return the key of `value` in a lookup table.

    Raises:
        ValueError: it is not text, a whole number, true or false.
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
        raise ValueError(f"is {_kind(value)}, not text")  # noqa: TRY004  # every mismatch is a ValueError
    return str(value).lower() if isinstance(value, bool) else str(value)


def _number(value: object, wanted: str) -> int | float | Decimal:
    if isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        return Decimal(value.strip())
    raise ValueError(f"is {_kind(value)}, not a {wanted}")


def _int(value: object) -> int:
    number = _number(value, "whole number")
    if isinstance(number, Decimal):
        if number.adjusted() >= _MOST_DIGITS:  # avoids expanding the digits
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
        raise ValueError(f"is {_kind(value)}, not true, false, 1 or 0")
    return made


def _moment(value: object, read: str | None) -> datetime:
    if not isinstance(value, str):
        raise ValueError(f"is {_kind(value)}, not the text of a date")  # noqa: TRY004  # every mismatch is a ValueError
    if len(value) > _LONGEST_DATE:
        raise ValueError(f"has more than {_LONGEST_DATE} characters, too many for a date")
    if read is None:
        return to_datetime(parse_rfc3339(value))
    try:
        moment = datetime.strptime(value, read)  # noqa: DTZ007  # UTC, unless the text has an offset
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError(f"is not a date in the format {read}") from None


def _day(value: object, read: str | None) -> date:
    if read is None and isinstance(value, str) and _DATE.fullmatch(value):
        try:
            return date.fromisoformat(value)
        except ValueError:
            raise ValueError("is not a date") from None
    return _moment(value, read).date()


def _format_date(moment: date, form: str | None) -> str:
    if form is None:
        return rfc3339(moment) if isinstance(moment, datetime) else moment.isoformat()
    # On some platforms, `%Y` has fewer than four digits for years before 1000.
    return re.sub("%(.)", lambda part: f"{moment.year:04d}" if part[1] == "Y" else moment.strftime(part[0]), form)


# --- fields


_KNOWN = ("event", "entity", "target")
_MOST_BITS = 4096
"""Largest whole number in bits: Python refuses to convert more than 4,300 digits to text."""


class Field(msgspec.Struct, frozen=True):
    """The rule of one field: find a value, cast it, look it up."""

    where: str
    find: Callable[[Scope], Any]
    cast: Cast | None = None
    rule: MapField = MapField()

    def value(self, scope: Scope) -> Any:  # noqa: ANN401  # any JSON
        """Return the value; None if it is absent.

        Raises:
            MappingError: the value is required and absent, or can't be sent.
        """
        found = as_json(self.find(scope), self.where)
        if found is None:
            if self.rule.required:
                raise MappingError("is required, but has no value", field=self.where)
            return self.rule.default
        try:
            if self.cast is not None:
                found = self.cast(found)
            if self.rule.lookup is None:
                return found
            looked_up = self.rule.lookup.get(make_key(found), self.rule.default)
        except ValueError as error:
            raise MappingError(f"the value {error}", field=self.where) from None
        if looked_up is None:
            raise MappingError("the value is not in the lookup, and there is no default", field=self.where)
        return looked_up


class Fields(msgspec.Struct, frozen=True):
    """The map of a route, compiled."""

    where: str
    fields: Mapping[str, Field]
    clear_when_absent: frozenset[str] = frozenset()
    transform: Hook | None = None

    def evaluate(self, scope: Scope, *, creating: bool) -> dict[str, Any]:
        """Return the fields to send.

        Raises:
            MappingError: a field has no usable value, or all fields are absent. The error names the field.
        """
        clear: frozenset[str] = frozenset() if creating else self.clear_when_absent
        values = {name: field.value(scope) for name, field in self.fields.items()}
        result = {name: value for name, value in values.items() if value is not None or name in clear}
        if self.transform is not None:
            result = self._transform(self.transform, result, scope, clear)
        if not result:
            where = f"{self.where}.map" if self.transform is None else self.transform.where
            raise MappingError("no field has a value, so there is nothing to send", field=where)
        return result

    def _transform(
        self, transform: Hook, fields: dict[str, Any], scope: Scope, clear: frozenset[str]
    ) -> dict[str, Any]:
        returned = transform.call(fields, *(scope[name] for name in _KNOWN))
        if type(returned) is not dict:
            raise MappingError(
                f"{transform.reference} returned {type(returned).__name__}, not a dict of fields", field=transform.where
            )
        as_json(dict.fromkeys(returned, 0), transform.where)  # checks the names
        values = {name: as_json(value, f"{transform.where}.{name}") for name, value in returned.items()}
        return {name: value for name, value in values.items() if value is not None or name in clear}


def compile_fields(route: str, sync: SyncRoute) -> Fields:
    """Compile the map of a route, which `inbox.loader.checks` has accepted, and import its functions.

    Raises:
        ConfigError: an expression is wrong, or a function is unusable. The text has a line for each, with its place.
    """
    where = f"routes.{route}.sync"
    parts: dict[str, Callable[[], Any]] = {
        f"map.{name}": partial(_field, f"{where}.map.{name}", given) for name, given in sync.map.items()
    }
    parts["transform"] = partial(_hook, sync.transform, f"{where}.transform", ("fields", *_KNOWN))
    made = collect_config_errors(parts)
    fields = {name: made[f"map.{name}"] for name in sync.map}
    return Fields(where, fields, frozenset(sync.clear_when_absent), made["transform"])


def as_json(value: object, where: str) -> Any:  # noqa: ANN401  # any JSON
    """Copy `value` without keys whose value is null, at any depth.

    Raises:
        MappingError: it is nested deeper than `DEEPEST`, or holds a value that JSON lacks, such as NaN, bytes or a set.
    """
    try:
        return _plain(value, DEEPEST)
    except UnicodeEncodeError:
        raise MappingError("the value holds half of a character", field=where) from None
    except BodyErased:  # concerns the event, not this field
        raise
    except _TooDeep:
        raise MappingError(f"the value is nested deeper than {DEEPEST} levels", field=where) from None
    except ValueError as error:
        raise MappingError(f"the value holds {error}, which JSON can't hold", field=where) from None
    except Exception as error:  # noqa: BLE001  # reading an object of the operator's class may raise anything
        raise MappingError(f"the value can't be read: {type(error).__name__}", field=where) from None


def _field(where: str, given: str | MapField) -> Field:
    if isinstance(given, str):
        return Field(where, Expression(given, where, _KNOWN).value)
    # Dates and times become text.
    texts = {key: msgspec.to_builtins(getattr(given, key)) for key in ("value", "default", "lookup")}
    rule = msgspec.structs.replace(given, **texts)
    return Field(where, _finder(where, rule), choose_cast(rule), rule)


def _finder(where: str, given: MapField) -> Callable[[Scope], Any]:
    if given.expression is not None:
        return Expression(given.expression, f"{where}.from", _KNOWN).value
    if hook := _hook(given.function, f"{where}.function", _KNOWN):
        return lambda scope: hook.call(*(scope[name] for name in _KNOWN))
    return lambda _: given.value


def _hook(reference: str | None, where: str, takes: Sequence[str]) -> Hook | None:
    return None if reference is None else Hook(reference, where, takes)


class _TooDeep(Exception):
    """The value has too many levels, or contains itself."""


def _plain(value: object, levels: int) -> object:
    """Copy `value`, with at most `levels` of lists and objects."""
    plain: object
    match value:
        case list() | tuple() | dict() if levels == 0:
            raise _TooDeep
        case list() | tuple():
            plain = [_plain(inner, levels - 1) for inner in value]
        case dict():
            plain = {_key(key): _plain(inner, levels - 1) for key, inner in value.items() if inner is not None}
        case str() if type(value) is str:  # a subclass, such as an Enum, may convert to any text
            value.encode()
            plain = value
        case None | bool():
            plain = value
        case int() if value.bit_length() <= _MOST_BITS:
            plain = int(value)
        case float() if math.isfinite(value):
            plain = float(value)
        case Decimal() if value.is_finite():
            plain = value
        case int() | float() | Decimal():
            raise ValueError("NaN, or a number that is too large")
        case _:
            raise ValueError(type(value).__name__)
    return plain


def _key(key: object) -> str:
    if type(key) is not str:
        raise ValueError(f"{type(key).__name__} as a key")
    key.encode()
    return key
