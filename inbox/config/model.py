"""The tables of `inbox.toml` as frozen values, for both sides.

The classes of this package are the reference of the file: a field is a key, its type is what the key takes, and its
default is what happens without it. `inbox.toml` is read once (`inbox.loader.load`) and handed on.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from inbox.config.endpoint import Api, Destination, SyncDestination
from inbox.config.logs import Logs
from inbox.config.retention import Retention
from inbox.config.retry import Retry
from inbox.config.source import Source
from inbox.config.sync import SyncRoute
from inbox.config.traces import Traces
from inbox.config.types import Address, DatabaseUrl, Duration, Network, Networks, SchemaName, Secret, Table
from inbox.config.web import Web
from inbox.events.event import Action


class Metrics(Table, frozen=True):
    """Metrics of each side: served to Prometheus without authentication. Omit a key to disable it."""

    receiver: Address | None = None
    relay: Address | None = None


Name = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_-]{1,64}\Z")]
Ordering = Literal["latest", "strict"]


class DatabaseSettings(Table, frozen=True):
    """The database of both sides."""

    url: DatabaseUrl = DatabaseUrl("sqlite:///inbox.db")
    """`sqlite:///FILE`, or `postgresql+psycopg://USER@HOST/NAME`; or its place, `env:NAME` or `file:/path`. The environment
    variable `INBOX_DATABASE_URL` overrides it, and the password."""
    password: Secret | None = None
    """Password for a Postgres `url` without one."""
    schema: SchemaName | None = None
    """Postgres schema of all tables, `public` unless given; `inbox migrate` creates it. `?schema=` of a url goes before it."""
    wake_up: bool = True
    """Wake idle relays when an event is stored, by NOTIFY on Postgres. Without it they look every 500 ms."""


class Receiver(Table, frozen=True):
    """Limits of each worker process of the receiver. Beyond them it answers 503."""

    connections: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 4000
    """Open connections; each needs one of the file descriptors that the system allows a process."""
    requests: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 1000
    """Requests in progress, including those that wait for an outcome."""
    requests_per_connection: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 1000
    """Requests on one connection. The answer to the last one closes it."""
    memory: Annotated[int, msgspec.Meta(ge=1)] = 256 * 1024 * 1024
    """Bytes of memory for their bodies: four for each byte, and none for the first 64 KiB of a body."""


class Outbound(Table, frozen=True):
    """Networks that all calls of the relay may reach, in addition to the rules of each api, destination and of `[alerts]`."""

    allow_to: Networks | None = None
    block_to: list[Network] = []


AlertFormat = Literal["json", "slack"]


class Alerts(Table, frozen=True):
    """Alerts: each problem and each recovery is posted once."""

    url: Secret | None = None
    """URL that gets a POST for each alert. Without it, alerts are written to the log and the table `alert` only."""
    format: AlertFormat = "json"
    """`json` posts the whole alert; `slack` posts a message for Slack's incoming webhooks."""
    timeout: Duration = Duration(10)
    allow_private: bool = False
    allow_to: Networks | None = None
    block_to: list[Network] = []
    allow_http: bool = False
    backlog_after: Duration = Duration(3600)
    """A route is behind when an event has waited this long."""


class When(Table, frozen=True):
    """Conditions on an event. All that are given must match."""

    entity_type: list[str] = []
    event_type: list[str] = []
    action: list[Action] = []


class Route(Table, frozen=True, kw_only=True):
    """A route: events of the source that match `when` go to the destination."""

    name: str = ""
    source: str
    destination: str
    when: When = When()
    ordering: Ordering | None = None
    """`latest` for sync, `strict` for the others, unless given."""
    lane: Literal["entity", "route", "event"] = "entity"
    on_dead: Literal["continue", "block"] = "continue"
    retry: Retry = Retry()
    sync: SyncRoute | None = None


class Config(Table, frozen=True):
    """The whole file."""

    database: DatabaseSettings = DatabaseSettings()
    receiver: Receiver = Receiver()
    outbound: Outbound = Outbound()
    alerts: Alerts = Alerts()
    metrics: Metrics = Metrics()
    traces: Traces = Traces()
    logs: Logs = Logs()
    retention: Retention = Retention()
    web: Web = Web()
    sources: dict[Name, Source] = {}
    apis: dict[Name, Api] = {}
    destinations: dict[Name, Destination] = {}
    routes: dict[Name, Route] = {}

    def ordering_of(self, route: Route) -> Ordering:
        """Return the ordering of the route: its own, or else the default of its destination's kind."""
        if route.ordering is not None:
            return route.ordering
        return "latest" if isinstance(self.destinations[route.destination], SyncDestination) else "strict"
