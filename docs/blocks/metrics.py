"""Every metric, from the tables that the code counts by, and every alert, from the rules of Prometheus."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from docs.blocks.common import ROOT, table
from inbox.observe.metrics import RECEIVER, RELAY, Metric


def receiver_metrics() -> str:
    """Tabulate the receiver's metrics."""
    return _tabulate(RECEIVER)


def relay_metrics() -> str:
    """Tabulate the relays' metrics."""
    return _tabulate(RELAY)


RULES = ROOT / "deploy" / "prometheus" / "alerts.yml"


def alerts() -> Iterator[dict[str, Any]]:
    """Yield each alert of `RULES`."""
    for group in yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]:
        yield from group["rules"]


def runbook_of(alert: str) -> str:
    """Return the file name of an alert's runbook: `no-relay.md` of `NoRelay`."""
    return re.sub(r"(?<!^)(?=[A-Z])", "-", alert).lower() + ".md"


def alert_rules() -> str:
    """Tabulate the alerts; one with two severities has a line for each."""
    return table(
        ("alert", "severity", "what it says"),
        (
            (
                f"[{each['alert']}]({runbook_of(each['alert'])})",
                each["labels"]["severity"],
                re.sub(r"{{ \$(?:labels\.)?(\w+)[^}]*}}", r"*\1*", each["annotations"]["summary"]),
            )
            for each in alerts()
        ),
    )


def _tabulate(metrics: Sequence[Metric]) -> str:
    return table(
        ("metric", "type", "labels", "meaning"),
        ((f"`{m.name}`", m.kind, ", ".join(f"`{label}`" for label in m.labels), m.help) for m in metrics),
    )
