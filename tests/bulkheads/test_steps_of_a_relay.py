"""A step of a relay that fails all the time, or for one item among a hundred, stops nothing else.

The tests walk `relay.steps.Step` by themselves: a step that is new and has no start state fails them.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from sqlalchemy import Engine

from relay.steps import CRITICAL, Step
from tests.bulkheads.start_states import ITEMS, PROVOKE, START_STATES, WITH, StartState
from tests.bulkheads.step_failures import FAILURES, Plant, planted
from tests.helpers.daemon import hurry, kinds, running
from tests.helpers.relaying import fill
from tests.helpers.tables import count
from tests.helpers.traffic import Downstream, serving
from tests.helpers.waiting import until
from tests.helpers.webhooks import moment

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
def downstream(tmp_path: Path) -> Iterator[Downstream]:
    with serving(tmp_path / "arrivals.jsonl") as made:
        yield made


def test_every_step_is_planted_with_a_bad_item_or_says_why_not() -> None:
    assert set(START_STATES) | set(ONE_AT_A_TIME) == set(STEPS)
    assert not set(START_STATES) & set(ONE_AT_A_TIME)


@pytest.mark.parametrize(("database_url", "step", "failure"), PLANTED, indirect=["database_url"])
def test_one_item_among_a_hundred_fails_alone_and_can_be_seen(  # noqa: PLR0917  # fixtures
    database_url: str,
    engine: Engine,
    downstream: Downstream,
    monkeypatch: pytest.MonkeyPatch,
    step: Step,
    failure: str,
) -> None:
    start: StartState = START_STATES[step](database_url, engine, downstream)
    plant = Plant(step, failure, **start.bad)
    with planted(monkeypatch, plant), start.running() as relay:
        until(lambda: start.done() == ITEMS - 1, f"{ITEMS - 1} go on")
        until(start.seen, "the one can be seen")
        until(lambda: relay._observer.counts["failed_alone"], "it is told after the commit")
    assert plant.raised <= 2 * ITEMS.bit_length() + 2, "the batch was taken apart by halves"
    assert start.done() == ITEMS - 1, "nothing is lost, and the one has not gone with the others"
    calls = Counter(line["seq"] for line in downstream.arrivals.lines())
    assert set(calls.values()) <= {1}, "nothing is called twice"
    assert len(calls) == start.calls


LETS_GO: Step = "give_back"
"""It goes on without what it can't give back: such a lease runs out."""


@pytest.mark.parametrize("step", [step for step in STEPS if step not in CRITICAL | {"sequence", LETS_GO}])
def test_a_step_that_fails_all_the_time_stops_no_delivery_and_can_be_seen(  # noqa: PLR0917  # fixtures
    database_url: str,
    engine: Engine,
    downstream: Downstream,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    step: Step,
) -> None:
    caplog.set_level(logging.ERROR)
    plant = Plant(step, "ValueError")
    with planted(monkeypatch, plant), running(engine, downstream, more=WITH.get(step, "")) as relay:
        if step in PROVOKE:
            PROVOKE[step](engine, relay)
        until(lambda: plant.raised >= 2, "it fails, and is tried again")
        fill(database_url, [(f"u{n}", moment(n)) for n in range(20)])
        until(lambda: kinds(engine).count("delivered") == 20, "all are delivered")
        until(lambda: count(engine, "alert WHERE kind = 'step_failed' AND firing"), "it is alerted")
        if step != "heartbeat":
            until(lambda: count(engine, "stuck WHERE state = 'failing'"), "it is seen")
    assert any(record.exc_info and f"step={step}" in record.getMessage() for record in caplog.records)
