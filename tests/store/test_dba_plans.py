"""No query of docs/reference/dba.md reads a large table whole, with a million events and with or without statistics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from sqlalchemy import Connection, Engine, text

from inbox.db.dialect import POSTGRES
from tests.docs import cookbook
from tests.helpers.tables import explained

pytestmark = pytest.mark.long

EVENTS = 1_000_000
LARGE = ("inbox", "inbox_payload", "delivery_log")
FILL = (
    "SET LOCAL session_replication_role = replica",
    "SET LOCAL synchronous_commit = off",
    *(f"ALTER TABLE {table} SET (autovacuum_enabled = off)" for table in ("inbox", "delivery_log", "open_delivery")),
    f"""
    INSERT INTO inbox (source, dedup_key, entity_type, entity_id, event_type, action, occurred_at, received_at, routes,
                       content_type, body_bytes, body_sha256)
    SELECT 'trivore', 'key ' || n, 'USER', 'u' || n / 10, 'UPDATE', 'update', now(), now(), ARRAY['to-crm'],
           'application/json', 1, decode('00', 'hex')
    FROM generate_series(1, {EVENTS}) AS n""",
    f"INSERT INTO inbox_payload (seq, headers, body) SELECT n, '{{}}', '\\x00' FROM generate_series(1, {EVENTS}) AS n",
    f"""
    INSERT INTO delivery_log (at, seq, route, kind, state, attempt, detail)
    SELECT now() - make_interval(secs => {EVENTS} - n), n, 'to-crm', 'delivered', 'ended', 1, '{{}}'
    FROM generate_series(1, {EVENTS}) AS n""",
    """
    INSERT INTO delivery_log (at, seq, route, kind, state, attempt, detail)
    SELECT now(), n * 1000, 'to-crm', 'dead', 'dead', 1, '{"cause": "mapping", "error": "email: no value"}'
    FROM generate_series(1, 500) AS n""",
    """
    INSERT INTO open_delivery (seq, route, lane, occurred_at, state)
    SELECT n * 1000, 'to-crm', 'USER|u' || n * 100, now(), 'dead' FROM generate_series(1, 500) AS n""",
    """
    INSERT INTO open_delivery (seq, route, lane, occurred_at, state, due_at)
    SELECT 900000 + n, 'to-crm', 'USER|u' || 90000 + n / 10, now(), CASE n % 10 WHEN 0 THEN 'ready' ELSE 'waiting' END,
           CASE n % 10 WHEN 0 THEN now() END
    FROM generate_series(1, 20000) AS n""",
    """
    INSERT INTO throughput_minute (kind, name, outcome, minute, count)
    SELECT 'source', 'trivore', 'stored', date_trunc('minute', now()) - make_interval(mins => n), 100
    FROM generate_series(1, 40000) AS n""",
)


@pytest.fixture(scope="module")
def filled(module_engine: Engine) -> Iterator[Connection]:
    """A connection to a database with a million events, which nothing has analyzed."""
    with module_engine.begin() as connection:
        for statement in FILL:
            connection.execute(text(statement.replace(":", "\\:")))
    with module_engine.connect() as connection:
        yield connection


WITHOUT_STATISTICS = ("FROM stuck",)
"""Queries that need what VACUUM has read: only its summary of `ix_delivery_log_at` says where the last minute begins."""


def scans(connection: Connection, but: Sequence[str] = ()) -> list[str]:
    """The queries whose plan reads a large table whole, but these."""
    found = []
    for question in cookbook.questions(POSTGRES):
        if any(part in question.statement for part in but):
            continue
        nodes = explained(connection, question.statement.replace(":", "\\:"), {})
        whole = [node["Relation Name"] for node in nodes if node["Node Type"].endswith("Seq Scan")]
        found += [f"{question.line}: {question.text}: {name}" for name in whole if is_large(name)]
    return found


def is_large(table: str) -> bool:
    return table in LARGE or (table.startswith("inbox_payload_") and table != "inbox_payload_default")


def test_no_query_reads_a_large_table_whole_without_statistics(filled: Connection) -> None:
    assert scans(filled, but=WITHOUT_STATISTICS) == []


def test_no_query_reads_a_large_table_whole_after_a_vacuum(filled: Connection) -> None:
    filled.rollback()
    with filled.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as other:
        other.execute(text("VACUUM ANALYZE"))
    assert scans(filled) == []


def test_a_query_that_reads_a_table_whole_is_noticed(filled: Connection) -> None:
    nodes = explained(filled, "SELECT count(*) FROM inbox WHERE event_type = 'UPDATE' OR event_id = 'x'", {})
    assert any(is_large(node.get("Relation Name", "")) and node["Node Type"].endswith("Seq Scan") for node in nodes)
