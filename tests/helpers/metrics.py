"""Scrapes as Prometheus makes them, the Grafana dashboard, and the names in PromQL expressions."""

from __future__ import annotations

import contextlib
import re
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Sent
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.util._once import Once
from prometheus_client.parser import text_string_to_metric_families

from inbox.observe.metrics import RECEIVER, RELAY
from inbox.observe.otel import OtelTracer
from tests.helpers.processes import Program, free_port
from tests.helpers.scripted import Act, ScriptedServer, Seen, answer, hang
from tests.helpers.waiting import until

Samples = dict[str, dict[tuple[str, ...], float]]
"""Samples by name, then by label values in the order of the label names."""


def metrics_at(side: str) -> tuple[int, str]:
    """Return a free port, and the lines of inbox.toml that serve one side's metrics there."""
    port = free_port()
    return port, f'\n[metrics]\n{side} = "127.0.0.1:{port}"\n'


def exporter_of(program: Program) -> int:
    """Return the pid of the child that serves the metrics."""
    return next(pid for pid in program.children() if b"inbox.observe.exporter" in _command_line(pid))


def _command_line(pid: int) -> bytes:
    """Return the command line of a process, empty if it has just ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def scrape(port: int, within: float = 10.0) -> Samples:
    """Return the samples served on a port.

    Raises:
        OSError: there is no answer in time.
    """
    return parse_samples(_text(port, within))


def exposition(port: int) -> str | None:
    """Return the text served on a port, or None without an answer."""
    try:
        return _text(port, 10)
    except OSError:
        return None


def _text(port: int, within: float) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=within) as answer:
        text: str = answer.read().decode()
    return text


def parse_samples(text: str) -> Samples:
    """Parse the samples of an exposition."""
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = tuple(value for _, value in sorted(sample.labels.items()))
            assert labels not in found.setdefault(sample.name, {}), f"{sample.name}{labels} twice"
            found[sample.name][labels] = sample.value
    return found


def try_scrape(port: int) -> Samples | None:
    """Return the samples served on a port, or None without an answer."""
    try:
        return scrape(port)
    except OSError:
        return None


def total(samples: Samples, name: str) -> float:
    """Sum a metric over all its labels."""
    return sum(samples.get(name, {}).values())


DASHBOARD = Path(__file__).resolve().parent.parent.parent / "deploy" / "grafana" / "inbox-relay.json"
LABELS: Mapping[str, frozenset[str]] = {
    name: frozenset({"instance", "job", "le", *metric.labels})
    for metric in (*RECEIVER, *RELAY)
    for name in (
        [f"{metric.name}_{part}" for part in ("bucket", "sum", "count")]
        if metric.kind == "histogram"
        else [metric.name]
    )
}
"""Labels of each exported series, including those of Prometheus."""
_RANGES = {"$__rate_interval": "1m", "$__range": "5m"}


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the panels without the row titles."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def expressions(dashboard: dict[str, Any]) -> list[tuple[str, str]]:
    """Return each expression with the title of its panel."""
    return [(panel["title"], target["expr"]) for panel in panels(dashboard) for target in panel["targets"]]


def unknown_in(expression: str, recorded: Mapping[str, frozenset[str]] = {}) -> list[str]:
    """Return the product's series and labels in an expression that do not exist."""
    known = {**LABELS, **recorded}
    without_values = re.sub(r'"[^"]*"', '""', expression)
    found = []
    for name, matchers in re.findall(r"\b((?:inbox|relay|route)[_:][\w:]+)\s*(?:\{(.*?)\})?", without_values):
        if name not in known:
            found.append(name)
        else:
            labels = re.findall(r"(\w+)\s*[=!]", matchers)
            found += [f"{name}{{{label}}}" for label in labels if label not in known[name]]
    return found


def variables(dashboard: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield series and label of each variable: `label_values(SERIES, LABEL)`."""
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            found = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
            assert found, variable
            yield found[1], found[2]


# --- A tracer that keeps its spans, and an OTLP collector that can hang


class Kept:
    """A tracer and its exported spans."""

    def __init__(self, tracer: OtelTracer, exporter: InMemorySpanExporter) -> None:
        self.tracer = tracer
        self._exporter = exporter

    def spans(self, name: str | None = None) -> list[ReadableSpan]:
        """Return the spans of this name, or all, by end."""
        self.tracer._provider.force_flush()
        return [span for span in self._exporter.get_finished_spans() if name in {None, span.name}]


@contextlib.contextmanager
def keeping(ratio: float = 1.0) -> Iterator[Kept]:
    """Run a tracer that keeps its spans."""
    exporter = InMemorySpanExporter()
    with run_tracer(exporter, ratio) as tracer:
        yield Kept(tracer, exporter)


@contextlib.contextmanager
def run_tracer(exporter: SpanExporter, ratio: float = 1.0) -> Iterator[OtelTracer]:
    """Run a tracer for the block and restore the process's provider afterwards."""
    made = OtelTracer(None, ratio, "tests", exporter)
    try:
        yield made
    finally:
        made.close()
        trace._TRACER_PROVIDER, trace._TRACER_PROVIDER_SET_ONCE = None, Once()


class Span(msgspec.Struct, frozen=True):
    """A span as a collector receives it; ids are hexadecimal, times nanoseconds."""

    name: str
    service: str
    trace_id: str
    span_id: str
    parent: str
    kind: str
    began: int
    ended: int
    attributes: dict[str, Any]
    links: list[tuple[str, str]]
    failed: bool


class Collector(ScriptedServer):
    """Keeps every span. While `hangs` is set, it does not answer."""

    def __init__(self, port: int = 0) -> None:
        self.spans: list[Span] = []
        self.hangs = threading.Event()
        super().__init__(answer(), port=port)

    def act_for(self, seen: Seen) -> Act:
        """Keep the spans of a request."""
        act = super().act_for(seen)
        if self.hangs.is_set():
            return hang
        for resource in ExportTraceServiceRequest.FromString(seen.body).resource_spans:
            service = _values(resource.resource.attributes)["service.name"]
            self.spans += [_span(sent, service) for scope in resource.scope_spans for sent in scope.spans]
        return act

    def find_named(self, name: str) -> list[Span]:
        """Return the spans of this name so far."""
        return [span for span in self.spans if span.name == name]

    def wait_for(self, name: str, number: int = 1) -> list[Span]:
        """Wait for so many spans of this name."""
        until(lambda: len(self.find_named(name)) >= number, f"{number} spans {name!r} of {self.spans}")
        return self.find_named(name)


@contextlib.contextmanager
def collecting() -> Iterator[Collector]:
    """Run a collector for the block."""
    with contextlib.closing(Collector()) as collector:
        yield collector


def _span(sent: Sent, service: str) -> Span:
    return Span(
        sent.name,
        service,
        sent.trace_id.hex(),
        sent.span_id.hex(),
        sent.parent_span_id.hex(),
        Sent.SpanKind.Name(sent.kind).removeprefix("SPAN_KIND_").lower(),
        sent.start_time_unix_nano,
        sent.end_time_unix_nano,
        _values(sent.attributes),
        [(link.trace_id.hex(), link.span_id.hex()) for link in sent.links],
        failed=sent.status.code == 2,
    )


def _values(pairs: Any) -> dict[str, Any]:  # noqa: ANN401  # a list of protobuf's own
    def value(pair: KeyValue) -> Any:  # noqa: ANN401  # the value of the field that is set
        return getattr(pair.value, str(pair.value.WhichOneof("value")))

    return {pair.key: value(pair) for pair in pairs}
