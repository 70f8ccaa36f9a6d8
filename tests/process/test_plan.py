"""`relay plan` as an integrator runs it: what would change downstream, and that nothing is written."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from sqlalchemy import Engine

from tests.helpers.filling import fill
from tests.helpers.processes import Site
from tests.helpers.reading import count
from tests.helpers.scripted import ScriptedServer, answer, serving
from tests.helpers.webhooks import SYNC_CONFIG, config_text, moment

CONFIG = (
    SYNC_CONFIG
    + """
map = {{ name = "entity.name", phone = "entity.phone" }}
clear_when_absent = ["phone"]
"""
)
USERS = {"u1": answer(200, {"name": "Ada"}), "u2": answer(200, {"name": "Grace"}), "u3": answer(404)}
CONTACTS = {
    "u1": answer(200, {"items": [{"id": "c1", "name": "Ada", "phone": None}]}),
    "u2": answer(200, {"items": [{"id": "c2", "name": "Grcae", "phone": "+44"}]}),
    "u3": answer(200, {"items": [{"id": "c3", "name": "Gone"}]}),
    "u4": answer(200, {"items": []}),
}


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    routes = {f"GET /api/user/{user}": [act] * 9 for user, act in USERS.items()}
    routes |= {f"GET /contacts?externalId={user}": [act] * 9 for user, act in CONTACTS.items()}
    with serving(routes=routes) as made:
        yield made


@pytest.fixture
def place(place: Site, server: ScriptedServer, database_url: str) -> Site:
    """A site where three users are known, each by two events."""
    place.configure(config_text(database_url) + CONFIG.format(url=server.url))
    fill(database_url, [(f"u{n % 3 + 1}", moment(n)) for n in range(6)])
    return place


PLAN = ("relay", "plan", "--route", "user-to-crm")


def test_what_would_be_changed_is_shown_field_by_field_and_is_status_1(
    place: Site, server: ScriptedServer, engine: Engine
) -> None:
    ended = place.invoke(*PLAN)
    assert ended.status == 1, ended.stderr
    assert [line.split() for line in ended.stdout.splitlines()[1:]] == [
        ["USER/u2", "update", "name", "Grcae", "Grace"],
        ["USER/u2", "update", "phone", "+44"],
        ["USER/u3", "delete"],
    ]
    assert ended.stderr == "3 entities compared: 2 differ\n"
    assert {seen.method for seen in server.seen} == {"GET"}, "nothing is written"
    assert count(engine, "delivery_log") == 0


def test_for_programs_it_is_an_array(place: Site) -> None:
    found = json.loads(place.invoke(*PLAN, "--json").stdout)
    assert [(entity["entity_id"], entity["change"]) for entity in found] == [("u2", "update"), ("u3", "delete")]
    assert found[0]["fields"] == [
        {"field": "name", "before": "Grcae", "after": "Grace"},
        {"field": "phone", "before": "+44", "after": None},
    ]


def test_one_that_is_in_step_is_status_0(place: Site) -> None:
    ended = place.invoke(*PLAN, "--entity", "USER/u1")
    assert ended == (0, "", "1 entity compared: in sync\n")


def test_a_missing_counterpart_would_be_created_and_what_can_not_be_told_is_a_finding(
    place: Site, server: ScriptedServer, database_url: str
) -> None:
    server.routes["GET /api/user/u4"] = [answer(200, {"name": "Edsger"})]
    fill(database_url, [("u4", moment(9)), ("u5", moment(10))])
    server.routes["GET /api/user/u5"] = [answer(503)]
    found = json.loads(place.invoke(*PLAN, "--json").stdout)
    assert [(entity["entity_id"], entity["change"], entity["why"]) for entity in found[2:]] == [
        ("u4", "create", None),
        ("u5", "failed", "fetch: answered 503 Service Unavailable"),
    ]
    ended = place.invoke(*PLAN)
    assert ended.stderr == "4 entities compared: 3 differ; 1 entity could not be compared\n", "it may be in sync"
    assert (
        place.invoke(*PLAN, "--entity", "USER/u5").stderr
        == "0 entities compared: in sync; 1 entity could not be compared\n"
    )


def test_entities_of_types_that_the_route_does_not_take_are_not_asked_about(
    place: Site, server: ScriptedServer, database_url: str
) -> None:
    goes = 'destination = "crm"\n'
    config = CONFIG.format(url=server.url).replace(goes, goes + 'when = { entity_type = ["GROUP"] }\n', 1)
    place.configure(config_text(database_url) + config)
    ended = place.invoke(*PLAN)
    assert (ended.status, ended.stderr) == (0, "0 entities compared: in sync\n")
    assert server.seen == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--route", "nobody"), "there is no route 'nobody'"),
        (("--route", "everything"), "route everything does not go to a sync destination"),
        (("--route", "user-to-crm", "--entity", "u1"), "--entity must be TYPE/ID"),
    ],
)
def test_wrong_use_is_status_2(place: Site, arguments: tuple[str, ...], said: str) -> None:
    ended = place.invoke("relay", "plan", *arguments)
    assert (ended.status, said in ended.stderr) == (2, True)
