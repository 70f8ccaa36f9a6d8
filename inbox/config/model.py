"""The tables of `inbox.toml` as frozen values, for the receiver and the relay.

The classes of this package are the file's reference: a field is a key, with the type and the default of its value.
`inbox.toml` is read once (`inbox.loader.load`) and handed on.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Annotated, Literal

import msgspec

from inbox.config.sources import Source
from inbox.config.sync import SyncRoute
from inbox.config.values import Address, Age, DatabaseUrl, Duration, Network, Networks, Rate, SchemaName, Secret, Table
from inbox.errors import ConfigError
from inbox.events.event import Action
from inbox.observe.logs import Format


class ApiBasic(Table, frozen=True, tag="basic", tag_field="kind"):
    """HTTP Basic."""

    user: Secret
    password: Secret


class ApiBearer(Table, frozen=True, tag="bearer", tag_field="kind"):
    """`Authorization: Bearer …`."""

    token: Secret


class ApiHeader(Table, frozen=True, tag="header", tag_field="kind"):
    """A secret in a header of your choice."""

    name: str
    value: Secret


class ApiOauth2(Table, frozen=True, tag="oauth2", tag_field="kind"):
    """A bearer token by client credentials (RFC 6749 §4.4), renewed before it expires, and once after a rejection."""

    token_url: str
    """URL that issues tokens. The endpoint's `timeout`, `proxy`, `ca_file` and network rules apply to it, too."""
    client_id: Secret
    client_secret: Secret
    scope: str | None = None
    """Scopes to request, separated by spaces."""
    credentials: Literal["header", "body"] = "header"
    """Place of the id and secret in the token request: HTTP Basic, or the form."""


OutboundAuth = ApiBasic | ApiBearer | ApiHeader | ApiOauth2


class BreakerSettings(Table, frozen=True):
    """Circuit breaker, shared by all relays: it stops calls when half of at least ten attempts in a minute failed."""

    open_for: Duration = Duration(30)
    """Time until one attempt probes the endpoint. It doubles after each failed probe, up to ten minutes."""


class Limited(Table, frozen=True):
    """Keys shared by apis and destinations."""

    name: str = ""
    timeout: Duration = Duration(15)
    """Time limit of one call, from name resolution to the last byte of the response."""
    concurrency: Annotated[int, msgspec.Meta(ge=1, le=256)] = 8
    """Maximum concurrent attempts of each relay process at a destination. An api is limited by its `rate` alone."""
    rate: Rate | None = None
    """Maximum rate of calls of all relays together. A burst may have one second's worth of calls, and at least two."""
    breaker: BreakerSettings = BreakerSettings()


class Endpoint(Limited, frozen=True):
    """Keys of apis and destinations called over HTTP."""

    auth: OutboundAuth | None = None
    headers: dict[str, str] = {}
    proxy: str | None = None
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    allow_private: bool = False
    allow_to: Networks | None = None
    block_to: list[Network] = []
    allow_http: bool = False


class Api(Endpoint, frozen=True, kw_only=True):
    """A service from which entities are fetched."""

    base_url: str


Answered = Literal[
    "throttled", "server_error", "rejected", "auth", "not_found", "gone", "conflict", "redirect", "bad_answer"
]
"""Classes of responses; docs/reference/delivery.md lists the statuses of each."""
Consequence = Literal["retry", "confirm", "again", "dead"]


class Downstream(Endpoint, frozen=True):
    """Keys of destinations called over HTTP."""

    outcomes: dict[Answered, Consequence] = {}
    """Consequences of response classes, where they differ from the defaults in docs/reference/delivery.md."""


class ForwardDestination(Downstream, frozen=True, tag="forward", tag_field="kind", kw_only=True):
    """Destination that receives the original body, byte for byte, optionally signed as Standard Webhooks."""

    url: Secret
    signing_secret: Secret | None = None
    pass_headers: list[str] = []
    """Headers of the webhook to pass on, such as `X-GitHub-Event`, in any case. The receiver stores them with the
    event. Headers that the relay adds, that belong to the connection, that may hold a secret or that authenticate
    the source can't be passed on. The destination's own header of the same name wins."""


class SyncDestination(Downstream, frozen=True, tag="sync", tag_field="kind", kw_only=True):
    """Destination kept in sync with the source: fetch, find, map, then create, update or delete."""

    base_url: str


