"""A receiver's single connection, used by synchronous functions without blocking the event loop.

On Postgres, functions run in the event loop, which does other work while a statement waits (SQLAlchemy's `run_sync`).
On SQLite, they run in the connection's own thread, with one thread switch per batch.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from inbox.db import engine as engines
from inbox.db.dialect import SQLITE, trouble_text
from inbox.db.engine import NOTIFY, checkpoint, is_checkpoint_due, one_transaction
from inbox.observe.logs import fields

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Link:
    """An asyncio connection of SQLAlchemy, opened, used and dropped by one task at a time."""

    _connection: Any = None

    def __init__(self, engine: Any) -> None:  # noqa: ANN401  # an AsyncEngine, or an Engine in a ThreadLink
        self._engine = engine
        self.dialect: str = engine.dialect.name

    @property
    def is_open(self) -> bool:
        """True between `open` and `drop`."""
        return self._connection is not None

    async def open(self) -> None:
        """Open the connection.

        Raises:
            SQLAlchemyError, OSError: the database is unreachable.
        """
        self._connection = await self._engine.connect()

    async def run(
        self, function: Callable[Concatenate[Connection, _P], _T], *arguments: _P.args, **named: _P.kwargs
    ) -> _T:
        """Call a function with the open connection, and return its result."""
        done: _T = await self._connection.run_sync(function, *arguments, **named)
        return done

    async def write(
        self, function: Callable[Concatenate[Connection, _P], _T], *arguments: _P.args, **named: _P.kwargs
    ) -> _T:
        """Call a function in a transaction, and commit it."""
        return await self.run(_call_in_transaction, function, *arguments, **named)

    async def drop(self) -> None:
        """Close the connection in any state, without raising anything."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(SQLAlchemyError, OSError):  # it may be broken
                await connection.invalidate()
                await connection.close()


class ThreadLink(Link):
    """A connection in its own thread, which ends with the connection."""

    async def open(self) -> None:
        """See Link."""
        self._thread = ThreadPoolExecutor(1, "intake")
        try:
            self._connection = await self._call(self._engine.connect)
        except BaseException:
            self._thread.shutdown(wait=False)
            raise

    async def run(
        self, function: Callable[Concatenate[Connection, _P], _T], *arguments: _P.args, **named: _P.kwargs
    ) -> _T:
        """See Link."""
        return await self._call(function, self._connection, *arguments, **named)

    async def drop(self) -> None:
        """See Link."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await self._call(_close, connection)
            self._thread.shutdown(wait=False)

    async def _call(self, function: Callable[_P, _T], *arguments: _P.args, **named: _P.kwargs) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, partial(function, *arguments, **named))


def _call_in_transaction(
    connection: Connection,
    function: Callable[Concatenate[Connection, _P], _T],
    /,
    *arguments: _P.args,
    **named: _P.kwargs,
) -> _T:
    with one_transaction(connection):
        done = function(connection, *arguments, **named)
    if is_checkpoint_due(connection):
        checkpoint(connection.engine)
    return done


def _close(connection: Connection) -> None:
    with suppress(SQLAlchemyError, OSError):  # it may be broken
        connection.invalidate()
        connection.close()


def link_to(url: str, *, application: str) -> Link:
    """Create a receiver's link to its database, without opening it.

    Raises:
        ConfigError: as `inbox.db.engine.parse_url`.
    """
    if engines.parse_url(url).get_backend_name() == SQLITE:
        return ThreadLink(engines.connect_thread(url))
    return Link(engines.connect_async(url, application=application))


# --- Wake-ups on Postgres: receivers notify relays after commits, so that idle relays look for work at once.
#
# Wake-ups may be lost, late or needless, as relays poll anyway. So nothing waits for a wake-up, and a failed one does
# no harm.
#
# They have their own connection: notifying transactions commit one after another on the whole server, so a NOTIFY in
# intake's transactions would cost more than half of its rate (9,570 to 4,230 transactions/s). SQLite needs no sender, as
# its file shows each commit (`relay.daemon.wake_up`).

REST_SECONDS = 0.02
"""Seconds between notifications, so that a busy receiver sends at most 50 a second."""
REST_AFTER_FAILURE_SECONDS = 1.0
LONGEST_SEND_SECONDS = 2.0
LONGEST_CLOSE_SECONDS = 1.0

_log = logging.getLogger(__name__)


class Notifier:
    """Notifies the relays. Create and `close` it inside the running event loop.

    The first wake-up is sent at once, and those of the next 20 ms together. After a failure it pauses for a second.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._is_wanted = asyncio.Event()
        self._is_failing = False
        self._task = asyncio.get_running_loop().create_task(self._run(), name="wake-up")

    def wake_up(self) -> None:
        """Have the relays look for work soon, without waiting or raising."""
        self._is_wanted.set()

    async def close(self) -> None:
        """Stop sending. Unsent wake-ups are lost."""
        self._task.cancel()
        await asyncio.wait({self._task}, timeout=LONGEST_CLOSE_SECONDS)

    async def _run(self) -> None:
        try:
            while True:
                await self._is_wanted.wait()
                self._is_wanted.clear()  # cleared first, as a commit during the send needs another wake-up
                await asyncio.sleep(await self._send())
        finally:
            await self._link.drop()

    async def _send(self) -> float:
        """Notify the relays, and return the seconds until the next notification."""
        try:
            async with asyncio.timeout(LONGEST_SEND_SECONDS):
                if not self._link.is_open:
                    await self._link.open()
                await self._link.write(lambda connection: connection.execute(NOTIFY))
        except Exception as error:  # noqa: BLE001  # not even a bug may end the task: relays poll meanwhile
            if not self._is_failing:
                _log.warning(
                    "relays are not notified of events, and find them by polling: %s",
                    trouble_text(error),
                    extra=fields("not_notified"),
                )
            self._is_failing = True
            await self._link.drop()
            return REST_AFTER_FAILURE_SECONDS
        self._is_failing = False
        return REST_SECONDS
