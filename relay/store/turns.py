"""Turns at the locks of routes: what is free goes first, and a route that was waited for in vain holds up no other.

All of it is known to one process: `Stalls` are routes that are locked, `BackOffs` what its steps have left, and until when.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from itertools import groupby
from typing import Generic, TypeVar

Item = TypeVar("Item")

WAITS_IN_VAIN = 3
"""Waits for locks of routes that a step spends before it only tries: a relay that stands still has few routes."""

FAULTS_FOR_A_WAIT = 8
"""Items at fault that cost a step about as much as a wait: each is tried in ever smaller parts."""

FORGOTTEN_SECONDS = 10.0
"""A stall that nobody has met for so long is over: whoever needs the route meets it each second or two."""
AGAIN_SECONDS = 0.1
"""The first wait of a step for what it has left; each next one is twice as long."""
LONGEST_FOR_A_ROUTE = 0.5
LONGEST_FOR_A_ROW = 5.0
"""The longest such waits. To try a locked row costs a wait for it, under the lock of its route."""
_MOST_DOUBLINGS = 10

SOME_ROUTE = ""
"""The name of a locked route that is not known: who waits for all of them learns only that one is."""


class Stalls:
    """Routes whose lock this process has waited for in vain, until it gets it. Safe to share between threads."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._met_at: dict[str, float] = {}

    def began(self, routes: Iterable[str]) -> None:
        """Note routes that stay locked."""
        for route in routes:
            self._met_at[route] = self._monotonic()

    def ended(self, routes: Iterable[str]) -> None:
        """Note routes whose lock was granted."""
        if self._met_at:
            for route in routes:
                self._met_at.pop(route, None)

    def all_ended(self) -> None:
        """Note that the locks of all routes were granted."""
        self._met_at.clear()

    def has(self, routes: Iterable[str]) -> bool:
        """Return whether one of these routes stays locked."""
        return bool(self._met_at) and not self.locked().isdisjoint(routes)

    def locked(self) -> set[str]:
        """Return the routes that stay locked."""
        now = self._monotonic()
        return {route for route, met_at in self._met_at.copy().items() if now - met_at < FORGOTTEN_SECONDS}


