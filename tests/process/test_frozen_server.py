"""A server that stands still is given up by both sides, and one that is only slow is not."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import OperationalError

from inbox.db import engine as engines
from inbox.db import unanswered
from tests.helpers.killable_postgres import KillablePostgres, killable
from tests.helpers.machine import ROOM

SLOWLY, STATEMENT = 0.3, text("SELECT pg_sleep(1)")
A_BUSY_MACHINE = 30.0
"""Seconds that it may take longer, and others to answer; a frozen server never does."""


@pytest.fixture(scope="module")
def server() -> Iterator[KillablePostgres]:
    with tempfile.TemporaryDirectory(prefix="inbox-relay-frozen-", dir=ROOM) as folder:
        Path(folder).chmod(0o755)
        with killable(Path(folder)) as made:
            yield made


@pytest.fixture
def engine(server: KillablePostgres) -> Iterator[Engine]:
    made = engines.connect(server.url("postgres"), application="tests")
    yield made
    made.dispose()


def test_a_thread_gives_up_a_frozen_server_and_its_pool_makes_another_connection(
    server: KillablePostgres, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unanswered, "SILENT_SECONDS", SLOWLY)
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
        with server.frozen():
            began = time.monotonic()
            with pytest.raises(OperationalError, match="has been silent") as raised:
                connection.execute(text("SELECT 1"))
            assert raised.value.connection_invalidated
            assert time.monotonic() - began < SLOWLY + unanswered.ASKED_SECONDS + A_BUSY_MACHINE
    with engine.connect() as connection:
        connection.execute(text("CREATE TEMPORARY TABLE t (n int)"))
        with server.frozen(), pytest.raises(OperationalError, match="has been silent"):
            connection.commit()
    monkeypatch.setattr(unanswered, "ASKED_SECONDS", int(A_BUSY_MACHINE))
    with engine.connect() as connection:
        connection.execute(STATEMENT)  # it only takes long


async def test_an_event_loop_gives_up_a_statement_that_says_nothing(
    server: KillablePostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engines.connect_async(server.url("postgres"), application="tests")
    async with engine.connect() as connection:
        with monkeypatch.context() as hurry:
            hurry.setattr(unanswered, "SILENT_SECONDS", SLOWLY)
            with pytest.raises(OperationalError, match="has been silent"):
                await connection.execute(STATEMENT)
    async with engine.connect() as connection:
        assert (await connection.execute(text("SELECT 1"))).scalar_one() == 1
    await engine.dispose()
