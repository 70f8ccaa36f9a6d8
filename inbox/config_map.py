"""What the map of a sync route must keep to: one way to a value, casts and dates that can be, constants that JSON has."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from datetime import UTC, datetime

from inbox.config_shape import Mistake, nearest
from inbox.config_sync import MapField, Sync

Path = tuple[str, ...]

_REFERENCE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
_DIRECTIVE = re.compile(r"%(.?)", re.DOTALL)
_DIRECTIVES = frozenset("YymbBdjaAHIMSfpz%")
"""Those that every platform reads and writes alike."""
_SOME_DAY = datetime(2000, 12, 31, tzinfo=UTC)


def map_mistakes(path: Path, sync: Sync) -> Iterator[Mistake]:
    """Everything about the map of the sync table at `path` that can't be, as far as it is seen without running it."""
    if not sync.map and sync.transform is None:
        yield Mistake((*path, "map"), "at least one field must be mapped, or a transform given")
    for name, field in sync.map.items():
        if isinstance(field, MapField):
            yield from _field((*path, "map", name), field)
    if sync.transform is not None:
        yield from _reference((*path, "transform"), sync.transform)
    for name in sync.clear_when_absent:
        mapped = sync.map.get(name)
        if mapped is None and sync.transform is None:  # which may give any field
            yield Mistake(
                (*path, "clear_when_absent"), f"{name!r} is not a field of the map; {nearest(name, sync.map)}"
            )
        elif isinstance(mapped, MapField) and _always_has_one(mapped):
            yield Mistake((*path, "clear_when_absent"), f"{name!r} always has a value, or is an error")


def _always_has_one(mapped: MapField) -> bool:
    return mapped.required or mapped.value is not None or mapped.default is not None


def is_reference(text: str) -> bool:
    """Whether it could name a function: `package.module:name`."""
    return _REFERENCE.fullmatch(text) is not None


def _field(path: Path, field: MapField) -> Iterator[Mistake]:
    ways = {"from": field.expression, "value": field.value, "function": field.function}
    given = [name for name, way in ways.items() if way is not None]
    if len(given) != 1:
        has = f"this has {' and '.join(given)}" if given else "this has none of them"
        yield Mistake(path, f"a field takes one of from, value and function; {has}")
    if field.value is not None and field != MapField(
        value=field.value, expression=field.expression, function=field.function
    ):
        yield Mistake((*path, "value"), "is sent as it is, so that no other key has a meaning beside it")
    if field.function is not None:
        yield from _reference((*path, "function"), field.function)
    if field.required and field.default is not None:
        yield Mistake((*path, "required"), "has no meaning beside a default, with which there always is a value")
    if field.lookup is not None and not field.lookup:
        yield Mistake((*path, "lookup"), "must not be empty; leave the key out, or give at least one value")
    yield from _dates(path, field)
    for name, constant in (("value", field.value), ("default", field.default), ("lookup", field.lookup)):
        yield from _constant((*path, name), constant)


def _reference(path: Path, text: str) -> Iterator[Mistake]:
    if not is_reference(text):
        yield Mistake(path, f"expected package.module:function, got {text!r}")


def _constant(path: Path, value: object) -> Iterator[Mistake]:
    if isinstance(value, float) and not math.isfinite(value):
        yield Mistake(path, f"JSON has no {value}")
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _constant((*path, str(key)), inner)
    elif isinstance(value, list):
        for position, inner in enumerate(value):
            yield from _constant((*path, f"[{position}]"), inner)


def _dates(path: Path, field: MapField) -> Iterator[Mistake]:
    for name, form in (("read", field.read), ("write", field.write)):
        if form is None:
            continue
        if field.cast not in {"date", "datetime"}:
            yield Mistake((*path, name), 'is about dates; add cast = "date" or cast = "datetime"')
        unknown = [letter for letter in _DIRECTIVE.findall(form) if letter not in _DIRECTIVES]
        if unknown:
            valid = " ".join(f"%{letter}" for letter in sorted(_DIRECTIVES))
            yield Mistake((*path, name), f"{form!r} has %{unknown[0]}; valid here: {valid}")
        elif name == "read" and not _names_a_day(form):
            yield Mistake((*path, name), f"{form!r} must name a day with its year, once, such as %Y-%m-%d")


def _names_a_day(form: str) -> bool:
    letters = _DIRECTIVE.findall(form)
    has_year, has_month = bool({"Y", "y"} & {*letters}), bool({"m", "b", "B"} & {*letters})
    if not has_year or not ("j" in letters or ("d" in letters and has_month)):
        return False
    try:
        datetime.strptime(_SOME_DAY.strftime(form), form)  # noqa: DTZ007  # only whether it can be
    except (ValueError, re.error):
        return False
    return True
