"""Waits for the outcomes of deliveries: one task for each process polls for all waiting requests together.

That is one statement every 50 ms, however many requests wait; while none waits, there is no statement and no connection.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial

from sqlalchemy import Connection, TextClause, text
from sqlalchemy.exc import SQLAlchemyError

from inbox.db.dialect import Sql, rows_param
from inbox.db.engine import reading
from inbox.db.link import Link
from inbox.errors import NotDelivered, StillOpen

POLL_SECONDS = 0.05
MOST_WAITING = 500
"""Requests that may wait in one process, of all that may be open."""
MOST_WAITING_OF_A_SOURCE = 100

WhenGone = Callable[[Callable[[], None]], None]
"""Takes a function to call when the sender hangs up."""


class OutcomeWaiter:
    """Polls for outcomes. Make it inside the running event loop, and `close` it there."""

    def __init__(self, make_link: Callable[[], Link]) -> None:
        self._make_link = make_link
        self._wanted: dict[int, set[asyncio.Future[str | None]]] = defaultdict(set)
        self._poller: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting = Counter[str]()
        self.polls = 0
        """Count of statements so far."""

    async def delivered(
        self, source: str, seqs: Sequence[int], *, within: float, when_gone: WhenGone | None = None
    ) -> None:
        """Return when all of these events of a source have ended on every route, and none was given up.

        Raises:
            NotDelivered: one was given up; a person can take it up again.
            StillOpen: not `within` so many seconds, too many requests wait already, or the sender has hung up.
        """
        if self._waiting[source] >= MOST_WAITING_OF_A_SOURCE or self._waiting.total() >= MOST_WAITING:
            raise StillOpen("stored; too many wait for outcomes")
        futures = {seq: asyncio.get_running_loop().create_future() for seq in seqs}
        self._waiting[source] += 1
        try:
            if when_gone is not None:
                when_gone(partial(_fail, futures.values(), "stored; the sender has hung up"))
            for seq, future in futures.items():
                self._wanted[seq].add(future)
            if self._poller is None:
                self._poller = asyncio.create_task(self._poll(), name="outcomes")
                self._tasks.add(self._poller)
                self._poller.add_done_callback(self._tasks.discard)
            async with asyncio.timeout(within):
                failed = [found for found in await asyncio.gather(*futures.values()) if found is not None]
        except TimeoutError:
            raise StillOpen(f"stored; its outcome is not known after {within:g} s") from None
        finally:
            self._waiting[source] -= 1
            self._forget(futures)
        if failed:
            raise NotDelivered(failed[0])

    async def close(self) -> None:
        """End every wait."""
        for futures in self._wanted.values():
            _fail(futures, "stored; the receiver is stopping")
        await asyncio.gather(*self._tasks)

    def _forget(self, futures: dict[int, asyncio.Future[str | None]]) -> None:
        for seq, future in futures.items():
            future.cancel()
            self._wanted[seq].discard(future)
            if not self._wanted[seq]:
                del self._wanted[seq]

    async def _poll(self) -> None:
        link = self._make_link()
        try:
            await link.open()
            while self._wanted:
                await self._poll_once(link)
                await asyncio.sleep(POLL_SECONDS)
            self._poller = None  # a request that comes while the connection is being closed starts another task
        except (SQLAlchemyError, OSError):
            for futures in self._wanted.values():
                _fail(futures, "stored; the database does not say how it ended")
        finally:
            if self._poller is asyncio.current_task():
                self._poller = None
            await link.drop()

    async def _poll_once(self, link: Link) -> None:
        wanted = {seq: set(futures) for seq, futures in self._wanted.items()}
        is_open, failed = await link.run(_look, wanted)
        self.polls += 1
        for seq, futures in wanted.items():
            if seq not in is_open:
                for future in futures:
                    if not future.done():
                        future.set_result(failed.get(seq))


def _look(connection: Connection, wanted: Iterable[int]) -> tuple[set[int], dict[int, str]]:
    """Find out which of these events have open deliveries, and which a delivery that was given up."""
    is_open: set[int] = set()
    failed: dict[int, str] = {}
    with reading(connection).begin():
        found = {"wanted": rows_param({"seq": seq} for seq in wanted)}
        for row in connection.execute(_open_deliveries(Sql(connection.dialect.name)), found).all():
            if row.state in {"dead", "blocked"}:
                given_up = connection.execute(_GIVEN_UP, {"seq": row.seq, "route": row.route}).first()
                failed[row.seq] = f"route {row.route}: {None if given_up is None else given_up.error}"
            else:
                is_open.add(row.seq)
    return is_open, failed


def _fail(futures: Iterable[asyncio.Future[str | None]], why: str) -> None:
    for future in futures:
        if not future.done():
            future.set_exception(StillOpen(why))


@cache
def _open_deliveries(sql: Sql) -> TextClause:
    """Select open deliveries: an event without one has ended on every route."""
    return text(f"""
SELECT o.seq, o.route, o.state
FROM {sql.rows("wanted", seq="bigint")}
JOIN open_delivery o ON o.seq = wanted.seq
""")


# the view: a receiver's role may read its error, and no facts
_GIVEN_UP = text("SELECT error FROM dead_letter WHERE seq = :seq AND route = :route")
