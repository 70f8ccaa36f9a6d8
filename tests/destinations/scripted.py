"""A server on 127.0.0.1 that does what a test says, badly behaved too, and remembers what it was asked."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

CERTIFICATE = Path(__file__).with_name("localhost.pem")


@dataclass(frozen=True)
class Seen:
    """A request, and the number of the connection it came over."""

    method: str
    target: str
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes
    connection: int


Act = Callable[["ScriptedServer", socket.socket], None]
"""The action after the request is read; raising OSError, or `Hangup`, ends the connection."""


class Hangup(Exception):
    """Close the connection now."""


def answer(status: int = 200, body: object = b"", /, **headers: str) -> Act:
    """Answer; a body that isn't bytes is sent as JSON, and `retry_after` is the header Retry-After."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(content)}"]
    lines += [f"{name.replace('_', '-').title()}: {value}" for name, value in headers.items()]
    return raw("\r\n".join([*lines, "", ""]).encode() + content)


def raw(data: bytes) -> Act:
    return lambda _, connection: connection.sendall(data)


def then_close(act: Act) -> Act:
    def closing(server: ScriptedServer, connection: socket.socket) -> None:
        act(server, connection)
        raise Hangup

    return closing


def hang(server: ScriptedServer, _: socket.socket) -> None:
    server.closing.wait()


def drip(head: bytes, drop: bytes) -> Act:
    """Send `head`, then `drop` again and again."""

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


def hundred_megabytes(_: ScriptedServer, connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 104857600\r\n\r\n")
    for _chunk in range(1600):
        connection.sendall(b"x" * 65536)


class ScriptedServer:
    """Meets each request with the next act, the last one again and again; `routes` have their own, by "GET /path"."""

    def __init__(
        self, *acts: Act, tls: bool | Literal["mutual"] = False, routes: dict[str, list[Act]] | None = None
    ) -> None:
        self.seen: list[Seen] = []
        self.closing = threading.Event()
        self.arrived = threading.Semaphore(0)
        """Released once for each request that was read."""
        self.ended = threading.Semaphore(0)
        """Released once for each connection that was closed."""
        self._acts = list(acts)
        self.routes = routes or {}
        self._tls = _server_context(asks_for_a_certificate=tls == "mutual") if tls else None
        self._lock = threading.Lock()
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.url = f"{'https://localhost' if tls else 'http://127.0.0.1'}:{self.port}"
        self._start(self._accept)

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
            reader = stack.enter_context(connection.makefile("rb"))
            while seen := _request(reader, number):
                with self._lock:
                    self.seen.append(seen)
                    acts = self.routes.get(f"{seen.method} {seen.target}", self._acts)
                    act = acts.pop(0) if len(acts) > 1 else acts[0] if acts else answer(599, b"unexpected")
                self.arrived.release()
                act(self, connection)


def _request(reader: Iterator[bytes], number: int) -> Seen | None:
    line = reader.readline()  # type: ignore[attr-defined]  # a buffered reader
    if not line:
        return None
    method, target, _ = line.decode("latin-1").split(" ", 2)
    headers = {}
    for header in iter(reader.readline, b"\r\n"):  # type: ignore[attr-defined]
        name, _, value = header.decode("latin-1").partition(":")
        headers[name.strip().lower()] = value.strip()
    body = reader.read(int(headers.get("content-length", 0)))  # type: ignore[attr-defined]
    return Seen(method, target, headers, body, number)


def _server_context(*, asks_for_a_certificate: bool) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    if asks_for_a_certificate:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(CERTIFICATE)
    return context


@contextmanager
def serving(
    *acts: Act, tls: bool | Literal["mutual"] = False, routes: dict[str, list[Act]] | None = None
) -> Iterator[ScriptedServer]:
    server = ScriptedServer(*acts, tls=tls, routes=routes)
    try:
        yield server
    finally:
        server.close()


def closed_port() -> int:
    """A port that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port
