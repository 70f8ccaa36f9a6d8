"""Leaves of `inbox_payload` on Postgres: each holds the payloads of a range of seq."""

from __future__ import annotations

DEFAULT = "inbox_payload_default"
"""The leaf of every seq that no other leaf is for."""
FIRST_LEAF = 100_000
"""Events in the leaf that the migration makes; a relay makes the following ones, for about a day each."""
OPENING_LOCK = 0x1B0C_0DE6
"""Advisory lock. Transactions that open deliveries of stored events share it; one that deletes payloads has it alone."""

STATEMENTS = (
    f"CREATE TABLE {DEFAULT} PARTITION OF inbox_payload DEFAULT",
    f"CREATE TABLE inbox_payload_1 PARTITION OF inbox_payload FOR VALUES FROM (1) TO ({1 + FIRST_LEAF})",
)


def is_leaf(table: str) -> bool:
    """Return whether a table is a leaf, which no schema in the code names."""
    return table.startswith("inbox_payload_")
