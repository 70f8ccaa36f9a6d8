"""`relay status`, as a person and a program call it, and `--check`, as a service manager does."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from sqlalchemy import Engine, text

from inbox.db.intake import Rejected
from relay.cli import listings, status
from relay.store import nodes
from relay.store.database import Database
from tests.helpers.databases import down
from tests.helpers.processes import INBOX, RELAY, Ended, Site
from tests.helpers.relaying import fill, give_up, work_of
from tests.helpers.storing import START, Intake
from tests.helpers.waiting import until
from tests.helpers.webhooks import config_text, moment

CHECK = ("relay", "status", "--check")


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A finding need not last."""
    monkeypatch.setattr(status, "_LOOK_AGAIN_SECONDS", 0)


def findings(ended: Ended) -> list[str]:
    assert ended.status == 1
    return [row["kind"] for row in json.loads(ended.stdout)]


def runs(engine: Engine, host: str = "") -> None:
    """Let a relay have started just now, here unless told otherwise."""
    nodes.describe(work_of(Database(engine), node="r1"), host or socket.gethostname(), 7, "1")


def test_for_programs_it_is_one_object_and_for_people_lines(place: Site, database_url: str, engine: Engine) -> None:
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
    assert [each["command"] for each in seen["next"]] == ["relay run"]
    runs(engine, "[/red]")
    ended = place.invoke("relay", "status")
    assert (ended.status, ended.stderr, "[/red]" in ended.stdout) == (0, "", True)


AT_TERMINAL = ("-c", "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))")
"""Arguments with which `python` runs the command behind them at a terminal."""


def test_watched_at_a_terminal_it_is_drawn_again_through_an_outage_until_ctrl_c(
    postgres_place: Site, postgres_database_url: str
) -> None:
    command = (sys.executable, *RELAY, "status", "--watch", "--every", "0.1")
    watching = postgres_place.start("watch", *AT_TERMINAL, *command, TERM="xterm-256color", COLUMNS="80")
    watching.writes("nothing open", times=2)
    with down(postgres_database_url):
        watching.writes("the database: ")
    fill(postgres_database_url, [("u1", moment(0))])
    watching.writes("1 open")
    os.kill(watching.children()[0], signal.SIGINT)
    assert watching.ends() == 0
    assert "\x1b[2K" in watching.output, "the lines before are cleared"
    assert "Traceback" not in watching.output


