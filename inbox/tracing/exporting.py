"""The tracer that samples and exports by OpenTelemetry's SDK. Only `inbox.tracing.setup` imports it, where it is asked for."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version

import msgspec
from opentelemetry import trace
from opentelemetry.attributes import BoundedAttributes
from opentelemetry.context import Context, attach, detach
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, Decision, ParentBased, Sampler, TraceIdRatioBased
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.util.types import Attributes

from inbox.config.model import Traces
from inbox.logs.fields import fields
from inbox.logs.trace_ids import TraceIds
from inbox.otlp.exporters import SCHEMA_URL, Seldom, hear, make_exporter, resource_of
from inbox.tracing.spans import (
    EndedSpan,
    Kind,
    Span,
    Tracer,
    Value,
    new_span_id,
    new_trace_id,
    seed_checksum,
    trace_id_apart,
)

CLOSES_WITHIN_SECONDS = 1.0

_KINDS = {
    "internal": SpanKind.INTERNAL,
    "server": SpanKind.SERVER,
    "client": SpanKind.CLIENT,
    "consumer": SpanKind.CONSUMER,
}
_SAMPLED, _DEFAULT = TraceFlags(TraceFlags.SAMPLED), TraceFlags(TraceFlags.DEFAULT)
_UNSET, _FAILED = Status(), Status(StatusCode.ERROR)
_ROOT = Context()
_SAMPLE = Decision.RECORD_AND_SAMPLE
_LOWER_HALF = TraceIdRatioBased.TRACE_ID_LIMIT
_log = logging.getLogger("inbox.tracing")


class OtelTracer(Tracer):
    """Samples by OpenTelemetry's sampler, and queues spans for its batch processor, whose thread exports them.

    The queue is bounded: while the collector hangs, spans are dropped and nothing waits. Make it after the last fork.
    """

    is_on = True

    def __init__(self, settings: Traces, service: str, exporter: SpanExporter | None = None) -> None:
        """Make it.

        Raises:
            ConfigError: a variable of the environment is wrong, or names an exporter that is not installed.
        """
        hear(_complain)
        self._tell_bug = Seldom(_tell_bug)
        self._processor = BatchSpanProcessor(exporter or make_exporter("traces", settings.endpoint))
        resource = resource_of(service)
        # Of the spans that a python destination's function begins: they belong to a sampled attempt, or to no trace at all.
        handlers = TracerProvider(ParentBased(ALWAYS_OFF), resource, shutdown_on_exit=False)
        handlers.add_span_processor(self._processor)
        trace.set_tracer_provider(handlers)
        # Variables of the environment win over the configuration, and a sampler named there over `ratio`.
        sampler = None if os.environ.get("OTEL_TRACES_SAMPLER") else ParentBased(TraceIdRatioBased(settings.ratio))
        self._sampler: Sampler = TracerProvider(sampler, resource, shutdown_on_exit=False).sampler
        self._known = _known_sampler(settings)
        # The checksum is the upper half of what the bound is for.
        self.least_ruled_out = 1 << 32 if self._known is None else -(-self._known.bound >> 32)
        self._resource, self._limits = resource, SpanLimits()
        self._scope = InstrumentationScope("inbox-relay", version("inbox-relay"), SCHEMA_URL)

    def begin(
        self,
        name: str,
        kind: Kind,
        *,
        parent: str | None = None,
        seed: str | None = None,
        is_apart: bool = False,
        began: float | None = None,
    ) -> Span | None:
        """See Tracer."""
        try:
            return self._begin(name, kind, parent, seed, is_apart=is_apart, began=began)
        except Exception as bug:  # noqa: BLE001  # a stored context that is none, or a sampler's bug, ends no delivery
            self._tell_bug(f"a span is not begun: {type(bug).__name__}")
            return None

    def _begin(
        self, name: str, kind: Kind, parent: str | None, seed: str | None, *, is_apart: bool, began: float | None
    ) -> Span | None:
        if parent is None:
            if seed is not None and seed_checksum(seed.encode()) >= self.least_ruled_out:
                return None
            trace_id = new_trace_id(seed)
        else:
            trace_id = int(parent[3:35], 16)
        if not self._is_sampled(name, kind, parent, trace_id, is_apart=is_apart):
            return None
        if is_apart:
            trace_id = trace_id_apart(trace_id)
        known = None if parent is None else TraceIds(parent[3:35], parent[36:52])
        return Span(
            self,
            name,
            kind,
            TraceIds(f"{trace_id:032x}", new_span_id()),
            parent=None if is_apart else known,
            link=known if is_apart else None,
            began=began,
        )

    def _is_sampled(self, name: str, kind: Kind, parent: str | None, trace_id: int, *, is_apart: bool) -> bool:
        """Return whether the sampler takes this trace. One apart has no parent for it, and an id that it takes alike."""
        known = self._known
        if known is not None:
            if parent is not None and known.follows_parent and not (is_apart and _is_marked(parent)):
                return _is_marked(parent)
            return trace_id & _LOWER_HALF < known.bound
        context = _ROOT
        if parent is not None and not is_apart:
            context = trace.set_span_in_context(NonRecordingSpan(_context_of(parent)), _ROOT)
        return self._sampler.should_sample(context, trace_id, name, _KINDS[kind]).decision is _SAMPLE

    def export(self, span: EndedSpan) -> None:
        """See Tracer."""
        try:
            self._export(span)
        except Exception as bug:  # noqa: BLE001  # a span that can't be exported ends no webhook and no delivery
            self._tell_bug(f"a span is lost: {type(bug).__name__}")

    @contextmanager
    def attached(self, ids: TraceIds) -> Iterator[None]:
        """See Tracer."""
        token = attach(trace.set_span_in_context(NonRecordingSpan(_context_by(ids, is_remote=False))))
        try:
            yield
        finally:
            detach(token)

    def close(self) -> None:
        """See Tracer."""
        # In a thread, as the SDK waits for half a minute where the collector hangs.
        closing = threading.Thread(target=self._processor.shutdown, name="traces-close", daemon=True)
        closing.start()
        closing.join(CLOSES_WITHIN_SECONDS)

    def _export(self, span: EndedSpan) -> None:
        attributes = dict(span.attributes)
        if span.error is not None:
            attributes["error.type"] = span.error
        # Made here, and not by a tracer of the SDK, which takes four times as long for the same span.
        ended = ReadableSpan(
            span.name,
            _context_by(span.ids, is_remote=False),
            None if span.parent is None else _context_by(span.parent, is_remote=span.is_continued),
            self._resource,
            self._limited(attributes),
            links=() if span.link is None else (Link(_context_by(span.link, is_remote=True)),),
            kind=_KINDS[span.kind],
            status=_UNSET if span.error is None else _FAILED,
            start_time=span.began,
            end_time=span.ended,
            instrumentation_scope=self._scope,
        )
        self._processor.on_end(ended)

    def _limited(self, attributes: dict[str, Value]) -> Attributes:
        most, longest = self._limits.max_span_attributes, self._limits.max_span_attribute_length
        if longest is None and (most is None or len(attributes) <= most):
            return attributes
        return BoundedAttributes(most, attributes, max_value_len=longest)


class _Known(msgspec.Struct, frozen=True):
    """A sampler that decides by the id alone, or by the parent. To ask the SDK's takes 20 µs, a sixth of an intake."""

    bound: int
    """The lower halves of ids below it are sampled."""
    follows_parent: bool = False


