"""Commands of an operator: the plan first, who asked and why, all of them in a list, and an interruption in mid-work."""

from __future__ import annotations

import json
import shlex

import pytest
from sqlalchemy import Engine

from inbox.db import erasure
from inbox.db.erasure import StepDone
from tests.helpers.planted import ID, live, traces_in
from tests.helpers.processes import Ended, Site
from tests.helpers.relaying import Steps, fail_once, give_up
from tests.helpers.tables import count, facts, open_states, rows
from tests.helpers.webhooks import moment

MAINTENANCE = ("--reason", "maintenance", "--yes")
BECAUSE = ("--reason", "the service is back")
PERSON = ("erase", "--source", "trivore", "--entity", f"USER/{ID}")


def typed(place: Site, *words: str, side: str = "relay") -> Ended:
    return place.invoke(side, *words, LOGNAME="kim")


def test_a_replay_shows_its_plan_and_does_it_when_it_is_told_to(place: Site, database_url: str, engine: Engine) -> None:
    give_up(engine, database_url, [(f"u{n}", moment(n)) for n in range(7)])
    plan = typed(place, "replay", "--cause", "mapping", "--reason", "mended")
    assert (plan.status, "7 deliveries would be replayed, 5 of them shown" in plan.stderr) == (0, True)
    groups, sample = plan.stdout.split("\n\n")
    assert groups.splitlines()[1].split() == ["7", "everything", "dead", "mapping"]
    assert len(sample.splitlines()) == 1 + 5
    document = json.loads(typed(place, "replay", "--all", "--reason", "mended", "--json").stdout)
    assert (document["count"], len(document["deliveries"]), document["left_out"]) == (7, 7, [])
    assert document["groups"][0]["cause"] == "mapping"
    assert open_states(engine) == {"dead": 7}

    done = typed(place, "replay", "--cause", "mapping", "--reason", "mended", "--yes")
    assert (done.status, done.stderr.splitlines()[-1]) == (0, "7 deliveries replayed")
    assert open_states(engine) == {"ready": 7}
    replayed = [fact["detail"] for fact in facts(engine) if fact["kind"] == "replayed"]
    assert [(detail["who"], detail["why"]) for detail in replayed] == [("kim", "mended")] * 7


def test_a_command_about_nothing_ends_with_1_with_or_without_yes(sqlite_place: Site) -> None:
    for command in (
        "replay --all",
        "replay --all --yes",
        "cancel --seq 1",
        "unblock --all",
        "retry --seq 9",
        "retry --all --yes",
    ):
        ended = typed(sqlite_place, *command.split(), *BECAUSE)
        assert (ended.status, ended.stdout) == (1, ""), ended.stderr
    empty = typed(sqlite_place, "replay", "--all", *BECAUSE, "--json")
    assert (empty.status, json.loads(empty.stdout)["count"]) == (1, 0)


@pytest.mark.parametrize(
    ("side", "command"),
    [
        *(("relay", f"cancel --route everything {reason} --yes") for reason in ("", "--reason ''", "--reason …")),
        ("relay", "cancel --reason x --yes"),
        ("relay", "replay --reason x --backfill --all"),
        ("relay", "replay --reason x --entity USER"),
        ("relay", "retry --reason x --api x"),
        ("relay", "retry --reason x --route everythin"),
        ("relay", "replay --reason x --since yesterday"),
        ("relay", "pause --reason x"),
        ("relay", "continue --command 9"),
        ("inbox", "erase --source trivor --entity USER/u1"),
        ("inbox", "erase --source trivore --entity USER"),
        ("inbox", f"{shlex.join(PERSON)} --reason … --yes"),
        ("inbox", f"{shlex.join(PERSON)} --reason {shlex.quote(f'{ID} asked')} --yes"),
        ("inbox", "show 1 --at 2999-01-01"),
    ],
)
def test_wrong_use_is_status_2_and_changes_nothing(
    sqlite_place: Site, sqlite_engine: Engine, side: str, command: str
) -> None:
    ended = typed(sqlite_place, *shlex.split(command), side=side)
    assert (ended.status, ended.stdout, bool(ended.stderr)) == (2, "", True)
    assert count(sqlite_engine, "relay_command") == 0


