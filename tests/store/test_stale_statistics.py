"""Postgres plans by statistics, which may be of a time before an outage: statements stay one index range each.

While no relay runs, everything that arrives is `received`, and so autovacuum finds that nothing is in any other state. By
such statistics Postgres takes the indexes of the other states for empty, and would read all of one instead of an entry:
a claim of 16 among 60,000 heads took 136 ms, and now takes 0.2.
"""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from sqlalchemy import Connection, Engine, TextClause, text

from inbox.db.dialect import POSTGRES, Sql, rows_param
from inbox.db.intake import NOTES, note_param
from inbox.events.timestamps import time_text
from relay.store import alert_conditions, audit, claim, deliveries, duplicates, leases, sequence
from tests.helpers.explaining import explained
from tests.helpers.storing import START, an_event

pytestmark = pytest.mark.long

ROWS = 20_000
READ_AT_MOST = 16 * 16
"""Rows of any one node: of each of some lanes one, and what each was compared with: the others that are asked for."""
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
FROM_THE_FIRST = rows_param([{"route": "crm", "lane": ""}])
KEYS = rows_param(
    {"seq": n, "route": "crm", "token": 1, "state": "waiting", "attempt": 1, "run": 0, "crashes": 0, "due_at": None}
    for n in SOME
)
LEASE = {"token": 1, "node": "r1", "lease": 15, "now": None}
OF_THE_ROUTE = {"now": None, "route": "crm", "begin": "2026-01-01 00:00:00.000000Z"}
LEASED = "state = 'in_flight', lease_until = '2026-01-01 00:00:00Z', lease_token = 1, relay_node = 'r1'"
DUE = "due_at = '2026-01-01 00:00:00Z'"

STATEMENTS: dict[str, tuple[TextClause, str, dict[str, Any]]] = {
    "due heads": (claim._DUE.of(SQL).text, f"state = 'ready', {DUE}", {**OF_THE_ROUTE, "most": 16}),
    "lease": (claim._LEASE.of(SQL).text, f"state = 'ready', {DUE}", {"due": KEYS, **LEASE}),
    "renew": (leases._RENEW.of(SQL).text, LEASED, {"held": KEYS, "lease": 15, "now": None}),
    "give back": (leases._GIVE_BACK.of(SQL).text, LEASED, {"returned": KEYS, "now": None}),
    "rows of a span": (audit._ROWS[True].of(SQL).text, "state = 'waiting'", {"wanted": KEYS}),
    "move": (deliveries.MOVE.of(SQL).text, LEASED, {"moved": KEYS}),
    "end": (deliveries.END.of(SQL).text, LEASED, {"ended": KEYS}),
    "given": (deliveries._OF_KEYS["wait"].of(SQL).text, "state = 'received'", {"keys": KEYS}),
    "heads": (sequence._HEADS.of(SQL).text, f"state = 'ready', {DUE}", {"lanes": LANES}),
    "deaths that are over": (alert_conditions._DEATHS_OVER, "state = 'waiting'", {}),
    "first waiting": (sequence._FIRST_WAITING.of(SQL).text, "state = 'waiting'", {"lanes": LANES, "most": 2}),
    "dead": (sequence._DEAD.of(SQL).text, "state = 'dead'", {"lanes": SUCCESSES, "most": 100}),
}


@pytest.fixture(scope="module")
def surprised(module_engine: Engine) -> Engine:
    """A database whose statistics say that everything is received."""
    return filled(module_engine, "open_delivery", FILL)


def filled(engine: Engine, table: str, *statements: str) -> Engine:
    """Fill the table, and let the statistics stay as they are then."""
    with engine.begin() as connection:
        connection.execute(text(f"ALTER TABLE {table} SET (autovacuum_enabled = false)"))
        for statement in statements:
            connection.execute(text(statement), {"rows": ROWS})
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"VACUUM ANALYZE {table}, inbox"))
    return engine


def most_read(connection: Connection, statement: TextClause, parameters: dict[str, Any]) -> int:
    """The most rows that any node of the plan has read, those it left out included."""
    return max(map(_read, explained(connection, statement.text, parameters, "ANALYZE, TIMING OFF, ")))


def _read(node: dict[str, Any]) -> int:
    left_out = sum(value for key, value in node.items() if key.startswith("Rows Removed by"))
    return int((node["Actual Rows"] + left_out) * node["Actual Loops"])


@pytest.mark.parametrize("name", STATEMENTS)
@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
def test_it_reads_what_it_asks_for_whatever_the_statistics_say(surprised: Engine, name: str, mode: str) -> None:
    reads_what_it_asks_for(surprised, name, mode)


