"""Operator commands for deliveries: plans first, the operator and the reason, and an interruption in mid-work."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from sqlalchemy import Engine

from relay.store.operator.commands import MOST_OPEN
from tests.helpers.downstream import serving
from tests.helpers.evidence import facts, open_states
from tests.helpers.filling import give_up
from tests.helpers.processes import RELAY, Ended, Site
from tests.helpers.reading import count, rows
from tests.helpers.waiting import until
from tests.helpers.webhooks import config_text, moment

KIM = {"LOGNAME": "kim"}


def relay(place: Site, *arguments: str) -> Ended:
    return place.invoke("relay", *arguments, **KIM)


def test_a_replay_shows_its_plan_and_does_it_when_it_is_told_to(place: Site, database_url: str, engine: Engine) -> None:
    give_up(engine, database_url, [(f"u{n}", moment(n)) for n in range(7)])
    plan = place.run("relay", "replay", "--cause", "mapping", "--reason", "mended")
    assert plan.status == 0, plan.stderr
    assert plan.stderr == "7 deliveries would be replayed, 5 of them shown; --yes does it\n"
    assert len(plan.stdout.splitlines()) == 1 + 5
    assert open_states(engine) == {"dead": 7}
    assert len(json.loads(relay(place, "replay", "--reason", "mended", "--json").stdout)) == 7

    done = relay(place, "replay", "--cause", "mapping", "--reason", "mended", "--yes")
    assert done.status == 0, done.stderr
    assert done.stderr.endswith("7 deliveries were replayed\n")
    assert open_states(engine) == {"ready": 7}
    assert {(fact["detail"]["who"], fact["detail"]["why"]) for fact in facts(engine) if fact["kind"] == "replayed"} == {
        ("kim", "mended")
    }


def test_nothing_to_do_is_said_and_is_no_fault(place: Site) -> None:
    because = ("--reason", "a test")
    for ended, said in (
        (relay(place, "replay", *because), "nothing to replay\n"),
        (place.run("relay", "cancel", "--seq", "1", *because), "nothing to cancel\n"),
        (place.run("relay", "unblock", *because), "nothing is blocked\n"),
        (place.run("relay", "pause"), "nothing is held back\n"),
    ):
        assert (ended.status, ended.stderr) == (0, said)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("cancel", "--reason", "x"), "name what is to be cancelled"),
        (("cancel", "--reason", "x", "--yes"), "name what is to be cancelled"),
        (("replay", "--reason", "x", "--all"), "everything of which route? Configured are: everything"),
        (("replay", "--reason", "x", "--entity", "USER"), "--entity must be TYPE/ID"),
        (("pause", "--route", "nobody", "--reason", "x"), "no route 'nobody' is configured; there are: everything"),
        (("pause", "--route", "everything"), "say why with --reason"),
        (("pause", "--entity", "USER/u1", "--reason", "x"), "name one of route, destination, api and source"),
        (("resume",), "name what to resume"),
        (("resume", "--command", "9"), "no command 9 was interrupted"),
    ],
)
def test_wrong_use_is_status_2_and_says_what_to_do(place: Site, arguments: tuple[str, ...], said: str) -> None:
    ended = relay(place, *arguments)
    assert (ended.status, said in ended.stderr) == (2, True)


def test_a_pause_is_listed_with_who_and_why_until_it_is_over(place: Site, engine: Engine) -> None:
    paused = relay(place, "pause", "--destination", "audit", "--reason", "maintenance")
    assert (paused.status, paused.stderr) == (0, "destination audit: paused\n")
    relay(place, "pause", "--source", "trivore", "--entity", "USER/u|1", "--reason", "odd")
    listed = json.loads(relay(place, "pause", "--json").stdout)
    assert [(row["kind"], row["name"], row["paused_by"], row["pause_reason"]) for row in listed] == [
        ("destination", "audit", "kim", "maintenance"),
        ("entity", "trivore|USER|u\\|1", "kim", "odd"),
    ]
    (held, _) = json.loads(relay(place, "status", "--json").stdout)["gates"]
    assert (held["name"], held["state"], held["by"], held["why"]) == ("audit", "paused", "kim", "maintenance")
    assert (
        relay(place, "pause", "--destination", "audit", "--reason", "x").stderr
        == "destination audit: was paused already\n"
    )
    assert place.run("relay", "resume", "--destination", "audit").stderr == "destination audit: resumed\n"
    relay(place, "resume", "--source", "trivore", "--entity", "USER/u|1")
    assert count(engine, "gate") == 0


@pytest.mark.long
def test_a_large_replay_can_be_interrupted_and_goes_on_later(
    place: Site, database_url: str, engine: Engine, tmp_path: Path
) -> None:
    give_up(engine, database_url, [(f"u{n}", moment(n)) for n in range(MOST_OPEN + 100)])
    replay = place.start("replay", *RELAY, "replay", "--reason", "mended", "--yes")
    until(lambda: open_states(engine).get("ready") == MOST_OPEN, "as many as may be are open", within=30)
    until(lambda: rows(engine, "SELECT 1 FROM relay_command WHERE answer LIKE 'waits%'"), "it waits")
    replay.send(signal.SIGINT)
    assert replay.ends() == 1
    assert f"stopped after {MOST_OPEN}; `relay resume --command 1` goes on" in " ".join(replay.output.split())
    with serving(tmp_path / "arrivals.jsonl") as downstream:
        place.configure(config_text(database_url, downstream.url))
        assert place.relay("--drain").ends(within=60) == 0
        assert open_states(engine) == {"dead": 100}
        resumed = relay(place, "resume", "--command", "1")
        assert (resumed.status, resumed.stderr) == (0, f"{MOST_OPEN + 100} deliveries were changed in all\n")
        assert place.relay("--drain").ends(within=60) == 0
    assert open_states(engine) == {}
