"""Marks for tests that run on one kind of database, or on the second only when there is time."""

from __future__ import annotations

import pytest

ON_POSTGRES = pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
ON_SQLITE = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
LONG_ON_POSTGRES = pytest.mark.parametrize(
    "database_url", ["sqlite", pytest.param("postgres", marks=pytest.mark.long)], indirect=True
)
"""For what starts processes and whose SQL has tests on both kinds elsewhere."""
