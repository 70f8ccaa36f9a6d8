"""The receiver in this process, called as an ASGI server would or served by uvicorn; and requests written out byte by byte."""

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
from inbox.receiver.app import app_of
from tests.helpers.waiting import LONGEST_SECONDS, until
from tests.helpers.webhooks import HEADERS, PATH, TOKEN, a_config, body

HOST = b"Host: localhost"
JSON = b"Content-Type: application/json"
SECRET = b"X-Webhook-Token: " + TOKEN.encode()
CLOSE = b"Connection: close"

_STATUS_LINE = re.compile(rb"HTTP/1\.1 ([0-9]{3}) [^\r\n]*\r\n")


class Answer(NamedTuple):
    """One answer of several that a connection may give."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def seq(self) -> int:
        """Return the seq of the event that it acknowledges; 0: none."""
        return int(json.loads(self.body).get("seq", 0)) if self.status == 200 and b'"seq"' in self.body else 0


def request(*fields: bytes, line: bytes = b"POST " + PATH.encode() + b" HTTP/1.1", payload: bytes = b"") -> bytes:
    """A request of these lines and nothing else."""
    return b"\r\n".join([line, *fields, b"", b""]) + payload


def webhook(
    *more: bytes,
    line: bytes = b"POST " + PATH.encode() + b" HTTP/1.1",
    payload: bytes | None = None,
    length: int | None = None,
    without: tuple[bytes, ...] = (),
) -> bytes:
    """A good webhook on a connection that ends behind it, with fields more, and without these; it may give another length."""
    sent = body() if payload is None else payload
    usual = [HOST, JSON, SECRET, CLOSE, b"Content-Length: %d" % (len(sent) if length is None else length)]
    return request(*(field for field in usual if field not in without), *more, line=line, payload=sent)


def chunked(*chunks: bytes, more: tuple[bytes, ...] = ()) -> bytes:
    """A webhook's head that announces chunks, and these bytes behind it."""
    return request(HOST, JSON, SECRET, CLOSE, b"Transfer-Encoding: chunked", *more) + b"".join(chunks)


def chunk(data: bytes) -> bytes:
    """One chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def ask(port: int, sent: bytes, *, half_close: bool = False, within: float = 10.0) -> bytes:
    """Send bytes over a connection of their own; all that comes back until the other side closes.

    Raises:
        TimeoutError: it does not.
    """
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=within) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(sent)
        if half_close:
            with contextlib.suppress(OSError):  # the other side has ended the connection already
                connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            while more := connection.recv(65536):
                received += more
    return received


def answers(received: bytes, *, heads: bool = False) -> list[Answer]:
    """The answers in what came back, without those that only say `100 Continue`.

    Those to HEAD (`heads`) have no bodies, but for those that refuse it before it is known for a HEAD.

    Raises:
        AssertionError: something else is in it than whole answers.
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
    """Bytes of memory that a process has in use; `VmHWM` is the most that it had."""
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) * 1024


PROBLEM = "application/problem+json"


class Receiver:
    """One receiver process's app; its writer is the real one."""

    def __init__(self, conductor: ASGIConductor) -> None:
        self._conductor = conductor

    async def post(
        self, payload: bytes | None = None, *, path: str = PATH, headers: dict[str, str] | None = None
    ) -> Result:
        """POST a body, a good webhook unless given, with these headers besides the usual ones."""
        sent = {**HEADERS, **(headers or {})}
        return await self._conductor.simulate_post(path, body=body() if payload is None else payload, headers=sent)

    async def request(self, method: str, path: str, **options: Any) -> Result:  # noqa: ANN401  # falcon's own
        """Any request; nothing is added."""
        answer: Result = await self._conductor.simulate_request(method, path, **options)
        return answer

    async def get(self, path: str) -> Result:
        """GET a path."""
        return await self._conductor.simulate_get(path)


class Memory:
    """A writer that keeps what it is given, and asks no database."""

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
    """The receiver from its start to its end, inside the running event loop."""
    async with ASGIConductor(app_of(config)) as conductor:
        yield Receiver(conductor)


def a_link(database_url: str) -> Link:
    """A link as a receiver process has it."""
    return link_to(database_url, application="inbox-receiver")


@contextlib.contextmanager
def served(database_url: str, config: Config | None = None, *, send_buffer: int | None = None) -> Iterator[int]:
    """A receiver behind uvicorn with the settings of the gunicorn worker, in a thread; gives its port.

    `config` is used instead of the usual one on `database_url`; `send_buffer` is how many bytes of answers the system
    keeps for a sender that takes none.
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
        server = uvicorn.Server(uvicorn.Config(app_of(config or a_config(database_url)), **settings))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            until(lambda: server.started or not thread.is_alive(), "uvicorn serves")
            assert server.started
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


def posted(port: int, path: str, payload: bytes, headers: Mapping[str, str]) -> int:
    """POST a body as JSON, unless the headers say otherwise; return the status of the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LONGEST_SECONDS)
    with contextlib.closing(connection):
        connection.request("POST", path, payload, {"Content-Type": "application/json", **headers})
        return connection.getresponse().status


def status_of(answer: bytes) -> int:
    """The status of a written-out answer; 0 if there is none."""
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else 0
