"""The receiver in this process, called as ASGI or served by uvicorn, and raw HTTP requests."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import uvicorn
from falcon.testing import ASGIConductor, Result

from inbox.config.model import Config
from inbox.db.intake import Rejected
from inbox.db.link import Link, link_to
from inbox.events.event import Event, Receipt
from inbox.gunicorn_settings import Worker
from inbox.receiver.app import make_app
from tests.helpers.waiting import LONGEST_SECONDS, until
from tests.helpers.webhooks import HEADERS, PATH, TOKEN, a_config, body

HOST = b"Host: localhost"
JSON = b"Content-Type: application/json"
SECRET = b"X-Webhook-Token: " + TOKEN.encode()
CLOSE = b"Connection: close"

_STATUS_LINE = re.compile(rb"HTTP/1\.1 ([0-9]{3}) [^\r\n]*\r\n")


class Answer(NamedTuple):
    """One of the responses on a connection."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def seq(self) -> int:
        """Seq of the acknowledged event, or 0."""
        return int(json.loads(self.body).get("seq", 0)) if self.status == 200 and b'"seq"' in self.body else 0


def request(*fields: bytes, line: bytes = b"POST " + PATH.encode() + b" HTTP/1.1", payload: bytes = b"") -> bytes:
    """Return a raw request of exactly these lines."""
    return b"\r\n".join([line, *fields, b"", b""]) + payload


def webhook(
    *more: bytes,
    line: bytes = b"POST " + PATH.encode() + b" HTTP/1.1",
    payload: bytes | None = None,
    length: int | None = None,
    without: tuple[bytes, ...] = (),
) -> bytes:
    """Return a valid raw webhook with `Connection: close`, with more fields, without some, or with a wrong length."""
    sent = body() if payload is None else payload
    usual = [HOST, JSON, SECRET, CLOSE, b"Content-Length: %d" % (len(sent) if length is None else length)]
    return request(*(field for field in usual if field not in without), *more, line=line, payload=sent)


def as_chunks(*chunks: bytes, more: tuple[bytes, ...] = ()) -> bytes:
    """Return a raw webhook in chunked encoding with these bytes as its body."""
    return request(HOST, JSON, SECRET, CLOSE, b"Transfer-Encoding: chunked", *more) + b"".join(chunks)


def chunk(data: bytes) -> bytes:
    """Return one encoded chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def ask(port: int, sent: bytes, *, half_close: bool = False, within: float = 10.0) -> bytes:
    """Send bytes over a new connection and return everything received until it closes.

    Raises:
        TimeoutError: it does not close in time.
    """
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=within) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(sent)
        if half_close:
            with contextlib.suppress(OSError):  # the other side has closed the connection
                connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            while more := connection.recv(65536):
                received += more
    return received


def answers(received: bytes, *, heads: bool = False) -> list[Answer]:
    """Parse the received responses, except `100 Continue`.

    Responses to HEAD (`heads`) have no bodies, unless the request was refused before its method was known.

    Raises:
        AssertionError: the bytes are not whole responses.
    """
    found = []
    while received:
        line = _STATUS_LINE.match(received)
        assert line, f"no answer begins like this: {received[:80]!r}"
        if line[1] == b"100":
            received = received[line.end() :].removeprefix(b"\r\n")
            continue
        head, _, received = received[line.end() :].partition(b"\r\n\r\n")
        fields = (field.split(b": ", 1) for field in head.split(b"\r\n"))
        headers = {name.decode().lower(): value.decode() for name, value in fields}
        length = 0 if heads and not received.startswith(b"{") else int(headers.get("content-length", "0"))
        assert len(received) >= length, "an answer is cut"
        found.append(Answer(int(line[1]), headers, received[:length]))
        received = received[length:]
    return found


def memory_of(pid: int, what: str = "VmRSS") -> int:
    """Return the memory of a process in bytes; `VmHWM` is its maximum."""
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) * 1024


PROBLEM = "application/problem+json"


class Receiver:
    """The app of a receiver process, with its real writer."""

    def __init__(self, conductor: ASGIConductor) -> None:
        self._conductor = conductor

    async def post(
        self, payload: bytes | None = None, *, path: str = PATH, headers: dict[str, str] | None = None
    ) -> Result:
        """POST a body, by default a valid webhook, with extra headers."""
        sent = {**HEADERS, **(headers or {})}
        return await self._conductor.simulate_post(path, body=body() if payload is None else payload, headers=sent)

    async def request(self, method: str, path: str, **options: Any) -> Result:  # noqa: ANN401  # falcon's own
        """Send any request unchanged."""
        answer: Result = await self._conductor.simulate_request(method, path, **options)
        return answer

    async def get(self, path: str) -> Result:
        """GET a path."""
        return await self._conductor.simulate_get(path)


class Memory:
    """A writer that keeps everything in memory."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.rejected: list[Rejected] = []

    async def append(self, events: Sequence[Event]) -> list[Receipt]:
        """Keep these events."""
        self.events += events
        return [Receipt(len(self.events), duplicate=False)] * len(events)

    async def probe(self) -> None:
        """Do nothing."""

    def reject(self, row: Rejected) -> None:
        """Keep this refusal."""
        self.rejected.append(row)

    async def close(self) -> None:
        """Do nothing."""


@contextlib.asynccontextmanager
async def receiving(config: Config) -> AsyncIterator[Receiver]:
    """Run the receiver in the current event loop."""
    async with ASGIConductor(make_app(config)) as conductor:
        yield Receiver(conductor)


def a_link(database_url: str) -> Link:
    """Make a link as a receiver process does."""
    return link_to(database_url, application="inbox-receiver")


@contextlib.contextmanager
def serve_receiver(database_url: str, config: Config | None = None, *, send_buffer: int | None = None) -> Iterator[int]:
    """Serve a receiver by uvicorn in a thread with the gunicorn worker's settings; yields its port.

    `config` replaces the usual one on `database_url`; `send_buffer` is the size of the system's send buffer in bytes.
    """
    settings: dict[str, Any] = {
        **Worker.CONFIG_KWARGS,
        "loop": "asyncio",
        "log_config": None,
        "timeout_graceful_shutdown": 3,
    }
    with socket.create_server(("127.0.0.1", 0)) as listener:
        if send_buffer is not None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        server = uvicorn.Server(uvicorn.Config(make_app(config or a_config(database_url)), **settings))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            until(lambda: server.started or not thread.is_alive(), "uvicorn serves")
            assert server.started
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


def post_json(port: int, path: str, payload: bytes, headers: Mapping[str, str]) -> int:
    """POST a body, by default as JSON, and return the status."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LONGEST_SECONDS)
    with contextlib.closing(connection):
        connection.request("POST", path, payload, {"Content-Type": "application/json", **headers})
        return connection.getresponse().status


def status_of(answer: bytes) -> int:
    """Return the status of a raw response, or 0 without one."""
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else 0
