"""A search through all orders of the statements of several operations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import Engine

from tests.helpers.stepping import Stepped, Stepper

TRIES = 50
"""Attempts to make the database repeat a choice before the search gives up on it."""


def all_orders(
    engine: Engine,
    start: Callable[[], Mapping[str, Callable[[], Any]]],
    check: Callable[[Stepper], None],
    *,
    passing: Callable[[str], bool] = lambda _: False,
    pointless: Callable[[Stepper, Stepped], bool] = lambda _stepper, _stepped: False,
    swaps: Callable[[str, str], bool] = lambda _one, _other: False,
) -> int:
    """Run operations in every order, depth first.

    When several operations wait for one row, Postgres chooses the next. Each choice seen once is searched to its end,
    unless the database does not repeat it.

    Args:
        engine: the engine of the operations.
        start: prepares the same state for each order, and returns the operations by name.
        check: called after each order, when all operations have finished.
        passing: see Stepper.
        pointless: whether a step can be delayed from this point without changing the result.
        swaps: whether two consecutive statements of two operations commute. Of orders that differ only so, one is run
            ("sleep sets", Godefroid 1996).

    Returns:
        The number of orders.

    Raises:
        AssertionError: from `check`, with the order as a note.
        RuntimeError: the initial state differed, or a connection of another program holds a lock.
    """
    with Stepper(engine, passing) as stepper:
        return _search(stepper, start, check, pointless, swaps)


def _search(
    stepper: Stepper,
    start: Callable[[], Mapping[str, Callable[[], Any]]],
    check: Callable[[Stepper], None],
    pointless: Callable[[Stepper, Stepped], bool],
    swaps: Callable[[str, str], bool],
) -> int:
    root: _Point | None = None
    orders = 0
    while root is None or not root.done:
        for name, operation in start().items():
            stepper.begin(name, operation)
        stepper.taken.clear()
        movable = _movable(stepper, pointless)
        new = root is None
        root = root or _Point(movable)
        if root.choices != movable:
            raise RuntimeError(f"at first {root.choices} could move, now {movable}")
        point, path = root, [root]
        while (choice := point.next_choice()) is not None:
            before = {name: str(stepper[name].before) for name in point.choices}
            stepper[choice].step()
            movable = _movable(stepper, pointless)
            new |= movable not in point.after[choice]
            point = point.follow(choice, movable, before, swaps)
            path.append(point)
        _hold(stepper, check if not point.choices else lambda _: None)
        for earlier in reversed(path):
            earlier.look_back()
        orders += new and not point.choices
    return orders


def _movable(stepper: Stepper, pointless: Callable[[Stepper, Stepped], bool]) -> tuple[str, ...]:
    return tuple(
        name for name, stepped in stepper.operations.items() if stepped.can_move and not pointless(stepper, stepped)
    )


def _hold(stepper: Stepper, check: Callable[[Stepper], None]) -> None:
    stepper.run([])  # raises if one stays blocked
    try:
        check(stepper)
    except AssertionError as error:
        error.add_note("\n".join(["in this order:", *(f"{name}: {_short(sql)}" for name, sql in stepper.taken)]))
        raise


def _short(statement: str) -> str:
    return " ".join(statement.split())[:120]


class _Point:
    """A point of the search with its possible moves."""

    def __init__(self, choices: tuple[str, ...], asleep: frozenset[str] = frozenset()) -> None:
        self.choices = choices
        self.asleep = asleep
        """Choices equivalent to an order searched before."""
        self.after: dict[str, dict[tuple[str, ...], _Point]] = {name: {} for name in choices}
        """Points seen after each choice, by the operations that could move then."""
        self.done = False
        self._in_vain = 0

    def next_choice(self) -> str | None:
        """Return the next operation to move, preferring unfinished ones; None if all are blocked or asleep."""
        awake = [name for name in self.choices if name not in self.asleep]
        return next((name for name in awake if not self._is_done(name)), awake[0] if awake else None)

    def follow(
        self, name: str, movable: tuple[str, ...], before: Mapping[str, str], swaps: Callable[[str, str], bool]
    ) -> _Point:
        """Return the point after this choice. After TRIES repeats, give up points that it no longer leads to.

        `before` are the pending statements at this point.
        """
        seen = self.after[name]
        if movable not in seen:
            searched = self.asleep.union(other for other in self.choices if other != name and self._is_done(other))
            asleep = (other for other in searched if other in movable and swaps(before[other], before[name]))
            seen[movable] = _Point(movable, frozenset(asleep))
        point = seen[movable]
        if point.done and not self._is_done(name):
            self._in_vain += 1
            if self._in_vain > TRIES:
                for other in seen.values():
                    other.done = True
        return point

    def look_back(self) -> None:
        self.done = self.done or all(name in self.asleep or self._is_done(name) for name in self.choices)

    def _is_done(self, name: str) -> bool:
        seen = self.after[name].values()
        return bool(seen) and all(point.done for point in seen)
