"""Beside a long report, Postgres keeps the index entries of all that has ended since: looks for work don't read past them.

With 100,000 of them, a look for what has arrived took 32 ms and a claim 36 ms, each time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, event, text

from relay.store.claim import Room, claim
from relay.store.database import Database, ScanStarts
from relay.store.sequence import sequence
from tests.helpers.relaying import DONE, record, work_of

pytestmark = pytest.mark.long

ENDED = 50_000
STILL_OPEN = 400

FILL = (
    """
INSERT INTO inbox (seq, source, dedup_key, event_type, action, occurred_at, received_at, routes, content_type,
                   body_bytes, body_sha256)
SELECT n, 'trivore', 'key ' || n, 'UPDATE', 'update', now(), now(), ARRAY['strict'], 'text/plain', 0, '\\x00'
FROM generate_series(:ended + 1, :ended + :still) AS n
""",
    """
INSERT INTO inbox_payload (seq, headers, body)
SELECT n, '{}', '' FROM generate_series(:ended + 1, :ended + :still) AS n
""",
    """
INSERT INTO open_delivery (seq, route, lane, occurred_at, state, due_at)
SELECT n, 'strict', 'event|' || n, now(), CASE WHEN n % 2 = 0 THEN 'received' ELSE 'ready' END,
       CASE WHEN n % 2 = 1 THEN CAST('2026-01-01 00:00:00Z' AS timestamptz) + n * interval '1 ms' END
FROM generate_series(1, :ended + :still) AS n
""",
)


@pytest.fixture(scope="module")
def reported(module_engine: Engine) -> Iterator[Engine]:
    """A database in which much has ended, as a transaction that is still open has not seen."""
    engine = module_engine
    with engine.begin() as connection:
        for statement in FILL:
            connection.execute(text(statement), {"ended": ENDED, "still": STILL_OPEN})
    report = engine.connect().execution_options(isolation_level="REPEATABLE READ")
    report.execute(text("SET idle_in_transaction_session_timeout = 0"))
    report.execute(text("SELECT count(*) FROM open_delivery"))
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM open_delivery WHERE seq <= :ended"), {"ended": ENDED})
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE open_delivery"))
    yield engine
    report.close()


def pages_of_each(engine: Engine, act: Callable[[], object], of: str = "") -> dict[str, int]:
    """Count the pages that each statement of `act` with `of` in it reads: of indexes and tables, in memory or not."""
    sent: list[tuple[str, Any]] = []

    def listen(_connection: object, _cursor: object, statement: str, parameters: object, *_: object) -> None:
        if of in statement:
            sent.append((statement, parameters))

    event.listen(engine, "before_cursor_execute", listen)
    act()
    event.remove(engine, "before_cursor_execute", listen)
    return {statement: pages(engine, statement, parameters) for statement, parameters in sent}


def pages(engine: Engine, statement: str, parameters: Any) -> int:  # noqa: ANN401  # as the driver takes them
    with engine.connect() as connection, connection.begin() as transaction:
        (found,) = connection.exec_driver_sql(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}", parameters).one()
        transaction.rollback()
    plan = found[0]["Plan"]
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


def pages_read(engine: Engine, act: Callable[[], object], of: str) -> int:
    """Count the pages that the one statement of `act` with `of` in it reads."""
    ((_, number),) = pages_of_each(engine, act, of).items()
    return number


def test_what_has_arrived_is_read_from_there(reported: Engine) -> None:
    work, scans = work_of(Database(reported)), ScanStarts()

    def order_some() -> int:
        return sequence(work, scans, batch=20)

    first, second = (pages_read(reported, order_some, "o.seq >= ") for _ in range(2))
    assert second * 4 < first


def test_a_claim_begins_where_the_last_one_ended(reported: Engine) -> None:
    database, scans = Database(reported), ScanStarts()
    first, second = (
        pages_read(reported, lambda: claim(work_of(database), [Room(["strict"], 8)], scans=scans), "body_bytes")
        for _ in range(2)
    )
    assert second * 4 < first


def test_a_claim_that_finds_too_little_begins_with_what_has_just_become_due(reported: Engine) -> None:
    database, scans = Database(reported), ScanStarts()
    assert len(claim(work_of(database), [Room(["strict"], 1000)], scans=scans)) > 100
    assert pages_read(reported, lambda: claim(work_of(database), [Room(["strict"], 8)], scans=scans), "body_bytes") < 50
    first = pages_read(reported, lambda: claim(work_of(database), [Room(["strict"], 8)]), "body_bytes")
    assert first > 200, "else this shows nothing"


def test_recording_a_few_reads_no_more_than_their_rows(reported: Engine) -> None:
    """Postgres would rather read all of a table that seems to have few rows: each record took 20 ms after five minutes."""
    with reported.begin() as connection:
        connection.execute(text("DELETE FROM open_delivery WHERE state <> 'received'"))
        connection.execute(text("ANALYZE open_delivery"))
    database, scans = Database(reported), ScanStarts()
    database.sql.pipelines = False  # so that each statement is seen
    sequence(work_of(database), batch=8)
    (delivery,) = claim(work_of(database), [Room(["strict"], 1)], scans=scans)
    claimed = pages_of_each(reported, lambda: claim(work_of(database), [Room(["strict"], 1)], scans=scans), "claimed")
    recorded = pages_of_each(reported, lambda: record(work_of(database), [(delivery, DONE)]), "jsonb_to_recordset")
    read = claimed | recorded
    assert len(read) > 6
    assert max(read.values()) < 60, read
