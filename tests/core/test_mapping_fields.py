"""Fields of a map: values, casts, lookups, dates; always JSON, never a null by accident."""

from __future__ import annotations

from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inbox.config.sync import MapField
from inbox.errors import MappingError
from relay.sync.expressions import decode, encode
from tests.core.mapped import WHERE, fields, one, scope

# --- values


def test_a_table_with_from_is_the_same_as_the_text() -> None:
    assert one("v") == "v"
    assert fields(map={"x": "entity.x"}).of(scope({"x": "v"}), creating=True) == {"x": "v"}


@pytest.mark.parametrize(
    ("constant", "sent"),
    [
        ("v", "v"), (0, 0), (False, False), ("", ""), ([], []), ({"a": [1]}, {"a": [1]}),
        (datetime(2027, 1, 31, 2, tzinfo=timezone(timedelta(hours=2))), "2027-01-31T02:00:00+02:00"),
        (datetime(2027, 1, 31), "2027-01-31T00:00:00"),  # noqa: DTZ001
        (date(2027, 1, 31), "2027-01-31"), ([time(7, 30)], ["07:30:00"]),
    ],
)  # fmt: skip
def test_a_constant_is_sent_as_it_is(constant: object, sent: object) -> None:
    assert fields(map={"x": MapField(value=constant)}).of(scope(), creating=False) == {"x": sent}


def test_an_absent_value_is_left_out_or_the_default_or_an_error() -> None:
    assert one(None) == "absent"
    assert one(None, cast="int", lookup={"1": 2}) == "absent"
    assert one(None, default=0, cast="text") == 0
    assert one("v", default=0) == "v"
    assert one("v", required=True) == "v"
    with pytest.raises(MappingError, match="is required, and there is no value") as caught:
        one(None, required=True)
    assert caught.value.field == WHERE


@pytest.mark.parametrize("creating", [False, True])
def test_only_a_listed_field_is_cleared_and_only_where_there_is_something_to_clear(creating: bool) -> None:
    made = fields(map={"x": MapField(expression="entity.x"), "y": "entity.y", "z": "entity.z"}, clear_when_absent=["x"])
    cleared = {} if creating else {"x": None}
    assert made.of(scope({"z": 1}), creating=creating) == {**cleared, "z": 1}


# --- lookups


@pytest.mark.parametrize(
    ("found", "sent"), [("M", "male"), ("F", ["f"]), (1, "one"), (True, "yes"), ("true", "yes"), ("1", "one")]
)
def test_a_lookup_replaces_a_value(found: object, sent: object) -> None:
    assert one(found, lookup={"M": "male", "F": ["f"], "1": "one", "true": "yes"}) == sent


@pytest.mark.parametrize(
    ("found", "problem"),
    [("X", "is not in the lookup"), ("", "is not in the lookup"), (1.0, "is a number, which can't"), ([], "is a list")],
)
def test_a_value_that_a_lookup_lacks_is_an_error(found: object, problem: str) -> None:
    with pytest.raises(MappingError, match=problem) as caught:
        one(found, lookup={"M": "male"})
    assert caught.value.field == WHERE


# --- casts; docs/reference/mapping.md has more, and tests/docs/test_mapping_page.py tries them


@pytest.mark.parametrize(
    ("cast", "found", "sent"),
    [
        ("int", 10**30, 10**30), ("int", "-007", -7), ("int", Decimal("1E+3"), 1000), ("int", "1.50e1", 15),
        ("float", 1, 1.0), ("float", Decimal("0.1000000000000000000001"), 0.1), ("float", " -1.5 ", -1.5),
        ("text", Decimal("1.10"), "1.10"), ("text", "", ""), ("text", 1.5, "1.5"), ("bool", True, True), ("bool", " 0", False),
        ("date", "0005-02-03", "0005-02-03"), ("datetime", "2019-01-01t00:00:00.123456789z", "2019-01-01T00:00:00.123456Z"),
    ],
)  # fmt: skip
def test_a_cast_makes_a_value_into_another_type(cast: str, found: object, sent: object) -> None:
    made = one(found, cast=cast)
    assert made == sent
    assert type(made) is type(sent)


