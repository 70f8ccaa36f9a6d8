"""Failures planted into a step of a relay that runs: for one item, or for all that the step does."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from sqlalchemy import TextClause
from sqlalchemy.exc import DataError

from inbox.errors import IllegalTransition
from relay.steps import Step, Steps
from relay.store import sequence
from relay.store.statement import AnyStatement, prepare
from relay.store.transaction import Transaction

FAILURES: dict[str, Callable[[], Exception]] = {
    "DataError": lambda: DataError("SELECT", {}, ValueError("invalid input syntax for type json")),
    "OverflowError": lambda: OverflowError("Python int too large to convert to SQLite INTEGER"),
    "ValueError": lambda: ValueError("year 10000 is out of range"),
    "unknown kind": lambda: IllegalTransition("of_tomorrow can't happen to a delivery that is received"),
}
"""A refused value, one that can't be bound, one that can't be read, and a row of a kind that is not known."""


_NOT_WORKED_ON = frozenset({"looked_to", "known", "ahead", "due"})
"""Parameters with items that a statement leaves out."""


class Plant:
    """Raises in one step, wherever a statement has to do with the item: it is bound to it, or among its rows."""

    def __init__(self, step: Step, failure: str, *, item: dict[str, object] | None = None) -> None:
        self.step = step
        self.raised = 0
        self._item = item
        self._failure = FAILURES[failure]

    def check(self, statement: TextClause, parameters: dict[str, object], rows: list[Any]) -> None:
        """Raise, if this is the item's statement, or there is no item."""
        if self._item is None or self._is_bound(parameters) or self._is_among(statement, rows):
            self.raised += 1
            raise self._failure()

    def _is_bound(self, parameters: dict[str, object]) -> bool:
        lists = (
            value
            for name, value in parameters.items()
            if name not in _NOT_WORKED_ON and isinstance(value, str) and value.startswith("[{")
        )
        return any(self._is_item(row) for value in lists for row in json.loads(value))

    def _is_item(self, row: Mapping[str, object]) -> bool:
        return self._item is not None and self._item.items() <= row.items()

    def _is_among(self, statement: TextClause, rows: list[Any]) -> bool:
        reads_keys_alone = not any(
            word in str(statement).replace("body_bytes", "") for word in ("occurred_at", "body")
        ) or all({*row._mapping} == {"seq", "route"} for row in rows)
        return not reads_keys_alone and any(self._is_item(row._mapping) for row in rows)


@contextlib.contextmanager
def planted(monkeypatch: pytest.MonkeyPatch, plant: Plant) -> Iterator[Plant]:
    """A plant for as long as the block runs. What sets an item aside has to work."""
    here = threading.local()  # `step` is the one that this thread is in, but for what sets an item aside
    run, execute, make_dead = Steps.run, Transaction.execute, sequence.quarantine

    def running(steps: Steps, step: Step, work: Callable[[], Any], otherwise: Any, **more: Any) -> Any:  # noqa: ANN401
        def in_step() -> Any:  # noqa: ANN401
            here.step = step
            try:
                return work()
            finally:
                here.step = None

        return run(steps, step, in_step, otherwise, **more)

    def executing(transaction: Transaction, statement: AnyStatement, **parameters: Any) -> list[Any]:  # noqa: ANN401  # passed through
        rows = execute(transaction, statement, **parameters)
        if getattr(here, "step", None) == plant.step:
            plant.check(*prepare(statement, transaction.sql, parameters, None), rows)
        return rows

    def setting_aside(*arguments: Any, **more: Any) -> Any:  # noqa: ANN401
        step, here.step = getattr(here, "step", None), None
        try:
            return make_dead(*arguments, **more)
        finally:
            here.step = step

    with monkeypatch.context() as patch:
        patch.setattr(Steps, "run", running)
        patch.setattr(Transaction, "execute", executing)
        for module in ("record", "leases", "sequence", "claim"):
            patch.setattr(f"relay.store.{module}.quarantine", setting_aside)
        yield plant
