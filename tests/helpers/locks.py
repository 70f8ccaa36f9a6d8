"""Transactions that hold locks of rows or routes and stand still, and the size of transactions."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Engine, TextClause, text
from sqlalchemy.exc import DBAPIError

from inbox.db import engine as engines
from inbox.db import order_lock
from inbox.db.dialect import POSTGRES, Sql
from inbox.db.pipeline import send_together
from relay.store.database import Database
from relay.store.transaction import Transaction
from tests.helpers.relaying import Steps
from tests.helpers.waiting import stand_still


class _ReadLate(Mapping[str, object]):
    """Parameters that are read after the previous statement was sent."""

    def __init__(self, meanwhile: Callable[[], None]) -> None:
        self._meanwhile = [meanwhile]

    def __getitem__(self, name: str) -> object:
        while self._meanwhile:  # an error reads them again
            self._meanwhile.pop()()
        return name

    def __iter__(self) -> Iterator[str]:
        return iter(["name"])

    def __len__(self) -> int:
        return 1


@contextmanager
def lock_by_hand(engine: Engine, statement: str) -> Iterator[None]:
    """Lock rows by this statement in an open transaction for the block, as a person with psql may."""
    with engine.connect() as connection:
        stand_still(connection)
        connection.execute(text(statement))
        yield


def stand_still_within_a_pipeline(database: Database, route: str, meanwhile: Callable[[], None]) -> None:
    """Lock a route in a pipeline, and call `meanwhile` before all of it is sent."""
    with database.write() as transaction:
        transaction.take_order_lock([route])  # adds its row, which a pipeline cannot do
    with database.write() as transaction:
        send_together(
            transaction.connection, [transaction._prepare_lock({route}), (text("SELECT :name"), _ReadLate(meanwhile))]
        )


def limit_locks(monkeypatch: pytest.MonkeyPatch, milliseconds: int) -> None:
    """Let the server end transactions that lock routes for longer than this."""
    limited = order_lock.given_routes(Sql(POSTGRES)).text.replace(f"{order_lock.HELD_SECONDS}s", f"{milliseconds}ms")
    monkeypatch.setattr(order_lock, "given_routes", lambda _: text(limited))


@contextlib.contextmanager
def locking(steps: Steps, routes: list[str] | None) -> Iterator[Transaction]:
    """Hold the locks of these routes, or of all, in a transaction that stands still."""
    with steps.database.write() as transaction:
        transaction.take_order_lock(routes)
        stand_still(transaction.connection)
        yield transaction


def lock(steps: Steps, routes: list[str] | None) -> None:
    with steps.database.write() as another:
        another.set_lock_timeout(50)
        another.take_order_lock(routes)


def is_kept_waiting(steps: Steps, routes: list[str] | None) -> bool:
    try:
        lock(steps, routes)
    except DBAPIError as error:
        return "lock timeout" in str(error)
    return False


class Transactions:
    """Counts of rows read and facts written by each transaction since the start."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: list[int] = []
        self.facts: list[int] = []
        execute, begin, send = Transaction.execute, Transaction.__init__, Transaction.send_writes

        def begin_and_count(transaction: Transaction, *arguments: Any, **named: Any) -> None:  # noqa: ANN401  # passed through
            self.rows.append(0)
            begin(transaction, *arguments, **named)

        def execute_and_count(transaction: Transaction, statement: TextClause, **parameters: object) -> list[Any]:
            rows = execute(transaction, statement, **parameters)
            self.rows[-1] += len(rows)
            return rows

        monkeypatch.setattr(Transaction, "__init__", begin_and_count)

        def send_and_count(transaction: Transaction) -> None:
            self.facts.append(transaction.appended.total())
            send(transaction)

        monkeypatch.setattr(Transaction, "execute", execute_and_count)
        monkeypatch.setattr(Transaction, "send_writes", send_and_count)

    def forget(self) -> None:
        """Start counting again."""
        self.rows.clear()
        self.facts.clear()

    @property
    def largest(self) -> tuple[int, int]:
        """Largest counts of rows read and of facts written."""
        return max(self.rows, default=0), max(self.facts, default=0)


if __name__ == "__main__":
    url, route, order_lock.HELD_SECONDS = sys.argv[1], sys.argv[2], int(sys.argv[3])
    stand_still_within_a_pipeline(
        Database(engines.connect(url, application="tests")), route, lambda: os.kill(os.getpid(), signal.SIGSTOP)
    )
