"""Gates and sweeps: who holds what back, since when and why; every button leads to the plan of its act."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import insert

from inbox.clock import SystemClock
from inbox.config.model import Config
from inbox.db.schema import sweep_watermark
from inbox.loader.load import parse_config
from relay.delivery.gates import make_entity_key
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
sweeps = [
  { api = "identity", path = "/users", entity_type = "USER", every = "1h" },
  { api = "identity", path = "/groups", entity_type = "GROUP" },
]
""")


@pytest.fixture
def page_config(database_url: str) -> Config:
    return on_database(SWEPT, database_url)


@pytest.mark.parametrize(
    ("query", "kinds"),
    [
        ("", ["source", "entity"]),  # entities come last, since there may be thousands
        ("kind=entity", ["entity"]),
        ("name=A%2FB", ["entity"]),
        ("kind=api", []),
        ("name=trivore", ["source", "entity"]),
    ],
)
def test_a_pause_says_who_and_why_and_is_found_by_its_kind_and_a_part_of_its_name(
    page: Page, steps: Steps, query: str, kinds: list[str]
) -> None:
    with steps.database.write() as transaction:
        gates.pause(transaction, make_entity_key("trivore", "USER", "a/b&c"), who="kim", why="odd")
        gates.pause(transaction, ("source", "trivore"), who="kim", why="maintenance")
    found = page.json(f"/gates.json?{query}")["gates"]
    assert [gate["kind"] for gate in found] == kinds
    assert {(gate["by"], gate["why"]) for gate in found} <= {("kim", "odd"), ("kim", "maintenance")}
    shown = page.get("/gates").text
    for act in ("resume?source=trivore&amp;entity_type=USER&amp;entity_id=a/b%26c", "sweep?source=trivore", "pause"):
        assert f'"/acts/{act}' in shown


@ON_BOTH
def test_a_sweep_shows_its_watermark_its_error_and_that_it_runs(page: Page, steps: Steps) -> None:
    with steps.database.engine.begin() as connection:
        for entity_type, lease_until in (("USER", NOW + timedelta(hours=1)), ("OLD", None)):
            row = {"source": "trivore", "entity_type": entity_type, "swept_at": NOW, "missed": 3, "error": "503 <b>"}
            connection.execute(insert(sweep_watermark).values(**row, lease_until=lease_until))
    found = page.json("/gates.json")["sweeps"]
    running = {row["entity_type"]: row["is_running"] for row in found}
    assert running == {"USER": True, "GROUP": False, "OLD": False}
    assert found[0]["watermark"]["missed"] == 3
    assert "503 &lt;b&gt;" in page.get("/gates").text
