"""Metrics by OTLP: the sums that Prometheus would read, with their names; a collector that fails or hangs holds nobody."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
from typing import Any

import msgspec
import pytest
from opentelemetry.sdk.metrics.export import Histogram, MetricExporter, MetricExportResult, MetricsData

from inbox.config.model import Metrics
from inbox.config.values import Address
from inbox.otlp import exporters
from inbox.otlp.exporters import COMPLAINS_EVERY_SECONDS, resource_of
from inbox.telemetry import push
from inbox.telemetry.metrics import BATCH_EVENTS, OPEN, RECEIVED
from inbox.telemetry.outlet import Outlet, outlet_of
from inbox.telemetry.push import Pusher
from inbox.telemetry.recorder import Exemplar, Line
from inbox.telemetry.totals import Totals

URL = "http://127.0.0.1:9/v1/metrics"


@pytest.fixture(autouse=True)
def nothing_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)


class Keeping(MetricExporter):
    """Keeps what is pushed; `fails` and `hangs` for as long as they say so."""

    def __init__(self) -> None:
        super().__init__()
        self.pushed: list[MetricsData] = []
        self.fails = False
        self.go = threading.Event()
        self.go.set()

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **_: object) -> MetricExportResult:
        del timeout_millis
        self.pushed.append(metrics_data)
        self.go.wait(60)
        if self.fails:
            raise RuntimeError("s3cret")
        return MetricExportResult.SUCCESS

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        del timeout_millis
        return True

    def shutdown(self, timeout_millis: float = 30_000, **_: object) -> None:
        del timeout_millis


def filled() -> Totals:
    totals = Totals()
    exemplar = Exemplar(1, 2.0, 1.5, "a" * 32, "b" * 16)
    for line in (
        Line(RECEIVED.name, ("trivore",), (2.0,)),
        Line(RECEIVED.name, ("trivore",), (3.0,)),
        Line(OPEN.name, ("crm", "waiting"), (7.0, 1.0)),
        Line(BATCH_EVENTS.name, (), (1.0, 2.0, *[0.0] * 8, 5.0), (exemplar,)),
    ):
        totals.add(msgspec.json.encode(line))
    return totals


def test_what_is_pushed_are_the_sums_with_the_names_of_prometheus() -> None:
    exporter, told = Keeping(), list[str]()
    Pusher(filled(), "shop", told.append, exporter).close()
    (data,) = exporter.pushed
    (scope,) = data.resource_metrics[0].scope_metrics
    pushed: dict[str, Any] = {metric.name: metric.data for metric in scope.metrics}
    assert pushed.keys() == {"inbox_received_total", "relay_open_deliveries", "inbox_batch_events"}
    (received,), (open_now,) = pushed["inbox_received_total"].data_points, pushed["relay_open_deliveries"].data_points
    assert (dict(received.attributes or {}), received.value) == ({"source": "trivore"}, 5)
    assert (dict(open_now.attributes or {}), open_now.value) == ({"route": "crm", "state": "waiting"}, 7)
    batches = pushed["inbox_batch_events"]
    assert isinstance(batches, Histogram)
    (batch,) = batches.data_points
    assert (batch.count, batch.sum, list(batch.bucket_counts)) == (3, 5, [1, 2, *[0] * 8])
    assert list(batch.explicit_bounds) == list(BATCH_EVENTS.buckets)
    (seen,) = batch.exemplars
    assert (seen.value, seen.trace_id, seen.span_id) == (2.0, int("a" * 32, 16), int("b" * 16, 16))
    assert told == []


def test_a_push_that_fails_is_told_of_and_the_next_one_has_the_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "1")
    exporter, failed = Keeping(), threading.Event()
    exporter.fails = True
    told: list[str] = []

    def complain(text: str) -> None:
        exporter.fails = False
        told.append(text)
        failed.set()

    pusher = Pusher(filled(), "shop", complain, exporter)
    assert failed.wait(10)
    pusher.close()
    assert told == ["not exported (RuntimeError)"]
    assert len(exporter.pushed) >= 2


def test_an_exporter_that_fails_each_millisecond_is_told_of_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "1")
    minutes = itertools.count(0.0, COMPLAINS_EVERY_SECONDS / 3)
    monkeypatch.setattr(exporters, "monotonic", lambda: next(minutes))
    exporter, told, enough = Keeping(), list[str](), threading.Event()
    exporter.fails = True

    def complain(text: str) -> None:
        told.append(text)
        if len(told) == 3:
            enough.set()

    pusher = Pusher(filled(), "shop", complain, exporter)
    assert enough.wait(10)
    pusher.close()
    assert set(told) == {"not exported (RuntimeError)"}
    assert len(told) == -(-len(exporter.pushed) // 3), "each third time"


def test_a_collector_that_hangs_holds_an_end_for_a_moment_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(push, "CLOSES_WITHIN_SECONDS", 0.01)
    exporter, totals = Keeping(), filled()
    exporter.go.clear()
    pusher = Pusher(totals, "shop", print, exporter)
    pusher.close()
    totals.add(msgspec.json.encode(Line(RECEIVED.name, ("trivore",), (1.0,))))
    assert pusher._thread.is_alive()
    exporter.go.set()
    pusher._thread.join(10)
    assert not pusher._thread.is_alive()


def test_metrics_go_where_the_configuration_or_the_environment_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    address = Address("127.0.0.1:9100")
    assert outlet_of(Metrics(relay=address), "receiver") is None
    assert outlet_of(Metrics(relay=address), "relay") == Outlet(address)
    assert outlet_of(Metrics(endpoint=URL), "receiver") == Outlet(None, "inbox-receiver", URL)
    assert outlet_of(Metrics(endpoint=URL, relay=address), "relay") == Outlet(address, "inbox-relay", URL)
    named = Outlet(None, "inbox-receiver")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:8")
    assert outlet_of(Metrics(), "receiver") is None
    assert outlet_of(Metrics(endpoint=URL), "receiver") == named
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "otlp")
    assert outlet_of(Metrics(), "receiver") == named
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "none")
    assert outlet_of(Metrics(endpoint=URL), "receiver") is None


def export(line: Line, form: str = "text", **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the program that pushes, from its first line to its end."""
    command = [
        sys.executable,
        "-m",
        "inbox.telemetry.exporter",
        "",
        str(os.geteuid()),
        str(os.getegid()),
        form,
        "inbox-receiver",
    ]
    told = msgspec.json.encode(line).decode() + "\n"
    environment = {**os.environ, "OTEL_METRICS_EXPORTER": "console", **variables}
    return subprocess.run(command, input=told, capture_output=True, text=True, timeout=60, check=False, env=environment)


