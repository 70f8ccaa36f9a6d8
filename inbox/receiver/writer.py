"""Group commit: one task per process collects all waiting events and commits them together.

While one batch commits, the next collects. There is no timer, so an idle receiver responds without delay. A request
gets its response only after the commit of its batch.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Concatenate, ParamSpec, TypeVar

import msgspec
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from inbox.clock import Clock
from inbox.db import intake
from inbox.db.dialect import is_data_error, is_deadlock
from inbox.db.intake import Rejected
from inbox.db.link import Link, Notifier
from inbox.db.throughput import DUPLICATE, SOURCE, STORED, Tally
from inbox.errors import InvalidEvent, RequestError, Unavailable, UnfitDatabase
from inbox.events.event import Event, Receipt
from inbox.http.limits import Bucket
from inbox.observe import metrics
from inbox.observe.logs import fields, without_message
from inbox.observe.metrics import OFF, Meters, Metric
from inbox.receiver.reporting import IntakeAlert, Outage

PER_SECOND = 10
"""Rejected requests stored per second by each receiver process."""
MAX_REJECTIONS = 200
"""Maximum burst of stored rejected requests."""
MAX_BYTES = 4 * 1024 * 1024
"""Maximum bytes of bodies waiting or being written, so that they don't fill the memory. A single body may exceed it."""


class RejectionQueue:
    """Rejected requests waiting to be written."""

    def __init__(self, meters: Meters) -> None:
        self._meters = meters
        self._waiting: list[Rejected] = []
        self._pace = Bucket(PER_SECOND, MAX_REJECTIONS)
        self.unkept = 0
        """Number of requests without a row: there was no room, or the database rejected them."""

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, row: Rejected) -> bool:
        """Queue a row if there is room. Returns whether there was."""
        size = _size(row) + sum(map(_size, self._waiting))
        if (self._waiting and size > MAX_BYTES) or self._pace.take(time.monotonic()):
            self.count_unkept(1)
            return False
        self._waiting.append(row)
        return True

    def take(self) -> list[Rejected]:
        """Take all rows for writing."""
        rows, self._waiting = self._waiting, []
        return rows

    def count_unkept(self, number: int) -> None:
        """Count requests without a row."""
        self.unkept += number
        self._meters.count(metrics.NOT_KEPT, by=number)


def _size(row: Rejected) -> int:
    return len(row.body or b"")


# --- the writer


class Pending(msgspec.Struct, eq=False):
    """The events of one request: all or none are stored."""

    events: Sequence[Event]
    receipts: asyncio.Future[list[Receipt]]
    taken: bool = False
    """True once the events are in a batch."""

    def answer(self, answer: list[Receipt] | RequestError) -> None:
        """Pass the result to the request, if it still waits."""
        if self.receipts.done():
            return
        if isinstance(answer, RequestError):
            self.receipts.set_exception(answer)
        else:
            self.receipts.set_result(answer)

    def forget_events(self) -> None:
        """Free the events of a request that no longer waits: while a database hangs, they must not fill the memory."""
        if not self.taken:
            self.events = ()


MAX_ROWS = 256
LARGE_BODY = 1024 * 1024
"""Bytes from which a body counts as large; Postgres stores smaller ones within the time of a few commits."""

ANSWER_WITHIN_SECONDS = 2.5
"""Seconds until the response is 503, so that no sender waits for a hanging database."""

MAX_WAITING = 20_000
"""Maximum waiting requests, far more than are committed within `ANSWER_WITHIN_SECONDS`."""

_log = logging.getLogger(__name__)
_Answer = TypeVar("_Answer")
_P = ParamSpec("_P")


_FAILURES = (SQLAlchemyError, OSError, ValueError, UnfitDatabase)
"""Errors of a store or its connection; ValueError if a value can't be encoded for the database."""


