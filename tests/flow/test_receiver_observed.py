"""A receiver's figures in `throughput_minute`, and the traces of a relay at work."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator

import msgspec
import pytest
from sqlalchemy import Engine, text

from inbox.config.model import Config
from relay.daemon.generation import begin_attempt, prepare
from relay.daemon.loop import Relay
from relay.delivery.policy import policies
from relay.sweep import scheduler
from tests.docs.pages import PAGES
from tests.helpers.daemon import Rig, make_config
from tests.helpers.databases import ON_BOTH, ON_POSTGRES
from tests.helpers.delivering import LOCAL, a_delivery, context, deliver
from tests.helpers.delivering import config_text as delivery_text
from tests.helpers.directory import TABLE, Directory
from tests.helpers.metrics import Kept, keeping
from tests.helpers.receiver import receiving
from tests.helpers.relaying import HOPELESS, Steps, run_relay
from tests.helpers.scripted import answer, serving
from tests.helpers.storing import an_event
from tests.helpers.tables import rows
from tests.helpers.waiting import Stopwatch, stand_still, until
from tests.helpers.webhooks import body

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
