"""A downstream service that answers by a script and notes every request in a ledger before it answers."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.helpers.ledger import Ledger

Script = Callable[[int, int], int]
"""(seq, attempt) → the status to answer."""


def always_well(_seq: int, _attempt: int) -> int:
    """A service without a bad day."""
    return 200


class Downstream:
    """Takes `seconds` for each request. `arrivals` has a line for each: seq, entity, occurred_at, attempt, status."""

    def __init__(self, path: Path, script: Script = always_well, seconds: float = 0.0) -> None:
        self.arrivals = Ledger(path)
        self.seconds = seconds
        self._script = script
        self._server = _Server(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/hook"

    def close(self) -> None:
        """Answer nobody any more."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self.arrivals.close()

    def answer(self, seq: int, attempt: int, payload: bytes) -> int:
        """Note the request; the status to answer it with."""
        status = self._script(seq, attempt)
        event = json.loads(payload)
        self.arrivals.append(
            seq=seq,
            attempt=attempt,
            entity=event["id"],
            occurred_at=event["timestamp"],
            body=payload.decode(),
            status=status,
        )
        time.sleep(self.seconds)
        return status

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        downstream = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True
            wbufsize = -1

            def do_POST(self) -> None:
                payload = self.rfile.read(int(self.headers["Content-Length"]))
                status = downstream.answer(int(self.headers["Inbox-Seq"]), int(self.headers["Inbox-Attempt"]), payload)
                self.send_response_only(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

        return Handler


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, request: object, client_address: object) -> None:
        """A caller that was killed is no news."""


@contextlib.contextmanager
def serving(path: Path, script: Script = always_well, seconds: float = 0.0) -> Iterator[Downstream]:
    """A downstream service as long as the block runs."""
    downstream = Downstream(path, script, seconds)
    try:
        yield downstream
    finally:
        downstream.close()
