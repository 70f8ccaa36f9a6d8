"""Connections to endpoints: guarded, ended by a deadline, and read strictly.

`http.client` parses a chunk's size with `int(line, 16)`, so that `-1` reads forever and `-5` raises ValueError. It skips
only the interim response 100, and continues after invalid header lines. So llhttp parses the responses here, as strictly
as the receiver's requests (`inbox.http.protocol`). A response that two parsers could read differently is refused: the call
is `unknown` and its connection closed.
"""

from __future__ import annotations

import functools
import logging
import socket
import ssl
from collections.abc import Mapping
from http.client import HTTPException, HTTPMessage, HTTPResponse, IncompleteRead, RemoteDisconnected
from typing import Any
from urllib.parse import unquote

import httptools
from requests.adapters import DEFAULT_CA_BUNDLE_PATH
from urllib3 import PoolManager, ProxyManager, make_headers
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool
from urllib3.exceptions import NewConnectionError
from urllib3.response import HTTPResponse as PooledResponse
from urllib3.util import parse_url

from inbox.clock import steady
from inbox.errors import ConfigError
from relay.http import guard
from relay.http.guard import RunningCall

logging.getLogger("urllib3").setLevel(logging.CRITICAL)
"""urllib3's warnings contain text from the endpoint, and whole URLs with any secrets in them."""

IDLE_SECONDS = 4.0
"""Longest idle time of a reused socket. The endpoint may be closing a socket that idled longer: a request on it would have
an unknown effect. Load balancers close after 60 s, uvicorn after 5 s, gunicorn after 2 s."""
_COALESCED = 64 * 1024
"""Largest body in bytes that is sent in one write with the head. One write saves the endpoint a wake-up."""


class CallState:
    """The shared state of one endpoint's connections in one thread: the running call, and the address rules."""

    __slots__ = ("call", "rules")

    def __init__(self, rules: guard.AddressRules) -> None:
        self.rules = rules
        self.call = RunningCall(0, lambda: 0)


class _Guarded(HTTPConnection):
    def __init__(self, state: CallState, *arguments: Any, **options: Any) -> None:  # noqa: ANN401  # urllib3's own
        super().__init__(*arguments, **options)
        self._state = state
        self._used_at = 0.0
        self._held_back: list[bytes] | None = None
        self._answer: StrictResponse | None = None
        self.response_class = self._begin_answer  # type: ignore[assignment]  # http.client expects a class, but only calls it

    def _begin_answer(self, *arguments: Any, **options: Any) -> StrictResponse:  # noqa: ANN401  # http.client's own
        self._answer = StrictResponse(*arguments, **options)
        return self._answer

    def _new_conn(self) -> socket.socket:
        return guard.connect(self._dns_host, self.port or self.default_port, self._state.call, self._state.rules)

    @property
    def is_connected(self) -> bool:
        if self._answer is not None and self._answer.has_leftover:
            return False
        return steady() - self._used_at < IDLE_SECONDS and super().is_connected

    def request(  # type: ignore[override]  # as urllib3's own, which differs from http.client's
        self,
        method: str,
        url: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        **options: Any,  # noqa: ANN401  # urllib3's own
    ) -> None:
        running = self._state.call
        if self.sock is None:
            try:
                self.connect()
            except (BrokenPipeError, ConnectionResetError) as error:
                # Otherwise urllib3 would take them for a truncated request, and try to read a response.
                raise NewConnectionError(self, "") from error
        running.attach(self.sock)
        running.sent = True  # from here on the endpoint may act on it
        if body is not None and len(body) > _COALESCED:
            super().request(method, url, body, headers, **options)
            return
        held_back: list[bytes] = []
        self._held_back = held_back
        try:
            super().request(method, url, body, headers, **options)
        finally:
            self._held_back = None
        self.send(b"".join(held_back))

    def send(self, data: Any) -> None:  # noqa: ANN401  # http.client's own
        if self._held_back is None:
            super().send(data)
        else:
            self._held_back.append(data)

    def getresponse(self) -> PooledResponse:  # type: ignore[override]  # likewise
        response = super().getresponse()
        self._used_at = steady()
        return response


