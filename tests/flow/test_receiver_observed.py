"""A receiver's figures in `throughput_minute`: how its requests ended, also during trouble of the database."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Iterator

import msgspec
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from sqlalchemy import Engine, text

from inbox.config.model import Config
from inbox.db.throughput import SOURCE, Tally
from inbox.loader.load import parse_config
from inbox.receiver.reporting import ThroughputFlusher
from relay.daemon.generation import begin_attempt, prepare
from relay.daemon.loop import Relay
from relay.delivery.policy import policies
from relay.sweep import scheduler
from tests.docs.pages import PAGES
from tests.helpers.daemon import Rig, make_config
from tests.helpers.databases import ON_BOTH, ON_POSTGRES, down
from tests.helpers.delivering import LOCAL, a_delivery, context, deliver
from tests.helpers.delivering import config_text as delivery_text
from tests.helpers.directory import TABLE, Directory
from tests.helpers.metrics import Kept, keeping
from tests.helpers.receiver import Receiver, a_link, receiving
from tests.helpers.relaying import HOPELESS, Steps, run_relay
from tests.helpers.scripted import answer, serving
from tests.helpers.storing import an_event
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


async def test_an_event_without_a_database_is_counted_later(config: Config, engine: Engine, database_url: str) -> None:
    async with receiving(config) as receiver:
        assert (await receiver.post(body("u1"))).status_code == 200
        with down(database_url):
            assert (await receiver.post(body("u2"))).status_code == 503
    assert {outcome: n for (_, outcome), (n, _) in figures(engine).items()} == {"stored": 1, "unavailable": 1}


async def test_a_failed_flush_is_written_later(
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
async def test_locked_figures_delay_no_request(config: Config, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
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


# --- Traces of a receiver at work: one tree for each request, with any outcome


SENT, NOT_SAMPLED = (f"00-{'a' * 32}-{'b' * 16}-{flags}" for flags in ("01", "00"))
NAME = "POST /webhooks/{source}"
BATCH = """
[sources.batch]
preset = "cloudevents"
auth = { kind = "none" }
"""
STORED = "SELECT traceparent FROM inbox ORDER BY seq"


@contextlib.asynccontextmanager
async def trace_receiver(
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
    async with trace_receiver(database_url, monkeypatch, ratio=1) as (receiver, kept):
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


async def test_an_unsampled_trace_is_left_out(
    database_url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relay traces no event without a context."""
    async with trace_receiver(database_url, monkeypatch, ratio=0) as (receiver, kept):
        await receiver.post(body())
        await send_batch(receiver, 1, 2, 3)
        await receiver.post(b"{}")
        assert kept.spans() == []
        assert {row["traceparent"] for row in rows(engine, STORED)} == {None}


# --- Traces of a relay at work: attempts with their calls, sweeps and commands, without anything of a person


SYNC = """
[routes.user-to-crm.sync]
gone = "skip"
fetch = {{ api = "identity", path = "/user/{{event.entity_id}}" }}
create = {{ path = "/contacts" }}
map = {{ name = "entity.name" }}
[apis.identity]
base_url = "{api}/api"
allow_private = true
allow_http = true
"""
SAMPLED = f"00-{'a' * 32}-{'b' * 16}-01"


@pytest.fixture
def kept() -> Iterator[Kept]:
    with keeping() as made:
        yield made


def test_calls_have_their_templates_and_no_value(kept: Kept) -> None:
    with serving(answer(200, {"id": "p-1", "name": "Ada"}), answer(503)) as server:
        text = delivery_text("sync", f'base_url = "{server.url}?key=k-1"\n{LOCAL}', SYNC.format(api=server.url))
        delivery = a_delivery(entity_id="p-1", body=b'{"id": "p-1"}')
        for unsampled in (None, f"{SAMPLED[:-1]}0"):
            assert begin_attempt(kept.tracer, a_delivery(traceparent=unsampled)) is None
        span = begin_attempt(kept.tracer, delivery)
        assert span is not None
        bounds = context()
        deliver(text, delivery, type(bounds)(bounds.lease, bounds.stop, bounds.now, span))
        span.end()
        (fetch,) = kept.spans("GET /api/user/{event.entity_id}")
        (create,) = kept.spans("POST /contacts")
        assert {call.parent.span_id for call in (fetch, create)} == {int(span.ids.span_id, 16)}  # type: ignore[union-attr]
        assert dict(create.attributes or {}) == {
            "http.request.method": "POST",
            "inbox.step": "create",
            "server.address": "127.0.0.1",
            "server.port": server.port,
            "url.scheme": "http",
            "url.template": "/contacts",
            "http.response.status_code": 503,
            "inbox.sent": "answered",
            "error.type": "server_error",
        }
        told = [f"00-{call.context.trace_id:032x}-{call.context.span_id:016x}-01" for call in (fetch, create)]
        assert [seen.headers["traceparent"] for seen in server.seen] == told
    shown = "".join(span.to_json() for span in kept.spans())
    assert not re.search("p-1|k-1|Ada", shown)


def test_a_relay_traces_attempts_sweeps_and_commands(kept: Kept, rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "LOOK_EVERY_SECONDS", 0.02)
    steps = Steps(rig.engine, policies(rig.config()))
    given_up, other = (
        msgspec.structs.replace(an_event(n, f"u{n}", routes=["everything"]), traceparent=SAMPLED) for n in (1, 2)
    )
    steps.arrive(given_up)
    steps.attempt(HOPELESS, "everything")
    steps.receive(other)
    directory = Directory({"u9": "2026-01-02T00:00:00Z"})
    with serving(directory) as api, serving(answer(500), answer(204)) as audit:
        config = make_config(audit.url, more=TABLE.format(url=api.url, count=2) + 'every = "1h"\n')
        rig.observer.tracer = kept.tracer
        relay = Relay(rig.database, prepare(config), grace_seconds=5, observer=rig.observer)
        with run_relay(relay):
            steps.do("INSERT INTO relay_command (kind, selection, reason) VALUES ('replay', '{\"seq\": 1}', 'a test')")
            attempts = until(
                lambda: (found := kept.spans("process everything"))[3:] and found,
                "each is attempted, one of them twice",
            )
            (swept,) = until(lambda: kept.spans("sweep trivore USER"), "the sweep has ended")
    assert {(span.attributes or {})["inbox.outcome"] for span in attempts} == {"failed", "forwarded"}
    assert {(span.attributes or {}).get("error.type") for span in attempts} == {"server_error", None}
    assert dict(swept.attributes or {}) == {
        "inbox.source": "trivore", "inbox.entity_type": "USER", "inbox.compared": 1, "inbox.missed": 1, "inbox.added": 1,
    }  # fmt: skip
    page = re.sub("```.*?```", "", PAGES["docs/how-to/trace-a-webhook.md"], flags=re.DOTALL)
    keys = {key for span in kept.spans() for key in span.attributes or {}}
    assert keys <= set(re.findall(r"`([^`]+)`", page))
    pages = kept.spans("GET /user")
    assert {page.parent.span_id for page in pages} == {swept.context.span_id}  # type: ignore[union-attr]
    (added,) = rows(rig.engine, "SELECT traceparent FROM inbox WHERE seq = 3")
    assert added["traceparent"] == f"00-{swept.context.trace_id:032x}-{swept.context.span_id:016x}-01"
    assert swept.context.span_id in {span.parent.span_id for span in attempts if span.parent is not None}
