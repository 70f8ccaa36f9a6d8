"""The context of a relay's steps, the routes that rest, and bulkheads: an item that its step can't process fails alone.

Every step that works on many items in one transaction is run by `in_parts`, and the others of its batch go on.
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
"""The time for which every step leaves a route whose lock or rows stay locked."""
FORGOTTEN_SECONDS = 60.0
"""Nothing of a route was tried for so long after its rest: another relay has done what there was."""

Item = TypeVar("Item")
Result = TypeVar("Result")


class Reports:
    """Hears of the outcome of transactions. This one drops what it hears."""

    def appended(self, facts_of: Mapping[tuple[str, str], int]) -> None:
        """Hear how many facts of each route and kind a transaction has added."""

    def failed_alone(self, item: FailedAlone) -> None:
        """Hear of an item that its step could not process."""

    def database_trouble(self, doing: str, error: BaseException) -> None:
        """Hear of a step that the database holds up."""


class Rests:
    """The routes that stay locked, which every step leaves for a while; safe to share between threads."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[float, str, str]] = {}
        """By route: until when it rests (monotonic seconds), the step that met it, and the error."""

    def begin(self, step: str, routes: Iterable[str], error: Exception, *, is_tried_now: bool = False) -> None:
        """Let these routes rest; with `is_tried_now`, wait only shortly for them from now on."""
        until = time.monotonic() + (0 if is_tried_now else REST_SECONDS)
        self._known |= dict.fromkeys(routes, (until, step, error_text(error)))

    def end(self, routes: Iterable[str]) -> None:
        """Wait again for the locks of these routes, which were granted."""
        if self._known:
            for route in routes:
                self._known.pop(route, None)

    def try_all(self) -> None:
        """Let every step try all routes at once."""
        now = time.monotonic()
        self._known = {route: (now, step, error) for route, (_, step, error) in self._known.copy().items()}

    def now(self) -> set[str]:
        """Return the routes that every step leaves for now."""
        now = time.monotonic()
        return {route for route, (until, _, _) in self._known.copy().items() if now < until}

    def locked_last_time(self) -> frozenset[str]:
        """Return the routes whose locks were waited for in vain last time."""
        now = time.monotonic()
        for route, (until, _, _) in self._known.copy().items():
            if now > until + FORGOTTEN_SECONDS:
                self._known.pop(route, None)
        return frozenset(self._known)

    def texts(self) -> dict[str, str]:
        """Return those routes in words, by the step that met it."""
        self.locked_last_time()  # forgets old ones
        return {step: f"{route} is locked: {error}" for route, (_, step, error) in self._known.copy().items()}


class Work(msgspec.Struct, frozen=True):
    """The context of a relay's steps under one configuration."""

    database: Database
    config: Config
    policies: Policies
    node: str | None = None
    """The relay, which its facts name."""
    observer: Reports = msgspec.field(default_factory=Reports)
    rests: Rests = msgspec.field(default_factory=Rests)

    @contextmanager
    def write(self) -> Iterator[Transaction]:
        """One short transaction, as `Database.write`, which the observer hears of after its commit."""
        with self.database.write(self.node, impatient_of=self.rests.locked_last_time()) as transaction:
            yield transaction
        if transaction.appended:
            self.observer.appended(transaction.appended)
        for item in transaction.left_out:
            self.observer.failed_alone(item)

    def rest(self, step: str, routes: AbstractSet[str], error: Exception, *, is_tried_now: bool = False) -> None:
        """Let these routes rest, and report it."""
        self.rests.begin(step, routes, error, is_tried_now=is_tried_now)
        self.observer.database_trouble(f"{step} of {', '.join(sorted(routes))}", error)


