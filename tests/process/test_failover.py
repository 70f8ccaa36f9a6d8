"""The primary dies under load and its standby takes over: receiver and relay go on by themselves, with the URL of the docs."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import pytest
from sqlalchemy import text

from inbox.db.engine import connect
from relay.store.database import Database
from tests.helpers.failover import HOSTS, SOME, at_work, page_url
from tests.helpers.killable_postgres import killable
from tests.helpers.machine import ROOM
from tests.helpers.waiting import until


@pytest.mark.long
def test_behind_a_synchronous_standby_nothing_acknowledged_is_lost_and_everything_goes_on(tmp_path: Path) -> None:
    """Ten seconds."""
    with at_work(tmp_path, synchronous=True) as pair:
        pair.primary.kill()
        pair.standby.promote()
        pair.send_some()
        pair.sender.enough()
        until(lambda: pair.sender.is_done, "the last is acknowledged")
        inbox = Counter(pair.in_the_inbox())
        until(
            lambda: (
                {(line["entity"], line["occurred_at"]) for line in pair.downstream.arrivals.lines()} == inbox.keys()
            ),
            "everything is delivered",
        )
        assert all(program.runs for program in pair.programs)

    assert pair.acknowledged() - inbox.keys() == set()
    assert max(inbox.values()) == 1


@pytest.mark.long
def test_behind_an_asynchronous_one_that_was_late_the_same_test_sees_what_is_lost(tmp_path: Path) -> None:
    """Ten seconds."""
    with at_work(tmp_path, synchronous=False) as pair:
        pair.standby.stop()
        pair.send_some()
        pair.primary.kill()
        pair.standby.start()
        pair.standby.promote()
        pair.sender.enough()
        until(lambda: pair.sender.is_done, "the last is acknowledged")
        assert len(pair.acknowledged() - set(pair.in_the_inbox())) > SOME / 2


@pytest.mark.parametrize("name", HOSTS)
def test_the_url_of_the_page_reaches_the_driver_with_every_host(name: str) -> None:
    engine = connect(page_url(), application="tests")
    _, options = engine.dialect.create_connect_args(engine.url)
    host, port = name.split(":")
    assert host in options["host"].split(",")
    assert port in options["port"].split(",")
    assert options["target_session_attrs"] == "read-write"


@pytest.mark.long
def test_reports_read_a_standby_by_snapshots_and_reads_on_one_connection() -> None:
    """No transaction of theirs asks for a thing that only a primary gives."""
    with tempfile.TemporaryDirectory(prefix="inbox-relay-reports-", dir=ROOM) as name:
        folders = [Path(name, each) for each in ("primary", "standby")]
        for folder in folders:
            folder.mkdir()
        with killable(folders[0]) as primary, killable(folders[1], standby_of=primary) as standby:
            engine = connect(standby.url("postgres"), application="tests")
            database = Database(engine)
            for way in (database.snapshot, database.read, database.snapshot):
                with way() as transaction:
                    (row,) = transaction.execute(text("SELECT pg_is_in_recovery() AS standby"))
                    assert row.standby
            engine.dispose()
