"""Serves the metrics of one side's processes at `/metrics`, as a separate program.

So load on its port delays no request and ends no lease. All processes write to its standard input, a pipe
(`inbox.telemetry.recorder`). It adds up the lines, opens no file and no database, and ends when the last writer is gone.
It ignores signals, which often reach the whole process group.
"""

from __future__ import annotations

import contextlib
import encodings.idna  # noqa: F401  # a host's name needs it, and Python's own files may be out of reach after `drop_privileges`
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from inbox.config.types import Address
from inbox.telemetry.metrics import RECEIVER, RELAY, Metric
from inbox.telemetry.recorder import Line

CONNECTIONS = 64
"""Concurrent connections; one more closes the oldest."""
ANSWERED_WITHIN_SECONDS = 10.0
"""A connection that takes longer is closed, even if it is active."""
LONGEST_LINE = 16 * 1024
_TRY_AGAIN_SECONDS = 1.0

_METRICS = {metric.name: metric for metric in (*RECEIVER, *RELAY)}
_Family = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily


class Totals(Collector):
    """Sums over all processes, including ended ones. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._series: dict[str, dict[tuple[str, ...], tuple[float, ...]]] = {}
        self._decoder = msgspec.json.Decoder(Line)

    def add(self, line: bytes) -> None:
        """Add a line from a process.

        Raises:
            ValueError: it is no line of `inbox.telemetry.recorder`, or only the end of one, after an exporter was killed.
        """
        try:
            name, labels, values = self._decoder.decode(line)
        except msgspec.DecodeError as error:
            raise ValueError(str(error)) from None
        metric = _METRICS.get(name)
        if metric is None or len(labels) != len(metric.labels) or len(values) != metric.numbers:
            raise ValueError(f"no metric is like this: {line!r}")
        with self._lock:
            series = self._series.setdefault(name, {})
            held = series.get(labels)
            if held is None:
                series[labels] = values
            elif metric.kind == "gauge":
                series[labels] = max(held, values, key=lambda each: each[1])  # the newest value of any process
            else:
                series[labels] = tuple(map(sum, zip(held, values, strict=True)))

    def collect(self) -> Iterator[_Family]:
        """Yield every counted metric in prometheus-client's form."""
        with self._lock:
            copied = {name: dict(series) for name, series in self._series.items()}
        for name in sorted(copied):
            yield _family(_METRICS[name], copied[name])


def _family(metric: Metric, series: dict[tuple[str, ...], tuple[float, ...]]) -> _Family:
    if metric.kind == "histogram":
        histogram = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
        for labels, (*numbers, total) in sorted(series.items()):
            limits = (*map(str, metric.buckets), "+Inf")
            buckets = [(limit, sum(numbers[: place + 1])) for place, limit in enumerate(limits)]
            histogram.add_metric(labels, buckets, total)
        return histogram
    made = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    family = made(metric.name, metric.help, labels=metric.labels)
    for labels, (value, *_) in sorted(series.items()):
        family.add_metric(labels, value)
    return family


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: Address, registry: CollectorRegistry) -> None:
        self.registry = registry
        self._open: dict[socket.socket, float] = {}
        self.address_family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        super().__init__((address.host, address.port), _Handler)

    def server_bind(self) -> None:
        """Bind without looking up the host's name, which may take long."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401  # socketserver's
        """Answer in a thread. A scrape takes milliseconds, so the oldest connection is hardly ever a scrape."""
        oldest_first = list(self._open)
        for oldest in oldest_first[: max(len(oldest_first) - CONNECTIONS + 1, 0)]:
            self._cut(oldest)
        self._open[request] = time.monotonic() + ANSWERED_WITHIN_SECONDS
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:  # noqa: ANN401  # socketserver's
        self._open.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Close overdue connections; called between requests, at least twice a second."""
        for request, deadline in list(self._open.items()):
            if time.monotonic() > deadline:
                self._cut(request)

    def _cut(self, request: socket.socket) -> None:
        """Close a connection; its thread reads the end and stops."""
        self._open.pop(request, None)
        with contextlib.suppress(OSError):
            request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401, ARG002  # socketserver's
        error = sys.exc_info()[1]
        if not isinstance(error, ConnectionError | TimeoutError):
            _say(f"a scrape failed: {error!r}")


class _Handler(BaseHTTPRequestHandler):
    timeout = 5.0
    server: _Server

    def do_GET(self) -> None:
        if self.path.partition("?")[0] != "/metrics":
            self.send_error(404)
            return
        try:
            encode, content_type = choose_encoder(self.headers.get("Accept", ""))
        except (TypeError, ValueError):  # it compares versions, and these are not numbers
            encode, content_type = choose_encoder("")
        body = encode(self.server.registry)
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def version_string(self) -> str:
        return "inbox-relay"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base class names it so
        pass


def _serve(address: Address, registry: CollectorRegistry) -> None:
    reported = False
    while True:
        try:
            server = _Server(address, registry)
        except OSError as error:  # another program has the port, perhaps a predecessor that is about to end
            if not reported:
                _say(f"can't listen on {address}, trying again: {error.strerror or error}")
            reported = True
            time.sleep(_TRY_AGAIN_SECONDS)
        else:
            server.serve_forever()


def _say(message: str) -> None:
    print(f"metrics: {message}", file=sys.stderr, flush=True)  # noqa: T201  # a program's own standard error


def drop_privileges(uid: int, gid: int) -> None:
    """Drop to the rights of this user and group, permanently. Does nothing unless this process runs as root.

    `Popen(user=…)` would drop them before Python starts, and only root may be able to read Python's files, as below /root.

    Raises:
        OSError: it failed, and this process must not continue.
    """
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)


def main(arguments: list[str]) -> None:
    """Serve until standard input ends. It neither listens nor reads before it drops root's rights."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    drop_privileges(int(arguments[1]), int(arguments[2]))
    totals, registry = Totals(), CollectorRegistry()
    registry.register(totals)
    threading.Thread(target=_serve, args=(Address.parse(arguments[0]), registry), daemon=True).start()
    for line in iter(partial(sys.stdin.buffer.readline, LONGEST_LINE), b""):
        try:
            totals.add(line)
        except ValueError:  # the rest of a line whose beginning a killed exporter had read
            continue


if __name__ == "__main__":
    main(sys.argv[1:])
