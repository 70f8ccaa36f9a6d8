"""Programs under test, as processes of their own: started, stopped and killed by pid, their output kept, always cleaned up."""

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
from pathlib import Path

from tests.helpers.waiting import until

GUNICORN = ("-m", "gunicorn", "-c", "python:inbox.gunicorn_settings")
"""Arguments with which `python` serves the receiver."""


class Program:
    """One process, in a session of its own so that its children end with it."""

    def __init__(self, arguments: Sequence[str], *, log: Path, environment: Mapping[str, str]) -> None:
        self.log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, *arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **environment},
                start_new_session=True,
            )
        self.pid = self._process.pid

    @property
    def runs(self) -> bool:
        """Return whether it has not ended yet."""
        return self._process.poll() is None

    @property
    def output(self) -> str:
        """Return what it has written so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    def ends(self, within: float) -> int:
        """Its exit status.

        Raises:
            AssertionError: it still runs after `within` seconds.
        """
        try:
            return self._process.wait(within)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still runs after {within:g} s: {self.log.name}\n{self.output}") from None

    def kill(self) -> None:
        """SIGKILL, and wait for its end."""
        self._process.kill()
        self._process.wait()

    def children(self) -> list[int]:
        """The pids of its own children."""
        return children_of(self.pid)

    def clean_up(self) -> None:
        """Kill it and every process of its session."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()


class Site:
    """A folder with an inbox.toml, and the programs that run there."""

    def __init__(self, folder: Path, config: str) -> None:
        self.folder = folder
        self._programs: list[Program] = []
        self.configure(config)

    def configure(self, config: str) -> None:
        """Write the inbox.toml; programs that run read it when they are told to."""
        (self.folder / "inbox.toml").write_text(config, encoding="utf-8")

    def start(self, name: str, *arguments: str, **environment: str) -> Program:
        """Start `python …` here; its output goes to a log of its own."""
        program = Program(
            arguments,
            log=self.folder / f"{len(self._programs):02d}-{name}.log",
            environment={"INBOX_CONFIG": str(self.folder / "inbox.toml"), **environment},
        )
        self._programs.append(program)
        return program

    def relay(self, *options: str) -> Program:
        """Start a relay."""
        return self.start("relay", "-c", "from relay.cli.main import main; main()", "run", *options)

    def receiver(self, workers: int, way: Sequence[str] = GUNICORN, *, besides: int = 0) -> tuple[Program, int]:
        """Start gunicorn and wait until it serves, with every worker; gives it and its port.

        `besides` is how many other children it has.
        """
        port = free_port()
        options = ("--bind", f"127.0.0.1:{port}", "--workers", str(workers))
        program = self.start("receiver", *way, *options)
        until(
            lambda: not program.runs or (is_ready(port) and len(program.children()) == workers + besides),
            "the receiver is ready",
            within=20,
        )
        assert program.runs, program.output
        return program, port

    def logs(self) -> dict[str, str]:
        """The output of every program that was started here."""
        return {program.log.name: program.output for program in self._programs}

    def clean_up(self) -> None:
        """End whatever still runs."""
        for program in self._programs:
            program.clean_up()


@contextlib.contextmanager
def site(folder: Path, config: str) -> Iterator[Site]:
    """A site as long as the block runs."""
    made = Site(folder, config)
    try:
        yield made
    finally:
        made.clean_up()


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def is_ready(port: int) -> bool:
    """Return whether a receiver there can store webhooks."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=5) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def children_of(parent: int) -> list[int]:
    """The pids of the children of a process."""
    kernels = Path(f"/proc/{parent}/task/{parent}/children")
    if kernels.exists():
        return sorted(int(pid) for pid in kernels.read_text().split())
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    pairs = (line.split() for line in listed.splitlines())
    return sorted(int(pid) for pid, its_parent in pairs if int(its_parent) == parent)
