"""Bulkheads: an item that its step can't process fails alone, and the others of its batch go on.

Every step that works on many items in one transaction is run by `in_parts`, or by `in_parts_by_route` where it locks only the
routes of its items. `tests/bulkheads` plants failures into each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import TypeVar

from inbox.db.dialect import blames_items, error_text, is_wait_timeout, takes_too_long
from relay.store.database import Database
from relay.store.transaction import FailedAlone

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_parts(
    database: Database,
    step: str,
    items: Sequence[Item],
    *,
    part: Callable[[Sequence[Item]], Result],
    alone: Callable[[Item, Exception], Result] | None = None,
    name: Callable[[Item], str] = str,
) -> Iterator[Result]:
    """Process items together, and in ever smaller parts when one is at fault, or when all take the database too long.

    Args:
        database: whose `on_failed_alone` hears of each item that fails alone.
        step: the step's name, for the log and the metrics.
        items: all of them.
        part: some of the items in one transaction.
        alone: puts an item that has failed alone into a state that an operator sees. Without it, the item stays as it is.
        name: an item in words.

    Yields:
        The result of each transaction, after its commit. One bad item among n costs about 2 log2(n) transactions.

    Raises:
        Exception: the database is unreachable or busy, or the statement can't be run at all. What was yielded is done. Or
            an item took too long alone, or could not even be put aside: then all others are done.
    """
    todo, stays = [items] if items else [], None
    while todo:
        some = todo.pop()
        try:
            yield part(some)
        except Exception as error:  # whatever one item raises, it must not stop the others
            if len(some) > 1 and (blames_items(error) or takes_too_long(error)):
                todo += [some[len(some) // 2 :], some[: len(some) // 2]]
                continue
            if not blames_items(error):
                if not takes_too_long(error) or stays is not None:
                    raise
                stays = (
                    error  # the first that takes too long alone is passed over; at a second the database is slow itself
                )
                continue
            try:
                aside = [] if alone is None else [alone(some[0], error)]
            except Exception as second:  # the others go on
                if not blames_items(second):
                    raise
                stays = second
            else:
                database.failed_alone(FailedAlone(step, name(some[0]), error_text(error)))
                yield from aside
    if stays is not None:
        raise stays


def in_parts_by_route(
    database: Database,
    step: str,
    items: Sequence[Item],
    *,
    route_of: Callable[[Item], str],
    part: Callable[[Sequence[Item]], Result],
    alone: Callable[[Item, Exception], Result] | None = None,
    name: Callable[[Item], str] = str,
    enough: int = 1,
) -> Iterator[Result]:
    """Do as `in_parts`, on Postgres route by route: one that stays locked, or one of its rows, rests and delays no other.

    Routes with fewer than `enough` items go together. Items of routes that rest are left as they are.

    Raises:
        Exception: as `in_parts`, but not because a route or a row is locked.
    """
    if not database.sql.locks_routes:
        yield from in_parts(database, step, items, part=part, alone=alone, name=name)
        return
    resting, stays = database.resting(), None
    todo = _by_route([item for item in items if route_of(item) not in resting], route_of, enough)
    while todo:
        some, is_begun = todo.pop(0), False
        routes = {route_of(item) for item in some}
        try:
            for result in in_parts(database, step, some, part=part, alone=alone, name=name):
                is_begun = True
                yield result
        except Exception as error:
            if blames_items(error):
                stays = error
            elif not is_wait_timeout(error):
                raise
            elif len(routes) > 1 and not is_begun:
                database.rest(step, routes, error, is_tried_now=True)
                todo += _by_route(some, route_of, 1)
            else:
                database.rest(step, routes, error)
        else:
            database.end_rest(routes)
    if stays is not None:
        raise stays


def _by_route(items: Sequence[Item], route_of: Callable[[Item], str], enough: int) -> list[list[Item]]:
    """Part items by their routes, as a transaction keeps off all others that work on one of its routes."""
    parts: list[list[Item]] = []
    for _, some in groupby(sorted(items, key=route_of), route_of):
        if parts and len(parts[-1]) < enough:
            parts[-1] += some
        else:
            parts.append(list(some))
    return parts
