"""`relay plan` as an integrator runs it: what would change downstream, and that nothing is written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from tests.destinations.scripted import ScriptedServer, answer, serving
from tests.helpers.filling import fill
from tests.helpers.reading import count
from tests.helpers.webhooks import config_text, moment

CONFIG = """
[apis.identity]
base_url = "{url}/api"
allow_private = true
allow_http = true
[destinations.crm]
kind = "sync"
base_url = "{url}"
allow_private = true
allow_http = true
[routes.user-to-crm]
source = "trivore"
destination = "crm"
[routes.user-to-crm.sync]
fetch = {{ api = "identity", path = "/user/{{event.entity_id}}" }}
find = {{ path = "/contacts", params = {{ externalId = "{{event.entity_id}}" }}, pick = "items" }}
create = {{ path = "/contacts" }}
update = {{ path = "/contacts/{{target.id}}" }}
delete = {{ path = "/contacts/{{target.id}}" }}
map = {{ name = "entity.name", phone = "entity.phone" }}
clear_when_absent = ["phone"]
"""
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
def folder(server: ScriptedServer, database_url: str, tmp_path: Path) -> Path:
    """A folder with a configuration; three users are known, each by two events."""
    config = config_text(database_url) + CONFIG.format(url=server.url)
    (tmp_path / "inbox.toml").write_text(config, encoding="utf-8")
    fill(database_url, [(f"u{n % 3 + 1}", moment(n)) for n in range(6)])
    return tmp_path


def plan(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "relay", "plan", *arguments],
        env={**os.environ, "INBOX_CONFIG": str(folder / "inbox.toml"), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_what_would_be_changed_is_shown_field_by_field_and_is_status_1(
    folder: Path, server: ScriptedServer, engine: Engine
) -> None:
    ended = plan(folder, "--route", "user-to-crm")
    assert ended.returncode == 1, ended.stderr
    assert [line.split() for line in ended.stdout.splitlines()[1:]] == [
        ["USER", "u2", "update", "name", "Grcae", "Grace"],
        ["USER", "u2", "update", "phone", "+44"],
        ["USER", "u3", "delete"],
    ]
    assert ended.stderr == "2 of 3 entities are not in sync\n"
    assert {seen.method for seen in server.seen} == {"GET"}, "nothing is written"
    assert count(engine, "delivery_log") == 0


def test_for_programs_it_is_an_array(folder: Path) -> None:
    found = json.loads(plan(folder, "--route", "user-to-crm", "--json").stdout)
    assert [(entity["entity_id"], entity["change"]) for entity in found] == [("u2", "update"), ("u3", "delete")]
    assert found[0]["fields"] == [
        {"field": "name", "before": "Grcae", "after": "Grace"},
        {"field": "phone", "before": "+44", "after": None},
    ]


def test_one_that_is_in_step_is_status_0(folder: Path) -> None:
    ended = plan(folder, "--route", "user-to-crm", "--entity", "USER/u1")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "in sync: 1 entities\n")


def test_a_missing_counterpart_would_be_created_and_what_can_not_be_told_is_a_finding(
    folder: Path, server: ScriptedServer, database_url: str
) -> None:
    server.routes["GET /api/user/u4"] = [answer(200, {"name": "Edsger"})]
    fill(database_url, [("u4", moment(9)), ("u5", moment(10))])
    server.routes["GET /api/user/u5"] = [answer(503)]
    found = json.loads(plan(folder, "--route", "user-to-crm", "--json").stdout)
    assert [(entity["entity_id"], entity["change"], entity["why"]) for entity in found[2:]] == [
        ("u4", "create", None),
        ("u5", "failed", "fetch: answered 503 Service Unavailable"),
    ]


def test_entities_of_types_that_the_route_does_not_take_are_not_asked_about(
    folder: Path, server: ScriptedServer
) -> None:
    path = folder / "inbox.toml"
    text = path.read_text(encoding="utf-8").replace(
        'destination = "crm"\n', 'destination = "crm"\nwhen = { entity_type = ["GROUP"] }\n', 1
    )
    path.write_text(text, encoding="utf-8")
    ended = plan(folder, "--route", "user-to-crm")
    assert (ended.returncode, ended.stderr) == (0, "in sync: 0 entities\n")
    assert server.seen == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--route", "nobody"), "no route 'nobody' is configured; there are: everything, user-to-crm"),
        (("--route", "everything"), "route everything does not go to a sync destination"),
        (("--route", "user-to-crm", "--entity", "u1"), "--entity must be TYPE/ID"),
    ],
)
def test_wrong_use_is_status_2(folder: Path, arguments: tuple[str, ...], said: str) -> None:
    ended = plan(folder, *arguments)
    assert ended.returncode == 2
    assert said in ended.stderr
