"""A relay prunes by itself, by the ages of its configuration, and says when it is behind."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine, update

from inbox.clock import SystemClock
from inbox.db.schema import pruner, pruning
from relay.daemon.generation import prepare
from relay.daemon.pruner import Pruner
from relay.store.alert_conditions import Watch
from relay.store.database import Database
from relay.store.retention import KindState, expiry_of, state_of
from tests.helpers.daemon import configured, running
from tests.helpers.downstream import Downstream, serving
from tests.helpers.pruning import AFTER_A_MONTH, a_pruner, batches, prune
from tests.helpers.reading import count
from tests.helpers.relaying import CONFIG, Steps, work_of
from tests.helpers.storing import START, an_event
from tests.helpers.waiting import until

MONTH = '[retention]\npayloads = "30d"\nattempts = "30d"\nevents = "30d"\n'


@pytest.fixture
def steps(engine: Engine) -> Steps:
    return Steps(engine)


@pytest.fixture
def downstream(tmp_path: Path) -> Iterator[Downstream]:
    with serving(tmp_path / "arrivals.jsonl") as made:
        yield made


def test_it_prunes_soon_after_its_start_and_by_other_ages_after_a_reload(
    steps: Steps, engine: Engine, downstream: Downstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.store.retention.ROUND_EVERY_SECONDS", 1.0)
    steps.receive(*(an_event(n, routes=[]) for n in range(1, 201)))
    with running(engine, downstream, more='[retention]\nevents = "forever"\n') as relay:
        until(lambda: count(engine, "pruner WHERE ran_at IS NOT NULL"), "a round has ended")
        assert count(engine, "inbox") == 200
        relay.reload(prepare(configured(downstream.url, more=MONTH)))
        until(lambda: count(engine, "inbox") == 1, "by the new age they have expired")
        until(lambda: relay._observer.counts["pruned"] >= 199, "it is logged")
    assert count(engine, "pruner WHERE held_by IS NULL") == 1


def test_it_leaves_pruning_to_another_until_that_is_gone(
    steps: Steps, engine: Engine, downstream: Downstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps.receive(*(an_event(n, routes=[]) for n in range(1, 201)))
    assert a_pruner(engine, "another").take() is not None
    looks: list[bool] = []
    look = Pruner._take_turn

    def looking(pruner: Pruner) -> None:
        looks.append(True)
        look(pruner)

    monkeypatch.setattr(Pruner, "_take_turn", looking)
    with running(engine, downstream, more=MONTH):
        until(lambda: len(looks) > 2, "it has looked twice")
        assert count(engine, "inbox") == 200
        with engine.begin() as connection:
            connection.execute(update(pruner).values(lease_until=START))
        until(lambda: count(engine, "inbox") == 1, "it takes over")


def test_a_command_in_sql_prunes_now_and_answers_how_much(steps: Steps, engine: Engine, downstream: Downstream) -> None:
    steps.receive(*(an_event(n, routes=[]) for n in range(1, 201)))
    with running(engine, downstream, more=MONTH):
        ask = "INSERT INTO relay_command (kind, selection, reason{more}) VALUES ('prune', '{kinds}', 'too large'{yes})"
        until(lambda: count(engine, "pruner WHERE ran_at IS NOT NULL"), "a round has ended")
        assert count(engine, "inbox") == 1
        steps.receive(*(an_event(n, routes=[]) for n in range(201, 301)))
        steps.do(ask.format(more=", dry_run", kinds='{"kinds": ["events"]}', yes=", true"))
        until(lambda: count(engine, "relay_command WHERE state = 'done' AND matched = 100"), "a dry run")
        assert count(engine, "inbox") == 101
        steps.do(ask.format(more="", kinds='{"kinds": ["events"]}', yes=""))
        # 200 was the newest one when its turn came, so that it waits for the next lap
        until(lambda: count(engine, "relay_command WHERE state = 'done' AND affected = 99"), "it prunes")
        steps.do(ask.format(more="", kinds='{"kinds": ["event"]}', yes=""))
        refused = "relay_command WHERE state = 'refused' AND answer LIKE '%did you mean ''events''?'"
        until(lambda: count(engine, refused), "an unknown kind is refused")


def test_a_kind_that_is_behind_for_an_hour_is_alerted_once_and_recovers(engine: Engine) -> None:
    database, watch = Database(engine), Watch()
    prune(engine, "events")
    now = SystemClock().now()
    for since, fired in (
        (now - timedelta(minutes=30), 0),
        (now - timedelta(hours=2), 1),
        (now - timedelta(hours=3), 1),
    ):
        with engine.begin() as connection:
            connection.execute(update(pruning).values(behind_since=since, behind_seconds=90_000))
        watch.look(work_of(database, config=CONFIG))
        assert count(engine, "alert WHERE kind = 'retention_behind' AND subject = 'events' AND firing") == fired
    with engine.begin() as connection:
        connection.execute(update(pruning).values(behind_since=None, behind_seconds=0))
    watch.look(work_of(database, config=CONFIG))
    assert count(engine, "alert WHERE kind = 'retention_behind' AND NOT firing") == 1


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
