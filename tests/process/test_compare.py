"""`relay plan`, `sweep`, `verify` and `rebuild` as people and programs run them: two sides, and the differences between them."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from sqlalchemy import Engine

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
[[sources.trivore.sweeps]]
api = "identity"
path = "/user"
entity_type = "USER"
params = {{ since = "{{since}}", start = "{{start}}", count = "{{count}}" }}
pages = {{ by = "start", count = 2 }}
"""
)
PAIRS = {
    "u1": (answer(200, {"name": "Ada"}), [{"id": "c1", "name": "Ada", "phone": None}]),
    "u2": (answer(200, {"name": "Grace"}), [{"id": "c2", "name": "Grcae", "phone": "+44"}]),
    "u3": (answer(404), [{"id": "c3", "name": "Gone"}]),
    "u4": (answer(200, {"name": "Edsger"}), []),
    "u5": (answer(503), []),
}
"""Each user as the source has it, and its contacts."""
TO_CRM = 'destination = "crm"\n'


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    routes = {f"GET /api/user/{user}": [act] * 9 for user, (act, _) in PAIRS.items()}
    routes |= {f"GET /contacts?externalId={user}": [answer(200, {"items": to})] * 9 for user, (_, to) in PAIRS.items()}
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


def planned(place: Site, *options: str) -> Ended:
    return place.invoke("relay", "plan", *options)


def with_new(place: Site, new: str, *options: str) -> Ended:
    """Compare today's configuration with this one."""
    (place.folder / "new.toml").write_text(new, encoding="utf-8")
    return planned(place, "--config", str(place.folder / "new.toml"), *options)


def test_a_plan_shows_each_change_field_by_field_and_writes_nothing(
    synced: Site, server: ScriptedServer, engine: Engine, database_url: str, config: str
) -> None:
    of_crm = ("--route", "user-to-crm")
    ended = planned(synced, *of_crm)
    assert ended.status == 1, ended.stderr
    assert [line.split() for line in ended.stdout.splitlines()[1:]] == [
        ["USER/u2", "update", "name", "Grcae", "Grace"],
        ["USER/u2", "update", "phone", "+44"],
        ["USER/u3", "delete"],
    ]
    assert planned(synced, *of_crm, "--entity", "USER/u1")[:2] == (0, "")
    fill(database_url, [("u4", moment(9)), ("u5", moment(10))])
    found = json.loads(planned(synced, *of_crm, "--json").stdout)
    assert [(entity["entity_id"], entity["change"], entity["why"]) for entity in found] == [
        ("u2", "update", None),
        ("u3", "delete", None),
        ("u4", "create", None),
        ("u5", "failed", "fetch: answered 503 Service Unavailable"),
    ]
    assert found[0]["fields"][1] == {"field": "phone", "before": "+44", "after": None}
    assert planned(synced, *of_crm, "--entity", "USER/u5").status == 1, "it may be in sync"
    assert {seen.method for seen in server.seen} == {"GET"}
    assert count(engine, "delivery_log") == 0

    server.seen.clear()
    synced.configure(config.replace(TO_CRM, TO_CRM + 'when = { entity_type = ["GROUP"] }\n', 1))
    assert (planned(synced, *of_crm).status, server.seen) == (0, []), "the route takes no users"
    for wrong in (("--route", "nobody"), ("--route", "everything"), (*of_crm, "--entity", "u1")):
        assert planned(synced, *wrong).status == 2


def test_another_configuration_is_compared_over_the_newest_events_and_by_fetch_over_the_entities(
    synced: Site, server: ScriptedServer, config: str
) -> None:
    ended = with_new(synced, config.replace(TO_CRM, TO_CRM + 'when = { event_type = ["LOGIN"] }\n'))
    assert (ended.status, ended.stdout.splitlines()[1].split()) == (
        1,
        ["user-to-crm", "takes", "it", "6", "6", "yes", "no"],
    )
    assert with_new(synced, config, "--events", "3") == (0, "", "3 events compared: no difference\n")
    assert "new.toml" in with_new(synced, config.replace("base_url", "bass_url")).stderr
    assert with_new(synced, config, "--entity", "USER/u1").status == 2
    new = config.replace('"entity.phone"', '"entity.mobile"')
    assert "--fetch compares the resulting writes" in with_new(synced, new).stderr
    assert server.seen == []
    server.routes["GET /api/user/u1"] = [answer(200, {"name": "Ada", "phone": "1", "mobile": "2"})] * 9
    (found,) = json.loads(with_new(synced, new, "--fetch", "--json").stdout)
    assert (found["part"], found["before"], found["after"], found["events"]) == ("body.phone", "1", "2", 2)
    assert {seen.method for seen in server.seen} == {"GET"}


