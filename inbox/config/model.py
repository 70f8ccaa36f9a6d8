"""The tables of `inbox.toml` as frozen values, for both sides.

The classes of this package are the reference of the file: a field is a key, its type is what the key takes, and its
default is what happens without it. `inbox.toml` is read once (`inbox.loader.load`) and handed on.
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
    """A secret in a header of its own."""

    name: str
    value: Secret


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


class BreakerSettings(Table, frozen=True):
    """Circuit breaker: it stops calls when half of ten or more attempts in a minute have failed. All relays share it."""

    open_for: Duration = Duration(30)
    """Time until one attempt probes the endpoint. It doubles each time the probe fails, up to ten minutes."""


class Limited(Table, frozen=True):
    """Keys that apis and destinations have in common."""

    name: str = ""
    timeout: Duration = Duration(15)
    """Time for one call, from name resolution to the last byte of the answer."""
    concurrency: Annotated[int, msgspec.Meta(ge=1, le=256)] = 8
    """Concurrent attempts of each relay process."""
    rate: Rate | None = None
    """Largest number of calls of all relays together. A burst may have one second's worth, and at least two."""
    breaker: BreakerSettings = BreakerSettings()


class Endpoint(Limited, frozen=True):
    """Keys of apis and destinations that are called by HTTP."""

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
    """A service that entities are fetched from."""

    base_url: str


Answered = Literal[
    "throttled", "server_error", "rejected", "auth", "not_found", "gone", "conflict", "redirect", "bad_answer"
]
"""Classes of answers; docs/reference/delivery.md lists the statuses of each."""
Consequence = Literal["retry", "confirm", "again", "dead"]


class Downstream(Endpoint, frozen=True):
    """Keys of destinations that are called by HTTP."""

    outcomes: dict[Answered, Consequence] = {}
    """Consequence of each class of answers, where it differs from the default in docs/reference/delivery.md."""


class ForwardDestination(Downstream, frozen=True, tag="forward", tag_field="kind", kw_only=True):
    """Destination that gets the original body, byte for byte. A secret signs it as Standard Webhooks."""

    url: Secret
    signing_secret: Secret | None = None
    pass_headers: list[str] = []
    """Headers of the webhook to pass on, such as `X-GitHub-Event`, in any case. The receiver stores them with the event.
    None that the relay adds, that belongs to the connection or that may hold a secret; nor one by which the source proves
    itself. Of the same name, the destination's own header is sent."""


class SyncDestination(Downstream, frozen=True, tag="sync", tag_field="kind", kw_only=True):
    """Destination that is kept in sync with the source: fetch, find, map, then create, update or delete."""

    base_url: str


class SlackDestination(Downstream, frozen=True, tag="slack", tag_field="kind", kw_only=True):
    """Destination that gets a message for each event, for Slack's incoming webhooks."""

    url: Secret
    text: str
    """Message: a template over `event`. Its own text is Slack's markup; values become escaped text on one line, also
    inside a link such as `<https://crm.example/{event.entity_id}|open>`."""


class PythonDestination(Limited, frozen=True, tag="python", tag_field="kind", kw_only=True):
    """Calls a function of yours: docs/how-to/write-a-handler.md."""

    function: str
    """`package.module:name`, imported when the relay starts; the folder of `inbox.toml` is searched last."""


Destination = ForwardDestination | PythonDestination | SlackDestination | SyncDestination


# --- `[routes.NAME.retry]`: delays between the attempts of a delivery, with their defaults.


class Retry(Table, frozen=True):
    """Delays between the attempts of a delivery. It dies when the attempt after the last delay fails.

    Each delay is longer by up to a fifth at random, so that deliveries that failed together are not tried together.
    """

    schedule: tuple[Duration, ...] = tuple(
        Duration(seconds) for seconds in (5, 30, 300, 1800, 7200, 18000, 36000, 36000, 50400, 72000)
    )
    window: Duration | None = None
    """Time from the first attempt of a run in which further ones may begin. The delivery dies when the next one would be later."""


# --- `[retention]`: ages at which relays delete what has ended.


