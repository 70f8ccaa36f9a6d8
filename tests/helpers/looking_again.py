"""A fault of `rebuild` that was there once, for tests which have to find it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from sqlalchemy import text

from inbox.config.model import Config
from relay.store.audit import examine, rebuild
from relay.store.database import Transaction

WITHOUT_A_LOOK = ("AND NOT EXISTS (SELECT 1 FROM inbox i WHERE i.seq = open_delivery.seq)", "")
"""Text to replace in the statement that removes rows of no event."""


def look_again_by_the_events_of_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the lock it looks at everything that is there by then, and takes events for missing that it didn't see before."""
    events, look = examine._events, examine.examine
    seen = 0

    def look_at_all(
        transaction: Transaction, seqs: Sequence[int], config: Config, *, locked: bool = False
    ) -> examine.Examined:
        nonlocal seen
        if not locked:
            seen = transaction.execute(text("SELECT coalesce(max(seq), 0) AS seq FROM inbox"))[0].seq
            return look(transaction, seqs, config)
        monkeypatch.setattr(examine, "_events", lambda sql: text(f"{events(sql).text} AND i.seq <= {seen}"))
        there = transaction.execute(text("SELECT DISTINCT seq FROM open_delivery"))
        found = look(transaction, sorted({*seqs, *(row.seq for row in there)}), config, locked=True)
        monkeypatch.setattr(examine, "_events", events)
        return found

    for module in (examine, rebuild):
        monkeypatch.setattr(module, "examine", look_at_all)
