"""Expressions of PromQL against the registry of metrics: each name, label and value in them has to exist."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import promql_parser

from inbox.errors import CAUSES
from inbox.events.states import OPEN_STATES
from inbox.telemetry.metrics import RECEIVER, RELAY, UNKNOWN
from relay.delivery.alerts import SENTENCES
from relay.delivery.facts import KINDS

PROMETHEUS_OWN = frozenset({"instance", "job"})
"""Labels that Prometheus adds to everything that it scrapes."""
LABELS: Mapping[str, frozenset[str]] = {
    "up": PROMETHEUS_OWN,
    **{
        name: PROMETHEUS_OWN | set(metric.labels) | ({"le"} if name.endswith("_bucket") else set())
        for metric in (*RECEIVER, *RELAY)
        for name in (
            [f"{metric.name}_{part}" for part in ("bucket", "sum", "count")]
            if metric.kind == "histogram"
            else [metric.name]
        )
    },
}
"""Labels of each series that the programs export."""
VALUES: Mapping[tuple[str, str], frozenset[str]] = {
    ("inbox_rejected_total", "cause"): frozenset(CAUSES),
    ("inbox_rejected_total", "source"): frozenset({UNKNOWN}),
    ("relay_facts_total", "kind"): frozenset(KINDS),
    ("relay_open_deliveries", "state"): frozenset(OPEN_STATES),
    ("relay_alert_firing", "kind"): frozenset(SENTENCES),
    ("relay_delivery_seconds_bucket", "le"): frozenset(
        str(limit) for metric in RELAY if metric.name == "relay_delivery_seconds" for limit in metric.buckets
    ),
    ("up", "job"): frozenset({"inbox-receiver", "inbox-relay"}),
}
"""Values that matchers may name."""


def complaints(expression: str, recorded: Mapping[str, frozenset[str]] = {}) -> list[str]:
    """List what an expression names that doesn't exist.

    Args:
        expression: of PromQL, without variables.
        recorded: series of recording rules, with their labels.

    Raises:
        ValueError: it is no expression.
    """
    known = {**LABELS, **recorded}
    found, labels = [], set[str]()
    for node in _nodes(promql_parser.parse(expression)):
        if isinstance(node, promql_parser.VectorSelector):
            name = str(node.name)
            if name not in known:
                found.append(f"there is no {name}")
                continue
            labels |= known[name]
            for matcher in node.matchers.matchers:
                found += _wrong(name, matcher.name, matcher.value, known[name])
    for node in _nodes(promql_parser.parse(expression)):
        if isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
            made = set(re.findall(r'label_replace\(.*?, "(\w+)"', expression))
            found += [f"nothing here has the label {label}" for label in {*node.modifier.labels} - labels - made]
    return found


def series_in(expression: str) -> set[str]:
    """Return the names of the series that an expression reads."""
    nodes = _nodes(promql_parser.parse(expression))
    return {str(node.name) for node in nodes if isinstance(node, promql_parser.VectorSelector)}


def _wrong(name: str, label: str, value: str, labels: frozenset[str]) -> Iterator[str]:
    if label not in labels:
        yield f"{name} has no label {label}"
    for each in value.split("|"):
        if each != ".*" and each not in VALUES.get((name, label), {each}):
            yield f"{label} of {name} is never {each}"


def _nodes(node: Any) -> Iterator[Any]:  # noqa: ANN401  # the parser's own classes
    """Walk the tree of an expression."""
    yield node
    for part in ("expr", "lhs", "rhs", "vector_selector", "param"):
        inner = getattr(node, part, None)
        if inner is not None:
            yield from _nodes(inner)
    for argument in getattr(node, "args", None) or []:
        yield from _nodes(argument)