def test_a_pause_is_listed_with_who_and_why_until_it_is_over(sqlite_place: Site, sqlite_engine: Engine) -> None:
    place, of_audit = sqlite_place, ("--destination", "audit")
    of_one = ("--source", "trivore", "--entity", "USER/u|1")
    assert typed(place, "pause", *of_audit)[:2] == (0, "open deliveries behind it: 0\n")
    assert count(sqlite_engine, "gate") == 0
    assert typed(place, "pause", *of_audit, *MAINTENANCE).stderr == "paused\n"
    typed(place, "pause", *of_one, "--reason", "odd", "--yes")
    listed = json.loads(typed(place, "status", "--json").stdout)["gates"]
    assert [(row["kind"], row["name"], row["state"], row["by"], row["why"]) for row in listed] == [
        ("destination", "audit", "paused", "kim", "maintenance"),
        ("entity", "trivore|USER|u\\|1", "paused", "kim", "odd"),
    ]
    again = typed(place, "pause", *of_audit, *MAINTENANCE)
    assert (again.status, again.stderr.splitlines()[0]) == (0, "it is paused already")
    for gate in (of_audit, of_one):
        assert typed(place, "resume", *gate, *MAINTENANCE).stderr.splitlines()[-1] == "resumed"
    assert count(sqlite_engine, "gate") == 0


def test_a_repair_is_followed_by_a_retry(place: Site, database_url: str, engine: Engine) -> None:
    """The other commands and the end of a pause name it; it makes the attempts that wait due."""
    fail_once(engine, database_url, [(f"u{n}", moment(n)) for n in range(7)])
    for other in (("replay", "--all"), ("unblock", "--route", "everything")):
        assert "`relay retry` with the same conditions" in typed(place, *other, *BECAUSE).stderr

    typed(place, "pause", "--destination", "audit", *MAINTENANCE)
    plan = typed(place, "retry", "--status", "503", *BECAUSE)
    assert (plan.status, "7 deliveries would be retried" in plan.stderr) == (0, True)
    assert "`relay resume --destination audit` ends that" in plan.stderr
    resumed = typed(place, "resume", "--destination", "audit", *MAINTENANCE)
    assert resumed.stdout == "open deliveries behind it: 7\n"
    assert "relay retry --destination audit --reason '…'" in resumed.stderr

    done = json.loads(typed(place, "retry", "--seq", "1", *BECAUSE, "--yes", "--json").stdout)
    assert (done["count"], done["state"], done["affected"], done["failed"]) == (1, "done", 1, 0)
    assert typed(place, "retry", "--destination", "audit", *BECAUSE, "--yes").status == 0
    asked = [fact["detail"] for fact in facts(engine) if fact["kind"] == "rescheduled"]
    assert [(detail["who"], detail["why"]) for detail in asked] == [("kim", "the service is back")] * 7


def test_commands_are_listed_with_who_asked_why_and_the_answer(sqlite_place: Site, sqlite_engine: Engine) -> None:
    typed(sqlite_place, "pause", "--destination", "audit", *MAINTENANCE)
    with sqlite_engine.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO relay_command (kind, selection, reason, dry_run)"
            """ VALUES ('replay', '{"route": "everything"}', 'only a look', true)"""
        )
    asked, done = json.loads(typed(sqlite_place, "commands", "--json", side="inbox").stdout)
    assert (asked["id"], asked["kind"], asked["state"], asked["dry_run"]) == (2, "replay", "asked", True)
    assert asked["selection"] == {"route": "everything"}
    assert (done["asked_by"], done["reason"], done["answer"]) == ("kim", "maintenance", "paused")
    assert "maintenance" not in typed(sqlite_place, "commands", "--state", "asked", side="inbox").stdout
    assert json.loads(typed(sqlite_place, "commands", "1", "--json", side="inbox").stdout)["kind"] == "pause"
    assert typed(sqlite_place, "commands", "9", side="inbox").status == 1


