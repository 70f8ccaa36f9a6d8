"""A DBA works on the tables under load: the receiver answers or says 503 and comes back, nothing is lost, and order holds."""

from __future__ import annotations

import contextlib
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import Engine

from tests.helpers import checkers
from tests.helpers.agreement import facts_agree
from tests.helpers.databases import connect_postgres
from tests.helpers.processes import site
from tests.helpers.tables import facts, open_states, stored
from tests.helpers.traffic import Sender, endless, serving
from tests.helpers.waiting import until
from tests.helpers.webhooks import config_text

pytestmark = pytest.mark.long

SOME = 40
PATIENCE = 90
STATEMENTS = (
    "CREATE INDEX CONCURRENTLY IF NOT EXISTS ix_of_a_dba ON inbox (event_type)",
    "CREATE INDEX CONCURRENTLY IF NOT EXISTS ix_of_a_dba_too ON open_delivery (attempt)",
    "DROP INDEX CONCURRENTLY ix_of_a_dba_too",
    "ANALYZE",
    "VACUUM (ANALYZE) open_delivery",
    "VACUUM FULL gate",
    "VACUUM FULL relay_node",
    "VACUUM FULL open_delivery",
    "VACUUM FULL lane",
    "REINDEX TABLE CONCURRENTLY open_delivery",
    "REINDEX TABLE CONCURRENTLY inbox",
    "REINDEX TABLE inbox",
    "REINDEX TABLE delivery_log",
    "CLUSTER lane USING pk_lane",
)


def test_both_sides_go_on_beside_maintenance_and_a_locked_table_is_503_until_it_is_free(
    postgres_database_url: str, postgres_engine: Engine, tmp_path: Path
) -> None:
    engine = postgres_engine
    with (
        serving(tmp_path / "arrivals.jsonl") as downstream,
        site(tmp_path, config_text(postgres_database_url, downstream.url, schedule=("200ms", "1s"))) as place,
    ):
        _, port = place.receiver(workers=1)
        place.relay()
        sender = Sender(tmp_path / "sends.jsonl", port, endless(), per_second=100)

        def goes_on() -> None:
            acknowledged, arrived = sender.acknowledged() + SOME, len(downstream.arrivals) + SOME
            until(
                lambda: sender.acknowledged() >= acknowledged and len(downstream.arrivals) >= arrived,
                "webhooks are taken in and delivered",
                within=PATIENCE,
            )

        def unavailable() -> int:
            return sum(line.get("status") == 503 for line in sender.sends.lines())

        try:
            goes_on()
            with contextlib.closing(connect_postgres(postgres_database_url)) as dba:
                for statement in STATEMENTS:
                    run(dba, statement)
                    goes_on()
                with dba.transaction():
                    dba.execute(b"LOCK TABLE inbox IN ACCESS EXCLUSIVE MODE")
                    before = unavailable()
                    until(lambda: unavailable() > before, "the sender hears 503", within=PATIENCE)
            goes_on()
            sender.enough()
            until(lambda: sender.is_done, "the last is acknowledged", within=PATIENCE)
        finally:
            sender.stop()
        until(lambda: not open_states(engine), "all is delivered", within=PATIENCE)
        assert place.invoke("relay", "verify").status == 0
        arrivals, sends, logs = downstream.arrivals.lines(), sender.sends.lines(), place.logs()
    assert checkers.unstored(sends, stored(engine)) == []
    assert checkers.out_of_order(arrivals, facts(engine)) == []
    assert checkers.complaints(logs, ("Traceback",)) == []
    facts_agree(engine)


def run(dba: psycopg.Connection, statement: str) -> None:
    """Run it, if need be again: it may be the victim of a deadlock, or of a lock timeout."""
    for attempt in range(9):
        try:
            dba.execute(statement.encode())
        except (psycopg.errors.DeadlockDetected, psycopg.errors.LockNotAvailable):
            assert attempt < 8, statement
        else:
            return