class _GuardedTLS(_Guarded, HTTPSConnection):
    _spare: socket.socket | None = None

    def _new_conn(self) -> socket.socket:
        sock = super()._new_conn()
        # During the handshake only `ssl` has the socket, since wrapping detaches ours first.
        self._spare = sock.dup()
        self._state.call.attach(self._spare)
        return sock

    def connect(self) -> None:
        try:
            super().connect()
        finally:
            self._state.call.detach()
            if self._spare is not None:
                self._spare.close()
                self._spare = None


def open_pool(base: str, state: CallState, context: ssl.SSLContext, proxy: str | None) -> HTTPConnectionPool:
    """Make the pool of one kept-alive connection to the origin of `base`, or to its proxy; `context` is the endpoint's."""
    options: dict[str, Any] = {"maxsize": 1, "ssl_context": context, "cert_reqs": "CERT_REQUIRED"}
    if proxy is None:
        manager = PoolManager(**options)
    else:
        auth = parse_url(proxy).auth
        headers = None if auth is None else make_headers(proxy_basic_auth=unquote(auth))
        manager = ProxyManager(proxy, proxy_headers=headers, proxy_ssl_context=context, **options)
    pool = manager.connection_from_url(base)
    cls = _GuardedTLS if pool.scheme == "https" else _Guarded
    pool.ConnectionCls = functools.partial(cls, state)  # type: ignore[assignment]  # urllib3 expects a class, but only calls it
    return pool


def make_tls_context(
    ca_file: str | None, where: str, cert_file: str | None = None, key_file: str | None = None
) -> ssl.SSLContext:
    """Make a verifying context for TLS 1.2 or later. It trusts only `ca_file`, or without one the CAs of `requests`.

    It presents the certificate in `cert_file` to a server that requests one. The key is in `key_file` or in the same file.

    Raises:
        ConfigError: a file can't be read, or has the wrong content; `where` names the table.
    """
    if ca_file is None and cert_file is None and key_file is None:
        return _default_context()
    try:
        context = _context(DEFAULT_CA_BUNDLE_PATH if ca_file is None else ca_file)
    except OSError as error:
        raise ConfigError(f"{where}.ca_file: can't use ca_file {ca_file}: {error}") from None
    if cert_file is None:
        if key_file is not None:
            raise ConfigError(f"{where}.key_file: key_file needs cert_file, the certificate of the key")
        return context
    try:
        context.load_cert_chain(cert_file, key_file, password="")  # prevents a prompt, which would hang
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{where}.cert_file: can't use cert_file {cert_file} and key_file {key_file}: {error}"
        ) from None
    return context


@functools.cache
def _default_context() -> ssl.SSLContext:
    return _context(DEFAULT_CA_BUNDLE_PATH)


def _context(ca_file: str) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=ca_file)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


# --- strict responses


LARGEST_HEAD = 64 * 1024
"""Maximum bytes of a head with the interim responses before it, of a trailer, or between two parts of a body."""
MOST_FIELDS = 100
"""Maximum number of header fields in a head, trailers included."""
MOST_INTERIM = 8
"""Maximum number of interim responses (1xx) to skip. RFC 9110 §15.2 requires parsing them, and sets no limit."""
_PIECE = 16 * 1024
_FIRST_FINAL_STATUS = 200
_FIRST_STATUS = 100
_SWITCHING_PROTOCOLS = 101
_VERSIONS = {"1.1": 11, "1.0": 10}


class NotHttpError(HTTPException):
    """The bytes are not a reliable HTTP response. The text is this module's or llhttp's, never the endpoint's."""


