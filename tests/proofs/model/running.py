"""Runner of the model."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.proofs.model.machine import Machine
from tests.proofs.model.stage import Evidence
from tests.proofs.model.world import World

RUNS = int(os.environ.get("MODEL_RUNS", "160"))
STEPS = 50
SEED = os.environ.get("MODEL_SEED")
_SHRINK = os.environ.get("MODEL_SHRINK") != "no"


def run(world: World, *, runs: int = RUNS, shrink: bool = _SHRINK, its_seed: str | None = SEED) -> Evidence:
    """So many runs of so many steps; the same ones each time, and others for another seed.

    Raises:
        Violation: what the first run found that found something; with `shrink`, of the shortest run that finds it.
    """
    evidence = Evidence()

    def machine() -> Machine:
        return Machine(world, evidence)

    if its_seed is not None:
        seed(int(its_seed))(machine)
    run_state_machine_as_test(
        machine,  # type: ignore[arg-type]  # it says a class, and takes whatever makes a machine
        settings=settings(
            max_examples=runs,
            stateful_step_count=STEPS,
            phases=[Phase.generate, Phase.shrink] if shrink else [Phase.generate],
            derandomize=True,
            database=None,
            deadline=None,
            print_blob=False,
            report_multiple_bugs=False,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
        ),
        _min_steps=STEPS - 1,  # no run ends early
    )
    return evidence
