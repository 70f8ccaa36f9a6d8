"""Spans: what is sampled, which trace they belong to, and that nothing is imported, raised or awaited for them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult

from inbox.config.model import Traces
from inbox.logs.trace_ids import current_ids
from inbox.tracing import exporting, setup, spans
from inbox.tracing.spans import OFF, new_trace_id, seed_checksum
from tests.helpers.tracing import Kept, keeping, traced

SENT, NOT_SAMPLED = (f"00-{'a' * 32}-{'b' * 16}-{flags}" for flags in ("01", "00"))


@pytest.fixture(autouse=True)
def nothing_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def kept() -> Iterator[Kept]:
    with keeping() as made:
        yield made


def test_a_span_continues_its_sender_and_a_child_its_span(kept: Kept) -> None:
    span = kept.tracer.begin("outer", "server", parent=SENT)
    assert span is not None
    assert span.traceparent == f"00-{'a' * 32}-{span.ids.span_id}-01"
    child = span.child("inner", "client")
    child.attributes["http.response.status_code"] = 503
    child.end(error="server_error")
    span.end()
    inner, outer = kept.spans()
    assert (outer.parent.span_id, outer.context.trace_id) == (0xBBBBBBBBBBBBBBBB, int("a" * 32, 16))  # type: ignore[union-attr]
    assert (outer.parent.is_remote, inner.parent.is_remote) == (True, False)  # type: ignore[union-attr]
    assert inner.parent.span_id == outer.context.span_id == int(span.ids.span_id, 16)  # type: ignore[union-attr]
    assert inner.attributes == {"http.response.status_code": 503, "error.type": "server_error"}
    assert (inner.status.is_ok, outer.status.is_unset) == (False, True)
    assert outer.start_time <= inner.start_time <= inner.end_time <= outer.end_time  # type: ignore[operator]


def test_apart_it_is_a_trace_of_its_own_with_a_link(kept: Kept) -> None:
    span = kept.tracer.begin("late", "consumer", parent=SENT, is_apart=True)
    assert span is not None
    span.end()
    (late,) = kept.spans()
    assert late.parent is None
    assert (late.links[0].context.trace_id, late.links[0].context.span_id) == (int("a" * 32, 16), int("b" * 16, 16))
    assert span.ids.trace_id != "a" * 32
    assert span.ids.trace_id[16:] == "a" * 16


def test_a_clock_that_is_set_back_bends_no_tree(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    span = kept.tracer.begin("outer", "server")
    assert span is not None
    monkeypatch.setattr(spans, "epoch_nanoseconds", lambda: 0)
    span.child("inner").end()
    span.end()
    inner, outer = kept.spans()
    assert outer.start_time <= inner.start_time <= inner.end_time <= outer.end_time  # type: ignore[operator]


@pytest.mark.parametrize(
    "sampler", ["", "parentbased_traceidratio", "traceidratio", "parentbased_always_on", "always_off"]
)
def test_the_shortcut_decides_as_the_sampler_of_the_sdk(sampler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if sampler:
        monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
        monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.25")
    with keeping(ratio=0.25) as kept:
        tracer = kept.tracer
        quick = [tracer.begin("a", "server", seed=str(n)) is not None for n in range(400)]
        told = [
            tracer._sampler.should_sample(exporting._ROOT, new_trace_id(str(n)), "a").decision is exporting._SAMPLE
            for n in range(400)
        ]
        assert quick == told
        ruled_out = [seed_checksum(str(n).encode()) >= tracer.least_ruled_out for n in range(400)]
        assert ruled_out == [not sampled for sampled in quick]
        by_sender = [tracer.begin("a", "server", parent=parent) is not None for parent in (SENT, NOT_SAMPLED)]
        follows = sampler in {"", "parentbased_traceidratio", "parentbased_always_on"}
        by_sdk = [
            tracer._sampler.should_sample(remote(parent), int("a" * 32, 16), "a").decision is exporting._SAMPLE
            for parent in (SENT, NOT_SAMPLED)
        ]
        assert by_sender == by_sdk
        assert by_sender == ([True, False] if follows else [False, False])  # the id is above a quarter of all
        below_a_quarter = f"00-{'a' * 16}{'1' * 16}-{'b' * 16}-00"
        assert (tracer.begin("a", "server", parent=below_a_quarter) is not None) == (sampler == "traceidratio")
        late = [tracer.begin("a", "server", seed=str(n), is_apart=True) is not None for n in range(400)]
        assert late == quick


def remote(traceparent: str) -> Context:
    return trace.set_span_in_context(trace.NonRecordingSpan(exporting._context_of(traceparent)), Context())


class Unknown(Sampler):
    """Takes what has an even id."""

    def should_sample(self, parent_context: Context | None, trace_id: int, *others: Any, **more: Any) -> SamplingResult:  # noqa: ANN401
        del parent_context, others, more
        return SamplingResult(Decision.DROP if trace_id % 2 else Decision.RECORD_AND_SAMPLE)

    def get_description(self) -> str:
        return "even"


def test_another_sampler_is_asked_for_each_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "another")
    with keeping() as kept:
        kept.tracer._sampler = Unknown()
        assert kept.tracer.least_ruled_out > seed_checksum(b"any")
        taken = [kept.tracer.begin("a", "server", seed=str(n)) is not None for n in range(400)]
        assert taken == [new_trace_id(str(n)) % 2 == 0 for n in range(400)]
        assert kept.tracer.begin("a", "server", parent=SENT) is not None


class Hanging(SpanExporter):
    def __init__(self) -> None:
        self.entered, self.go = threading.Event(), threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        del spans
        self.entered.set()
        self.go.wait(60)
        return SpanExportResult.SUCCESS


def test_while_the_collector_hangs_spans_are_dropped_and_nothing_waits(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "64")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "8")
    monkeypatch.setattr(exporting, "CLOSES_WITHIN_SECONDS", 0.01)
    hanging = Hanging()
    with traced(hanging) as tracer:
        for _ in range(1000):
            span = tracer.begin("a", "server")
            assert span is not None
            span.end()
        assert hanging.entered.wait(10)
        assert len(tracer._processor._batch_processor._queue) <= 64
        tracer.close()
        hanging.go.set()
    told = [record.getMessage() for record in caplog.records if record.name == "inbox.tracing"]
    assert told == ["traces: Queue full, dropping …. Everything else goes on"]


def test_spans_of_other_code_are_children_and_log_lines_have_the_ids(kept: Kept) -> None:
    span = kept.tracer.begin("outer", "consumer")
    assert span is not None
    with span.current():
        assert current_ids() == span.ids
        with trace.get_tracer("a library").start_as_current_span("of a library"):
            pass
    assert current_ids() is None
    span.end()
    of_library, _ = kept.spans()
    assert of_library.parent.span_id == int(span.ids.span_id, 16)  # type: ignore[union-attr]


def test_spans_of_other_code_outside_a_sampled_attempt_are_not_exported(kept: Kept) -> None:
    with trace.get_tracer("a library").start_as_current_span("of nobody"):
        pass
    assert kept.spans() == []


def test_nothing_is_traced_unless_it_is_asked_for() -> None:
    assert setup.make_tracer(Traces(), "x") is OFF


def test_where_the_environment_asks_and_the_extra_is_missing_a_warning_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(setup, "is_installed", lambda: False)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    assert setup.make_tracer(Traces(), "x") is OFF
    assert "the extra inbox-relay[otel] is not installed" in caplog.text


def test_wrong_variables_turn_traces_off_with_a_line_for_each_and_stop_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "Bearer s3cret")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "5")
    assert setup.make_tracer(Traces(endpoint="http://127.0.0.1:9/v1/traces"), "x") is OFF
    assert [record.getMessage() for record in caplog.records] == [
        "traces are off: OTEL_EXPORTER_OTLP_HEADERS: takes NAME=VALUE, with commas between several",
        "traces are off: OTEL_TRACES_SAMPLER_ARG: takes a number from 0 to 1",
    ]


@pytest.mark.parametrize("stored", ["", "nonsense", f"00-{'z' * 32}-{'b' * 16}-01", "00-" + "a" * 10_000])
def test_a_stored_context_that_is_none_ends_no_delivery(kept: Kept, stored: str) -> None:
    assert kept.tracer.begin("a", "consumer", parent=stored) is None
    assert kept.tracer.begin("a", "consumer", seed="\ud800") is None


def test_spans_that_can_not_be_begun_or_exported_raise_nothing_and_are_told_once_a_minute(
    kept: Kept, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    span = kept.tracer.begin("a", "server")
    assert span is not None
    span.kind = "unheard of"  # type: ignore[assignment]
    for _ in range(3):
        span.end()
        assert kept.tracer.begin("a", "consumer", parent="nonsense") is None
    monkeypatch.setattr("inbox.otlp.exporters.monotonic", lambda: time.monotonic() + 61)
    assert kept.tracer.begin("a", "consumer", parent="nonsense") is None
    told = [record.getMessage() for record in caplog.records]
    assert told == ["traces: a span is lost: KeyError", "traces: a span is not begun: ValueError"]


@pytest.mark.parametrize("limited", [False, True])
def test_an_exported_span_is_the_one_that_the_sdk_would_make(limited: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if limited:
        monkeypatch.setenv("OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT", "5")
        monkeypatch.setenv("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "3")
    with keeping() as kept:
        made = [
            kept.tracer.begin("a", "server"),
            kept.tracer.begin("b", "consumer", parent=SENT),
            kept.tracer.begin("c", "client", parent=SENT, is_apart=True),
        ]
        for span in filter(None, made):
            span.attributes |= {"text": "longer", "number": 7, "share": 0.5, "is so": True}
            span.end(error="timeout" if span.kind == "client" else None)
            span.attributes["after its end"] = True
        exported, resource = kept.spans(), kept.tracer._resource
    assert len(exported) == 3
    for own in exported:
        provider = TracerProvider(resource=resource, shutdown_on_exit=False, id_generator=SameIds(own))
        parent = None if own.parent is None else trace.set_span_in_context(trace.NonRecordingSpan(own.parent))
        scope = own.instrumentation_scope
        assert scope is not None
        tracer = provider.get_tracer(scope.name, scope.version, scope.schema_url)
        attributes: dict[str, spans.Value] = {"text": "longer", "number": 7, "share": 0.5, "is so": True}
        of_sdk = tracer.start_span(own.name, parent, own.kind, attributes, own.links, own.start_time)
        if own.kind is trace.SpanKind.CLIENT:
            of_sdk.set_attribute("error.type", "timeout")
            of_sdk.set_status(trace.Status(trace.StatusCode.ERROR))
        of_sdk.end(own.end_time)
        assert isinstance(of_sdk, ReadableSpan)
        assert encode_spans([own]) == encode_spans([of_sdk])
        assert own.to_json() == of_sdk.to_json()


class SameIds(IdGenerator):
    def __init__(self, span: ReadableSpan) -> None:
        self._ids = span.context

    def generate_trace_id(self) -> int:
        return int(self._ids.trace_id)

    def generate_span_id(self) -> int:
        return int(self._ids.span_id)


def test_both_programs_import_no_opentelemetry_by_themselves() -> None:
    program = (
        "import sys, inbox.gunicorn_settings, relay.daemon.start\n"
        "sys.exit(any(name.partition('.')[0] == 'opentelemetry' for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
