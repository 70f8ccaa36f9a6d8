"""Programs under test, with their output and always cleaned up, and commands run to their end."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import count
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from sqlalchemy import Engine
from typer import testing
from typer.main import get_command
from typer.testing import CliRunner

from inbox.db import engine as engines
from relay.cli.inbox import app as inbox_app
from relay.cli.main import app as relay_app
from tests.helpers.waiting import LONGEST_SECONDS, until

GUNICORN = ("-m", "gunicorn", "-c", "python:inbox.gunicorn_settings")
"""Arguments of `python` that serve the receiver."""
RELAY = ("-m", "relay")
INBOX = ("-c", "from relay.cli.inbox import main; main()")
APPS = {"inbox": inbox_app, "relay": relay_app}
PORTS = range(10_240, 32_768)
"""Ports for programs, below Linux' ephemeral ports."""
SHARES = 8
"""Disjoint port ranges, one for each test process, so that a port found free is not taken before its use."""


def gunicorn_after(statements: str) -> tuple[str, ...]:
    """Return arguments of `python` that run these statements and then serve the receiver."""
    return ("-c", f"{statements}; from gunicorn.app.wsgiapp import run; run()", *GUNICORN[2:])


PATIENT = gunicorn_after("from inbox.receiver import writer; writer.ANSWER_WITHIN_SECONDS = 60.0")
"""Arguments for tests that expect no 503, not even on a machine that stalls."""


class Ended(NamedTuple):
    """Exit status and output of a command that has ended."""

    status: int
    stdout: str
    stderr: str


_command = cache(get_command)  # building all commands of a side takes 25 ms of CPU


def invoke(side: str, *arguments: str, **environment: str) -> Ended:
    """Run a command of `inbox` or `relay` in this process, and close the engines that it leaves open."""
    opened: list[Engine] = []
    connect = engines.connect

    def connect_and_remember(url: str, *, application: str, pings: bool = False) -> Engine:
        opened.append(connect(url, application=application, pings=pings))
        return opened[-1]

    with (
        mock.patch.object(engines, "connect", connect_and_remember),
        mock.patch.object(testing, "_get_command", _command),
    ):
        ran = CliRunner().invoke(APPS[side], arguments, env=environment, catch_exceptions=False)
    for engine in opened:
        engine.dispose()
    return Ended(ran.exit_code, ran.stdout, ran.stderr)


class Program:
    """One process in its own session, so that its children end with it."""

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        log: Path,
        environment: Mapping[str, str],
        user: str | None = None,
        folder: Path | None = None,
    ) -> None:
        self.log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **environment},
                user=user,
                cwd=folder,
                start_new_session=True,
            )
        self.pid = self._process.pid

    @property
    def runs(self) -> bool:
        """True until it has ended."""
        return self._process.poll() is None

    @property
    def output(self) -> str:
        """Its output so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    def writes(self, text: str, times: int = 1, within: float = LONGEST_SECONDS) -> None:
        """Wait until it has written `text` so often."""
        until(lambda: self.output.count(text) >= times or not self.runs, f"it writes {text!r}", within=within)
        assert self.output.count(text) >= times, self.output

    def stop(self, within: float = 20.0) -> int:
        """Send SIGTERM and return the exit status. Raises as `ends`."""
        self.send(signal.SIGTERM)
        return self.ends(within)

    def ends(self, within: float = LONGEST_SECONDS) -> int:
        """Wait for its end and return the exit status.

        Raises:
            AssertionError: it still runs after `within` seconds.
        """
        try:
            return self._process.wait(within)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still runs after {within:g} s: {self.log.name}\n{self.output}") from None

    def kill(self) -> None:
        """Send SIGKILL and wait for its end."""
        self._process.kill()
        self._process.wait()

    def children(self) -> list[int]:
        """Return the pids of its children."""
        return children_of(self.pid)

    def clean_up(self) -> None:
        """Kill it and every process of its session."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()


@contextlib.contextmanager
def listening(
    command: Sequence[str | Path], port: int, *, log: Path, environment: Mapping[str, str], user: str | None = None
) -> Iterator[None]:
    """Run a third-party program for the block, once it listens on `port`."""
    program = Program(command, log=log, environment=environment, user=user)
    try:
        until(lambda: not program.runs or listens(port), f"{command[0]} listens")
        assert program.runs, program.output
        yield
        program.send(signal.SIGTERM)
        program.ends()
    finally:
        program.clean_up()


