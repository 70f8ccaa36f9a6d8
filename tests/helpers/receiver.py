"""The receiver in this process: its real app and writer, called as an ASGI server would, or served by uvicorn."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any

import uvicorn
from falcon.testing import ASGIConductor, Result

from inbox.config.model import Config
from inbox.db.intake import Rejected
from inbox.db.link import Link, link_to
from inbox.events.event import Event, Receipt
from inbox.gunicorn_settings import Worker
from inbox.receiver.app import app_of
from tests.helpers.waiting import LONGEST_SECONDS, until
from tests.helpers.webhooks import HEADERS, PATH, a_config, body

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


def exchange(port: int, sent: bytes, *, half_close: bool = False, within: float = 10.0) -> bytes:
    """Send bytes over a socket of their own; all that comes back until the other side closes."""
    received = b""
    connection = socket.create_connection(("127.0.0.1", port), timeout=within)
    with connection, contextlib.suppress(ConnectionError):
        connection.sendall(sent)
        if half_close:
            with contextlib.suppress(OSError):  # the other side has ended the connection already
                connection.shutdown(socket.SHUT_WR)
        while chunk := connection.recv(65536):
            received += chunk
    return received


def raw_post(payload: bytes, *more: str, length: int | None = None) -> bytes:
    """A POST of this body, written out; `length` is what Content-Length says."""
    headers = [f"{name}: {value}" for name, value in HEADERS.items()]
    announced = len(payload) if length is None else length
    lines = [
        f"POST {PATH} HTTP/1.1",
        "Host: localhost",
        *headers,
        f"Content-Length: {announced}",
        "Connection: close",
        *more,
    ]
    return "\r\n".join([*lines, "", ""]).encode() + payload


def posted(port: int, path: str, payload: bytes, headers: Mapping[str, str]) -> int:
    """POST a body as JSON, unless the headers say otherwise; return the status of the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LONGEST_SECONDS)
    with contextlib.closing(connection):
        connection.request("POST", path, payload, {"Content-Type": "application/json", **headers})
        return connection.getresponse().status


def status_of(answer: bytes) -> int:
    """The status of a written-out answer; 0 when there is none."""
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else 0
