"""The units of deploy/systemd: systemd accepts them, they are well fenced in, and their stop times fit."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.deploy.shipped import GRACE, INSTALLED, UNITS, unit

NAMES = sorted(path.name for path in UNITS.glob("inbox-relay-*.*") if path.is_file())
SERVICES = [name for name in NAMES if name.endswith(".service")]
MOST_EXPOSED = 15
"""Tenths of `systemd-analyze security`, of 100: 12 is what a program has that needs the network, and 92 without hardening."""
TARGETS = ("sysinit", "basic", "sockets", "shutdown", "network-online", "multi-user")

pytestmark = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="no systemd-analyze: nobody looks at deploy/systemd"
)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with the units, and with what they start and wait for."""
    root = tmp_path_factory.mktemp("root")
    units = root / "etc" / "systemd" / "system"
    shutil.copytree(UNITS, units)
    for target in TARGETS:
        (units / f"{target}.target").write_text("[Unit]\nDescription=of any machine\n", encoding="utf-8")
    for program in (f"{INSTALLED}inbox", f"{INSTALLED}relay", "/bin/kill"):
        path = root / program.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#!/bin/sh\n", encoding="utf-8")
        path.chmod(0o755)
    return root


def analyze(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["systemd-analyze", "--no-pager", f"--root={root}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_systemd_finds_no_mistake(installed: Path) -> None:
    done = analyze(installed, "verify", "--man=no", *NAMES)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("name", SERVICES)
def test_each_service_is_fenced_in(installed: Path, name: str) -> None:
    done = analyze(installed, "security", "--offline=yes", f"--threshold={MOST_EXPOSED}", name)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("program", GRACE)
def test_a_reload_is_a_sighup_and_no_unit_gives_up_but_at_a_mistake(program: str) -> None:
    """A connection to the receiver's socket would start it at once, again and again, if it waited for a person."""
    settings = unit(f"inbox-relay-{program}.service")
    assert settings["ExecReload"] == "/bin/kill -HUP $MAINPID"
    assert (settings["Restart"], settings["StartLimitIntervalSec"]) == ("always", "0")
    assert settings.get("RestartPreventExitStatus") == (None if program == "receiver" else "2")


def test_no_service_waits_for_a_migration() -> None:
    """The receiver starts while the database is down; a migration that failed at a boot would keep it from that."""
    for name in NAMES:
        text = (UNITS / name).read_text(encoding="utf-8")
        assert name == "inbox-relay-migrate.service" or "inbox-relay-migrate" not in text, name
