"""The page with the roles that `inbox roles` makes: each connection may do what its people need, and no more."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

import msgspec
import pytest
from sqlalchemy import Engine

from inbox.config.values import DatabaseUrl
from inbox.db import engine as engines
from relay.web.reading import Screen
from relay.web.screens import SCREENS
from tests.helpers.databases import Granted, granted
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


@pytest.fixture
def roles(postgres_database_url: str) -> Iterator[Granted]:
    with granted(postgres_database_url, f"p{os.getpid()}") as made:
        yield made


@pytest.fixture
def admin(roles: Granted) -> Iterator[Engine]:
    made = engines.connect(roles.admin_url, application="tests")
    yield made
    made.dispose()


@pytest.fixture(params=["reader", "reader_without_payloads"])
def page(request: pytest.FixtureRequest, roles: Granted, admin: Engine) -> Iterator[Page]:
    """Operators have the role `web`, viewers one of a reader."""
    clock = FakeClock()
    fill_page(Steps(admin, clock=clock))
    config = on_database(CONFIG, roles.url("web"))
    web = msgspec.structs.replace(config.web, viewer_url=DatabaseUrl(roles.url(request.param)))
    with serving(msgspec.structs.replace(config, web=web), clock) as made:
        yield made


def path_of(screen: Screen) -> str:
    given = {**PARTS, "id": "u1" if screen.name == "entity" else 1}
    needed = [field.name for field in msgspec.structs.fields(screen.query) if field.required]
    return (
        screen.path.format_map(given)
        + "?"
        + "&".join(f"{name}={given[name]}" for name in needed if "{" not in screen.path)
    )


def test_every_screen_answers_to_both_roles(page: Page) -> None:
    answers = {
        (screen.name, actor.role): page.get(path_of(screen), actor).status_code
        for screen in SCREENS
        if screen.name != "difference"  # for operators alone
        for actor in (OPERATOR, VIEWER)
    }
    assert set(answers.values()) == {200}, answers


def test_an_operator_plans_and_asks_for_every_act(page: Page, admin: Engine) -> None:
    """An error of rights would be a 500. Some acts have nothing to do here, or no meaning: they say so."""
    for kind in SELECTIONS:
        assert page.get(f"/acts/{kind}", params=SELECTIONS[kind]).status_code in {200, 400}, kind
        order = {**SELECTIONS[kind], "reason": "a test"}
        assert page.post(f"/api/v1/acts/{kind}", json=order).status_code in {202, 400, 409}, kind
    asked = rows(admin, "SELECT DISTINCT kind FROM relay_command WHERE asked_by = 'olga'")
    assert {row["kind"] for row in asked} >= {"replay", "unblock", "pause", "resume", "prune"}


def test_an_operator_stops_a_command_and_lets_it_go_on(page: Page, admin: Engine) -> None:
    for step, state in (("stop", "cancelled"), ("continue", "running")):
        assert page.post(f"/acts/{step}", {"command": 1, "reason": "the wrong route"}).status_code == 303
        assert rows(admin, "SELECT state FROM relay_command WHERE id = 1") == [{"state": state}]


@pytest.mark.parametrize("actor", [OPERATOR, VIEWER], ids=lambda actor: actor.role)
def test_a_reveal_is_recorded_and_shown(page: Page, admin: Engine, actor: object) -> None:
    answer = page.post("/events/1/reveal", {"reason": "a ticket"}, actor)  # type: ignore[arg-type]  # an Actor
    assert answer.status_code == 200
    assert WORDS["body"] in answer.text
    assert len(rows(admin, "SELECT who FROM payload_reveal WHERE seq = 1")) == 1


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE relay_command SET asked_by = 'x'",
        "UPDATE relay_command SET selection = '{}'",
        "UPDATE relay_command SET affected = 1",
        "DELETE FROM relay_command",
        "UPDATE payload_reveal SET who = 'x'",
        "DELETE FROM payload_reveal",
        """INSERT INTO delivery_log (at, seq, route, kind, state, attempt, detail)
        VALUES (now(), 1, 'r', 'delivered', 'ended', 1, '{}')""",
        "UPDATE open_delivery SET state = 'dead'",
        "UPDATE gate SET paused_at = now()",
        "DELETE FROM inbox",
        "DELETE FROM inbox_payload",
    ],
)
def test_a_stolen_page_changes_no_event_no_fact_and_no_command(roles: Granted, statement: str) -> None:
    assert not roles.allows("web", statement)
