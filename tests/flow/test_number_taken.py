"""A database that gives numbers which are taken: senders get 503 and send again, and a person is told what to run."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
from sqlalchemy import Engine, text

from inbox.db import engine as engines
from inbox.receiver import app
from relay.delivery.alerts import sentence
from relay.store.alerts import take_unsent
from relay.store.database import Database
from tests.helpers.outage import disconnect
from tests.helpers.reading import count, rows
from tests.helpers.receiver import Receiver, receiving
from tests.helpers.webhooks import a_config, body, moment

Do = Callable[[str], None]


@pytest.fixture
def do(postgres_database_url: str) -> Do:
    def _do(statement: str) -> None:
        made = engines.connect(postgres_database_url, application="tests")
        with made.begin() as connection:
            connection.execute(text(statement))
        made.dispose()

    return _do


def alerted(url: str) -> list[tuple[str, bool]]:
    made = engines.connect(url, application="tests")
    found = [(row["kind"], row["firing"]) for row in rows(made, "SELECT kind, firing FROM alert ORDER BY id")]
    made.dispose()
    return found


async def fill(receiver: Receiver, begin: int, number: int) -> list[int]:
    answers = [await receiver.post(body(f"u{n}", moment(n))) for n in range(begin, begin + number)]
    return [answer.status_code for answer in answers]


async def test_a_sequence_behind_its_table_is_503_until_it_is_mended_and_told(
    postgres_database_url: str, do: Do, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(app, "READY_CACHED_SECONDS", 0.0)
    async with receiving(a_config(postgres_database_url)) as receiver:
        assert await fill(receiver, 0, 6) == [200] * 6
        do("SELECT setval('inbox_seq_seq', 1)")

        assert await fill(receiver, 6, 3) == [503] * 3
        assert (await receiver.get("/health/ready")).status_code == 503
        assert (await receiver.get("/health/live")).status_code == 200
        critical = [record.getMessage() for record in caplog.records if record.levelno == logging.CRITICAL]
        assert "gave a number that is taken already (constraint pk_inbox)" in critical[0]
        assert critical[1].endswith("Run: SELECT setval('public.inbox_seq_seq', 6)")
        assert len(critical) == 2, "said once, not for each batch"
        assert alerted(postgres_database_url) == [("intake_stopped", True)]

        do(critical[1].partition("Run: ")[2])
        assert await fill(receiver, 6, 3) == [200] * 3
        assert (await receiver.get("/health/ready")).status_code == 200
    assert alerted(postgres_database_url) == [("intake_stopped", True), ("intake_stopped", False)]
    made = engines.connect(postgres_database_url, application="tests")
    assert count(made, "inbox") == 9
    assert count(made, "rejected_request") == 0
    (first,) = take_unsent(Database(made))
    assert sentence(first.alert).startswith(
        "the receiver can store nothing: the sequence public.inbox_seq_seq is behind"
    )
    made.dispose()


async def test_a_database_that_came_back_with_a_sequence_behind_is_not_ready_before_anything_is_sent(
    postgres_database_url: str, do: Do, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "READY_CACHED_SECONDS", 0.0)
    async with receiving(a_config(postgres_database_url)) as receiver:
        assert await fill(receiver, 0, 3) == [200] * 3
        do("SELECT setval('inbox_seq_seq', 1, false)")
        disconnect(postgres_database_url)
        await receiver.get("/health/ready")  # its connection was broken
        assert (await receiver.get("/health/ready")).status_code == 503


async def test_one_row_in_the_way_costs_one_answer_and_the_alert_is_taken_back(
    postgres_database_url: str, do: Do
) -> None:
    async with receiving(a_config(postgres_database_url)) as receiver:
        assert await fill(receiver, 0, 2) == [200] * 2
        do(
            "INSERT INTO open_delivery (seq, route, lane, occurred_at, state)"
            " VALUES (3, 'everything', 'x', now(), 'received')"
        )
        assert await fill(receiver, 2, 1) == [503]
        assert await fill(receiver, 2, 3) == [200] * 3
    assert alerted(postgres_database_url) == [("intake_stopped", True), ("intake_stopped", False)]


async def test_an_alert_of_a_receiver_that_has_ended_is_taken_back_by_the_next(
    database_url: str, engine: Engine
) -> None:
    true, now = ("true", "now()") if engine.dialect.name == "postgresql" else ("1", "'2026-01-01 00:00:00.000000Z'")
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO alert (at, kind, subject, firing, detail)"
                f" VALUES ({now}, 'intake_stopped', 'receiver', {true}, '{{}}')"
            )
        )
    async with receiving(a_config(database_url)) as receiver:
        assert await fill(receiver, 0, 2) == [200] * 2
    assert [bool(firing) for _, firing in alerted(database_url)] == [True, False]


@pytest.mark.parametrize("table", ["alert", "delivery_log", "relay_command"])
async def test_a_table_of_the_relay_that_is_locked_keeps_nothing_from_being_stored(
    postgres_database_url: str, table: str
) -> None:
    made = engines.connect(postgres_database_url, application="tests")
    with made.connect() as dba:
        dba.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        async with receiving(a_config(postgres_database_url)) as receiver:
            dba.execute(text(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE"))
            assert await fill(receiver, 0, 1) == [200]
    made.dispose()


async def test_a_sequence_of_the_relay_behind_its_table_keeps_nothing_from_being_stored(
    postgres_database_url: str, do: Do
) -> None:
    do("""INSERT INTO relay_command (id, asked_at, asked_by, kind, selection, reason)
VALUES (7, now(), 'kim', 'pause', '{}', 'r')""")
    async with receiving(a_config(postgres_database_url)) as receiver:
        assert await fill(receiver, 0, 1) == [200]


async def test_a_number_that_is_taken_in_sqlite_is_no_fault_of_the_row(sqlite_database_url: str) -> None:
    """SQLite gives the next number itself, so only a row of a delivery can be in the way."""
    made = engines.connect(sqlite_database_url, application="tests")
    with made.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO open_delivery (seq, route, lane, occurred_at, state)"
                " VALUES (1, 'everything', 'x', '2026-01-01 00:00:00.000000Z', 'received')"
            )
        )
    async with receiving(a_config(sqlite_database_url)) as receiver:
        assert await fill(receiver, 0, 1) == [503]
        with made.begin() as connection:
            connection.execute(text("DELETE FROM open_delivery"))
        assert await fill(receiver, 0, 1) == [200]
    made.dispose()
    assert alerted(sqlite_database_url) == [("intake_stopped", True), ("intake_stopped", False)]
