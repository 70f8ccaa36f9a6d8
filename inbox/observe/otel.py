"""The tracer by OpenTelemetry's SDK, which reads its own variables. `inbox.observe.traces` imports it on demand."""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from inbox.errors import ConfigError
from inbox.observe.logs import TraceIds, fields, working_on
from inbox.observe.traces import ASKING, Kind, Span, Tracer, Value

SCHEMA_URL = "https://opentelemetry.io/schemas/1.44.0"
"""Semantic conventions of the names and attributes."""
CLOSES_WITHIN_SECONDS = 1.0
COMPLAINS_EVERY_SECONDS = 60.0

_KINDS: dict[Kind, SpanKind] = {
    "internal": SpanKind.INTERNAL,
    "server": SpanKind.SERVER,
    "client": SpanKind.CLIENT,
    "consumer": SpanKind.CONSUMER,
}
_log = logging.getLogger("inbox.traces")


class OtelTracer(Tracer):
    """Sample and export spans by the SDK, which queues them for its own thread and drops them while the collector hangs.

    Create it after the last fork.
    """

    is_on = True

    def __init__(self, endpoint: str | None, ratio: float, service: str, exporter: SpanExporter | None = None) -> None:
        """Set up the SDK's provider and exporter.

        Raises:
            ConfigError: an environment variable names an exporter that is not installed.
        """
        log = logging.getLogger("opentelemetry")
        log.handlers, log.propagate = [_Complaints()], False
        # A sampler named in the environment wins over `ratio`.
        sampler = None if os.environ.get("OTEL_TRACES_SAMPLER") else ParentBased(TraceIdRatioBased(ratio))
        described = {"service.name": service, "service.version": version("inbox-relay")}
        resource = Resource.create(described).merge(OTELResourceDetector().detect())
        self._provider = TracerProvider(sampler, resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter or _exporter(endpoint)))
        self._tracer = self._provider.get_tracer("inbox-relay", version("inbox-relay"), SCHEMA_URL)
        trace.set_tracer_provider(self._provider)  # for spans begun in a python destination's function

    def begin(self, name: str, kind: Kind, *, parent: str | None = None, began: float | None = None) -> Span | None:
        """See Tracer."""
        carrier = {} if parent is None else {"traceparent": parent}
        context = TraceContextTextMapPropagator().extract(carrier, context=Context())
        offset = time.time_ns() - int(time.perf_counter() * 1e9)
        span = _start(self._tracer, name, kind, context, began=began, offset=offset)
        return span if span.is_sampled else None

    def close(self) -> None:
        """See Tracer."""
        # In a thread, as the SDK waits for half a minute if the collector hangs.
        closing = threading.Thread(target=self._provider.shutdown, name="traces-close", daemon=True)
        closing.start()
        closing.join(CLOSES_WITHIN_SECONDS)


class _OtelSpan(Span):
    """A span of the SDK. It shares its clock offset with its children, so that clock changes don't distort the tree."""

    def __init__(self, tracer: trace.Tracer, span: trace.Span, offset: int) -> None:
        self.attributes: dict[str, Value] = {}
        self._tracer = tracer
        self._span = span
        self._offset = offset
        self.is_sampled = span.is_recording()

    @property
    def ids(self) -> TraceIds:
        """See Span."""
        context = self._span.get_span_context()
        return TraceIds(trace.format_trace_id(context.trace_id), trace.format_span_id(context.span_id))

    @property
    def traceparent(self) -> str:
        """See Span."""
        return f"00-{self.ids.trace_id}-{self.ids.span_id}-01"

    def child(self, name: str, kind: Kind = "internal", *, began: float | None = None) -> Span:
        """See Span."""
        context = trace.set_span_in_context(self._span, Context())
        return _start(self._tracer, name, kind, context, began=began, offset=self._offset)

    @contextmanager
    def current(self) -> Iterator[None]:
        """See Span."""
        using = trace.use_span(self._span, record_exception=False, set_status_on_exception=False)
        with working_on(self.ids), using:
            yield

    def end(self, *, error: str | None = None, at: float | None = None) -> None:
        """See Span."""
        if error is not None:
            self.attributes["error.type"] = error
            self._span.set_status(StatusCode.ERROR)
        self._span.set_attributes(self.attributes)
        self._span.end(_nanoseconds(at, self._offset))


def _start(
    tracer: trace.Tracer, name: str, kind: Kind, context: Context, *, began: float | None, offset: int
) -> _OtelSpan:
    started = tracer.start_span(name, context, _KINDS[kind], start_time=_nanoseconds(began, offset))
    return _OtelSpan(tracer, started, offset)


def _nanoseconds(moment: float | None, offset: int) -> int:
    """Convert a `time.perf_counter` reading, or now, to nanoseconds since 1970."""
    return int((time.perf_counter() if moment is None else moment) * 1e9) + offset


def _exporter(endpoint: str | None) -> SpanExporter:
    """Create the exporter, OTLP over HTTP or console, from the SDK's variables, which win over `endpoint`."""
    name = os.environ.get("OTEL_TRACES_EXPORTER", "").strip() or "otlp"
    if name == "console":
        return ConsoleSpanExporter()
    if name != "otlp":
        raise ConfigError(f"OTEL_TRACES_EXPORTER: {name!a} is not offered: otlp, console or none")
    is_given = any(map(os.environ.get, ASKING[:2]))
    return OTLPSpanExporter(endpoint=None if is_given else endpoint)


class _Complaints(logging.Handler):
    """Log the SDK's complaints at most once a minute, without their texts, which contain headers, URLs and responses."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._next_at = float("-inf")

    def emit(self, record: logging.LogRecord) -> None:
        if time.monotonic() < self._next_at:
            return
        self._next_at = time.monotonic() + COMPLAINS_EVERY_SECONDS
        text = _without_values(record)
        _log.warning("traces: %s. Everything else goes on", text, extra=fields("traces_dropped", error=text))


def _without_values(record: logging.LogRecord) -> str:
    """Return the record's text with only numbers and error classes filled in; other values may be secrets."""
    arguments = iter(record.args if isinstance(record.args, tuple) else ())
    text = _PLACE.sub(lambda _: _show_argument(next(arguments, None)), str(record.msg))
    raised = f" ({type(record.exc_info[1]).__name__})" if record.exc_info and record.exc_info[1] else ""
    return f"{text.strip().rstrip('.')}{raised}"


_PLACE = re.compile(r"%[-\d.]*[a-z]")


def _show_argument(argument: object) -> str:
    if isinstance(argument, int | float):
        return str(argument)
    return type(argument).__name__ if isinstance(argument, BaseException) else "…"