class Site:
    """A folder with an inbox.toml and the programs that run there."""

    def __init__(self, folder: Path, config: str) -> None:
        self.folder = folder
        self._programs: list[Program] = []
        self.environment = {"INBOX_CONFIG": str(folder / "inbox.toml")}
        self.configure(config)

    def configure(self, config: str) -> None:
        """Write the inbox.toml; running programs read it when they reload."""
        (self.folder / "inbox.toml").write_text(config, encoding="utf-8")

    def start(self, name: str, *arguments: str, **environment: str) -> Program:
        """Start `python …` here, with its own log."""
        return self.start_in(None, name, *arguments, **environment)

    def start_in(self, folder: Path | None, name: str, *arguments: str, **environment: str) -> Program:
        """Start `python …` in another working folder."""
        program = Program(
            [sys.executable, *arguments],
            log=self.folder / f"{len(self._programs):02d}-{name}.log",
            environment=self.environment | environment,
            folder=folder,
        )
        self._programs.append(program)
        return program

    def run(self, side: str, *arguments: str, **environment: str) -> Ended:
        """Run a command of `inbox` or `relay` here, as a process."""
        done = subprocess.run(
            [sys.executable, *(RELAY if side == "relay" else INBOX), *arguments],
            env=os.environ | self.environment | {"COLUMNS": "200"} | environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return Ended(done.returncode, done.stdout, done.stderr)

    def invoke(self, side: str, *arguments: str, **environment: str) -> Ended:
        """Run a command of `inbox` or `relay` here, in this process."""
        return invoke(side, *arguments, **(self.environment | {"COLUMNS": "200"} | environment))

    def relay(self, *options: str) -> Program:
        """Start a relay."""
        return self.start("relay", *RELAY, "run", *options)

    def start_refused_receiver(self, **environment: str) -> Program:
        """Start gunicorn on any port; it must end by itself."""
        return self.start("receiver", *GUNICORN, "--bind", "127.0.0.1:0", **environment)

    def receiver(
        self, workers: int, way: Sequence[str] = GUNICORN, *, besides: int = 0, port: int | None = None
    ) -> tuple[Program, int]:
        """Start gunicorn, wait until all workers serve, and return it and its port.

        `besides` is the number of its other children.
        """
        port = port or free_port()
        program = self.start("receiver", *way, "--bind", f"127.0.0.1:{port}", "--workers", str(workers))
        until(
            lambda: not program.runs or (is_ready(port) and len(program.children()) == workers + besides),
            "the receiver is ready",
        )
        assert program.runs, program.output
        return program, port

    def logs(self) -> dict[str, str]:
        """Return the output of every program started here, by log name."""
        return {program.log.name: program.output for program in self._programs}

    def clean_up(self) -> None:
        """Kill all running programs."""
        for program in self._programs:
            program.clean_up()


@contextlib.contextmanager
def site(folder: Path, config: str) -> Iterator[Site]:
    """Make a site for the block."""
    made = Site(folder, config)
    try:
        yield made
    finally:
        made.clean_up()


def _own_ports() -> Iterator[int]:
    """Yield the ports of this process in turn, from a random one: other tests may run on this machine."""
    share = len(PORTS) // SHARES
    number = int(os.environ.get("PYTEST_XDIST_WORKER", f"gw{os.getpid()}").removeprefix("gw")) % SHARES
    return (PORTS[number * share + at % share] for at in count(os.getpid()))


_ports = _own_ports()


def free_port() -> int:
    """Return a free port that no other test gets."""
    return next(port for port in _ports if _is_free(port))


def _is_free(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def listens(port: int) -> bool:
    """Return whether the port accepts connections."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def is_ready(port: int) -> bool:
    """Return whether a receiver on this port can store webhooks."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=5) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def children_of(parent: int) -> list[int]:
    """Return the pids of the children of a process."""
    kernels = Path(f"/proc/{parent}/task/{parent}/children")
    with contextlib.suppress(OSError):  # the kernel has no such list, or the process has ended
        return sorted(int(pid) for pid in kernels.read_text().split())
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    pairs = (line.split() for line in listed.splitlines())
    return sorted(int(pid) for pid, its_parent in pairs if int(its_parent) == parent)
