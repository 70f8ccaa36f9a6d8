"""Expressions of PromQL over the metrics of the registry: one that names another metric or label can't be made."""

from __future__ import annotations

from typing import Literal

from inbox.telemetry.metrics import Metric

RATE = "[$__rate_interval]"
"""Grafana's range for a rate: at least four scrapes."""
_VARIABLES = ("source", "route")
"""Labels with a variable of the same name on the dashboard."""

Part = Literal["", "_bucket", "_sum", "_count"]
"""Suffix of a histogram's series."""


def series(metric: Metric, part: Part = "", **wanted: str) -> str:
    """Select the series of a metric by the variables of the dashboard.

    Args:
        metric: a metric of the registry.
        part: of a histogram, which of its series.
        wanted: regular expressions that labels have to match.

    Raises:
        ValueError: the metric has no such part or label.
    """
    if bool(part) != (metric.kind == "histogram"):
        raise ValueError(f"{metric.name} has no series {metric.name}{part}")
    _require(metric, *wanted)
    chosen = {
        "instance": "$instance",
        **{label: f"${label}" for label in metric.labels if label in _VARIABLES},
        **wanted,
    }
    matchers = ", ".join(f'{label}=~"{value}"' for label, value in chosen.items())
    return f"{metric.name}{part}{{{matchers}}}"


def per_second(metric: Metric, *by: str, part: Part = "", over: str = RATE, **wanted: str) -> str:
    """Add up the rates of a counter over all processes, one sum for each value of `by`."""
    _require(metric, *by)
    return f"sum{_by(*by)} (rate({series(metric, part, **wanted)}{over}))"


def highest(metric: Metric, *by: str, **wanted: str) -> str:
    """Take a gauge of the relay, which all relays show alike, for each value of `by`."""
    _require(metric, *by)
    return f"max{_by(*by)} ({series(metric, '', **wanted)})"


def quantile(share: float, metric: Metric, *by: str) -> str:
    """Estimate a quantile of a histogram for each value of `by`."""
    _require(metric, *by)
    return f"histogram_quantile({share}, sum{_by('le', *by)} (rate({series(metric, '_bucket')}{RATE})))"


def or_zero(expression: str) -> str:
    """Show 0 where there is no series yet, as of something that has never happened."""
    return f"({expression}) or on() vector(0)"


def _by(*labels: str) -> str:
    return f" by ({', '.join(labels)})" if labels else ""


def _require(metric: Metric, *labels: str) -> None:
    unknown = sorted(set(labels) - {*metric.labels, "instance"})
    if unknown:
        raise ValueError(f"{metric.name} has no label {', '.join(unknown)}")
