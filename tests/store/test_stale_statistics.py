"""Postgres plans by statistics, which may be of a time before an outage: statements stay one index range each.

While no relay runs, everything that arrives is `received`, and so autovacuum finds that nothing is in any other state. By
such statistics Postgres takes the indexes of the other states for empty, and would read all of one instead of an entry:
a claim of 16 among 60,000 heads took 136 ms, and now takes 0.2.
"""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Connection, Engine, TextClause, text

from inbox.db.dialect import POSTGRES, Sql, rows_param
from relay.store import alert_conditions, audit, claim, deliveries, leases, sequence
from tests.helpers.tables import explained

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
    with module_engine.begin() as connection:
        connection.execute(text("ALTER TABLE open_delivery SET (autovacuum_enabled = false)"))
        connection.execute(text(FILL), {"rows": ROWS})
    with module_engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE open_delivery"))
    return module_engine


def most_read(connection: Connection, statement: TextClause, parameters: dict[str, Any]) -> int:
    """The most rows that any node of the plan has read, those it left out included."""
    return max(map(_read, explained(connection, statement.text, parameters, "ANALYZE, TIMING OFF, ")))


def _read(node: dict[str, Any]) -> int:
    left_out = sum(value for key, value in node.items() if key.startswith("Rows Removed by"))
    return int((node["Actual Rows"] + left_out) * node["Actual Loops"])


@pytest.mark.parametrize("name", STATEMENTS)
def test_it_reads_what_it_asks_for_whatever_the_statistics_say(surprised: Engine, name: str) -> None:
    statement, becomes, parameters = STATEMENTS[name]
    with surprised.connect() as connection, connection.begin() as transaction:
        connection.execute(text(f"UPDATE open_delivery SET {becomes}"))
        assert most_read(connection, statement, parameters) <= READ_AT_MOST
        transaction.rollback()
