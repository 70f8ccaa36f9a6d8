"""Makes the tracer of a process, where the configuration or the environment asks for one."""

from __future__ import annotations

import logging

from inbox.config.model import Traces
from inbox.errors import ConfigError
from inbox.logs.fields import fields
from inbox.logs.traces import without_message
from inbox.otlp.asked import is_asked_for, is_installed
from inbox.tracing.spans import OFF, Tracer

_log = logging.getLogger("inbox.tracing")


def make_tracer(settings: Traces, service: str) -> Tracer:
    """Make the tracer of this process, which is forked no more; `OFF` where nothing asks for one or it can't be made.

    Args:
        settings: the table `[traces]`.
        service: the `service.name`, unless the environment has another.
    """
    if not is_asked_for("traces", settings.endpoint):
        return OFF
    if not is_installed():
        _log.warning(
            "traces are off: the environment asks for them, and the extra inbox-relay[otel] is not installed",
            extra=fields("traces_off"),
        )
        return OFF
    try:
        from inbox.tracing.exporting import OtelTracer  # noqa: PLC0415  # costs 20 MiB and a second, where it is asked for

        return OtelTracer(settings, service)
    except ConfigError as error:
        for mistake in str(error).splitlines():
            _log.error("traces are off: %s", mistake, extra=fields("traces_off", error=mistake))
    except Exception as error:  # noqa: BLE001  # what nobody foresaw stops no webhook
        _log.error(
            "traces are off: OpenTelemetry can't be set up", exc_info=without_message(error), extra=fields("traces_off")
        )
    return OFF
