"""`relay plan`, `sweep`, `verify` and `rebuild` as people and programs run them: two sides, and what differs between them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, text

from inbox.events.timestamps import as_time
from relay.cli import compare
from tests.helpers.processes import Ended, Site
from tests.helpers.relaying import fill
from tests.helpers.scripted import ScriptedServer, answer, serving
from tests.helpers.tables import count, rows
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
PLAN = ("relay", "plan", "--route", "user-to-crm")


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    routes = {f"GET /api/user/{user}": [act] * 9 for user, act in USERS.items()}
    routes |= {f"GET /contacts?externalId={user}": [act] * 9 for user, act in CONTACTS.items()}
    with serving(routes=routes) as made:
        yield made


@pytest.fixture
def config(server: ScriptedServer, database_url: str) -> str:
    return config_text(database_url) + CONFIG.format(url=server.url)


@pytest.fixture
def synced(place: Site, config: str, database_url: str) -> Site:
    """A site where three users are known, each by two events."""
    place.configure(config)
    fill(database_url, [(f"u{n % 3 + 1}", moment(n)) for n in range(6)])
    return place


# --- both sides of a sync route


def test_a_plan_shows_each_change_field_by_field_and_writes_nothing(
    synced: Site, server: ScriptedServer, engine: Engine, database_url: str, config: str
) -> None:
    ended = synced.invoke(*PLAN)
    assert ended.status == 1, ended.stderr
    assert [line.split() for line in ended.stdout.splitlines()[1:]] == [
        ["USER/u2", "update", "name", "Grcae", "Grace"],
        ["USER/u2", "update", "phone", "+44"],
        ["USER/u3", "delete"],
    ]
    assert synced.invoke(*PLAN, "--entity", "USER/u1")[:2] == (0, "")
    server.routes["GET /api/user/u4"] = [answer(200, {"name": "Edsger"})]
    server.routes["GET /api/user/u5"] = [answer(503)]
    fill(database_url, [("u4", moment(9)), ("u5", moment(10))])
    found = json.loads(synced.invoke(*PLAN, "--json").stdout)
    assert [(entity["entity_id"], entity["change"], entity["why"]) for entity in found] == [
        ("u2", "update", None),
        ("u3", "delete", None),
        ("u4", "create", None),
        ("u5", "failed", "fetch: answered 503 Service Unavailable"),
    ]
    assert found[0]["fields"][1] == {"field": "phone", "before": "+44", "after": None}
    assert synced.invoke(*PLAN, "--entity", "USER/u5").status == 1, "it may be in sync"
    assert {seen.method for seen in server.seen} == {"GET"}
    assert count(engine, "delivery_log") == 0

    server.seen.clear()
    goes = 'destination = "crm"\n'
    synced.configure(config.replace(goes, goes + 'when = { entity_type = ["GROUP"] }\n', 1))
    assert (synced.invoke(*PLAN).status, server.seen) == (0, []), "the route takes no users"
    for wrong in (("--route", "nobody"), ("--route", "everything"), ("--route", "user-to-crm", "--entity", "u1")):
        assert synced.invoke("relay", "plan", *wrong).status == 2


# --- two configurations


def plan_of(place: Site, new: str, *options: str) -> Ended:
    (place.folder / "new.toml").write_text(new, encoding="utf-8")
    return place.invoke("relay", "plan", "--config", str(place.folder / "new.toml"), *options)


def test_another_configuration_is_compared_over_the_newest_events_and_nobody_is_called(
    synced: Site, server: ScriptedServer, config: str
) -> None:
    ended = plan_of(
        synced, config.replace('destination = "crm"\n', 'destination = "crm"\nwhen = { event_type = ["LOGIN"] }\n')
    )
    assert ended.status == 1, ended.stderr
    assert [line.split() for line in ended.stdout.splitlines()][1:] == [
        ["user-to-crm", "takes", "it", "6", "6", "yes", "no"]
    ]
    assert plan_of(synced, config, "--events", "3") == (0, "", "3 events compared: no difference\n")
    assert server.seen == []
    broken = plan_of(synced, config.replace("base_url", "bass_url"))
    assert (broken.status, "new.toml" in broken.stderr) == (2, True)
    assert plan_of(synced, config, "--entity", "USER/u1").status == 2


def test_with_fetch_entities_are_mapped_under_both_configurations(
    synced: Site, server: ScriptedServer, config: str
) -> None:
    new = config.replace('"entity.phone"', '"entity.mobile"')
    assert "--fetch compares the writes that would follow" in plan_of(synced, new).stderr
    assert server.seen == []
    server.routes["GET /api/user/u1"] = [answer(200, {"name": "Ada", "phone": "1", "mobile": "2"})] * 9
    (found,) = json.loads(plan_of(synced, new, "--fetch", "--json").stdout)
    assert (found["part"], found["before"], found["after"], found["events"]) == ("body.phone", "1", "2", 2)
    assert {seen.method for seen in server.seen} == {"GET"}


# --- sweeps

SWEEPS = """
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
SWEEP = ("relay", "sweep", "--source", "trivore")


def user(entity: str, modified: str) -> dict[str, Any]:
    return {"id": entity, "meta": {"lastModified": modified}}


LOST = (
    user("u1", "2026-01-02T00:00:00.9Z"),  # the webhook's time is cut to the second
    user("u2", "2026-01-03T00:00:00Z"),
    user("u3", "2026-01-01T12:00:00Z"),
)


