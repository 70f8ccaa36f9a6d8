"""`[sources.NAME]`: who sends webhooks, how a request proves to come from there, and what is read in it."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from inbox.config.sync import Sweep
from inbox.config.types import Duration, Network, Rate, Secret, Table
from inbox.events.event import Action

Secrets = Annotated[list[Secret], msgspec.Meta(min_length=1)]


class NoAuth(Table, frozen=True, tag="none", tag_field="kind"):
    """Anybody may send: for a receiver that only its sender can reach."""


class BasicAuth(Table, frozen=True, tag="basic", tag_field="kind"):
    """HTTP Basic; each of `secrets` is a password that is valid now."""

    user: str
    secrets: Secrets


class BearerAuth(Table, frozen=True, tag="bearer", tag_field="kind"):
    """`Authorization: Bearer …`; or the query `?access_token=…`, where a sender can set nothing else (RFC 6750 §2.3)."""

    secrets: Secrets


class HeaderAuth(Table, frozen=True, tag="header", tag_field="kind"):
    """A secret in a header of its own."""

    name: str
    secrets: Secrets


class UrlTokenAuth(Table, frozen=True, tag="url_token", tag_field="kind"):
    """A secret as the last segment of the URL, for senders that can set nothing else."""

    secrets: Secrets


InboundAuth = NoAuth | BasicAuth | BearerAuth | HeaderAuth | UrlTokenAuth

Algorithm = Literal["sha256", "sha1", "sha512", "ed25519"]
Encoding = Literal["hex", "base64"]
Unit = Literal["s", "ms", "rfc3339"]


class Signature(Table, frozen=True, kw_only=True):
    """A provider's way to sign a request: with a secret that both know (HMAC), or with a private key."""

    header: str
    """The header that the signature is in."""
    prefix: str = ""
    """What each signature begins with, such as `sha256=` or `v1,`; what begins otherwise is none."""
    separator: str = ""
    """What stands between several parts of the header; without one, all of it is one signature."""
    timestamp_header: str = ""
    """The header with the time of signing."""
    timestamp_prefix: str = ""
    """Or else what the time begins with, as one of the parts of `header`, such as `t=`."""
    timestamp_unit: Unit = "s"
    """Seconds or milliseconds since 1970, or RFC 3339."""
    tolerance: Duration = Duration(300)
    """By how much the time of signing may differ from the time of arrival, before and after."""
    id_header: str = ""
    """The header with the id of the message."""
    content: str = "{body}"
    """What is signed: `{body}`, `{timestamp}`, `{id}`, `{method}`, `{url}` (the source's `public_url` and the query), and
    `{sorted_params}` (names and values of a form in the order of the names)."""
    algorithm: Algorithm = "sha256"
    """The hash of the HMAC; or `ed25519`, where `secrets` are public keys."""
    encoding: Encoding = "hex"
    """How the signature is written."""
    key: Literal["text", "base64", "hex"] = "text"
    """What the secret's text is: the key itself, or the key in base64 or hex."""
    key_prefix: str = ""
    """What a secret's text may begin with that is no part of the key, such as `whsec_`."""


class Fields(Table, frozen=True, kw_only=True):
    """With `custom`: where an event is told. Each is a JMESPath over `body`, `headers` (in lower case) and `item`."""

    type: str
    """The event type."""
    id: str | None = None
    """The provider's own id of the event: alone, it is what makes two requests the same event."""
    entity_type: str | None = None
    """The type of the entity; a text in quotes inside the quotes is a constant: `"'ORDER'"`."""
    entity_id: str | None = None
    """Its id; an event without a type and an id is of no entity."""
    time: str | None = None
    """When it happened; without it, the time of arrival."""
    time_unit: Unit = "rfc3339"
    """RFC 3339, or seconds or milliseconds since 1970."""
    items: str | None = None
    """The list of events, where a body has several; then each is `item`."""
    actions: dict[str, Action] = {}
    """What the event types do to the entity; `other` for those that are not here."""


WHOLE_BODY = "{body}"
"""Alone in `dedup`: what makes two requests the same event are the bytes of the body."""


class Source(Table, frozen=True, kw_only=True):
    """Somebody who sends webhooks."""

    name: str = ""
    preset: str
    auth: InboundAuth | None = None
    """A secret that each request shows. A preset that signs takes `secrets` instead; with both, both have to be right."""
    secrets: Secrets | None = None
    """What the provider signs with: shared secrets, or for `secevent` its public keys (JWKS or PEM)."""
    allow_from: Annotated[list[Network], msgspec.Meta(min_length=1)] | None = None
    """The addresses and networks that it sends from; with any other the right secret is not enough."""
    answer: Literal["stored", "delivered"] = "stored"
    answer_timeout: Duration = Duration(10)
    """With `delivered`: when it takes longer, the answer is 503, and the repeat waits for the same event."""
    answer_waiting: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 100
    """So many requests may wait at once, in each worker; beyond that the answer is 503 at once."""
    dedup: Annotated[list[str], msgspec.Meta(min_length=1)] | None = None
    """Fields of the payload that make two requests the same event, instead of the preset's; or `["{body}"]`, all of the body."""
    max_age: Duration | None = None
    """An event whose own time is longer ago is refused with 422: somebody may have kept it to send it again."""
    max_body: Annotated[int, msgspec.Meta(ge=1, le=32 * 1024 * 1024)] | None = None
    """Bytes; the preset's own limit when not given."""
    rate: Rate | None = None
    """So many requests at most, in each worker process; a second's worth, two at least, may come at once. Beyond it the
    answer is 429, for requests that have proven to be this source's."""
    clock_skew: Duration = Duration(5)
    """By how much its clocks may differ, from the relay's and from each other: what was fetched sooner after an event is
    not taken to have it in it."""
    silent_after: Duration | None = None
    """When nothing has arrived for so long, there is an alert."""
    sweeps: list[Sweep] = []
    """How `relay sweep` asks for what has changed."""
    public_url: str | None = None
    """The URL that the provider calls, where it signs that; never taken from the request."""
    tolerance: Duration | None = None
    """Instead of the preset's, by how much the time of signing may differ from the time of arrival."""
    signature: Signature | None = None
    """With `custom`: how requests are signed."""
    event: Fields | None = None
    """With `custom`: what is read in a request."""
    issuer: str | None = None
    """With `secevent`: the `iss` that tokens have to have."""
    audience: str | None = None
    """With `secevent`: the `aud` that tokens have to have."""
    pattern: str | None = None
    """With `slack-message`: a regular expression of RE2 that finds the entity in a message's text by its group `id`; groups
    `type` and `event_type` may tell more."""
    entity_type: str | None = None
    """With `slack-message`: the entity's type, where `pattern` has no group `type`, or it has found nothing."""
