"""The limits of a look back: what retention has removed since then."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Engine, text

from inbox.db.engine import reading
from inbox.db.reads import Row, plain
from inbox.events.timestamps import rfc3339


def removed_from(engine: Engine, event: Row, at: datetime) -> list[str]:
    """Return sentences on what is missing of a stored event at `at`: its facts that retention has deleted, or its erasure."""
    erased_at = event["erased_at"]
    missing = []
    if erased_at is not None and erased_at > at:
        missing.append(
            f"its entity was erased at {rfc3339(erased_at, 'seconds')}: texts and calls of its facts are gone"
        )
    with engine.connect() as connection, reading(connection).begin():
        statement = text("SELECT pruned_until FROM pruning WHERE kind = 'attempts' AND rows > 0")
        found = connection.execute(statement).mappings().first()
    until = None if found is None else plain(found)["pruned_until"]
    if until is not None and until > event["received_at"]:
        missing.append(
            f"retention has deleted failed attempts from before {rfc3339(until, 'seconds')}: attempts may be missing"
        )
    return missing
