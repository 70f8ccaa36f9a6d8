"""Transactions that stand still with the locks of rows or of routes, and the size of transactions."""

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
    """Parameters that are read when the statement before has been sent."""

    def __init__(self, meanwhile: Callable[[], None]) -> None:
        self._meanwhile = [meanwhile]

    def __getitem__(self, name: str) -> object:
        while self._meanwhile:  # an error reads them once more
            self._meanwhile.pop()()
        return name

    def __iter__(self) -> Iterator[str]:
        return iter(["name"])

    def __len__(self) -> int:
        return 1


@contextmanager
def locked_by_a_person(engine: Engine, statement: str) -> Iterator[None]:
    """A person's transaction has locked some rows by this statement, and stays open for as long as the block."""
    with engine.connect() as connection:
        stand_still(connection)
        connection.execute(text(statement))
        yield


def stand_still_within_a_pipeline(database: Database, route: str, meanwhile: Callable[[], None]) -> None:
    """Lock a route by a pipeline, and call `meanwhile` before all of it is sent."""
    with database.write() as transaction:
        transaction.take_order_lock([route])  # adds its row, which a pipeline can't
    with database.write() as transaction:
        send_together(
            transaction.connection, [transaction._lock_of({route}), (text("SELECT :name"), _ReadLate(meanwhile))]
        )


def limit_locks(monkeypatch: pytest.MonkeyPatch, milliseconds: int) -> None:
    """Let the server end whoever has routes locked for longer than this."""
    limited = order_lock.given_routes(Sql(POSTGRES)).text.replace(f"{order_lock.HELD_SECONDS}s", f"{milliseconds}ms")
    monkeypatch.setattr(order_lock, "given_routes", lambda _: text(limited))


@contextlib.contextmanager
def locking(steps: Steps, routes: list[str] | None) -> Iterator[Transaction]:
    """A transaction that has the lock of these routes, or of everything, and stands still."""
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
    """Rows that each transaction has read, and facts that each has written, from when it began to look."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: list[int] = []
        self.facts: list[int] = []
        execute, begin, send = Transaction.execute, Transaction.__init__, Transaction.send_writes

        def begun(transaction: Transaction, *arguments: Any, **named: Any) -> None:  # noqa: ANN401  # passed through
            self.rows.append(0)
            begin(transaction, *arguments, **named)

        def executed(transaction: Transaction, statement: TextClause, **parameters: object) -> list[Any]:
            rows = execute(transaction, statement, **parameters)
            self.rows[-1] += len(rows)
            return rows

        monkeypatch.setattr(Transaction, "__init__", begun)

        def sent(transaction: Transaction) -> None:
            self.facts.append(transaction.appended.total())
            send(transaction)

        monkeypatch.setattr(Transaction, "execute", executed)
        monkeypatch.setattr(Transaction, "send_writes", sent)

    def forget(self) -> None:
        """Begin to look again."""
        self.rows.clear()
        self.facts.clear()

    @property
    def largest(self) -> tuple[int, int]:
        """The most rows read, and the most facts written."""
        return max(self.rows, default=0), max(self.facts, default=0)


if __name__ == "__main__":
    url, route, order_lock.HELD_SECONDS = sys.argv[1], sys.argv[2], int(sys.argv[3])
    stand_still_within_a_pipeline(
        Database(engines.connect(url, application="tests")), route, lambda: os.kill(os.getpid(), signal.SIGSTOP)
    )
