"""Wait for the outcomes of deliveries: one task per process polls for all waiting requests together.

It runs one statement every 50 ms, however many requests wait; without waiting requests, there is no connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial

import msgspec
from sqlalchemy import Connection, TextClause, text
from sqlalchemy.exc import SQLAlchemyError

from inbox.db.dialect import Sql, rows_param
from inbox.db.engine import reading
from inbox.db.link import Link
from inbox.errors import NotDelivered, StillOpen

POLL_SECONDS = 0.05
MOST_WAITING = 500
"""Maximum waiting requests in one process, among all open ones."""
MOST_WAITING_OF_A_SOURCE = 100

WhenGone = Callable[[Callable[[], None]], None]
"""Registers a callback for when the sender hangs up."""


class _Wait(msgspec.Struct, eq=False):
    """A request that waits until these events of its source have ended."""

    source: str
    seqs: Sequence[int]
    outcome: asyncio.Future[str | None]
    """Error of a delivery that was given up; None if all succeeded."""

    def fail(self, why: str) -> None:
        if not self.outcome.done():
            self.outcome.set_exception(StillOpen(why))


class OutcomeWaiter:
    """Polls for outcomes. Create and `close` it inside the running event loop."""

    def __init__(self, make_link: Callable[[], Link]) -> None:
        self._make_link = make_link
        self._waits: set[_Wait] = set()
        self._poller: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.polls = 0
        """Number of statements so far."""

    async def wait_until_delivered(
        self, source: str, seqs: Sequence[int], *, within: float, when_gone: WhenGone | None = None
    ) -> None:
        """Wait until these events of a source have ended on every route, without a delivery given up.

        Raises:
            NotDelivered: a delivery was given up; an operator can replay it.
            StillOpen: the wait took longer than `within` seconds, too many requests wait, or the sender has hung up.
        """
        of_source = sum(each.source == source for each in self._waits)
        if of_source >= MOST_WAITING_OF_A_SOURCE or len(self._waits) >= MOST_WAITING:
            raise StillOpen("stored; too many wait for outcomes")
        wait = _Wait(source, seqs, asyncio.get_running_loop().create_future())
        self._waits.add(wait)
        try:
            if when_gone is not None:
                when_gone(partial(wait.fail, "stored; the sender has hung up"))
            if self._poller is None:
                self._poller = asyncio.create_task(self._poll(), name="outcomes")
                self._tasks.add(self._poller)
                self._poller.add_done_callback(self._tasks.discard)
            async with asyncio.timeout(within):
                failed = await wait.outcome
        except TimeoutError:
            raise StillOpen(f"stored; its outcome is not known after {within:g} s") from None
        finally:
            self._waits.discard(wait)
        if failed is not None:
            raise NotDelivered(failed)

    async def close(self) -> None:
        """End every wait."""
        self._fail_all("stored; the receiver is stopping")
        await asyncio.gather(*self._tasks)

    def _fail_all(self, why: str) -> None:
        for wait in self._waits:
            wait.fail(why)

    async def _poll(self) -> None:
        link = self._make_link()
        try:
            await link.open()
            while self._waits:
                await self._poll_once(link)
                await asyncio.sleep(POLL_SECONDS)
            self._poller = None  # a request during the close starts another task
        except (SQLAlchemyError, OSError):
            self._fail_all("stored; its outcome can't be read from the database")
        finally:
            if self._poller is asyncio.current_task():
                self._poller = None
            await link.drop()

    async def _poll_once(self, link: Link) -> None:
        waits = list(self._waits)
        is_open, failed = await link.run(_read_outcomes, {seq for wait in waits for seq in wait.seqs})
        self.polls += 1
        for wait in waits:
            if is_open.isdisjoint(wait.seqs) and not wait.outcome.done():
                wait.outcome.set_result(next((failed[seq] for seq in wait.seqs if seq in failed), None))


def _read_outcomes(connection: Connection, wanted: Iterable[int]) -> tuple[set[int], dict[int, str]]:
    """Return the events with open deliveries, and the errors of events with one that was given up."""
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


@cache
def _open_deliveries(sql: Sql) -> TextClause:
    """Select open deliveries; an event without any has ended on every route."""
    return text(f"""
SELECT o.seq, o.route, o.state
FROM {sql.rows("wanted", seq="bigint")}
JOIN open_delivery o ON o.seq = wanted.seq
""")


# through the view: a receiver's role may read the error, but not the facts
_GIVEN_UP = text("SELECT error FROM dead_letter WHERE seq = :seq AND route = :route")
