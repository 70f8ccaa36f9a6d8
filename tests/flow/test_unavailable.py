"""A database that is away, locked or read-only: 503 in time, nothing acknowledged, and all well again without a restart."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from falcon.testing import Result
from sqlalchemy import Engine, text

from inbox.clock import SystemClock
from inbox.config.model import Config
from inbox.events.timestamps import as_time
from inbox.receiver import app
from relay.daemon.generation import prepare
from relay.daemon.loop import Relay
from relay.delivery import policy
from relay.delivery.alerts import format_sentence
from relay.delivery.gates import BreakerLimits, Gate
from relay.store.alerts import take_unsent
from relay.store.database import Database
from relay.store.nodes import read_nodes
from relay.store.operator import commands
from tests.helpers.daemon import Rig, users
from tests.helpers.databases import ON_BOTH, ON_POSTGRES, ON_SQLITE, disconnect, down, lock_inbox, read_only
from tests.helpers.locks import lock_by_hand
from tests.helpers.receiver import PROBLEM, Receiver, receiving
from tests.helpers.relaying import FakeClock, work_of
from tests.helpers.storing import a_row
from tests.helpers.tables import count, facts, rows
from tests.helpers.traffic import Downstream, Held, serving
from tests.helpers.waiting import Stopwatch, until
from tests.helpers.webhooks import ROUTE, body, moment

ANSWERED_WITHIN = 3.0
"""2.5 s, and half a second for a busy machine."""


@pytest.fixture
def patient_receivers() -> None:
    """Keep the product's own timeout here."""


def assert_unavailable(answer: Result) -> None:
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.headers["content-type"] == PROBLEM
    assert answer.json["status"] == 503


