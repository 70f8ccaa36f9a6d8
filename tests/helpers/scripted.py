"""A scripted server on 127.0.0.1, well or badly behaved, that records its requests."""

from __future__ import annotations

import atexit
import contextlib
import json
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from io import BufferedReader
from pathlib import Path
from typing import Literal

CERTIFICATE = Path(__file__).with_name("localhost.pem")


@dataclass(frozen=True)
class Seen:
    """A request and the number of its connection."""

    method: str
    target: str
    headers: dict[str, str]
    """Headers, with names in lower case."""
    body: bytes
    connection: int


Act = Callable[["ScriptedServer", socket.socket], None]
"""Action after a request is read; raising OSError or `Hangup` ends the connection."""


Tls = ssl.SSLContext | bool | Literal["mutual"]
"""A context, whether to use the certificate for `localhost`, or "mutual" to require one of the client too."""


class Hangup(Exception):
    """Closes the connection."""


def answer(status: int = 200, body: object = b"", /, **headers: str) -> Act:
    """Answer; a body other than bytes is sent as JSON, and `retry_after` is the header Retry-After."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(content)}"]
    lines += [f"{name.replace('_', '-').title()}: {value}" for name, value in headers.items()]
    return raw("\r\n".join([*lines, "", ""]).encode() + content)


def raw(data: bytes) -> Act:
    return lambda _, connection: connection.sendall(data)


def hang_up(_: ScriptedServer, connection: socket.socket) -> None:
    del connection
    raise Hangup


def then_close(act: Act) -> Act:
    def closing(server: ScriptedServer, connection: socket.socket) -> None:
        act(server, connection)
        hang_up(server, connection)

    return closing


def hang(server: ScriptedServer, _: socket.socket) -> None:
    server.closing.wait()


def drip(head: bytes, drop: bytes) -> Act:
    """Send `head`, then `drop` every 50 ms."""

    def dripping(server: ScriptedServer, connection: socket.socket) -> None:
        connection.sendall(head)
        while not server.closing.wait(0.05):
            connection.sendall(drop)

    return dripping


drip_head = drip(b"HTTP/1.1 200 OK\r\n", b"X-Drop: 1\r\n")
drip_status_line = drip(b"HTTP/1.1 200 O", b"K")
drip_body = drip(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n", b"x")
drip_body_until_close = drip(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", b"x")
drip_chunks = drip(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n")


def reset(_: ScriptedServer, connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
    raise Hangup


def send_hundred_megabytes(head: bytes) -> Act:
    """Send `head` and then 100 MiB."""

    def sending(_: ScriptedServer, connection: socket.socket) -> None:
        connection.sendall(head)
        for _chunk in range(1600):
            connection.sendall(b"x" * 65536)

    return sending


class ScriptedServer:
    """Meets each request with the next act and repeats the last one; `routes` have their own acts, by "GET /path".

    Services of another kind override `act_for`.
    """

    def __init__(
        self,
        *acts: Act,
        tls: Tls = False,
        routes: dict[str, list[Act]] | None = None,
        reads: bool = True,
        port: int = 0,
    ) -> None:
        self.seen: list[Seen] = []
        self.closing = threading.Event()
        self.arrived = threading.Semaphore(0)
        """Released for each request read."""
        self.ended = threading.Semaphore(0)
        """Released for each connection closed."""
        self.acts = list(acts)
        self._reads = reads
        self.routes = routes or {}
        self._tls = tls if isinstance(tls, ssl.SSLContext) else _server_context(tls) if tls else None
        self._lock = threading.Lock()
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", port), backlog=256)
        self.port: int = self._listener.getsockname()[1]
        self.url = f"{'https://localhost' if tls else 'http://127.0.0.1'}:{self.port}"
        self._start(self._accept)

    @property
    def asked(self) -> list[str]:
        """Method and target of each request, in order."""
        return [f"{seen.method} {seen.target}" for seen in self.seen]

    def act_for(self, seen: Seen) -> Act:
        """Record the request and return its act."""
        with self._lock:
            self.seen.append(seen)
            acts = self.routes.get(f"{seen.method} {seen.target}", self.acts)
            act = acts.pop(0) if len(acts) > 1 else acts[0] if acts else answer(599, b"unexpected")
        self.arrived.release()
        return act

    def close(self) -> None:
        self.closing.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        self._listener.close()
        for connection in self._open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()

    def _start(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        number = 0
        while not self.closing.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            number += 1
            self._open.append(connection)
            self._start(self._serve, connection, number)

    def _serve(self, connection: socket.socket, number: int) -> None:
        self._answer_all(connection, number)
        self.ended.release()

    def _answer_all(self, connection: socket.socket, number: int) -> None:
        with contextlib.suppress(OSError, Hangup), contextlib.ExitStack() as stack:
            stack.enter_context(connection)
            if self._tls is not None:
                connection = stack.enter_context(self._tls.wrap_socket(connection, server_side=True))
                self._open.append(connection)
            if not self._reads:
                self.acts[0](self, connection)
                return
            reader = stack.enter_context(connection.makefile("rb"))
            while seen := _request(reader, number):
                self.act_for(seen)(self, connection)


def _request(reader: BufferedReader, number: int) -> Seen | None:
    """Read one request, or return None if it is cut short."""
    line = reader.readline()
    if not line:
        return None
    method, target, _ = line.decode("latin-1").split(" ", 2)
    headers = {}
    while (header := reader.readline()) != b"\r\n":
        if not header:
            return None
        name, _, value = header.decode("latin-1").partition(":")
        headers[name.strip().lower()] = value.strip()
    length = int(headers.get("content-length", 0))
    body = reader.read(length)
    return Seen(method, target, headers, body, number) if len(body) == length else None


def _server_context(tls: Literal[True, "mutual"]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    if tls == "mutual":
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(CERTIFICATE)
    return context


@contextmanager
def serving(
    *acts: Act, tls: Tls = False, routes: dict[str, list[Act]] | None = None, reads: bool = True
) -> Iterator[ScriptedServer]:
    """Run a server for the block; one that does not read meets each connection with the first act."""
    with contextlib.closing(ScriptedServer(*acts, tls=tls, routes=routes, reads=reads)) as server:
        yield server


@cache
def find_closed_port() -> int:
    """Return a port without a listener, bound for the life of the process so that no server gets it."""
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    atexit.register(bound.close)
    port: int = bound.getsockname()[1]
    return port
