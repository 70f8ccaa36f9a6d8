"""Maps as tests write them, compiled."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import msgspec
import pytest

from inbox.config.sync import Fetch, MapField, SyncRoute, Update
from relay.sync.fields import Fields, compile_fields

WHERE = "routes.r.sync.map.x"


def fields(**options: Any) -> Fields:  # noqa: ANN401  # keys of SyncRoute
    return compile_fields("r", SyncRoute(fetch=Fetch(api="i", path="/u"), update=Update(path="/c"), **options))


def scope(entity: object = None, target: object = None) -> dict[str, Any]:
    return {"event": {"entity_id": "u1"}, "entity": entity, "target": target}


def one(found: object, **keys: Any) -> Any:  # noqa: ANN401  # any JSON
    """Return the value that a field with these keys sends when its expression finds this; `absent` for none."""
    given = msgspec.convert({"from": "entity.x", **keys}, MapField)
    mapped = fields(map={"x": given, "id": "event.entity_id"}).of(scope({"x": found}), creating=False)
    return mapped.get("x", "absent")


def with_functions(monkeypatch: pytest.MonkeyPatch, **functions: Callable[..., object]) -> None:
    module = ModuleType("hooks_of_test")
    for name, function in functions.items():
        setattr(module, name, function)
    monkeypatch.setitem(sys.modules, "hooks_of_test", module)
