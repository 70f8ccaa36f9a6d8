"""Compiled sync routes and maps: templates, fields, functions; always JSON, and mistakes are found before the first event."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import StrEnum
from types import ModuleType
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inbox.config.sync import Deactivate, Fetch, Find, MapField, SyncRoute, Update, Write
from inbox.errors import BodyErased, ConfigError, MappingError
from relay.sync.compiled_route import SyncPlan, compile_sync, event_scope, last_modified
from relay.sync.expressions import EVENT_FIELDS, Expression, decode, encode
from relay.sync.fields import Fields, compile_fields
from tests.helpers.delivering import a_delivery

# --- Maps as tests write them, compiled


WHERE = "routes.r.sync.map.x"


def fields(**options: Any) -> Fields:  # noqa: ANN401  # keys of SyncRoute
    return compile_fields("r", SyncRoute(fetch=Fetch(api="i", path="/u"), update=Update(path="/c"), **options))


def scope(entity: object = None, target: object = None) -> dict[str, Any]:
    return {"event": {"entity_id": "u1"}, "entity": entity, "target": target}


def one(found: object, **keys: Any) -> Any:  # noqa: ANN401  # any JSON
    """Return the value that a field with these keys sends when its expression finds this; `absent` for none."""
    given = msgspec.convert({"from": "entity.x", **keys}, MapField)
    mapped = fields(map={"x": given, "id": "event.entity_id"}).evaluate(scope({"x": found}), creating=False)
    return mapped.get("x", "absent")


def with_functions(monkeypatch: pytest.MonkeyPatch, **functions: Callable[..., object]) -> None:
    module = ModuleType("hooks_of_test")
    for name, function in functions.items():
        setattr(module, name, function)
    monkeypatch.setitem(sys.modules, "hooks_of_test", module)


# --- Compiled sync routes: paths, queries and fields, and the mistakes that are found before the first event


KNOWN = ("event", "entity", "target")
AT = datetime(2019, 1, 1, 0, 0, 0, 500_000, tzinfo=UTC)
EVENT = a_delivery(entity_id="ID/1", occurred_at=AT, received_at=AT, body=b'{"id": "ID/1", "extra": {"n": 1}}')


def make_scope(**of: Any) -> dict[str, Any]:  # noqa: ANN401  # any JSON
    return {"event": event_scope(EVENT), "entity": None, "target": None, **of}


def sync_plan(**changes: Any) -> SyncPlan:  # noqa: ANN401  # fields of SyncRoute
    options: dict[str, Any] = {
        "fetch": Fetch(api="identity", path="/user/{event.entity_id}"),
        "map": {"email": "entity.emails[0].address", "phone": "entity.mobiles[0].number", "address": "entity.address"},
        "find": Find(path="/contacts", params={"externalId": "{event.entity_id}"}, pick="items", verify=False),
        "create": Write(path="/contacts"),
        "update": Update(path="/contacts/{target.id}"),
        "delete": Write(path="/contacts/{target.id}"),
        "clear_when_absent": ["phone"],
        **changes,
    }
    return compile_sync("user-to-crm", SyncRoute(**options))


# --- templates


def test_a_template_of_one_expression_keeps_its_type_in_a_body() -> None:
    body = {"a": ["{event.body.extra}", "n={event.seq:text}", 1, None]}
    made = sync_plan(gone="deactivate", deactivate=Deactivate(path="/x", body=body)).deactivate
    assert made is not None
    assert made.json(make_scope()) == b'{"a":[{"n":1},"n=7",1,null]}'


@pytest.mark.parametrize("value", [{"$ne": None}, [{"$ne": None}], [["u1", {}]]])
def test_an_object_from_outside_becomes_no_part_of_a_query(value: object) -> None:
    body = {"external_id": "{event.body.id}"}
    find = sync_plan(find=Find(path="/search", method="POST", body=body, verify=False)).find
    assert find is not None
    with pytest.raises(MappingError, match=r"find\.body\.external_id: \{event\.body\.id\} is an object, which could"):
        find.call.json(make_scope(event={"body": {"id": value}}))
    assert b'"external_id":["u1",5]' in (find.call.json(make_scope(event={"body": {"id": ["u1", 5]}})) or b"")


# --- mapped fields


def test_nulls_inside_a_value_are_left_out_and_a_map_without_any_value_is_an_error() -> None:
    kept = {"city": "Oulu", "rows": [{"b": 1}, None]}
    assert one({"city": "Oulu", "street": None, "rows": [{"a": None, "b": 1}, None]}) == kept
    with pytest.raises(MappingError, match=r"routes\.user-to-crm\.sync\.map: no field has a value"):
        sync_plan(clear_when_absent=[]).fields.evaluate(make_scope(entity={}), creating=False)


@pytest.mark.parametrize(
    ("content_type", "body", "seen"),
    [
        ("application/json", b'{"a": 1}', {"a": 1}),
        ("application/x-www-form-urlencoded; charset=utf-8", b"a=1&b=%C3%A4", {"a": "1", "b": "ä"}),
        ("application/x-www-form-urlencoded", b"a=" + b"%" * 10_000, None),
        ("application/x-www-form-urlencoded", b"a=1&" * 1000, None),
        ("text/plain", b"hello", None),
        ("application/json", b"", None),
        ("application/json", b"[" * 100_000, None),
    ],
)
def test_the_body_of_an_event_is_parsed_when_it_can_be(content_type: str, body: bytes, seen: object) -> None:
    assert event_scope(a_delivery(content_type=content_type, body=body))["body"] == seen


@pytest.mark.parametrize("look", ["body", "body.a", "*", "[body]"])
def test_a_look_into_an_erased_body_finds_no_absent_value_but_fails(look: str) -> None:
    erased = event_scope(a_delivery(body=None))
    assert Expression("entity_id", "x", None).value(erased) == "u1"
    with pytest.raises(BodyErased):
        Expression(look, "x", None).value(erased)


# --- mistakes found at the start

NO_CLEARING: dict[str, Any] = {"clear_when_absent": []}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"map": {"email": "entity.emails[0"}, **NO_CLEARING}, r"sync\.map\.email: .* is not a JMESPath expression"),

        ({"map": {"email": "emails[0].address"}, **NO_CLEARING}, r"sync\.map\.email: .* unknown name 'emails'"),
        ({"map": {"email": "[upcase(entity.a)]"}, **NO_CLEARING}, r"sync\.map\.email: .* unknown function 'upcase'"),

        ({"map": {"email": "{entity.a}"}, **NO_CLEARING}, r"sync\.map\.email: .* have braces, so write 'entity\.a'$"),
        ({"map": {"email": "join(entity.a)"}, **NO_CLEARING}, r"sync\.map\.email: .* passes 1 to join, which takes 2 "),

        ({"fetch": Fetch(api="i", path="/{event.entityid}")}, r"'entityid' in event; did you mean 'entity_id'"),
        ({"map": {"email": "[event.bdy.a]"}, **NO_CLEARING}, r"sync\.map\.email: .* 'bdy' in event; .*'body'"),
        ({"fetch": Fetch(api="i", path="/user/{entity.id}")}, r"sync\.fetch\.path: .* known here: event"),
        ({"fetch": Fetch(api="i", path="user")}, r"sync\.fetch\.path: 'user' must begin with a slash"),

        ({"fetch": Fetch(api="i", path="/user/{event.entity_id")}, r"sync\.fetch\.path: .* brace"),
        ({"fetch": Fetch(api="i", path="/u", params={"a": "{}"})}, r"sync\.fetch\.params\.a"),
        ({"find": Find(path="/c", params={"m": "{entity.mail}"})}, r"sync\.find\.params\.m: .* known here: event$"),

        ({"find": None}, r"sync\.update\.path: .* unknown name 'target'"),
        ({"create": Write(path="/c/{target.id}")}, r"sync\.create\.path"),

    ],
)  # fmt: skip
def test_a_mistake_is_found_at_the_start_and_names_route_and_field(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=r"routes\.user-to-crm\..*" + problem):
        sync_plan(**changes)


@pytest.mark.parametrize(
    "text",
    [
        "entity.a[?x=='1'].b", "sort_by(entity.a, &b)[0].c", "entity.a[*].{q: w}", "entity.a | [0].x", "{a: entity.x}",
        "entity.*.x", "entity.a[1:2]", "@", "`1`", "!entity.x", "event.body || entity.b", 'entity."a-b"', "entity.[a, b]",
        "entity.a[].b", "not_null(entity.a, event.seq)",
    ],
)  # fmt: skip
def test_names_behind_a_dot_or_in_a_projection_are_the_documents_own(text: str) -> None:
    Expression(text, "here", KNOWN)


def test_the_scope_of_an_event_has_exactly_the_names_that_expressions_may_use() -> None:
    assert set(event_scope(a_delivery())) == EVENT_FIELDS


# --- JSON


def test_the_time_of_the_last_change_is_read_where_scim_puts_it() -> None:
    where = Expression("meta.lastModified", "routes.r.sync.fetch.modified", None)
    changed = {"meta": {"lastModified": "2018-09-21T06:29:05.708Z"}}
    assert last_modified(changed, where) == datetime(2018, 9, 21, 6, 29, 5, 708_000, tzinfo=UTC)
    for meta in ({"lastModified": "yesterday"}, {"lastModified": 5}, "x", None):
        assert last_modified({"meta": meta}, where) is None


# --- values


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
    assert fields(map={"x": MapField(value=constant)}).evaluate(scope(), creating=False) == {"x": sent}


def test_an_absent_value_is_left_out_or_the_default_or_an_error() -> None:
    assert one(None) == "absent"
    assert one(None, cast="int", lookup={"1": 2}) == "absent"
    assert one(None, default=0, cast="text") == 0
    assert one("v", default=0) == "v"
    assert one("v", required=True) == "v"
    with pytest.raises(MappingError, match="is required, but has no value") as caught:
        one(None, required=True)
    assert caught.value.field == WHERE


# --- lookups


@pytest.mark.parametrize(
    ("found", "sent"), [("M", "male"), ("F", ["f"]), (1, "one"), (True, "yes"), ("true", "yes"), ("1", "one")]
)
def test_a_lookup_replaces_a_value(found: object, sent: object) -> None:
    assert one(found, lookup={"M": "male", "F": ["f"], "1": "one", "true": "yes"}) == sent
    assert one("X", lookup={"M": "male"}, default="unknown") == "unknown"


@pytest.mark.parametrize(
    ("found", "problem"),
    [("X", "is not in the lookup"), ("", "is not in the lookup"), (1.0, "is a number, which can't"), ([], "is a list")],
)
def test_a_value_that_a_lookup_lacks_is_an_error(found: object, problem: str) -> None:
    with pytest.raises(MappingError, match=problem) as caught:
        one(found, lookup={"M": "male"})
    assert caught.value.field == WHERE


# --- casts; docs/reference/mapping.md has more, and tests/docs/test_reference_pages.py tries them


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
def test_a_value_that_does_not_fit_its_cast_is_an_error_that_names_the_field(cast: str, found: object) -> None:
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
def test_any_map_gives_json_without_a_null_except_for_cleared_fields(
    mapped: dict[str, str | MapField], entity: object, target: object, creating: bool, data: st.DataObject
) -> None:
    may_be_absent = [
        name for name, field in mapped.items()
        if isinstance(field, str) or (field.value is None and field.default is None and not field.required)
    ]  # fmt: skip
    clear = [name for name in may_be_absent if data.draw(st.booleans())]
    made = fields(map=mapped, clear_when_absent=clear)
    try:
        result = made.evaluate(scope(entity, target), creating=creating)
    except MappingError:
        return  # tells the field, as others test
    assert decode(encode(result)).keys() == result.keys() <= mapped.keys()
    nulls = {name for name, value in result.items() if value is None}
    assert nulls <= (set() if creating else set(clear))
    assert objects_with_null([value for value in result.values() if value is not None]) == []
    constant = {name for name, field in mapped.items() if isinstance(field, MapField) and field.value is not None}
    assert constant <= result.keys()


# --- Functions in a map: their arguments, their results and errors, and those that can't be called


def test_a_function_is_given_event_entity_and_target_and_its_result_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    with_functions(monkeypatch, f=lambda event, entity, target: [event["entity_id"], entity["x"], target])
    made = fields(map={"x": MapField(function="hooks_of_test:f")})
    assert made.evaluate(scope({"x": 1}), creating=True) == {"x": ["u1", 1, None]}
    with_functions(monkeypatch, f=lambda *_: "7")
    assert fields(map={"x": MapField(function="hooks_of_test:f", cast="int")}).evaluate(scope(), creating=True) == {
        "x": 7
    }
    with_functions(monkeypatch, f=lambda *_: None)
    made = fields(map={"x": MapField(function="hooks_of_test:f", default=5)})
    assert made.evaluate(scope(), creating=True) == {"x": 5}


def test_a_function_that_changes_its_arguments_changes_them_for_itself_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(_event: object, entity: dict[str, Any], _target: object) -> int:
        entity["x"].append(1)
        return len(entity["x"])

    with_functions(monkeypatch, f=spoil)
    seen = scope({"x": []})
    made = fields(map={"a": MapField(function="hooks_of_test:f"), "b": MapField(function="hooks_of_test:f")})
    assert made.evaluate(seen, creating=True) == {"a": 1, "b": 1}
    assert seen == scope({"x": []})


@pytest.mark.parametrize("error", [ValueError, KeyError, SystemExit, RecursionError])
def test_a_function_that_raises_names_the_type(error: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> object:
        raise error("hunter2")

    with_functions(monkeypatch, f=fail)
    with pytest.raises(MappingError) as caught:
        fields(map={"x": MapField(function="hooks_of_test:f")}).evaluate(scope(), creating=True)
    assert str(caught.value) == f"{WHERE}.function: hooks_of_test:f raised {error.__name__}"


class Color(StrEnum):
    RED = "red"


class Lazy(dict[str, Any]):
    def items(self) -> Any:  # noqa: ANN401  # never
        raise OSError


DEPTHS = [65, 900, 100_000]
"""At which depth a parser, or a walk through its values, overflows differs from Python to Python."""


def nest(depth: int) -> object:
    value: object = 1
    for _ in range(depth):
        value = {"a": value} if depth % 2 else [value]
    return value


ENDLESS: list[Any] = []
ENDLESS.append(ENDLESS)
NOT_JSON = [
    math.nan, -math.inf, Decimal("NaN"), b"x", {1}, object(), Color.RED, {1: 2}, {"a": [{"b": math.nan}]}, "\ud800", {"\ud800": 1},
    datetime(2019, 1, 1, tzinfo=UTC), ENDLESS, 10**5000, Lazy(), {Color.RED: 1}, *map(nest, DEPTHS),
]  # fmt: skip


@pytest.mark.parametrize("returned", NOT_JSON, ids=[str(position) for position in range(len(NOT_JSON))])
def test_a_result_that_is_not_json_is_an_error_by_field(returned: object, monkeypatch: pytest.MonkeyPatch) -> None:
    with_functions(monkeypatch, f=lambda *_: returned, t=lambda *_: {"y": returned})
    for options, where in (
        ({"map": {"x": MapField(function="hooks_of_test:f")}}, WHERE),
        ({"transform": "hooks_of_test:t"}, "routes.r.sync.transform.y"),
    ):
        with pytest.raises(MappingError, match="the value ") as caught:
            fields(**options).evaluate(scope(), creating=False)
        assert caught.value.field == where


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_an_entity_that_is_nested_deeper_than_64_levels_is_not_read(opening: bytes, closing: bytes, depth: int) -> None:
    with pytest.raises(ValueError, match="nested deeper than 64 levels"):
        decode(opening * depth + b"1" + closing * depth)


def test_an_entity_of_64_levels_is_mapped_and_one_around_it_is_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    entity = decode(b"[" * 64 + b"1" + b"]" * 64)
    with_functions(monkeypatch, f=lambda *_: entity)
    for found in ("entity", MapField(function="hooks_of_test:f")):
        assert fields(map={"x": found}).evaluate(scope(entity), creating=False) == {"x": entity}
    with pytest.raises(MappingError, match="nested deeper than 64 levels"):
        fields(map={"x": "[entity]"}).evaluate(scope(entity), creating=False)


# --- transform


def test_a_transform_has_the_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    with_functions(
        monkeypatch, t=lambda fields, event, _entity, _target: {**fields, "id": event["entity_id"], "n": None}
    )
    made = fields(map={"x": "entity.x"}, transform="hooks_of_test:t", clear_when_absent=["x"])
    assert made.evaluate(scope({"x": 1}), creating=False) == {"x": 1, "id": "u1"}
    assert made.evaluate(scope({}), creating=False) == {"x": None, "id": "u1"}
    assert made.evaluate(scope({}), creating=True) == {"id": "u1"}


@pytest.mark.parametrize(
    ("returned", "problem"),
    [
        ({1: 2}, "holds int as a key"),
        (None, "returned NoneType"),
        ({}, "no field has a value"),
    ],
)
def test_a_transform_needs_a_field(returned: object, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with_functions(monkeypatch, t=lambda *_: returned)
    with pytest.raises(MappingError, match=rf"routes\.r\.sync\.transform: .*{problem}"):
        fields(map={"x": MapField(value=1)}, transform="hooks_of_test:t").evaluate(scope(), creating=False)


# --- mistakes that only the relay finds: expressions, and functions that are not there


def test_a_function_that_can_not_be_called_is_found_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    with_functions(monkeypatch, two=lambda _a, _b: None)
    for function, problem in (
        ("no_such_module:f", "there is no module 'no_such_module'"),
        ("hooks_of_test:two", "hooks_of_test:two must take 3 arguments: event, entity, target"),
    ):
        with pytest.raises(ConfigError, match=f"^{WHERE}.function: .*{problem}"):
            fields(map={"x": MapField(function=function)})
