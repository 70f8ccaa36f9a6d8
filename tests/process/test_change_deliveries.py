"""Operator commands for deliveries: plans first, the operator and the reason, and an interruption in mid-work."""

from __future__ import annotations

import json

from sqlalchemy import Engine

from tests.helpers.processes import Ended, Site
from tests.helpers.relaying import fail_once, give_up
from tests.helpers.tables import count, facts, open_states
from tests.helpers.webhooks import moment

KIM = {"LOGNAME": "kim"}
MAINTENANCE = ("--reason", "maintenance", "--yes")


def relay(place: Site, *arguments: str) -> Ended:
    return place.invoke("relay", *arguments, **KIM)


def test_a_replay_shows_its_plan_and_does_it_when_it_is_told_to(place: Site, database_url: str, engine: Engine) -> None:
    give_up(engine, database_url, [(f"u{n}", moment(n)) for n in range(7)])
    plan = relay(place, "replay", "--cause", "mapping", "--reason", "mended")
    assert plan.status == 0, plan.stderr
    assert plan.stderr == "7 deliveries would be replayed, 5 of them shown; --yes does it\n"
    groups, sample = plan.stdout.split("\n\n")
    assert [line.split() for line in groups.splitlines()][1] == ["7", "everything", "dead", "mapping"]
    assert len(sample.splitlines()) == 1 + 5
    assert open_states(engine) == {"dead": 7}
    document = json.loads(relay(place, "replay", "--all", "--reason", "mended", "--json").stdout)
    assert (document["count"], len(document["deliveries"]), document["left_out"]) == (7, 7, [])
    assert document["groups"][0]["cause"] == "mapping"

    done = relay(place, "replay", "--cause", "mapping", "--reason", "mended", "--yes")
    assert done.status == 0, done.stderr
    assert done.stderr.endswith("7 deliveries replayed\n")
    assert open_states(engine) == {"ready": 7}
    assert {(fact["detail"]["who"], fact["detail"]["why"]) for fact in facts(engine) if fact["kind"] == "replayed"} == {
        ("kim", "mended")
    }


def test_a_command_about_nothing_says_so_and_exits_with_1_with_or_without_yes(place: Site) -> None:
    because = ("--reason", "a test")
    for ended, said in (
        (relay(place, "replay", "--all", *because), "nothing to replay\n"),
        (relay(place, "replay", "--all", *because, "--yes"), "nothing to replay\n"),
        (relay(place, "cancel", "--seq", "1", *because), "nothing to cancel\n"),
        (relay(place, "unblock", "--all", *because), "nothing is blocked\n"),
        (relay(place, "retry", "--seq", "999", *because), "no attempt waits for later\nthere is no event 999\n"),
        (relay(place, "retry", "--all", *because, "--yes"), "no attempt waits for later\na delivery that is due"),
    ):
        assert (ended.status, ended.stdout, ended.stderr.startswith(said)) == (1, "", True), ended.stderr
    empty = relay(place, "replay", "--all", *because, "--json")
    assert (empty.status, json.loads(empty.stdout)["count"]) == (1, 0)


def test_a_plan_needs_no_reason_but_its_execution_does(sqlite_place: Site) -> None:
    assert relay(sqlite_place, "cancel", "--route", "everything").status == 1, "there is nothing to cancel"
    for given in ((), ("--reason", ""), ("--reason", "…")):  # as the hint has it
        done = relay(sqlite_place, "cancel", "--route", "everything", *given, "--yes")
        assert (done.status, "error: --reason: say why" in done.stderr) == (2, True)


def test_wrong_use_is_status_2_and_says_what_to_do(sqlite_place: Site) -> None:
    for arguments, said in (
        (("cancel", "--reason", "x", "--yes"), "a cancel without a condition is about everything"),
        (("replay", "--reason", "x", "--backfill", "--all"), "a backfill of which route? Configured are: everything"),
        (("replay", "--reason", "x", "--entity", "USER"), "--entity must be TYPE/ID"),
        (("retry", "--route", "everythin", "--reason", "x"), "did you mean 'everything'?"),
        (("replay", "--cause", "exhaustd", "--reason", "x"), "did you mean 'exhausted'?"),
        (("retry", "--api", "x", "--reason", "x"), "there is no api 'x'; none is configured"),
        (("replay", "--since", "yesterday", "--reason", "x"), "is no time"),
        (("pause", "--reason", "x"), "name one of route, destination, api and source"),
        (("continue", "--command", "9"), "there is no command 9"),
    ):
        ended = relay(sqlite_place, *arguments)
        assert (ended.status, said in ended.stderr) == (2, True), ended.stderr