def in_parts(
    work: Work,
    step: str,
    items: Sequence[Item],
    *,
    part: Callable[[Sequence[Item]], Result],
    alone: Callable[[Item, Exception], Result] | None = None,
    name: Callable[[Item], str] = str,
    routes_of: Callable[[Item], Collection[str]] | None = None,
    enough: int = 1,
) -> Iterator[Result]:
    """Process items together, and in ever smaller parts when one is at fault, or when all take the database too long.

    With `routes_of` each transaction locks these routes of its items. On Postgres, items of routes that rest are then left as
    they are, and one route that stays locked, or one of its rows, rests and delays no other.

    Args:
        work: whose observer hears of each item that fails alone.
        step: the step's name, for the log and the metrics.
        items: all of them.
        part: some of the items in one transaction.
        alone: puts an item that has failed alone into a state that an operator sees. Without it, the item stays as it is.
        name: an item in words.
        routes_of: the routes that an item locks.
        enough: items of the same routes that are worth a transaction of their own; fewer go together.

    Yields:
        The result of each transaction, after its commit. One bad item among n costs about 2 log2(n) transactions.

    Raises:
        Exception: the database is unreachable or busy, or the statement can't be run at all. What was yielded is done. Or
            an item took too long alone, or could not even be put aside: then all others are done.
    """
    halved = partial(_halved, work.observer, step, part=part, alone=alone, name=name)
    if routes_of is None or not work.database.sql.is_postgres:
        return halved(items)
    return _route_by_route(work, step, items, halved, routes_of=routes_of, enough=enough)


def _route_by_route(
    work: Work,
    step: str,
    items: Sequence[Item],
    process: Callable[[Sequence[Item]], Iterator[Result]],
    *,
    routes_of: Callable[[Item], Collection[str]],
    enough: int,
) -> Iterator[Result]:
    stays: Exception | None = None
    todo = _by_routes(items, routes_of, enough, work.rests.now())
    while todo:
        some, is_begun = todo.pop(0), False
        routes = {route for item in some for route in routes_of(item)}
        if not routes.isdisjoint(work.rests.now()):
            continue
        try:
            for result in process(some):
                is_begun = True
                yield result
        except Exception as error:
            if blames_items(error):
                stays = error
            elif not routes or not _is_of_a_route(error):
                raise
            else:
                smaller = _by_routes(some, routes_of, 1)
                again = smaller if len(smaller) > 1 and not is_begun else []
                # of several that one item locks, another step finds out which: until then each is waited for shortly
                is_any = len(smaller) == 1 and len(routes) > 1
                work.rest(step, routes, error, is_tried_now=bool(again) or is_any)
                todo += again
        else:
            work.rests.end(routes)
    if stays is not None:
        raise stays


def _is_of_a_route(error: Exception) -> bool:
    """True when a route stayed locked, or a row of it: for retention all routes wait alike."""
    return is_wait_timeout(error) and "payload_lock" not in str(getattr(error, "statement", ""))


def _by_routes(
    items: Sequence[Item],
    routes_of: Callable[[Item], Collection[str]],
    enough: int,
    resting: AbstractSet[str] = frozenset(),
) -> list[list[Item]]:
    """Part items by their routes, as a transaction keeps off all others that work on one of its routes."""

    def key(item: Item) -> list[str]:
        return sorted(routes_of(item))

    parts: list[list[Item]] = []
    awake = [item for item in items if resting.isdisjoint(routes_of(item))]
    for _, some in groupby(sorted(awake, key=key), key):
        if parts and len(parts[-1]) < enough:
            parts[-1] += some
        else:
            parts.append(list(some))
    return parts


def _halved(
    observer: Reports,
    step: str,
    items: Sequence[Item],
    *,
    part: Callable[[Sequence[Item]], Result],
    alone: Callable[[Item, Exception], Result] | None,
    name: Callable[[Item], str],
) -> Iterator[Result]:
    todo, stays = [items] if items else [], None
    while todo:
        some = todo.pop()
        try:
            yield part(some)
        except Exception as error:  # whatever one item raises, it must not stop the others
            is_to_blame = blames_items(error)
            if len(some) > 1 and (is_to_blame or takes_too_long(error)):
                todo += [some[len(some) // 2 :], some[: len(some) // 2]]
            elif is_to_blame:
                try:
                    aside = [] if alone is None else [alone(some[0], error)]
                except Exception as second:  # the others go on
                    if not blames_items(second):
                        raise
                    stays = second
                else:
                    observer.failed_alone(FailedAlone(step, name(some[0]), error_text(error)))
                    yield from aside
            elif takes_too_long(error) and stays is None:
                stays = (
                    error  # the first that takes too long alone is passed over; at a second the database is slow itself
                )
            else:
                raise
    if stays is not None:
        raise stays
