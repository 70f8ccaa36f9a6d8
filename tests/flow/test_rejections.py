"""Requests that are refused: the problem document, and the row that is kept. tests/process/test_malformed.py has their statuses."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from sqlalchemy import Engine
from tests.helpers.tables import Row, count, rows

from inbox.http import bodies
from tests.helpers.receiver import PROBLEM, Receiver, exchange, raw_post, served, status_of
from tests.helpers.waiting import until, until_async
from tests.helpers.webhooks import TOKEN, body, payload

CUT = 20
"""Bytes that a truncated body lacks."""


def without(field: str) -> bytes:
    return json.dumps({name: value for name, value in payload().items() if name != field}).encode()


def the_refusal(engine: Engine) -> Row:
    """The one row of `rejected_request`, once it is written: that is done after the answer."""
    (row,) = rows(engine, "SELECT * FROM rejected_request")
    if isinstance(row["headers"], str):
        row["headers"] = json.loads(row["headers"])
    return row


@pytest.mark.parametrize(
    ("sent", "status", "cause", "field"),
    [
        pytest.param(b"<xml/>", 400, "unreadable", None, id="not JSON"),
        pytest.param(body().replace(b"u1", b"\xff"), 400, "unreadable", None, id="not UTF-8"),
        pytest.param(b"[]", 422, "invalid_event", "body", id="no object"),
        pytest.param(without("id"), 422, "invalid_event", "id", id="no id"),
    ],
)
async def test_a_bad_body_of_an_authenticated_sender_is_refused_and_kept_whole(  # noqa: PLR0917  # a table's columns
    receiver: Receiver, engine: Engine, sent: bytes, status: int, cause: str, field: str | None
) -> None:
    answer = await receiver.post(sent, headers={"X-Request-Id": "r-1", "Cookie": "secret=1"})

    assert answer.status_code == status
    assert_problem(answer, status, field)
    await until_async(lambda: count(engine, "rejected_request"), "the refusal is kept")
    row = the_refusal(engine)
    assert (row["source"], row["status"], row["cause"], row["field"]) == ("trivore", status, cause, field)
    assert row["body"] == sent
    assert row["body_sha256"] == hashlib.sha256(sent).digest()
    assert row["headers"]["x-request-id"] == "r-1"
    assert not {"x-webhook-token", "cookie", "authorization"} & set(row["headers"])
    assert TOKEN not in str(row)
    assert count(engine, "inbox") == 0


def assert_problem(answer: Any, status: int, field: str | None) -> None:  # noqa: ANN401  # falcon's Result
    assert answer.headers["content-type"] == PROBLEM
    assert (answer.json["status"], answer.json.get("field")) == (status, field)
    assert answer.json["title"]
    assert answer.json["detail"]


@pytest.mark.parametrize(
    ("path", "token"),
    [
        pytest.param("/webhooks/trivore", "wrong", id="wrong token"),
        pytest.param("/webhooks/nobody", TOKEN, id="unknown source"),
        pytest.param("/webhooks/trivore/" + TOKEN, None, id="the token in the wrong place"),
    ],
)
async def test_of_a_sender_that_does_not_prove_who_it_is_neither_body_nor_headers_are_kept(
    receiver: Receiver, engine: Engine, path: str, token: str | None
) -> None:
    headers = {"Content-Type": "application/json", "X-Request-Id": "r-1"}
    if token is not None:
        headers["X-Webhook-Token"] = token
    answer = await receiver.request("POST", path, body=body(), headers=headers)

    assert answer.status_code == 401
    assert_problem(answer, 401, None)
    assert answer.headers["www-authenticate"]
    await until_async(lambda: count(engine, "rejected_request"), "the refusal is kept")
    row = the_refusal(engine)
    assert (row["status"], row["cause"], row["body"], row["headers"]) == (401, "not_authenticated", None, None)
    assert TOKEN not in str(row)


async def test_an_unknown_source_and_a_wrong_token_get_the_same_answer(receiver: Receiver) -> None:
    wrong = await receiver.post(headers={"X-Webhook-Token": "wrong"})
    unknown = await receiver.post(path="/webhooks/nobody")

    assert wrong.content == unknown.content
    assert dict(wrong.headers) == dict(unknown.headers)


def test_a_body_that_ends_before_its_content_length_is_400_and_not_stored(database_url: str, engine: Engine) -> None:
    with served(database_url) as port:
        answer = exchange(port, raw_post(body(), length=len(body()) + CUT), half_close=True)

        assert status_of(answer) == 400
        assert PROBLEM.encode() in answer
        until(lambda: count(engine, "rejected_request"), "the refusal is kept")
        assert the_refusal(engine)["cause"] == "unreadable"
        assert count(engine, "inbox") == 0


def test_a_body_that_does_not_arrive_in_time_is_408(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "READ_WITHIN_SECONDS", 0.3)
    with served(database_url) as port:
        answer = exchange(port, raw_post(body(), length=len(body()) + CUT))

    assert status_of(answer) == 408
    assert b"did not arrive within" in answer


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
