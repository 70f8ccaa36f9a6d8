"""The daemon in a thread of the test, with the service that it calls."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection
from datetime import datetime

import msgspec
import pytest
from sqlalchemy import Engine

from inbox.config.model import Config
from inbox.loader.load import parse_config
from relay import steps as daemon_steps
from relay.daemon.generation import PreparedConfig, prepare
from relay.daemon.loop import Relay
from relay.delivery.policy import Policies, policies
from relay.observe import Observer
from relay.store.database import Database
from tests.helpers.relaying import fill, run_relay
from tests.helpers.scripted import ScriptedServer
from tests.helpers.tables import facts, open_states
from tests.helpers.traffic import Downstream, Held
from tests.helpers.waiting import until
from tests.helpers.webhooks import config_text, moment


def make_config(url: str, concurrency: int = 8, *, destination: str = "", more: str = "") -> Config:
    """Return the configuration of a relay with short delays; its database is passed separately.

    `destination` adds lines to its table, `more` adds tables.
    """
    plain = config_text("sqlite:///unused.db", url, schedule=("100ms", "100ms"), concurrency=concurrency)
    return parse_config(plain.replace("concurrency =", f"{destination}\nconcurrency =") + more)


def relaying(
    engine: Engine,
    config: Config,
    *,
    grace: float = 5.0,
    now: Callable[[], datetime] | None = None,
    observer: Observer | None = None,
) -> contextlib.AbstractContextManager[Relay]:
    """Run a relay until the block ends. `now` is the clock of the database."""
    return run_relay(Relay(Database(engine, now), prepare(config), grace_seconds=grace, observer=observer))


def running(engine: Engine, downstream: ScriptedServer, **more: str) -> contextlib.AbstractContextManager[Relay]:
    """Run a relay that calls this service. `more` is passed to `make_config`."""
    return relaying(engine, make_config(downstream.url, 8, **more))


def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let relays poll every 50 ms and send a heartbeat every 0.5 s."""
    for name in ("EVERY_SECONDS", "IDLE_POLL_SECONDS", "WATCH_EVERY_SECONDS"):
        monkeypatch.setattr(f"relay.daemon.loop.{name}", 0.05)
    monkeypatch.setattr("relay.daemon.loop.RENEW_EVERY_SECONDS", 0.5)
    monkeypatch.setattr("relay.daemon.wake_up.STOPS_WITHIN_SECONDS", 0.05)


class Rig:
    """A database, a destination, and relays between them."""

    def __init__(self, engine: Engine, downstream: Downstream) -> None:
        self.engine, self.downstream = engine, downstream
        self.database = Database(engine)
        self.observer = Observer()
        """Observer of all relays."""
        self._stored = 0

    def arrive(self, *entities: str) -> list[int]:
        """Store a change of each entity, a millisecond apart, and return their seqs."""
        first, self._stored = self._stored, self._stored + len(entities)
        changes = [(entity, moment(number)) for number, entity in enumerate(entities, first)]
        return fill(self.engine.url.render_as_string(hide_password=False), changes)

    def hold(self) -> Held:
        """Hold all answers of the destination until the script lets them go."""
        held = self.downstream.script = Held()
        return held

    def config(self, concurrency: int = 8, **more: str) -> Config:
        """Return the configuration of a relay; `more` is passed to `make_config`."""
        return make_config(self.downstream.url, concurrency, **more)

    def relay(
        self, concurrency: int = 8, *, grace: float = 5.0, now: Callable[[], datetime] | None = None, **more: str
    ) -> contextlib.AbstractContextManager[Relay]:
        """Run a relay until the block ends. `now` is the clock of the database."""
        config = self.config(concurrency, **more)
        return relaying(self.engine, config, grace=grace, now=now, observer=self.observer)

    def until_told(self, event: str, times: int = 1) -> None:
        """Wait until relays have reported this event so often."""
        until(lambda: self.observer.counts[event] >= times, f"{event}, {times} times")

    def until_left(self, **states: int) -> None:
        """Wait until the open deliveries have these counts by state; without arguments, until none is open."""
        until(lambda: self.left == states, f"open: {states}, and not {self.left}")

    @property
    def left(self) -> dict[str, int]:
        """Counts of open deliveries by state."""
        return open_states(self.engine)

    @property
    def kinds(self) -> list[str]:
        """Kinds of all facts, in order."""
        return kinds(self.engine)

    @property
    def calls(self) -> list[int]:
        """Seq of each call, in order."""
        return [line["seq"] for line in self.downstream.arrivals.lines()]


def users(number: int, entities: int | None = None) -> Collection[str]:
    """Return `number` changes, each of another user unless `entities` says how many there are."""
    return [f"u{n % (entities or number)}" for n in range(number)]


def kinds(engine: Engine) -> list[str]:
    """Return the kinds of all facts, in order."""
    return [fact["kind"] for fact in facts(engine)]


def maintenance_of(
    database: Database, config: Config, observer: Observer, steps: daemon_steps.Steps, known: Policies | None = None
) -> Callable[[], int]:
    """Return a function that runs one maintenance round of a relay without calls."""
    relay = Relay(database, PreparedConfig(config), grace_seconds=0, observer=observer)
    active = relay._generations.active
    active.work = msgspec.structs.replace(active.work, policies=dict(known or policies(config)))
    others = {"give_back", "record", "sequence", "claim", "claim_suspect"}
    table = [step for step in relay._table if step.name not in others]
    return lambda: sum(step.run(steps) for step in table)
