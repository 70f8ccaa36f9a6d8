"""The daemon itself, in a thread, while the database's clock is set."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from tests.helpers.databases import ON_BOTH
from tests.helpers.tables import rows

from inbox.clock import SystemClock
from relay.delivery.gates import Gate
from relay.operations.asks import Selection
from relay.store.operator import commands
from tests.helpers.daemon import Rig, users
from tests.helpers.waiting import until


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


def see_a_round(rig: Rig) -> None:
    """A command is done after the leases have been looked at in the same round."""
    for act in ("pause", "resume"):
        commands.ask(rig.database, act, Gate(route="everything"), who="kim", why="to see a round")
    until(lambda: not commands.next_open(rig.database, after=0, most=1), "both commands are done")


@ON_BOTH
def test_when_it_ran_ahead_by_an_hour_and_is_put_right_deliveries_go_on_once_an_operator_retries_them(
    rig: Rig, clock: SetClock
) -> None:
    clock.set_by(3600)
    held = rig.hold()
    with rig.relay(concurrency=1, now=clock):
        seqs = rig.arrive(*users(6))
        until(lambda: held.seqs, "one is called")
        until(lambda: "received" not in rig.left, "all have their place")
        clock.set_by(-3600)
        held.go.set()
        rig.until_told("clock_stepped")
        commands.ask(rig.database, "retry", Selection(route="everything"), who="kim", why="the clock was wrong")
        rig.until_left()
    assert sorted(held.seqs) == seqs
    assert "abandoned" not in rig.kinds


@ON_BOTH
def test_when_it_jumps_forward_no_relay_takes_anything_from_another_that_lives_nor_from_itself(
    rig: Rig, clock: SetClock
) -> None:
    held = rig.hold()
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
