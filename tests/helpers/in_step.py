"""A sync route, from the webhook to the counterpart: a real receiver on its port, the relay, and both services scripted."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Engine
from tests.helpers.tables import open_states

from inbox.clock import SystemClock
from inbox.config.model import Config
from inbox.loader.load import parse_config
from relay.daemon.generation import attempt, prepare
from relay.daemon.loop import Relay
from relay.delivery.outcome import Delivery, Outcome
from relay.delivery.policy import policies
from relay.destinations import Deliverer, build
from relay.http.client import Limits
from relay.store.database import Database
from tests.destinations.syncing import CREATE, FETCH, FIND, FOUND, REMOVE, SYNC, UPDATE
from tests.helpers.receiver import exchange, raw_post, served, status_of
from tests.helpers.relaying import FakeClock, Steps, at_work
from tests.helpers.scripted import Act, ScriptedServer, answer, serving
from tests.helpers.webhooks import TOKEN, body

ROUTE = "users-to-crm"
BEHIND = timedelta(hours=1)
"""A stepped clock runs so far behind the database's, so that its times are ahead of no arrival."""
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
    """One route between one server that is both services, and a receiver in front of it."""

    config: Config
    port: int
    server: ScriptedServer

    def tell(self, at: datetime, event_type: str = "UPDATE", entity: str = "u1") -> dict[str, Any]:
        """Send a webhook whose time has no fraction; the receiver's answer."""
        payload = body(entity, in_seconds(at), eventType=event_type)
        answered = exchange(self.port, raw_post(payload))
        assert status_of(answered) == 200, answered
        told: dict[str, Any] = json.loads(answered.partition(b"\r\n\r\n")[2])
        return told

    def script(self, **acts: Act | list[Act]) -> None:
        """Set the answers to fetch, find, create, update and remove from now on; the last one of a list repeats."""
        names = {"fetch": FETCH, "find": FIND, "update": UPDATE, "create": CREATE, "remove": REMOVE}
        for name, act in acts.items():
            self.server.routes[names[name]] = list(act) if isinstance(act, list) else [act]

    @property
    def asked(self) -> list[str]:
        """Every call, in order."""
        return [f"{seen.method} {seen.target}" for seen in self.server.seen]

    def sent(self, call: str = UPDATE) -> list[dict[str, Any]]:
        """The bodies of these calls."""
        return [json.loads(seen.body) for seen in self.server.seen if f"{seen.method} {seen.target}" == call]


class SyncSteps(Steps):
    """The relay's steps with the real deliverer of the route, by one clock that starts `BEHIND` and then stands still."""

    def __init__(self, engine: Engine, flow: Flow) -> None:
        super().__init__(engine, policies(flow.config), FakeClock(SystemClock().now() - BEHIND))
        self._flow = flow
        self._engine = engine
        self._sync: Deliverer = build(flow.config)[ROUTE]

    def deliver(self, claimed: Sequence[Delivery]) -> list[tuple[Delivery, Outcome]]:
        """Make the attempts."""
        context = Limits(lambda: float("inf"), threading.Event(), self.clock.now)
        return [(delivery, attempt(delivery, self._sync, context)) for delivery in claimed]

    def tell(self, event_type: str = "UPDATE", *, at: datetime | None = None) -> None:
        """Send a webhook of something that happens now, and do all that is due."""
        self._flow.tell(at or self.clock.moment, event_type)
        self.until_nothing_is_due()

    def later(self, seconds: float = 120) -> None:
        """Let so much time pass that whatever waits is due, and do it."""
        self.advance(seconds)
        self.until_nothing_is_due()

    def left(self) -> dict[str, int]:
        """Count the open deliveries by their states."""
        return open_states(self._engine)


def in_seconds(at: datetime) -> str:
    """A time as a webhook gives it, without a fraction."""
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")


def user(name: str, last_modified: str | None = None, **more: object) -> Act:
    """The identity service knows them by this name."""
    meta = {} if last_modified is None else {"meta": {"lastModified": last_modified}}
    return answer(200, {"id": "u1", "name": name, **meta, **more})


@contextlib.contextmanager
def flowing(
    database_url: str, *, sync: str = SYNC, auth: str = BASIC, api: str = "", schedule: tuple[str, ...] = ("5s", "30s")
) -> Iterator[Flow]:
    """A receiver, and both services: they know one user and their contact, and take every change.

    `auth` may name the server by `{url}`; `api` is further lines of the api's table.
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
        with served(database_url, config) as port:
            flow = Flow(config, port, server)
            flow.script(fetch=user("Ada"), find=FOUND, update=answer(), create=answer(201), remove=answer(204))
            yield flow


def relaying(engine: Engine, config: Config) -> contextlib.AbstractContextManager[Relay]:
    """The daemon at work, by the machine's clock; it is stopped when the block ends."""
    return at_work(Relay(Database(engine), prepare(config), grace_seconds=5))
