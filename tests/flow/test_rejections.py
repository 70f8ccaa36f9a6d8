"""Requests that are refused: the problem document, and the row that is kept. tests/process/test_receiver.py has their statuses."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any

import pytest
from falcon.testing import ASGIConductor
from sqlalchemy import Engine, text

from inbox.clock import SystemClock
from inbox.config.model import Config
from inbox.db.dialect import as_json
from inbox.events.states import RETENTION_FLOOR_DAYS
from inbox.http import bodies
from inbox.loader.load import parse_config
from inbox.receiver.app import create_app
from inbox.receiver.webhook import Services
from inbox.receiver.writer import MAX_BYTES, MAX_REJECTIONS, PER_SECOND, GroupCommit
from inbox.sources import PRESETS
from inbox.sources.normalize import make_readers
from inbox.sources.signing import Message, sign
from relay.operations.asks import Rejections
from relay.store.database import Database
from relay.store.operator.readmit import read_again
from tests.helpers.receiver import PROBLEM, Memory, Receiver, a_link, ask, serve_receiver, status_of, webhook
from tests.helpers.relaying import FakeClock
from tests.helpers.storing import a_rejected
from tests.helpers.tables import Row, count, rows
from tests.helpers.waiting import until, until_async
from tests.helpers.webhooks import TOKEN, body, config_text


def the_refusal(engine: Engine) -> Row:
    """The one row of `rejected_request`, once it is written: that is done after the answer."""
    found = rows(engine, "SELECT * FROM rejected_request")
    return {**found[0], "headers": as_json(found[0]["headers"])} if found else {}


@pytest.mark.parametrize(
    ("sent", "status", "cause", "field"),
    [
        (body().replace(b"u1", b"\xff"), 400, "unreadable", None),
        (body().replace(b'"id"', b'"no"'), 422, "invalid_event", "id"),
    ],
)
async def test_a_bad_body_of_an_authenticated_sender_is_refused_and_kept_whole(  # noqa: PLR0917  # a table's columns
    receiver: Receiver, engine: Engine, sent: bytes, status: int, cause: str, field: str | None
) -> None:
    answer = await receiver.post(sent, headers={"X-Request-Id": "r-1", "Cookie": "secret=1"})
    assert_problem(answer, status, field)
    row = await until_async(lambda: the_refusal(engine), "the refusal is kept")
    assert (row["source"], row["status"], row["cause"], row["field"]) == ("trivore", status, cause, field)
    assert row["body"] == sent
    assert row["body_sha256"] == hashlib.sha256(sent).digest()
    assert row["headers"]["x-request-id"] == "r-1"
    assert not {"x-webhook-token", "cookie", "authorization"} & set(row["headers"])
    assert TOKEN not in str(row)
    assert count(engine, "inbox") == 0


def assert_problem(answer: Any, status: int, field: str | None) -> None:  # noqa: ANN401  # falcon's Result
    assert (answer.status_code, answer.headers["content-type"]) == (status, PROBLEM)
    assert (answer.json["status"], answer.json.get("field")) == (status, field)
    assert answer.json["title"]
    assert answer.json["detail"]


@pytest.mark.parametrize(
    ("path", "token"),
    [("/webhooks/trivore", "wrong"), ("/webhooks/nobody", TOKEN), ("/webhooks/trivore/" + TOKEN, "")],
    ids=["wrong token", "unknown source", "the token in the wrong place"],
)
async def test_a_request_of_an_unproven_sender_is_kept_without_content(
    receiver: Receiver, engine: Engine, path: str, token: str
) -> None:
    answer = await receiver.post(path=path, headers={"X-Request-Id": "r-1", "X-Webhook-Token": token})
    assert_problem(answer, 401, None)
    assert answer.headers["www-authenticate"]
    row = await until_async(lambda: the_refusal(engine), "the refusal is kept")
    assert (row["status"], row["cause"], row["body"], row["headers"]) == (401, "not_authenticated", None, None)
    assert TOKEN not in str(row)


async def test_an_unknown_source_and_a_wrong_token_get_the_same_answer(receiver: Receiver) -> None:
    wrong = await receiver.post(headers={"X-Webhook-Token": "wrong"})
    unknown = await receiver.post(path="/webhooks/nobody")

    assert wrong.content == unknown.content
    assert dict(wrong.headers) == dict(unknown.headers)


@pytest.mark.parametrize(("half_close", "status"), [(True, 400), (False, 408)])
def test_a_body_that_ends_early_is_400_and_one_that_does_not_come_in_time_408(
    database_url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch, half_close: bool, status: int
) -> None:
    monkeypatch.setattr(bodies, "READ_WITHIN_SECONDS", 60.0 if half_close else 0.3)
    with serve_receiver(database_url) as port:
        answer = ask(port, webhook(length=len(body()) + 20), half_close=half_close)
        assert status_of(answer) == status
        assert PROBLEM.encode() in answer
        row = until(lambda: the_refusal(engine), "the refusal is kept")
    assert (row["status"], count(engine, "inbox")) == (status, 0)


async def test_a_bug_is_500_without_its_message(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It may hold a part of a webhook, or a secret."""

    def fail(*_: object) -> None:
        raise KeyError(TOKEN)

    monkeypatch.setattr("inbox.receiver.webhook.make_events", fail)
    answer = await receiver.post()
    assert (answer.status_code, answer.headers["content-type"]) == (500, PROBLEM)
    assert answer.json == {"type": "about:blank", "title": "Internal Server Error", "status": 500}
    assert "KeyError" in caplog.text
    assert TOKEN not in caplog.text


