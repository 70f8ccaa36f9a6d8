"""Every metric, from the tables in the code, and every alert, from the rules of Prometheus."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from docs.blocks.common import ROOT, format_table
from inbox.observe.metrics import RECEIVER, RELAY, Metric


def list_receiver_metrics() -> str:
    """Tabulate the receiver's metrics."""
    return _tabulate(RECEIVER)


def list_relay_metrics() -> str:
    """Tabulate the relays' metrics."""
    return _tabulate(RELAY)


RULES = ROOT / "deploy" / "prometheus" / "alerts.yml"


def read_alerts() -> Iterator[dict[str, Any]]:
    """Yield each alert of `RULES`."""
    for group in yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]:
        yield from group["rules"]


def name_runbook(alert: str) -> str:
    """Return the file name of an alert's runbook: `no-relay.md` of `NoRelay`."""
    return re.sub(r"(?<!^)(?=[A-Z])", "-", alert).lower() + ".md"


def list_alert_rules() -> str:
    """List the alerts with their severities."""
    severities: dict[str, list[str]] = {}
    for each in read_alerts():
        severities.setdefault(each["alert"], []).append(each["labels"]["severity"])
    return "".join(f"- [{name}]({name_runbook(name)}): {', '.join(found)}\n" for name, found in severities.items())


def _tabulate(metrics: Sequence[Metric]) -> str:
    return format_table(
        ("metric", "type", "labels", "meaning"),
        ((f"`{m.name}`", m.kind, ", ".join(f"`{label}`" for label in m.labels), m.help) for m in metrics),
    )
