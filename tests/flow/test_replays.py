"""A request that somebody has captured, and sends again: later, under another id, when its key is pruned."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime, timedelta

import pytest
from falcon.testing import ASGIConductor
from sqlalchemy import Engine, text

from inbox.clock import SystemClock
from inbox.config.model import Config
from inbox.events.states import RETENTION_FLOOR_DAYS
from inbox.loader.load import parse_config
from inbox.receiver.app import create_app
from inbox.receiver.webhook import Services
from inbox.receiver.writer import GroupCommit
from inbox.sources import PRESETS
from inbox.sources.normalize import readers_of
from inbox.sources.signing import Message, sign
from relay.operations.asks import Rejections
from relay.store.database import Database
from relay.store.operator.readmit import read_again
from tests.helpers.receiver import Receiver, a_link
from tests.helpers.relaying import FakeClock
from tests.helpers.tables import count, rows
from tests.helpers.waiting import until_async
from tests.helpers.webhooks import config_text

SECRET = "8f742231b10e8888abcd99yyyzzz85a5"
SOURCES = f"""
[sources.hub]
preset = "github"
secrets = ["{SECRET}"]
[sources.hub-by-body]
preset = "github"
secrets = ["{SECRET}"]
dedup = ["{{body}}"]
[sources.shop-by-body]
preset = "shopify"
secrets = ["{SECRET}"]
dedup = ["{{body}}"]
[sources.okta-by-body]
preset = "okta"
auth = {{ kind = "bearer", secrets = ["{SECRET}"] }}
dedup = ["{{body}}"]
[sources.acme]
preset = "custom"
secrets = ["{SECRET}"]
signature = {{ header = "X-Signature" }}
event = {{ type = "'t'", id = "body.id", time = "body.at" }}
[sources.acme-of-the-week]
preset = "custom"
secrets = ["{SECRET}"]
max_age = "6d"
signature = {{ header = "X-Signature" }}
event = {{ type = "'t'", id = "item.id", time = "item.at", items = "body.all" }}
"""
DAY = timedelta(days=1)


@pytest.fixture
def config(database_url: str) -> Config:
    return parse_config(config_text(database_url) + SOURCES)


async def send(receiver: Receiver, config: Config, name: str, body: bytes, **headers: str) -> tuple[int, str]:
    """The status and the word with which a signed request is answered."""
    source = config.sources[name]
    signature = source.signature or next(iter(PRESETS[source.preset].signatures), None)
    bearer = {"Authorization": f"Bearer {SECRET}"}
    signed = bearer if signature is None else sign(signature, SECRET, Message(body=body), SystemClock().now())
    more = {key.replace("_", "-"): value for key, value in headers.items()}
    sent = {"Content-Type": "application/json", **signed, **more}
    answer = await receiver.request("POST", f"/webhooks/{name}", headers=sent, body=body)
    return answer.status_code, answer.json.get("status") if answer.status_code == 200 and answer.content else ""


def acme(at: datetime, identifier: str = "1", *others: datetime) -> bytes:
    events = [{"id": f"{identifier}-{number}", "at": each.isoformat()} for number, each in enumerate((at, *others))]
    return json.dumps({**events[0], "all": events}).encode()


async def test_an_id_that_is_not_signed_can_be_exchanged_unless_the_body_is_what_counts(
    receiver: Receiver, config: Config, engine: Engine
) -> None:
    """GitHub and Shopify sign the body alone: whoever has a request can send it with another id, or as another event."""
    body = b'{"action": "deleted", "repository": {"id": 7}}'

    async def github(name: str, delivery: str, event: str = "repository", sent: bytes = body) -> tuple[int, str]:
        return await send(receiver, config, name, sent, X_GitHub_Delivery=delivery, X_GitHub_Event=event)

    assert [await github("hub", "d1"), await github("hub", "d2")] == [(200, "accepted")] * 2
    assert await github("hub-by-body", "d1") == (200, "accepted")
    assert await github("hub-by-body", "d2") == (200, "duplicate")
    assert await github("hub-by-body", "d3", "organization") == (200, "duplicate")
    assert await github("hub-by-body", "d1", sent=body.replace(b"7", b"8")) == (200, "accepted")
    order = b'{"id": 820982911946154508}'
    for number, (topic, told) in enumerate([("orders/create", "accepted"), ("orders/delete", "duplicate")]):
        sent = {"X_Shopify_Topic": topic, "X_Shopify_Webhook_Id": str(number)}
        assert await send(receiver, config, "shop-by-body", order, **sent) == (200, told)
    found = rows(engine, "SELECT dedup_key, event_type FROM inbox WHERE source = 'shop-by-body'")
    assert [tuple(row.values()) for row in found] == [(hashlib.sha256(order).hexdigest(), "orders/create")]


async def test_each_event_of_a_body_counts_by_its_own_part(receiver: Receiver, config: Config, engine: Engine) -> None:
    events = [{"uuid": each, "published": "2026-01-01T00:00:00Z", "eventType": "user.x"} for each in "ab"]
    for sent in (events, events, [*events, {**events[0], "uuid": "c"}]):
        assert (await send(receiver, config, "okta-by-body", json.dumps({"data": {"events": sent}}).encode()))[0] == 200
    assert [row["event_id"] for row in rows(engine, "SELECT event_id FROM inbox ORDER BY seq")] == ["a", "b", "c"]


async def test_an_event_older_than_max_age_is_refused_whole_and_kept(
    receiver: Receiver, config: Config, engine: Engine
) -> None:
    now = SystemClock().now()
    hour = timedelta(hours=1)
    assert (await send(receiver, config, "acme-of-the-week", acme(now, "new", now - 6 * DAY + hour)))[0] == 200
    old = acme(now - 6 * DAY - hour, "old")
    assert (await send(receiver, config, "acme-of-the-week", old))[0] == 422
    assert (await send(receiver, config, "acme-of-the-week", acme(now, "mixed", now - 6 * DAY - hour)))[0] == 422
    assert count(engine, "inbox") == 2
    await until_async(lambda: count(engine, "rejected_request") == 2, "both are kept")
    (row, _) = rows(engine, "SELECT * FROM rejected_request ORDER BY id")
    assert (row["cause"], row["status"]) == ("too_old", 422)
    assert bytes(row["body"]) == old
    page = read_again(Database(engine), readers_of(config), Rejections(everything=True), 0)
    assert [each.rejected for each in page] == [None, None], "a person may take it in after all"


async def test_when_its_key_is_pruned_a_captured_request_is_refused_by_its_age_alone(
    config: Config, engine: Engine, receiver: Receiver
) -> None:
    """A key is kept for seven days from its arrival, and no event is more than a day ahead of that: six are always safe."""
    clock = FakeClock(SystemClock().now() - timedelta(days=RETENTION_FLOOR_DAYS, minutes=1))
    ahead = clock.now() + DAY - timedelta(seconds=1)
    captured = {name: acme(ahead) for name in ("acme", "acme-of-the-week")}

    app = create_app(config, lambda: Services(GroupCommit(a_link(config.database.url), clock)), clock)
    async with ASGIConductor(app) as conductor:
        for name, body in captured.items():
            assert (await send(Receiver(conductor), config, name, body))[0] == 200
    with engine.begin() as connection:
        assert connection.execute(text("DELETE FROM inbox")).rowcount == 2
    assert await send(receiver, config, "acme", captured["acme"]) == (200, "accepted")
    assert (await send(receiver, config, "acme-of-the-week", captured["acme-of-the-week"]))[0] == 422
