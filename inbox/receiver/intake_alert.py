"""The receiver's one alert: nothing can be stored until a person fixes the database."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime
from functools import cache

import msgspec
from sqlalchemy import TextClause, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from inbox.db import guarantees
from inbox.db.dialect import Sql
from inbox.db.engine import one_transaction
from inbox.errors import UnfitDatabase
from inbox.events.timestamps import time_text

_log = logging.getLogger(__name__)


class IntakeAlert:
    """Raises and resolves the alert, each once: in the log, and in the table `alert`, from which relays post it."""

    def __init__(self) -> None:
        self._may_fire = True
        """True at the start too: an alert of an earlier process is resolved once something is stored."""
        self._reported: Sequence[str] = ()
        self._unreported: str | None = None

    async def require_fit(self, connection: AsyncConnection, now: datetime) -> None:
        """Check the database behind a new connection.

        Raises:
            UnfitDatabase: nothing may be stored through it.
        """
        found = await connection.run_sync(guarantees.differences, guarantees.RECEIVER_COLUMNS)
        await connection.rollback()
        if found != self._reported:
            for line in found:
                _log.critical("nothing is stored: %s", line)
            self._reported = found
        if found or self._unreported is not None:
            self._may_fire = True
            await _note(connection, now, "; ".join(found) or self._unreported)
            self._unreported = None
        if found:
            raise UnfitDatabase("\n".join(found))

    def number_taken(self, constraint: str) -> None:
        """Note that a number that has to be new is taken. The next connection shows whether that lasts, and stores the alert."""
        self._unreported = f"the database gave a number that is taken already (constraint {constraint})"
        _log.critical("nothing was stored: %s; senders get 503 and send again", self._unreported)

    async def stored(self, connection: AsyncConnection, now: datetime) -> None:
        """Resolve the alert, if there is one, as something was stored."""
        if self._may_fire:
            self._may_fire = False
            await _note(connection, now, None)


async def _note(connection: AsyncConnection, now: datetime, error: str | None) -> None:
    """Store a row if this is a change. The same fault may prevent that, but the log has it in any case."""
    values = {
        "at": time_text(now),
        "firing": error is not None,
        "detail": msgspec.json.encode({} if error is None else {"error": error}).decode(),
    }
    try:
        async with one_transaction(connection):
            await connection.execute(_change(Sql(connection.dialect.name)), values)
    except SQLAlchemyError as failure:
        _log.error("the alert can't be stored: %s", type(failure).__name__)  # its text may hold values


@cache
def _change(sql: Sql) -> TextClause:
    detail = "CAST(:detail AS jsonb)" if sql.is_postgres else ":detail"
    firing = "CAST(:firing AS boolean)" if sql.is_postgres else ":firing"
    return text(f"""
INSERT INTO alert (at, kind, subject, firing, detail)
SELECT {sql.time(":at")}, 'intake_stopped', 'receiver', {firing}, {detail}
WHERE {firing} <> coalesce((
    SELECT a.firing FROM alert a WHERE a.kind = 'intake_stopped' AND a.subject = 'receiver' ORDER BY a.id DESC LIMIT 1), false)
""")
