"""Writes the receiver's figures into `throughput_minute`, over connections that no request waits for."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from sqlalchemy import Connection

from inbox.db.dialect import Sql, trouble_text
from inbox.db.engine import one_transaction
from inbox.db.link import Link
from inbox.db.throughput import Tally, add_up, figures_param
from inbox.observe.logs import fields

LONGEST_FLUSH_SECONDS = 5.0
LAST_FLUSH_SECONDS = 2.0
"""Longest wait for the last figures when a worker stops."""

_log = logging.getLogger(__name__)


class ThroughputFlusher:
    """Writes a tally `every` so many seconds. Make it inside the running event loop, and `close` it there.

    A flush that fails is logged once, until one succeeds, and its figures are kept.
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
        """Write the figures counted so far."""
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
        """Write the last figures, if the database takes them soon."""
        self._closing.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_FLUSH_SECONDS):
                await self._task

    async def _run(self) -> None:
        """Flush again and again. A flush that runs at the stop ends before the last: cut off, it might count twice."""
        is_last = False
        while not is_last:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._every):
                    await self._closing.wait()
            is_last = self._closing.is_set()
            await self.flush()

    async def _write(self) -> None:
        with self._tally.taken() as figures:
            if figures:
                try:
                    await self._link.open()
                    await self._link.run(self._add_up, figures_param(figures))
                finally:
                    await self._link.drop()

    def _add_up(self, connection: Connection, figures: str) -> None:
        with one_transaction(connection):
            connection.execute(self._statement, {"figures": figures, "now": None})
