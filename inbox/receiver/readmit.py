"""Readmits rejected requests, read by the present configuration.

Only requests of authenticated senders are kept whole and can be readmitted. `inbox.sources.readmission` reads them, and the
receiver's own writer stores them. So one that is in the inbox by now, sent again or readmitted before, is found to be a
duplicate.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import Engine

from inbox.db import readmission
from inbox.db.dialect import Sql
from inbox.db.engine import reading
from inbox.db.readmission import RejectedFilter
from inbox.errors import RequestError, Unavailable
from inbox.receiver.writer import GroupCommit
from inbox.sources.readmission import Read, ReadmitResult, read_one


def read_again(engine: Engine, readers: Mapping[str, Read], selected: RejectedFilter) -> Iterator[list[ReadmitResult]]:
    """Read the selected requests again, the oldest first, some at a time."""
    after = 0
    while True:
        with engine.connect() as connection, reading(connection).begin():
            rows = readmission.page(connection, selected, after=after)
        if not rows:
            return
        after = rows[-1]["id"]
        yield [read_one(readers, row) for row in rows]


async def store(
    engine: Engine,
    writer: GroupCommit,
    pages: Iterator[list[ReadmitResult]],
    *,
    by: str,
    reason: str,
    done: Callable[[Sequence[ReadmitResult]], None],
) -> None:
    """Store what can be read now, and note in each rejected request which event it became. Calls `done` after each page.

    Raises:
        Unavailable: the database stores nothing now. What was noted so far is stored; the rest can be readmitted later.
    """
    sql = Sql(engine.dialect.name)
    for page in pages:
        failure = await _together(_store(writer, again) for again in page if again.rejected is None)
        taken = [(again.id, again.receipts[0].seq) for again in page if again.receipts]
        if taken:
            with engine.begin() as connection:
                readmission.note(connection, taken, by=by, reason=reason)
            await asyncio.sleep(sql.pause_after_write)
        if failure is not None:  # only now: what has been stored is noted, or it would be stored again and again
            raise failure
        done(page)


async def _store(writer: GroupCommit, again: ReadmitResult) -> None:
    try:
        again.receipts = await writer.append(again.events)
    except Unavailable:
        raise
    except RequestError as error:
        again.rejected = error.detail


async def _together(awaitables: Iterator[Awaitable[Any]]) -> BaseException | None:
    """Wait for all, and return the first error, if there is any."""
    results = await asyncio.gather(*awaitables, return_exceptions=True)
    return next((result for result in results if isinstance(result, BaseException)), None)
