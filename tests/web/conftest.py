"""The page, with the steps of a relay that fill its database. All of them have one clock, which stands."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from inbox.config.model import Config
from relay.store.database import Database
from tests.helpers.databases import url_of_kind
from tests.helpers.page import Entrance, Page, entrance, lift_time_limits, on_database, serving
from tests.helpers.relaying import CONFIG, FakeClock, Steps


@pytest.fixture(autouse=True)
def _time_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    lift_time_limits(monkeypatch)


@pytest.fixture
def database_url(request: pytest.FixtureRequest) -> str:
    """The URL of a migrated, empty SQLite file; tests of statements ask for both kinds by `ON_BOTH`."""
    return url_of_kind(request)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def page_config(database_url: str) -> Config:
    """Routes `strict`, `blocking` and `latest` from `trivore` to `audit`, as those of `steps`. A module may define another."""
    return on_database(CONFIG, database_url)


@pytest.fixture
def page(page_config: Config, clock: FakeClock) -> Iterator[Page]:
    """The page of `page_config`."""
    with serving(page_config, clock) as made:
        yield made


@pytest.fixture
def door(page_config: Config, tmp_path: Path) -> Iterator[Entrance]:
    """The page of `page_config` with its real access."""
    with entrance(page_config, tmp_path) as made:
        yield made


@pytest.fixture
def steps(engine: Engine, clock: FakeClock) -> Steps:
    """A relay's steps, which fill the database of `page`."""
    return Steps(engine, clock=clock)


@pytest.fixture
def database(steps: Steps) -> Database:
    return steps.database
