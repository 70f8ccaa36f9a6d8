"""Maps with casts, lookups, dates and functions, through both services of a sync route."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import msgspec
import pytest

from inbox.errors import ConfigError
from relay import destinations
from tests.destinations.syncing import FETCH, FIND, NONE, USER, World, changed
from tests.helpers.delivering import delivered, failed
from tests.helpers.scripted import answer, serving

MAP = 'map = { name = "entity.name", phone = "entity.phone", external_id = "event.entity_id" }'
RICH = """map.name = "entity.name"
    map.phone = "entity.phone"
    map.external_id = { from = "event.entity_id", required = true }
    map.age = { from = "entity.age", cast = "int", default = 0 }
    map.gender = { from = "entity.gender", lookup = { M = "male", F = "female" } }
    map.birthday = { from = "entity.born", cast = "date", read = "%d.%m.%Y" }
    map.tenant = { value = "north" }
    map.initial = { function = "hooks_of_sync_test:initial" }
    transform = "hooks_of_sync_test:finish"
"""
ENTITY = {**USER, "age": "36", "gender": "F", "born": "10.12.1815"}


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    def initial(_event: object, entity: dict[str, Any], _target: object) -> str:
        return str(entity["name"][0])

    def finish(fields: dict[str, Any], event: dict[str, Any], _entity: object, target: object) -> dict[str, Any]:
        return {**fields, "seq": event["seq"], "is_new": target is None}

    hooks: Any = ModuleType("hooks_of_sync_test")
    hooks.initial, hooks.finish = initial, finish
    monkeypatch.setitem(sys.modules, "hooks_of_sync_test", hooks)
    with serving(routes={}) as server:
        yield World(server)


SENT = {
    "external_id": "u1", "name": "Ada", "age": 36, "gender": "female", "birthday": "1815-12-10", "tenant": "north",
    "initial": "A", "seq": 7,
}  # fmt: skip


def test_all_that_a_map_can_do_arrives_at_the_counterpart(world: World) -> None:
    delivered(world.deliver(sync=changed(MAP, RICH), fetch=answer(200, ENTITY)))
    assert json.loads(world.server.seen[-1].body) == {**SENT, "phone": None, "is_new": False}


def test_and_at_one_that_is_created(world: World) -> None:
    delivered(world.deliver(sync=changed(MAP, RICH), fetch=answer(200, ENTITY), find=NONE))
    assert json.loads(world.server.seen[-1].body) == {**SENT, "is_new": True}


@pytest.mark.parametrize(
    ("entity", "problem"),
    [
        ({"age": "old"}, "map.age: the value is text that is no whole number"),
        ({"gender": "X"}, "map.gender: the value is not in the lookup, and there is no default"),
        ({"born": "1815-12-10"}, "map.birthday: the value is not written %d.%m.%Y, or names no date"),
        ({"name": ""}, "map.initial.function: hooks_of_sync_test:initial raised IndexError"),
    ],
)
def test_a_mapping_error_kills_this_event_alone_and_names_the_field(
    entity: dict[str, Any], problem: str, world: World
) -> None:
    outcome = failed(world.deliver(sync=changed(MAP, RICH), fetch=answer(200, {**ENTITY, **entity})))
    assert (outcome.error_class, outcome.error) == ("mapping", f"routes.user-to-crm.sync.{problem}")
    assert world.asked == [FETCH, FIND], "nothing was written"
    delivered(world.deliver(sync=changed(MAP, RICH), fetch=answer(200, ENTITY)))


def places(error: ConfigError) -> list[str]:
    return sorted(line.partition(": ")[0].removeprefix("routes.user-to-crm.sync.") for line in str(error).splitlines())


def test_every_mistake_of_every_route_is_told_at_the_start(world: World) -> None:
    wrong = changed(MAP, 'map = { a = "entity.[", b = { from = "thing" }, c = { function = "hooks_of_sync_test:no" } }')
    for old, new in (
        ('clear_when_absent = ["phone"]', ""),
        ('"/user/{event.entity_id}"', '"/user/{entity.id}/{thing}", params = { a = "{", b = "{}" }'),
        ('path = "/contacts/{target.id}"', 'path = "contacts"'),
    ):
        wrong = wrong.replace(old, new)
    config = world.config(wrong)
    other = msgspec.structs.replace(config.routes["user-to-crm"], name="other")
    with pytest.raises(ConfigError) as caught:
        destinations.build(msgspec.structs.replace(config, routes={**config.routes, "other": other}))
    expected = [
        "delete.path", "fetch.params.a", "fetch.params.b", "fetch.path", "fetch.path", "find.verify", "map.a",
        "map.b.from", "map.c.function", "update.path",
    ]  # fmt: skip
    assert places(caught.value) == sorted([*expected, *(f"routes.other.sync.{place}" for place in expected)])
