"""The daemon itself, in a thread: a destination that is down or paused, and whom it tells."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from tests.helpers.databases import ON_BOTH

from inbox.clock import SystemClock
from relay.daemon.generation import prepare
from relay.daemon.loop import Relay
from relay.delivery import policy
from relay.delivery.gates import Breaker, BreakerLimits, BreakerState, Gate, Gates
from relay.delivery.policy import policies
from relay.store.operator import commands, execution
from tests.helpers.daemon import Rig, users
from tests.helpers.relaying import work_of
from tests.helpers.scripted import answer, serving
from tests.helpers.waiting import until

BREAKER = 'breaker = { open_for = "300ms" }'
ALERTS = '[alerts]\nurl = "{url}"\nallow_private = true\nallow_http = true\n'


@pytest.fixture(autouse=True)
def _opens_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "BREAKER", BreakerLimits(calls=3, longest=0.3))


@ON_BOTH
def test_a_destination_that_is_down_is_left_alone_and_everything_arrives_when_it_is_well_again(rig: Rig) -> None:
    seqs = rig.arrive(*users(40))
    rig.downstream.script = lambda _seq, _attempt: 503
    with serving(answer(200)) as chat:
        with rig.relay(2, destination=BREAKER, more=ALERTS.format(url=chat.url)):
            until(lambda: len(chat.seen) == 1, "somebody was told")
            assert len(rig.calls) < 40, "not each delivery had to find out for itself"
            rig.downstream.script = lambda _seq, _attempt: 200
            rig.until_left()
            until(lambda: len(chat.seen) == 2, "somebody was told that it is well again")
        posts = [json.loads(seen.body) for seen in chat.seen]
    assert sorted({line["seq"] for line in rig.downstream.arrivals.lines() if line["status"] == 200}) == seqs
    assert [(post["kind"], post["subject"], post["firing"]) for post in posts] == [
        ("breaker_open", "destination audit", True),
        ("breaker_open", "destination audit", False),
    ]
    assert rig.kinds.count("delivered") == 40
    assert "dead" not in rig.kinds


def test_a_pause_by_command_is_kept_by_a_running_relay_until_it_is_lifted(rig: Rig) -> None:
    gate = Gate(source="trivore", entity_type="USER", entity_id="u1")
    with rig.relay(concurrency=2):
        commands.ask(rig.database, "pause", gate, who="kim", why="odd")
        until(lambda: not commands.next_open(rig.database, after=0, most=1), "the relay keeps to it")
        seqs = rig.arrive("u1", "u2", "u1", "u3")
        rig.until_left(ready=1, waiting=1)
        commands.ask(rig.database, "resume", gate, who="kim", why="fine")
        rig.until_left()
    assert [seq for seq in rig.calls if seq in {seqs[0], seqs[2]}] == [seqs[0], seqs[2]]


def test_a_drain_ends_though_something_is_held_back(rig: Rig) -> None:
    rig.arrive("u1", "u2")
    config = rig.config()
    for gate in (Gate(source="trivore", entity_type="USER", entity_id="u1"), Gate(route="everything")):
        number = commands.ask(rig.database, "pause", gate, who="kim", why="odd")
        execution.work_on(work_of(rig.database, policies(config), config=config), number)
        Relay(rig.database, prepare(config), grace_seconds=20).run(drain=True)
        assert rig.left == {"ready": 1}


def test_an_entity_that_is_resumed_is_looked_for_from_the_beginning(rig: Rig) -> None:
    """Deliveries that it held back have been due since long before the place where claims begin now."""
    relay = Relay(rig.database, prepare(rig.config()), grace_seconds=0)
    relay._claimer.gates = Gates(paused_entities=1)
    relay._scans.due["everything"].at = SystemClock().now()
    relay._claimer.read_gates()
    assert not relay._scans.due
    relay._generations.close()


def test_a_drain_does_not_end_before_a_breaker_is_tried_that_may_be(rig: Rig) -> None:
    rig.arrive("u1")
    relay = Relay(rig.database, prepare(rig.config()), grace_seconds=0)
    for seconds, is_drained in ((-1, False), (60, True)):
        until_then = SystemClock().now() + timedelta(seconds=seconds)
        shut = Breaker(BreakerState.OPEN, until=until_then)
        relay._claimer.gates = Gates(SystemClock().now(), breakers={("destination", "audit"): shut})
        assert relay._is_drained() is is_drained
    relay._generations.close()
