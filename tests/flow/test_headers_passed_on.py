"""Headers that a forward destination passes on: from the request through the database to the call, and of a readmitted one."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

from sqlalchemy import Engine
from tests.helpers.tables import rows

from inbox.config.model import Config
from inbox.db.dialect import as_json
from inbox.events.event import RawRequest
from inbox.loader.load import parse_config
from inbox.sources.normalize import readers_of
from tests.helpers.daemon import running
from tests.helpers.receiver import receiving
from tests.helpers.scripted import answer, serving
from tests.helpers.waiting import until
from tests.helpers.webhooks import body, config_text

PASSED = 'pass_headers = ["X-Tenant"]'
HEADERS = {"X-Tenant": "acme", "X-Other": "not listed", "Cookie": "session"}


def configured(database_url: str) -> Config:
    return parse_config(config_text(database_url).replace("concurrency =", f"{PASSED}\nconcurrency ="))


def receive(config: Config, payload: bytes) -> int:
    """Have a receiver take this, and give its status."""

    async def send() -> int:
        async with receiving(config) as receiver:
            return (await receiver.post(payload, headers=HEADERS)).status_code

    return asyncio.run(send())


def test_a_listed_header_of_the_request_reaches_the_destination_and_no_other(database_url: str, engine: Engine) -> None:
    assert receive(configured(database_url), body()) == 200
    with serving(answer(204)) as server, running(engine, server, destination=PASSED):
        until(lambda: server.seen, "it is forwarded")
    headers = server.seen[0].headers
    assert headers["x-tenant"] == "acme"
    assert not headers.keys() & {"x-other", "cookie"}


def test_a_rejected_request_keeps_it_until_it_is_readmitted(database_url: str, engine: Engine) -> None:
    config = configured(database_url)
    assert receive(config, b'{"entityType": "USER"}') == 422
    (row,) = rows(engine, "SELECT headers FROM rejected_request")
    kept = as_json(row["headers"])
    again = RawRequest("trivore", kept, body(), datetime(2026, 1, 1, 0, 1, tzinfo=UTC))  # as it should have been
    (event,) = readers_of(config)["trivore"](again)
    assert kept["x-tenant"] == event.headers["x-tenant"] == "acme"
    assert not event.headers.keys() & {"x-other", "cookie"}
