"""Every metric, from the tables that the code counts by."""

from __future__ import annotations

from collections.abc import Sequence

from docs.blocks.common import table
from inbox.telemetry.metrics import RECEIVER, RELAY, Metric


def receiver_metrics() -> str:
    """Tabulate the receiver's metrics."""
    return _listed(RECEIVER)


def relay_metrics() -> str:
    """Tabulate the relays' metrics."""
    return _listed(RELAY)


def _listed(metrics: Sequence[Metric]) -> str:
    return table(
        ("metric", "type", "labels", "meaning"),
        ((f"`{m.name}`", m.kind, ", ".join(f"`{label}`" for label in m.labels), m.help) for m in metrics),
    )
