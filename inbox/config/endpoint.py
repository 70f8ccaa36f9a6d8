"""`[apis.NAME]` and `[destinations.NAME]`: endpoints that the relay calls, with their timeouts, limits and authentication."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from inbox.config.types import Duration, Network, Networks, Rate, Secret, Table


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
    breaker: BreakerSettings = BreakerSettings()


class Api(Endpoint, frozen=True, kw_only=True):
    """A service that entities are fetched from."""

    base_url: str


Answered = Literal[
    "throttled", "server_error", "rejected", "auth", "not_found", "gone", "conflict", "redirect", "bad_answer"
]
"""Classes of answers; docs/reference/delivery.md lists the statuses of each."""
Consequence = Literal["retry", "confirm", "again", "dead"]


class Downstream(Endpoint, frozen=True):
    """Keys that destinations have in common."""

    outcomes: dict[Answered, Consequence] = {}
    """Consequence of each class of answers, where it differs from the default in docs/reference/delivery.md."""


class ForwardDestination(Downstream, frozen=True, tag="forward", tag_field="kind", kw_only=True):
    """Destination that gets the original body, byte for byte. A secret signs it as Standard Webhooks."""

    url: Secret
    signing_secret: Secret | None = None
    pass_headers: list[str] = []
    """Headers of the webhook to pass on, such as `X-GitHub-Event`, in any case. The receiver stores them with the event.
    None that the relay adds, that belongs to the connection or that may hold a secret."""


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
