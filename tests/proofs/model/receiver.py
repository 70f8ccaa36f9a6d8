"""The receiver's store functions as the model uses them."""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

from sqlalchemy import Engine, event
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncTransaction

from inbox.db import engine as engines
from inbox.db.dialect import Sql
from inbox.db.intake import STORES
from inbox.events.event import Event


def in_haste(engine: Engine) -> None:
    """Don't let it wait for the disk: no power fails here. Call it before it connects."""
    hasty = "SET synchronous_commit = off" if Sql(engine.dialect.name).is_postgres else "PRAGMA synchronous = OFF"

    @event.listens_for(engine, "connect")
    def _connected(connection: Any, _record: object) -> None:  # noqa: ANN401  # the driver's connection
        connection.cursor().execute(hasty)
        connection.commit()


KEPT_REPEATS = 2
"""So that the third repeat of an event is only counted."""


class Uncommitted(NamedTuple):
    """Events that are stored in a transaction which is still open: they have their numbers, and nobody else sees them."""

    events: tuple[Event, ...]
    seqs: list[int | None]
    connection: AsyncConnection
    transaction: AsyncTransaction


class Receiver:
    """The receiver's store functions, for a caller that is not asynchronous."""

    def __init__(self, url: str) -> None:
        self._runner = asyncio.Runner()
        self._engine = engines.connect_async(url, application="tests")
        in_haste(self._engine.sync_engine)
        self._store = STORES[self._engine.dialect.name](KEPT_REPEATS)
        self._connection = self._runner.run(self._engine.connect().start())
        self._spare: list[AsyncConnection] = []

    def append(self, *events: Event) -> list[int | None]:
        """Store them; None for one that is there already."""
        return self._runner.run(self._connection.run_sync(self._store.append, events))

    def repeat(self, event: Event) -> int | None:
        """Note that it came again; its number."""
        return self._runner.run(self._connection.run_sync(self._store.note_duplicates, [event]))[0]

    def hold(self, *events: Event) -> Uncommitted:
        """Store them, but let the commit wait: other numbers are committed before these."""
        return self._runner.run(self._hold(events))

    def commit(self, held: Uncommitted) -> None:
        self._runner.run(held.transaction.commit())
        self._spare.append(held.connection)

    def roll_back(self, held: Uncommitted) -> None:
        """As if the receiver had died before the commit."""
        self._runner.run(held.transaction.rollback())
        self._spare.append(held.connection)

    def close(self) -> None:
        for connection in (self._connection, *self._spare):
            self._runner.run(connection.close())
        self._runner.run(self._engine.dispose())
        self._runner.close()

    async def _hold(self, events: tuple[Event, ...]) -> Uncommitted:
        if self._spare:
            connection = self._spare.pop()
        else:
            connection = await self._engine.connect()
            await connection.execution_options(isolation_level="READ COMMITTED")
            await connection.exec_driver_sql(
                "SET idle_in_transaction_session_timeout = 0"
            )  # held as long as a run likes
            await connection.commit()
        transaction = await connection.begin()
        return Uncommitted(events, await connection.run_sync(self._store.append, events), connection, transaction)