class GroupCommit:
    """Writes batches of events over one connection. Create and `close` it inside the running event loop.

    After an error not caused by a row, the connection is replaced. It is also replaced after a large body: libpq keeps
    a buffer of its largest statement's size, and SQLite keeps the values of its last statement.
    """

    def __init__(
        self,
        link: Link,
        clock: Clock,
        meters: Meters = OFF,
        tally: Tally | None = None,
        *,
        notifier: Notifier | None = None,
    ) -> None:
        self._link = link
        self._largest = 0
        """Bytes of the largest body sent over the current connection."""
        self._clock = clock
        self._pending: deque[Pending] = deque()
        self._meters = meters
        self._tally = Tally() if tally is None else tally
        self._notifier = notifier
        self._alert = IntakeAlert()
        self.rejections = RejectionQueue(meters)
        self._probes: list[asyncio.Future[None]] = []
        self._has_work = asyncio.Event()
        self._closing = False
        self._loop = asyncio.get_running_loop()
        self._outage = Outage(self._loop.time)
        self._task = self._loop.create_task(self._run(), name="group-commit")
        self._task.add_done_callback(_end_worker)

    async def append(self, events: Sequence[Event]) -> list[Receipt]:
        """Store the events of one request in one transaction, unless they are already stored; return after the commit.

        Raises:
            Unavailable: the events are not stored, or the outcome is unknown.
            InvalidEvent: the database rejects one of their values.
        """
        if self._closing or len(self._pending) >= MAX_WAITING:
            raise Unavailable("the receiver is stopping" if self._closing else "too many requests are waiting")
        receipts: asyncio.Future[list[Receipt]] = self._loop.create_future()
        pending = Pending(events, receipts)
        self._pending.append(pending)
        self._has_work.set()
        try:
            return await self._limit_wait(receipts)
        finally:
            pending.forget_events()

    async def probe(self) -> None:
        """Check that the database can be written, as for a batch.

        Raises:
            Unavailable: it can't be written now.
        """
        done: asyncio.Future[None] = self._loop.create_future()
        self._probes.append(done)
        self._has_work.set()
        await self._limit_wait(done)

    def reject(self, row: Rejected) -> None:
        """Store a rejected request if there is room; in a flood, the rest are only counted."""
        if self.rejections.add(row):
            self._has_work.set()

    async def close(self) -> None:
        """Commit the waiting events, then close the connection."""
        self._closing = True
        self._has_work.set()
        await self._task
        await self._drop_connection()

    async def _limit_wait(self, future: asyncio.Future[_Answer]) -> _Answer:
        timer = self._loop.call_later(ANSWER_WITHIN_SECONDS, self._give_up, future)
        try:
            return await future
        finally:
            timer.cancel()

    def _give_up(self, future: asyncio.Future[_Answer]) -> None:
        if not future.done():
            self._outage.on_nothing_stored(f"no answer within {ANSWER_WITHIN_SECONDS:g} s", requests=1)
            future.set_exception(Unavailable("the database did not answer in time"))

    async def _run(self) -> None:
        while True:
            if not (self._pending or self._probes or self.rejections or self._closing):
                self._has_work.clear()
                await self._has_work.wait()
            batch = self._collect()
            if batch:
                await self._commit(batch)
            if self._probes:  # even while batches keep coming: a busy receiver is ready
                await self._probe()
            if self.rejections:
                await self._store_rejections()
            elif not batch and self._closing and not self._probes:
                return
            del batch  # otherwise its bodies would stay until the next batch
            if self._largest > LARGE_BODY:
                await self._drop_connection()

    def _collect(self) -> list[Pending]:
        batch: list[Pending] = []
        number = size = 0
        while self._pending:
            events = self._pending[0].events
            number += len(events)
            size += sum(len(event.body) for event in events)
            if batch and (number > MAX_ROWS or size > MAX_BYTES):
                break
            pending = self._pending.popleft()
            if not pending.receipts.done():  # otherwise its sender has already got 503
                pending.taken = True
                batch.append(pending)
        return batch

    async def _commit(self, batch: Sequence[Pending]) -> None:
        try:
            await self._store_batch(batch)
        except Exception as error:  # noqa: BLE001  # no event may stop the others or the worker
            if isinstance(error, _FAILURES) and not _blames_a_row(error):
                await self._fail(batch, error)
                return
            for pending in batch:
                await self._commit_alone(pending)

    async def _commit_alone(self, pending: Pending) -> None:
        """Store one request of a failed batch, so that only a faulty row, or one that hits a bug, is rejected."""
        if pending.receipts.done():
            return
        try:
            await self._store_batch([pending])
        except Exception as error:  # noqa: BLE001  # as above
            if _blames_a_row(error):
                pending.answer(InvalidEvent("the database rejects a value of this event"))
                return
            if not isinstance(error, _FAILURES):
                _log.error(
                    "an event can't be stored, and its sender gets 503",
                    exc_info=without_message(error),
                    extra=fields("not_stored"),
                )
            await self._fail([pending], error)

    async def _store_batch(self, batch: Sequence[Pending]) -> None:
        """Store a batch; respond first to requests whose events are all new, then to those with duplicates."""
        seqs = iter(await self._append([event for pending in batch for event in pending.events]))
        with_duplicates: list[tuple[Pending, list[int | None]]] = []
        for pending in batch:
            own = [next(seqs) for _ in pending.events]
            if None in own:
                with_duplicates.append((pending, own))
            else:
                pending.answer([Receipt(seq, duplicate=False) for seq in own if seq is not None])
        if with_duplicates:
            await self._note_duplicates(with_duplicates)

    async def _append(self, events: Sequence[Event]) -> list[int | None]:
        began = time.perf_counter()
        self._largest = max([self._largest, *(len(event.body) for event in events)])
        try:
            seqs = await self._run_in_transaction(intake.append, events)
        except DBAPIError as error:
            if not is_deadlock(error):
                raise
            seqs = await self._run_in_transaction(intake.append, events)
        if self._notifier is not None and any(
            seq is not None and event.enrolments for event, seq in zip(events, seqs, strict=True)
        ):
            self._notifier.wake_up()
        self._meters.observe(metrics.COMMIT_SECONDS, time.perf_counter() - began)
        self._meters.observe(metrics.BATCH_EVENTS, len(events))
        self._count(metrics.RECEIVED, STORED, events, seqs)
        self._outage.on_stored()
        if self._alert.may_fire:
            await self._link.run(self._alert.resolve, self._clock.now())
        return seqs

    async def _note_duplicates(self, batch: Sequence[tuple[Pending, list[int | None]]]) -> None:
        duplicates = [
            event for pending, own in batch for event, seq in zip(pending.events, own, strict=True) if seq is None
        ]
        seqs = await self._run_in_transaction(intake.note_duplicates, duplicates)
        self._count(metrics.DUPLICATES, DUPLICATE, duplicates, seqs)
        found = iter(seqs)
        for pending, own in batch:
            numbers = [(next(found) if seq is None else seq, seq is None) for seq in own]
            receipts = [Receipt(seq, duplicate=duplicate) for seq, duplicate in numbers if seq is not None]
            if len(receipts) == len(own):
                pending.answer(receipts)
            else:
                pending.answer(Unavailable("the event that it duplicates has just been deleted"))

    def _count(self, metric: Metric, outcome: str, events: Sequence[Event], seqs: Sequence[int | None]) -> None:
        """Count the stored events by source."""
        sizes: dict[str, list[int]] = {}
        for event, seq in zip(events, seqs, strict=True):
            if seq is not None:
                sizes.setdefault(event.source, []).append(len(event.body))
        for source, those in sizes.items():
            self._meters.count(metric, source, by=len(those))
            self._tally.add(SOURCE, source, outcome, count=len(those), size=sum(those))

    async def _fail(self, batch: Sequence[Pending], error: Exception) -> None:
        """Respond 503 to all, as perhaps nothing is stored, and use a new connection for the next batch."""
        if isinstance(error, _FAILURES):
            self._outage.on_failure(error, sum(not pending.receipts.done() for pending in batch))
        for pending in batch:
            pending.answer(_unavailable(error))
        await self._drop_connection()

    async def _probe(self) -> None:
        probes, self._probes = self._probes, []
        outcome: Exception | None = None
        try:
            await self._run_in_transaction(intake.probe, self._clock.now())
            self._outage.on_stored()
        except _FAILURES as error:
            outcome = _unavailable(error)
            self._outage.on_failure(error)
            await self._drop_connection()
        for probe in probes:
            if not probe.done():
                probe.set_result(None) if outcome is None else probe.set_exception(outcome)

    async def _store_rejections(self) -> None:
        rows = self.rejections.take()
        self._largest = max([self._largest, *(len(row.body or b"") for row in rows)])
        try:
            await self._run_in_transaction(intake.reject, rows)
        except _FAILURES:
            self.rejections.count_unkept(len(rows))
            await self._drop_connection()

    async def _run_in_transaction(
        self, function: Callable[Concatenate[Connection, _P], _Answer], *arguments: _P.args, **named: _P.kwargs
    ) -> _Answer:
        """Call a function in a transaction. The connection is first opened and checked if necessary."""
        if not self._link.is_open:
            await self._link.open()
            try:
                await self._link.run(self._alert.require_fit, self._clock.now())
            except BaseException:
                await self._link.drop()
                raise
        return await self._link.write(function, *arguments, **named)

    async def _drop_connection(self) -> None:
        self._largest = 0
        await self._link.drop()


