"""Postgres plans by statistics, which may be of a time before an outage: statements stay one index range each.

While no relay runs, everything that arrives is `received`, and so autovacuum finds that nothing is in any other state. By
such statistics Postgres takes the indexes of the other states for empty, and would read all of one instead of an entry:
a claim of 16 among 60,000 heads took 136 ms, and now takes 0.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, TextClause, event, text

from inbox.db.dialect import POSTGRES, Sql, rows_param
from relay.store import alert_conditions, audit, claim, deliveries, leases, sequence
from relay.store.database import Database, ScanStarts
from tests.helpers.relaying import DONE, record, work_of
from tests.helpers.tables import explain

pytestmark = pytest.mark.long

ROWS = 20_000
READ_AT_MOST = 16 * 16
"""Rows of any one node: one of each of 16 lanes, each compared with the 16 rows asked for."""
SQL = Sql(POSTGRES)
SOME = range(100, 116)

FILL = """
INSERT INTO open_delivery (seq, route, lane, occurred_at, state)
SELECT n, 'crm', 'USER|u' || n, '2026-01-01 00:00:00Z', 'received' FROM generate_series(1, :rows) AS n
"""
LANES = rows_param({"route": "crm", "lane": f"USER|u{n}"} for n in SOME)
SUCCESSES = rows_param(
    {"route": "crm", "lane": f"USER|u{n}", "at": "2026-01-02 00:00:00.000000Z", "seq": 10 * ROWS} for n in SOME
)
KEYS = rows_param(
    {"seq": n, "route": "crm", "token": 1, "state": "waiting", "attempt": 1, "run": 0, "crashes": 0, "due_at": None}
    for n in SOME
)
LEASE = {"token": 1, "node": "r1", "lease": 15, "now": None}
OF_THE_ROUTE = {"now": None, "route": "crm", "begin": "2026-01-01 00:00:00.000000Z"}
LEASED = "state = 'in_flight', lease_until = '2026-01-01 00:00:00Z', lease_token = 1, relay_node = 'r1'"
DUE = "due_at = '2026-01-01 00:00:00Z'"

STATEMENTS: dict[str, tuple[TextClause, str, dict[str, Any]]] = {
    "due heads": (claim._DUE.compile_for(SQL).text, f"state = 'ready', {DUE}", {**OF_THE_ROUTE, "most": 16}),
    "lease": (claim._LEASE.compile_for(SQL).text, f"state = 'ready', {DUE}", {"due": KEYS, **LEASE}),
    "renew": (leases._RENEW.compile_for(SQL).text, LEASED, {"held": KEYS, "lease": 15, "now": None}),
    "give back": (leases._GIVE_BACK.compile_for(SQL).text, LEASED, {"returned": KEYS, "now": None}),
    "rows of a span": (audit._ROWS[True].compile_for(SQL).text, "state = 'waiting'", {"wanted": KEYS}),
    "move": (deliveries.UPDATE_ROWS.compile_for(SQL).text, LEASED, {"moved": KEYS}),
    "end": (deliveries.DELETE_ROWS.compile_for(SQL).text, LEASED, {"ended": KEYS}),
    "given": (deliveries._OF_KEYS["wait"].compile_for(SQL).text, "state = 'received'", {"keys": KEYS}),
    "heads": (sequence._HEADS.compile_for(SQL).text, f"state = 'ready', {DUE}", {"lanes": LANES}),
    "deaths that are over": (alert_conditions._DEATHS_OVER, "state = 'waiting'", {}),
    "first waiting": (sequence._FIRST_WAITING.compile_for(SQL).text, "state = 'waiting'", {"lanes": LANES, "most": 2}),
    "dead": (sequence._DEAD.compile_for(SQL).text, "state = 'dead'", {"lanes": SUCCESSES, "most": 100}),
}


@pytest.fixture(scope="module")
def surprised(module_engine: Engine) -> Engine:
    """A database whose statistics say that everything is received."""
    with module_engine.begin() as connection:
        connection.execute(text("ALTER TABLE open_delivery SET (autovacuum_enabled = false)"))
        connection.execute(text(FILL), {"rows": ROWS})
    with module_engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE open_delivery"))
    return module_engine


def most_read(connection: Connection, statement: TextClause, parameters: dict[str, Any]) -> int:
    """The most rows that any node of the plan has read, those it left out included."""
    return max(map(_read, explain(connection, statement.text, parameters, "ANALYZE, TIMING OFF, ")))


def _read(node: dict[str, Any]) -> int:
    left_out = sum(value for key, value in node.items() if key.startswith("Rows Removed by"))
    return int((node["Actual Rows"] + left_out) * node["Actual Loops"])


@pytest.mark.parametrize("name", STATEMENTS)
def test_a_statement_reads_only_its_rows_by_any_statistics(surprised: Engine, name: str) -> None:
    statement, becomes, parameters = STATEMENTS[name]
    with surprised.connect() as connection, connection.begin() as transaction:
        connection.execute(text(f"UPDATE open_delivery SET {becomes}"))
        assert most_read(connection, statement, parameters) <= READ_AT_MOST
        transaction.rollback()


# --- Beside a long report, Postgres keeps the index entries of all that has ended since: looks for work don't read past them


ENDED = 50_000
STILL_OPEN = 400

FILL_BOTH = (
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
        for statement in FILL_BOTH:
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


def test_arrivals_are_read_from_the_last_place_on(reported: Engine) -> None:
    work, scans = work_of(Database(reported)), ScanStarts()

    def order_some() -> int:
        return sequence.sequence(work, scans, batch=20)

    first, second = (pages_read(reported, order_some, "o.seq >= ") for _ in range(2))
    assert second * 4 < first


def test_a_claim_that_finds_too_little_begins_with_what_has_just_become_due(reported: Engine) -> None:
    database, scans = Database(reported), ScanStarts()
    assert len(claim.claim(work_of(database), [claim.FreeCapacity(["strict"], 1000)], scans=scans)) > 100
    assert (
        pages_read(
            reported,
            lambda: claim.claim(work_of(database), [claim.FreeCapacity(["strict"], 8)], scans=scans),
            "body_bytes",
        )
        < 50
    )
    first = pages_read(
        reported, lambda: claim.claim(work_of(database), [claim.FreeCapacity(["strict"], 8)]), "body_bytes"
    )
    assert first > 200, "else this shows nothing"


def test_recording_a_few_reads_no_more_than_their_rows(reported: Engine) -> None:
    """Postgres would rather read all of a table that seems to have few rows: each record took 20 ms after five minutes."""
    with reported.begin() as connection:
        connection.execute(text("DELETE FROM open_delivery WHERE state <> 'received'"))
        connection.execute(text("ANALYZE open_delivery"))
    database, scans = Database(reported), ScanStarts()
    database.sql.pipelines = False  # so that each statement is seen
    sequence.sequence(work_of(database), batch=8)
    (delivery,) = claim.claim(work_of(database), [claim.FreeCapacity(["strict"], 1)], scans=scans)
    claimed = pages_of_each(
        reported, lambda: claim.claim(work_of(database), [claim.FreeCapacity(["strict"], 1)], scans=scans), "claimed"
    )
    recorded = pages_of_each(reported, lambda: record(work_of(database), [(delivery, DONE)]), "jsonb_to_recordset")
    read = claimed | recorded
    assert len(read) > 6
    assert max(read.values()) < 60, read
