"""`relay status --check`, as a service manager calls it."""

from __future__ import annotations

import json
import os
import signal
import socket
from pathlib import Path

from sqlalchemy import Engine, text

from inbox.db import engine as engines
from relay.store import nodes
from relay.store.database import Database
from tests.helpers.filling import fill
from tests.helpers.processes import Program, Site, site
from tests.helpers.waiting import until
from tests.helpers.webhooks import config_text, moment


def checked(place: Site, *options: str) -> Program:
    return place.start("check", "-m", "relay", "status", "--check", *options)


def an_hour_ago(engine: Engine, statement: str) -> None:
    with engine.begin() as connection:
        connection.execute(text(statement), {"then": "2020-01-01 00:00:00.000000Z"})


def test_it_is_0_while_a_relay_lives_and_1_when_none_does_or_something_is_stuck(
    sqlite_database_url: str, tmp_path: Path
) -> None:
    engine = engines.connect(sqlite_database_url, application="tests")
    with site(tmp_path, config_text(sqlite_database_url)) as place:
        nobody = checked(place)
        assert nobody.ends(within=20) == 1
        assert "no relay has sent a heartbeat for 15 s" in nobody.output
        relay = place.relay()
        until(lambda: "started node" in relay.output, "the relay runs", within=20)
        running = checked(place, "--here")
        assert (running.ends(within=20), running.output) == (0, "")

        relay.send(signal.SIGSTOP)  # it lives, as far as anybody can know, and takes up nothing
        fill(sqlite_database_url, [("u1", moment(0))])
        an_hour_ago(engine, "UPDATE open_delivery SET state = 'ready', due_at = :then")
        stuck = checked(place, "--json")
        assert stuck.ends(within=20) == 1
        assert [row["finding"] for row in json.loads(stuck.output)] == ["stuck"]

        os.kill(relay.pid, signal.SIGKILL)
        an_hour_ago(engine, "UPDATE relay_node SET heartbeat_at = :then")
        gone = checked(place, "--json")
        assert gone.ends(within=20) == 1
        assert [(row["finding"], row["route"]) for row in json.loads(gone.output)] == [
            ("no_relay", None),
            ("stuck", "everything"),
        ]
    engine.dispose()


def test_a_database_that_does_not_answer_is_a_finding_and_a_bad_file_is_wrong_use(tmp_path: Path) -> None:
    with site(tmp_path, config_text("postgresql+psycopg://relay@127.0.0.1:9/inbox")) as place:
        unanswered = checked(place, "--json")
        assert unanswered.ends(within=20) == 1
        assert [row["finding"] for row in json.loads(unanswered.output)] == ["no_database"]
        place.configure("bad")
        assert checked(place).ends(within=20) == 2


def test_a_blocked_lane_and_a_failing_step_are_findings_and_here_only_what_another_relay_may_mend(
    sqlite_database_url: str, tmp_path: Path
) -> None:
    engine = engines.connect(sqlite_database_url, application="tests")
    with site(tmp_path, config_text(sqlite_database_url)) as place:
        fill(sqlite_database_url, [("u1", moment(0))])
        with engine.begin() as connection:
            connection.execute(text("UPDATE open_delivery SET state = 'blocked'"))
        nodes.start_node(Database(engine), "r1", socket.gethostname(), 7, "1")
        nodes.heartbeat(Database(engine), "r1", {"claim": "ValueError: year 10000 is out of range"})
        everything, here = checked(place, "--json"), checked(place, "--here", "--json")
        status = place.start("status", "-m", "relay", "status")
        assert (everything.ends(within=20), here.ends(within=20), status.ends(within=20)) == (1, 1, 0)
        assert [row["finding"] for row in json.loads(everything.output)] == ["failing", "blocked"]
        assert [row["finding"] for row in json.loads(here.output)] == ["failing"]
        assert "step claim fails: ValueError: year 10000 is out of range" in " ".join(status.output.split())
        assert "route everything: 1 lane is blocked" in " ".join(status.output.split())
    engine.dispose()
