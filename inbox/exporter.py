"""Serves what the processes of one side count, at `/metrics`: a program of its own beside them.

So whatever is done to its port, no request waits and no lease ends for it. It reads the files of `inbox.metering` when it
is asked, never a database, and ends, with their folder, when the process that started it and those forked from that one
are gone: its standard input is a pipe from them. It is not told by signals, which often reach the whole process group.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import struct
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector

from inbox.config_values import Address

CONNECTIONS = 8
"""At once; others are closed."""
ANSWERED_WITHIN_SECONDS = 10.0
"""A connection that takes longer, whatever it does meanwhile, is closed."""
_TRY_AGAIN_SECONDS = 1.0
_STANDARD_INPUT = 0


def settle(folder: Path) -> None:
    """Add what processes that have ended have counted to one file, and forget their gauges.

    Counters must not go back when a worker is replaced, and a file for each that there ever was would fill the memory.
    """
    for file in sorted(folder.glob("*.db")):
        kind, *_, pid = file.stem.split("_")
        if not pid.isdigit() or _runs(int(pid)):
            continue
        values = [] if kind == "gauge" else _values_in(file)
        file.unlink()  # first: an end between the two loses counts, which a reader takes better than twice as many
        if values:
            ended = MmapedDict(str(folder / f"{kind}_ended.db"))
            for key, value, stamp, _ in values:
                ended.write_value(key, ended.read_value(key)[0] + value, stamp)
            ended.close()


def _values_in(file: Path) -> list[tuple[str, float, float, int]]:
    try:
        return list(MmapedDict.read_all_values_from_file(str(file)))
    except (RuntimeError, ValueError, struct.error) as error:  # its process was killed as it made the file
        _say(f"what {file.name} has is lost: {error}")
        return []


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    folder: Path

    def __init__(self, address: Address, folder: Path) -> None:
        self.folder = folder
        self.one_at_a_time = threading.Lock()
        self._open: dict[socket.socket, float] = {}
        self.address_family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        super().__init__((address.host, address.port), _Handler)

    def server_bind(self) -> None:
        """Without the look for the host's name, which may take long."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401  # socketserver's
        if len(self._open) >= CONNECTIONS:
            self.shutdown_request(request)
            return
        self._open[request] = time.monotonic() + ANSWERED_WITHIN_SECONDS
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:  # noqa: ANN401  # socketserver's
        self._open.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Called between requests, twice a second at least."""
        for request, deadline in list(self._open.items()):
            if time.monotonic() > deadline:
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
        registry = CollectorRegistry()
        encode, content_type = choose_encoder(self.headers.get("Accept", ""))
        with self.server.one_at_a_time:
            settle(self.server.folder)
            MultiProcessCollector(registry, str(self.server.folder))
            body = encode(registry)
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def version_string(self) -> str:
        return "inbox-relay"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base class names it so
        pass


def _serve(address: Address, folder: Path) -> None:
    told = False
    while True:
        try:
            server = _Server(address, folder)
        except OSError as error:  # somebody else has the port: perhaps one like us, who is about to end
            if not told:
                _say(f"can't listen on {address}, trying again: {error.strerror or error}")
            told = True
            time.sleep(_TRY_AGAIN_SECONDS)
        else:
            server.serve_forever()


def _say(what: str) -> None:
    print(f"metrics: {what}", file=sys.stderr, flush=True)  # noqa: T201  # a program's own standard error


def main(arguments: list[str]) -> None:
    """Serve until standard input ends."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    address, folder = Address.parse(arguments[0]), Path(arguments[1])
    threading.Thread(target=_serve, args=(address, folder), daemon=True).start()
    while os.read(_STANDARD_INPUT, 1):
        pass
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1:])
