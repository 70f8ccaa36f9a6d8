"""Frozen values that the stages of the receiver pass on, in one direction.

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
"""Bytes. Postgres rejects index rows over 2,704 bytes; this leaves room for the source's name beside the key."""
_DIGEST_BYTES = 24
"""Of SHA-256: 32 characters, about as long as the parts that they replace."""


class RawRequest(msgspec.Struct, frozen=True):
    """A POST as it arrived; nothing in it is trusted yet."""

    source: str
    headers: Mapping[str, str]
    """Header names are in lower case."""
    body: bytes
    received_at: datetime
    url_token: str | None = None
    remote_address: str | None = None
    method: str = "POST"
    query: str = ""
    """Query of the URL, as it arrived, without the `?`."""

    @property
    def content_type(self) -> str:
        """Return the media type, in lower case; empty when the header is missing."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()


class Identity(msgspec.Struct, frozen=True):
    """Identity of a change and of its entity, as a preset reads it from a request."""

    entity_type: str | None
    entity_id: str | None
    event_type: str
    action: Action
    occurred_ns: int
    """The event's own time, in nanoseconds since 1970-01-01T00:00:00Z."""
    key_parts: tuple[str, ...] = ()
    """Parts of the dedup key, besides the source; the time is put in front when `key_has_time`."""
    key_has_time: bool = False
    event_id: str | None = None
    """The provider's own id of the event, where it has one."""
    part: bytes | None = None
    """Body that this event would have had alone, where a body has several events. It is stored instead."""
    part_type: str | None = None
    """Media type of `part`, where it differs from the body's."""


class Enrolment(msgspec.Struct, frozen=True):
    """A route that an event takes, and the lane it takes there."""

    route: str
    lane: str


class Event(msgspec.Struct, frozen=True):
    """One accepted webhook: a row of `inbox` before it has its `seq`."""

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
    """Seconds that its time may lie ahead of the database's clock. None: it has no time of its own, but that of its arrival."""

    def resolve_time(self, now: datetime) -> datetime:
        """Return the time under which it is stored when the database's clock says `now`.

        Lanes are ordered by it, and successes and sweeps compare with it, so it never lies in the future. Without a time of
        its own that is `now`: hosts of receivers have clocks of their own, the database has one for all. A time too far ahead
        can't be true, and becomes the second of its arrival: so it goes before whatever comes after it.
        """
        if self.ahead is None:
            return now
        is_true = self.occurred_at <= now + timedelta(seconds=self.ahead)
        return self.occurred_at if is_true else now.replace(microsecond=0)


class Receipt(msgspec.Struct, frozen=True):
    """Result of storing an event: committed under `seq`, now or by an earlier request."""

    seq: int
    duplicate: bool

    @property
    def status(self) -> str:
        """Return the word for the answer."""
        return "duplicate" if self.duplicate else "accepted"


def escape(part: str) -> str:
    """Escape a part so that joining by `|` is unambiguous: ("ab", "c") and ("a", "bc") give different keys."""
    return part.replace("\\", "\\\\").replace("|", "\\|") if "|" in part or "\\" in part else part


def split(joined: str) -> list[str]:
    """Split a text into the parts that were escaped and joined by `|`."""
    parts = [""]
    characters = iter(joined)
    for character in characters:
        if character == "|":
            parts.append("")
        else:
            parts[-1] += next(characters, "") if character == "\\" else character
    return parts


def dedup_key(identity: Identity) -> str:
    """Make the dedup key, which is unique per source.

    It begins with the time in fixed width, so that the index grows at its right edge: an entity-first key fell from
    26,000 to 9,000 rows/s at 5 M rows. Parts that hold the entity's id, or are too long for an index, become one digest.
    So no key names an entity, and it stays when the entity is erased: the sender's repeat is still a duplicate.
    """
    return _key(identity.key_parts, identity.occurred_ns if identity.key_has_time else None, identity.entity_id)


def swept_parts(entity_type: str, entity_id: str) -> tuple[str, ...]:
    """Make the `key_parts` of an event that a sweep adds. A repeated sweep then adds nothing twice."""
    return ("sweep", entity_type, entity_id)


def swept_key(entity_type: str, entity_id: str, occurred_ns: int) -> str:
    """Make the dedup key of the event that a sweep adds for a change, to look it up from the webhook of that change."""
    return _key(swept_parts(entity_type, entity_id), occurred_ns, entity_id)


def _key(key_parts: Sequence[str], occurred_ns: int | None, entity_id: str | None) -> str:
    """Join time and parts, or time and digest of the parts; `escape` never makes the digest's mark."""
    prefix = "" if occurred_ns is None else f"{timestamps.format_fixed_width(occurred_ns)}|"
    parts = "|".join(map(escape, key_parts))
    names_entity = entity_id is not None and escape(entity_id) in parts
    if names_entity or len(prefix) + len(parts.encode()) > _LONGEST_KEY:
        digest = hashlib.sha256(parts.encode()).digest()[:_DIGEST_BYTES]
        parts = f"\\sha256:{base64.urlsafe_b64encode(digest).decode()}"
    return prefix + parts