# --- Endless refusals: few rows, little memory, equal work for any sender, and counters of those not kept


@asynccontextmanager
async def writing(database_url: str) -> AsyncIterator[GroupCommit]:
    writer = GroupCommit(a_link(database_url), SystemClock())
    try:
        yield writer
    finally:
        await writer.close()


async def test_of_10000_refusals_a_few_hundred_are_kept_and_all_are_counted(database_url: str, engine: Engine) -> None:
    async with writing(database_url) as writer:
        began = writer._loop.time()
        for _ in range(5_000):
            writer.reject(a_rejected())
        await until_async(lambda: count(engine, "rejected_request"), "the first are kept")
        for _ in range(5_000):
            writer.reject(a_rejected())
        took = writer._loop.time() - began

    kept = count(engine, "rejected_request")
    assert kept <= MAX_REJECTIONS + 10 * (took + 1), "ten a second, and what waited at the end"
    assert kept + writer.rejections.unkept == 10_000


async def test_refusals_that_wait_hold_no_more_memory_than_a_batch_may(sqlite_database_url: str) -> None:
    async with writing(sqlite_database_url) as writer:
        large = bytes(1024 * 1024)
        for _ in range(50):
            writer.reject(a_rejected(body=large))
        waiting = len(writer.rejections) * len(large)
        assert waiting <= MAX_BYTES
        assert writer.rejections.unkept == 50 - len(writer.rejections)


async def test_refusals_that_wait_are_kept_when_the_receiver_stops(database_url: str, engine: Engine) -> None:
    async with writing(database_url) as writer:
        for _ in range(3 * PER_SECOND):
            writer.reject(a_rejected())
    assert count(engine, "rejected_request") == 3 * PER_SECOND


SIGNING = """
[sources.signing]
preset = "github"
secrets = ["one", "another"]
"""
UNPROVEN = {
    "no such source": ("/webhooks/nobody", {"Authorization": "Bearer wrong"}),
    "a wrong secret": ("/webhooks/trivore", {"X-Webhook-Token": "wrong"}),
    "no secret": ("/webhooks/trivore", {"X-Webhook-Token": ""}),
    "a wrong signature": ("/webhooks/signing", {"X-Hub-Signature-256": "sha256=" + "0" * 64}),
    "no signature": ("/webhooks/signing", {}),
}


async def test_unproven_requests_cost_the_same_work_and_no_database_query(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work is how often the body is hashed: all else takes less than a microsecond."""
    hashed: list[int] = []

    def count_calls(work: Any, position: int) -> Any:  # noqa: ANN401  # any function that hashes
        def count_it(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401
            hashed.append(len(arguments[position]))
            return work(*arguments, **options)

        return count_it

    writer = Memory()
    config = parse_config(config_text("sqlite:///not-there.db") + SIGNING)
    async with ASGIConductor(create_app(config, lambda: Services(writer), SystemClock())) as conductor:
        receiver = Receiver(conductor)
        monkeypatch.setattr(hashlib, "sha256", count_calls(hashlib.sha256, 0))
        monkeypatch.setattr(hmac, "digest", count_calls(hmac.digest, 1))
        sent = body(padding="x" * 10_000)
        times = {}
        for name, (path, headers) in UNPROVEN.items():
            hashed.clear()
            assert (await receiver.post(sent, path=path, headers=headers)).status_code == 401
            times[name] = sum(length >= len(sent) for length in hashed)

    assert writer.events == []
    assert times == dict.fromkeys(UNPROVEN, 3)  # once for each secret of the source with the most, and to keep the hash
    assert [(row.body, row.headers) for row in writer.rejected] == [(None, None)] * len(UNPROVEN)


# --- Replays of a captured request: later, under another id, and when its key is pruned


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


async def test_an_unsigned_id_can_be_exchanged_unless_the_body_counts(
    receiver: Receiver, config: Config, engine: Engine
) -> None:
    """GitHub and Shopify sign the body alone: an attacker with a request can send it with another id, or as another event."""
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


async def test_an_event_beyond_max_age_is_rejected_and_kept(receiver: Receiver, config: Config, engine: Engine) -> None:
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
    page = read_again(Database(engine), make_readers(config), Rejections(everything=True), 0)
    assert [each.rejected for each in page] == [None, None], "a person may take it in after all"


async def test_a_captured_request_with_a_pruned_key_is_refused_by_age(
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
