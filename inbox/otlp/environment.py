"""Checks the standard variables of OpenTelemetry before its SDK reads them.

The SDK answers a mistake with a traceback, with a default such as sampling everything, or with a line that shows a header and
the token in it. No message from here has a value.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping

import msgspec

from inbox.errors import ConfigError
from inbox.otlp.asked import Signal

SAMPLERS = ("always_on", "always_off", "traceidratio")
DEFAULT_QUEUE, DEFAULT_BATCH = 2048, 512
"""Spans: the SDK's own defaults of OTEL_BSP_MAX_QUEUE_SIZE and OTEL_BSP_MAX_EXPORT_BATCH_SIZE."""

LARGEST = 10**9

_QUEUE, _BATCH = "OTEL_BSP_MAX_QUEUE_SIZE", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE"
_FILES = ("CERTIFICATE", "CLIENT_KEY", "CLIENT_CERTIFICATE")
_HEADER = re.compile(r"[\w!#$%&'*+.^`|~-]+\s*=[^\r\n]*", re.ASCII)
_URL = re.compile(r"https?://[^\s/]+\S*", re.IGNORECASE)
_LIMITS = (
    *(f"OTEL_{part}ATTRIBUTE_{limit}_LIMIT" for part in ("", "SPAN_") for limit in ("COUNT", "VALUE_LENGTH")),
    *(f"OTEL_{limit}_COUNT_LIMIT" for limit in ("SPAN_EVENT", "SPAN_LINK", "EVENT_ATTRIBUTE", "LINK_ATTRIBUTE")),
)


class VariableRule(msgspec.Struct, frozen=True):
    """A rule for the first of these variables that is set."""

    names: tuple[str, ...]
    fits: Callable[[str], bool]
    wanted: str


def require_sound(signal: Signal, environment: Mapping[str, str] = os.environ) -> None:
    """Check the variables that the SDK would read for this signal.

    Raises:
        ConfigError: one of them is wrong. The text has a line for each, with its name and what it takes.
    """
    mistakes = [
        f"{name}: takes {rule.wanted}"
        for rule in _rules(signal, environment)
        for name in [name for name in rule.names if environment.get(name, "").strip()][:1]
        if not rule.fits(environment[name])
    ]
    if mistakes:
        raise ConfigError("\n".join(mistakes))


def protocol_of(signal: Signal, environment: Mapping[str, str] = os.environ) -> str:
    """Return the protocol of OTLP that the environment names; HTTP with protobuf unless given."""
    names = _of_otlp(signal, "PROTOCOL")
    return next(filter(None, (environment.get(name, "").strip() for name in names)), "http/protobuf")


def _rules(signal: Signal, environment: Mapping[str, str]) -> list[VariableRule]:
    rules = [
        *(VariableRule(_of_otlp(signal, key), _is_readable, "a file that this program may read") for key in _FILES),
        VariableRule(_of_otlp(signal, "TIMEOUT"), _is_number(0, 86_400), "seconds above 0"),
        VariableRule(
            _of_otlp(signal, "COMPRESSION"), {"none", "gzip", "deflate"}.__contains__, "none, gzip or deflate"
        ),
        VariableRule(_of_otlp(signal, "HEADERS"), _are_headers, "NAME=VALUE, with commas between several"),
        VariableRule(("OTEL_RESOURCE_ATTRIBUTES",), _are_pairs, "NAME=VALUE, with commas between several"),
    ]
    if protocol_of(signal, environment) == "http/protobuf":
        rules.append(VariableRule(_of_otlp(signal, "ENDPOINT"), _is_url, "a URL such as http://127.0.0.1:4318"))
    return [*rules, *(_of_traces(environment) if signal == "traces" else (_whole("OTEL_METRIC_EXPORT_INTERVAL", 1),))]


def _of_traces(environment: Mapping[str, str]) -> Iterable[VariableRule]:
    """Yield the rules of sampling and batches: the SDK takes no batch that is larger than the queue."""
    queue, batch = (environment.get(name, "") for name in (_QUEUE, _BATCH))
    yield VariableRule(
        ("OTEL_TRACES_SAMPLER",), _is_sampler, f"{', '.join(SAMPLERS)}, or one of them after parentbased_"
    )
    yield VariableRule(("OTEL_TRACES_SAMPLER_ARG",), _is_number(-1e-300, 1), "a number from 0 to 1")
    yield _whole(_QUEUE, 1 if batch.strip() else DEFAULT_BATCH)
    yield _whole(_BATCH, 1, int(queue) if _is_whole(queue) else DEFAULT_QUEUE)
    for name in ("OTEL_BSP_SCHEDULE_DELAY", "OTEL_BSP_EXPORT_TIMEOUT"):
        yield _whole(name, 1)
    for name in _LIMITS:
        yield _whole(name, 0)


def _of_otlp(signal: Signal, key: str) -> tuple[str, str]:
    return f"OTEL_EXPORTER_OTLP_{signal.upper()}_{key}", f"OTEL_EXPORTER_OTLP_{key}"


def _whole(name: str, least: int, most: int = LARGEST) -> VariableRule:
    wanted = f"a whole number from {least}" + (f" to {most}" if most < LARGEST else "")
    return VariableRule((name,), lambda text: _is_whole(text) and least <= int(text) <= most, wanted)


def _is_whole(text: str) -> bool:
    return text.isdecimal() and len(text) <= len(str(LARGEST))


def _is_number(above: float, most: float) -> Callable[[str], bool]:
    def fits(text: str) -> bool:
        try:
            return above < float(text) <= most
        except ValueError:
            return False

    return fits


def _is_sampler(text: str) -> bool:
    return text.lower().removeprefix("parentbased_") in SAMPLERS


def _is_url(text: str) -> bool:
    return _URL.fullmatch(text) is not None


def _is_readable(text: str) -> bool:
    return os.access(text, os.R_OK)


def _are_headers(text: str) -> bool:
    return all(_HEADER.fullmatch(item.strip()) for item in text.split(",") if item.strip())


def _are_pairs(text: str) -> bool:
    return all("=" in item for item in text.split(","))
