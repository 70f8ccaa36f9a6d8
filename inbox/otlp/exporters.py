"""Exporters of OpenTelemetry's SDK by the standard variables. Imported only where a signal is asked for."""

from __future__ import annotations

import io
import logging
import os
import uuid
from collections.abc import Callable
from importlib.metadata import entry_points, version
from time import monotonic
from typing import Any

import requests
from opentelemetry.sdk.resources import OTELResourceDetector, Resource

from inbox.errors import ConfigError
from inbox.otlp.asked import Signal, names_endpoint
from inbox.otlp.environment import protocol_of, require_sound

SCHEMA_URL = "https://opentelemetry.io/schemas/1.44.0"
"""The semantic conventions that names and attributes follow."""
COMPLAINS_EVERY_SECONDS = 60.0
MOST_ANSWERED = 64 * 1024
"""Bytes of a collector's answer that are read; nothing is made of them."""

_PACKAGES = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}
_CREDENTIALS = "OTEL_PYTHON_EXPORTER_OTLP_HTTP_{}CREDENTIAL_PROVIDER"


def make_exporter(signal: Signal, endpoint: str | None) -> Any:  # noqa: ANN401  # of either signal
    """Make the exporter that OTEL_…_EXPORTER and OTEL_EXPORTER_OTLP_PROTOCOL name: OTLP over HTTP unless given.

    Args:
        signal: what it exports.
        endpoint: the URL of the configuration; variables of the environment win over it.

    Raises:
        ConfigError: a variable is wrong, or names an exporter that is not installed.
    """
    require_sound(signal)
    chosen, protocol = f"OTEL_{signal.upper()}_EXPORTER", protocol_of(signal)
    name = os.environ.get(chosen, "").strip() or "otlp"
    is_otlp = name == "otlp"
    if is_otlp:
        name = _PACKAGES.get(protocol, protocol)
    found = [point for point in entry_points(group=f"opentelemetry_{signal}_exporter") if point.name == name]
    if not found and is_otlp:
        grpc = "grpc after pip install opentelemetry-exporter-otlp-proto-grpc"
        raise ConfigError(f"OTEL_EXPORTER_OTLP_PROTOCOL: takes http/protobuf, or {grpc}")
    if not found:
        raise ConfigError(f"{chosen}: takes otlp, console, none, or the name of one exporter that is installed")
    given: dict[str, Any] = {}
    if is_otlp and endpoint is not None and not names_endpoint(signal):
        given["endpoint"] = endpoint
    if name == _PACKAGES["http/protobuf"] and not any(
        os.environ.get(_CREDENTIALS.format(part)) for part in ("", f"{signal.upper()}_")
    ):
        given["session"] = BriefSession()
    return found[0].load()(**given)


class Seldom:
    """Passes on a text, unless it passed one on within the last minute."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._next_at = float("-inf")

    def __call__(self, text: str) -> None:
        """Pass it on, or drop it."""
        now = monotonic()
        if now >= self._next_at:
            self._next_at = now + COMPLAINS_EVERY_SECONDS
            self._tell(text)


def hear(complain: Callable[[str], None]) -> Callable[[str], None]:
    """Let `complain` have what OpenTelemetry complains of from now on: at most once a minute, without any value.

    Returns:
        `complain` for other troubles of the same export, which count for the same minute.
    """
    log, seldom = logging.getLogger("opentelemetry"), Seldom(complain)
    log.handlers = [*(each for each in log.handlers if not isinstance(each, _Complaints)), _Complaints(seldom)]
    log.propagate = False
    return seldom


def resource_of(service: str) -> Resource:
    """Describe this process: its `service.name`, unless the environment has another, its version and a random id."""
    described = {
        "service.name": service,
        "service.version": version("inbox-relay"),
        "service.instance.id": str(uuid.uuid4()),
    }
    found = Resource.create(described).merge(OTELResourceDetector().detect())
    return _HashedOnce(found)


class _HashedOnce(Resource):
    """A resource whose hash is computed once. Exporters take it for each span, and the SDK writes all of it as JSON for that."""

    def __init__(self, described: Resource) -> None:
        super().__init__(described.attributes, described.schema_url)
        self._hash = super().__hash__()

    def __hash__(self) -> int:
        return self._hash


class BriefSession(requests.Session):
    """Reads an answer's head and the first part of its body: a collector that sends without end holds nobody."""

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:  # noqa: ANN401  # requests' own
        """Send it. The connection is kept where the answer is whole."""
        response = super().send(request, **{**options, "stream": True})
        if response.is_redirect:  # the SDK would take it for a success
            response.close()
            raise requests.TooManyRedirects
        raw = response.raw
        try:
            begin = raw.read1(MOST_ANSWERED, decode_content=False)
        finally:
            response.close()  # a connection whose answer is whole is in the pool already
        response.raw = io.BytesIO(begin)
        return response


class _Complaints(logging.Handler):
    """Passes on what OpenTelemetry's SDK says: its texts have headers, URLs and answers in them."""

    def __init__(self, complain: Seldom) -> None:
        super().__init__(logging.WARNING)
        self._complain = complain

    def emit(self, record: logging.LogRecord) -> None:
        self._complain(_without_values(record).strip().rstrip("."))


def _without_values(record: logging.LogRecord) -> str:
    """Return its text with numbers and classes of errors; whatever else is in it may be a secret."""
    arguments = record.args if isinstance(record.args, tuple) else ()
    raised = f" ({type(record.exc_info[1]).__name__})" if record.exc_info and record.exc_info[1] else ""
    try:
        return str(record.msg) % tuple(map(_shown, arguments)) + raised
    except (TypeError, ValueError):
        return str(record.msg).partition("%")[0] + raised


def _shown(argument: object) -> object:
    if isinstance(argument, int | float):
        return argument
    return type(argument).__name__ if isinstance(argument, BaseException) else "…"
