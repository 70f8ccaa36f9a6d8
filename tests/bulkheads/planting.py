"""Failures planted into a step of a relay that runs: for one item, or for all that the step does."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import TextClause
from sqlalchemy.exc import DataError

from inbox.errors import IllegalTransition
from relay.steps import Step, Steps
from relay.store import quarantine
from relay.store.database import Transaction

FAILURES: dict[str, Callable[[], Exception]] = {
    "DataError": lambda: DataError("SELECT", {}, ValueError("invalid input syntax for type json")),
    "OverflowError": lambda: OverflowError("Python int too large to convert to SQLite INTEGER"),
    "ValueError": lambda: ValueError("year 10000 is out of range"),
    "unknown kind": lambda: IllegalTransition("of_tomorrow can't happen to a delivery that is received"),
}
"""A refused value, one that can't be bound, one that can't be read, and a row of a kind that is not known."""


class Plant:
    """Raises in one step, wherever a statement has to do with the item: it is bound to it, or among its rows.

    Not `is_listed`: among the rows of a statement that only lists what is to be looked at, it can be read.
    """

    def __init__(
        self,
        step: Step,
        failure: str,
        *,
        seq: int | None = None,
        number: int | None = None,
        text: str | None = None,
        lane: str | None = None,
        is_listed: bool = True,
    ) -> None:
        self.step = step
        self._seq = seq
        self._number = number
        self._text = text
        self._lane = lane
        self._is_listed = is_listed
        self.raised = 0
        self._failure = FAILURES[failure]

    def check(self, statement: TextClause, parameters: dict[str, object], rows: list[Any]) -> None:
        """Raise, if this is the item's statement."""
        if self._is_everything or self._is_bound(parameters) or self._is_among(statement, rows):
            self.raised += 1
            raise self._failure()

    @property
    def _is_everything(self) -> bool:
        return {self._seq, self._number, self._text, self._lane} == {None}

    def _is_bound(self, parameters: dict[str, object]) -> bool:
        if self._text is not None and self._text in parameters.values():
            return True
        for name, value in parameters.items():
            if (
                name != "looked_to"
                and isinstance(value, str)
                and value.startswith("[{")
                and any(map(self._is_item, json.loads(value)))
            ):
                return True
        return False

    def _is_item(self, row: dict[str, object]) -> bool:
        planted = (("seq", self._seq), ("id", self._number), ("lane", self._lane))
        return any(value is not None and row.get(name) == value for name, value in planted)

    def _is_among(self, statement: TextClause, rows: list[Any]) -> bool:
        reads_keys_alone = not any(word in str(statement) for word in ("occurred_at", "body"))
        if reads_keys_alone or not self._is_listed:
            return False
        return any(self._is_item(dict(row._mapping)) for row in rows)


class Ground:
    """Tracks the step of each thread, and whether it is setting an item aside: that has to work."""

    def __init__(self) -> None:
        self.local = threading.local()

    @property
    def step(self) -> str | None:
        """The step that this thread is in, but for what sets an item aside."""
        return None if getattr(self.local, "is_aside", False) else getattr(self.local, "step", None)


@contextlib.contextmanager
def planted(monkeypatch: pytest.MonkeyPatch, plant: Plant) -> Iterator[Plant]:
    """A plant for as long as the block runs."""
    ground = Ground()
    run, execute, make_dead = Steps.run, Transaction.execute, quarantine.quarantine

    def running(steps: Steps, step: Step, work: Callable[[], Any], otherwise: Any, **more: Any) -> Any:  # noqa: ANN401
        def in_step() -> Any:  # noqa: ANN401
            ground.local.step = step
            try:
                return work()
            finally:
                ground.local.step = None

        return run(steps, step, in_step, otherwise, **more)

    def executing(transaction: Transaction, statement: TextClause, **parameters: object) -> list[Any]:
        rows = execute(transaction, statement, **parameters)
        if ground.step == plant.step:
            plant.check(statement, parameters, rows)
        return rows

    def setting_aside(*arguments: Any, **more: Any) -> Any:  # noqa: ANN401
        ground.local.is_aside = True
        try:
            return make_dead(*arguments, **more)
        finally:
            ground.local.is_aside = False

    with monkeypatch.context() as patch:
        patch.setattr(Steps, "run", running)
        patch.setattr(Transaction, "execute", executing)
        for module in ("record", "reap", "sequence", "unreadable"):
            patch.setattr(f"relay.store.{module}.quarantine", setting_aside)
        yield plant
