"""A python destination whose function a test gives."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from types import ModuleType

import msgspec
import pytest

from inbox.config.model import Config
from inbox.loader.load import parse_config
from relay import destinations
from relay.delivery.outcome import Delivery, Outcome
from relay.destinations import Context, python
from relay.handler import Event

NOW = datetime(2026, 1, 1, tzinfo=UTC)
DELIVERY = Delivery(
    seq=7, route="to-us", lane="USER|1", attempt=2, run=1, lease_token=1, source="trivore", entity_type="USER",
    entity_id="u1", event_type="UPDATE", action="update", event_id="e1", dedup_key="k1", occurred_at=NOW, received_at=NOW,
    content_type="application/json", headers={"x-request-id": "r1"}, body=b'{"id": "u1", "n": 1.10}',
)  # fmt: skip
MODULE = "handlers_of_a_test"
CONTEXT = Context(lambda: float("inf"), threading.Event(), lambda: NOW)

Act = Callable[[Event], object]


def configured(function: str, extra: str = "") -> Config:
    return parse_config(f"""
        [sources.trivore]
        preset = "trivore"
        auth = {{ kind = "none" }}
        [destinations.us]
        kind = "python"
        function = "{function}"
        {extra}
        [routes.to-us]
        source = "trivore"
        destination = "us"
    """)


class Handled:
    """Delivers to a function, with nothing left behind by other tests."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._module = ModuleType(MODULE)
        monkeypatch.setitem(sys.modules, MODULE, self._module)
        monkeypatch.setattr(python, "_SLOTS", {})

    @property
    def slots(self) -> python.HandlerSlots:
        (slots,) = python._SLOTS.values()
        return slots

    def __call__(self, function: Act, *, extra: str = "", context: Context = CONTEXT, **changes: object) -> Outcome:
        vars(self._module)["on_event"] = function
        deliverer = destinations.build(configured(f"{MODULE}:on_event", extra))["to-us"]
        outcome = deliverer.deliver(msgspec.structs.replace(DELIVERY, **changes), context)
        deliverer.close()
        return outcome


class Held:
    """A function that does not return before it is let go; `began` is released once for each call."""

    def __init__(self) -> None:
        self.began = threading.Semaphore(0)
        self._go = threading.Event()

    def __call__(self, event: Event) -> None:
        del event
        self.began.release()
        self._go.wait(30)

    def let_go(self) -> None:
        self._go.set()
