"""The input and result of an attempt: a claimed delivery and its outcome, which `relay.delivery.policy` turns into a fact."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Literal

import msgspec

from inbox.events.event import Action
from inbox.observe.logs import TraceIds
from relay.delivery.gates import Health

CallStep = Literal["forward", "fetch", "find", "create", "update", "delete", "alert", "handle"]
Sent = Literal["answered", "not_sent", "unknown"]
"""Progress of a call. `not_sent`: it provably never left (name resolution, connection or TLS failed). `unknown`: it left, but
no complete response came back, so the other side may have acted on it."""

ErrorClass = Literal[
    "not_sent",  # the call provably never left
    "unknown",  # it left, but no complete response came back in time
    "throttled",  # 408, 425, 429
    "server_error",  # 5xx
    "rejected",  # 400, 422 and every other 4xx without a class of its own
    "auth",  # 401, 403
    "not_found",  # 404
    "gone",  # 410
    "conflict",  # 409, 412
    "stale",  # the fetched entity is older than the event
    "redirect",  # 3xx: never followed
    "bad_answer",  # the response is unusable: not JSON, too large, no id or a different one
    "mapping",  # a template or expression yields no usable value for this event
    "ambiguous",  # several counterparts
    "no_target",  # no counterpart, and the route forbids creating one
    "overtaken",  # no call: a newer event of its lane was delivered first, and the route does not fetch
    "refused",  # the outbound guard blocked the call
    "lease_lost",  # the lease ended during the attempt: the calls were cut
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
    """1 for the first attempt."""
    run: int
    """Number of earlier replays and re-armings."""
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
    """The body as received, or as edited; None if it was erased."""
    is_edited: bool = False
    """True when an operator has edited the body for this run."""
    applied_hash: bytes | None = None
    """Hash of the last change sent for its lane."""
    stale_before: int = 0
    """Number of fetches in this run that returned an entity older than the event."""
    traceparent: str | None = None
    late: bool = False
    """True when a later event of this lane has already been delivered."""
    is_suspect: bool = False
    """True when the leases of its last attempts all expired: it may crash the process that works on it."""
    trace_ids: TraceIds | None = None
    """The span of the attempt, for log lines; None unless sampled."""

    @property
    def webhook_id(self) -> str:
        """The id of the event on its route, the same for every attempt, run and relay. An edited body has one of its own.

        It has no dot, as dots separate the signed parts. It doesn't depend on `seq`. After a restore, or a failover to an
        asynchronous standby, the database reuses numbers for other events and gives a resent event a new one.
        """
        known: list[object] = [self.source, self.dedup_key, self.route]
        if self.is_edited:  # a receiver that drops repeated ids must not drop it
            known += [self.run, hashlib.sha256(self.body or b"").hexdigest()]
        return f"msg_{hashlib.sha256(json.dumps(known).encode()).hexdigest()[:32]}"

    @property
    def idempotency_key(self) -> str:
        """The id of a run, the same for each of its attempts."""
        return f"{self.webhook_id}-{self.run}"


class RateHold(msgspec.Struct, frozen=True):
    """A request in the headers of a response to make no calls for some time."""

    seconds: float
    why: str
    """The header that asked for it, in our own words."""


class Call(msgspec.Struct, frozen=True, omit_defaults=True):
    """A call of an attempt as logged, without secrets and query values."""

    step: CallStep
    method: str
    url: str
    sent: Sent
    milliseconds: float
    status: int | None = None
    error: str | None = None
    excerpt: str | None = None
    """The beginning of an unsuccessful response, at most 4 KiB, redacted."""
    hold: RateHold | None = None
    """The rate hold that the response asks for."""
    request: str | None = None
    """The beginning of the sent body, at most 1 KiB, redacted. Set only on the call that failed its attempt."""


class Delivered(msgspec.Struct, frozen=True):
    """The other system has the change."""

    calls: tuple[Call, ...]
    did: Literal["forwarded", "created", "updated", "deleted", "deactivated", "nothing_to_delete", "handled"]
    fetch_began_at: datetime | None = None
    last_modified: datetime | None = None
    applied_hash: bytes | None = None
    stale_suspected: bool = False
    """True when the fetched entity was older than the event, even after further fetches."""


class Fact(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True, tag_field="kind", tag=str):
    """An event in the life of one delivery. Its class is its kind; `relay.delivery.facts` has all kinds."""


class Unchanged(Fact, frozen=True, kw_only=False, tag="unchanged"):
    """Nothing was sent: the other system already had the change. Terminal."""

    calls: tuple[Call, ...] = ()
    lane: Literal["entity", "route", "event"] | None = None
    """The kind of its lane, on a route that fetches nothing: its body then counts as the last one delivered there."""


class Skipped(Fact, frozen=True, kw_only=False, tag="skipped"):
    """The route's rule requires nothing for this event. Terminal."""

    calls: tuple[Call, ...] = ()
    why: str = ""


