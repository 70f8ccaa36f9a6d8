"""Sums of what the processes of a side count, for whoever exports them."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import msgspec
from prometheus_client.core import CounterMetricFamily, Exemplar, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from inbox.telemetry.metrics import RECEIVER, RELAY, Metric
from inbox.telemetry.recorder import Exemplar as Observed
from inbox.telemetry.recorder import Line

_METRICS = {metric.name: metric for metric in (*RECEIVER, *RELAY)}
_Family = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily


class Summed(msgspec.Struct, frozen=True):
    """A series of a metric: its numbers, as a line has them, and the newest exemplar of each bucket that has one."""

    values: tuple[float, ...]
    exemplars: dict[int, Observed] = {}


SummedByLabels = dict[tuple[str, ...], Summed]


class Totals(Collector):
    """Sums over all processes, including ended ones. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._series: dict[str, SummedByLabels] = {}
        self._decoder = msgspec.json.Decoder(Line)

    def add(self, line: bytes) -> None:
        """Add a line from a process.

        Raises:
            ValueError: it is no line of `inbox.telemetry.recorder`, or only the end of one, after an exporter was killed.
        """
        try:
            told = self._decoder.decode(line)
        except msgspec.DecodeError as error:
            raise ValueError(str(error)) from None
        metric = _METRICS.get(told.name)
        if metric is None or not _is_like(metric, told):
            raise ValueError(f"no metric is like this: {line!r}")
        with self._lock:
            series = self._series.setdefault(told.name, {})
            held = series.get(told.labels)
            if held is None:
                values = told.values
            elif metric.kind == "gauge":
                values = max(held.values, told.values, key=lambda each: each[1])  # the newest value of any process
            else:
                values = tuple(map(sum, zip(held.values, told.values, strict=True)))
            exemplars = dict(held.exemplars) if held is not None else {}
            exemplars.update({each.place: each for each in told.exemplars})
            series[told.labels] = Summed(values, exemplars)

    def read(self) -> list[tuple[Metric, SummedByLabels]]:
        """Return every counted metric with its series, as they are now."""
        with self._lock:
            return [(_METRICS[name], dict(series)) for name, series in sorted(self._series.items())]

    def collect(self) -> Iterator[_Family]:
        """Yield every counted metric in prometheus-client's form."""
        for metric, series in self.read():
            yield _family(metric, series)


def _is_like(metric: Metric, told: Line) -> bool:
    """Return whether a line may be one of this metric."""
    return (
        len(told.labels) == len(metric.labels)
        and len(told.values) == metric.numbers
        and all(metric.kind == "histogram" and 0 <= each.place <= len(metric.buckets) for each in told.exemplars)
    )


def _family(metric: Metric, series: SummedByLabels) -> _Family:
    if metric.kind == "histogram":
        histogram = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
        for labels, each in sorted(series.items()):
            histogram.add_metric(labels, list(_buckets(metric, each)), each.values[-1])
        return histogram
    made = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    family = made(metric.name, metric.help, labels=metric.labels)
    for labels, each in sorted(series.items()):
        family.add_metric(labels, each.values[0])
    return family


def _buckets(metric: Metric, series: Summed) -> Iterator[tuple[str, float] | tuple[str, float, Exemplar]]:
    """Yield limit and sum up to it of each bucket, with its exemplar if it has one; only OpenMetrics shows that."""
    for place, limit in enumerate((*map(str, metric.buckets), "+Inf")):
        number = sum(series.values[: place + 1])
        seen = series.exemplars.get(place)
        if seen is None:
            yield limit, number
        else:
            yield limit, number, Exemplar({"trace_id": seen.trace_id, "span_id": seen.span_id}, seen.value, seen.at)
