"""The rig: gunicorn, three relays, a database, a downstream service and a sender, all breakable."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
from sqlalchemy import Engine, create_engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from inbox.db import engine as engines
from inbox.db import migrate
from tests.helpers.checkers import Call
from tests.helpers.killable_postgres import KillablePostgres, killable
from tests.helpers.machine import ROOM
from tests.helpers.processes import Program, Site, gunicorn_after, site
from tests.helpers.tables import list_in_flight, list_in_flight_elsewhere, rows
from tests.helpers.traffic import Downstream, Ledger, Sender, serving
from tests.helpers.waiting import until
from tests.helpers.webhooks import config_text
from tests.proofs.faults.plan import RELAYS, Streams, events, unwell_now_and_then

CAN_BE_MADE = sys.platform == "linux" and os.geteuid() == 0


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """Mount a disk in a new folder for the block."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0777", "none", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@contextlib.contextmanager
def full(disk: Path) -> Iterator[None]:
    """Fill the disk for the block, in ever smaller pieces until not one block is free."""
    ballast, piece, size = disk / "ballast", 1 << 24, 0
    try:
        with ballast.open("wb") as file:
            while piece >= 1 << 12:
                try:
                    os.posix_fallocate(file.fileno(), size, piece)
                    size += piece
                except OSError:
                    piece >>= 1
        yield
    finally:
        ballast.unlink(missing_ok=True)


# --- The rig: gunicorn, three relays, a database, a downstream service and a sender, all breakable


SCHEDULE = ("200ms", "1s", "2s", "5s", "5s", "5s", "5s")
SHORTEST_LEASE_LEFT = 9.0
"""Least seconds left of a lease, as relays renew them every 5 s."""
BUSY, BUSY_WITHIN = 16, 4.0
"""Deliveries in flight beyond the running calls, and the seconds to wait for them."""
STARTED_WITHIN, FIRST_STARTED_WITHIN = 10.0, 60.0
DISCARDED = "discarded a late result"
STEPPED = "the database's clock went"
WOKEN_WITHIN = 3.0
STOPPED_WITHIN = 30.0
STARTED = re.compile(r"started node=(\S+)")
SUPERVISED_EVERY = 0.2
STARTS_IN = 2.5
"""Usual seconds to start the receiver and all relays; on slower machines, everything is stretched."""
BEHIND = 400
"""Accepted but undelivered events above which the sender slows down."""
PER_SECOND, SENDER_WAITS = 80.0, 4.0
DATABASE = "inbox"


class Store(msgspec.Struct):
    """The database of a rig and the ways to break it."""

    url: str
    """URL for the programs."""
    engine: Engine
    """Engine of observers, directly to the database."""
    disk: Path | None
    """Small disk to fill, or None where none can be made."""
    postgres: KillablePostgres | None = None
    cuts: Path | None = None
    """Folder of the orders to cut commits, on Postgres."""

    @property
    def arming(self) -> str:
        """Statements by which a program follows these orders."""
        if self.cuts is None:
            return "pass"
        return f"from pathlib import Path; from tests.proofs.faults import cuts; cuts.arm(Path({str(self.cuts)!r}))"

    def others_may_write(self) -> bool:
        """Return whether others can write while a relay is frozen: on SQLite, a frozen writer blocks them."""
        if self.postgres is not None:
            return True
        name = self.engine.url.database or ""
        with contextlib.closing(sqlite3.connect(name, timeout=0.5, isolation_level=None)) as other:
            try:
                other.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                return False
            other.execute("ROLLBACK")
            return True


