"""All metrics of both sides, with their names, labels and meanings. There are no others.

`inbox.observe.recorder` counts them where `[metrics]` enables it; otherwise `OFF` does, which counts nothing. A label has
few values, and never one from a request: each new value makes a series that stays for ever.
"""

from __future__ import annotations

from typing import Literal

import msgspec

UNKNOWN = "(unknown)"
"""Label `source` of a request for an unknown source; no source can have this name."""


class Metric(msgspec.Struct, frozen=True):
    """A metric, as it is exported."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    """Upper limits of a histogram."""

    @property
    def numbers(self) -> int:
        """Return how many numbers a series of it has in `inbox.observe.recorder.Line`."""
        return {"counter": 1, "gauge": 2, "histogram": len(self.buckets) + 2}[self.kind]


_SHORT = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_LONG = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 86400.0)

# --- the receiver

RECEIVED = Metric("inbox_received_total", "counter", "Events that were stored.", ("source",))
DUPLICATES = Metric("inbox_duplicates_total", "counter", "Duplicates of stored events, answered with 200.", ("source",))
REJECTED = Metric(
    "inbox_rejected_total",
    "counter",
    f"Requests answered with an error. An unknown source is `{UNKNOWN}`; causes as in rejected_request.",
    ("source", "cause"),
)
NOT_KEPT = Metric(
    "inbox_rejections_not_kept_total",
    "counter",
    "Rejected requests without a row in rejected_request: too many, or not writable.",
)
REQUEST_SECONDS = Metric(
    "inbox_request_seconds",
    "histogram",
    "Time from a request's headers to its answer, by the answer's status.",
    ("status",),
    _SHORT,
)
BATCH_EVENTS = Metric(
    "inbox_batch_events",
    "histogram",
    "Events in one commit.",
    buckets=(1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0),
)
COMMIT_SECONDS = Metric("inbox_commit_seconds", "histogram", "Duration of a commit.", buckets=_SHORT)


# --- the relay

ATTEMPTS = Metric(
    "relay_attempts_total",
    "counter",
    "Recorded attempts. The outcome is delivered, unchanged, skipped, exhausted, or the error class.",
    ("route", "outcome"),
)
FACTS = Metric("relay_facts_total", "counter", "Rows added to delivery_log, by kind.", ("route", "kind"))
DELIVERY_SECONDS = Metric(
    "relay_delivery_seconds",
    "histogram",
    "Time from the arrival of an event to its delivery, without replayed or re-armed deliveries.",
    ("route",),
    _LONG,
)
LEASES_EXPIRED = Metric("relay_leases_expired_total", "counter", "Expired leases: their holder died or was cut off.")
DISCARDED = Metric(
    "relay_results_discarded_total", "counter", "Results discarded because another claim held the lease."
)
DATABASE_TROUBLE = Metric(
    "relay_database_trouble_total", "counter", "Steps repeated because the database was unreachable or busy."
)
STEP_FAILURES = Metric(
    "relay_step_failures_total",
    "counter",
    "Steps that failed for another reason than an unreachable or busy database; each is tried again.",
    ("step",),
)
FAILED_ALONE = Metric(
    "relay_items_failed_alone_total",
    "counter",
    "Deliveries, commands, alerts and duplicates that a step set aside because they failed alone.",
    ("step",),
)
OPEN = Metric("relay_open_deliveries", "gauge", "Open deliveries, as in the view backlog.", ("route", "state"))
OLDEST = Metric(
    "relay_oldest_age_seconds",
    "gauge",
    "Age of the oldest open event that is not dead; 0 when there is none.",
    ("route",),
)
LOOKED = Metric("relay_backlog_read_timestamp_seconds", "gauge", "Unix time of the last reading of these two.")
BREAKER = Metric(
    "relay_breaker",
    "gauge",
    "A destination's or api's circuit breaker: 0 closed, 1 half open, 2 open, 3 retired.",
    ("kind", "name"),
)
PAUSED = Metric(
    "relay_paused", "gauge", "1 while a source, route, destination or api is paused, otherwise 0.", ("kind", "name")
)
ALERT_FIRING = Metric(
    "relay_alert_firing",
    "gauge",
    "1 while an alert of the relay or the receiver has not recovered, otherwise 0.",
    ("kind", "subject"),
)
CLOCK_SKEW = Metric(
    "relay_clock_skew_seconds", "gauge", "Seconds by which the database's clock is ahead of this host's."
)
DATABASE_BYTES = Metric("relay_database_bytes", "gauge", "Size of the database with its indexes.")
DISK_FREE = Metric(
    "relay_disk_free_bytes", "gauge", "Free space of the database's disk, where the database is on this host."
)
SWEEP_COMPARED = Metric(
    "relay_sweep_compared_total", "counter", "Entities that sweeps compared with the inbox.", ("source", "entity_type")
)
SWEEP_MISSED = Metric(
    "relay_sweep_missed_total", "counter", "Changes that no webhook reported.", ("source", "entity_type")
)
PRUNED = Metric("relay_pruned_rows_total", "counter", "Expired rows that were deleted.", ("kind",))
RETENTION_BEHIND = Metric(
    "relay_retention_behind_seconds",
    "gauge",
    "Seconds for which the oldest row of a kind has been expired and is still there; 0 when there is none.",
    ("kind",),
)

_ALL = [each for each in list(globals().values()) if isinstance(each, Metric)]
RECEIVER = tuple(metric for metric in _ALL if metric.name.startswith("inbox_"))
RELAY = tuple(metric for metric in _ALL if metric.name.startswith("relay_"))


class Meters:
    """Counters, histograms and gauges. This class counts nothing; `inbox.observe.recorder.Recorder` does.

    The labels come in the order of the metric's own.
    """

    def count(self, metric: Metric, *labels: str, by: float = 1) -> None:
        """Add `by` to a counter."""

    def observe(self, metric: Metric, value: float, *labels: str) -> None:
        """Add a value to a histogram."""

    def put(self, metric: Metric, value: float, *labels: str) -> None:
        """Set a gauge."""

    def close(self) -> None:
        """Publish the counts so far, and stop counting."""


OFF = Meters()
