"""Reports on intake: outages in the log and as an alert, and figures in `throughput_minute`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from functools import cache

import msgspec
from sqlalchemy import Connection, TextClause, text
from sqlalchemy.exc import SQLAlchemyError

from inbox.db import guarantees
from inbox.db.dialect import Sql, rows_param, trouble_text
from inbox.db.engine import one_transaction
from inbox.db.link import Link
from inbox.db.throughput import Tally, add_up
from inbox.errors import UnfitDatabase
from inbox.events.timestamps import time_text
from inbox.observe.logs import fields

_log = logging.getLogger(__name__)


class Outage:
    """Logs database outages, judged by the last statement. Requests during an outage are counted, not logged."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._since: float | None = None
        self._requests = 0

    def on_failure(self, error: Exception, requests: int = 0) -> None:
        """Record a failure not caused by an event, and the number of requests that got 503."""
        if isinstance(error, UnfitDatabase):  # `IntakeAlert` logs it, with the remedy
            return
        self.on_nothing_stored(trouble_text(error), requests)

    def on_nothing_stored(self, why: str, requests: int) -> None:
        """Record that nothing is stored, with the reason."""
        self._requests += requests
        if self._since is None:
            self._since = self._monotonic()
            _log.warning(
                "the database takes nothing, senders get 503 and send again: %s",
                why,
                extra=fields("database_trouble", error=why),
            )

    def on_stored(self) -> None:
        """End the outage, as something was stored."""
        if self._since is None:
            return
        seconds = self._monotonic() - self._since
        _log.warning(
            "the database takes events again after %.1f s; requests with 503: %d",
            seconds,
            self._requests,
            extra=fields("database_recovered", seconds=seconds, rows=self._requests),
        )
        self._since, self._requests = None, 0


# --- The receiver's only alert: nothing can be stored until an operator fixes the database.


class IntakeAlert:
    """Raises and resolves the alert, each once, in the log and in the table `alert`, from which relays post it."""

    def __init__(self) -> None:
        self.may_fire = True
        """True while `resolve` may have something to do; also at the start, to resolve an earlier process's alert."""
        self._reported: Sequence[str] = ()

    def require_fit(self, connection: Connection, now: datetime) -> None:
        """Check the database of a new connection.

        Raises:
            UnfitDatabase: nothing may be stored there.
        """
        found = guarantees.list_differences(connection, guarantees.RECEIVER_COLUMNS)
        connection.rollback()
        if found != self._reported:
            for line in found:
                _log.critical("nothing is stored: %s", line, extra=fields("nothing_stored", error=line))
            self._reported = found
        if found:
            self.may_fire = True
            _store_change(connection, now, "; ".join(found))
            raise UnfitDatabase("\n".join(found))

    def resolve(self, connection: Connection, now: datetime) -> None:
        """Resolve the alert, if any, as something was stored."""
        self.may_fire = False
        _store_change(connection, now, None)


def _store_change(connection: Connection, now: datetime, error: str | None) -> None:
    """Store a row if the alert changes. The same fault may prevent it, but the log has it in any case."""
    values = {
        "at": time_text(now),
        "firing": error is not None,
        "detail": msgspec.json.encode({} if error is None else {"error": error}).decode(),
    }
    try:
        with one_transaction(connection):
            connection.execute(_change(Sql(connection.dialect.name)), values)
    except SQLAlchemyError as failure:
        # without its text, which may hold values
        _log.error("the alert can't be stored: %s", type(failure).__name__, extra=fields("alert_not_stored"))


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


# --- Figures, written over a connection of their own, so that no request waits.


LONGEST_FLUSH_SECONDS = 5.0
LAST_FLUSH_SECONDS = 2.0
"""Seconds to wait for the last figures when a worker stops."""


class ThroughputFlusher:
    """Writes a tally every `every` seconds. Create and `close` it inside the running event loop.

    Failing flushes are logged once until one succeeds, and their figures are kept.
    """

    def __init__(self, link: Link, tally: Tally, every: float) -> None:
        self._link = link
        self._statement = add_up(Sql(link.dialect))
        self._tally = tally
        self._every = every
        self._is_failing = False
        self._closing = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._run(), name="throughput")

    async def flush(self, within: float = LONGEST_FLUSH_SECONDS) -> None:
        """Write the figures so far."""
        try:
            async with asyncio.timeout(within):
                await self._write()
            self._is_failing = False
        except Exception as error:  # noqa: BLE001  # not even a bug may end the task
            if not self._is_failing:
                _log.warning(
                    "figures for throughput_minute are not written yet: %s",
                    trouble_text(error),
                    extra=fields("database_trouble"),
                )
            self._is_failing = True

    async def close(self) -> None:
        """Write the last figures, if the database responds soon."""
        self._closing.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_FLUSH_SECONDS):
                await self._task

    async def _run(self) -> None:
        """Flush periodically. A flush in progress at the stop is not cut off, as its figures could count twice."""
        is_last = False
        while not is_last:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._every):
                    await self._closing.wait()
            is_last = self._closing.is_set()
            await self.flush()

    async def _write(self) -> None:
        with self._tally.take() as figures:
            if figures:
                values = {"figures": rows_param(figures), "now": None}
                try:
                    await self._link.open()
                    await self._link.write(lambda connection: connection.execute(self._statement, values))
                finally:
                    await self._link.drop()
