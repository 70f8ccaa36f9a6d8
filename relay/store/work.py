"""The context of a relay's steps, locked routes, and bulkheads: an item that a step can't process fails alone.

Every step that processes many items in one transaction uses `process_in_parts`, so that one item can't stop its batch.
`tests/bulkheads` plants failures into each.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from typing import TypeVar

import msgspec

from inbox.config.model import Config
from inbox.db.dialect import blames_items, error_text, is_wait_timeout, takes_too_long
from relay.delivery.policy import Policies
from relay.store.database import Database
from relay.store.transaction import FailedAlone, Transaction

REST_SECONDS = 2.0
"""Seconds for which a route rests after a lock timeout: all steps skip it."""
FORGOTTEN_SECONDS = 60.0
"""Seconds after which a route that was not tried again is forgotten: its lock is probably free by then."""

Item = TypeVar("Item")
Result = TypeVar("Result")


class Reports:
    """Receives reports about transactions. This base class ignores them."""

    def on_appended(self, facts_of: Mapping[tuple[str, str], int]) -> None:
        """Receive the number of facts that a transaction has added, by route and kind."""

    def on_failed_alone(self, item: FailedAlone) -> None:
        """Receive an item that its step could not process."""

    def on_database_trouble(self, doing: str, error: BaseException) -> None:
        """Receive a failure of the database during a step."""


class LockedRoutes:
    """The routes whose lock timed out: all steps let them rest for a while. Safe to share between threads."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[float, str, str]] = {}
        """By route: the end of its rest (monotonic seconds), the step that timed out, and the error."""

    def add(self, step: str, routes: Iterable[str], error: Exception, *, is_retried_now: bool = False) -> None:
        """Let these routes rest; with `is_retried_now`, only use short lock timeouts for them."""
        until = time.monotonic() + (0 if is_retried_now else REST_SECONDS)
        self._known |= dict.fromkeys(routes, (until, step, error_text(error)))

    def remove(self, routes: Iterable[str]) -> None:
        """Use normal lock timeouts again for these routes, whose locks were granted."""
        if self._known:
            for route in routes:
                self._known.pop(route, None)

    def try_all(self) -> None:
        """Let all steps try every route again at once."""
        now = time.monotonic()
        self._known = {route: (now, step, error) for route, (_, step, error) in self._known.copy().items()}

    def list_resting(self) -> set[str]:
        """Return the routes that rest now."""
        now = time.monotonic()
        return {route for route, (until, _, _) in self._known.copy().items() if now < until}

    def list_locked(self) -> frozenset[str]:
        """Return the routes whose lock timed out last time."""
        now = time.monotonic()
        for route, (until, _, _) in self._known.copy().items():
            if now > until + FORGOTTEN_SECONDS:
                self._known.pop(route, None)
        return frozenset(self._known)

    def as_texts(self) -> dict[str, str]:
        """Return the locked routes in words, by the step that timed out."""
        self.list_locked()  # forgets old ones
        return {step: f"{route} is locked: {error}" for route, (_, step, error) in self._known.copy().items()}


class Work(msgspec.Struct, frozen=True):
    """The context of a relay's steps under one configuration."""

    database: Database
    config: Config
    policies: Policies
    node: str | None = None
    """The id of the relay, for its facts."""
    observer: Reports = msgspec.field(default_factory=Reports)
    locked_routes: LockedRoutes = msgspec.field(default_factory=LockedRoutes)

    @contextmanager
    def write(self) -> Iterator[Transaction]:
        """Open a short transaction like `Database.write`, and report it to the observer after its commit."""
        with self.database.write(self.node, short_timeouts_for=self.locked_routes.list_locked()) as transaction:
            yield transaction
        if transaction.appended:
            self.observer.on_appended(transaction.appended)
        for item in transaction.left_out:
            self.observer.on_failed_alone(item)

    def rest_routes(
        self, step: str, routes: AbstractSet[str], error: Exception, *, is_retried_now: bool = False
    ) -> None:
        """Let these routes rest, and report it."""
        self.locked_routes.add(step, routes, error, is_retried_now=is_retried_now)
        self.observer.on_database_trouble(f"{step} of {', '.join(sorted(routes))}", error)


