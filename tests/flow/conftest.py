"""A receiver on each kind of database, and the relay's steps on the same."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest
from sqlalchemy import Engine

from inbox.config.model import Config
from relay.delivery.policy import policies
from tests.helpers.receiver import Receiver, receiving
from tests.helpers.relaying import FakeClock, Steps
from tests.helpers.webhooks import a_config


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
