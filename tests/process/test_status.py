"""`relay status`, as a person and a program call it, and `--check`, as a service manager does."""

from __future__ import annotations

import json
import os
import signal
import socket

import pytest
from sqlalchemy import Engine, text

from relay.cli import status
from relay.store import nodes
from relay.store.database import Database
from tests.helpers.filling import fill
from tests.helpers.processes import Ended, Site
from tests.helpers.webhooks import config_text, moment

CHECK = ("relay", "status", "--check")


def test_what_is_open_is_told_as_json(place: Site, database_url: str) -> None:
    fill(database_url, [("u1", moment(0))])
    (backlog,) = json.loads(place.run("relay", "status", "--json").stdout)
    assert (backlog["route"], backlog["received"]) == ("everything", 1)
    assert isinstance(backlog["oldest_age_seconds"], float)


def test_a_host_is_told_by_the_name_it_has(place: Site, engine: Engine) -> None:
    nodes.start_node(Database(engine), "n1", "[/red]", 7, "1.0")
    assert "relays running: 1 ([/red] pid 7)" in place.invoke("relay", "status").stderr


def findings(ended: Ended) -> list[str]:
    assert ended.status == 1
    return [row["finding"] for row in json.loads(ended.stdout)]


def an_hour_ago(engine: Engine, statement: str) -> None:
    with engine.begin() as connection:
        connection.execute(text(statement), {"then": "2020-01-01 00:00:00.000000Z"})


def test_it_is_0_while_a_relay_lives_and_1_when_none_does_or_something_is_stuck(
    sqlite_place: Site, sqlite_database_url: str, sqlite_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, engine = sqlite_place, sqlite_engine
    relay = place.relay()  # it takes less than what a finding has to last
    relay.writes("started node")
    assert place.run(*CHECK, "--here") == (0, "", "")

    monkeypatch.setattr(status, "_LOOK_AGAIN_SECONDS", 0)
    relay.send(signal.SIGSTOP)  # it lives, as far as anybody can know, and takes up nothing
    fill(sqlite_database_url, [("u1", moment(0))])
    an_hour_ago(engine, "UPDATE open_delivery SET state = 'ready', due_at = :then")
    assert findings(place.invoke(*CHECK, "--json")) == ["stuck"]

    os.kill(relay.pid, signal.SIGKILL)
    an_hour_ago(engine, "UPDATE relay_node SET heartbeat_at = :then")
    gone = place.invoke(*CHECK, "--json")
    assert findings(gone) == ["no_relay", "stuck"]
    assert [row["route"] for row in json.loads(gone.stdout)] == [None, "everything"]
    nobody = place.invoke(*CHECK)
    assert (nobody.status, "no relay has sent a heartbeat for 15 s" in nobody.stderr) == (1, True)


def test_a_database_that_does_not_answer_is_a_finding_and_a_bad_file_is_wrong_use(sqlite_place: Site) -> None:
    sqlite_place.configure(config_text("postgresql+psycopg://relay@127.0.0.1:9/inbox"))
    assert findings(sqlite_place.invoke(*CHECK, "--json")) == ["no_database"]
    sqlite_place.configure("bad")
    assert sqlite_place.invoke(*CHECK).status == 2


def test_a_blocked_lane_and_a_failing_step_are_findings_and_here_only_what_another_relay_may_mend(
    sqlite_place: Site, sqlite_database_url: str, sqlite_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "_LOOK_AGAIN_SECONDS", 0)
    fill(sqlite_database_url, [("u1", moment(0))])
    with sqlite_engine.begin() as connection:
        connection.execute(text("UPDATE open_delivery SET state = 'blocked'"))
    nodes.start_node(Database(sqlite_engine), "r1", socket.gethostname(), 7, "1")
    nodes.heartbeat(Database(sqlite_engine), "r1", {"claim": "ValueError: year 10000 is out of range"})
    assert findings(sqlite_place.invoke(*CHECK, "--json")) == ["failing", "blocked"]
    assert findings(sqlite_place.invoke(*CHECK, "--here", "--json")) == ["failing"]
    shown = sqlite_place.invoke("relay", "status")
    assert shown.status == 0
    for trouble in ("step claim fails: ValueError: year 10000 is out of range", "route everything: 1 lane is blocked"):
        assert trouble in shown.stderr
