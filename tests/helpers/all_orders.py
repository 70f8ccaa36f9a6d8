"""A search through every order of the statements of several operations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import Engine

from tests.helpers.stepping import Stepped, Stepper

TRIES = 50
"""Number of times the database may choose otherwise before the search assumes that it does not choose so again."""


def all_orders(
    engine: Engine,
    start: Callable[[], Mapping[str, Callable[[], Any]]],
    check: Callable[[Stepper], None],
    *,
    passing: Callable[[str], bool] = lambda _: False,
    pointless: Callable[[Stepper, Stepped], bool] = lambda _stepper, _stepped: False,
    swaps: Callable[[str, str], bool] = lambda _one, _other: False,
) -> int:
    """Run operations in every order: depth first, at each point each of those that can move.

    Of several that wait for one row, Postgres chooses who gets it. Each choice that was seen once is searched to its end,
    unless the database does not make it again.

    Args:
        engine: as the operations use it.
        start: prepares the state and gives the operations by name; called for each order, and alike every time.
        check: called after each order, when all operations are finished.
        passing: as of a Stepper.
        pointless: whether a step may be left out at this point, since it comes to the same when made later.
        swaps: whether it comes to the same which of two statements of two operations goes first, when one follows the other.
            Of orders that differ only so, one is run ("sleep sets", Godefroid 1996).

    Returns:
        How many orders there were.

    Raises:
        AssertionError: of `check`, with the order as a note.
        RuntimeError: the beginning was another one, or somebody else holds a lock.
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
    stepper.run([])  # raises when one is blocked for good
    try:
        check(stepper)
    except AssertionError as error:
        error.add_note("\n".join(["in this order:", *(f"{name}: {_short(sql)}" for name, sql in stepper.taken)]))
        raise


def _short(statement: str) -> str:
    return " ".join(statement.split())[:120]


class _Point:
    """A point of the search, where some can move."""

    def __init__(self, choices: tuple[str, ...], asleep: frozenset[str] = frozenset()) -> None:
        self.choices = choices
        self.asleep = asleep
        """Choices that come to the same as an order which was searched already."""
        self.after: dict[str, dict[tuple[str, ...], _Point]] = {name: {} for name in choices}
        """Points that were seen to follow each choice, by the operations that could move then."""
        self.done = False
        self._in_vain = 0

    def next_choice(self) -> str | None:
        """Return the next to move: one that was not searched to its end, or any. None: none can, or all are asleep."""
        awake = [name for name in self.choices if name not in self.asleep]
        return next((name for name in awake if not self._is_done(name)), awake[0] if awake else None)

    def follow(
        self, name: str, movable: tuple[str, ...], before: Mapping[str, str], swaps: Callable[[str, str], bool]
    ) -> _Point:
        """Return the point that this choice has led to now. In the end, give up points that it led to before and no longer does.

        `before` are the statements that stood here.
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
