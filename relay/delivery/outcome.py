"""What a worker is given and what it gives back: a claimed delivery in, an outcome out. Frozen values, nothing decided yet."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime
from typing import Literal

import msgspec

from inbox.events.event import Action

Step = Literal["forward", "fetch", "find", "create", "update", "delete", "alert", "handle"]
Sent = Literal["answered", "not_sent", "unknown"]
"""What is known of a call: it was answered; it provably never left (name resolution, connection or TLS failed); or it left and no
whole answer came back, so that the other side may have acted on it."""

ErrorClass = Literal[
    "not_sent",  # the call provably never left
    "unknown",  # it left, and no whole answer came back in time
    "throttled",  # 408, 425, 429
    "server_error",  # 5xx
    "rejected",  # 400, 422 and every other 4xx that has no class of its own
    "auth",  # 401, 403
    "not_found",  # 404
    "gone",  # 410
    "conflict",  # 409, 412
    "stale",  # what was fetched is older than the event
    "redirect",  # 3xx: never followed
    "bad_answer",  # answered, but not with what the step needs: not JSON, too large, no id or another one
    "mapping",  # a template or expression has no usable value for this event
    "ambiguous",  # several counterparts
    "no_target",  # no counterpart, and the route says not to create one
    "refused",  # the outbound guard did not let the call out
    "lease_lost",  # the lease ended while the attempt ran: the calls were cut
    "crashed",  # the destination's code raised: a bug
    "put_off",  # a handler raised Retry
    "given_up",  # a handler raised GiveUp
]


class Delivery(msgspec.Struct, frozen=True):
    """One claimed delivery: the event, where it goes, and the lease under which it may be worked on."""

    seq: int
    route: str
    lane: str
    attempt: int
    """1 for the first."""
    run: int
    """0, and one more for each time it was replayed or re-armed."""
    lease_token: int
    source: str
    entity_type: str | None
    entity_id: str | None
    event_type: str
    action: Action
    event_id: str | None
    dedup_key: str
    """Within its source, of this event alone."""
    occurred_at: datetime
    received_at: datetime
    content_type: str
    headers: Mapping[str, str]
    body: bytes | None
    """The webhook as it came; None when it was erased."""
    applied_hash: bytes | None = None
    """Of what was sent last for its lane."""
    stale_before: int = 0
    """How often in this run what was fetched for it was older than the event."""
    traceparent: str | None = None
    late: bool = False
    """A later event of this lane was delivered before this one arrived."""
    is_suspect: bool = False
    """The leases of its last attempts ran out one after the other: it may be what kills the process that works on it."""

    @property
    def webhook_id(self) -> str:
        """Names the event on its route: the same for every attempt, run and relay. It has no dot, which separates what is signed.

        `seq` is no part of it. A database that was restored, or taken over from an asynchronous standby, gives the same
        numbers to other events, and another number to the same event when it is sent again.
        """
        known = json.dumps([self.source, self.dedup_key, self.route])
        return f"msg_{hashlib.sha256(known.encode()).hexdigest()[:32]}"

    @property
    def idempotency_key(self) -> str:
        """The same for every attempt, and another one for each run."""
        return f"{self.webhook_id}-{self.run}"


class Call(msgspec.Struct, frozen=True, omit_defaults=True):
    """One HTTP call of an attempt, as it is written to the log: no secret, no query values, no request body."""

    step: Step
    method: str
    url: str
    sent: Sent
    milliseconds: float
    status: int | None = None
    error: str | None = None
    excerpt: str | None = None
    """The beginning of an answer that was not a success, at most 4 KiB, redacted."""


class Delivered(msgspec.Struct, frozen=True):
    """The other system has it."""

    calls: tuple[Call, ...]
    did: Literal["forwarded", "created", "updated", "deleted", "deactivated", "nothing_to_delete", "handled"]
    fetch_began_at: datetime | None = None
    last_modified: datetime | None = None
    applied_hash: bytes | None = None
    stale_suspected: bool = False
    """What was fetched is older than the event, also after some waiting."""


class Unchanged(msgspec.Struct, frozen=True):
    """Nothing had to be sent: the other system has it already."""

    calls: tuple[Call, ...]


class Skipped(msgspec.Struct, frozen=True):
    """The route's own rule says that nothing is to be done for this event."""

    calls: tuple[Call, ...]
    why: str


class Failed(msgspec.Struct, frozen=True):
    """The attempt did not succeed; what follows is for `relay.delivery.policy` to decide."""

    calls: tuple[Call, ...]
    error_class: ErrorClass
    error: str
    """One sentence for the log and the operator; names the step, never holds a secret."""
    retry_after: float | None = None
    """Seconds, as the other side asked."""


Outcome = Delivered | Unchanged | Skipped | Failed
