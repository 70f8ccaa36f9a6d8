"""A relay that SIGSTOP meets while it has the lock of a route: other routes go on, and this one after the server's limit."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from tests.helpers.agreement import facts_agree
from tests.helpers.daemon import running
from tests.helpers.relaying import fill
from tests.helpers.tables import count
from tests.helpers.traffic import events, serving
from tests.helpers.waiting import until
from tests.helpers.webhooks import ROUTE

pytestmark = pytest.mark.long

BESIDE = '[routes.beside]\nsource = "trivore"\ndestination = "audit"\nordering = "strict"\n'
EVENTS = 40
ALSO_BESIDE = """
INSERT INTO open_delivery (seq, route, lane, occurred_at, state)
SELECT seq, 'beside', lane, occurred_at, state FROM open_delivery
"""
HELD_SECONDS = 25
"""The server's limit here: longer than usual, as the other route is to be delivered before it, on a busy machine, too."""


def test_other_routes_go_on_and_its_own_when_the_server_has_ended_its_transaction(
    postgres_database_url: str, postgres_engine: Engine, tmp_path: Path
) -> None:
    engine = postgres_engine
    fill(postgres_database_url, events(EVENTS, entities=4))
    with engine.begin() as connection:
        connection.execute(text(ALSO_BESIDE))
    frozen = subprocess.Popen(
        [sys.executable, "-m", "tests.helpers.locks", postgres_database_url, ROUTE, str(HELD_SECONDS)]
    )
    try:
        assert os.WIFSTOPPED(os.waitpid(frozen.pid, os.WUNTRACED)[1])
        began = time.monotonic()
        with serving(tmp_path / "arrivals.jsonl") as downstream, running(engine, downstream, more=BESIDE):
            until(lambda: not left(engine, "beside"), "the other route is delivered", within=HELD_SECONDS)
            assert time.monotonic() - began < HELD_SECONDS
            assert left(engine, ROUTE) == EVENTS
            until(lambda: not left(engine, ROUTE), "its route is delivered", within=HELD_SECONDS + 20)
            facts_agree(engine)
    finally:
        frozen.kill()
        frozen.wait()


def left(engine: Engine, route: str) -> int:
    return count(engine, f"open_delivery WHERE route = '{route}'")