class SlackDestination(Downstream, frozen=True, tag="slack", tag_field="kind", kw_only=True):
    """Destination that posts a message for each event to a Slack incoming webhook."""

    url: Secret
    text: str
    """Message: a template over `event`, in Slack's markup. Values are escaped and put on one line, even inside a link
    such as `<https://crm.example/{event.entity_id}|open>`."""


class PythonDestination(Limited, frozen=True, tag="python", tag_field="kind", kw_only=True):
    """Destination that calls your own function: see docs/how-to/write-a-handler.md."""

    function: str
    """`package.module:name`, imported when the relay starts; the folder of `inbox.toml` is searched last."""


Destination = ForwardDestination | PythonDestination | SlackDestination | SyncDestination


# --- `[routes.NAME.retry]`: delays between the attempts of a delivery, with their defaults.


class Retry(Table, frozen=True):
    """Delays between the attempts of a delivery, which dies when the attempt after the last delay fails.

    Each delay is extended at random by up to a fifth, so that deliveries that failed together are not retried together.
    """

    schedule: tuple[Duration, ...] = tuple(
        Duration(seconds) for seconds in (5, 30, 300, 1800, 7200, 18000, 36000, 36000, 50400, 72000)
    )
    window: Duration | None = None
    """Time from the first attempt of a run within which retries may begin. A delivery whose next attempt would be later dies."""


# --- `[retention]`: ages at which relays delete ended rows.


RetentionKind = Literal[
    "payloads",
    "events",
    "attempts",
    "calls",
    "rejected",
    "duplicates",
    "relay_nodes",
    "alerts",
    "commands",
    "reveals",
    "throughput",
]
"""Kinds of rows that expire; `relay.store.retention` has the step of each."""

_DAY = 86400


class Retention(Table, frozen=True):
    """Ages after which relays delete ended rows: a duration such as `"30d"`, or `"forever"`.

    Relays never delete anything open, blocked, dead or not judged yet. A dead delivery keeps its event and payload
    until it is delivered or cancelled.
    """

    payloads: Age = Age(30 * _DAY)
    """Headers and bodies of events, and the calls of failed attempts. The events stay, but can't be replayed any more."""
    events: Age = Age(400 * _DAY)
    """Events with their keys, facts and duplicates; events with younger facts stay. A later duplicate counts as a new event."""
    attempts: Age = Age(30 * _DAY)
    """Failed and abandoned attempts of deliveries that have ended. The fact that ended a delivery stays with its event."""
    rejected: Age = Age(14 * _DAY)
    """Rejected requests."""
    duplicates: Age = Age(14 * _DAY)
    """Duplicate requests that a relay has judged."""
    relay_nodes: Age = Age(90 * _DAY)
    """Runs of relay processes that have ended."""
    alerts: Age = Age(90 * _DAY)
    """Alerts. The last one of each kind and subject stays."""
    commands: Age = Age(90 * _DAY)
    """Commands of operators that have ended."""
    reveals: Age = Age(400 * _DAY)
    """Rows of `payload_reveal`: the operators who viewed headers and bodies on the page, with their reasons."""
    throughput: Age = Age(30 * _DAY)
    """Figures per minute in `throughput_minute`."""

    def get_age(self, kind: RetentionKind) -> Age:
        """Return the age of a kind. Calls quote requests, so they are kept no longer than payloads."""
        age: Age = getattr(self, "payloads" if kind == "calls" else kind)
        return age


# --- `[web]`: access to the operator's page and its API.


class WebProxy(Table, frozen=True):
    """A proxy in front of the page that signs people in and sends their names in a header."""

    networks: Networks
    """Addresses and networks of the proxy. The header from other addresses is ignored. Callers from these can pose as any user."""
    header: str = "X-Forwarded-User"
    """Header with the person's name."""
    operators: list[str] = []
    """Names of operators, who may make changes; all others are viewers."""


class Web(Table, frozen=True):
    """The operator's page (`relay web`). It needs at least one of `users`, `tokens` and `proxy` to start."""

    users: Secret | None = None
    """Users with a password: lines `NAME:ROLE:HASH`, as `relay web passwd` writes them; usually `file:/path`."""
    tokens: Secret | None = None
    """Bearer tokens for the API: lines `NAME:ROLE:HASH`, as `relay web token` writes them; usually `file:/path`."""
    proxy: WebProxy | None = None
    viewer_url: DatabaseUrl | None = None
    """Database URL for viewers, with the role `inbox_reader` or `inbox_reader_without_payloads`: a bug of the page then
    can't write."""
    origin: str | None = None
    """Scheme and host of the page as browsers see it, such as `https://relay.example.com`. Without it, the page answers
    only to IP addresses and `localhost`."""
    session: Duration = Duration(12 * 3600)
    """Time after which a person has to sign in again."""


