"""The pace of maintenance where its looks take long, such as beside a transaction that somebody left open."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import pytest

from relay.daemon.loop import EVERY_SECONDS
from relay.observe import Observer
from relay.steps import AT_LEAST_EVERY_SECONDS
from relay.steps import Steps as StepsOfARelay
from relay.store.leases import LEASE_SECONDS
from relay.store.operator import commands
from tests.helpers.daemon import maintenance_of
from tests.helpers.relaying import CONFIG, Steps


def test_slow_looks_delay_no_command_and_no_takeover_for_long(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    now, looks = [1000.0], list[float]()

    def slow_look(*_: object) -> list[object]:
        looks.append(now[0])
        now[0] += 1.0
        return []

    monkeypatch.setattr("relay.steps.time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr("relay.store.leases.reap", slow_look)
    observer = Observer()
    ours = maintenance_of(steps.database, CONFIG, observer, StepsOfARelay(observer))
    ours()
    commands.ask(steps.database, "pause", {"route": "strict"}, who="kim", why="stop it")
    now[0] += 1.0
    ours()
    assert [row["state"] for row in steps.rows("SELECT state FROM relay_command")] == ["done"]
    while len(looks) < 3:
        now[0] += 0.25
        ours()
    pauses = [after - before - 1.0 for before, after in pairwise(looks)]
    assert all(EVERY_SECONDS < pause <= AT_LEAST_EVERY_SECONDS for pause in pauses)
    assert LEASE_SECONDS + 1.0 + AT_LEAST_EVERY_SECONDS <= 20, "guarantee 7"
