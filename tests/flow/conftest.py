"""A receiver, the relay's steps and a relay at work, on SQLite unless a test asks for another kind of database."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import Engine

from inbox.config.model import Config
from relay.delivery.policy import policies
from tests.helpers.daemon import Rig, hurry
from tests.helpers.databases import url_of_kind
from tests.helpers.receiver import Receiver, receiving
from tests.helpers.relaying import FakeClock, Steps
from tests.helpers.traffic import serving
from tests.helpers.webhooks import a_config


@pytest.fixture
def database_url(request: pytest.FixtureRequest) -> str:
    """The URL of a migrated, empty database. The statements themselves have their tests on both kinds in tests/store."""
    return url_of_kind(request)


@pytest.fixture(autouse=True)
def patient_receivers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let senders wait a minute for the database: a machine that stands still for 3 s causes no 503."""
    monkeypatch.setattr("inbox.receiver.writer.ANSWER_WITHIN_SECONDS", 60.0)


@pytest.fixture(autouse=True)
def _quick_relays(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)


@pytest.fixture
def rig(engine: Engine, tmp_path: Path) -> Iterator[Rig]:
    with serving(tmp_path / "arrivals.jsonl") as downstream:
        yield Rig(engine, downstream)


@pytest.fixture
def config(database_url: str) -> Config:
    return a_config(database_url)


@pytest.fixture
async def receiver(config: Config) -> AsyncIterator[Receiver]:
    async with receiving(config) as made:
        yield made


@pytest.fixture
def steps(engine: Engine, config: Config) -> Steps:
    return Steps(engine, policies(config), FakeClock(datetime(2030, 1, 1, tzinfo=UTC)))


@pytest.fixture
def uncached_health(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask the database for each health check."""
    monkeypatch.setattr("inbox.receiver.app.READY_CACHED_SECONDS", 0.0)