def test_watched_elsewhere_it_is_printed_again_and_again(sqlite_place: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    naps = iter([0.0])

    def sleep(_seconds: float) -> None:
        if next(naps, None) is None:
            raise KeyboardInterrupt

    monkeypatch.setattr(status, "time", SimpleNamespace(sleep=sleep, monotonic=time.monotonic))
    ended = sqlite_place.invoke("relay", "status", "--watch")
    assert (ended.status, ended.stdout.count("no relay running")) == (0, 2)
    for wrong in (("--watch", "--check"), ("--here",)):
        assert sqlite_place.invoke("relay", "status", *wrong).status == 2


@pytest.mark.usefixtures("at_once")
def test_the_check_is_0_while_a_relay_lives_and_1_when_none_does_or_something_is_stuck(
    sqlite_place: Site, sqlite_database_url: str, sqlite_engine: Engine
) -> None:
    def happened(statement: str) -> None:
        with sqlite_engine.begin() as connection:
            connection.execute(text(statement), {"then": "2020-01-01 00:00:00.000000Z"})

    runs(sqlite_engine)
    assert sqlite_place.invoke(*CHECK, "--here") == (0, "", "")
    fill(sqlite_database_url, [("u1", moment(0))])
    happened("UPDATE open_delivery SET state = 'ready', due_at = :then")
    assert findings(sqlite_place.invoke(*CHECK, "--json")) == ["stuck"]
    happened("UPDATE relay_node SET heartbeat_at = :then")
    gone = sqlite_place.invoke(*CHECK, "--json")
    assert findings(gone) == ["no_relay", "stuck"]
    assert [row["fields"].get("route") for row in json.loads(gone.stdout)] == [None, "everything"]
    nobody = sqlite_place.invoke(*CHECK)
    assert (nobody.status, nobody.stderr) == (1, "")
    assert nobody.stdout.splitlines()[0] == "no relay has sent a heartbeat for 15 s"


def test_a_finding_that_does_not_last_is_none(
    sqlite_place: Site, sqlite_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "time", SimpleNamespace(sleep=lambda _seconds: runs(sqlite_engine)))
    assert sqlite_place.invoke(*CHECK) == (0, "", "")


def test_a_database_that_does_not_answer_is_a_finding_and_a_bad_file_is_wrong_use(sqlite_place: Site) -> None:
    sqlite_place.configure(config_text("postgresql+psycopg://relay:s3cret@127.0.0.1:9/inbox"))
    assert findings(sqlite_place.invoke(*CHECK, "--json")) == ["no_database"]
    ended = sqlite_place.invoke("relay", "status")
    assert (ended.status, ended.stderr.count("\n"), "s3cret" in ended.stderr) == (2, 1, False)
    sqlite_place.configure("bad")
    assert sqlite_place.invoke(*CHECK).status == 2


@pytest.mark.usefixtures("at_once")
def test_a_blocked_lane_and_a_failing_step_are_findings_and_here_only_what_another_relay_may_mend(
    sqlite_place: Site, sqlite_database_url: str, sqlite_engine: Engine
) -> None:
    fill(sqlite_database_url, [("u1", moment(0))])
    with sqlite_engine.begin() as connection:
        connection.execute(text("UPDATE open_delivery SET state = 'blocked'"))
    runs(sqlite_engine)
    nodes.heartbeat(Database(sqlite_engine), "r1", {"claim": "ValueError: year 10000 is out of range"})
    assert findings(sqlite_place.invoke(*CHECK, "--json")) == ["step_failed", "blocked"]
    assert findings(sqlite_place.invoke(*CHECK, "--here", "--json")) == ["step_failed"]
    shown = sqlite_place.invoke("relay", "status")
    assert (shown.status, "year 10000 is out of range" in shown.stdout) == (0, True)


# --- `inbox tail` and `relay tail`: arrivals and outcomes, live, also over a restart of the database


REJECTED = Rejected(START, "trivore", 422, "invalid_event", "no id \x1b[31m", None, None, b"1" * 32, None, None)


def objects(written: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in written.splitlines() if line.startswith("{")]


@pytest.fixture
def tail(place: Site, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ended]:
    """A function that follows rows, among which something happens, until there are no more."""

    def tails(happens: Callable[[], object], side: str, *options: str) -> Ended:
        events = iter([happens])

        def wait() -> None:
            following = next(events, None)
            if following is None:
                raise KeyboardInterrupt
            following()

        monkeypatch.setattr(listings, "wait_for_more", wait)
        return place.invoke(side, "tail", *options)

    return tails


def test_arrivals_and_rejected_requests_are_followed_until_ctrl_c(
    tail: Callable[..., Ended], database_url: str
) -> None:
    fill(database_url, [("before", moment(0))])

    def happens() -> None:
        fill(database_url, [("u1", moment(1)), ("u2", moment(2))])
        Intake(database_url).reject(REJECTED, msgspec.structs.replace(REJECTED, cause="unknown_source"))

    every = tail(happens, "inbox", "--ndjson")
    assert every.status == 0
    assert sorted((each["kind"], each.get("entity_id")) for each in objects(every.stdout)) == [
        ("arrived", "u1"),
        ("arrived", "u2"),
        *[("rejected", None)] * 2,
    ]
    of_two = tail(lambda: fill(database_url, [("u2", moment(3)), ("u3", moment(3))]), "inbox", "--entity", "USER/u2")
    heading, line = of_two.stdout.splitlines()
    assert heading.split() == ["received_at", "kind", "number", "source", "entity", "what"]
    assert line.split()[1:] == ["arrived", "4", "trivore", "USER/u2", "UPDATE", "→", "everything"]
    rejected = tail(happens, "inbox", "--ndjson", "--kind", "rejected", "--cause", "invalid_event")
    assert [each["cause"] for each in objects(rejected.stdout)] == ["invalid_event"]


def test_outcomes_are_followed_and_may_begin_earlier(
    tail: Callable[..., Ended], database_url: str, engine: Engine
) -> None:
    give_up(engine, database_url, [("u1", moment(0))], reason="email: no value")
    followed = tail(
        lambda: give_up(engine, database_url, [("u2", moment(1))], reason="email: no value"), "relay", "--since", "1h"
    )
    lines = [line.split() for line in followed.stdout.splitlines()[1:]]
    assert [line[1:5] for line in lines] == [["dead", str(seq), "everything", f"USER/u{seq}"] for seq in (1, 2)]
    others = tail(lambda: None, "relay", "--ndjson", "--cause", "exhausted", "--since", "1h")
    assert objects(others.stdout) == []


def test_with_end_each_row_that_is_there_is_exported_once_in_order(
    place: Site, database_url: str, engine: Engine
) -> None:
    give_up(engine, database_url, [(f"u{n}", moment(n)) for n in (1, 2, 3)], reason="email: no value")
    for options, wanted in (((), [1, 2, 3]), (("--entity", "USER/u2"), [2]), (("--since", "2999-01-01"), [])):
        for side in ("inbox", "relay"):
            ended = place.invoke(side, "tail", "--end", "--ndjson", *options)
            assert (ended.status, ended.stderr) == (0, "")
            assert [each["seq"] for each in objects(ended.stdout)] == wanted
    newest_first = place.invoke("inbox", "list", "--ndjson").stdout
    assert [each["seq"] for each in objects(newest_first)] == [3, 2, 1]


def test_an_export_waits_for_a_database_that_goes_away_and_tells_of_it_once(
    sqlite_place: Site, sqlite_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(sqlite_database_url, [("u1", moment(1))])
    look, troubles = listings._look, iter(["it is gone"] * 2)

    def look_again(*given: Any) -> Any:  # noqa: ANN401  # as the other
        trouble = next(troubles, "")
        return ([], trouble) if trouble else look(*given)

    monkeypatch.setattr(listings, "_look", look_again)
    monkeypatch.setattr(listings, "wait_for_more", lambda: None)
    ended = sqlite_place.invoke("inbox", "tail", "--end", "--ndjson")
    assert (ended.status, len(ended.stdout.splitlines())) == (0, 1)
    assert ended.stderr.count("the database does not answer (it is gone)") == 1


def test_a_mistyped_filter_ends_with_2(sqlite_place: Site) -> None:
    for wrong in ("inbox tail --kind arived", "inbox tail --source trivor", "relay tail --cause dead"):
        assert sqlite_place.invoke(*wrong.split()).status == 2


def test_a_tail_survives_an_outage_of_the_database_and_skips_nothing(
    postgres_place: Site, postgres_database_url: str
) -> None:
    program = postgres_place.start("tail", *INBOX, "tail", "--ndjson")
    program.writes("following; Ctrl-C ends it")
    fill(postgres_database_url, [("u1", moment(1))])
    program.writes('"seq": 1')
    with down(postgres_database_url):
        program.writes("the database does not answer")
    fill(postgres_database_url, [("u2", moment(2)), ("u3", moment(3))])
    program.writes("the database answers again")
    until(lambda: len(objects(program.output)) == 3, "the tail goes on")
    program.send(signal.SIGINT)
    assert (program.ends(), "Traceback" in program.output) == (0, False)
    assert [each["seq"] for each in objects(program.output)] == [1, 2, 3]
    assert program.output.count("does not answer") == 1
