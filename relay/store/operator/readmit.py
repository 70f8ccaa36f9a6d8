"""Readmits rejected requests for a row of `relay_command`, some in each step.

They are read by the present configuration, and stored as the receiver stores a request: one that is in the inbox by now is
a duplicate. A step locks them, leaves alone what has been readmitted since, and notes what each became in the transaction
that stores it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import msgspec

from inbox.config.mistakes import nearest
from inbox.config.model import Config
from inbox.db import readmission
from inbox.db.dialect import blames_items, error_text
from inbox.db.readmission import RejectedFilter
from inbox.db.reads import Row, has_rejected_source
from inbox.db.throughput import DUPLICATE, SOURCE, STORED
from inbox.errors import CAUSES, UnusableCommand
from inbox.sources.normalize import Read, ReadmitResult, read_one, readers_of
from relay.operations.asks import Rejections
from relay.store.database import Database
from relay.store.operator.commands import AskedTask, BatchResult
from relay.store.transaction import FailedAlone, Transaction

AT_A_TIME = 20
"""Requests of a step."""
BYTES_AT_A_TIME = 2 * 1024 * 1024
"""Bytes of their bodies; a single one may be larger."""
EXAMINED = 200
"""Requests that a dry run or plan reads."""
MOST_COUNTED = 10_000


class ReadmitPlan(msgspec.Struct, frozen=True):
    """The requests that a readmission would take, as the present configuration reads them."""

    matching: int
    """All that are selected, counted up to `MOST_COUNTED`."""
    examined: int
    readable: int
    """Of the examined ones, those that would be stored, or are duplicates."""
    rejected: dict[str, int]
    """Reasons why others stay rejected, and how many each has."""
    first: tuple[int, ...]
    """Ids of the first ones that would be readmitted."""


def plan(database: Database, config: Config, selected: RejectedFilter, *, most: int = EXAMINED) -> ReadmitPlan:
    """Read some of the selected requests again, and change nothing."""
    matching = readmission.count(database.engine, selected, MOST_COUNTED + 1)
    readers, after, results = readers_of(config), 0, list[ReadmitResult]()
    while len(results) < most:
        page = _read(database, readers, selected, after)
        if not page:
            break
        results += (msgspec.structs.replace(each, events=each.events and (each.events[0],)) for each in page)
        after = page[-1].id
    rejected: dict[str, int] = {}
    for each in results:
        if each.rejected is not None:
            rejected[each.rejected] = rejected.get(each.rejected, 0) + 1
    readable = [each.id for each in results if each.rejected is None]
    return ReadmitPlan(matching, len(results), len(readable), rejected, tuple(readable[:5]))


def readmit(database: Database, config: Config, task: AskedTask) -> Callable[[Transaction], BatchResult]:
    """Find the next step; see `relay.store.operator.tasks`."""
    selected = filter_of(task.asked)
    if task.progress is None:
        _check_names(database, config, selected)
    if task.dry_run:
        planned = _dry_run(plan(database, config, selected))
        return lambda _: planned
    page = _read(database, readers_of(config), selected, task.progress or 0)
    page = [each for each in page if task.until is None or each.id <= task.until]
    if not page:
        answer = _answer(database, selected, task)
        return lambda _: BatchResult("done", progress=task.progress, answer=answer)
    return partial(_act, database=database, page=page, task=task)


def _act(
    transaction: Transaction, *, database: Database, page: Sequence[ReadmitResult], task: AskedTask
) -> BatchResult:
    readable = {each.id: each for each in page if each.rejected is None}
    taken = readmission.take(
        transaction.connection,
        [(each.id, each.events) for each in readable.values()],
        by=task.asked_by,
        reason=task.reason,
        now=transaction.now(),
    )
    transaction.left_out += (
        FailedAlone("commands", f"rejected={number}", error_text(error)) for number, error in taken.failed.items()
    )
    for number, receipts in taken.receipts.items():
        transaction.rows += len(receipts)
        for event, receipt in zip(readable[number].events, receipts, strict=True):
            database.tally.add(SOURCE, event.source, DUPLICATE if receipt.duplicate else STORED, size=len(event.body))
    return BatchResult("running", changed=len(taken.receipts), progress=page[-1].id)


def filter_of(asked: Rejections) -> RejectedFilter:
    """Return the conditions."""
    return RejectedFilter(**{name: getattr(asked, name) for name in RejectedFilter.__struct_fields__})


def _check_names(database: Database, config: Config, selected: RejectedFilter) -> None:
    source, cause = selected.source, selected.cause
    if source is not None and source not in config.sources and not has_rejected_source(database.engine, source):
        raise UnusableCommand(f"there is no source {source!r}; {nearest(source, config.sources)}")
    if cause is not None and cause not in CAUSES:
        raise UnusableCommand(f"there is no cause {cause!r}; {nearest(cause, CAUSES)}")


def _read(database: Database, readers: Mapping[str, Read], selected: RejectedFilter, after: int) -> list[ReadmitResult]:
    with database.read() as transaction:
        rows = readmission.page(
            transaction.connection, selected, after=after, most=AT_A_TIME, most_bytes=BYTES_AT_A_TIME
        )
    return [_read_one(readers, row) for row in rows]


def _read_one(readers: Mapping[str, Read], row: Row) -> ReadmitResult:
    try:
        return read_one(readers, row)
    except Exception as error:  # a preset of the installation's own may raise anything
        if not blames_items(error):
            raise
        failed = f"its preset failed: {type(error).__name__}"
        return ReadmitResult(row["id"], row["received_at"], row["source"], row["cause"], rejected=failed)


def _answer(database: Database, selected: RejectedFilter, task: AskedTask) -> str:
    left = readmission.count(database.engine, selected, MOST_COUNTED + 1, last=task.until)
    said = f"{task.affected} readmitted"
    if left:
        number = f"more than {MOST_COUNTED}" if left > MOST_COUNTED else str(left)
        said += f", {number} still rejected: their reasons are in a dry run"
    return said


def _dry_run(planned: ReadmitPlan) -> BatchResult:
    said = f"dry run: {planned.readable} of the first {planned.examined} would be readmitted"
    return BatchResult("done", matched=planned.matching, sample=msgspec.to_builtins(planned), answer=said)
