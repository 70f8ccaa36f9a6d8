"""All of `inbox.toml` as frozen values, for both sides.

The classes below are the reference of the file: a field is a key, its type is what the key takes, and its default is
what happens without it. `inbox.toml` is read once (`inbox.loader.load`) and handed on.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from inbox.config.source import (
    BasicAuth,
    BearerAuth,
    Fields,
    HeaderAuth,
    InboundAuth,
    NoAuth,
    Signature,
    Source,
    UrlTokenAuth,
)
from inbox.config.sync import Sync
from inbox.config.types import Address, Duration, Network, Rate, Secret, Table
from inbox.events.event import Action


class Exponential(Table, frozen=True, kw_only=True):
    """Delays that grow, in place of a schedule."""

    first: Duration
    """After the first attempt."""
    factor: Annotated[float, msgspec.Meta(ge=1, le=10)] = 2.0
    """By which each delay is longer than the one before."""
    longest: Duration = Duration(6 * 3600)
    """No delay is longer."""
    attempts: Annotated[int, msgspec.Meta(ge=1, le=100)] = 20
    """All of them together; after the last, the delivery dies."""


class Retry(Table, frozen=True):
    """When a failed attempt is repeated: after the first delay, then the second; after the last, the delivery dies."""

    schedule: tuple[Duration, ...] = tuple(
        Duration(seconds) for seconds in (5, 30, 300, 1800, 7200, 18000, 36000, 36000, 50400, 72000)
    )
    exponential: Exponential | None = None
    """Delays that grow, in place of `schedule`."""
    window: Duration | None = None
    """When the next attempt would be later than this after the first one of the run, the delivery dies instead."""
    jitter: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.2
    """The largest part of a delay that chance adds to it."""


class Metrics(Table, frozen=True):
    """Where each side serves its metrics, to anybody who can connect. What is not given is not counted."""

    receiver: Address | None = None
    relay: Address | None = None


__all__ = [
    "BasicAuth",
    "BearerAuth",
    "Duration",
    "Exponential",
    "Fields",
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


class Database(Table, frozen=True):
    """Where both sides keep everything."""

    url: str = "sqlite:///inbox.db"


class Receiver(Table, frozen=True):
    """How much the receiver lets in at once, in each worker process; beyond it the answer is 503."""

    connections: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 4000
    """Connections that may be open; each needs one of the files that the system lets a process open."""
    requests: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 1000
    """Requests that may be under way, those that wait for an outcome among them."""
    requests_per_connection: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 1000
    """Requests on one connection, until it is closed behind the answer to the last."""
    memory: Annotated[int, msgspec.Meta(ge=1)] = 256 * 1024 * 1024
    """Bytes that their bodies may take, four for each of theirs; the first 64 KiB of a body are not counted."""


class Outbound(Table, frozen=True):
    """Networks that the relay's calls may go to: for every api, destination and alert, besides those of its own."""

    allow_to: Networks | None = None
    block_to: list[Network] = []


AlertFormat = Literal["json", "slack"]


class Alerts(Table, frozen=True):
    """What is worth an alert, and where it is posted; each change for the worse, and each recovery, once."""

    url: Secret | None = None
    """Gets a POST for each; without it they stand in the log and in the table `alert`."""
    format: AlertFormat = "json"
    """All of an alert as JSON, or a message as Slack's incoming webhooks take it."""
    timeout: Duration = Duration(10)
    allow_private: bool = False
    allow_to: Networks | None = None
    block_to: list[Network] = []
    allow_http: bool = False
    backlog_after: Duration = Duration(3600)
    """A route is behind when an event has waited for so long."""


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
"""Classes of answers; docs/delivery.md says which statuses each has."""
Consequence = Literal["retry", "confirm", "again", "dead"]


class ApiOauth2(Table, frozen=True, tag="oauth2", tag_field="kind"):
    """A bearer token by client credentials (RFC 6749 §4.4), renewed before it ends, and once when it is refused."""

    token_url: str
    """Where tokens are got; the endpoint's `timeout`, `proxy`, `ca_file` and permissions hold for it, too."""
    client_id: Secret
    client_secret: Secret
    scope: str | None = None
    """Asked for with each token, separated by spaces."""
    credentials: Literal["header", "body"] = "header"
    """Where the id and secret stand in the request for a token: in HTTP Basic, or in its form."""


