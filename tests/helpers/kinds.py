"""Marks for tests that run on one kind of database."""

from __future__ import annotations

import pytest

ON_POSTGRES = pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
ON_BOTH = pytest.mark.parametrize("database_url", ["sqlite", "postgres"], indirect=True)
ON_SQLITE = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
ON_BOTH = pytest.mark.parametrize("database_url", ["sqlite", "postgres"], indirect=True)
"""For folders whose tests run on SQLite unless they ask for more."""