def _known_sampler(settings: Traces) -> _Known | None:
    """Return the sampler of the environment or the configuration; None where only the SDK knows how it decides."""
    name = os.environ.get("OTEL_TRACES_SAMPLER", "").strip().lower()
    if not name:
        return _Known(TraceIdRatioBased.get_bound_for_rate(settings.ratio), follows_parent=True)
    rate = {"always_on": 1.0, "always_off": 0.0, "traceidratio": _ratio()}.get(name.removeprefix("parentbased_"))
    if rate is None:
        return None
    return _Known(TraceIdRatioBased.get_bound_for_rate(rate), follows_parent=name.startswith("parentbased_"))


def _ratio() -> float:
    try:
        return min(max(float(os.environ.get("OTEL_TRACES_SAMPLER_ARG") or 1), 0.0), 1.0)
    except ValueError:  # the SDK says so, and samples everything
        return 1.0


def _is_marked(traceparent: str) -> bool:
    """Return whether its sender has sampled it."""
    return int(traceparent[53:55], 16) & TraceFlags.SAMPLED == TraceFlags.SAMPLED


def _context_of(traceparent: str) -> SpanContext:
    flags = _SAMPLED if _is_marked(traceparent) else _DEFAULT
    return SpanContext(int(traceparent[3:35], 16), int(traceparent[36:52], 16), is_remote=True, trace_flags=flags)


def _context_by(ids: TraceIds, *, is_remote: bool) -> SpanContext:
    return SpanContext(int(ids.trace_id, 16), int(ids.span_id, 16), is_remote=is_remote, trace_flags=_SAMPLED)


def _complain(text: str) -> None:
    _log.warning("traces: %s. Everything else goes on", text, extra=fields("traces_dropped", error=text))


def _tell_bug(text: str) -> None:
    _log.error("traces: %s", text, extra=fields("bug"))
