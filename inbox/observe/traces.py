"""Spans of sampled work, and the tracer that begins them. Only `inbox.observe.otel` imports OpenTelemetry, on demand.

Spans exist only for sampled work: functions take `Span | None`, and None costs nothing.
"""

from __future__ import annotations

import logging
import os
from contextlib import AbstractContextManager
from importlib.util import find_spec
from typing import Literal, Protocol

from inbox.errors import ConfigError
from inbox.observe.logs import TraceIds, fields, without_message

Kind = Literal["internal", "server", "client", "consumer"]
Value = str | int | float | bool

ASKING = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_TRACES_EXPORTER")
"""OpenTelemetry's variables, each of which enables traces, as `endpoint` in the configuration does."""
NEEDS_EXTRA = "needs the extra: pip install 'inbox-relay[otel]'"

_log = logging.getLogger("inbox.traces")


class Span(Protocol):
    """A sampled span in progress, used only by the thread or task that works on it."""

    attributes: dict[str, Value]

    @property
    def ids(self) -> TraceIds:
        """Return the span's ids, for log lines."""
        ...

    @property
    def traceparent(self) -> str:
        """Return the `traceparent` header by which others continue the span."""
        ...

    def child(self, name: str, kind: Kind = "internal", *, began: float | None = None) -> Span:
        """Begin a child span, now or at `began`, in `time.perf_counter` seconds."""
        ...

    def current(self) -> AbstractContextManager[None]:
        """Make this the current span, for this thread's log lines and as the parent of spans that other code begins."""
        ...

    def end(self, *, error: str | None = None, at: float | None = None) -> None:
        """End the span, now or at `at`. `error` is the class of the failure."""
        ...


class Tracer:
    """Begins spans of sampled work. This class samples nothing; `inbox.observe.otel.OtelTracer` does."""

    is_on = False

    def begin(self, name: str, kind: Kind, *, parent: str | None = None, began: float | None = None) -> Span | None:
        """Begin a span if it is sampled; otherwise return None.

        Args:
            name: one of a small set of names, without values from requests.
            kind: OpenTelemetry's kind of span.
            parent: the `traceparent` to continue; without a valid one, a new trace begins.
            began: start of the work, in `time.perf_counter` seconds; by default now.
        """
        del name, kind, parent, began
        return None

    def close(self) -> None:
        """Export the queued spans, for at most a second."""


OFF = Tracer()


def require_extra(endpoint: str | None) -> None:
    """Check that the extra is installed if the configuration enables traces.

    Raises:
        ConfigError: it is not.
    """
    if endpoint is not None and not _is_installed():
        raise ConfigError(f"[traces] endpoint: {NEEDS_EXTRA}")


def make_tracer(endpoint: str | None, ratio: float, service: str) -> Tracer:
    """Create the tracer of this process after its last fork; `OFF` if traces are disabled or unavailable.

    Args:
        endpoint: the configured URL of the collector; environment variables win over it.
        ratio: the configured share of traces to sample.
        service: the `service.name`, unless the environment sets it.
    """
    if not _is_asked_for(endpoint):
        return OFF
    if not _is_installed():
        _log.warning("traces are off: this %s", NEEDS_EXTRA, extra=fields("traces_off"))
        return OFF
    try:
        from inbox.observe.otel import OtelTracer  # noqa: PLC0415  # costs 20 MiB and a second, so on demand

        return OtelTracer(endpoint, ratio, service)
    except ConfigError as error:
        _log.error("traces are off: %s", error, extra=fields("traces_off", error=str(error)))
    except Exception as error:  # noqa: BLE001  # an invalid variable, which may be a secret, must not stop webhooks
        _log.error(
            "traces are off: OpenTelemetry can't be set up", exc_info=without_message(error), extra=fields("traces_off")
        )
    return OFF


def _is_asked_for(endpoint: str | None) -> bool:
    variables = {name: os.environ.get(name, "").strip().lower() for name in (*ASKING, "OTEL_SDK_DISABLED")}
    if variables.pop("OTEL_SDK_DISABLED") == "true" or variables["OTEL_TRACES_EXPORTER"] == "none":
        return False
    return endpoint is not None or any(variables.values())


def _is_installed() -> bool:
    return find_spec("opentelemetry") is not None and find_spec("opentelemetry.sdk") is not None
