"""The receiver's store functions as the model uses them."""

from __future__ import annotations

from typing import Any, NamedTuple

from sqlalchemy import Connection, Engine, RootTransaction, event

from inbox.db import engine as engines
from inbox.db import intake
from inbox.db.dialect import Sql
from inbox.db.engine import one_transaction
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
    connection: Connection
    transaction: RootTransaction


class Receiver:
    """The receiver's store functions."""

    def __init__(self, url: str) -> None:
        engine = engines.connect(url, application="tests")
        in_haste(engine)
        is_postgres = Sql(engine.dialect.name).is_postgres
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT") if is_postgres else engine
        self._connection = self._engine.connect()
        self._spare: list[Connection] = []

    def append(self, *events: Event) -> list[int | None]:
        """Store them; None for one that is there already."""
        with one_transaction(self._connection):
            return intake.append(self._connection, events)

    def repeat(self, event: Event) -> int | None:
        """Note that it came again; its number."""
        with one_transaction(self._connection):
            return intake.note_duplicates(self._connection, [event], KEPT_REPEATS)[0]

    def hold(self, *events: Event) -> Uncommitted:
        """Store them, but let the commit wait: other numbers are committed before these."""
        if self._spare:
            connection = self._spare.pop()
        else:
            connection = self._engine.connect().execution_options(isolation_level="READ COMMITTED")
            connection.exec_driver_sql("SET idle_in_transaction_session_timeout = 0")  # held as long as a run likes
            connection.commit()
        transaction = connection.begin()
        return Uncommitted(events, intake.append(connection, events), connection, transaction)

    def commit(self, held: Uncommitted) -> None:
        held.transaction.commit()
        self._spare.append(held.connection)

    def roll_back(self, held: Uncommitted) -> None:
        """As if the receiver had died before the commit."""
        held.transaction.rollback()
        self._spare.append(held.connection)

    def close(self) -> None:
        for connection in (self._connection, *self._spare):
            connection.close()
        self._engine.dispose()
