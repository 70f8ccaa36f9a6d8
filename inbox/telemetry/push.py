"""Pushes metrics by OTLP, with the names of Prometheus. Only `inbox.telemetry.exporter` imports it, where it is asked for.

The sums exist already, histograms among them, so no instrument of OpenTelemetry counts: its exporter gets the finished points.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from importlib.metadata import version

from opentelemetry.sdk.metrics import Exemplar
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    MetricExporter,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.metrics.export import Metric as Pushed
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from inbox.clock import epoch_nanoseconds
from inbox.otlp.exporters import SCHEMA_URL, hear, make_exporter, resource_of
from inbox.telemetry.metrics import Metric
from inbox.telemetry.totals import Summed, SummedByLabels, Totals

EVERY_MILLISECONDS = "60000"
CLOSES_WITHIN_SECONDS = 1.0

_SINCE_START = AggregationTemporality.CUMULATIVE


class Pusher:
    """Pushes all sums from a thread of its own, every minute unless OTEL_METRIC_EXPORT_INTERVAL says otherwise."""

    def __init__(
        self, totals: Totals, service: str, complain: Callable[[str], None], exporter: MetricExporter | None = None
    ) -> None:
        """Start. `service` is the name of the pushed metrics, unless the environment has another.

        Raises:
            ConfigError: a variable of the environment is wrong, or names an exporter that is not installed.
        """
        self._complain = hear(complain)
        self._totals = totals
        self._exporter: MetricExporter = exporter or make_exporter("metrics", None)
        self._resource = resource_of(service)
        self._began = epoch_nanoseconds()
        self._every = int(os.environ.get("OTEL_METRIC_EXPORT_INTERVAL", "").strip() or EVERY_MILLISECONDS) / 1000
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_pushing, name="push", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Push once more, for at most a second."""
        self._ended.set()
        self._thread.join(CLOSES_WITHIN_SECONDS)

    def _keep_pushing(self) -> None:
        is_last = False
        while not is_last:
            is_last = self._ended.wait(self._every)
            try:
                if pushed := list(self._metrics()):
                    self._exporter.export(self._data(pushed))
            except Exception as error:  # noqa: BLE001  # if this thread ended, the figures would stand still unnoticed
                self._complain(f"not exported ({type(error).__name__})")

    def _data(self, pushed: list[Pushed]) -> MetricsData:
        scope = InstrumentationScope("inbox-relay", version("inbox-relay"), SCHEMA_URL)
        return MetricsData([ResourceMetrics(self._resource, [ScopeMetrics(scope, pushed, SCHEMA_URL)], SCHEMA_URL)])

    def _metrics(self) -> Iterator[Pushed]:
        now = max(epoch_nanoseconds(), self._began)
        for metric, series in self._totals.read():
            yield Pushed(metric.name, metric.help, "", _points(metric, series, self._began, now))


def _points(metric: Metric, series: SummedByLabels, began: int, now: int) -> Sum | Gauge | Histogram:
    named = [(dict(zip(metric.labels, labels, strict=True)), each) for labels, each in sorted(series.items())]
    if metric.kind == "histogram":
        return Histogram([_histogram(metric, labels, each, began, now) for labels, each in named], _SINCE_START)
    points = [NumberDataPoint(labels, began, now, each.values[0]) for labels, each in named]
    return Gauge(points) if metric.kind == "gauge" else Sum(points, _SINCE_START, is_monotonic=True)


def _histogram(metric: Metric, labels: dict[str, str], series: Summed, began: int, now: int) -> HistogramDataPoint:
    *numbers, total = series.values
    counts = [int(number) for number in numbers]
    exemplars = [
        Exemplar({}, each.value, int(each.at * 1e9), int(each.span_id, 16), int(each.trace_id, 16))
        for each in series.exemplars.values()
    ]
    unknown: float = None  # type: ignore[assignment]  # smallest and largest value: nobody keeps them
    return HistogramDataPoint(
        labels, began, now, sum(counts), total, counts, metric.buckets, unknown, unknown, exemplars
    )
