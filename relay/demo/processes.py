"""Child processes that are never left behind: `python -m relay.demo.processes PARENT ARGUMENT...` becomes a program.

It becomes `python ARGUMENT...`, and Linux ends that when its parent dies. Elsewhere the demo has to stop it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

_KILL_SECONDS = 5.0
_TAIL_LINES = 12
_PR_SET_PDEATHSIG = 1  # prctl(2); it outlives the exec below


class DemoError(Exception):
    """The demo can't go on; the text says what to do."""


class Child:
    """A running `python ARGUMENT...`. Main thread only: on Linux the child ends when the thread that made it does.

    It leads a process group of its own, so that Ctrl-C in a terminal reaches only the demo, which then stops its
    children in order. Its output is appended to `NAME.log` in the folder.
    """

    def __init__(
        self, name: str, arguments: Sequence[str], folder: Path, environment: Mapping[str, str], *pass_fds: int
    ) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603  # our own Python, our own arguments
                [sys.executable, "-m", "relay.demo.processes", str(os.getpid()), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env=environment,
                pass_fds=pass_fds,
                process_group=0,
            )
        self.pid = self._process.pid

    def check(self) -> None:
        """Raise DemoError with the end of its log when it has ended."""
        status = self._process.poll()
        if status is not None:
            ending = f"by {signal.Signals(-status).name}" if status < 0 else f"with exit status {status}"
            raise DemoError(f"the {self.name} has ended ({ending}); the end of {self.log}:\n{self.tail()}")

    def tail(self) -> str:
        """Return the last lines of its log."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(f"  {line}" for line in lines[-_TAIL_LINES:]) or "  (empty)"

    def stop(self, grace_seconds: float) -> None:
        """End it with SIGTERM, and with its whole group by SIGKILL if it takes too long."""
        self._process.terminate()
        try:
            self._process.wait(grace_seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self.pid, signal.SIGKILL)
            self._process.wait(_KILL_SECONDS)

    def kill(self) -> None:
        """End it with SIGKILL: it has no chance to tidy up."""
        self._process.kill()
        self._process.wait(_KILL_SECONDS)


def main() -> None:
    """Never returns. Exits at once when the parent is dead already."""
    parent, arguments = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit("the program that started this one has died")
    os.execv(sys.executable, [sys.executable, *arguments])  # noqa: S606  # that is what it is for


if __name__ == "__main__":
    main()