def test_a_pause_is_listed_with_who_and_why_until_it_is_over(place: Site, engine: Engine) -> None:
    plan = relay(place, "pause", "--destination", "audit")
    assert (plan.status, plan.stdout) == (0, "open deliveries behind it: 0\n")
    assert plan.stderr == "--reason '…' --yes does it\n"
    paused = relay(place, "pause", "--destination", "audit", *MAINTENANCE)
    assert (paused.status, paused.stderr) == (0, "paused\n")
    relay(place, "pause", "--source", "trivore", "--entity", "USER/u|1", "--reason", "odd", "--yes")
    listed = json.loads(relay(place, "status", "--json").stdout)["gates"]
    assert [(row["kind"], row["name"], row["state"], row["by"], row["why"]) for row in listed] == [
        ("destination", "audit", "paused", "kim", "maintenance"),
        ("entity", "trivore|USER|u\\|1", "paused", "kim", "odd"),
    ]
    again = relay(place, "pause", "--destination", "audit", *MAINTENANCE)
    assert (again.status, again.stderr.splitlines()[0]) == (0, "it is paused already")
    assert again.stderr.endswith(" by kim: maintenance\n")
    assert relay(place, "resume", "--destination", "audit", *MAINTENANCE).stderr.splitlines()[-1] == "resumed"
    relay(place, "resume", "--source", "trivore", "--entity", "USER/u|1", *MAINTENANCE)
    assert count(engine, "gate") == 0


def test_a_repair_is_followed_by_a_retry(place: Site, database_url: str, engine: Engine) -> None:
    """The other commands and the end of a pause name it; it makes the attempts that wait due."""
    fail_once(engine, database_url, [(f"u{n}", moment(n)) for n in range(7)])
    because = ("--reason", "the service is back")
    meant = relay(place, "replay", "--all", *because)
    assert (meant.status, meant.stderr.splitlines()) == (
        1,
        [
            "nothing to replay",
            "attempts are waiting: `relay retry` with the same conditions makes them due at once",
        ],
    )
    assert "`relay retry` with the same conditions" in relay(place, "unblock", "--route", "everything", *because).stderr

    relay(place, "pause", "--destination", "audit", *MAINTENANCE)
    plan = relay(place, "retry", "--status", "503", *because)
    assert plan.status == 0, plan.stderr
    assert " by kim: maintenance. `relay resume --destination audit` ends that" in plan.stderr
    assert {line.split()[3] for line in plan.stdout.splitlines()[3:] if line} <= {"state", "retrying"}, plan.stdout
    assert "7 deliveries would be retried, 5 of them shown; --yes does it" in plan.stderr

    resumed = relay(place, "resume", "--destination", "audit", *MAINTENANCE)
    assert resumed.stdout == "open deliveries behind it: 7\n"
    assert "relay retry --destination audit --reason '…'" in resumed.stderr
    assert resumed.stderr.splitlines()[-1] == "resumed"

    done = json.loads(relay(place, "retry", "--seq", "1", *because, "--yes", "--json").stdout)
    assert (done["count"], done["state"], done["affected"], done["failed"]) == (1, "done", 1, 0)
    rest = relay(place, "retry", "--destination", "audit", *because, "--yes")
    assert rest.stderr.splitlines()[-1] == "6 deliveries retried"
    asked = [fact["detail"] for fact in facts(engine) if fact["kind"] == "rescheduled"]
    assert [(detail["who"], detail["why"]) for detail in asked] == [
        ("kim", "the service is back"),
    ] * 7


def test_commands_are_listed_with_who_asked_why_and_the_answer(place: Site, engine: Engine) -> None:
    relay(place, "pause", "--destination", "audit", *MAINTENANCE)
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO relay_command (kind, selection, reason, dry_run)"
            """ VALUES ('replay', '{"route": "everything"}', 'only a look', true)"""
        )
    listed = json.loads(place.invoke("inbox", "commands", "--json").stdout)
    assert [(row["id"], row["kind"], row["state"], row["dry_run"]) for row in listed] == [
        (2, "replay", "asked", True),
        (1, "pause", "done", False),
    ]
    assert (listed[1]["asked_by"], listed[1]["reason"], listed[1]["answer"]) == ("kim", "maintenance", "paused")
    assert listed[0]["selection"] == {"route": "everything"}
    table = place.invoke("inbox", "commands", "--state", "asked").stdout
    assert ("route=everything" in table, "maintenance" in table) == (True, False)
    one = json.loads(place.invoke("inbox", "commands", "1", "--json").stdout)
    assert (one["id"], one["kind"]) == (1, "pause")
    absent = place.invoke("inbox", "commands", "9")
    assert (absent.status, absent.stderr) == (1, "there is no command 9\n")
