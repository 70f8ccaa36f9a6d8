"""Bulkheads: an item that its step can't process fails alone, and the others of its batch go on.

Every step that works on many items in one transaction is run by `in_parts`; by `in_parts_by_route` where it locks only the
routes of its items; or by `isolated` where the items of a batch are known only from within. `tests/bulkheads` plants
failures into each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from inbox.db.dialect import blames_items, error_text, failure_of, is_turn_timeout, is_wait_timeout
from relay.store.database import Database
from relay.store.transaction import FailedAlone, RoutesLocked
from relay.store.turns import Turns

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
    apart: Callable[[Sequence[Item]], Sequence[Sequence[Item]]] = lambda items: [items],
) -> Iterator[Result]:
    """Process items together, and in ever smaller parts when one is at fault: `isolated` has the arguments.

    Without `alone`, an item that fails alone stays as it is. With `apart`, each of its parts is a transaction from the start.

    An item that somebody has locked all the while, such as a person in a transaction that stays open, is left as it is, too.
    After one wait for it the others are not kept waiting: see `relay.store.database.HASTE_SECONDS`.
    """
    turns = Turns(apart(items), database.stalls)
    yield from _in_turn(database, step, turns, part=part, alone=alone, name=name)
    if turns.left:
        raise _worst(error for _, error in turns.left)


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
    left: list[Item] | None = None,
    left_alone: list[Item] | None = None,
) -> Iterator[Result]:
    """Do as `in_parts`, and process all items but those of routes which somebody keeps locked, wholly or in rows.

    On Postgres parts are made by routes, and may wait for each other: see `relay.store.turns.Turns`. What is locked is
    added to `left`, and `Database.on_left` hears of it. The step does not try these routes, or items, again at once: they
    are left at each call until then. So is an item that can't even be put aside. `left_alone` gets those that were tried by
    themselves, before the next part begins.

    Raises:
        Exception: as `isolated`, but not because items are locked.
    """
    left = [] if left is None else left
    off = database.back_offs.of(step)
    todo = [item for item in items if route_of(item) not in off and name(item) not in off] if off else items
    turns = Turns([todo], database.stalls, route_of if database.sql.locks_routes else None, enough)
    yield from _in_turn(database, step, turns, part=part, alone=alone, name=name, left_alone=left_alone)
    # By what waits for its next try: the route and the error.
    waits = {route: (route, error) for route, error in turns.given_up.items()} | {
        name(item): (route_of(item), error) for item, error in turns.alone
    }
    if database.back_offs.of(step, even_late=True):
        done = {subject for item in todo for subject in (route_of(item), name(item))}
        database.back_offs.ended(step, done - waits.keys() - {name(item) for item in left_alone or ()})
    for is_lock in (True, False):
        these = {subject: why for subject, why in waits.items() if is_turn_timeout(why[1]) is is_lock}
        if these:
            error = _worst(error for _, error in these.values())
            database.leave(step, these, {route for route, _ in these.values()}, error)
    left += (item for item, _ in turns.left)
    if len(todo) < len(items):
        left += (item for item in items if route_of(item) in off or name(item) in off)
        database.still_leaves(step)


def _in_turn(
    database: Database,
    step: str,
    turns: Turns[Item],
    *,
    part: Callable[[Sequence[Item]], Result],
    alone: Callable[[Item, Exception], Result] | None,
    name: Callable[[Item], str],
    left_alone: list[Item] | None = None,
) -> Iterator[Result]:
    """Yield the results of all parts, in turn. What is left as it is stands in `turns.left` then."""
    while some := turns.next():
        try:
            with database.trying(at_once=turns.tries):
                result = part(some)
        except Exception as error:  # whatever one item raises, it must not stop the others
            if is_turn_timeout(error):
                turns.keep_out(some, error, error.free if isinstance(error, RoutesLocked) else None)
            elif not is_wait_timeout(error) and not blames_items(error):
                raise
            elif len(some) > 1:
                turns.halve(some)
            else:
                aside, stays = _put_aside(alone, some[0], error)
                if stays is None:
                    database.failed_alone(FailedAlone(step, name(some[0]), error_text(error)))
                    yield from aside
                else:
                    turns.leave(some[0], stays, is_stalled=is_turn_timeout(stays), waited=is_wait_timeout(stays))
                    if left_alone is not None:
                        left_alone.append(some[0])
        else:
            yield result


def _worst(errors: Iterable[Exception]) -> Exception:
    """Pick the first fault, which lasts; or the last of the errors that end by themselves."""
    known = list(errors)
    return next((error for error in known if failure_of(error) == "fault"), known[-1])


def _put_aside(
    alone: Callable[[Item, Exception], Result] | None, item: Item, error: Exception
) -> tuple[list[Result], Exception | None]:
    """Put aside an item that has failed alone. Returns the results, and the error with which it stays as it is."""
    if is_wait_timeout(error):
        return [], error
    try:
        return ([] if alone is None else [alone(item, error)]), None
    except Exception as second:  # the others go on
        if not blames_items(second) and not is_turn_timeout(second) and not is_wait_timeout(second):
            raise
        return [], second
