"""Transactions that stand still: a person's, with locked rows, and a relay's within a pipeline, with the lock of its route."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import pytest
from sqlalchemy import Engine, text

from inbox.db import order_lock
from inbox.db.dialect import POSTGRES, Sql
from inbox.db.pipeline import send_together
from relay.store.database import Database
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
