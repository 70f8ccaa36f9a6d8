"""Hears of commits, and wakes the relay's loop, so that an idle relay delivers at once instead of at its next look.

On Postgres it listens for the receivers' notifications (`inbox.db.link`); on SQLite it looks whether the file has
changed. Polling goes on beside it, so nothing depends on a wake-up: without any, a delivery begins half a second later.

After a quiet minute it listens on another connection: a broken one hears nothing, too, and may never say so. Behind a pooler
in transaction mode the loop doesn't start it.
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
"""The least time between two wake-ups, so that many receivers cost a relay at most 200 looks a second."""
LOOK_SECONDS = 0.02
"""The time between two looks at a SQLite file. They take less than 0.6 % of a processor."""
QUIET_SECONDS = 60.0
"""After so long without a notification, the listener begins again."""
STOPS_WITHIN_SECONDS = 0.5
FIRST_WAIT_SECONDS = 0.1
LONGEST_WAIT_SECONDS = 60.0


class Listener(msgspec.Struct):
    """Calls `wake` after each change, and whenever some may have been missed."""

    engine: Engine
    wake: Callable[[], None]
    stop: threading.Event
    observer: Observer
    wait: float = 0.0
    """Seconds until it begins again after a failure; 0 while all is well."""

    def hear(self) -> float:
        """Hear until `stop` is set or something fails. Returns in how many seconds to begin again, longer each time."""
        try:
            (self._listen if self.engine.dialect.name == POSTGRES else self._watch)()
        except Exception as error:  # noqa: BLE001  # the relay polls without it
            if not self.wait and not self.stop.is_set():
                self.observer.tell("hears_nothing", error=error_text(error))
            self.wait = min(self.wait * 2 or FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS)
        return self.wait

    def _wake(self) -> None:
        self.wait = 0.0
        self.wake()

    def _watch(self) -> None:
        """Wake the loop whenever another connection has committed to the SQLite file: a counter shows it."""
        path = Path(self.engine.url.database or "").absolute()
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, isolation_level=None)) as connection:
            seen = None
            while not self.stop.wait(LOOK_SECONDS):
                (version,) = connection.execute("PRAGMA data_version").fetchone()
                if version != seen:
                    seen = version
                    self._wake()

    def _listen(self) -> None:
        """Wake the loop at each notification, on a connection of its own, as long as there are some."""
        checked_out = self.engine.raw_connection()
        driver = cast("psycopg.Connection", checked_out.driver_connection)
        checked_out.detach()  # the pool makes another in its place
        with closing(driver):
            driver.autocommit = True
            (channel,) = driver.execute(f"SELECT {CHANNEL}".encode()).fetchone() or ("",)
            driver.execute(f'LISTEN "{channel}"'.encode())
            self._wake()  # for what was committed before
            until = time.monotonic() + QUIET_SECONDS
            while not self.stop.is_set() and time.monotonic() < until:
                if list(driver.notifies(timeout=STOPS_WITHIN_SECONDS, stop_after=1)):
                    until = time.monotonic() + QUIET_SECONDS
                    self._wake()
                    self.stop.wait(REST_SECONDS)
