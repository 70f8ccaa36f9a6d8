"""Spans of sampled work, and the tracer that begins them. Only `inbox.observe.otel` imports OpenTelemetry, where it is asked for.

A span exists only for sampled work: everything takes `Span | None`, and None costs nothing.
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
"""Variables of OpenTelemetry. Any of them asks for traces, as `endpoint` of the configuration does."""
NEEDS_EXTRA = "needs the extra: pip install 'inbox-relay[otel]'"

_log = logging.getLogger("inbox.traces")


class Span(Protocol):
    """A sampled span in progress. Only the thread or task that works on it calls it."""

    attributes: dict[str, Value]

    @property
    def ids(self) -> TraceIds:
        """Return its ids, for log lines."""
        ...

    @property
    def traceparent(self) -> str:
        """Return the header by which others continue it."""
        ...

    def child(self, name: str, kind: Kind = "internal", *, began: float | None = None) -> Span:
        """Begin a span below this one, now or at `began`, in `time.perf_counter` seconds."""
        ...

    def current(self) -> AbstractContextManager[None]:
        """Let log lines of this thread have its ids, and spans that other code begins be its children."""
        ...

    def end(self, *, error: str | None = None, at: float | None = None) -> None:
        """End it, now or at `at`. `error` is the class of the failure."""
        ...


class Tracer:
    """Begins spans of sampled work. This class samples nothing; `inbox.observe.otel.OtelTracer` does."""

    is_on = False

    def begin(self, name: str, kind: Kind, *, parent: str | None = None, began: float | None = None) -> Span | None:
        """Begin a span, if the sampler takes it; return None otherwise.

        Args:
            name: one of few names, without values of a request.
            kind: the role of the work, as OpenTelemetry has it.
            parent: the `traceparent` that it continues; without a valid one a trace begins.
            began: when the work began, in `time.perf_counter` seconds; now unless given.
        """
        del name, kind, parent, began
        return None

    def close(self) -> None:
        """Export what is queued, for at most a second."""


OFF = Tracer()


def require_extra(endpoint: str | None) -> None:
    """Check that the extra is installed where the configuration asks for traces.

    Raises:
        ConfigError: it is not.
    """
    if endpoint is not None and not _is_installed():
        raise ConfigError(f"[traces] endpoint: {NEEDS_EXTRA}")


def make_tracer(endpoint: str | None, ratio: float, service: str) -> Tracer:
    """Make the tracer of this process, which is forked no more; `OFF` where nothing asks for one or it can't be made.

    Args:
        endpoint: the collector's URL, as the configuration has it; variables of the environment win over it.
        ratio: the share of traces that begin here which are sampled, as the configuration has it.
        service: the `service.name`, unless the environment has another.
    """
    if not _is_asked_for(endpoint):
        return OFF
    if not _is_installed():
        _log.warning("traces are off: this %s", NEEDS_EXTRA, extra=fields("traces_off"))
        return OFF
    try:
        from inbox.observe.otel import OtelTracer  # noqa: PLC0415  # costs 20 MiB and a second, where it is asked for

        return OtelTracer(endpoint, ratio, service)
    except ConfigError as error:
        _log.error("traces are off: %s", error, extra=fields("traces_off", error=str(error)))
    except Exception as error:  # noqa: BLE001  # a wrong variable, whose value may be a secret, stops no webhook
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
