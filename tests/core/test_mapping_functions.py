"""Functions in a map: what they are given, what becomes of what they return or raise, and which are found to be none."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any

import pytest

from inbox.config.sync import MapField
from inbox.errors import ConfigError, MappingError
from relay.sync.expressions import decode
from tests.core.mapped import WHERE, fields, scope, with_functions


def test_a_function_is_given_event_entity_and_target_and_its_result_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    with_functions(monkeypatch, f=lambda event, entity, target: [event["entity_id"], entity["x"], target])
    made = fields(map={"x": MapField(function="hooks_of_test:f")})
    assert made.of(scope({"x": 1}), creating=True) == {"x": ["u1", 1, None]}
    with_functions(monkeypatch, f=lambda *_: "7")
    assert fields(map={"x": MapField(function="hooks_of_test:f", cast="int")}).of(scope(), creating=True) == {"x": 7}
    with_functions(monkeypatch, f=lambda *_: None)
    made = fields(map={"x": MapField(function="hooks_of_test:f", default=5)})
    assert made.of(scope(), creating=True) == {"x": 5}


def test_what_a_function_does_to_its_arguments_nobody_else_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(_event: object, entity: dict[str, Any], _target: object) -> int:
        entity["x"].append(1)
        return len(entity["x"])

    with_functions(monkeypatch, f=spoil)
    seen = scope({"x": []})
    made = fields(map={"a": MapField(function="hooks_of_test:f"), "b": MapField(function="hooks_of_test:f")})
    assert made.of(seen, creating=True) == {"a": 1, "b": 1}
    assert seen == scope({"x": []})


@pytest.mark.parametrize("error", [ValueError, KeyError, SystemExit, RecursionError])
def test_a_function_that_raises_is_an_error_that_tells_the_type_alone(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> object:
        raise error("hunter2")

    with_functions(monkeypatch, f=fail)
    with pytest.raises(MappingError) as caught:
        fields(map={"x": MapField(function="hooks_of_test:f")}).of(scope(), creating=True)
    assert str(caught.value) == f"{WHERE}.function: hooks_of_test:f raised {error.__name__}"


class Color(StrEnum):
    RED = "red"


class Lazy(dict[str, Any]):
    def items(self) -> Any:  # noqa: ANN401  # never
        raise OSError


ENDLESS: list[Any] = []
ENDLESS.append(ENDLESS)
NOT_JSON = [
    math.nan, -math.inf, Decimal("NaN"), b"x", {1}, object(), Color.RED, {1: 2}, {"a": [{"b": math.nan}]}, "\ud800", {"\ud800": 1},
    datetime(2019, 1, 1, tzinfo=UTC), ENDLESS, 10**5000, Lazy(), {Color.RED: 1},
]  # fmt: skip


@pytest.mark.parametrize("returned", NOT_JSON, ids=[str(position) for position in range(len(NOT_JSON))])
def test_what_is_not_json_is_an_error_that_names_the_field(returned: object, monkeypatch: pytest.MonkeyPatch) -> None:
    with_functions(monkeypatch, f=lambda *_: returned, t=lambda *_: {"y": returned})
    for options, where in (
        ({"map": {"x": MapField(function="hooks_of_test:f")}}, WHERE),
        ({"transform": "hooks_of_test:t"}, "routes.r.sync.transform.y"),
    ):
        with pytest.raises(MappingError, match="the value ") as caught:
            fields(**options).of(scope(), creating=False)
        assert caught.value.field == where


DEPTHS = [65, 66, 900, 5_000, 100_000]
"""The last three: at which of them a parser, or a walk through its values, overflows differs from Python to Python."""


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_an_entity_that_is_nested_deeper_than_64_levels_is_not_read(opening: bytes, closing: bytes, depth: int) -> None:
    with pytest.raises(ValueError, match="nested deeper than 64 levels"):
        decode(opening * depth + b"1" + closing * depth)


def test_an_entity_of_64_levels_is_mapped_and_what_an_expression_puts_around_it_is_too_much() -> None:
    entity = decode(b"[" * 64 + b"1" + b"]" * 64)
    assert fields(map={"x": "entity"}).of(scope(entity), creating=False) == {"x": entity}
    with pytest.raises(MappingError, match="nested deeper than 64 levels"):
        fields(map={"x": "[entity]"}).of(scope(entity), creating=False)


def nested(depth: int) -> object:
    value: object = 1
    for _ in range(depth):
        value = {"a": value} if depth % 2 else [value]
    return value


@pytest.mark.parametrize("depth", [*DEPTHS, None])
def test_what_a_function_returns_has_64_levels_at_most(monkeypatch: pytest.MonkeyPatch, depth: int | None) -> None:
    endless: list[object] = []
    endless.append(endless)
    with_functions(monkeypatch, f=lambda *_: endless if depth is None else nested(depth))
    with pytest.raises(MappingError, match="nested deeper than 64 levels"):
        fields(map={"x": MapField(function="hooks_of_test:f")}).of(scope(), creating=False)
    with_functions(monkeypatch, f=lambda *_: nested(64))
    assert fields(map={"x": MapField(function="hooks_of_test:f")}).of(scope(), creating=False) == {"x": nested(64)}


# --- transform


def test_a_transform_has_the_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    with_functions(
        monkeypatch, t=lambda fields, event, _entity, _target: {**fields, "id": event["entity_id"], "n": None}
    )
    made = fields(map={"x": "entity.x"}, transform="hooks_of_test:t", clear_when_absent=["x"])
    assert made.of(scope({"x": 1}), creating=False) == {"x": 1, "id": "u1"}
    assert made.of(scope({}), creating=False) == {"x": None, "id": "u1"}
    assert made.of(scope({}), creating=True) == {"id": "u1"}


@pytest.mark.parametrize(
    ("returned", "problem"),
    [
        ({1: 2}, "holds int as a key"),
        (None, "returned NoneType"),
        ([], "returned list"),
        ({}, "no field has a value"),
        ({"a": None}, "no field has"),
    ],
)
def test_a_transform_that_gives_no_fields_is_an_error(
    returned: object, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_functions(monkeypatch, t=lambda *_: returned)
    with pytest.raises(MappingError, match=rf"routes\.r\.sync\.transform: .*{problem}"):
        fields(map={"x": MapField(value=1)}, transform="hooks_of_test:t").of(scope(), creating=False)


# --- mistakes that only the relay finds: expressions, and functions that are not there


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        ("no_such_module:f", "there is no module 'no_such_module'"),
        ("hooks_of_test:two", "hooks_of_test:two must take 3 arguments: event, entity, target"),
    ],
)
def test_a_function_that_can_not_be_called_is_found_at_the_start(
    function: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_functions(monkeypatch, two=lambda _a, _b: None)
    with pytest.raises(ConfigError) as caught:
        fields(map={"x": MapField(function=function)})
    assert str(caught.value).startswith(f"{WHERE}.function: ")
    assert problem in str(caught.value)
