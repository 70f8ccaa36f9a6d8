"""`relay demo` as a user runs it: real processes, a real kill, and nothing left behind."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.processes import Program, invoke

WAIT = 150.0
SOON = 30.0

BROKEN_FILE = """\
from relay.demo import run
right = run.configuration
run.configuration = lambda **values: right(**values).replace("preset =", "pre_set =")
"""
SHORT_ROUND = "from relay.demo import run; run.CHANGES, run.KILL_AFTER = 9, 5"


def command(*arguments: str, before: str = "") -> list[str]:
    """`relay demo`, after some Python that makes the run another one."""
    return [sys.executable, "-c", f"{before}\nfrom relay.cli.main import main\nmain()", "demo", *arguments]


def run(*arguments: str, before: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments, before=before), capture_output=True, text=True, timeout=WAIT, check=False)


def test_it_ends_well_when_both_services_agree(tmp_path: Path) -> None:
    """One call in ten failing, answers lost, the relay killed over its work: nothing is missing, no orphan is left."""
    ended = run("--folder", str(tmp_path), before=SHORT_ROUND)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    for expected in (
        r"killed the relay \(SIGKILL\)",
        r"^ +trivore +USER +\d+ +1 +1 ",
        r"^ +trivore +GROUP +\d+ +1 +1 ",
        r"^Both services agree in all fields",
    ):
        assert re.search(expected, ended.stdout, re.MULTILINE), (expected, ended.stdout)
    assert len(re.findall(r"^ +\d+ entit\w+ compared: in sync$", ended.stdout, re.MULTILINE)) == 2
    assert "call    DELETE 204" in ended.stdout.partition("command replay")[2], (
        "the counterpart of the deleted one is gone"
    )
    assert (tmp_path / "inbox.toml").stat().st_mode & 0o777 == 0o600


def test_a_part_that_does_not_start_is_named_with_the_end_of_its_log(tmp_path: Path) -> None:
    ended = run("--folder", str(tmp_path), before=BROKEN_FILE)
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert "has ended" in ended.stderr
    assert "pre_set" in ended.stderr


@pytest.mark.long
def test_a_signal_ends_everything_in_order(tmp_path: Path) -> None:
    demo = Program(
        command("--stay", "--folder", str(tmp_path / "demo"), before=SHORT_ROUND), log=tmp_path / "log", environment={}
    )
    try:
        demo.writes("\nend it", within=WAIT)
        children = [int(number) for number in re.findall(r"\bpid (\d+)", demo.output)]
        assert len(children) == 2, demo.output
        assert demo.stop(within=SOON) == 0, demo.output
    finally:
        demo.clean_up()
    assert "stopped in order" in demo.output
    for pid in children:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert " stopped node=" in (tmp_path / "demo" / "relay.log").read_text()


def test_a_folder_with_something_in_it_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "inbox.toml").write_text("[database]\n")
    ended = invoke("relay", "demo", "--folder", str(tmp_path))
    assert (ended.status, "is not empty, and stays as it is" in ended.stderr) == (2, True)
    assert (tmp_path / "inbox.toml").read_text() == "[database]\n"
