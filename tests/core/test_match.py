"""Before anything is written to a match, it has to carry the value that was searched for, in any spelling of that value."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inbox.config.sync import Find, MapField
from inbox.errors import ConfigError, MappingError, UnusableResponse
from relay.sync.compiled_route import FindPlan, compile_find, require_carried

EXTERNAL: dict[str, str | MapField] = {"name": "entity.name", "external_id": "event.entity_id"}
BY_ID = Find(path="/contacts", params={"externalId": "{event.entity_id}"})


def compile_plan(find: Find = BY_ID, mapped: dict[str, str | MapField] = EXTERNAL) -> FindPlan:
    return compile_find(find, "routes.r.sync.find", {"event", "entity"}, mapped)


def verify_by(verify: dict[str, str] | bool = True, **more: Any) -> FindPlan:  # noqa: ANN401  # any key
    return compile_plan(Find(path="/contacts", params={"externalId": "{event.entity_id}"}, verify=verify, **more))


def is_taken(plan: FindPlan, match: dict[str, Any], searched: object = "u1") -> bool:
    scope = {"event": {"entity_id": searched}, "entity": None}
    try:
        require_carried(plan.carried, match, scope, ignore_case=plan.ignore_case)
    except UnusableResponse:
        return False
    return True


@pytest.mark.parametrize(
    "find",
    [
        BY_ID,
        Find(path="/contacts", params={"filter": "externalId eq {event.entity_id:scim} and active eq true"}),
        Find(path="/contacts/by-external-id/{ event.entity_id }"),
        Find(path="/search", method="POST", body={"query": [{"is": "{event.entity_id}"}]}),
        Find(path="/contacts", params={"externalId": "{event.entity_id}"}),
    ],
)
@pytest.mark.parametrize(
    "mapped", ["event.entity_id", " event . entity_id", MapField(expression="event.entity_id", required=True)]
)
def test_the_field_that_the_map_gives_the_searched_value_has_to_carry_it(find: Find, mapped: str | MapField) -> None:
    plan = compile_plan(find, {"external_id": mapped})
    assert is_taken(plan, {"id": "c1", "external_id": "u1"})
    assert not is_taken(plan, {"id": "c1", "external_id": "u2"})
    assert not is_taken(plan, {"id": "c1"})
    assert not is_taken(plan, {"id": "c1", "external_id": None})


@pytest.mark.parametrize(
    "mapped",
    [
        {"name": "entity.name"},
        {"external_id": MapField(expression="event.entity_id", cast="int")},
        {"external_id": MapField(expression="event.entity_id", lookup={"u1": 5})},
        {"external_id": MapField(value="u1")},
        {"external_id": "join('', ['x', event.entity_id])"},
    ],
)
def test_a_find_that_nothing_verifies_is_a_mistake_with_the_two_ways_out(mapped: dict[str, str | MapField]) -> None:
    with pytest.raises(
        ConfigError, match=r'find\.verify: .* verify = \{ FIELD = "event\.entity_id" \} .* verify = false'
    ):
        compile_plan(BY_ID, mapped)
    assert compile_plan(msgspec.structs.replace(BY_ID, verify=False), mapped).carried == ()
    assert compile_plan(msgspec.structs.replace(BY_ID, verify={"id": "event.entity_id"}), mapped).carried


def test_of_two_fields_with_the_same_value_either_will_do() -> None:
    plan = compile_plan(BY_ID, {"userName": "event.entity_id", "external-id": "event.entity_id"})
    assert is_taken(plan, {"userName": "aino", "external-id": "u1"})
    assert not is_taken(plan, {"userName": "aino", "external-id": "u2"})


def test_each_value_that_is_searched_for_counts() -> None:
    find = Find(path="/contacts", params={"id": "{event.entity_id}", "of": "{event.source}"})
    plan = compile_plan(find, {"external_id": "event.entity_id", "origin": "event.source"})
    scope = {"event": {"entity_id": "u1", "source": "trivore"}}
    require_carried(plan.carried, {"external_id": "u1", "origin": "trivore"}, scope, ignore_case=False)
    with pytest.raises(UnusableResponse, match="'okta' at origin"):
        require_carried(plan.carried, {"external_id": "u1", "origin": "okta"}, scope, ignore_case=False)


def test_a_table_names_fields_however_deep_and_false_asks_nothing() -> None:
    plan = verify_by({"ids[?kind=='external'].value": "event.entity_id"})
    assert is_taken(plan, {"ids": [{"kind": "own", "value": "c1"}, {"kind": "external", "value": "u1"}]})
    assert not is_taken(plan, {"ids": [{"kind": "own", "value": "u1"}]})
    assert not is_taken(plan, {"ids": "u1"})
    assert is_taken(
        verify_by({'"urn:x:2.0:User".externalId': "event.entity_id"}), {"urn:x:2.0:User": {"externalId": "u1"}}
    )
    assert is_taken(verify_by(verify=False), {"id": "c1"})


@pytest.mark.parametrize(
    ("searched", "carried", "same"),
    [
        ("5", 5, True), (5, "5", True), (5, 5.0, True), (Decimal("1.10"), 1.1, False),
        (Decimal("1.10"), Decimal("1.1"), True), ("5", "05", False), ("true", True, True), (1, True, False),
        (True, 1, False), ("u1", ["u0", "u1"], True), ("u1", [["u1"]], False), ("u1", {"value": "u1"}, False),
        ("u1", "u1 ", False), ("é", "e\u0301", False), ("nan", float("nan"), False),
    ],
)  # fmt: skip
def test_values_are_compared_as_texts_and_numbers_as_numbers(searched: object, carried: object, same: bool) -> None:
    assert is_taken(verify_by(), {"external_id": carried}, searched) is same


def test_case_counts_unless_the_table_says_that_it_does_not() -> None:
    assert not is_taken(verify_by(), {"external_id": "U1"})
    assert is_taken(verify_by(ignore_case=True), {"external_id": "U1"})
    assert is_taken(verify_by(ignore_case=True), {"external_id": "STRASSE"}, "straße")
    assert not is_taken(verify_by(ignore_case=True), {"external_id": "U2"})


@given(st.text(min_size=1), st.text())
def test_a_match_is_taken_when_it_carries_the_very_text(searched: str, carried: str) -> None:
    assert is_taken(verify_by(), {"external_id": searched}, searched)
    assert is_taken(verify_by(), {"external_id": carried}, searched) is (searched == carried)


@pytest.mark.parametrize(
    ("match", "text"),
    [
        (
            {"external_id": "u2"},
            "has 'u2' at external_id, and 'u1' was searched for.* verify = .* or write verify = false",
        ),
        ({"external_id": "U1"}, "has 'U1' at external_id, and 'u1' was searched for.* write ignore_case = true"),
        ({"externalId": "u1"}, "has nothing at external_id, and 'u1' was searched for.* verify = .* verify = false"),
    ],
)
def test_the_refusal_names_the_searched_value_the_found_one_and_the_remedy(match: dict[str, Any], text: str) -> None:
    with pytest.raises(UnusableResponse, match=text):
        require_carried(verify_by().carried, match, {"event": {"entity_id": "u1"}}, ignore_case=False)


def test_a_long_or_strange_value_is_shown_short_and_harmless() -> None:
    with pytest.raises(UnusableResponse) as caught:
        require_carried(
            verify_by().carried, {"external_id": "\x1b[31m" * 9999}, {"event": {"entity_id": "é"}}, ignore_case=False
        )
    assert len(str(caught.value)) < 400
    assert str(caught.value).isprintable()


def test_an_empty_text_proves_nothing_of_a_match() -> None:
    """Many destinations take it for no filter, and the first of all that they have may carry one as well."""
    with pytest.raises(MappingError, match=r"is empty, so no match can be verified"):
        is_taken(compile_plan(), {"external_id": ""}, searched="")
    beside = verify_by({"external_id": "event.entity_id", "tenant": "event.body"})
    scope = {"event": {"entity_id": "u1", "body": ""}}
    require_carried(beside.carried, {"external_id": "u1", "tenant": ""}, scope, ignore_case=False)


def test_without_a_value_to_compare_with_the_event_is_at_fault() -> None:
    plan = verify_by({"external_id": "event.body.id"})
    with pytest.raises(MappingError, match=r"find\.verify\.external_id: has no value"):
        require_carried(plan.carried, {"external_id": "u1"}, {"event": {"body": None}}, ignore_case=False)


@pytest.mark.parametrize(
    ("verify", "mistake"),
    [
        ({}, r"find\.verify: names no field; write verify = \{ FIELD = \"event\.entity_id\" \}, or verify = false"),
        ({"a[": "event.entity_id"}, r"find\.verify: 'a\[' is not a JMESPath expression"),
        ({"a": "event["}, r"find\.verify\.a: 'event\[' is not a JMESPath expression"),
        ({"a": "target.id"}, r"find\.verify\.a: 'target\.id' uses an unknown name 'target'; known here: entity, event"),
    ],
)
def test_a_mistake_in_verify_is_found_at_the_start(verify: dict[str, str], mistake: str) -> None:
    with pytest.raises(ConfigError, match=mistake):
        verify_by(verify)
