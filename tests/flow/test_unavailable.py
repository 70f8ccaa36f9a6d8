"""A database that is away, locked or read-only: 503 in time, nothing acknowledged, and all well again without a restart."""

from __future__ import annotations

import asyncio
import logging
from contextlib import ExitStack

import pytest
from falcon.testing import Result
from sqlalchemy import Engine, text

from inbox.config.model import Config
from inbox.receiver import app
from relay.delivery.alerts import sentence
from relay.store.alerts import take_unsent
from relay.store.database import Database
from tests.helpers.databases import ON_BOTH, ON_POSTGRES, ON_SQLITE, disconnect, down, locked, read_only
from tests.helpers.receiver import PROBLEM, Receiver, receiving
from tests.helpers.relaying import work_of
from tests.helpers.storing import a_row
from tests.helpers.tables import count, rows
from tests.helpers.waiting import Stopwatch
from tests.helpers.webhooks import body, moment

ANSWERED_WITHIN = 3.0
"""2.5 s, and half a second for a busy machine."""


@pytest.fixture
def patient_receivers() -> None:
    """Here they are not."""


def assert_unavailable(answer: Result) -> None:
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.headers["content-type"] == PROBLEM
    assert answer.json["status"] == 503


@ON_BOTH
async def test_without_a_database_it_is_503_in_time_and_well_again_without_a_restart(
    receiver: Receiver, database_url: str, engine: Engine
) -> None:
    assert (await receiver.post(body("u1"))).status_code == 200
    with down(database_url):
        with Stopwatch() as watch:
            answers = await asyncio.gather(*(receiver.post(body("u2", moment(n))) for n in range(20)))
        assert watch.seconds < ANSWERED_WITHIN
        for answer in answers:
            assert_unavailable(answer)
    again = await receiver.post(body("u2", moment(0)))

    assert (again.status_code, again.json["status"]) == (200, "accepted")
    assert count(engine, "inbox") == 2
    assert count(engine, "rejected_request") == 0


