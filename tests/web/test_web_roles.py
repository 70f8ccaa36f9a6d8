"""The page with the roles that `inbox roles` makes: each connection may do what its people need, and no more."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

import msgspec
import pytest
from sqlalchemy import Engine

from inbox.config.values import DatabaseUrl
from relay.web.reading import Screen
from relay.web.screens import SCREENS
from tests.helpers.databases import Granted, grant_roles
from tests.helpers.page import OPERATOR, VIEWER, Page, on_database, serving
from tests.helpers.relaying import CONFIG, FakeClock, Steps
from tests.helpers.tables import rows
from tests.helpers.worlds import WORDS, fill_page

PARTS = {"seq": 1, "source": "trivore", "type": "USER"}
SELECTIONS: Mapping[str, Mapping[str, object]] = {
    "replay": {"route": "strict"},
    "retry": {"route": "latest"},
    "cancel": {"seq": 2},
    "unblock": {"route": "blocking"},
    "pause": {"route": "strict"},
    "resume": {"destination": "audit"},
    "sweep": {"source": "trivore"},
    "prune": {},
    "erase": {"source": "trivore", "entity_type": "USER", "entity_id": "u3", "again": "u3"},
    "readmit": {"source": "trivore"},
}


@pytest.fixture(scope="module")
def roles(module_database_url: str, module_engine: Engine) -> Iterator[Granted]:
    with grant_roles(module_database_url, f"p{os.getpid()}") as made:
        fill_page(Steps(module_engine, clock=FakeClock()))
        yield made


@pytest.fixture(scope="module", params=["reader", "reader_without_payloads"])
def page(request: pytest.FixtureRequest, roles: Granted) -> Iterator[Page]:
    """Operators have the role `web`, viewers one of a reader."""
    config = on_database(CONFIG, roles.url("web"))
    web = msgspec.structs.replace(config.web, viewer_url=DatabaseUrl(roles.url(request.param)))
    with serving(msgspec.structs.replace(config, web=web), FakeClock()) as made:
        yield made


def path_of(screen: Screen) -> str:
    given = {**PARTS, "id": "u1" if screen.name == "entity" else 1}
    needed = [field.name for field in msgspec.structs.fields(screen.query) if field.required]
    query = "&".join(f"{name}={given[name]}" for name in needed if "{" not in screen.path)
    return f"{screen.path.format_map(given)}?{query}"


def test_every_screen_answers_to_both_roles(page: Page) -> None:
    answers = {
        (screen.name, actor.role): page.get(path_of(screen), actor).status_code
        for screen in SCREENS
        if screen.name != "difference"  # for operators alone
        for actor in (OPERATOR, VIEWER)
    }
    assert set(answers.values()) == {200}, answers


def test_an_operator_plans_and_asks_for_every_act(page: Page, module_engine: Engine) -> None:
    """An error of rights would be a 500. Some acts have nothing to do here, or no meaning: they say so."""
    for kind in SELECTIONS:
        assert page.get(f"/acts/{kind}", params=SELECTIONS[kind]).status_code in {200, 400}, kind
        order = {**SELECTIONS[kind], "reason": "a test"}
        assert page.post(f"/api/v1/acts/{kind}", json=order).status_code in {202, 400, 409}, kind
    asked = rows(module_engine, "SELECT DISTINCT kind FROM relay_command WHERE asked_by = 'olga'")
    assert {row["kind"] for row in asked} >= {"replay", "unblock", "pause", "resume", "prune"}


def test_an_operator_stops_a_command_and_lets_it_go_on(page: Page, module_engine: Engine) -> None:
    for step, state in (("stop", "cancelled"), ("continue", "running")):
        assert page.post(f"/acts/{step}", {"command": 1, "reason": "the wrong route"}).status_code == 303
        assert rows(module_engine, "SELECT state FROM relay_command WHERE id = 1") == [{"state": state}]


def test_a_reveal_is_recorded_and_shown(page: Page, module_engine: Engine) -> None:
    for actor in (OPERATOR, VIEWER):
        before = rows(module_engine, REVEALS)
        assert WORDS["body"] in page.post("/events/1/reveal", {"reason": "a ticket"}, actor).text
        assert rows(module_engine, REVEALS) == [*before, {"who": actor.name}]


REVEALS = "SELECT who FROM payload_reveal WHERE seq = 1 ORDER BY id"


def test_a_stolen_page_changes_no_command(roles: Granted) -> None:
    """Tables that it may not write at all are listed in tests/store/test_roles.py."""
    for change in ("asked_by = 'x'", "selection = '{}'", "affected = 1"):
        assert not roles.allows("web", f"UPDATE relay_command SET {change}")