class BackOffs:
    """Routes and items that a step has left as they were, and until when it does not try them.

    Each step belongs to one thread.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._until: dict[tuple[str, str], tuple[int, float]] = {}
        """By step and subject, how often it was left in a row, and when it is tried again."""

    def began(self, step: str, subjects: Iterable[str], longest: float = LONGEST_FOR_A_ROUTE) -> float:
        """Note that the step has left these, so that it waits for each, `longest` at most. Returns the longest wait."""
        now, waits = self._monotonic(), [0.0]
        # What was left long ago does not count, and what has gone since is tried by nobody.
        self._until = {one: known for one, known in self._until.copy().items() if now - known[1] < FORGOTTEN_SECONDS}
        for subject in subjects:
            times, _ = self._until.get((step, subject), (0, now))
            wait = min(AGAIN_SECONDS * 2 ** min(times, _MOST_DOUBLINGS), longest)
            self._until[step, subject] = (times + 1, now + wait)
            waits.append(wait)
        return max(waits)

    def ended(self, step: str, subjects: Iterable[str]) -> None:
        """Note that the step has left none of these."""
        if self._until:
            for subject in subjects:
                self._until.pop((step, subject), None)

    def all_ended(self) -> None:
        """Let every step try all of them at once."""
        self._until.clear()

    def of(self, step: str, *, even_late: bool = False) -> set[str]:
        """Return the routes and items that the step does not try yet; `even_late`, those, too, that it may try again."""
        if not self._until:
            return set()
        since = self._monotonic() - (FORGOTTEN_SECONDS if even_late else 0.0)
        return {one for (name, one), (_, until) in self._until.copy().items() if name == step and since < until}


class Turns(Generic[Item]):
    """Parts of a step's items, in the order in which they are worked on.

    Where there are several, each is tried first: it fails at once when another relay has a route of it. Only then they wait,
    one after the other. So two relays with the same routes work on different ones. A part that has waited in vain is tried
    again, and the routes that stay locked keep no others waiting: from then on, they go last, and together.
    """

    def __init__(
        self,
        parts: Sequence[Sequence[Item]],
        stalls: Stalls,
        route_of: Callable[[Item], str] | None = None,
        enough: int = 1,
    ) -> None:
        """With `route_of`, make the parts by routes instead. Routes with fewer than `enough` items go together."""
        self._stalls = stalls
        self._route_of = route_of
        self._waits = WAITS_IN_VAIN
        self._kept_out: list[Sequence[Item]] = []
        if route_of is not None:
            items = [item for part in parts for item in part]
            locked = stalls.locked()
            free = [item for item in items if route_of(item) not in locked]
            stalled = [item for item in items if route_of(item) in locked]
            parts = [part for part in (*by_route(free, route_of, enough), stalled) if part]
        self._todo = [(part, route_of is not None and len(parts) > 1) for part in reversed(parts)]
        self.tries = False
        """True while the part that has its turn is not to wait for its routes."""
        self.left: list[tuple[Item, Exception]] = []
        """Items that are left as they are, and why."""
        self.alone: list[tuple[Item, Exception]] = []
        """The ones of them that were tried by themselves."""
        self.given_up: dict[str, Exception] = {}
        """Routes of which nothing more is tried, and why."""
        self._in_vain: Counter[str] = Counter()

    def next(self) -> Sequence[Item]:
        """Return the next part; an empty one is the end."""
        while self._todo:
            some, self.tries = self._todo.pop()
            if some:
                return some
        self.tries = False
        while self._kept_out:
            if some := self._kept_out.pop(0):
                return some
        return ()

    def halve(self, some: Sequence[Item]) -> None:
        """Let both halves of the part have the next turns."""
        half = len(some) // 2
        self._todo += [(some[half:], self.tries), (some[:half], self.tries)]

    def leave(self, item: Item, error: Exception, *, is_stalled: bool, waited: bool = True) -> None:
        """Leave an item as it is; `is_stalled` as the lock of its route was waited for in vain, `waited` as its row was.

        A route is given up that is stalled, or has a few such items already, or many that cost no wait.
        """
        self.alone.append((item, error))
        self.left.append((item, error))
        if self._route_of is None:
            return
        route = self._route_of(item)
        self._in_vain[route] += FAULTS_FOR_A_WAIT if waited else 1
        if is_stalled or self._in_vain[route] >= WAITS_IN_VAIN * FAULTS_FOR_A_WAIT:
            self._give_up(self._route_of, route, error, is_stalled=is_stalled)

    def _give_up(self, route_of: Callable[[Item], str], route: str, error: Exception, *, is_stalled: bool) -> None:
        if is_stalled:
            self._stalls.began((route,))
        self.given_up[route] = error
        self._todo = [(self._without(route_of, route, error, part), tries) for part, tries in self._todo]
        self._kept_out = [self._without(route_of, route, error, part) for part in self._kept_out]

    def _without(
        self, route_of: Callable[[Item], str], route: str, error: Exception, part: Sequence[Item]
    ) -> Sequence[Item]:
        self.left += ((item, error) for item in part if route_of(item) == route)
        return [item for item in part if route_of(item) != route]

    def keep_out(self, some: Sequence[Item], error: Exception, free: AbstractSet[str] | None = None) -> None:
        """Put the part off whose routes are not free, or leave it as it is when it has waited.

        Where it was tried, and it is known which of its routes were `free`, these are tried without the others.
        """
        if self.tries and self._route_of is not None and free is not None:
            locked = [item for item in some if self._route_of(item) not in free]
            if locked:
                self._split(self._route_of, some, locked, error)
                return
        if self.tries and self._waits == WAITS_IN_VAIN:
            self._kept_out.append(some)
            return
        self._waits -= not self.tries
        routes = [some] if self._route_of is None else by_route(some, self._route_of, 1)
        if len(routes) > 1:
            self._try(routes if self.tries else [some])
        else:
            self.left += ((item, error) for item in some)
            if self._route_of is not None:
                self._give_up(self._route_of, self._route_of(some[0]), error, is_stalled=True)
        if self._waits <= 0:
            self._stop_waiting()

    def _split(
        self, route_of: Callable[[Item], str], some: Sequence[Item], locked: Sequence[Item], error: Exception
    ) -> None:
        routes = {route_of(item) for item in locked}
        if rest := [item for item in some if route_of(item) not in routes]:
            self._try([rest])
        if self._waits == WAITS_IN_VAIN:
            self._kept_out.append(locked)
            return
        self.left += ((item, error) for item in locked)
        for route in sorted(routes):
            self._give_up(route_of, route, error, is_stalled=True)

    def _stop_waiting(self) -> None:
        """Try what else there is. Where parts are not made by routes, they need the same locks: then it is left."""
        rest, self._kept_out = self._kept_out, []
        if self._route_of is None:
            self._todo = []
            return
        if rest:
            self._try([[item for part in rest for item in part]])

    def _try(self, parts: Sequence[Sequence[Item]]) -> None:
        self._todo += [(part, True) for part in reversed(parts)]


def by_route(items: Sequence[Item], route_of: Callable[[Item], str], enough: int) -> list[Sequence[Item]]:
    """Part items by their routes, as a transaction keeps off all others that work on one of its routes.

    Routes with few items go together, until they have `enough` for a transaction of their own.
    """
    parts: list[list[Item]] = []
    for _, some in groupby(sorted(items, key=route_of), route_of):
        if parts and len(parts[-1]) < enough:
            parts[-1] += some
        else:
            parts.append(list(some))
    return [*parts]
