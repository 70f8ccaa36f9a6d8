"""A delivery, the configuration of its route, and attempts without a store."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime

import msgspec

from inbox.config.model import Config
from inbox.events.event import Event
from inbox.loader.load import parse_config
from relay import destinations
from relay.delivery.outcome import Delivered, Delivery, Failed, Outcome
from relay.destinations import Context, Deliverer

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ROUTE = "user-to-crm"
LOCAL = "allow_private = true\nallow_http = true\n"
DELIVERY = Delivery(
    seq=7, route=ROUTE, lane="USER|1", attempt=1, run=0, lease_token=1, source="trivore", entity_type="USER",
    entity_id="u1", event_type="UPDATE", action="update", event_id=None, dedup_key="k1", occurred_at=NOW, received_at=NOW,
    content_type="application/json", headers={}, body=b'{"id": "u1"}', traceparent="00-" + "a" * 32 + "-" + "b" * 16 + "-01",
)  # fmt: skip

_CONFIG = """
[sources.trivore]
preset = "trivore"
auth = {{ kind = "none" }}
[destinations.crm]
kind = "{kind}"
{destination}
[routes.user-to-crm]
source = "trivore"
destination = "crm"
{route}
"""


def context(lease: Callable[[], float] = lambda: float("inf"), stop: threading.Event | None = None) -> Context:
    """Return the context of an attempt."""
    return Context(lease, stop or threading.Event(), lambda: NOW)


def config_text(kind: str, destination: str, route: str = "") -> str:
    """Return an inbox.toml with one route to `crm`; the lines are added to its table and to the route's."""
    return _CONFIG.format(kind=kind, destination=destination, route=route)


def delivery_of(seq: int, event: Event) -> Delivery:
    """Return a stored event as a delivery without a route."""
    names = set(Delivery.__struct_fields__) & set(Event.__struct_fields__)
    known = {name: getattr(event, name) for name in names}
    return Delivery(seq=seq, route="", lane="", attempt=1, run=0, lease_token=0, **known)


def build(config: str | Config) -> Deliverer:
    """Build the deliverer of the route."""
    return destinations.build(parse_config(config) if isinstance(config, str) else config)[ROUTE]


def deliver(config: str | Config, delivery: Delivery = DELIVERY, within: Context | None = None) -> Outcome:
    """Make one attempt."""
    return build(config)(delivery, within or context())


def a_delivery(**changes: object) -> Delivery:
    """Return the delivery with other fields."""
    return msgspec.structs.replace(DELIVERY, **changes)


def as_delivered(outcome: Outcome) -> Delivered:
    assert isinstance(outcome, Delivered), outcome
    return outcome


def as_failed(outcome: Outcome) -> Failed:
    assert isinstance(outcome, Failed), outcome
    return outcome


def failure(outcome: Outcome) -> tuple[str, str]:
    """Return error class and error of a failed outcome."""
    return as_failed(outcome).error_class, as_failed(outcome).error
