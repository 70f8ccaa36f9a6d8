"""`relay plan --config` as an operator runs it before a change: the differences, the exit status, and whom it calls."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, text

from relay.comparison.lanes import SeenKeys
from relay.sync.expressions import digest
from tests.helpers.filling import fill
from tests.helpers.processes import Ended, Site
from tests.helpers.reading import count
from tests.helpers.scripted import ScriptedServer, answer, serving
from tests.helpers.webhooks import SYNC_CONFIG, config_text, moment

CONFIG = (
    SYNC_CONFIG
    + """
map = {{ name = "entity.name", phone = "entity.phone", nick = "entity.nick" }}
clear_when_absent = ["nick"]
"""
)
USERS = {
    "u1": answer(200, {"name": "Ada", "phone": "1", "mobile": "1"}),
    "u2": answer(200, {"name": "Grace", "phone": "2", "mobile": "3"}),
    "u3": answer(200, {"phone": "3", "mobile": "3", "name": "Edsger", "nick": "E"}),
    "u4": answer(503),
}


UNDER_ANOTHER = "8 events were stored under another configuration than today's: seq 8 is the newest\n"
"""They arrived before there was the route to the sync."""


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    routes = {f"GET /api/user/{user}": [act] * 9 for user, act in USERS.items()}
    routes |= {
        f"GET /contacts?externalId={user}": [answer(200, {"items": [{"id": user}]})] * 9
        for user in USERS
        if user != "u3"
    }
    routes["GET /contacts?externalId=u3"] = [answer(200, {"items": []})] * 9
    with serving(routes=routes) as made:
        yield made


@pytest.fixture
def old(server: ScriptedServer, database_url: str) -> str:
    return config_text(database_url) + CONFIG.format(url=server.url)


@pytest.fixture
def place(place: Site, old: str, database_url: str) -> Site:
    """A site with four users that have two events each; it sends all of them to a forward destination, too."""
    place.configure(old)
    fill(database_url, [(f"u{n % 4 + 1}", moment(n)) for n in range(8)])
    return place


def plan(place: Site, new: str, *options: str) -> Ended:
    (place.folder / "new.toml").write_text(new, encoding="utf-8")
    return place.invoke("relay", "plan", "--config", str(place.folder / "new.toml"), *options)


def test_differences_are_a_table_and_status_1_and_nobody_is_called(
    place: Site, server: ScriptedServer, old: str, engine: Engine
) -> None:
    new = old.replace('destination = "crm"\n', 'destination = "crm"\nwhen = { event_type = ["LOGIN"] }\n').replace(
        'ordering = "strict"', 'ordering = "strict"\nlane = "route"'
    )
    ended = plan(place, new, "--since", "1h")
    assert ended.status == 1, ended.stderr
    assert [line.split()[:3] for line in ended.stdout.splitlines()] == [
        ["route", "kind", "name"],
        ["everything", "lane", "8"],
        ["everything", "merge", "1"],
        ["user-to-crm", "removed", "8"],
    ]
    assert ended.stderr == f"8 events compared: 3 differences\n{UNDER_ANOTHER}"
    assert server.seen == []
    assert count(engine, "delivery_log") == 0


def test_the_same_configuration_is_status_0(place: Site, old: str) -> None:
    same = f"8 events compared: no difference\n{UNDER_ANOTHER}"
    assert plan(place, old) == (0, "", same)
    assert plan(place, old, "--fetch") == (0, "", same)
    other = "also different, without effect on routes, lanes and requests: routes.everything.retry.jitter\n"
    assert plan(place, old.replace("jitter = 0", "jitter = 0.1")) == (0, "", same + other)


def test_for_programs_there_is_one_object_with_counts_or_a_line_for_each_difference(place: Site, old: str) -> None:
    new = old.replace('"entity.phone"', '"entity.mobile"')
    found = json.loads(plan(place, new, "--json", "--limit", "3").stdout)
    assert (found["events"], found["unreadable"], found["other_settings"]) == (3, {"count": 0, "seq": None}, [])
    (difference,) = found["differences"]
    assert difference == {
        "kind": "setting",
        "source": "trivore",
        "route": "user-to-crm",
        "name": "sync.map.phone",
        "count": 3,
        "first_seq": 6,
        "last_seq": 8,
        "before": "entity.phone",
        "after": "entity.mobile",
        "why": None,
    }
    assert json.loads(plan(place, new, "--ndjson", "--limit", "3").stdout) == difference


def test_with_fetch_entities_are_mapped_under_both_and_each_call_is_made_once(
    place: Site, server: ScriptedServer, old: str, engine: Engine
) -> None:
    with engine.begin() as connection:  # as if two had been delivered
        for user, sent in (("u1", {"name": "Ada", "phone": "1"}), ("u2", {"name": "Grace", "phone": "0"})):
            connection.execute(
                text(
                    "INSERT INTO lane (route, lane, occurred_at, seq, applied_hash)"
                    " VALUES ('user-to-crm', :lane, '2026-01-01 00:00:00.000000Z', 1, :hash)"
                ),
                {"lane": f"USER|{user}", "hash": digest(sent)},
            )
    new = old.replace('"entity.phone"', '"entity.mobile"').replace(
        'nick = "entity.nick"', 'nick = { from = "entity.nick", required = true }'
    )
    new = new.replace('clear_when_absent = ["nick"]', "")
    found = json.loads(plan(place, new, "--fetch", "--json").stdout)
    (fails,) = found["differences"]
    assert (fails["kind"], fails["count"], fails["last_seq"]) == ("fails", 2, 6)
    assert "nick: is required" in fails["why"]
    assert (found["entities"], found["not_mapped"], found["hash_agrees"]) == (4, {"count": 1, "seq": 8}, 1)
    assert found["hash_differs"] == {"count": 1, "seq": 6}
    asked = [f"{seen.method} {seen.target}" for seen in server.seen]
    assert {seen.method for seen in server.seen} == {"GET"}, "nothing is written"
    assert len(asked) == len({*asked}) == 7

    new = old.replace('"entity.phone"', '"entity.mobile"').replace("/contacts/{target.id}", "/contact/{target.id}", 1)
    ended = plan(place, new, "--fetch")
    rows = [line.split() for line in ended.stdout.splitlines()[1:]]
    assert ["user-to-crm", "value", "sync.map.phone", "1", "6", "2", "3"] in rows
    assert ["user-to-crm", "value", "sync.update", "2", "6", "PATCH", "/contacts/u2", "PATCH", "/contact/u2"] in rows
    assert "4 entities mapped under both configurations; 1 could be mapped under neither (seq 8)" in ended.stderr


def test_with_fetch_another_call_is_made_and_a_field_may_join_entity_and_body(
    place: Site, server: ScriptedServer, old: str, engine: Engine
) -> None:
    server.routes["GET /api/person/u1"] = [answer(200, {"name": "Ada", "phone": "one"})]
    new = old.replace("/user/", "/person/").replace('"entity.name"', "\"join(' ', [entity.name, event.body.id])\"")
    ended = plan(place, new, "--fetch", "--entity", "USER/u1")
    rows = [line.split() for line in ended.stdout.splitlines()[1:]]
    assert ["user-to-crm", "value", "sync.map.phone", "1", "5", "1", "one"] in rows
    assert ["user-to-crm", "value", "sync.map.name", "1", "5", "Ada", "Ada", "u1"] in rows
    server.seen.clear()
    server.routes["GET /v2/user/u1"] = [answer(200, {"name": "Ada", "phone": "two"})]
    assert " two\n" in plan(place, old.replace('/api"', '/v2"'), "--fetch", "--entity", "USER/u1").stdout
    keyed = old.replace('{event.entity_id}" }\nfind', '{event.entity_id}", headers = { X-Kind = "a" } }\nfind')
    plan(place, keyed, "--fetch", "--entity", "USER/u1")
    assert [seen.headers.get("x-kind") for seen in server.seen if "user" in seen.target] == [None, None, None, "a"]
    with engine.begin() as connection:
        for table in ("open_delivery", "inbox_payload"):  # as retention finds them
            connection.execute(text(f"DELETE FROM {table} WHERE seq = 5"))
    server.routes["GET /api/person/u1"] = [answer(200, {"name": "Ada", "phone": "one"})]
    new = new.replace("map = {", 'map = { kind = "event.body.eventType",')
    ended = plan(place, new, "--fetch", "--entity", "USER/u1")
    assert "2 events compared: 2 differences\n1 event compared without their payload" in ended.stderr


def test_with_fetch_a_route_that_takes_more_maps_only_what_it_newly_takes(
    place: Site, server: ScriptedServer, old: str
) -> None:
    of_some = old.replace('destination = "crm"\n', 'destination = "crm"\nwhen = { event_type = ["LOGIN"] }\n')
    place.configure(of_some)
    found = json.loads(plan(place, old, "--fetch", "--json").stdout)
    differences = [(each["kind"], each["name"], each["count"], each["last_seq"]) for each in found["differences"]]
    assert differences == [("added", None, 8, 8), ("fails", "sync", 1, 8)]
    assert found["entities"] == 4
    server.seen.clear()
    place.configure(old)
    assert [each["kind"] for each in json.loads(plan(place, of_some, "--fetch", "--json").stdout)["differences"]] == [
        "removed"
    ]
    assert server.seen == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("entity.phone", "entity.["), "[routes.user-to-crm.sync] map.phone: 'entity.[' is not a JMESPath expression"),
        (('destination = "crm"', 'destination = "crn"'), "there is no destination 'crn'"),
        (("[apis.identity]", "[apis.identity"), "is not TOML"),
        (("ordering", "ordring"), "ordring"),
    ],
)
def test_a_new_configuration_with_a_mistake_is_the_loaders_error(
    place: Site, old: str, change: tuple[str, str], said: str
) -> None:
    ended = plan(place, old.replace(*change))
    assert (ended.status, ended.stdout) == (2, "")
    assert said in ended.stderr
    assert "new.toml" in ended.stderr


def test_a_mistake_in_todays_configuration_is_told_as_its_own(place: Site, old: str) -> None:
    place.configure(old.replace("entity.phone", "entity.["))
    ended = plan(place, old)
    assert (ended.status, "inbox.toml:" in ended.stderr, "new.toml" in ended.stderr) == (2, True, False)


def test_a_full_disk_is_status_2_and_no_difference(place: Site, old: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(SeenKeys, "add_lanes", full)
    ended = plan(place, old.replace('ordering = "strict"', 'ordering = "strict"\nlane = "route"'))
    error = "error: the temporary file for lanes and keys: database or disk is full; TMPDIR names its folder\n"
    assert ended == (2, "", error)


def test_wrong_use_is_status_2(place: Site) -> None:
    for options, said in (
        ((), "give --route, the sync route whose sides to compare, or --config"),
        (("--route", "user-to-crm", "--fetch"), "--limit and --fetch belong to --config"),
        (("--config", str(place.folder / "none.toml")), "none.toml"),
        (("--config", str(place.folder / "inbox.toml"), "--route", "nobody"), "there is no route 'nobody'"),
        (("--config", str(place.folder / "inbox.toml"), "--entity", "u1"), "--entity must be TYPE/ID"),
    ):
        ended = place.invoke("relay", "plan", *options)
        assert (ended.status, said in ended.stderr) == (2, True), ended
