"""Connections under `requests`: guarded, ended by a deadline, and not reused after a long idle time."""

from __future__ import annotations

import functools
import logging
import socket
import ssl
from collections.abc import Mapping
from typing import Any, cast

from requests import PreparedRequest, Response
from requests.adapters import DEFAULT_CA_BUNDLE_PATH, HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool
from urllib3.exceptions import NewConnectionError
from urllib3.poolmanager import ProxyManager
from urllib3.response import HTTPResponse

from inbox.clock import steady
from inbox.errors import ConfigError
from relay.http import guard
from relay.http.guard import RunningCall
from relay.http.response import StrictResponse

logging.getLogger("urllib3").setLevel(logging.CRITICAL)
"""Its warnings show whole URLs, including secrets in them, and text that the other side sent."""

IDLE_SECONDS = 4.0
"""A socket idle for longer is closed, not reused: the other side may be closing it at that moment, and its effect on the
request would be unknown. Load balancers close after 60 s, uvicorn after 5 s, gunicorn after 2 s."""
_COALESCED = 64 * 1024
"""Largest body in bytes that goes out in one write with the head, which saves the other side a wake-up."""


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
        self.response_class = self._begin_answer  # type: ignore[assignment]  # a class to http.client, which only calls it

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
                # Unconverted, urllib3 takes them for a request that was cut short, and goes on to read an answer.
                raise NewConnectionError(self, "") from error
        running.attach(self.sock)
        running.sent = True  # from here on the other side may act on it
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

    def getresponse(self) -> HTTPResponse:  # type: ignore[override]  # likewise
        response = super().getresponse()
        self._used_at = steady()
        return response


class _GuardedTLS(_Guarded, HTTPSConnection):
    _spare: socket.socket | None = None

    def _new_conn(self) -> socket.socket:
        sock = super()._new_conn()
        # During the handshake only `ssl` has the socket: wrapping detaches ours before it begins.
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


class EndpointAdapter(HTTPAdapter):
    """Sends to one origin over one kept-alive connection, without retries, redirects and cookies."""

    def __init__(self, state: CallState, context: ssl.SSLContext, proxies: dict[str, str]) -> None:
        self._state = state
        self._context = context
        self._proxies = proxies
        self._pool: HTTPConnectionPool | None = None
        super().__init__(pool_connections=1, pool_maxsize=1)

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **options: Any) -> None:  # noqa: ANN401  # requests' own
        """Make the pool manager with the endpoint's TLS context, made once: loading CAs takes 20 ms."""
        super().init_poolmanager(connections, maxsize, block, ssl_context=self._context, **options)

    def proxy_manager_for(self, proxy: str, **options: Any) -> ProxyManager:  # noqa: ANN401  # requests' own
        """Make the proxy manager with the endpoint's TLS context."""
        options |= {"ssl_context": self._context, "proxy_ssl_context": self._context}
        return super().proxy_manager_for(proxy, **options)  # type: ignore[no-any-return]

    def get_connection_with_tls_context(
        self,
        request: PreparedRequest,
        verify: bool | str | None,
        proxies: Mapping[str, str] | None = None,  # noqa: ARG002  # the endpoint's count
        cert: Any = None,  # noqa: ANN401  # requests' own
    ) -> HTTPConnectionPool:
        """Return the one pool: looking it up by the URL's parts costs more than sending."""
        if self._pool is None:
            pool = cast(
                "HTTPConnectionPool",
                super().get_connection_with_tls_context(request, verify, proxies=self._proxies, cert=cert),
            )
            cls = _GuardedTLS if pool.scheme == "https" else _Guarded
            pool.ConnectionCls = functools.partial(cls, self._state)  # type: ignore[assignment]  # a class to urllib3, which only calls it
            self._pool = pool
        return self._pool

    def cert_verify(self, conn: Any, *_: object) -> None:  # noqa: ANN401  # requests' own
        """Verify always, against the context's CAs."""
        conn.cert_reqs = "CERT_REQUIRED"

    def close(self) -> None:
        """Close the idle connection; the next call opens another."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()
        super().close()

    def build_response(self, req: PreparedRequest, resp: Any) -> Response:  # noqa: ANN401  # requests' own
        """Build a response from status, headers and stream; no cookie is read."""
        response = Response()
        response.status_code = resp.status
        response.headers = resp.headers
        response.raw = resp
        response.request = req
        return response


def tls_context(
    ca_file: str | None, where: str, cert_file: str | None = None, key_file: str | None = None
) -> ssl.SSLContext:
    """Make a context that verifies, from TLS 1.2 on, and trusts `ca_file` alone, or else the CAs of `requests`.

    It presents the certificate of `cert_file` to a server that asks for one. Its key is in `key_file` or in the same file.

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
            raise ConfigError(f"{where}.key_file: key_file needs a cert_file, the certificate that the key is of")
        return context
    try:
        context.load_cert_chain(cert_file, key_file, password="")  # prevents a prompt: nobody could answer it
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
