"""Compiled sync routes: paths, queries and fields, and the mistakes that are found before the first event."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from inbox.config.sync import Deactivate, Fetch, Find, SyncRoute, Update, Write
from inbox.errors import BodyErased, ConfigError, MappingError
from relay.sync.compiled_route import SyncPlan, compile_sync, event_scope, last_modified
from relay.sync.expressions import EVENT_FIELDS, Expression, decode, digest, encode
from relay.sync.templates import Path
from tests.helpers.delivering import a_delivery

KNOWN = ("event", "entity", "target")
AT = datetime(2019, 1, 1, 0, 0, 0, 500_000, tzinfo=UTC)
EVENT = a_delivery(entity_id="ID/1", occurred_at=AT, received_at=AT, body=b'{"id": "ID/1", "extra": {"n": 1}}')


def scope(**of: Any) -> dict[str, Any]:  # noqa: ANN401  # any JSON
    return {"event": event_scope(EVENT), "entity": None, "target": None, **of}


def plan(**changes: Any) -> SyncPlan:  # noqa: ANN401  # fields of SyncRoute
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


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("/user/{event.entity_id}", "/user/ID%2F1"),
        ("/a b/{entity.n}/{ target.id }/x", "/a%20b/5/t-1/x"),
        ("/{entity.emails[0].address}", "/a%40b.example"),
        ("/{entity.yes}/{entity.exact}", "/true/1.10"),
        ("/{event.body.extra.n}", "/1"),
        ("/{join('-', [event.source, target.id])}", "/trivore-t-1"),
        ("/plain", "/plain"),
    ],
)
def test_a_path_takes_percent_encoded_values(template: str, text: str) -> None:
    entity = {"n": 5, "emails": [{"address": "a@b.example"}], "yes": True, "exact": Decimal("1.10")}
    assert Path(template, "here", KNOWN).expand(scope(entity=entity, target={"id": "t-1"})) == text


@pytest.mark.parametrize("value", [None, "", ".", "..", ["a"], {"a": 1}, "\ud800"])
def test_a_value_that_can_not_stand_in_a_path_is_a_mapping_error_that_names_the_field(value: object) -> None:
    path = Path("/user/{event.entity_id}", "routes.r.sync.fetch.path", KNOWN)
    with pytest.raises(
        MappingError, match=r"routes\.r\.sync\.fetch\.path: .*(event\.entity_id|half of a character|has a segment)"
    ) as caught:
        path.expand({"event": {"entity_id": value}})
    assert caught.value.field == "routes.r.sync.fetch.path"


def test_a_template_of_one_expression_keeps_its_type_in_a_body() -> None:
    body = {"a": ["{event.body.extra}", "n={event.seq:text}", 1, None]}
    made = plan(gone="deactivate", deactivate=Deactivate(path="/x", body=body)).deactivate
    assert made is not None
    assert made.json(scope()) == b'{"a":[{"n":1},"n=7",1,null]}'


@pytest.mark.parametrize("value", [{"$ne": None}, [{"$ne": None}], [["u1", {}]]])
def test_an_object_from_outside_becomes_no_part_of_a_query(value: object) -> None:
    body = {"external_id": "{event.body.id}"}
    find = plan(find=Find(path="/search", method="POST", body=body, verify=False)).find
    assert find is not None
    known = scope(event={"body": {"id": value}})
    with pytest.raises(
        MappingError, match=r"find\.body\.external_id: \{event\.body\.id\} is an object, which could be a"
    ):
        find.call.json(known)
    known["event"] = {"body": {"id": ["u1", 5]}}
    assert b'"external_id":["u1",5]' in (find.call.json(known) or b"")


# --- mapped fields


def test_nulls_inside_a_value_are_left_out() -> None:
    entity = {"address": {"city": "Oulu", "street": None, "rows": [{"a": None, "b": 1}, None]}}
    assert plan(clear_when_absent=[]).fields.of(scope(entity=entity), creating=False) == {
        "address": {"city": "Oulu", "rows": [{"b": 1}, None]}
    }


def test_a_map_without_any_value_is_a_mapping_error() -> None:
    with pytest.raises(MappingError, match=r"routes\.user-to-crm\.sync\.map: no field has a value"):
        plan(clear_when_absent=[]).fields.of(scope(entity={}), creating=False)


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
        ({"map": {"email": ""}, **NO_CLEARING}, r"sync\.map\.email"),
        ({"map": {"email": "emails[0].address"}, **NO_CLEARING}, r"sync\.map\.email: .* looks for 'emails'"),
        ({"map": {"email": "[upcase(entity.a)]"}, **NO_CLEARING}, r"sync\.map\.email: .* 'upcase', which JMESPath lacks"),
        ({"map": {"email": "enity.a"}, **NO_CLEARING}, r"sync\.map\.email: .* looks for 'enity'; did you mean 'entity'"),
        ({"map": {"email": "{entity.a}"}, **NO_CLEARING}, r"sync\.map\.email: .* have braces, so write 'entity\.a'$"),
        ({"map": {"email": "join(entity.a)"}, **NO_CLEARING}, r"sync\.map\.email: .* gives join 1, which takes 2 "),
        ({"map": {"email": "not_null()"}, **NO_CLEARING}, r"sync\.map\.email: .* gives not_null 0, .* at least 1 "),
        ({"fetch": Fetch(api="i", path="/{event.entityid}")}, r"'entityid' in event; did you mean 'entity_id'"),
        ({"map": {"email": "[event.bdy.a]"}, **NO_CLEARING}, r"sync\.map\.email: .* 'bdy' in event; .*'body'"),
        ({"fetch": Fetch(api="i", path="/user/{entity.id}")}, r"sync\.fetch\.path: .* known here is: event"),
        ({"fetch": Fetch(api="i", path="user")}, r"sync\.fetch\.path: 'user' must begin with a slash"),
        ({"fetch": Fetch(api="i", path="/user?x=1")}, r"sync\.fetch\.path: .* params"),
        ({"fetch": Fetch(api="i", path="/user/{event.entity_id")}, r"sync\.fetch\.path: .* brace"),
        ({"fetch": Fetch(api="i", path="/u", params={"a": "{}"})}, r"sync\.fetch\.params\.a"),
        ({"find": Find(path="/c", params={"m": "{entity.mail}"})}, r"sync\.find\.params\.m: .* known here is: event$"),
        ({"find": Find(path="/c", pick="items[")}, r"sync\.find\.pick"),
        ({"find": None}, r"sync\.update\.path: .* looks for 'target'"),
        ({"create": Write(path="/c/{target.id}")}, r"sync\.create\.path"),
        ({"delete": Write(path="/c/{entity.id}")}, r"sync\.delete\.path"),
    ],
)  # fmt: skip
def test_a_mistake_is_found_at_the_start_and_names_route_and_field(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=r"routes\.user-to-crm\..*" + problem):
        plan(**changes)


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


def test_numbers_survive_as_they_are_written() -> None:
    text = b"[1.1,12345678901234567890.12,12345678901234567890123]"
    assert encode(decode(text)) == text


def test_the_digest_is_of_canonical_json() -> None:
    assert (
        digest({"b": 1, "a": "ä"}) == digest({"a": "ä", "b": 1}) == hashlib.sha256('{"a":"ä","b":1}'.encode()).digest()
    )


@pytest.mark.parametrize("body", [b"", b"{", b"nope", b'"\\ud800"', b"\xff", b"[" * 64, b"NaN"])
def test_what_is_not_json_is_a_value_error(body: bytes) -> None:
    with pytest.raises(ValueError, match="not JSON"):
        decode(body)


@pytest.mark.parametrize(
    ("entity", "expected"),
    [
        ({"meta": {"lastModified": "2018-09-21T06:29:05.708Z"}}, datetime(2018, 9, 21, 6, 29, 5, 708_000, tzinfo=UTC)),
        ({"meta": {"lastModified": "yesterday"}}, None),
        ({"meta": {"lastModified": 5}}, None),
        ({"meta": "x"}, None),
        ({}, None),
    ],
)  # fmt: skip
def test_the_time_of_the_last_change_is_read_where_scim_puts_it(
    entity: dict[str, Any], expected: datetime | None
) -> None:
    where = Expression("meta.lastModified", "routes.r.sync.fetch.modified", None)
    assert last_modified(entity, where) == expected
