"""`inbox tail` and `relay tail`: what arrives and what becomes of it, live, also over a restart of the database."""

from __future__ import annotations

import json
import signal
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import Engine

from inbox.db import engine as engines
from inbox.db import migrate
from inbox.db.intake import Rejected
from relay.cli import listings
from tests.helpers.killable_postgres import killable
from tests.helpers.machine import ROOM
from tests.helpers.processes import INBOX, RELAY, Program, Site, site
from tests.helpers.relaying import fill, give_up
from tests.helpers.storing import START, Intake, an_event
from tests.helpers.waiting import until
from tests.helpers.webhooks import config_text, moment

REJECTED = Rejected(START, "trivore", 422, "invalid_event", "no id \x1b[31m", None, None, b"1" * 32, None, None)


def tail(place: Site, side: str, *options: str) -> Program:
    """Start it, and wait until it follows."""
    program = place.start(f"{side}-tail", *(RELAY if side == "relay" else INBOX), "tail", *options)
    program.writes("following; Ctrl-C ends it")
    return program


def objects(program: Program) -> list[dict[str, Any]]:
    return [json.loads(line) for line in program.output.splitlines() if line.startswith("{")]


def interrupt(program: Program) -> None:
    program.send(signal.SIGINT)
    assert program.ends() == 0
    assert "Traceback" not in program.output


def test_arrivals_and_rejected_requests_are_followed_until_ctrl_c(place: Site, database_url: str) -> None:
    fill(database_url, [("before", moment(0))])
    every, of_two, rejected = (
        tail(place, "inbox", "--ndjson"),
        tail(place, "inbox", "--entity", "USER/u2"),
        tail(place, "inbox", "--ndjson", "--kind", "rejected", "--cause", "invalid_event"),
    )
    fill(database_url, [("u1", moment(1)), ("u2", moment(2))])
    Intake(database_url).reject(REJECTED, msgspec.structs.replace(REJECTED, cause="unknown_source"))
    every.writes('"kind": "rejected"', 2)
    of_two.writes("USER/u2")
    rejected.writes('"kind": "rejected"')
    for program in (every, of_two, rejected):
        interrupt(program)

    assert sorted((each["kind"], each.get("entity_id")) for each in objects(every)) == [
        ("arrived", "u1"),
        ("arrived", "u2"),
        *[("rejected", None)] * 2,
    ]
    heading, line = of_two.output.splitlines()[1:]
    assert heading.split() == ["received_at", "kind", "number", "source", "entity", "what"]
    assert line.split()[1:] == ["arrived", "3", "trivore", "USER/u2", "UPDATE", "→", "everything"]
    assert [each["cause"] for each in objects(rejected)] == ["invalid_event"]


def test_outcomes_are_followed_and_may_begin_earlier(place: Site, database_url: str, engine: Engine) -> None:
    give_up(engine, database_url, [("u1", moment(0))], reason="email: no value")
    program = tail(place, "relay", "--since", "1h")
    others = tail(place, "relay", "--ndjson", "--cause", "exhausted", "--since", "1h")
    give_up(engine, database_url, [("u2", moment(1))], reason="email: no value")
    program.writes("email: no value", 2)
    interrupt(program)
    lines = [line.split() for line in program.output.splitlines()[2:]]
    said = ["given", "up", "after", "attempt", "1,", "mapping:", "email:", "no", "value"]
    assert [line[1:] for line in lines] == [
        ["dead", str(seq), "everything", f"USER/u{seq}", "1", "UPDATE", *said] for seq in (1, 2)
    ]
    interrupt(others)
    assert objects(others) == []


def test_with_end_each_row_that_is_there_is_exported_once_in_order(
    place: Site, database_url: str, engine: Engine
) -> None:
    give_up(engine, database_url, [(f"u{n}", moment(n)) for n in (1, 2, 3)], reason="email: no value")
    for options, wanted in (((), [1, 2, 3]), (("--entity", "USER/u2"), [2]), (("--since", "2999-01-01"), [])):
        for side in ("inbox", "relay"):
            ended = place.invoke(side, "tail", "--end", "--ndjson", *options)
            assert (ended.status, ended.stderr) == (0, "")
            assert [json.loads(line)["seq"] for line in ended.stdout.splitlines()] == wanted
    assert [json.loads(line)["seq"] for line in place.invoke("inbox", "list", "--ndjson").stdout.splitlines()] == [
        3,
        2,
        1,
    ]


def test_an_export_waits_for_a_database_that_goes_away(
    sqlite_place: Site, sqlite_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(sqlite_database_url, [("u1", moment(1))])
    look, troubles = listings._look, iter(["it is gone"])

    def look_again(*given: Any) -> Any:  # noqa: ANN401  # as the other
        trouble = next(troubles, "")
        return ([], trouble) if trouble else look(*given)

    monkeypatch.setattr(listings, "_look", look_again)
    monkeypatch.setattr(listings, "wait_for_more", lambda: None)
    ended = sqlite_place.invoke("inbox", "tail", "--end", "--ndjson")
    assert (ended.status, len(ended.stdout.splitlines())) == (0, 1)
    assert ended.stderr.startswith("the database does not answer (it is gone)")


def test_a_mistyped_filter_ends_with_2(sqlite_place: Site) -> None:
    for side, wrong in (
        ("inbox", ("--kind", "arived")),
        ("inbox", ("--source", "trivor")),
        ("relay", ("--cause", "dead")),
    ):
        assert sqlite_place.invoke(side, "tail", *wrong).status == 2


def test_a_tail_survives_a_restart_of_the_database_and_skips_nothing(tmp_path: Path) -> None:
    # not below pytest's own folder: see tests/proofs/faults/rig.py
    with (
        tempfile.TemporaryDirectory(prefix="inbox-relay-tail-", dir=ROOM) as folder,
        killable(Path(folder)) as server,
    ):
        server.create_database("inbox")
        url = server.url("inbox")
        made = engines.connect(url, application="tests")
        migrate.upgrade(made)
        made.dispose()
        with site(tmp_path, config_text(url)) as place:
            program = tail(place, "inbox", "--ndjson")
            Intake(url).append(an_event(1))
            program.writes('"seq": 1')
            server.stop()
            program.writes("the database does not answer")
            server.start()
            Intake(url).append(an_event(2), an_event(3))
            program.writes("the database answers again")
            until(lambda: len(objects(program)) == 3, "the tail goes on")
            interrupt(program)
    assert [each["seq"] for each in objects(program)] == [1, 2, 3]
    assert program.output.count("does not answer") == 1
