"""Every metric of both sides: its name, its labels and what it tells. The tables below are all there is.

What counts them is `inbox.telemetry.recorder`, where `[metrics]` asks for it; elsewhere `OFF` does, which counts nothing. A label
has few values, and never one that a request brings along: each new value is a series that is kept for good.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

UNKNOWN = "(unknown)"
"""The label `source` of a request for a source that is not configured; no source can be named so."""


class Metric(msgspec.Struct, frozen=True):
    """One metric, as it is exported."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    """Upper limits, of a histogram."""

    @property
    def numbers(self) -> int:
        """Count of the numbers in a series of it, as in `inbox.telemetry.recorder.Line`."""
        return {"counter": 1, "gauge": 2, "histogram": len(self.buckets) + 2}[self.kind]


_SHORT = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_LONG = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 86400.0)

# --- the receiver

RECEIVED = Metric("inbox_received_total", "counter", "Events that were stored.", ("source",))
REPEATED = Metric(
    "inbox_repeated_total",
    "counter",
    "Events that were there already; their senders were told so, with 200.",
    ("source",),
)
REFUSED = Metric(
    "inbox_refused_total",
    "counter",
    f"Requests answered with an error. A source that is not configured is `{UNKNOWN}`; causes as in rejected_request.",
    ("source", "cause"),
)
NOT_KEPT = Metric(
    "inbox_refusals_not_kept_total", "counter", "Refusals without a row in rejected_request: too many, or not writable."
)
REQUEST_SECONDS = Metric(
    "inbox_request_seconds",
    "histogram",
    "From a request's headers to its answer, by the answer's status.",
    ("status",),
    _SHORT,
)
BATCH_EVENTS = Metric(
    "inbox_batch_events",
    "histogram",
    "Events in one commit.",
    buckets=(1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0),
)
COMMIT_SECONDS = Metric("inbox_commit_seconds", "histogram", "How long one commit took.", buckets=_SHORT)

RECEIVER = (RECEIVED, REPEATED, REFUSED, NOT_KEPT, REQUEST_SECONDS, BATCH_EVENTS, COMMIT_SECONDS)

# --- the relay

ATTEMPTS = Metric(
    "relay_attempts_total",
    "counter",
    "Attempts that were recorded. The outcome is delivered, unchanged, skipped, exhausted, or the error class.",
    ("route", "outcome"),
)
FACTS = Metric(
    "relay_facts_total", "counter", "Rows that were added to delivery_log, by their kind.", ("route", "kind")
)
DELIVERY_SECONDS = Metric(
    "relay_delivery_seconds",
    "histogram",
    "From the arrival of an event to its delivery; what was replayed or re-armed is left out.",
    ("route",),
    _LONG,
)
TAKEN_BACK = Metric(
    "relay_leases_taken_back_total", "counter", "Leases that ran out: whoever held one died, or was cut off."
)
DISCARDED = Metric(
    "relay_results_discarded_total", "counter", "Results that came after another claim had taken the lease over."
)
DATABASE_TROUBLE = Metric("relay_database_trouble_total", "counter", "Steps that the database did not take at once.")
STEP_FAILURES = Metric(
    "relay_step_failures_total",
    "counter",
    "Steps that failed for anything but an unreachable or busy database; each is tried again.",
    ("step",),
)
FAILED_ALONE = Metric(
    "relay_items_failed_alone_total",
    "counter",
    "Deliveries, commands, alerts and duplicates that a step could not work on, and put aside.",
    ("step",),
)
OPEN = Metric(
    "relay_open_deliveries", "gauge", "Deliveries that have not ended, as in the view backlog.", ("route", "state")
)
OLDEST = Metric(
    "relay_oldest_age_seconds",
    "gauge",
    "How long ago the oldest open event arrived that is not dead; 0 when there is none.",
    ("route",),
)
LOOKED = Metric("relay_backlog_read_timestamp_seconds", "gauge", "When these two were read last, as a Unix time.")
BREAKER = Metric(
    "relay_breaker",
    "gauge",
    "A destination's or api's circuit breaker: 0 closed, 1 half open, 2 open, 3 retired.",
    ("kind", "name"),
)
SWEEP_COMPARED = Metric(
    "relay_sweep_compared_total", "counter", "Entities that a sweep compared with the inbox.", ("source", "entity_type")
)
SWEEP_MISSED = Metric(
    "relay_sweep_missed_total", "counter", "Changes that no webhook had told.", ("source", "entity_type")
)

RELAY = (
    ATTEMPTS,
    FACTS,
    DELIVERY_SECONDS,
    TAKEN_BACK,
    DISCARDED,
    DATABASE_TROUBLE,
    STEP_FAILURES,
    FAILED_ALONE,
    OPEN,
    OLDEST,
    LOOKED,
    BREAKER,
    SWEEP_COMPARED,
    SWEEP_MISSED,
)


class Meters:
    """What is told of things that happen. This one counts nothing; `inbox.telemetry.recorder` has the one that does.

    Labels are given in the order of the metric's own.
    """

    def count(self, metric: Metric, *labels: str, by: float = 1) -> None:
        """It has happened, or `by` times."""

    def count_each(self, metric: Metric, labels: Iterable[str]) -> None:
        """It has happened once for each of these values of its one label."""

    def observe(self, metric: Metric, value: float, *labels: str) -> None:
        """One more value, for a histogram."""

    def put(self, metric: Metric, value: float, *labels: str) -> None:
        """A gauge stands at this now."""

    def close(self) -> None:
        """Let what was told so far be seen, and count no more."""


OFF = Meters()
