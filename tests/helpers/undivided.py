"""Steps whose failing batches are not taken apart: what fails in a search for orders or histories shows as itself."""

from __future__ import annotations

import pytest

from relay.store import bulkhead, claim, unreadable


def let_batches_fail_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every failure end its step. Else a missing safeguard, which the database notices, would only set items aside."""
    for module, name in (
        (bulkhead, "blames_items"),
        (bulkhead, "is_wait_timeout"),
        (unreadable, "blames_items"),
        (claim, "is_wait_timeout"),
    ):
        monkeypatch.setattr(module, name, lambda _error: False)