class Failed(msgspec.Struct, frozen=True):
    """The attempt did not succeed. `relay.delivery.policy` decides about a retry."""

    calls: tuple[Call, ...]
    error_class: ErrorClass
    error: str
    """A sentence for the log and the operator. It names the step and never contains a secret."""
    retry_after: float | None = None
    """Delay in seconds that the other side asked for."""


Outcome = Delivered | Unchanged | Skipped | Failed
"""The second and third are facts themselves."""


class Rule(StrEnum):
    """The consequence of a failed attempt."""

    RETRY = "retry"
    """Another attempt by the route's schedule, or after `Retry-After`."""
    CONFIRM = "confirm"
    """A second attempt by the schedule; the same failure again is final."""
    AGAIN = "again"
    """Up to three immediate attempts, starting with the fetch and not counted; then by the schedule."""
    REFETCH = "refetch"
    """Attempts after 1, 5 and 30 seconds, starting with the fetch and not counted; then the entity is applied as it is."""
    DEAD = "dead"
    """Dead at once: the configuration or the data has to change first."""
    STOP = "stop"
    """The endpoint's breaker opens, as it refuses every call. No attempt is used."""
    RETIRE = "retire"
    """The destination is gone: no calls until an operator resumes it. No attempt is used."""
    NOT_COUNTED = "not_counted"
    """The event is not to blame: due at once, and no attempt is used."""


RULES: dict[ErrorClass, Rule] = {
    "not_sent": Rule.RETRY,
    "unknown": Rule.RETRY,
    "throttled": Rule.RETRY,
    "server_error": Rule.RETRY,
    "rejected": Rule.CONFIRM,
    "auth": Rule.STOP,
    "not_found": Rule.RETRY,
    "gone": Rule.RETIRE,
    "conflict": Rule.AGAIN,
    "stale": Rule.REFETCH,
    "redirect": Rule.RETRY,
    "bad_answer": Rule.RETRY,
    "mapping": Rule.DEAD,
    "ambiguous": Rule.DEAD,
    "no_target": Rule.DEAD,
    "overtaken": Rule.DEAD,
    "refused": Rule.RETRY,  # a name may resolve to a wrong address for a while, as in a captive network
    "lease_lost": Rule.NOT_COUNTED,
    "crashed": Rule.RETRY,
    "handler_retry": Rule.RETRY,
    "handler_abort": Rule.DEAD,
}

AGAIN_AT_MOST = 3
"""Immediate attempts after conflicts. A conflict that three fresh fetches don't solve needs time, or an operator."""

REFETCH_AFTER = tuple(timedelta(seconds=seconds) for seconds in (1, 5, 30))
"""Delays of refetches. A lagging replica has mostly caught up after a second."""

CONFIRMED_AFTER = 2
"""Consecutive equal rejections that are final."""

HEALTH: dict[ErrorClass, Health] = {
    "not_sent": "unwell",
    "unknown": "unwell",
    "throttled": "unwell",
    "server_error": "unwell",
    "refused": "unwell",
}
"""Health of the last called endpoint by error class; any other response proves that it works."""

OF_THE_EVENT = frozenset[ErrorClass]({"mapping", "ambiguous", "no_target", "stale"})
"""Classes in which every call got a proper response, and the event alone is to blame."""


def rule_for(error_class: ErrorClass, overruled: Mapping[str, str]) -> Rule:
    """Return the rule for an error class; `overruled` is the destination's `outcomes`."""
    given = overruled.get(error_class)
    return RULES[error_class] if given is None else Rule(given)
