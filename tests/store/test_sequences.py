"""A sequence behind its table, as a restore or the promotion of a logical replica leaves it, is found and said."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine, text

from inbox.db import guarantees
from inbox.db.schema import metadata
from inbox.errors import UnfitDatabase
from tests.helpers.kinds import ON_POSTGRES
from tests.helpers.reading import rows

ROWS = {
    "alert.id": "INSERT INTO alert (at, kind, subject, firing, detail) VALUES (now(), 'retired', 'x', true, '{}')",
    "delivery_log.id": """INSERT INTO delivery_log (at, seq, route, kind, state, attempt, detail)
        VALUES (now(), 1, 'r', 'dead', 'dead', 1, '{}')""",
    "inbox.seq": """INSERT INTO inbox (source, dedup_key, event_type, action, occurred_at, received_at, routes, content_type,
        body_bytes, body_sha256) VALUES ('s', random()::text, 'T', 'other', now(), now(), '{}', 'x', 0, '')""",
    "rejected_request.id": """INSERT INTO rejected_request (received_at, source, status, cause, reason, body_sha256)
        VALUES (now(), 's', 400, 'unreadable', 'r', '')""",
    "relay_command.id": """INSERT INTO relay_command (asked_at, asked_by, kind, selection, reason)
        VALUES (now(), 'p', 'pause', '{"route": "r"}', 'r')""",
    "payload_reveal.id": "INSERT INTO payload_reveal (at, seq, who, reason) VALUES (now(), 1, 'anna', 'the customer called')",
    "duplicate_request.id": "INSERT INTO duplicate_request (seq, received_at, body_sha256) VALUES (1, now(), '')",
}
"""A statement for each column that counts up by itself."""


pytestmark = ON_POSTGRES


def found(engine: Engine) -> list[str]:
    with engine.connect() as connection:
        return guarantees.differences(connection)


def do(engine: Engine, *statements: str) -> None:
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))


def test_every_column_that_counts_up_by_itself_is_looked_at(engine: Engine) -> None:
    defaults = rows(
        engine,
        "SELECT table_name || '.' || column_name AS name FROM information_schema.columns"
        " WHERE column_default LIKE 'nextval%' OR is_identity = 'YES'",
    )
    assert {row["name"] for row in defaults} == set(ROWS)
    assert len(metadata.sorted_tables) > len(ROWS)


def test_one_behind_its_table_is_named_with_the_statement_that_mends_it(engine: Engine) -> None:
    for column, insert in ROWS.items():
        table, _, name = column.partition(".")
        do(engine, insert, insert, insert)
        assert found(engine) == []
        do(engine, f"SELECT setval('{table}_{name}_seq', 2)")

        (line,) = found(engine)
        assert f"the sequence public.{table}_{name}_seq is behind its table" in line
        assert f"it gives 3 next, and {column} has 3 already" in line
        with pytest.raises(UnfitDatabase, match="is behind its table"):
            guarantees.require(engine)

        do(engine, line.partition("Run: ")[2])
        assert found(engine) == []
        do(engine, insert)


@pytest.mark.parametrize("granted", ["TABLES", "SEQUENCES"])
def test_a_role_that_may_not_look_at_both_is_not_held_up(granted: str, engine: Engine) -> None:
    do(engine, ROWS["inbox.seq"], "SELECT setval('inbox_seq_seq', 1, false)")
    role = "nobody_in_particular"
    with engine.connect() as connection:
        connection.execute(text(f"CREATE ROLE {role}"))  # rolled back: roles are shared by all databases
        connection.execute(text(f"GRANT SELECT ON ALL {granted} IN SCHEMA public TO {role}"))
        connection.execute(text(f"SET LOCAL ROLE {role}"))
        assert guarantees.differences(connection) == []
