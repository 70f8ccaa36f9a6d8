"""`[sources.NAME]`: a sender of webhooks, its authentication, and the fields of its events."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from inbox.config.sync import Sweep
from inbox.config.values import Duration, Networks, Rate, Secret, Table, Topics, Unit
from inbox.events.event import Action

Secrets = Annotated[list[Secret], msgspec.Meta(min_length=1)]


class NoAuth(Table, frozen=True, tag="none", tag_field="kind"):
    """No authentication, for a receiver that only its sender can reach."""


class BasicAuth(Table, frozen=True, tag="basic", tag_field="kind"):
    """HTTP Basic; each of `secrets` is an accepted password."""

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
    """A secret as the last segment of the URL, for senders that can't set a header."""

    secrets: Secrets


InboundAuth = NoAuth | BasicAuth | BearerAuth | HeaderAuth | UrlTokenAuth

Algorithm = Literal["sha256", "sha1", "sha512", "ecdsa", "ed25519"]
Encoding = Literal["hex", "base64"]


class Signature(Table, frozen=True, kw_only=True):
    """A signature scheme: HMAC with a shared secret, or Ed25519 or ECDSA with a private key."""

    header: str
    """Header with the signature."""
    prefix: str = ""
    """Prefix of each signature, such as `sha256=` or `v1,`. Parts with another prefix are ignored."""
    separator: str = ""
    """Separator between the parts of the header. Without one, the whole header is one signature."""
    timestamp_header: str = ""
    """Header with the time of signing."""
    timestamp_prefix: str = ""
    """Prefix of the time, where it is one of the parts of `header`, such as `t=`."""
    timestamp_unit: Unit = "s"
    """Seconds or milliseconds since 1970, or RFC 3339."""
    id_header: str = ""
    """Header with the id of the message."""
    content: str = "{body}"
    """Signed text, made of `{body}`, `{timestamp}`, `{id}`, `{method}`, `{url}` (the source's `public_url` and the query),
    and `{sorted_params}` (names and values of a form in the order of the names)."""
    algorithm: Algorithm = "sha256"
    """Hash of the HMAC; or `ed25519` or `ecdsa` (P-256 with SHA-256), where `secrets` are public keys."""
    encoding: Encoding = "hex"
    """Encoding of the signature."""
    key: Literal["text", "base64", "hex"] = "text"
    """Encoding of the secret: the key as text, or in base64 or hex."""
    key_prefix: str = ""
    """Prefix of a secret that is not part of the key, such as `whsec_`."""


class EventFields(Table, frozen=True, kw_only=True):
    """Fields of an event, with `custom` or `sns`. Each is a JMESPath over `body`, `headers` (in lower case) and `item`."""

    type: str
    """Event type."""
    id: str | None = None
    """The provider's own id of the event. It alone decides whether two requests are the same event."""
    entity_type: str | None = None
    """Type of the entity. A quoted text inside the quotes is a constant: `"'ORDER'"`."""
    entity_id: str | None = None
    """Id of the entity. An event without a type and an id belongs to no entity."""
    time: str | None = None
    """Time of the event; without it, the time of arrival."""
    time_unit: Unit = "rfc3339"
    """RFC 3339, or seconds or milliseconds since 1970."""
    items: str | None = None
    """List of events, where a body has several; then each is `item`."""
    actions: dict[str, Action] = {}
    """Action of each event type on the entity; `other` for those that are not listed."""


WHOLE_BODY = "{body}"
"""Value of `dedup`, alone, with which two requests of the same bytes are the same event."""


class Source(Table, frozen=True, kw_only=True):
    """A sender of webhooks."""

    name: str = ""
    preset: str
    auth: InboundAuth | None = None
    """Secret that each request carries. A preset that signs takes `secrets` instead; with both, both are required."""
    secrets: Secrets | None = None
    """Keys for the provider's signature: shared secrets; for `secevent` its public keys (JWKS), for `paypal` the ids
    of the webhook."""
    unsigned: bool = False
    """Accept requests without the signature that the provider makes. Otherwise a preset that signs needs `secrets`."""
    allow_from: Networks | None = None
    """Addresses and networks that may send, besides the proof that `auth` or `secrets` ask for."""
    answer: Literal["stored", "delivered"] = "stored"
    answer_timeout: Duration = Duration(10)
    """With `delivered`: longest wait. After it the answer is 503, and the sender's retry waits for the same event.
    At most 100 requests of a source wait in each worker, and 500 in all."""
    dedup: Annotated[list[str], msgspec.Meta(min_length=1)] | None = None
    """Fields of the payload that identify the event, instead of the preset's; or `["{body}"]`, the whole body."""
    max_age: Duration | None = None
    """Largest age of an event by its own time. An older one is rejected with 422, as it may be a replay."""
    max_body: Annotated[int, msgspec.Meta(ge=1, le=32 * 1024 * 1024)] | None = None
    """Largest body in bytes; by default the preset's limit."""
    rate: Rate | None = None
    """Largest number of authenticated requests in each worker process. A burst may have one second's worth, and at least
    two; any more get 429."""
    clock_skew: Duration = Duration(5)
    """Largest difference between its clocks and the relay's. An entity that was fetched sooner than this after an event may
    not include the event's change."""
    silent_after: Duration | None = None
    """Time without any event after which an alert is raised."""
    sweeps: list[Sweep] = []
    """Listings that `relay sweep` compares with the inbox."""
    public_url: str | None = None
    """URL that the provider calls, where it signs that. It is never taken from the request."""
    tolerance: Duration | None = None
    """Largest difference between the time of signing and the time of arrival, instead of the preset's."""
    signature: Signature | None = None
    """With `custom`: the signature scheme."""
    event: EventFields | None = None
    """With `custom`: the fields of an event. With `sns`: those of the JSON in `Message`, which is stored as such."""
    issuer: str | None = None
    """With `secevent`: required `iss` of a token."""
    audience: str | None = None
    """With `secevent`: required `aud` of a token."""
    topics: Topics | None = None
    """With `sns`: ARNs of the topics that may send."""
    allow_sha1: bool | None = None
    """With `sns`: accept signatures of version 1 (SHA-1), too, which topics make unless their SignatureVersion is 2."""
    pattern: str | None = None
    """With `slack-message`: a regular expression of RE2 whose group `id` finds the entity in a message's text. It may also
    have groups `type` and `event_type`."""
    entity_type: str | None = None
    """With `slack-message`: type of the entity, where `pattern` has no group `type` or the group is empty."""
