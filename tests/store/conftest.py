"""A relay's steps on an empty database of either kind."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine, text

from inbox.config.model import Config
from inbox.db import engine as engines
from inbox.db.dialect import POSTGRES
from relay.store.audit import Difference, verify
from relay.store.database import Database
from relay.store.rebuild import rebuild
from tests.helpers.relaying import CONFIG, DONE, HOPELESS, UNWELL, FakeClock, Steps
from tests.helpers.storing import an_event


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
    """Wait 0.4 s for a lock instead of 2 s, for tests that keep one."""
    monkeypatch.setitem(engines.PINNED, "lock_timeout", "400ms")


# --- Findings of `verify` and `rebuild`, and a way to spoil a database


ROUTES = ("strict", "blocking", "latest")


def differences(database: Database, config: Config = CONFIG) -> list[Difference]:
    return [found for checked in verify(database, config) for found in checked.differences]


def findings(database: Database) -> list[tuple[str, int | None, str | None]]:
    return sorted((d.finding, d.seq, d.route) for d in differences(database))


def mend(database: Database, config: Config = CONFIG) -> list[Difference]:
    return [found for checked in rebuild(database, config, who="ann", why="a check") for found in checked.differences]


KEPT = ("inbox", "inbox_payload", "delivery_log")


class Planter:
    """Makes a change that the database forbids, as a slip of the hand or a bad restore would."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __call__(self, statement: str) -> None:
        with self._engine.begin() as connection:
            if self._engine.dialect.name == POSTGRES:
                connection.execute(text("SET LOCAL session_replication_role = replica"))  # no triggers
            else:
                for name in (*(f"{table}_refuses_delete" for table in KEPT), "delivery_log_refuses_update"):
                    connection.execute(text(f"DROP TRIGGER IF EXISTS {name}"))
            assert connection.execute(text(statement.replace(":", "\\:"))).rowcount >= 1, "it changes something"