class Place:
    """A place where one relay always runs. Its faults are recorded in `ledger`, with the calls in flight."""

    def __init__(
        self, name: str, start: Callable[[], Program], store: Store, ledger: Ledger, stopping: threading.Event
    ) -> None:
        self.name = name
        self._start = start
        self._store = store
        self._ledger = ledger
        self._stopping = stopping
        self._lock = threading.Lock()
        self.program = start()

    def kill(self) -> None:
        """SIGKILL the relay, start another and wait until it works."""
        with self._lock:
            at = time.monotonic()
            self.program.kill()
            self._note("kill a relay", at, end=at, held=self._held())
            self.program = self._start()
        took = self.wait_until_started(self.program)
        self._stopping.wait(took)  # so that relays work as long as they start, even on slow machines

    def freeze(self, seconds: float) -> None:
        """SIGSTOP the relay at work, and SIGCONT it when another one has taken its work over, or after `seconds`."""
        with self._lock:
            patience = time.monotonic() + BUSY_WITHIN
            until(
                lambda: self._caught_at_work(1 if time.monotonic() > patience else BUSY),
                "the relay has something in flight",
                within=60,
            )
            at, held = time.monotonic(), self._held()
            self._stopping.wait(SHORTEST_LEASE_LEFT)
            until(
                lambda: self._is_taken_over(held) or time.monotonic() > at + seconds,
                "the work is taken over",
                within=60,
            )
            self.program.send(signal.SIGCONT)
            self._note("freeze a relay", at, end=time.monotonic(), held=held)
            self._wait_for(lambda: DISCARDED in self.program.output, WOKEN_WITHIN)

    def replace(self) -> None:
        """Start another relay, then SIGTERM this one."""
        with self._lock:
            other = self._start()
            self.wait_until_started(other)
            at = time.monotonic()
            self._note("replace a relay", at, status=self._end(), end=time.monotonic())
            self.program = other

    def wait_until_started(self, program: Program, within: float = STARTED_WITHIN) -> float:
        """Wait until the relay works, and return the seconds.

        A relay that starts without a database ends instead, and is started again.
        """
        return self._wait_for(lambda: bool(_node(program if program.runs else self.program)), within)

    def supervise(self) -> None:
        """Restart the relay if it has ended by itself, as a service manager does."""
        if self._lock.acquire(blocking=False):
            try:
                self._revive()
            finally:
                self._lock.release()

    def stop(self) -> int:
        """SIGTERM the relay and return its exit status."""
        with self._lock:
            return self._end()

    def _end(self) -> int:
        self.program.send(signal.SIGTERM)
        return self.program.ends(STOPPED_WITHIN)

    def _wait_for(self, condition: Callable[[], bool], seconds: float) -> float:
        """Wait for a condition at most so long, and return the seconds."""
        begin = time.monotonic()
        while not condition() and time.monotonic() < begin + seconds and not self._stopping.is_set():
            self._stopping.wait(0.1)
        return time.monotonic() - begin

    def _revive(self) -> None:
        if not self.program.runs:
            self._note("a relay ended by itself", time.monotonic(), status=self.program.ends(0))
            self.program = self._start()

    def _caught_at_work(self, least: int) -> bool:
        """Stop the relay if it is at work; stopping it more often would delay calls long after their claims."""
        self._revive()
        if not self._is_at_work(least):
            return False
        self.program.send(signal.SIGSTOP)
        if self._is_at_work(least) and (self._stopping.is_set() or self._store.others_may_write()):
            return True
        self.program.send(signal.SIGCONT)
        return False

    def _is_at_work(self, least: int) -> bool:
        return self._stopping.is_set() or len(self._held()) >= least

    def _is_taken_over(self, held: list[Call]) -> bool:
        with contextlib.suppress(SQLAlchemyError):
            others = list_in_flight_elsewhere(self._store.engine, _node(self.program))
            return self._stopping.is_set() or any(seq in others for seq, _, _ in held)
        return False

    def _held(self) -> list[Call]:
        """Return the calls in flight; none without a database."""
        with contextlib.suppress(SQLAlchemyError):
            found = list_in_flight(self._store.engine, self.program.pid)
            return [(row["seq"], row["run"], row["attempt"]) for row in found]
        return []

    def _note(self, kind: str, begin: float, **more: object) -> None:
        self._ledger.append(kind=kind, who=self.name, node=_node(self.program), begin=begin, **more)


def _node(program: Program) -> str:
    """Return the node id of a relay, empty until it works."""
    started = STARTED.search(program.output)
    return started.group(1) if started else ""


