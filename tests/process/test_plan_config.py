"""`relay plan --config` as an operator runs it before a change: the differences, the exit status, and whom it calls."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from sqlalchemy import Engine

from tests.helpers.filling import fill
from tests.helpers.processes import Ended, Site
from tests.helpers.reading import count
from tests.helpers.scripted import ScriptedServer, answer, serving
from tests.helpers.webhooks import SYNC_CONFIG, config_text, moment

CONFIG = SYNC_CONFIG + '\nmap = {{ name = "entity.name", phone = "entity.phone" }}\n'


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    found = answer(200, {"name": "Ada", "phone": "1", "mobile": "2"})
    routes = {f"GET /api/user/u{n}": [found] * 9 for n in (1, 2)}
    routes |= {f"GET /contacts?externalId=u{n}": [answer(200, {"items": [{"id": "c1"}]})] * 9 for n in (1, 2)}
    with serving(routes=routes) as made:
        yield made


@pytest.fixture
def old(server: ScriptedServer, database_url: str) -> str:
    return config_text(database_url) + CONFIG.format(url=server.url)


@pytest.fixture
def place(place: Site, old: str, database_url: str) -> Site:
    """A site with two users that have two events each; it sends all of them to a forward destination, too."""
    place.configure(old)
    fill(database_url, [(f"u{n % 2 + 1}", moment(n)) for n in range(4)])
    return place


def plan(place: Site, new: str, *options: str) -> Ended:
    (place.folder / "new.toml").write_text(new, encoding="utf-8")
    return place.invoke("relay", "plan", "--config", str(place.folder / "new.toml"), *options)


def test_differences_are_a_table_and_status_1_and_nobody_is_called(
    place: Site, server: ScriptedServer, old: str, engine: Engine
) -> None:
    new = old.replace('destination = "crm"\n', 'destination = "crm"\nwhen = { event_type = ["LOGIN"] }\n')
    ended = plan(place, new)
    assert ended.status == 1, ended.stderr
    assert [line.split() for line in ended.stdout.splitlines()] == [
        ["route", "part", "events", "last_seq", "before", "after"],
        ["user-to-crm", "takes", "it", "4", "4", "yes", "no"],
    ]
    assert ended.stderr == "4 events compared: 4 differ\n"
    assert server.seen == []
    assert count(engine, "delivery_log") == 0


def test_the_same_configuration_is_status_0_and_a_mistake_status_2(place: Site, old: str) -> None:
    assert plan(place, old) == (0, "", "4 events compared: no difference\n")
    assert plan(place, old, "--events", "3") == (0, "", "3 events compared: no difference\n")
    broken = plan(place, old.replace("base_url", "bass_url"))
    assert (broken.status, "new.toml" in broken.stderr) == (2, True)
    assert plan(place, old, "--entity", "USER/u1").status == 2


def test_with_fetch_entities_are_mapped_under_both_and_nothing_is_written(
    place: Site, server: ScriptedServer, old: str
) -> None:
    new = old.replace('"entity.phone"', '"entity.mobile"')
    without = plan(place, new)
    assert (without.status, server.seen) == (0, [])
    assert "[routes.user-to-crm.sync] differs: --fetch compares the writes that would follow" in without.stderr
    ended = plan(place, new, "--fetch", "--json")
    assert json.loads(ended.stdout) == [
        {
            "seq": 4,
            "source": "trivore",
            "route": "user-to-crm",
            "part": "body.phone",
            "before": "1",
            "after": "2",
            "events": 4,
            "last_seq": 4,
        }
    ]
    assert {seen.method for seen in server.seen} == {"GET"}
    assert len(server.seen) == 2 * 2 * 2, (
        "an entity and its counterpart, for each of two users under each configuration"
    )
