"""A relay's steps on an empty database of either kind."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine

from inbox.db import engine as engines
from relay.store.database import Database
from tests.helpers.relaying import DONE, HOPELESS, UNWELL, FakeClock, Steps
from tests.helpers.storing import an_event
from tests.store.verifying import Planter


@pytest.fixture
def steps(engine: Engine) -> Steps:
    return Steps(engine)


@pytest.fixture
def clock(steps: Steps) -> FakeClock:
    return steps.clock


@pytest.fixture
def database(steps: Steps) -> Database:
    return steps.database


@pytest.fixture
def lived_in(steps: Steps) -> Steps:
    """A database in which deliveries stand in every state, and some have ended each way.

    strict: u1 delivered twice (1, 2), u2 dead and passed (3) then delivered (4), u3 failed once and waits for its retry
    (5) with one behind it (6), u4 in flight (7) with one behind it (8). blocking: u1 blocked (9), one behind it (10).
    latest: u1 delivered (11), of u2 one was folded (12) into another that was delivered (13).
    """
    steps.arrive(
        *(an_event(n, f"u{(n + 1) // 2}") for n in range(1, 9)),
        *(an_event(n, "u1", routes=["blocking"]) for n in (9, 10)),
        *(an_event(n, entity, routes=["latest"]) for n, entity in ((11, "u1"), (12, "u2"), (13, "u2"))),
    )
    for outcome in (DONE, DONE, HOPELESS, DONE, UNWELL):
        steps.attempt(outcome)
    steps.claim()
    steps.attempt(HOPELESS, "blocking")
    for _ in range(2):
        steps.attempt(DONE, "latest")
    assert steps.states() == [
        (3, "strict", "dead"),
        (5, "strict", "ready"),
        (6, "strict", "waiting"),
        (7, "strict", "in_flight"),
        (8, "strict", "waiting"),
        (9, "blocking", "blocked"),
        (10, "blocking", "waiting"),
    ]
    return steps


@pytest.fixture
def plant(engine: Engine) -> Planter:
    return Planter(engine)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for locks for 0.4 s, and not for 2: for tests in which somebody keeps one."""
    monkeypatch.setitem(engines.PINNED, "lock_timeout", "400ms")