def _blames_a_row(error: Exception) -> bool:
    return isinstance(error, ValueError) or (isinstance(error, DBAPIError) and is_data_error(error))


def _end_worker(task: asyncio.Task[None]) -> None:
    """End a worker whose writer failed: it can't store anything, and gunicorn starts another."""
    error = None if task.cancelled() else task.exception()
    if error is not None:
        _log.critical(
            "the writer failed; this worker ends", exc_info=without_message(error), extra=fields("writer_failed")
        )
        signal.raise_signal(signal.SIGTERM)


def _unavailable(error: Exception) -> Unavailable:
    """Build the 503 for a database error, without the error's text, which may hold values."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    return Unavailable(f"the database can't be written to now ({type(cause).__name__})")


# --- Two writers in one process, by the size of events.


class WriterPair:
    """Two writers of one process: large events have their own connection, so that small ones don't wait for them.

    Postgres takes over a second to compress and store 25 MiB. SQLite has one writer at a time, so it gains nothing.
    """

    def __init__(self, small: GroupCommit, large: GroupCommit) -> None:
        self._small = small
        self._large = large

    async def append(self, events: Sequence[Event]) -> list[Receipt]:
        """See GroupCommit."""
        return await self._choose(sum(len(event.body) for event in events)).append(events)

    async def probe(self) -> None:
        """See GroupCommit."""
        await self._small.probe()

    def reject(self, row: Rejected) -> None:
        """See GroupCommit."""
        self._choose(len(row.body or b"")).reject(row)

    async def close(self) -> None:
        """Close both writers."""
        await asyncio.gather(self._small.close(), self._large.close())

    def _choose(self, size: int) -> GroupCommit:
        return self._large if size > LARGE_BODY else self._small
