"""Every promise holds after any operations of relays, receivers, operators and the downstream service.

There are 120 reproducible runs of 50 steps on SQLite and 30 on Postgres. For more and other ones:
`MODEL_RUNS=5000 MODEL_SEED=7 python -m pytest tests/proofs/model/test_model.py`. A failing run is shrunk, which takes
minutes, unless `MODEL_SHRINK=no`.
"""

from __future__ import annotations

import pytest

from tests.proofs.model.machine import RUNS, STEPS, run
from tests.proofs.model.stage import RULES
from tests.proofs.model.world import World

FEW_RUNS = 10
ENOUGH_RUNS = 100
"""Runs that reach every rule and outcome; fewer reach the rare ones by chance."""
ONLY_WHERE_COMMITS_OVERLAP = {"receive_and_commit_later", "commit", "die_before_the_commit"}

SOMETIMES = (
    {"delivered", "late", "skipped", "not counted", "abandoned", "took_over", "demoted", "rearmed", "unblocked"}
    | {"rescheduled", "more waits than is folded", "fenced", "taken over", "died half-way", "waited for a lock"}
    | {f"failed: {name}" for name in ("server_error", "rejected", "conflict", "auth")}
    | {f"dead: {cause}" for cause in ("mapping", "rejected", "exhausted", "crash_loop")}
    | {f"superseded: {because}" for because in ("newer", "covered", "healed", "swept")}
    | {"repeat refused", "repeat only counted", "held back by a pause", "held back by a breaker"}
    | {f"replayed: {state}" for state in ("ended", "dead", "blocked")}
    | {f"cancelled: {state}" for state in ("ready", "waiting", "dead")}
    | {
        f"breaker: {turn}"
        for turn in ("closed to open", "open to half_open", "half_open to open", "half_open to closed")
    }
    | {"breaker: open to closed"}
)
"""Situations that must occur: results, orders of lanes, commands, breakers and troubles."""


@pytest.mark.long
def test_whatever_happens_every_promise_holds(world: World) -> None:
    runs = RUNS // (4 if world.commits_out_of_order else 1)  # runs are four times as slow on Postgres
    evidence = run(world, runs=runs)

    assert evidence.runs >= runs
    assert evidence.steps >= runs * (STEPS - 1)
    expected, sometimes = (set(RULES), set(SOMETIMES)) if runs >= ENOUGH_RUNS else (set(), set())
    if world.commits_out_of_order:
        expected |= ONLY_WHERE_COMMITS_OVERLAP
        sometimes.add("committed out of order")
    else:
        expected -= ONLY_WHERE_COMMITS_OVERLAP
    assert {rule: evidence.rules[rule] for rule in expected if evidence.rules[rule] < runs / 100} == {}
    assert {name for name in sometimes if not evidence.sometimes[name]} == set()


def test_in_a_few_runs_every_promise_holds(world: World) -> None:
    assert run(world, runs=FEW_RUNS).runs >= FEW_RUNS
