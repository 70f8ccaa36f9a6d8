"""The daemon itself, in a thread: what it does about claims while what has arrived can't be ordered.

On SQLite who can't order can't claim either.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from relay.daemon.loop import Relay
from relay.steps import LASTS_SECONDS
from relay.store import alerts
from relay.store.alert_conditions import Watch
from relay.store.database import Database
from relay.store.sequence import sequence
from relay.store.work import Work
from tests.helpers.daemon import running
from tests.helpers.downstream import serving
from tests.helpers.filling import fill
from tests.helpers.kinds import ON_POSTGRES
from tests.helpers.reading import rows
from tests.helpers.relaying import POLICIES, work_of
from tests.helpers.waiting import until
from tests.helpers.webhooks import ROUTE, moment


@contextlib.contextmanager
def nobody_can_order(engine: Engine) -> Iterator[None]:
    """Another relay stands still in a transaction that has the order lock."""
    with engine.connect() as connection:
        connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        connection.execute(text("SELECT id FROM order_lock FOR UPDATE"))
        connection.execute(text("SELECT route FROM route_lock FOR UPDATE"))
        yield


def could_not_order(relay: Relay) -> bool:
    return "sequence" in {*relay._steps.failing, *relay._rests.texts()}


@pytest.fixture
def an_older_one_has_come(database_url: str, engine: Engine) -> None:
    """A head is due, and an older event of its entity is not ordered yet."""
    fill(database_url, [("u1", moment(2))])
    sequence(work_of(Database(engine), {ROUTE: POLICIES["strict"]}, node="another"))
    fill(database_url, [("u1", moment(1))])


@ON_POSTGRES
@pytest.mark.usefixtures("an_older_one_has_come")
def test_while_nothing_can_be_ordered_nothing_is_claimed_and_the_older_one_goes_first(
    engine: Engine, tmp_path: Path
) -> None:
    with serving(tmp_path / "arrivals.jsonl") as downstream, contextlib.ExitStack() as trouble:
        trouble.enter_context(nobody_can_order(engine))
        with running(engine, downstream) as relay:
            until(lambda: could_not_order(relay), "it can't be ordered")
            trouble.close()
            until(lambda: len(downstream.events) == 2, "both are called")
        assert [line["seq"] for line in downstream.arrivals.lines()] == [2, 1]


@ON_POSTGRES
@pytest.mark.usefixtures("an_older_one_has_come")
def test_a_route_whose_lock_another_step_gets_first_is_not_claimed_from_before_it_is_ordered(
    engine: Engine, tmp_path: Path
) -> None:
    with Database(engine).write() as earlier:
        earlier.take_order_lock([ROUTE])  # so that the route has its row
    with serving(tmp_path / "arrivals.jsonl") as downstream, contextlib.ExitStack() as trouble:
        trouble.enter_context(nobody_can_order(engine))
        with running(engine, downstream) as relay:
            until(lambda: could_not_order(relay), "it can't be ordered")
            trouble.close()
            with relay._database.write() as another_step:
                another_step.take_order_lock([ROUTE])
            relay.wake()
            until(lambda: len(downstream.events) == 2, "both are called")
        assert [line["seq"] for line in downstream.arrivals.lines()] == [2, 1]


@ON_POSTGRES
def test_a_row_that_a_person_has_locked_keeps_its_route_waiting_until_it_is_free(
    database_url: str, engine: Engine, tmp_path: Path
) -> None:
    fill(database_url, [(f"u{number}", moment(number)) for number in range(20)])
    with serving(tmp_path / "arrivals.jsonl") as downstream, engine.connect() as connection:
        connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        connection.execute(text("SELECT seq FROM open_delivery WHERE seq = 7 FOR UPDATE"))
        with running(engine, downstream) as relay:
            until(lambda: could_not_order(relay), "it can't be ordered")
            assert downstream.events == set()
            connection.rollback()
            until(lambda: len(downstream.events) == 20, "all are called")


def test_a_round_without_a_look_for_what_has_arrived_does_not_make_a_failing_step_well(
    engine: Engine, tmp_path: Path
) -> None:
    """Else claims would wait 15 s for it again and again, and its alert would never come."""
    with serving(tmp_path / "arrivals.jsonl") as downstream, running(engine, downstream) as relay:
        pass
    relay._steps.run("sequence", lambda: 1 // 0, 0)
    relay._steps.monotonic = lambda: time.monotonic() + LASTS_SECONDS  # its next try is due
    relay._scans.is_behind, relay._is_idle, relay._claimer.ran_short = True, False, False
    relay._cycle()
    assert could_not_order(relay)


def test_a_relay_that_looks_just_behind_an_alert_of_a_failing_step_does_not_end_it(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores = alerts.step_failed

    def then_another_looks(work: Work, step: str, error: str) -> None:
        stores(work, step, error)
        Watch().look(work)

    monkeypatch.setattr(alerts, "step_failed", then_another_looks)
    with serving(tmp_path / "arrivals.jsonl") as downstream, running(engine, downstream) as relay:
        until(lambda: rows(engine, "SELECT 1 FROM relay_node"), "it has started")
        relay._steps.run("sweep", lambda: 1 // 0, 0, subject="crm USER")
        assert [bool(row["firing"]) for row in rows(engine, "SELECT firing FROM alert WHERE kind = 'step_failed'")] == [
            True
        ]
