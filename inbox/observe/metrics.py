"""All metrics of both programs, with their names, labels and meanings.

`inbox.observe.recorder` counts them if `[metrics]` enables it; otherwise `OFF` discards them. Labels have few values,
and none from a request: each new value makes a series that stays forever.
"""

from __future__ import annotations

from typing import Literal

import msgspec

UNKNOWN = "(unknown)"
"""Label `source` for requests to unknown sources; no source can have this name."""


class Metric(msgspec.Struct, frozen=True):
    """An exported metric."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    """Upper limits of a histogram."""

    @property
    def numbers(self) -> int:
        """Return the number of values of its series in `inbox.observe.recorder.Line`."""
        return {"counter": 1, "gauge": 2, "histogram": len(self.buckets) + 2}[self.kind]


def _counter(name: str, text: str, *labels: str) -> Metric:
    return Metric(name, "counter", text, labels)


def _gauge(name: str, text: str, *labels: str) -> Metric:
    return Metric(name, "gauge", text, labels)


def _histogram(name: str, text: str, *labels: str, buckets: tuple[float, ...]) -> Metric:
    return Metric(name, "histogram", text, labels, buckets)


_SHORT = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_LONG = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 86400.0)

# --- the receiver

RECEIVED = _counter("inbox_received_total", "Events that were stored.", "source")
DUPLICATES = _counter("inbox_duplicates_total", "Duplicates of stored events, answered with 200.", "source")
REJECTED = _counter(
    "inbox_rejected_total",
    f"Requests answered with an error. An unknown source is `{UNKNOWN}`; causes as in rejected_request.",
    "source",
    "cause",
)
NOT_KEPT = _counter(
    "inbox_rejections_not_kept_total", "Rejected requests without a row in rejected_request: too many, or not writable."
)
REQUEST_SECONDS = _histogram(
    "inbox_request_seconds",
    "Time from a request's headers to its answer, by the answer's status.",
    "status",
    buckets=_SHORT,
)
BATCH_EVENTS = _histogram(
    "inbox_batch_events", "Events in one commit.", buckets=(1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)
)
COMMIT_SECONDS = _histogram("inbox_commit_seconds", "Duration of a commit.", buckets=_SHORT)


# --- the relay

ATTEMPTS = _counter(
    "relay_attempts_total",
    "Recorded attempts. The outcome is delivered, unchanged, skipped, exhausted or the error class.",
    "route",
    "outcome",
)
FACTS = _counter("relay_facts_total", "Rows added to delivery_log, by kind.", "route", "kind")
DELIVERY_SECONDS = _histogram(
    "relay_delivery_seconds",
    "Time from the arrival of an event to its delivery, without replayed or re-armed deliveries.",
    "route",
    buckets=_LONG,
)
LEASES_EXPIRED = _counter("relay_leases_expired_total", "Expired leases: their holder died or was cut off.")
DISCARDED = _counter("relay_results_discarded_total", "Results discarded because another claim held the lease.")
DATABASE_TROUBLE = _counter(
    "relay_database_trouble_total", "Steps repeated because the database was unreachable or busy."
)
STEP_FAILURES = _counter(
    "relay_step_failures_total",
    "Steps that failed for another reason than an unreachable or busy database; each is tried again.",
    "step",
)
FAILED_ALONE = _counter(
    "relay_items_failed_alone_total",
    "Deliveries, commands, alerts and duplicates that a step quarantined because they failed alone.",
    "step",
)
OPEN = _gauge("relay_open_deliveries", "Open deliveries, as in the view backlog.", "route", "state")
OLDEST = _gauge(
    "relay_oldest_age_seconds", "Age of the oldest open event that is not dead; 0 if there is none.", "route"
)
LOOKED = _gauge("relay_backlog_read_timestamp_seconds", "Unix time of the last reading of these two.")
BREAKER = _gauge(
    "relay_breaker",
    "A destination's or api's circuit breaker: 0 closed, 1 half open, 2 open, 3 retired.",
    "kind",
    "name",
)
PAUSED = _gauge("relay_paused", "1 while a source, route, destination or api is paused, otherwise 0.", "kind", "name")
ALERT_FIRING = _gauge(
    "relay_alert_firing",
    "1 while an alert of the relay or the receiver has not recovered, otherwise 0.",
    "kind",
    "subject",
)
CLOCK_SKEW = _gauge("relay_clock_skew_seconds", "Seconds by which the database's clock is ahead of this host's.")
DATABASE_BYTES = _gauge("relay_database_bytes", "Size of the database with its indexes.")
DISK_FREE = _gauge("relay_disk_free_bytes", "Free space of the database's disk, where the database is on this host.")
SWEEP_COMPARED = _counter(
    "relay_sweep_compared_total", "Entities that sweeps compared with the inbox.", "source", "entity_type"
)
SWEEP_MISSED = _counter("relay_sweep_missed_total", "Changes that no webhook reported.", "source", "entity_type")
PRUNED = _counter("relay_pruned_rows_total", "Expired rows that were deleted.", "kind")
RETENTION_BEHIND = _gauge(
    "relay_retention_behind_seconds",
    "Seconds for which the oldest row of a kind has been expired and is still there; 0 if there is none.",
    "kind",
)

_ALL = [each for each in list(globals().values()) if isinstance(each, Metric)]
RECEIVER = tuple(metric for metric in _ALL if metric.name.startswith("inbox_"))
RELAY = tuple(metric for metric in _ALL if metric.name.startswith("relay_"))


class Meters:
    """Counters, histograms and gauges. This class discards everything; `inbox.observe.recorder.Recorder` counts.

    Labels are in the order of the metric's.
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
