"""Fetch missing certificates of sources: few at a time, in separate threads, and within seconds.

A hanging host delays only requests that need one of its certificates, not other sources or requests whose certificate
is known. Large bodies that wait keep their share of the receiver's memory. A host's response never counts as failed
authentication: without a valid certificate the response is 503, and the sender retries.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from inbox.errors import Unavailable
from inbox.observe.logs import fields
from inbox.observe.visible import visible
from inbox.sources.keys import UNAVAILABLE, CertificateStore, CertificateUrl, MissingCertificate

_log = logging.getLogger(__name__)

LONGEST_SECONDS = 5.0
"""Seconds to wait for a certificate; providers wait for ten seconds or more."""
LARGEST_BYTES = 64 * 1024
MOST_AT_ONCE = 2
"""Concurrent fetches of one source. With a hanging name server, a thread ends late and counts until then."""
MOST_WAITING = 20
"""Maximum requests waiting for one certificate; more get 503 at once."""
AGAIN_AFTER_SECONDS = 5.0
"""Seconds after a failure before the certificate is fetched again."""
_LOG_EVERY_SECONDS = 60.0
_HTTPS = 443
_OK = 200

Get = Callable[[CertificateUrl], bytes]
"""Fetches a certificate, blocking. Any exception is a failure."""


@dataclass(slots=True)
class _Fetch:
    """A fetch in progress, with the number of waiting requests."""

    done: asyncio.Future[bool]
    deadline: float
    waiting: int = 0


@dataclass(slots=True)
class _SourceFetches:
    """The fetches of one source."""

    running: dict[CertificateUrl, _Fetch] = field(default_factory=dict)
    again_at: dict[CertificateUrl, float] = field(default_factory=dict)
    """Time of the next try for certificates whose last fetch failed."""
    log_at: float = float("-inf")


class CertificateFetcher:
    """Fetches missing certificates for the sources of one worker; used only in its event loop."""

    def __init__(self, get: Get | None = None) -> None:
        self._get = get or get_over_https
        self._sources: dict[CertificateStore, _SourceFetches] = {}

    async def fetch(self, missing: MissingCertificate, now: datetime) -> None:
        """Fetch a certificate into its store.

        Raises:
            Unavailable: it did not arrive within `LONGEST_SECONDS`.
        """
        loop = asyncio.get_running_loop()
        source = self._sources.setdefault(missing.store, _SourceFetches())
        fetch = source.running.get(missing.url)
        if fetch is None:
            is_barred = source.again_at.get(missing.url, float("-inf")) > loop.time()
            if is_barred or len(source.running) >= MOST_AT_ONCE:
                raise Unavailable(UNAVAILABLE)
            fetch = self._begin(loop, source, missing, now)
        if fetch.waiting >= MOST_WAITING:
            raise Unavailable(UNAVAILABLE)
        fetch.waiting += 1
        try:
            async with asyncio.timeout_at(fetch.deadline):
                is_there = await asyncio.shield(fetch.done)
        except TimeoutError:
            is_there = False
        finally:
            fetch.waiting -= 1
        if not is_there:
            raise Unavailable(UNAVAILABLE)

    def _begin(
        self, loop: asyncio.AbstractEventLoop, source: _SourceFetches, missing: MissingCertificate, now: datetime
    ) -> _Fetch:
        fetch = source.running[missing.url] = _Fetch(loop.create_future(), loop.time() + LONGEST_SECONDS)

        def run() -> None:
            try:
                got: bytes | Exception = self._get(missing.url)
            except Exception as error:  # noqa: BLE001  # a host's bytes may cause any error
                got = error
            with contextlib.suppress(RuntimeError):  # the loop may be closed by now
                loop.call_soon_threadsafe(end, got)

        def end(got: bytes | Exception) -> None:
            del source.running[missing.url]
            failure = got if isinstance(got, Exception) else None
            if isinstance(got, bytes):
                try:
                    missing.store.add(missing.url, got, now)
                except Exception as error:  # noqa: BLE001  # parsing a host's bytes may raise more than ValueError
                    failure = error
            if failure is not None:
                _note_failure(source, missing.url, failure, loop.time())
            fetch.done.set_result(failure is None)

        # No pool: its threads are joined at exit, and one may hang in name resolution.
        thread = threading.Thread(target=run, name="certificate", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # the thread can't be started
            loop.call_soon(end, error)
        return fetch


def _note_failure(source: _SourceFetches, url: CertificateUrl, error: Exception, now: float) -> None:
    source.again_at = {known: until for known, until in source.again_at.items() if until > now}
    source.again_at[url] = now + AGAIN_AFTER_SECONDS
    if now >= source.log_at:
        source.log_at = now + _LOG_EVERY_SECONDS
        why = visible(f"{type(error).__name__}: {error}"[:200])
        _log.warning(
            "no certificate from %s, so its webhooks get 503 and the sender retries: %s",
            url,
            why,
            extra=fields("certificate_missing", error=why),
        )


def get_over_https(
    url: CertificateUrl,
    dial: Callable[[str], socket.socket] | None = None,
    context: ssl.SSLContext | None = None,
    *,
    within: float = LONGEST_SECONDS,
) -> bytes:
    """Return the body of a 200 response, without redirects or proxies; the host's certificate must have its name.

    Raises:
        OSError: the host is unreachable, proves another name, or takes longer than `within` seconds.
        ValueError: the status is not 200, or the body is too large.
        http.client.HTTPException: the response is not valid HTTP.
    """
    began = time.monotonic()
    trusted = context or ssl.create_default_context()
    raw = dial(url.host) if dial else socket.create_connection((url.host, _HTTPS), timeout=within)
    with raw, trusted.wrap_socket(raw, server_hostname=url.host) as sock:
        cut = threading.Timer(max(within - (time.monotonic() - began), 0), _shut, (sock,))
        cut.daemon = True
        cut.start()
        try:
            connection = http.client.HTTPSConnection(url.host)
            connection.sock = sock
            connection.request("GET", url.path, headers={"User-Agent": "inbox-relay", "Connection": "close"})
            with connection.getresponse() as response:
                if response.status != _OK:
                    raise ValueError(f"the host answers {response.status}")
                body = response.read(LARGEST_BYTES + 1)
        finally:
            cut.cancel()
    if time.monotonic() - began >= within:
        raise TimeoutError(f"the host took longer than {within:g} s")
    if len(body) > LARGEST_BYTES:
        raise ValueError(f"the host sends more than {LARGEST_BYTES} bytes")
    return body


def _shut(sock: socket.socket) -> None:
    """End a read in another thread, as each byte of a slow response restarts the socket's timeout."""
    with contextlib.suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
