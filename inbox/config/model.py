"""The tables of `inbox.toml` as frozen values, for both sides.

The classes below are the reference of the file: a field is a key, its type is what the key takes, and its default is
what happens without it. `inbox.toml` is read once (`inbox.loader.load`) and handed on.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from inbox.config.source import (
    BasicAuth,
    BearerAuth,
    EventFields,
    HeaderAuth,
    InboundAuth,
    NoAuth,
    Signature,
    Source,
    UrlTokenAuth,
)
from inbox.config.sync import SyncRoute
from inbox.config.types import Address, Duration, Network, Rate, Secret, Table
from inbox.events.event import Action


class Exponential(Table, frozen=True, kw_only=True):
    """Delays that grow, in place of a schedule."""

    first: Duration
    """Delay after the first attempt."""
    factor: Annotated[float, msgspec.Meta(ge=1, le=10)] = 2.0
    """Each delay is longer than the one before by this factor."""
    longest: Duration = Duration(6 * 3600)
    """Longest delay."""
    attempts: Annotated[int, msgspec.Meta(ge=1, le=100)] = 20
    """Attempts in all; after the last, the delivery dies."""


class Retry(Table, frozen=True):
    """Delays between the attempts of a delivery. It dies when the attempt after the last delay fails."""

    schedule: tuple[Duration, ...] = tuple(
        Duration(seconds) for seconds in (5, 30, 300, 1800, 7200, 18000, 36000, 36000, 50400, 72000)
    )
    exponential: Exponential | None = None
    """Delays that grow, in place of `schedule`."""
    window: Duration | None = None
    """Time from the first attempt of a run in which further ones may begin. The delivery dies when the next one would be later."""
    jitter: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.2
    """Largest part of a delay that is added at random."""


class Metrics(Table, frozen=True):
    """Addresses at which each side serves its metrics, without authentication. Omit a key to disable its metrics."""

    receiver: Address | None = None
    relay: Address | None = None


__all__ = [
    "BasicAuth",
    "BearerAuth",
    "Duration",
    "EventFields",
    "Exponential",
    "HeaderAuth",
    "InboundAuth",
    "NoAuth",
    "Rate",
    "Retry",
    "Secret",
    "Signature",
    "Source",
    "UrlTokenAuth",
]  # what this module passes on, besides the classes below

Name = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_-]{1,64}\Z")]
Ordering = Literal["latest", "strict"]
Networks = Annotated[list[Network], msgspec.Meta(min_length=1)]


class DatabaseSettings(Table, frozen=True):
    """The database of both sides."""

    url: str = "sqlite:///inbox.db"


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


# --- what goes out


class ApiBasic(Table, frozen=True, tag="basic", tag_field="kind"):
    """HTTP Basic."""

    user: Secret
    password: Secret


class ApiBearer(Table, frozen=True, tag="bearer", tag_field="kind"):
    """`Authorization: Bearer …`."""

    token: Secret


class ApiHeader(Table, frozen=True, tag="header", tag_field="kind"):
    """A secret in a header of its own."""

    name: str
    value: Secret


Answered = Literal[
    "throttled", "server_error", "rejected", "auth", "not_found", "gone", "conflict", "redirect", "bad_answer"
]
"""Classes of answers; docs/reference/delivery.md lists the statuses of each."""
Consequence = Literal["retry", "confirm", "again", "dead"]


class ApiOauth2(Table, frozen=True, tag="oauth2", tag_field="kind"):
    """A bearer token by client credentials (RFC 6749 §4.4), renewed before it expires, and once when it is rejected."""

    token_url: str
    """URL that issues tokens. The endpoint's `timeout`, `proxy`, `ca_file` and network rules apply to it, too."""
    client_id: Secret
    client_secret: Secret
    scope: str | None = None
    """Scopes to request, separated by spaces."""
    credentials: Literal["header", "body"] = "header"
    """Place of the id and secret in the request for a token: HTTP Basic, or its form."""


OutboundAuth = ApiBasic | ApiBearer | ApiHeader | ApiOauth2


class BreakerLimits(Table, frozen=True):
    """Circuit breaker: the conditions that stop calls, and for how long. All relays share it."""

    calls: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 10
    """Least number of attempts in `window` before it opens."""
    failed: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.5
    """Share of failed attempts at which it opens."""
    window: Duration = Duration(60)
    open_for: Duration = Duration(30)
    """Time until one attempt probes the endpoint. It doubles each time the probe fails."""
    longest: Duration = Duration(600)


class Endpoint(Table, frozen=True):
    """Keys that apis and destinations have in common."""

    name: str = ""
    auth: OutboundAuth | None = None
    headers: dict[str, str] = {}
    timeout: Duration = Duration(15)
    """Time for one call, from name resolution to the last byte of the answer."""
    concurrency: Annotated[int, msgspec.Meta(ge=1, le=256)] = 8
    """Concurrent attempts of each relay process."""
    rate: Rate | None = None
    """Largest number of calls of all relays together. A burst may have one second's worth, and at least two."""
    proxy: str | None = None
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    allow_private: bool = False
    allow_to: Networks | None = None
    block_to: list[Network] = []
    allow_http: bool = False
    breaker: BreakerLimits = BreakerLimits()


class Api(Endpoint, frozen=True, kw_only=True):
    """A service that entities are fetched from."""

    base_url: str


class Downstream(Endpoint, frozen=True):
    """Keys that destinations have in common."""

    outcomes: dict[Answered, Consequence] = {}
    """Consequence of each class of answers, where it differs from the default in docs/reference/delivery.md."""


class ForwardDestination(Downstream, frozen=True, tag="forward", tag_field="kind", kw_only=True):
    """Destination that gets the original body, byte for byte. A secret signs it as Standard Webhooks."""

    url: Secret
    signing_secret: Secret | None = None


class SyncDestination(Downstream, frozen=True, tag="sync", tag_field="kind", kw_only=True):
    """Destination that is kept in sync with the source: fetch, find, map, then create, update or delete."""

    base_url: str


class SlackDestination(Downstream, frozen=True, tag="slack", tag_field="kind", kw_only=True):
    """Destination that gets a message for each event, for Slack's incoming webhooks."""

    url: Secret
    text: str
    """Message: a template over `event`. Its own text is Slack's markup; values become escaped text on one line, also
    inside a link such as `<https://crm.example/{event.entity_id}|open>`."""


class PythonDestination(Downstream, frozen=True, tag="python", tag_field="kind", kw_only=True):
    """Calls a function of yours: docs/how-to/write-a-handler.md. Shared keys: `timeout`, `concurrency`, `rate`, `breaker`."""

    function: str
    """`package.module:name`, imported when the relay starts; the folder of `inbox.toml` is searched last."""


Destination = ForwardDestination | PythonDestination | SlackDestination | SyncDestination


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
    sources: dict[Name, Source] = {}
    apis: dict[Name, Api] = {}
    destinations: dict[Name, Destination] = {}
    routes: dict[Name, Route] = {}

    def ordering_of(self, route: Route) -> Ordering:
        """Return the ordering of the route: its own, or else the default of its destination's kind."""
        if route.ordering is not None:
            return route.ordering
        return "latest" if isinstance(self.destinations[route.destination], SyncDestination) else "strict"
