"""`[sources.NAME]`: a sender of webhooks, its authentication, and the fields of its events."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from inbox.config.sync import Sweep
from inbox.config.values import Duration, Networks, Rate, Secret, Table, Topics, Unit
from inbox.events.event import Action

Secrets = Annotated[list[Secret], msgspec.Meta(min_length=1)]


class NoAuth(Table, frozen=True, tag="none", tag_field="kind"):
    """No authentication, for a receiver that only the sender can reach."""


class BasicAuth(Table, frozen=True, tag="basic", tag_field="kind"):
    """HTTP Basic; each of `secrets` is an accepted password."""

    user: str
    secrets: Secrets


class BearerAuth(Table, frozen=True, tag="bearer", tag_field="kind"):
    """`Authorization: Bearer …`, or `?access_token=…` for senders that can set nothing else (RFC 6750 §2.3)."""

    secrets: Secrets


class HeaderAuth(Table, frozen=True, tag="header", tag_field="kind"):
    """A secret in a header of your choice."""

    name: str
    secrets: Secrets


class UrlTokenAuth(Table, frozen=True, tag="url_token", tag_field="kind"):
    """A secret as the last segment of the URL, for senders that can't set a header."""

    secrets: Secrets


InboundAuth = NoAuth | BasicAuth | BearerAuth | HeaderAuth | UrlTokenAuth

Algorithm = Literal["sha256", "sha1", "sha512", "ecdsa", "ed25519"]
Encoding = Literal["hex", "base64"]


class Signature(Table, frozen=True, kw_only=True):
    """A signature scheme: HMAC with a shared secret, or Ed25519 or ECDSA with a private key."""

    header: str
    """Header that holds the signature."""
    prefix: str = ""
    """Prefix of each signature, such as `sha256=` or `v1,`. Parts with other prefixes are ignored."""
    separator: str = ""
    """Separator between the header's parts. Without one, the whole header is one signature."""
    timestamp_header: str = ""
    """Header with the time of signing."""
    timestamp_prefix: str = ""
    """Prefix of the time, if it is a part of `header`, such as `t=`."""
    timestamp_unit: Unit = "s"
    """Seconds or milliseconds since 1970, or RFC 3339."""
    id_header: str = ""
    """Header with the message id."""
    content: str = "{body}"
    """Signed text, made of `{body}`, `{timestamp}`, `{id}`, `{method}`, `{url}` (the source's `public_url` and the
    query), and `{sorted_params}` (names and values of a form, sorted by name)."""
    algorithm: Algorithm = "sha256"
    """Hash of the HMAC; or `ed25519` or `ecdsa` (P-256 with SHA-256), for which `secrets` are public keys."""
    encoding: Encoding = "hex"
    """Encoding of the signature."""
    key: Literal["text", "base64", "hex"] = "text"
    """Encoding of the key in the secret: plain text, base64 or hex."""
    key_prefix: str = ""
    """Prefix of the secret that is not part of the key, such as `whsec_`."""


class EventFields(Table, frozen=True, kw_only=True):
    """Fields of an event, for `custom` and `sns`. Each is a JMESPath over `body`, `headers` (in lower case) and `item`."""

    type: str
    """Event type."""
    id: str | None = None
    """The provider's event id. Two requests with the same id are the same event."""
    entity_type: str | None = None
    """Entity type. A text in inner quotes is a constant: `"'ORDER'"`."""
    entity_id: str | None = None
    """Entity id. An event lacking the type or the id has no entity."""
    time: str | None = None
    """Time of the event; by default the time of arrival."""
    time_unit: Unit = "rfc3339"
    """Format of `time`: RFC 3339, or seconds or milliseconds since 1970."""
    items: str | None = None
    """List of events, for bodies with several; each is then `item`."""
    actions: dict[str, Action] = {}
    """Action of each event type on the entity; unlisted types are `other`."""


class EntityFields(Table, frozen=True, kw_only=True):
    """The entity of a source's events, instead of the preset's. An event without the id has no entity."""

    type: str
    """Entity type of all events. If it is not the preset's own, the action of an event is `other`."""
    id: str
    """JMESPath over `body`, such as `body.sender.id`: the JSON, the fields of a form, or the JSON in its field `payload`."""


WHOLE_BODY = "{body}"
"""As the only value of `dedup`: requests with identical bodies are the same event."""


class Source(Table, frozen=True, kw_only=True):
    """A sender of webhooks."""

    name: str = ""
    preset: str
    auth: InboundAuth | None = None
    """Secret that each request carries. Presets with signatures take `secrets` instead; with both, both are required."""
    secrets: Secrets | None = None
    """Keys for the provider's signature: shared secrets; for `secevent` public keys (JWKS), for `paypal` webhook ids."""
    unsigned: bool = False
    """Accept requests without the provider's signature. Otherwise presets with signatures need `secrets`."""
    allow_from: Networks | None = None
    """Addresses and networks that may send, checked in addition to `auth` and `secrets`."""
    answer: Literal["stored", "delivered"] = "stored"
    answer_timeout: Duration = Duration(10)
    """With `delivered`: longest wait. Then the response is 503, and the sender's retry waits for the same event. Each
    worker lets at most 100 requests of a source wait, and 500 in all."""
    dedup: Annotated[list[str], msgspec.Meta(min_length=1)] | None = None
    """Payload fields that identify the event, instead of the preset's; or `["{body}"]` for the whole body."""
    max_age: Duration | None = None
    """Maximum age of an event by its own time. Older ones may be replays and are rejected with 422."""
    max_body: Annotated[int, msgspec.Meta(ge=1, le=32 * 1024 * 1024)] | None = None
    """Maximum body size in bytes; by default the preset's limit."""
    rate: Rate | None = None
    """Maximum rate of authenticated requests in each worker process. A burst may have one second's worth of requests,
    or two if that is more; further requests get 429."""
    clock_skew: Duration = Duration(5)
    """Maximum difference between the source's clocks and the relay's. An entity fetched sooner than this after an event
    may not include its change."""
    silent_after: Duration | None = None
    """Time without events after which an alert is raised."""
    sweeps: list[Sweep] = []
    """Listings that `relay sweep` compares with the inbox."""
    public_url: str | None = None
    """URL that the provider calls, if its signature covers the URL. It is never taken from the request."""
    tolerance: Duration | None = None
    """Maximum difference between the times of signing and arrival; by default the preset's."""
    signature: Signature | None = None
    """With `custom`: the signature scheme."""
    entity: EntityFields | None = None
    """Entity of each event, and so its lane, in place of the preset's."""
    event: EventFields | None = None
    """With `custom`: the fields of an event. With `sns`: those of the JSON in `Message`, which is then stored as JSON."""
    issuer: str | None = None
    """With `secevent`: required `iss` of a token."""
    audience: str | None = None
    """With `secevent`: required `aud` of a token."""
    topics: Topics | None = None
    """With `sns`: ARNs of the topics that may send."""
    allow_sha1: bool | None = None
    """With `sns`: also accept version 1 (SHA-1) signatures, which topics use unless their SignatureVersion is 2."""
    pattern: str | None = None
    """With `slack-message`: an RE2 regular expression whose group `id` finds the entity in a message's text. It may
    also have groups `type` and `event_type`."""
    entity_type: str | None = None
    """With `slack-message`: entity type, if `pattern` has no group `type` or the group is empty."""