NAMED: dict[str, tuple[dict[str, str], str]] = {
    "nobody": ({}, "inbox-receiver"),
    "a variable of its own": ({"OTEL_SERVICE_NAME": "own"}, "own"),
    "an attribute": ({"OTEL_RESOURCE_ATTRIBUTES": "a=b,service.name=shop"}, "shop"),
    "both": ({"OTEL_SERVICE_NAME": "own", "OTEL_RESOURCE_ATTRIBUTES": "service.name=shop"}, "own"),
}


@pytest.mark.parametrize(("variables", "service"), NAMED.values(), ids=NAMED)
def test_the_environment_names_the_service_of_metrics_as_that_of_traces(
    variables: dict[str, str], service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    exporter = Keeping()
    Pusher(filled(), "inbox-receiver", print, exporter).close()
    (data,) = exporter.pushed
    assert data.resource_metrics[0].resource.attributes["service.name"] == service
    assert resource_of("inbox-receiver").attributes["service.name"] == service, "as the traces have it"


def test_what_was_counted_last_is_pushed_at_the_end() -> None:
    ended = export(
        Line(RECEIVED.name, ("trivore",), (5.0,)), OTEL_RESOURCE_ATTRIBUTES="deployment.environment.name=test"
    )
    (resource,) = json.loads(ended.stdout)["resource_metrics"]
    assert resource["resource"]["attributes"]["service.name"] == "inbox-receiver"
    assert resource["resource"]["attributes"]["deployment.environment.name"] == "test"
    (metric,) = resource["scope_metrics"][0]["metrics"]
    assert (metric["name"], metric["data"]["data_points"][0]["value"]) == ("inbox_received_total", 5)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_wrong_variable_is_told_in_the_form_of_the_log_and_ends_nothing() -> None:
    ended = export(Line(RECEIVED.name, ("trivore",), (5.0,)), "json", OTEL_METRIC_EXPORT_INTERVAL="1s")
    (line,) = map(json.loads, ended.stderr.splitlines())
    wrong = "not pushed by OTLP: OTEL_METRIC_EXPORT_INTERVAL: takes a whole number from 1"
    assert (line["level"], line["event"], line["message"]) == ("WARNING", "metrics_trouble", f"metrics: {wrong}")
    assert (ended.returncode, ended.stdout) == (0, "")
