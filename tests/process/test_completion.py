"""Completion in the shells that people use: commands, options, and the names that inbox.toml defines."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FILE = """
[sources.github]
preset = "github"
[sources.shop]
[destinations.tracker]
[routes.issues-to-tracker]
[routes.orders]
"""
BIN = Path(sys.executable).parent
BASH = """
eval "$(relay --show-completion bash)"
COMP_WORDS=({words}) COMP_CWORD={last}
_relay_completion relay
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


def environment(folder: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("INBOX_", "_TYPER"))}
    return kept | {"PATH": f"{BIN}:{kept['PATH']}", "INBOX_CONFIG": str(folder / "inbox.toml")}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "inbox.toml").write_text(FILE)
    return tmp_path


def completed(folder: Path, program: str, shell: str, *words: str) -> list[str]:
    """The answer to the completion script of this shell, asked as that script asks."""
    line = " ".join([program, *words])
    asked = {f"_{program.upper()}_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_ARGS": line}
    asked |= {"COMP_WORDS": line, "COMP_CWORD": str(len(words)), "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    ended = subprocess.run(
        [BIN / program], env=environment(folder) | asked, capture_output=True, text=True, timeout=60, check=True
    )
    return ended.stdout.split()


def test_bash_completes_routes_of_the_configuration(folder: Path) -> None:
    script = BASH.format(words="relay dead --route ''", last=3)
    ended = subprocess.run(
        ["bash", "-c", script], env=environment(folder), capture_output=True, text=True, timeout=60, check=True
    )
    assert ended.stdout.split() == ["issues-to-tracker", "orders"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_completes_commands_and_names(shell: str, folder: Path) -> None:
    assert "dead" in " ".join(completed(folder, "relay", shell, "de"))
    assert "issues-to-tracker" in " ".join(completed(folder, "relay", shell, "dead", "--route", "iss"))
    assert "github" in " ".join(completed(folder, "relay", shell, "replay", "--source", "g"))


def test_a_file_that_cannot_be_read_completes_nothing(folder: Path) -> None:
    (folder / "inbox.toml").write_text("[routes")
    assert completed(folder, "relay", "bash", "dead", "--route", "") == []


@pytest.mark.parametrize("program", ["inbox", "relay"])
def test_each_command_says_its_version(program: str, folder: Path) -> None:
    ended = subprocess.run(
        [BIN / program, "--version"], env=environment(folder), capture_output=True, text=True, timeout=60, check=True
    )
    assert ended.stdout.startswith("inbox-relay 0.")
