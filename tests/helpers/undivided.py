"""Steps whose failing batches are not taken apart: what fails in a search for orders or histories shows as itself."""

from __future__ import annotations

import pytest

from relay.store import bulkhead, unreadable


def let_batches_fail_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every failure end its step. Else a missing safeguard, which the database notices, would only set items aside."""
    for module in (bulkhead, unreadable):
        for name in ("blames_items", "is_held_up"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, lambda _error: False)
