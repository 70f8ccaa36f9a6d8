"""Mistakes in the map of a sync route, which the configuration's reader reports to both sides."""

from __future__ import annotations

import pytest

from inbox.config.sync import MapField
from inbox.errors import ConfigError, collect_config_errors
from inbox.loader.load import parse_config
from tests.helpers.mistakes import mistake

FILE = """\
[sources.trivore]
preset = "trivore"
auth = { kind = "none" }
[apis.identity]
base_url = "https://id.example.com"
[destinations.crm]
kind = "sync"
base_url = "https://crm.example.com"
[routes.users]
source = "trivore"
destination = "crm"
[routes.users.sync]
fetch = { api = "identity", path = "/user/{event.entity_id}" }
update = { path = "/contacts/{event.entity_id}" }
missing = "skip"
gone = "skip"
OPTIONS
[routes.users.sync.map]
FIELDS
"""


def file(fields: str = 'x = "entity.x"', options: str = "") -> str:
    return FILE.replace("OPTIONS", options).replace("FIELDS", fields)


def test_a_text_and_a_table_are_both_a_field() -> None:
    text = file('x = "entity.x"\ny = { from = "entity.y", cast = "int", default = 0 }')
    sync = parse_config(text).routes["users"].sync
    assert sync is not None
    assert sync.map == {"x": "entity.x", "y": MapField(expression="entity.y", cast="int", default=0)}


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("x = 7", "x: expected text in quotes or a table, got a number"),
        ('x = ["entity.x"]', "x: expected text in quotes or a table, got a list"),
        ('x = { form = "entity.x" }', "x.form: unknown key; did you mean 'from'?"),
        ('x = { expression = "entity.x" }', "x.expression: unknown key"),
        ("x = { from = 7 }", "x.from: expected text in quotes, got a number"),
        ("x = {}", "x: a field takes one of from, value and function; this has none of them"),
        ('x = { from = "entity.x", value = 0 }', "one of from, value and function; this has from and value"),
        ('x = { from = "entity.x", function = "a:b" }', "one of from, value and function; this has from and function"),
        ('x = { from = "entity.x", lookup = ["a"] }', "x.lookup: expected a table, got a list"),
        ('x = { from = "entity.x", cast = "integer" }', "x.cast: 'integer' is not one of bool, date, datetime, float"),
        ('x = { from = "entity.x", required = "yes" }', "x.required: expected true or false, got text"),
        ('x = { function = "package.module" }', "x.function: expected \"package.module:name\", got 'package.module'"),
        ('x = { function = "a:b:c" }', 'x.function: expected "package.module:name"'),
        ('x = { function = ".a:b" }', 'x.function: expected "package.module:name"'),
        ('x = { from = "entity.x", read = "%Y-%m-%d" }', 'x.read: is about dates; add cast = "date"'),
        ('x = { from = "entity.x", cast = "int", write = "%Y" }', 'x.write: is about dates; add cast = "date"'),
        ('x = { from = "entity.x", cast = "date", read = "%Q" }', "x.read: '%Q' has %Q; valid here: %% %A %B"),
        ('x = { from = "entity.x", cast = "date", write = "%Y %" }', "x.write: '%Y %' has %; valid here"),
        ('x = { from = "entity.x", cast = "date", write = "%s" }', "x.write: '%s' has %s; valid here"),
        ('x = { from = "entity.x", cast = "date", read = "%d.%m." }', "x.read: '%d.%m.' must name a day with its year"),
        ('x = { from = "entity.x", cast = "date", read = "%d.%Y" }', "x.read: '%d.%Y' must name a day"),
        ('x = { from = "entity.x", cast = "date", read = "%Y-%m-%d %d" }', "must name a day with its year, once"),
    ],
)
def test_a_mistake_in_a_field_is_told_with_its_place(field: str, expected: str) -> None:
    told = mistake(file(field))
    assert told.startswith("inbox.toml:19: [routes.users.sync.map] ")
    assert expected in told


def test_with_a_transform_the_map_may_be_empty_or_missing_and_any_field_cleared() -> None:
    text = file("", 'transform = "our.module:finish"\nclear_when_absent = ["anything"]')
    for each in (text, text.replace("[routes.users.sync.map]\n", "")):
        sync = parse_config(each).routes["users"].sync
        assert sync is not None
        assert (sync.map, sync.transform) == ({}, "our.module:finish")


def test_what_several_parts_complain_of_is_told_once() -> None:
    def fail() -> None:
        raise ConfigError("a: is wrong\nb: is wrong")

    def also() -> None:
        raise ConfigError("c: is wrong\nb: is wrong")

    with pytest.raises(ConfigError) as caught:
        collect_config_errors({"x": fail, "y": also})
    assert str(caught.value).splitlines() == ["a: is wrong", "b: is wrong", "c: is wrong"]
