"""The Grafana dashboard as tests read it: its panels, and their expressions with values in place of variables."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DASHBOARD = Path(__file__).resolve().parent.parent.parent / "deploy" / "grafana" / "inbox-relay.json"
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


def variables(dashboard: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Each variable's series and label: `label_values(SERIES, LABEL)`."""
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            found = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
            assert found, variable
            yield found[1], found[2]
