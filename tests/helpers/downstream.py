"""A downstream service that answers by a script and notes every request in a ledger before it answers."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec

from tests.helpers.ledger import Ledger


class Answer(msgspec.Struct, frozen=True):
    """Answer to a request."""

    status: int = 200
    seconds: float = 0.0
    """It takes so much longer."""
    sent: bool = True
    """False: the connection is dropped after the request was processed, and nobody learns of it."""


Script = Callable[[int, int], int | Answer]
"""(seq, attempt) → what to answer; a number is a status."""


def always_well(_seq: int, _attempt: int) -> int:
    """A service without a bad day."""
    return 200


class Held:
    """A script: nobody is answered before `go` is set. `seqs` has those that came."""

    def __init__(self) -> None:
        self.seqs: list[int] = []
        self.go = threading.Event()

    def __call__(self, seq: int, _attempt: int) -> int:
        self.seqs.append(seq)
        self.go.wait(30)
        return 200


class Downstream:
    """Takes `seconds` for each request. `arrivals` has a line for each.

    Of a line: `seq`, `run`, `attempt`, `entity`, `occurred_at`, `body`, the `status` it comes to, and whether that was
    `sent`, which is so unless the line says otherwise. `caller` is what the URL ended in beyond `url`. `events` has the
    `seq` of everything that came, once.
    """

    def __init__(self, path: Path, script: Script = always_well, seconds: float = 0.0) -> None:
        self.arrivals = Ledger(path)
        self.events: set[int] = set()
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

    def answer(self, caller: str, call: tuple[int, int, int], payload: bytes) -> Answer:
        """Note the request; how to answer it."""
        seq, run, attempt = call
        told = self._script(seq, attempt)
        answer = Answer(told) if isinstance(told, int) else told
        event = json.loads(payload)
        self.events.add(seq)
        self.arrivals.append(
            seq=seq,
            run=run,
            attempt=attempt,
            entity=event["id"],
            occurred_at=event["timestamp"],
            body=payload.decode(),
            status=answer.status,
            caller=caller,
            **({} if answer.sent else {"sent": False}),
        )
        time.sleep(self.seconds + answer.seconds)
        return answer

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        downstream = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True
            wbufsize = -1

            def do_POST(self) -> None:
                payload = self.rfile.read(int(self.headers["Content-Length"]))
                call = (
                    int(self.headers["Inbox-Seq"]),
                    int(self.headers["Idempotency-Key"].rpartition("-")[2]),
                    int(self.headers["Inbox-Attempt"]),
                )
                answer = downstream.answer(self.path.removeprefix("/hook").strip("/"), call, payload)
                if not answer.sent:
                    self.close_connection = True
                    return
                self.send_response_only(answer.status)
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


@contextlib.contextmanager
def never_greeting() -> Iterator[tuple[str, Callable[[], bool]]]:
    """The URL of a service that takes connections and says nothing, not even TLS's hello; and whether one has come."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        listener.setblocking(False)
        taken: list[socket.socket] = []

        def has_come() -> bool:
            with contextlib.suppress(BlockingIOError):
                taken.append(stack.enter_context(listener.accept()[0]))
            return bool(taken)

        yield f"https://127.0.0.1:{listener.getsockname()[1]}/hook", has_come
