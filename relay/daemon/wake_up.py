"""Hears of commits, and wakes the relay's loop, so that an idle relay delivers at once instead of at its next look.

On Postgres it listens for the receivers' notifications (`inbox.db.link`); on SQLite it looks whether the file has
changed. Polling goes on beside it, so nothing depends on a wake-up: without any, a delivery begins half a second later.

Behind a pooler in transaction mode, LISTEN succeeds and hears nothing, and the pooler's connection keeps it for others.
So it listens only on a connection of the server itself, and a notification from another connection proves that it hears.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, cast

from sqlalchemy import Engine

from inbox.db.dialect import POSTGRES, error_text
from inbox.db.engine import CHANNEL, NOTIFY
from relay.observe import Observer

if TYPE_CHECKING:
    import psycopg

REST_SECONDS = 0.005
"""The least time between two wake-ups, so that many receivers cost a relay at most 200 looks a second."""
LOOK_SECONDS = 0.02
"""The time between two looks at a SQLite file. They take less than 0.6 % of a processor."""
QUIET_SECONDS = 60.0
"""After so long without a notification, the listener proves again that it hears."""
HEARD_WITHIN_SECONDS = 2.0
STOPS_WITHIN_SECONDS = 0.5
FIRST_WAIT_SECONDS = 0.1
LONGEST_WAIT_SECONDS = 60.0


class NothingHeardError(Exception):
    """A notification from another connection does not arrive, as behind a pooler."""


class Listener:
    """Calls `wake` after each change, and whenever some may have been missed."""

    def __init__(self, engine: Engine, wake: Callable[[], None], *, stop: threading.Event, observer: Observer) -> None:
        self._engine = engine
        self._wake_loop = wake
        self._stop = stop
        self._observer = observer
        self._wait = 0.0
        """Seconds until it begins again after a failure; 0 while all is well."""

    def hear(self) -> float:
        """Hear until `stop` is set or something fails. Returns in how many seconds to begin again, longer each time."""
        try:
            (self._listen if self._engine.dialect.name == POSTGRES else self._watch)()
        except Exception as error:  # noqa: BLE001  # the relay polls without it
            if not self._wait and not self._stop.is_set():
                self._observer.tell("hears_nothing", error=error_text(error))
            self._wait = min(self._wait * 2 or FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS)
        return self._wait

    def _wake(self) -> None:
        self._wait = 0.0
        self._wake_loop()

    def _watch(self) -> None:
        """Wake the loop whenever another connection has committed to the SQLite file: a counter shows it."""
        path = Path(self._engine.url.database or "").absolute()
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, isolation_level=None)) as connection:
            seen = None
            while not self._stop.wait(LOOK_SECONDS):
                (version,) = connection.execute("PRAGMA data_version").fetchone()
                if version != seen:
                    seen = version
                    self._wake()

    def _listen(self) -> None:
        """Wake the loop at each notification, on a connection of its own.

        Raises:
            NothingHeardError: its own did not arrive.
        """
        checked_out = self._engine.raw_connection()
        driver = cast("psycopg.Connection", checked_out.driver_connection)
        checked_out.detach()  # the pool makes another in its place
        with closing(driver):
            driver.autocommit = True
            (channel,) = driver.execute(f"SELECT {CHANNEL}".encode()).fetchone() or ("",)
            driver.execute(f'LISTEN "{channel}"'.encode())
            quiet = 0.0
            while not self._stop.is_set():
                if not self._heard_within(driver, quiet):
                    with self._engine.begin() as another:
                        another.execute(NOTIFY)
                    if not self._heard_within(driver, HEARD_WITHIN_SECONDS):
                        raise NothingHeardError(f"LISTEN hears nothing within {HEARD_WITHIN_SECONDS:g} s")
                quiet = QUIET_SECONDS
                self._wake()
                self._stop.wait(REST_SECONDS)

    def _heard_within(self, driver: psycopg.Connection, seconds: float) -> bool:
        """Wait for a notification. Returns whether one came, or `stop` is set."""
        until = time.monotonic() + seconds
        while not self._stop.is_set():
            left = max(until - time.monotonic(), 0)
            if list(driver.notifies(timeout=min(left, STOPS_WITHIN_SECONDS), stop_after=1)):
                return True
            if left <= STOPS_WITHIN_SECONDS:
                return False
        return True
