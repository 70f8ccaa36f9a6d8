"""Bulkheads: an item that its step can't process fails alone, and the others of its batch go on.

Every step that works on many items in one transaction is run by `in_parts`, or by `isolated` where the items of a batch
are known only from within. `tests/bulkheads` plants failures into each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from inbox.db.dialect import blames_items, error_text, is_wait_timeout
from relay.store.database import Database, FailedAlone

Item = TypeVar("Item")
Result = TypeVar("Result")


def isolated(
    database: Database,
    step: str,
    *,
    batch: Callable[[], Result],
    items: Callable[[], Sequence[Item]],
    part: Callable[[Sequence[Item]], Result],
    alone: Callable[[Item, Exception], Result],
    name: Callable[[Item], str] = str,
) -> Iterator[Result]:
    """Process a batch; when an item is at fault, process the items in ever smaller parts.

    Args:
        database: whose `on_failed_alone` hears of each item that fails alone.
        step: the step's name, for the log and the metrics.
        batch: all of it in one transaction: what is done when nothing is wrong.
        items: what the batch is made of, read as plainly as possible; asked for only after the batch has failed.
        part: some of the items in one transaction.
        alone: puts an item that has failed alone into a state that an operator sees.
        name: an item in words.

    Yields:
        The result of each transaction, after its commit. One bad item among n costs about 2 log2(n) transactions.

    Raises:
        Exception: the database is unreachable or busy, or the statement can't be run at all. What was yielded is done. Or
            an item is locked, or could not even be put aside: then all others are done.
    """
    try:
        result = batch()
    except Exception as error:  # whatever one item raises, it must not stop the others
        if not is_wait_timeout(error) and not blames_items(error):
            raise
    else:
        yield result
        return
    yield from in_parts(database, step, items(), part=part, alone=alone, name=name)


def in_parts(
    database: Database,
    step: str,
    items: Sequence[Item],
    *,
    part: Callable[[Sequence[Item]], Result],
    alone: Callable[[Item, Exception], Result] | None = None,
    name: Callable[[Item], str] = str,
) -> Iterator[Result]:
    """Process items together, and in ever smaller parts when one is at fault: `isolated` has the arguments.

    Without `alone`, an item that fails alone stays as it is.

    An item that somebody has locked all the while, such as a person in a transaction that stays open, is left as it is, too.
    After one wait for it the others are not kept waiting: see `relay.store.database.HASTE_SECONDS`.
    """
    todo, left = [items], None
    while todo:
        some = todo.pop()
        if not some:
            continue
        try:
            result = part(some)
        except Exception as error:  # as above
            is_late = is_wait_timeout(error)
            if not is_late and not blames_items(error):
                raise
            if len(some) > 1:
                half = len(some) // 2
                todo += [some[half:], some[:half]]
                continue
            if is_late:
                left = error
                continue
            try:
                aside = [] if alone is None else [alone(some[0], error)]
            except Exception as second:  # it stays as it is, and the others go on
                if not blames_items(second):
                    raise
                left = second
                continue
            database.failed_alone(FailedAlone(step, name(some[0]), error_text(error)))
            yield from aside
            continue
        yield result
    if left is not None:
        raise left
