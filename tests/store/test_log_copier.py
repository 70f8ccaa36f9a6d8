"""SQLite copied as litestream does it, beside a receiver's and a relay's writes and checkpoints: nothing is missing."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import Engine

from inbox.db import engine as engines
from inbox.db.engine import checkpoint
from relay.store.database import Database
from tests.helpers.kinds import ON_SQLITE
from tests.helpers.log_copier import LogCopier
from tests.helpers.relaying import DONE, Steps
from tests.helpers.storing import an_event
from tests.store.verifying import differences

pytestmark = ON_SQLITE

ROUNDS = 30


def contents(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        return list(connection.iterdump())


def write_and_copy(steps: Steps, engine: Engine, copier: LogCopier) -> None:
    for n in range(100, 100 + ROUNDS):
        steps.arrive(an_event(n, f"v{n}"), an_event(n + 1000, f"w{n}"))
        steps.attempt(DONE)
        checkpoint(engine)
        if n % 3 == 0:
            copier.sync()
        if n % 10 == 0:
            copier.checkpoint()


def test_a_replica_of_copied_frames_is_the_database(lived_in: Steps, engine: Engine, tmp_path: Path) -> None:
    path, replica = Path(engine.url.database or ""), tmp_path / "replica.db"
    copier = LogCopier(path, replica)
    write_and_copy(lived_in, engine, copier)
    copier.close()
    assert copier.snapshots <= 1 + ROUNDS / 10, "a checkpoint of ours restarted the log between those of the copier"
    with closing(sqlite3.connect(replica)) as restored:
        assert restored.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert contents(replica) == contents(path)
    made = engines.connect(f"sqlite:///{replica}", application="tests")
    assert differences(Database(made)) == []
    made.dispose()


def test_without_its_read_transaction_the_log_is_restarted_under_it(
    lived_in: Steps, engine: Engine, tmp_path: Path
) -> None:
    """The test of the test: only the read transaction keeps the log together."""
    copier = LogCopier(Path(engine.url.database or ""), tmp_path / "replica.db")
    copier._connection.execute("ROLLBACK")
    for n in range(100, 110):
        lived_in.arrive(an_event(n, f"v{n}"))
        checkpoint(engine)
    lived_in.arrive(an_event(999, "v999"))
    with closing(copier._connection), pytest.raises(AssertionError, match="restarted the log"):
        copier.sync()