@ON_BOTH
async def test_the_log_has_one_line_when_the_database_goes_and_one_when_it_is_back(
    receiver: Receiver, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert (await receiver.post(body("u1"))).status_code == 200
    with down(database_url):
        for answer in await asyncio.gather(*(receiver.post(body("u2", moment(n))) for n in range(5))):
            assert_unavailable(answer)
        assert_unavailable(await receiver.post(body("u3")))
    assert (await receiver.post(body("u2"))).status_code == 200

    gone, back = (record.getMessage() for record in caplog.records if record.name == "inbox.receiver.reporting")
    assert gone.startswith("the database takes nothing, senders get 503 and send again: ")
    assert "terminating connection" in gone or "database is locked" in gone
    assert back.startswith("the database takes events again after ")
    assert back.endswith("requests with 503: 6")


@ON_BOTH
async def test_a_lock_that_is_not_given_free_is_503_in_time(receiver: Receiver, database_url: str) -> None:
    with locked(database_url):
        with Stopwatch() as watch:
            assert_unavailable(await receiver.post())
        assert watch.seconds < ANSWERED_WITHIN
    assert (await receiver.post()).json["status"] == "accepted"


@ON_POSTGRES
async def test_a_broken_connection_costs_at_most_one_answer(receiver: Receiver, database_url: str) -> None:
    assert (await receiver.post(body("u1"))).status_code == 200
    disconnect(database_url)
    assert_unavailable(await receiver.post(body("u2")))
    assert (await receiver.post(body("u2"))).json["status"] == "accepted"


@ON_BOTH
async def test_it_starts_without_a_database_and_serves_when_there_is_one(config: Config, database_url: str) -> None:
    with ExitStack() as outage:
        outage.enter_context(down(database_url))
        async with receiving(config) as receiver:
            assert_unavailable(await receiver.post())
            assert (await receiver.get("/health/live")).status_code == 200
            outage.close()
            assert (await receiver.post()).json["status"] == "accepted"


@ON_BOTH
@pytest.mark.usefixtures("uncached_health")
async def test_ready_follows_the_database_and_live_does_not(receiver: Receiver, database_url: str) -> None:
    assert (await receiver.get("/health/ready")).json == {"status": "ready"}
    with down(database_url):
        assert_unavailable(await receiver.get("/health/ready"))
        live = await receiver.get("/health/live")
        assert (live.status_code, live.json) == (200, {"status": "live"})
    assert (await receiver.get("/health/ready")).status_code == 200


@ON_POSTGRES
@pytest.mark.usefixtures("uncached_health")
async def test_a_database_that_can_be_read_but_not_written_is_not_ready(receiver: Receiver, database_url: str) -> None:
    with read_only(database_url):
        assert_unavailable(await receiver.post())
        assert_unavailable(await receiver.get("/health/ready"))
    await receiver.get("/health/ready")  # its connection was broken once more
    assert (await receiver.get("/health/ready")).status_code == 200
    assert (await receiver.post()).json["status"] == "accepted"


@ON_BOTH
async def test_many_who_ask_for_health_share_one_question(
    receiver: Receiver, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "READY_CACHED_SECONDS", 60.0)
    assert (await receiver.get("/health/ready")).status_code == 200
    with down(database_url):
        answers = await asyncio.gather(*(receiver.get("/health/ready") for _ in range(50)))
    assert {answer.status_code for answer in answers} == {200}


# --- A database that gives numbers which are taken: senders get 503 and send again, and a person is told what to run


def do(engine: Engine, statement: str) -> None:
    with engine.begin() as connection:
        connection.execute(text(statement))


def alerted(engine: Engine) -> list[tuple[str, bool]]:
    return [(row["kind"], bool(row["firing"])) for row in rows(engine, "SELECT kind, firing FROM alert ORDER BY id")]


TAKEN_BACK = [("intake_stopped", True), ("intake_stopped", False)]


async def fill(receiver: Receiver, begin: int, number: int) -> list[int]:
    answers = [await receiver.post(body(f"u{n}", moment(n))) for n in range(begin, begin + number)]
    return [answer.status_code for answer in answers]


@ON_POSTGRES
@pytest.mark.usefixtures("uncached_health")
async def test_a_sequence_behind_its_table_is_503_until_it_is_mended_and_told(
    receiver: Receiver, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    assert await fill(receiver, 0, 6) == [200] * 6
    do(engine, "SELECT setval('inbox_seq_seq', 1)")

    assert await fill(receiver, 6, 3) == [503] * 3
    assert (await receiver.get("/health/ready")).status_code == 503
    assert (await receiver.get("/health/live")).status_code == 200
    critical = [record.getMessage() for record in caplog.records if record.levelno == logging.CRITICAL]
    assert critical[0].endswith("Run: SELECT setval('public.inbox_seq_seq', 6)")
    assert len(critical) == 1, "said once, not for each batch"
    assert alerted(engine) == [("intake_stopped", True)]

    do(engine, critical[0].partition("Run: ")[2])
    assert await fill(receiver, 6, 3) == [200] * 3
    assert (await receiver.get("/health/ready")).status_code == 200
    assert alerted(engine) == TAKEN_BACK
    assert count(engine, "inbox") == 9
    assert count(engine, "rejected_request") == 0
    (first,) = take_unsent(work_of(Database(engine)))
    assert sentence(first.alert).startswith(
        "the receiver can store nothing: the sequence public.inbox_seq_seq is behind"
    )


@ON_POSTGRES
@pytest.mark.usefixtures("uncached_health")
async def test_a_database_that_came_back_with_a_sequence_behind_is_not_ready_before_anything_is_sent(
    receiver: Receiver, engine: Engine, database_url: str
) -> None:
    assert await fill(receiver, 0, 3) == [200] * 3
    do(engine, "SELECT setval('inbox_seq_seq', 1, false)")
    disconnect(database_url)
    await receiver.get("/health/ready")  # its connection was broken
    assert (await receiver.get("/health/ready")).status_code == 503


@ON_POSTGRES
async def test_one_row_in_the_way_costs_one_answer(receiver: Receiver, engine: Engine) -> None:
    assert await fill(receiver, 0, 2) == [200] * 2
    do(engine, a_row(3, "everything", "x"))
    assert await fill(receiver, 2, 1) == [503]
    assert await fill(receiver, 2, 3) == [200] * 3


@ON_BOTH
async def test_an_alert_of_a_receiver_that_has_ended_is_taken_back_by_the_next(config: Config, engine: Engine) -> None:
    do(
        engine,
        "INSERT INTO alert (at, kind, subject, firing, detail)"
        " VALUES ('2026-01-01 00:00:00.000000Z', 'intake_stopped', 'receiver', true, '{}')",
    )
    async with receiving(config) as receiver:
        assert await fill(receiver, 0, 2) == [200] * 2
    assert alerted(engine) == TAKEN_BACK


@ON_POSTGRES
@pytest.mark.parametrize("table", ["alert", "delivery_log", "relay_command"])
async def test_a_table_of_the_relay_that_is_locked_keeps_nothing_from_being_stored(
    receiver: Receiver, engine: Engine, table: str
) -> None:
    with engine.connect() as dba:
        dba.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        dba.execute(text(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE"))
        assert await fill(receiver, 0, 1) == [200]


@ON_POSTGRES
async def test_a_sequence_of_the_relay_behind_its_table_keeps_nothing_from_being_stored(
    config: Config, engine: Engine
) -> None:
    do(
        engine,
        """INSERT INTO relay_command (id, asked_at, asked_by, kind, selection, reason)
VALUES (7, now(), 'kim', 'pause', '{"route": "r"}', 'r')""",
    )
    async with receiving(config) as receiver:
        assert await fill(receiver, 0, 1) == [200]


@ON_SQLITE
async def test_a_number_that_is_taken_in_sqlite_is_no_fault_of_the_row(receiver: Receiver, engine: Engine) -> None:
    """SQLite gives the next number itself, so only a row of a delivery can be in the way."""
    do(engine, a_row(1, "everything", "x"))
    assert await fill(receiver, 0, 1) == [503]
    do(engine, "DELETE FROM open_delivery")
    assert await fill(receiver, 0, 1) == [200]
