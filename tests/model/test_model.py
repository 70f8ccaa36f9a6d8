"""Whatever relays, receivers, operators and the downstream service do in whatever order, every promise holds.

200 runs of 50 steps on each database, the same ones each time. More and other ones:
`MODEL_RUNS=5000 MODEL_SEED=7 python -m pytest tests/model/test_model.py`. A run that fails is made as short as it can be,
which takes minutes; with `MODEL_SHRINK=no` it is told at once.
"""

from __future__ import annotations

from tests.model.running import RUNS, STEPS, run
from tests.model.stage import RULES
from tests.model.world import World

ONLY_WHERE_COMMITS_OVERLAP = {"receive_and_commit_later", "commit", "die_before_the_commit"}

SOMETIMES = {
    # what the store did
    "attempt_failed",
    "abandoned",
    "delivered",
    "late",
    "superseded",
    "took_over",
    "skipped",
    "dead: mapping",
    "dead: exhausted",
    "dead: crash_loop",
    "replayed: ended",
    "replayed: dead",
    "replayed: blocked",
    "demoted",
    "repeat refused",
    # what makes it hard
    "fenced",
    "taken over",
    "died half-way",
    "waited for a lock",
}


def test_whatever_happens_every_promise_holds(world: World) -> None:
    evidence = run(world)

    expected, sometimes = set(RULES), set(SOMETIMES)
    if world.commits_out_of_order:
        sometimes.add("committed out of order")
    else:
        expected -= ONLY_WHERE_COMMITS_OVERLAP
    assert evidence.runs >= RUNS
    assert evidence.steps >= RUNS * (STEPS - 1)
    assert {rule: evidence.rules[rule] for rule in expected if evidence.rules[rule] < RUNS / 20} == {}
    assert {name for name in sometimes if not evidence.sometimes[name]} == set()