def process_in_parts(
    work: Work,
    step: str,
    items: Sequence[Item],
    *,
    process: Callable[[Sequence[Item]], Result],
    quarantine_one: Callable[[Item, Exception], Result] | None = None,
    name: Callable[[Item], str] = str,
    routes_of: Callable[[Item], Collection[str]] | None = None,
    least_items: int = 1,
) -> Iterator[Result]:
    """Process items together, and in ever smaller parts if one is at fault or the transaction is too slow.

    With `routes_of`, each transaction locks these routes of its items. On Postgres, items of routes whose lock timed out
    then rest, so that a locked route or row does not delay other routes.

    Args:
        work: the context; its observer gets each item that fails alone.
        step: the name of the step, for the log and the metrics.
        items: all items.
        process: processes some of the items in one transaction.
        quarantine_one: quarantines an item that fails alone, so that operators see it. Without it, the item stays unchanged.
        name: returns an item in words.
        routes_of: returns the routes that an item locks.
        least_items: items of the same routes that justify a separate transaction; fewer are combined.

    Yields:
        The result of each transaction, after its commit. One bad item among n costs about 2 log2(n) transactions.

    Raises:
        Exception: the database is unreachable or busy, or the statement can't run at all; the yielded parts are done. Or,
            after all others were processed, an item was too slow alone or could not be quarantined.
    """
    process_halves = partial(_bisect, work.observer, step, process=process, quarantine_one=quarantine_one, name=name)
    if routes_of is None or not work.database.sql.is_postgres:
        return process_halves(items)
    return _route_by_route(work, step, items, process_halves, routes_of=routes_of, least_items=least_items)


def _route_by_route(
    work: Work,
    step: str,
    items: Sequence[Item],
    process: Callable[[Sequence[Item]], Iterator[Result]],
    *,
    routes_of: Callable[[Item], Collection[str]],
    least_items: int,
) -> Iterator[Result]:
    deferred: Exception | None = None
    todo = _group_by_routes(items, routes_of, least_items, work.locked_routes.list_resting())
    while todo:
        some, is_begun = todo.pop(0), False
        routes = {route for item in some for route in routes_of(item)}
        if not routes.isdisjoint(work.locked_routes.list_resting()):
            continue
        try:
            for result in process(some):
                is_begun = True
                yield result
        except Exception as error:
            if blames_items(error):
                deferred = error
            elif not routes or not _is_of_a_route(error):
                raise
            else:
                smaller = _group_by_routes(some, routes_of, 1)
                again = smaller if len(smaller) > 1 and not is_begun else []
                # with several routes it is unknown which one is locked: they don't rest, and only get short timeouts
                is_any = len(smaller) == 1 and len(routes) > 1
                work.rest_routes(step, routes, error, is_retried_now=bool(again) or is_any)
                todo += again
        else:
            work.locked_routes.remove(routes)
    if deferred is not None:
        raise deferred


def _is_of_a_route(error: Exception) -> bool:
    """Return whether a route or its rows stayed locked. The payload lock does not count, as it concerns all routes."""
    return is_wait_timeout(error) and "payload_lock" not in str(getattr(error, "statement", ""))


def _group_by_routes(
    items: Sequence[Item],
    routes_of: Callable[[Item], Collection[str]],
    least_items: int,
    resting: AbstractSet[str] = frozenset(),
) -> list[list[Item]]:
    """Group items by their routes, since a transaction blocks all other transactions on its routes."""

    def key(item: Item) -> list[str]:
        return sorted(routes_of(item))

    parts: list[list[Item]] = []
    others = [item for item in items if resting.isdisjoint(routes_of(item))]
    for _, some in groupby(sorted(others, key=key), key):
        if parts and len(parts[-1]) < least_items:
            parts[-1] += some
        else:
            parts.append(list(some))
    return parts


def _bisect(
    observer: Reports,
    step: str,
    items: Sequence[Item],
    *,
    process: Callable[[Sequence[Item]], Result],
    quarantine_one: Callable[[Item, Exception], Result] | None,
    name: Callable[[Item], str],
) -> Iterator[Result]:
    todo, deferred = [items] if items else [], None
    while todo:
        some = todo.pop()
        try:
            yield process(some)
        except Exception as error:  # no item may stop the others
            is_to_blame = blames_items(error)
            if len(some) > 1 and (is_to_blame or takes_too_long(error)):
                todo += [some[len(some) // 2 :], some[: len(some) // 2]]
            elif is_to_blame:
                try:
                    aside = [] if quarantine_one is None else [quarantine_one(some[0], error)]
                except Exception as second:  # the others are still processed
                    if not blames_items(second):
                        raise
                    deferred = second
                else:
                    observer.on_failed_alone(FailedAlone(step, name(some[0]), error_text(error)))
                    yield from aside
            elif takes_too_long(error) and deferred is None:
                deferred = error  # the first item that is too slow alone; at a second one the database itself is slow
            else:
                raise
    if deferred is not None:
        raise deferred
