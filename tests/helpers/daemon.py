"""The daemon in a thread of the test, on a forward or sync route, with the services that it calls."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import msgspec
import pytest
from sqlalchemy import Engine

from inbox.clock import SystemClock
from inbox.config.model import Config
from inbox.loader.load import parse_config
from relay import steps as daemon_steps
from relay.daemon.generation import PreparedConfig, attempt, prepare
from relay.daemon.loop import Relay
from relay.delivery.outcome import Delivery, Outcome
from relay.delivery.policy import Policies, policies
from relay.destinations import Deliverer, build
from relay.http.client import Limits
from relay.observe import Observer
from relay.store.database import Database
from tests.destinations.calling import CREATE, FETCH, FIND, FOUND, REMOVE, SYNC, UPDATE
from tests.helpers.receiver import ask, serve_receiver, status_of, webhook
from tests.helpers.relaying import FakeClock, Steps, fill, run_relay
from tests.helpers.scripted import Act, ScriptedServer, answer, serving
from tests.helpers.tables import facts, open_states
from tests.helpers.traffic import Downstream, Held
from tests.helpers.waiting import until
from tests.helpers.webhooks import TOKEN, body, config_text, moment


def make_config(
    url: str, concurrency: int = 8, *, destination: str = "", more: str = "", ordering: str = "strict"
) -> Config:
    """Return the configuration of a relay with short delays; its database is passed separately.

    `destination` adds lines to its table, `more` adds tables.
    """
    plain = config_text("sqlite:///unused.db", url, schedule=("100ms", "100ms"), concurrency=concurrency)
    plain = plain.replace('ordering = "strict"', f'ordering = "{ordering}"')
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


ROUTE = "users-to-crm"
BEHIND = timedelta(hours=1)
"""Delay of a stepped clock behind the database's, so that its times are never ahead of an arrival."""
BASIC = '{ kind = "basic", user = "me", password = "pass-word" }'

_CONFIG = """
[database]
url = {database}
[sources.trivore]
preset = "trivore"
auth = {{ kind = "header", name = "X-Webhook-Token", secrets = [{token}] }}
clock_skew = "1m"
[apis.identity]
base_url = "{url}/api"
auth = {auth}
{api}
allow_private = true
allow_http = true
[destinations.crm]
kind = "sync"
base_url = "{url}"
allow_private = true
allow_http = true
[routes.users-to-crm]
source = "trivore"
destination = "crm"
retry = {{ schedule = {schedule} }}
[routes.users-to-crm.sync]
{sync}
"""


@dataclass(frozen=True)
class Flow:
    """A receiver and one route; one server plays both services."""

    config: Config
    port: int
    server: ScriptedServer

    def tell(self, at: datetime, event_type: str = "UPDATE", entity: str = "u1", **more: object) -> dict[str, Any]:
        """Send a webhook whose time has no fraction, and return the receiver's answer."""
        payload = body(entity, format_seconds(at), eventType=event_type, **more)
        answered = ask(self.port, webhook(payload=payload))
        assert status_of(answered) == 200, answered
        told: dict[str, Any] = json.loads(answered.partition(b"\r\n\r\n")[2])
        return told

    def script(self, **acts: Act | list[Act]) -> None:
        """Set the responses to fetch, find, create, update and remove; the last one of a list repeats."""
        names = {"fetch": FETCH, "find": FIND, "update": UPDATE, "create": CREATE, "remove": REMOVE}
        for name, act in acts.items():
            self.server.routes[names[name]] = list(act) if isinstance(act, list) else [act]

    @property
    def asked(self) -> list[str]:
        """All calls, in order."""
        return [f"{seen.method} {seen.target}" for seen in self.server.seen]

    def sent(self, call: str = UPDATE) -> list[dict[str, Any]]:
        """Return the bodies of these calls."""
        return [json.loads(seen.body) for seen in self.server.seen if f"{seen.method} {seen.target}" == call]


class SyncSteps(Steps):
    """The relay's steps with the real deliverer of the route, on a clock that stands still `BEHIND` the database's."""

    def __init__(self, engine: Engine, flow: Flow) -> None:
        super().__init__(engine, policies(flow.config), FakeClock(SystemClock().now() - BEHIND))
        self._flow = flow
        self._engine = engine
        self._sync: Deliverer = build(flow.config)[ROUTE]

    def deliver(self, claimed: Sequence[Delivery]) -> list[tuple[Delivery, Outcome]]:
        """Make the attempts."""
        context = Limits(lambda: float("inf"), threading.Event(), self.clock.now)
        return [(delivery, attempt(delivery, self._sync, context)) for delivery in claimed]

    def tell(self, event_type: str = "UPDATE", *, at: datetime | None = None, **more: str) -> None:
        """Send a webhook about the present and do everything that is due."""
        self._flow.tell(at or self.clock.moment, event_type, **more)
        self.until_nothing_is_due()

    def later(self, seconds: float = 120) -> None:
        """Advance the clock and do everything that is due then."""
        self.advance(seconds)
        self.until_nothing_is_due()

    def left(self) -> dict[str, int]:
        """Return counts of open deliveries by state."""
        return open_states(self._engine)


def format_seconds(at: datetime) -> str:
    """Format a time as webhooks do, without a fraction."""
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")


def user(name: str, last_modified: str | None = None, **more: object) -> Act:
    """Return the identity service's response for a user of this name."""
    meta = {} if last_modified is None else {"meta": {"lastModified": last_modified}}
    return answer(200, {"id": "u1", "name": name, **meta, **more})


@contextlib.contextmanager
def flowing(
    database_url: str, *, sync: str = SYNC, auth: str = BASIC, api: str = "", schedule: tuple[str, ...] = ("5s", "30s")
) -> Iterator[Flow]:
    """Serve a receiver and both services, which know one user and accept every change.

    `auth` may contain the server's `{url}`; `api` adds lines to the api's table.
    """
    with serving(routes={}) as server:
        text = _CONFIG.format(
            database=json.dumps(database_url),
            token=json.dumps(TOKEN),
            url=server.url,
            auth=auth.replace("{url}", server.url),
            api=api,
            schedule=json.dumps(list(schedule)),
            sync=sync,
        )
        config = parse_config(text)
        with serve_receiver(database_url, config) as port:
            flow = Flow(config, port, server)
            flow.script(fetch=user("Ada"), find=FOUND, update=answer(), create=answer(201), remove=answer(204))
            yield flow
