"""A receiver's figures in `throughput_minute`: how its requests ended, whatever the database does meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from sqlalchemy import Engine, text

from inbox.config.model import Config
from inbox.db.throughput import SOURCE, Tally
from inbox.loader.load import parse_config
from inbox.receiver.reporting import ThroughputFlusher
from tests.helpers.databases import ON_BOTH, ON_POSTGRES, down
from tests.helpers.metrics import Kept, keeping
from tests.helpers.receiver import Receiver, a_link, receiving
from tests.helpers.tables import rows
from tests.helpers.waiting import Stopwatch, stand_still, until
from tests.helpers.webhooks import body, config_text

FIGURES = 'SELECT name, outcome, sum("count") AS n, sum(bytes) AS size FROM throughput_minute GROUP BY name, outcome'


def figures(engine: Engine) -> dict[tuple[str, str], tuple[int, int]]:
    found = rows(engine, f"{FIGURES} ORDER BY name, outcome")
    return {(row["name"], row["outcome"]): (row["n"], row["size"]) for row in found}


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine takes its time to write the last figures."""
    monkeypatch.setattr("inbox.receiver.reporting.LAST_FLUSH_SECONDS", 60.0)


@ON_BOTH
async def test_the_end_of_every_request_is_counted_by_its_source(config: Config, engine: Engine) -> None:
    first, second = body("u1"), body("u2")
    async with receiving(config) as receiver:
        for payload in (first, second, first):
            assert (await receiver.post(payload)).status_code == 200
        assert (await receiver.post(b"{}")).status_code == 422
        assert (await receiver.post(headers={"X-Webhook-Token": "wrong"})).status_code == 401
        for name in ("nobody", "no-one"):
            assert (await receiver.post(path=f"/webhooks/{name}")).status_code == 401
        assert figures(engine) == {}, "nothing is written beside a request"
    assert figures(engine) == {
        ("(unknown)", "rejected"): (2, 0),
        ("trivore", "duplicate"): (1, len(first)),
        ("trivore", "rejected"): (2, 0),
        ("trivore", "stored"): (2, len(first) + len(second)),
    }


async def test_an_event_that_could_not_be_stored_is_counted_when_the_database_is_back(
    config: Config, engine: Engine, database_url: str
) -> None:
    async with receiving(config) as receiver:
        assert (await receiver.post(body("u1"))).status_code == 200
        with down(database_url):
            assert (await receiver.post(body("u2"))).status_code == 503
    assert {outcome: n for (_, outcome), (n, _) in figures(engine).items()} == {"stored": 1, "unavailable": 1}


async def test_a_flush_that_fails_is_logged_once_and_written_later(
    engine: Engine, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    tally = Tally()
    flusher = ThroughputFlusher(a_link(database_url), tally, every=3600.0)
    tally.add(SOURCE, "trivore", "stored")
    with down(database_url):
        for _ in range(2):
            await flusher.flush(within=0.1)
    await flusher.flush()
    await flusher.close()
    assert figures(engine) == {("trivore", "stored"): (1, 0)}
    (line,) = (record.getMessage() for record in caplog.records if record.name == "inbox.receiver.reporting")
    assert line.startswith("figures for throughput_minute are not written yet: ")


@ON_POSTGRES
async def test_a_person_who_locks_the_figures_delays_no_request(
    config: Config, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inbox.receiver.app.FLUSH_EVERY_SECONDS", 0.01)
    async with receiving(config) as receiver:
        with engine.begin() as person:
            stand_still(person)
            person.execute(text("LOCK TABLE throughput_minute IN ACCESS EXCLUSIVE MODE"))
            waits = "SELECT 1 FROM pg_locks WHERE NOT granted AND relation = 'throughput_minute'::regclass"
            assert (await receiver.post(body("u0"))).status_code == 200
            await asyncio.to_thread(until, lambda: rows(engine, waits), "its flush waits")
            with Stopwatch() as watch:
                for n in range(1, 20):
                    assert (await receiver.post(body(f"u{n}"))).status_code == 200
            assert watch.seconds < 1.5
            await asyncio.to_thread(until, lambda: rows(engine, waits), "its flush still waits, or again")
    assert figures(engine)["trivore", "stored"][0] == 20


# --- Traces of a receiver at work: one tree for each request, whatever it brings and however it ends


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


async def send_batch(receiver: Receiver, *numbers: int) -> None:
    made = {"specversion": "1.0", "source": "/x", "type": "made", "time": "2026-01-01T00:00:00Z"}
    sent = json.dumps([{**made, "id": str(number)} for number in numbers])
    headers = {"Content-Type": "application/cloudevents-batch+json"}
    answer = await receiver.request("POST", "/webhooks/batch", body=sent, headers=headers)
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
    told = {"inbox.source": "batch", "inbox.seq": 1, "inbox.duplicates": 0, "messaging.batch.message_count": 3}
    assert {key: value for key, value in attributes(batch).items() if key.startswith(("inbox", "messaging"))} == told
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


async def test_a_trace_that_is_not_sampled_is_left_out_as_a_whole(
    database_url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relay traces no event without a context."""
    async with traced_receiver(database_url, monkeypatch, ratio=0) as (receiver, kept):
        await receiver.post(body())
        await send_batch(receiver, 1, 2, 3)
        await receiver.post(b"{}")
        assert kept.spans() == []
        assert {row["traceparent"] for row in rows(engine, STORED)} == {None}