class Rig:
    """All running programs. `faults` has a line for each fault, with `kind`, `begin` and `end`.

    `slowness`, at least 1, is the start time in units of STARTS_IN: it stretches schedules and deadlines, and slows the
    sender down.
    """

    def __init__(self, folder: Path, seed: int, store: Store, at: Site, downstream: Downstream) -> None:
        self.folder = folder
        self.seed = seed
        self.store = store
        self.downstream = downstream
        self.site = at
        self._started = 0
        self.faults = Ledger(folder / "faults.jsonl")
        self.stopping = threading.Event()
        self._starting = threading.Lock()
        begin = time.monotonic()
        self.receiver, port = at.receiver(1 if store.postgres is None else 2, gunicorn_after(store.arming))
        self.relays = {name: Place(name, self._start_relay, store, self.faults, self.stopping) for name in RELAYS}
        for relay in self.relays.values():
            relay.wait_until_started(relay.program, FIRST_STARTED_WITHIN)
        self.slowness = max(1.0, (time.monotonic() - begin) / STARTS_IN)
        self.sender = Sender(
            folder / "sends.jsonl",
            port,
            events(seed),
            connections=6,
            per_second=PER_SECOND / self.slowness,
            timeout=SENDER_WAITS,
            slowly_after=lambda accepted: accepted - len(downstream.events) > BEHIND,
        )
        self._supervisor = threading.Thread(target=self._supervise, name="supervisor")
        self._supervisor.start()

    def start(self, name: str, *arguments: str, **environment: str) -> Program:
        """Start a command of `relay`; thread-safe."""
        with self._starting:
            code = f"{self.store.arming}; from relay.cli.main import main; main()"
            return self.site.start(name, "-c", code, *arguments, **environment)

    def stop_programs(self) -> dict[str, int]:
        """Stop all programs in order and return non-zero exit statuses."""
        self.stopping.set()
        self._supervisor.join()
        ended = {name: relay.stop() for name, relay in self.relays.items()}
        self.receiver.send(signal.SIGTERM)
        ended["receiver"] = self.receiver.ends(STOPPED_WITHIN)
        return {name: status for name, status in ended.items() if status}

    def note_clock(self) -> None:
        """Record the database's time beside the ledger's own, so that its times can be converted, and a step shows."""
        now = "clock_timestamp()" if self.store.postgres is not None else "strftime('%Y-%m-%d %H:%M:%fZ', 'now')"
        self.faults.append(kind="clock", database=str(rows(self.store.engine, f"SELECT {now} AS now")[0]["now"]))

    def close(self) -> None:
        """Stop the threads of this process; the site ends the programs."""
        self.stopping.set()
        self._supervisor.join()
        self.sender.stop()
        self.faults.close()

    def _start_relay(self) -> Program:
        """Start a relay with its own file and URL, which identifies it to the downstream service."""
        with self._starting:
            self._started += 1
            caller = f"relay-{self._started}"
        file = self.folder / f"{caller}.toml"
        file.write_text(_config(self.store, f"{self.downstream.url}/{caller}"), encoding="utf-8")
        return self.start(caller, "run", INBOX_CONFIG=str(file))

    def _supervise(self) -> None:
        while not self.stopping.wait(SUPERVISED_EVERY):
            for relay in self.relays.values():
                relay.supervise()


@contextlib.contextmanager
def rig(folder: Path, kind: str, seed: int, *, streams: Streams, megabytes: int) -> Iterator[Rig]:
    """Run a rig on "postgres" or "sqlite"; its schedule, ledgers and logs stay in `folder`."""
    with contextlib.ExitStack() as stack:
        schedule = {"seed": seed, "kind": kind, "streams": msgspec.to_builtins(streams)}
        (folder / "schedule.json").write_text(json.dumps(schedule, indent=1), encoding="utf-8")
        # Not below pytest's folder, which concurrent sessions close to the user of Postgres.
        data = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="inbox-relay-rig-", dir=ROOM)))
        disk = stack.enter_context(small_disk(data / "disk", megabytes)) if CAN_BE_MADE else None
        store = stack.enter_context(_store(kind, disk or data, disk, folder))
        migrating = engines.connect(store.engine.url.render_as_string(hide_password=False), application="tests")
        migrate.upgrade(migrating)
        migrating.dispose()
        downstream = stack.enter_context(serving(folder / "arrivals.jsonl", unwell_now_and_then(seed)))
        at = stack.enter_context(site(folder, _config(store, downstream.url)))
        made = Rig(folder, seed, store, at, downstream)
        stack.callback(made.close)
        made.note_clock()
        yield made


def _config(store: Store, url: str) -> str:
    return config_text(store.url, url, schedule=SCHEDULE)


@contextlib.contextmanager
def _store(kind: str, data: Path, disk: Path | None, cuts: Path) -> Iterator[Store]:
    if kind == "sqlite":
        url = f"sqlite:///{data}/inbox.db"
        engine = engines.connect(url, application="tests")
        yield Store(url, engine, disk)
        engine.dispose()
        return
    with killable(data) as server:
        server.create_database(DATABASE)
        engine = create_engine(server.url(DATABASE), poolclass=NullPool)
        yield Store(server.url(DATABASE), engine, disk, server, cuts)