def listed(server: ScriptedServer, *users: dict[str, Any], since: str = EPOCH) -> None:
    """The api lists these as changed since then, two a page."""
    for start in range(len(users) + 1):
        page = list(users[start : start + 2])
        server.routes[f"GET /user?since={since}&start={start}&count=2"] = [answer(200, {"resources": page})]


def compared(ended: Ended) -> tuple[int, list[int]]:
    """The exit status, and the numbers of entities that were compared, missed and added."""
    (only,) = json.loads(ended.stdout)
    return ended.status, [only["compared"], only["missed"], only["added"]]


@pytest.fixture
def swept(place: Site, server: ScriptedServer, database_url: str) -> Site:
    """A site where three webhooks have arrived: two of u1, one of u2."""
    place.configure(config_text(database_url) + SWEEPS.format(url=server.url))
    fill(database_url, [("u1", "2026-01-01T00:00:00Z"), ("u1", "2026-01-02T00:00:00Z"), ("u2", "2026-01-01T00:00:00Z")])
    return place


def test_a_change_without_a_webhook_becomes_an_event_once(swept: Site, server: ScriptedServer, engine: Engine) -> None:
    listed(server, *LOST)
    assert compared(swept.invoke(*SWEEP, "--dry-run", "--json")) == (1, [3, 2, 0])
    listed(server, LOST[1], since="2026-01-03T00%3A00%3A00Z")
    assert (count(engine, "inbox"), count(engine, "sweep_watermark")) == (3, 0)
    assert compared(swept.invoke(*SWEEP, "--json")) == (1, [3, 2, 2])
    added = rows(engine, "SELECT entity_id, event_type, occurred_at FROM inbox WHERE seq > 3 ORDER BY entity_id")
    assert [(row["entity_id"], row["event_type"], as_time(row["occurred_at"]).isoformat()) for row in added] == [
        ("u2", "sweep", "2026-01-03T00:00:00+00:00"),
        ("u3", "sweep", "2026-01-01T12:00:00+00:00"),
    ]
    assert count(engine, "open_delivery WHERE state = 'received' AND seq > 3") == 2
    (watermark,) = rows(engine, "SELECT * FROM sweep_watermark")
    assert (as_time(watermark["compared_until"]).isoformat(), watermark["missed"]) == ("2026-01-03T00:00:00+00:00", 2)
    listed(server, LOST[1], since="2026-01-02T23%3A55%3A00Z")  # it begins a little before the last one ended
    assert compared(swept.invoke(*SWEEP, "--json")) == (0, [1, 0, 0])


def test_a_sweep_that_begins_later_or_breaks_off_moves_no_watermark_and_leaves_out_this_minute(
    swept: Site, server: ScriptedServer, engine: Engine
) -> None:
    listed(server, LOST[1], user("u9", "2126-01-01T00:00:00Z"), since="2026-01-03T00%3A00%3A00Z")
    assert compared(swept.invoke(*SWEEP, "--since", "2026-01-03", "--json")) == (1, [1, 1, 1])
    assert count(engine, "sweep_watermark") == 0, "nothing before was compared"
    listed(server, *LOST)
    server.routes[f"GET /user?since={EPOCH}&start=2&count=2"] = [answer(404)]
    ended = swept.invoke(*SWEEP)
    assert (ended.status, "the next sweep begins again" in " ".join(ended.stderr.split())) == (2, True)
    assert [row["compared_until"] for row in rows(engine, "SELECT compared_until FROM sweep_watermark")] == [None]
    for source in ("nobody", "unrouted"):
        assert swept.invoke("relay", "sweep", "--source", source).status == 2


# --- state and log

EVENTS = 40


def lose(engine: Engine, seqs: str) -> None:
    with engine.begin() as connection:
        connection.execute(text(f"DELETE FROM open_delivery WHERE seq IN ({seqs})"))


def test_each_difference_of_state_and_log_is_told_with_status_1_until_it_is_mended(
    place: Site, database_url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(database_url, [(f"u{n % 10}", moment(n)) for n in range(EVENTS)])
    seen = f"{EVENTS} events, {EVENTS} deliveries, 0 facts\n"
    assert place.invoke("relay", "verify")[:2] == (0, f"agreed: {seen}")
    assert place.invoke("relay", "rebuild")[:2] == (0, f"nothing to repair: {seen}")

    lose(engine, "3, 7")
    found = place.invoke("relay", "verify")
    assert (found.status, "2 differences in 40 events" in found.stderr) == (1, True)
    assert [line.split() for line in found.stdout.splitlines()] == [
        ["finding", "seq", "route", "lane", "facts_say", "stored"],
        ["missing", "3", "everything", "open", "no", "row"],
        ["missing", "7", "everything", "open", "no", "row"],
    ]
    assert [
        (each["finding"], each["seq"]) for each in json.loads(place.invoke("relay", "verify", "--json").stdout)
    ] == [
        ("missing", 3),
        ("missing", 7),
    ]
    repaired = place.invoke("relay", "rebuild")
    assert repaired.stdout.splitlines()[-1].startswith("repaired 2 differences in 40 events, ")
    assert (place.invoke("relay", "verify").status, count(engine, "open_delivery")) == (0, EVENTS)

    lose(engine, "3, 7, 8")
    monkeypatch.setattr(compare, "_MOST_DIFFERENCES", 2)
    many = place.invoke("relay", "verify")
    assert [line.split()[1] for line in many.stdout.splitlines()] == ["seq", "3", "7"]
    assert "3 differences in 40 events" in many.stderr
    assert [len(json.loads(place.invoke("relay", "rebuild", "--json").stdout)) for _ in range(2)] == [2, 0]
