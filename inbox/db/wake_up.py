"""Wake-ups on Postgres: receivers notify the relays after commits, so that an idle relay looks for work at once.

A wake-up may be lost, late or needless, as relays poll all the same. So nothing waits for one, and nothing fails with it.

It has a connection of its own. Transactions that notify commit one after another on the whole server, so a NOTIFY among
intake's statements would cost more than half of its rate (9,570 to 4,230 transactions/s). SQLite needs no sender: its
file shows each commit (`relay.daemon.wake_up`).
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from sqlalchemy import Connection, text

from inbox.db.engine import one_transaction
from inbox.db.trouble import trouble_text
from inbox.observe.logs import fields

if TYPE_CHECKING:
    from inbox.db.link import Link

CHANNEL = "left('inbox_relay_' || current_schema(), 63)"
"""SQL expression of the installation's channel: one for each schema. Two that are equal when cut only wake each other."""
NOTIFY = text(f"SELECT pg_notify({CHANNEL}, '')")

REST_SECONDS = 0.02
"""The time from one notification to the next, so that a busy receiver sends at most 50 a second."""
REST_AFTER_FAILURE_SECONDS = 1.0
LONGEST_SEND_SECONDS = 2.0
LONGEST_CLOSE_SECONDS = 1.0

_log = logging.getLogger(__name__)


def _notify(connection: Connection) -> None:
    with one_transaction(connection):
        connection.execute(NOTIFY)


class Notifier:
    """Notifies the relays. Make it inside the running event loop, and `close` it there.

    The first wake-up is sent at once, and those of the next 20 ms as one. After a failure it is silent for a second.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._is_wanted = asyncio.Event()
        self._is_failing = False
        self._task = asyncio.get_running_loop().create_task(self._run(), name="wake-up")

    def wake_up(self) -> None:
        """Have the relays look for work soon. Neither waits nor raises."""
        self._is_wanted.set()

    async def close(self) -> None:
        """Send no more. Wake-ups that are not sent are lost."""
        self._task.cancel()
        await asyncio.wait({self._task}, timeout=LONGEST_CLOSE_SECONDS)

    async def _run(self) -> None:
        try:
            while True:
                await self._is_wanted.wait()
                self._is_wanted.clear()  # before it is sent: a commit during that asks for another
                await asyncio.sleep(REST_SECONDS if await self._is_sent() else REST_AFTER_FAILURE_SECONDS)
        finally:
            await self._link.drop()

    async def _is_sent(self) -> bool:
        try:
            async with asyncio.timeout(LONGEST_SEND_SECONDS):
                await self._send()
        except Exception as error:  # noqa: BLE001  # not even a bug may end the task: relays poll meanwhile
            if not self._is_failing:
                _log.warning(
                    "relays are not notified of events, and find them by polling: %s",
                    trouble_text(error),
                    extra=fields("not_notified"),
                )
            self._is_failing = True
            await self._link.drop()
            return False
        self._is_failing = False
        return True

    async def _send(self) -> None:
        if not self._link.is_open:
            await self._link.open()
        await self._link.run(_notify)
