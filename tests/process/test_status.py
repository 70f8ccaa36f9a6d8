"""`relay status`, as a person and a program call it, and `--check`, as a service manager does."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from types import SimpleNamespace

import pytest
from sqlalchemy import Engine, text

from relay.cli import status
from relay.store import nodes
from relay.store.database import Database
from tests.helpers.databases import down
from tests.helpers.processes import RELAY, Ended, Site
from tests.helpers.relaying import fill, work_of
from tests.helpers.scripted import answer, serving
from tests.helpers.webhooks import config_text, moment

CHECK = ("relay", "status", "--check")


def test_for_programs_it_is_one_object_with_everything(place: Site, database_url: str) -> None:
    fill(database_url, [("u1", moment(0))])
    ended = place.invoke("relay", "status", "--json")
    seen = json.loads(ended.stdout)
    assert (ended.status, ended.stderr) == (0, "")
    assert list(seen) == [
        "at", "routes", "gates", "relays", "alerts", "commands", "sweeps", "retention", "ahead", "findings", "next"
    ]  # fmt: skip
    (route,) = seen["routes"]
    assert (route["route"], route["received"], route["state"]) == ("everything", 1, "busy")
    assert isinstance(route["oldest_age_seconds"], float)
    assert seen["at"].endswith("Z")
    assert seen["next"] == [{"text": "no relay has sent a heartbeat for 15 s", "command": "relay run"}]


def test_for_people_everything_is_on_standard_output(place: Site, engine: Engine) -> None:
    nodes.describe(work_of(Database(engine), node="n1"), "[/red]", 7, "1.0")
    ended = place.invoke("relay", "status")
    assert (ended.status, ended.stderr) == (0, "")
    assert ended.stdout.startswith("well: 1 relay running, nothing open\n")
    assert "[/red]" in ended.stdout, "a host is told by the name that it has"


WATCH = (*RELAY, "status", "--watch", "--every", "0.1")
AT_TERMINAL = ("-c", "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))")
"""Arguments with which `python` runs the command behind them at a terminal."""


def test_watched_elsewhere_than_at_a_terminal_it_is_printed_again_and_again_through_an_outage(
    postgres_place: Site, postgres_database_url: str
) -> None:
    watching = postgres_place.start("watch", *WATCH)
    watching.writes("no relay running", times=2)
    with down(postgres_database_url):
        watching.writes("the database: ")
    seen = watching.output.count("no relay running")
    watching.writes("no relay running", times=seen + 2)
    watching.send(signal.SIGINT)
    assert watching.ends() == 0
    assert "Traceback" not in watching.output


def test_at_a_terminal_it_is_drawn_again_in_its_place_and_ctrl_c_ends_it(
    sqlite_place: Site, sqlite_database_url: str
) -> None:
    watching = sqlite_place.start("watch", *AT_TERMINAL, sys.executable, *WATCH, TERM="xterm-256color", COLUMNS="80")
    watching.writes("nothing open", times=2)
    fill(sqlite_database_url, [("u1", moment(0))])
    watching.writes("1 open")
    os.kill(watching.children()[0], signal.SIGINT)
    assert watching.ends() == 0
    assert "\x1b[2K" in watching.output, "what stood there is cleared"
    assert "Traceback" not in watching.output


@pytest.mark.parametrize("options", [("--watch", "--check"), ("--here",)])
def test_options_that_do_not_go_together_are_wrong_use(sqlite_place: Site, options: tuple[str, ...]) -> None:
    assert sqlite_place.invoke("relay", "status", *options).status == 2


def findings(ended: Ended) -> list[str]:
    assert ended.status == 1
    return [row["kind"] for row in json.loads(ended.stdout)]


def an_hour_ago(engine: Engine, statement: str) -> None:
    with engine.begin() as connection:
        connection.execute(text(statement), {"then": "2020-01-01 00:00:00.000000Z"})


def test_it_is_0_while_a_relay_lives_and_1_when_none_does_or_something_is_stuck(
    sqlite_place: Site, sqlite_database_url: str, sqlite_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, engine = sqlite_place, sqlite_engine
    relay = place.relay()  # it takes less than what a finding has to last
    relay.writes("started node")
    assert place.invoke(*CHECK, "--here") == (0, "", "")

    monkeypatch.setattr(status, "_LOOK_AGAIN_SECONDS", 0)
    with engine.begin():  # so that it doesn't stop with the write lock
        relay.send(signal.SIGSTOP)  # it lives, as far as anybody can know, and takes up nothing
    fill(sqlite_database_url, [("u1", moment(0))])
    an_hour_ago(engine, "UPDATE open_delivery SET state = 'ready', due_at = :then")
    assert findings(place.invoke(*CHECK, "--json")) == ["stuck"]

    os.kill(relay.pid, signal.SIGKILL)
    an_hour_ago(engine, "UPDATE relay_node SET heartbeat_at = :then")
    gone = place.invoke(*CHECK, "--json")
    assert findings(gone) == ["no_relay", "stuck"]
    assert [row["fields"].get("route") for row in json.loads(gone.stdout)] == [None, "everything"]
    nobody = place.invoke(*CHECK)
    assert (nobody.status, nobody.stderr) == (1, "")
    assert nobody.stdout.splitlines()[0] == "no relay has sent a heartbeat for 15 s"


def test_a_finding_that_does_not_last_is_none(
    sqlite_place: Site, sqlite_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(_seconds: float) -> None:
        nodes.describe(work_of(Database(sqlite_engine), node="r1"), socket.gethostname(), 7, "1")

    monkeypatch.setattr(status, "time", SimpleNamespace(sleep=start))
    assert sqlite_place.invoke(*CHECK) == (0, "", "")


def test_a_database_that_does_not_answer_is_a_finding_and_a_bad_file_is_wrong_use(sqlite_place: Site) -> None:
    sqlite_place.configure(config_text("postgresql+psycopg://relay:s3cret@127.0.0.1:9/inbox"))
    assert findings(sqlite_place.invoke(*CHECK, "--json")) == ["no_database"]
    ended = sqlite_place.invoke("relay", "status")
    assert (ended.status, ended.stderr.count("\n"), "s3cret" in ended.stderr) == (2, 1, False)
    sqlite_place.configure("bad")
    assert sqlite_place.invoke(*CHECK).status == 2


def test_a_route_whose_only_call_failed_is_failing_with_its_error_until_a_call_succeeds(
    sqlite_place: Site, sqlite_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "_LOOK_AGAIN_SECONDS", 0)
    fill(sqlite_database_url, [("u1", moment(0))])
    with serving(answer(503), answer(200)) as server:
        sqlite_place.configure(config_text(sqlite_database_url, server.url))
        assert sqlite_place.relay("--drain").ends() == 0
        said = (
            "route everything: every attempt since its last success failed: forward: answered 503 Service Unavailable"
        )
        shown = sqlite_place.invoke("relay", "status").stdout
        assert said in shown
        assert " failing " in shown
        checked = sqlite_place.invoke(*CHECK)
        assert (checked.status, said in checked.stdout) == (1, True)
        assert sqlite_place.invoke("relay", "retry", "--all", "--reason", "it is up", "--yes").status == 0
        assert sqlite_place.relay("--drain").ends() == 0
    assert "failing" not in findings(sqlite_place.invoke(*CHECK, "--json"))


def test_a_blocked_lane_and_a_failing_step_are_findings_and_here_only_what_another_relay_may_mend(
    sqlite_place: Site, sqlite_database_url: str, sqlite_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "_LOOK_AGAIN_SECONDS", 0)
    fill(sqlite_database_url, [("u1", moment(0))])
    with sqlite_engine.begin() as connection:
        connection.execute(text("UPDATE open_delivery SET state = 'blocked'"))
    nodes.describe(work_of(Database(sqlite_engine), node="r1"), socket.gethostname(), 7, "1")
    nodes.heartbeat(Database(sqlite_engine), "r1", {"claim": "ValueError: year 10000 is out of range"})
    assert findings(sqlite_place.invoke(*CHECK, "--json")) == ["step_failed", "blocked"]
    assert findings(sqlite_place.invoke(*CHECK, "--here", "--json")) == ["step_failed"]
    shown = sqlite_place.invoke("relay", "status")
    assert shown.status == 0
    for trouble in ("step claim fails: ValueError: year 10000 is out of range", "route everything: 1 lane is blocked"):
        assert trouble in shown.stdout