class StrictResponse(HTTPResponse):
    """A response with the interface of `http.client`: `begin`, `read` with a bound, and `close`. Not for HEAD."""

    def __init__(
        self, sock: socket.socket, debuglevel: int = 0, method: str | None = None, url: str | None = None
    ) -> None:
        super().__init__(sock, debuglevel, method, url)
        self.has_leftover = False
        """True if unrequested bytes followed the response, so that the connection can't be reused."""
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        self._fields: list[tuple[bytes, bytes]] = []
        self._count = 0
        self._interim = 0
        self._unused = 0
        """Bytes received since the last useful ones."""
        self._in_body = False
        self._until_close = False
        self._whole = False
        self._body = bytearray()

    def begin(self) -> None:
        """Read the head of the final response.

        Raises:
            NotHttpError: the head is invalid, or too many interim responses precede it.
            RemoteDisconnected, IncompleteRead: the connection was closed before its end.
        """
        while not self._in_body:
            self._feed()
        message = HTTPMessage()
        for name, value in self._fields:
            message[name.decode("ascii")] = value.decode("latin-1")
        self.headers = self.msg = message

    def read(self, amt: int | None = None) -> bytes:
        """Read `amt` bytes of the body, fewer only at its end. The rest stays unread.

        Raises:
            NotHttpError: the framing of the body is unreliable.
            IncompleteRead: the connection was closed before its end.
            ValueError: `amt` has no value.
        """
        if amt is None:
            raise ValueError("a response is never read without a bound")
        while len(self._body) < amt and not self._whole:
            self._feed()
        data = bytes(self._body[:amt])
        del self._body[:amt]
        if self._whole and not self._body:
            self.close()
        return data

    def close(self) -> None:
        """Release the connection's stream and the parser, which refers to this object."""
        self._parser = None
        super().close()

    def _feed(self) -> None:
        parser = self._parser
        if parser is None:
            raise IncompleteRead(b"")
        data = self.fp.read1(_PIECE)
        if not data:
            self._end_at_eof()
            return
        self._unused += len(data)
        try:
            parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if not self._whole:
                raised = error.__context__  # by one of the methods below
                raise (raised if isinstance(raised, NotHttpError) else NotHttpError(_words(error))) from None
            self.has_leftover = True
        if self._unused > LARGEST_HEAD and not self._whole:
            raise NotHttpError("a head, or a chunk header or trailer, does not end")

    def _end_at_eof(self) -> None:
        if self._until_close:
            self._whole = True
        elif self._unused or self._interim or self._in_body:
            raise IncompleteRead(b"")
        else:
            raise RemoteDisconnected("")

    # Callbacks of the parser:

    def on_message_begin(self) -> None:
        """Record that another message has begun."""
        self.has_leftover = self._whole

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a field of a head; ignore those of a trailer."""
        self._count += 1
        if self._count > MOST_FIELDS:
            raise NotHttpError(f"more than {MOST_FIELDS} header fields")
        if not self._in_body:
            self._fields.append((name, value.strip(b" \t")))

    def on_headers_complete(self) -> None:
        """Skip an interim response, and check the framing of the final one."""
        parser = self._parser
        if self._whole or parser is None:
            return
        status = parser.get_status_code()
        version = _VERSIONS.get(parser.get_http_version())
        if version is None:
            raise NotHttpError("neither HTTP/1.1 nor HTTP/1.0")
        if status < _FIRST_STATUS:
            raise NotHttpError("the status is below 100")
        if status == _SWITCHING_PROTOCOLS:
            raise NotHttpError("it switches to a protocol that was not requested")
        if status < _FIRST_FINAL_STATUS:
            self._interim += 1
            if self._interim > MOST_INTERIM:
                raise NotHttpError(f"more than {MOST_INTERIM} interim responses")
            self._fields.clear()
            self._count = 0
            return
        codings = [value.lower() for name, value in self._fields if name.lower() == b"transfer-encoding"]
        if codings and (codings != [b"chunked"] or version == _VERSIONS["1.0"]):
            raise NotHttpError("a Transfer-Encoding other than chunked, or any in HTTP/1.0")
        self.code = self.status = status
        self.version, self.reason = version, ""
        self._until_close = not codings and all(name.lower() != b"content-length" for name, _ in self._fields)
        self.will_close = not parser.should_keep_alive()
        self._in_body = True
        self._unused = 0

    def on_body(self, data: bytes) -> None:
        """Keep a part of the body."""
        if not self._whole:
            self._body += data
            self._unused = 0

    def on_message_complete(self) -> None:
        """Record that the final response has ended."""
        self._whole = self._in_body


def _words(error: Exception) -> str:
    """Return the parser's reason, a constant of llhttp, in lower case for the middle of a sentence."""
    reason = str(error)
    return reason[:1].lower() + reason[1:]
