"""The panels of the dashboard, row by row: what each shows, and in which unit. `docs.blocks.dashboard` draws them."""

from __future__ import annotations

from typing import Literal

import msgspec

from docs.blocks.promql import highest, or_zero, per_second, quantile, series
from inbox.telemetry import metrics
from inbox.telemetry.metrics import Metric

FAILED, ANSWERED = "500|503", "2..|500|503"
"""Statuses of requests that were not stored, and of all that should have been; as in deploy/prometheus/slo.yml."""

Unit = Literal["short", "percentunit", "cps", "s", "bytes"]
"""Names of Grafana's units: a number, a share of 1, events per second, seconds, bytes."""
Form = Literal["number", "lines", "stack", "states"]


class Panel(msgspec.Struct, frozen=True, kw_only=True):
    """One panel."""

    title: str
    shows: tuple[Metric, ...]
    """Their meanings are its description."""
    queries: dict[str, str]
    """Expressions by the legend of their lines, where `{{label}}` is the value of a label."""
    unit: Unit = "short"
    form: Form = "lines"
    width: int = 8
    """Of 24 columns."""
    steps: tuple[tuple[float, str], ...] = ()
    """From each value on, a colour; below the first value it is green, or red if the first colour is green."""
    values: tuple[str, ...] = ()
    """Words for the values 0, 1, …"""


def _number(
    title: str, metric: Metric, expression: str, unit: Unit = "short", steps: tuple[tuple[float, str], ...] = ()
) -> Panel:
    return Panel(
        title=title, shows=(metric,), queries={title: expression}, unit=unit, form="number", width=4, steps=steps
    )


def _quantiles(title: str, metric: Metric, *by: str) -> Panel:
    labels = "".join(f" {{{{{label}}}}}" for label in by)
    return Panel(
        title=title,
        shows=(metric,),
        queries={f"p{share * 100:g}{labels}": quantile(share, metric, *by) for share in (0.5, 0.95, 0.99)},
        unit="s",
    )


def _rates(title: str, metric: Metric, *by: str, rare: bool = False) -> Panel:
    """Lines of a counter. Of a rare event, whose series are made by its first occurrence, there is a line at zero before."""
    expression = per_second(metric, *by)
    legend = " ".join(f"{{{{{label}}}}}" for label in by) or title
    return Panel(
        title=title, shows=(metric,), queries={legend: or_zero(expression) if rare else expression}, unit="cps"
    )


def _gauges(
    title: str,
    metric: Metric,
    *by: str,
    unit: Unit = "short",
    rare: bool = False,
    steps: tuple[tuple[float, str], ...] = (),
) -> Panel:
    expression = highest(metric, *by)
    legend = " ".join(f"{{{{{label}}}}}" for label in by) or title
    return Panel(
        title=title,
        shows=(metric,),
        queries={legend: or_zero(expression) if rare else expression},
        unit=unit,
        steps=steps,
    )


_REQUESTS = metrics.REQUEST_SECONDS
_AVAILABILITY = (
    f"1 - {per_second(_REQUESTS, part='_count', over='[$__range]', status=FAILED)}"
    f" / {per_second(_REQUESTS, part='_count', over='[$__range]', status=ANSWERED)}"
)
_EVENTS_A_COMMIT = (
    f"{per_second(metrics.BATCH_EVENTS, part='_sum')} / {per_second(metrics.BATCH_EVENTS, part='_count')}"
)

OVERVIEW = (
    _number("Availability of intake", _REQUESTS, _AVAILABILITY, "percentunit", steps=((0.999, "green"),)),
    _number("Events per second", metrics.RECEIVED, per_second(metrics.RECEIVED), "cps"),
    _number(
        "Delivery, p95", metrics.DELIVERY_SECONDS, quantile(0.95, metrics.DELIVERY_SECONDS), "s", steps=((60, "red"),)
    ),
    _number(
        "Open deliveries",
        metrics.OPEN,
        f"sum({highest(metrics.OPEN, 'route', 'state', state='received|waiting|ready|in_flight|blocked')})",
    ),
    _number(
        "Dead deliveries", metrics.OPEN, f"sum({highest(metrics.OPEN, 'route', state='dead')})", steps=((1, "red"),)
    ),
    _number(
        "Firing alerts",
        metrics.ALERT_FIRING,
        or_zero(f"sum({highest(metrics.ALERT_FIRING, 'kind', 'subject')})"),
        steps=((1, "red"),),
    ),
)

