"""Waiting for conditions, and patience with a machine that stalls for seconds."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TypeVar

from sqlalchemy import Connection, Engine, event, text
from sqlalchemy.pool import ConnectionPoolEntry

from inbox.db.dialect import Sql

_Found = TypeVar("_Found")

POLL_SECONDS = 0.02
LONGEST_SECONDS = 60.0
"""Longest wait, for a busy machine; not a limit of the product."""


def until(
    condition: Callable[[], _Found], what: str, *, within: float = LONGEST_SECONDS, poll: float = POLL_SECONDS
) -> _Found:
    """Wait for the first true value of `condition` and return it.

    Raises:
        AssertionError: there was none within `within` seconds.
    """
    deadline = time.monotonic() + within
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {within:g} s: {what}"
        time.sleep(poll)
    return found


async def until_async(condition: Callable[[], _Found], what: str, *, within: float = LONGEST_SECONDS) -> _Found:
    """Wait as `until` does, inside an event loop."""
    deadline = time.monotonic() + within
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {within:g} s: {what}"
        await asyncio.sleep(POLL_SECONDS)
    return found


_AT_ONCE_SECONDS = 0.005
_LONGEST_SECONDS = 0.02
"""Longest counted time between two readings of the clock; beyond it, the process did not run."""


class Stopwatch:
    """Measures the seconds of a block, without the time in which this process could not run."""

    def __init__(self) -> None:
        self.seconds = 0.0
        """Seconds so far."""
        self._last = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stopwatch", daemon=True)

    def __enter__(self) -> Self:
        self._last = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(_AT_ONCE_SECONDS):
            self._look()
        self._look()

    def _look(self) -> None:
        now = time.monotonic()
        self.seconds += min(now - self._last, _LONGEST_SECONDS)
        self._last = now


_OF_POSTGRES = "SET lock_timeout = '60s'; SET idle_in_transaction_session_timeout = 0"
_OF_SQLITE = "PRAGMA busy_timeout = 60000"


def be_patient(engine: Engine) -> None:
    """Give transactions of the engine a lock timeout of a minute and no limit for idling."""
    patient = _OF_POSTGRES if Sql(engine.dialect.name).is_postgres else _OF_SQLITE

    @event.listens_for(engine, "checkout")
    def _on_checkout(connection: Any, record: ConnectionPoolEntry, _proxy: object) -> None:  # noqa: ANN401  # the driver's
        make_patient(connection, record.info, patient)


def make_patient(connection: Any, info: dict[Any, Any], patient: str = _OF_POSTGRES) -> None:  # noqa: ANN401  # the driver's
    """Do the same for a connection of the driver, once; `info` stays with the connection."""
    if "patient" not in info:
        connection.execute(patient)
        connection.commit()
        info["patient"] = True


def stand_still(connection: Connection) -> None:
    """Let this transaction idle without a limit, while others wait for its locks."""
    if Sql(connection.dialect.name).is_postgres:
        connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        connection.execute(
            text("SELECT set_config(name, '0', true) FROM pg_settings WHERE name = 'transaction_timeout'")
        )
