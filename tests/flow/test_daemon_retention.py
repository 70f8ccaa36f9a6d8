"""A relay prunes by itself, by the ages of its configuration, and says when it is behind."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import Engine, update
from tests.helpers.tables import count

from inbox.clock import SystemClock
from inbox.db.schema import pruning
from relay.daemon.generation import prepare
from relay.store.alert_conditions import Watch
from relay.store.database import Database
from relay.store.retention import KindState, expiry_of, state_of
from tests.helpers.daemon import Rig
from tests.helpers.relaying import AFTER_A_MONTH, CONFIG, Steps, a_pruner, batches, prune, work_of
from tests.helpers.storing import an_event
from tests.helpers.waiting import until

MONTH = '[retention]\npayloads = "30d"\nattempts = "30d"\nevents = "30d"\n'


@pytest.fixture
def steps(engine: Engine) -> Steps:
    return Steps(engine)


def test_it_prunes_soon_after_its_start_and_by_other_ages_after_a_reload(
    steps: Steps, rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.store.retention.ROUND_EVERY_SECONDS", 0.1)
    steps.receive(*(an_event(n, routes=[]) for n in range(1, 201)))
    with rig.relay(more='[retention]\nevents = "forever"\n') as relay:
        until(lambda: count(rig.engine, "pruner WHERE ran_at IS NOT NULL"), "a round has ended")
        assert count(rig.engine, "inbox") == 200
        relay.reload(prepare(rig.config(more=MONTH)))
        until(lambda: count(rig.engine, "inbox") == 1, "by the new age they have expired")
        rig.until_told("pruned", 199)
    assert count(rig.engine, "pruner WHERE held_by IS NULL") == 1


def test_a_command_in_sql_prunes_now_and_answers_how_much(steps: Steps, rig: Rig) -> None:
    steps.receive(*(an_event(n, routes=[]) for n in range(1, 201)))
    with rig.relay(more=MONTH):
        ask = "INSERT INTO relay_command (kind, selection, reason{more}) VALUES ('prune', '{kinds}', 'too large'{yes})"
        until(lambda: count(rig.engine, "pruner WHERE ran_at IS NOT NULL"), "a round has ended")
        assert count(rig.engine, "inbox") == 1
        steps.receive(*(an_event(n, routes=[]) for n in range(201, 301)))
        steps.do(ask.format(more=", dry_run", kinds='{"kinds": ["events"]}', yes=", true"))
        until(lambda: count(rig.engine, "relay_command WHERE state = 'done' AND matched = 100"), "a dry run")
        assert count(rig.engine, "inbox") == 101
        steps.do(ask.format(more="", kinds='{"kinds": ["events"]}', yes=""))
        # 200 was the newest one when its turn came, so that it waits for the next lap
        until(lambda: count(rig.engine, "relay_command WHERE state = 'done' AND affected = 99"), "it prunes")
        steps.do(ask.format(more="", kinds='{"kinds": ["event"]}', yes=""))
        until(lambda: count(rig.engine, "relay_command WHERE state = 'refused'"), "an unknown kind is refused")


def test_a_kind_that_is_behind_for_an_hour_is_alerted_once_and_recovers(engine: Engine) -> None:
    watch, now = Watch(), SystemClock().now()
    prune(engine, "events")

    def alerts(hours: float | None) -> tuple[int, int]:
        since = None if hours is None else now - timedelta(hours=hours)
        with engine.begin() as connection:
            connection.execute(
                update(pruning).values(behind_since=since, behind_seconds=0 if hours is None else 90_000)
            )
        watch.look(work_of(Database(engine), config=CONFIG))
        of_events = "alert WHERE kind = 'retention_behind' AND subject = 'events'"
        return count(engine, f"{of_events} AND firing"), count(engine, f"{of_events} AND NOT firing")

    assert [alerts(hours) for hours in (0.5, 2, 3, None)] == [(0, 0), (1, 0), (1, 0), (1, 1)]


def test_rows_that_a_round_leaves_make_it_behind(steps: Steps, engine: Engine) -> None:
    """The pruner has no time for more than one batch."""
    steps.receive(*(an_event(n, routes=[]) for n in range(1, 2001)))
    one = a_pruner(engine)
    clock = one.take()
    assert clock is not None
    expiry = expiry_of(AFTER_A_MONTH, "events", clock)

    def found() -> KindState:
        with Database(engine).read() as transaction:
            return state_of(transaction, "events")

    one.batch("events", expiry)
    assert found().behind_seconds > 86400
    assert found().behind_since is not None
    assert list(batches(one, "events", expiry))
    assert (found().behind_seconds, found().behind_since) == (0, None)
