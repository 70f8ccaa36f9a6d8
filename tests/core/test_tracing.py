"""Spans: which trace they belong to, and that nothing is imported, raised or awaited for them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from inbox.errors import ConfigError
from inbox.observe import traces
from inbox.observe.traces import OFF, make_tracer, require_extra
from tests.helpers.tracing import Kept, keeping

SENT = f"00-{'a' * 32}-{'b' * 16}-01"


@pytest.fixture(autouse=True)
def nothing_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def kept() -> Iterator[Kept]:
    with keeping() as made:
        yield made


def test_a_span_continues_its_sender_and_a_child_its_span(kept: Kept) -> None:
    span = kept.tracer.begin("outer", "server", parent=SENT)
    assert span is not None
    assert span.traceparent == f"00-{'a' * 32}-{span.ids.span_id}-01"
    child = span.child("inner", "client")
    child.attributes["http.response.status_code"] = 503
    child.end(error="server_error")
    span.end()
    inner, outer = kept.spans()
    assert (outer.parent.span_id, outer.context.trace_id) == (0xBBBBBBBBBBBBBBBB, int("a" * 32, 16))  # type: ignore[union-attr]
    assert (outer.parent.is_remote, inner.parent.is_remote) == (True, False)  # type: ignore[union-attr]
    assert inner.parent.span_id == outer.context.span_id == int(span.ids.span_id, 16)  # type: ignore[union-attr]
    assert inner.attributes == {"http.response.status_code": 503, "error.type": "server_error"}
    assert (inner.status.is_ok, outer.status.is_unset) == (False, True)
    assert outer.start_time <= inner.start_time <= inner.end_time <= outer.end_time  # type: ignore[operator]


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_SDK_DISABLED": "true"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_TRACES_EXPORTER": "none"},
        {"OTEL_TRACES_EXPORTER": "zipkin"},
    ],
)
def test_nothing_is_traced_unless_it_is_asked_for(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert make_tracer(None, 1.0, "x") is OFF


def test_without_the_extra_a_warning_says_so_and_a_configuration_that_asks_is_wrong(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(traces, "_is_installed", lambda: False)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    assert make_tracer(None, 1.0, "x") is OFF
    assert "inbox-relay[otel]" in caplog.text
    with pytest.raises(ConfigError, match=r"\[traces\] endpoint"):
        require_extra("http://127.0.0.1:9/v1/traces")
    require_extra(None)


@pytest.mark.parametrize("stored", ["", "nonsense", f"00-{'z' * 32}-{'b' * 16}-01", "00-" + "a" * 10_000])
def test_a_stored_context_that_is_none_begins_a_trace(kept: Kept, stored: str) -> None:
    span = kept.tracer.begin("a", "consumer", parent=stored)
    assert span is not None
    span.end()
    assert kept.spans()[0].parent is None


def test_both_programs_import_no_opentelemetry_by_themselves() -> None:
    program = (
        "import sys, inbox.gunicorn_settings, relay.daemon.process\n"
        "sys.exit(any(name.partition('.')[0] == 'opentelemetry' for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize(
    ("variable", "value"), [("OTEL_EXPORTER_OTLP_HEADERS", "Bearer s3cret"), ("OTEL_BSP_SCHEDULE_DELAY", "s3cret")]
)
def test_a_wrong_variable_stops_nothing_and_its_value_is_not_logged(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(variable, value)
    make_tracer("http://127.0.0.1:9/v1/traces", 1.0, "x").close()
    assert "traces" in caplog.text
    assert "s3cret" not in caplog.text
