"""Wakes the relay's loop at each commit, so that an idle relay delivers at once instead of at its next poll.

On Postgres it listens for the receivers' notifications (`inbox.db.link`); on SQLite it checks whether the file has
changed. The loop polls all the same, so nothing depends on a wake-up: without one, a delivery begins half a second later.

After a quiet minute the listener reconnects, as a broken connection may stay silent without an error. Behind a pooler
in transaction mode the loop does not start a listener.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, cast

import msgspec
from sqlalchemy import Engine

from inbox.db.dialect import POSTGRES, error_text
from inbox.db.engine import CHANNEL
from relay.observe import Observer

if TYPE_CHECKING:
    import psycopg

REST_SECONDS = 0.005
"""Minimum time between two wake-ups: many receivers cause at most 200 scans a second."""
LOOK_SECONDS = 0.02
"""Interval for checking a SQLite file. The checks take less than 0.6 % of a processor."""
QUIET_SECONDS = 60.0
"""Time without a notification after which the listener reconnects."""
STOPS_WITHIN_SECONDS = 0.5
FIRST_WAIT_SECONDS = 0.1
LONGEST_WAIT_SECONDS = 60.0


class Listener(msgspec.Struct):
    """Calls `wake` after each commit, and whenever one may have been missed."""

    engine: Engine
    wake: Callable[[], None]
    stop: threading.Event
    observer: Observer
    wait: float = 0.0
    """Seconds until the next try after a failure; 0 without one."""

    def hear(self) -> float:
        """Listen until `stop` is set or the connection fails. Returns the seconds until the next try, doubled each time."""
        try:
            (self._listen if self.engine.dialect.name == POSTGRES else self._watch)()
        except Exception as error:  # noqa: BLE001  # without the listener, the relay still polls
            if not self.wait and not self.stop.is_set():
                self.observer.log("hears_nothing", error=error_text(error))
            self.wait = min(self.wait * 2 or FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS)
        return self.wait

    def _wake(self) -> None:
        self.wait = 0.0
        self.wake()

    def _watch(self) -> None:
        """Wake the loop whenever another connection has committed to the SQLite file (`PRAGMA data_version`)."""
        path = Path(self.engine.url.database or "").absolute()
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, isolation_level=None)) as connection:
            seen = None
            while not self.stop.wait(LOOK_SECONDS):
                (version,) = connection.execute("PRAGMA data_version").fetchone()
                if version != seen:
                    seen = version
                    self._wake()

    def _listen(self) -> None:
        """Wake the loop at each notification, on a separate connection, until none has come for `QUIET_SECONDS`."""
        checked_out = self.engine.raw_connection()
        driver = cast("psycopg.Connection", checked_out.driver_connection)
        checked_out.detach()  # the pool opens another connection in its place
        with closing(driver):
            driver.autocommit = True
            (channel,) = driver.execute(f"SELECT {CHANNEL}".encode()).fetchone() or ("",)
            driver.execute(f'LISTEN "{channel}"'.encode())
            self._wake()  # for earlier commits
            until = time.monotonic() + QUIET_SECONDS
            while not self.stop.is_set() and time.monotonic() < until:
                if list(driver.notifies(timeout=STOPS_WITHIN_SECONDS, stop_after=1)):
                    until = time.monotonic() + QUIET_SECONDS
                    self._wake()
                    self.stop.wait(REST_SECONDS)
