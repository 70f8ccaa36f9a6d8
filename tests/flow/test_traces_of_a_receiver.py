"""Traces of a receiver at work: one tree for each request, whatever it brings and however it ends."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from sqlalchemy import Engine
from tests.helpers.tables import rows

from inbox.loader.load import parse_config
from tests.helpers.receiver import Receiver, receiving
from tests.helpers.tracing import Kept, keeping
from tests.helpers.webhooks import body, config_text

SENT, NOT_SAMPLED = (f"00-{'a' * 32}-{'b' * 16}-{flags}" for flags in ("01", "00"))
NAME = "POST /webhooks/{source}"
BATCH = """
[sources.batch]
preset = "cloudevents"
auth = { kind = "none" }
"""
STORED = "SELECT traceparent FROM inbox ORDER BY seq"


@contextlib.asynccontextmanager
async def traced_receiver(
    database_url: str, monkeypatch: pytest.MonkeyPatch, ratio: float
) -> AsyncIterator[tuple[Receiver, Kept]]:
    with keeping(ratio) as kept:
        monkeypatch.setattr("inbox.receiver.app.make_tracer", lambda *_: kept.tracer)
        async with receiving(parse_config(config_text(database_url) + BATCH)) as receiver:
            yield receiver, kept


def sent_at_once(*numbers: int) -> bytes:
    return json.dumps(
        [
            {"specversion": "1.0", "id": str(number), "source": "/x", "type": "made", "time": "2026-01-01T00:00:00Z"}
            for number in numbers
        ]
    ).encode()


async def send_batch(receiver: Receiver, *numbers: int) -> None:
    headers = {"Content-Type": "application/cloudevents-batch+json"}
    answer = await receiver.request("POST", "/webhooks/batch", body=sent_at_once(*numbers), headers=headers)
    assert answer.status_code == 202, answer.text


def attributes(span: ReadableSpan) -> dict[str, object]:
    return dict(span.attributes or {})


async def test_every_request_is_one_tree(database_url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    async with traced_receiver(database_url, monkeypatch, ratio=1) as (receiver, kept):
        await send_batch(receiver, 1, 2, 3)
        await send_batch(receiver, 3, 4)
        rejected = await receiver.post(b"{}", headers={"Traceparent": SENT})
        stranger = await receiver.post(body(), headers={"Traceparent": SENT, "X-Webhook-Token": "wrong"})
        ignored = await receiver.post(b"{}", headers={"Traceparent": NOT_SAMPLED})
        await receiver.post(body("u2"), headers={"Traceparent": SENT[:-1]})
        await receiver.post(body("u3"), headers={"Traceparent": f"{SENT}-{'x' * 5_000}"})
        spans = kept.spans(NAME)
    batch, second, of_rejected, of_stranger, of_invalid, of_long = spans
    assert [answer.status_code for answer in (rejected, stranger, ignored)] == [422, 401, 422]
    assert {key: value for key, value in attributes(batch).items() if key.startswith(("inbox", "messaging"))} == {
        "inbox.source": "batch",
        "inbox.seq": 1,
        "inbox.duplicates": 0,
        "messaging.batch.message_count": 3,
    }
    assert attributes(second)["inbox.duplicates"] == 1
    stored = [row["traceparent"][3:52] for row in rows(engine, STORED)]
    ids = [f"{span.context.trace_id:032x}-{span.context.span_id:016x}" for span in spans]
    assert stored == [ids[0]] * 3 + [ids[1]] + ids[4:]
    assert of_rejected.parent is not None
    assert f"{of_rejected.parent.trace_id:032x}" == "a" * 32, "its sender is proven"
    assert attributes(of_rejected)["inbox.cause"] == "invalid_event"
    assert of_stranger.parent is of_invalid.parent is of_long.parent is None
    assert "inbox.source" not in attributes(of_stranger)
    assert len(kept.spans()) == len(spans), "one span each"


async def test_what_is_not_sampled_is_left_out_as_a_whole(
    database_url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relay traces no event without a context."""
    async with traced_receiver(database_url, monkeypatch, ratio=0) as (receiver, kept):
        await receiver.post(body())
        await send_batch(receiver, 1, 2, 3)
        await receiver.post(b"{}")
        assert kept.spans() == []
        assert {row["traceparent"] for row in rows(engine, STORED)} == {None}
