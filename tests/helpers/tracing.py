"""A tracer whose spans a test keeps."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.util._once import Once

from inbox.observe.otel import OtelTracer


class Kept:
    """A tracer, and the spans that it has exported."""

    def __init__(self, tracer: OtelTracer, exporter: InMemorySpanExporter) -> None:
        self.tracer = tracer
        self._exporter = exporter

    def spans(self, name: str | None = None) -> list[ReadableSpan]:
        """Return those of this name, or all, in the order of their ends."""
        self.tracer._provider.force_flush()
        return [span for span in self._exporter.get_finished_spans() if name in {None, span.name}]


@contextlib.contextmanager
def keeping(ratio: float = 1.0) -> Iterator[Kept]:
    """A tracer that keeps its spans, as long as the block runs."""
    exporter = InMemorySpanExporter()
    with traced(exporter, ratio) as tracer:
        yield Kept(tracer, exporter)


@contextlib.contextmanager
def traced(exporter: SpanExporter, ratio: float = 1.0) -> Iterator[OtelTracer]:
    """A tracer as long as the block runs; the process's own provider is as before afterwards."""
    made = OtelTracer(None, ratio, "tests", exporter)
    try:
        yield made
    finally:
        made.close()
        trace._TRACER_PROVIDER, trace._TRACER_PROVIDER_SET_ONCE = None, Once()
