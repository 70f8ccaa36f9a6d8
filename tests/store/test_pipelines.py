"""Statements that are sent to Postgres together: what is told of an error, and which connections are given up."""

from __future__ import annotations

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from relay.delivery.lifecycle import State
from tests.helpers.kinds import ON_POSTGRES
from tests.helpers.order_locks import is_kept_waiting, lock
from tests.helpers.relaying import DONE, Steps
from tests.helpers.standing_still import limit_locks, stand_still_within_a_pipeline
from tests.helpers.storing import an_event

pytestmark = ON_POSTGRES

_STATE_OF_NOTHING = text("UPDATE open_delivery SET state = 'nothing'")
_END = text("DELETE FROM open_delivery")


def test_a_relay_that_stands_still_within_a_pipeline_loses_its_lock(
    steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its transaction is not idle for Postgres, so that the limit for those does not end it."""
    steps.arrive(an_event(1), an_event(2, "u2", routes=["latest"]))
    limit_locks(monkeypatch, 1500)
    kept_waiting = []

    def meanwhile() -> None:
        kept_waiting.append(is_kept_waiting(steps, ["strict"]))
        lock(steps, ["latest"])
        with steps.database.write() as another:
            another.take_order_lock(["strict"])  # waits for up to two seconds

    with pytest.raises(DBAPIError) as raised:
        stand_still_within_a_pipeline(steps.database, "strict", meanwhile)
    assert raised.value.connection_invalidated
    assert kept_waiting == [True]


def test_a_server_that_could_not_end_a_pipeline_is_sent_none(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    steps.arrive(an_event(1))
    monkeypatch.setattr(steps.database.engine.dialect, "server_version_info", (16, 4))
    monkeypatch.setattr("relay.store.transaction.send_together", lambda *_, **__: pytest.fail("a pipeline"))
    steps.record_all(steps.claim_due(1, "strict"), DONE)
    assert steps.states() == []


def test_what_the_server_refuses_of_a_pipeline_is_told_and_nothing_of_it_is_done(steps: Steps) -> None:
    steps.arrive(an_event(1))

    def write() -> None:
        with steps.database.write() as transaction:
            transaction.take_order_lock_and_read({"strict"})
            transaction.only_write()
            transaction.execute(_STATE_OF_NOTHING)
            transaction.execute(_END)

    with pytest.raises(DBAPIError, match="ck_open_delivery") as raised:
        write()
    assert raised.value.statement == str(_STATE_OF_NOTHING)
    assert not raised.value.connection_invalidated
    assert steps.states() == [(1, "strict", State.READY)]


def test_a_pipeline_to_a_server_that_has_ended_the_connection_gives_it_up(steps: Steps) -> None:
    def write() -> None:
        with steps.database.write() as transaction:
            transaction.take_order_lock_and_read({"strict"})
            (backend,) = transaction.execute(text("SELECT pg_backend_pid() AS pid"))
            steps.do(f"SELECT pg_terminate_backend({backend.pid}, 5000)")
            transaction.only_write()
            transaction.execute(_END)

    with pytest.raises(DBAPIError) as raised:
        write()
    assert raised.value.connection_invalidated
    assert raised.value.statement == str(_END), "and not that of the rollback"
    lock(steps, ["strict"])
