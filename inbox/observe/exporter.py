"""Serve a program's metrics at `/metrics` from a separate process, so that load on its port delays no request.

The program's processes write to its standard input, a pipe (`inbox.observe.recorder`). It sums up the lines, opens no
database, and ends with the last writer. It ignores signals, which often reach the whole process group.
"""

from __future__ import annotations

import encodings.idna  # noqa: F401  # needed for host names; Python's files may be unreadable after `drop_privileges`
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import msgspec
from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from inbox.observe.logs import Format, escape_lines, fields
from inbox.observe.metrics import RECEIVER, RELAY, Metric
from inbox.observe.recorder import Line

LONGEST_LINE = 16 * 1024
_TRY_AGAIN_SECONDS = 1.0
_METRICS = {metric.name: metric for metric in (*RECEIVER, *RELAY)}
_Family = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily

_log = logging.getLogger("inbox.metrics")


class Totals(Collector):
    """Sums over all processes, including ended ones. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._series: dict[str, dict[tuple[str, ...], tuple[float, ...]]] = {}
        self._decoder = msgspec.json.Decoder(Line)

    def add(self, line: bytes) -> None:
        """Add a line written by a process.

        Raises:
            ValueError: it is not a whole line of `inbox.observe.recorder`, as after an exporter was killed.
        """
        try:
            told = self._decoder.decode(line)
        except msgspec.DecodeError as error:
            raise ValueError(str(error)) from None
        metric = _METRICS.get(told.name)
        if metric is None or (len(told.labels), len(told.values)) != (len(metric.labels), metric.numbers):
            raise ValueError(f"no metric matches this line: {line!r}")
        with self._lock:
            series = self._series.setdefault(told.name, {})
            held = series.get(told.labels)
            if held is None:
                series[told.labels] = told.values
            elif metric.kind == "gauge":
                series[told.labels] = max(held, told.values, key=lambda each: each[1])  # the newest of any process
            else:
                series[told.labels] = tuple(map(sum, zip(held, told.values, strict=True)))

    def collect(self) -> Iterator[_Family]:
        """Yield every counted metric in prometheus-client's format."""
        with self._lock:
            series = [(_METRICS[name], sorted(found.items())) for name, found in sorted(self._series.items())]
        for metric, found in series:
            yield _family(metric, found)


def _family(metric: Metric, series: list[tuple[tuple[str, ...], tuple[float, ...]]]) -> _Family:
    if metric.kind == "histogram":
        histogram = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
        limits = (*map(str, metric.buckets), "+Inf")
        for labels, values in series:
            buckets = [(limit, sum(values[: place + 1])) for place, limit in enumerate(limits)]
            histogram.add_metric(labels, buckets, values[-1])
        return histogram
    made = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    family = made(metric.name, metric.help, labels=metric.labels)
    for labels, values in series:
        family.add_metric(labels, values[0])
    return family


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore scrapers that hang up."""


class _Handler(WSGIRequestHandler):
    timeout = 5.0

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base class names it so
        pass


def _serve(host: str, port: int, registry: CollectorRegistry) -> None:
    _Server.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
    reported = False
    while True:
        try:
            server = make_server(host, port, make_wsgi_app(registry), _Server, _Handler)
        except OSError as error:  # another program has the port, perhaps an ending predecessor
            if not reported:
                why = f"can't listen on {host}:{port}, trying again: {error.strerror or error}"
                _log.warning("metrics: %s", why, extra=fields("metrics_trouble", error=why))
            reported = True
            time.sleep(_TRY_AGAIN_SECONDS)
        else:
            server.serve_forever()


def drop_privileges(uid: int, gid: int) -> None:
    """Drop permanently to the rights of this user and group, if this process runs as root.

    `Popen(user=…)` would drop them before Python starts, but perhaps only root can read Python's files, as below /root.

    Raises:
        OSError: it failed; this process must not continue.
    """
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)


def main(arguments: list[str]) -> None:
    """Serve until standard input ends. Root's rights are dropped before it listens or reads.

    Args:
        arguments: the host and port, the user and group to become, and the log format.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    host, port, uid, gid, form = arguments
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    escape_lines(logging.getLogger().handlers, form=msgspec.convert(form, Format))
    drop_privileges(int(uid), int(gid))
    totals, registry = Totals(), CollectorRegistry()
    registry.register(totals)
    threading.Thread(target=_serve, args=(host, int(port), registry), daemon=True).start()
    for line in iter(partial(sys.stdin.buffer.readline, LONGEST_LINE), b""):
        try:
            totals.add(line)
        except ValueError:  # the rest of a line begun by a killed exporter
            continue


if __name__ == "__main__":
    main(sys.argv[1:])
