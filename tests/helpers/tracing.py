"""A tracer that keeps its spans, and an OTLP collector that can hang."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import msgspec
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Sent
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.util._once import Once

from inbox.observe.otel import OtelTracer
from tests.helpers.scripted import Act, ScriptedServer, Seen, answer, hang
from tests.helpers.waiting import until


class Kept:
    """A tracer and its exported spans."""

    def __init__(self, tracer: OtelTracer, exporter: InMemorySpanExporter) -> None:
        self.tracer = tracer
        self._exporter = exporter

    def spans(self, name: str | None = None) -> list[ReadableSpan]:
        """Return the spans of this name, or all, by end."""
        self.tracer._provider.force_flush()
        return [span for span in self._exporter.get_finished_spans() if name in {None, span.name}]


@contextlib.contextmanager
def keeping(ratio: float = 1.0) -> Iterator[Kept]:
    """Run a tracer that keeps its spans."""
    exporter = InMemorySpanExporter()
    with run_tracer(exporter, ratio) as tracer:
        yield Kept(tracer, exporter)


@contextlib.contextmanager
def run_tracer(exporter: SpanExporter, ratio: float = 1.0) -> Iterator[OtelTracer]:
    """Run a tracer for the block and restore the process's provider afterwards."""
    made = OtelTracer(None, ratio, "tests", exporter)
    try:
        yield made
    finally:
        made.close()
        trace._TRACER_PROVIDER, trace._TRACER_PROVIDER_SET_ONCE = None, Once()


class Span(msgspec.Struct, frozen=True):
    """A span as a collector receives it; ids are hexadecimal, times nanoseconds."""

    name: str
    service: str
    trace_id: str
    span_id: str
    parent: str
    kind: str
    began: int
    ended: int
    attributes: dict[str, Any]
    links: list[tuple[str, str]]
    failed: bool


class Collector(ScriptedServer):
    """Keeps every span. While `hangs` is set, it does not answer."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.hangs = threading.Event()
        super().__init__(answer())

    def act_for(self, seen: Seen) -> Act:
        """Keep the spans of a request."""
        act = super().act_for(seen)
        if self.hangs.is_set():
            return hang
        for resource in ExportTraceServiceRequest.FromString(seen.body).resource_spans:
            service = _values(resource.resource.attributes)["service.name"]
            self.spans += [_span(sent, service) for scope in resource.scope_spans for sent in scope.spans]
        return act

    def find_named(self, name: str) -> list[Span]:
        """Return the spans of this name so far."""
        return [span for span in self.spans if span.name == name]

    def wait_for(self, name: str, number: int = 1) -> list[Span]:
        """Wait for so many spans of this name."""
        until(lambda: len(self.find_named(name)) >= number, f"{number} spans {name!r} of {self.spans}")
        return self.find_named(name)


@contextlib.contextmanager
def collecting() -> Iterator[Collector]:
    """Run a collector for the block."""
    with contextlib.closing(Collector()) as collector:
        yield collector


def _span(sent: Sent, service: str) -> Span:
    return Span(
        sent.name,
        service,
        sent.trace_id.hex(),
        sent.span_id.hex(),
        sent.parent_span_id.hex(),
        Sent.SpanKind.Name(sent.kind).removeprefix("SPAN_KIND_").lower(),
        sent.start_time_unix_nano,
        sent.end_time_unix_nano,
        _values(sent.attributes),
        [(link.trace_id.hex(), link.span_id.hex()) for link in sent.links],
        failed=sent.status.code == 2,
    )


def _values(pairs: Any) -> dict[str, Any]:  # noqa: ANN401  # a list of protobuf's own
    def value(pair: KeyValue) -> Any:  # noqa: ANN401  # the value of the field that is set
        return getattr(pair.value, str(pair.value.WhichOneof("value")))

    return {pair.key: value(pair) for pair in pairs}
