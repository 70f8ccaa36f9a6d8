"""The span of an attempt, by the semantic conventions of messaging: a child of the intake's span, or linked to it."""

from __future__ import annotations

from datetime import datetime, timedelta

from inbox.tracing.spans import Span, Tracer, event_seed
from relay.delivery.outcome import Delivered, Delivery, Failed, Outcome

CHILD_WITHIN = timedelta(days=1)
"""Age of an event from which an attempt is a trace of its own: few systems show a trace that lasts for days."""


def begin_attempt(tracer: Tracer, delivery: Delivery, now: datetime) -> Span | None:
    """Begin the span of an attempt; None unless it is sampled."""
    span = tracer.begin(
        f"process {delivery.route}",
        "consumer",
        parent=delivery.traceparent,
        seed=event_seed(delivery.source, delivery.dedup_key),
        is_apart=now - delivery.received_at > CHILD_WITHIN,
    )
    if span is not None:
        span.attributes |= {
            "messaging.system": "inbox_relay",
            "messaging.operation.name": "process",
            "messaging.operation.type": "process",
            "messaging.destination.name": delivery.route,
            "messaging.message.id": delivery.webhook_id,
            "inbox.source": delivery.source,
            "inbox.seq": delivery.seq,
            "inbox.attempt": delivery.attempt,
            "inbox.run": delivery.run,
        }
    return span


def end_attempt(span: Span, outcome: Outcome) -> None:
    """End it with the outcome."""
    error = outcome.error_class if isinstance(outcome, Failed) else None
    did = outcome.did if isinstance(outcome, Delivered) else type(outcome).__name__.lower()
    span.attributes["inbox.outcome"] = "failed" if error is not None else did
    span.end(error=error)
