"""Exporters by the standard variables: what is wrong is named without its value, and no collector holds a thread for long."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from inbox.config.model import Config, Metrics, Traces
from inbox.errors import ConfigError
from inbox.otlp import asked, exporters
from inbox.otlp.asked import Signal, is_asked_for, require_extra
from inbox.otlp.environment import require_sound
from inbox.otlp.exporters import BriefSession, hear, make_exporter

URL = "http://127.0.0.1:9/v1/traces"


@pytest.fixture(autouse=True)
def nothing_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize("signal", ["traces", "metrics"])
def test_a_signal_is_exported_where_it_is_asked_for(signal: Signal, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = f"OTEL_{signal.upper()}_EXPORTER"
    assert not is_asked_for(signal, None)
    assert is_asked_for(signal, URL)
    for name, value in (("OTEL_SDK_DISABLED", "true"), (chosen, "none")):
        with monkeypatch.context() as changed:
            changed.setenv(name, value)
            assert not is_asked_for(signal, URL)
    monkeypatch.setenv(chosen, " ")
    assert not is_asked_for(signal, None)
    monkeypatch.setenv(chosen, "console")
    assert is_asked_for(signal, None)


def test_the_endpoint_of_all_signals_asks_for_traces_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    assert (is_asked_for("traces", None), is_asked_for("metrics", None)) == (True, False)


def test_without_the_extra_a_configuration_that_asks_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asked, "is_installed", lambda: False)
    require_extra(Config())
    for config in (Config(traces=Traces(endpoint=URL)), Config(metrics=Metrics(endpoint=URL))):
        with pytest.raises(ConfigError, match=r"pip install 'inbox-relay\[otel\]'"):
            require_extra(config)


WRONG = {
    "OTEL_TRACES_SAMPLER": ("mine", "always_on ", "parentbased_"),
    "OTEL_TRACES_SAMPLER_ARG": ("abc", "nan", "-1", "5", "inf"),
    "OTEL_BSP_MAX_QUEUE_SIZE": ("0", "-1", "1.5", "511", "9" * 5000),
    "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": ("0", "2049"),
    "OTEL_BSP_SCHEDULE_DELAY": ("0", "5s"),
    "OTEL_ATTRIBUTE_COUNT_LIMIT": ("x", "-1"),
    "OTEL_SPAN_LINK_COUNT_LIMIT": ("x",),
    "OTEL_EXPORTER_OTLP_ENDPOINT": ("collector:4318", "ftp://collector", "http://"),
    "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT": ("abc", "0", "nan"),
    "OTEL_EXPORTER_OTLP_COMPRESSION": ("zip",),
    "OTEL_EXPORTER_OTLP_HEADERS": ("Bearer s3cret", "a=b,s3cret", "a=b\r\nc: d"),
    "OTEL_EXPORTER_OTLP_CERTIFICATE": ("/no/such/file",),
    "OTEL_EXPORTER_OTLP_PROTOCOL": ("grpc", "http/json", "x"),
    "OTEL_RESOURCE_ATTRIBUTES": ("s3cret",),
    "OTEL_TRACES_EXPORTER": ("zipkin", "otlp,console"),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_a_wrong_variable_is_named_and_its_value_is_not(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=rf"\A{name}: [^\n]+\Z") as raised:
        make_exporter("traces", URL)
    assert "s3cret" not in f"{raised.value}{caplog.text}"


def test_right_variables_are_taken_and_so_is_what_an_empty_one_leaves_out(tmp_path: Path) -> None:
    certificate = tmp_path / "ca.pem"
    certificate.touch()
    for signal in ("traces", "metrics"):
        require_sound(
            signal,
            {
                "OTEL_TRACES_SAMPLER": "ParentBased_TraceIdRatio",
                "OTEL_TRACES_SAMPLER_ARG": "0",
                "OTEL_BSP_MAX_QUEUE_SIZE": "64",
                "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "64",
                "OTEL_EXPORTER_OTLP_ENDPOINT": "https://collector",
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "",
                "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer a b,x-scope = 1,",
                "OTEL_EXPORTER_OTLP_CERTIFICATE": str(certificate),
                "OTEL_EXPORTER_OTLP_TIMEOUT": "2.5",
                "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
                "OTEL_METRIC_EXPORT_INTERVAL": "1000",
                "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=production,a=b",
            },
        )


def test_what_the_sdk_complains_of_is_told_at_most_once_a_minute_and_without_a_value(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(exporters, "monotonic", iter((0.0, 59.0, 61.0, 122.0, 183.0)).__next__)
    # A test before may have left it to itself: pytest then listens here, too, and fails at nonsense.
    monkeypatch.setattr(logging.getLogger("opentelemetry"), "handlers", [])
    told: list[str] = []
    hear(told.append)
    log = logging.getLogger("opentelemetry.of.something")
    log.error("Failed to export %s batch code: %s, reason: %s", "spans", 404, "s3cret")
    log.error("not told")
    log.warning("Transient error %s while exporting, retrying in %.2fs.", ConnectionError("http://s3cret/"), 0.25)
    log.error("Exception while exporting %s.", "Span", exc_info=OSError("s3cret"))
    log.error("nonsense %d %s", *("s3cret",))
    assert told == [
        "Failed to export … batch code: 404, reason: …",
        "Transient error ConnectionError while exporting, retrying in 0.25s",
        "Exception while exporting …. (OSError)",
        "nonsense",
    ]


def _whole_request(connection: socket.socket) -> bool:
    """Read a request whose body ends in `spans`; it may come in parts. Returns False when the other side has closed."""
    request = b""
    while not request.endswith(b"spans"):
        more = connection.recv(65536)
        if not more:
            return False
        request += more
    return True


@contextlib.contextmanager
def answering(head: bytes, body: bytes, *, ends: bool) -> Iterator[tuple[str, list[int]]]:
    """A server that answers so, and counts its connections. Unless it `ends`, it sends the body until the other side closes."""
    connections: list[int] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listening.accept()
                    connections.append(1)
                    with connection, contextlib.suppress(OSError):
                        while _whole_request(connection):
                            connection.sendall(head + body)
                            while not ends:
                                connection.sendall(body)

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/", connections
        listening.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    ("head", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Type: a/b\r\n\r\n", b"x" * 65536),
        (b"HTTP/1.1 500 No\r\nContent-Length: 99999999999\r\n\r\n", b"x" * 65536),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"10000\r\n" + b"x" * 65536 + b"\r\n"),
    ],
    ids=["until closed", "too long", "chunked"],
)
def test_an_answer_without_end_is_left(head: bytes, body: bytes) -> None:
    with answering(head, body, ends=False) as (url, _):
        began = time.monotonic()
        answer = BriefSession().post(url, b"spans", timeout=10)
        assert len(answer.content) <= exporters.MOST_ANSWERED
        assert time.monotonic() - began < 5


def test_a_redirect_is_no_success() -> None:
    head = b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 0\r\n\r\n"
    with answering(head, b"", ends=True) as (url, connections), pytest.raises(requests.TooManyRedirects):
        BriefSession().post(url, b"spans", timeout=10, allow_redirects=False)
    assert len(connections) == 1


def test_a_connection_whose_answer_is_whole_is_kept() -> None:
    with answering(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", b"{}", ends=True) as (url, connections):
        session = BriefSession()
        assert [session.post(url, b"spans", timeout=10).content for _ in range(3)] == [b"{}"] * 3
        session.close()
    assert len(connections) == 1


@pytest.mark.parametrize("signal", ["traces", "metrics"])
def test_an_exporter_has_the_endpoint_of_the_configuration_unless_the_environment_has_one(
    signal: Signal, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter = make_exporter(signal, URL)
    assert exporter._endpoint == URL
    assert isinstance(exporter._client._transport._session, BriefSession)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    assert make_exporter(signal, "http://127.0.0.1:8/")._endpoint == f"http://127.0.0.1:9/v1/{signal}"