@pytest.mark.parametrize(
    ("cast", "found"),
    [
        ("int", "1_000"), ("int", "٣"), ("int", "1,5"), ("int", "1e9999"), ("int", Decimal("1E+999999999")), ("int", [1]),
        ("int", 1.5), ("int", "0x10"), ("int", "1" * 1001), ("float", "nan"), ("float", 10**400), ("float", False),
        ("float", Decimal("1E+400")), ("text", {}), ("bool", 2), ("bool", 1.0), ("bool", []), ("date", 20190101),
        ("date", "2019-02-29"), ("date", "2019-W01-1"), ("datetime", "9999-12-31T23:59:59-01:00"), ("datetime", True),
    ],
)  # fmt: skip
def test_what_does_not_fit_its_cast_is_an_error_that_names_the_field(cast: str, found: object) -> None:
    with pytest.raises(MappingError, match=r"routes\.r\.sync\.map\.x: the value ") as caught:
        one(found, cast=cast)
    assert caught.value.field == WHERE


@pytest.mark.parametrize(
    "keys", [{"cast": "int"}, {"cast": "float"}, {"cast": "bool"}, {"cast": "date"}, {"lookup": {"a": 1}}]
)
def test_an_error_does_not_tell_the_value(keys: dict[str, Any]) -> None:
    with pytest.raises(MappingError) as caught:
        one("hunter2", **keys)
    assert "hunter2" not in str(caught.value)


# --- whatever it meets

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(
        st.characters(exclude_categories=["Cs"])
    ) | st.sampled_from(["true", "12", "2019-01-31", "2019-01-31T00:00:00Z", "M", ""])
    | st.decimals(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["x", "y", "z"]), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
EXPRESSIONS = st.sampled_from([
    "entity.x", "entity.y.z", "entity", "target.x", "event.entity_id", "entity.x[0]", "entity.*", "length(entity.x)",
    "entity.x || target.y", "to_number(entity.x)", "entity.x[?y]", "{a: entity.x, b: entity.q}", "`null`", "not_null(target.x)",
])  # fmt: skip
CASTS = st.sampled_from(["text", "int", "float", "bool", "date", "datetime"])
CONSTANTS = st.sampled_from([0, "v", False, [1], {"a": "b"}])
FIELDS = EXPRESSIONS | st.builds(
    lambda expression, cast, lookup, rest: MapField(expression=expression, cast=cast, lookup=lookup, **rest),
    EXPRESSIONS,
    st.none() | CASTS,
    st.none() | st.dictionaries(st.sampled_from(["true", "12", "M"]), CONSTANTS, min_size=1),
    st.sampled_from([{}, {"required": True}]) | CONSTANTS.map(lambda value: {"default": value}),
) | CONSTANTS.map(lambda value: MapField(value=value))  # fmt: skip


def objects_with_null(value: object) -> list[object]:
    if isinstance(value, list):
        return [found for inner in value for found in objects_with_null(inner)]
    if isinstance(value, dict):
        own = [value] if None in value.values() else []
        return [*own, *(found for inner in value.values() for found in objects_with_null(inner))]
    return []


@given(st.dictionaries(st.sampled_from("abcd"), FIELDS, min_size=1), JSON, JSON, st.booleans(), st.data())
def test_whatever_a_map_meets_the_result_is_json_of_mapped_fields_with_no_null_but_a_cleared_one(
    mapped: dict[str, str | MapField], entity: object, target: object, creating: bool, data: st.DataObject
) -> None:
    may_be_absent = [
        name for name, field in mapped.items()
        if isinstance(field, str) or (field.value is None and field.default is None and not field.required)
    ]  # fmt: skip
    clear = [name for name in may_be_absent if data.draw(st.booleans())]
    made = fields(map=mapped, clear_when_absent=clear)
    try:
        result = made.of(scope(entity, target), creating=creating)
    except MappingError:
        return  # tells the field, as others test
    assert decode(encode(result)).keys() == result.keys() <= mapped.keys()
    nulls = {name for name, value in result.items() if value is None}
    assert nulls <= (set() if creating else set(clear))
    assert objects_with_null([value for value in result.values() if value is not None]) == []
    constant = {name for name, field in mapped.items() if isinstance(field, MapField) and field.value is not None}
    assert constant <= result.keys()