@ON_BOTH
@pytest.mark.parametrize("outage", [down, lock_inbox])
async def test_without_a_database_it_is_503_in_time_and_well_again_without_a_restart(
    receiver: Receiver,
    database_url: str,
    engine: Engine,
    outage: Callable[[str], AbstractContextManager[None]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert (await receiver.post(body("u1"))).status_code == 200
    with outage(database_url):
        with Stopwatch() as watch:
            answers = await asyncio.gather(*(receiver.post(body("u2", moment(n))) for n in range(20)))
        assert watch.seconds < ANSWERED_WITHIN
        for answer in answers:
            assert_unavailable(answer)
    again = await receiver.post(body("u2", moment(0)))

    assert (again.status_code, again.json["status"]) == (200, "accepted")
    assert count(engine, "inbox") == 2
    assert count(engine, "rejected_request") == 0
    _, back = (record.getMessage() for record in caplog.records if record.name == "inbox.receiver.reporting")
    assert back.endswith("requests with 503: 20"), "one line when it goes, and one when it is back"


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
async def test_health_checks_share_a_query(
    receiver: Receiver, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "READY_CACHED_SECONDS", 60.0)
    assert (await receiver.get("/health/ready")).status_code == 200
    with down(database_url):
        answers = await asyncio.gather(*(receiver.get("/health/ready") for _ in range(50)))
    assert {answer.status_code for answer in answers} == {200}


# --- A database that gives numbers which are taken: senders get 503 and send again, and the log has the repair


def do(engine: Engine, statement: str) -> None:
    with engine.begin() as connection:
        connection.execute(text(statement))


def alerts_of(engine: Engine) -> list[tuple[str, bool]]:
    return [(row["kind"], bool(row["firing"])) for row in rows(engine, "SELECT kind, firing FROM alert ORDER BY id")]


TAKEN_BACK = [("intake_stopped", True), ("intake_stopped", False)]


async def fill(receiver: Receiver, begin: int, number: int) -> list[int]:
    answers = [await receiver.post(body(f"u{n}", moment(n))) for n in range(begin, begin + number)]
    return [answer.status_code for answer in answers]


@ON_POSTGRES
@pytest.mark.usefixtures("uncached_health")
async def test_a_sequence_behind_its_table_is_503(
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
    assert alerts_of(engine) == [("intake_stopped", True)]

    do(engine, critical[0].partition("Run: ")[2])
    assert await fill(receiver, 6, 3) == [200] * 3
    assert (await receiver.get("/health/ready")).status_code == 200
    assert alerts_of(engine) == TAKEN_BACK
    assert count(engine, "inbox") == 9
    assert count(engine, "rejected_request") == 0
    (first,) = take_unsent(work_of(Database(engine)))
    assert format_sentence(first.alert).startswith(
        "the receiver can store nothing: the sequence public.inbox_seq_seq is behind"
    )


@ON_POSTGRES
@pytest.mark.usefixtures("uncached_health")
async def test_a_database_back_with_a_sequence_behind_is_not_ready(
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
    assert alerts_of(engine) == TAKEN_BACK


@ON_POSTGRES
@pytest.mark.parametrize("table", ["alert", "delivery_log", "relay_command"])
async def test_a_locked_table_of_the_relay_prevents_no_storing(receiver: Receiver, engine: Engine, table: str) -> None:
    with engine.connect() as dba:
        dba.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        dba.execute(text(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE"))
        assert await fill(receiver, 0, 1) == [200]


@ON_POSTGRES
async def test_a_relays_sequence_behind_its_table_prevents_no_storing(config: Config, engine: Engine) -> None:
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


# --- The daemon itself, in a thread: an entity, a destination or a clock in trouble is nothing to the others


MORE = """
[destinations.well]
kind = "forward"
url = "{url}"
allow_private = true
allow_http = true
concurrency = 2
[routes.well]
source = "trivore"
destination = "well"
"""


@pytest.fixture
def well(tmp_path: Path) -> Iterator[Downstream]:
    """The destination of another route."""
    with serving(tmp_path / "well.jsonl") as made:
        yield made


def arrive_on_both(rig: Rig, number: int) -> None:
    """So many events that both routes take."""
    first, *_ = rig.arrive(*users(number))
    with rig.engine.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO open_delivery (seq, route, lane, occurred_at, state, attempt, run, crashes)"
            f" SELECT seq, 'well', lane, occurred_at, 'received', 0, 0, 0 FROM open_delivery WHERE seq >= {first}"
        )


def test_an_entity_that_fails_and_one_that_hangs_delay_no_other(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "BREAKER", BreakerLimits(calls=1000))
    held = Held()
    seqs = rig.arrive(*users(100, 20))
    failing, hanging = set(seqs[0::20]), set(seqs[1::20])

    def script(seq: int, attempt: int) -> int:
        if seq in hanging:
            held(seq, attempt)
        return 503 if seq in failing else 200

    rig.downstream.script = script
    with rig.relay(concurrency=2):
        until(lambda: rig.kinds.count("delivered") == 90, "all others are delivered")
        held.go.set()
        rig.until_left(dead=5)
    assert {line["seq"] for line in rig.downstream.arrivals.lines() if line["attempt"] > 1} == failing


def test_a_destination_that_hangs_delays_no_other(rig: Rig, well: Downstream) -> None:
    arrive_on_both(rig, 40)
    held = rig.hold()
    with rig.relay(concurrency=2, more=MORE.format(url=well.url)):
        until(lambda: len(well.arrivals) == 40, "the other has everything")
        assert len(held.seqs) == 2
        held.go.set()
        rig.until_left()


def test_a_relay_whose_own_clock_is_wrong_goes_by_the_databases(rig: Rig) -> None:
    rig.arrive("u1")
    rig.downstream.script = lambda _seq, attempt: 503 if attempt == 1 else 200
    wrong = FakeClock(SystemClock().now() + timedelta(hours=1))
    Relay(rig.database, prepare(rig.config()), grace_seconds=20, clock=wrong).run(drain=True)
    failed = facts(rig.engine)[0]
    assert timedelta(0) <= as_time(failed["detail"]["due_at"]) - failed["at"] <= timedelta(milliseconds=150)
    assert abs(failed["at"] - SystemClock().now()) < timedelta(minutes=1)


@ON_POSTGRES
def test_rows_that_a_person_keeps_locked_keep_their_route_alone(rig: Rig, well: Downstream) -> None:
    """Of the route, one in flight, whose outcome can't be recorded, and one that waits for it."""
    arrive_on_both(rig, 40)
    held = rig.hold()
    with rig.relay(concurrency=16, more=MORE.format(url=well.url)):
        until(lambda: len(held.seqs) == 16, "many are under way")
        rows_in_the_way = (
            f"SELECT seq FROM open_delivery WHERE route = '{ROUTE}' AND seq IN ({held.seqs[0]}, 40) FOR UPDATE"
        )
        with lock_by_hand(rig.engine, rows_in_the_way):
            held.go.set()
            until(lambda: "record" in failing_steps_of(rig), "relay status says so", within=10)
            arrive_on_both(rig, 40)
            until(lambda: len(well.arrivals) == 80, "the other route is delivered", within=10)
            assert "record" in failing_steps_of(rig)
        rig.until_left()
        until(lambda: not failing_steps_of(rig), "and nothing is said any more", within=10)


def failing_steps_of(rig: Rig) -> set[str]:
    """The steps that fail, as the relay has stored them with its last sign of life."""
    with rig.database.read() as transaction:
        return {step for relay in read_nodes(transaction) for step in relay["failing"]}


# --- The daemon itself, in a thread, while the database's clock is set


class SetClock:
    """A clock that goes as ours does, and is set."""

    def __init__(self) -> None:
        self.ahead = timedelta(0)

    def __call__(self) -> datetime:
        return SystemClock().now() + self.ahead

    def set_by(self, seconds: float) -> None:
        self.ahead += timedelta(seconds=seconds)


def see_a_round(rig: Rig) -> None:
    """A command is done after the leases have been looked at in the same round."""
    for act in ("pause", "resume"):
        commands.ask(rig.database, act, Gate(route="everything"), who="kim", why="to see a round")
    until(lambda: not commands.read_next_open(rig.database, after=0, most=1), "both commands are done")


@ON_BOTH
def test_when_it_jumps_forward_no_relay_takes_anything_from_another_that_lives_nor_from_itself(rig: Rig) -> None:
    clock, held = SetClock(), rig.hold()
    with rig.relay(concurrency=2, now=clock):
        seqs = rig.arrive(*users(4))
        until(lambda: len(held.seqs) == 2, "some are called")
        with rig.relay(now=clock) as other:
            node = "SELECT id FROM relay_node WHERE id = :id"
            until(lambda: rows(rig.engine, node, id=other.node), "the other has begun")
            see_a_round(rig)
            clock.set_by(20)
            rig.until_told("clock_stepped", 2)
            see_a_round(rig)
            held.go.set()
            rig.until_left()
    assert sorted(held.seqs) == seqs
    assert rig.kinds == ["delivered"] * 4
