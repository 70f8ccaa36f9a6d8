"""Tables, indexes, triggers and views of the first version.

The statements are in `0001_initial.postgresql.sql` and `0001_initial.sqlite.sql`, which a DBA can read. They are
frozen; `inbox/db/schema.py` has the current schema, and a test compares the two.
"""

from __future__ import annotations

from inbox.db import migrate

revision = "0001"
down_revision = None


def upgrade() -> None:
    migrate.run_script(__file__)
