"""The order lock by route: different routes go on beside each other, also in pipelines, and a lock of everything waits."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import psycopg
import pytest
from sqlalchemy import TextClause, text
from sqlalchemy.exc import DBAPIError

from inbox.db import order_lock
from relay.delivery.gates import BREAKER
from relay.delivery.lifecycle import State
from relay.store import claim, leases, record, sequence
from relay.store.deliveries import select_rows
from relay.store.transaction import Transaction
from relay.store.work import process_in_parts
from tests.helpers import locks
from tests.helpers.databases import ON_POSTGRES
from tests.helpers.locks import is_kept_waiting, lock, lock_by_hand, locking
from tests.helpers.relaying import DONE, POLICIES, Steps
from tests.helpers.stepping import Stepper
from tests.helpers.storing import an_event
from tests.helpers.waiting import until
from tests.store.conftest import Planter

pytestmark = [ON_POSTGRES, pytest.mark.usefixtures("impatient")]

_STATE_OF_NOTHING = text("UPDATE open_delivery SET state = 'nothing'")
_END = text("DELETE FROM open_delivery")


@pytest.fixture
def locked(steps: Steps) -> Iterator[Transaction]:
    """A transaction that has the lock of `latest`."""
    steps.arrive(an_event(1), an_event(2, "u2", routes=["latest"]))
    with locking(steps, ["latest"]) as transaction:
        yield transaction


def test_only_a_lock_of_the_same_route_or_of_everything_waits(steps: Steps, locked: Transaction) -> None:  # noqa: ARG001
    waiting: dict[bool, list[list[str] | None]] = {
        False: [["strict"], ["new"]],
        True: [["latest"], ["latest", "strict"], None],
    }
    assert all(is_kept_waiting(steps, routes) == waits for waits, each in waiting.items() for routes in each)


def test_a_route_that_stays_locked_keeps_no_other_from_being_sequenced(steps: Steps) -> None:
    steps.arrive(an_event(1, routes=["latest"]), an_event(2))
    steps.receive(*(an_event(n, f"u{n}", routes=["latest"]) for n in range(3, 3 + sequence.OWN_TRANSACTION)))
    steps.receive(*(an_event(n, f"u{n}") for n in range(100, 103)))
    with locking(steps, ["latest"]):
        assert steps.sequence() == 3
        assert {route for _, route, state in steps.states() if state == "received"} == {"latest"}


def test_a_bad_head_of_a_locked_route_keeps_no_other_from_being_claimed(steps: Steps, plant: Planter) -> None:
    steps.arrive(*(an_event(number, f"u{number}", routes=["latest"]) for number in (1, 2)), an_event(3, "u3"))
    plant("DELETE FROM inbox_payload WHERE seq = 1")
    with locking(steps, ["latest"]):
        assert [delivery.seq for delivery in steps.claim_due()] == [2, 3]
        assert steps.claim_due() == [], "it stays as it is until its lease has run out"
    steps.advance(100)
    steps.rescue("r1")
    assert [delivery.seq for delivery in steps.claim_due()] == [2, 3]
    assert steps.rows("SELECT seq, cause FROM dead_letter") == [{"seq": 1, "cause": "payload_gone"}]


def test_a_route_that_stays_locked_keeps_no_other_from_being_recorded(steps: Steps) -> None:
    steps.arrive(
        *(an_event(n, f"u{n}", routes=["latest"]) for n in range(1, 1 + record.OWN_TRANSACTION)), an_event(100)
    )
    claimed = steps.claim_due()
    with locking(steps, ["latest"]):
        assert {recorded.delivery.route for recorded in steps.record_all(claimed)} == {"strict"}
        assert {route for _, route, _ in steps.states()} == {"latest"}


STRICT = {"given": '[{"route": "strict"}]', "now": None}


def test_the_limit_of_a_lock_ends_with_its_transaction(steps: Steps) -> None:
    limit = text("SELECT current_setting('transaction_timeout')")
    with steps.database.engine.connect() as connection:
        before = connection.execute(limit).scalar_one()
        connection.execute(order_lock.given_routes(steps.database.sql), STRICT)
        assert connection.execute(limit).scalar_one() == f"{order_lock.HELD_SECONDS}s"
        connection.commit()
        assert connection.execute(limit).scalar_one() == before


def test_expired_leases_are_taken_back_while_another_route_is_locked(steps: Steps) -> None:
    steps.arrive(an_event(1), *(an_event(n, f"u{n}", routes=["latest"]) for n in range(2, 2 + leases.OWN_TRANSACTION)))
    steps.claim_due()
    steps.do("UPDATE open_delivery SET lease_until = '2000-01-01'")
    with locking(steps, ["latest"]):
        steps.wait_shortly_for("latest")  # the steps' clock stands still, which a long wait would take for a step back
        assert len(steps.rescue()) == 1
        assert {route for _, route, state in steps.states() if state == "in_flight"} == {"latest"}
    steps.try_again()
    assert len(steps.rescue()) == leases.OWN_TRANSACTION


def test_a_lock_of_everything_includes_a_route_without_a_row(steps: Steps) -> None:
    with locking(steps, None):
        assert is_kept_waiting(steps, ["new"])
    assert not is_kept_waiting(steps, ["new"])


def test_a_deleted_lock_row_is_added_again(steps: Steps) -> None:
    steps.arrive(an_event(1))
    steps.do("DELETE FROM route_lock")
    steps.record_all(steps.claim_due(1, "strict"), DONE)
    assert steps.rows("SELECT route FROM route_lock") == [{"route": "strict"}]
    assert steps.states() == []


def test_a_lock_of_some_routes_does_not_wait_for_one_of_everything_that_has_begun(steps: Steps) -> None:
    """Else the two would wait for each other."""
    steps.arrive(an_event(1), an_event(2, "u2", routes=["latest"]))
    steps.do("DELETE FROM route_lock WHERE route = 'latest'")
    with steps.database.write() as another:
        another.execute(order_lock.LOCK_OF_ALL)
        with pytest.raises(DBAPIError, match="lock timeout"), steps.database.write() as transaction:
            transaction.take_order_lock_and_read({"strict", "latest"})
        another.execute(order_lock.every_route(another.sql))
    lock(steps, ["strict", "latest"])
    assert steps.rows("SELECT route FROM route_lock ORDER BY route") == [{"route": "latest"}, {"route": "strict"}]


def test_a_route_that_is_added_and_locked_meanwhile_leads_to_no_deadlock(steps: Steps) -> None:
    lock(steps, ["strict"])

    def lock_both() -> None:
        with steps.database.write() as transaction:
            transaction.take_order_lock(["latest", "strict"])

    with Stepper(steps.database.engine) as stepper:
        first = stepper.begin("holds strict", lock_both)
        while "order_lock" not in str(first.before):
            first.step()
        lock(steps, ["latest"])
        stepper.begin("holds latest", lock_both).step()
        stepper.run([])
    assert "lock timeout" in str(first.error)
    assert stepper["holds latest"].error is None


def test_a_deadlock_on_one_route_keeps_no_other_from_its_turn(steps: Steps) -> None:
    def process(routes: Sequence[str]) -> Sequence[str]:
        if "latest" in routes:
            raise DBAPIError("SELECT", {}, psycopg.errors.DeadlockDetected("deadlock detected"))
        return routes

    done = process_in_parts(
        steps.work, "a step", ["latest", "strict"], process=process, routes_of=lambda route: {route}
    )
    assert list(done) == [["strict"]]
    assert steps.locked_routes.list_resting() == {"latest"}


def write_in_a_pipeline(steps: Steps, *statements: TextClause, routes: Iterable[str] = ("strict",)) -> None:
    with steps.database.write() as transaction:
        transaction.set_lock_timeout(50)
        transaction.take_order_lock_and_read({*routes})
        transaction.queue_writes()
        for statement in statements:
            transaction.execute(statement)


def test_a_transaction_that_only_writes_refuses_to_read(steps: Steps) -> None:
    with pytest.raises(RuntimeError, match="reads"):
        write_in_a_pipeline(steps, text("SELECT 1"))


@pytest.mark.usefixtures("locked")
def test_a_pipeline_names_the_lock_that_timed_out(steps: Steps) -> None:
    with pytest.raises(DBAPIError, match="lock timeout") as raised:
        write_in_a_pipeline(steps, _END, routes=["latest"])
    assert "route_lock" in str(raised.value.statement)


# --- locked_routes


def test_a_route_that_stays_locked_rests_and_all_others_go_on_as_they_arrive(steps: Steps) -> None:
    steps.arrive(an_event(1, routes=["latest"]), an_event(2))
    steps.receive(an_event(3, "u3", routes=["latest"]))
    with locking(steps, ["latest"]):
        steps.wait_shortly_for("latest")
        assert steps.sequence() == 0
        for number in range(4, 7):
            steps.receive(an_event(number, f"u{number}"))
            assert steps.sequence() == 1
        assert steps.sequence() == 0
    assert steps.heard.held_up == ["sequence of latest"], "it was tried once"
    assert steps.locked_routes.as_texts().keys() == {"sequence"}
    steps.try_again()
    assert steps.sequence() == 1
    assert steps.locked_routes.as_texts() == {}


def test_a_locked_row_is_waited_for_once_for_long_and_then_shortly(steps: Steps) -> None:
    steps.receive(an_event(1))
    took = []
    with lock_by_hand(steps.database.engine, "SELECT seq FROM open_delivery WHERE seq = 1 FOR UPDATE"):
        for _ in range(3):
            began = time.monotonic()
            assert steps.sequence() == 0
            took.append(time.monotonic() - began)
            steps.try_again()
    assert max(took[1:]) < order_lock.LOCKED_ROW_SECONDS <= took[0]
    steps.sequence()
    waits = text("SELECT current_setting('lock_timeout') AS wait")
    with steps.work.write() as transaction:
        transaction.take_order_lock_and_read({"strict"})
        assert [row.wait for row in transaction.execute(waits)] == [f"{order_lock.LOCKED_ROW_SECONDS}s"]


def test_expired_leases_of_a_route_that_rests_hide_no_others(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "BATCH", 2)
    steps.arrive(*(an_event(n, f"u{n}", routes=["latest"]) for n in range(1, 6)), an_event(6, "u6"))
    steps.claim_due()
    steps.do("UPDATE open_delivery SET lease_until = '2000-01-01'")
    with locking(steps, ["latest"]):
        steps.wait_shortly_for("latest")
        assert [[seq for seq, _, _ in steps.rescue()] for _ in range(2)] == [[], [6]]
    steps.try_again()
    assert sorted(seq for _ in range(3) for seq, _, _ in steps.rescue()) == [1, 2, 3, 4, 5]


def test_a_breaker_is_probed_while_another_route_is_locked_and_rests_while_its_own_is(steps: Steps) -> None:
    steps.arrive(an_event(1), an_event(2, "u2", routes=["latest"]))
    key = ("destination", "strict")
    policy = msgspec.structs.replace(POLICIES["strict"], breakers={key: BREAKER})
    work = msgspec.structs.replace(steps.work, policies={**POLICIES, "strict": policy})
    steps.do(f"INSERT INTO gate (kind, name, breaker, breaker_until) VALUES {(*key, 'open', '2000-01-01')}")
    with locking(steps, ["strict"]):
        assert claim.claim_probe(work, "strict") == []
        assert steps.locked_routes.list_resting() == {"strict"}
    with locking(steps, ["latest"]):
        assert [each.seq for each in claim.claim_probe(work, "strict")] == [1]


# --- Pipelines: their errors, and the connections that are given up


def test_a_relay_that_stands_still_in_a_pipeline_loses_its_lock(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its transaction is not idle for Postgres, so that the limit for those does not end it."""
    steps.arrive(an_event(1), an_event(2, "u2", routes=["latest"]))
    locks.limit_locks(monkeypatch, 1500)
    kept_waiting = []

    def meanwhile() -> None:
        kept_waiting.append(is_kept_waiting(steps, ["strict"]))
        lock(steps, ["latest"])
        with steps.database.write() as another:
            another.set_lock_timeout(10_000)
            another.take_order_lock(["strict"])

    with pytest.raises(DBAPIError) as raised:
        locks.stand_still_within_a_pipeline(steps.database, "strict", meanwhile)
    assert raised.value.connection_invalidated
    assert kept_waiting == [True]


