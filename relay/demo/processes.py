"""Child processes that are never left behind, and whose output is kept for when something is wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

_KILL_SECONDS = 5.0
_TAIL_LINES = 12


class DemoError(Exception):
    """The demo can't go on; the text says what to do."""


class Child:
    """A running `python ARGUMENT...`. Main thread only: on Linux the child ends when the thread that made it does.

    It is the leader of a process group of its own, so that Ctrl-C in a terminal reaches only the demo, which then stops
    its children in order.
    """

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        *,
        folder: Path,
        environment: Mapping[str, str],
        pass_fds: Sequence[int] = (),
    ) -> None:
        """Starts it in `folder`; what it says is appended to `NAME.log` there."""
        self.name = name
        self.log = folder / f"{name}.log"
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603  # our own Python, our own arguments
                [sys.executable, "-m", "relay.demo.child", str(os.getpid()), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env=dict(environment),
                pass_fds=pass_fds,
                process_group=0,
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def check(self) -> None:
        """Make sure that it has not ended.

        Raises:
            DemoError: it has; the text holds the end of its log.
        """
        if not self.running:
            raise DemoError(
                f"the {self.name} has ended ({_ending(self._process.returncode)}); the end of {self.log}:\n{self.tail()}"
            )

    def tail(self) -> str:
        """The last lines of its log."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(f"  {line}" for line in lines[-_TAIL_LINES:]) or "  (empty)"

    def stop(self, grace_seconds: float) -> bool:
        """End it with SIGTERM, and with its whole group by SIGKILL if it takes too long. Whether it ended in order."""
        if not self.running:
            return self._process.returncode == 0
        self._process.terminate()
        try:
            return self._process.wait(grace_seconds) == 0
        except subprocess.TimeoutExpired:
            os.killpg(self.pid, signal.SIGKILL)
            self._process.wait(_KILL_SECONDS)
            return False

    def kill(self) -> None:
        """End it with SIGKILL: it has no chance to tidy up."""
        self._process.kill()
        self._process.wait(_KILL_SECONDS)


def _ending(status: int) -> str:
    return f"by {signal.Signals(-status).name}" if status < 0 else f"with exit status {status}"
