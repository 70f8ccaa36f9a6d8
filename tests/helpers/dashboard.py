"""The Grafana dashboard as tests read it, and the names in expressions of PromQL."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from inbox.observe.metrics import RECEIVER, RELAY

DASHBOARD = Path(__file__).resolve().parent.parent.parent / "deploy" / "grafana" / "inbox-relay.json"
LABELS: Mapping[str, frozenset[str]] = {
    name: frozenset({"instance", "job", "le", *metric.labels})
    for metric in (*RECEIVER, *RELAY)
    for name in (
        [f"{metric.name}_{part}" for part in ("bucket", "sum", "count")]
        if metric.kind == "histogram"
        else [metric.name]
    )
}
"""Labels of each series that the programs export, with those of Prometheus."""
_RANGES = {"$__rate_interval": "1m", "$__range": "5m"}


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    """The panels, without the rows' titles."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def expressions(dashboard: dict[str, Any]) -> list[tuple[str, str]]:
    """Each expression, with its panel's title."""
    return [(panel["title"], target["expr"]) for panel in panels(dashboard) for target in panel["targets"]]


def plain(expression: str) -> str:
    """The expression as Grafana would send it, with all values of each variable."""
    for name, span in _RANGES.items():
        expression = expression.replace(name, span)
    return re.sub(r"\$\w+", ".*", expression)


def unknown_in(expression: str, recorded: Mapping[str, frozenset[str]] = {}) -> list[str]:
    """List the series of ours, and the labels in braces, that an expression names and that don't exist."""
    known = {**LABELS, **recorded}
    without_values = re.sub(r'"[^"]*"', '""', expression)
    found = []
    for name, matchers in re.findall(r"\b((?:inbox|relay|route)[_:][\w:]+)\s*(?:\{(.*?)\})?", without_values):
        if name not in known:
            found.append(name)
        else:
            labels = re.findall(r"(\w+)\s*[=!]", matchers)
            found += [f"{name}{{{label}}}" for label in labels if label not in known[name]]
    return found


def variables(dashboard: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Each variable's series and label: `label_values(SERIES, LABEL)`."""
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            found = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
            assert found, variable
            yield found[1], found[2]