def test_a_pipeline_reads_under_its_lock(steps: Steps) -> None:
    """Rows that it read before would be those of before the wait."""
    steps.arrive(an_event(1))
    with ThreadPoolExecutor(1) as beside, steps.database.write() as holder:
        holder.take_order_lock(["strict"])

        def read() -> list[Any]:
            with steps.database.write() as transaction:
                _, (rows,) = transaction.take_order_lock_and_read({"strict"}, select_rows([(1, "strict")], "none"))
                return rows

        reading = beside.submit(read)
        until(lambda: steps.rows("SELECT 1 FROM pg_locks WHERE NOT granted"), "it waits for the lock")
        holder.execute(_END)
        holder.connection.commit()
        assert reading.result(timeout=30) == []


def test_an_error_of_the_server_in_a_pipeline_is_told_and_nothing_of_it_is_done(steps: Steps) -> None:
    steps.arrive(an_event(1))
    with pytest.raises(DBAPIError, match="ck_open_delivery") as raised:
        write_in_a_pipeline(steps, _STATE_OF_NOTHING, _END)
    assert raised.value.statement == str(_STATE_OF_NOTHING)
    assert not raised.value.connection_invalidated
    assert steps.states() == [(1, "strict", State.READY)]


def test_a_pipeline_to_a_server_that_has_ended_the_connection_gives_it_up(steps: Steps) -> None:
    def write() -> None:
        with steps.database.write() as transaction:
            transaction.take_order_lock_and_read({"strict"})
            (backend,) = transaction.execute(text("SELECT pg_backend_pid() AS pid"))
            steps.do(f"SELECT pg_terminate_backend({backend.pid}, 5000)")
            transaction.queue_writes()
            transaction.execute(_END)

    with pytest.raises(DBAPIError) as raised:
        write()
    assert raised.value.connection_invalidated
    assert raised.value.statement == str(_END), "and not that of the rollback"
    lock(steps, ["strict"])
