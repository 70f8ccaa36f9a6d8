"""`relay demo` as a user runs it: real processes, a real kill, and nothing left behind."""

from __future__ import annotations

import json
import os
import re
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from relay.demo.workspace import prepare_database
from tests.helpers.filling import fill
from tests.helpers.processes import Program, invoke

WAIT = 120.0
SOON = 30.0

FEWER_CHANGES = "from relay.demo import run; run.CHANGES = 120; run.KILL_AFTER, run.RESTART_AFTER = 40, 60"
FEW_CHANGES = "from relay.demo import run; run.CHANGES = 40; run.KILL_AFTER = run.RESTART_AFTER = 1_000"
SHORT_BURST = "from relay.demo import run; run.BURST = 8"
WRONG_MAPPING = """\
from relay.demo import workspace
workspace._CONFIGURATION = workspace._CONFIGURATION.replace("entity.mobiles[0].number", "entity.name.givenName")
"""
BLIND = """\
from relay.demo.commands import RelayCommands
RelayCommands.sweep = lambda self: 0
RelayCommands.replay_orphans = lambda self, busy: 0
"""
CREDULOUS = """\
from relay.demo import stack, workspace
stack.SLOW_SHARE = 1
workspace._CONFIGURATION = workspace._CONFIGURATION.replace(', tolerance = "0s"', "")
"""
BROKEN_FILE = """\
from relay.demo import workspace
workspace._CONFIGURATION = workspace._CONFIGURATION.replace("preset =", "pre_set =")
"""


def command(*arguments: str, before: str = "") -> list[str]:
    """`relay demo`, after some Python that makes the run another one."""
    if not before:
        return [sys.executable, "-m", "relay", "demo", *arguments]
    return [sys.executable, "-c", f"{before}\nfrom relay.cli.main import main\nmain()", "demo", *arguments]


def run(*arguments: str, before: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments, before=before), capture_output=True, text=True, timeout=WAIT, check=False)


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Program]:
    """A `relay demo` that has said what runs where."""
    program = Program(command("--folder", str(tmp_path), before=SHORT_BURST), log=tmp_path / "demo.log", environment={})
    try:
        program.writes("\nend it", within=WAIT)
        yield program
    finally:
        program.clean_up()


def pids(demo: Program) -> list[int]:
    """The receiver's and the relay's."""
    found = [int(number) for number in re.findall(r"\bpid (\d+)", demo.output.partition("\nend it")[0])]
    assert len(found) == 2, demo.output
    return found


@pytest.mark.parametrize(
    ("database_url", "before", "changes"),
    [
        ("sqlite", FEWER_CHANGES, 120),
        pytest.param("sqlite", "", 240, marks=pytest.mark.long),
        pytest.param("postgres", "", 240, marks=pytest.mark.long),
    ],
    indirect=["database_url"],
    ids=["fewer changes", "sqlite", "postgres"],
)
def test_once_ends_well_when_both_services_agree(database_url: str, before: str, changes: int, tmp_path: Path) -> None:
    """One call in ten failing, answers lost, the relay killed over its work: nothing is missing."""
    options = ("--once", "--json", "--seed", "11", "--folder", str(tmp_path / "demo"), "--database", database_url)
    ended = run(*options, before=before)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    summary = json.loads(ended.stdout)
    assert summary["agree"]
    assert summary["differences"] == []
    assert summary["changes"] >= changes
    assert summary["changes"] == summary["created"] + summary["updated"] + summary["deleted"]
    assert summary["events"] + summary["rearmed"] + summary["replayed"] == (
        summary["delivered"] + summary["superseded"] + summary["unchanged"]
    )
    assert summary["deleted"] > 0
    assert summary["duplicates"] > 0
    assert summary["calls_failed_503"] > 0
    assert summary["in_flight_when_killed"] > 0
    assert summary["rescued"] > 0
    assert summary["unchanged"] > 0
    assert summary["stale_reads"] > 0
    assert summary["swept"] == summary["unreported"] > 0
    assert summary["orphans"] == 1
    assert summary["changes"] == summary["events"] + summary["orphans"], "all but the deletion that none told of"
    assert (summary["in_sync"] > summary["entities"], summary["not_in_sync"]) == (True, 0)
    assert (summary["still_open"], summary["dead"], summary["webhooks_unsent"]) == (0, 0, 0)


