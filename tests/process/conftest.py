"""Both kinds of database for what starts processes: on Postgres the same is proven only when there is time.

Whatever SQL they send has tests on both kinds in `tests/store` and `tests/flow`. Tests that ask for `module_database_url`
or `postgres_database_url` run their processes on Postgres each time.
"""

from __future__ import annotations

import pytest


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.long)])
def database_url(request: pytest.FixtureRequest) -> str:
    url: str = request.getfixturevalue(f"{request.param}_database_url")
    return url
