"""The ways of a side's metrics: to Prometheus, which asks for them, and by OTLP to a collector."""

from __future__ import annotations

from typing import Literal

import msgspec

from inbox.config.model import Metrics
from inbox.config.values import Address
from inbox.otlp.asked import is_asked_for, names_endpoint

Side = Literal["receiver", "relay"]


class Outlet(msgspec.Struct, frozen=True):
    """The ways of a side's metrics; at least one of both."""

    address: Address | None
    """They are served there."""
    service: str | None = None
    """They are pushed by OTLP as this service's, unless the environment names another; None: nothing is pushed."""
    endpoint: str | None = None
    """URL to push to; None: the environment says it."""


def outlet_of(settings: Metrics, side: Side) -> Outlet | None:
    """Return where the metrics of this side go; None where nobody asks for them."""
    address: Address | None = getattr(settings, side)
    if is_asked_for("metrics", settings.endpoint):
        return Outlet(address, f"inbox-{side}", None if names_endpoint("metrics") else settings.endpoint)
    return None if address is None else Outlet(address)
