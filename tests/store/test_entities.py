"""The entities of a route, page by page and counted, on both databases."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import msgspec
import pytest

from relay.store import events
from relay.store.events import Chosen
from tests.helpers.relaying import Steps
from tests.helpers.storing import START, an_event


@pytest.fixture
def known(steps: Steps) -> Steps:
    """Three users, one of them by two events, a group, and an event of no entity."""
    late = START + timedelta(days=1)
    steps.receive(
        *(an_event(n, entity) for n, entity in enumerate(("u1", "u2", "u1"), 1)),
        msgspec.structs.replace(an_event(4, "u3"), received_at=late),
        msgspec.structs.replace(an_event(5, "g1"), entity_type="GROUP"),
        msgspec.structs.replace(an_event(6), entity_type=None, entity_id=None),
    )
    return steps


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({}, ["GROUP/g1", "USER/u1", "USER/u2", "USER/u3"]),
        ({"types": ("USER",)}, ["USER/u1", "USER/u2", "USER/u3"]),
        ({"types": ("ROLE",)}, []),
        ({"types": ("USER", "GROUP"), "entity_type": "USER", "entity_id": "u2"}, ["USER/u2"]),
        ({"since": START + timedelta(hours=1)}, ["USER/u3"]),
        ({"source": "other"}, []),
    ],
)
def test_what_is_counted_is_what_the_pages_have(known: Steps, chosen: dict[str, Any], expected: list[str]) -> None:
    choice = Chosen(**{"source": "trivore", "route": "strict", **chosen})
    found: list[str] = []
    after = events.FIRST
    while page := events.entities(known.database, choice, after, 2):
        found += [f"{each.entity_type}/{each.entity_id}" for each in page]
        after = (str(page[-1].entity_type), str(page[-1].entity_id))
    assert found == expected
