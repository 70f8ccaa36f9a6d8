"""Requests that are refused: the problem document, and the row that is kept. tests/process/test_receiver.py has their statuses."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from falcon.testing import ASGIConductor
from sqlalchemy import Engine

from inbox.clock import SystemClock
from inbox.db.dialect import as_json
from inbox.db.intake import Rejected
from inbox.http import bodies
from inbox.loader.load import parse_config
from inbox.receiver.app import create_app
from inbox.receiver.webhook import Services
from inbox.receiver.writer import MAX_BYTES, MAX_REJECTIONS, PER_SECOND, GroupCommit
from tests.helpers.receiver import PROBLEM, Memory, Receiver, a_link, ask, served, status_of, webhook
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
async def test_of_a_sender_that_does_not_prove_who_it_is_neither_body_nor_headers_are_kept(
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
    with served(database_url) as port:
        answer = ask(port, webhook(length=len(body()) + 20), half_close=half_close)
        assert status_of(answer) == status
        assert PROBLEM.encode() in answer
        row = until(lambda: the_refusal(engine), "the refusal is kept")
    assert (row["status"], count(engine, "inbox")) == (status, 0)


async def test_a_bug_is_answered_with_500_and_its_message_stands_in_no_log(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It may hold what a webhook says, or a secret that it showed."""

    def fail(*_: object) -> None:
        raise KeyError(TOKEN)

    monkeypatch.setattr("inbox.receiver.webhook.events_of", fail)
    answer = await receiver.post()
    assert (answer.status_code, answer.headers["content-type"]) == (500, PROBLEM)
    assert answer.json == {"type": "about:blank", "title": "Internal Server Error", "status": 500}
    assert "KeyError" in caplog.text
    assert TOKEN not in caplog.text


# --- Refusals without end: few rows, little memory, the same work whoever asks, and counters that tell what was not kept


def refusal(sent: bytes = b"{}") -> Rejected:
    digest = hashlib.sha256(sent).digest()
    when = datetime(2026, 1, 1, tzinfo=UTC)
    return Rejected(when, "trivore", 422, "invalid_event", "id is missing", "id", "192.0.2.1", digest, {}, sent)


@asynccontextmanager
async def writing(database_url: str) -> AsyncIterator[GroupCommit]:
    writer = GroupCommit(a_link(database_url), SystemClock())
    try:
        yield writer
    finally:
        await writer.close()


async def test_of_10000_refusals_a_few_hundred_are_kept_and_every_other_is_counted(
    database_url: str, engine: Engine
) -> None:
    async with writing(database_url) as writer:
        began = writer._loop.time()
        for _ in range(5_000):
            writer.reject(refusal())
        await until_async(lambda: count(engine, "rejected_request"), "the first are kept")
        for _ in range(5_000):
            writer.reject(refusal())
        took = writer._loop.time() - began

    kept = count(engine, "rejected_request")
    assert kept <= MAX_REJECTIONS + 10 * (took + 1), "ten a second, and what waited at the end"
    assert kept + writer.rejections.unkept == 10_000


async def test_refusals_that_wait_hold_no_more_memory_than_a_batch_may(sqlite_database_url: str) -> None:
    async with writing(sqlite_database_url) as writer:
        large = bytes(1024 * 1024)
        for _ in range(50):
            writer.reject(refusal(large))
        waiting = len(writer.rejections) * len(large)
        assert waiting <= MAX_BYTES
        assert writer.rejections.unkept == 50 - len(writer.rejections)


async def test_one_refusal_that_is_larger_than_that_is_kept_all_the_same(database_url: str, engine: Engine) -> None:
    async with writing(database_url) as writer:
        writer.reject(refusal(bytes(2 * MAX_BYTES)))
        assert writer.rejections.unkept == 0
    assert count(engine, "rejected_request") == 1


async def test_those_that_wait_for_their_turn_are_kept_when_the_receiver_stops(
    database_url: str, engine: Engine
) -> None:
    async with writing(database_url) as writer:
        for _ in range(3 * PER_SECOND):
            writer.reject(refusal())
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


async def test_unproven_requests_cost_the_same_work_each_and_no_look_into_the_database(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Work is how often the body is hashed: all else takes less than a microsecond."""
    hashed: list[int] = []

    def counted(work: Any, position: int) -> Any:  # noqa: ANN401  # any function that hashes
        def count_it(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401
            hashed.append(len(arguments[position]))
            return work(*arguments, **options)

        return count_it

    writer = Memory()
    config = parse_config(config_text("sqlite:///not-there.db") + SIGNING)
    async with ASGIConductor(create_app(config, lambda: Services(writer), SystemClock())) as conductor:
        receiver = Receiver(conductor)
        monkeypatch.setattr(hashlib, "sha256", counted(hashlib.sha256, 0))
        monkeypatch.setattr(hmac, "digest", counted(hmac.digest, 1))
        sent = body(padding="x" * 10_000)
        times = {}
        for name, (path, headers) in UNPROVEN.items():
            hashed.clear()
            assert (await receiver.post(sent, path=path, headers=headers)).status_code == 401
            times[name] = sum(length >= len(sent) for length in hashed)

    assert writer.events == []
    assert times == dict.fromkeys(UNPROVEN, 3)  # once for each secret of the source with the most, and to keep the hash
    assert [(row.body, row.headers) for row in writer.rejected] == [(None, None)] * len(UNPROVEN)
