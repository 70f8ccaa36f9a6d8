"""Frozen values passed through the stages of the receiver.

``RawRequest`` (bytes) → ``Identity`` (read by a preset) → ``Event`` (stored) → ``Receipt`` (answered).
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Literal

import msgspec

from inbox.events import timestamps

Action = Literal["create", "update", "delete", "other"]

_LONGEST_KEY = 1000
"""Bytes of a dedup key. Postgres rejects index rows over 2,704 bytes; this leaves room for the source's name."""
_DIGEST_BYTES = 24
"""Bytes of SHA-256 to use: 32 characters, about as long as the parts that they replace."""


class RawRequest(msgspec.Struct, frozen=True):
    """An untrusted POST, as it arrived."""

    source: str
    headers: Mapping[str, str]
    """Header names are in lower case."""
    body: bytes
    received_at: datetime
    url_token: str | None = None
    remote_address: str | None = None
    method: str = "POST"
    query: str = ""
    """Raw query of the URL, without the `?`."""

    @property
    def content_type(self) -> str:
        """Return the media type in lower case; empty if the header is missing."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()


class Identity(msgspec.Struct, frozen=True):
    """Identity of a change and its entity, as read by a preset."""

    entity_type: str | None
    entity_id: str | None
    event_type: str
    action: Action
    occurred_ns: int
    """The event's own time, in nanoseconds since 1970-01-01T00:00:00Z."""
    key_parts: tuple[str, ...] = ()
    """Parts of the dedup key, without the source; if `key_has_time`, the time precedes them."""
    key_has_time: bool = False
    event_id: str | None = None
    """The provider's event id, if any."""
    part: bytes | None = None
    """Body with this event alone, stored instead of a body with several events."""
    part_type: str | None = None
    """Media type of `part`, if it differs from the body's."""


class Enrolment(msgspec.Struct, frozen=True):
    """A route that an event takes, with its lane there."""

    route: str
    lane: str


class Event(msgspec.Struct, frozen=True):
    """One accepted webhook: a row of `inbox` without its `seq`."""

    source: str
    dedup_key: str
    entity_type: str | None
    entity_id: str | None
    event_type: str
    action: Action
    event_id: str | None
    occurred_at: datetime
    received_at: datetime
    enrolments: tuple[Enrolment, ...]
    headers: Mapping[str, str]
    content_type: str
    body: bytes
    body_sha256: bytes
    traceparent: str | None = None
    ahead: float | None = 5.0
    """Seconds by which its time may be ahead of the database's clock; None if it has only its time of arrival."""

    def resolve_time(self, now: datetime) -> datetime:
        """Return the time to store, given the database's clock `now`.

        Lanes are ordered by this time, and successes and sweeps are compared with it, so it must never be in the
        future. An event without its own time gets `now`: receivers' clocks differ, while the database's is shared. A
        time too far ahead is wrong, and becomes the second of arrival, so that the event precedes later ones.
        """
        if self.ahead is None:
            return now
        is_true = self.occurred_at <= now + timedelta(seconds=self.ahead)
        return self.occurred_at if is_true else now.replace(microsecond=0)


class Receipt(msgspec.Struct, frozen=True):
    """Result of storing an event, committed under `seq` now or by an earlier request."""

    seq: int
    duplicate: bool

    @property
    def status(self) -> str:
        """Return the status for the response."""
        return "duplicate" if self.duplicate else "accepted"


def escape(part: str) -> str:
    """Escape a part so that joining by `|` is unambiguous: ("ab", "c") and ("a", "bc") give different keys."""
    return part.replace("\\", "\\\\").replace("|", "\\|") if "|" in part or "\\" in part else part


def split(joined: str) -> list[str]:
    """Split a text into its parts, which were escaped and joined by `|`."""
    parts = [""]
    characters = iter(joined)
    for character in characters:
        if character == "|":
            parts.append("")
        else:
            parts[-1] += next(characters, "") if character == "\\" else character
    return parts


def dedup_key(identity: Identity) -> str:
    """Build the dedup key, which is unique per source.

    It begins with the time in fixed width, so that the index grows at its right edge: an entity-first key fell from
    26,000 to 9,000 rows/s at 5 M rows. Parts that hold the entity's id, or are too long for an index, become one
    digest. Keys therefore never name an entity and survive its erasure, so that late duplicates are still recognised.
    """
    return _key(identity.key_parts, identity.occurred_ns if identity.key_has_time else None, identity.entity_id)


def swept_parts(entity_type: str, entity_id: str) -> tuple[str, ...]:
    """Build the `key_parts` of an event added by a sweep, so that a repeated sweep adds nothing twice."""
    return ("sweep", entity_type, entity_id)


def swept_key(entity_type: str, entity_id: str, occurred_ns: int) -> str:
    """Build the dedup key of a sweep's event for a change, to find it from the webhook of that change."""
    return _key(swept_parts(entity_type, entity_id), occurred_ns, entity_id)


def _key(key_parts: Sequence[str], occurred_ns: int | None, entity_id: str | None) -> str:
    """Join the time and the parts, or their digest, whose mark `escape` never produces."""
    prefix = "" if occurred_ns is None else f"{timestamps.format_fixed_width(occurred_ns)}|"
    parts = "|".join(map(escape, key_parts))
    names_entity = entity_id is not None and escape(entity_id) in parts
    if names_entity or len(prefix) + len(parts.encode()) > _LONGEST_KEY:
        digest = hashlib.sha256(parts.encode()).digest()[:_DIGEST_BYTES]
        parts = f"\\sha256:{base64.urlsafe_b64encode(digest).decode()}"
    return prefix + parts
