"""A python destination whose function a test gives."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from types import ModuleType

import msgspec
import pytest

from relay.delivery.outcome import Outcome
from relay.destinations import python
from relay.handler import Event
from tests.helpers.delivering import a_delivery, config_text, context, deliver

EVENT = a_delivery(attempt=2, run=1, event_id="e1", headers={"x-request-id": "r1"}, body=b'{"id": "u1", "n": 1.10}')
MODULE = "handlers_of_a_test"

Act = Callable[[Event], object]


def configured(function: str, extra: str = "") -> str:
    return config_text("python", f'function = "{function}"\n{extra}')


class Handled:
    """Delivers to a function, with nothing left behind by other tests."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._module = ModuleType(MODULE)
        monkeypatch.setitem(sys.modules, MODULE, self._module)
        monkeypatch.setattr(python, "_SLOTS", {})

    def are_free(self, number: int) -> bool:
        """True when as many slots of the one destination are free."""
        (slots,) = python._SLOTS.values()
        return slots._value == number

    def __call__(
        self, function: Act, *, extra: str = "", lease: Callable[[], float] = lambda: float("inf"), **changes: object
    ) -> Outcome:
        vars(self._module)["on_event"] = function
        delivery = msgspec.structs.replace(EVENT, **changes)
        return deliver(configured(f"{MODULE}:on_event", extra), delivery, context(lease))


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
