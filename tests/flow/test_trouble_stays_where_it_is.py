"""The daemon itself, in a thread: an entity, a destination or a clock in trouble is nothing to the others."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from inbox.clock import SystemClock
from inbox.events.timestamps import as_time
from relay.daemon.generation import prepare
from relay.daemon.loop import Relay
from relay.delivery import policy
from relay.delivery.gates import BreakerLimits, Gate
from relay.store.nodes import read_nodes
from relay.store.operator import commands
from tests.helpers.daemon import Rig, users
from tests.helpers.databases import ON_BOTH, ON_POSTGRES
from tests.helpers.locks import locked_by_a_person
from tests.helpers.relaying import FakeClock
from tests.helpers.tables import facts, rows
from tests.helpers.traffic import Downstream, Held, serving
from tests.helpers.waiting import until
from tests.helpers.webhooks import ROUTE

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


def test_an_entity_that_always_fails_and_one_that_hangs_delay_no_other(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
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
        locked = f"SELECT seq FROM open_delivery WHERE route = '{ROUTE}' AND seq IN ({held.seqs[0]}, 40) FOR UPDATE"
        with locked_by_a_person(rig.engine, locked):
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
    until(lambda: not commands.next_open(rig.database, after=0, most=1), "both commands are done")


@ON_BOTH
def test_when_it_jumps_forward_no_relay_takes_anything_from_another_that_lives_nor_from_itself(
    rig: Rig,
) -> None:
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
