"""Values that change slowly and cost much to read: kept for some seconds, for everybody who looks at the page."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

Made = TypeVar("Made")


class Kept:
    """A few values with their age. Safe to share between threads."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._values: dict[Hashable, tuple[float, Any]] = {}

    def get(self, key: Hashable, seconds: float, make: Callable[[], Made]) -> Made:
        """Return the value of a key if it is younger than `seconds`; else make and keep it. An error is not kept.

        Keys are of the code, never from a request: nothing is forgotten.
        """
        now = self._monotonic()
        with self._lock:
            known = self._values.get(key)
        if known is not None and now - known[0] < seconds:
            found: Made = known[1]
            return found
        made = make()
        with self._lock:
            self._values[key] = (now, made)
        return made