RetentionKind = Literal[
    "payloads",
    "events",
    "attempts",
    "rejected",
    "duplicates",
    "relay_nodes",
    "alerts",
    "commands",
    "reveals",
    "throughput",
]
"""Each kind of rows that expires; `relay.store.retention` has the step of each."""

_DAY = 86400


class Retention(Table, frozen=True):
    """Ages after which relays delete what has ended: a duration such as `"30d"`, or `"forever"`.

    They never delete anything that is open, blocked, dead or not judged yet. A dead delivery keeps its event and its
    payload until it is delivered or cancelled.
    """

    payloads: Age = Age(30 * _DAY)
    """Headers and bodies of events. The events stay, without them; such an event can't be replayed."""
    events: Age = Age(400 * _DAY)
    """Events with their keys, facts and duplicates; one with a younger fact stays. A request that comes later counts as new."""
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
    """Rows of `payload_reveal`: who saw the headers and body of which event on the operator's page, and why."""
    throughput: Age = Age(30 * _DAY)
    """Figures of each minute in `throughput_minute`."""

    def age_of(self, kind: RetentionKind) -> Age:
        """Return the age of a kind."""
        age: Age = getattr(self, kind)
        return age


# --- `[web]`: who may use the operator's page and its API.


class WebProxy(Table, frozen=True):
    """A proxy in front of the page that has signed people in, and says in a header who they are."""

    networks: Networks
    """Addresses and networks of the proxy. From others the header does not count. Who can call from one of them is anybody."""
    header: str = "X-Forwarded-User"
    """Header with the name of the person."""
    operators: list[str] = []
    """Names that may change something; everybody else is a viewer."""


class Web(Table, frozen=True):
    """The operator's page (`relay web`). It does not start unless one of `users`, `tokens` and `proxy` says who may use it."""

    users: Secret | None = None
    """Lines of `NAME:ROLE:HASH` of people with a password, as `relay web passwd` writes them; usually `file:/path`."""
    tokens: Secret | None = None
    """Lines of `NAME:ROLE:HASH` of bearer tokens for the API, as `relay web token` writes them; usually `file:/path`."""
    proxy: WebProxy | None = None
    viewer_url: DatabaseUrl | None = None
    """URL of viewers, with the role `inbox_reader` or `inbox_reader_without_payloads`: then a bug of the page can't write."""
    origin: str | None = None
    """Scheme and host of the page as browsers see it, such as `https://relay.example.com`. Else it has
    IP addresses and `localhost` alone."""
    session: Duration = Duration(12 * 3600)
    """Longest time until a person has to sign in again."""


# --- `[traces]`: where each side exports its traces to.


CollectorUrl = Annotated[str, msgspec.Meta(pattern=r"\Ahttps?://[^\s/@]+(/[^\s@]*)?\Z")]


class Traces(Table, frozen=True):
    """Traces of both sides by OpenTelemetry, with the extra `otel`. Its standard variables (`OTEL_…`) win over these keys."""

    endpoint: CollectorUrl | None = None
    """URL of a collector that takes OTLP by HTTP, such as `http://127.0.0.1:4318/v1/traces`. Without it, and without the
    standard variables, nothing is traced."""
    ratio: Annotated[float, msgspec.Meta(ge=0, le=1)] = 1.0
    """Share of the traces that begin here which are sampled. A trace that the sender began is sampled as the sender said."""


# --- `[logs]`: the form of the log.


class Logs(Table, frozen=True):
    """The log of both programs and of the operator's page."""

    format: Format = "text"
    """`text` is for people; `json` writes [the same keys](logs.md) everywhere."""


# --- the file


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
    allow_private: bool = False
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

    def require_same(self, new: Config, *settings: str) -> None:
        """Check that another configuration has the same values of tables, or of keys such as `database.url`.

        Raises:
            ConfigError: it has not; the text has a line for each.
        """
        changed = [name for name in settings if attrgetter(name)(self) != attrgetter(name)(new)]
        if changed:
            places = (f"[{name.partition('.')[0]}] {name.partition('.')[2]}".rstrip() for name in changed)
            raise ConfigError("\n".join(f"{place}: another value needs a restart" for place in places))