def reads_what_it_asks_for(engine: Engine, name: str, mode: str) -> None:
    statement, becomes, parameters = STATEMENTS[name]
    with engine.connect() as connection, connection.begin() as transaction:
        connection.execute(text(f"SET LOCAL plan_cache_mode = {mode}"))
        connection.execute(text(f"UPDATE open_delivery SET {becomes}"))
        assert most_read(connection, statement, parameters) <= READ_AT_MOST
        transaction.rollback()


def test_a_statement_that_trusts_them_is_noticed(surprised: Engine) -> None:
    trusting = text(f"""
SELECT o.seq FROM {SQL.rows("lanes", route="text", lane="text")}
JOIN open_delivery o ON o.route = lanes.route AND o.lane = lanes.lane WHERE o.state = 'dead'
""")
    with surprised.connect() as connection, connection.begin() as transaction:
        connection.execute(text("UPDATE open_delivery SET state = 'dead'"))
        assert most_read(connection, trusting, {"lanes": LANES}) > READ_AT_MOST
        transaction.rollback()


@pytest.fixture(scope="module")
def drained(module_engine: Engine) -> Engine:
    """A database that was analysed while nothing was open, though the table has pages."""
    with module_engine.begin() as connection:
        connection.execute(text("TRUNCATE open_delivery"))
    engine = filled(module_engine, "open_delivery", FILL)
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM open_delivery WHERE seq < :rows"), {"rows": ROWS})
    # The last row keeps VACUUM from giving the pages back.
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM open_delivery"))
        connection.execute(text("DELETE FROM open_delivery"))
        connection.execute(text("ANALYZE open_delivery"))
    with engine.begin() as connection:
        connection.execute(text(FILL), {"rows": ROWS})
    return engine


@pytest.mark.parametrize("name", STATEMENTS)
@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
def test_it_reads_what_it_asks_for_after_statistics_of_a_drained_table(drained: Engine, name: str, mode: str) -> None:
    reads_what_it_asks_for(drained, name, mode)


REPEATS = """
INSERT INTO duplicate_request (seq, received_at, body_sha256, handled_at)
SELECT 1, now(), decode('00', 'hex'), now() FROM generate_series(1, :rows) AS n
"""
EVENTS = """
INSERT INTO inbox (source, dedup_key, event_type, action, occurred_at, received_at, routes, content_type,
                   body_bytes, body_sha256)
SELECT 'trivore', 'key ' || n, 'UPDATE', 'update', now(), now(), ARRAY['crm'], 'text/plain', 1, decode('00', 'hex')
FROM generate_series(1, :rows) AS n
"""
BECAME_MANY = "UPDATE duplicate_request SET seq = id, handled_at = CASE WHEN id % 2 = 0 THEN now() END"
ARRIVED = note_param([msgspec.structs.replace(an_event(n), dedup_key=f"key {n}") for n in SOME], 20)
OF_REPEATS: dict[str, tuple[TextClause, dict[str, Any]]] = {
    "repeat": (NOTES[POSTGRES][0], ARRIVED),
    "count another": (NOTES[POSTGRES][0], {**ARRIVED, "kept": 1}),
    "newest": (duplicates._NEWEST, {}),
    "page": (duplicates._PAGE, {"after": 100, "last": ROWS, "rows": 16}),
    "unhandled": (duplicates._UNHANDLED.of(SQL).text, {"wanted": rows_param({"seq": n} for n in SOME), "rows": 16}),
    "handle": (
        duplicates._HANDLE.of(SQL).text,
        {"decided": rows_param({"id": n, "times": 1} for n in SOME), "at": time_text(START)},
    ),
}


@pytest.fixture(scope="module")
def hammered(module_engine: Engine) -> Engine:
    """A database whose statistics say that all repeats are of one event, and handled."""
    return filled(module_engine, "duplicate_request", EVENTS, REPEATS)


@pytest.mark.parametrize("name", OF_REPEATS)
@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
def test_after_one_event_that_came_without_end_others_cost_what_they_cost(
    hammered: Engine, name: str, mode: str
) -> None:
    statement, parameters = OF_REPEATS[name]
    with hammered.connect() as connection, connection.begin() as transaction:
        connection.execute(text(f"SET LOCAL plan_cache_mode = {mode}"))
        connection.execute(text(BECAME_MANY))
        assert most_read(connection, statement, parameters) <= READ_AT_MOST
        transaction.rollback()
