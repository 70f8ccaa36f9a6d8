"""Operator commands for deliveries: plans first, the operator and the reason, and an interruption in mid-work."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import Engine

from relay.delivery.outcome import Failed
from relay.delivery.policy import policies
from relay.store import claim, record, sequence
from relay.store.database import Database
from relay.store.operator.commands import MOST_OPEN
from tests.helpers.downstream import serving
from tests.helpers.evidence import facts, open_states
from tests.helpers.filling import fill
from tests.helpers.reading import count, rows
from tests.helpers.waiting import until
from tests.helpers.webhooks import a_config, config_text, moment

HOPELESS = Failed((), "mapping", "email: no value")


@pytest.fixture
def folder(database_url: str, tmp_path: Path) -> Path:
    (tmp_path / "inbox.toml").write_text(config_text(database_url), encoding="utf-8")
    return tmp_path


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "INBOX_CONFIG": str(folder / "inbox.toml"), "COLUMNS": "200", "LOGNAME": "kim"}


def relay(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "relay", *arguments],
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@contextmanager
def begun(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "relay", *arguments]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment(folder), stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def die(database_url: str, engine: Engine, number: int) -> None:
    """So many deliveries are given up."""
    fill(database_url, [(f"u{n}", moment(n)) for n in range(number)])
    database, known = Database(engine), policies(a_config(database_url))
    while sequence.sequence(database, known, "r1"):
        pass
    while claimed := claim.claim(database, "r1", [(["everything"], 500)]):
        record.record(database, known, "r1", [(delivery, HOPELESS) for delivery in claimed])


def test_a_replay_shows_its_plan_and_does_it_when_it_is_told_to(
    folder: Path, database_url: str, engine: Engine
) -> None:
    die(database_url, engine, 7)
    plan = relay(folder, "replay", "--cause", "mapping", "--reason", "mended")
    assert plan.returncode == 0, plan.stderr
    assert plan.stderr == "7 deliveries would be replayed, 5 of them shown; --yes does it\n"
    assert len(plan.stdout.splitlines()) == 1 + 5
    assert open_states(engine) == {"dead": 7}
    assert len(json.loads(relay(folder, "replay", "--reason", "mended", "--json").stdout)) == 7

    done = relay(folder, "replay", "--cause", "mapping", "--reason", "mended", "--yes")
    assert done.returncode == 0, done.stderr
    assert done.stderr.endswith("7 deliveries were replayed\n")
    assert open_states(engine) == {"ready": 7}
    assert {(fact["detail"]["who"], fact["detail"]["why"]) for fact in facts(engine) if fact["kind"] == "replayed"} == {
        ("kim", "mended")
    }


def test_nothing_to_do_is_said_and_is_no_fault(folder: Path) -> None:
    for command, said in (
        (("replay",), "nothing to replay\n"),
        (("cancel", "--seq", "1"), "nothing to cancel\n"),
        (("unblock",), "nothing is blocked\n"),
        (("pause",), "nothing is held back\n"),
    ):
        reason = [] if command == ("pause",) else ["--reason", "a test"]
        ended = relay(folder, *command, *reason)
        assert (ended.returncode, ended.stderr) == (0, said)


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
def test_wrong_use_is_status_2_and_says_what_to_do(folder: Path, arguments: tuple[str, ...], said: str) -> None:
    ended = relay(folder, *arguments)
    assert ended.returncode == 2
    assert said in ended.stderr


def test_a_pause_is_listed_with_who_and_why_until_it_is_over(folder: Path, engine: Engine) -> None:
    paused = relay(folder, "pause", "--destination", "audit", "--reason", "maintenance")
    assert (paused.returncode, paused.stderr) == (0, "destination audit: paused\n")
    relay(folder, "pause", "--source", "trivore", "--entity", "USER/u|1", "--reason", "odd")
    listed = json.loads(relay(folder, "pause", "--json").stdout)
    assert [(row["kind"], row["name"], row["paused_by"], row["pause_reason"]) for row in listed] == [
        ("destination", "audit", "kim", "maintenance"),
        ("entity", "trivore|USER|u\\|1", "kim", "odd"),
    ]
    assert "held back: destination audit is paused by kim: maintenance" in relay(folder, "status").stderr
    assert (
        relay(folder, "pause", "--destination", "audit", "--reason", "x").stderr
        == "destination audit: was paused already\n"
    )
    assert relay(folder, "resume", "--destination", "audit").stderr == "destination audit: resumed\n"
    relay(folder, "resume", "--source", "trivore", "--entity", "USER/u|1")
    assert count(engine, "gate") == 0


@pytest.mark.long
def test_a_large_replay_can_be_interrupted_and_goes_on_later(
    folder: Path, database_url: str, engine: Engine, tmp_path: Path
) -> None:
    die(database_url, engine, MOST_OPEN + 100)
    with begun(folder, "replay", "--reason", "mended", "--yes") as replay:
        until(lambda: open_states(engine).get("ready") == MOST_OPEN, "as many as may be are open", within=30)
        until(lambda: rows(engine, "SELECT 1 FROM relay_command WHERE answer LIKE 'waits%'"), "it waits")
        replay.send_signal(signal.SIGINT)
        _, told = replay.communicate(timeout=20)
    assert replay.returncode == 1
    assert f"stopped after {MOST_OPEN}; `relay resume --command 1` goes on" in " ".join(told.split())
    with serving(tmp_path / "arrivals.jsonl") as downstream:
        (folder / "inbox.toml").write_text(config_text(database_url, downstream.url), encoding="utf-8")
        assert relay(folder, "run", "--drain").returncode == 0
        assert open_states(engine) == {"dead": 100}
        resumed = relay(folder, "resume", "--command", "1")
        assert (resumed.returncode, resumed.stderr) == (0, f"{MOST_OPEN + 100} deliveries were changed in all\n")
        assert relay(folder, "run", "--drain").returncode == 0
    assert open_states(engine) == {}
