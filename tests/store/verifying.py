"""A database in which everything occurs, ways to spoil it, and what `verify` and `rebuild` say of it."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine, text

from inbox.db.dialect import POSTGRES
from inbox.loader.load import parse_config
from relay.delivery.audit import Difference
from relay.delivery.outcome import Delivered, Failed
from relay.store.audit.rebuild import rebuild
from relay.store.audit.verify import verify
from relay.store.database import Database
from tests.store.conftest import Steps, an_event

CONFIG = parse_config(
    "\n".join(
        [
            '[sources.trivore]\npreset = "trivore"\nauth = { kind = "none" }',
            '[destinations.audit]\nkind = "forward"\nurl = "https://audit.example.com"',
            *(
                f'[routes.{name}]\nsource = "trivore"\ndestination = "audit"\nordering = "{ordering}"\non_dead = "{on_dead}"'
                for name, ordering, on_dead in (
                    ("strict", "strict", "continue"),
                    ("blocking", "strict", "block"),
                    ("latest", "latest", "continue"),
                )
            ),
        ]
    )
)
DONE = Delivered((), "forwarded")
UNWELL = Failed((), "server_error", "503")
HOPELESS = Failed((), "mapping", "email: no value")
ROUTES = ("strict", "blocking", "latest")


def differences(database: Database) -> list[Difference]:
    return [found for checked in verify(database, CONFIG) for found in checked.differences]


def findings(database: Database) -> list[tuple[str, int | None, str | None]]:
    return sorted((d.finding, d.seq, d.route) for d in differences(database))


def mend(database: Database) -> list[Difference]:
    return [found for checked in rebuild(database, CONFIG, who="ann") for found in checked.differences]


@pytest.fixture
def lived_in(steps: Steps) -> Steps:
    """A database in which deliveries stand in every state, and some have ended each way.

    strict: u1 delivered twice (1, 2), u2 dead and passed (3) then delivered (4), u3 failed once and waits for its retry
    (5) with one behind it (6), u4 in flight (7) with one behind it (8). blocking: u1 blocked (9), one behind it (10).
    latest: u1 delivered (11), of u2 one was folded (12) into another that was delivered (13).
    """
    steps.arrive(an_event(1, "u1"), an_event(2, "u1"))
    for _ in range(2):
        steps.attempt(DONE)
    steps.arrive(an_event(3, "u2"), an_event(4, "u2"))
    steps.attempt(HOPELESS)
    steps.attempt(DONE)
    steps.arrive(an_event(5, "u3"), an_event(6, "u3"))
    steps.attempt(UNWELL)
    steps.arrive(an_event(7, "u4"), an_event(8, "u4"))
    steps.claim()
    steps.arrive(*(an_event(n, "u1", routes=["blocking"]) for n in (9, 10)))
    steps.attempt(HOPELESS, "blocking")
    steps.arrive(an_event(11, "u1", routes=["latest"]), an_event(12, "u2", routes=["latest"]))
    steps.arrive(an_event(13, "u2", routes=["latest"]))
    steps.attempt(DONE, "latest")
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


class Planter:
    """Changes what nobody may change, as a slip of a hand or a bad restore would."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __call__(self, statement: str) -> None:
        with self._engine.begin() as connection:
            if self._engine.dialect.name == POSTGRES:
                connection.execute(text("SET LOCAL session_replication_role = replica"))  # no triggers
            else:
                for name in ("delivery_log_refuses_update", "delivery_log_refuses_delete", "inbox_refuses_delete"):
                    connection.execute(text(f"DROP TRIGGER IF EXISTS {name}"))
            assert connection.execute(text(statement.replace(":", "\\:"))).rowcount >= 1, "it changes something"


@pytest.fixture
def plant(engine: Engine) -> Planter:
    return Planter(engine)
