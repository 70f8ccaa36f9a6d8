"""Relays that are replaced one after the other, each new one started before the old one ends: nobody downstream notices."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers import checkers
from tests.proofs.faults.fault_actions import do_all
from tests.proofs.faults.load import always_well
from tests.proofs.faults.plan import RELAYS, Amounts, draw
from tests.proofs.faults.rig import rig
from tests.proofs.faults.verdict import conclude, gather, told

pytestmark = pytest.mark.long

EACH = Amounts(seconds=4, replacements=2, verifications=1)


@pytest.mark.parametrize("kind", ["postgres", "sqlite"])
def test_rolling_restarts_repeat_no_call_and_use_no_attempt(tmp_path: Path, seed: int, kind: str) -> None:
    streams = draw(seed, EACH)
    with rig(tmp_path, kind, seed, streams=streams, script=always_well, per_second=80, megabytes=128) as made:
        verdict = conclude(made, do_all(made, streams))
        evidence = gather(made)
        assert not verdict.findings, told(made, verdict)

    assert verdict.counts["faults"] == {"replace a relay": EACH.replacements * len(RELAYS)}
    assert verdict.counts["events"] > 200
    assert checkers.repeats(evidence.arrivals) == []
    assert {line["attempt"] for line in evidence.arrivals} == {1}
    assert {fact["kind"] for fact in evidence.facts} == {"delivered"}
    assert {line["outcome"] for line in evidence.sends} == {None, "ok"}