# --- sweeps

EPOCH = "1970-01-01T00%3A00%3A00Z"
LOST = (
    ("u1", "2026-01-02T00:00:00.9Z"),  # the webhook's time is cut to the second
    ("u2", "2026-01-03T00:00:00Z"),
    ("u3", "2026-01-01T12:00:00Z"),
)


def listed(server: ScriptedServer, *users: tuple[str, str], since: str = EPOCH) -> None:
    """The api lists these as changed since then, two a page."""
    for start in range(len(users) + 1):
        page = [{"id": user, "meta": {"lastModified": modified}} for user, modified in users[start : start + 2]]
        server.routes[f"GET /api/user?since={since}&start={start}&count=2"] = [answer(200, {"resources": page})]


def swept(place: Site, *options: str) -> tuple[int, list[int]]:
    """The exit status, and the numbers of entities that were compared, missed and added."""
    ended = place.invoke("relay", "sweep", "--source", "trivore", "--json", *options)
    (only,) = json.loads(ended.stdout)
    return ended.status, [only["compared"], only["missed"], only["added"]]


def test_a_change_without_a_webhook_becomes_an_event_once_and_only_a_whole_sweep_moves_the_watermark(
    place: Site, config: str, server: ScriptedServer, engine: Engine, database_url: str
) -> None:
    place.configure(
        config.replace('[routes.user-to-crm]\nsource = "trivore"', '[routes.user-to-crm]\nsource = "unrouted"')
    )
    fill(database_url, [("u1", "2026-01-01T00:00:00Z"), ("u1", "2026-01-02T00:00:00Z"), ("u2", "2026-01-01T00:00:00Z")])
    listed(server, *LOST)
    assert swept(place, "--dry-run") == (1, [3, 2, 0])
    server.routes[f"GET /api/user?since={EPOCH}&start=0&count=2"] = [answer(404)]
    assert place.invoke("relay", "sweep", "--source", "trivore").status == 2
    listed(server, ("u9", "2126-01-01T00:00:00Z"), since="2026-01-03T00%3A00%3A00Z")
    assert swept(place, "--since", "2026-01-03") == (0, [0, 0, 0]), "this minute is left out"
    assert count(engine, "sweep_watermark WHERE compared_until IS NOT NULL") == 0

    listed(server, *LOST)
    assert swept(place) == (1, [3, 2, 2])
    added = rows(engine, "SELECT entity_id, event_type FROM inbox WHERE seq > 3 ORDER BY entity_id")
    assert [tuple(row.values()) for row in added] == [("u2", "sweep"), ("u3", "sweep")]
    assert count(engine, "open_delivery WHERE state = 'received' AND seq > 3") == 2
    listed(server, LOST[1], since="2026-01-02T23%3A55%3A00Z")  # it begins a little before the last one ended
    assert swept(place) == (0, [1, 0, 0])
    for source in ("nobody", "unrouted"):
        assert place.invoke("relay", "sweep", "--source", source).status == 2


# --- state and log


def test_each_difference_of_state_and_log_is_told_with_status_1_until_it_is_mended(
    place: Site, database_url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(seqs: str) -> None:
        with engine.begin() as connection:
            connection.exec_driver_sql(f"DELETE FROM open_delivery WHERE seq IN ({seqs})")

    fill(database_url, [(f"u{n % 10}", moment(n)) for n in range(40)])
    for command in ("verify", "rebuild"):
        assert place.invoke("relay", command).status == 0
    lose("3, 7")
    found = place.invoke("relay", "verify")
    assert (found.status, "2 differences in 40 events" in found.stderr) == (1, True)
    assert found.stdout.splitlines()[1].split() == ["missing", "3", "everything", "open", "no", "row"]
    listing = json.loads(place.invoke("relay", "verify", "--json").stdout)
    assert [(each["finding"], each["seq"]) for each in listing] == [("missing", 3), ("missing", 7)]
    assert "repaired 2 differences in 40 events" in place.invoke("relay", "rebuild").stdout
    assert (place.invoke("relay", "verify").status, count(engine, "open_delivery")) == (0, 40)

    lose("3, 7, 8")
    monkeypatch.setattr(compare, "_MOST_DIFFERENCES", 2)
    many = place.invoke("relay", "verify")
    assert (len(many.stdout.splitlines()), "3 differences in 40 events" in many.stderr) == (3, True)
    assert [len(json.loads(place.invoke("relay", "rebuild", "--json").stdout)) for _ in range(2)] == [2, 0]
