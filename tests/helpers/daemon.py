"""The daemon itself, in a thread of the test, with its database and the destination that it calls."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from datetime import datetime

import msgspec
import pytest
from sqlalchemy import Engine
from tests.helpers.tables import facts, open_states
from tests.helpers.traffic import Downstream, Held

from inbox.config.model import Config
from inbox.loader.load import parse_config
from relay.daemon.generation import PreparedConfig, prepare
from relay.daemon.loop import Relay
from relay.delivery.policy import Policies, policies
from relay.observe import Observer
from relay.steps import Steps
from relay.store.database import Database
from tests.helpers.relaying import at_work, fill
from tests.helpers.scripted import ScriptedServer
from tests.helpers.waiting import until
from tests.helpers.webhooks import config_text, moment


def configured(
    url: str, concurrency: int = 8, *, destination: str = "", more: str = "", ordering: str = "strict"
) -> Config:
    """The configuration of a relay whose database is given to it, with short delays.

    `destination` is further lines of its table, `more` further tables.
    """
    plain = config_text("sqlite:///unused.db", url, schedule=("100ms", "100ms"), concurrency=concurrency)
    plain = plain.replace('ordering = "strict"', f'ordering = "{ordering}"')
    return parse_config(plain.replace("concurrency =", f"{destination}\nconcurrency =") + more)


@contextlib.contextmanager
def running(
    engine: Engine,
    downstream: Downstream | ScriptedServer,
    grace_seconds: float = 5.0,
    concurrency: int = 8,
    **more: str,
) -> Iterator[Relay]:
    """A relay at work; it is stopped when the block ends. `more` is as `configured` takes it."""
    config = configured(downstream.url, concurrency, **more)
    relay = Relay(Database(engine), prepare(config), grace_seconds=grace_seconds)
    with at_work(relay):
        yield relay


def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let relays look every 50 ms for changes by others, and tell every half second that they live."""
    for name in ("EVERY_SECONDS", "IDLE_POLL_SECONDS", "WATCH_EVERY_SECONDS"):
        monkeypatch.setattr(f"relay.daemon.loop.{name}", 0.05)
    monkeypatch.setattr("relay.daemon.loop.RENEW_EVERY_SECONDS", 0.5)
    monkeypatch.setattr("relay.daemon.wake_up.STOPS_WITHIN_SECONDS", 0.05)


class Rig:
    """A database, a destination, and the relays that work on both."""

    def __init__(self, engine: Engine, downstream: Downstream) -> None:
        self.engine, self.downstream = engine, downstream
        self.database = Database(engine)
        self.observer = Observer()
        """Of every relay."""
        self._stored = 0

    def arrive(self, *entities: str) -> list[int]:
        """Store a change of each entity, a millisecond after each other; gives their seqs."""
        first, self._stored = self._stored, self._stored + len(entities)
        changes = [(entity, moment(number)) for number, entity in enumerate(entities, first)]
        return fill(self.engine.url.render_as_string(hide_password=False), changes)

    def hold(self) -> Held:
        """Let the destination answer nobody until the script says so."""
        held = self.downstream.script = Held()
        return held

    def config(self, concurrency: int = 8, **more: str) -> Config:
        """The configuration of a relay; `more` is as `configured` takes it."""
        return configured(self.downstream.url, concurrency, **more)

    @contextlib.contextmanager
    def relay(
        self,
        concurrency: int = 8,
        *,
        grace: float = 5.0,
        now: Callable[[], datetime] | None = None,
        **more: str,
    ) -> Iterator[Relay]:
        """A relay at work; it is stopped when the block ends. `now` is the clock of the database."""
        prepared = prepare(self.config(concurrency, **more))
        relay = Relay(Database(self.engine, now), prepared, grace_seconds=grace, observer=self.observer)
        with at_work(relay):
            yield relay

    def until_told(self, event: str, times: int = 1) -> None:
        """Wait until a relay has told of this so many times."""
        until(lambda: self.observer.counts[event] >= times, f"{event}, {times} times")

    def until_left(self, **states: int) -> None:
        """Wait until the open deliveries are so many in each state; none at all, unless some are named."""
        until(lambda: self.left == states, f"open: {states}, and not {self.left}")

    @property
    def left(self) -> dict[str, int]:
        """The open deliveries by state."""
        return open_states(self.engine)

    @property
    def kinds(self) -> list[str]:
        """The kinds of all facts, in order."""
        return kinds(self.engine)

    @property
    def calls(self) -> list[int]:
        """The seq of each call, in their order."""
        return [line["seq"] for line in self.downstream.arrivals.lines()]


def users(number: int, entities: int | None = None) -> Collection[str]:
    """So many changes, of as many users unless told otherwise."""
    return [f"u{n % (entities or number)}" for n in range(number)]


def kinds(engine: Engine) -> list[str]:
    """The kinds of all facts, in order."""
    return [fact["kind"] for fact in facts(engine)]


def maintenance_of(
    database: Database, config: Config, observer: Observer, steps: Steps, known: Policies | None = None
) -> Callable[[], int]:
    """The maintenance of a relay that makes no calls: each call does a round of it."""
    relay = Relay(database, PreparedConfig(config), grace_seconds=0, observer=observer)
    active = relay._generations.active
    active.work = msgspec.structs.replace(active.work, policies=dict(known or policies(config)))
    others = {"give_back", "record", "sequence", "claim", "claim_suspect"}
    table = [step for step in relay._table if step.name not in others]
    return lambda: sum(step.run(steps) for step in table)
