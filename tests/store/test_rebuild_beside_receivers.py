"""`rebuild` mends while receivers take in: what arrives between any two of its statements keeps its deliveries."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Engine, event

from relay.store import audit
from relay.store.database import Database
from relay.store.rebuild import rebuild
from relay.store.transaction import Transaction
from tests.helpers.reading import count
from tests.helpers.relaying import CONFIG, FakeClock, Steps
from tests.helpers.storing import a_row, an_event
from tests.store.verifying import Planter, differences, mend

A_STRAY_ROW = a_row(1_000_000, lane="USER|u9", state="dead")
"""A row of no event, with a number that no event of these tests has: the last span has something to mend."""


class Interrupted(Database):
    """Lets something happen after the look and before the transaction that mends, the first time."""

    def __init__(self, engine: Engine, clock: FakeClock, meanwhile: Callable[[], object]) -> None:
        super().__init__(engine, clock)
        self._meanwhile: Callable[[], object] | None = meanwhile

    @contextmanager
    def write(self, *arguments: Any, **named: Any) -> Iterator[Transaction]:  # noqa: ANN401  # passed through
        """As a database's; before the first it happens."""
        meanwhile, self._meanwhile = self._meanwhile, None
        if meanwhile is not None:
            meanwhile()
        with super().write(*arguments, **named) as transaction:
            yield transaction


@contextmanager
def before_every_statement(engine: Engine, act: Callable[[], object]) -> Iterator[list[str]]:
    """Act before each statement, on SQLite but where it holds the write lock; gives those statements."""
    interrupted: list[str] = []

    def _before(connection: Any, _cursor: object, statement: str, *_: object) -> None:  # noqa: ANN401  # SQLAlchemy's
        writes = connection.get_execution_options().get("sqlite_begin") != "DEFERRED"
        others_wait = connection.dialect.name == "sqlite" and writes and statement != "BEGIN IMMEDIATE"
        if not others_wait:
            interrupted.append(statement)
            act()

    event.listen(engine, "before_cursor_execute", _before)
    yield interrupted
    event.remove(engine, "before_cursor_execute", _before)


def test_what_arrives_before_any_statement_of_a_rebuild_keeps_its_delivery(lived_in: Steps, plant: Planter) -> None:
    plant(A_STRAY_ROW)
    plant("UPDATE open_delivery SET state = 'waiting', due_at = NULL WHERE seq = 5")
    plant("DELETE FROM open_delivery WHERE seq = 9")
    arrived: list[int] = []

    def arrive() -> None:
        number = 20 + len(arrived)
        arrived.append(number)
        lived_in.receive(an_event(number, f"u{number % 7}", routes=("strict", "latest")))

    with before_every_statement(lived_in.database.engine, arrive) as interrupted:
        mend(lived_in.database)

    assert len(interrupted) >= (20 if lived_in.database.sql.is_postgres else 8)
    assert count(lived_in.database.engine, "open_delivery WHERE state = 'received'") == 2 * len(arrived)
    lived_in.facts_agree()
    assert differences(lived_in.database) == []


def test_a_lane_that_has_its_head_again_by_the_time_of_the_lock_is_not_told(
    lived_in: Steps, plant: Planter, clock: FakeClock
) -> None:
    lived_in.arrive(an_event(14, "u14"))
    plant("UPDATE open_delivery SET state = 'waiting', due_at = NULL WHERE seq = 14")

    assert mend(Interrupted(lived_in.database.engine, clock, lambda: lived_in.arrive(an_event(15, "u14")))) == []
    lived_in.facts_agree()


def test_what_is_looked_at_again_does_not_grow_with_what_has_arrived_since(
    lived_in: Steps, plant: Planter, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(A_STRAY_ROW)
    read: list[int] = []
    executed, streamed = Transaction.execute, Transaction.stream

    def counted(transaction: Transaction, statement: Any, **parameters: object) -> list[Any]:  # noqa: ANN401
        found = executed(transaction, statement, **parameters)
        read.append(len(found))
        return found

    def counted_stream(transaction: Transaction, statement: Any, at_a_time: int, **parameters: object) -> Iterator[Any]:  # noqa: ANN401
        for row in streamed(transaction, statement, at_a_time, **parameters):
            read.append(1)
            yield row

    def arrive() -> None:
        lived_in.receive(*(an_event(number, f"u{number}") for number in range(100, 2_100)))
        read.clear()

    monkeypatch.setattr(Transaction, "execute", counted)
    monkeypatch.setattr(Transaction, "stream", counted_stream)
    mend(Interrupted(lived_in.database.engine, clock, arrive))

    assert sum(read) < 20


def test_a_chunk_is_so_many_numbers_whether_they_have_events_or_not(
    lived_in: Steps, plant: Planter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "SPAN_SEQS", 4)
    for seq in range(1000, 1015):
        plant(a_row(seq))
    chunks = list(rebuild(lived_in.database, CONFIG, who="ann"))

    mended = [len({found.seq for found in chunk.differences}) for chunk in chunks]
    assert max(mended) <= 4
    assert sum(mended) == 15
    assert differences(lived_in.database) == []