RECEIVER = (
    _rates("Events by source", metrics.RECEIVED, "source"),
    _rates("Duplicates by source", metrics.DUPLICATES, "source"),
    _rates("Rejected requests by cause", metrics.REJECTED, "cause"),
    Panel(
        title="Answers by status",
        shows=(_REQUESTS,),
        queries={"{{status}}": per_second(_REQUESTS, "status", part="_count")},
        unit="cps",
    ),
    _quantiles("Time to answer", _REQUESTS),
    _quantiles("Duration of a commit", metrics.COMMIT_SECONDS),
    Panel(title="Events in a commit", shows=(metrics.BATCH_EVENTS,), queries={"mean": _EVENTS_A_COMMIT}),
    _rates("Rejected requests without a row", metrics.NOT_KEPT),
)

RELAY = (
    _rates("Attempts by outcome", metrics.ATTEMPTS, "outcome"),
    _rates("Facts by kind", metrics.FACTS, "kind"),
    _quantiles("Arrival to delivery", metrics.DELIVERY_SECONDS, "route"),
    Panel(
        title="Open deliveries by state",
        shows=(metrics.OPEN,),
        queries={"{{state}}": f"sum by (state) ({highest(metrics.OPEN, 'route', 'state')})"},
        form="stack",
    ),
    _gauges("Oldest open event by route", metrics.OLDEST, "route", unit="s", steps=((3600, "red"),)),
    Panel(
        title="Since the backlog was read",
        shows=(metrics.LOOKED,),
        queries={"seconds": f"time() - {highest(metrics.LOOKED)}"},
        unit="s",
        steps=((600, "red"),),
    ),
    Panel(
        title="Circuit breakers",
        shows=(metrics.BREAKER,),
        queries={"{{kind}} {{name}}": highest(metrics.BREAKER, "kind", "name")},
        form="states",
        steps=((1, "yellow"), (2, "orange"), (3, "red")),
        values=("closed", "half open", "open", "retired"),
    ),
    Panel(
        title="Pauses",
        shows=(metrics.PAUSED,),
        queries={"{{kind}} {{name}}": highest(metrics.PAUSED, "kind", "name")},
        form="states",
        steps=((1, "orange"),),
        values=("not paused", "paused"),
    ),
    Panel(
        title="Alerts",
        shows=(metrics.ALERT_FIRING,),
        queries={"{{kind}} {{subject}}": or_zero(highest(metrics.ALERT_FIRING, "kind", "subject"))},
        form="states",
        steps=((1, "red"),),
        values=("not firing", "firing"),
    ),
    Panel(
        title="Leases and late results",
        shows=(metrics.LEASES_EXPIRED, metrics.DISCARDED),
        queries={
            "expired leases": per_second(metrics.LEASES_EXPIRED),
            "discarded results": per_second(metrics.DISCARDED),
        },
        unit="cps",
    ),
    Panel(
        title="Failed steps",
        shows=(metrics.STEP_FAILURES, metrics.FAILED_ALONE),
        queries={
            "step {{step}}": or_zero(per_second(metrics.STEP_FAILURES, "step")),
            "items of {{step}}": or_zero(per_second(metrics.FAILED_ALONE, "step")),
        },
        unit="cps",
    ),
    Panel(
        title="Sweeps",
        shows=(metrics.SWEEP_COMPARED, metrics.SWEEP_MISSED),
        queries={
            "compared {{source}} {{entity_type}}": or_zero(per_second(metrics.SWEEP_COMPARED, "source", "entity_type")),
            "missed {{source}} {{entity_type}}": or_zero(per_second(metrics.SWEEP_MISSED, "source", "entity_type")),
        },
        unit="cps",
    ),
)

DATABASE = (
    _gauges("Size of the database", metrics.DATABASE_BYTES, unit="bytes"),
    _gauges("Free disk", metrics.DISK_FREE, unit="bytes", steps=((500_000_000, "green"),)),
    _rates("Repeated steps: database unreachable or busy", metrics.DATABASE_TROUBLE),
    _rates("Pruned rows by kind", metrics.PRUNED, "kind", rare=True),
    _gauges("Retention behind by kind", metrics.RETENTION_BEHIND, "kind", unit="s", rare=True, steps=((86400, "red"),)),
    Panel(
        title="The database's clock is ahead by",
        shows=(metrics.CLOCK_SKEW,),
        queries={"{{instance}}": series(metrics.CLOCK_SKEW)},
        unit="s",
        steps=((2, "red"),),
    ),
)

ROWS: dict[str, tuple[Panel, ...]] = {
    "Overview": OVERVIEW,
    "Receiver": RECEIVER,
    "Relay": RELAY,
    "Database": DATABASE,
}
