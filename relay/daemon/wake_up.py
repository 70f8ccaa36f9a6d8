"""Hears of commits, and wakes the relay's loop, so that an idle relay delivers at once instead of at its next look.

On Postgres it listens for the receivers' notifications (`inbox.db.link`); on SQLite it looks whether the file has
changed. Polling goes on beside it, so nothing depends on a wake-up: without any, a delivery begins half a second later.

Behind a pooler in transaction mode, LISTEN succeeds and hears nothing, and the pooler's connection keeps it for others.
So it listens only on a connection of the server itself, and a notification from another connection proves that it hears.
"""

from __future__ import annotations

import selectors
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from inbox.db.dialect import POSTGRES, error_text
from inbox.db.engine import CHANNEL, NOTIFY, is_behind_pooler
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
FIRST_WAIT_SECONDS = 0.1
LONGEST_WAIT_SECONDS = 60.0


class NothingHeardError(Exception):
    """A notification from another connection does not arrive, as behind a pooler."""


class Listener:
    """The listening thread. It ends soon after `stop` is set and `join` is called.

    After a failure it begins again, with a growing wait; the first failure is logged.
    """

    def __init__(self, engine: Engine, wake: Callable[[], None], *, stop: threading.Event, observer: Observer) -> None:
        """`wake` is called from the thread, after each change and whenever some may have been missed."""
        self._engine = engine
        self._wake_loop = wake
        self._stop = stop
        self._observer = observer
        self._wait = 0.0
        """Seconds until it begins again; 0 while all is well."""
        self._bell: socket.socket | None = None
        """Ends the thread's wait for a notification."""
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread, unless there is nothing to hear."""
        if not is_behind_pooler(self._engine):
            heard, self._bell = socket.socketpair()
            self._thread = threading.Thread(target=self._work, args=(heard,), name="wake-up", daemon=True)
            self._thread.start()

    def join(self, seconds: float) -> None:
        """Wait for the end of the thread, at most so long."""
        if self._thread is not None and self._bell is not None:
            self._bell.close()
            self._thread.join(seconds)

    def _work(self, bell: socket.socket) -> None:
        hear = partial(self._listen, bell) if self._engine.dialect.name == POSTGRES else self._watch
        with bell:
            while not self._stop.wait(self._wait):
                try:
                    hear()
                except Exception as error:  # noqa: BLE001  # not even a bug may end the thread
                    if not self._stop.is_set():
                        self._failed(error)

    def _failed(self, error: Exception) -> None:
        if not isinstance(
            error, (SQLAlchemyError, OSError, self._engine.dialect.loaded_dbapi.Error, NothingHeardError)
        ):
            self._observer.bug_in_thread("wake-up", error)
        elif not self._wait:
            self._observer.tell("hears_nothing", error=error_text(error))
        self._wait = min(self._wait * 2 or FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS)

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

    def _listen(self, bell: socket.socket) -> None:
        """Wake the loop at each notification.

        Raises:
            NothingHeardError: its own did not arrive.
        """
        with self._listening(bell) as heard_within:
            quiet = 0.0
            while not self._stop.is_set():
                if not heard_within(quiet):
                    with self._engine.begin() as another:
                        another.execute(NOTIFY)
                    if not heard_within(HEARD_WITHIN_SECONDS):
                        raise NothingHeardError(f"LISTEN hears nothing within {HEARD_WITHIN_SECONDS:g} s")
                quiet = QUIET_SECONDS
                self._wake()
                self._stop.wait(REST_SECONDS)

    @contextmanager
    def _listening(self, bell: socket.socket) -> Iterator[Callable[[float], bool]]:
        """Listen on a connection of its own. Gives a function that waits, and returns whether one came or the relay stops."""
        checked_out = self._engine.raw_connection()
        driver = cast("psycopg.Connection", checked_out.driver_connection)
        checked_out.detach()  # the pool makes another in its place
        with closing(driver), selectors.DefaultSelector() as selector:
            driver.autocommit = True
            (channel,) = driver.execute(f"SELECT {CHANNEL}".encode()).fetchone() or ("",)
            driver.execute(f'LISTEN "{channel}"'.encode())
            selector.register(driver, selectors.EVENT_READ)
            selector.register(bell, selectors.EVENT_READ)

            def heard_within(seconds: float) -> bool:
                until = time.monotonic() + seconds
                while selector.select(max(until - time.monotonic(), 0)):
                    driver.pgconn.consume_input()
                    heard = False
                    while driver.pgconn.notifies() is not None:
                        heard = True
                    if heard or self._stop.is_set():
                        return True
                return False

            yield heard_within
