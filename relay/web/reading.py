"""Reads of the page: in threads, read-only, with a time limit, by the database role of the person who asks."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from sqlalchemy import event
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from inbox.clock import Clock
from inbox.config.model import Config
from inbox.db import engine as engines
from inbox.db import read_only
from inbox.db.dialect import failure_of
from inbox.db.trouble import trouble_text
from inbox.errors import DatabaseAway, QueryTooSlow
from relay.delivery.policy import policies
from relay.store.database import Database
from relay.web.access.accounts import Actor
from relay.web.bulkheads import QUICK, SLOW, Bulkheads
from relay.web.doctor_runner import DoctorRunner
from relay.web.kept import Kept
from relay.web.screen import Reading

LONGEST_SECONDS = 2.0
"""Longest time of a statement on Postgres, and of a transaction on SQLite."""
Made = TypeVar("Made")


_AGAIN, _BY_ITSELF = "try again", "this page tries again by itself"
"""Ends of the message about a database that is away: nothing sends a form again by itself."""


class Spent:
    """Statements that reads have sent to the database."""

    def __init__(self) -> None:
        self.statements = 0


class Readers:
    """The database as the page sees it: `read` for screens, `write` for acts. Safe to share between tasks."""

    def __init__(self, config: Config, clock: Clock) -> None:
        self.config = config
        self._policies = policies(config)
        self._clock = clock
        url = config.database.url
        self._operators = Database(read_only.connect(url, application="relay-web", seconds=LONGEST_SECONDS))
        viewer_url = config.web.viewer_url
        self._viewers = (
            self._operators
            if viewer_url is None
            else Database(read_only.connect(viewer_url, application="relay-web-viewer", seconds=LONGEST_SECONDS))
        )
        self._counting = threading.local()
        for engine in {self._operators.engine, self._viewers.engine}:
            event.listen(engine, "before_cursor_execute", self._count)
        self._writer = Database(engines.connect(url, application="relay-web"))
        self.doctor = DoctorRunner(config, clock)
        self._kept = Kept()
        self._threads = ThreadPoolExecutor(QUICK + SLOW, thread_name_prefix="web-read")
        self._bulkheads = Bulkheads()

    async def read(
        self, actor: Actor, make: Callable[[Reading], Made], spent: Spent | None = None, *, kind: str = "other"
    ) -> Made:
        """Run `make` in a thread with everything that it may read. Its statements are added to `spent`.

        Of a `kind`, such as the name of a screen, only some run at a time; `relay.web.bulkheads` has the rules.

        Raises:
            QueryTooSlow: a statement ran into its limit, or others that are slow took all the time.
            DatabaseAway: the database does not answer, or is locked.
        """
        database = self._operators if actor.may_act else self._viewers
        reading = Reading(database, self.config, self._policies, actor, self._clock.now(), self._kept, self.doctor)

        def work() -> Made:
            self._counting.spent = spent
            return _make_on_a_live_connection(make, reading)

        async with self._bulkheads.slot(kind):
            return await self._in_thread(work, then=_AGAIN if kind == "acts" else _BY_ITSELF)

    def _count(self, *_: object) -> None:
        spent: Spent | None = getattr(self._counting, "spent", None)
        if spent is not None:
            spent.statements += 1

    async def write(self, make: Callable[[Database], Made]) -> Made:
        """Run `make` in a thread with a connection that may write.

        Raises:
            QueryTooSlow: as `read`.
            DatabaseAway: as `read`.
        """
        async with self._bulkheads.slot("write"):
            return await self._in_thread(lambda: make(self._writer), then=_AGAIN)

    async def _in_thread(self, make: Callable[[], Made], then: str) -> Made:
        def work() -> Made:
            with translated_errors(then):
                return make()

        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def close(self) -> None:
        """Close all connections."""
        self._threads.shutdown(cancel_futures=True)
        for database in {id(each): each for each in (self._operators, self._viewers, self._writer)}.values():
            database.engine.dispose()


def _make_on_a_live_connection(make: Callable[[Reading], Made], reading: Reading) -> Made:
    """Read again, once, where the connection was broken since its last use, as by a restart of the server."""
    try:
        return make(reading)
    except DBAPIError as error:
        if not error.connection_invalidated:
            raise
        return make(reading)


_INTERRUPTED = "interrupted"
"""SQLite's error of a statement that a progress handler has ended."""
_TIMED_OUT = "57014"
"""Postgres' query_canceled: https://www.postgresql.org/docs/current/errcodes-appendix.html."""


@contextmanager
def translated_errors(then: str) -> Iterator[None]:
    """Turn the errors of a database that is slow or away into those of the page, which say what comes `then`."""
    try:
        yield
    except SQLAlchemyError as error:
        cause: Any = error.orig if isinstance(error, DBAPIError) else None
        if getattr(cause, "sqlstate", None) == _TIMED_OUT or _INTERRUPTED in str(cause):
            raise QueryTooSlow(
                f"a query took more than {LONGEST_SECONDS:g} s and was ended; narrow the filter, such as to a route or a time"
            ) from error
        if failure_of(error) != "fault":
            raise DatabaseAway(f"{trouble_text(error)}; {then}") from error
        raise