OutboundAuth = ApiBasic | ApiBearer | ApiHeader | ApiOauth2


class BreakerLimits(Table, frozen=True):
    """When calls are stopped altogether, and for how long. Shared by all relays."""

    calls: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 10
    """So many attempts in `window` at least, before it opens."""
    failed: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.5
    """The part of them that failed."""
    window: Duration = Duration(60)
    open_for: Duration = Duration(30)
    """Until one attempt may see whether it is well again; twice as long each time that it is not."""
    longest: Duration = Duration(600)


class Endpoint(Table, frozen=True):
    """What apis and destinations have in common."""

    name: str = ""
    auth: OutboundAuth | None = None
    headers: dict[str, str] = {}
    timeout: Duration = Duration(15)
    """For one call, from its first byte to its last, name resolution included."""
    concurrency: Annotated[int, msgspec.Meta(ge=1, le=256)] = 8
    """Attempts at once, for each relay process."""
    rate: Rate | None = None
    """So many calls at most, all relays together; a second's worth, two at least, may go out at once."""
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
    """A service that is asked for entities."""

    base_url: str


class Downstream(Endpoint, frozen=True):
    """What destinations have in common."""

    outcomes: dict[Answered, Consequence] = {}
    """What follows an answer of a class, where it is not what docs/delivery.md says."""


class ForwardDestination(Downstream, frozen=True, tag="forward", tag_field="kind", kw_only=True):
    """Gets the original body, byte for byte, signed as Standard Webhooks when a secret is given."""

    url: Secret
    signing_secret: Secret | None = None


class SyncDestination(Downstream, frozen=True, tag="sync", tag_field="kind", kw_only=True):
    """Is kept in step with the source: fetch, find, map, then create, update or delete."""

    base_url: str


class SlackDestination(Downstream, frozen=True, tag="slack", tag_field="kind", kw_only=True):
    """Gets a message for each event, as Slack's incoming webhooks take it."""

    url: Secret
    text: str
    """The message: a template over `event`. What is written here is Slack's markup; what an expression finds is text on one
    line, in a link `<https://crm.example/{event.entity_id}|open>` a part of it."""


class PythonDestination(Downstream, frozen=True, tag="python", tag_field="kind", kw_only=True):
    """Calls a function of yours: docs/handlers.md. Of the shared keys `timeout`, `concurrency`, `rate` and `breaker` are for it."""

    function: str
    """`package.module:name`; imported when the relay starts, also from the folder of `inbox.toml`."""


Destination = ForwardDestination | PythonDestination | SlackDestination | SyncDestination


class When(Table, frozen=True):
    """Conditions on an event; each that is given must name the event's value."""

    entity_type: list[str] = []
    event_type: list[str] = []
    action: list[Action] = []


class Route(Table, frozen=True, kw_only=True):
    """Events of this source that match go to that destination."""

    name: str = ""
    source: str
    destination: str
    when: When = When()
    ordering: Ordering | None = None
    """`latest` for sync, `strict` for the others, unless given."""
    lane: Literal["entity", "route", "event"] = "entity"
    on_dead: Literal["continue", "block"] = "continue"
    retry: Retry = Retry()
    sync: Sync | None = None


class Config(Table, frozen=True):
    """The whole file."""

    database: Database = Database()
    receiver: Receiver = Receiver()
    outbound: Outbound = Outbound()
    alerts: Alerts = Alerts()
    metrics: Metrics = Metrics()
    sources: dict[Name, Source] = {}
    apis: dict[Name, Api] = {}
    destinations: dict[Name, Destination] = {}
    routes: dict[Name, Route] = {}

    def ordering_of(self, route: Route) -> Ordering:
        """How the route orders a lane: as it says, or else as its destination's kind wants it."""
        if route.ordering is not None:
            return route.ordering
        return "latest" if isinstance(self.destinations[route.destination], SyncDestination) else "strict"
