"""Input and result of an attempt: a claimed delivery in, an outcome out. `relay.delivery.policy` decides what follows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime
from typing import Literal

import msgspec

from inbox.events.event import Action
from inbox.observe.logs import TraceIds

CallStep = Literal["forward", "fetch", "find", "create", "update", "delete", "alert", "handle"]
Sent = Literal["answered", "not_sent", "unknown"]
"""Progress of a call. `not_sent`: it provably never left (name resolution, connection or TLS failed). `unknown`: it left and no
whole answer came back, so the other side may have acted on it."""

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
    "bad_answer",  # the answer lacks what the step needs: not JSON, too large, no id or another one
    "mapping",  # a template or expression has no usable value for this event
    "ambiguous",  # several counterparts
    "no_target",  # no counterpart, and the route forbids creating one
    "refused",  # the outbound guard blocked the call
    "lease_lost",  # the lease ended while the attempt ran: the calls were cut
    "crashed",  # the destination's code raised: a bug
    "handler_retry",  # a handler raised Retry
    "handler_abort",  # a handler raised GiveUp
]


class Delivery(msgspec.Struct, frozen=True):
    """A claimed delivery: the event, its route, and the lease that covers the attempt."""

    seq: int
    route: str
    lane: str
    attempt: int
    """1 for the first."""
    run: int
    """Number of replays and re-armings before."""
    lease_token: int
    source: str
    entity_type: str | None
    entity_id: str | None
    event_type: str
    action: Action
    event_id: str | None
    dedup_key: str
    """Unique to this event within its source."""
    occurred_at: datetime
    received_at: datetime
    content_type: str
    headers: Mapping[str, str]
    body: bytes | None
    """The webhook as received; None when it was erased."""
    applied_hash: bytes | None = None
    """Hash of the last change sent for its lane."""
    applied_etag: str | None = None
    """ETag of the entity as it was applied last for its lane."""
    etag_config: bytes | None = None
    """Hash of the configuration under which that was applied."""
    applied_modified: datetime | None = None
    """The source's own time of that state."""
    stale_before: int = 0
    """Number of fetches in this run that returned an entity older than the event."""
    traceparent: str | None = None
    late: bool = False
    """A later event of this lane was delivered before this one arrived."""
    is_suspect: bool = False
    """The leases of its last attempts all expired: it may crash the process that works on it."""
    trace_ids: TraceIds | None = None
    """The span of the attempt, for log lines; None unless it is sampled."""

    @property
    def webhook_id(self) -> str:
        """Identify the event on its route, equally for every attempt, run and relay.

        It has no dot: a dot separates the signed parts. It doesn't depend on `seq`. A database that was restored, or
        taken over from an asynchronous standby, gives the same numbers to other events. It also gives another number to
        the same event when it is sent again.
        """
        known = json.dumps([self.source, self.dedup_key, self.route])
        return f"msg_{hashlib.sha256(known.encode()).hexdigest()[:32]}"

    @property
    def idempotency_key(self) -> str:
        """Identify one run: the same for each of its attempts."""
        return f"{self.webhook_id}-{self.run}"


class RateHold(msgspec.Struct, frozen=True):
    """A request of the other side, by an answer's headers, to get no further call for some time."""

    seconds: float
    why: str
    """The header that asks for it, in our own words."""


class Call(msgspec.Struct, frozen=True, omit_defaults=True):
    """A call of an attempt, as logged: without secrets, query values and request body."""

    step: CallStep
    method: str
    url: str
    sent: Sent
    milliseconds: float
    status: int | None = None
    error: str | None = None
    excerpt: str | None = None
    """The beginning of an answer that is not a success, at most 4 KiB, redacted."""
    hold: RateHold | None = None
    """The endpoint's rate limit is used up."""


class Delivered(msgspec.Struct, frozen=True):
    """The other system has the change."""

    calls: tuple[Call, ...]
    did: Literal["forwarded", "created", "updated", "deleted", "deactivated", "nothing_to_delete", "handled"]
    fetch_began_at: datetime | None = None
    last_modified: datetime | None = None
    applied_hash: bytes | None = None
    etag: str | None = None
    """ETag of the entity that was applied, where the route fetches conditionally."""
    etag_config: bytes | None = None
    """Hash of the configuration that applied it."""
    stale_suspected: bool = False
    """The fetched entity is older than the event, also after the fetches that followed."""


class Unchanged(msgspec.Struct, frozen=True):
    """Nothing had to be sent: the other system already has the change."""

    calls: tuple[Call, ...]


class Skipped(msgspec.Struct, frozen=True):
    """The route's rule requires nothing for this event."""

    calls: tuple[Call, ...]
    why: str


class Failed(msgspec.Struct, frozen=True):
    """The attempt did not succeed. `relay.delivery.policy` decides what follows."""

    calls: tuple[Call, ...]
    error_class: ErrorClass
    error: str
    """A sentence for the log and the operator. It names the step and never holds a secret."""
    retry_after: float | None = None
    """Seconds that the other side asked for."""


Outcome = Delivered | Unchanged | Skipped | Failed