# --- `[traces]`: export of traces.


CollectorUrl = Annotated[str, msgspec.Meta(pattern=r"\Ahttps?://[^\s/@]+(/[^\s@]*)?\Z")]


class Traces(Table, frozen=True):
    """OpenTelemetry traces of both programs; needs the extra `otel`. The standard variables (`OTEL_…`) override these keys."""

    endpoint: CollectorUrl | None = None
    """URL of a collector for OTLP over HTTP, such as `http://127.0.0.1:4318/v1/traces`. Without it and the standard
    variables, nothing is traced."""
    ratio: Annotated[float, msgspec.Meta(ge=0, le=1)] = 1.0
    """Share of traces to sample. Traces begun by the sender keep the sender's decision."""


# --- `[logs]`: the log format.


class Logs(Table, frozen=True):
    """The log of both programs and the operator's page."""

    format: Format = "text"
    """`text` is for people; `json` writes [the same keys](logs.md) everywhere."""


# --- the file


class Metrics(Table, frozen=True):
    """Metrics of each program, served to Prometheus without authentication. Omit a key to disable it."""

    receiver: Address | None = None
    relay: Address | None = None


Name = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_-]{1,64}\Z")]
Ordering = Literal["latest", "strict"]


class DatabaseSettings(Table, frozen=True):
    """The database of both programs."""

    url: DatabaseUrl = DatabaseUrl("sqlite:///inbox.db")
    """`sqlite:///FILE`, or `postgresql+psycopg://USER@HOST/NAME`; or a reference, `env:NAME` or `file:/path`. The
    environment variable `INBOX_DATABASE_URL` overrides it and the password."""
    password: Secret | None = None
    """Password for a Postgres `url` without one."""
    schema: SchemaName | None = None
    """Postgres schema of all tables, by default `public`; `inbox migrate` creates it. `?schema=` in the url overrides it."""
    wake_up: bool = True
    """Wake idle relays when an event is stored, by NOTIFY on Postgres. Otherwise they poll every 500 ms."""


class Outbound(Table, frozen=True):
    """Networks that all calls of the relay may reach, in addition to those of each api and destination and of `[alerts]`."""

    allow_to: Networks | None = None
    block_to: list[Network] = []


AlertFormat = Literal["json", "slack"]


class Alerts(Table, frozen=True):
    """Alerts. Each problem and each recovery is posted once."""

    url: Secret | None = None
    """URL to which each alert is posted. Without it, alerts go only to the log and the table `alert`."""
    format: AlertFormat = "json"
    """`json` posts the whole alert; `slack` posts a message to a Slack incoming webhook."""
    allow_private: bool = False
    allow_http: bool = False
    backlog_after: Duration = Duration(3600)
    """Age of a waiting event from which its route counts as behind."""


class When(Table, frozen=True):
    """Conditions on an event; all given ones must match."""

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
    """By default `latest` for routes that fetch, and `strict` for the others."""
    lane: Literal["entity", "route", "event"] = "entity"
    on_dead: Literal["continue", "block"] = "continue"
    retry: Retry = Retry()
    sync: SyncRoute | None = None

    @property
    def api(self) -> str | None:
        """Return the api from which the route fetches its entities; None if it fetches nothing."""
        return None if self.sync is None or self.sync.fetch is None else self.sync.fetch.api


class Config(Table, frozen=True):
    """The whole file."""

    database: DatabaseSettings = DatabaseSettings()
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

    def get_ordering(self, route: Route) -> Ordering:
        """Return the route's ordering: its own, or the default for routes that fetch, or that don't."""
        if route.ordering is not None:
            return route.ordering
        return "strict" if route.api is None else "latest"

    def require_same(self, new: Config, *settings: str) -> None:
        """Check that `new` has the same values of these tables, or of keys such as `database.url`.

        Raises:
            ConfigError: some differ; the message has a line for each.
        """
        changed = [name for name in settings if attrgetter(name)(self) != attrgetter(name)(new)]
        if changed:
            places = (f"[{name.partition('.')[0]}] {name.partition('.')[2]}".rstrip() for name in changed)
            raise ConfigError("\n".join(f"{place}: another value needs a restart" for place in places))
