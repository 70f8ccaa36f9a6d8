"""Says whether the configuration or the environment asks for a signal of OpenTelemetry, and whether it can be had."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Literal

from inbox.config.model import Config
from inbox.errors import ConfigError

Signal = Literal["traces", "metrics"]

VARIABLES: dict[Signal, tuple[str, ...]] = {
    "traces": ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_TRACES_EXPORTER"),
    "metrics": ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "OTEL_METRICS_EXPORTER"),
}
"""Any of these asks for the signal, as `endpoint` of its table does. A collector of traces alone knows no metrics."""

NEEDS_EXTRA = "needs the extra: pip install 'inbox-relay[otel]'"


def is_asked_for(signal: Signal, endpoint: str | None) -> bool:
    """Return whether the signal is to be exported; `endpoint` is the one of the configuration."""
    if is_set("OTEL_SDK_DISABLED", "true") or is_set(f"OTEL_{signal.upper()}_EXPORTER", "none"):
        return False
    return endpoint is not None or any(os.environ.get(name, "").strip() for name in VARIABLES[signal])


def names_endpoint(signal: Signal) -> bool:
    """Return whether the environment says where to; then the configuration does not."""
    names = (f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    return any(os.environ.get(name, "").strip() for name in names)


def require_extra(config: Config) -> None:
    """Check that the extra is installed where the configuration asks for it.

    Raises:
        ConfigError: it is not.
    """
    for table, endpoint in (("traces", config.traces.endpoint), ("metrics", config.metrics.endpoint)):
        if endpoint is not None and not is_installed():
            raise ConfigError(f"[{table}] endpoint: {NEEDS_EXTRA}")


def is_installed() -> bool:
    """Return whether OpenTelemetry's SDK is installed, without importing it."""
    return find_spec("opentelemetry") is not None and find_spec("opentelemetry.sdk") is not None


def is_set(name: str, value: str) -> bool:
    """Return whether a variable has this value, in any case."""
    return os.environ.get(name, "").strip().lower() == value
