"""The rig: gunicorn, three relays, a database, a downstream service and a sender, as in earnest, and all of it breakable."""

from __future__ import annotations

import contextlib
import json
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
from sqlalchemy import Engine, create_engine
from sqlalchemy.pool import NullPool

from inbox.db import engine as engines
from inbox.db import migrate
from tests.helpers.killable_postgres import KillablePostgres, killable
from tests.helpers.machine import ROOM
from tests.helpers.processes import Program, Site, site
from tests.helpers.proxy import Proxy, proxied
from tests.helpers.tables import rows
from tests.helpers.traffic import Downstream, Ledger, Script, Sender, serving
from tests.helpers.webhooks import config_text
from tests.proofs.faults.load import SCHEDULE, events
from tests.proofs.faults.plan import RELAYS, Streams
from tests.proofs.faults.relays import STOPPED_WITHIN, Place
from tests.proofs.faults.small_disk import SmallDisk, can_be_made, small_disk

SUPERVISED_EVERY = 0.2
FIRST_STARTED_WITHIN = 60.0
STARTS_IN = 2.5
"""Seconds that the receiver and then all relays may take to start; where they take longer, everything is stretched."""
BEHIND = 400
"""So many events that have not come downstream yet are enough to work on."""
SENDER_WAITS = 4.0
DATABASE = "inbox"


class Store(msgspec.Struct):
    """The database of a rig, and the ways to break it."""

    url: str
    """As the programs connect."""
    engine: Engine
    """For who looks on: it goes straight to the database."""
    disk: SmallDisk | None
    """None where no small disk can be made: it can't be full then."""
    postgres: KillablePostgres | None = None
    proxy: Proxy | None = None


class Rig:
    """Everything that runs. `faults` has a line for each thing that was done, with its `kind`, `begin` and `end`.

    `slowness` is how many times STARTS_IN this machine took to start it all, 1 at least: schedules and deadlines are
    stretched by it, and less is sent.
    """

    def __init__(
        self, folder: Path, seed: int, *, store: Store, at: Site, downstream: Downstream, per_second: float
    ) -> None:
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
        self.receiver, port = at.receiver(workers=1 if store.postgres is None else 2)
        self.relays = {
            name: Place(name, self._start_relay, store.engine, self.faults, self.stopping) for name in RELAYS
        }
        for relay in self.relays.values():
            relay.wait_until_started(relay.program, FIRST_STARTED_WITHIN)
        self.slowness = max(1.0, (time.monotonic() - begin) / STARTS_IN)
        self.sender = Sender(
            folder / "sends.jsonl",
            port,
            events(seed),
            connections=6,
            per_second=per_second / self.slowness,
            timeout=SENDER_WAITS,
            slowly_after=lambda accepted: accepted - len(downstream.events) > BEHIND,
        )
        self._supervisor = threading.Thread(target=self._supervise, name="supervisor")
        self._supervisor.start()

    def start(self, name: str, *arguments: str, **environment: str) -> Program:
        """Start a command of `relay`; several threads may."""
        with self._starting:
            return self.site.start(name, "-c", "from relay.cli.main import main; main()", *arguments, **environment)

    def stop_programs(self) -> dict[str, int]:
        """End every program in order; the exit status of each that was not 0."""
        self.stopping.set()
        self._supervisor.join()
        ended = {name: relay.stop() for name, relay in self.relays.items()}
        self.receiver.send(signal.SIGTERM)
        ended["receiver"] = self.receiver.ends(STOPPED_WITHIN)
        return {name: status for name, status in ended.items() if status}

    def close(self) -> None:
        """Stop what belongs to this process; the site ends the programs."""
        self.stopping.set()
        self._supervisor.join()
        self.sender.stop()
        self.faults.close()

    def _start_relay(self) -> Program:
        """Each has a file of its own, with a URL of its own, so that the downstream service knows who calls."""
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
def rig(
    folder: Path, kind: str, seed: int, *, streams: Streams, script: Script, per_second: float, megabytes: int
) -> Iterator[Rig]:
    """A rig on "postgres" or "sqlite" as long as the block runs; its schedule, ledgers and logs stay in `folder`."""
    with contextlib.ExitStack() as stack:
        schedule = {"seed": seed, "kind": kind, "streams": msgspec.to_builtins(streams)}
        (folder / "schedule.json").write_text(json.dumps(schedule, indent=1), encoding="utf-8")
        # Not below pytest's own folder, to which each session that begins beside this one bars the user that Postgres runs as.
        data = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="inbox-relay-rig-", dir=ROOM)))
        disk = stack.enter_context(small_disk(data / "disk", megabytes)) if can_be_made(kind) else None
        if disk is not None:
            data = disk.path
        cuts = folder / "cuts.jsonl"
        store = stack.enter_context(_on_postgres(data, disk, cuts) if kind == "postgres" else _on_sqlite(data, disk))
        downstream = stack.enter_context(serving(folder / "arrivals.jsonl", script))
        at = stack.enter_context(site(folder, _config(store, downstream.url)))
        made = Rig(folder, seed, store=store, at=at, downstream=downstream, per_second=per_second)
        stack.callback(made.close)
        _note_the_clock(made)
        yield made


def _config(store: Store, url: str) -> str:
    return config_text(store.url, url, schedule=SCHEDULE)


@contextlib.contextmanager
def _on_postgres(data: Path, disk: SmallDisk | None, cuts: Path) -> Iterator[Store]:
    with killable(data) as server, proxied(server.sockets, cuts) as proxy:
        server.create_database(DATABASE)
        engine = create_engine(server.url(DATABASE), poolclass=NullPool)
        migrating = engines.connect(server.url(DATABASE), application="tests")
        migrate.upgrade(migrating)
        migrating.dispose()
        yield Store(server.url(DATABASE, proxy.folder), engine, disk, server, proxy)


@contextlib.contextmanager
def _on_sqlite(data: Path, disk: SmallDisk | None) -> Iterator[Store]:
    url = f"sqlite:///{data}/inbox.db"
    engine = engines.connect(url, application="tests")
    migrate.upgrade(engine)
    yield Store(url, engine, disk)
    engine.dispose()


def _note_the_clock(made: Rig) -> None:
    """So that the times of facts, which are the database's, can be compared with those of ledgers."""
    now = "clock_timestamp()" if made.store.postgres is not None else "strftime('%Y-%m-%d %H:%M:%fZ', 'now')"
    made.faults.append(kind="clock", database=str(rows(made.store.engine, f"SELECT {now} AS now")[0]["now"]))