@pytest.mark.long
def test_once_exits_1_with_the_differences_when_the_services_do_not_agree(tmp_path: Path) -> None:
    """The negative controls: a mapping that puts the wrong thing into a field, and sweeps that find nothing."""
    ended = run("--once", "--seed", "1", "--folder", str(tmp_path), before=f"{FEW_CHANGES}\n{WRONG_MAPPING}\n{BLIND}")
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert "The services do not agree" in ended.stdout
    assert "3 entities that `relay plan` would change" in ended.stdout, "of the one who was created it has never heard"
    for difference in (
        r"contacts +[0-9a-f]{24} +phone +\+44\d+ +[A-Z][a-z]+",
        r"contacts +[0-9a-f]{24} +last_name +\S+-Moe +\S+",
        r"contacts +[0-9a-f]{24} +\(whole record\) +there +missing",
        r"contacts +[0-9a-f]{24} +\(whole record\) +deleted +contact-\d+",
        r"teams +[0-9a-f]{24} +name ",
    ):
        assert re.search(difference, ended.stdout), (difference, ended.stdout)
    assert "--seed 1" in ended.stdout


@pytest.mark.long
def test_without_a_tolerance_what_was_read_too_early_is_a_difference(tmp_path: Path) -> None:
    """The negative control of stale reads: each update is read before it is there."""
    ended = run("--once", "--json", "--seed", "3", "--folder", str(tmp_path), before=f"{FEW_CHANGES}\n{CREDULOUS}")
    assert ended.returncode == 1, ended.stdout + ended.stderr
    summary = json.loads(ended.stdout)
    assert summary["stale_reads"] == 0
    assert summary["not_in_sync"] == len({each["external_id"] for each in summary["differences"]}) > 0


def test_a_part_that_does_not_start_is_named_with_the_end_of_its_log(tmp_path: Path) -> None:
    ended = run("--once", "--folder", str(tmp_path), before=BROKEN_FILE)
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert "the relay has ended" in ended.stderr
    assert "pre_set" in ended.stderr


@pytest.mark.long
def test_a_signal_ends_everything_in_order(demo: Program, tmp_path: Path) -> None:
    children = pids(demo)
    assert re.search(r"^\S+ call +POST +201 /contacts", demo.output, re.MULTILINE), demo.output
    demo.writes("groups-to-teams  ", within=WAIT)
    for expected in (
        "change +UPDATE .* no webhook: ",
        r"command sweep +USER .*2 missed, 2 added",
        "an orphan",
        r"users-to-contacts +\d+ entities compared: in sync",
    ):
        assert re.search(expected, demo.output), (expected, demo.output)
    assert demo.stop(within=SOON) == 0, demo.output
    assert "stopped in order after SIGTERM" in demo.output
    for pid in children:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert " stopped node=" in (tmp_path / "relay.log").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children that their parent has died")
@pytest.mark.long
def test_even_a_killed_demo_leaves_no_process_behind(demo: Program) -> None:
    watched = [os.pidfd_open(pid) for pid in pids(demo)]
    demo.kill()
    try:
        for descriptor in watched:
            assert select.select([descriptor], [], [], SOON)[0], "it still runs"
    finally:
        for descriptor in watched:
            os.close(descriptor)


def test_a_used_database_is_refused_before_anything_starts(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'inbox.db'}"
    prepare_database(url).dispose()
    fill(url, [("u1", "2026-01-01T00:00:00Z")])
    ended = invoke("relay", "demo", "--once", "--folder", str(tmp_path))
    assert ended.status == 2
    assert "has events already" in ended.stderr
    assert "name an empty database with --database" in ended.stderr
    assert "starting the relay" not in ended.stdout


def test_json_without_once_is_wrong_use() -> None:
    ended = invoke("relay", "demo", "--json")
    assert (ended.status, "add --once" in ended.stderr) == (2, True)
