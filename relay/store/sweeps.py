"""What a sweep compares with the inbox, and how far it has come."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import cache

from sqlalchemy import TextClause, text

from inbox.db.dialect import Sql, rows_param
from inbox.timestamps import as_time, time_text
from relay.listed import Listed
from relay.store.database import Database

SLACK_SECONDS = 1.0
"""Times of events may be cut to the second, and an entity's is not."""


def compared_until(database: Database, source: str, entity_type: str) -> datetime | None:
    """Up to when every change has been compared; None: nothing has."""
    with database.read() as transaction:
        found = transaction.execute(_WATERMARK, source=source, entity_type=entity_type)
    return as_time(found[0].compared_until) if found else None


def missing(database: Database, source: str, entity_type: str, listed: Sequence[Listed]) -> list[Listed]:
    """Those of which the inbox has no event of their last change, or a later one."""
    rows = [{"id": each.id, "modified": each.modified} for each in listed]
    with database.read() as transaction:
        found = transaction.execute(
            _missing(database.sql),
            listed=rows_param(rows),
            source=source,
            entity_type=entity_type,
            slack=-SLACK_SECONDS,
        )
    ids = {row.id for row in found}
    return [each for each in listed if each.id in ids]


def move(database: Database, source: str, entity_type: str, until: datetime, missed: int) -> None:
    """Note that every change up to here has been compared; a watermark never goes back."""
    with database.write() as transaction:
        transaction.execute(
            _move(database.sql), source=source, entity_type=entity_type, until=time_text(until), missed=missed
        )


_WATERMARK = text("SELECT compared_until FROM sweep_watermark WHERE source = :source AND entity_type = :entity_type")


@cache
def _missing(sql: Sql) -> TextClause:
    return text(f"""
SELECT listed.id
FROM {sql.rows("listed", id="text", modified="time")}
WHERE NOT EXISTS (
    SELECT 1 FROM inbox i
    WHERE i.source = :source AND i.entity_type = :entity_type AND i.entity_id = listed.id
      AND i.occurred_at > {sql.plus_seconds("listed.modified", ":slack")})
""")


@cache
def _move(sql: Sql) -> TextClause:
    later = (
        "CASE WHEN excluded.compared_until > sweep_watermark.compared_until THEN excluded.compared_until"
        " ELSE sweep_watermark.compared_until END"
    )
    return text(f"""
INSERT INTO sweep_watermark (source, entity_type, compared_until, swept_at, missed)
VALUES (:source, :entity_type, {sql.time(":until")}, {sql.now}, :missed)
ON CONFLICT (source, entity_type) DO UPDATE SET compared_until = {later}, swept_at = excluded.swept_at,
    missed = sweep_watermark.missed + excluded.missed
""")
