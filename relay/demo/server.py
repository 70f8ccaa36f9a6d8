"""Serves a WSGI app on 127.0.0.1 with a thread per connection and HTTP/1.1 keep-alive.

The standard library's wsgiref answers one HTTP/1.0 request per connection; the relay keeps its connections open, so a
demo service has to as well. A request body is read whole before the app is called, an answer is written in one piece.
"""

from __future__ import annotations

import queue
import signal
import socketserver
import sys
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from socket import SHUT_RD, socket
from types import FrameType
from typing import Any, Self, cast
from urllib.parse import unquote, urlsplit
from wsgiref.types import WSGIApplication

_HOST = "127.0.0.1"
_MAX_BODY = 8 * 1024 * 1024
_IDLE_SECONDS = 300.0
_STOP_SECONDS = 5.0


class Server:
    """A running service. It answers from the moment it exists until `close`."""

    def __init__(self, app: WSGIApplication, port: int) -> None:
        self._http = _HttpServer((_HOST, port), _Connection)
        self._http.app = app
        self._accepting = threading.Thread(
            target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, name="demo-accept", daemon=True
        )
        self._accepting.start()

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self._http.server_address[1])

    @property
    def url(self) -> str:
        """Where to reach it: `http://127.0.0.1:PORT`, without a slash at the end."""
        return f"http://{_HOST}:{self.port}"

    def close(self) -> None:
        """Stops accepting, lets running requests be answered, then closes every connection. Closing twice is fine."""
        self._http.shutdown()
        self._accepting.join()
        self._http.close_connections(_STOP_SECONDS)
        self._http.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def serve(app: WSGIApplication, port: int = 0) -> Server:
    """Starts serving `app` on 127.0.0.1 in the background; port 0 takes a free one.

    Raises:
        OSError: the port is taken.
    """
    return Server(app, port)


def serve_until_stopped(app: WSGIApplication, port: int, on_ready: Callable[[str], None] | None = None) -> None:
    """Serves `app` until SIGTERM or SIGINT; main thread only. `on_ready` is told the service's URL once it answers.

    Raises:
        OSError: the port is taken.
    """
    # SimpleQueue.put may be called from a signal handler while get waits; Event.set may deadlock there.
    stops: queue.SimpleQueue[int] = queue.SimpleQueue()

    def stop(number: int, _: FrameType | None) -> None:
        stops.put(number)

    previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with serve(app, port) as server:
            if on_ready is not None:
                on_ready(server.url)
            stops.get()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class _HttpServer(ThreadingHTTPServer):
    """Knows its open connections, so that closing leaves no socket and no thread behind."""

    app: WSGIApplication
    daemon_threads = True  # a forgotten close must not keep the process alive
    request_queue_size = 256  # the default of 5 drops connections as soon as a relay opens a few at once

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self._connections: set[socket] = set()
        self._changed = threading.Condition()
        super().__init__(address, handler)

    def server_bind(self) -> None:
        # HTTPServer.server_bind asks the name service for this host's name, which can take seconds.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = _HOST, int(self.server_address[1])

    def get_request(self) -> tuple[socket, Any]:
        connection, address = super().get_request()
        with self._changed:
            self._connections.add(connection)
        return connection, address

    def shutdown_request(self, request: socket | tuple[bytes, socket]) -> None:
        super().shutdown_request(request)
        with self._changed:
            self._connections.discard(cast("socket", request))
            self._changed.notify_all()

    def close_connections(self, timeout: float) -> None:
        with self._changed:
            for connection in self._connections:
                # Only the reading side: a request that is being answered still gets its answer.
                try:
                    connection.shutdown(SHUT_RD)
                except OSError:
                    continue  # the client has already gone
            self._changed.wait_for(lambda: not self._connections, timeout)

    def handle_error(self, request: socket | tuple[bytes, socket], client_address: object) -> None:
        if not isinstance(sys.exception(), OSError):  # a client that hangs up is no news
            super().handle_error(request, client_address)


class _BadBodyError(Exception):
    def __init__(self, status: HTTPStatus) -> None:
        super().__init__(status.phrase)
        self.status = status


class _Connection(BaseHTTPRequestHandler):
    """One connection: request after request until a side closes it."""

    protocol_version = "HTTP/1.1"
    timeout = _IDLE_SECONDS
    wbufsize = -1
    disable_nagle_algorithm = True

    def version_string(self) -> str:
        """The Server header; the versions of Python and its library are nobody's business."""
        return "inbox-relay-demo"

    def log_message(self, *_: object) -> None:
        """Says nothing: a screen is told by the services' own callbacks."""

    def handle_expect_100(self) -> bool:
        goes_on = super().handle_expect_100()
        self.wfile.flush()
        return goes_on

    def _answer(self) -> None:
        try:
            body = self._read_body()
        except _BadBodyError as error:
            self.close_connection = True  # the rest of the stream cannot be told from the next request
            self.send_error(error.status)
            return
        started: list[tuple[str, list[tuple[str, str]]]] = []

        def start_response(
            status: str, headers: list[tuple[str, str]], _: object = None, /
        ) -> Callable[[bytes], object]:
            started.append((status, headers))
            return lambda _: None

        app = cast("_HttpServer", self.server).app
        chunks = app(self._environ(body), start_response)
        try:
            content = b"".join(chunks)
        finally:
            if hasattr(chunks, "close"):
                chunks.close()
        self._write(*started[-1], content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _answer  # noqa: N815 - names fixed by http.server

    def _read_body(self) -> bytes:
        if "Transfer-Encoding" in self.headers:
            raise _BadBodyError(HTTPStatus.LENGTH_REQUIRED)
        length = self.headers.get("Content-Length", "0")
        if not (length.isascii() and length.isdigit()):
            raise _BadBodyError(HTTPStatus.BAD_REQUEST)
        if len(length) > len(str(_MAX_BODY)) or int(length) > _MAX_BODY:
            raise _BadBodyError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        body = self.rfile.read(int(length))
        if len(body) != int(length):
            raise ConnectionError("the client hung up within a request body")
        return body

    def _environ(self, body: bytes) -> dict[str, Any]:
        target = self.path
        if not target.startswith("/"):  # absolute form, RFC 9112 section 3.2.2
            parts = urlsplit(target)
            target = f"{parts.path or '/'}?{parts.query}"
        path, _, query = target.partition("?")
        environ: dict[str, Any] = {
            "REQUEST_METHOD": self.command,
            "SCRIPT_NAME": "",
            "PATH_INFO": unquote(path, "iso-8859-1"),  # PEP 3333: bytes in the guise of Latin-1
            "QUERY_STRING": query,
            "SERVER_NAME": _HOST,
            "SERVER_PORT": str(cast("_HttpServer", self.server).server_port),
            "SERVER_PROTOCOL": self.request_version,
            "REMOTE_ADDR": self.client_address[0],
            "CONTENT_LENGTH": str(len(body)),
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.input": BytesIO(body),
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": True,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
        }
        for name, value in self.headers.items():
            key = name.upper().replace("-", "_")
            if key == "CONTENT_TYPE":
                environ[key] = value
            elif key != "CONTENT_LENGTH":
                key = f"HTTP_{key}"
                environ[key] = f"{environ[key]},{value}" if key in environ else value
        return environ

    def _write(self, status: str, headers: list[tuple[str, str]], content: bytes) -> None:
        code, _, phrase = status.partition(" ")
        self.send_response(int(code), phrase)
        for name, value in headers:
            if name.lower() != "content-length":
                self.send_header(name, value)
        if int(code) not in {HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED}:
            self.send_header("Content-Length", str(len(content)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)
