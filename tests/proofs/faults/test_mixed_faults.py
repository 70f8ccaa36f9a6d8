"""Everything that can break does, under load and at random; afterwards nothing is lost, and all came in order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from tests.helpers import checkers
from tests.proofs.faults.fault_actions import do_all
from tests.proofs.faults.load import unwell_now_and_then
from tests.proofs.faults.plan import RELAYS, Amounts, draw
from tests.proofs.faults.rig import rig
from tests.proofs.faults.small_disk import can_be_made
from tests.proofs.faults.verdict import Verdict, conclude, told

pytestmark = [pytest.mark.long, pytest.mark.alone]

ON_POSTGRES = Amounts(
    seconds=48,
    kills=20,
    freezes=2,
    replacements=1,
    worker_kills=4,
    worker_freezes=2,
    postgres_kills=2,
    postgres_stops=2,
    backend_kills=1,
    postgres_freezes=1,
    full_disks=1,
    cuts=18,
    verifications=3,
)
ON_SQLITE = Amounts(
    seconds=26,
    kills=10,
    freezes=1,
    replacements=1,
    worker_kills=2,
    worker_freezes=1,
    sqlite_locks=1,
    full_disks=1,
    verifications=2,
)
SHOWN = (
    "kills of a relay at work",
    "abandoned",
    "repeats refused",
    "answered 503",
    "answer unknown",
    "calls refused downstream",
    "answers lost downstream",
    "repeated calls",
    "delivered late",
    "takeovers",
    "verified",
)
SHOWN_ON_POSTGRES = ("late results discarded", "commits cut", "commits done though nobody knew")
"""On SQLite one relay is frozen, once: its call may be cut before anything of it is sent, and then has no result."""
SHOWN_WITH_A_SMALL_DISK = ("answered 503 while the disk was full",)


def run(folder: Path, kind: str, seed: int, amounts: Amounts, shown: Sequence[str], *, per_second: float) -> Verdict:
    if can_be_made(kind):
        shown = (*shown, *SHOWN_WITH_A_SMALL_DISK)
    else:
        amounts = msgspec.structs.replace(amounts, full_disks=0)
    streams = draw(seed, amounts)
    script = unwell_now_and_then(seed)
    with rig(folder, kind, seed, streams=streams, script=script, per_second=per_second, megabytes=192) as made:
        verdict = conclude(made, do_all(made, streams))
        assert not verdict.findings, told(made, verdict)
        assert checkers.never_happened(verdict.counts, shown) == [], told(made, verdict)
    return verdict


def test_three_relays_killed_twenty_times_each_lose_nothing_and_keep_order_on_postgres(
    tmp_path: Path, seed: int
) -> None:
    counts = run(tmp_path, "postgres", seed, ON_POSTGRES, (*SHOWN, *SHOWN_ON_POSTGRES), per_second=80).counts
    assert counts["faults"]["kill a relay"] == ON_POSTGRES.kills * len(RELAYS)
    assert counts["starts of Postgres"] > ON_POSTGRES.postgres_kills + ON_POSTGRES.postgres_stops


def test_three_relays_killed_ten_times_each_lose_nothing_and_keep_order_on_sqlite(tmp_path: Path, seed: int) -> None:
    counts = run(tmp_path, "sqlite", seed, ON_SQLITE, SHOWN, per_second=60).counts
    assert counts["faults"]["kill a relay"] == ON_SQLITE.kills * len(RELAYS)
