"""Every table, index, trigger and view of the first version.

The statements stand in `0001_initial.postgresql.sql` and `0001_initial.sqlite.sql`, for a DBA to read. They are frozen:
what the schema is today stands in `inbox/db/schema.py`, and a test compares the two.
"""

from __future__ import annotations

from importlib.resources import files

from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    connection = op.get_bind()
    script = files(__package__ or "migrations.versions") / f"0001_initial.{connection.dialect.name}.sql"
    for statement in script.read_text(encoding="utf-8").split(";\n\n"):
        connection.exec_driver_sql(statement.rstrip().removesuffix(";"))
