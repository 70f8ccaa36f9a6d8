"""Fetches the certificates that sources miss: few at a time, in threads of their own, and within seconds.

A host that hangs delays requests that need a certificate of it, and nothing else: no other source, and none of this one whose
certificate is there. Large bodies hold their share of the receiver's memory meanwhile. What a host answers is never taken for a
lack of proof: without a good certificate the answer is 503, and the sender sends again.
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
"""Longest wait for a certificate: providers wait for ten seconds or more."""
LARGEST_BYTES = 64 * 1024
MOST_AT_ONCE = 2
"""Fetches of one source. A thread ends late where a name server hangs, and counts until then."""
MOST_WAITING = 20
"""Requests that wait for one certificate; any more get 503 at once."""
AGAIN_AFTER_SECONDS = 5.0
"""Time after a failure in which that certificate is not asked for."""
_LOG_EVERY_SECONDS = 60.0
_HTTPS = 443
_OK = 200

Get = Callable[[CertificateUrl], bytes]
"""Fetches a certificate, blocking. Whatever it raises is a failure."""


@dataclass(slots=True)
class _Fetch:
    """One fetch in progress, and the number of requests that wait for it."""

    done: asyncio.Future[bool]
    deadline: float
    waiting: int = 0


@dataclass(slots=True)
class _SourceFetches:
    """The fetches of one source."""

    running: dict[CertificateUrl, _Fetch] = field(default_factory=dict)
    again_at: dict[CertificateUrl, float] = field(default_factory=dict)
    """Of those that failed last."""
    log_at: float = float("-inf")


class CertificateFetcher:
    """Fetches what the sources of one worker miss; used in its event loop alone."""

    def __init__(self, get: Get | None = None) -> None:
        self._get = get or get_over_https
        self._sources: dict[CertificateStore, _SourceFetches] = {}

    async def fetch(self, missing: MissingCertificate, now: datetime) -> None:
        """Return once the certificate is in its store.

        Raises:
            Unavailable: it is not, within `LONGEST_SECONDS`.
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
            except Exception as error:  # noqa: BLE001  # whatever a library raises at what a host sends
                got = error
            with contextlib.suppress(RuntimeError):  # the loop may be closed by now
                loop.call_soon_threadsafe(end, got)

        def end(got: bytes | Exception) -> None:
            del source.running[missing.url]
            failure = got if isinstance(got, Exception) else None
            if isinstance(got, bytes):
                try:
                    missing.store.add(missing.url, got, now)
                except Exception as error:  # noqa: BLE001  # a certificate is the host's bytes, too, and more than ValueError
                    failure = error
            if failure is not None:
                _note_failure(source, missing.url, failure, loop.time())
            fetch.done.set_result(failure is None)

        # No pool: its threads are joined when the process ends, and one may hang in a name server.
        thread = threading.Thread(target=run, name="certificate", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # no thread can be started
            loop.call_soon(end, error)
        return fetch


def _note_failure(source: _SourceFetches, url: CertificateUrl, error: Exception, now: float) -> None:
    source.again_at = {known: until for known, until in source.again_at.items() if until > now}
    source.again_at[url] = now + AGAIN_AFTER_SECONDS
    if now >= source.log_at:
        source.log_at = now + _LOG_EVERY_SECONDS
        why = visible(f"{type(error).__name__}: {error}"[:200])
        _log.warning(
            "no certificate from %s, so its webhooks get 503 and come again: %s",
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
    """Return the body of a 200. No redirect is followed, no proxy is used, and the host has to prove its name.

    Raises:
        OSError: it can't be reached, proves another name, or takes longer than `within` seconds.
        ValueError: its answer is another, or too large.
        http.client.HTTPException: its answer is none.
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
    """End a read in another thread. Each byte of a slow answer begins the socket's own timeout anew."""
    with contextlib.suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
