"""The daemon itself, in a thread, while the database's clock is set."""

from __future__ import annotations

import contextlib
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine

from inbox.clock import SystemClock
from relay.daemon.generation import prepare
from relay.daemon.loop import Relay
from relay.delivery.gates import Gate
from relay.operations.asks import Selection
from relay.store.database import Database
from relay.store.operator import commands
from tests.helpers.daemon import configured, kinds
from tests.helpers.downstream import Downstream, Held, serving
from tests.helpers.evidence import open_states
from tests.helpers.filling import fill
from tests.helpers.reading import rows
from tests.helpers.relaying import at_work
from tests.helpers.waiting import until
from tests.helpers.webhooks import moment


class SetClock:
    """A clock that goes as ours does, and is set."""

    def __init__(self) -> None:
        self.ahead = timedelta(0)

    def __call__(self) -> datetime:
        return SystemClock().now() + self.ahead

    def set_by(self, seconds: float) -> None:
        self.ahead += timedelta(seconds=seconds)


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


def relay_of(
    engine: Engine, clock: SetClock, downstream: Downstream, concurrency: int = 8
) -> contextlib.AbstractContextManager[Relay]:
    config = configured(downstream.url, concurrency)
    return at_work(Relay(Database(engine, clock), prepare(config), grace_seconds=5))


def a_round_of_maintenance(engine: Engine, clock: SetClock) -> None:
    """A command is done after the leases have been looked at in the same round."""
    database = Database(engine, clock)
    for act in ("pause", "resume"):
        commands.ask(database, act, Gate(route="everything"), who="kim", why="to see a round")
    until(lambda: not commands.next_open(database, after=0, most=1), "both commands are done")


def test_when_it_ran_ahead_by_an_hour_and_is_put_right_deliveries_go_on_once_an_operator_retries_them(
    database_url: str, engine: Engine, tmp_path: Path, clock: SetClock
) -> None:
    clock.set_by(3600)
    held = Held()
    with (
        serving(tmp_path / "arrivals.jsonl", held) as downstream,
        relay_of(engine, clock, downstream, concurrency=1) as relay,
    ):
        seqs = fill(database_url, [(f"u{n}", moment(n)) for n in range(6)])
        until(lambda: held.seqs, "one is called")
        until(lambda: "received" not in open_states(engine), "all have their place")
        clock.set_by(-3600)
        held.go.set()
        until(lambda: relay._observer.counts["clock_stepped"], "it has noticed, and says what to do")
        commands.ask(relay._database, "retry", Selection(route="everything"), who="kim", why="the clock was wrong")
        until(lambda: not open_states(engine), "all are delivered")
    assert sorted(held.seqs) == seqs
    assert "abandoned" not in kinds(engine)


def test_when_it_jumps_forward_what_runs_is_not_called_again_by_its_own_relay(
    database_url: str, engine: Engine, tmp_path: Path, clock: SetClock
) -> None:
    held = Held()
    with serving(tmp_path / "arrivals.jsonl", held) as downstream, relay_of(engine, clock, downstream):
        seqs = fill(database_url, [(f"u{n}", moment(n)) for n in range(4)])
        until(lambda: len(held.seqs) == 4, "all are called")
        clock.set_by(20)
        a_round_of_maintenance(engine, clock)
        held.go.set()
        until(lambda: not open_states(engine), "all are delivered")
    assert sorted(held.seqs) == seqs
    assert kinds(engine) == ["delivered"] * 4


def test_when_it_jumps_forward_no_relay_takes_anything_from_another_that_lives(
    database_url: str, engine: Engine, tmp_path: Path, clock: SetClock
) -> None:
    held = Held()
    with (
        serving(tmp_path / "arrivals.jsonl", held) as downstream,
        relay_of(engine, clock, downstream, concurrency=2) as one,
    ):
        seqs = fill(database_url, [(f"u{n}", moment(n)) for n in range(4)])
        until(lambda: len(held.seqs) == 2, "some are called")
        with relay_of(engine, clock, downstream) as other:
            until(
                lambda: rows(engine, "SELECT id FROM relay_node WHERE id = :id", id=other.node), "the other has begun"
            )
            a_round_of_maintenance(engine, clock)
            clock.set_by(20)
            for relay in (one, other):
                until(lambda: relay._observer.counts["clock_stepped"], "it has noticed")
            a_round_of_maintenance(engine, clock)
            held.go.set()
            until(lambda: not open_states(engine), "all are delivered")
    assert sorted(held.seqs) == seqs
    assert kinds(engine) == ["delivered"] * 4
