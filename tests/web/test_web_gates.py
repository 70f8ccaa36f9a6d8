"""Gates and sweeps: who holds what back, since when and why; every button leads to the plan of its act."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from sqlalchemy import insert

from inbox.clock import SystemClock
from inbox.config.model import Config
from inbox.db.schema import sweep_watermark
from inbox.loader.load import parse_config
from relay.delivery.gates import entity_key
from relay.store import gates
from tests.helpers.databases import ON_BOTH
from tests.helpers.page import Page, on_database
from tests.helpers.relaying import Steps

NOW = SystemClock().now()
SWEPT = parse_config("""
[apis.identity]
base_url = "https://identity.example.com"
rate = "30/m"

[sources.trivore]
preset = "trivore"
auth = { kind = "none" }

[[sources.trivore.sweeps]]
api = "identity"
path = "/users"
entity_type = "USER"
every = "1h"

[[sources.trivore.sweeps]]
api = "identity"
path = "/groups"
entity_type = "GROUP"
""")


@pytest.fixture
def page_config(database_url: str) -> Config:
    return on_database(SWEPT, database_url)


@pytest.fixture
def held(steps: Steps) -> Steps:
    with steps.database.write() as transaction:
        gates.pause(transaction, entity_key("trivore", "USER", "a/b&c"), who="kim", why="odd")
        gates.pause(transaction, ("source", "trivore"), who="kim", why="maintenance")
    return steps


def test_a_pause_says_who_and_why_and_has_its_button(page: Page, held: Steps) -> None:
    found = page.json("/gates.json")["gates"]
    assert [(gate["kind"], gate["by"], gate["why"]) for gate in found] == [
        ("source", "kim", "maintenance"),
        ("entity", "kim", "odd"),
    ], "entities come last, since there may be thousands"
    text = page.get("/gates").text
    assert "/acts/resume?source=trivore&amp;entity_type=USER&amp;entity_id=a/b%26c" in text
    assert "/acts/sweep?source=trivore" in text
    assert 'action="/acts/pause"' in text
    assert held.states() == []


@pytest.mark.parametrize(
    ("query", "kinds"),
    [
        ("kind=entity", ["entity"]),
        ("name=A%2FB", ["entity"]),
        ("kind=api", []),
        ("name=trivore", ["source", "entity"]),
    ],
)
def test_the_filter_is_by_kind_and_a_part_of_the_name(page: Page, held: Steps, query: str, kinds: list[str]) -> None:
    assert [gate["kind"] for gate in page.json(f"/gates.json?{query}")["gates"]] == kinds
    assert held.states() == []


@ON_BOTH
def test_a_sweep_shows_its_watermark_its_error_and_that_it_runs(page: Page, steps: Steps) -> None:
    def watermark(entity_type: str, lease_until: datetime | None) -> dict[str, object]:
        return {
            "source": "trivore", "entity_type": entity_type, "swept_at": NOW, "missed": 3, "error": "503 <b>",
            "lease_until": lease_until,
        }  # fmt: skip

    with steps.database.engine.begin() as connection:
        connection.execute(insert(sweep_watermark).values(**watermark("USER", NOW + timedelta(hours=1))))
        connection.execute(insert(sweep_watermark).values(**watermark("OLD", None)))
    found = page.json("/gates.json")["sweeps"]
    assert [(row["entity_type"], row["is_running"]) for row in found] == [
        ("USER", True),
        ("GROUP", False),
        ("OLD", False),
    ]
    assert found[0]["watermark"]["missed"] == 3
    assert "503 &lt;b&gt;" in page.get("/gates").text
