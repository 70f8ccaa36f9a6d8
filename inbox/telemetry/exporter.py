"""Exports the metrics of one side's processes, as a separate program: serves them at `/metrics`, pushes them by OTLP, or both.

So neither load on its port nor a collector that hangs delays a request or ends a lease. All processes write to its standard
input, a pipe (`inbox.telemetry.recorder`). It adds up the lines, opens no database, and ends when the last writer is gone.
It ignores signals, which often reach the whole process group.
"""

from __future__ import annotations

import contextlib
import encodings.idna  # noqa: F401  # a host's name needs it, and Python's own files may be out of reach after `drop_privileges`
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from inbox.config.values import Address
from inbox.errors import ConfigError
from inbox.logs.fields import fields
from inbox.logs.lines import escape_lines
from inbox.logs.structured import Format
from inbox.otlp.asked import NEEDS_EXTRA
from inbox.telemetry.totals import Totals

CONNECTIONS = 64
"""Concurrent connections; one more closes the oldest."""
ANSWERED_WITHIN_SECONDS = 10.0
"""A connection that takes longer is closed, even if it is active."""
LONGEST_LINE = 16 * 1024
_TRY_AGAIN_SECONDS = 1.0

_log = logging.getLogger("inbox.metrics")


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
    _log.warning("metrics: %s", message, extra=fields("metrics_trouble", error=message))


def _log_to_stderr(form: Format) -> None:
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    escape_lines(logging.getLogger().handlers, form=form)


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


def _pushing(totals: Totals, service: str) -> Callable[[], None]:
    """Start to push by OTLP, and return how to end it. What keeps it from that is said, and the rest of this program works."""
    try:
        from inbox.telemetry.push import Pusher  # noqa: PLC0415  # OpenTelemetry costs 20 MiB, where it is asked for

        return Pusher(totals, service, lambda text: _say(f"{text}. Everything else goes on")).close
    except ImportError:
        mistakes = [NEEDS_EXTRA]
    except ConfigError as error:
        mistakes = str(error).splitlines()
    except Exception as error:  # noqa: BLE001  # what nobody foresaw
        mistakes = [f"OpenTelemetry can't be set up ({type(error).__name__})"]
    for mistake in mistakes:
        _say(f"not pushed by OTLP: {mistake}")
    return lambda: None


def main(arguments: list[str]) -> None:
    """Export until standard input ends. It neither listens nor reads before it drops root's rights.

    Args:
        arguments: the address to serve at, or an empty one; the user and group to become; the form of the log; the service to push
            as by OTLP, if it is to push, too.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    address, uid, gid, form, *services = arguments
    _log_to_stderr(msgspec.convert(form, Format))
    totals, registry = Totals(), CollectorRegistry()
    ends = [_pushing(totals, service) for service in services]  # it imports much, which may be out of reach afterwards
    drop_privileges(int(uid), int(gid))
    registry.register(totals)
    if address:
        threading.Thread(target=_serve, args=(Address.parse(address), registry), daemon=True).start()
    for line in iter(partial(sys.stdin.buffer.readline, LONGEST_LINE), b""):
        try:
            totals.add(line)
        except ValueError:  # the rest of a line whose beginning a killed exporter had read
            continue
    for end in ends:
        end()


if __name__ == "__main__":
    main(sys.argv[1:])
