"""The `sqlite3` shell of a DBA beside a running receiver or relay."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.helpers import machine


def shell() -> Path:
    """The program."""
    return machine.program("sqlite3")


def asked(where: str, *commands: str) -> str:
    """Return the output of a shell that runs these commands and ends."""
    done = subprocess.run(
        [shell(), "-batch", where, *commands], capture_output=True, text=True, check=False, timeout=30
    )
    return (done.stdout + done.stderr).strip()


class OpenShell:
    """A shell that stays open, as one in which somebody has gone to lunch."""

    def __init__(self, where: str) -> None:
        self._process = subprocess.Popen(
            [shell(), "-batch", where],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def types(self, command: str) -> list[str]:
        """Run a command to its end; the lines of its output."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{command}\n.print end of the command\n")
        self._process.stdin.flush()
        lines: list[str] = []
        while (line := self._process.stdout.readline().rstrip("\n")) != "end of the command":
            assert self._process.poll() is None, lines
            lines.append(line)
        return lines

    def close(self) -> None:
        """End it; an open transaction is rolled back."""
        with self._process as process:
            process.kill()


@contextlib.contextmanager
def opened(where: str) -> Iterator[OpenShell]:
    """A shell as long as the block runs."""
    made = OpenShell(where)
    try:
        yield made
    finally:
        made.close()
