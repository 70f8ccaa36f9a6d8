"""Every table, index, trigger and view of the first version.

The statements stand in `0001_initial.postgresql.sql` and `0001_initial.sqlite.sql`, for a DBA to read. They are frozen:
what the schema is today stands in `inbox/db/schema.py`, and a test compares the two.
"""

from __future__ import annotations

from inbox.db import migration_script

revision = "0001"
down_revision = None


def upgrade() -> None:
    migration_script.run(__file__)
