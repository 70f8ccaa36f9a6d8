"""`relay sweep`: what no webhook has told is found, and added once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine

from inbox.events.timestamps import as_time
from tests.helpers.filling import fill
from tests.helpers.processes import Ended, Site
from tests.helpers.reading import count, rows
from tests.helpers.scripted import ScriptedServer, answer, serving
from tests.helpers.webhooks import config_text

CONFIG = """
[apis.identity]
base_url = "{url}"
allow_private = true
allow_http = true
[[sources.trivore.sweeps]]
api = "identity"
path = "/user"
entity_type = "USER"
params = {{ since = "{{since}}", start = "{{start}}", count = "{{count}}" }}
pages = {{ by = "start", count = 2 }}
"""
EPOCH = "1970-01-01T00%3A00%3A00Z"


def user(entity: str, modified: str) -> dict[str, Any]:
    return {"id": entity, "meta": {"lastModified": modified}}


def listed(server: ScriptedServer, *users: dict[str, Any], since: str = EPOCH, a_page: int = 2) -> None:
    """The api lists these as changed since then, two a page."""
    for start in range(len(users) + 1):
        page = list(users[start : start + a_page])
        server.routes[f"GET /user?since={since}&start={start}&count=2"] = [answer(200, {"resources": page})]


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with serving(routes={}) as made:
        yield made


@pytest.fixture
def place(place: Site, server: ScriptedServer, database_url: str) -> Site:
    """A site where three webhooks have arrived: two of u1, one of u2."""
    place.configure(config_text(database_url) + CONFIG.format(url=server.url))
    fill(database_url, [("u1", "2026-01-01T00:00:00Z"), ("u1", "2026-01-02T00:00:00Z"), ("u2", "2026-01-01T00:00:00Z")])
    return place


SWEEP = ("relay", "sweep", "--source", "trivore")


def told(ended: Ended) -> list[int]:
    (only,) = json.loads(ended.stdout)
    return [only["compared"], only["missed"], only["added"]]


LOST = (
    user("u1", "2026-01-02T00:00:00.9Z"),  # the webhook's time is cut to the second
    user("u2", "2026-01-03T00:00:00Z"),
    user("u3", "2026-01-01T12:00:00Z"),
)


def test_a_change_that_no_webhook_has_told_becomes_an_event(
    place: Site, server: ScriptedServer, engine: Engine
) -> None:
    listed(server, *LOST)
    ended = place.invoke(*SWEEP, "--json")
    assert (ended.status, told(ended)) == (1, [3, 2, 2]), ended.stderr
    added = rows(
        engine, "SELECT entity_id, event_type, action, occurred_at FROM inbox WHERE seq > 3 ORDER BY entity_id"
    )
    assert [
        (row["entity_id"], row["event_type"], row["action"], as_time(row["occurred_at"]).isoformat()) for row in added
    ] == [
        ("u2", "sweep", "update", "2026-01-03T00:00:00+00:00"),
        ("u3", "sweep", "update", "2026-01-01T12:00:00+00:00"),
    ]
    assert count(engine, "open_delivery WHERE state = 'received' AND seq > 3") == 2
    (watermark,) = rows(engine, "SELECT * FROM sweep_watermark")
    assert (as_time(watermark["compared_until"]).isoformat(), watermark["missed"]) == ("2026-01-03T00:00:00+00:00", 2)


def test_the_next_sweep_begins_a_little_before_the_last_one_ended_and_finds_nothing(
    place: Site, server: ScriptedServer
) -> None:
    listed(server, *LOST)
    place.invoke(*SWEEP)
    listed(server, LOST[1], since="2026-01-02T23%3A55%3A00Z")
    ended = place.invoke(*SWEEP)
    assert (ended.status, ended.stderr) == (0, "0 changes were missing\n")


def test_a_sweep_that_begins_later_than_the_last_one_ended_does_not_move_the_watermark(
    place: Site, server: ScriptedServer, engine: Engine
) -> None:
    listed(server, LOST[1], since="2026-01-03T00%3A00%3A00Z")
    assert place.invoke(*SWEEP, "--since", "2026-01-03").status == 1
    assert count(engine, "sweep_watermark") == 0, "nothing before was compared"


def test_a_dry_run_only_tells(place: Site, server: ScriptedServer, engine: Engine) -> None:
    listed(server, *LOST)
    ended = place.invoke(*SWEEP, "--dry-run", "--json")
    assert (ended.status, told(ended)) == (1, [3, 2, 0])
    assert (count(engine, "inbox"), count(engine, "sweep_watermark")) == (3, 0)


def test_a_change_of_this_minute_is_left_to_the_next_sweep(place: Site, server: ScriptedServer) -> None:
    listed(server, user("u1", "2026-01-02T00:00:00Z"), user("u9", "2126-01-01T00:00:00Z"))
    ended = place.invoke(*SWEEP, "--json")
    assert (ended.status, told(ended)) == (0, [1, 0, 0])


def test_what_can_not_be_compared_is_said_and_the_watermark_stays(
    place: Site, server: ScriptedServer, engine: Engine
) -> None:
    listed(server, *LOST)
    server.routes[f"GET /user?since={EPOCH}&start=1&count=2"] = [answer(404)]
    ended = place.invoke(*SWEEP)
    assert ended.status == 2
    assert "2 were compared, 1 added, and the next sweep begins again" in " ".join(ended.stderr.split())
    (left,) = rows(engine, "SELECT compared_until, missed FROM sweep_watermark")
    assert left == {"compared_until": None, "missed": 1}
    assert count(engine, "inbox") == 4, "what was found before is kept"


def test_wrong_use_is_status_2(place: Site) -> None:
    for source, said in (("nobody", "there is no source 'nobody'"), ("unrouted", "source unrouted has no sweeps")):
        ended = place.invoke("relay", "sweep", "--source", source)
        assert (ended.status, said in ended.stderr) == (2, True)