def test_an_event_is_shown_as_it_was_at_an_earlier_time(
    sqlite_place: Site, sqlite_database_url: str, sqlite_engine: Engine
) -> None:
    give_up(sqlite_engine, sqlite_database_url, [("u1", moment(0))])
    ((arrived, died),) = (
        row.values() for row in rows(sqlite_engine, "SELECT received_at, at FROM inbox JOIN delivery_log USING (seq)")
    )
    for at, state, number in ((arrived, "open", 0), (died, "dead", 1)):
        ended = typed(sqlite_place, "show", "1", "--at", str(at).replace(" ", "T"), "--json", side="inbox")
        event = json.loads(ended.stdout)
        assert [(row["state"], row["attempts"]) for row in event["deliveries"]] == [(state, number)]
        assert (len(event["facts"]), event["removed"], "gates" in event) == (number, [], False)
    before = typed(sqlite_place, "show", "1", "--at", "2020-01-01", side="inbox")
    assert (before.status, before.stdout) == (1, "")


# --- erasure


def test_a_person_is_erased_after_the_plan_and_once(place: Site, engine: Engine) -> None:
    live(Steps(engine))
    document = json.loads(typed(place, *PERSON, "--json", side="inbox").stdout)
    figures = {each["name"]: each["count"] for each in document["figures"]}
    assert (document["count"], figures["payloads"]) == (5, 5)
    assert traces_in(engine)
    done = typed(place, *PERSON, "--reason", "request 2026-17", "--yes", side="inbox")
    assert (done.status, done.stderr.splitlines()[-1]) == (0, "5 events erased")
    assert traces_in(engine) == []
    (command,) = rows(engine, "SELECT asked_by, state, affected FROM relay_command WHERE kind = 'erase'")
    assert command == {"asked_by": "kim", "state": "done", "affected": 5}
    again = typed(place, *PERSON, "--reason", "request 2026-17", "--yes", side="inbox")
    assert (again.status, "5 left out: events of it were erased before" in again.stderr) == (1, True)


def test_open_deliveries_keep_an_erasure_back_until_the_named_command_ends_them(
    sqlite_place: Site, sqlite_database_url: str, sqlite_engine: Engine
) -> None:
    give_up(sqlite_engine, sqlite_database_url, [("u1", moment(1))])
    erasing = ("erase", "--source", "trivore", "--entity", "USER/u1", "--reason", "asked", "--yes")
    refused = typed(sqlite_place, *erasing, side="inbox")
    assert (refused.status, count(sqlite_engine, "relay_command")) == (1, 0)
    command = shlex.split(refused.stderr[refused.stderr.index("relay cancel") :])[1:]
    assert typed(sqlite_place, *command).status == 2, "the reason is still to be written"
    command[command.index("…")] = "asked"
    assert typed(sqlite_place, *command).status == 0
    assert typed(sqlite_place, *erasing, side="inbox").status == 0


def test_after_an_interrupt_a_command_ends_with_1_and_goes_on_when_it_is_resumed(
    sqlite_place: Site, sqlite_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    live(Steps(sqlite_engine))
    monkeypatch.setattr(erasure, "EVENTS_OF_A_STEP", 2)
    act, acts = erasure.erase_step, iter([False, True])

    def interrupted(*arguments: object, **named: object) -> StepDone:
        if next(acts, False):
            raise KeyboardInterrupt
        return act(*arguments, **named)  # type: ignore[arg-type]  # passed on

    monkeypatch.setattr(erasure, "erase_step", interrupted)
    stopped = typed(sqlite_place, *PERSON, "--reason", "asked", "--yes", side="inbox")
    assert (stopped.status, stopped.stderr.splitlines()[-1]) == (
        1,
        "stopped after 2; `relay continue --command 2` goes on",
    )
    assert rows(sqlite_engine, "SELECT state FROM relay_command WHERE kind = 'erase'") == [{"state": "cancelled"}]
    resumed = typed(sqlite_place, "continue", "--command", "2", "--reason", "asked", "--yes")
    assert (resumed.status, traces_in(sqlite_engine)) == (0, [])
