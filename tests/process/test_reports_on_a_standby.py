"""Reports read a standby: no transaction of theirs asks for what only a primary gives."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from sqlalchemy import text

from inbox.db import engine as engines
from relay.store.database import Database
from tests.helpers.killable_postgres import killable
from tests.helpers.machine import ROOM


@pytest.mark.long
def test_a_snapshot_and_a_read_follow_each_other_on_one_connection() -> None:
    with tempfile.TemporaryDirectory(prefix="inbox-relay-reports-", dir=ROOM) as name:
        folder = Path(name)
        for each in ("primary", "standby"):
            (folder / each).mkdir()
        with killable(folder / "primary") as primary, killable(folder / "standby", standby_of=primary) as standby:
            engine = engines.connect(standby.url("postgres"), application="tests")
            database = Database(engine)
            for way in (database.snapshot, database.read, database.snapshot):
                with way() as transaction:
                    (row,) = transaction.execute(text("SELECT pg_is_in_recovery() AS standby"))
                    assert row.standby
            engine.dispose()
