"""Reads the newest stored events with their payloads, one at a time: each in a short transaction that only reads."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import text

from relay.delivery.outcome import Delivery
from relay.store.database import Database
from relay.store.events import EVENT, of_event, payload_rows

_NEWEST = text("SELECT seq FROM inbox ORDER BY seq DESC LIMIT :most")
_EVENT = text(f"SELECT i.seq, {EVENT} FROM inbox i WHERE i.seq = :seq")


def newest(database: Database, most: int) -> Iterator[Delivery]:
    """Yield as many events, the newest first, as deliveries on no route. Without its payload, one has no headers and no body."""
    with database.read() as transaction:
        numbers = [row.seq for row in transaction.execute(_NEWEST, most=most)]
    for seq in numbers:
        with database.read() as transaction:
            rows = transaction.execute(_EVENT, seq=seq)
            payloads = payload_rows(transaction, (seq,))
        for row in rows:  # unless retention has deleted it just now
            event = of_event(row, payloads[0] if payloads else None)
            yield Delivery(seq=seq, route="", lane="", attempt=1, run=0, lease_token=0, **event)
