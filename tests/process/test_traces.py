"""Traces of real processes in a collector of the test's own: one tree from the sender to the call, no wait for it."""

from __future__ import annotations

import json
import re
from pathlib import Path

from sqlalchemy import Engine

from inbox.observe.logs import KEYS
from tests.helpers.processes import site
from tests.helpers.receiver import post_json
from tests.helpers.scripted import answer, serving
from tests.helpers.tables import count, rows
from tests.helpers.tracing import Collector, Span, collecting
from tests.helpers.waiting import until
from tests.helpers.webhooks import HEADERS, PATH, TOKEN, body, config_text

SENDER = "00-" + "5e" * 16 + "-" + "ab" * 8 + "-01"
INTAKE, ATTEMPT, CALL = "POST /webhooks/{source}", "process everything", "POST /"


def below(collector: Collector, parent: Span, name: str) -> Span:
    (only,) = (span for span in collector.spans if span.parent == parent.span_id)
    assert (only.name, only.trace_id) == (name, parent.trace_id)
    return only


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

            def post(payload: bytes, **headers: str) -> int:
                return post_json(port, f"{PATH}?a=1", payload, {**HEADERS, **headers})

            assert [post(body("u1"), traceparent=SENDER), post(body("u2")), post(b"{}")] == [200, 200, 422]
            for name, number in ((CALL, 2), (ATTEMPT, 2), (INTAKE, 3)):
                collector.wait_for(name, number)
            first, second, rejected = collector.find_named(INTAKE)
            assert (first.trace_id, first.parent) == ("5e" * 16, "ab" * 8)
            assert second.parent == rejected.parent == ""
            assert (rejected.attributes["inbox.cause"], bool(rejected.failed)) == ("invalid_event", False)
            stored = rows(sqlite_engine, "SELECT traceparent FROM inbox ORDER BY seq")
            for intake, row in zip((first, second), stored, strict=True):
                assert row["traceparent"][3:52] == f"{intake.trace_id}-{intake.span_id}"
                call = below(collector, below(collector, intake, ATTEMPT), CALL)
                assert (call.kind, call.service) == ("client", "inbox-relay")
                assert call.attributes["http.response.status_code"] == 200
                traceparent = f"00-{call.trace_id}-{call.span_id}-01"
                assert traceparent in [seen.headers["traceparent"] for seen in downstream.seen]
            assert not re.search(f"u1|u2|secret|{TOKEN}|a=1", repr(collector.spans))

            collector.hangs.set()
            assert [post(body(f"more{number}")) for number in range(40)] == [200] * 40
            until(lambda: count(sqlite_engine, "delivery_log WHERE kind = 'delivered'") == 42, "all is delivered")
            assert len(collector.asked) > 1
            assert [relay.stop(within=8), receiver.stop(within=8)] == [0, 0]
            lines = [json.loads(line) for program in (relay, receiver) for line in program.output.splitlines()]
            assert {line["level"] for line in lines} == {"INFO"}
            assert all(set(line) <= set(KEYS) for line in lines)
            logged = {line["seq"]: (line["trace_id"], line["span_id"]) for line in lines if "did" in line}
            assert {(span.trace_id, span.span_id) for span in collector.find_named(ATTEMPT)} <= set(logged.values())
            assert len(logged) == 42
