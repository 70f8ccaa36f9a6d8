"""A webhook becomes a delivery: the real app and writer, then the real steps of the relay, on both databases."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import Engine

from inbox.loader.load import parse_config
from tests.helpers.daemon import running
from tests.helpers.databases import ON_BOTH
from tests.helpers.receiver import Receiver, posted, served
from tests.helpers.relaying import Steps
from tests.helpers.scripted import answer, serving
from tests.helpers.tables import count, duplicates, rows
from tests.helpers.waiting import until
from tests.helpers.webhooks import HEADERS, PATH, ROUTE, TOKEN, body, config_text


@ON_BOTH
async def test_a_webhook_becomes_a_delivery(receiver: Receiver, steps: Steps, engine: Engine) -> None:
    payload = body("u1", "2026-01-01T02:00:00+02:00", other="fields are kept")
    answer = await receiver.post(payload, headers={"X-Request-Id": "r-1"})

    assert (answer.status_code, answer.json) == (200, {"status": "accepted", "seq": 1})
    assert rows(engine, "SELECT seq, route, lane, state FROM open_delivery") == [
        {"seq": 1, "route": ROUTE, "lane": "USER|u1", "state": "received"}
    ]

    assert steps.round() == 1
    (delivery,) = steps.deliverer.seen
    assert delivery.body == payload
    assert (delivery.seq, delivery.route, delivery.attempt) == (1, ROUTE, 1)
    assert (delivery.entity_type, delivery.entity_id, delivery.event_type) == ("USER", "u1", "UPDATE")
    assert delivery.occurred_at.isoformat() == "2026-01-01T00:00:00+00:00"
    assert delivery.headers["x-request-id"] == "r-1"
    assert TOKEN not in str(delivery.headers)
    assert steps.kinds() == [(1, "delivered")]
    assert count(engine, "open_delivery") == 0


@ON_BOTH
@pytest.mark.parametrize(
    "again",
    [body(), body("u1", "2026-01-01T01:00:00+01:00"), body(comment="new")],
    ids=["byte for byte", "the same instant in other words", "another field"],
)
async def test_a_repeat_is_answered_with_the_first_ones_seq_and_noted(
    receiver: Receiver, engine: Engine, again: bytes
) -> None:
    first = await receiver.post()
    await receiver.post(body("u2"))
    repeat = await receiver.post(again)

    assert (repeat.status_code, repeat.json) == (200, {"status": "duplicate", "seq": first.json["seq"]})
    assert count(engine, "inbox") == 2
    assert count(engine, "open_delivery") == 2
    (noted,) = rows(engine, "SELECT seq, body, handled_at FROM duplicate_request")
    kept = None if again == body() else again
    assert noted == {"seq": first.json["seq"], "body": kept, "handled_at": None}


@ON_BOTH
async def test_fifty_identical_requests_at_once_are_one_event(receiver: Receiver, steps: Steps, engine: Engine) -> None:
    answers = await asyncio.gather(*(receiver.post() for _ in range(50)))

    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json["seq"] for answer in answers}) == 1
    statuses = [answer.json["status"] for answer in answers]
    assert (statuses.count("accepted"), statuses.count("duplicate")) == (1, 49)
    assert count(engine, "inbox") == 1
    assert duplicates(engine) == 49
    assert count(engine, "duplicate_request WHERE body IS NOT NULL") == 0
    steps.until_nothing_is_due()
    assert len(steps.deliverer.seen) == 1


@ON_BOTH
@pytest.mark.parametrize(("done", "calls"), [(0, 1), (1, 1), (2, 1), (3, 2), (4, 1)])
async def test_a_relay_that_dies_between_two_steps_loses_nothing(
    receiver: Receiver, steps: Steps, engine: Engine, done: int, calls: int
) -> None:
    """`done` of its steps are done: it orders, claims, calls, and records."""
    await receiver.post()
    steps.sequence() if done > 0 else None
    claimed = steps.claim_due() if done > 1 else []
    outcomes = steps.deliver(claimed) if done > 2 else []
    steps.record(outcomes) if done > 3 else None
    steps.node = "second"
    steps.advance(15.1)
    steps.until_nothing_is_due()

    assert len(steps.deliverer.seen) == calls
    assert [kind for _, kind in steps.kinds()].count("delivered") == 1
    assert count(engine, "open_delivery") == 0


def test_a_listed_header_of_the_request_reaches_the_destination_and_no_other(database_url: str, engine: Engine) -> None:
    passed = 'pass_headers = ["X-Tenant"]'
    config = parse_config(config_text(database_url).replace("concurrency =", f"{passed}\nconcurrency ="))
    headers = {**HEADERS, "X-Tenant": "acme", "X-Other": "not listed", "Cookie": "session"}
    with served(database_url, config) as port:
        assert posted(port, PATH, body(), headers) == 200
    with serving(answer(204)) as server, running(engine, server, destination=passed):
        until(lambda: server.seen, "it is forwarded")
    assert server.seen[0].headers["x-tenant"] == "acme"
    assert not server.seen[0].headers.keys() & {"x-other", "cookie"}
