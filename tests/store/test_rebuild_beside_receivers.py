"""`rebuild` mends while receivers take in: what arrives between any two of its statements keeps its deliveries."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Engine, event, text

from relay.store.audit import examine
from relay.store.audit.rebuild import rebuild
from relay.store.database import Database
from relay.store.transaction import Transaction
from tests.helpers.kinds import ON_POSTGRES
from tests.helpers.patience import be_patient
from tests.helpers.reading import count, rows
from tests.helpers.relaying import CONFIG, DONE, FakeClock, Steps
from tests.helpers.storing import a_fact, a_row, an_event
from tests.helpers.waiting import until
from tests.store.verifying import Planter, differences, mend

A_STRAY_ROW = a_row(1_000_000, lane="USER|u9", state="dead")
"""A row of no event, with a number that no event of these tests has: the last span has something to mend."""


def a_stray_fact(seq: int) -> str:
    return a_fact("skipped", seq, why="a slip")


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


def test_what_arrives_between_the_look_and_the_lock_keeps_its_delivery(
    lived_in: Steps, plant: Planter, clock: FakeClock
) -> None:
    plant(A_STRAY_ROW)

    mended = mend(
        Interrupted(lived_in.database.engine, clock, lambda: lived_in.receive(an_event(20, "u20"), an_event(21, "u3")))
    )

    assert [found.finding for found in mended] == ["no_event"]
    lived_in.facts_agree()
    assert differences(lived_in.database) == []


def test_what_arrives_before_any_statement_of_a_rebuild_keeps_its_delivery(lived_in: Steps, plant: Planter) -> None:
    plant(A_STRAY_ROW)
    plant(a_stray_fact(1_000_001))
    plant(
        "UPDATE lane SET seq = 8, occurred_at = '2026-01-01 00:00:08.000000Z' WHERE route = 'strict' AND lane = 'USER|u2'"
    )
    plant("UPDATE open_delivery SET state = 'waiting', due_at = NULL WHERE seq = 5")
    plant("DELETE FROM open_delivery WHERE seq = 9")
    arrived: list[int] = []

    def arrive() -> None:
        number = 20 + len(arrived)
        arrived.append(number)
        lived_in.receive(an_event(number, f"u{number % 7}", routes=("strict", "latest")))

    with before_every_statement(lived_in.database.engine, arrive) as interrupted:
        mend(lived_in.database)

    assert len(interrupted) >= (30 if lived_in.database.sql.is_postgres else 10)
    assert count(lived_in.database.engine, "open_delivery WHERE state = 'received'") == 2 * len(arrived)
    lived_in.facts_agree()
    assert differences(lived_in.database) == []


def test_rebuilds_beside_a_receiver_lose_nothing(steps: Steps, plant: Planter) -> None:
    database, engine = steps.database, steps.database.engine
    be_patient(engine)

    def take_in() -> None:
        for first in range(1, 241, 4):
            steps.receive(*(an_event(n, f"u{n % 20}", routes=("strict", "latest")) for n in range(first, first + 4)))

    with ThreadPoolExecutor(1) as pool:
        receiving = pool.submit(take_in)
        mended: list[list[str]] = []
        while not (receiving.done() and mended):
            plant(A_STRAY_ROW)
            mended.append([found.finding for found in mend(database)])
        receiving.result()

    assert mended == [["no_event"]] * len(mended)
    assert count(engine, "inbox") == 240
    assert count(engine, "open_delivery") == 2 * 240
    steps.facts_agree()
    assert differences(database) == []


def test_facts_of_no_event_stay_when_their_event_has_arrived_meanwhile(
    lived_in: Steps, plant: Planter, clock: FakeClock
) -> None:
    """A number comes again only where a sequence was behind its table; then the trigger refuses to delete the facts."""
    plant(a_stray_fact(14))

    mended = mend(
        Interrupted(lived_in.database.engine, clock, lambda: lived_in.receive(an_event(14, routes=["latest"])))
    )

    assert "no_event" not in [found.finding for found in mended]
    assert count(lived_in.database.engine, "inbox WHERE seq = 14") == 1
    assert (14, "skipped") in lived_in.kinds()


@ON_POSTGRES
def test_facts_of_no_event_stay_when_their_event_arrives_while_they_are_being_deleted(
    lived_in: Steps, plant: Planter
) -> None:
    """The trigger sees it though the deleting statement does not. The other things of the chunk are mended all the same."""
    plant(a_stray_fact(14))
    plant("DELETE FROM open_delivery WHERE seq = 6")
    engine = lived_in.database.engine
    be_patient(engine)
    with ThreadPoolExecutor(1) as pool, engine.connect() as connection:
        connection.execute(text("SELECT id FROM delivery_log WHERE seq = 14 FOR UPDATE"))
        mending = pool.submit(mend, lived_in.database)
        until(
            lambda: count(
                engine, "pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%DELETE FROM delivery_log%'"
            ),
            "the rebuild waits for the fact",
        )
        lived_in.receive(an_event(14, routes=["latest"]))
        connection.rollback()
        mended = mending.result()

    assert [found.finding for found in mended] == ["missing"]
    assert (14, "skipped") in lived_in.kinds()


def test_a_lane_that_remembers_something_true_by_the_time_of_the_lock_is_not_forgotten(
    lived_in: Steps, plant: Planter, clock: FakeClock
) -> None:
    plant(
        "UPDATE lane SET seq = 14, occurred_at = '2026-01-01 00:00:02.000000Z' WHERE route = 'strict' AND lane = 'USER|u1'"
    )

    def deliver_another() -> None:
        lived_in.arrive(an_event(14, "u1"))
        lived_in.attempt(DONE)

    (first, *_) = rebuild(Interrupted(lived_in.database.engine, clock, deliver_another), CONFIG, who="ann")

    assert first.differences == ()
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
    monkeypatch.setattr(examine, "SPAN_SEQS", 4)
    for seq in range(1000, 1010):
        plant(a_stray_fact(seq))
        plant(a_row(seq + 5))
    chunks = list(rebuild(lived_in.database, CONFIG, who="ann"))

    mended = [len({found.seq for found in chunk.differences}) for chunk in chunks]
    assert max(mended) <= 4
    assert sum(mended) == 15
    assert rows(lived_in.database.engine, "SELECT seq FROM delivery_log WHERE seq >= 1000") == []
    assert differences(lived_in.database) == []
