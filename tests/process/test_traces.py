"""Traces of real processes in a collector of the test's own: one tree from the sender to the call, no wait for it."""

from __future__ import annotations

import http.client
import json
import re
from pathlib import Path

from sqlalchemy import Engine

from inbox.observe.logs import KEYS
from tests.helpers.processes import site
from tests.helpers.scripted import ScriptedServer, answer, serving
from tests.helpers.tables import facts, rows
from tests.helpers.tracing import Collector, Span, collecting
from tests.helpers.waiting import until
from tests.helpers.webhooks import HEADERS, PATH, TOKEN, body, config_text

SENDER = "00-" + "5e" * 16 + "-" + "ab" * 8 + "-01"
INTAKE, ATTEMPT, CALL = "POST /webhooks/{source}", "process everything", "POST /"


def post(port: int, payload: bytes, **headers: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("POST", f"{PATH}?a=1", payload, {**HEADERS, **headers})
    status = connection.getresponse().status
    connection.close()
    return status


def below(collector: Collector, parent: Span) -> list[Span]:
    return [span for span in collector.spans if span.parent == parent.span_id]


def delivered(engine: Engine) -> int:
    return sum(fact["kind"] == "delivered" for fact in facts(engine))


def check_tree(collector: Collector, downstream: ScriptedServer) -> None:
    """Every webhook is one tree, and the call carries its innermost span."""
    for intake in collector.wait_for(INTAKE, 2):
        until(lambda: below(collector, intake), "all of it is exported")
        (attempt,) = below(collector, intake)
        assert (attempt.name, attempt.trace_id) == (ATTEMPT, intake.trace_id)
        (call,) = below(collector, attempt)
        assert (call.name, call.kind, call.service) == (CALL, "client", "inbox-relay")
        assert call.attributes["http.response.status_code"] == 200
        traceparent = f"00-{call.trace_id}-{call.span_id}-01"
        assert traceparent in [seen.headers["traceparent"] for seen in downstream.seen]


def test_a_webhook_is_one_trace_and_a_collector_that_hangs_delays_nothing(
    sqlite_database_url: str, sqlite_engine: Engine, tmp_path: Path
) -> None:
    with collecting() as collector, serving(answer(200)) as downstream:
        config = config_text(sqlite_database_url, f"{downstream.url}/?secret=1")
        config += f'[logs]\nformat = "json"\n[traces]\nendpoint = "{collector.url}/v1/traces"\n'
        with site(tmp_path, config) as place:
            place.environment |= {"OTEL_BSP_SCHEDULE_DELAY": "50"}
            receiver, port = place.receiver(workers=1)
            relay = place.relay("--verbose")
            assert post(port, body("u1"), traceparent=SENDER) == 200
            assert post(port, body("u2")) == 200
            assert post(port, b"{}") == 422
            collector.wait_for(CALL, 2)
            collector.wait_for(ATTEMPT, 2)
            collector.wait_for(INTAKE, 3)

            first, second, rejected = collector.named(INTAKE)
            assert (first.trace_id, first.parent) == ("5e" * 16, "ab" * 8)
            assert second.parent == rejected.parent == ""
            assert rejected.attributes["inbox.cause"] == "invalid_event"
            assert not rejected.failed
            stored = rows(sqlite_engine, "SELECT traceparent FROM inbox ORDER BY seq")
            assert [row["traceparent"][3:52] for row in stored] == [
                f"{span.trace_id}-{span.span_id}" for span in (first, second)
            ]
            collector.spans.remove(rejected)
            check_tree(collector, downstream)
            assert not re.search(f"u1|u2|secret|{TOKEN}|a=1", repr(collector.spans))

            collector.hangs.set()
            assert [post(port, body(f"more{number}")) for number in range(40)] == [200] * 40
            until(lambda: delivered(sqlite_engine) == 42, "all is delivered")
            assert len(collector.asked) > 1
            assert relay.stop(within=8) == 0
            assert receiver.stop(within=8) == 0
            lines = [json.loads(line) for program in (relay, receiver) for line in program.output.splitlines()]
            assert {line["level"] for line in lines} == {"INFO"}
            assert all(set(line) <= set(KEYS) for line in lines)
            logged = {line["seq"]: (line["trace_id"], line["span_id"]) for line in lines if "did" in line}
            assert {(span.trace_id, span.span_id) for span in collector.named(ATTEMPT)} <= set(logged.values())
            assert len(logged) == 42
