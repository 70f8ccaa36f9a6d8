"""Programs of units, started as systemd would: read-only file system, no capabilities, no executable memory, sockets passed on."""

from __future__ import annotations

import contextlib
import os
import shlex
import socket
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.deploy.shipped import INSTALLED, unit
from tests.helpers.processes import Program

_READ_ONLY = """
set -e
mount --bind "$STATE" "$STATE"
mount -o remount,bind,ro /
exec setpriv --no-new-privs --bounding-set=-all --inh-caps=-all -- "$@"
"""
_AS_A_SERVICE = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(65, 1, 0, 0, 0)  # PR_SET_MDWE, of MemoryDenyWriteExecute=
passed, *command = sys.argv[1:]
if passed:
    os.dup2(int(passed), 3)
    os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
os.execv(command[0], command)
"""
NOTHING: Mapping[str, str] = {}


class Services:
    """Runs units in a folder: `inbox.toml` lies there, and `state` is all that they may write."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.state = folder, folder / "state"
        self.state.mkdir()
        self._programs: list[Program] = []

    def start(
        self, name: str, *options: str, passed: socket.socket | None = None, environment: Mapping[str, str] = NOTHING
    ) -> Program:
        """Run ExecStart of a unit. Without root it runs where it may write."""
        first, *rest = shlex.split(unit(f"inbox-relay-{name}.service")["ExecStart"])
        assert first.startswith(INSTALLED)
        program = Path(sys.executable).parent / first.removeprefix(INSTALLED)
        command = [
            sys.executable,
            "-c",
            _AS_A_SERVICE,
            str(passed.fileno()) if passed else "",
            str(program),
            *rest,
            *options,
        ]
        if os.geteuid() == 0:
            command = ["unshare", "--mount", "sh", "-c", _READ_ONLY, "sh", *command]
        self._programs.append(
            Program(
                command,
                log=self.folder / f"{len(self._programs)}-{name}.log",
                environment={"STATE": str(self.state), "INBOX_CONFIG": str(self.folder / "inbox.toml"), **environment},
                folder=self.folder,
                passed=passed,
            )
        )
        return self._programs[-1]

    def logs(self) -> Mapping[str, str]:
        """The output of every program."""
        return {program.log.name: program.output for program in self._programs}

    def clean_up(self) -> None:
        """End whatever still runs."""
        for program in self._programs:
            program.clean_up()


@contextlib.contextmanager
def services(folder: Path) -> Iterator[Services]:
    """Services as long as the block runs."""
    made = Services(folder)
    try:
        yield made
    finally:
        made.clean_up()


@contextlib.contextmanager
def service_manager(path: Path) -> Iterator[socket.socket]:
    """A socket for NOTIFY_SOCKET."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(path))
        listener.settimeout(60)
        yield listener
