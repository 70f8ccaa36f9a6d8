"""A step of a relay that fails all the time, or for one item among a hundred, stops nothing else.

The tests walk `relay.steps.Step` by themselves: a step that is new and has no start state fails them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from sqlalchemy import Engine

from relay.steps import CRITICAL, Step
from tests.bulkheads.start_states import FAILURES, ITEMS, PROVOKE, START_STATES, WITH, Plant, planted
from tests.helpers.daemon import Rig, hurry, users
from tests.helpers.tables import count
from tests.helpers.traffic import serving
from tests.helpers.waiting import until

STEPS: tuple[Step, ...] = get_args(Step)

ONE_AT_A_TIME: dict[Step, str] = {
    "give_back": "tests/store/test_setting_aside.py plants a lane that can't be settled",
    "renew": "a statement over keys alone, which no item's values reach",
    "heartbeat": "one row, the relay's own",
    "claim_suspect": "one delivery at a time, loaded as a claim's",
    "look_at_gates": "tests/store/test_gates_shared.py plants an unreadable gate",
    "flush_throughput": "sums of its own; tests/core/test_metering.py has those that the database rejects",
    "prune": "tests/store/test_retention.py plants a row that can't be deleted",
    "sweep": "tests/flow/test_daemon_sweeps.py plants an entity that can't be taken in",
}
"""Steps that have no batch of items here, and why."""


OF_PYTHON = [name for name in FAILURES if name != "DataError"]
PLANTED = [
    *((kind, step, "DataError") for kind in ("sqlite", "postgres") for step in START_STATES),
    *(("sqlite", step, OF_PYTHON[number % len(OF_PYTHON)]) for number, step in enumerate(START_STATES)),
]
"""For each step an error of the database and one of Python's: what tells them apart is the same for all steps."""


@pytest.fixture(autouse=True)
def _quick_relays(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)
    monkeypatch.setattr("relay.daemon.loop.FLUSH_EVERY_SECONDS", 0.1)
    monkeypatch.setattr("relay.sweep.scheduler.LOOK_EVERY_SECONDS", 0.05)


@pytest.fixture
def rig(engine: Engine, tmp_path: Path) -> Iterator[Rig]:
    with serving(tmp_path / "arrivals.jsonl") as downstream:
        yield Rig(engine, downstream)


def test_every_step_is_planted_with_a_bad_item_or_says_why_not() -> None:
    assert set(START_STATES) | set(ONE_AT_A_TIME) == set(STEPS)
    assert not set(START_STATES) & set(ONE_AT_A_TIME)


@pytest.mark.parametrize(("database_url", "step", "failure"), PLANTED, indirect=["database_url"])
def test_one_item_among_a_hundred_fails_alone_and_can_be_seen(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, step: Step, failure: str
) -> None:
    start = START_STATES[step](rig)
    plant = Plant(step, failure, item=start.bad)
    with planted(monkeypatch, plant), start.running():
        until(lambda: start.done() == ITEMS - 1, f"{ITEMS - 1} go on")
        until(start.seen, "the one can be seen")
        until(lambda: rig.observer.counts["failed_alone"], "it is told after the commit")
    assert plant.raised <= 2 * ITEMS.bit_length() + 2, "the batch was taken apart by halves"
    assert start.done() == ITEMS - 1, "nothing is lost, and the one has not gone with the others"
    assert len(rig.calls) == len(set(rig.calls)) == start.calls, "nothing is called twice"


LETS_GO: Step = "give_back"
"""It goes on without what it can't give back: such a lease runs out."""


@pytest.mark.parametrize("step", [step for step in STEPS if step not in CRITICAL | {"sequence", LETS_GO}])
def test_a_step_that_fails_all_the_time_stops_no_delivery_and_can_be_seen(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, step: Step
) -> None:
    caplog.set_level(logging.ERROR)
    plant = Plant(step, "ValueError")
    with planted(monkeypatch, plant), rig.relay(more=WITH.get(step, "")) as relay:
        if step in PROVOKE:
            PROVOKE[step](rig, relay)
        until(lambda: plant.raised >= 2, "it fails, and is tried again")
        rig.arrive(*users(20))
        until(lambda: rig.kinds.count("delivered") == 20, "all are delivered")
        until(lambda: count(rig.engine, "alert WHERE kind = 'step_failed' AND firing"), "it is alerted")
        if step != "heartbeat":
            until(lambda: count(rig.engine, "stuck WHERE state = 'failing'"), "it is seen")
    assert any(record.exc_info and f"step={step}" in record.getMessage() for record in caplog.records)
